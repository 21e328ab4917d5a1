//! One binary for all integration tests (style.md, §6).
