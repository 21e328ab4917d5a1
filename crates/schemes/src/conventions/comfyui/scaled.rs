//! FP8 without a description: plain casts, and scales in the spellings of old files, diffusers and musubi-tuner.

use super::{Bound, Module};
use crate::binding::{part, required, wrong_dtype};
use crate::scheme::minifloat_of;
use crate::{
    Arithmetic, Axes, Code, Error, Granularity, QuantizedTensor, Role, ScaleCoding, Scheme, Storage,
};

impl Module<'_> {
    /// FP8 codes that are the values.
    pub(super) fn plain(&self, weight: &str) -> Result<QuantizedTensor, Error> {
        let info = required(self.headers, self.name, weight)?;
        let minifloat =
            minifloat_of(info.dtype).ok_or_else(|| wrong_dtype(self.name, info, "FP8"))?;
        let bound = Bound {
            shape: info.shape.to_vec(),
            scheme: Scheme::plain(
                Code::Minifloat(minifloat),
                Granularity::Tensor,
                ScaleCoding::One,
            ),
            reference: self.compute,
            parts: vec![part(
                Role::Codes,
                info,
                Storage::Elements { axes: Axes::OutIn },
            )],
        };
        // What stands beside a bias belongs to the weight.
        if !weight.ends_with(".weight") {
            return Ok(QuantizedTensor {
                module: self.name.to_owned(),
                weight: weight.to_owned(),
                convention: super::ID,
                shape: bound.shape,
                scheme: bound.scheme,
                reference_dtype: bound.reference,
                parts: bound.parts,
            });
        }
        self.finish(weight, bound)
    }

    /// FP8 codes with a scale that nothing describes.
    pub(super) fn scaled(&self, scale: &str) -> Result<QuantizedTensor, Error> {
        let weight = format!("{}.weight", self.name);
        let mut bound = self.fp8(scale)?;
        if let Some(shape) = super::padding::original_shape(self.headers, self.name)? {
            self.crop(&mut bound, &shape)?;
        }
        self.finish(&weight, bound)
    }

    /// FP8 codes and this scale, in the arithmetic of `ComfyUI`; of blocks of a row, in that of the scale.
    pub(super) fn fp8(&self, scale: &str) -> Result<Bound, Error> {
        let info = self.need("weight")?;
        let minifloat = minifloat_of(info.dtype)
            .ok_or_else(|| wrong_dtype(self.name, info, "F8_E4M3 or F8_E5M2"))?;
        let matrix = self.matrix(info)?;
        let (granularity, coding, scale) = self.float_scale(self.need(scale)?, matrix)?;
        let reference = match (granularity, coding) {
            (Granularity::Group { .. }, ScaleCoding::Float(float)) => float,
            _ => self.compute,
        };
        Ok(Bound {
            shape: info.shape.to_vec(),
            scheme: Scheme {
                arithmetic: Arithmetic::EachStep(reference),
                ..Scheme::plain(Code::Minifloat(minifloat), granularity, coding)
            },
            reference,
            parts: vec![
                Self::codes(info, Storage::Elements { axes: Axes::OutIn }, None),
                scale,
            ],
        })
    }

    /// Takes padding away: `shape` is the true one.
    fn crop(&self, bound: &mut Bound, shape: &[u64]) -> Result<(), Error> {
        let info = self.need("weight")?;
        let (stack, rows, columns) = self.matrix(info)?;
        let &[.., n_rows, n_columns] = shape else {
            return Ok(());
        };
        let fits = n_rows > 0 && n_rows <= rows && n_columns > 0 && n_columns <= columns;
        // A scale for each stored row stands for rows that are not there.
        let per_matrix = bound.scheme.granularity == Granularity::Tensor;
        if !fits || !(per_matrix || n_rows == rows) {
            return Err(self.shape_error(info, format!("room for {shape:?}")));
        }
        if [n_rows, n_columns] == [rows, columns] {
            return Ok(());
        }
        bound.shape = super::shape_of(stack, n_rows, n_columns);
        for part in &mut bound.parts {
            if part.role == Role::Codes {
                part.extent = Some([rows, columns]);
            }
        }
        Ok(())
    }
}
