//! A streaming JSON reader: straight from the bytes, one pass, nothing built that is not asked for.
//!
//! Used for headers, indexes and manifests. It accepts exactly the documents that `serde_json` accepts (with its
//! default features) when it builds a tree, minus duplicate keys:
//!
//! - strict UTF-8 (the caller hands in a `str`), no byte order mark, whitespace is space, tab, LF and CR;
//! - raw control characters, unknown escapes and lone surrogates are refused;
//! - a number that overflows a double is refused even where its value is ignored;
//! - nesting is limited, and duplicate keys are refused *at every level*, compared after unescaping.
//!
//! **Cost.** Time is linear in the text, but for the sort that finds duplicates (`n log n` comparisons of 4-byte hashes,
//! which are seeded by a digest of the text, so that collisions cannot be prepared). Memory is 8 bytes for each key of
//! the objects that are open at the moment, at least 4 bytes of text each; skipped values take no other memory.

use std::borrow::Cow;
use std::collections::TryReserveError;

use crate::Error;

/// One key of an object that is still open.
#[derive(Clone, Copy)]
struct Key {
    hash: u32,
    /// Where the key's opening quote stands.
    start: u32,
}

/// A cursor over one JSON text.
pub(crate) struct Reader<'a> {
    file: &'a str,
    text: &'a str,
    pos: usize,
    depth: usize,
    max_depth: usize,
    keys: Vec<Key>,
    seed: u64,
}

/// Longest text a [`Reader`] takes: positions of keys are kept in 32 bits.
pub(crate) const MAX_TEXT_BYTES: u64 = u32::MAX as u64;

impl<'a> Reader<'a> {
    /// Starts at the beginning of `text`; `file` is the name that errors carry.
    ///
    /// # Panics
    /// If the text is longer than [`MAX_TEXT_BYTES`].
    pub(crate) fn new(file: &'a str, text: &'a str, max_depth: usize) -> Self {
        assert!(
            u32::try_from(text.len()).is_ok(),
            "the caller limits the text to 32-bit positions"
        );
        let digest = blake3::hash(text.as_bytes());
        let mut seed = [0; 8];
        seed.copy_from_slice(&digest.as_bytes()[..8]);
        Self {
            file,
            text,
            pos: 0,
            depth: 0,
            max_depth,
            keys: Vec::new(),
            seed: u64::from_le_bytes(seed),
        }
    }

    /// The byte position of the cursor.
    pub(crate) fn position(&self) -> u64 {
        self.pos as u64
    }

    /// The next byte that is no whitespace, without taking it.
    pub(crate) fn peek(&mut self) -> Option<u8> {
        let bytes = self.text.as_bytes();
        while let Some(&byte) = bytes.get(self.pos) {
            if !matches!(byte, b' ' | b'\t' | b'\n' | b'\r') {
                return Some(byte);
            }
            self.pos += 1;
        }
        None
    }

    /// An error at the cursor.
    pub(crate) fn expected(&self, expected: &'static str) -> Error {
        Error::Json {
            file: self.file.to_owned(),
            offset: self.position(),
            expected,
        }
    }

    fn take(&mut self, byte: u8, expected: &'static str) -> Result<(), Error> {
        if self.peek() == Some(byte) {
            self.pos += 1;
            return Ok(());
        }
        Err(self.expected(expected))
    }

    /// Requires that nothing but whitespace is left.
    pub(crate) fn end(&mut self) -> Result<(), Error> {
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(self.expected("nothing after the document")),
        }
    }

    fn descend(&mut self) -> Result<(), Error> {
        self.depth += 1;
        if self.depth > self.max_depth {
            return Err(Error::JsonDepth {
                file: self.file.to_owned(),
                offset: self.position(),
                limit: self.max_depth,
            });
        }
        Ok(())
    }

    /// Reads an object: `member` is called at each value with its unescaped key and must consume the value.
    pub(crate) fn object(
        &mut self,
        mut member: impl FnMut(&mut Self, Cow<'a, str>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.take(b'{', "an object")?;
        self.descend()?;
        let scope = self.keys.len();
        if self.peek() != Some(b'}') {
            loop {
                let key = self.key()?;
                self.take(b':', "`:` after a key")?;
                member(self, key)?;
                match self.peek() {
                    Some(b',') => self.pos += 1,
                    Some(b'}') => break,
                    Some(_) | None => return Err(self.expected("`,` or `}` after a member")),
                }
            }
        }
        self.pos += 1;
        self.depth -= 1;
        self.close_scope(scope)
    }

    /// Reads an array: `item` is called at each value and must consume it.
    pub(crate) fn array(
        &mut self,
        mut item: impl FnMut(&mut Self) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.take(b'[', "an array")?;
        self.descend()?;
        if self.peek() != Some(b']') {
            loop {
                item(self)?;
                match self.peek() {
                    Some(b',') => self.pos += 1,
                    Some(b']') => break,
                    Some(_) | None => return Err(self.expected("`,` or `]` after an item")),
                }
            }
        }
        self.pos += 1;
        self.depth -= 1;
        Ok(())
    }

    /// Steps over any value without building it.
    pub(crate) fn skip_value(&mut self) -> Result<(), Error> {
        match self.peek() {
            Some(b'{') => self.object(|reader, _| reader.skip_value()),
            Some(b'[') => self.array(Reader::skip_value),
            Some(b'"') => self.string().map(drop),
            Some(b'-' | b'0'..=b'9') => self.skip_number(),
            Some(b't') => self.literal("true"),
            Some(b'f') => self.literal("false"),
            Some(b'n') => self.literal("null"),
            Some(_) | None => Err(self.expected("a value")),
        }
    }

    /// Takes `true`, `false` or `null`.
    pub(crate) fn literal(&mut self, word: &'static str) -> Result<(), Error> {
        if self.text.as_bytes()[self.pos..].starts_with(word.as_bytes()) {
            self.pos += word.len();
            return Ok(());
        }
        Err(self.expected(word))
    }

    fn digits(&mut self) -> usize {
        let start = self.pos;
        let bytes = self.text.as_bytes();
        while bytes.get(self.pos).is_some_and(u8::is_ascii_digit) {
            self.pos += 1;
        }
        self.pos - start
    }

    fn skip_number(&mut self) -> Result<(), Error> {
        let start = self.pos;
        let bytes = self.text.as_bytes();
        self.pos += usize::from(bytes[self.pos] == b'-');
        let leading_zero = bytes.get(self.pos) == Some(&b'0');
        let n_digits = self.digits();
        if n_digits == 0 || (leading_zero && n_digits > 1) {
            return Err(self.expected("digits without a leading zero"));
        }
        if bytes.get(self.pos) == Some(&b'.') {
            self.pos += 1;
            if self.digits() == 0 {
                return Err(self.expected("digits after the decimal point"));
            }
        }
        let has_exponent = matches!(bytes.get(self.pos), Some(b'e' | b'E'));
        if has_exponent {
            self.pos += 1;
            self.pos += usize::from(matches!(bytes.get(self.pos), Some(b'+' | b'-')));
            if self.digits() == 0 {
                return Err(self.expected("digits in the exponent"));
            }
        }
        // The largest double has 309 digits before the point.
        if (has_exponent || n_digits > 308) && self.overflows(start) {
            return Err(Error::JsonNumberRange {
                file: self.file.to_owned(),
                offset: start as u64,
            });
        }
        Ok(())
    }

    fn overflows(&self, start: usize) -> bool {
        self.text[start..self.pos]
            .parse()
            .is_ok_and(f64::is_infinite)
    }

    /// A plain unsigned integer below 2^64, `None` if the next value is anything else (`-0`, `1.0`, `1e0`, `01`, `"1"`).
    /// After `None` the cursor stands somewhere inside the value.
    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.peek();
        let bytes = self.text.as_bytes();
        let start = self.pos;
        let mut value = 0_u64;
        while let Some(digit @ b'0'..=b'9') = bytes.get(self.pos) {
            value = value
                .checked_mul(10)?
                .checked_add(u64::from(digit - b'0'))?;
            self.pos += 1;
        }
        let is_plain = !matches!(bytes.get(self.pos), Some(b'.' | b'e' | b'E'));
        let n_digits = self.pos - start;
        let leading_zero = n_digits > 1 && bytes[start] == b'0';
        (n_digits > 0 && is_plain && !leading_zero).then_some(value)
    }

    /// As [`Reader::u64`], but steps over any other value.
    pub(crate) fn u64_or_skip(&mut self) -> Result<Option<u64>, Error> {
        let start = self.pos;
        let value = self.u64();
        if value.is_none() {
            self.pos = start;
            self.skip_value()?;
        }
        Ok(value)
    }

    /// A number, or nothing where `null` stands.
    pub(crate) fn number_or_null(&mut self) -> Result<Option<f64>, Error> {
        match self.peek() {
            Some(b'n') => self.literal("null").map(|()| None),
            Some(b'-' | b'0'..=b'9') => {
                let start = self.pos;
                self.skip_number()?;
                let text = self.text.get(start..self.pos).unwrap_or_default();
                text.parse()
                    .map(Some)
                    .map_err(|_| self.expected("a number"))
            }
            Some(_) | None => Err(self.expected("a number or null")),
        }
    }

    /// How many numbers stand between the cursor and the first byte that no list of plain integers has.
    ///
    /// Each takes two bytes of text at least, so memory for that many values is in proportion to the text.
    pub(crate) fn count_integers_ahead(&self) -> usize {
        let mut count = 0;
        let mut in_number = false;
        for byte in &self.text.as_bytes()[self.pos..] {
            match byte {
                b'0'..=b'9' => {
                    count += usize::from(!in_number);
                    in_number = true;
                }
                b'[' | b',' | b' ' | b'\t' | b'\n' | b'\r' => in_number = false,
                _ => break,
            }
        }
        count
    }

    /// A string, unescaped; borrowed from the text if it has no escapes.
    pub(crate) fn string(&mut self) -> Result<Cow<'a, str>, Error> {
        self.take(b'"', "a string")?;
        let start = self.pos;
        self.pos += plain_len(&self.text.as_bytes()[start..]);
        if self.text.as_bytes().get(self.pos) == Some(&b'"') {
            self.pos += 1;
            return Ok(Cow::Borrowed(&self.text[start..self.pos - 1]));
        }
        let mut out = self.text[start..self.pos].to_owned();
        loop {
            match self.text.as_bytes().get(self.pos) {
                Some(b'"') => {
                    self.pos += 1;
                    return Ok(Cow::Owned(out));
                }
                Some(b'\\') => out.push(self.escape()?),
                Some(_) => return Err(self.expected("no raw control character in a string")),
                None => return Err(self.expected("the closing quote of a string")),
            }
            let start = self.pos;
            self.pos += plain_len(&self.text.as_bytes()[start..]);
            out.push_str(&self.text[start..self.pos]);
        }
    }

    /// One escape, the cursor standing at its backslash.
    fn escape(&mut self) -> Result<char, Error> {
        let letter = self.text.as_bytes().get(self.pos + 1).copied();
        let Some(letter) = letter else {
            return Err(self.expected("a complete escape"));
        };
        let plain = match letter {
            b'"' | b'\\' | b'/' => char::from(letter),
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => return self.unicode_escape(),
            _ => return Err(self.expected("a known escape")),
        };
        self.pos += 2;
        Ok(plain)
    }

    fn unicode_escape(&mut self) -> Result<char, Error> {
        let high = self.code_unit()?;
        let scalar = match high {
            0xD800..=0xDBFF => match self.code_unit()? {
                low @ 0xDC00..=0xDFFF => 0x1_0000 + ((high - 0xD800) << 10) + (low - 0xDC00),
                _ => return Err(self.expected("no lone surrogate")),
            },
            unit => unit,
        };
        char::from_u32(scalar).ok_or_else(|| self.expected("no lone surrogate"))
    }

    fn code_unit(&mut self) -> Result<u32, Error> {
        let escape = self.text.as_bytes().get(self.pos..self.pos + 6);
        let digits = escape.and_then(|escape| escape.strip_prefix(b"\\u"));
        let value = digits.and_then(|digits| {
            digits.iter().try_fold(0, |value, &digit| {
                Some(value * 16 + char::from(digit).to_digit(16)?)
            })
        });
        let Some(value) = value else {
            return Err(self.expected("`\\u` and four hexadecimal digits, surrogates in pairs"));
        };
        self.pos += 6;
        Ok(value)
    }

    fn key(&mut self) -> Result<Cow<'a, str>, Error> {
        if self.peek() != Some(b'"') {
            return Err(self.expected("a key in quotes"));
        }
        let start = self.pos;
        let key = self.string()?;
        if reserve_one(&mut self.keys).is_err() {
            return Err(self.out_of_memory(self.keys.len() * size_of::<Key>()));
        }
        self.keys.push(Key {
            hash: hash(self.seed, key.as_bytes()),
            start: u32::try_from(start).expect("`new` checked that positions fit 32 bits"),
        });
        Ok(key)
    }

    /// The error for an allocation of this many bytes that failed.
    pub(crate) fn out_of_memory(&self, len_bytes: usize) -> Error {
        Error::OutOfMemory {
            file: self.file.to_owned(),
            len_bytes: len_bytes as u64,
        }
    }

    /// Ends an object: no two of its keys may be the same string.
    fn close_scope(&mut self, scope: usize) -> Result<(), Error> {
        if Self::all_differ(&self.keys[scope..]) {
            self.keys.truncate(scope);
            return Ok(());
        }
        let mut keys = std::mem::take(&mut self.keys);
        keys[scope..].sort_unstable_by_key(|key| (key.hash, key.start));
        let duplicate = keys[scope..]
            .chunk_by(|a, b| a.hash == b.hash)
            .filter(|run| run.len() > 1)
            .find_map(|run| self.duplicate_in(run));
        keys.truncate(scope);
        self.keys = keys;
        match duplicate {
            None => Ok(()),
            Some((offset, key)) => Err(Error::DuplicateKey {
                file: self.file.to_owned(),
                offset,
                key,
            }),
        }
    }

    /// The short way for small objects, which are most of them: no two hashes are equal.
    fn all_differ(keys: &[Key]) -> bool {
        let differs =
            |(i, key): (usize, &Key)| keys[..i].iter().all(|other| other.hash != key.hash);
        keys.len() <= 8 && keys.iter().enumerate().all(differs)
    }

    /// The later of two equal keys among keys of equal hash.
    ///
    /// Neighbors first: a flood of equal keys is answered without a list of them. What is left then are the few keys
    /// that collide by chance.
    fn duplicate_in(&self, run: &[Key]) -> Option<(u64, String)> {
        let offset = |key: Key| u64::from(key.start);
        let neighbors = run
            .windows(2)
            .find(|pair| self.unescaped(pair[0]) == self.unescaped(pair[1]));
        if let Some(pair) = neighbors {
            return Some((offset(pair[1]), self.unescaped(pair[1]).into_owned()));
        }
        let mut names: Vec<_> = run
            .iter()
            .map(|&key| (self.unescaped(key), offset(key)))
            .collect();
        names.sort_unstable();
        let pair = names.windows(2).find(|pair| pair[0].0 == pair[1].0)?;
        Some((pair[1].1, pair[1].0.clone().into_owned()))
    }

    fn unescaped(&self, key: Key) -> Cow<'a, str> {
        let mut reader = Reader {
            pos: key.start as usize,
            keys: Vec::new(),
            ..*self
        };
        reader.string().expect("it was read once already")
    }
}

/// The string itself or a copy; an error instead of an abort if there is no memory for one.
pub(crate) fn to_string(text: Cow<'_, str>) -> Result<String, TryReserveError> {
    match text {
        Cow::Owned(text) => Ok(text),
        Cow::Borrowed(text) => {
            let mut copy = String::new();
            copy.try_reserve_exact(text.len())?;
            copy.push_str(text);
            Ok(copy)
        }
    }
}

/// Makes room for one more item: a quarter more than before and not double, so that memory stays close to what is used.
pub(crate) fn reserve_one<T>(items: &mut Vec<T>) -> Result<(), TryReserveError> {
    if items.len() < items.capacity() {
        return Ok(());
    }
    items.try_reserve_exact((items.len() / 4).max(16))
}

/// How many bytes from the start need no attention in a string: no quote, no backslash, no control character.
///
/// Eight at a time: each of the three terms has the high bit of every byte set that is to stop at. (Borrows can set a
/// bit too many, but only above a byte that stops anyway, and the bytewise loop decides.)
fn plain_len(bytes: &[u8]) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x8080_8080_8080_8080;
    let zero_byte = |word: u64| word.wrapping_sub(ONES) & !word & HIGH;
    let mut len = 0;
    for chunk in bytes.as_chunks::<8>().0 {
        let word = u64::from_le_bytes(*chunk);
        let control = word.wrapping_sub(ONES * 0x20) & !word & HIGH;
        if (control | zero_byte(word ^ (ONES * 0x22)) | zero_byte(word ^ (ONES * 0x5C))) != 0 {
            break;
        }
        len += 8;
    }
    let stops = |byte: &u8| matches!(byte, b'"' | b'\\' | 0..0x20);
    len + bytes[len..]
        .iter()
        .position(stops)
        .unwrap_or(bytes.len() - len)
}

/// A seeded hash by folded 128-bit multiplication; only equality of strings matters, never the value.
fn hash(seed: u64, bytes: &[u8]) -> u32 {
    const MULTIPLIER: u64 = 0x9E37_79B9_7F4A_7C15; // 2^64 / golden ratio
    let fold = |state: u64, word: u64| {
        let [low, high] = halves(u128::from(state ^ word) * u128::from(MULTIPLIER));
        low ^ high
    };
    let (chunks, tail) = bytes.as_chunks::<8>();
    let mut state = fold(seed, bytes.len() as u64);
    for chunk in chunks {
        state = fold(state, u64::from_le_bytes(*chunk)).wrapping_add(seed);
    }
    let mut last = [0; 8];
    last[..tail.len()].copy_from_slice(tail);
    state = fold(fold(state, u64::from_le_bytes(last)), seed);
    let [a, b, c, d, ..] = state.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

fn halves(product: u128) -> [u64; 2] {
    let bytes = product.to_le_bytes();
    let (words, _) = bytes.as_chunks::<8>();
    [u64::from_le_bytes(words[0]), u64::from_le_bytes(words[1])]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn skip(text: &str) -> Result<(), Error> {
        let mut reader = Reader::new("x", text, 127);
        reader.skip_value()?;
        reader.end()
    }

    #[test]
    fn verdicts_are_those_of_serde_json_but_for_duplicates() {
        let texts = [
            "{}",
            " [ ] ",
            "null",
            "true",
            "false",
            "nul",
            "[1,]",
            "[,1]",
            "{\"a\":1,}",
            "{a:1}",
            "01",
            "-01",
            "-0",
            "-",
            "0",
            "1.",
            ".5",
            "1.5",
            "1e",
            "1e+",
            "1e5",
            "1E-5",
            "1e308",
            "1e309",
            "-1e309",
            "1e-99999",
            "0e99999",
            "1e999999999999999999999",
            "\"\\u0041\"",
            "\"\\ud800\"",
            "\"\\ud83d\\ude00\"",
            "\"\\ude00\"",
            "\"\\ud83d\\u0041\"",
            "\"\\x\"",
            "\"\\\"",
            "\"a",
            "\"\u{1}\"",
            "\"\u{7f}\"",
            "\"tab\t\"",
            "\u{feff}{}",
            "{} {}",
            "",
            "  ",
            "[[]]",
            "[}",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\" : [1 , 2]}",
            "\"12345678\u{e9}\u{1F600}abcdefgh\\n\"",
            "\"\\u12\"",
            "\"\\uD83D\"",
            "+1",
            "Infinity",
            "NaN",
            "'a'",
            "[1 2]",
            "/**/1",
            "1\0",
            "\u{a0}1",
            "\"\\/\\b\\f\\n\\r\\t\"",
        ];
        for text in texts {
            let theirs = serde_json::from_str::<serde_json::Value>(text).is_ok();
            assert_eq!(skip(text).is_ok(), theirs, "{text:?}: {:?}", skip(text));
        }
        let digits = |n: usize| "1".repeat(n);
        assert!(skip(&digits(309)).is_ok() && skip(&digits(310)).is_err());
        assert!(skip(&format!("{}e-2000", digits(2000))).is_ok());
    }

    #[test]
    fn nesting_is_limited_where_serde_json_limits_it() {
        for (depth, accepted) in [(127, true), (128, false)] {
            for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
                let value = if open == "[" { "" } else { "1" };
                let text = format!("{}{value}{}", open.repeat(depth), close.repeat(depth));
                assert_eq!(skip(&text).is_ok(), accepted, "{depth} {open}");
                assert_eq!(
                    serde_json::from_str::<serde_json::Value>(&text).is_ok(),
                    accepted
                );
            }
        }
        assert!(matches!(
            skip(&"[".repeat(1 << 20)),
            Err(Error::JsonDepth { .. })
        ));
    }

    #[test]
    fn duplicates_are_found_at_every_level_and_after_unescaping() {
        for text in [
            r#"{"a":1,"a":1}"#,
            r#"{"a":1,"b":2,"\u0061":1}"#,
            r#"[{"x":{"":0,"":0}}]"#,
            r#"{"/":1,"\/":2}"#,
        ] {
            assert!(
                matches!(skip(text), Err(Error::DuplicateKey { .. })),
                "{text}"
            );
        }
        assert!(skip(r#"{"a":{"a":{"a":1}},"b":{"a":1},"A":1}"#).is_ok());
        let keys: Vec<_> = (0..50_000).map(|i| format!("\"key{i}\":0")).collect();
        assert!(skip(&format!("{{{}}}", keys.join(","))).is_ok());
        assert!(skip(&format!("{{{},\"key777\":1}}", keys.join(","))).is_err());
    }

    #[test]
    fn plain_runs_end_at_the_first_byte_that_needs_attention() {
        for stop in 0..=255_u8 {
            for at in 0..20 {
                let mut bytes = vec![b'a'; 20];
                bytes[at] = stop;
                let expected = if stop < 0x20 || stop == b'"' || stop == b'\\' {
                    at
                } else {
                    20
                };
                assert_eq!(plain_len(&bytes), expected, "{stop} at {at}");
            }
        }
    }

    #[test]
    fn integers_are_plain_and_below_2_to_the_64() {
        let read = |text: &str| Reader::new("x", text, 127).u64();
        assert_eq!(read("18446744073709551615"), Some(u64::MAX));
        assert_eq!(read(" 0,"), Some(0));
        for text in [
            "18446744073709551616",
            "-0",
            "-1",
            "1.0",
            "1e0",
            "01",
            "00",
            "\"1\"",
            "true",
            "",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
