//! GGUF files written by whole jobs: what is GGUF already, what llama.cpp's converter makes of models in the layout of Hugging
//! Face, and what is quantized or carried over on the way.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safequant::container::{Checkpoint, Dtype, GgufMetadata, Limits, PlannedTensor};
use safequant::rewrite::{
    self, CancelToken, ConvertRecipe, Error, JobOptions, Label, LossPolicy, OutputDtype, Summary,
    Verb,
};

use super::tiny;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/llama.cpp")
}

fn to(convention: &'static str) -> Verb {
    Verb::Convert(ConvertRecipe {
        convention,
        loss: LossPolicy::Refuse,
        ignore: Vec::new(),
    })
}

fn roomy() -> JobOptions {
    JobOptions {
        max_shard_bytes: 1 << 30,
        ..tiny::options()
    }
}

fn run(source: &Path, verb: &Verb, to: &Path, options: &JobOptions) -> Result<Summary, Error> {
    let checkpoint = Checkpoint::open(source, &Limits::default()).unwrap();
    let plan = rewrite::plan(&checkpoint, verb, to, options)?;
    let planned = plan.files.clone();
    let summary = rewrite::run(
        &plan,
        &safequant::container::OsDisk,
        &tiny::Quiet,
        &CancelToken::default(),
    )?;
    assert_eq!(summary.files, planned, "the plan equals what is done");
    Ok(summary)
}

fn open(path: &Path) -> Checkpoint {
    Checkpoint::open(path, &Limits::default()).unwrap()
}

type Tensors = BTreeMap<String, (Dtype, Vec<u64>, Option<&'static str>, Vec<u8>)>;

fn tensors(checkpoint: &Checkpoint) -> Tensors {
    let all = checkpoint.tensors();
    all.map(|tensor| {
        let info = tensor.info;
        let bytes = tensor.read_all(info.len_bytes()).unwrap();
        let block = info.block.map(|block| block.name);
        let about = (info.dtype, info.shape.to_vec(), block, bytes);
        (info.name.to_string(), about)
    })
    .collect()
}

/// Keys with their values as text, but for the name, which the converter takes from the folder.
fn entries(metadata: &GgufMetadata) -> Vec<(String, String)> {
    let all = metadata.iter().filter(|(key, _)| *key != "general.name");
    all.map(|(key, value)| (key.to_owned(), format!("{value:?}")))
        .collect()
}

#[test]
fn models_that_are_gguf_come_out_byte_for_byte() {
    let folder = tempfile::tempdir().unwrap();
    let mut n = 0;
    for entry in std::fs::read_dir(fixtures()).unwrap() {
        for file in std::fs::read_dir(entry.unwrap().path()).unwrap() {
            let source = file.unwrap().path();
            if source.extension().is_none_or(|e| e != "gguf") {
                continue;
            }
            let target = folder.path().join(format!("{n}.gguf"));
            run(&source, &to("gguf"), &target, &roomy()).unwrap();
            let same = std::fs::read(&source).unwrap() == std::fs::read(&target).unwrap();
            assert!(same, "{}", source.display());
            n += 1;
        }
    }
    assert!(n >= 9, "{n} models");
}

#[test]
fn dense_models_become_what_the_converter_makes_of_them() {
    let folder = tempfile::tempdir().unwrap();
    let mut n = 0;
    for entry in std::fs::read_dir(fixtures()).unwrap() {
        let source = entry.unwrap().path();
        let expected = source.join("expected.gguf");
        if !expected.exists() {
            continue;
        }
        let target = folder.path().join(format!("{n}.gguf"));
        run(&source, &to("gguf"), &target, &roomy()).unwrap();
        let (ours, theirs) = (open(&target), open(&expected));
        assert_eq!(tensors(&ours), tensors(&theirs), "{}", source.display());
        let entries_of = |c: &Checkpoint| entries(c.gguf().unwrap());
        assert_eq!(
            entries_of(&ours),
            entries_of(&theirs),
            "{}",
            source.display()
        );
        n += 1;
    }
    assert!(n >= 6, "{n} models");
}

/// Hidden size, heads, heads of keys and values, and the size of the network in between.
const HIDDEN: u64 = 64;
const HEADS: u64 = 2;
const HEAD: u64 = HIDDEN / HEADS;
const INNER: u64 = 96;

const NORMS: [&str; 2] = ["input_layernorm", "post_attention_layernorm"];

fn shared() -> Vec<PlannedTensor> {
    let norm = |name: &str| tiny::tensor(&format!("model.layers.0.{name}.weight"), &[HIDDEN]);
    let mut all: Vec<_> = NORMS.into_iter().map(norm).collect();
    all.extend([
        tiny::tensor("model.embed_tokens.weight", &[70, HIDDEN]),
        tiny::tensor("lm_head.weight", &[70, HIDDEN]),
        tiny::tensor("model.norm.weight", &[HIDDEN]),
    ]);
    for (name, rows) in [
        ("q_proj", HIDDEN),
        ("k_proj", HEAD),
        ("v_proj", HEAD),
        ("o_proj", HIDDEN),
    ] {
        let name = format!("model.layers.0.self_attn.{name}.weight");
        all.push(tiny::tensor(&name, &[rows, HIDDEN]));
    }
    all
}

fn config(architecture: &str, more: &str) -> String {
    format!(
        "{{\"architectures\": [\"{architecture}\"], \"hidden_size\": {HIDDEN}, \"intermediate_size\": {INNER}, \
         \"max_position_embeddings\": 64, \"num_attention_heads\": {HEADS}, \"num_hidden_layers\": 1, \
         \"num_key_value_heads\": 1, \"rms_norm_eps\": 1e-05, \"vocab_size\": 70, \"torch_dtype\": \"bfloat16\"{more}}}"
    )
}

fn write(folder: &Path, tensors: Vec<PlannedTensor>, config: &str) {
    tiny::write_tensors(folder, tensors, 1 << 30);
    std::fs::write(folder.join("config.json"), config).unwrap();
    for name in [
        "tokenizer.model",
        "tokenizer_config.json",
        "added_tokens.json",
    ] {
        let source = fixtures().join("hf-llama-spm").join(name);
        std::fs::copy(source, folder.join(name)).unwrap();
    }
}

/// A Llama of one layer, with seeded weights in BF16.
fn llama(folder: &Path) {
    let mut tensors = shared();
    for (name, shape) in [
        ("gate_proj", [INNER, HIDDEN]),
        ("up_proj", [INNER, HIDDEN]),
        ("down_proj", [HIDDEN, INNER]),
    ] {
        tensors.push(tiny::tensor(
            &format!("model.layers.0.mlp.{name}.weight"),
            &shape,
        ));
    }
    write(folder, tensors, &config("LlamaForCausalLM", ""));
}

/// The tensors of a Mixtral of one layer with three experts.
fn mixtral_tensors() -> Vec<PlannedTensor> {
    let mut tensors = shared();
    let moe = "model.layers.0.block_sparse_moe";
    tensors.push(tiny::tensor(&format!("{moe}.gate.weight"), &[3, HIDDEN]));
    for expert in 0..3 {
        for (name, shape) in [
            ("w1", [INNER, HIDDEN]),
            ("w3", [INNER, HIDDEN]),
            ("w2", [HIDDEN, INNER]),
        ] {
            let name = format!("{moe}.experts.{expert}.{name}.weight");
            tensors.push(tiny::tensor(&name, &shape));
        }
    }
    tensors
}

const EXPERTS: &str = ", \"num_local_experts\": 3, \"num_experts_per_tok\": 2";

fn mixtral(folder: &Path, tensors: Vec<PlannedTensor>) {
    write(folder, tensors, &config("MixtralForCausalLM", EXPERTS));
}

#[test]
fn quantizing_and_respelling_may_come_in_any_order() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    llama(&at("llama"));
    mixtral(&at("mixtral"), mixtral_tensors());
    let mut n = 0;
    for model in ["llama", "mixtral"] {
        let dense = at(&format!("{model}.gguf"));
        run(&at(model), &to("gguf"), &dense, &roomy()).unwrap();
        for scheme in ["Q4_0", "Q8_0", "Q5_1", "Q4_K", "MXFP4A16"] {
            let verb = tiny::quantize(scheme, "gguf");
            let direct = at(&format!("{model}-{scheme}.gguf"));
            run(&at(model), &verb, &direct, &roomy()).unwrap();
            let later = at(&format!("{model}-{scheme}-later.gguf"));
            run(&dense, &verb, &later, &roomy()).unwrap();
            let same = std::fs::read(&direct).unwrap() == std::fs::read(&later).unwrap();
            assert!(same, "{model} to {scheme}");
            let blocks = tensors(&open(&direct)).into_values();
            let n_blocks = blocks.filter(|(_, _, block, _)| block.is_some()).count();
            assert_eq!(n_blocks, 7, "{model} to {scheme}");
            n += 1;
        }
    }
    assert_eq!(n, 10);
}

#[test]
fn only_quantized_weights_lose_more_when_quantized_again() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    llama(&at("llama"));
    run(&at("llama"), &to("gguf"), &at("dense.gguf"), &roomy()).unwrap();
    let verb = tiny::quantize("Q8_0", "gguf");
    run(&at("dense.gguf"), &verb, &at("q8_0.gguf"), &roomy()).unwrap();
    for (source, is_warned) in [("dense.gguf", false), ("q8_0.gguf", true)] {
        let to = tiny::quantize("Q4_0", "gguf");
        let checkpoint = open(&at(source));
        let plan = rewrite::plan(&checkpoint, &to, &at("q4_0.gguf"), &roomy()).unwrap();
        let warns = plan.notes.iter().any(|note| note.contains("loses more"));
        assert_eq!(warns, is_warned, "{source}: {:?}", plan.notes);
    }
}

#[test]
fn memory_threads_and_parts_change_no_tensor() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    mixtral(&at("src"), mixtral_tensors());
    let verb = tiny::quantize("Q8_0", "gguf");
    run(&at("src"), &verb, &at("whole.gguf"), &roomy()).unwrap();
    let whole = std::fs::read(at("whole.gguf")).unwrap();
    let small = JobOptions {
        memory_bytes: 700 << 10,
        threads: 1,
        ..roomy()
    };
    run(&at("src"), &verb, &at("small.gguf"), &small).unwrap();
    assert!(whole == std::fs::read(at("small.gguf")).unwrap());
    let parts = JobOptions {
        max_shard_bytes: 30_000,
        ..roomy()
    };
    let summary = run(&at("src"), &verb, &at("parts"), &parts).unwrap();
    let first = summary.files.iter().map(|(name, _)| name.as_str());
    let first = first.into_iter().find(|name| name.contains("-00001-of-"));
    let split = open(&at("parts").join(first.unwrap()));
    assert!(split.shards().len() > 2);
    assert_eq!(tensors(&split), tensors(&open(&at("whole.gguf"))));
}

/// The row of the source that stands at `row` of GGUF's q and k (formats: gguf §6), told once more.
fn source_row(row: u64) -> u64 {
    let (head, at) = (row / HEAD, row % HEAD);
    head * HEAD + (at % 2) * (HEAD / 2) + at / 2
}

#[test]
fn codes_go_over_with_their_rows() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    llama(&at("src"));
    let mut scheme = tiny::quantize("W4A16", "compressed-tensors");
    if let Verb::Quantize(recipe) = &mut scheme {
        let preset = &mut recipe.groups[0].preset;
        *preset = preset.clone().with_group_size(Some(32)).unwrap();
    }
    run(&at("src"), &scheme, &at("ct"), &roomy()).unwrap();
    let summary = run(&at("ct"), &to("gguf"), &at("m.gguf"), &roomy()).unwrap();
    let converted = summary.modules.iter().filter(|m| {
        m.action == rewrite::Action::Convert(Label::Cast)
            || m.action == rewrite::Action::Convert(Label::Exact)
    });
    assert_eq!(converted.count(), 7);
    let f32s = tiny::dequantize(OutputDtype::Float(safequant::kernels::Float::F32));
    run(&at("ct"), &f32s, &at("a"), &roomy()).unwrap();
    run(&at("m.gguf"), &f32s, &at("b"), &roomy()).unwrap();
    let (ours, theirs) = (tensors(&open(&at("a"))), tensors(&open(&at("b"))));
    let rows = |tensors: &Tensors, name: &str| -> Vec<Vec<u8>> {
        let (dtype, shape, _, bytes) = &tensors[name];
        assert_eq!(*dtype, Dtype::F32, "{name}");
        let width = usize::try_from(4 * shape[1]).unwrap();
        bytes.chunks_exact(width).map(<[u8]>::to_vec).collect()
    };
    let mut n = 0;
    for (hf, gguf, is_permuted) in [
        ("self_attn.q_proj", "attn_q", true),
        ("self_attn.k_proj", "attn_k", true),
        ("self_attn.v_proj", "attn_v", false),
        ("self_attn.o_proj", "attn_output", false),
        ("mlp.down_proj", "ffn_down", false),
    ] {
        let source = rows(&ours, &format!("model.layers.0.{hf}.weight"));
        let target = rows(&theirs, &format!("blk.0.{gguf}.weight"));
        assert_eq!(source.len(), target.len());
        for (row, found) in (0_u64..).zip(&target) {
            let from = if is_permuted { source_row(row) } else { row };
            let expected = &source[usize::try_from(from).unwrap()];
            assert!(found == expected, "{gguf}, row {row}");
            n += 1;
        }
    }
    assert_eq!(n, HIDDEN + HEAD + HEAD + HIDDEN + HIDDEN);
}

#[test]
fn what_cannot_be_spelled_is_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let refused = |source: &str, verb: &Verb, to: &str| {
        let error = run(&at(source), verb, &at(to), &roomy()).unwrap_err();
        assert!(!at(to).exists(), "{to}");
        error.to_string()
    };
    llama(&at("llama"));
    let q4 = tiny::quantize("Q4_0", "gguf");
    let said = refused("llama", &q4, "x.safetensors");
    assert!(said.contains("name a directory or a .gguf file"), "{said}");
    let ct = tiny::quantize("W4A16", "compressed-tensors");
    let said = refused("llama", &ct, "x.gguf");
    assert!(said.contains("name a directory"), "{said}");

    for expert in [1, 2] {
        let mut lacking = mixtral_tensors();
        lacking.retain(|t| !t.name.contains(&format!("experts.{expert}.w3")));
        let name = format!("lacking{expert}");
        mixtral(&at(&name), lacking);
        let said = refused(&name, &q4, "lacking.gguf");
        let expected = format!("number {expert} of 3 is missing");
        assert!(said.contains(&expected), "{said}");
    }

    let mut uneven = mixtral_tensors();
    for tensor in &mut uneven {
        if tensor.name.contains("experts.1.w3") {
            tensor.shape = vec![INNER + 32, HIDDEN];
        }
    }
    mixtral(&at("uneven"), uneven);
    refused("uneven", &q4, "uneven.gguf");

    write(
        &at("other"),
        shared(),
        &config("SomethingElseForCausalLM", ""),
    );
    let said = refused("other", &q4, "other.gguf");
    assert!(said.contains("SomethingElseForCausalLM"), "{said}");

    llama(&at("mute"));
    std::fs::remove_file(at("mute").join("tokenizer.model")).unwrap();
    let said = refused("mute", &q4, "mute.gguf");
    assert!(said.contains("tokenizer"), "{said}");
}
