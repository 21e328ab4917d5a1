//! Parse and validate the header of a GGUF file, once (specs/container/gguf.md, clauses G1-G15).

use super::metadata::{Entry, GgufMetadata, GgufType};
use super::{ALIGNMENT_KEY, FIXED_BYTES, GgmlType, GgufValue, MAGIC, MAX_DIMS, MAX_NAME_BYTES};
use crate::header::size_bytes;
use crate::order::NameOrder;
use crate::{Dtype, Error, Header, Limits, ReadAt, TensorInfo};

/// Shortest entry: a key of one byte, a type, a value of one byte.
const MIN_ENTRY_BYTES: u64 = 8 + 1 + 4 + 1;

/// Shortest tensor: an empty name, no dimension, a type, an offset.
const MIN_TENSOR_BYTES: u64 = 8 + 4 + 4 + 8;

/// The first read; later ones double what is there.
const FIRST_READ_BYTES: u64 = 64 << 10;

/// Whether a file begins like GGUF. No safetensors file does: its length word would say more than a gigabyte.
pub(crate) fn is_gguf(source: &dyn ReadAt) -> bool {
    let mut head = [0; 4];
    source.read_exact_at(0, &mut head).is_ok() && &head == MAGIC
}

/// Reads and validates the header of `source`; `file` is the name that errors carry.
///
/// Every count and length is compared with what is left of the file and of the limit before it is believed. Memory stays
/// below 8 times the header's bytes.
pub(crate) fn read(source: &dyn ReadAt, file: &str, limits: &Limits) -> Result<Header, Error> {
    let mut cursor = Cursor::new(source, file, limits);
    cursor.magic()?;
    let version = cursor.version()?;
    let n_tensors = cursor.count("tensors", MIN_TENSOR_BYTES)?;
    let n_entries = cursor.count("keys", MIN_ENTRY_BYTES)?;
    let metadata = read_metadata(&mut cursor, version, n_entries)?;
    let alignment = alignment(&metadata, file)?;
    let mut tensors = read_tensors(&mut cursor, n_tensors)?;
    check_names(&tensors, file)?;
    let data_start = if tensors.is_empty() {
        cursor.at as u64
    } else {
        (cursor.at as u64).next_multiple_of(alignment)
    };
    place(
        &mut tensors,
        file,
        data_start,
        alignment,
        source.len_bytes(),
    )?;
    let name_order = NameOrder::of(&tensors).ok_or_else(|| cursor.out_of_memory(0))?;
    Ok(Header {
        len_bytes: data_start,
        tensors,
        metadata: None,
        gguf: Some(Box::new(metadata)),
        name_order,
    })
}

/// The bytes of a file from its start on, read as far as they are needed.
struct Cursor<'a> {
    source: &'a dyn ReadAt,
    file: &'a str,
    /// Most bytes that a header may have.
    limit: u64,
    buffer: Vec<u8>,
    /// Bytes consumed.
    at: usize,
}

impl<'a> Cursor<'a> {
    fn new(source: &'a dyn ReadAt, file: &'a str, limits: &Limits) -> Self {
        Self {
            source,
            file,
            // Offsets in the metadata have 32 bits.
            limit: limits.max_header_bytes.min(u64::from(u32::MAX)),
            buffer: Vec::new(),
            at: 0,
        }
    }

    /// Bytes that a header may still have.
    fn left(&self) -> u64 {
        self.source.len_bytes().min(self.limit) - self.at as u64
    }

    fn malformed(&self, expected: &'static str) -> Error {
        Error::Gguf {
            file: self.file.to_owned(),
            offset: self.at as u64,
            expected,
        }
    }

    fn out_of_memory(&self, len_bytes: u64) -> Error {
        Error::OutOfMemory {
            file: self.file.to_owned(),
            len_bytes,
        }
    }

    /// The next `n` bytes.
    fn take(&mut self, n: u64) -> Result<&[u8], Error> {
        let len_bytes = self.source.len_bytes();
        let start = self.at;
        let end = (start as u64).saturating_add(n);
        if end > len_bytes {
            return Err(Error::Truncated {
                file: self.file.to_owned(),
                expected: end,
                found: len_bytes,
            });
        }
        if end > self.limit {
            return Err(Error::HeaderTooLarge {
                file: self.file.to_owned(),
                found: end,
                limit: self.limit,
            });
        }
        self.fill(end)?;
        self.at = usize::try_from(end).map_err(|_| self.out_of_memory(end))?;
        Ok(&self.buffer[start..self.at])
    }

    /// Makes sure that the buffer reaches to `end`, which lies within file and limit.
    fn fill(&mut self, end: u64) -> Result<(), Error> {
        let have = self.buffer.len() as u64;
        if end <= have {
            return Ok(());
        }
        let wanted = end.max(2 * have).max(FIRST_READ_BYTES);
        let wanted = wanted.min(self.limit).min(self.source.len_bytes());
        let more = usize::try_from(wanted - have).map_err(|_| self.out_of_memory(wanted))?;
        let reserved = self.buffer.try_reserve_exact(more);
        reserved.map_err(|_| self.out_of_memory(wanted))?;
        let start = self.buffer.len();
        self.buffer.resize(start + more, 0);
        let read = self.source.read_exact_at(have, &mut self.buffer[start..]);
        read.map_err(|error| Error::io(self.file, error))
    }

    fn u32(&mut self) -> Result<u32, Error> {
        let bytes = self.take(4)?.first_chunk().copied();
        Ok(u32::from_le_bytes(bytes.unwrap_or_default()))
    }

    fn u64(&mut self) -> Result<u64, Error> {
        let bytes = self.take(8)?.first_chunk().copied();
        Ok(u64::from_le_bytes(bytes.unwrap_or_default()))
    }

    fn magic(&mut self) -> Result<(), Error> {
        let mut head = [0; 4];
        let n = self.left().min(4);
        let found = self.take(n)?;
        head[..found.len()].copy_from_slice(found);
        if &head == MAGIC {
            return Ok(());
        }
        self.at = 0;
        if &head == b"FUGG" {
            return Err(Error::ForeignFormat {
                file: self.file.to_owned(),
                found: "a GGUF file of the other byte order",
            });
        }
        Err(self.malformed("the four bytes GGUF"))
    }

    fn version(&mut self) -> Result<u32, Error> {
        let found = self.u32()?;
        match found {
            2 | 3 => Ok(found),
            _ => Err(Error::GgufVersion {
                file: self.file.to_owned(),
                found,
            }),
        }
    }

    /// A number of things, each of which takes at least `min_bytes` of what is left.
    fn count(&mut self, what: &'static str, min_bytes: u64) -> Result<usize, Error> {
        let found = self.u64()?;
        let most = self.left() / min_bytes;
        match usize::try_from(found) {
            Ok(count) if found <= most => Ok(count),
            Ok(_) | Err(_) => Err(Error::GgufCount {
                file: self.file.to_owned(),
                what,
                found,
                most,
            }),
        }
    }

    /// Room for `n` values, a number that was compared with the file.
    fn reserve<T>(&self, n: usize) -> Result<Vec<T>, Error> {
        let mut values = Vec::new();
        match values.try_reserve_exact(n) {
            Ok(()) => Ok(values),
            Err(_) => Err(self.out_of_memory((n as u64).saturating_mul(size_of::<T>() as u64))),
        }
    }

    fn value_type(&mut self) -> Result<GgufType, Error> {
        let id = self.u32()?;
        GgufType::from_id(id).ok_or_else(|| {
            self.at -= 4;
            self.malformed("the type of a value, 0 to 12")
        })
    }

    /// Passes over a string.
    fn skip_string(&mut self) -> Result<(), Error> {
        let len = self.u64()?;
        self.take(len).map(|_| ())
    }

    /// Passes over a value.
    fn skip_value(&mut self, kind: GgufType) -> Result<(), Error> {
        match (kind, kind.size_bytes()) {
            (GgufType::Array, _) => self.skip_array(),
            (_, Some(len)) => self.take(len).map(|_| ()),
            (_, None) => self.skip_string(),
        }
    }

    fn skip_array(&mut self) -> Result<(), Error> {
        let element = self.value_type()?;
        if element == GgufType::Array {
            self.at -= 4;
            return Err(self.malformed("a list of something else than lists"));
        }
        let n = self.count("elements", element.size_bytes().unwrap_or(8))? as u64;
        if let Some(len) = element.size_bytes() {
            return self.take(n * len).map(|_| ());
        }
        (0..n).try_for_each(|_| self.skip_string())
    }
}

fn narrow(at: usize) -> u32 {
    u32::try_from(at).expect("the limit of a header is below 4 GiB")
}

/// The entries and a copy of their bytes.
fn read_metadata(
    cursor: &mut Cursor<'_>,
    version: u32,
    n_entries: usize,
) -> Result<GgufMetadata, Error> {
    let mut entries = cursor.reserve(n_entries)?;
    for _ in 0..n_entries {
        entries.push(read_entry(cursor)?);
    }
    let mut bytes: Vec<u8> = cursor.reserve(cursor.at - FIXED_BYTES)?;
    bytes.extend_from_slice(&cursor.buffer[FIXED_BYTES..cursor.at]);
    let metadata = GgufMetadata {
        version,
        bytes,
        entries,
    };
    let mut keys: Vec<&str> = cursor.reserve(n_entries)?;
    keys.extend(metadata.entries.iter().map(|entry| metadata.key(*entry)));
    keys.sort_unstable();
    if let Some(pair) = keys.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(duplicate(cursor.file, "key", pair[0]));
    }
    Ok(metadata)
}

fn read_entry(cursor: &mut Cursor<'_>) -> Result<Entry, Error> {
    let len = cursor.u64()?;
    if len == 0 {
        cursor.at -= 8;
        return Err(cursor.malformed("a key that is not empty"));
    }
    let key_at = cursor.at;
    if std::str::from_utf8(cursor.take(len)?).is_err() {
        cursor.at = key_at;
        return Err(cursor.malformed("a key in UTF-8"));
    }
    let key_end = cursor.at;
    let kind = cursor.value_type()?;
    cursor.skip_value(kind)?;
    Ok(Entry {
        key_at: narrow(key_at - FIXED_BYTES),
        key_len: narrow(key_end - key_at),
        end: narrow(cursor.at - FIXED_BYTES),
    })
}

fn duplicate(file: &str, what: &'static str, name: &str) -> Error {
    Error::GgufDuplicate {
        file: file.to_owned(),
        what,
        name: name.to_owned(),
    }
}

fn alignment(metadata: &GgufMetadata, file: &str) -> Result<u64, Error> {
    match metadata.get(ALIGNMENT_KEY) {
        None => Ok(metadata.alignment()),
        Some(GgufValue::U32(found)) if found.is_power_of_two() => Ok(found.into()),
        Some(_) => Err(Error::Gguf {
            file: file.to_owned(),
            offset: metadata.offset_of(ALIGNMENT_KEY) + FIXED_BYTES as u64,
            expected: "general.alignment to be a power of two in 32 bits",
        }),
    }
}

/// The tensors in the order of the file; their ranges still begin at the offsets of the file.
fn read_tensors(cursor: &mut Cursor<'_>, n_tensors: usize) -> Result<Vec<TensorInfo>, Error> {
    let mut tensors = cursor.reserve(n_tensors)?;
    for _ in 0..n_tensors {
        tensors.push(read_tensor(cursor)?);
    }
    Ok(tensors)
}

fn read_tensor(cursor: &mut Cursor<'_>) -> Result<TensorInfo, Error> {
    let file = cursor.file;
    let len = cursor.u64()?;
    if len > MAX_NAME_BYTES as u64 {
        cursor.at -= 8;
        return Err(cursor.malformed("a tensor name of at most 63 bytes"));
    }
    let start = cursor.at;
    let Ok(name) = std::str::from_utf8(cursor.take(len)?).map(str::to_owned) else {
        cursor.at = start;
        return Err(cursor.malformed("a tensor name in UTF-8"));
    };
    let wrong = |field, expected| Error::Field {
        file: file.to_owned(),
        tensor: name.clone(),
        field,
        expected,
    };
    let n_dims = cursor.u32()? as usize;
    if n_dims > MAX_DIMS {
        return Err(wrong("n_dims", "at most 4"));
    }
    let mut shape = vec![0; n_dims];
    for dim in shape.iter_mut().rev() {
        *dim = cursor.u64()?;
    }
    if elements_of(&shape).is_none() {
        return Err(wrong("ne", "numbers whose product is below 2^63"));
    }
    let id = cursor.u32()?;
    let ggml_type = GgmlType::from_id(id).ok_or_else(|| Error::UnknownDtype {
        file: file.to_owned(),
        tensor: name.clone(),
        found: format!("ggml type {id}"),
    })?;
    let (dtype, block) = match ggml_type {
        GgmlType::Dense(dtype) => (dtype, None),
        GgmlType::Block(block) => {
            let elements = shape.last().copied().unwrap_or(1);
            if !elements.is_multiple_of(block.elements) {
                return Err(Error::GgufRow {
                    file: file.to_owned(),
                    tensor: name,
                    block: block.name,
                    elements,
                });
            }
            if let Some(last) = shape.last_mut() {
                *last = elements / block.elements * block.bytes;
            }
            (Dtype::U8, Some(block))
        }
    };
    let len_bytes = size_bytes(file, &name, dtype, &shape)?;
    let offset = cursor.u64()?;
    let end = offset
        .checked_add(len_bytes)
        .ok_or_else(|| wrong("offset", "a place from which the tensor fits 64 bits"))?;
    Ok(TensorInfo {
        name: name.into(),
        dtype,
        shape: shape.into(),
        range: offset..end,
        block,
    })
}

/// The product of the dimensions as ggml limits it: each below 2^63, and all together.
fn elements_of(shape: &[u64]) -> Option<u64> {
    let fits = |n: &u64| i64::try_from(*n).is_ok();
    let product = |product: u64, dim: &u64| product.checked_mul(*dim).filter(fits);
    shape.iter().all(fits).then_some(())?;
    shape.iter().try_fold(1, product)
}

fn check_names(tensors: &[TensorInfo], file: &str) -> Result<(), Error> {
    let mut names: Vec<&str> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(duplicate(file, "tensor", pair[0])),
        None => Ok(()),
    }
}

/// Checks that each tensor begins where the padding of the one before ends, and makes the ranges relative to the file.
fn place(
    tensors: &mut [TensorInfo],
    file: &str,
    data_start: u64,
    alignment: u64,
    len_bytes: u64,
) -> Result<(), Error> {
    let (mut expected, mut end) = (0, data_start);
    for tensor in tensors.iter_mut() {
        let found = tensor.range.start;
        let (name, file) = (tensor.name.clone(), file.to_owned());
        match found.cmp(&expected) {
            std::cmp::Ordering::Less => {
                return Err(Error::Overlap {
                    file,
                    tensor: name.to_string(),
                    expected,
                    found,
                });
            }
            std::cmp::Ordering::Greater => {
                return Err(Error::Hole {
                    file,
                    tensor: name.to_string(),
                    expected,
                    found,
                });
            }
            std::cmp::Ordering::Equal => {}
        }
        let absolute = tensor.range.end.checked_add(data_start);
        let padded = tensor.range.end.checked_next_multiple_of(alignment);
        let (Some(absolute), Some(padded)) = (absolute, padded) else {
            return Err(Error::Truncated {
                file,
                expected: u64::MAX,
                found: len_bytes,
            });
        };
        tensor.range = found + data_start..absolute;
        (expected, end) = (padded, absolute);
    }
    if end > len_bytes {
        return Err(Error::Truncated {
            file: file.to_owned(),
            expected: end,
            found: len_bytes,
        });
    }
    Ok(())
}
