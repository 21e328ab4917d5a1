//! What quantizing a weight lost.

use safequant_kernels::{Backend, CodeForm, Floats};
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

    /// The loss of one run of values, as [`safequant_kernels::Backend::compare`] adds it up. Values that are not finite
    /// (clamped ones) are left out.
    pub fn of(original: Floats<'_>, dequantized: Floats<'_>, backend: &Backend) -> Self {
        let found = (backend.compare)(original, dequantized);
        Loss {
            signal: found.signal,
            noise: found.noise,
            max_error: found.max_error.into(),
            n_values: found.n_values,
        }
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
    let reader =
        Dequantizer::new(layout, Extras::default(), backend).map_err(|error| unreadable(&error))?;
    let float = layout.reference_dtype;
    // One code per value: no quantizer here writes dense elements.
    let mut bytes = vec![0; tile.codes.len() * float.size_bytes()];
    reader
        .tile(tile, RowsOut::Bytes(float, &mut bytes))
        .map_err(|error| unreadable(&error))?;
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
    stored_row_losses(layout, rows, tile, (&tile.codes, CodeForm::BYTES), backend)
}

/// As [`row_losses`], of a tile whose codes stand beside it, as [`crate::Quantizer::quantize_into`] gives them.
///
/// # Errors
/// As [`dequantize_tile`].
///
/// # Panics
/// As [`dequantize_tile`].
pub fn stored_row_losses(
    layout: &QuantizedTensor,
    rows: &Rows<'_>,
    tile: &CodeTile,
    codes: (&[u8], CodeForm),
    backend: &'static Backend,
) -> Result<Vec<Loss>, Error> {
    let reader =
        Dequantizer::new(layout, Extras::default(), backend).map_err(|error| unreadable(&error))?;
    let (float, width) = (layout.reference_dtype, rows.in_features.max(1));
    let mut losses = Vec::with_capacity(rows.n_rows());
    let each = |part: std::ops::Range<usize>, bytes: &[u8]| {
        for (row, bytes) in part.zip(bytes.chunks(width * float.size_bytes())) {
            let original = rows.values.cut(row * width..(row + 1) * width);
            losses.push(Loss::of(original, Floats::Bytes(float, bytes), backend));
        }
    };
    reader
        .stored_parts(tile, codes, float, each)
        .map_err(|error| unreadable(&error))?;
    Ok(losses)
}

/// What a mean input makes of a row: `(w - q) mean` and `w mean`, with the values that a reader of the convention gets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowShift {
    /// What the mean output is off by.
    pub lost: f64,
    /// The mean output itself.
    pub output: f64,
}

/// What the mean input loses in each row of a tile whose codes stand beside it, in order.
///
/// # Errors
/// As [`dequantize_tile`].
///
/// # Panics
/// As [`dequantize_tile`].
pub fn stored_row_shifts(
    layout: &QuantizedTensor,
    rows: &Rows<'_>,
    (tile, codes): (&CodeTile, (&[u8], CodeForm)),
    mean: &[f32],
    backend: &'static Backend,
) -> Result<Vec<RowShift>, Error> {
    let reader =
        Dequantizer::new(layout, Extras::default(), backend).map_err(|error| unreadable(&error))?;
    let (float, width) = (layout.reference_dtype, rows.in_features.max(1));
    let values = rows.values.widened(backend);
    let mut shifts = Vec::with_capacity(rows.n_rows());
    let mut back = vec![0.0; width];
    let each = |part: std::ops::Range<usize>, bytes: &[u8]| {
        for (row, bytes) in part.zip(bytes.chunks(width * float.size_bytes())) {
            (backend.widen)(float, bytes, &mut back);
            let weights = values[row * width..(row + 1) * width].iter().zip(&back);
            let mut shift = RowShift {
                lost: 0.0,
                output: 0.0,
            };
            for ((&w, &q), &m) in weights.zip(mean) {
                let (w, q, m) = (f64::from(w), f64::from(q), f64::from(m));
                shift.lost += (w - q) * m;
                shift.output += w * m;
            }
            shifts.push(shift);
        }
    };
    reader
        .stored_parts(tile, codes, float, each)
        .map_err(|error| unreadable(&error))?;
    Ok(shifts)
}

fn unreadable(error: &safequant_schemes::Error) -> Error {
    Error::Unreadable {
        reason: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(original: &[f32], dequantized: &[f32]) -> Loss {
        let backend = Backend::detect();
        Loss::of(Floats::F32(original), Floats::F32(dequantized), backend)
    }

    #[test]
    fn an_exact_result_has_infinite_sqnr_even_if_all_is_zero() {
        for value in [0.0, 1.0] {
            let loss = of(&[value], &[value]);
            assert_eq!(loss.sqnr_db().to_bits(), f64::INFINITY.to_bits());
        }
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
        let mut loss = of(&[3.0, -4.0], &[3.5, -4.0]);
        loss.add(&of(&[2.0, f32::NAN], &[1.0, 0.0]));
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
