//! Faults in codes and zero points.

use safequant::kernels::Minifloat;
use safequant::schemes::{
    Axes, Code, IntegerEncoding, Part, QuantizedTensor, Role, Storage, ZeroCoding, ZeroPoint,
};

use super::super::{Planted, Random, weights};
use super::{Target, choose, is_own_byte};
use crate::audit::draft::Draft;

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

pub(super) fn code_is_nan(draft: &mut Draft, random: &mut Random) -> Option<Planted> {
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

pub(super) fn half_the_range(draft: &mut Draft, random: &mut Random) -> Option<Planted> {
    let target = choose_nibbles(draft, random)?;
    for byte in &mut draft.tensor(&target.part.name)?.bytes {
        *byte &= 0x77;
    }
    Some(Planted(target.weight.module))
}

pub(super) fn saturate(draft: &mut Draft, random: &mut Random) -> Option<Planted> {
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

pub(super) fn row_is_constant(draft: &mut Draft, random: &mut Random) -> Option<Planted> {
    let target = choose_codes(draft, random, |weight, part| {
        let axes = Storage::Elements { axes: Axes::OutIn };
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

pub(super) fn weight_is_constant(draft: &mut Draft, random: &mut Random) -> Option<Planted> {
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
pub(super) fn dirty_padding(draft: &mut Draft, random: &mut Random) -> Option<Planted> {
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
pub(super) fn rows_are_constant(draft: &mut Draft, random: &mut Random) -> Option<Planted> {
    let target = choose_codes(draft, random, |weight, part| {
        let axes = Storage::Elements { axes: Axes::OutIn };
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

pub(super) fn zero_points_in_the_middle(draft: &mut Draft, random: &mut Random) -> Option<Planted> {
    let target = choose(draft, random, Role::ZeroPoint, |weight, part| {
        let is_four = matches!(weight.scheme.code, Code::Integer { bits: 4, .. });
        let is_direct = weight.scheme.zero_point == ZeroPoint::Stored(ZeroCoding::Direct);
        is_four && is_direct && part.dtype.bits() == 32
    })?;
    draft.tensor(&target.part.name)?.bytes.fill(0x88);
    Some(Planted(target.weight.module))
}
