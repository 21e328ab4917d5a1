//! One folder per toolchain: `mod.rs` (recognize, bind), `config.rs`, `write.rs`. No folder imports another.
