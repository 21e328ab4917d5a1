//! Patterns on module names: globs by default, `re:` for regular expressions.
//!
//! Patterns come from hostile configurations too: their length is capped, and the backtracking that look-around needs
//! (which real configurations use) is bounded in steps.

use fancy_regex::{Regex, RegexBuilder};
use globset::{Glob, GlobMatcher};

use crate::Error;
use crate::config::shorten;

/// Longest pattern in bytes.
pub const MAX_PATTERN_BYTES: usize = 10 << 10;
/// Steps of backtracking per name. Patterns without look-around never backtrack; real ones with it take a few hundred.
const BACKTRACK_LIMIT: usize = 20_000;
/// Largest compiled program in bytes.
const PROGRAM_LIMIT: usize = 10 << 20;

/// Most regular expressions in one configuration.
const MAX_PATTERNS: usize = 10_000;
/// Most names that all patterns of one configuration are tried on: a few seconds. Hundreds of rules on every expert of the
/// largest models stay below a tenth of it.
const MAX_TRIES: usize = 50_000_000;

/// Refuses a configuration with too many regular expressions to compile.
pub(crate) fn check_count(n_patterns: usize) -> Result<(), Error> {
    if n_patterns > MAX_PATTERNS {
        let problem = format!("more than {MAX_PATTERNS} in one configuration");
        return Err(bad("the regular expressions", &problem));
    }
    Ok(())
}

/// Refuses a configuration whose patterns are too many to be tried on so many names.
pub(crate) fn check_work(n_patterns: usize, n_names: usize) -> Result<(), Error> {
    if n_patterns.saturating_mul(n_names) > MAX_TRIES {
        let problem = format!("{n_patterns} are too many to try on {n_names} modules");
        return Err(bad("the regular expressions", &problem));
    }
    Ok(())
}

/// A compiled pattern.
#[derive(Clone, Debug)]
pub struct Pattern {
    text: String,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    /// The whole name; `*` also matches dots.
    Glob(GlobMatcher),
    /// Anchored at the start only, as Python's `re.match`.
    Regex(Box<Regex>),
}

impl Pattern {
    /// As users write it: `re:` and a regular expression (anchored at the start), or a glob for the whole name.
    ///
    /// # Errors
    /// [`Error::Pattern`] if it is too long or does not compile.
    pub fn new(text: &str) -> Result<Self, Error> {
        match text.strip_prefix("re:") {
            Some(regex) => Self::regex(regex),
            None => Self::glob(text),
        }
    }

    /// A glob for the whole name.
    ///
    /// # Errors
    /// As [`Pattern::new`].
    pub fn glob(text: &str) -> Result<Self, Error> {
        check_length(text)?;
        let glob = Glob::new(text).map_err(|e| bad(text, &e.to_string()))?;
        Ok(Self {
            text: text.to_owned(),
            kind: Kind::Glob(glob.compile_matcher()),
        })
    }

    /// A regular expression that must match from the start of the name, but not up to its end.
    ///
    /// # Errors
    /// As [`Pattern::new`].
    pub fn regex(text: &str) -> Result<Self, Error> {
        check_length(text)?;
        let regex = RegexBuilder::new(&format!("^(?:{text})"))
            .backtrack_limit(BACKTRACK_LIMIT)
            .delegate_size_limit(PROGRAM_LIMIT)
            .build()
            .map_err(|e| bad(text, &e.to_string()))?;
        Ok(Self {
            text: format!("re:{text}"),
            kind: Kind::Regex(Box::new(regex)),
        })
    }

    /// The pattern as it was given (`re:` before a regular expression).
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether the name matches.
    ///
    /// # Errors
    /// [`Error::Pattern`] if a regular expression needs too many steps on this name.
    pub fn is_match(&self, name: &str) -> Result<bool, Error> {
        match &self.kind {
            Kind::Glob(glob) => Ok(glob.is_match(name)),
            Kind::Regex(regex) => regex
                .is_match(name)
                .map_err(|e| bad(&self.text, &e.to_string())),
        }
    }
}

fn check_length(text: &str) -> Result<(), Error> {
    if text.len() > MAX_PATTERN_BYTES {
        return Err(bad(text, &format!("longer than {MAX_PATTERN_BYTES} bytes")));
    }
    Ok(())
}

fn bad(pattern: &str, problem: &str) -> Error {
    Error::Pattern {
        pattern: shorten(pattern),
        problem: problem.replace('\n', " "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regular_expressions_are_anchored_at_the_start_only() {
        let p = Pattern::new("re:.*self_attn").unwrap();
        assert!(p.is_match("model.layers.0.self_attn.q_proj").unwrap());
        assert!(
            !Pattern::new("re:self_attn")
                .unwrap()
                .is_match("model.self_attn")
                .unwrap()
        );
        assert!(!Pattern::new("re:a|b").unwrap().is_match("cb").unwrap());
    }

    #[test]
    fn the_work_that_a_configuration_asks_for_is_bounded() {
        assert!(check_count(MAX_PATTERNS).is_ok());
        assert!(check_count(MAX_PATTERNS + 1).is_err());
        assert!(check_work(500, 60_000).is_ok(), "rules on every expert");
        assert!(check_work(MAX_PATTERNS, 100_000).is_err());
        assert!(check_work(usize::MAX, 2).is_err());
    }

    #[test]
    fn look_around_is_supported() {
        let p = Pattern::new("re:.*(?<!shared)_proj$").unwrap();
        assert!(p.is_match("a.up_proj").unwrap());
        assert!(!p.is_match("a.shared_proj").unwrap());
    }

    #[test]
    fn globs_match_whole_names() {
        let p = Pattern::new("*.mlp.*").unwrap();
        assert!(p.is_match("model.layers.0.mlp.up_proj").unwrap());
        assert!(
            !Pattern::new("lm_head")
                .unwrap()
                .is_match("model.lm_head")
                .unwrap()
        );
    }

    #[test]
    fn hostile_patterns_end_with_an_error() {
        assert!(Pattern::new(&format!("re:{}", "a".repeat(20_000))).is_err());
        assert!(Pattern::new("re:(").is_err());
        assert!(Pattern::new("re:a{999999}{999999}").is_err());
        let p = Pattern::new(r"re:(?=(a+)+$)(a|aa)+\1b").unwrap();
        let answer = p.is_match(&"a".repeat(60));
        assert!(answer.is_err() || answer.is_ok_and(|m| !m));
    }
}
