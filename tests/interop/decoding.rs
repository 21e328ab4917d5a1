//! Decoding equals the reference of the tool that wrote the file, bit for bit.

use std::fmt::Write as _;

use safequant::container::{Checkpoint, Dtype};
use safequant::kernels::{Backend, Float};
use safequant::schemes::scheme::dtype_of;
use safequant::schemes::{Decoder, Model, QuantizedTensor, RowsOut};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::fixture::{self, Fixture};

/// Fixtures with expected values when this was written.
const N_FIXTURES: usize = 109;

/// Fixtures whose expected values are weights *before* packing, with zeros that carry the sign of the original weight: the
/// file does not hold it, so digests over them cannot be met. Tensors stored in full are compared all the same.
const SIGNED_ZEROS: [&str; 1] = ["llm-compressor/ct-old-w3-pack"];

/// Fixtures whose expected values are those of a model in memory, quantized in BF16, while the tool that packed it
/// quantized once more in F16 (`marlin_24.py`: "Marlin24 kernel requires float16 inputs") and nothing decodes the format: 0.3 % of
/// the codes in the file are other ones, by one step. Everything else must agree.
const QUANTIZED_AGAIN: [&str; 1] = ["llm-compressor/ct-old-marlin24"];

fn decode(tensor: &QuantizedTensor, checkpoint: &Checkpoint, float: Float, tile: u64) -> Vec<u8> {
    let decoder = Decoder::new(tensor, checkpoint, Backend::detect()).unwrap();
    let (mut out, mut at) = (Vec::new(), 0);
    while at < tensor.n_rows() {
        let end = tensor.n_rows().min(at + tile);
        let len = usize::try_from((end - at) * tensor.in_features()).unwrap() * float.size_bytes();
        let mut bytes = vec![0; len];
        decoder
            .rows(at..end, RowsOut::Bytes(float, &mut bytes))
            .unwrap();
        out.append(&mut bytes);
        at = end;
    }
    out
}

fn dtype_named(name: &str) -> Dtype {
    match name.trim_start_matches("torch.") {
        "bfloat16" | "BF16" => Dtype::BF16,
        "float16" | "F16" => Dtype::F16,
        "float32" | "F32" => Dtype::F32,
        other => panic!("dtype {other} in a fixture"),
    }
}

/// Elements as integers, with the sign of zero and the payload of NaN taken away.
fn canonical(dtype: Dtype, bytes: &[u8]) -> Vec<u8> {
    let (size, exponent, mantissa) = if dtype == Dtype::F32 {
        (4, 0x7f80_0000_u32, 0x007f_ffff)
    } else if dtype == Dtype::BF16 {
        (2, 0x7f80, 0x007f)
    } else {
        assert_eq!(dtype, Dtype::F16);
        (2, 0x7c00, 0x03ff)
    };
    let mut out = Vec::with_capacity(bytes.len());
    for element in bytes.chunks_exact(size) {
        let mut wide = [0; 4];
        wide[..size].copy_from_slice(element);
        let bits = u32::from_le_bytes(wide);
        let canonical = match (bits & exponent, bits & mantissa) {
            (0, 0) => 0,
            (e, m) if e == exponent && m != 0 => exponent | mantissa,
            _ => bits,
        };
        out.extend_from_slice(&canonical.to_le_bytes()[..size]);
    }
    out
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in Sha256::digest(bytes) {
        write!(text, "{byte:02x}").unwrap();
    }
    text
}

/// What a fixture itself allows a module to differ by: a share of the largest magnitude. Rotations and low-rank products are
/// sums whose order the reference does not state.
fn tolerance(fixture: &Fixture, module: &str, of: &str) -> Option<f64> {
    fixture.about["modules"][module]["tolerance"][of].as_f64()
}

fn values(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    let float = safequant::schemes::scheme::float_of(dtype).unwrap();
    let mut values = vec![0.0; bytes.len() / float.size_bytes()];
    (Backend::detect().widen)(float, bytes, &mut values);
    values
}

fn is_close(dtype: Dtype, found: &[u8], expected: &[u8], tolerance: Option<f64>) -> bool {
    let (Some(tolerance), true) = (tolerance, found.len() == expected.len()) else {
        return false;
    };
    let (found, expected) = (values(dtype, found), values(dtype, expected));
    let largest = expected.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
    let worst = found
        .iter()
        .zip(&expected)
        .fold(0.0_f32, |m, (a, b)| m.max((a - b).abs()));
    f64::from(worst) <= tolerance * f64::from(largest)
}

/// Digests are strict on the sign of zero; some references make every zero plus zero. And on NaN: in F32 those of torch
/// carry the payload of the code `ff` of E4M3.
fn digest_holds(dtype: Dtype, bytes: &[u8], sha256: &str) -> bool {
    let with_payload = || {
        let mut bytes = bytes.to_vec();
        for element in bytes.as_chunks_mut().0 {
            if f32::from_le_bytes(*element).is_nan() {
                *element = 0xfff0_0000_u32.to_le_bytes();
            }
        }
        bytes
    };
    hex(bytes) == sha256
        || hex(&canonical(dtype, bytes)) == sha256
        || (dtype == Dtype::F32 && hex(&with_payload()) == sha256)
}

/// Compares the modules of one fixture; how many tensors were compared.
fn check(fixture: &Fixture, failures: &mut Vec<String>) -> usize {
    let checkpoint = fixture.open();
    let model = match Model::bind(&checkpoint) {
        Ok(model) => model,
        Err(e) => {
            failures.push(format!("{}: {e}", fixture.name));
            return 0;
        }
    };
    let (stored, stored_f32) = (fixture.beside("expected"), fixture.beside("expected_f32"));
    let mut compared = 0;
    for (name, want) in fixture.expected() {
        // No tensor of the checkpoint: comfyui::factors_of_the_inputs_stand_beside_the_weight tells.
        if name.ends_with(".weight_effective") {
            continue;
        }
        let Some(tensor) = model.quantized.iter().find(|t| t.weight == *name) else {
            if !model.plain.contains(name) {
                failures.push(format!(
                    "{}: {name} is neither quantized nor plain",
                    fixture.name
                ));
            }
            continue;
        };
        let dtype = dtype_of(tensor.reference_dtype);
        assert_eq!(
            dtype,
            dtype_named(want["dtype"].as_str().unwrap()),
            "{} {name}",
            fixture.name
        );
        assert_eq!(
            Value::from(tensor.shape.clone()),
            want["shape"],
            "{} {name}",
            fixture.name
        );
        let got = decode(tensor, &checkpoint, tensor.reference_dtype, 48);
        if SIGNED_ZEROS.contains(&fixture.name.as_str()) && !stored.contains_key(name) {
            continue;
        }
        if QUANTIZED_AGAIN.contains(&fixture.name.as_str()) {
            if let Some(s) = stored.get(name) {
                check_nearly(name, &s.bytes, &got, failures);
                compared += 1;
            }
            continue;
        }
        let holds = match stored.get(name) {
            Some(s) => {
                let allowed = tolerance(fixture, &tensor.module, "expected");
                let is_same = canonical(dtype, &s.bytes) == canonical(dtype, &got);
                s.dtype == dtype && (is_same || is_close(dtype, &got, &s.bytes, allowed))
            }
            None => digest_holds(dtype, &got, want["sha256"].as_str().unwrap()),
        };
        if !holds {
            failures.push(format!("{}: {name} differs", fixture.name));
        }
        compared += 1;
        compared += check_f32(fixture, tensor, &checkpoint, &stored_f32, failures);
    }
    compared
}

/// BF16 tensors of which at most 4 elements in 1000 differ, none in where it is zero.
fn check_nearly(name: &str, expected: &[u8], got: &[u8], failures: &mut Vec<String>) {
    let (expected, got) = (
        canonical(Dtype::BF16, expected),
        canonical(Dtype::BF16, got),
    );
    let pairs = expected.chunks_exact(2).zip(got.chunks_exact(2));
    let (mut n, mut differ) = (0, 0);
    for (a, b) in pairs {
        n += 1;
        differ += usize::from(a != b);
        if (a == [0, 0]) != (b == [0, 0]) {
            failures.push(format!("{name}: other elements are zero"));
            return;
        }
    }
    if differ * 1000 > n * 4 || expected.len() != got.len() {
        failures.push(format!("{name}: {differ} of {n} elements differ"));
    }
}

fn check_f32(
    fixture: &Fixture,
    tensor: &QuantizedTensor,
    checkpoint: &Checkpoint,
    stored: &std::collections::BTreeMap<String, fixture::Dense>,
    failures: &mut Vec<String>,
) -> usize {
    let name = &tensor.weight;
    let digests = &fixture.about["expected_f32"];
    let sha256 = digests["sha256"][name]
        .as_str()
        .or(digests[name]["sha256"].as_str());
    if sha256.is_none() && !stored.contains_key(name) {
        return 0;
    }
    let got = decode(tensor, checkpoint, Float::F32, u64::MAX);
    let holds = match (stored.get(name), sha256) {
        (Some(s), _) => {
            let allowed = tolerance(fixture, &tensor.module, "expected_f32");
            canonical(Dtype::F32, &s.bytes) == canonical(Dtype::F32, &got)
                || is_close(Dtype::F32, &got, &s.bytes, allowed)
        }
        (None, sha256) => digest_holds(Dtype::F32, &got, sha256.unwrap()),
    };
    if !holds {
        failures.push(format!("{}: {name} differs in F32", fixture.name));
    }
    1
}

#[test]
fn every_fixture_decodes_to_the_bits_of_its_reference() {
    let mut fixtures = fixture::all();
    fixtures.retain(|f| !f.expected().is_empty());
    let (mut failures, mut compared) = (Vec::new(), 0);
    for fixture in &fixtures {
        compared += check(fixture, &mut failures);
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(fixtures.len() >= N_FIXTURES, "{} fixtures", fixtures.len());
    assert!(compared >= 400, "{compared} tensors compared");
}

#[test]
fn tiles_of_any_height_give_the_same_bytes_on_every_backend() {
    let names = [
        "gptqmodel/gptq-w3g128-sym",
        "llm-compressor/ct-w4a16-asym",
        "transformers/fgfp8-moe",
        "gptqmodel/gptq-w4g32-descact",
        "composed/deepseek-odd-dims",
        "llm-compressor/ct-nvfp4",
        "llm-compressor/ct-old-sparse-bitmask",
        "llm-compressor/ct-old-marlin24",
    ];
    let mut visited = 0;
    for fixture in fixture::all()
        .iter()
        .filter(|f| names.contains(&f.name.as_str()))
    {
        let checkpoint = fixture.open();
        let model = Model::bind(&checkpoint).unwrap();
        let tensor = &model.quantized[0];
        let whole = decode(tensor, &checkpoint, tensor.reference_dtype, u64::MAX);
        for tile in [1, 7, 32, 100] {
            assert_eq!(
                decode(tensor, &checkpoint, tensor.reference_dtype, tile),
                whole,
                "{}",
                fixture.name
            );
        }
        for backend in Backend::available() {
            let decoder = Decoder::new(tensor, &checkpoint, backend).unwrap();
            let mut bytes = vec![0; whole.len()];
            let out = RowsOut::Bytes(tensor.reference_dtype, &mut bytes);
            decoder.rows(0..tensor.n_rows(), out).unwrap();
            assert!(bytes == whole, "{} on {}", fixture.name, backend.name);
            assert!(decoder.scratch_bytes(1) > 0);
        }
        visited += 1;
    }
    assert_eq!(visited, names.len());
}

#[test]
fn tensors_that_are_no_part_of_a_weight_are_told_apart() {
    let orphans = |name: &str| {
        let fixture = fixture::all().into_iter().find(|f| f.name == name).unwrap();
        Model::bind(&fixture.open()).unwrap().orphans
    };
    let kv = orphans("llm-compressor/ct-kv-fp8");
    assert_eq!(
        kv,
        [
            "model.layers.0.self_attn.k_scale",
            "model.layers.0.self_attn.v_scale"
        ]
    );
    let stale = orphans("transformers/fgfp8-ue8m0");
    assert_eq!(
        stale,
        [
            "model.layers.0.self_attn.k_proj.weight_scale_inv",
            "model.layers.0.self_attn.v_proj.weight_scale_inv"
        ]
    );
    assert!(orphans("gptqmodel/gptq-dynamic").is_empty());
}
