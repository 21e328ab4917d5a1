//! Names out of headers and indexes, many of which share one text.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::{BTreeMap, TryReserveError};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::string::FromUtf8Error;
use std::sync::{Arc, OnceLock};

/// A name out of a file, unescaped: hostile input, escape it before it reaches a screen.
///
/// It reads as a `str`. The names of one header lie in one text, so that a header of 100,000 tensors costs one allocation
/// for all of them, and a clone costs no copy. As long as one name lives, the names of its header stay in memory.
#[derive(Clone)]
pub struct Name {
    /// Empty only while the header is being read.
    text: Arc<OnceLock<String>>,
    /// Where the name lies in `text`, in bytes; at boundaries of characters, because whole names are put in.
    start: u32,
    end: u32,
}

impl Name {
    /// The name itself.
    pub fn as_str(&self) -> &str {
        let text = self.text.get().map_or("", String::as_str);
        &text[self.start as usize..self.end as usize]
    }

    /// The name's bytes: cheaper than the `str`, because no boundary of a character is looked for.
    #[inline]
    pub(crate) fn as_bytes(&self) -> &[u8] {
        let text = self.text.get().map_or(&[][..], String::as_bytes);
        &text[self.start as usize..self.end as usize]
    }

    /// How long it is; known while the header is being read, too.
    pub(crate) fn len_bytes(&self) -> usize {
        (self.end - self.start) as usize
    }

    /// Where it begins in the text that it shares with other names. One that was put in once has one place.
    pub(crate) fn place(&self) -> u32 {
        self.start
    }
}

/// A text that is being filled with names; no name can be read before [`Names::finish`].
pub(crate) struct Names {
    text: Arc<OnceLock<String>>,
    /// The names, and bytes behind them to write over.
    bytes: Vec<u8>,
    len: usize,
}

/// Zeros behind the names at a time: few enough to be in the first-level cache still when names are written there.
const ZEROS_BYTES: usize = 8 << 10;

/// Longest name that is copied while it is being looked at.
const MAX_PLAIN_BYTES: usize = 128;

impl Names {
    /// A text with room for so many bytes.
    pub(crate) fn with_capacity(len_bytes: usize) -> Result<Self, TryReserveError> {
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(len_bytes)?;
        Ok(Self {
            text: Arc::new(OnceLock::new()),
            bytes,
            len: 0,
        })
    }

    /// Adds a name, which the caller knows to be UTF-8.
    pub(crate) fn push(&mut self, name: &[u8]) -> Result<Name, TryReserveError> {
        self.make_room(name.len())?;
        let (start, end) = (self.len, self.len + name.len());
        self.bytes[start..end].copy_from_slice(name);
        self.len = end;
        Ok(self.name(start, end))
    }

    /// Adds as much of `text` as is plain inside a JSON string: ASCII, no quote, no backslash, no control character. `None`,
    /// and nothing is added, if the end of that is not in sight, and for a long name.
    ///
    /// Looking and copying in one go, sixteen bytes at a time.
    #[inline]
    pub(crate) fn push_plain(&mut self, text: &[u8]) -> Option<Name> {
        if self.bytes.len() - self.len < MAX_PLAIN_BYTES {
            self.make_room(MAX_PLAIN_BYTES).ok()?;
        }
        let start = self.len;
        let room = self.bytes[start..].first_chunk_mut::<MAX_PLAIN_BYTES>()?;
        let room = room.as_chunks_mut::<16>().0;
        let mut len = 0;
        for (to, from) in room.iter_mut().zip(text.as_chunks::<16>().0) {
            *to = *from;
            let n_plain = n_plain_ascii(from);
            len += n_plain;
            if n_plain < from.len() {
                self.len = start + len;
                return Some(self.name(start, self.len));
            }
        }
        None
    }

    /// Makes sure that so many bytes can be written behind the names.
    fn make_room(&mut self, len_bytes: usize) -> Result<(), TryReserveError> {
        let Some(missing) = len_bytes.checked_sub(self.bytes.len() - self.len) else {
            return Ok(());
        };
        if self.bytes.capacity() - self.bytes.len() < missing {
            let more = missing.max(ZEROS_BYTES).max(self.len / 4);
            self.bytes.try_reserve_exact(more)?;
        }
        let left = self.bytes.capacity() - self.bytes.len();
        let more = missing.max(ZEROS_BYTES).min(left);
        self.bytes.resize(self.bytes.len() + more, 0);
        Ok(())
    }

    /// Takes back the name that was put in last.
    pub(crate) fn pop(&mut self, last: &Name) {
        debug_assert_eq!(last.end as usize, self.len, "the last name");
        self.len = last.start as usize;
    }

    #[inline]
    fn name(&self, start: usize, end: usize) -> Name {
        let narrow = |at: usize| u32::try_from(at).expect("texts are shorter than 4 GiB");
        Name {
            text: Arc::clone(&self.text),
            start: narrow(start),
            end: narrow(end),
        }
    }

    /// The bytes of a name that was put in here.
    #[inline]
    pub(crate) fn bytes(&self, name: &Name) -> &[u8] {
        &self.bytes[name.start as usize..name.end as usize]
    }

    /// Makes the names readable; an error if they were no UTF-8 after all.
    pub(crate) fn finish(mut self) -> Result<(), FromUtf8Error> {
        self.bytes.truncate(self.len);
        let text = String::from_utf8(self.bytes)?;
        self.text.get_or_init(|| text);
        Ok(())
    }
}

/// How many of sixteen bytes, from the first one on, are plain inside a JSON string and ASCII. Written so that it becomes
/// vector instructions: three comparisons, and the place of the first byte that is set.
#[inline]
fn n_plain_ascii(chunk: &[u8; 16]) -> usize {
    let mut stops = [0_u8; 16];
    for (stop, &byte) in stops.iter_mut().zip(chunk) {
        // As signed numbers, control characters and all that is not ASCII are below the space.
        let is_stop = byte.cast_signed() < 0x20 || byte == b'"' || byte == b'\\';
        *stop = if is_stop { 0xFF } else { 0 };
    }
    u128::from_le_bytes(stops).trailing_zeros() as usize / 8
}

/// Names that occur again and again, such as those of shards, each put into a text once.
#[derive(Default)]
pub(crate) struct Interned(BTreeMap<Vec<u8>, Name>);

impl Interned {
    /// The name with these bytes, which the caller knows to be UTF-8.
    pub(crate) fn get(&mut self, names: &mut Names, name: &[u8]) -> Result<Name, TryReserveError> {
        if let Some(known) = self.0.get(name) {
            return Ok(known.clone());
        }
        let mut key = Vec::new();
        key.try_reserve_exact(name.len())?;
        key.extend_from_slice(name);
        let new = names.push(name)?;
        self.0.insert(key, new.clone());
        Ok(new)
    }

    /// All of them, in byte order.
    pub(crate) fn into_sorted(self) -> Vec<Name> {
        self.0.into_values().collect()
    }
}

impl From<String> for Name {
    fn from(name: String) -> Self {
        let end = u32::try_from(name.len()).expect("names are shorter than 4 GiB");
        Self {
            text: Arc::new(OnceLock::from(name)),
            start: 0,
            end,
        }
    }
}

impl From<&str> for Name {
    fn from(name: &str) -> Self {
        name.to_owned().into()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.as_str().to_owned()
    }
}

impl From<&Name> for String {
    fn from(name: &Name) -> Self {
        name.as_str().to_owned()
    }
}

impl Deref for Name {
    type Target = str;

    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        self
    }
}

impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        self
    }
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for Name {}

impl PartialOrd for Name {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Name {
    fn cmp(&self, other: &Self) -> Ordering {
        self.as_bytes().cmp(other.as_bytes())
    }
}

impl Hash for Name {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

impl PartialEq<str> for Name {
    fn eq(&self, other: &str) -> bool {
        self.as_str() == other
    }
}

impl PartialEq<&str> for Name {
    fn eq(&self, other: &&str) -> bool {
        self.as_str() == *other
    }
}

impl PartialEq<String> for Name {
    fn eq(&self, other: &String) -> bool {
        self.as_str() == other
    }
}

impl PartialEq<Name> for str {
    fn eq(&self, other: &Name) -> bool {
        self == other.as_str()
    }
}

impl PartialEq<Name> for &str {
    fn eq(&self, other: &Name) -> bool {
        *self == other.as_str()
    }
}

impl PartialEq<Name> for String {
    fn eq(&self, other: &Name) -> bool {
        self == other.as_str()
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_its_text_however_it_is_stored() -> Result<(), Box<dyn std::error::Error>> {
        let mut names = Names::with_capacity(4)?;
        let [one, smile, two] = [
            names.push(b"one")?,
            names.push("\u{1F600}".as_bytes())?,
            names.push(b"two")?,
        ];
        assert_eq!(names.bytes(&two), b"two");
        names.finish()?;
        let own = Name::from("\u{1F600}");
        assert_eq!(smile, own);
        assert_eq!([one.place(), smile.place(), two.place()], [0, 3, 7]);
        assert_eq!(smile, "\u{1F600}");
        assert_eq!(format!("{smile} {smile:?}"), "\u{1F600} \"\u{1F600}\"");
        assert_eq!(format!("{:>5}|", Name::from("ab")), "   ab|");
        assert!(one < two);
        assert!(std::collections::HashSet::from([smile]).contains("\u{1F600}"));
        assert_eq!(String::from(own), "\u{1F600}");
        Ok(())
    }

    #[test]
    fn halves_of_a_character_are_no_names() -> Result<(), Box<dyn std::error::Error>> {
        let mut names = Names::with_capacity(0)?;
        names.push(b"\xc3")?;
        assert!(names.finish().is_err());
        Ok(())
    }
}
