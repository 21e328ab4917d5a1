//! Rows of a quantized weight in the neutral form: what every convention decodes to and encodes from.

use std::ops::Range;

use crate::{Granularity, QuantizedTensor, RowOrder, Scheme, SuperScale};

/// Codes, scales and zero points of some rows, in the neutral form.
///
/// Matrices of a stack stand one after the other. A *grid of scales* of a tile has the scale rows that its rows need
/// ([`crate::Granularity`] says which) and all their columns; zero points and offsets are laid out as the scales.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CodeTile {
    /// Rows of the stack.
    pub rows: Range<u64>,
    /// Codes in unsigned form (integers) or as bit patterns (minifloats, code books): `[rows, in_features]`. Of
    /// [`crate::Code::Dense`] the little-endian bytes of the elements.
    pub codes: Vec<u8>,
    /// Stored scales as numbers that the stored form holds exactly: `[row groups, in groups]` of the tile (one entry for
    /// per-tensor granularity; one row of entries per block row for blocks). Empty for [`crate::ScaleCoding::One`].
    pub scales: Vec<f32>,
    /// Zeros of the unsigned form, laid out as `scales`; empty where the zero point is not stored as an integer.
    pub zeros: Vec<i32>,
    /// Float zero points or biases, laid out as `scales`; empty where there are none.
    pub offsets: Vec<f32>,
    /// What scales are scaled by ([`crate::SuperScale`]): for each matrix the super-scales that its scale rows need. Empty
    /// where there are none.
    pub supers: Vec<f32>,
    /// Of a sparse tensor one byte per code: 1 for those that are stored, 0 for zeros that are not. Else empty.
    pub marks: Vec<u8>,
    /// Of a sparse tensor whose rows have any number of stored codes: for each row the first of them, counted over the
    /// whole matrix. Else empty.
    pub starts: Vec<u64>,
    /// What offsets are scaled by, laid out as `supers`: [`crate::SuperScale::Grouped`] alone has them.
    pub offset_supers: Vec<f32>,
}

impl CodeTile {
    /// Takes everything out, and keeps the memory.
    pub fn clear(&mut self) {
        self.rows = 0..0;
        self.codes.clear();
        self.scales.clear();
        self.zeros.clear();
        self.offsets.clear();
        self.supers.clear();
        self.marks.clear();
        self.starts.clear();
        self.offset_supers.clear();
    }

    /// Whether every row of such a weight has codes and scales of its own, so that rows can be put in another order.
    pub fn has_rows_of_its_own(scheme: &Scheme) -> bool {
        let scales = match scheme.granularity {
            Granularity::Tensor
            | Granularity::Channel
            | Granularity::Group { .. }
            | Granularity::IndexedGroup { .. } => true,
            Granularity::Block { .. } | Granularity::Flat { .. } | Granularity::Strided { .. } => {
                false
            }
        };
        let supers = match scheme.super_scale {
            SuperScale::None
            | SuperScale::Multiply
            | SuperScale::Divide
            | SuperScale::Grouped { .. }
            | SuperScale::Channel => true,
            SuperScale::Nested { .. } => false,
        };
        scales && supers
    }

    /// Puts the rows of a tile of one matrix, whole units of the order, in another order.
    ///
    /// # Panics
    /// If the rows of `tensor` have no scales of their own ([`CodeTile::has_rows_of_its_own`]).
    pub fn reorder(&mut self, tensor: &QuantizedTensor, order: RowOrder) {
        if order == RowOrder::Same {
            return;
        }
        assert!(Self::has_rows_of_its_own(&tensor.scheme), "rows of its own");
        let n_rows = tensor.out_features();
        let first = self.rows.start % n_rows.max(1);
        let rows = first..first + (self.rows.end - self.rows.start);
        order.apply(&mut self.codes, &rows, n_rows);
        order.apply(&mut self.marks, &rows, n_rows);
        if tensor.scheme.granularity != Granularity::Tensor {
            order.apply(&mut self.scales, &rows, n_rows);
            order.apply(&mut self.zeros, &rows, n_rows);
            order.apply(&mut self.offsets, &rows, n_rows);
        }
        if let SuperScale::Grouped { .. } | SuperScale::Channel = tensor.scheme.super_scale {
            order.apply(&mut self.supers, &rows, n_rows);
            order.apply(&mut self.offset_supers, &rows, n_rows);
        }
    }
}
