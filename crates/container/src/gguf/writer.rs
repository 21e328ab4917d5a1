//! The header of a GGUF file to be written.

use super::metadata::push_string;
use super::{BlockType, DEFAULT_ALIGNMENT, FIXED_BYTES, GgmlType, GgufMetadata, MAGIC};
use crate::{Error, Header, Limits, ReadAt, TensorInfo};

/// A tensor to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GgufTensor {
    /// Its name, at most 63 bytes.
    pub name: String,
    /// Dimensions in elements, outermost first; at most four.
    pub shape: Vec<u64>,
    /// Its type.
    pub ggml_type: GgmlType,
}

impl TensorInfo {
    /// How a GGUF file describes a tensor like this one.
    pub fn to_gguf(&self) -> GgufTensor {
        GgufTensor {
            name: self.name.to_string(),
            shape: self.logical_shape(),
            ggml_type: self
                .block
                .map_or(GgmlType::Dense(self.dtype), GgmlType::Block),
        }
    }
}

/// A file of which only the beginning exists, as long as anybody likes.
struct Beginning<'a>(&'a [u8]);

impl ReadAt for Beginning<'_> {
    fn len_bytes(&self) -> u64 {
        u64::MAX
    }

    fn read_exact_at(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        out.fill(0);
        let rest = usize::try_from(offset).ok().and_then(|at| self.0.get(at..));
        let rest = rest.unwrap_or_default();
        let n = rest.len().min(out.len());
        out[..n].copy_from_slice(&rest[..n]);
        Ok(())
    }
}

/// The bytes of a file before its data, padding included, and the header as it will be read: `range` says where each
/// tensor's bytes go, in the order given. Between tensors, and after the last, lie zeros up to the alignment.
///
/// `file` is the name that errors carry.
///
/// # Errors
/// Those of reading the result: a name or key that occurs twice, is too long or empty; a row that is no whole number of
/// blocks; an alignment that is no power of two. `UnknownDtype` for a dtype that ggml lacks.
pub fn write_gguf_header(
    file: &str,
    metadata: &GgufMetadata,
    tensors: &[GgufTensor],
) -> Result<(Vec<u8>, Header), Error> {
    let mut bytes = Vec::with_capacity(FIXED_BYTES + metadata.bytes.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&metadata.version.to_le_bytes());
    bytes.extend_from_slice(&(tensors.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&(metadata.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&metadata.bytes);
    let alignment = match metadata.alignment() {
        found if found.is_power_of_two() => found,
        _ => DEFAULT_ALIGNMENT, // refused by the reader below
    };
    let mut offset = 0_u64;
    for tensor in tensors {
        push_tensor(&mut bytes, file, tensor, offset)?;
        let end = offset.checked_add(len_bytes(file, tensor)?);
        let padded = end.and_then(|end| end.checked_next_multiple_of(alignment));
        offset = padded.ok_or_else(|| Error::PlanOverflow {
            file: file.to_owned(),
            tensor: tensor.name.clone(),
        })?;
    }
    if !tensors.is_empty() {
        let aligned = (bytes.len() as u64).next_multiple_of(alignment);
        bytes.resize(usize::try_from(aligned).unwrap_or(bytes.len()), 0);
    }
    let limits = Limits {
        max_header_bytes: bytes.len() as u64,
        ..Limits::default()
    };
    let header = super::read(&Beginning(&bytes), file, &limits)?;
    Ok((bytes, header))
}

fn push_tensor(
    bytes: &mut Vec<u8>,
    file: &str,
    tensor: &GgufTensor,
    offset: u64,
) -> Result<(), Error> {
    let id = tensor.ggml_type.id().ok_or_else(|| Error::UnknownDtype {
        file: file.to_owned(),
        tensor: tensor.name.clone(),
        found: tensor.ggml_type.name().to_owned(),
    })?;
    push_string(bytes, tensor.name.as_bytes());
    let n_dims = u32::try_from(tensor.shape.len()).unwrap_or(u32::MAX);
    bytes.extend_from_slice(&n_dims.to_le_bytes());
    for dim in tensor.shape.iter().rev() {
        bytes.extend_from_slice(&dim.to_le_bytes());
    }
    bytes.extend_from_slice(&id.to_le_bytes());
    bytes.extend_from_slice(&offset.to_le_bytes());
    Ok(())
}

/// Bytes of a tensor; a row that is no whole number of blocks is left to the reader.
fn len_bytes(file: &str, tensor: &GgufTensor) -> Result<u64, Error> {
    match tensor.ggml_type {
        GgmlType::Dense(dtype) => {
            crate::header::size_bytes(file, &tensor.name, dtype, &tensor.shape)
        }
        GgmlType::Block(BlockType {
            elements, bytes, ..
        }) => {
            let mut shape = tensor.shape.clone();
            if let Some(last) = shape.last_mut() {
                *last = (*last / elements).saturating_mul(*bytes);
            }
            crate::header::size_bytes(file, &tensor.name, crate::Dtype::U8, &shape)
        }
    }
}
