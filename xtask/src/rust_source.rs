//! Just enough of Rust's grammar to look at sources line by line: what is test code, comment or string.

/// One source file, split into what the rules look at.
pub(crate) struct Source {
    /// Lines of code before the test module, comments and string contents blanked out; numbering as in the file.
    pub(crate) code: Vec<String>,
    /// The same lines as they stand, for rules about comments.
    pub(crate) raw: Vec<String>,
    /// Every line of the file, tests included, blanked like `code`.
    pub(crate) all: Vec<String>,
}

impl Source {
    /// Splits a file. A file that is a test as a whole (see [`is_test_file`]) has no `code`.
    pub(crate) fn parse(name: &str, text: &str) -> Self {
        let blanked = blank(text);
        let all: Vec<String> = blanked.lines().map(str::to_owned).collect();
        let tests = all.iter().position(|line| line.starts_with("#[cfg(test)]"));
        let end = if is_test_file(name) {
            0
        } else {
            tests.unwrap_or(all.len())
        };
        let raw = text.lines().take(end).map(str::to_owned).collect();
        Self {
            code: all[..end].to_vec(),
            raw,
            all,
        }
    }
}

/// Whether a name is that of a Rust source.
pub(crate) fn is_rust(name: &str) -> bool {
    std::path::Path::new(name)
        .extension()
        .is_some_and(|e| e == "rs")
}

/// Whether a file holds tests, benches or fuzz targets only.
pub(crate) fn is_test_file(name: &str) -> bool {
    let folders = ["tests/", "benches/", "fuzz/"];
    folders.iter().any(|f| name.starts_with(f))
        || name.contains("/tests/")
        || name.ends_with("/tests.rs")
}

/// Replaces the inside of comments, strings and character literals with blanks; line breaks stay.
fn blank(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let len = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |at| at + 2)
        } else if c == '"' {
            string_len(rest)
        } else if let Some(len) = raw_string_len(rest, out.chars().next_back()) {
            len
        } else if let Some(len) = char_len(rest) {
            len
        } else {
            out.push(c);
            rest = &rest[c.len_utf8()..];
            continue;
        };
        out.extend(
            rest[..len]
                .chars()
                .map(|c| if c == '\n' { '\n' } else { ' ' }),
        );
        rest = &rest[len..];
    }
    out
}

/// Length of the string literal that `text` begins with.
fn string_len(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Length of a raw string literal (`r"..."`, `r#"..."#`), if `text` begins with one.
fn raw_string_len(text: &str, before: Option<char>) -> Option<usize> {
    let after = text.strip_prefix('r')?;
    let in_word = before.is_some_and(|c| (c.is_alphanumeric() && c != 'b') || c == '_');
    let hashes = after.len() - after.trim_start_matches('#').len();
    if in_word || !after[hashes..].starts_with('"') {
        return None;
    }
    let close = format!("\"{}", "#".repeat(hashes));
    let body = 1 + hashes + 1;
    Some(
        text[body..]
            .find(&close)
            .map_or(text.len(), |at| body + at + close.len()),
    )
}

/// Length of a character literal, if `text` begins with one and not with a lifetime.
fn char_len(text: &str) -> Option<usize> {
    let inside = text.strip_prefix('\'')?;
    if let Some(escape) = inside.strip_prefix('\\') {
        let skip = escape.chars().next()?.len_utf8();
        return escape[skip..].find('\'').map(|at| 2 + skip + at + 1);
    }
    let c = inside.chars().next()?;
    inside[c.len_utf8()..]
        .starts_with('\'')
        .then(|| 1 + c.len_utf8() + 1)
}

/// Whether a line of code has this word, not as a part of a longer name.
pub(crate) fn has_word(line: &str, word: &str) -> bool {
    let joins = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        !before.is_some_and(joins) && !after.is_some_and(joins)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_strings_and_characters_are_blanked() {
        let text = "let a = \"unsafe \\\" x\"; // unsafe\nlet b = r#\"unsafe \" \"#; let c = '\"'; fn f<'a>() {}\n";
        let source = Source::parse("crates/x/src/lib.rs", text);
        assert_eq!(source.code.len(), 2);
        assert!(
            !source.code.iter().any(|line| has_word(line, "unsafe")),
            "{:?}",
            source.code
        );
        assert!(source.code[1].contains("fn f<'a>() {}"));
    }

    #[test]
    fn code_ends_where_the_test_module_begins() {
        let text = "fn a() {}\n#[cfg(test)]\nmod tests { fn b() { dbg!(1) } }\n";
        assert_eq!(Source::parse("crates/x/src/a.rs", text).code, ["fn a() {}"]);
        assert!(Source::parse("crates/x/src/tests.rs", text).code.is_empty());
    }

    #[test]
    fn words_are_not_found_inside_names() {
        assert!(has_word("unsafe { x }", "unsafe"));
        assert!(!has_word("#![forbid(unsafe_code)]", "unsafe"));
    }
}
