//! bitsandbytes in spellings of which no fixture exists: other storage dtypes, `GPTQModel`'s names; and broken ones.

use std::collections::BTreeMap;

use safequant::container::{Checkpoint, Dtype};
use safequant::kernels::{Backend, Float};
use safequant::schemes::{
    Arithmetic, Decoder, Error, ErrorGroup, Model, RowsOut, Written, convention,
};
use serde_json::{Value, json};

use super::fixture::{self, Draft, laid_out, refused};

const NF4: &str = "bitsandbytes/bnb-nf4";
const NESTED: &str = "bitsandbytes/bnb-nf4-dq";
const INT8: &str = "bitsandbytes/bnb-int8";
const Q: &str = "model.layers.0.self_attn.q_proj";
const STATE: &str = "model.layers.0.self_attn.q_proj.weight.quant_state.bitsandbytes__nf4";

/// Every quantized weight in its reference dtype.
fn values(checkpoint: &Checkpoint) -> BTreeMap<String, Vec<u8>> {
    let model = Model::bind(checkpoint).unwrap();
    assert!(!model.quantized.is_empty());
    let decode = |tensor: &safequant::schemes::QuantizedTensor| {
        let decoder = Decoder::new(tensor, checkpoint, Backend::detect()).unwrap();
        let float = tensor.reference_dtype;
        let len = usize::try_from(tensor.n_rows() * tensor.in_features()).unwrap();
        let mut out = vec![0; len * float.size_bytes()];
        decoder
            .rows(0..tensor.n_rows(), RowsOut::Bytes(float, &mut out))
            .unwrap();
        (tensor.weight.clone(), out)
    };
    model.quantized.iter().map(decode).collect()
}

/// Changes the descriptor of one weight.
fn with_state(name: &str, change: impl FnOnce(&mut Value)) -> Draft {
    let ending = STATE;
    Draft::of(name).change(ending, |dense| {
        let mut state: Value = serde_json::from_slice(&dense.bytes).unwrap();
        change(&mut state);
        dense.bytes = serde_json::to_vec(&state).unwrap();
        dense.shape = vec![u64::try_from(dense.bytes.len()).unwrap()];
    })
}

/// bitsandbytes.md B4.
#[test]
fn bytes_of_any_storage_dtype_are_the_same_codes() {
    let expected = values(&Draft::of(NF4).open());
    for dtype in [Dtype::BF16, Dtype::F16, Dtype::F32, Dtype::I8, Dtype::F64] {
        let mut draft = Draft::of(NF4);
        for (_, dense) in draft
            .tensors
            .iter_mut()
            .filter(|(n, d)| n.ends_with("_proj.weight") && d.dtype == Dtype::U8)
        {
            dense.dtype = dtype;
            dense.shape[0] /= dtype.bits() / 8;
        }
        assert_eq!(values(&draft.open()), expected, "{dtype}");
    }
}

/// bitsandbytes.md B2, B15.
#[test]
fn the_names_of_gptqmodel_are_the_same_weights() {
    for name in [NF4, NESTED, INT8] {
        let expected = values(&Draft::of(name).open());
        let mut draft = Draft::of(name);
        draft
            .tensors
            .retain(|(n, _)| !n.ends_with(".weight_format"));
        for (name, _) in &mut draft.tensors {
            if let Some((weight, _)) = name.clone().split_once(".quant_state.") {
                *name = format!("{weight}_quant_state");
            } else if let Some(module) = name.clone().strip_suffix(".SCB") {
                *name = format!("{module}.weight_scb");
            } else if let Some((module, rest)) = name.clone().split_once(".weight.") {
                *name = format!("{module}.weight_{rest}");
            }
        }
        let checkpoint = draft.open();
        let got = values(&checkpoint);
        if name == INT8 {
            let model = Model::bind(&checkpoint).unwrap();
            let tensor = &model.quantized[0];
            assert_eq!(tensor.scheme.arithmetic, Arithmetic::ScaleOver127);
            assert_eq!(tensor.reference_dtype, Float::F32);
            let close = |a: &[u8], b: &[u8]| {
                let value = |c: &[u8]| f32::from_le_bytes(c.try_into().unwrap());
                a.chunks(4)
                    .zip(b.chunks(4))
                    .all(|(a, b)| (value(a) - value(b)).abs() <= 3e-7 * value(b).abs())
            };
            for (weight, bytes) in &got {
                assert!(close(bytes, &expected[weight]), "{weight}");
            }
        } else {
            assert_eq!(got, expected, "{name}");
        }
    }
}

#[test]
fn missing_and_wrong_parts_are_named() {
    for (name, ending) in [
        (NF4, "q_proj.weight.absmax"),
        (NF4, "q_proj.weight.quant_map"),
        (NF4, "q_proj.weight"),
        (NESTED, "q_proj.weight.nested_absmax"),
        (NESTED, "q_proj.weight.nested_quant_map"),
        (INT8, "q_proj.weight"),
    ] {
        let e = refused(Draft::of(name).without(ending));
        assert!(matches!(e, Error::MissingPart { .. }), "{ending}: {e}");
        assert!(e.to_string().contains(ending), "{e}");
    }
    for (name, part) in [
        (NF4, "weight.absmax"),
        (NF4, "weight.quant_map"),
        (NESTED, "weight.nested_absmax"),
        (NESTED, "weight.absmax"),
        (NESTED, "weight.nested_quant_map"),
        (INT8, "SCB"),
    ] {
        let part = format!("{Q}.{part}");
        let e = refused(Draft::of(name).change(&part, |d| {
            let size = usize::try_from(d.dtype.bits() / 8).unwrap();
            d.bytes.truncate(d.bytes.len() - size);
            d.shape = vec![u64::try_from(d.bytes.len() / size).unwrap()];
        }));
        assert!(matches!(e, Error::PartShape { .. }), "{part}: {e}");
        let e = refused(Draft::of(name).change(&part, |d| {
            d.dtype = if d.dtype == Dtype::U8 {
                Dtype::I8
            } else {
                Dtype::I32
            };
        }));
        assert!(matches!(e, Error::PartDtype { .. }), "{part}: {e}");
    }
}

#[test]
fn descriptors_that_do_not_fit_the_tensors_are_refused() {
    type Change = fn(&mut Value);
    let changes: [Change; 7] = [
        |s| s["shape"] = json!([128, 130]),
        |s| s["shape"] = json!([1_u64 << 31, 1_u64 << 31]),
        |s| s["blocksize"] = json!(128),
        |s| s["blocksize"] = json!(0),
        |s| s["quant_type"] = json!("fp4"),
        |s| s["extra"] = json!(1),
        |s| s["nested_offset"] = json!(0.5),
    ];
    for (i, change) in changes.into_iter().enumerate() {
        let e = refused(with_state(NF4, change));
        assert_eq!(e.group(), ErrorGroup::Malformed, "{i}: {e}");
    }
    // Merely another shape of the same bytes.
    let model = Model::bind(&with_state(NF4, |s| s["shape"] = json!([64, 256])).open()).unwrap();
    assert_eq!(model.module(Q).unwrap().shape, [64, 256]);
}

/// bitsandbytes.md B11.
#[test]
fn stacks_whose_blocks_cross_matrices_are_refused_by_name() {
    let read = with_state(NF4, |s| s["shape"] = json!([4, 32, 128])).open();
    let flat = values(&Draft::of(NF4).open());
    assert_eq!(
        values(&read)[&format!("{Q}.weight")],
        flat[&format!("{Q}.weight")]
    );
    let e = refused(with_state(NF4, |s| s["shape"] = json!([512, 1, 32])));
    assert_eq!(e.group(), ErrorGroup::Unsupported, "{e}");
    // Scales of one matrix would not fill a block of the second level.
    let e = refused(with_state(NESTED, |s| s["shape"] = json!([16, 16, 256])));
    assert_eq!(e.group(), ErrorGroup::Unsupported, "{e}");
}

/// bitsandbytes.md B1, B3, B12.
#[test]
fn contradictions_name_both_sides() {
    let e = refused(Draft::of(INT8).configure(|c| {
        c["quantization_config"]["load_in_8bit"] = json!(false);
        c["quantization_config"]["load_in_4bit"] = json!(true);
    }));
    assert!(matches!(e, Error::Contradiction { .. }), "{e}");
    let mut draft = Draft::of(NF4);
    let at = draft.tensors.iter().position(|(n, _)| n == STATE).unwrap();
    draft.tensors[at].0 = STATE.replace("nf4", "fp4");
    let e = refused(draft);
    assert!(matches!(e, Error::Contradiction { .. }), "{e}");
    let e = refused(Draft::of(INT8).change(&format!("{Q}.weight_format"), |d| d.bytes[0] = 3));
    assert_eq!(e.group(), ErrorGroup::Unsupported, "{e}");
}

/// bitsandbytes.md B7.
#[test]
fn another_code_book_is_told_and_the_built_in_one_counts() {
    let expected = values(&Draft::of(NF4).open());
    let checkpoint = Draft::of(NF4)
        .change(&format!("{Q}.weight.quant_map"), |d| d.bytes[2] ^= 1)
        .open();
    assert_eq!(values(&checkpoint), expected);
    let model = Model::bind(&checkpoint).unwrap();
    let (id, lines) = &model.conventions[0];
    assert_eq!(*id, "bitsandbytes");
    assert!(
        lines.iter().any(|l| l.starts_with("1 code books")),
        "{lines:?}"
    );
}

/// bitsandbytes.md B17.
#[test]
fn writing_gives_the_parts_of_the_library() {
    let mut compared = 0;
    for fixture in fixture::all() {
        if !fixture.name.starts_with("bitsandbytes/") {
            continue;
        }
        let model = Model::bind(&fixture.open()).unwrap();
        for tensor in &model.quantized {
            assert_eq!(laid_out(tensor), *tensor, "{}", fixture.name);
            compared += 1;
        }
        let writer = convention("bitsandbytes")
            .and_then(safequant::schemes::Convention::writer)
            .unwrap();
        let ignored = ["lm_head".to_owned()];
        let written = Written {
            modules: &model.quantized,
            ignored: &ignored,
            asked: safequant::schemes::Asked::Nothing,
        };
        let mut ours = writer.config(&written).unwrap().quantization_config;
        let (_, documents) = fixture.files();
        let config: Value = serde_json::from_slice(&documents["config.json"]).unwrap();
        let mut theirs = config["quantization_config"].as_object().unwrap().clone();
        // What a user computes in is no property of the file.
        for map in [&mut ours, &mut theirs] {
            map.remove("bnb_4bit_compute_dtype");
        }
        assert_eq!(ours, theirs, "{}", fixture.name);
    }
    assert!(compared >= 35, "{compared} weights");
}
