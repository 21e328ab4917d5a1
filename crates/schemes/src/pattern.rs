//! Patterns on module names: globs by default, `re:` for regular expressions.
