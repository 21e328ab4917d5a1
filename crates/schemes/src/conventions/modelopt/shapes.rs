//! What the shapes of codes and scales say: logical shape, orientation, granularity.

use safequant_container::TensorInfo;

use crate::binding::wrong_shape;
use crate::scheme::Packing;
use crate::{Axes, Axis, Error, Granularity, Storage};

/// The side of `ModelOpt`'s FP8 blocks.
const BLOCK: u64 = 128;
/// Two codes to a byte.
pub(super) const NIBBLES: Packing = Packing::LsbFirst { bits: 4 };

/// The logical shape, and how codes and scales lie.
pub(super) struct Layout {
    /// `[.., out_features, in_features]`.
    pub(super) shape: Vec<u64>,
    /// Of the codes.
    pub(super) codes: Storage,
    /// Of codes and scales: fused experts that are multiplied from the right are stored `[experts, in, out]`.
    pub(super) axes: Axes,
}

impl Layout {
    /// One code per element, as a dense weight.
    pub(super) fn elements(shape: Vec<u64>) -> Self {
        let axes = Axes::OutIn;
        Self {
            shape,
            codes: Storage::Elements { axes },
            axes,
        }
    }
}

/// Rows and columns of the matrices of a stack, and the dimensions before.
fn split(shape: &[u64]) -> Option<(&[u64], [u64; 2])> {
    let (stack, matrix) = shape.split_at_checked(shape.len().checked_sub(2)?)?;
    Some((stack, <[u64; 2]>::try_from(matrix).ok()?))
}

/// The size of the groups in which `scale` cuts the rows of `shape`; they must divide a row.
pub(super) fn group(shape: &[u64], scale: &[u64]) -> Option<u64> {
    let ((stack, [rows, columns]), (of, [n, groups])) = (split(shape)?, split(scale)?);
    let fits = stack == of && rows == n && groups > 0 && columns.is_multiple_of(groups);
    fits.then(|| columns / groups).filter(|&size| size > 0)
}

/// The scales expected, for messages.
pub(super) fn groups_of(shape: &[u64], size: u64) -> String {
    let mut expected = shape.to_vec();
    if let Some(last) = expected.last_mut() {
        *last = last.div_ceil(size);
    }
    format!("{expected:?} (groups of {size}) for a weight of {shape:?}")
}

/// Two columns to a byte: `[.., N, K / 2]` with scales `[.., N, K / group]`, or both transposed.
pub(super) fn nibbles_along_in(
    module: &str,
    codes: &TensorInfo,
    scale: &TensorInfo,
) -> Result<(Layout, u64), Error> {
    let error = || {
        let wide = doubled(&codes.shape, 1).unwrap_or_default();
        wrong_shape(module, scale, groups_of(&wide, 16))
    };
    let layout = |shape: Vec<u64>, axes| Layout {
        shape,
        codes: Storage::Packed {
            axes,
            packing: NIBBLES,
            along: Axis::In,
        },
        axes,
    };
    let plain = doubled(&codes.shape, 1).ok_or_else(error)?;
    if let Some(size) = group(&plain, &scale.shape) {
        return Ok((layout(plain, Axes::OutIn), size));
    }
    // Llama 4's and gpt-oss' experts: the input features come first.
    let turned = |shape: &[u64]| {
        let mut shape = shape.to_vec();
        let n = shape.len();
        (n == 3).then(|| {
            shape.swap(n - 1, n - 2);
            shape
        })
    };
    let shape = turned(&codes.shape).and_then(|s| doubled(&s, 1));
    let scales = turned(&scale.shape);
    let (shape, scales) = shape.zip(scales).ok_or_else(error)?;
    let size = group(&shape, &scales).ok_or_else(error)?;
    Ok((layout(shape, Axes::InOut), size))
}

/// Two rows to a byte: `[.., N / 2, K]` with scales `[.., N, K / group]`.
pub(super) fn nibbles_along_out(
    module: &str,
    codes: &TensorInfo,
    scale: &TensorInfo,
) -> Result<(Layout, u64), Error> {
    let shape = doubled(&codes.shape, 2);
    let expected = || groups_of(shape.as_deref().unwrap_or_default(), BLOCK);
    let size = shape.as_deref().and_then(|s| group(s, &scale.shape));
    let size = size.ok_or_else(|| wrong_shape(module, scale, expected()))?;
    let axes = Axes::OutIn;
    let layout = Layout {
        shape: shape.unwrap_or_default(),
        codes: Storage::Packed {
            axes,
            packing: NIBBLES,
            along: Axis::Out,
        },
        axes,
    };
    Ok((layout, size))
}

/// The shape with the dimension `back` places from the end doubled.
fn doubled(shape: &[u64], back: usize) -> Option<Vec<u64>> {
    let mut shape = shape.to_vec();
    let at = shape.len().checked_sub(back)?;
    let dimension = shape.get_mut(at)?;
    *dimension = dimension.checked_mul(2)?;
    Some(shape)
}

/// Rows and columns of a grid of blocks: `[.., rows, 1, columns, 1]`, as the exporter writes it.
pub(super) fn block_grid(scale: &TensorInfo) -> Option<[u64; 2]> {
    match scale.shape.as_slice() {
        &[.., rows, 1, columns, 1] => Some([rows, columns]),
        _ => None,
    }
}

/// One code per element with scales per tensor, channel or block: what the shape of the scales says.
pub(super) fn with_scales(
    module: &str,
    codes: &TensorInfo,
    scale: &TensorInfo,
) -> Result<(Layout, Granularity), Error> {
    let shape = codes.shape.to_vec();
    let error = || wrong_shape(module, scale, format!("scales of a weight of {shape:?}"));
    let (stack, [rows, columns]) = split(&codes.shape).ok_or_else(error)?;
    let own = scale.shape.strip_prefix(stack).ok_or_else(error)?;
    let plain = |granularity| Ok((Layout::elements(shape.clone()), granularity));
    match *own {
        [] | [1] | [1, 1] => plain(Granularity::Tensor),
        // A square weight of fused experts says nothing about the side that its channels are on; ModelOpt itself refuses.
        [n] if !stack.is_empty() && rows == columns && n == rows => Err(error()),
        [n] | [n, 1] if n == rows => plain(Granularity::Channel),
        [n] if !stack.is_empty() && n == columns => {
            let mut shape = shape.clone();
            let n = shape.len();
            shape.swap(n - 1, n - 2);
            let axes = Axes::InOut;
            let layout = Layout {
                shape,
                codes: Storage::Elements { axes },
                axes: Axes::OutIn,
            };
            Ok((layout, Granularity::Channel))
        }
        [above, 1, across, 1] | [above, across] => {
            let block = block([rows, columns], [above, across]).ok_or_else(error)?;
            plain(block)
        }
        _ => Err(error()),
    }
}

/// Blocks of 128 where the grid allows them, else those that divide the weight.
pub(super) fn block([rows, columns]: [u64; 2], [above, across]: [u64; 2]) -> Option<Granularity> {
    if [rows.div_ceil(BLOCK), columns.div_ceil(BLOCK)] == [above, across] {
        return Some(Granularity::Block {
            rows: BLOCK,
            columns: BLOCK,
        });
    }
    let side = |n: u64, parts: u64| {
        let divides = parts > 0 && n.is_multiple_of(parts);
        divides.then(|| n / parts).filter(|&s| s > 0)
    };
    Some(Granularity::Block {
        rows: side(rows, above)?,
        columns: side(columns, across)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_of_128_where_the_grid_allows_them() {
        let sides = |shape, grid| block(shape, grid);
        let found = |rows, columns| Some(Granularity::Block { rows, columns });
        assert_eq!(sides([64, 256], [1, 2]), found(128, 128));
        assert_eq!(sides([200, 256], [2, 2]), found(128, 128));
        assert_eq!(sides([256, 256], [4, 4]), found(64, 64));
        assert_eq!(sides([200, 256], [3, 2]), None);
        assert_eq!(sides([200, 256], [0, 2]), None);
    }

    #[test]
    fn groups_divide_rows() {
        assert_eq!(group(&[8, 64], &[8, 4]), Some(16));
        assert_eq!(group(&[2, 8, 64], &[2, 8, 4]), Some(16));
        assert_eq!(group(&[8, 64], &[8, 0]), None);
        assert_eq!(group(&[8, 64], &[8, 3]), None);
        assert_eq!(group(&[8, 0], &[8, 4]), None);
        assert_eq!(group(&[64], &[4]), None);
    }
}
