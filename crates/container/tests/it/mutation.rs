//! Changes of texts that are mostly JSON: shared by the tests of this crate, in `src/quick/tests.rs` too.

/// A change of the finished text.
#[derive(Clone, Debug)]
pub(crate) enum Mutation {
    Insert(u16, u8),
    Replace(u16, u8),
    Delete(u16, u8),
    Copy(u16, u16, u8),
    Byte(u16, u8),
}

/// What is inserted, and what replaces a token.
const TOKENS: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\"",
    "\\",
    " ",
    "\n",
    "\r\t ",
    "0",
    "1",
    "-0",
    "1.0",
    "1e0",
    "01",
    "18446744073709551615",
    "18446744073709551616",
    "4294967296",
    "null",
    "true",
    "\"U8\"",
    "\"I64\"",
    "\"f32\"",
    "{\"U8\":null}",
    "\"\"",
    "\"a\":1,",
    "[]",
    "{}",
    "\u{feff}",
    "\0",
    "\u{a0}",
    "\u{1}",
    "\"__metadata__\":null,",
    "\"__metadata__\":{\"a\":\"b\",\"a\":\"c\"},",
    "1e999",
    "/**/",
    "-",
    "\\u0061",
    "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
    "\"F6_E2M3\"",
    "\"U8\",\"shape\":[",
    "123456789012345",
    "1234567890123456",
    "\"x\":1,",
    "\"weight_map\":{},",
    "\"shape\":[],",
    "\"q\":[\"U8\",[1],[0,1]],",
];

pub(crate) fn pick<'a>(table: &[&'a str], index: u8) -> &'a str {
    table[usize::from(index) % table.len()]
}

/// Changes a text, which may become no UTF-8.
pub(crate) fn mutate(json: &mut Vec<u8>, mutation: &Mutation) {
    let at = |position: u16| usize::from(position) % (json.len() + 1);
    match *mutation {
        Mutation::Insert(position, token) => {
            let at = at(position);
            json.splice(at..at, pick(TOKENS, token).bytes());
        }
        Mutation::Replace(position, token) => {
            let start = at(position);
            let is_word = |byte: &u8| byte.is_ascii_alphanumeric();
            let len = json[start..]
                .iter()
                .position(|byte| !is_word(byte))
                .unwrap_or(0)
                .max(1);
            let end = (start + len).min(json.len());
            json.splice(start..end, pick(TOKENS, token).bytes());
        }
        Mutation::Delete(position, len) => {
            let start = at(position);
            json.drain(start..(start + usize::from(len % 8)).min(json.len()));
        }
        Mutation::Copy(from, to, len) => {
            let (from, to) = (at(from), at(to));
            let slice = json[from..(from + usize::from(len)).min(json.len())].to_vec();
            json.splice(to..to, slice);
        }
        Mutation::Byte(position, byte) => {
            if let Some(place) = json.get_mut(usize::from(position)) {
                *place = byte;
            }
        }
    }
}
