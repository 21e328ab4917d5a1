//! Faults for the rules of `crates/audit/src/rules/scales`.

use safequant::container::Dtype;
use safequant::schemes::Role;

use super::{Fault, Planted, Random, weights};
use crate::audit::draft::Draft;
use crate::interop::fixture::Dense;

pub(super) const FAULTS: &[Fault] = &[
    Fault::new("SC010", "scale-is-nan", |draft, random| {
        spoil_scale(draft, random, f32::NAN)
    }),
    Fault::new("SC011", "scale-is-zero", |draft, random| {
        spoil_scale(draft, random, 0.0)
    }),
];

/// Puts a value in a random place of a random scale that is a dense float.
fn spoil_scale(draft: &mut Draft, random: &mut Random, value: f32) -> Option<Planted> {
    let weights = weights(draft);
    let mut places = Vec::new();
    for weight in &weights {
        if let Some(part) = weight.part(Role::Scale) {
            let is_float = matches!(part.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16);
            if is_float && part.shape.iter().product::<u64>() > 0 {
                places.push((weight.module.clone(), part.name.clone()));
            }
        }
    }
    let (module, name) = random.choose(&places)?.clone();
    let dense = draft.tensor(&name)?;
    let at = random.below(dense.bytes.len() / size(dense.dtype)?);
    put(dense, at, value);
    Some(Planted(module))
}

/// Bytes of an element of a dense float.
fn size(dtype: Dtype) -> Option<usize> {
    match dtype {
        Dtype::F32 => Some(4),
        Dtype::F16 | Dtype::BF16 => Some(2),
        _ => None,
    }
}

/// Writes an element.
fn put(dense: &mut Dense, at: usize, value: f32) {
    let bits = value.to_bits();
    match dense.dtype {
        Dtype::F32 => dense.bytes[4 * at..][..4].copy_from_slice(&bits.to_le_bytes()),
        Dtype::BF16 => {
            let high = u16::try_from(bits >> 16).unwrap();
            dense.bytes[2 * at..][..2].copy_from_slice(&high.to_le_bytes());
        }
        _ => {
            let half = if value.is_nan() { 0x7e00_u16 } else { 0 };
            dense.bytes[2 * at..][..2].copy_from_slice(&half.to_le_bytes());
        }
    }
}
