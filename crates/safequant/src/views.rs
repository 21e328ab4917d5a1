//! Tensors and codes as `ndarray` views over the bytes they lie in, without a copy.
//!
//! The element types are those that Rust or a package of the field has for a dtype: the integers, `f32`, `f64`,
//! [`half::f16`], [`half::bf16`], [`float8::F8E4M3`], [`float8::F8E5M2`]. The 8-bit floats of the `float8` crate are
//! carriers of bits here; several of its constants and predicates are wrong (`specs/dtypes/f8_e4m3.md`), so compute with
//! [`Minifloat`](crate::kernels::Minifloat) instead.

use std::ops::Deref;

use bytemuck::Pod;
use ndarray::{ArrayView2, ArrayViewD, IxDyn};
use safequant_container::{AlignedBuffer, Dtype, MappedCheckpoint, TensorView};
use safequant_kernels::Backend;
use safequant_schemes::{CodeTile, Part, QuantizedTensor, Role, Slice, SliceBytes};

/// A Rust type that is the element of a dtype, bit for bit on a little-endian machine.
pub trait Element: Pod {
    /// The dtype.
    const DTYPE: Dtype;
}

/// One list of element types: the implementations and the test's coverage come from it.
macro_rules! elements {
    ($($type:ty = $dtype:ident;)*) => {
        $(impl Element for $type {
            const DTYPE: Dtype = Dtype::$dtype;
        })*

        #[cfg(test)]
        const ELEMENTS: &[(Dtype, usize)] = &[$((Dtype::$dtype, size_of::<$type>()),)*];
    };
}

elements! {
    u8 = U8;
    i8 = I8;
    u16 = U16;
    i16 = I16;
    u32 = U32;
    i32 = I32;
    u64 = U64;
    i64 = I64;
    f32 = F32;
    f64 = F64;
    half::f16 = F16;
    half::bf16 = BF16;
    float8::F8E4M3 = F8E4M3;
    float8::F8E5M2 = F8E5M2;
}

/// Why bytes cannot be seen as an array in place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ViewError {
    /// The tensor has another dtype than the type asked for.
    #[error("expected a tensor of dtype {expected}, found {found}")]
    Dtype {
        /// The dtype of the type asked for.
        expected: Dtype,
        /// The tensor's.
        found: Dtype,
    },
    /// The checkpoint has no such tensor.
    #[error("there is no tensor {name}")]
    Missing {
        /// Its name.
        name: String,
    },
    /// The bytes do not begin at a multiple of the element's size; safetensors does not promise alignment. Copy them.
    #[error(
        "the bytes are not aligned for elements of {size_bytes} bytes: copy them to an aligned buffer"
    )]
    Unaligned {
        /// Bytes per element.
        size_bytes: usize,
    },
    /// The bytes are not as many as the shape needs, or a dimension does not fit this machine.
    #[error("{len_bytes} bytes do not fill the shape {shape:?}")]
    Shape {
        /// The shape.
        shape: Vec<u64>,
        /// The bytes there are.
        len_bytes: usize,
    },
    /// Multi-byte elements are stored little-endian, and this machine is not.
    #[error("elements are little-endian, this machine is not: decode them instead")]
    Endianness,
}

/// A tensor as an array of its shape, row-major, borrowed from its bytes.
///
/// # Errors
/// Every variant of [`ViewError`]; nothing is ever copied or converted.
///
/// ```
/// use safequant::container::{Dtype, TensorView};
/// use safequant::views::array;
///
/// let bytes = 1.5_f32.to_le_bytes();
/// let words: Vec<u32> = vec![u32::from_le_bytes(bytes); 6]; // an aligned buffer
/// let view = TensorView { dtype: Dtype::F32, shape: &[2, 3], bytes: bytemuck::cast_slice(&words) };
/// let values = array::<f32>(view)?;
/// assert_eq!(values.shape(), [2, 3]);
/// assert_eq!(values[[1, 2]], 1.5);
/// # Ok::<(), safequant::views::ViewError>(())
/// ```
pub fn array<T: Element>(tensor: TensorView<'_>) -> Result<ArrayViewD<'_, T>, ViewError> {
    if tensor.dtype != T::DTYPE {
        return Err(ViewError::Dtype {
            expected: T::DTYPE,
            found: tensor.dtype,
        });
    }
    if cfg!(target_endian = "big") && size_of::<T>() > 1 {
        return Err(ViewError::Endianness);
    }
    let wrong_shape = || ViewError::Shape {
        shape: tensor.shape.to_vec(),
        len_bytes: tensor.bytes.len(),
    };
    let dims: Option<Vec<usize>> = tensor
        .shape
        .iter()
        .map(|&d| usize::try_from(d).ok())
        .collect();
    let dims = dims.ok_or_else(wrong_shape)?;
    let n_elements = dims.iter().try_fold(1_usize, |n, &d| n.checked_mul(d));
    let len_bytes = n_elements.and_then(|n| n.checked_mul(size_of::<T>()));
    if len_bytes != Some(tensor.bytes.len()) {
        return Err(wrong_shape());
    }
    let elements = bytemuck::try_cast_slice(tensor.bytes).map_err(|_| ViewError::Unaligned {
        size_bytes: size_of::<T>(),
    })?;
    ArrayViewD::from_shape(IxDyn(&dims), elements).map_err(|_| wrong_shape())
}

/// The parts of a quantized weight as the bytes they are in the file, with their roles: feed them to [`array()`].
///
/// ```
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/llm-compressor/ct-w4a16-g128/model.safetensors");
/// use std::path::Path;
/// use safequant::container::MappedCheckpoint;
/// use safequant::schemes::{Axis, Selection, slice};
/// use safequant::views::{SlicedPart, parts, slice_parts};
/// use safequant::{Limits, Model, Role};
///
/// // SAFETY: nobody writes to the fixtures while this runs.
/// let mapped = unsafe { MappedCheckpoint::open(Path::new(path), &Limits::default())? };
/// let model = Model::bind(mapped.checkpoint())?;
/// let weight = &model.quantized[0];
/// let (role, codes) = parts(&mapped, weight)?.remove(0);
/// assert_eq!((role, codes.shape[0]), (Role::Codes, weight.out_features()));
///
/// let share = slice(weight, &Selection::of_rank(weight, Axis::Out, 1, 2)?)?;
/// let bytes = slice_parts(&mapped, weight, &share)?;
/// assert!(matches!(bytes[0], SlicedPart::Borrowed(_)), "rows lie together: no copy");
/// assert_eq!(bytes[0][..], codes.bytes[codes.bytes.len() / 2..]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`ViewError::Missing`] for a part that the checkpoint does not have.
pub fn parts<'m>(
    mapped: &'m MappedCheckpoint,
    tensor: &QuantizedTensor,
) -> Result<Vec<(Role, TensorView<'m>)>, ViewError> {
    let part = |part: &Part| {
        let missing = || ViewError::Missing {
            name: part.name.clone(),
        };
        Ok((part.role, mapped.tensor(&part.name).ok_or_else(missing)?))
    };
    tensor.parts.iter().map(part).collect()
}

/// The bytes of one part of a slice.
#[derive(Debug)]
pub enum SlicedPart<'m> {
    /// They lie together in the file.
    Borrowed(&'m [u8]),
    /// They do not.
    Gathered(AlignedBuffer),
}

impl Deref for SlicedPart<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            SlicedPart::Borrowed(bytes) => bytes,
            SlicedPart::Gathered(bytes) => bytes,
        }
    }
}

/// The bytes of each part of a slice, borrowed from the file where they lie together there, gathered where they do not.
///
/// # Errors
/// As [`safequant_schemes::Slice::read`].
pub fn slice_parts<'m>(
    mapped: &'m MappedCheckpoint,
    source: &QuantizedTensor,
    slice: &Slice,
) -> Result<Vec<SlicedPart<'m>>, safequant_schemes::Error> {
    let borrowed = |i: usize| {
        let SliceBytes::Stored(range) = &slice.parts[i] else {
            return None;
        };
        let bytes = mapped.tensor(&source.parts[i].name)?.bytes;
        let (start, end) = (
            usize::try_from(range.start).ok()?,
            usize::try_from(range.end).ok()?,
        );
        bytes.get(start..end)
    };
    let found: Vec<Option<&[u8]>> = (0..slice.parts.len()).map(borrowed).collect();
    if found.iter().all(Option::is_some) {
        let found = found.into_iter().flatten();
        return Ok(found.map(SlicedPart::Borrowed).collect());
    }
    let made = slice.read(source, mapped.checkpoint(), Backend::detect())?;
    let part = |(bytes, made)| match bytes {
        Some(bytes) => SlicedPart::Borrowed(bytes),
        None => SlicedPart::Gathered(made),
    };
    Ok(found.into_iter().zip(made).map(part).collect())
}

/// The codes of a tile as `[rows, in_features]`, one code per byte (see [`CodeTile::codes`] for their form).
///
/// # Errors
/// [`ViewError::Shape`] if the tile does not hold whole rows of `in_features` codes.
pub fn codes(tile: &CodeTile, in_features: usize) -> Result<ArrayView2<'_, u8>, ViewError> {
    rows_of(&tile.codes, in_features)
}

/// The scales of a tile as `[row groups, in groups]`.
///
/// # Errors
/// [`ViewError::Shape`] if the tile does not hold whole rows of `n_groups` scales.
pub fn scales(tile: &CodeTile, n_groups: usize) -> Result<ArrayView2<'_, f32>, ViewError> {
    rows_of(&tile.scales, n_groups)
}

fn rows_of<T>(values: &[T], n_columns: usize) -> Result<ArrayView2<'_, T>, ViewError> {
    let n_rows = values.len().checked_div(n_columns).unwrap_or(0);
    let wrong = || ViewError::Shape {
        shape: [n_rows, n_columns].map(|d| d as u64).to_vec(),
        len_bytes: size_of_val(values),
    };
    if n_rows.checked_mul(n_columns) != Some(values.len()) {
        return Err(wrong()); // `ndarray` takes a slice that is too long
    }
    ArrayView2::from_shape((n_rows, n_columns), values).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 64 bytes at an address that is a multiple of 8.
    fn buffer() -> Vec<u64> {
        (0..8_u64)
            .map(|i| i.wrapping_mul(0x0102_0304_0506_0708))
            .collect()
    }

    fn view(dtype: Dtype, shape: &[u64], bytes: &[u8]) -> Result<Vec<usize>, ViewError> {
        fn go<T: Element>(tensor: TensorView<'_>) -> Result<Vec<usize>, ViewError> {
            array::<T>(tensor).map(|a| a.shape().to_vec())
        }
        let tensor = TensorView {
            dtype,
            shape,
            bytes,
        };
        match size_of_element(dtype) {
            1 if dtype == Dtype::F8E4M3 => go::<float8::F8E4M3>(tensor),
            2 if dtype == Dtype::BF16 => go::<half::bf16>(tensor),
            _ => go::<f32>(tensor),
        }
    }

    fn size_of_element(dtype: Dtype) -> usize {
        ELEMENTS
            .iter()
            .find(|(d, _)| *d == dtype)
            .expect("a listed dtype")
            .1
    }

    #[test]
    fn every_element_has_the_width_of_its_dtype() {
        assert_eq!(ELEMENTS.len(), 14);
        for &(dtype, size_bytes) in ELEMENTS {
            assert_eq!(dtype.bits(), 8 * size_bytes as u64, "{dtype}");
        }
    }

    #[test]
    fn a_view_has_the_shape_of_the_tensor_and_its_bits() {
        let words = buffer();
        let bytes: &[u8] = bytemuck::cast_slice(&words);
        for dtype in [Dtype::F8E4M3, Dtype::BF16, Dtype::F32] {
            let columns = 64 / size_of_element(dtype) as u64 / 4;
            assert_eq!(
                view(dtype, &[4, columns], bytes),
                Ok(vec![4, usize::try_from(columns).expect("small")]),
                "{dtype}"
            );
        }
        let tensor = TensorView {
            dtype: Dtype::BF16,
            shape: &[32],
            bytes,
        };
        let halves = array::<half::bf16>(tensor).expect("aligned");
        for (i, value) in halves.iter().enumerate() {
            assert_eq!(
                value.to_bits(),
                u16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]])
            );
        }
    }

    #[test]
    fn what_cannot_be_seen_in_place_says_why() {
        let words = buffer();
        let bytes: &[u8] = bytemuck::cast_slice(&words);
        let found = |shape: &[u64], bytes: &[u8]| view(Dtype::F32, shape, bytes).unwrap_err();
        assert_eq!(
            found(&[4], &bytes[1..17]),
            ViewError::Unaligned { size_bytes: 4 }
        );
        assert!(matches!(
            found(&[5], &bytes[..16]),
            ViewError::Shape { len_bytes: 16, .. }
        ));
        assert!(matches!(
            found(&[u64::MAX, 2], bytes),
            ViewError::Shape { .. }
        ));
        let other = TensorView {
            dtype: Dtype::F16,
            shape: &[8],
            bytes: &bytes[..16],
        };
        let expected = ViewError::Dtype {
            expected: Dtype::BF16,
            found: Dtype::F16,
        };
        assert_eq!(array::<half::bf16>(other).unwrap_err(), expected);
    }

    #[test]
    fn a_tile_is_a_matrix_of_codes_and_one_of_scales() {
        let tile = CodeTile {
            rows: 0..2,
            codes: vec![1, 2, 3, 4, 5, 6],
            scales: vec![0.5, 0.25],
            ..CodeTile::default()
        };
        assert_eq!(codes(&tile, 3).expect("whole rows")[[1, 0]], 4);
        assert!((scales(&tile, 1).expect("whole rows")[[1, 0]] - 0.25).abs() < f32::EPSILON);
        assert!(codes(&tile, 4).is_err() && codes(&tile, 0).is_err());
    }
}
