//! Parse and validate a safetensors header, once (specs/container/safetensors.md, clauses R1-R16).

use std::io;
use std::ops::Range;

use crate::json::{MAX_TEXT_BYTES, Reader, reserve_one, to_string};
use crate::name::Names;
use crate::order::NameOrder;
use crate::quick::{PlainHeader, Ranges};
use crate::{Dtype, Error, GgufMetadata, Limits, ReadAt, TensorInfo, quick};

/// The length word in front of the JSON.
const LENGTH_BYTES: u64 = 8;

/// The name that no tensor can have.
pub(crate) const METADATA: &str = "__metadata__";

/// A validated header: every range lies inside the file, and the ranges tile the data section exactly (in a GGUF file
/// but for the padding between tensors, and whatever follows the last one).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes before the data section: the length word, the JSON and its padding.
    pub len_bytes: u64,
    /// The tensors, by ascending offset (specs/container/safetensors.md, clause R11); zero-size tensors at one offset
    /// keep the order of the file.
    pub tensors: Vec<TensorInfo>,
    /// `__metadata__`, in the order of the file; `None` if absent or null.
    pub metadata: Option<Vec<(String, String)>>,
    /// The keys and values of a GGUF file; `None` for a safetensors file.
    pub gguf: Option<Box<GgufMetadata>>,
    /// The order of `tensors` by name.
    pub(crate) name_order: NameOrder,
}

impl Header {
    /// Reads and validates the header of `source`; `file` is the name that errors carry.
    ///
    /// The declared length is compared with the real one before anything is allocated, and no tensor data is read.
    /// Memory stays below 8 times the header's bytes, whatever it declares.
    ///
    /// # Errors
    /// A named condition for every rule of specs/container/safetensors.md: `TooSmall`, `HeaderTooLarge`,
    /// `HeaderBeyondFile`, `ForeignFormat`, `NotUtf8`, `Json*`, `DuplicateKey`, `Metadata`, `Field*`, `UnknownDtype`,
    /// `OffsetsReversed`, `Overlap`, `Hole`, `SizeOverflow`, `FractionalBytes`, `SizeMismatch`, `Truncated`,
    /// `Trailing`, `OutOfMemory`, `Io`.
    pub fn read(source: &dyn ReadAt, file: &str, limits: &Limits) -> Result<Self, Error> {
        Self::read_by(source, file, limits, |range| {
            quick::header(source, range, limits, quick::WINDOW_BYTES)
        })
    }

    /// As [`Header::read`], with the quick way given: it answers `None` where the whole grammar is needed.
    pub(crate) fn read_by(
        source: &dyn ReadAt,
        file: &str,
        limits: &Limits,
        quick: impl Fn(Range<u64>) -> io::Result<Option<PlainHeader>>,
    ) -> Result<Self, Error> {
        let malformed = |error: Error| match (&error, foreign_format(source)) {
            (Error::Io { .. } | Error::OutOfMemory { .. }, _) | (_, None) => error,
            (_, Some(found)) => Error::ForeignFormat {
                file: file.to_owned(),
                found,
            },
        };
        let len_bytes = json_len(source, file, limits).map_err(malformed)?;
        let plain = quick(LENGTH_BYTES..LENGTH_BYTES + len_bytes);
        let mut header = match plain.map_err(|error| Error::io(file, error))? {
            Some(PlainHeader {
                tensors,
                metadata,
                name_order,
                ranges,
            }) => {
                let header = Self {
                    len_bytes: LENGTH_BYTES + len_bytes,
                    tensors,
                    metadata,
                    gguf: None,
                    name_order,
                };
                match ranges {
                    Ranges::Tiling => return Ok(header),
                    Ranges::Unchecked => header,
                }
            }
            None => read_any(source, file, len_bytes, limits).map_err(malformed)?,
        };
        validate(&mut header, file, source.len_bytes())?;
        Ok(header)
    }

    /// The places of the tensors in the list, by name (byte order).
    pub(crate) fn by_name(&self) -> impl Iterator<Item = u32> + '_ {
        self.name_order.places(self.tensors.len())
    }

    /// Where the data section begins, relative to the start of the file.
    pub fn data_start(&self) -> u64 {
        self.len_bytes
    }

    /// The value of a key of `__metadata__`.
    pub fn metadata_value(&self, key: &str) -> Option<&str> {
        let entries = self.metadata.as_deref()?;
        entries
            .iter()
            .find(|(found, _)| found == key)
            .map(|(_, value)| value.as_str())
    }
}

/// Reads the header by the whole grammar of JSON; unchecked as [`parse`].
fn read_any(
    source: &dyn ReadAt,
    file: &str,
    len_bytes: u64,
    limits: &Limits,
) -> Result<Header, Error> {
    let bytes = read_range(source, file, LENGTH_BYTES, len_bytes)?;
    let text = std::str::from_utf8(&bytes).map_err(|error| Error::NotUtf8 {
        file: file.to_owned(),
        offset: error.valid_up_to() as u64,
    })?;
    parse(file, text, limits)
}

/// The length of the header's JSON, checked against limit and file.
fn json_len(source: &dyn ReadAt, file: &str, limits: &Limits) -> Result<u64, Error> {
    let len_bytes = source.len_bytes();
    let Some(rest) = len_bytes.checked_sub(LENGTH_BYTES) else {
        return Err(Error::TooSmall {
            file: file.to_owned(),
            len_bytes,
        });
    };
    let mut word = [0; 8];
    source
        .read_exact_at(0, &mut word)
        .map_err(|error| Error::io(file, error))?;
    let found = u64::from_le_bytes(word);
    let limit = limits.max_header_bytes.min(MAX_TEXT_BYTES);
    if found > limit {
        return Err(Error::HeaderTooLarge {
            file: file.to_owned(),
            found,
            limit,
        });
    }
    if found > rest {
        return Err(Error::HeaderBeyondFile {
            file: file.to_owned(),
            found,
            len_bytes,
        });
    }
    Ok(found)
}

/// Reads `len_bytes` bytes, a length that the caller has compared with the source's; fails instead of aborting if
/// there is no memory.
pub(crate) fn read_range(
    source: &dyn ReadAt,
    file: &str,
    offset: u64,
    len_bytes: u64,
) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    match usize::try_from(len_bytes) {
        Ok(len) if bytes.try_reserve_exact(len).is_ok() => bytes.resize(len, 0),
        Ok(_) | Err(_) => {
            return Err(Error::OutOfMemory {
                file: file.to_owned(),
                len_bytes,
            });
        }
    }
    source
        .read_exact_at(offset, &mut bytes)
        .map_err(|error| Error::io(file, error))?;
    Ok(bytes)
}

/// What a file is that fails as safetensors, if its first bytes tell. Asked only after a failure: each of these could
/// begin a valid file.
fn foreign_format(source: &dyn ReadAt) -> Option<&'static str> {
    const SIGNATURES: &[(&[u8], &str)] = &[
        (
            b"version https://git-lfs",
            "a Git LFS pointer: fetch the file itself with `git lfs pull`",
        ),
        (b"gguf", "a GGUF file: name the file itself"),
        (b"fugg", "a GGUF file of the other byte order"),
        (b"lmgg", "a ggml file older than GGUF"),
        (b"fmgg", "a ggml file older than GGUF"),
        (b"tjgg", "a ggml file older than GGUF"),
        (
            b"pk\x03\x04",
            "a zip archive, perhaps a PyTorch checkpoint: pickles are never opened",
        ),
        (
            b"\x80\x02",
            "a pickle, perhaps a PyTorch checkpoint: pickles are never opened",
        ),
        (b"\x80\x03", "a pickle: pickles are never opened"),
        (b"\x80\x04", "a pickle: pickles are never opened"),
        (b"\x80\x05", "a pickle: pickles are never opened"),
        (b"\x89hdf", "an HDF5 file"),
        (b"\x1f\x8b", "a gzip archive"),
        (b"<!doctype", "an HTML page: the download failed"),
        (b"<html", "an HTML page: the download failed"),
        (b"<?xml", "an XML page: the download failed"),
        (b"{\"error", "a JSON error message: the download failed"),
    ];
    let mut head = [0; 32];
    let len = source.len_bytes().min(head.len() as u64);
    let head = &mut head[..usize::try_from(len).ok()?];
    source.read_exact_at(0, head).ok()?;
    head.make_ascii_lowercase();
    let text = head.trim_ascii_start();
    SIGNATURES
        .iter()
        .find(|(magic, _)| text.starts_with(magic))
        .map(|&(_, name)| name)
}

/// Parses the JSON; the ranges are still relative to the data section, unchecked and in the order of the file.
fn parse(file: &str, text: &str, limits: &Limits) -> Result<Header, Error> {
    let mut reader = Reader::new(file, text, limits.max_json_depth);
    let mut tensors: Vec<TensorInfo> = Vec::new();
    let mut names = Names::with_capacity(0).map_err(|_| reader.out_of_memory(0))?;
    let mut metadata = None;
    reader.object(|reader, name| {
        if name == METADATA {
            metadata = parse_metadata(reader, file)?;
            return Ok(());
        }
        if reserve_one(&mut tensors).is_err() {
            return Err(reader.out_of_memory(tensors.len() * size_of::<TensorInfo>()));
        }
        tensors.push(parse_entry(reader, file, &name, &mut names)?);
        Ok(())
    })?;
    reader.end()?;
    names.finish().expect("each of them is a string");
    let name_order = NameOrder::of(&tensors).ok_or_else(|| reader.out_of_memory(0))?;
    Ok(Header {
        len_bytes: LENGTH_BYTES + text.len() as u64,
        tensors,
        metadata,
        gguf: None,
        name_order,
    })
}

fn parse_metadata(
    reader: &mut Reader<'_>,
    file: &str,
) -> Result<Option<Vec<(String, String)>>, Error> {
    let not_strings = |reader: &Reader<'_>| Error::Metadata {
        file: file.to_owned(),
        offset: reader.position(),
    };
    match reader.peek() {
        Some(b'n') => reader.literal("null").map(|()| None),
        Some(b'{') => {
            let mut entries = Vec::new();
            reader.object(|reader, key| {
                if reader.peek() != Some(b'"') {
                    return Err(not_strings(reader));
                }
                let value = reader.string()?;
                let lengths = key.len() + value.len();
                let (Ok(key), Ok(value)) = (to_string(key), to_string(value)) else {
                    return Err(reader.out_of_memory(lengths));
                };
                if reserve_one(&mut entries).is_err() {
                    return Err(reader.out_of_memory(entries.len() * size_of::<(String, String)>()));
                }
                entries.push((key, value));
                Ok(())
            })?;
            Ok(Some(entries))
        }
        Some(_) | None => Err(not_strings(reader)),
    }
}

fn parse_entry(
    reader: &mut Reader<'_>,
    file: &str,
    name: &str,
    names: &mut Names,
) -> Result<TensorInfo, Error> {
    let wrong = |field, expected| Error::Field {
        file: file.to_owned(),
        tensor: name.to_owned(),
        field,
        expected,
    };
    if reader.peek() != Some(b'{') {
        return Err(wrong("entry", "an object"));
    }
    let (mut dtype, mut shape, mut offsets) = (None, None, None);
    reader.object(|reader, key| {
        match &*key {
            "dtype" => dtype = Some(parse_dtype(reader, file, name)?),
            "shape" => {
                let expected = "a list of plain integers from 0 to 2^64 - 1";
                shape = Some(parse_shape(reader)?.ok_or_else(|| wrong("shape", expected))?);
            }
            "data_offsets" => {
                let expected = "a list of two plain integers from 0 to 2^64 - 1";
                let pair = parse_offsets(reader)?;
                offsets = Some(pair.ok_or_else(|| wrong("data_offsets", expected))?);
            }
            _ => reader.skip_value()?,
        }
        Ok(())
    })?;
    let missing = |field| Error::FieldMissing {
        file: file.to_owned(),
        tensor: name.to_owned(),
        field,
    };
    let dtype = dtype.ok_or_else(|| missing("dtype"))?;
    let shape = shape.ok_or_else(|| missing("shape"))?;
    let [start, end] = offsets.ok_or_else(|| missing("data_offsets"))?;
    let name = names.push(name.as_bytes());
    Ok(TensorInfo {
        name: name.map_err(|_| reader.out_of_memory(0))?,
        dtype,
        shape: shape.into(),
        range: start..end,
        block: None,
    })
}

fn parse_dtype(reader: &mut Reader<'_>, file: &str, tensor: &str) -> Result<Dtype, Error> {
    if reader.peek() != Some(b'"') {
        return Err(Error::Field {
            file: file.to_owned(),
            tensor: tensor.to_owned(),
            field: "dtype",
            expected: "a string",
        });
    }
    let spelling = reader.string()?;
    Dtype::from_name(&spelling).ok_or_else(|| Error::UnknownDtype {
        file: file.to_owned(),
        tensor: tensor.to_owned(),
        found: spelling.into_owned(),
    })
}

/// A list of plain integers; `None` if there is anything else in it.
fn parse_shape(reader: &mut Reader<'_>) -> Result<Option<Vec<u64>>, Error> {
    if reader.peek() != Some(b'[') {
        return Ok(None);
    }
    let n_dims = reader.count_integers_ahead();
    let mut shape = Vec::new();
    if shape.try_reserve_exact(n_dims).is_err() {
        return Err(reader.out_of_memory(n_dims * size_of::<u64>()));
    }
    Ok(parse_integers(reader, |dim| shape.push(dim))?.then_some(shape))
}

fn parse_offsets(reader: &mut Reader<'_>) -> Result<Option<[u64; 2]>, Error> {
    if reader.peek() != Some(b'[') {
        return Ok(None);
    }
    let mut pair = [0; 2];
    let mut n_read = 0_usize;
    let all_plain = parse_integers(reader, |offset| {
        if let Some(place) = pair.get_mut(n_read) {
            *place = offset;
        }
        n_read += 1;
    })?;
    Ok((all_plain && n_read == 2).then_some(pair))
}

/// Hands each integer of a list to `take`; `false` at the first value that is none (the rest is not read then).
fn parse_integers(reader: &mut Reader<'_>, mut take: impl FnMut(u64)) -> Result<bool, Error> {
    let mut all_plain = true;
    let outcome = reader.array(|reader| {
        if let Some(value) = reader.u64() {
            take(value);
            return Ok(());
        }
        all_plain = false;
        Err(reader.expected("a plain integer"))
    });
    if all_plain {
        outcome.map(|()| true)
    } else {
        Ok(false)
    }
}

/// Sorts the tensors, checks that they tile the data section, and makes their ranges relative to the file.
fn validate(header: &mut Header, file: &str, len_bytes: u64) -> Result<(), Error> {
    let data_start = header.data_start();
    sort_by_range(header).ok_or_else(|| Error::OutOfMemory {
        file: file.to_owned(),
        len_bytes: (header.tensors.len() * 24) as u64,
    })?;
    let mut running_end = 0;
    for tensor in &mut header.tensors {
        check_tensor(tensor, running_end, file)?;
        running_end = tensor.range.end;
        // Where it overflows, the file is too short, which is an error below.
        let absolute = |at: u64| data_start.saturating_add(at);
        tensor.range = absolute(tensor.range.start)..absolute(tensor.range.end);
    }
    let found = len_bytes;
    let expected = data_start.saturating_add(running_end);
    if found < expected {
        return Err(Error::Truncated {
            file: file.to_owned(),
            expected,
            found,
        });
    }
    if found > expected {
        return Err(Error::Trailing {
            file: file.to_owned(),
            expected,
            found,
        });
    }
    Ok(())
}

/// Sorts the tensors by their ranges; those of equal ranges (and no size) keep the order of the file. `None` if there is no
/// memory. Numbers are sorted first, because tensors are large; a tensor moves once then.
fn sort_by_range(header: &mut Header) -> Option<()> {
    let tensors = &mut header.tensors;
    let key = |tensor: &TensorInfo| (tensor.range.start, tensor.range.end);
    if tensors.is_sorted_by_key(key) {
        return Some(());
    }
    let mut keyed = Vec::new();
    keyed.try_reserve_exact(tensors.len()).ok()?;
    let places = (0_u32..).zip(&*tensors);
    keyed.extend(places.map(|(place, tensor)| (key(tensor), place)));
    keyed.sort_unstable();
    // Where each tensor goes; the swaps below bring at least one to its place each.
    let mut new_places = Vec::new();
    new_places.try_reserve_exact(keyed.len()).ok()?;
    new_places.resize(keyed.len(), 0);
    for (new, &(_, old)) in (0_u32..).zip(&keyed) {
        new_places[old as usize] = new;
    }
    let order = std::mem::replace(&mut header.name_order, NameOrder::Ascending);
    header.name_order = order.moved(&new_places)?;
    for place in 0..new_places.len() {
        while new_places[place] as usize != place {
            let target = new_places[place] as usize;
            tensors.swap(place, target);
            new_places.swap(place, target);
        }
    }
    Some(())
}

fn check_tensor(tensor: &TensorInfo, expected: u64, file: &str) -> Result<(), Error> {
    let (begin, end) = (tensor.range.start, tensor.range.end);
    let name = || (file.to_owned(), tensor.name.to_string());
    if end < begin {
        let (file, tensor) = name();
        return Err(Error::OffsetsReversed {
            file,
            tensor,
            begin,
            end,
        });
    }
    if begin < expected {
        let (file, tensor) = name();
        return Err(Error::Overlap {
            file,
            tensor,
            expected,
            found: begin,
        });
    }
    if begin > expected {
        let (file, tensor) = name();
        return Err(Error::Hole {
            file,
            tensor,
            expected,
            found: begin,
        });
    }
    let expected = size_bytes(file, &tensor.name, tensor.dtype, &tensor.shape)?;
    if end - begin != expected {
        let (file, tensor) = name();
        return Err(Error::SizeMismatch {
            file,
            tensor,
            expected,
            found: end - begin,
        });
    }
    Ok(())
}

/// THE size function: bytes of a tensor, multiplied in the order of the shape, as the official parser does it
/// (`[0, 2^32, 2^32]` is fine, `[2^32, 2^32, 0]` overflows).
pub(crate) fn size_bytes(
    file: &str,
    tensor: &str,
    dtype: Dtype,
    shape: &[u64],
) -> Result<u64, Error> {
    let n_elements = shape
        .iter()
        .try_fold(1_u64, |product, &dim| product.checked_mul(dim));
    let bits = n_elements.and_then(|n| n.checked_mul(dtype.bits()));
    let (file, tensor, shape) = match bits {
        Some(bits) if bits.is_multiple_of(8) => return Ok(bits / 8),
        Some(_) | None => (file.to_owned(), tensor.to_owned(), shape.to_vec()),
    };
    Err(match bits {
        Some(_) => Error::FractionalBytes {
            file,
            tensor,
            dtype,
            shape,
        },
        None => Error::SizeOverflow {
            file,
            tensor,
            dtype,
            shape,
        },
    })
}
