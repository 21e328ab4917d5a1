//! Codes that are there already, laid out again: a convention's own tensors come out as they went in, its own documents too;
//! and what another one spells differently keeps its meaning.

use safequant::schemes::{
    ConventionWriter, Error, Model, Part, QuantizedTensor, Role, SuperScale, Written, convention,
};
use serde_json::Value;

use super::fixture::{self, Fixture};

fn writer(id: &str) -> &'static dyn ConventionWriter {
    convention(id)
        .and_then(safequant::schemes::Convention::writer)
        .unwrap()
}

fn named(name: &str) -> Fixture {
    fixture::all().into_iter().find(|f| f.name == name).unwrap()
}

fn bound(name: &str) -> Vec<QuantizedTensor> {
    Model::bind(&named(name).open()).unwrap().quantized
}

/// The checkpoints of `ModelOpt`, all that it exports per module.
const MODELOPT: [&str; 6] = [
    "modelopt/modelopt-fp8",
    "modelopt/modelopt-fp8-block",
    "modelopt/modelopt-fp8-pcpt",
    "modelopt/modelopt-int4-awq",
    "modelopt/modelopt-mxfp8",
    "modelopt/modelopt-nvfp4",
];

/// Codes, scales and what stands beside them, in any order.
fn sorted(tensor: &QuantizedTensor) -> QuantizedTensor {
    let mut tensor = tensor.clone();
    tensor.parts.sort_by(|a, b| a.name.cmp(&b.name));
    tensor
}

#[test]
fn own_tensors_come_out_as_they_went_in() {
    let more = [
        "autoawq/awq-autoawq-gemm-g128",
        "autoawq/awq-autoawq-gemm-minilm",
        "gptqmodel/awq-gptqmodel-gemm-bf16",
        "gptqmodel/awq-gptqmodel-gemm-g128",
        "gptqmodel/awq-gptqmodel-gemv-g64",
        "gptqmodel/awq-gptqmodel-gemv_fast-g128",
        "composed/deepseek-moe",
        "composed/deepseek-odd-dims",
        "composed/fbgemm-fp8",
        "composed/gpt-oss-mxfp4",
        "transformers/fgfp8-block128",
        "transformers/fgfp8-ue8m0",
    ];
    let mut visited = 0;
    for name in MODELOPT.iter().chain(&more) {
        for tensor in bound(name) {
            let again = writer(tensor.convention).lay_out_like(&tensor).unwrap();
            assert_eq!(sorted(&again), sorted(&tensor), "{name}");
            visited += 1;
        }
    }
    assert!(visited >= 80, "{visited} tensors");
}

#[test]
fn documents_of_modelopt_are_those_of_its_exporter() {
    for name in MODELOPT {
        let (_, documents) = named(name).files();
        let json = |file: &str| serde_json::from_slice::<Value>(&documents[file]).unwrap();
        let (own, config) = (json("hf_quant_config.json"), json("config.json"));
        let ignored: Vec<String> =
            serde_json::from_value(own["quantization"]["exclude_modules"].clone()).unwrap();
        let written = Written {
            modules: &bound(name),
            ignored: &ignored,
            asked: safequant::schemes::Asked::Nothing,
        };
        let edit = writer("modelopt").config(&written).unwrap();
        let (file, bytes) = &edit.documents[0];
        assert_eq!(file, "hf_quant_config.json");
        assert_eq!(
            serde_json::from_slice::<Value>(bytes).unwrap(),
            own,
            "{name}"
        );
        let ours = Value::Object(edit.quantization_config);
        assert_eq!(ours, config["quantization_config"], "{name}");
    }
}

#[test]
fn mixed_layers_are_described_one_by_one() {
    let mut modules = bound("modelopt/modelopt-fp8");
    modules.truncate(2);
    modules.extend(bound("modelopt/modelopt-nvfp4").into_iter().skip(2));
    let written = Written {
        modules: &modules,
        ignored: &["lm_head".to_owned()],
        asked: safequant::schemes::Asked::Nothing,
    };
    let edit = writer("modelopt").config(&written).unwrap();
    let document: Value = serde_json::from_slice(&edit.documents[0].1).unwrap();
    let quantization = &document["quantization"];
    assert_eq!(quantization["quant_algo"], "MIXED_PRECISION");
    let layers = quantization["quantized_layers"].as_object().unwrap();
    assert_eq!(layers.len(), modules.len());
    assert_eq!(layers[&modules[0].module]["quant_algo"], "FP8");
    assert_eq!(layers[&modules[3].module]["group_size"], 16);
    let groups = edit.quantization_config["config_groups"]
        .as_object()
        .unwrap();
    assert_eq!(groups.len(), 2);
    let error = writer("fp8").config(&Written {
        modules: &[
            bound("composed/deepseek-moe").remove(0),
            bound("composed/fbgemm-fp8").remove(0),
        ],
        ..written
    });
    assert!(matches!(error, Err(Error::CannotWrite { .. })));
}

#[test]
fn documents_of_fp8_are_those_of_its_readers() {
    for name in [
        "composed/deepseek-moe",
        "transformers/fgfp8-block128",
        "transformers/fgfp8-ue8m0",
        "composed/fbgemm-fp8",
        "composed/gpt-oss-mxfp4",
    ] {
        let (_, documents) = named(name).files();
        let config: Value = serde_json::from_slice(&documents["config.json"]).unwrap();
        let theirs = &config["quantization_config"];
        let modules = bound(name);
        let edit = writer(modules[0].convention)
            .config(&Written {
                modules: &modules,
                ignored: &[],
                asked: safequant::schemes::Asked::Nothing,
            })
            .unwrap();
        for key in ["quant_method", "weight_block_size", "activation_scheme"] {
            let ours = edit.quantization_config.get(key).unwrap_or(&Value::Null);
            let theirs = theirs.get(key).unwrap_or(&Value::Null);
            assert_eq!(ours, theirs, "{name}: {key}");
        }
        let powers = theirs["scale_fmt"] == "ue8m0";
        assert_eq!(
            edit.quantization_config.get("scale_fmt").is_some(),
            powers,
            "{name}"
        );
    }
}

#[test]
fn the_tensor_scale_of_nvfp4_multiplies_here_and_divides_there() {
    let source = bound("llm-compressor/ct-nvfp4").remove(0);
    assert_eq!(source.scheme.super_scale, SuperScale::Divide);
    let there = writer("modelopt").lay_out_like(&source).unwrap();
    assert_eq!(there.scheme.super_scale, SuperScale::Multiply);
    let names: Vec<&str> = there.parts.iter().map(|p| p.name.as_str()).collect();
    let module = &source.module;
    assert_eq!(
        names,
        ["weight", "weight_scale", "weight_scale_2"].map(|e| format!("{module}.{e}"))
    );
    assert_eq!(there.parts[2].shape, [0_u64; 0]);
}

/// Spellings that are read only: float views, three values in two bits, integer shifts, and a size that means nothing.
const OTHER_SPELLINGS: [&str; 6] = [
    "m.b4_view",
    "m.b3_view_a0",
    "m.b158_g64",
    "m.b8_tensor",
    "m.int4_zeropoint",
    "m.int2_zeropoint",
];

#[test]
fn numbers_of_another_convention_get_the_parts_that_the_tool_stores() {
    let fixtures = [
        "hqq/hqq-4bit-g64",
        "hqq/zoo",
        "optimum-quanto/llama-qint2",
        "optimum-quanto/quanto-qfloat8",
        "optimum-quanto/quanto-qint4",
        "optimum-quanto/quanto-qint8",
        "optimum-quanto/zoo",
    ];
    // How scales were found is not how they are read.
    let is_told = |part: &Part| {
        let (_, ending) = part.name.rsplit_once('.').unwrap();
        part.role != Role::Auxiliary || !matches!(ending, "optimize" | "round_zero")
    };
    let (mut visited, mut others) = (0, 0);
    for name in fixtures {
        let fixture = named(name);
        let checkpoint = fixture.open();
        for tensor in Model::bind(&checkpoint).unwrap().quantized {
            let foreign = QuantizedTensor {
                convention: "another",
                ..tensor.clone()
            };
            let ours = writer(tensor.convention).lay_out_like(&foreign).unwrap();
            let parts = |tensor: &QuantizedTensor| -> Vec<_> {
                let told = sorted(tensor).parts.into_iter().filter(is_told);
                let content = |part: &Part| {
                    let stored = || checkpoint.tensor(&part.name).unwrap().read_all(64).unwrap();
                    let is_beside = part.role == Role::Auxiliary;
                    is_beside.then(|| part.content.clone().unwrap_or_else(stored))
                };
                told.map(|p| (content(&p), p.name, p.dtype, p.shape, p.storage))
                    .collect()
            };
            let is_other = OTHER_SPELLINGS.contains(&tensor.module.as_str());
            let is_same = parts(&ours) == parts(&tensor) && ours.scheme == tensor.scheme;
            assert_eq!(is_same, !is_other, "{name} {}: {ours:#?}", tensor.module);
            others += usize::from(is_other);
            visited += 1;
        }
    }
    assert!(visited >= 50, "{visited} tensors");
    assert_eq!(others, OTHER_SPELLINGS.len());
}

#[test]
fn documents_of_hqq_and_quanto_are_those_of_the_tools() {
    for name in [
        "optimum-quanto/quanto-qfloat8",
        "optimum-quanto/quanto-qint4",
        "optimum-quanto/quanto-qint8",
        "hqq/hqq-4bit-g64",
        "hqq/rtn-hqq-4bit-g64-bf16",
    ] {
        let (_, documents) = named(name).files();
        let json = |file: &str| serde_json::from_slice::<Value>(&documents[file]).unwrap();
        let modules = bound(name);
        let edit = writer(modules[0].convention)
            .config(&Written {
                modules: &modules,
                ignored: &["lm_head".to_owned()],
                asked: safequant::schemes::Asked::Nothing,
            })
            .unwrap();
        let config = &json("config.json")["quantization_config"];
        if config.is_null() {
            assert!(edit.quantization_config.is_empty(), "{name}");
            let (file, bytes) = &edit.documents[0];
            assert_eq!(file, "quanto_qmap.json");
            assert_eq!(
                serde_json::from_slice::<Value>(bytes).unwrap(),
                json(file),
                "{name}"
            );
        } else {
            assert_eq!(Value::Object(edit.quantization_config), *config, "{name}");
        }
    }
}
