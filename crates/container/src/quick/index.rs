//! Plain indexes: `metadata` of integers and plain strings, and `weight_map`.

use super::cursor::Cursor;
use super::window::Window;
use crate::json::reserve_one;
use crate::name::{Interned, Names};
use crate::{Limits, Name, ReadAt};

/// Members of `metadata` that are worth a quick look.
const MAX_METADATA: usize = 16;

/// What a plain index says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PlainIndex {
    /// (tensor, shard), sorted by tensor; no tensor comes twice. The names of shards are as they stand, unchecked.
    pub(crate) weight_map: Vec<(Name, Name)>,
    /// Those names, sorted, each once and in one place.
    pub(crate) shards: Vec<Name>,
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
    let (true, Some((weight_map, shards))) = (window.is_at_end()?, weight_map) else {
        return Ok(None);
    };
    Ok(Some(PlainIndex {
        weight_map,
        shards,
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

/// (tensor, shard) by tensor, and the shards.
type Plain = (Vec<(Name, Name)>, Vec<Name>);

/// `weight_map` behind its brace.
fn take_weight_map(window: &mut Window<'_>, len_bytes: u64) -> std::io::Result<Option<Plain>> {
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
    shards: Interned,
    /// How the last few members ended that differ in this.
    tails: [Option<Tail>; N_TAILS],
    /// Which of them was the last.
    last_tail: usize,
}

/// The text from behind a tensor's name to the next member: the shard, and how lines are ended.
struct Tail {
    text: Vec<u8>,
    shard: Name,
}

/// Tensors by name are in two or three shards in turns, where layers follow their numbers from shard to shard.
const N_TAILS: usize = 4;

/// Longest tail that is worth remembering.
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
            shards: Interned::default(),
            tails: [const { None }; N_TAILS],
            last_tail: 0,
        })
    }

    /// Takes members that end like one of the last few, each with the comma behind it, for as long as they come.
    fn take_alike(&mut self, cursor: &mut Cursor<'_>) {
        while let Some(at) = self.take_one_alike(cursor) {
            cursor.at = at;
        }
    }

    /// One such member; where the next one begins.
    #[inline]
    fn take_one_alike(&mut self, cursor: &Cursor<'_>) -> Option<usize> {
        let rest = cursor.bytes.get(cursor.at..)?.strip_prefix(b"\"")?;
        reserve_one(&mut self.entries).ok()?;
        let tensor = self.names.push_plain(rest)?;
        let Some((shard, left)) = self.find_tail(&rest[tensor.len_bytes()..]) else {
            self.names.pop(&tensor);
            return None;
        };
        self.push(tensor, shard);
        Some(cursor.bytes.len() - left)
    }

    /// The shard of the tail with which `rest` begins, and how many bytes are left behind it.
    #[inline]
    fn find_tail(&mut self, rest: &[u8]) -> Option<(Name, usize)> {
        for i in (self.last_tail..N_TAILS).chain(0..self.last_tail) {
            if let Some(tail) = &self.tails[i]
                && let Some(left) = rest.strip_prefix(tail.text.as_slice())
            {
                self.last_tail = i;
                return Some((tail.shard.clone(), left.len()));
            }
        }
        None
    }

    /// One member; nothing has changed if it is `None`.
    fn take(&mut self, cursor: &mut Cursor<'_>) -> Option<()> {
        let tensor = cursor.string()?;
        let tensor_end = cursor.at - 1;
        cursor.take(b':')?;
        let shard = cursor.string()?;
        reserve_one(&mut self.entries).ok()?;
        let shard = self.shards.get(&mut self.names, shard).ok()?;
        let tensor = self.names.push(tensor).ok()?;
        self.push(tensor, shard.clone());
        self.remember(cursor, tensor_end, shard);
        Some(())
    }

    #[inline]
    fn push(&mut self, tensor: Name, shard: Name) {
        if let (true, Some((last, _))) = (self.ascends, self.entries.last()) {
            self.ascends = self.names.bytes(last) < self.names.bytes(&tensor);
        }
        self.entries.push((tensor, shard));
    }

    /// Remembers what follows the name of a tensor that ends at `from`, if another member follows.
    fn remember(&mut self, cursor: &Cursor<'_>, from: usize, shard: Name) {
        let mut ahead = Cursor {
            bytes: cursor.bytes,
            at: cursor.at,
        };
        let is_followed = ahead.take(b',').is_some() && ahead.peek() == Some(b'"');
        if is_followed && ahead.at - from <= MAX_TAIL_BYTES {
            let text = cursor.bytes[from..ahead.at].to_vec();
            self.last_tail = (self.last_tail + 1) % N_TAILS;
            self.tails[self.last_tail] = Some(Tail { text, shard });
        }
    }

    fn finish(self) -> Option<Plain> {
        self.names.finish().ok()?;
        let mut entries = self.entries;
        if !self.ascends {
            entries.sort_unstable();
            if entries.windows(2).any(|pair| pair[0].0 == pair[1].0) {
                return None;
            }
        }
        Some((entries, self.shards.into_sorted()))
    }
}
