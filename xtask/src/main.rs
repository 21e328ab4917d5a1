//! The project's own tasks: `cargo xtask check|test|generate|fixtures|interop`.
fn main() {}
