//! candle's own paths, into tensors of its own.

use std::borrow::Cow;
use std::hint::black_box;
use std::time::Instant;

use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{DType, Device, Tensor};

use crate::{Matrix, Refusal};

/// Decodes to BF16 (`fp8_cast`) or F32 (ggml's blocks).
pub(crate) fn run(what: &str, m: Matrix<'_>, out: &mut [u8]) -> Result<f64, Refusal> {
    let (shape, cpu) = ((m.rows, m.columns), &Device::Cpu);
    if what == "fp8_cast" {
        let codes = Tensor::from_raw_buffer(m.codes, DType::F8E4M3, &[m.rows, m.columns], cpu)?;
        let begun = Instant::now();
        let result = codes.to_dtype(DType::BF16)?;
        let seconds = begun.elapsed().as_secs_f64();
        black_box(&result);
        if !out.is_empty() {
            let values = result
                .flatten_all()?
                .to_dtype(DType::F32)?
                .to_vec1::<f32>()?;
            for (to, value) in out.chunks_exact_mut(2).zip(values) {
                to.copy_from_slice(&value.to_bits().to_le_bytes()[2..]);
            }
        }
        return Ok(seconds);
    }
    let format = match what {
        "Q4_0" => GgmlDType::Q4_0,
        "Q8_0" => GgmlDType::Q8_0,
        "Q4_K" => GgmlDType::Q4K,
        "Q6_K" => GgmlDType::Q6K,
        _ => return Err("not a format of candle".into()),
    };
    let storage = QStorage::from_data(Cow::Borrowed(m.codes), cpu, format)?;
    let tensor = QTensor::new(storage, shape)?;
    let begun = Instant::now();
    let result = tensor.dequantize(cpu)?;
    let seconds = begun.elapsed().as_secs_f64();
    black_box(&result);
    if !out.is_empty() {
        let values = result.flatten_all()?.to_vec1::<f32>()?;
        for (to, value) in out.chunks_exact_mut(4).zip(values) {
            to.copy_from_slice(&value.to_le_bytes());
        }
    }
    Ok(seconds)
}
