//! A small dense checkpoint on disk, in the shape of a Llama, and what the tests need around jobs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use safequant::container::{
    Checkpoint, CheckpointPlan, Disk, Dtype, FileWriter, Limits, OsDisk, PlannedTensor, TensorGroup,
};
use safequant::quantize::quantizer::NonFinite;
use safequant::quantize::{Division, Settings};
use safequant::rewrite::{
    self, CancelToken, DequantizeRecipe, Destination, Error, Event, Events, JobOptions,
    OutputDtype, QuantizeRecipe, SchemeGroup, Summary, Verb,
};
use safequant::schemes::Preset;

/// `config.json` of the small checkpoint: with spellings that no JSON library gives back.
pub(crate) const CONFIG: &str = "{\n  \"architectures\": [\n    \"LlamaForCausalLM\"\n  ],\n  \"rms_norm_eps\": 1e-05,\n  \"time_step_limit\": [0.0, Infinity],\n  \"torch_dtype\": \"bfloat16\"\n}\n";

pub(crate) fn tensor(name: &str, shape: &[u64]) -> PlannedTensor {
    PlannedTensor {
        name: name.to_owned(),
        dtype: Dtype::BF16,
        shape: shape.to_vec(),
        block: None,
    }
}

fn tensors() -> Vec<PlannedTensor> {
    let mut all = vec![
        tensor("lm_head.weight", &[48, 256]),
        tensor("model.embed_tokens.weight", &[48, 256]),
        tensor("model.norm.weight", &[256]),
    ];
    for layer in 0..2 {
        let at = |name: &str| format!("model.layers.{layer}.{name}.weight");
        for (name, shape) in [
            ("self_attn.q_proj", [256, 256]),
            ("self_attn.k_proj", [64, 256]),
            ("self_attn.v_proj", [64, 256]),
            ("self_attn.o_proj", [256, 256]),
            ("mlp.gate_proj", [384, 256]),
            ("mlp.up_proj", [384, 256]),
            ("mlp.down_proj", [256, 384]),
        ] {
            all.push(tensor(&at(name), &shape));
        }
        all.push(tensor(&at("input_layernorm"), &[256]));
    }
    all
}

/// Reproducible BF16 numbers around zero: a linear congruential generator (Knuth's MMIX constants), summed to a bell.
fn bf16(n_elements: u64, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2) + 1;
    let mut bytes = Vec::new();
    for _ in 0..n_elements {
        let mut sum = 0.0_f32;
        for _ in 0..4 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let top = u16::try_from(state >> 48).unwrap();
            sum += f32::from(top) / 65536.0 - 0.5;
        }
        bytes.extend_from_slice(&(sum * 0.05).to_le_bytes()[2..]);
    }
    bytes
}

/// Writes the checkpoint: shards of at most `max_shard_bytes`, index, config, tokenizer, a file in a folder.
pub(crate) fn write_dense(directory: &Path, max_shard_bytes: u64) {
    write_tensors(directory, tensors(), max_shard_bytes);
    std::fs::create_dir_all(directory.join("extra")).unwrap();
    std::fs::write(directory.join("config.json"), CONFIG).unwrap();
    std::fs::write(
        directory.join("tokenizer.json"),
        "{\"model\": \"\u{1F980}\"}",
    )
    .unwrap();
    std::fs::write(directory.join("extra/notes.txt"), "a file in a folder\n").unwrap();
    std::fs::write(directory.join("pytorch_model.bin"), "old weights").unwrap();
    std::fs::write(directory.join("LICENSE"), "").unwrap();
}

/// Writes shards of at most `max_shard_bytes` and the index.
pub(crate) fn write_tensors(directory: &Path, tensors: Vec<PlannedTensor>, max_shard_bytes: u64) {
    std::fs::create_dir_all(directory).unwrap();
    let groups = tensors
        .into_iter()
        .map(|t| TensorGroup { tensors: vec![t] })
        .collect();
    let metadata = [
        ("format".to_owned(), "pt".to_owned()),
        ("note".to_owned(), "kept".to_owned()),
    ];
    let plan = CheckpointPlan::new(groups, max_shard_bytes, &metadata).unwrap();
    for file in plan.files {
        let opened = OsDisk.open_file(&directory.join(&file.name), true).unwrap();
        let writer = FileWriter::create(file.clone(), opened).unwrap();
        for (i, info) in file.tensors.iter().enumerate() {
            let seed = info
                .name
                .bytes()
                .fold(7_u64, |a, b| a.wrapping_mul(31).wrapping_add(b.into()));
            writer
                .write_at(i, 0, &bf16(info.n_elements(), seed))
                .unwrap();
        }
        writer.seal().unwrap();
    }
    if let Some(index) = plan.index {
        std::fs::write(directory.join("model.safetensors.index.json"), index).unwrap();
    }
}

/// A folder with the dense checkpoint in `src`.
pub(crate) struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        write_dense(&folder.path().join("src"), 600_000);
        Self { folder }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn open(&self, name: &str) -> Checkpoint {
        Checkpoint::open(&self.path(name), &Limits::default()).unwrap()
    }

    /// Names in the folder, hidden ones included.
    pub(crate) fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.folder.path()).unwrap();
        let mut names: Vec<String> = entries
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// Runs `src` to `destination` on the real disk.
    pub(crate) fn run(
        &self,
        verb: &Verb,
        destination: &str,
        options: &JobOptions,
    ) -> Result<Summary, Error> {
        self.run_on(
            &OsDisk,
            verb,
            destination,
            options,
            &Quiet,
            &CancelToken::default(),
        )
    }

    pub(crate) fn run_on(
        &self,
        disk: &dyn Disk,
        verb: &Verb,
        destination: &str,
        options: &JobOptions,
        events: &dyn Events,
        cancel: &CancelToken,
    ) -> Result<Summary, Error> {
        let checkpoint = self.open("src");
        let plan = rewrite::plan(&checkpoint, verb, &self.path(destination), options)?;
        rewrite::run(&plan, disk, events, cancel)
    }
}

pub(crate) fn quantize(scheme: &str, convention: &'static str) -> Verb {
    Verb::Quantize(QuantizeRecipe {
        groups: vec![group(scheme)],
        convention,
        calibration: None,
        ignore: Vec::new(),
        division: Division::SourceDtype,
        nonfinite: NonFinite::Refuse,
        notes: Vec::new(),
    })
}

/// Every linear weight, rounded to nearest.
pub(crate) fn group(scheme: &str) -> SchemeGroup {
    SchemeGroup {
        preset: Preset::by_name(scheme).unwrap(),
        method: "rtn",
        settings: Settings::default(),
        targets: Vec::new(),
        ignore: Vec::new(),
    }
}

pub(crate) fn dequantize(dtype: OutputDtype) -> Verb {
    Verb::Dequantize(DequantizeRecipe { dtype })
}

pub(crate) fn options() -> JobOptions {
    JobOptions {
        memory_bytes: 16 << 20,
        threads: 2,
        max_shard_bytes: 300_000,
        destination: Destination::New,
    }
}

pub(crate) fn resume() -> JobOptions {
    JobOptions {
        destination: Destination::Resume,
        ..options()
    }
}

/// Every file under a directory with its bytes.
pub(crate) fn contents(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![directory.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path
                    .strip_prefix(directory)
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .to_owned();
                found.insert(name, std::fs::read(&path).unwrap());
            }
        }
    }
    found
}

/// Listens to nothing.
pub(crate) struct Quiet;

impl Events for Quiet {
    fn event(&self, _: Event<'_>) {}
}

/// Keeps notes, and cancels after so many advances.
pub(crate) struct Watch {
    pub(crate) notes: Mutex<Vec<String>>,
    pub(crate) cancel: CancelToken,
    left: AtomicUsize,
}

impl Watch {
    pub(crate) fn new(cancel_after: usize) -> Self {
        Self {
            notes: Mutex::default(),
            cancel: CancelToken::default(),
            left: AtomicUsize::new(cancel_after),
        }
    }
}

impl Events for Watch {
    fn event(&self, event: Event<'_>) {
        match event {
            Event::Advance { .. } => {
                if self.left.fetch_sub(1, Ordering::Relaxed) == 1 {
                    self.cancel.cancel();
                }
            }
            Event::Note { text } => self.notes.lock().unwrap().push(text.to_owned()),
            Event::Start { .. } | Event::Module { .. } | Event::Shard { .. } | Event::Commit => {}
        }
    }
}
