//! How the codes of a group follow from its values, once scale and zero point are chosen.

use safequant_kernels::{Backend, Codebook, E2M1Rule, Float, Minifloat};

use super::numbers::{exact_f32, nearest_of_small, small_u8};

/// What was chosen for one group.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Choice {
    /// The scale as stored: a value that the scale's coding holds.
    pub(crate) scale: f32,
    /// Zero of the unsigned form; 0 for floats.
    pub(crate) zero: i32,
    /// The float zero point or bias, as stored; 0 where there is none.
    pub(crate) offset: f32,
    pub(super) coder: Coder,
}

impl Choice {
    /// Without zero point and offset.
    pub(super) fn scaled(scale: f32, coder: Coder) -> Self {
        Choice {
            scale,
            zero: 0,
            offset: 0.0,
            coder,
        }
    }
}

/// How the codes of a group follow from its values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Coder {
    /// `rne(clamp(value / divisor + zero))`, every operation in `arith`; `zero` and the limits are signed.
    Integer {
        arith: Float,
        divisor: f32,
        zero: i32,
        min: i32,
        max: i32,
    },
    /// `clamp(rne(value * factor + offset), min, max) - min`, product and sum rounded to `arith` each. The value is first
    /// rounded to `input`.
    Product {
        input: Float,
        arith: Float,
        factor: f32,
        offset: f32,
        min: i32,
        max: i32,
    },
    /// `clamp(rne((value + offset) / divisor), 0, max)`, sum and quotient rounded to `arith` each.
    Shifted {
        arith: Float,
        offset: f32,
        divisor: f32,
        max: i32,
    },
    /// The code of the value that was already quantized, dequantized and rounded to `source`, as `GPTQModel` and `AutoAWQ`
    /// pack.
    Repacked {
        source: Float,
        /// Where sums and products are rounded besides.
        arith: Float,
        divisor: f32,
        zero: i32,
        max: i32,
    },
    /// `encode(clamp(value / divisor))`, the quotient in `arith`.
    Divided {
        arith: Float,
        format: Minifloat,
        divisor: f32,
    },
    /// `encode(clamp(value * factor))`, the product in `arith`.
    Multiplied {
        arith: Float,
        format: Minifloat,
        factor: f32,
    },
    /// `encode(value / divisor)`, the quotient in `arith`, with the E2M1 rule of a tool.
    E2M1 {
        rule: E2M1Rule,
        arith: Float,
        divisor: f32,
    },
    /// The nearest entry to `value * factor`.
    Nearest { book: Codebook, factor: f32 },
    /// The nearest entry to `value / divisor`.
    NearestQuotient { book: Codebook, divisor: f32 },
    /// Every value gets this code.
    Constant { code: u8 },
}

impl Choice {
    /// Codes of values that share this choice, in unsigned form or as bit patterns.
    ///
    /// `values`, `codes`: the same length.
    pub(crate) fn encode(&self, values: &[f32], codes: &mut [u8], backend: &'static Backend) {
        match self.coder {
            Coder::Integer {
                arith,
                divisor,
                zero,
                min,
                max,
            } => (backend.quantize_integer)(arith, values, divisor, zero, min, max, codes),
            Coder::Product {
                input,
                arith,
                factor,
                offset,
                min,
                max,
            } => {
                let (low, high) = (exact_f32(min), exact_f32(max));
                each(values, codes, |value| {
                    let product = arith.nearest(input.nearest(value) * factor);
                    let code = nearest_of_small(arith.nearest(product + offset));
                    small_u8(code.clamp(low, high) - low)
                });
            }
            Coder::Shifted {
                arith,
                offset,
                divisor,
                max,
            } => each(values, codes, |value| {
                let quotient = arith.nearest(arith.nearest(value + offset) / divisor);
                small_u8(nearest_of_small(quotient).clamp(0.0, exact_f32(max)))
            }),
            Coder::Repacked {
                source,
                arith,
                divisor,
                zero,
                max,
            } => repack(source, arith, values, divisor, zero, max, codes),
            Coder::Divided {
                arith,
                format,
                divisor,
            } => (backend.quantize_minifloat)(arith, format, values, divisor, codes),
            Coder::Multiplied {
                arith,
                format,
                factor,
            } => in_chunks(
                values,
                codes,
                |value| arith.nearest(value * factor),
                |values, codes| {
                    // Dividing by 1 is exact; the primitive clamps and encodes.
                    (backend.quantize_minifloat)(Float::F32, format, values, 1.0, codes);
                },
            ),
            Coder::E2M1 {
                rule,
                arith,
                divisor,
            } => in_chunks(
                values,
                codes,
                |value| arith.nearest(value / divisor),
                |values, codes| {
                    (backend.encode_e2m1)(rule, values, codes);
                },
            ),
            Coder::Nearest { book, factor } => {
                (backend.quantize_codebook)(book, values, factor, codes);
            }
            Coder::NearestQuotient { book, divisor } => {
                in_chunks(
                    values,
                    codes,
                    |value| value / divisor,
                    |values, codes| {
                        (backend.quantize_codebook)(book, values, 1.0, codes);
                    },
                );
            }
            Coder::Constant { code } => codes.fill(code),
        }
    }
}

fn each(values: &[f32], codes: &mut [u8], code_of: impl Fn(f32) -> u8) {
    for (code, &value) in codes.iter_mut().zip(values) {
        *code = code_of(value);
    }
}

/// Scales values in a buffer that stays in the cache, and encodes them.
fn in_chunks(
    values: &[f32],
    codes: &mut [u8],
    scaled: impl Fn(f32) -> f32,
    encode: impl Fn(&[f32], &mut [u8]),
) {
    const CHUNK: usize = 256;
    let mut buffer = [0.0; CHUNK];
    for (values, codes) in values.chunks(CHUNK).zip(codes.chunks_mut(CHUNK)) {
        let buffer = &mut buffer[..values.len()];
        for (scaled_value, &value) in buffer.iter_mut().zip(values) {
            *scaled_value = scaled(value);
        }
        encode(buffer, codes);
    }
}

/// The packers' arithmetic (clauses 25 and 45).
fn repack(
    source: Float,
    arith: Float,
    values: &[f32],
    scale: f32,
    zero: i32,
    max: i32,
    codes: &mut [u8],
) {
    let (zero, max) = (exact_f32(zero), exact_f32(max));
    let shift = arith.nearest(zero * scale);
    each(values, codes, |value| {
        let quotient = arith.nearest(value / scale);
        let first = (nearest_of_small(quotient) + zero).clamp(0.0, max);
        let weight = source.nearest(scale * (first - zero));
        let second = arith.nearest(arith.nearest(weight + shift) / scale);
        small_u8(nearest_of_small(second).clamp(0.0, max))
    });
}
