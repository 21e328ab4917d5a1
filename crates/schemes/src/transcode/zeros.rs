//! Zero points: integers, floats in front of the scale, floats behind it.

use safequant_kernels::Float;

use super::{Applied, Changes, nearest};
use crate::{CodeTile, OffsetForm, QuantizedTensor, Role, ZeroPoint};

/// Where the zero of one group lies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Zero {
    /// `(code - zero) * scale`.
    Integer(i64),
    /// The same with a number that is no integer.
    BeforeScale(f64),
    /// `(code - zero) * scale + offset`, where the offset is no whole number of steps.
    Added { zero: i64, offset: f64 },
}

/// Steps that an offset may be away from zero: more, and no code reaches back.
const MAX_STEPS: f64 = 65_536.0;

impl Zero {
    /// Of entry `i` of the grid, super-scales left aside.
    pub(crate) fn of(tensor: &QuantizedTensor, tile: &CodeTile, i: usize) -> Self {
        Self::of_scaled(tensor, tile, i, Applied::None)
    }

    pub(crate) fn of_scaled(
        tensor: &QuantizedTensor,
        tile: &CodeTile,
        i: usize,
        applied: Applied,
    ) -> Self {
        let (zero, form) = match tensor.scheme.zero_point {
            ZeroPoint::Fixed(zero) => return Zero::Integer(i64::from(zero)),
            ZeroPoint::Stored(_) => return Zero::Integer(i64::from(tile.zeros[i])),
            ZeroPoint::Offset { zero, form } => (i64::from(zero), form),
        };
        let stored = tile.offsets[i];
        if form == OffsetForm::BeforeScale {
            let offset = f64::from(stored);
            return whole(offset).map_or(Zero::BeforeScale(offset + exact(zero)), |steps| {
                Zero::Integer(zero + steps)
            });
        }
        let offset = f64::from(applied.to_offset(stored));
        let offset = if form == OffsetForm::Subtracted {
            -offset
        } else {
            offset
        };
        let scale = f64::from(applied.to(tile.scales.get(i).copied().unwrap_or(1.0)));
        let steps = whole((offset / scale).round());
        match steps {
            // 24 and 17 bits: the product is exact.
            Some(steps) if (exact(steps) * scale - offset).abs() == 0.0 => {
                Zero::Integer(zero - steps)
            }
            _ => Zero::Added { zero, offset },
        }
    }
}

/// A number that is a small integer.
#[expect(
    clippy::cast_possible_truncation,
    reason = "an integer of at most 17 bits"
)]
fn whole(value: f64) -> Option<i64> {
    (value.abs() <= MAX_STEPS && value.fract() == 0.0).then_some(value as i64)
}

#[expect(clippy::cast_precision_loss, reason = "a small integer")]
fn exact(value: i64) -> f64 {
    value as f64
}

/// How the target spells zero points.
pub(crate) struct ZeroMap {
    target: ZeroPoint,
    /// What is added to codes.
    shift: i64,
    /// The dtype of float zero points.
    float: Float,
}

impl ZeroMap {
    pub(crate) fn new(target: &QuantizedTensor, shift: i64) -> Self {
        let float = match target.scheme.zero_point {
            ZeroPoint::Fixed(_) | ZeroPoint::Stored(_) => Float::F32,
            // Blocks hold them beside the codes.
            ZeroPoint::Offset { .. } if crate::storage::blocks::of(target).is_some() => Float::F16,
            ZeroPoint::Offset { .. } => target
                .part(Role::Offset)
                .and_then(|part| crate::scheme::float_of(part.dtype))
                .unwrap_or(Float::F32),
        };
        Self {
            target: target.scheme.zero_point,
            shift,
            float,
        }
    }

    /// Adds the zero point of one group to a tile; `scale` is the factor between target codes and weights.
    ///
    /// # Errors
    /// The number that cannot be held.
    pub(crate) fn write(
        &self,
        zero: Zero,
        scale: f64,
        changes: &mut Changes,
        out: &mut CodeTile,
    ) -> Result<(), f64> {
        let (fixed, form) = match (self.target, zero) {
            (ZeroPoint::Fixed(target), Zero::Integer(zero)) => {
                // Float codes have no zero to speak of.
                let fits = zero + self.shift == i64::from(target);
                return if fits { Ok(()) } else { Err(exact(zero)) };
            }
            (ZeroPoint::Stored(_), Zero::Integer(zero)) => {
                let moved = i32::try_from(zero + self.shift).map_err(|_| exact(zero))?;
                out.zeros.push(moved);
                return Ok(());
            }
            (ZeroPoint::Fixed(_) | ZeroPoint::Stored(_), Zero::BeforeScale(value)) => {
                return Err(value);
            }
            (ZeroPoint::Fixed(_) | ZeroPoint::Stored(_), Zero::Added { offset, .. }) => {
                return Err(offset);
            }
            (ZeroPoint::Offset { zero, form }, _) => (i64::from(zero), form),
        };
        // In steps: value = (code - fixed + steps) * scale + rest.
        let (steps, rest) = match zero {
            Zero::Integer(zero) => (exact(fixed - self.shift - zero), 0.0),
            Zero::BeforeScale(zero) => (exact(fixed - self.shift) - zero, 0.0),
            Zero::Added { zero, offset } => (exact(fixed - self.shift - zero), offset),
        };
        let added = if steps == 0.0 {
            rest
        } else {
            steps * scale + rest
        };
        let number = match form {
            OffsetForm::BeforeScale if rest == 0.0 => -steps,
            OffsetForm::BeforeScale => -steps - rest / scale,
            OffsetForm::Added => added,
            OffsetForm::Subtracted => -added,
        };
        // A scale of 0 leaves everything to the offset, which is then no number of steps.
        if !number.is_finite() {
            return Err(number);
        }
        // No minus zero where nothing is meant.
        self.write_offset(number + 0.0, changes, out)
    }

    /// Adds a float zero point to a tile.
    ///
    /// # Errors
    /// The number, if it cannot be held.
    pub(crate) fn write_offset(
        &self,
        number: f64,
        changes: &mut Changes,
        out: &mut CodeTile,
    ) -> Result<(), f64> {
        let stored = changes.rounded(number, |x| nearest(self.float, x));
        out.offsets.push(stored.ok_or(number)?);
        Ok(())
    }
}
