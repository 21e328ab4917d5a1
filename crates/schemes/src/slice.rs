//! Part of a weight in logical coordinates: what one rank of a tensor-parallel group holds, still packed.

mod read;

use std::ops::Range;

use crate::encode::is_streamed;
use crate::storage::{Stored, grid_of, scale_grid, shape_of, to_u64};
use crate::{Axis, Error, Granularity, Part, QuantizedTensor, Role, Rotation, Storage, SuperScale};

/// Which output or input features are wanted: ranges in ascending order, together one rank's share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// The axis that is cut.
    pub axis: Axis,
    /// The features, in order; one range, or one for each weight that was fused into this one.
    pub ranges: Vec<Range<u64>>,
}

impl Selection {
    /// The share of `rank` among `world` ranks.
    ///
    /// # Errors
    /// [`Error::Slice`] if the features do not divide, with the numbers.
    pub fn of_rank(
        tensor: &QuantizedTensor,
        axis: Axis,
        rank: u64,
        world: u64,
    ) -> Result<Self, Error> {
        let all = match axis {
            Axis::Out => tensor.out_features(),
            Axis::In => tensor.in_features(),
        };
        Self::of_fused(tensor, axis, &[all], rank, world)
    }

    /// The same for a weight that is several fused ones: of each its own share. `sizes`: features of each along `axis`
    /// (`[gate, up]`, `[q, k, v]`).
    ///
    /// # Errors
    /// [`Error::Slice`] if the sizes do not add up or do not divide.
    pub fn of_fused(
        tensor: &QuantizedTensor,
        axis: Axis,
        sizes: &[u64],
        rank: u64,
        world: u64,
    ) -> Result<Self, Error> {
        let (all, name) = match axis {
            Axis::Out => (tensor.out_features(), "output"),
            Axis::In => (tensor.in_features(), "input"),
        };
        let refuse = |problem: String| Error::Slice {
            module: tensor.module.clone(),
            problem,
        };
        if rank >= world {
            return Err(refuse(format!("there is no rank {rank} among {world}")));
        }
        let sum = sizes.iter().try_fold(0_u64, |n, &s| n.checked_add(s));
        if sum != Some(all) {
            return Err(refuse(format!(
                "the fused sizes {sizes:?} do not add up to its {all} {name} features"
            )));
        }
        let mut start = 0;
        let mut ranges = Vec::new();
        for &size in sizes {
            if size % world != 0 {
                return Err(refuse(format!(
                    "{size} {name} features do not divide among {world} ranks"
                )));
            }
            let share = size / world;
            ranges.push(start + rank * share..start + (rank + 1) * share);
            start += size;
        }
        Ok(Self { axis, ranges })
    }

    /// Features selected.
    fn len(&self) -> u64 {
        self.ranges.iter().map(|r| r.end - r.start).sum()
    }
}

/// A slice of a weight: a tensor of its own, in the same packing.
#[derive(Clone, Debug)]
pub struct Slice {
    /// What the parts mean: shape and parts' shapes are the slice's.
    pub tensor: QuantizedTensor,
    /// Where the bytes of each part come from, as `tensor.parts`.
    pub parts: Vec<SliceBytes>,
    selection: Selection,
}

/// Where the bytes of one part of a slice come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SliceBytes {
    /// They lie together in the stored part, at this place: no copy is needed.
    Stored(Range<u64>),
    /// They must be gathered: [`Slice::read`].
    Gathered,
}

/// What a selection of `tensor` is, part by part. Nothing is read.
///
/// # Errors
/// [`Error::Slice`] where a group, a block, a rotation or a packed word would be cut: names the numbers.
pub fn slice(tensor: &QuantizedTensor, selection: &Selection) -> Result<Slice, Error> {
    check(tensor, selection)?;
    let mut sliced = tensor.clone();
    let (rows, columns) = match selection.axis {
        Axis::Out => (selection.len(), tensor.in_features()),
        Axis::In => (tensor.out_features(), selection.len()),
    };
    let n = sliced.shape.len();
    if n >= 2 {
        sliced.shape[n - 2] = rows;
    }
    if let Some(last) = sliced.shape.last_mut() {
        *last = columns;
    }
    if let Granularity::Flat { size } = tensor.scheme.granularity
        && tensor.in_features().is_multiple_of(size.max(1))
    {
        // Rows begin with a group of their own: the same numbers, in the same order.
        sliced.scheme.granularity = Granularity::Group { size };
    }
    for i in 0..sliced.parts.len() {
        let part = sliced_part(tensor, &sliced, &tensor.parts[i])?;
        sliced.parts[i] = part;
    }
    let parts = (0..sliced.parts.len())
        .map(|i| place(tensor, &sliced, selection, i))
        .collect::<Result<_, Error>>()?;
    Ok(Slice {
        tensor: sliced,
        parts,
        selection: selection.clone(),
    })
}

/// Whether nothing is cut that belongs together.
fn check(tensor: &QuantizedTensor, selection: &Selection) -> Result<(), Error> {
    let scheme = &tensor.scheme;
    let columns = tensor.in_features();
    let whole = match selection.axis {
        Axis::Out => tensor.out_features(),
        Axis::In => columns,
    };
    let is_all = selection.ranges.first() == Some(&(0..whole));
    if is_all {
        return Ok(());
    }
    let codes = tensor.part(Role::Codes).map(|p| p.storage);
    if matches!(codes, Some(Storage::Sparse { .. })) {
        let problem = "how much of a sparse weight a rank holds is not known from its header; slice the dense view";
        return Err(refused(tensor, problem));
    }
    let (what, unit) = match (selection.axis, scheme.granularity) {
        (Axis::Out, Granularity::Block { rows, .. }) => ("the block of rows", rows),
        (Axis::Out, Granularity::Flat { size }) => {
            let nested = match scheme.super_scale {
                SuperScale::Nested { size, offset: _ } => size,
                SuperScale::None
                | SuperScale::Multiply
                | SuperScale::Divide
                | SuperScale::Grouped { .. }
                | SuperScale::Channel => 1,
            };
            (
                "the rows of whole blocks",
                rows_of(size.saturating_mul(nested), columns),
            )
        }
        (Axis::Out, Granularity::Group { size }) => match scheme.super_scale {
            SuperScale::Nested {
                size: nested,
                offset: _,
            } => (
                "the rows of whole nested blocks",
                rows_of(size.saturating_mul(nested), columns),
            ),
            SuperScale::None
            | SuperScale::Multiply
            | SuperScale::Divide
            | SuperScale::Grouped { .. }
            | SuperScale::Channel => ("", 1),
        },
        (Axis::In, Granularity::Group { size } | Granularity::Block { columns: size, .. }) => {
            match scheme.super_scale {
                SuperScale::Nested { .. } => {
                    return Err(refused(tensor, "its scales are nested along rows"));
                }
                SuperScale::Grouped { size: above } => {
                    ("the super-block", size.saturating_mul(above))
                }
                SuperScale::None
                | SuperScale::Multiply
                | SuperScale::Divide
                | SuperScale::Channel => ("the group size", size),
            }
        }
        (Axis::In, Granularity::Flat { size }) => ("the block size", size),
        (_, Granularity::Strided { .. }) => {
            return Err(refused(
                tensor,
                "its groups run down the columns of the whole matrix",
            ));
        }
        (Axis::In, Granularity::IndexedGroup { .. }) => {
            return Err(refused(
                tensor,
                "activation order spreads its groups over all input features",
            ));
        }
        (_, Granularity::Tensor | Granularity::Channel)
        | (Axis::Out, Granularity::IndexedGroup { .. }) => ("", 1),
    };
    let rotation = match (selection.axis, scheme.basis.rotation) {
        (Axis::In, Rotation::ConvRot { size }) => size,
        (Axis::Out, Rotation::ConvRot { .. }) | (_, Rotation::None) => 1,
    };
    for (what, unit) in [(what, unit), ("the rotation", rotation)] {
        for edge in selection.ranges.iter().flat_map(|r| [r.start, r.end]) {
            if edge != whole && !edge.is_multiple_of(unit.max(1)) {
                return Err(refused(
                    tensor,
                    &format!("a cut at feature {edge} is no multiple of {what} {unit}"),
                ));
            }
        }
    }
    if selection.axis == Axis::In
        && matches!(scheme.granularity, Granularity::Flat { size } if !columns.is_multiple_of(size.max(1)))
    {
        return Err(refused(tensor, "its blocks straddle rows"));
    }
    Ok(())
}

fn refused(tensor: &QuantizedTensor, problem: &str) -> Error {
    Error::Slice {
        module: tensor.module.clone(),
        problem: problem.to_owned(),
    }
}

/// Rows after which a run of `n` elements of the flattened matrix is complete.
fn rows_of(n: u64, columns: u64) -> u64 {
    let (mut a, mut b) = (n.max(1), columns.max(1));
    while b != 0 {
        (a, b) = (b, a % b);
    }
    n.max(1) / a
}

/// A part of the slice: the storage stays, padding goes.
fn sliced_part(
    tensor: &QuantizedTensor,
    sliced: &QuantizedTensor,
    part: &Part,
) -> Result<Part, Error> {
    let is_grid = is_streamed(part, tensor)
        || matches!(part.storage, Storage::PackedConstant { .. })
        || matches!(
            part.role,
            Role::ColumnFactor | Role::LowRankUp | Role::LowRankDown | Role::GroupIndex
        );
    if !is_grid {
        return Ok(part.clone());
    }
    let mut part = part.clone();
    let (before, after) = (grid_of(tensor, part.role)?, grid_of(sliced, part.role)?);
    if before == after && part.role != Role::Codes {
        return Ok(part);
    }
    part.extent = None;
    if let Storage::SharedElements { first: _ } = part.storage {
        part.storage = Storage::Elements {
            axes: crate::Axes::OutIn,
        };
    }
    if let Storage::Planes { len, planes } = &mut part.storage {
        *len = to_u64(planes.packed_rows(after.rows.saturating_mul(after.columns)));
    }
    part.shape = shape_of(sliced, &part)?;
    Ok(part)
}

/// Where the bytes of one part lie.
fn place(
    tensor: &QuantizedTensor,
    sliced: &QuantizedTensor,
    selection: &Selection,
    i: usize,
) -> Result<SliceBytes, Error> {
    let (part, cut) = (&tensor.parts[i], &sliced.parts[i]);
    if part == cut && grid_of(tensor, part.role)? == grid_of(sliced, part.role)? {
        let n = part.shape.iter().product::<u64>();
        return Ok(SliceBytes::Stored(0..part.dtype.size_bytes(n).unwrap_or(0)));
    }
    let ([range], 1, true) = (
        selection.ranges.as_slice(),
        tensor.n_matrices(),
        is_streamed(part, tensor),
    ) else {
        return Ok(SliceBytes::Gathered);
    };
    let entries = entries_of(tensor, part.role, selection.axis, range);
    let stored = Stored::new(tensor, part)?;
    let found = entries.and_then(|entries| stored.contiguous(selection.axis, &entries));
    let n = cut.shape.iter().product::<u64>();
    let len = cut.dtype.size_bytes(n).unwrap_or(0);
    // Padding of the whole or of the slice may differ: then bytes are made.
    Ok(found
        .filter(|bytes| bytes.end - bytes.start == len)
        .map_or(SliceBytes::Gathered, SliceBytes::Stored))
}

/// The rows or columns of a role's grid that go with a range of features.
fn entries_of(
    tensor: &QuantizedTensor,
    role: Role,
    axis: Axis,
    range: &Range<u64>,
) -> Option<Range<usize>> {
    let usize_of = |n: u64| usize::try_from(n).ok();
    let whole = || Some(usize_of(range.start)?..usize_of(range.end)?);
    if role == Role::Codes {
        return whole();
    }
    let (out, columns) = (tensor.out_features(), tensor.in_features());
    let (rows, groups) = scale_grid(tensor.scheme.granularity, out, columns);
    // Entries per feature as a fraction: cuts stand at multiples, which `check` has seen to.
    let scaled = |n: u64, entries: u64, features: u64| {
        let exact = u128::from(n) * u128::from(entries);
        let at = exact.div_ceil(u128::from(features.max(1)));
        usize::try_from(at).ok()
    };
    match (axis, role) {
        (_, Role::SuperScale) => None,
        (Axis::Out, _) => Some(scaled(range.start, rows, out)?..scaled(range.end, rows, out)?),
        (Axis::In, _) => {
            Some(scaled(range.start, groups, columns)?..scaled(range.end, groups, columns)?)
        }
    }
}
