//! Faults for the rules of `crates/audit/src/rules/scales`.

use safequant::container::Dtype;
use safequant::kernels::{Backend, Float, Minifloat};
use safequant::schemes::{
    Code, Granularity, IntegerEncoding, Part, QuantizedTensor, Role, ScaleCoding, ScaleDirection,
    Storage, SuperScale, ZeroCoding, ZeroPoint,
};
use serde_json::json;

use super::{Fault, Planted, Random, weights};
use crate::audit::draft::Draft;
use crate::interop::fixture::Dense;

pub(super) const FAULTS: &[Fault] = &[
    Fault::new("SC001", "fp8-scale-removed", remove_fp8_scale),
    Fault::new("SC001", "fp8-codes-added-bare", add_bare_codes),
    Fault::new("SC002", "fp8-scale-renamed", |draft, random| {
        rename_fp8_scale(draft, random, "scale_inv")
    }),
    Fault::new(
        "SC002",
        "block-scale-called-weight-scale",
        |draft, random| rename_fp8_scale(draft, random, "weight_scale"),
    ),
    Fault::new("SC010", "scale-is-nan", |draft, random| {
        spoil_scale(draft, random, f32::NAN)
    }),
    Fault::new("SC010", "scale-is-infinite", |draft, random| {
        spoil_scale(draft, random, f32::INFINITY)
    }),
    Fault::new("SC010", "global-scale-is-nan", |draft, random| {
        spoil_global(draft, random, |_| f32::NAN)
    }),
    Fault::new("SC010", "offset-is-nan", offset_is_nan),
    Fault::new("SC011", "scale-is-zero", |draft, random| {
        spoil_scale(draft, random, 0.0)
    }),
    Fault::new("SC011", "global-scale-is-zero", |draft, random| {
        spoil_global(draft, random, |_| 0.0)
    }),
    Fault::new("SC012", "scale-is-negative", scale_is_negative),
    Fault::new("SC012", "block-scale-has-a-sign", |draft, random| {
        spoil_small_scale(draft, random, |byte| byte | 0x80)
    }),
    Fault::new("SC013", "scale-is-subnormal", scale_is_subnormal),
    Fault::new("SC014", "scale-is-far-above-others", scale_is_an_outlier),
    Fault::new("SC015", "scales-are-all-one", scales_are_one),
    Fault::new(
        "SC020",
        "gate-has-another-scale-than-up",
        unequal_fused_scales,
    ),
    Fault::new("SC015", "global-scale-is-one", |draft, random| {
        spoil_global(draft, random, |_| 1.0)
    }),
    Fault::new("SC021", "key-is-dense", fused_sibling_is_dense),
    Fault::new(
        "SC030",
        "expert-without-input-scale",
        expert_without_input_scale,
    ),
    Fault::new("SC031", "expert-scales-times-1024", expert_is_an_outlier),
    Fault::new("SC032", "input-scale-is-zero", |draft, random| {
        spoil_small(draft, random, INPUTS, 0.0)
    }),
    Fault::new("SC032", "input-scale-is-nan", |draft, random| {
        spoil_small(draft, random, INPUTS, f32::NAN)
    }),
    Fault::new("SC032", "input-scale-is-negative", |draft, random| {
        spoil_small(draft, random, INPUTS, -0.5)
    }),
    Fault::new("SC040", "global-scale-inverted", |draft, random| {
        spoil_global(draft, random, |value| 1.0 / value)
    }),
    Fault::new("SC041", "scales-padded-to-tiles", pad_to_tiles),
    Fault::new("SC042", "fp8-scales-inverted", invert_fp8_scales),
    Fault::new("SC043", "fp8-scale-is-one", fp8_scale_is_one),
    Fault::new("SC050", "e8m0-stored-as-bytes", e8m0_as_bytes),
    Fault::new("SC051", "e8m0-is-255", |draft, random| {
        spoil_power(draft, random, 0xff)
    }),
    Fault::new("SC052", "ue8m0-declared", declare_ue8m0),
    Fault::new("SC060", "block-grid-cut-short", cut_grid),
    Fault::new("SC061", "block-size-not-declared", forget_block_size),
    Fault::new("SC062", "block-grid-transposed", transpose_grid),
    Fault::new("SC063", "block-at-the-edge-cut-short", shorten_weight),
    Fault::new("SC070", "value-scale-removed", |draft, random| {
        cache_scales(draft, random, &["k_scale"])
    }),
    Fault::new("SC070", "key-scale-removed", |draft, random| {
        cache_scales(draft, random, &["v_scale"])
    }),
    Fault::new("SC072", "cache-scale-is-zero", cache_scale_is_zero),
    Fault::new(
        "SC073",
        "cache-scales-in-one-layer",
        cache_scales_in_one_layer,
    ),
    Fault::new("SC080", "scale-beyond-f16", scale_beyond_f16),
    Fault::new("SC090", "code-is-nan", code_is_nan),
    Fault::new("SC093", "file-ends-in-zeros", rows_are_constant),
    Fault::new("SC095", "padding-is-dirty", dirty_padding),
    Fault::new("SC091", "codes-in-half-the-range", half_the_range),
    Fault::new("SC092", "codes-at-the-ends", saturate),
    Fault::new("SC093", "row-is-constant", row_is_constant),
    Fault::new("SC093", "file-ends-in-zeros", rows_are_constant),
    Fault::new("SC094", "weight-is-zeroed", weight_is_constant),
    Fault::new(
        "SC096",
        "zero-points-in-the-middle",
        zero_points_in_the_middle,
    ),
];

/// Endings of activation scales.
const INPUTS: &[&str] = &["input_scale", "input_global_scale", "scale_input"];

/// The module, and the part that is spoilt.
struct Target {
    weight: QuantizedTensor,
    part: Part,
}

/// A random weight among those with a part of this role for which `fits` holds.
fn choose(
    draft: &Draft,
    random: &mut Random,
    role: Role,
    fits: impl Fn(&QuantizedTensor, &Part) -> bool,
) -> Option<Target> {
    let weights = weights(draft);
    let fitting: Vec<_> = weights
        .iter()
        .filter_map(|weight| Some((weight, weight.part(role)?)))
        .filter(|(weight, part)| part.shape.iter().product::<u64>() > 0 && fits(weight, part))
        .collect();
    let (weight, part) = random.choose(&fitting)?;
    Some(Target {
        weight: (*weight).clone(),
        part: (*part).clone(),
    })
}

/// The dense float type of a dtype.
fn float(dtype: Dtype) -> Option<Float> {
    safequant::schemes::scheme::float_of(dtype)
}

/// All elements of a tensor of floats.
fn values(dense: &Dense) -> Vec<f32> {
    let float = float(dense.dtype).unwrap();
    let mut values = vec![0.0; dense.bytes.len() / float.size_bytes()];
    (Backend::detect().widen)(float, &dense.bytes, &mut values);
    values
}

/// Writes them back.
fn set(dense: &mut Dense, values: &[f32]) {
    let float = float(dense.dtype).unwrap();
    (Backend::detect().round)(float, values, &mut dense.bytes);
}

/// Changes one element of a tensor of floats.
fn edit(dense: &mut Dense, at: usize, f: impl Fn(f32) -> f32) {
    let mut all = values(dense);
    all[at] = f(all[at]);
    set(dense, &all);
}

/// Whether every element of the part is an entry of this module's grid, and floats.
fn is_own_float(part: &Part) -> bool {
    let is_own = !matches!(
        part.storage,
        Storage::SharedElements { .. } | Storage::Blocks { .. } | Storage::Tiled { .. }
    );
    float(part.dtype).is_some() && is_own && part.extent.is_none()
}

/// Whether every byte of the part is an entry of this module's grid.
fn is_own_byte(part: &Part) -> bool {
    matches!(part.storage, Storage::Elements { .. }) && part.extent.is_none()
}

/// Puts a value in a random place of a random scale that is a dense float.
fn spoil_scale(draft: &mut Draft, random: &mut Random, value: f32) -> Option<Planted> {
    let target = choose(draft, random, Role::Scale, |_, part| is_own_float(part))?;
    let dense = draft.tensor(&target.part.name)?;
    let at = random.below(values(dense).len());
    // All codes of the group may be zero already: a zero scale is as it should be then.
    if value == 0.0 && values(dense)[at] < 1e-5 {
        return None;
    }
    edit(dense, at, |_| value);
    Some(Planted(target.weight.module))
}

fn scale_is_negative(draft: &mut Draft, random: &mut Random) -> Option<Planted> {
    let target = choose(draft, random, Role::Scale, |weight, part| {
        is_own_float(part) && weight.convention != "mlx" && weight.convention != "gguf"
    })?;
    let dense = draft.tensor(&target.part.name)?;
    let at = random.below(values(dense).len());
    edit(dense, at, |value| -value.max(1e-3));
    Some(Planted(target.weight.module))
}

fn scale_is_subnormal(draft: &mut Draft, random: &mut Random) -> Option<Planted> {
    let target = choose(draft, random, Role::Scale, |_, part| {
        is_own_float(part) && part.dtype == Dtype::F16
    })?;
    let dense = draft.tensor(&target.part.name)?;
    let at = random.below(values(dense).len());
    if values(dense)[at].abs() < 6.2e-5 {
        return None;
    }
    edit(dense, at, |_| 3e-6);
    Some(Planted(target.weight.module))
}

fn scale_is_an_outlier(draft: &mut Draft, random: &mut Random) -> Option<Planted> {
    let target = choose(draft, random, Role::Scale, |_, part| {
        is_own_float(part) && part.shape.iter().product::<u64>() >= 32
    })?;
    let dense = draft.tensor(&target.part.name)?;
    // What is huge already hides it.
    let all = values(dense);
    if !all.iter().all(|value| value.abs() < 8.0) {
        return None;
    }
    edit(dense, random.below(all.len()), |_| 60000.0);
    Some(Planted(target.weight.module))
}

fn scales_are_one(draft: &mut Draft, random: &mut Random) -> Option<Planted> {
    let target = choose(draft, random, Role::Scale, |weight, part| {
        let is_one_bit = matches!(weight.scheme.code, Code::Integer { bits: 1, .. });
        is_own_float(part) && part.shape.iter().product::<u64>() >= 16 && !is_one_bit
    })?;
    let dense = draft.tensor(&target.part.name)?;
    let n = values(dense).len();
    set(dense, &vec![1.0; n]);
    Some(Planted(target.weight.module))
}

/// Changes one second-level scale of a whole matrix.
fn spoil_global(draft: &mut Draft, random: &mut Random, f: impl Fn(f32) -> f32) -> Option<Planted> {
    let target = choose(draft, random, Role::SuperScale, |weight, part| {
        let is_global = matches!(
            weight.scheme.super_scale,
            SuperScale::Multiply | SuperScale::Divide
        );
        let is_small = matches!(weight.scheme.scale, ScaleCoding::Minifloat(_));
        is_global && is_small && is_own_float(part)
    })?;
    let dense = draft.tensor(&target.part.name)?;
    // The other way around, a matrix of zeros or of huge numbers looks no better.
    let old = values(dense)[0];
    if !(1e-6..1e6).contains(&old) || (0.5..2.0).contains(&old) {
        return None;
    }
    edit(dense, 0, f);
    Some(Planted(target.weight.module))
}

fn offset_is_nan(draft: &mut Draft, random: &mut Random) -> Option<Planted> {
    let target = choose(draft, random, Role::Offset, |_, part| is_own_float(part))?;
    let dense = draft.tensor(&target.part.name)?;
    let at = random.below(values(dense).len());
    edit(dense, at, |_| f32::NAN);
    Some(Planted(target.weight.module))
}

/// Changes a byte of a scale that is a small float.
fn spoil_small_scale(
    draft: &mut Draft,
    random: &mut Random,
    f: impl Fn(u8) -> u8,
) -> Option<Planted> {
    let target = choose(draft, random, Role::Scale, |weight, part| {
        let is_small = matches!(weight.scheme.scale, ScaleCoding::Minifloat(_));
        is_small && is_own_byte(part) && weight.convention != "mlx"
    })?;
    let dense = draft.tensor(&target.part.name)?;
    let nonzero: Vec<usize> = (0..dense.bytes.len())
        .filter(|&at| dense.bytes[at] != 0)
        .collect();
    let at = *random.choose(&nonzero)?;
    dense.bytes[at] = f(dense.bytes[at]);
    Some(Planted(target.weight.module))
}

/// Puts a byte in a random place of a scale that is a power of two.
fn spoil_power(draft: &mut Draft, random: &mut Random, byte: u8) -> Option<Planted> {
    let target = choose(draft, random, Role::Scale, |weight, part| {
        matches!(weight.scheme.scale, ScaleCoding::E8M0(_)) && is_own_byte(part)
    })?;
    let dense = draft.tensor(&target.part.name)?;
    let at = random.below(dense.bytes.len());
    dense.bytes[at] = byte;
    Some(Planted(target.weight.module))
}

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

fn remove_fp8_scale(draft: &mut Draft, random: &mut Random) -> Option<Planted> {
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

fn add_bare_codes(draft: &mut Draft, random: &mut Random) -> Option<Planted> {
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

fn rename_fp8_scale(draft: &mut Draft, random: &mut Random, ending: &str) -> Option<Planted> {
    let target = choose_fp8(draft, random, |weight, part| {
        let is_block = matches!(weight.scheme.granularity, Granularity::Block { .. });
        is_block && part.name.ends_with(".weight_scale_inv")
    })?;
    let module = target.weight.module;
    let dense = draft.remove(&target.part.name)?;
    draft.add(&format!("{module}.{ending}"), dense);
    Some(Planted(module))
}

fn unequal_fused_scales(draft: &mut Draft, random: &mut Random) -> Option<Planted> {
    let all = weights(draft);
    let has_sibling = |module: &str| {
        let pairs = [("gate_proj", "up_proj"), ("q_proj", "k_proj"), ("w1", "w3")];
        pairs.iter().any(|(one, other)| {
            let sibling = module
                .strip_suffix(one)
                .map(|rest| format!("{rest}{other}"));
            sibling.is_some_and(|name| all.iter().any(|weight| weight.module == name))
        })
    };
    let role = |weight: &QuantizedTensor| match weight.scheme.super_scale {
        SuperScale::Multiply | SuperScale::Divide => Some(Role::SuperScale),
        _ if weight.scheme.granularity == Granularity::Tensor => Some(Role::Scale),
        _ => None,
    };
    let fitting: Vec<_> = all
        .iter()
        .filter(|weight| has_sibling(&weight.module) && weight.shape.len() == 2)
        .filter_map(|weight| Some((weight, weight.part(role(weight)?)?)))
        .filter(|(_, part)| is_own_float(part))
        .collect();
    let (weight, part) = random.choose(&fitting)?;
    edit(draft.tensor(&part.name)?, 0, |value| value * 2.5);
    Some(Planted(weight.module.clone()))
}

fn fused_sibling_is_dense(draft: &mut Draft, random: &mut Random) -> Option<Planted> {
    let all = weights(draft);
    let known = [
        "gptq",
        "gptq_v2",
        "awq",
        "compressed-tensors",
        "fp8",
        "modelopt",
    ];
    let fitting: Vec<_> = all
        .iter()
        .filter(|weight| known.contains(&weight.convention) && weight.shape.len() == 2)
        .filter(|weight| {
            // The other one must stay, and nothing of it be shared.
            let sibling = weight.module.replace("up_proj", "gate_proj");
            let is_own = |part: &Part| part.name.starts_with(&format!("{}.", weight.module));
            sibling != weight.module
                && all.iter().any(|other| other.module == sibling)
                && weight.parts.iter().all(is_own)
        })
        .collect();
    let weight = random.choose(&fitting)?;
    for part in &weight.parts {
        draft.remove(&part.name);
    }
    let n = usize::try_from(weight.out_features() * weight.in_features()).unwrap();
    let dense = Dense {
        dtype: Dtype::BF16,
        shape: vec![weight.out_features(), weight.in_features()],
        bytes: vec![0x3c; 2 * n],
    };
    draft.add(&format!("{}.weight", weight.module), dense);
    Some(Planted(weight.module.clone()))
}

/// One number, as activation scales are.
fn one(value: f32) -> Dense {
    Dense {
        dtype: Dtype::F32,
        shape: vec![1],
        bytes: value.to_le_bytes().to_vec(),
    }
}

/// Modules of experts, one projection of one layer.
fn experts(draft: &Draft, random: &mut Random) -> Vec<QuantizedTensor> {
    let all = weights(draft);
    let of_expert = |weight: &&QuantizedTensor| weight.module.contains(".experts.0.");
    let first: Vec<_> = all.iter().filter(of_expert).collect();
    let Some(first) = random.choose(&first) else {
        return Vec::new();
    };
    let (before, after) = first.module.split_once(".experts.0.").unwrap();
    let names = (0..).map(|expert| format!("{before}.experts.{expert}.{after}"));
    let found = names.map_while(|name| all.iter().find(|weight| weight.module == name));
    found.cloned().collect()
}

fn expert_without_input_scale(draft: &mut Draft, random: &mut Random) -> Option<Planted> {
    let experts = experts(draft, random);
    if experts.len() < 2 {
        return None;
    }
    let poor = random.below(experts.len());
    for (at, expert) in experts.iter().enumerate() {
        let name = format!("{}.input_scale", expert.module);
        draft.remove(&name);
        if at != poor {
            draft.add(&name, one(0.01));
        }
    }
    Some(Planted(experts[poor].module.clone()))
}

fn expert_is_an_outlier(draft: &mut Draft, random: &mut Random) -> Option<Planted> {
    let experts = experts(draft, random);
    let expert = random.choose(&experts).filter(|_| experts.len() >= 3)?;
    let part = expert.part(Role::Scale).filter(|part| is_own_float(part))?;
    let dense = draft.tensor(&part.name)?;
    let scaled: Vec<f32> = values(dense).iter().map(|value| value * 1024.0).collect();
    set(dense, &scaled);
    Some(Planted(expert.module.clone()))
}

/// Sets a scale of activations.
fn spoil_small(
    draft: &mut Draft,
    random: &mut Random,
    endings: &[&str],
    value: f32,
) -> Option<Planted> {
    let mut names = draft.names();
    names.retain(|name| {
        endings
            .iter()
            .any(|ending| name.ends_with(&format!(".{ending}")))
    });
    let name = random.choose(&names)?.clone();
    let dense = draft.tensor(&name)?;
    float(dense.dtype)?;
    edit(dense, 0, |_| value);
    Some(Planted(name))
}

/// Lays scales out as padded tiles, as far as their shape goes.
fn pad_to_tiles(draft: &mut Draft, random: &mut Random) -> Option<Planted> {
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

fn invert_fp8_scales(draft: &mut Draft, random: &mut Random) -> Option<Planted> {
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
fn fp8_scale_is_one(draft: &mut Draft, random: &mut Random) -> Option<Planted> {
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

fn e8m0_as_bytes(draft: &mut Draft, random: &mut Random) -> Option<Planted> {
    let target = choose(draft, random, Role::Scale, |weight, part| {
        let is_power = matches!(weight.scheme.scale, ScaleCoding::E8M0(_));
        is_power && part.dtype == Dtype::F8E8M0 && weight.convention == "fp8"
    })?;
    draft.tensor(&target.part.name)?.dtype = Dtype::U8;
    Some(Planted(target.weight.module))
}

/// Changes the quantization settings of `config.json`, if there are such of the `fp8` convention with blocks.
fn edit_block_settings(
    draft: &mut Draft,
    f: impl FnOnce(&mut serde_json::Map<String, serde_json::Value>),
) -> Option<()> {
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

fn declare_ue8m0(draft: &mut Draft, random: &mut Random) -> Option<Planted> {
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

fn forget_block_size(draft: &mut Draft, random: &mut Random) -> Option<Planted> {
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

fn cut_grid(draft: &mut Draft, random: &mut Random) -> Option<Planted> {
    let target = choose_grid(draft, random, |_, part| part.shape[0] > 2)?;
    let dense = draft.tensor(&target.part.name)?;
    let row = dense.bytes.len() / usize::try_from(dense.shape[0]).unwrap();
    dense.shape[0] -= 1;
    dense.bytes.truncate(dense.bytes.len() - row);
    // The rest may be the transpose.
    let [rows, columns] = [target.part.shape[0], target.part.shape[1]];
    (rows - 1 != columns).then_some(Planted(target.weight.module))
}

fn transpose_grid(draft: &mut Draft, random: &mut Random) -> Option<Planted> {
    let target = choose_grid(draft, random, |_, part| {
        // A row or a column of scales may be taken for one per channel.
        part.shape[0] != part.shape[1]
    })?;
    let dense = draft.tensor(&target.part.name)?;
    dense.shape.reverse();
    Some(Planted(target.weight.module))
}

/// Takes rows off a weight, so that the block at its edge is partial and division leaves no remainder.
fn shorten_weight(draft: &mut Draft, random: &mut Random) -> Option<Planted> {
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

/// The attention modules of a draft, by the layers' key projections.
fn attentions(draft: &Draft) -> Vec<String> {
    let names = draft.names();
    let keys = names.iter().filter_map(|name| name.split_once(".k_proj."));
    let mut found: Vec<String> = keys.map(|(attention, _)| attention.to_owned()).collect();
    found.dedup();
    found.sort();
    found.dedup();
    found
}

/// Leaves an attention module with just these cache scales.
fn cache_scales(draft: &mut Draft, random: &mut Random, names: &[&str]) -> Option<Planted> {
    let attention = random.choose(&attentions(draft))?.clone();
    // GGUF's and ComfyUI's files have nothing of the kind.
    draft.documents.get("config.json")?;
    for name in ["k_scale", "v_scale"] {
        draft.remove(&format!("{attention}.{name}"));
    }
    for name in names {
        draft.add(&format!("{attention}.{name}"), one(0.02));
    }
    Some(Planted(format!("{attention}.{}", names[0])))
}

fn cache_scale_is_zero(draft: &mut Draft, random: &mut Random) -> Option<Planted> {
    let planted = cache_scales(draft, random, &["v_scale", "k_scale"])?;
    edit(draft.tensor(&planted.0)?, 0, |_| 0.0);
    Some(planted)
}

fn cache_scales_in_one_layer(draft: &mut Draft, random: &mut Random) -> Option<Planted> {
    let all = attentions(draft);
    let of_stack: Vec<&String> = all
        .iter()
        .filter(|name| name.contains(".layers."))
        .collect();
    let bare = (*random.choose(&of_stack).filter(|_| of_stack.len() > 1)?).clone();
    for attention in of_stack {
        for name in ["k_scale", "v_scale"] {
            let name = format!("{attention}.{name}");
            draft.remove(&name);
            if *attention != bare {
                draft.add(&name, one(0.02));
            }
        }
    }
    Some(Planted(format!("{bare}.k_proj")))
}

fn scale_beyond_f16(draft: &mut Draft, random: &mut Random) -> Option<Planted> {
    let target = choose(draft, random, Role::Scale, |weight, part| {
        let known = [
            "gptq",
            "gptq_v2",
            "awq",
            "compressed-tensors",
            "fp8",
            "modelopt",
        ];
        is_own_float(part) && part.dtype != Dtype::F16 && known.contains(&weight.convention)
    })?;
    let dense = draft.tensor(&target.part.name)?;
    let all = values(dense);
    if all.iter().any(|value| value.abs() > 6e4) {
        return None;
    }
    edit(dense, random.below(all.len()), |_| 1e6);
    Some(Planted(target.weight.module))
}

/// A weight whose codes are the elements of a part.
fn choose_codes(
    draft: &Draft,
    random: &mut Random,
    fits: impl Fn(&QuantizedTensor, &Part) -> bool,
) -> Option<Target> {
    choose(draft, random, Role::Codes, |weight, part| {
        is_own_byte(part) && weight.shape.len() == 2 && fits(weight, part)
    })
}

fn code_is_nan(draft: &mut Draft, random: &mut Random) -> Option<Planted> {
    let target = choose_codes(draft, random, |weight, _| {
        weight.scheme.code == Code::Minifloat(Minifloat::E4M3)
    })?;
    let dense = draft.tensor(&target.part.name)?;
    let at = random.below(dense.bytes.len());
    dense.bytes[at] = 0x7f;
    Some(Planted(target.weight.module))
}

/// Codes of 4 bits, all bytes of which hold two.
fn choose_nibbles(draft: &Draft, random: &mut Random) -> Option<Target> {
    choose(draft, random, Role::Codes, |weight, part| {
        let is_four = match weight.scheme.code {
            Code::Integer { bits, .. } => bits == 4,
            Code::Minifloat(format) => format.bits() == 4,
            _ => false,
        };
        let is_packed = matches!(
            part.storage,
            Storage::Packed { .. } | Storage::Planes { .. }
        );
        let n = weight.out_features() * weight.in_features();
        let is_full = part.dtype.bits() * part.shape.iter().product::<u64>() == 4 * n;
        is_four && is_packed && is_full && weight.shape.len() == 2 && n >= 4096
    })
}

fn half_the_range(draft: &mut Draft, random: &mut Random) -> Option<Planted> {
    let target = choose_nibbles(draft, random)?;
    for byte in &mut draft.tensor(&target.part.name)?.bytes {
        *byte &= 0x77;
    }
    Some(Planted(target.weight.module))
}

fn saturate(draft: &mut Draft, random: &mut Random) -> Option<Planted> {
    let target = choose_nibbles(draft, random)?;
    let end = match target.weight.scheme.code {
        Code::Integer {
            encoding: IntegerEncoding::Unsigned,
            ..
        } => 0xff,
        _ => 0x77,
    };
    for word in draft.tensor(&target.part.name)?.bytes.chunks_mut(4) {
        if random.below(3) < 2 {
            word.fill(end);
        }
    }
    Some(Planted(target.weight.module))
}

fn row_is_constant(draft: &mut Draft, random: &mut Random) -> Option<Planted> {
    let target = choose_codes(draft, random, |weight, part| {
        let axes = Storage::Elements {
            axes: safequant::schemes::Axes::OutIn,
        };
        weight.in_features() >= 32
            && weight.out_features() > 1
            && part.storage == axes
            && part.dtype.bits() == 8
    })?;
    let width = usize::try_from(target.weight.in_features()).unwrap();
    let dense = draft.tensor(&target.part.name)?;
    let row = random.below(dense.bytes.len() / width);
    let row = &mut dense.bytes[row * width..][..width];
    if row.iter().all(|code| *code == row[0]) {
        return None;
    }
    row.fill(0);
    Some(Planted(target.weight.module))
}

fn weight_is_constant(draft: &mut Draft, random: &mut Random) -> Option<Planted> {
    let target = choose(draft, random, Role::Codes, |weight, part| {
        let is_plain = !matches!(
            part.storage,
            Storage::Blocks { .. } | Storage::Sparse { .. }
        );
        let is_code = !matches!(
            weight.scheme.code,
            Code::Dense(_) | Code::Integer { bits: 1, .. }
        );
        let n = weight.out_features() * weight.in_features();
        let is_matrix = weight.shape.len() > 1;
        is_plain && is_code && is_matrix && n >= 64 && part.content.is_none()
    })?;
    let dense = draft.tensor(&target.part.name)?;
    if dense.bytes.iter().all(|&byte| byte == 0) {
        return None;
    }
    dense.bytes.fill(0);
    Some(Planted(target.weight.module))
}

/// Writes a code into the padding behind the last row.
fn dirty_padding(draft: &mut Draft, random: &mut Random) -> Option<Planted> {
    let target = choose(draft, random, Role::Codes, |weight, part| {
        let is_grid = matches!(
            part.storage,
            Storage::Elements { .. } | Storage::Packed { .. }
        );
        let has_rows = part
            .extent
            .is_some_and(|[rows, _]| rows > weight.out_features());
        is_grid && has_rows && weight.shape.len() == 2
    })?;
    *draft.tensor(&target.part.name)?.bytes.last_mut()? = 0x11;
    // Where the true shape is known from zeros, it is another one now.
    let now = weights(draft);
    let now = now.iter().find(|w| w.module == target.weight.module)?;
    (now.shape == target.weight.shape).then_some(Planted(target.weight.module))
}

/// Sets the codes of two thirds of all rows to zero.
fn rows_are_constant(draft: &mut Draft, random: &mut Random) -> Option<Planted> {
    let target = choose_codes(draft, random, |weight, part| {
        let axes = Storage::Elements {
            axes: safequant::schemes::Axes::OutIn,
        };
        weight.in_features() >= 32 && weight.out_features() > 2 && part.storage == axes
    })?;
    let dense = draft.tensor(&target.part.name)?;
    let from = dense.bytes.len() / 3;
    if dense.bytes[from..].iter().all(|&byte| byte == 0) {
        return None;
    }
    dense.bytes[from..].fill(0);
    Some(Planted(target.weight.module))
}

fn zero_points_in_the_middle(draft: &mut Draft, random: &mut Random) -> Option<Planted> {
    let target = choose(draft, random, Role::ZeroPoint, |weight, part| {
        let is_four = matches!(weight.scheme.code, Code::Integer { bits: 4, .. });
        let is_direct = weight.scheme.zero_point == ZeroPoint::Stored(ZeroCoding::Direct);
        is_four && is_direct && part.dtype.bits() == 32
    })?;
    draft.tensor(&target.part.name)?.bytes.fill(0x88);
    Some(Planted(target.weight.module))
}
