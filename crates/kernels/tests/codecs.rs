//! The codecs against what torch, `ml_dtypes`, torchao and compressed-tensors computed for *every* code and *every* 16-bit
//! input (fixtures/codec), and against the `float8` crate over a dense sweep of F32.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use safequant_kernels::portable::convert;
use safequant_kernels::{Backend, Float, Minifloat, NanRule, OverflowRule};

/// The tensors of one file of `fixtures/codec`, by name.
struct Fixture {
    header: serde_json::Map<String, serde_json::Value>,
    data: Vec<u8>,
}

impl Fixture {
    #[expect(
        clippy::disallowed_methods,
        reason = "the kernels do no I/O, their tests read fixtures"
    )]
    fn open(name: &str) -> Fixture {
        let path = format!("{}/../../fixtures/codec/{name}", env!("CARGO_MANIFEST_DIR"));
        let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        let (len, rest) = bytes.split_at(8);
        let len = usize::try_from(u64::from_le_bytes(len.try_into().unwrap())).unwrap();
        let header = serde_json::from_slice(&rest[..len]).unwrap();
        Fixture {
            header,
            data: rest[len..].to_vec(),
        }
    }

    fn tensors(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.header
            .iter()
            .filter(|(name, _)| *name != "__metadata__")
            .map(|(name, entry)| {
                let offset = |i: usize| usize::try_from(entry["data_offsets"][i].as_u64().unwrap());
                (
                    name.as_str(),
                    &self.data[offset(0).unwrap()..offset(1).unwrap()],
                )
            })
    }
}

fn format(name: &str) -> Minifloat {
    match name {
        "float8_e4m3fn" => Minifloat::E4M3,
        "float8_e5m2" => Minifloat::E5M2,
        "float8_e4m3fnuz" => Minifloat::E4M3Fnuz,
        "float8_e5m2fnuz" => Minifloat::E5M2Fnuz,
        "float8_e8m0fnu" => Minifloat::E8M0,
        "float6_e2m3fn" => Minifloat::E2M3,
        "float6_e3m2fn" => Minifloat::E3M2,
        "float4_e2m1fn" => Minifloat::E2M1,
        _ => panic!("unknown format {name}"),
    }
}

fn float(name: &str) -> Float {
    match name {
        "f32" => Float::F32,
        "bf16" => Float::Bf16,
        "f16" => Float::F16,
        _ => panic!("unknown float {name}"),
    }
}

/// All codes of all formats decode to F32, and that rounds to BF16 and F16, as in `ml_dtypes` and torch. NaN is compared
/// as a class: its payload is not portable (float-codecs.md §3).
#[test]
fn every_code_decodes_as_in_ml_dtypes_and_torch() {
    let fixture = Fixture::open("codec-decode/decode.safetensors");
    let mut tensors = 0;
    let mut codes = 0;
    for (name, bytes) in fixture.tensors() {
        let mut parts = name.split('.');
        let (format, float) = (format(parts.next().unwrap()), float(parts.next().unwrap()));
        let n = 1 << format.bits();
        let mut expected = vec![0.0; n];
        convert::widen(float, bytes, &mut expected);
        for backend in Backend::available() {
            let all: Vec<u8> = (0..n).map(|code| u8::try_from(code).unwrap()).collect();
            let mut values = vec![0.0; n];
            (backend.dequantize_table)(&all, format.table(), 1.0, &mut values);
            let mut rounded = vec![0; bytes.len()];
            (backend.round)(float, &values, &mut rounded);
            (backend.widen)(float, &rounded, &mut values);
            for (code, (value, expected)) in values.iter().zip(&expected).enumerate() {
                let equal = value.to_bits() == expected.to_bits();
                assert!(
                    equal || value.is_nan() && expected.is_nan(),
                    "{name} {code:02x}: {value}"
                );
                codes += 1;
            }
        }
        tensors += 1;
    }
    assert_eq!(tensors, 37, "the fixture has changed");
    assert_eq!(codes, 7600 * Backend::available().count());
}

/// The rules under which a library's cast is recorded. `_sat` clamps to the largest value first.
fn rules(library: &str) -> (OverflowRule, NanRule) {
    match library {
        "ml" => (OverflowRule::NonFinite, NanRule::MlDtypes),
        "ml_sat" => (OverflowRule::Saturate, NanRule::MlDtypes),
        "torch" => (OverflowRule::Torch, NanRule::Torch),
        // The last two record FP4 and FP6 only, which have one overflow rule; for their NaN see `is_excused`.
        "torch_sat" | "torchao" | "compressed_tensors" => (OverflowRule::Saturate, NanRule::Torch),
        _ => panic!("unknown library {library}"),
    }
}

/// Where a library of tensors-to-FP4 does something that no rule of ours describes: torchao and compressed-tensors turn
/// NaN into a number, compressed-tensors drops the sign of minus zero.
fn is_excused(library: &str, input: f32) -> bool {
    match library {
        "torchao" => input.is_nan(),
        "compressed_tensors" => input.is_nan() || input.to_bits() == 1 << 31,
        _ => false,
    }
}

/// All 65,536 BF16 and all 65,536 F16 inputs, each library in its own rule.
#[test]
fn every_16_bit_input_encodes_as_in_the_libraries() {
    let fixture = Fixture::open("codec-encode16/encode.safetensors");
    let bits: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    let mut tensors = 0;
    let mut excused = 0;
    for (name, expected) in fixture.tensors() {
        let parts: Vec<&str> = name.split('.').collect();
        let [target, source, library] = parts[..] else {
            panic!("{name}")
        };
        let (overflow, nan) = rules(library);
        let mut inputs = vec![0.0; 1 << 16];
        convert::widen(float(source), &bits, &mut inputs);
        for backend in Backend::available() {
            let mut codes = vec![0; 1 << 16];
            (backend.encode_minifloat)(format(target), overflow, nan, &inputs, &mut codes);
            for (i, (code, expected)) in codes.iter().zip(expected).enumerate() {
                if is_excused(library, inputs[i]) {
                    excused += 1;
                } else {
                    assert_eq!(code, expected, "{name}, {} input {i:04x}", backend.name);
                }
            }
        }
        tensors += 1;
    }
    assert_eq!(tensors, 38, "the fixture has changed");
    // 254 BF16 NaN and 2046 F16 NaN: three times torchao, once compressed-tensors with two zeros.
    assert_eq!(
        excused,
        (4 * (254 + 2046) + 2) * Backend::available().count()
    );
}

/// F32 inputs where rounding decides: every value of the format, every tie between neighbors, the overflow threshold,
/// each with the F32 before and after, and every 2^8-th pattern of all.
fn sweep(format: Minifloat) -> impl Iterator<Item = f32> {
    let mut values: Vec<f32> = format
        .table()
        .iter()
        .copied()
        .filter(|v| v.is_finite() && *v >= 0.0)
        .collect();
    values.sort_by(f32::total_cmp);
    let last = values[values.len() - 1];
    values.push(last + (last - values[values.len() - 2]));
    let ties = values
        .windows(2)
        .map(|pair| f32::midpoint(pair[0], pair[1]))
        .collect::<Vec<_>>();
    let chosen = values.into_iter().chain(ties).flat_map(|v| {
        let bits = v.to_bits();
        [bits.saturating_sub(1), bits, bits + 1].map(f32::from_bits)
    });
    let chosen = chosen.flat_map(|v| [v, -v]);
    chosen.chain((0..=u32::MAX).step_by(1 << 8).map(f32::from_bits))
}

/// The crate encodes under the saturating rule; only its bits are used, its constants and predicates are wrong
/// (float-codecs.md §6). Its E5M2 NaN depends on a payload bit.
#[test]
fn a_dense_sweep_encodes_as_in_the_float8_crate() {
    let e4m3 = |v| float8::F8E4M3::from_f32(v).to_bits();
    let e5m2 = |v| float8::F8E5M2::from_f32(v).to_bits();
    for (format, reference) in [
        (Minifloat::E4M3, e4m3 as fn(f32) -> u8),
        (Minifloat::E5M2, e5m2),
    ] {
        let inputs: Vec<f32> = sweep(format).collect();
        assert!(inputs.len() > 1 << 24);
        let mut codes = vec![0; inputs.len()];
        for backend in Backend::available() {
            let (overflow, nan) = (OverflowRule::Saturate, NanRule::Torch);
            (backend.encode_minifloat)(format, overflow, nan, &inputs, &mut codes);
            for (&value, &code) in inputs.iter().zip(&codes) {
                let expected = reference(value);
                if value.is_nan() && format == Minifloat::E5M2 {
                    assert!(
                        expected & 0x7f > 0x7c && code & 0x7f == 0x7f,
                        "{:08x}",
                        value.to_bits()
                    );
                } else {
                    assert_eq!(code, expected, "{format:?} {:08x}", value.to_bits());
                }
            }
        }
    }
}

/// One integer encoder defines all formats; the slice form equals it on the same sweep.
#[test]
fn a_dense_sweep_encodes_as_single_values_do() {
    for &format in Minifloat::ALL {
        let inputs: Vec<f32> = sweep(format).collect();
        let mut codes = vec![0; inputs.len()];
        let (overflow, nan) = (OverflowRule::Torch, NanRule::MlDtypes);
        for backend in Backend::available() {
            (backend.encode_minifloat)(format, overflow, nan, &inputs, &mut codes);
            for (&value, &code) in inputs.iter().zip(&codes) {
                let expected = format.encode(value, overflow, nan);
                assert_eq!(code, expected, "{format:?} {:08x}", value.to_bits());
            }
        }
    }
}
