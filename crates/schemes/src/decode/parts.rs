//! The parts of a tensor in a checkpoint: found, checked against the scheme, and the small ones read.

use safequant_container::{Checkpoint, Dtype};
use safequant_kernels::{Backend, Float};

use super::Located;
use crate::arithmetic::Extras;
use crate::storage::{Stored, WordShift, grid_of, to_u64};
use crate::{Code, ColumnFactor, Error, Granularity, Part, QuantizedTensor, Role, ScaleCoding};

/// Finds a part and checks that the checkpoint still has it as bound.
pub(super) fn locate<'a>(
    tensor: &'a QuantizedTensor,
    role: Role,
    checkpoint: &'a Checkpoint,
) -> Result<Located<'a>, Error> {
    let missing = |part: String| Error::MissingPart {
        module: tensor.module.clone(),
        part,
    };
    let part = tensor
        .part(role)
        .ok_or_else(|| missing(format!("the part for {role:?}")))?;
    let bytes = checkpoint
        .tensor(&part.name)
        .ok_or_else(|| missing(part.name.clone()))?;
    if bytes.dtype() != part.dtype {
        return Err(Error::PartDtype {
            module: tensor.module.clone(),
            part: part.name.clone(),
            expected: part.dtype.name().to_owned(),
            found: bytes.dtype(),
        });
    }
    if bytes.shape() != part.shape {
        return Err(Error::PartShape {
            module: tensor.module.clone(),
            part: part.name.clone(),
            expected: format!("{:?}", part.shape),
            found: bytes.shape().to_vec(),
        });
    }
    Ok(Located {
        part,
        stored: Stored::new(tensor, part)?,
        bytes,
    })
}

pub(super) fn check_scale_dtype(tensor: &QuantizedTensor, part: &Part) -> Result<(), Error> {
    let fits = match tensor.scheme.scale {
        ScaleCoding::Float(float) => crate::scheme::float_of(part.dtype) == Some(float),
        ScaleCoding::E8M0(_) => matches!(part.dtype, Dtype::F8E8M0 | Dtype::U8),
        ScaleCoding::Minifloat(format) => {
            part.dtype == Dtype::U8 || crate::scheme::minifloat_of(part.dtype) == Some(format)
        }
        ScaleCoding::StoredTable | ScaleCoding::Integer => part.dtype == Dtype::U8,
        ScaleCoding::One => true,
    };
    if fits {
        return Ok(());
    }
    Err(Error::PartDtype {
        module: tensor.module.clone(),
        part: part.name.clone(),
        expected: format!("{:?}", tensor.scheme.scale),
        found: part.dtype,
    })
}

/// The float type of a part that holds dense floats.
pub(crate) fn float_dtype(tensor: &QuantizedTensor, part: &Part) -> Result<Float, Error> {
    crate::scheme::float_of(part.dtype).ok_or_else(|| Error::PartDtype {
        module: tensor.module.clone(),
        part: part.name.clone(),
        expected: "F32, F16 or BF16".to_owned(),
        found: part.dtype,
    })
}

/// Reads the parts that are held as long as the tensor is.
pub(super) struct SmallParts<'a> {
    pub(super) tensor: &'a QuantizedTensor,
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) backend: &'static Backend,
}

impl SmallParts<'_> {
    pub(super) fn extras(&self) -> Result<Extras, Error> {
        let scheme = &self.tensor.scheme;
        let codebook = match scheme.code {
            Code::StoredCodebook => Some(self.array(Role::Codebook)?),
            Code::Integer { .. } | Code::Minifloat(_) | Code::Codebook(_) | Code::Dense(_) => None,
        };
        let columns = match scheme.basis.columns {
            ColumnFactor::None => Vec::new(),
            // Held for whoever writes the tensor again.
            ColumnFactor::Inputs if self.tensor.part(Role::ColumnFactor).is_none() => Vec::new(),
            ColumnFactor::Multiply | ColumnFactor::Divide | ColumnFactor::Inputs => {
                self.floats(Role::ColumnFactor)?
            }
        };
        let (up, down) = if scheme.basis.rank == 0 {
            (Vec::new(), Vec::new())
        } else {
            (
                self.floats(Role::LowRankUp)?,
                self.floats(Role::LowRankDown)?,
            )
        };
        Ok(Extras {
            group_index: read_index(self.tensor, self.checkpoint)?,
            codebook,
            columns,
            up,
            down,
        })
    }

    /// All entries of a part of dense floats.
    pub(super) fn floats(&self, role: Role) -> Result<Vec<f32>, Error> {
        let part = locate(self.tensor, role, self.checkpoint)?;
        let float = float_dtype(self.tensor, part.part)?;
        let rows = 0..grid_of(self.tensor, role)?.rows;
        let stored = &part.stored;
        let raw = stored.read(part.bytes, 0, &rows, self.backend, WordShift::None)?;
        let mut values = vec![0.0; raw.len() / float.size_bytes()];
        (self.backend.widen)(float, &raw, &mut values);
        Ok(values)
    }

    pub(super) fn array<const N: usize>(&self, role: Role) -> Result<[f32; N], Error> {
        let values = self.floats(role)?;
        let found = values.len();
        <[f32; N]>::try_from(values).map_err(|_| Error::PartShape {
            module: self.tensor.module.clone(),
            part: format!("the part for {role:?}"),
            expected: format!("{N} values"),
            found: vec![to_u64(found)],
        })
    }
}

/// The group index of an act-order module; `None` where groups are consecutive, be it by declaration or by content.
fn read_index(
    tensor: &QuantizedTensor,
    checkpoint: &Checkpoint,
) -> Result<Option<Vec<u32>>, Error> {
    let Granularity::IndexedGroup { size } = tensor.scheme.granularity else {
        return Ok(None);
    };
    let missing = |part: &str| Error::MissingPart {
        module: tensor.module.clone(),
        part: part.to_owned(),
    };
    let part = tensor
        .part(Role::GroupIndex)
        .ok_or_else(|| missing("the group index"))?;
    let stored = checkpoint
        .tensor(&part.name)
        .ok_or_else(|| missing(&part.name))?;
    if stored.shape() != [tensor.in_features()] {
        return Err(Error::PartShape {
            module: tensor.module.clone(),
            part: part.name.clone(),
            expected: format!("[{}]", tensor.in_features()),
            found: stored.shape().to_vec(),
        });
    }
    let bytes = stored.read_all(stored.info.len_bytes())?;
    let entries: Vec<i64> = if stored.dtype() == Dtype::I32 {
        bytes
            .as_chunks()
            .0
            .iter()
            .map(|&b| i64::from(i32::from_le_bytes(b)))
            .collect()
    } else if stored.dtype() == Dtype::I64 {
        bytes
            .as_chunks()
            .0
            .iter()
            .map(|&b| i64::from_le_bytes(b))
            .collect()
    } else {
        return Err(Error::PartDtype {
            module: tensor.module.clone(),
            part: part.name.clone(),
            expected: "I32 or I64".to_owned(),
            found: stored.dtype(),
        });
    };
    let n_groups = tensor.in_features().div_ceil(size.max(1));
    let mut index = Vec::with_capacity(entries.len());
    for (position, value) in entries.into_iter().enumerate() {
        let group = u32::try_from(value)
            .ok()
            .filter(|g| u64::from(*g) < n_groups);
        index.push(group.ok_or_else(|| Error::GroupIndexRange {
            module: tensor.module.clone(),
            part: part.name.clone(),
            position,
            value,
            n_groups,
        })?);
    }
    let trivial = index
        .iter()
        .zip(0_u64..)
        .all(|(&g, k)| u64::from(g) == k / size.max(1));
    Ok((!trivial).then_some(index))
}
