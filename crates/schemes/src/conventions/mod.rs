//! One folder per toolchain: `mod.rs` (recognize, bind), `config.rs`, `write.rs`. No folder imports another.

pub mod awq;
pub mod bitsandbytes;
pub mod comfyui;
pub mod compressed_tensors;
pub mod fp8;
pub mod gguf;
pub mod gptq;
pub mod hqq;
pub mod marlin;
pub mod mlx;
pub mod modelopt;
pub mod mxfp4;
pub mod nunchaku;
pub mod quanto;
pub mod torchao;
