//! Plain headers: an optional `__metadata__` of plain strings, and entries of exactly the three known fields.

use std::ops::Range;

use super::cursor::Cursor;
use super::usual::{self, End, Middles};
use super::window::Window;
use crate::header::METADATA;
use crate::json::reserve_one;
use crate::name::Names;
use crate::order::{self, Equals, NameOrder, Sorted};
use crate::{Dtype, Limits, Name, ReadAt, Shape, TensorInfo};

/// Dimensions and metadata keys that are worth a quick look.
const MAX_DIMS: usize = 8;
const MAX_METADATA: usize = 16;

/// What a plain header says, tensors in the order of the file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PlainHeader {
    pub(crate) tensors: Vec<TensorInfo>,
    pub(crate) metadata: Option<Vec<(String, String)>>,
    pub(crate) name_order: NameOrder,
    pub(crate) ranges: Ranges,
}

/// What is known of the tensors' ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ranges {
    /// They are relative to the file, each as long as dtype and shape say, and tile the data section in the order of the list.
    Tiling,
    /// They are relative to the data section, as they stand in the file.
    Unchecked,
}

/// One member of the header.
enum Member {
    Tensor(Name, Entry),
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
    let Some(mut parsing) = Parsing::new(&range, source.len_bytes()) else {
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
            window.with(|cursor| parsing.usual_entries(cursor));
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
    middles: Middles,
    data_start: u64,
    data_len: u64,
    ranges: Ranges,
    /// Where the last range ends in the data section, while they tile it.
    tiled: u64,
}

impl Parsing {
    /// Room for what is usual; `None` if there is no memory. Entries have 105 to 120 bytes in models of many experts, 45 of
    /// them the name.
    fn new(range: &Range<u64>, file_len: u64) -> Option<Self> {
        let len = usize::try_from(range.end - range.start).ok()?;
        let mut tensors = Vec::new();
        tensors.try_reserve_exact(len / 96).ok()?;
        Some(Self {
            names: Names::with_capacity(len / 16 * 7).ok()?,
            tensors,
            metadata: None,
            ascends: true,
            last_dtype: Dtype::BF16,
            middles: Middles::default(),
            data_start: range.end,
            data_len: file_len - range.end,
            ranges: Ranges::Tiling,
            tiled: 0,
        })
    }

    /// Takes members as nearly every writer writes them, each with the comma behind it, for as long as they come.
    fn usual_entries(&mut self, cursor: &mut Cursor<'_>) {
        let mut last_end = End::default();
        while let Some(at) = self.usual_entry(cursor, &mut last_end) {
            cursor.at = at;
        }
    }

    /// One such member; where the next one begins.
    #[inline]
    fn usual_entry(&mut self, cursor: &Cursor<'_>, last_end: &mut End) -> Option<usize> {
        let mut cursor = Cursor {
            bytes: cursor.bytes,
            at: cursor.at,
        };
        if !cursor.take_text(b"\"") || reserve_one(&mut self.tensors).is_err() {
            return None;
        }
        let name = self.names.push_plain(&cursor.bytes[cursor.at..])?;
        cursor.at += name.len_bytes();
        let is_metadata = self.names.bytes(&name) == METADATA.as_bytes();
        let entry = usual::entry(&mut cursor, &mut self.middles, last_end);
        match entry {
            Some(entry) if !is_metadata => {
                self.push(name, entry);
                Some(cursor.at)
            }
            Some(_) | None => {
                self.names.pop(&name);
                None
            }
        }
    }

    /// One member; nothing has changed if it is `None`.
    fn member(&mut self, cursor: &mut Cursor<'_>) -> Option<Member> {
        let name = cursor.string()?;
        cursor.take(b':')?;
        if name == METADATA.as_bytes() {
            return Some(Member::Metadata(metadata(cursor)?));
        }
        let entry = Entry::take(cursor, self.last_dtype)?;
        let name = self.names.push(name).ok()?;
        Some(Member::Tensor(name, entry))
    }

    fn keep(&mut self, member: Member) -> Option<()> {
        match member {
            Member::Tensor(name, entry) => {
                reserve_one(&mut self.tensors).ok()?;
                self.push(name, entry);
                Some(())
            }
            Member::Metadata(metadata) => self.metadata.replace(metadata).is_none().then_some(()),
        }
    }

    /// Adds a tensor, for which there is room.
    #[expect(
        clippy::inline_always,
        reason = "where entries are usual, this is a part of their loop: nothing of them goes through memory twice"
    )]
    #[inline(always)]
    fn push(&mut self, name: Name, entry: Entry) {
        if let (true, Some(last)) = (self.ascends, self.tensors.last()) {
            self.ascends = self.names.bytes(&last.name) < self.names.bytes(&name);
        }
        let Entry {
            dtype,
            shape,
            len_bytes,
            mut range,
        } = entry;
        match self.ranges {
            Ranges::Tiling if self.is_next(len_bytes, &range) => {
                self.tiled = range.end;
                // Both lie in the file.
                range = range.start + self.data_start..range.end + self.data_start;
            }
            Ranges::Tiling => self.stop_tiling(),
            Ranges::Unchecked => {}
        }
        self.last_dtype = dtype;
        self.tensors.push(TensorInfo {
            name,
            dtype,
            shape,
            range,
            block: None,
        });
    }

    /// Whether a range begins where the last one ends, has the length that it should have, and lies in the file.
    #[inline]
    fn is_next(&self, len_bytes: Option<u64>, range: &Range<u64>) -> bool {
        range.start == self.tiled
            && range.end <= self.data_len
            && range.start <= range.end
            && len_bytes == Some(range.end - range.start)
    }

    /// Makes the ranges so far relative to the data section again.
    #[cold]
    fn stop_tiling(&mut self) {
        self.ranges = Ranges::Unchecked;
        for tensor in &mut self.tensors {
            let Range { start, end } = tensor.range;
            tensor.range = start - self.data_start..end - self.data_start;
        }
    }

    /// The header, if no name occurs twice.
    fn finish(mut self) -> Option<PlainHeader> {
        if self.ranges == Ranges::Tiling && self.tiled != self.data_len {
            self.stop_tiling();
        }
        let name_of = |place: u32| self.names.bytes(&self.tensors[place as usize].name);
        let name_order = if self.ascends {
            NameOrder::Ascending
        } else {
            match order::sorted(self.tensors.len(), name_of)? {
                Sorted {
                    places,
                    equals: Equals::None,
                } => NameOrder::Places(places),
                Sorted {
                    equals: Equals::Some,
                    ..
                } => return None,
            }
        };
        self.names.finish().ok()?;
        Some(PlainHeader {
            tensors: self.tensors,
            metadata: self.metadata,
            name_order,
            ranges: self.ranges,
        })
    }
}

/// The value of a tensor's member.
pub(super) struct Entry {
    pub(super) dtype: Dtype,
    pub(super) shape: Shape,
    /// Bytes by dtype and shape; `None` if there is no such number.
    pub(super) len_bytes: Option<u64>,
    pub(super) range: Range<u64>,
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
        let (dtype, shape) = (dtype?, shape?);
        Some(Self {
            dtype,
            len_bytes: len_bytes(dtype, &shape),
            shape,
            range: range?,
        })
    }
}

/// Bytes of a tensor, multiplied in the order of the shape.
pub(super) fn len_bytes(dtype: Dtype, shape: &[u64]) -> Option<u64> {
    let n_elements = shape
        .iter()
        .try_fold(1_u64, |product, &dim| product.checked_mul(dim))?;
    dtype.size_bytes(n_elements)
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
