//! Plain headers: an optional `__metadata__` of plain strings, and entries of exactly the three known fields.

use std::ops::Range;

use super::cursor::Cursor;
use super::distinct::are_distinct;
use super::window::Window;
use crate::header::METADATA;
use crate::json::reserve_one;
use crate::name::Names;
use crate::{Dtype, Limits, ReadAt, Shape, TensorInfo};

/// Dimensions and metadata keys that are worth a quick look.
const MAX_DIMS: usize = 8;
const MAX_METADATA: usize = 16;

/// What a plain header says; ranges are relative to the data section, unchecked and in the order of the file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PlainHeader {
    pub(crate) tensors: Vec<TensorInfo>,
    pub(crate) metadata: Option<Vec<(String, String)>>,
}

/// One member of the header.
enum Member {
    Tensor(TensorInfo),
    Metadata(Vec<(String, String)>),
}

/// Reads the header at `range`, which lies in the source, through a window of `room` bytes; `None` if it is not plain.
///
/// # Errors
/// Those of the source.
pub(crate) fn header(
    source: &dyn ReadAt,
    range: Range<u64>,
    limits: &Limits,
    room: usize,
) -> std::io::Result<Option<PlainHeader>> {
    // The header, an entry, its shape.
    if limits.max_json_depth < 3 {
        return Ok(None);
    }
    let Some(mut parsing) = Parsing::new(range.end - range.start) else {
        return Ok(None);
    };
    let Some(mut window) = Window::new(source, range, room) else {
        return Ok(None);
    };
    if window.step(|cursor| cursor.take(b'{'))?.is_none() {
        return Ok(None);
    }
    if window.step(|cursor| cursor.take(b'}'))?.is_none() {
        loop {
            let Some(member) = window.step(|cursor| parsing.member(cursor))? else {
                return Ok(None);
            };
            if parsing.keep(member).is_none() {
                return Ok(None);
            }
            match window.step(|cursor| cursor.separator(b'}'))? {
                Some(true) => {}
                Some(false) => break,
                None => return Ok(None),
            }
        }
    }
    Ok(if window.is_at_end()? {
        parsing.finish()
    } else {
        None
    })
}

struct Parsing {
    names: Names,
    tensors: Vec<TensorInfo>,
    metadata: Option<Vec<(String, String)>>,
    /// Whether each name so far comes after its predecessor, in byte order.
    ascends: bool,
    last_dtype: Dtype,
}

impl Parsing {
    /// Room for what is usual; `None` if there is no memory. Entries have 117 bytes on average in a model of many experts,
    /// 45 of them the name.
    fn new(len_bytes: u64) -> Option<Self> {
        let len = usize::try_from(len_bytes).ok()?;
        let mut tensors = Vec::new();
        tensors.try_reserve_exact(len / 128).ok()?;
        Some(Self {
            names: Names::with_capacity(len / 8 * 3).ok()?,
            tensors,
            metadata: None,
            ascends: true,
            last_dtype: Dtype::BF16,
        })
    }

    /// One member; nothing has changed if it is `None`.
    #[inline]
    fn member(&mut self, cursor: &mut Cursor<'_>) -> Option<Member> {
        let name = cursor.string()?;
        cursor.take(b':')?;
        if name == METADATA.as_bytes() {
            return Some(Member::Metadata(metadata(cursor)?));
        }
        let Entry {
            dtype,
            shape,
            range,
        } = Entry::take(cursor, self.last_dtype)?;
        if let (true, Some(last)) = (self.ascends, self.tensors.last()) {
            self.ascends = self.names.bytes(&last.name) < name;
        }
        self.last_dtype = dtype;
        let name = self.names.push(name).ok()?;
        Some(Member::Tensor(TensorInfo {
            name,
            dtype,
            shape,
            range,
            block: None,
        }))
    }

    #[inline]
    fn keep(&mut self, member: Member) -> Option<()> {
        match member {
            Member::Tensor(tensor) => {
                reserve_one(&mut self.tensors).ok()?;
                self.tensors.push(tensor);
                Some(())
            }
            Member::Metadata(metadata) => self.metadata.replace(metadata).is_none().then_some(()),
        }
    }

    /// The header, if no name occurs twice.
    fn finish(self) -> Option<PlainHeader> {
        let name = |i: usize| self.names.bytes(&self.tensors[i].name);
        if !self.ascends && !are_distinct(self.tensors.len(), name) {
            return None;
        }
        self.names.finish().ok()?;
        Some(PlainHeader {
            tensors: self.tensors,
            metadata: self.metadata,
        })
    }
}

/// The value of a tensor's member.
struct Entry {
    dtype: Dtype,
    shape: Shape,
    range: Range<u64>,
}

impl Entry {
    /// Each of the three fields once, in any order.
    #[inline]
    fn take(cursor: &mut Cursor<'_>, likely: Dtype) -> Option<Self> {
        let (mut dtype, mut shape, mut range) = (None, None, None);
        cursor.take(b'{')?;
        loop {
            cursor.peek()?;
            if cursor.take_text(b"\"dtype\"") {
                cursor.take(b':')?;
                is_first(dtype.replace(take_dtype(cursor, likely)?).as_ref())?;
            } else if cursor.take_text(b"\"shape\"") {
                cursor.take(b':')?;
                is_first(shape.replace(take_shape(cursor)?).as_ref())?;
            } else if cursor.take_text(b"\"data_offsets\"") {
                cursor.take(b':')?;
                is_first(range.replace(take_offsets(cursor)?).as_ref())?;
            } else {
                return None;
            }
            if !cursor.separator(b'}')? {
                break;
            }
        }
        Some(Self {
            dtype: dtype?,
            shape: shape?,
            range: range?,
        })
    }
}

/// Whether a field had no value before.
fn is_first<T>(before: Option<&T>) -> Option<()> {
    before.is_none().then_some(())
}

/// A dtype, which is often that of the tensor before.
#[inline]
fn take_dtype(cursor: &mut Cursor<'_>, likely: Dtype) -> Option<Dtype> {
    let spelling = cursor.string()?;
    if spelling == likely.name().as_bytes() {
        return Some(likely);
    }
    Dtype::from_name(std::str::from_utf8(spelling).ok()?)
}

#[inline]
fn take_shape(cursor: &mut Cursor<'_>) -> Option<Shape> {
    cursor.take(b'[')?;
    if cursor.peek()? == b']' {
        cursor.at += 1;
        return Shape::inline(&[]);
    }
    let mut dims = [0; MAX_DIMS];
    let mut n_dims = 0;
    loop {
        *dims.get_mut(n_dims)? = cursor.integer()?;
        n_dims += 1;
        if !cursor.separator(b']')? {
            break;
        }
    }
    let dims = &dims[..n_dims];
    if let Some(shape) = Shape::inline(dims) {
        return Some(shape);
    }
    let mut owned = Vec::new();
    owned.try_reserve_exact(n_dims).ok()?;
    owned.extend_from_slice(dims);
    Some(owned.into())
}

#[inline]
fn take_offsets(cursor: &mut Cursor<'_>) -> Option<Range<u64>> {
    cursor.take(b'[')?;
    let start = cursor.integer()?;
    cursor.take(b',')?;
    let end = cursor.integer()?;
    cursor.take(b']')?;
    Some(start..end)
}

/// A small object of plain strings.
fn metadata(cursor: &mut Cursor<'_>) -> Option<Vec<(String, String)>> {
    let mut entries: Vec<(String, String)> = Vec::new();
    let text = |bytes: &[u8]| std::str::from_utf8(bytes).ok().map(str::to_owned);
    cursor.take(b'{')?;
    if cursor.peek()? == b'}' {
        cursor.at += 1;
        return Some(entries);
    }
    loop {
        let key = text(cursor.string()?)?;
        cursor.take(b':')?;
        let value = text(cursor.string()?)?;
        let is_new = entries.iter().all(|(other, _)| *other != key);
        if !is_new || entries.len() == MAX_METADATA {
            return None;
        }
        entries.push((key, value));
        if !cursor.separator(b'}')? {
            return Some(entries);
        }
    }
}
