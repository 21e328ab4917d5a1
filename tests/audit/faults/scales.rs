//! Faults for the rules of `crates/audit/src/rules/scales`.

mod codes;
mod fp8;
mod siblings;

use safequant::container::Dtype;
use safequant::kernels::{Backend, Float};
use safequant::schemes::{Code, Part, QuantizedTensor, Role, ScaleCoding, Storage, SuperScale};

use self::codes::{
    code_is_nan, dirty_padding, half_the_range, row_is_constant, rows_are_constant, saturate,
    weight_is_constant, zero_points_in_the_middle,
};
use self::fp8::{
    add_bare_codes, cut_grid, declare_ue8m0, e8m0_as_bytes, forget_block_size, fp8_scale_is_one,
    invert_fp8_scales, pad_to_tiles, remove_fp8_scale, rename_fp8_scale, shorten_weight,
    transpose_grid,
};
use self::siblings::{
    cache_scale_is_zero, cache_scales, cache_scales_in_one_layer, expert_is_an_outlier,
    expert_without_input_scale, fused_sibling_is_dense, spoil_small, unequal_fused_scales,
};
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
