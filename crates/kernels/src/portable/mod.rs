//! The arithmetic in plain Rust: the reference that every backend equals bit for bit.
