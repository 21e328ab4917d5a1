//! The `safequant` command line.
fn main() {}
