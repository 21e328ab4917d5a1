//! What quantizing a weight lost.

use safequant_kernels::Backend;
use safequant_schemes::{CodeTile, Dequantizer, Extras, QuantizedTensor, RowsOut};

use crate::{Error, Rows};

/// Sums over a weight and its dequantized form; rows are added in order, so the figures do not depend on threads.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Loss {
    /// Sum of squares of the weight.
    pub signal: f64,
    /// Sum of squares of the difference.
    pub noise: f64,
    /// Largest absolute difference.
    pub max_error: f64,
    /// Values compared.
    pub n_values: u64,
}

impl Loss {
    /// Signal-to-quantization-noise ratio in decibels; infinite for an exact result.
    pub fn sqnr_db(&self) -> f64 {
        if self.noise == 0.0 {
            return f64::INFINITY;
        }
        10.0 * (self.signal / self.noise).log10()
    }

    /// Adds the sums of further rows.
    pub fn add(&mut self, other: &Loss) {
        self.signal += other.signal;
        self.noise += other.noise;
        self.max_error = self.max_error.max(other.max_error);
        self.n_values += other.n_values;
    }

    /// The loss of one run of values, added from the first to the last in F64. Values that are not finite (clamped ones)
    /// count as lost wholly or not at all: they are left out.
    pub fn of(original: &[f32], dequantized: &[f32]) -> Self {
        let mut loss = Loss::default();
        for (&a, &b) in original.iter().zip(dequantized) {
            if !a.is_finite() {
                continue;
            }
            let (a, b) = (f64::from(a), f64::from(b));
            let error = (a - b).abs();
            loss.signal += a * a;
            loss.noise += error * error;
            loss.max_error = loss.max_error.max(error);
            loss.n_values += 1;
        }
        loss
    }
}

/// The values a reader of the convention gets from a tile, `[rows, in_features]`, in the layout's reference dtype, widened
/// to F32.
///
/// # Errors
/// [`Error::Unreadable`] if the layout is not that of the tile.
///
/// # Panics
/// If the tile was not made for this layout.
pub fn dequantize_tile(
    layout: &QuantizedTensor,
    tile: &CodeTile,
    backend: &'static Backend,
) -> Result<Vec<f32>, Error> {
    let unreadable = |error: safequant_schemes::Error| Error::Unreadable {
        reason: error.to_string(),
    };
    let reader = Dequantizer::new(layout, Extras::default(), backend).map_err(unreadable)?;
    let float = layout.reference_dtype;
    // One code per value: no quantizer here writes dense elements.
    let mut bytes = vec![0; tile.codes.len() * float.size_bytes()];
    reader
        .tile(tile, RowsOut::Bytes(float, &mut bytes))
        .map_err(unreadable)?;
    let mut values = vec![0.0; tile.codes.len()];
    (backend.widen)(float, &bytes, &mut values);
    Ok(values)
}

/// The loss of each row of a tile, in order.
///
/// Fold them with [`Loss::add`] in the order of the weight's rows: the figures then do not depend on how the weight was
/// cut into tiles.
///
/// # Errors
/// As [`dequantize_tile`].
///
/// # Panics
/// As [`dequantize_tile`].
pub fn row_losses(
    layout: &QuantizedTensor,
    rows: &Rows<'_>,
    tile: &CodeTile,
    backend: &'static Backend,
) -> Result<Vec<Loss>, Error> {
    let dequantized = dequantize_tile(layout, tile, backend)?;
    let width = rows.in_features.max(1);
    let pairs = rows.values.chunks(width).zip(dequantized.chunks(width));
    Ok(pairs
        .map(|(original, dequantized)| Loss::of(original, dequantized))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exact_result_has_infinite_sqnr_even_if_all_is_zero() {
        assert_eq!(
            Loss::of(&[0.0, 0.0], &[0.0, 0.0]).sqnr_db().to_bits(),
            f64::INFINITY.to_bits()
        );
        assert_eq!(
            Loss::of(&[1.0], &[1.0]).sqnr_db().to_bits(),
            f64::INFINITY.to_bits()
        );
    }

    #[test]
    fn sqnr_is_ten_decibels_per_factor_of_ten_in_power() {
        let loss = Loss {
            signal: 5.0,
            noise: 0.005,
            ..Loss::default()
        };
        approx::assert_relative_eq!(loss.sqnr_db(), 30.0, max_relative = 1e-12);
    }

    #[test]
    fn sums_are_squares_and_the_largest_error_is_kept() {
        let mut loss = Loss::of(&[3.0, -4.0], &[3.5, -4.0]);
        loss.add(&Loss::of(&[2.0, f32::NAN], &[1.0, 0.0]));
        assert_eq!(
            loss,
            Loss {
                signal: 29.0,
                noise: 1.25,
                max_error: 1.0,
                n_values: 3
            }
        );
    }
}
