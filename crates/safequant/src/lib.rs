//! A quantization-aware storage engine over safetensors.
#![forbid(unsafe_code)]

pub use safequant_container as container;
pub use safequant_kernels as kernels;
pub use safequant_quantize as quantize;
pub use safequant_rewrite as rewrite;
pub use safequant_schemes as schemes;
