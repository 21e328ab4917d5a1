//! Faults in the scales of FP8 weights, and in grids of scales.

use safequant::container::Dtype;
use safequant::kernels::Minifloat;
use safequant::schemes::{
    Code, Granularity, Part, QuantizedTensor, Role, ScaleCoding, ScaleDirection, Storage,
    SuperScale,
};
use serde_json::{Map, Value, json};

use super::super::{Planted, Random, weights};
use super::{Target, choose, edit, is_own_byte, is_own_float, set, values};
use crate::audit::draft::Draft;
use crate::interop::fixture::Dense;

/// An FP8 weight of the `fp8` convention with a scale of its own.
fn choose_fp8(
    draft: &Draft,
    random: &mut Random,
    fits: impl Fn(&QuantizedTensor, &Part) -> bool,
) -> Option<Target> {
    choose(draft, random, Role::Scale, |weight, part| {
        let is_own = part.name.starts_with(&format!("{}.", weight.module));
        weight.convention == "fp8" && is_own && is_own_float(part) && fits(weight, part)
    })
}

pub(super) fn remove_fp8_scale(draft: &mut Draft, random: &mut Random) -> Option<Planted> {
    let target = choose(draft, random, Role::Scale, |weight, part| {
        let is_fp8 = matches!(weight.scheme.code, Code::Minifloat(f) if f.bits() == 8);
        let known = ["fp8", "compressed-tensors", "modelopt", "comfyui"];
        let is_known = known.contains(&weight.convention);
        // Without a scale the sparse one has a mask all the same; a fused one serves other experts.
        let is_dense = weight.part(Role::Mask).is_none();
        let is_own = !matches!(part.storage, Storage::SharedElements { .. });
        is_fp8 && is_known && is_own && is_dense && weight.shape.len() == 2
    })?;
    // What else may be a scale of the module goes as well.
    let prefix = format!("{}.", target.weight.module);
    for name in draft.names() {
        let is_scale = name.contains("scale") && !name.contains("input") && name != "scaled_fp8";
        if name.starts_with(&prefix) && is_scale {
            draft.remove(&name);
        }
    }
    Some(Planted(target.weight.module))
}

pub(super) fn add_bare_codes(draft: &mut Draft, random: &mut Random) -> Option<Planted> {
    choose_fp8(draft, random, |_, _| true)?;
    let module = format!("model.layers.{}.extra_proj", random.below(8));
    let bytes = (0..64 * 128_usize).map(|at| u8::try_from(at * 7 % 126).unwrap());
    let dense = Dense {
        dtype: Dtype::F8E4M3,
        shape: vec![64, 128],
        bytes: bytes.collect(),
    };
    draft.add(&format!("{module}.weight"), dense);
    Some(Planted(module))
}

pub(super) fn rename_fp8_scale(
    draft: &mut Draft,
    random: &mut Random,
    ending: &str,
) -> Option<Planted> {
    let target = choose_fp8(draft, random, |weight, part| {
        let is_block = matches!(weight.scheme.granularity, Granularity::Block { .. });
        is_block && part.name.ends_with(".weight_scale_inv")
    })?;
    let module = target.weight.module;
    let dense = draft.remove(&target.part.name)?;
    draft.add(&format!("{module}.{ending}"), dense);
    Some(Planted(module))
}

/// Lays scales out as padded tiles, as far as their shape goes.
pub(super) fn pad_to_tiles(draft: &mut Draft, random: &mut Random) -> Option<Planted> {
    let known = ["compressed-tensors", "modelopt"];
    let target = choose(draft, random, Role::Scale, |weight, part| {
        let is_group = matches!(
            weight.scheme.granularity,
            Granularity::Group { size: 16 | 32 }
        );
        let is_byte = part.dtype.bits() == 8 && is_own_byte(part);
        known.contains(&weight.convention) && is_group && is_byte && weight.shape.len() == 2
    })?;
    let dense = draft.tensor(&target.part.name)?;
    let [rows, columns] = *dense.shape.as_slice() else {
        return None;
    };
    let padded = [rows.next_multiple_of(128), columns.next_multiple_of(4)];
    if padded == [rows, columns] {
        return None;
    }
    dense.shape = padded.to_vec();
    dense
        .bytes
        .resize(usize::try_from(padded[0] * padded[1]).unwrap(), 0);
    Some(Planted(target.weight.module))
}

pub(super) fn invert_fp8_scales(draft: &mut Draft, random: &mut Random) -> Option<Planted> {
    let target = choose(draft, random, Role::Scale, |weight, part| {
        let is_e4m3 = weight.scheme.code == Code::Minifloat(Minifloat::E4M3);
        is_e4m3 && is_own_float(part) && weight.scheme.super_scale == SuperScale::None
    })?;
    let dense = draft.tensor(&target.part.name)?;
    let mut all = values(dense);
    let is_usual = |value: f32| match target.weight.scheme.direction {
        ScaleDirection::Multiply => (1e-6..1e-2).contains(&value),
        ScaleDirection::Divide => (1e2..1e6).contains(&value),
    };
    if !all.iter().all(|&value| is_usual(value)) {
        return None;
    }
    for value in &mut all {
        *value = value.recip();
    }
    set(dense, &all);
    Some(Planted(target.weight.module))
}

/// One scale for a whole matrix, as if it had been lost.
pub(super) fn fp8_scale_is_one(draft: &mut Draft, random: &mut Random) -> Option<Planted> {
    let target = choose(draft, random, Role::Scale, |weight, part| {
        let is_e4m3 = weight.scheme.code == Code::Minifloat(Minifloat::E4M3);
        let is_whole = weight.scheme.granularity == Granularity::Tensor;
        let is_large = weight.out_features() * weight.in_features() >= 1024;
        is_e4m3 && is_whole && is_large && is_own_float(part)
    })?;
    let dense = draft.tensor(&target.part.name)?;
    // A cast that has the codes it would have without a scale is as it should be.
    if values(dense)[0] > 0.01 {
        return None;
    }
    edit(dense, 0, |_| 1.0);
    Some(Planted(target.weight.module))
}

pub(super) fn e8m0_as_bytes(draft: &mut Draft, random: &mut Random) -> Option<Planted> {
    let target = choose(draft, random, Role::Scale, |weight, part| {
        let is_power = matches!(weight.scheme.scale, ScaleCoding::E8M0(_));
        is_power && part.dtype == Dtype::F8E8M0 && weight.convention == "fp8"
    })?;
    draft.tensor(&target.part.name)?.dtype = Dtype::U8;
    Some(Planted(target.weight.module))
}

/// Changes the quantization settings of `config.json`, if there are such of the `fp8` convention with blocks.
fn edit_block_settings(draft: &mut Draft, f: impl FnOnce(&mut Map<String, Value>)) -> Option<()> {
    let config = draft.config();
    let settings = config.get("quantization_config")?;
    if settings.get("quant_method")? != "fp8" || settings.get("weight_block_size")?.is_null() {
        return None;
    }
    draft.edit("config.json", |config| {
        f(config["quantization_config"].as_object_mut().unwrap());
    });
    Some(())
}

pub(super) fn declare_ue8m0(draft: &mut Draft, random: &mut Random) -> Option<Planted> {
    let target = choose_fp8(draft, random, |_, _| true)?;
    let all = values(draft.tensor(&target.part.name)?);
    if all.iter().all(|value| value.log2().fract() == 0.0) {
        return None;
    }
    edit_block_settings(draft, |settings| {
        settings.insert("scale_fmt".to_owned(), json!("ue8m0"));
    })?;
    Some(Planted(target.weight.module))
}

pub(super) fn forget_block_size(draft: &mut Draft, random: &mut Random) -> Option<Planted> {
    let target = choose_fp8(draft, random, |weight, part| {
        let is_square = matches!(weight.scheme.granularity,
            Granularity::Block { rows, columns } if rows == columns && [32, 64, 128].contains(&rows));
        // One scale for the whole matrix is taken for just that.
        is_square && part.shape.iter().product::<u64>() > 1 && weight.shape.len() == 2
    })?;
    edit_block_settings(draft, |settings| {
        settings.remove("weight_block_size");
    })?;
    // Another document may say it, too; without it, a grid may fit nothing, or another granularity.
    if draft.documents.contains_key("quantize_config.json") {
        return None;
    }
    let weights = weights(draft);
    let weight = weights.iter().find(|w| w.module == target.weight.module)?;
    matches!(weight.scheme.granularity, Granularity::Block { .. })
        .then_some(Planted(target.weight.module))
}

/// A block-scaled FP8 weight whose grid is that of the configuration.
fn choose_grid(
    draft: &Draft,
    random: &mut Random,
    fits: impl Fn(&QuantizedTensor, &Part) -> bool,
) -> Option<Target> {
    choose(draft, random, Role::Scale, |weight, part| {
        let is_block = matches!(weight.scheme.granularity, Granularity::Block { .. });
        let known = ["fp8", "compressed-tensors"].contains(&weight.convention);
        let is_own = part.name.starts_with(&format!("{}.", weight.module));
        let is_grid = part.shape.len() == 2 && weight.shape.len() == 2 && is_own;
        known && is_block && is_grid && weight.part(Role::Mask).is_none() && fits(weight, part)
    })
}

pub(super) fn cut_grid(draft: &mut Draft, random: &mut Random) -> Option<Planted> {
    let target = choose_grid(draft, random, |_, part| part.shape[0] > 2)?;
    let dense = draft.tensor(&target.part.name)?;
    let row = dense.bytes.len() / usize::try_from(dense.shape[0]).unwrap();
    dense.shape[0] -= 1;
    dense.bytes.truncate(dense.bytes.len() - row);
    // The rest may be the transpose.
    let [rows, columns] = [target.part.shape[0], target.part.shape[1]];
    (rows - 1 != columns).then_some(Planted(target.weight.module))
}

pub(super) fn transpose_grid(draft: &mut Draft, random: &mut Random) -> Option<Planted> {
    let target = choose_grid(draft, random, |_, part| {
        // A row or a column of scales may be taken for one per channel.
        part.shape[0] != part.shape[1]
    })?;
    let dense = draft.tensor(&target.part.name)?;
    dense.shape.reverse();
    Some(Planted(target.weight.module))
}

/// Takes rows off a weight, so that the block at its edge is partial and division leaves no remainder.
pub(super) fn shorten_weight(draft: &mut Draft, random: &mut Random) -> Option<Planted> {
    let target = choose_grid(draft, random, |weight, part| {
        weight.convention == "fp8" && part.shape[0] == 2
    })?;
    let Granularity::Block { rows, .. } = target.weight.scheme.granularity else {
        return None;
    };
    // Two blocks, the second of which has eight rows less than the first.
    let wanted = 2 * rows - 8;
    let codes = target.weight.part(Role::Codes)?;
    let dense = draft.tensor(&codes.name)?;
    if dense.shape[0] <= wanted {
        return None;
    }
    dense.shape[0] = wanted;
    let width = usize::try_from(dense.shape[1]).unwrap();
    dense
        .bytes
        .truncate(usize::try_from(wanted).unwrap() * width);
    Some(Planted(target.weight.module))
}
