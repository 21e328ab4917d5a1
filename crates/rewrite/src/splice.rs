//! Edits of a JSON text that leave every other byte as it is: number spellings, key order, literals such as `Infinity`
//! that Python writes and JSON does not know.

use std::ops::Range;

use crate::Error;

/// A member of an object, as byte ranges of the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    /// The key, unescaped.
    pub(crate) key: String,
    /// Key, colon and value.
    pub(crate) span: Range<usize>,
    /// The value.
    pub(crate) value: Range<usize>,
}

struct Scanner<'a> {
    file: &'a str,
    text: &'a str,
    at: usize,
}

impl Scanner<'_> {
    fn problem(&self, problem: &'static str) -> Error {
        Error::Document {
            file: self.file.to_owned(),
            problem,
            offset: self.at,
        }
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn expect(&mut self, byte: u8, problem: &'static str) -> Result<(), Error> {
        self.skip_space();
        if self.peek() != Some(byte) {
            return Err(self.problem(problem));
        }
        self.at += 1;
        Ok(())
    }

    fn skip_string(&mut self) -> Result<Range<usize>, Error> {
        let start = self.at;
        self.expect(b'"', "a string was expected")?;
        loop {
            match self.peek() {
                None => return Err(self.problem("a string does not end")),
                Some(b'"') => break,
                Some(b'\\') => self.at += 2,
                Some(_) => self.at += 1,
            }
        }
        self.at += 1;
        Ok(start..self.at)
    }

    /// Skips a value without recursion: nesting costs a counter, not stack.
    fn skip_value(&mut self) -> Result<Range<usize>, Error> {
        self.skip_space();
        let start = self.at;
        let mut depth = 0_usize;
        loop {
            match self.peek() {
                None => return Err(self.problem("a value does not end")),
                Some(b'"') => {
                    self.skip_string()?;
                }
                Some(b'{' | b'[') => {
                    depth += 1;
                    self.at += 1;
                }
                Some(b'}' | b']') if depth > 0 => {
                    depth -= 1;
                    self.at += 1;
                }
                Some(b',' | b':' | b' ' | b'\t' | b'\n' | b'\r') if depth > 0 => self.at += 1,
                Some(b',' | b':' | b'}' | b']') => {
                    return Err(self.problem("a value was expected"));
                }
                Some(_) => self.skip_scalar(),
            }
            if depth == 0 {
                return Ok(start..self.at);
            }
        }
    }

    fn skip_scalar(&mut self) {
        let ends = |b: u8| b",:{}[]\" \t\n\r".contains(&b);
        while self.peek().is_some_and(|b| !ends(b)) {
            self.at += 1;
        }
    }
}

/// The members of the object that begins at `start` (white space allowed), and where its closing brace is.
pub(crate) fn members(file: &str, text: &str, start: usize) -> Result<(Vec<Member>, usize), Error> {
    let mut scanner = Scanner {
        file,
        text,
        at: start,
    };
    scanner.expect(b'{', "an object was expected")?;
    let mut found = Vec::new();
    scanner.skip_space();
    if scanner.peek() == Some(b'}') {
        return Ok((found, scanner.at));
    }
    loop {
        scanner.skip_space();
        let key = scanner.skip_string()?;
        let name = serde_json::from_str(text.get(key.clone()).unwrap_or_default())
            .map_err(|_| scanner.problem("a key is no valid string"))?;
        scanner.expect(b':', "a colon was expected")?;
        let value = scanner.skip_value()?;
        found.push(Member {
            key: name,
            span: key.start..value.end,
            value,
        });
        scanner.skip_space();
        if scanner.peek() == Some(b'}') {
            return Ok((found, scanner.at));
        }
        scanner.expect(b',', "a comma or the end of the object was expected")?;
    }
}

/// The text without any member `key` of the object that begins at `start`.
pub(crate) fn remove(file: &str, text: &str, start: usize, key: &str) -> Result<String, Error> {
    let (members, _) = members(file, text, start)?;
    let matches = |m: &Member| m.key == key;
    let n_kept = members
        .iter()
        .rposition(|m| !matches(m))
        .map_or(0, |i| i + 1);
    let mut cuts: Vec<Range<usize>> = Vec::new();
    for pair in members[..n_kept].windows(2) {
        if matches(&pair[0]) {
            cuts.push(pair[0].span.start..pair[1].span.start);
        }
    }
    // What follows the last member that stays goes together with the comma before it.
    if let Some(last) = members.get(n_kept..).and_then(<[Member]>::last) {
        let begin = n_kept
            .checked_sub(1)
            .map_or(members[0].span.start, |i| members[i].span.end);
        cuts.push(begin..last.span.end);
    }
    let mut edited = text.to_owned();
    for cut in cuts.into_iter().rev() {
        edited.replace_range(cut, "");
    }
    Ok(edited)
}

/// The text with `key` set to `value` in the object that begins at `start`; a new member is appended, in the object's
/// own indentation.
pub(crate) fn set(
    file: &str,
    text: &str,
    start: usize,
    key: &str,
    value: &serde_json::Value,
) -> Result<String, Error> {
    let (members, end) = members(file, text, start)?;
    let indent = indentation(text, start, members.first(), end);
    let spelled = spell(value, &indent);
    let mut edited = text.to_owned();
    if let Some(member) = members.iter().find(|m| m.key == key) {
        edited.replace_range(member.value.clone(), &spelled);
        return Ok(edited);
    }
    let name = serde_json::Value::from(key);
    match members.last() {
        Some(last) => {
            let at = last.span.end;
            let space = if indent.is_empty() { " " } else { &indent };
            edited.insert_str(at, &format!(",{space}{name}: {spelled}"));
        }
        None => edited.replace_range(start..=end, &format!("{{\n  {name}: {spelled}\n}}")),
    }
    Ok(edited)
}

/// The white space before a member, if it holds a line break; otherwise nothing.
fn indentation(text: &str, start: usize, first: Option<&Member>, end: usize) -> String {
    let Some(first) = first else {
        return "\n  ".to_owned();
    };
    let before = text
        .get(start..first.span.start.min(end))
        .unwrap_or_default();
    let space: String = before.chars().skip_while(|c| *c != '{').skip(1).collect();
    if space.contains('\n') {
        space
    } else {
        String::new()
    }
}

fn spell(value: &serde_json::Value, indent: &str) -> String {
    if indent.is_empty() {
        return value.to_string();
    }
    format!("{value:#}").replace('\n', indent)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const TEXT: &str =
        "{\n  \"eps\": 1e-05,\n  \"q\": {\"a\": [1, \"}\"]},\n  \"top\": Infinity\n}\n";

    #[test]
    fn removing_a_member_leaves_every_other_byte() {
        let first = remove("c", TEXT, 0, "eps").unwrap();
        assert_eq!(
            first,
            "{\n  \"q\": {\"a\": [1, \"}\"]},\n  \"top\": Infinity\n}\n"
        );
        let last = remove("c", TEXT, 0, "top").unwrap();
        assert_eq!(
            last,
            "{\n  \"eps\": 1e-05,\n  \"q\": {\"a\": [1, \"}\"]}\n}\n"
        );
        assert_eq!(remove("c", TEXT, 0, "absent").unwrap(), TEXT);
        assert_eq!(remove("c", "{\"a\":1}", 0, "a").unwrap(), "{}");
        let twice = "{\"a\":1,\"a\":4,\"b\":2,\"\\u0061\":3,\"a\":5}";
        assert_eq!(remove("c", twice, 0, "a").unwrap(), "{\"b\":2}");
        assert_eq!(remove("c", "{\"a\":1,\"a\":2}", 0, "a").unwrap(), "{}");
    }

    #[test]
    fn setting_a_member_replaces_or_appends_in_the_texts_own_indentation() {
        let replaced = set("c", TEXT, 0, "q", &json!({"b": 1})).unwrap();
        assert_eq!(
            replaced,
            "{\n  \"eps\": 1e-05,\n  \"q\": {\n    \"b\": 1\n  },\n  \"top\": Infinity\n}\n"
        );
        let appended = set("c", TEXT, 0, "n", &json!(2)).unwrap();
        assert!(
            appended.ends_with("\"top\": Infinity,\n  \"n\": 2\n}\n"),
            "{appended}"
        );
        assert_eq!(
            set("c", "{\"a\":1}", 0, "b", &json!([1])).unwrap(),
            "{\"a\":1, \"b\": [1]}"
        );
        assert_eq!(
            set("c", "{}", 0, "b", &json!(1)).unwrap(),
            "{\n  \"b\": 1\n}"
        );
    }

    #[test]
    fn broken_texts_are_errors_with_an_offset() {
        let broken = [
            "",
            "[1]",
            "{\"a\"",
            "{\"a\":",
            "{\"a\":1",
            "{\"a\":1,",
            "{\"a\\",
            "{\"a\":}",
            "{a:1}",
        ];
        for text in broken {
            assert!(
                matches!(members("c", text, 0), Err(Error::Document { .. })),
                "{text}"
            );
        }
        let deep = format!("{{\"a\":{}", "[".repeat(1 << 20));
        assert!(members("c", &deep, 0).is_err());
    }
}
