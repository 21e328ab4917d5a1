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
}

impl WeightMap {
    /// Room for what is usual (45 bytes of name in a line of 90); `None` if there is no memory.
    fn new(len_bytes: u64) -> Option<Self> {
        let len = usize::try_from(len_bytes).ok()?;
        let mut entries = Vec::new();
        entries.try_reserve_exact(len / 128).ok()?;
        Some(Self {
            names: Names::with_capacity(len / 2).ok()?,
            entries,
            ascends: true,
        })
    }

    /// One member; nothing has changed if it is `None`.
    #[inline]
    fn take(&mut self, cursor: &mut Cursor<'_>) -> Option<()> {
        let tensor = cursor.string()?;
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
