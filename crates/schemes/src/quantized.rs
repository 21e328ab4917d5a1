//! One quantized tensor: its logical shape, its scheme, and the stored parts by role.

use safequant_container::Dtype;
use safequant_kernels::{BlockFormat, Float, Packing, Planes, Tile, TileOrder};

use crate::Scheme;

/// A weight matrix (or stack of matrices) in terms of stored parts. Plain data: everything can be printed.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizedTensor {
    /// The module (`model.layers.0.mlp.up_proj`).
    pub module: String,
    /// The dense tensor it stands for (`<module>.weight`).
    pub weight: String,
    /// The convention that bound it.
    pub convention: &'static str,
    /// Logical shape `[.., out_features, in_features]`, never transposed, padding removed.
    pub shape: Vec<u64>,
    /// What the numbers mean.
    pub scheme: Scheme,
    /// What `--dtype auto` gives: the dtype of the convention's own reference.
    pub reference_dtype: Float,
    /// The stored tensors; at most one per role, but for [`Role::Auxiliary`].
    pub parts: Vec<Part>,
}

impl QuantizedTensor {
    /// The part with this role.
    pub fn part(&self, role: Role) -> Option<&Part> {
        self.parts.iter().find(|p| p.role == role)
    }

    /// Output features of one matrix.
    pub fn out_features(&self) -> u64 {
        self.shape.len().checked_sub(2).map_or(1, |i| self.shape[i])
    }

    /// Input features.
    pub fn in_features(&self) -> u64 {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Matrices in the stack: 1 for a plain weight. Saturates (a header's dimensions may multiply to anything beside a 0).
    pub fn n_matrices(&self) -> u64 {
        let stack = self.shape.len().saturating_sub(2);
        self.shape[..stack]
            .iter()
            .fold(1, |n, &d| n.saturating_mul(d))
    }

    /// Whether stored rows are columns of the weight (GPTQ): what lies together of some rows is as short as there are rows.
    pub fn is_transposed(&self) -> bool {
        self.parts.iter().any(|part| match part.storage {
            Storage::Elements { axes } | Storage::Packed { axes, .. } => axes == Axes::InOut,
            Storage::Tiled { tile }
            | Storage::Sparse {
                kept: Kept::Tiles { tile, .. },
            } => tile.order() == TileOrder::ColumnByColumn,
            Storage::SharedElements { .. }
            | Storage::PackedConstant { .. }
            | Storage::Flat { .. }
            | Storage::Common
            | Storage::LowHigh { .. }
            | Storage::Planes { .. }
            | Storage::Sparse {
                kept: Kept::Rows { .. } | Kept::Ragged,
            }
            | Storage::Blocks { .. }
            | Storage::Vector => false,
        })
    }

    /// Rows of the whole stack, `n_matrices * out_features`: what tiles are cut from. 0 where rows have no elements, so
    /// that nobody loops over a number that no data stands behind.
    pub fn n_rows(&self) -> u64 {
        if self.in_features() == 0 {
            return 0;
        }
        self.n_matrices().saturating_mul(self.out_features())
    }
}

/// What a stored tensor is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// The codes.
    Codes,
    /// The scales, logically `[out_groups, in_groups]`.
    Scale,
    /// The zero points, logically as the scales.
    ZeroPoint,
    /// Floats that stand beside the scales: float zero points, biases ([`crate::ZeroPoint::Offset`]).
    Offset,
    /// What scales are scaled by ([`crate::SuperScale`]).
    SuperScale,
    /// The 256 values that scale codes index ([`crate::ScaleCoding::StoredTable`]).
    ScaleTable,
    /// The 16 values that codes index ([`crate::Code::StoredCodebook`]).
    Codebook,
    /// One factor per input feature ([`crate::Basis::columns`]).
    ColumnFactor,
    /// `[out, rank]` ([`crate::Basis::rank`]).
    LowRankUp,
    /// `[in, rank]` ([`crate::Basis::rank`]).
    LowRankDown,
    /// Which entries of a sparse matrix are stored: one bit each, or in tiles the positions in each quad.
    Mask,
    /// For each row of a sparse matrix its first entry among those that are stored, one I64.
    RowStart,
    /// For each input feature its group: activation order.
    GroupIndex,
    /// A descriptor that holds the logical shape.
    Shape,
    /// Something that belongs to the module but not to the weight: activation scales, marker tensors.
    Auxiliary,
}

impl Role {
    /// As reports spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Role::Codes => "codes",
            Role::Scale => "scale",
            Role::ZeroPoint => "zero_point",
            Role::GroupIndex => "group_index",
            Role::Offset => "offset",
            Role::SuperScale => "super_scale",
            Role::ScaleTable => "scale_table",
            Role::Codebook => "codebook",
            Role::ColumnFactor => "column_factor",
            Role::LowRankUp => "low_rank_up",
            Role::LowRankDown => "low_rank_down",
            Role::Mask => "mask",
            Role::RowStart => "row_start",
            Role::Shape => "shape",
            Role::Auxiliary => "auxiliary",
        }
    }
}

/// One stored tensor of a quantized one.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// What it is for.
    pub role: Role,
    /// Its name in the file.
    pub name: String,
    /// Its dtype in the header.
    pub dtype: Dtype,
    /// Its shape in the header.
    pub shape: Vec<u64>,
    /// How the logical grid of the role sits in it.
    pub storage: Storage,
    /// Rows and columns of the stored grid, where it is larger than the logical one: padding, written as zeros, at the end
    /// of rows and columns.
    pub extent: Option<[u64; 2]>,
    /// The whole content, where it follows from the layout alone: marker tensors, descriptors, code books. Written once.
    pub content: Option<Vec<u8>>,
}

/// How the logical grid of a role (`[out, in]` for codes, `[out_groups, in_groups]` for scales and zero points) is stored.
/// Leading dimensions of a stack stand before it and are never packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Storage {
    /// One element per grid entry.
    Elements {
        /// Which logical axis comes first.
        axes: Axes,
    },
    /// Codes in a packing; the words are the part's elements.
    Packed {
        /// Which logical axis comes first in the stored matrix.
        axes: Axes,
        /// The bit layout of one run.
        packing: Packing,
        /// The logical axis that a run follows.
        along: Axis,
    },
    /// One element per grid entry, `[out, in]`, contiguous from element `first` on in a tensor that other modules share:
    /// the fused `experts.<proj>_scale_inv` beside per-expert codes.
    SharedElements {
        /// Index of the grid's first entry, counted over the whole stored tensor.
        first: u64,
    },
    /// As [`Storage::Elements`] in the order `[out, in]`, but the grid of one matrix stands for all matrices of the stack:
    /// one scale for a bank of experts.
    Common,
    /// Codes in two runs per row, `[out, in]`: first the low bits of all codes, lowest bits first, then their high bits.
    LowHigh {
        /// Bits in the first run.
        low: u32,
        /// Bits in the second run.
        high: u32,
    },
    /// As [`Storage::Packed`], but every lane holds the same number, and [`Scheme::zero_point`] is fixed: the zero points
    /// of a symmetric GPTQ module. Written once, never read.
    PackedConstant {
        /// Which logical axis comes first in the stored matrix.
        axes: Axes,
        /// The bit layout of one run.
        packing: Packing,
        /// The logical axis that a run follows.
        along: Axis,
        /// The number in every lane (lanes beyond the grid are zero).
        lane: u8,
    },
    /// One element per input feature ([`Role::GroupIndex`]), or free content ([`Role::Shape`], [`Role::Auxiliary`]).
    Vector,
    /// Permuted tiles, in the tile's own order; the grid is padded with zeros to whole tiles. The part's shape and dtype mean
    /// nothing but bytes.
    Tiled {
        /// The permutation.
        tile: Tile,
    },
    /// Codes of the whole matrix, flattened row by row, as one run; the part's shape and dtype mean nothing but bytes.
    Flat {
        /// The bit layout of the run.
        packing: Packing,
    },
    /// Codes of the whole matrix, flattened row by row and cut in planes of equal length, which lie over each other in the
    /// bits of the same words: HQQ, quanto. The last plane may be padded.
    Planes {
        /// Bits, word and order of the planes.
        planes: Planes,
        /// Elements in a plane: words of one matrix.
        len: u64,
    },
    /// Blocks along the input features that hold codes, scales and offsets alike: ggml. Roles that such a part fills have no
    /// part of their own. The part's last dimension counts bytes.
    Blocks {
        /// The block type.
        format: BlockFormat,
    },
    /// Codes of a sparse matrix, one element each: only those that the part with [`Role::Mask`] marks, row after row. The
    /// others are zero.
    Sparse {
        /// How they follow each other.
        kept: Kept,
    },
}

/// How the stored codes of a sparse matrix follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kept {
    /// As a matrix of `per_row` columns: each row has so many.
    Rows {
        /// Stored codes of a row.
        per_row: u64,
    },
    /// As a matrix of `per_row` columns in permuted tiles.
    Tiles {
        /// Stored codes of a row.
        per_row: u64,
        /// The permutation.
        tile: Tile,
    },
    /// One after another; [`Role::RowStart`] says where a row begins.
    Ragged,
}

/// The order of the logical axes in a stored matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Axes {
    /// `[out, in]`, as dense weights are.
    OutIn,
    /// `[in, out]`: GPTQ and AWQ store the transpose.
    InOut,
}

/// A logical axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Axis {
    /// Output features.
    Out,
    /// Input features.
    In,
}
