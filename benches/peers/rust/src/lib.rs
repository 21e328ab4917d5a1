//! safequant, its Rust neighbors and two plain loops behind one C function, so that `peers.py` can time them in one run with
//! the Python libraries, on the same arrays. Each call gives the seconds of the work alone; `peers.py`, which counts CPU time,
//! counts what is prepared for it as well (candle copies the codes into a tensor: a few percent of its time).

use std::ffi::{CStr, c_char};
use std::hint::black_box;
use std::time::Instant;

use anamnesis::{Dtype, GgufType};
use safequant_kernels::samples::{SAMPLES, copy_traffic};
use safequant_kernels::{Backend, BlockFormat, Float, FloatsMut, Minifloat, Stores};

#[cfg(feature = "candle")]
mod candle;
mod quantize;

/// Why something has no time.
type Refusal = Box<dyn std::error::Error>;

/// Arrays of the caller, as C sees them.
#[repr(C)]
pub struct Bytes {
    at: *mut u8,
    len: usize,
}

impl Bytes {
    /// # Safety
    /// The caller's array lives and is not written while it is read.
    unsafe fn read<'a>(&self) -> &'a [u8] {
        if self.len == 0 {
            return &[];
        }
        // SAFETY: as promised by the caller.
        unsafe { std::slice::from_raw_parts(self.at, self.len) }
    }

    /// # Safety
    /// The caller's array lives and nothing else touches it.
    unsafe fn write<'a>(&self) -> &'a mut [u8] {
        if self.len == 0 {
            return &mut [];
        }
        // SAFETY: as promised by the caller.
        unsafe { std::slice::from_raw_parts_mut(self.at, self.len) }
    }
}

/// A matrix in some format.
#[derive(Clone, Copy)]
struct Matrix<'a> {
    rows: usize,
    columns: usize,
    float: Float,
    codes: &'a [u8],
    /// As F32.
    scales: &'a [f32],
    /// As the convention stores them.
    stored_scales: &'a [u8],
    /// Zero points or a table of values, as the convention stores them.
    extra: &'a [u8],
}

/// Runs `who:what` once and gives its seconds, or a negative number with a line on standard error. With an empty `out` the
/// result is dropped; otherwise it is there afterwards.
///
/// # Safety
/// `name` is a C string; every array lives through the call, `out` is touched by nobody else; `scales` are aligned F32.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn run(
    name: *const c_char,
    rows: usize,
    columns: usize,
    float: u32,
    arrays: *const Bytes,
) -> f64 {
    // SAFETY: as promised by the caller: codes, scales, stored scales, extra, out.
    let (name, arrays) = unsafe {
        (
            CStr::from_ptr(name).to_string_lossy(),
            std::slice::from_raw_parts(arrays, 5),
        )
    };
    // SAFETY: as promised by the caller; any four bytes are an F32.
    let (matrix, out) = unsafe {
        let scales = arrays[1].read();
        let scales = std::slice::from_raw_parts(scales.as_ptr().cast(), scales.len() / 4);
        let matrix = Matrix {
            rows,
            columns,
            float: Float::ALL[float as usize],
            codes: arrays[0].read(),
            scales: if arrays[1].len == 0 { &[] } else { scales },
            stored_scales: arrays[2].read(),
            extra: arrays[3].read(),
        };
        (matrix, arrays[4].write())
    };
    let (who, what) = name.split_once(':').unwrap_or((&name, ""));
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| match who {
        "safequant" => safequant(what, matrix, out),
        "fresh" => safequant_fresh(what, matrix, out),
        "copy" => Ok(timed(|| {
            copy_traffic(
                Backend::detect(),
                matrix.codes,
                out,
                Stores::for_len(out.len()),
            );
        })),
        "table" => table(what, matrix, out),
        "anamnesis" => anamnesis(what, matrix, out),
        #[cfg(feature = "candle")]
        "candle" => candle::run(what, matrix, out),
        _ => Err("not built in".into()),
    }));
    match result {
        Ok(Ok(seconds)) => seconds,
        Ok(Err(refusal)) => {
            eprintln!("{name}: {refusal}");
            -1.0
        }
        Err(_) => -2.0,
    }
}

/// Name of the backend, for the report.
#[unsafe(no_mangle)]
pub extern "C" fn backend() -> *const c_char {
    match Backend::detect().name {
        "avx512" => c"avx512",
        "avx2" => c"avx2",
        "portable" => c"portable",
        _ => c"another",
    }
    .as_ptr()
}

fn timed(work: impl FnOnce()) -> f64 {
    let begun = Instant::now();
    work();
    begun.elapsed().as_secs_f64()
}

/// Into a given array.
fn safequant(what: &str, matrix: Matrix<'_>, out: &mut [u8]) -> Result<f64, Refusal> {
    let stores = Stores::for_len(out.len());
    let backend = Backend::detect();
    if let Some(what) = what.strip_prefix("quantize_") {
        return quantize::run(what, matrix, out);
    }
    if let Some(format) = BlockFormat::from_name(what) {
        let values = FloatsMut::Bytes(matrix.float, out);
        return Ok(timed(|| {
            (backend.decode_blocks)(format, matrix.codes, values, stores)
        }));
    }
    let sample = SAMPLES
        .iter()
        .find(|s| s.name == what)
        .ok_or("no such format")?;
    let rows = sample.rows(matrix.rows, matrix.columns, matrix.codes, matrix.scales);
    let values = FloatsMut::Bytes(matrix.float, out);
    Ok(timed(|| (backend.decode_rows)(&rows, values, stores)))
}

/// Into an array that is allocated for it.
fn safequant_fresh(what: &str, matrix: Matrix<'_>, out: &mut [u8]) -> Result<f64, Refusal> {
    let len = matrix.rows * matrix.columns * matrix.float.size_bytes();
    let mut seconds = Err("not run".into());
    let mut fresh = Vec::new();
    let all = timed(|| {
        fresh = vec![0; len];
        seconds = safequant(what, matrix, &mut fresh);
    });
    seconds?;
    keep(&fresh, out);
    Ok(all)
}

fn keep(result: &[u8], out: &mut [u8]) {
    black_box(result);
    if !out.is_empty() {
        out.copy_from_slice(result);
    }
}

/// What one writes without a library: a table of 256 entries and a loop.
fn table(what: &str, matrix: Matrix<'_>, out: &mut [u8]) -> Result<f64, Refusal> {
    let values = Minifloat::E4M3.table();
    let bf16 = |value: f32| {
        let bits = value.to_bits();
        (((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16).to_le_bytes()
    };
    match what {
        "fp8_cast" => {
            let table: Vec<[u8; 2]> = values.iter().map(|&value| bf16(value)).collect();
            let table: &[[u8; 2]; 256] = table.as_slice().try_into()?;
            let (pairs, _) = out.as_chunks_mut::<2>();
            Ok(timed(|| {
                for (to, &code) in pairs.iter_mut().zip(matrix.codes) {
                    *to = table[usize::from(code)];
                }
            }))
        }
        "fp8_channel" => {
            let (pairs, _) = out.as_chunks_mut::<2>();
            let rows = pairs.chunks_exact_mut(matrix.columns);
            Ok(timed(|| {
                for ((to, codes), &scale) in rows
                    .zip(matrix.codes.chunks_exact(matrix.columns))
                    .zip(matrix.scales)
                {
                    for (to, &code) in to.iter_mut().zip(codes) {
                        *to = bf16(values[usize::from(code)] * scale);
                    }
                }
            }))
        }
        _ => Err("no such loop".into()),
    }
}

fn anamnesis(what: &str, m: Matrix<'_>, out: &mut [u8]) -> Result<f64, Refusal> {
    use anamnesis as a;
    let (rows, columns) = (m.rows, m.columns);
    let (codes, scales, extra) = (m.codes, m.stored_scales, m.extra);
    let begun = Instant::now();
    let result = match what {
        "fp8_cast" => a::dequantize_per_tensor_fp8_to_bf16(codes, 1.0)?,
        "fp8_channel" => {
            a::dequantize_per_channel_fp8_to_bf16(codes, scales, rows, columns, Dtype::F32)?
        }
        "fp8_block" => a::dequantize_fp8_to_bf16(codes, scales, rows, columns, Dtype::F32)?,
        "gptq4_g128" => a::dequantize_gptq_to_bf16(
            codes,
            scales,
            extra,
            None,
            columns,
            rows,
            128,
            4,
            Dtype::F16,
        )?,
        "awq4_g128" => {
            a::dequantize_awq_to_bf16(codes, scales, extra, columns, rows, 128, 4, Dtype::F16)?
        }
        "nf4_g64" => a::dequantize_bnb4_to_bf16(codes, scales, extra, rows * columns, 64)?,
        "nvfp4" => a::dequantize_nvfp4_to_bf16(codes, scales, 1.0, rows, columns)?,
        _ => {
            let format = match what {
                "Q4_0" => GgufType::Q4_0,
                "Q8_0" => GgufType::Q8_0,
                "Q4_K" => GgufType::Q4_K,
                "Q6_K" => GgufType::Q6_K,
                _ => return Err("not a format of anamnesis".into()),
            };
            a::remember::dequantize_gguf::<a::F32Out>(codes, format, rows * columns)?
        }
    };
    let seconds = begun.elapsed().as_secs_f64();
    keep(&result, out);
    Ok(seconds)
}
