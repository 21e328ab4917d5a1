//! ST025: a name is empty or holds characters that nobody sees.

use crate::{Check, Findings, Place, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "ST025",
    name: "name-not-printable",
    severity: Severity::Warning,
    since: "0.1.0",
    summary: "a name is empty or holds characters that nobody sees",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
Names of tensors and keys of `__metadata__` are not empty, neither begin nor end with a space, are no paths that lead upwards (`../`), and
hold no control characters, line breaks, characters without width, or marks that turn the direction of writing.

## Why it matters
The format allows any text. Two names that look alike are two tensors, and one of them is missing where the runtime looks for it:
`KeyError: 'model.embed_tokens.weight'`, though a listing shows it. Control characters can rewrite what a terminal or log shows, and tools
that write one file for each tensor follow `../`.

## What to do
Rename the tensor. No usual tool writes such names: do not trust the file before you know where it comes from.

## References
- dreadnode/dyana#197
";

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    for shard in subject.checkpoint.shards() {
        for tensor in &shard.header.tensors {
            let name = tensor.name.as_str();
            if let Some(why) = trouble(name) {
                let place = Place::file(&*shard.name).tensor(name);
                report(findings, place, "the name", name, why);
            }
        }
        for (key, _) in shard.header.metadata.iter().flatten() {
            if let Some(why) = trouble(key) {
                let place = Place::file(&*shard.name);
                report(findings, place, "a key of `__metadata__`", key, why);
            }
        }
    }
}

fn report(findings: &mut Findings<'_>, place: Place, what: &str, name: &str, why: &str) {
    findings
        .add(place, format!("{what} {why}"))
        .instead("printable text", name.escape_default().to_string())
        .help("rename it, and find out who wrote the file");
}

/// Whether a name is made of the characters that nearly all names are made of, in which nothing can be wrong.
fn is_plain(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    name.bytes().all(is_plain) && !matches!(name, "" | "..")
}

/// What is wrong with a name, if anything is.
fn trouble(name: &str) -> Option<&'static str> {
    if is_plain(name) {
        return None;
    }
    if name.is_empty() {
        return Some("is empty");
    }
    if name.chars().any(char::is_control) {
        return Some("has a control character");
    }
    if name.chars().any(is_invisible) {
        return Some("has characters without width, or that turn the direction of writing");
    }
    if name.trim() != name {
        return Some("begins or ends with a space");
    }
    let leads_upwards = name.split(['/', '\\']).any(|step| step == "..");
    leads_upwards.then_some("is a path that leads upwards")
}

/// Characters of Unicode's category Cf that occur in no word: those without width, marks of direction, the byte order mark,
/// and tags.
fn is_invisible(c: char) -> bool {
    matches!(
        c,
        '\u{ad}'
            | '\u{61c}'
            | '\u{180e}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{e0000}'..='\u{e007f}'
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_models_are_printable() {
        for name in [
            "model.layers.0.self_attn.q_proj.weight",
            "encoder/layer_0/kernel:0",
            "a..b",
            ".",
            "schicht_\u{e4}.\u{6743}\u{91cd}",
        ] {
            assert_eq!(trouble(name), None, "{name}");
        }
        for name in [
            "",
            " a",
            "a\n",
            "a\u{202e}b",
            "a\u{200b}",
            "..",
            "../a",
            "a\\..\\b",
        ] {
            assert!(trouble(name).is_some(), "{name:?}");
        }
    }
}
