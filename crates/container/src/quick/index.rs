//! Plain indexes: `metadata` of integers and plain strings, and `weight_map`.

use super::cursor::Cursor;
use super::window::Window;
use crate::json::reserve_one;
use crate::name::Names;
use crate::{Limits, Name, ReadAt};

/// Members of `metadata` that are worth a quick look.
const MAX_METADATA: usize = 16;

/// What a plain index says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PlainIndex {
    /// (tensor, shard), sorted by tensor; no tensor comes twice. The names of shards are as they stand, unchecked.
    pub(crate) weight_map: Vec<(Name, Name)>,
    pub(crate) total_size: Option<u64>,
}

/// A member of the index, of which `weight_map` is read piece by piece.
enum Member {
    Metadata(Option<u64>),
    WeightMap,
}

/// Reads the index that is the source, through a window of `room` bytes; `None` if it is not plain.
///
/// # Errors
/// Those of the source.
pub(crate) fn index(
    source: &dyn ReadAt,
    limits: &Limits,
    room: usize,
) -> std::io::Result<Option<PlainIndex>> {
    // The index, and the map.
    if limits.max_json_depth < 2 {
        return Ok(None);
    }
    let Some(mut window) = Window::new(source, 0..source.len_bytes(), room) else {
        return Ok(None);
    };
    if window.step(|cursor| cursor.take(b'{'))?.is_none() {
        return Ok(None);
    }
    let (mut weight_map, mut metadata) = (None, None);
    loop {
        let is_first = match window.step(member)? {
            None => return Ok(None),
            Some(Member::Metadata(total_size)) => metadata.replace(total_size).is_none(),
            Some(Member::WeightMap) => match take_weight_map(&mut window, source.len_bytes())? {
                None => return Ok(None),
                Some(map) => weight_map.replace(map).is_none(),
            },
        };
        match window.step(|cursor| cursor.separator(b'}'))? {
            Some(true) if is_first => {}
            Some(false) if is_first => break,
            Some(_) | None => return Ok(None),
        }
    }
    let (true, Some(weight_map)) = (window.is_at_end()?, weight_map) else {
        return Ok(None);
    };
    Ok(Some(PlainIndex {
        weight_map,
        total_size: metadata.flatten(),
    }))
}

fn member(cursor: &mut Cursor<'_>) -> Option<Member> {
    let key = cursor.string()?;
    cursor.take(b':')?;
    cursor.take(b'{')?;
    match key {
        b"weight_map" => Some(Member::WeightMap),
        b"metadata" => metadata(cursor).map(Member::Metadata),
        _ => None,
    }
}

/// `metadata` behind its brace: the total size, if there is one.
#[expect(
    clippy::option_option,
    reason = "plain or not, and then: stated or not"
)]
fn metadata(cursor: &mut Cursor<'_>) -> Option<Option<u64>> {
    let mut keys: Vec<&[u8]> = Vec::new();
    let mut total_size = None;
    if cursor.peek()? == b'}' {
        cursor.at += 1;
        return Some(None);
    }
    loop {
        let key = cursor.string()?;
        cursor.take(b':')?;
        if keys.contains(&key) || keys.len() == MAX_METADATA {
            return None;
        }
        keys.push(key);
        if key == b"total_size" {
            total_size = Some(cursor.integer()?);
        } else if cursor.peek()? == b'"' {
            cursor.string()?;
        } else {
            cursor.integer()?;
        }
        if !cursor.separator(b'}')? {
            return Some(total_size);
        }
    }
}

/// `weight_map` behind its brace. A run of tensors in one shard shares the name of it.
fn take_weight_map(
    window: &mut Window<'_>,
    len_bytes: u64,
) -> std::io::Result<Option<Vec<(Name, Name)>>> {
    let Some(mut map) = WeightMap::new(len_bytes) else {
        return Ok(None);
    };
    loop {
        window.with(|cursor| map.take_alike(cursor));
        if window.step(|cursor| map.take(cursor))?.is_none() {
            return Ok(None);
        }
        match window.step(|cursor| cursor.separator(b'}'))? {
            Some(true) => {}
            Some(false) => return Ok(map.finish()),
            None => return Ok(None),
        }
    }
}

struct WeightMap {
    names: Names,
    entries: Vec<(Name, Name)>,
    ascends: bool,
    /// The text from behind the last tensor's name to the next member: the shard, and how lines are ended. Empty if unknown.
    tail: Vec<u8>,
}

/// Longest such text that is worth remembering.
const MAX_TAIL_BYTES: usize = 256;

impl WeightMap {
    /// Room for what is usual (45 bytes of name in a line of 90); `None` if there is no memory.
    fn new(len_bytes: u64) -> Option<Self> {
        let len = usize::try_from(len_bytes).ok()?;
        let mut entries = Vec::new();
        entries.try_reserve_exact(len / 88).ok()?;
        Some(Self {
            names: Names::with_capacity(len / 2).ok()?,
            entries,
            ascends: true,
            tail: Vec::new(),
        })
    }

    /// Takes members that differ from the last one in the tensor's name only, each with the comma behind it, for as long as
    /// they come.
    fn take_alike(&mut self, cursor: &mut Cursor<'_>) {
        while let Some(at) = self.take_one_alike(cursor) {
            cursor.at = at;
        }
    }

    #[inline]
    fn take_one_alike(&mut self, cursor: &Cursor<'_>) -> Option<usize> {
        let rest = cursor.bytes.get(cursor.at..)?.strip_prefix(b"\"")?;
        let (last, shard) = self.entries.last()?;
        let tensor = self.names.push_plain(rest)?;
        let rest = rest[tensor.len_bytes()..].strip_prefix(self.tail.as_slice());
        match rest {
            Some(rest) if !self.tail.is_empty() && self.entries.len() < self.entries.capacity() => {
                self.ascends &= self.names.bytes(last) < self.names.bytes(&tensor);
                let shard = shard.clone();
                self.entries.push((tensor, shard));
                Some(cursor.bytes.len() - rest.len())
            }
            Some(_) | None => {
                self.names.pop(&tensor);
                None
            }
        }
    }

    /// Remembers what follows the name of a tensor that ends at `from`, if another member follows.
    fn remember(&mut self, cursor: &Cursor<'_>, from: usize) {
        let mut ahead = Cursor {
            bytes: cursor.bytes,
            at: cursor.at,
        };
        self.tail.clear();
        if ahead.take(b',').is_some() && ahead.peek() == Some(b'"') {
            let tail = &cursor.bytes[from..ahead.at];
            if tail.len() <= MAX_TAIL_BYTES {
                self.tail.extend_from_slice(tail);
            }
        }
    }

    /// One member; nothing has changed if it is `None`.
    #[inline]
    fn take(&mut self, cursor: &mut Cursor<'_>) -> Option<()> {
        let tensor = cursor.string()?;
        let tensor_end = cursor.at - 1;
        cursor.take(b':')?;
        let shard = cursor.string()?;
        reserve_one(&mut self.entries).ok()?;
        let shard = match self.entries.last() {
            Some((last, same)) => {
                self.ascends &= self.names.bytes(last) < tensor;
                if self.names.bytes(same) == shard {
                    same.clone()
                } else {
                    self.names.push(shard).ok()?
                }
            }
            None => self.names.push(shard).ok()?,
        };
        let tensor = self.names.push(tensor).ok()?;
        self.entries.push((tensor, shard));
        self.remember(cursor, tensor_end);
        Some(())
    }

    fn finish(self) -> Option<Vec<(Name, Name)>> {
        self.names.finish().ok()?;
        let mut entries = self.entries;
        if !self.ascends {
            entries.sort_unstable();
            if entries.windows(2).any(|pair| pair[0].0 == pair[1].0) {
                return None;
            }
        }
        Some(entries)
    }
}
