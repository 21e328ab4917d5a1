//! The keys and values of a header, kept as the bytes of the file and read where they are asked for.

use super::{ALIGNMENT_KEY, DEFAULT_ALIGNMENT};

/// Declares [`GgufType`], [`GgufValue`] and what they have in common.
macro_rules! value_types {
    ($($(#[$doc:meta])* $variant:ident($type:ty) = $id:literal, $bytes:literal;)*) => {
        /// The type of a value.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum GgufType {
            $($(#[$doc])* $variant,)*
            /// 0 is false, any other byte true.
            Bool,
            /// Bytes that should be UTF-8.
            String,
            /// A list of one type, never of lists.
            Array,
        }

        /// A value of the metadata.
        #[derive(Clone, Copy, Debug, PartialEq)]
        pub enum GgufValue<'a> {
            $($(#[$doc])* $variant($type),)*
            /// A truth value.
            Bool(bool),
            /// Text; UTF-8 by the rules, but not checked (see [`GgufValue::as_str`]).
            String(&'a [u8]),
            /// A list.
            Array(GgufArray<'a>),
        }

        impl GgufType {
            pub(super) fn from_id(id: u32) -> Option<Self> {
                match id {
                    $($id => Some(GgufType::$variant),)*
                    7 => Some(GgufType::Bool),
                    8 => Some(GgufType::String),
                    9 => Some(GgufType::Array),
                    _ => None,
                }
            }

            pub(super) const fn id(self) -> u32 {
                match self {
                    $(GgufType::$variant => $id,)*
                    GgufType::Bool => 7,
                    GgufType::String => 8,
                    GgufType::Array => 9,
                }
            }

            /// Bytes of a value; `None` where they depend on it.
            pub(super) const fn size_bytes(self) -> Option<u64> {
                match self {
                    $(GgufType::$variant => Some($bytes),)*
                    GgufType::Bool => Some(1),
                    GgufType::String | GgufType::Array => None,
                }
            }
        }

        impl<'a> GgufValue<'a> {
            /// Its type.
            pub fn value_type(self) -> GgufType {
                match self {
                    $(GgufValue::$variant(_) => GgufType::$variant,)*
                    GgufValue::Bool(_) => GgufType::Bool,
                    GgufValue::String(_) => GgufType::String,
                    GgufValue::Array(_) => GgufType::Array,
                }
            }

            /// The value at the beginning of `bytes`, and the bytes after it; `None` if they end too early.
            fn parse(kind: GgufType, bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
                match kind {
                    $(GgufType::$variant => {
                        let (value, rest) = bytes.split_first_chunk()?;
                        Some((GgufValue::$variant(<$type>::from_le_bytes(*value)), rest))
                    })*
                    GgufType::Bool => {
                        let (value, rest) = bytes.split_first()?;
                        Some((GgufValue::Bool(*value != 0), rest))
                    }
                    GgufType::String => {
                        let (text, rest) = split_string(bytes)?;
                        Some((GgufValue::String(text), rest))
                    }
                    GgufType::Array => {
                        let (kind, rest) = bytes.split_first_chunk()?;
                        let (len, bytes) = rest.split_first_chunk()?;
                        let element = GgufType::from_id(u32::from_le_bytes(*kind))?;
                        let len = u64::from_le_bytes(*len);
                        Some((GgufValue::Array(GgufArray { element, len, bytes }), &[]))
                    }
                }
            }

            fn write(self, out: &mut Vec<u8>) {
                match self {
                    $(GgufValue::$variant(value) => out.extend_from_slice(&value.to_le_bytes()),)*
                    GgufValue::Bool(value) => out.push(u8::from(value)),
                    GgufValue::String(text) => push_string(out, text),
                    GgufValue::Array(array) => {
                        out.extend_from_slice(&array.element.id().to_le_bytes());
                        out.extend_from_slice(&array.len.to_le_bytes());
                        out.extend_from_slice(array.bytes);
                    }
                }
            }
        }
    };
}

value_types! {
    /// An unsigned byte.
    U8(u8) = 0, 1;
    /// A signed byte.
    I8(i8) = 1, 1;
    /// Unsigned, 16 bits.
    U16(u16) = 2, 2;
    /// Signed, 16 bits.
    I16(i16) = 3, 2;
    /// Unsigned, 32 bits.
    U32(u32) = 4, 4;
    /// Signed, 32 bits.
    I32(i32) = 5, 4;
    /// IEEE binary32.
    F32(f32) = 6, 4;
    /// Unsigned, 64 bits.
    U64(u64) = 10, 8;
    /// Signed, 64 bits.
    I64(i64) = 11, 8;
    /// IEEE binary64.
    F64(f64) = 12, 8;
}

fn split_string(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = bytes.split_first_chunk()?;
    rest.split_at_checked(usize::try_from(u64::from_le_bytes(*len)).ok()?)
}

pub(super) fn push_string(out: &mut Vec<u8>, text: &[u8]) {
    out.extend_from_slice(&(text.len() as u64).to_le_bytes());
    out.extend_from_slice(text);
}

impl<'a> GgufValue<'a> {
    /// The text, if it is one and UTF-8.
    pub fn as_str(self) -> Option<&'a str> {
        match self {
            GgufValue::String(text) => std::str::from_utf8(text).ok(),
            GgufValue::U8(_)
            | GgufValue::I8(_)
            | GgufValue::U16(_)
            | GgufValue::I16(_)
            | GgufValue::U32(_)
            | GgufValue::I32(_)
            | GgufValue::F32(_)
            | GgufValue::U64(_)
            | GgufValue::I64(_)
            | GgufValue::F64(_)
            | GgufValue::Bool(_)
            | GgufValue::Array(_) => None,
        }
    }

    /// The number, if it is an integer of any width and not negative.
    pub fn as_u64(self) -> Option<u64> {
        match self {
            GgufValue::U8(value) => Some(value.into()),
            GgufValue::U16(value) => Some(value.into()),
            GgufValue::U32(value) => Some(value.into()),
            GgufValue::U64(value) => Some(value),
            GgufValue::I8(value) => value.try_into().ok(),
            GgufValue::I16(value) => value.try_into().ok(),
            GgufValue::I32(value) => value.try_into().ok(),
            GgufValue::I64(value) => value.try_into().ok(),
            GgufValue::F32(_)
            | GgufValue::F64(_)
            | GgufValue::Bool(_)
            | GgufValue::String(_)
            | GgufValue::Array(_) => None,
        }
    }
}

/// A list of values of one type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GgufArray<'a> {
    element: GgufType,
    len: u64,
    bytes: &'a [u8],
}

impl<'a> GgufArray<'a> {
    /// The type of the elements.
    pub fn element(self) -> GgufType {
        self.element
    }

    /// How many there are.
    pub fn len(self) -> u64 {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.len == 0
    }

    /// The elements, one after the other.
    pub fn iter(self) -> impl Iterator<Item = GgufValue<'a>> {
        let (mut rest, mut left) = (self.bytes, self.len);
        std::iter::from_fn(move || {
            left = left.checked_sub(1)?;
            let (value, after) = GgufValue::parse(self.element, rest)?;
            rest = after;
            Some(value)
        })
    }
}

/// Where an entry lies in the bytes; the value goes on to the next entry's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// The key's first byte (its length word lies before it).
    pub(super) key_at: u32,
    pub(super) key_len: u32,
    /// One past the value.
    pub(super) end: u32,
}

/// The keys and values of a header, in the order of the file.
///
/// Holds the bytes of the file and 12 more for each entry, whatever the values are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GgufMetadata {
    pub(super) version: u32,
    pub(super) bytes: Vec<u8>,
    pub(super) entries: Vec<Entry>,
}

impl Default for GgufMetadata {
    fn default() -> Self {
        Self::new()
    }
}

impl GgufMetadata {
    /// No entry yet, version 3.
    pub const fn new() -> Self {
        Self {
            version: 3,
            bytes: Vec::new(),
            entries: Vec::new(),
        }
    }

    /// The version of the file: 2 or 3, which differ in nothing but the number.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Keys and values, in the order of the file.
    pub fn iter(&self) -> impl Iterator<Item = (&str, GgufValue<'_>)> {
        self.entries
            .iter()
            .filter_map(|&entry| Some((self.key(entry), self.value(entry)?)))
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<GgufValue<'_>> {
        let found = self.entries.iter().find(|entry| self.key(**entry) == key);
        self.value(*found?)
    }

    /// What data and tensors are padded to.
    pub fn alignment(&self) -> u64 {
        match self.get(ALIGNMENT_KEY) {
            Some(value) => value.as_u64().unwrap_or(DEFAULT_ALIGNMENT),
            None => DEFAULT_ALIGNMENT,
        }
    }

    pub(super) fn key(&self, entry: Entry) -> &str {
        let start = entry.key_at as usize;
        let bytes = self.bytes.get(start..start + entry.key_len as usize);
        std::str::from_utf8(bytes.unwrap_or_default()).unwrap_or_default()
    }

    /// Where a key stands in the bytes; 0 if it does not.
    pub(super) fn offset_of(&self, key: &str) -> u64 {
        let found = self.entries.iter().find(|entry| self.key(**entry) == key);
        found.map_or(0, |entry| entry.key_at.into())
    }

    fn value(&self, entry: Entry) -> Option<GgufValue<'_>> {
        let start = entry.key_at as usize + entry.key_len as usize;
        let bytes = self.bytes.get(start..entry.end as usize)?;
        let (kind, bytes) = bytes.split_first_chunk()?;
        let kind = GgufType::from_id(u32::from_le_bytes(*kind))?;
        GgufValue::parse(kind, bytes).map(|(value, _)| value)
    }

    /// Adds an entry at the end.
    ///
    /// Nothing is checked here: [`super::write_gguf_header`] refuses what a reader would.
    ///
    /// # Panics
    /// If the metadata outgrows 4 GiB.
    pub fn push(&mut self, key: &str, value: GgufValue<'_>) {
        self.push_with(key, value.value_type(), |out| value.write(out));
    }

    /// Adds a list of text at the end; see [`GgufMetadata::push`].
    pub fn push_strings<'t>(&mut self, key: &str, values: impl ExactSizeIterator<Item = &'t [u8]>) {
        self.push_with(key, GgufType::Array, |out| {
            out.extend_from_slice(&GgufType::String.id().to_le_bytes());
            out.extend_from_slice(&(values.len() as u64).to_le_bytes());
            values.for_each(|text| push_string(out, text));
        });
    }

    /// Adds a list of 32-bit integers at the end; see [`GgufMetadata::push`].
    pub fn push_i32s(&mut self, key: &str, values: &[i32]) {
        let bytes: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        self.push_array(key, GgufType::I32, values.len() as u64, &bytes);
    }

    /// Adds a list of F32 at the end; see [`GgufMetadata::push`].
    pub fn push_f32s(&mut self, key: &str, values: &[f32]) {
        let bytes: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        self.push_array(key, GgufType::F32, values.len() as u64, &bytes);
    }

    fn push_array(&mut self, key: &str, element: GgufType, len: u64, bytes: &[u8]) {
        let array = GgufArray {
            element,
            len,
            bytes,
        };
        self.push(key, GgufValue::Array(array));
    }

    fn push_with(&mut self, key: &str, kind: GgufType, write: impl FnOnce(&mut Vec<u8>)) {
        push_string(&mut self.bytes, key.as_bytes());
        let key_end = self.bytes.len();
        self.bytes.extend_from_slice(&kind.id().to_le_bytes());
        write(&mut self.bytes);
        let narrow = |at: usize| u32::try_from(at).expect("metadata is far smaller than 4 GiB");
        self.entries.push(Entry {
            key_at: narrow(key_end - key.len()),
            key_len: narrow(key.len()),
            end: narrow(self.bytes.len()),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_pushed_is_had_back_in_order() {
        let mut metadata = GgufMetadata::new();
        metadata.push("a", GgufValue::U8(200));
        metadata.push("b", GgufValue::I64(-5));
        metadata.push("c", GgufValue::F32(0.5));
        metadata.push("d", GgufValue::Bool(true));
        metadata.push("e", GgufValue::String("é".as_bytes()));
        metadata.push_i32s("f", &[1, -2, 3]);
        metadata.push_strings("g", [&b"x"[..], b"", b"\xff"].into_iter());
        let keys: Vec<&str> = metadata.iter().map(|(key, _)| key).collect();
        assert_eq!(keys, ["a", "b", "c", "d", "e", "f", "g"]);
        let get = |key| metadata.get(key).unwrap();
        assert_eq!(get("a").as_u64(), Some(200));
        assert_eq!(get("b"), GgufValue::I64(-5));
        assert_eq!(get("b").as_u64(), None);
        assert_eq!(get("e").as_str(), Some("é"));
        let list = |key| {
            let GgufValue::Array(array) = get(key) else {
                panic!("{key} is no list");
            };
            array.iter().collect::<Vec<_>>()
        };
        assert_eq!(list("f"), [1, -2, 3].map(GgufValue::I32));
        assert_eq!(list("g"), [&b"x"[..], b"", b"\xff"].map(GgufValue::String));
        assert_eq!(list("g")[2].as_str(), None);
        assert_eq!(metadata.get("h"), None);
        assert_eq!(metadata.alignment(), 32);
    }
}
