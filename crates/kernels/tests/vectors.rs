//! The committed vectors (specs/vectors), each counted so that an empty file cannot pass.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use safequant_kernels::{
    Backend, E8M0Rounding, Float, Minifloat, NanRule, OverflowRule, Packing, Tile, encode_e8m0,
};
use serde_json::Value;

#[expect(
    clippy::disallowed_methods,
    reason = "the kernels do no I/O, their tests read vectors"
)]
fn vectors(name: &str) -> Value {
    let path = format!("{}/../../specs/vectors/{name}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    serde_json::from_str(&text).unwrap()
}

fn hex(value: &Value) -> u32 {
    u32::from_str_radix(value.as_str().unwrap(), 16).unwrap()
}

fn format(name: &Value) -> Minifloat {
    let name = name.as_str().unwrap();
    *Minifloat::ALL
        .iter()
        .find(|format| format!("{format:?}") == name)
        .unwrap()
}

/// The code that `library` gives, in our terms.
fn encode(backend: &Backend, format: Minifloat, library: &str, value: f32) -> u8 {
    let (overflow, nan) = match library {
        "torch" => (OverflowRule::Torch, NanRule::Torch),
        "ml_dtypes" => (OverflowRule::NonFinite, NanRule::MlDtypes),
        "nvidia_sat" => (OverflowRule::Saturate, NanRule::Nvidia),
        "nvidia_nosat" => (OverflowRule::NonFinite, NanRule::Nvidia),
        // The crate's NaN codes are those of `ml_dtypes` for the payloads listed.
        "float8" => (OverflowRule::Saturate, NanRule::MlDtypes),
        "down_sat" => return encode_e8m0(value, E8M0Rounding::TowardZero, OverflowRule::Saturate),
        "up_sat" => return encode_e8m0(value, E8M0Rounding::Up, OverflowRule::Saturate),
        "down_nosat" => {
            return encode_e8m0(value, E8M0Rounding::TowardZero, OverflowRule::NonFinite);
        }
        "up_nosat" => return encode_e8m0(value, E8M0Rounding::Up, OverflowRule::NonFinite),
        _ => panic!("unknown library {library}"),
    };
    let mut code = [0];
    (backend.encode_minifloat)(format, overflow, nan, &[value], &mut code);
    assert_eq!(code[0], format.encode(value, overflow, nan));
    code[0]
}

#[test]
fn tricky_inputs_encode_as_in_each_library() {
    let vectors = vectors("minifloat.json");
    let mut checked = 0;
    for case in vectors["codes"].as_array().unwrap() {
        let format = format(&case["format"]);
        let value = f32::from_bits(hex(&case["input"]));
        for (library, code) in case["codes"].as_object().unwrap() {
            for backend in Backend::available() {
                let found = encode(backend, format, library, value);
                assert_eq!(
                    u32::from(found),
                    hex(code),
                    "{case} {library} {}",
                    backend.name
                );
            }
            checked += 1;
        }
    }
    assert_eq!(checked, 472);
}

#[test]
fn tricky_inputs_round_to_bf16_and_f16() {
    let vectors = vectors("minifloat.json");
    let mut checked = 0;
    for case in vectors["dense"].as_array().unwrap() {
        let name = case["float"].as_str().unwrap();
        let float = *Float::ALL
            .iter()
            .find(|f| format!("{f:?}") == name)
            .unwrap();
        for backend in Backend::available() {
            let mut bytes = [0; 2];
            (backend.round)(float, &[f32::from_bits(hex(&case["input"]))], &mut bytes);
            assert_eq!(
                u32::from(u16::from_le_bytes(bytes)),
                hex(&case["bits"]),
                "{case}"
            );
        }
        checked += 1;
    }
    assert_eq!(checked, 14);
}

fn packing(case: &Value) -> Packing {
    let bits = u32::try_from(case["bits"].as_u64().unwrap()).unwrap();
    match case["packing"].as_str().unwrap() {
        "bytes" => Packing::Bytes,
        "lsb_first" => Packing::LsbFirst { bits },
        "lsb_first_no_straddle" => Packing::LsbFirstNoStraddle { bits },
        "planar" => Packing::Planar { bits },
        "nibbles_high_first" => Packing::NibblesHighFirst,
        "awq_interleaved" => Packing::AwqInterleaved,
        other => panic!("unknown packing {other}"),
    }
}

fn bytes(hex: &Value) -> Vec<u8> {
    let digits = hex.as_str().unwrap().as_bytes();
    assert!(digits.len().is_multiple_of(2));
    let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(pair).collect()
}

/// Each layout at each width has a vector, and packs and unpacks as it says.
#[test]
fn packings_have_the_bytes_of_the_vectors() {
    let vectors = vectors("packings.json");
    let mut missing: Vec<Packing> = Packing::all().collect();
    let mut checked = 0;
    for case in vectors["cases"].as_array().unwrap() {
        let packing = packing(case);
        assert_eq!(
            u64::from(packing.bits()),
            case["bits"].as_u64().unwrap(),
            "{case}"
        );
        let codes: Vec<u8> = serde_json::from_value(case["codes"].clone()).unwrap();
        let expected = bytes(&case["bytes"]);
        for backend in Backend::available() {
            let mut packed = vec![0xff; expected.len()];
            (backend.pack)(packing, &codes, &mut packed);
            assert_eq!(packed, expected, "{case} {}", backend.name);
            let mut unpacked = vec![0xff; codes.len()];
            (backend.unpack)(packing, &expected, &mut unpacked);
            assert_eq!(unpacked, codes, "{case} {}", backend.name);
        }
        missing.retain(|&p| p != packing);
        checked += 1;
    }
    assert_eq!(missing, []);
    assert_eq!(checked, 96);
}

fn snake_case(name: &str) -> String {
    let mut out = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() && !out.is_empty() {
            out.push('_');
        }
        out.push(c.to_ascii_lowercase());
    }
    out
}

/// Entry `(row, column)` of a vector's matrix: see `what` in the file.
fn entry(index: usize, bits: u32) -> u16 {
    let mixed = u32::try_from(index + 1)
        .unwrap()
        .wrapping_mul(2_654_435_761);
    u16::try_from(mixed >> (32 - bits)).unwrap()
}

/// Each tile has a vector of several tiles, and packs and unpacks them as it says, in its order.
#[test]
fn tiles_have_the_bytes_of_the_vectors() {
    let vectors = vectors("tiles.json");
    let mut missing: Vec<String> = Tile::ALL
        .iter()
        .map(|t| snake_case(&format!("{t:?}")))
        .collect();
    let mut checked = 0;
    for case in vectors["cases"].as_array().unwrap() {
        let name = case["tile"].as_str().unwrap();
        let is_named = |tile: &&Tile| snake_case(&format!("{tile:?}")) == name;
        let tile = *Tile::ALL.iter().find(is_named).unwrap();
        let number = |key: &str| usize::try_from(case[key].as_u64().unwrap()).unwrap();
        let (rows, columns) = (number("rows"), number("columns"));
        assert_eq!(number("bits"), tile.bits() as usize, "{name}");
        let stored = bytes(&case["bytes"]);
        let (n_rows, n_columns) = (rows / tile.rows(), columns / tile.columns());
        assert!(
            n_rows * n_columns >= 2,
            "{name}: one tile says nothing of their order"
        );
        for (row, column) in (0..n_rows).flat_map(|r| (0..n_columns).map(move |c| (r, c))) {
            let at = tile.index(row, column, n_rows, n_columns) * tile.len_bytes();
            let packed = &stored[at..at + tile.len_bytes()];
            let expected: Vec<u8> = (0..tile.n_entries())
                .flat_map(|i| {
                    let (r, c) = (i / tile.columns(), i % tile.columns());
                    let index = (row * tile.rows() + r) * columns + column * tile.columns() + c;
                    entry(index, tile.bits())
                        .to_le_bytes()
                        .into_iter()
                        .take(tile.entry_bytes())
                })
                .collect();
            for backend in Backend::available() {
                let mut entries = vec![0xff; expected.len()];
                (backend.unpack_tile)(tile, packed, &mut entries);
                assert_eq!(entries, expected, "{name} {row} {column} {}", backend.name);
                let mut back = vec![0xff; packed.len()];
                (backend.pack_tile)(tile, &entries, &mut back);
                assert_eq!(back, packed, "{name} {row} {column} {}", backend.name);
            }
            checked += 1;
        }
        missing.retain(|m| m != name);
    }
    assert_eq!(missing, Vec::<String>::new());
    assert_eq!(checked, 56 + 4 + 4 + 16 + 4);
}
