//! What a job writes: exactly what its plan says, the same for any number of threads and any budget.

use std::collections::BTreeMap;

use safequant::container::{Checkpoint, Limits, Manifest, OsDisk};
use safequant::kernels::{Backend, Float};
use safequant::quantize::quantizer::NonFinite;
use safequant::rewrite::{self, Action, Error, JobOptions, OutputDtype, QuantizeRecipe, Verb};
use safequant::schemes::{Decoder, Model, RowsOut};
use serde_json::Value;

use super::tiny::{
    Bench, CONFIG, Quiet, Watch, contents, dequantize, options, quantize, tensor, write_tensors,
};

/// Schemes by convention that are tried.
const PAIRS: &[(&str, &str)] = &[
    ("W4A16", "compressed-tensors"),
    ("W4A16_ASYM", "compressed-tensors"),
    ("W8A16", "compressed-tensors"),
    ("W3A16", "compressed-tensors"),
    ("W2A16", "compressed-tensors"),
    ("W8A8", "compressed-tensors"),
    ("FP8", "compressed-tensors"),
    ("FP8_DYNAMIC", "compressed-tensors"),
    ("FP8_BLOCK", "compressed-tensors"),
    ("W4A16", "gptq"),
    ("W3A16", "gptq"),
    ("W8A16", "gptq_v2"),
    ("FP8_BLOCK", "fp8"),
];

#[test]
fn a_run_does_exactly_what_its_plan_says() {
    let bench = Bench::new();
    let source = contents(&bench.path("src"));
    for (i, (scheme, convention)) in PAIRS.iter().enumerate() {
        let verb = quantize(scheme, convention);
        let name = format!("dst{i}");
        let checkpoint = bench.open("src");
        let plan = rewrite::plan(&checkpoint, &verb, &bench.path(&name), &options()).unwrap();
        let summary = rewrite::run(
            &plan,
            &safequant::container::OsDisk,
            &Quiet,
            &<_>::default(),
        )
        .unwrap_or_else(|e| panic!("{scheme} {convention}: {e}"));
        let written = contents(&bench.path(&name));
        let lengths: BTreeMap<String, u64> = written
            .iter()
            .map(|(name, bytes)| (name.clone(), bytes.len() as u64))
            .collect();
        let planned: BTreeMap<String, u64> = plan.files.iter().cloned().collect();
        assert_eq!(lengths, planned, "{scheme} {convention}");
        assert_eq!(summary.files, plan.files);
        assert!(summary.peak_buffer_bytes <= plan.peak_memory_bytes);
        assert!(plan.peak_memory_bytes <= options().memory_bytes);
        assert!(planned.values().sum::<u64>() <= plan.scratch_bytes);
        let quantized = summary.modules.iter().filter(|m| m.loss.is_some());
        let mut n_quantized = 0;
        for module in quantized {
            assert_eq!(module.action, Action::Quantize(scheme));
            let loss = module.loss.unwrap();
            assert_eq!(loss.n_values, module.n_weights, "{}", module.name);
            assert!(
                loss.sqnr_db() > 5.0,
                "{scheme} {convention} {}: {}",
                module.name,
                loss.sqnr_db()
            );
            n_quantized += 1;
        }
        assert_eq!(n_quantized, 14, "{scheme} {convention}");
        check_manifest(&bench, &name);
    }
    assert_eq!(
        contents(&bench.path("src")),
        source,
        "sources are never changed"
    );
}

/// Every tensor is listed with the digest of its bytes.
fn check_manifest(bench: &Bench, name: &str) {
    let bytes = std::fs::read(bench.path(name).join(Manifest::FILE_NAME)).unwrap();
    let manifest = Manifest::from_json(&bytes).unwrap();
    let checkpoint = bench.open(name);
    assert_eq!(manifest.tensors.len(), checkpoint.tensors().len());
    for entry in &manifest.tensors {
        let tensor = checkpoint.tensor(&entry.name).unwrap();
        let bytes = tensor.read_all(1 << 30).unwrap();
        assert_eq!(
            entry.blake3,
            blake3::hash(&bytes).to_hex().as_str(),
            "{}",
            entry.name
        );
        assert_eq!(
            (entry.dtype, entry.shape.as_slice()),
            (tensor.dtype(), tensor.shape())
        );
    }
}

#[test]
fn bytes_do_not_depend_on_threads_or_budget() {
    let bench = Bench::new();
    for (i, (scheme, convention)) in PAIRS.iter().enumerate() {
        let verb = quantize(scheme, convention);
        let mut first: Option<BTreeMap<String, Vec<u8>>> = None;
        let mut losses = None;
        for (threads, memory_bytes) in [(1, 64 << 20), (2, 3 << 20), (5, 64 << 20), (5, 4 << 20)] {
            let name = format!("dst{i}-{threads}-{memory_bytes}");
            let options = JobOptions {
                memory_bytes,
                threads,
                ..options()
            };
            let summary = bench.run(&verb, &name, &options).unwrap();
            assert!(summary.peak_buffer_bytes <= memory_bytes);
            let written = contents(&bench.path(&name));
            let modules = summary.modules;
            assert_eq!(*losses.get_or_insert(modules.clone()), modules);
            assert!(
                first.get_or_insert(written.clone()) == &written,
                "{scheme} {convention} {threads}"
            );
        }
    }
}

#[test]
fn dequantizing_gives_what_the_decoder_gives() {
    let bench = Bench::new();
    for (i, (scheme, convention)) in PAIRS.iter().enumerate() {
        let (packed, dense) = (format!("q{i}"), format!("d{i}"));
        bench
            .run(&quantize(scheme, convention), &packed, &options())
            .unwrap();
        let checkpoint = bench.open(&packed);
        for (dtype, suffix) in [
            (OutputDtype::Auto, "auto"),
            (OutputDtype::Float(Float::F32), "f32"),
        ] {
            let path = bench.path(&format!("{dense}-{suffix}"));
            let verb = dequantize(dtype);
            let plan = rewrite::plan(&checkpoint, &verb, &path, &options()).unwrap();
            rewrite::run(
                &plan,
                &safequant::container::OsDisk,
                &Quiet,
                &<_>::default(),
            )
            .unwrap();
            let written = Checkpoint::open(&path, &Limits::default()).unwrap();
            let model = Model::bind(&checkpoint).unwrap();
            assert_eq!(model.quantized.len(), 14);
            for tensor in &model.quantized {
                let float = match dtype {
                    OutputDtype::Auto => tensor.reference_dtype,
                    OutputDtype::Float(float) => float,
                };
                let n = usize::try_from(tensor.n_rows() * tensor.in_features()).unwrap();
                let mut expected = vec![0; n * float.size_bytes()];
                let decoder = Decoder::new(tensor, &checkpoint, Backend::detect()).unwrap();
                decoder
                    .rows(0..tensor.n_rows(), RowsOut::Bytes(float, &mut expected))
                    .unwrap();
                let found = written
                    .tensor(&tensor.weight)
                    .unwrap()
                    .read_all(1 << 30)
                    .unwrap();
                assert!(found == expected, "{scheme} {convention} {}", tensor.module);
            }
            assert_eq!(written.tensors().len(), 19, "companions are gone");
            let config = std::fs::read_to_string(path.join("config.json")).unwrap();
            let expected = match dtype {
                OutputDtype::Auto => CONFIG.to_owned(),
                OutputDtype::Float(_) => CONFIG.replace("bfloat16", "float32"),
            };
            assert_eq!(
                config, expected,
                "the config is that of the dense checkpoint again"
            );
        }
    }
}

#[test]
fn sidecars_travel_and_the_config_keeps_its_spelling() {
    let bench = Bench::new();
    bench
        .run(&quantize("W4A16", "gptq"), "dst", &options())
        .unwrap();
    let (source, written) = (contents(&bench.path("src")), contents(&bench.path("dst")));
    for name in ["tokenizer.json", "extra/notes.txt", "LICENSE"] {
        assert_eq!(written[name], source[name], "{name}");
    }
    assert!(!written.contains_key("pytorch_model.bin"));
    let config = String::from_utf8(written["config.json"].clone()).unwrap();
    let kept = CONFIG.trim_end_matches("\n}\n");
    assert!(config.starts_with(kept), "{config}");
    assert!(
        config.contains(",\n  \"quantization_config\": {\n    \""),
        "{config}"
    );
    assert!(config.contains("Infinity"));
}

#[test]
fn recipes_choose_modules() {
    let bench = Bench::new();
    let Verb::Quantize(mut recipe) = quantize("W8A8", "compressed-tensors") else {
        panic!("a quantize verb");
    };
    recipe.groups[0].targets = vec![
        "*self_attn*".to_owned(),
        "lm_head".to_owned(),
        "*nothing*".to_owned(),
    ];
    recipe.ignore = vec!["re:.*layers\\.1\\..*k_proj$".to_owned()];
    let checkpoint = bench.open("src");
    let verb = Verb::Quantize(recipe);
    let plan = rewrite::plan(&checkpoint, &verb, &bench.path("dst"), &options()).unwrap();
    let quantized: Vec<&str> = plan
        .modules
        .iter()
        .filter(|m| matches!(m.action, Action::Quantize(_)))
        .map(|m| m.name.as_str())
        .collect();
    assert_eq!(quantized.len(), 8, "{quantized:?}");
    assert!(quantized.contains(&"lm_head"));
    assert!(!quantized.contains(&"model.layers.1.self_attn.k_proj"));
    assert!(
        plan.notes.iter().any(|n| n.contains("*nothing*")),
        "{:?}",
        plan.notes
    );
    assert!(
        plan.notes.iter().any(|n| n.contains("as one")),
        "{:?}",
        plan.notes
    );
    assert_eq!(
        plan.to_json()["modules"].as_array().map(Vec::len),
        Some(plan.modules.len())
    );
}

#[test]
fn fused_siblings_get_one_scale_for_the_tensor() {
    let bench = Bench::new();
    bench
        .run(&quantize("FP8", "compressed-tensors"), "dst", &options())
        .unwrap();
    let written = bench.open("dst");
    let scale = |module: &str| {
        let name = format!("model.layers.0.{module}.weight_scale");
        written.tensor(&name).unwrap().read_all(64).unwrap()
    };
    assert_eq!(scale("self_attn.q_proj"), scale("self_attn.k_proj"));
    assert_eq!(scale("self_attn.q_proj"), scale("self_attn.v_proj"));
    assert_eq!(scale("mlp.gate_proj"), scale("mlp.up_proj"));
    assert_ne!(scale("self_attn.q_proj"), scale("mlp.up_proj"));
}

#[test]
fn a_quantized_source_is_quantized_again_with_a_note() {
    let bench = Bench::new();
    bench
        .run(&quantize("W8A16", "gptq"), "first", &options())
        .unwrap();
    let checkpoint = bench.open("first");
    let verb = quantize("FP8_BLOCK", "fp8");
    let plan = rewrite::plan(&checkpoint, &verb, &bench.path("second"), &options()).unwrap();
    assert!(
        plan.notes.iter().any(|n| n.contains("loses more")),
        "{:?}",
        plan.notes
    );
    rewrite::run(
        &plan,
        &safequant::container::OsDisk,
        &Quiet,
        &<_>::default(),
    )
    .unwrap();
    let second = bench.open("second");
    let model = Model::bind(&second).unwrap();
    assert_eq!(model.quantized.len(), 14);
    assert!(second.tensors().all(|t| !t.name().contains("qweight")));
    assert!(!bench.path("second").join("quantize_config.json").exists());
    let config: String = std::fs::read_to_string(bench.path("second").join("config.json")).unwrap();
    assert_eq!(config.matches("quantization_config").count(), 1);
}

#[test]
fn a_budget_too_small_names_the_module_and_its_need() {
    let bench = Bench::new();
    let small = JobOptions {
        memory_bytes: 280 << 10,
        ..options()
    };
    let error = bench
        .run(&quantize("FP8_BLOCK", "fp8"), "dst", &small)
        .unwrap_err();
    let Error::MemoryTooSmall {
        needed_bytes,
        budget_bytes,
        ..
    } = error
    else {
        panic!("{error}");
    };
    assert_eq!(budget_bytes, 280 << 10);
    let enough = JobOptions {
        memory_bytes: needed_bytes,
        ..options()
    };
    bench
        .run(&quantize("FP8_BLOCK", "fp8"), "dst", &enough)
        .unwrap();
}

#[test]
fn shapes_that_a_scheme_cannot_hold_are_errors_with_a_way_out() {
    let bench = Bench::new();
    // GPTQ's 3-bit codes come in runs of 32.
    let tensors = vec![
        tensor("a.up_proj.weight", &[64, 250]),
        tensor("a.down_proj.weight", &[64, 256]),
    ];
    write_tensors(&bench.path("odd"), tensors, 1 << 30);
    let checkpoint = bench.open("odd");
    let Verb::Quantize(mut recipe) = quantize("W3A16", "gptq") else {
        panic!("a quantize verb");
    };
    let plan = |recipe: &QuantizeRecipe| {
        let verb = Verb::Quantize(recipe.clone());
        rewrite::plan(&checkpoint, &verb, &bench.path("dst"), &options()).map(|p| p.modules)
    };
    let error = plan(&recipe).unwrap_err();
    assert!(matches!(error, Error::CannotHold { .. }), "{error}");
    assert!(error.to_string().contains("a.up_proj"), "{error}");
    assert!(error.to_string().contains("--ignore"), "{error}");
    recipe.ignore = vec!["*up_proj".to_owned()];
    let modules = plan(&recipe).unwrap();
    assert_eq!(
        modules.iter().filter(|m| m.action == Action::Copy).count(),
        1
    );
}

#[test]
fn a_single_file_becomes_a_single_file() {
    let bench = Bench::new();
    super::tiny::write_dense(&bench.path("one"), 1 << 40);
    let file = bench.path("one").join("model.safetensors");
    let checkpoint = Checkpoint::open(&file, &Limits::default()).unwrap();
    let destination = bench.path("small.safetensors");
    let verb = quantize("W4A16", "compressed-tensors");
    let plan = rewrite::plan(&checkpoint, &verb, &destination, &options()).unwrap();
    rewrite::run(
        &plan,
        &safequant::container::OsDisk,
        &Quiet,
        &<_>::default(),
    )
    .unwrap();
    assert_eq!(
        bench.names(),
        [
            "one",
            "small.safetensors",
            "small.safetensors.manifest.json",
            "src"
        ]
    );
    let lengths: Vec<u64> = plan
        .files
        .iter()
        .map(|(name, _)| std::fs::metadata(bench.path(name)).unwrap().len())
        .collect();
    assert_eq!(
        lengths,
        plan.files.iter().map(|(_, len)| *len).collect::<Vec<_>>()
    );
    let written = Checkpoint::open(&destination, &Limits::default()).unwrap();
    let metadata = written.shards()[0].header.metadata.clone().unwrap();
    let config = metadata
        .iter()
        .find(|(key, _)| key == "quantization_config")
        .unwrap();
    let config: Value = serde_json::from_str(&config.1).unwrap();
    assert_eq!(config["quant_method"], "compressed-tensors");
    assert!(
        metadata
            .iter()
            .any(|(key, value)| key == "note" && value == "kept")
    );
}

#[test]
fn a_weight_that_is_not_finite_is_refused_by_name_or_clamped() {
    let bench = Bench::new();
    let checkpoint = bench.open("src");
    let module = "model.layers.1.mlp.up_proj";
    let tensor = checkpoint.tensor(&format!("{module}.weight")).unwrap();
    let path = bench.path("src").join(&tensor.shard.name);
    let at = usize::try_from(tensor.info.range.start).unwrap() + 2 * (256 * 300 + 5);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[at..at + 2].copy_from_slice(&0x7FC0_u16.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    for (scheme, convention) in [
        ("W4A16", "compressed-tensors"),
        ("FP8", "compressed-tensors"),
    ] {
        let error = bench
            .run(&quantize(scheme, convention), "dst", &options())
            .unwrap_err();
        assert!(matches!(error, Error::Quantize { .. }), "{error}");
        let text = error.to_string();
        assert!(
            text.contains(module) && text.contains("row 300") && text.contains("column 5"),
            "{text}"
        );
        assert_eq!(
            bench.names(),
            ["src"],
            "nothing is left: going on would fail again"
        );
    }
    let Verb::Quantize(mut recipe) = quantize("W4A16", "compressed-tensors") else {
        panic!("a quantize verb");
    };
    recipe.nonfinite = NonFinite::Clamp;
    let summary = bench
        .run(&Verb::Quantize(recipe), "dst", &options())
        .unwrap();
    let clamped = summary.modules.iter().find(|m| m.name == module).unwrap();
    assert_eq!(clamped.loss.unwrap().n_values, clamped.n_weights - 1);
}

#[test]
fn scales_that_underflow_are_counted_and_told() {
    let bench = Bench::new();
    // 32 rows of one group each; all but the first are far below F16's smallest subnormal times 15.
    let header = r#"{"a.weight":{"dtype":"F32","shape":[32,128],"data_offsets":[0,16384]}}"#;
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    for row in 0..32 {
        let value = if row == 0 { 0.5_f32 } else { 1e-9 };
        for column in 0..128 {
            let signed = if column % 2 == 0 { value } else { -value };
            file.extend_from_slice(&signed.to_le_bytes());
        }
    }
    std::fs::remove_dir_all(bench.path("src")).unwrap();
    std::fs::create_dir(bench.path("src")).unwrap();
    std::fs::write(bench.path("src").join("model.safetensors"), file).unwrap();

    let watch = Watch::new(usize::MAX);
    let verb = quantize("W4A16", "gptq");
    bench
        .run_on(&OsDisk, &verb, "dst", &options(), &watch, &watch.cancel)
        .unwrap();
    let notes = watch.notes.lock().unwrap();
    assert!(
        notes
            .iter()
            .any(|n| n.starts_with("a: 31 scales underflow")),
        "{notes:?}"
    );
}
