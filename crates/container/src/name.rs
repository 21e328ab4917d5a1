//! Names out of headers and indexes, many of which share one text.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::TryReserveError;
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

    /// Whether both are the same piece of the same text: equal names may lie in different places.
    pub(crate) fn is_same_place(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.text, &other.text) && (self.start, self.end) == (other.start, other.end)
    }
}

/// A text that is being filled with names; no name can be read before [`Names::finish`].
pub(crate) struct Names {
    text: Arc<OnceLock<String>>,
    bytes: Vec<u8>,
}

impl Names {
    /// A text with room for so many bytes.
    pub(crate) fn with_capacity(len_bytes: usize) -> Result<Self, TryReserveError> {
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(len_bytes)?;
        Ok(Self {
            text: Arc::new(OnceLock::new()),
            bytes,
        })
    }

    /// Adds a name, which the caller knows to be UTF-8.
    pub(crate) fn push(&mut self, name: &[u8]) -> Result<Name, TryReserveError> {
        if self.bytes.capacity() - self.bytes.len() < name.len() {
            self.bytes
                .try_reserve_exact(name.len().max(self.bytes.len() / 4))?;
        }
        let start = self.bytes.len();
        self.bytes.extend_from_slice(name);
        let narrow = |at: usize| u32::try_from(at).expect("texts are shorter than 4 GiB");
        Ok(Name {
            text: Arc::clone(&self.text),
            start: narrow(start),
            end: narrow(self.bytes.len()),
        })
    }

    /// The bytes of a name that was put in here.
    pub(crate) fn bytes(&self, name: &Name) -> &[u8] {
        &self.bytes[name.start as usize..name.end as usize]
    }

    /// Makes the names readable; an error if they were no UTF-8 after all.
    pub(crate) fn finish(self) -> Result<(), FromUtf8Error> {
        let text = String::from_utf8(self.bytes)?;
        self.text.get_or_init(|| text);
        Ok(())
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
        self.as_str() == other.as_str()
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
        self.as_str().cmp(other.as_str())
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
        assert!(!smile.is_same_place(&own) && smile.is_same_place(&smile.clone()));
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
