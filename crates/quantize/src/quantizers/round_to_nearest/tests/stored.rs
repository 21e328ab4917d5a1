//! What is written as it is stored equals what is first kept as codes and then stored.

use super::*;

/// Values of both signs, some groups of zeros, some with equal extremes.
fn values(n: usize) -> Vec<f32> {
    let value = |i: usize| match i / 64 % 5 {
        3 => 0.0,
        4 => [0.5, -0.5][i * 31 % 17 % 2],
        _ => f32::from(u16::try_from(i * 7919 % 2003).unwrap()) / 20_000.0 - 0.05,
    };
    (0..n).map(|i| Float::Bf16.nearest(value(i))).collect()
}

/// The layout of a scheme in a convention, and what to quantize to.
fn case((convention, scheme): (&str, &str), shape: [u64; 2]) -> (QuantizedTensor, Target) {
    let found = CONVENTIONS.iter().find(|c| c.id() == convention);
    let writer = found.and_then(|c| c.writer()).unwrap();
    let preset = Preset::by_name(scheme).unwrap();
    let layout = writer.lay_out("m", &shape, &preset, Float::Bf16);
    let layout = layout.unwrap_or_else(|error| panic!("{convention} {scheme}: {error}"));
    let target = Target {
        scheme: layout.scheme.clone(),
        rule: writer.scale_rule(),
        division: Division::SourceDtype,
        nonfinite: NonFinite::Refuse,
    };
    (layout, target)
}

fn rows(values: &[f32], in_features: usize) -> Rows<'_> {
    Rows {
        values: Floats::F32(values),
        in_features,
        first_row: 0,
        out_features: widen(values.len() / in_features),
        source: Float::Bf16,
    }
}

#[test]
fn stored_codes_are_the_codes_stored() {
    let mut visited = 0;
    for convention in [
        ("compressed-tensors", "FP8_DYNAMIC"),
        ("fp8", "FP8_BLOCK"),
        ("compressed-tensors", "W8A8"),
        ("compressed-tensors", "W4A16"),
        ("compressed-tensors", "W4A16_ASYM"),
        ("bitsandbytes", "NF4"),
        ("bitsandbytes", "FP4_DQ"),
        ("comfyui", "NVFP4"),
        ("compressed-tensors", "NVFP4A16"),
        ("compressed-tensors", "MXFP4"),
        ("mlx", "W4A16_ASYM"),
    ] {
        // More than a panel of columns, more than one block of rows, and more than a part.
        let (n_rows, in_features) = (144, 1408);
        let (layout, target) = case(convention, [144, 1408]);
        let Some((part, form)) = encode::code_form(&layout) else {
            panic!("{convention:?} has codes of another form");
        };
        let values = values(n_rows * in_features);
        let rows = rows(&values, in_features);
        for backend in Backend::available() {
            let statistics = RoundToNearest.observe(&target, rows, backend).unwrap();
            let statistics = Some(&statistics);
            let whole = RoundToNearest
                .quantize(&target, rows, statistics, backend)
                .unwrap();
            let mut expected = encode::encode(&layout, &whole, backend).unwrap();
            let mut codes = vec![0xa5; form.packing.packed_len_bytes(values.len(), 1)];
            // What a tile held before does not matter.
            let mut tile = whole.clone();
            let output = Output {
                codes: &mut codes,
                form,
                stores: Stores::Ordinary,
                tile: &mut tile,
                output_losses: &mut Vec::new(),
            };
            RoundToNearest
                .quantize_into(&target, rows, statistics, output, backend)
                .unwrap();
            let at = expected
                .iter()
                .position(|region| region.part == part)
                .unwrap();
            assert!(expected.remove(at).bytes == codes, "{convention:?}");
            let beside = encode::encode_beside(&layout, &tile, backend).unwrap();
            assert_eq!(beside, expected, "{convention:?}");
            let stored = stored_row_losses(&layout, &rows, &tile, (&codes, form), backend);
            let losses = row_losses(&layout, &rows, &whole, backend);
            assert_eq!(stored, losses, "{convention:?}");
            visited += 1;
        }
    }
    assert_eq!(visited, 11 * Backend::available().count());
}

#[test]
fn stored_blocks_are_the_blocks_of_the_codes() {
    let mut visited = 0;
    for scheme in ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K"] {
        let (n_rows, in_features) = (12, 768);
        let (layout, target) = case(("gguf", scheme), [12, 768]);
        let (_, format) = encode::block_format(&layout).unwrap();
        assert_eq!(format.name(), scheme);
        let values = values(n_rows * in_features);
        for backend in Backend::available() {
            let rows = rows(&values, in_features);
            let tile = RoundToNearest
                .quantize(&target, rows, None, backend)
                .unwrap();
            let expected = encode::encode(&layout, &tile, backend).unwrap();
            let mut blocks = vec![0xa5; values.len() / format.elements() * format.bytes()];
            RoundToNearest
                .quantize_blocks(&target, rows, &mut blocks, Stores::Ordinary, backend)
                .unwrap();
            assert!(expected[0].bytes == blocks, "{scheme} {}", backend.name);
            visited += 1;
        }
    }
    assert_eq!(visited, 6 * Backend::available().count());
}

#[test]
fn blocks_refuse_what_codes_refuse() {
    let (_, target) = case(("gguf", "Q4_0"), [1, 64]);
    for bad in [f32::NAN, f32::NEG_INFINITY, 1e9] {
        let mut values = values(64);
        values[40] = bad;
        let rows = rows(&values, 64);
        let backend = Backend::detect();
        let mut blocks = [0; 36];
        let found =
            RoundToNearest.quantize_blocks(&target, rows, &mut blocks, Stores::Ordinary, backend);
        let expected = RoundToNearest.quantize(&target, rows, None, backend);
        assert!(found.is_err(), "{bad}");
        assert_eq!(found.err(), expected.err(), "{bad}");
    }
    assert_eq!(BlockFormat::Q4_0.bytes(), 18);
}

#[test]
#[should_panic(expected = "no whole units")]
fn rows_that_share_a_byte_cannot_be_stored() {
    let values = values(6);
    let target = int4(SYMMETRIC, ScaleRule::Gptq, Granularity::Channel, Float::F16);
    let packing = Packing::LsbFirst { bits: 4 };
    let output = Output {
        codes: &mut [0; 3],
        form: CodeForm { packing, flip: 0 },
        stores: Stores::Ordinary,
        tile: &mut CodeTile::default(),
        output_losses: &mut Vec::new(),
    };
    let backend = Backend::detect();
    drop(RoundToNearest.quantize_into(&target, rows(&values, 3), None, output, backend));
}
