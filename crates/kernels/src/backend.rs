//! A backend is a value: a table of functions for one instruction set.

use crate::{Float, Minifloat, NanRule, OverflowRule, Packing};

/// The operations that `schemes` and `quantize` call. Lengths are checked by the functions themselves.
pub struct Backend {
    /// `portable`, `avx2`, `avx512` ...
    pub name: &'static str,
    /// Whether this machine can run it.
    pub is_available: fn() -> bool,
    /// [`Packing::unpack`].
    pub unpack: fn(Packing, &[u8], &mut [u8]),
    /// [`Packing::pack`].
    pub pack: fn(Packing, &[u8], &mut [u8]),
    /// `out[i] = f32(code - zero) * scale`, in F32, for one group: integer codes.
    pub dequantize_integer: fn(codes: &[u8], zero: i32, scale: f32, out: &mut [f32]),
    /// `out[i] = table[code] * scale`, in F32, for one group: minifloats and code books.
    pub dequantize_table: fn(codes: &[u8], table: &[f32; 256], scale: f32, out: &mut [f32]),
    /// Little-endian dense floats to F32 (exact).
    pub widen: fn(Float, &[u8], &mut [f32]),
    /// F32 to little-endian dense floats, rounding once to nearest even; NaN stays NaN.
    pub round: fn(Float, &[f32], &mut [u8]),
    /// Codes of `values` (no scaling).
    pub encode_minifloat: fn(Minifloat, OverflowRule, NanRule, &[f32], &mut [u8]),
    /// Smallest and largest value of a slice, 0 and 0 for an empty one; NaN if any value is NaN.
    pub min_max: fn(&[f32]) -> (f32, f32),
    /// Index of the first value that is NaN or infinite.
    pub first_non_finite: fn(&[f32]) -> Option<usize>,
}

/// Every backend, fastest first; the last one is portable and always available.
pub static BACKENDS: &[&Backend] = &[];

impl Backend {
    /// The fastest backend this machine can run.
    pub fn detect() -> &'static Backend {
        unimplemented!()
    }

    /// The backend of this name, if the machine can run it.
    pub fn by_name(_name: &str) -> Option<&'static Backend> {
        unimplemented!()
    }

    /// Every backend that this machine can run, fastest first.
    pub fn available() -> impl Iterator<Item = &'static Backend> {
        BACKENDS.iter().copied().filter(|b| (b.is_available)())
    }
}
