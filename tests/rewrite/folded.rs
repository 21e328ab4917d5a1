//! Method `awq`: scales of input features, folded into what comes before. Small models of several architectures are run here, in F64, before
//! and after.

#![expect(clippy::cast_precision_loss, reason = "counts of a few hundred")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safequant::container::{
    Checkpoint, Disk, Dtype, ErrorGroup, FilePlan, FileWriter, Limits, OsDisk, PlannedTensor,
};
use safequant::quantize::Settings;
use safequant::rewrite::{
    self, AWQ, Action, CalibrationFile, CancelToken, Error, JobOptions, OutputDtype, Summary, Verb,
};
use serde_json::json;

use super::tiny::{Quiet, Watch, contents, dequantize, options, quantize, resume};

const HIDDEN: usize = 128;
const HEADS: usize = 4;
const INNER: usize = 256;
const WORDS: usize = 40;
const LAYERS: usize = 2;

/// The architectures that are run here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Llama,
    /// Fewer heads of keys and values, and biases.
    Qwen,
    /// Biases with as many heads of values.
    Biased,
    Gemma,
    Phi,
}

impl Kind {
    const ALL: [Kind; 5] = [
        Kind::Llama,
        Kind::Qwen,
        Kind::Biased,
        Kind::Gemma,
        Kind::Phi,
    ];

    fn class(self) -> &'static str {
        match self {
            Kind::Llama => "LlamaForCausalLM",
            Kind::Qwen | Kind::Biased => "Qwen2ForCausalLM",
            Kind::Gemma => "GemmaForCausalLM",
            Kind::Phi => "Phi3ForCausalLM",
        }
    }

    fn values(self) -> usize {
        match self {
            Kind::Qwen => HIDDEN / 2,
            Kind::Llama | Kind::Biased | Kind::Gemma | Kind::Phi => HIDDEN,
        }
    }

    fn is_biased(self) -> bool {
        matches!(self, Kind::Qwen | Kind::Biased)
    }
}

/// Reproducible numbers of BF16 around zero.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> f32 {
        let mut sum = 0.0;
        for _ in 0..4 {
            self.0 = (self.0)
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            sum += f32::from(u16::try_from(self.0 >> 48).unwrap()) / 65536.0 - 0.5;
        }
        bf16(sum)
    }
}

fn bf16(value: f32) -> f32 {
    f32::from_bits(value.to_bits() & 0xffff_0000)
}

type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// The model as its class stores it.
fn model(kind: Kind) -> Tensors {
    let mut numbers = Numbers(77);
    let mut all = Tensors::new();
    let mut add = |name: String, shape: &[usize], scale: f32, shift: f32| {
        let n = shape.iter().product();
        let values = (0..n).map(|i: usize| {
            // Some features are loud: their norms are large.
            let is_loud = i % 19 == 3 && shape.len() == 1 && shift != 0.0;
            let loud = if is_loud { 9.0 } else { 1.0 };
            bf16((numbers.next() * scale + shift) * loud)
        });
        let values = values.collect();
        all.insert(name, (shape.to_vec(), values));
    };
    add(
        "model.embed_tokens.weight".to_owned(),
        &[WORDS, HIDDEN],
        1.0,
        0.0,
    );
    add("lm_head.weight".to_owned(), &[WORDS, HIDDEN], 0.2, 0.0);
    // 1 + w of the same size, but for loud ones.
    let shift = if kind == Kind::Gemma { 0.2 } else { 1.0 };
    add("model.norm.weight".to_owned(), &[HIDDEN], 0.1, shift);
    for layer in 0..LAYERS {
        let at = |name: &str| format!("model.layers.{layer}.{name}");
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            add(at(&format!("{norm}.weight")), &[HIDDEN], 0.3, shift);
        }
        let v = kind.values();
        let linears: &[(&str, usize, usize)] = match kind {
            Kind::Phi => &[
                ("self_attn.qkv_proj", 3 * HIDDEN, HIDDEN),
                ("self_attn.o_proj", HIDDEN, HIDDEN),
                ("mlp.gate_up_proj", 2 * INNER, HIDDEN),
                ("mlp.down_proj", HIDDEN, INNER),
            ],
            Kind::Llama | Kind::Qwen | Kind::Biased | Kind::Gemma => &[
                ("self_attn.q_proj", HIDDEN, HIDDEN),
                ("self_attn.k_proj", v, HIDDEN),
                ("self_attn.v_proj", v, HIDDEN),
                ("self_attn.o_proj", HIDDEN, HIDDEN),
                ("mlp.gate_proj", INNER, HIDDEN),
                ("mlp.up_proj", INNER, HIDDEN),
                ("mlp.down_proj", HIDDEN, INNER),
            ],
        };
        for (name, rows, columns) in linears {
            add(at(&format!("{name}.weight")), &[*rows, *columns], 0.15, 0.0);
            if kind.is_biased()
                && ["q_proj", "k_proj", "v_proj"]
                    .iter()
                    .any(|n| name.contains(n))
            {
                add(at(&format!("{name}.bias")), &[*rows], 0.4, 0.0);
            }
        }
    }
    all
}

/// The same with some louder values of attention.
fn with_loud_values(kind: Kind, factor: f32) -> Tensors {
    let mut all = model(kind);
    let mut n_changed = 0;
    for (name, (shape, values)) in &mut all {
        if !name.contains("v_proj") {
            continue;
        }
        let width = if shape.len() == 2 { shape[1] } else { 1 };
        for (i, value) in values.iter_mut().enumerate() {
            if i / width % 19 == 3 {
                *value = bf16(*value * factor);
            }
        }
        n_changed += 1;
    }
    assert!(kind == Kind::Phi || n_changed >= LAYERS);
    all
}

fn store(
    path: &Path,
    tensors: &[(String, Dtype, Vec<u64>, Vec<u8>)],
    metadata: &[(String, String)],
) {
    let planned = tensors.iter().map(|(name, dtype, shape, _)| PlannedTensor {
        name: name.clone(),
        dtype: *dtype,
        shape: shape.clone(),
        block: None,
    });
    let name = path.file_name().unwrap().to_str().unwrap();
    let plan = FilePlan::new(name, planned.collect(), metadata).unwrap();
    let opened = OsDisk.open_file(path, true).unwrap();
    let writer = FileWriter::create(plan.clone(), opened).unwrap();
    for (i, info) in plan.tensors.iter().enumerate() {
        let found = tensors.iter().find(|(name, ..)| **name == *info.name);
        writer.write_at(i, 0, &found.unwrap().3).unwrap();
    }
    writer.seal().unwrap();
}

fn save(directory: &Path, class: &str, model: &Tensors) {
    std::fs::create_dir_all(directory).unwrap();
    let tensors: Vec<_> = model
        .iter()
        .map(|(name, (shape, values))| {
            let shape = shape.iter().map(|d| *d as u64).collect();
            let bytes = values.iter().flat_map(|v| v.to_le_bytes()[2..].to_vec());
            (name.clone(), Dtype::BF16, shape, bytes.collect())
        })
        .collect();
    let metadata = [("format".to_owned(), "pt".to_owned())];
    store(&directory.join("model.safetensors"), &tensors, &metadata);
    let config = json!({"architectures": [class], "torch_dtype": "bfloat16"}).to_string();
    std::fs::write(directory.join("config.json"), config).unwrap();
}

fn load(checkpoint: &Checkpoint) -> Tensors {
    let tensor = |t: safequant::container::TensorRef<'_>| {
        assert_eq!(t.info.dtype, Dtype::BF16, "{}", t.name());
        let bytes = t.read_all(1 << 30).unwrap();
        let values = bytes
            .chunks(2)
            .map(|b| f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16));
        let shape = t
            .shape()
            .iter()
            .map(|d| usize::try_from(*d).unwrap())
            .collect();
        (t.name().to_owned(), (shape, values.collect()))
    };
    checkpoint.tensors().map(tensor).collect()
}

/// Inputs `[tokens, features]` by module.
type Seen = BTreeMap<String, Vec<Vec<f64>>>;

/// A forward pass.
struct Run<'m> {
    kind: Kind,
    model: &'m Tensors,
    seen: Seen,
}

impl Run<'_> {
    fn norm(&self, name: &str, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let (_, weight) = &self.model[&format!("{name}.weight")];
        let one = if self.kind == Kind::Gemma { 1.0 } else { 0.0 };
        let row = |x: &Vec<f64>| {
            let square = x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64;
            let scale = (square + 1e-6).sqrt().recip();
            x.iter()
                .zip(weight)
                .map(|(v, w)| v * scale * (one + f64::from(*w)))
                .collect()
        };
        x.iter().map(row).collect()
    }

    /// Rows of a linear layer, which may stand in one with others.
    fn linear(&mut self, name: &str, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let (stored, part, parts) = match (self.kind, name.rsplit_once('.').unwrap()) {
            (Kind::Phi, (of, "q_proj")) => (format!("{of}.qkv_proj"), 0, 3),
            (Kind::Phi, (of, "k_proj")) => (format!("{of}.qkv_proj"), 1, 3),
            (Kind::Phi, (of, "v_proj")) => (format!("{of}.qkv_proj"), 2, 3),
            (Kind::Phi, (of, "gate_proj")) => (format!("{of}.gate_up_proj"), 0, 2),
            (Kind::Phi, (of, "up_proj")) => (format!("{of}.gate_up_proj"), 1, 2),
            _ => (name.to_owned(), 0, 1),
        };
        self.seen.insert(stored.clone(), x.to_vec());
        let (shape, weight) = &self.model[&format!("{stored}.weight")];
        let n = shape[0] / parts;
        let rows: Vec<&[f32]> = weight.chunks(shape[1]).skip(part * n).take(n).collect();
        let bias = self.model.get(&format!("{stored}.bias"));
        let out = |x: &Vec<f64>| {
            let each = rows.iter().enumerate().map(|(i, row)| {
                let dot: f64 = row.iter().zip(x).map(|(w, v)| f64::from(*w) * v).sum();
                dot + bias.map_or(0.0, |(_, b)| f64::from(b[i]))
            });
            each.collect()
        };
        x.iter().map(out).collect()
    }

    fn attention(&mut self, at: &str, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let q = self.linear(&format!("{at}.q_proj"), x);
        let k = self.linear(&format!("{at}.k_proj"), x);
        let v = self.linear(&format!("{at}.v_proj"), x);
        let width = HIDDEN / HEADS;
        let shared = HIDDEN / self.kind.values();
        let mut out = vec![vec![0.0; HIDDEN]; x.len()];
        for head in 0..HEADS {
            let (of, with) = (head * width, head / shared * width);
            for i in 0..x.len() {
                let score = |j: usize| -> f64 {
                    (0..width)
                        .map(|c| q[i][of + c] * k[j][with + c])
                        .sum::<f64>()
                        / 6.0
                };
                let scores: Vec<f64> = (0..=i).map(score).collect();
                let most = scores.iter().copied().fold(f64::MIN, f64::max);
                let sum: f64 = scores.iter().map(|s| (s - most).exp()).sum();
                for (j, score) in scores.iter().enumerate() {
                    let share = (score - most).exp() / sum;
                    for c in 0..width {
                        out[i][of + c] += share * v[j][with + c];
                    }
                }
            }
        }
        self.linear(&format!("{at}.o_proj"), &out)
    }

    fn mlp(&mut self, at: &str, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let gate = self.linear(&format!("{at}.gate_proj"), x);
        let up = self.linear(&format!("{at}.up_proj"), x);
        let both = gate.iter().zip(&up);
        let inner: Vec<Vec<f64>> = both
            .map(|(g, u)| {
                g.iter()
                    .zip(u)
                    .map(|(g, u)| g / (1.0 + (-g).exp()) * u)
                    .collect()
            })
            .collect();
        self.linear(&format!("{at}.down_proj"), &inner)
    }
}

fn plus(a: &[Vec<f64>], b: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let row = |(a, b): (&Vec<f64>, &Vec<f64>)| a.iter().zip(b).map(|(a, b)| a + b).collect();
    a.iter().zip(b).map(row).collect()
}

/// Logits, and what every linear layer of the layers saw.
fn forward(kind: Kind, model: &Tensors) -> (Vec<Vec<f64>>, Seen) {
    let (_, words) = &model["model.embed_tokens.weight"];
    let word = |i: usize| {
        let row = words.chunks(HIDDEN).nth(i * 7 % WORDS).unwrap();
        row.iter().map(|v| f64::from(*v)).collect::<Vec<_>>()
    };
    let mut x: Vec<Vec<f64>> = (0..96).map(|i| word(i + i / WORDS)).collect();
    let mut run = Run {
        kind,
        model,
        seen: Seen::new(),
    };
    for layer in 0..LAYERS {
        let at = |name: &str| format!("model.layers.{layer}.{name}");
        let inputs = run.norm(&at("input_layernorm"), &x);
        x = plus(&x, &run.attention(&at("self_attn"), &inputs));
        let inputs = run.norm(&at("post_attention_layernorm"), &x);
        x = plus(&x, &run.mlp(&at("mlp"), &inputs));
    }
    let inputs = run.norm("model.norm", &x);
    let logits = run.linear("model.lm_head", &inputs);
    (logits, run.seen)
}

/// What a file of statistics lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lack {
    Nothing,
    Means,
    Module(&'static str),
    OffDiagonal,
}

fn statistics(path: &Path, seen: &Seen, lack: Lack) -> CalibrationFile {
    let mut tensors = Vec::new();
    let mut add = |name: String, shape: Vec<u64>, values: &[f64]| {
        #[expect(clippy::cast_possible_truncation, reason = "they are stored so")]
        let bytes = values.iter().flat_map(|v| (*v as f32).to_le_bytes());
        tensors.push((name, Dtype::F32, shape, bytes.collect::<Vec<u8>>()));
    };
    for (module, x) in seen {
        if lack == Lack::Module("down_proj") && module.ends_with("down_proj") {
            continue;
        }
        let (n, k) = (x.len() as f64, x[0].len());
        let mut moment = vec![0.0; k * k];
        let mut mean = vec![0.0; k];
        for token in x {
            for (i, a) in token.iter().enumerate() {
                mean[i] += a.abs() / n;
                for (j, b) in token.iter().enumerate() {
                    moment[i * k + j] += a * b / n;
                }
            }
        }
        let diagonal: Vec<f64> = moment.iter().step_by(k + 1).copied().collect();
        let k = k as u64;
        if lack == Lack::OffDiagonal {
            add(format!("{module}.hessian_diagonal"), vec![k], &diagonal);
        } else {
            add(format!("{module}.hessian"), vec![k, k], &moment);
        }
        if lack != Lack::Means {
            add(format!("{module}.mean_abs_input"), vec![k], &mean);
        }
    }
    for (module, x) in seen
        .iter()
        .filter(|(m, _)| lack != Lack::Module("down_proj") || !m.ends_with("down_proj"))
    {
        let count = i64::try_from(x.len()).unwrap().to_le_bytes().to_vec();
        tensors.push((
            format!("{module}.token_count"),
            Dtype::I64,
            Vec::new(),
            count,
        ));
    }
    let detail = if lack == Lack::OffDiagonal {
        "diagonal"
    } else {
        "full"
    };
    let metadata = [
        ("format", "safequant-calibration"),
        ("format_version", "1"),
        ("hessian", detail),
        ("accumulation", "F32"),
        ("sequential", "false"),
        ("shares", "{}"),
    ];
    let metadata = metadata.map(|(k, v)| (k.to_owned(), v.to_owned()));
    store(path, &tensors, &metadata);
    CalibrationFile::open(path, &Limits::default()).unwrap()
}

/// A small model on disk, what it computes, and its statistics.
struct Bench {
    folder: tempfile::TempDir,
    kind: Kind,
    logits: Vec<Vec<f64>>,
    seen: Seen,
}

impl Bench {
    fn new(kind: Kind) -> Self {
        Self::of(kind, model(kind))
    }

    #[expect(clippy::needless_pass_by_value, reason = "made for this bench")]
    fn of(kind: Kind, model: Tensors) -> Self {
        let folder = tempfile::tempdir().unwrap();
        save(&folder.path().join("src"), kind.class(), &model);
        let (logits, mut seen) = forward(kind, &with_head(&model));
        seen.retain(|name, _| name.contains("layers."));
        Self {
            folder,
            kind,
            logits,
            seen,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn open(&self, name: &str) -> Checkpoint {
        Checkpoint::open(&self.path(name), &Limits::default()).unwrap()
    }

    fn verb(&self, scheme: &str, method: &'static str, lack: Lack) -> Verb {
        let Verb::Quantize(mut recipe) = quantize(scheme, "compressed-tensors") else {
            panic!("a quantize verb");
        };
        recipe.groups[0].method = method;
        recipe.groups[0].settings = Settings::default();
        let path = self.path(&format!("statistics-{lack:?}"));
        recipe.calibration = Some(statistics(&path, &self.seen, lack));
        Verb::Quantize(recipe)
    }

    fn run(
        &self,
        from: &str,
        verb: &Verb,
        to: &str,
        options: &JobOptions,
    ) -> Result<Summary, Error> {
        let checkpoint = self.open(from);
        let plan = rewrite::plan(&checkpoint, verb, &self.path(to), options)?;
        rewrite::run(&plan, &OsDisk, &Quiet, &CancelToken::default())
    }

    fn notes(&self, verb: &Verb) -> String {
        let checkpoint = self.open("src");
        let plan = rewrite::plan(&checkpoint, verb, &self.path("planned"), &options()).unwrap();
        plan.notes.join("\n")
    }

    fn refusal(&self, verb: &Verb) -> String {
        let error = self.run("src", verb, "refused", &options()).unwrap_err();
        assert_eq!(
            (error.code(), error.group()),
            ("cannot_fold", ErrorGroup::Refused),
            "{error}"
        );
        assert!(!self.path("refused").exists());
        error.to_string()
    }

    /// What a quantized checkpoint is, dense.
    fn dense(&self, name: &str) -> Tensors {
        let to = format!("{name}-dense");
        self.run(name, &dequantize(OutputDtype::Auto), &to, &options())
            .unwrap();
        load(&self.open(&to))
    }

    /// How far logits are off, as a share of them.
    fn lost(&self, model: &Tensors) -> f64 {
        let (logits, _) = forward(self.kind, &with_head(model));
        let pairs = || self.logits.iter().flatten().zip(logits.iter().flatten());
        let noise: f64 = pairs().map(|(a, b)| (a - b).powi(2)).sum();
        let signal: f64 = pairs().map(|(a, _)| a * a).sum();
        noise / signal
    }
}

/// The head under a name that has a parent.
fn with_head(model: &Tensors) -> Tensors {
    let mut all = model.clone();
    let head = all["lm_head.weight"].clone();
    all.insert("model.lm_head.weight".to_owned(), head);
    all
}

#[test]
fn folding_keeps_what_the_model_computes() {
    let (mut n_norms, mut n_biases) = (0, 0);
    let louder = [2.0, 3.0, 6.0, 12.0].map(|factor| (Kind::Biased, factor));
    let all = Kind::ALL.map(|kind| (kind, 1.0));
    for (kind, factor) in all.into_iter().chain(louder) {
        let bench = Bench::of(kind, with_loud_values(kind, factor));
        bench
            .run(
                "src",
                &bench.verb("W8A16", "mse", Lack::Nothing),
                "mse",
                &options(),
            )
            .unwrap();
        let summary = bench.run(
            "src",
            &bench.verb("W8A16", AWQ, Lack::Nothing),
            "awq",
            &options(),
        );
        let summary = summary.unwrap();
        let folded = bench.dense("awq");
        let (by_mse, by_awq) = (bench.lost(&bench.dense("mse")), bench.lost(&folded));
        assert!(
            by_mse < 5e-3 && by_awq < 3.0 * by_mse,
            "{kind:?}: {by_mse} {by_awq}"
        );
        let original = load(&bench.open("src"));
        let changed: Vec<_> = original
            .iter()
            .filter(|(name, (shape, values))| shape.len() == 1 && folded[*name].1 != *values)
            .map(|(name, _)| name.clone())
            .collect();
        n_norms += changed
            .iter()
            .filter(|name| name.contains("layernorm"))
            .count();
        let steps: Vec<_> = summary
            .modules
            .iter()
            .filter(|m| m.action == Action::Fold)
            .collect();
        assert_eq!(steps.len(), changed.len(), "{kind:?}: {changed:?}");
        // Norms as they were, with weights that were multiplied: not the model.
        let mut unfolded = folded.clone();
        for name in changed.iter().filter(|name| name.contains("layernorm")) {
            unfolded.insert(name.clone(), original[name].clone());
        }
        assert!(bench.lost(&unfolded) > 10.0 * by_awq, "{kind:?}");
        n_biases += changed
            .iter()
            .filter(|name| name.ends_with("v_proj.bias"))
            .count();
        for module in &summary.modules {
            let method = module.method.as_deref();
            assert!(
                method.is_none_or(|m| m == AWQ || m == "mse"),
                "{}",
                module.name
            );
        }
    }
    assert!(n_norms >= 15, "{n_norms} norms are divided");
    assert!(n_biases >= 2, "{n_biases} biases are divided");
}

/// `E H E^T` for errors of a weight of so many columns, summed over rows.
fn noise(errors: &[f64], x: &[Vec<f64>]) -> f64 {
    let outputs = errors.chunks(x[0].len()).flat_map(|row| {
        x.iter()
            .map(move |token| row.iter().zip(token).map(|(e, v)| e * v).sum::<f64>())
    });
    outputs.map(|o| o * o).sum::<f64>() / x.len() as f64
}

/// What columns were multiplied by, and rows divided by, found from the two models alone.
fn scales(layer: usize, before: &Tensors, after: &Tensors) -> BTreeMap<&'static str, Vec<f64>> {
    let at = |name: &str| format!("model.layers.{layer}.{name}.weight");
    let mut found = BTreeMap::new();
    for norm in ["input_layernorm", "post_attention_layernorm"] {
        let pairs = before[&at(norm)].1.iter().zip(&after[&at(norm)].1);
        found.insert(
            norm,
            pairs
                .map(|(a, b)| f64::from(*a) / f64::from(*b))
                .collect::<Vec<_>>(),
        );
    }
    for (source, norm) in [
        ("self_attn.v_proj", "input_layernorm"),
        ("mlp.up_proj", "post_attention_layernorm"),
    ] {
        let (shape, weight) = &before[&at(source)];
        let rows = weight
            .chunks(shape[1])
            .zip(after[&at(source)].1.chunks(shape[1]));
        let columns = &found[norm];
        let ratio = |(a, b): (&[f32], &[f32])| {
            let size = |row: &[f32], by: &[f64]| {
                row.iter()
                    .zip(by)
                    .map(|(w, s)| (f64::from(*w) * s).powi(2))
                    .sum::<f64>()
                    .sqrt()
            };
            let ones = vec![1.0; columns.len()];
            (size(a, columns) / size(b, &ones)).log2().round().exp2()
        };
        let ratios = rows.map(ratio).collect();
        found.insert(source, ratios);
    }
    found
}

#[test]
fn outputs_never_lose_more_than_by_mse() {
    let (mut n_groups, mut n_better) = (0, 0);
    for (scheme, lack) in [
        ("W4A16", Lack::Nothing),
        ("W4A16", Lack::OffDiagonal),
        ("W8A16", Lack::Nothing),
    ] {
        let bench = Bench::new(Kind::Llama);
        bench
            .run("src", &bench.verb(scheme, "mse", lack), "mse", &options())
            .unwrap();
        bench
            .run("src", &bench.verb(scheme, AWQ, lack), "awq", &options())
            .unwrap();
        let (before, mse, awq) = (
            load(&bench.open("src")),
            bench.dense("mse"),
            bench.dense("awq"),
        );
        for layer in 0..LAYERS {
            let scales = scales(layer, &before, &awq);
            for (source, readers) in [
                (
                    "input_layernorm",
                    &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"][..],
                ),
                ("self_attn.v_proj", &["self_attn.o_proj"][..]),
                (
                    "post_attention_layernorm",
                    &["mlp.gate_proj", "mlp.up_proj"][..],
                ),
                ("mlp.up_proj", &["mlp.down_proj"][..]),
            ] {
                let (mut by_mse, mut by_awq) = (0.0, 0.0);
                for reader in readers {
                    let module = format!("model.layers.{layer}.{reader}");
                    let name = format!("{module}.weight");
                    let rows = scales.get(reader);
                    let width = before[&name].0[1];
                    let back = |i: usize, value: f32| {
                        let row = rows.map_or(1.0, |rows| rows[i / width]);
                        f64::from(value) * row / scales[source][i % width]
                    };
                    let weight = &before[&name].1;
                    let errors = |of: &[f64]| -> Vec<f64> {
                        of.iter()
                            .zip(weight)
                            .map(|(q, w)| q - f64::from(*w))
                            .collect()
                    };
                    let plain: Vec<f64> = mse[&name].1.iter().map(|v| f64::from(*v)).collect();
                    let scaled = awq[&name].1.iter().enumerate();
                    let scaled: Vec<f64> = scaled.map(|(i, v)| back(i, *v)).collect();
                    let mut x = bench.seen[&module].clone();
                    if lack == Lack::OffDiagonal {
                        // Inputs that have this diagonal and nothing beside it.
                        let n = x.len() as f64;
                        let square = |j: usize| x.iter().map(|t| t[j] * t[j]).sum::<f64>() / n;
                        let root: Vec<f64> = (0..width)
                            .map(|j| (square(j) * width as f64).sqrt())
                            .collect();
                        x = (0..width)
                            .map(|j| {
                                (0..width)
                                    .map(|i| if i == j { root[i] } else { 0.0 })
                                    .collect()
                            })
                            .collect();
                    }
                    by_mse += noise(&errors(&plain), &x);
                    by_awq += noise(&errors(&scaled), &x);
                }
                n_groups += 1;
                n_better += usize::from(by_awq < 0.999 * by_mse);
                assert!(
                    by_awq <= by_mse * (1.0 + 1e-4),
                    "{scheme} {lack:?} {layer} {source}: {by_awq} {by_mse}"
                );
            }
        }
    }
    assert_eq!(n_groups, 24);
    assert!(n_better >= 12, "{n_better} of {n_groups} groups lose less");
}

#[test]
fn heads_that_share_values_are_left_and_said() {
    let bench = Bench::new(Kind::Qwen);
    let verb = bench.verb("W4A16", AWQ, Lack::Nothing);
    let notes = bench.notes(&verb);
    for text in [
        "grouped-query",
        "model.layers.0.self_attn.v_proj",
        "of 6 groups",
    ] {
        assert!(notes.contains(text), "{text}: {notes}");
    }
}

#[test]
fn what_an_ignored_module_reads_stays_and_is_said() {
    let bench = Bench::new(Kind::Llama);
    let Verb::Quantize(mut recipe) = bench.verb("W4A16", AWQ, Lack::Nothing) else {
        panic!("a quantize verb");
    };
    recipe.ignore = vec!["*.k_proj".to_owned(), "*.layers.1.mlp.up_proj".to_owned()];
    let verb = Verb::Quantize(recipe.clone());
    let notes = bench.notes(&verb);
    for text in [
        "model.layers.0.self_attn.k_proj",
        "model.layers.1.mlp.up_proj",
        "not quantized by it",
    ] {
        assert!(notes.contains(text), "{text}: {notes}");
    }
    bench.run("src", &verb, "dst", &options()).unwrap();
    let (before, after) = (load(&bench.open("src")), bench.dense("dst"));
    for (layer, norm, stays) in [
        (0, "input_layernorm", true),
        (0, "post_attention_layernorm", false),
        (1, "input_layernorm", true),
        (1, "post_attention_layernorm", true),
    ] {
        let name = format!("model.layers.{layer}.{norm}.weight");
        assert_eq!(before[&name] == after[&name], stays, "{name}");
    }
    assert!(bench.lost(&after) < 0.2, "{}", bench.lost(&after));
    // Nothing of it can be folded: that is an error, which says why.
    recipe.ignore = vec![
        "*.k_proj".to_owned(),
        "*.mlp.*".to_owned(),
        "*.o_proj".to_owned(),
    ];
    let text = bench.refusal(&Verb::Quantize(recipe));
    assert!(
        text.contains("nothing to fold") && text.contains("k_proj"),
        "{text}"
    );
}

#[test]
fn what_cannot_be_folded_is_refused_by_name() {
    let bench = Bench::new(Kind::Llama);
    let refused = |verb: &Verb, words: &[&str]| {
        let text = bench.refusal(verb);
        for word in words {
            assert!(text.contains(word), "{word}: {text}");
        }
    };
    let full = |scheme| bench.verb(scheme, AWQ, Lack::Nothing);
    refused(
        &bench.verb("W4A16", AWQ, Lack::Means),
        &["statistics-Means", "q_proj", "mean magnitude"],
    );
    refused(
        &bench.verb("W4A16", AWQ, Lack::Module("down_proj")),
        &["layers.0.mlp.down_proj", "no statistics"],
    );
    refused(
        &full("NVFP4A16"),
        &["proj", "NVFP4A16", "scales of more than a row"],
    );
    let Verb::Quantize(recipe) = full("W4A16") else {
        panic!("a quantize verb");
    };
    let without = Verb::Quantize(rewrite::QuantizeRecipe {
        calibration: None,
        ..recipe.clone()
    });
    let error = bench
        .run("src", &without, "refused", &options())
        .unwrap_err();
    assert_eq!(error.code(), "no_calibration");

    let class = bench.path("src").join("config.json");
    for (config, word) in [
        (
            json!({"architectures": ["FalconForCausalLM"]}),
            "FalconForCausalLM",
        ),
        (json!({"architectures": []}), "none"),
        (json!({}), "none"),
    ] {
        std::fs::write(&class, config.to_string()).unwrap();
        refused(&full("W4A16"), &[word, "config.json", "LlamaForCausalLM"]);
    }
    std::fs::remove_file(&class).unwrap();
    refused(&full("W4A16"), &["config.json", "there is none"]);
}

#[test]
fn layers_that_are_not_as_the_table_has_them_are_refused() {
    let mut n_refused = 0;
    for (added, removed, word) in [
        (
            Some("self_attn.sinks_proj.weight"),
            None,
            "model.layers.0.self_attn.sinks_proj",
        ),
        (
            Some("input_layernorm.bias"),
            None,
            "model.layers.0.input_layernorm.bias",
        ),
        (
            None,
            Some("post_attention_layernorm.weight"),
            "model.layers.0.post_attention_layernorm",
        ),
        (
            None,
            Some("mlp.down_proj.weight"),
            "model.layers.0.mlp.up_proj",
        ),
    ] {
        let bench = Bench::new(Kind::Llama);
        let mut changed = load(&bench.open("src"));
        if let Some(name) = added {
            let values = vec![0.5; HIDDEN * HIDDEN];
            let name = format!("model.layers.0.{name}");
            let tensor = if name.ends_with("bias") {
                (vec![HIDDEN], values[..HIDDEN].to_vec())
            } else {
                (vec![HIDDEN, HIDDEN], values)
            };
            changed.insert(name, tensor);
        }
        if let Some(name) = removed {
            changed.remove(&format!("model.layers.0.{name}")).unwrap();
        }
        std::fs::remove_dir_all(bench.path("src")).unwrap();
        save(&bench.path("src"), bench.kind.class(), &changed);
        let text = bench.refusal(&bench.verb("W4A16", AWQ, Lack::Nothing));
        assert!(text.contains(word), "{word}: {text}");
        n_refused += 1;
    }
    assert_eq!(n_refused, 4);
}

#[test]
fn bytes_do_not_depend_on_threads_budget_or_interruptions() {
    let bench = Bench::new(Kind::Phi);
    let verb = bench.verb("W4A16", AWQ, Lack::Nothing);
    bench.run("src", &verb, "good", &options()).unwrap();
    let good = contents(&bench.path("good"));
    for (threads, memory_bytes) in [(1, 64 << 20), (5, 8 << 20)] {
        let options = JobOptions {
            threads,
            memory_bytes,
            ..options()
        };
        bench.run("src", &verb, "dst", &options).unwrap();
        assert!(contents(&bench.path("dst")) == good, "{threads} threads");
        std::fs::remove_dir_all(bench.path("dst")).unwrap();
    }
    let checkpoint = bench.open("src");
    let watch = Watch::new(5);
    let plan = rewrite::plan(&checkpoint, &verb, &bench.path("dst"), &options()).unwrap();
    let ran = rewrite::run(&plan, &OsDisk, &watch, &watch.cancel);
    assert!(matches!(ran, Err(Error::Canceled)));
    let plan = rewrite::plan(&checkpoint, &verb, &bench.path("dst"), &resume()).unwrap();
    rewrite::run(&plan, &OsDisk, &Quiet, &CancelToken::default()).unwrap();
    assert!(contents(&bench.path("dst")) == good);
}

/// The router of a layer follows its norm exactly, and every fixture of a Hugging Face model is folded or refused by name.
#[test]
fn real_layouts_are_folded_and_routers_follow() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/llama.cpp");
    let (mut n_models, mut n_routers) = (0, 0);
    for folder in [
        "hf-llama-spm",
        "hf-llama3-bpe",
        "hf-mistral-fast",
        "hf-mixtral-spm",
        "hf-qwen2",
        "hf-qwen3-moe",
    ] {
        let source = Checkpoint::open(&root.join(folder), &Limits::default()).unwrap();
        let temporary = tempfile::tempdir().unwrap();
        let mut seen = Seen::new();
        let mut numbers = Numbers(3);
        for tensor in source.tensors().filter(|t| t.shape().len() == 2) {
            let width = usize::try_from(tensor.shape()[1]).unwrap();
            let module = tensor.name().strip_suffix(".weight").unwrap();
            let token = |_| {
                let loud = |i: usize| if i % 3 == 1 { 20.0 } else { 1.0 };
                (0..width)
                    .map(|i| f64::from(numbers.next()) * loud(i))
                    .collect()
            };
            seen.insert(module.to_owned(), (0..32).map(token).collect());
        }
        let Verb::Quantize(mut recipe) = quantize("W4A16", "compressed-tensors") else {
            panic!("a quantize verb");
        };
        recipe.groups[0].method = AWQ;
        recipe.groups[0].preset = recipe.groups[0]
            .preset
            .clone()
            .with_group_size(Some(8))
            .unwrap();
        recipe.calibration = Some(statistics(
            &temporary.path().join("statistics"),
            &seen,
            Lack::Nothing,
        ));
        let to = temporary.path().join("dst");
        let plan = rewrite::plan(&source, &Verb::Quantize(recipe), &to, &options()).unwrap();
        assert!(
            plan.notes.join("\n").contains("--method awq: inputs of"),
            "{folder}"
        );
        rewrite::run(&plan, &OsDisk, &Quiet, &CancelToken::default()).unwrap();
        let after = Checkpoint::open(&to, &Limits::default()).unwrap();
        for tensor in source.tensors() {
            let Some((at, router)) = ["block_sparse_moe.gate.weight", "mlp.gate.weight"]
                .iter()
                .find_map(|name| Some((tensor.name().strip_suffix(name)?, tensor.name())))
            else {
                continue;
            };
            router_follows(&source, &after, at, router.strip_prefix(at).unwrap());
            n_routers += 1;
        }
        n_models += 1;
    }
    assert_eq!(n_models, 6);
    assert_eq!(n_routers, 2);
}

/// A mixture of experts whose norms are divided: its routers are multiplied, without rounding.
#[test]
fn routers_follow_their_norm() {
    let mut n_moved = 0;
    for (loud, period) in [(3.0, 19), (5.0, 7), (6.0, 40), (12.0, 60), (30.0, 120)] {
        n_moved += routers_that_follow(loud, period);
    }
    assert!(n_moved >= 1);
}

/// Routers that moved, in a mixture of experts of whose features one in so many is so loud.
fn routers_that_follow(factor: f64, period: usize) -> usize {
    let mut all = model(Kind::Llama);
    let mut numbers = Numbers(5);
    let mut seen = Seen::new();
    all.retain(|name, _| !name.contains(".mlp."));
    for layer in 0..LAYERS {
        let mut add = |name: String, rows: usize, columns: usize| {
            let values = (0..rows * columns).map(|_| bf16(numbers.next() * 0.2));
            all.insert(name, (vec![rows, columns], values.collect()));
        };
        let at = |name: &str| format!("model.layers.{layer}.mlp.{name}");
        add(at("gate.weight"), 3, HIDDEN);
        for expert in 0..3 {
            add(
                at(&format!("experts.{expert}.gate_proj.weight")),
                INNER,
                HIDDEN,
            );
            add(
                at(&format!("experts.{expert}.up_proj.weight")),
                INNER,
                HIDDEN,
            );
            add(
                at(&format!("experts.{expert}.down_proj.weight")),
                HIDDEN,
                INNER,
            );
        }
    }
    for (name, (shape, _)) in all.iter().filter(|(_, (shape, _))| shape.len() == 2) {
        let loud = |i: usize| if i % period == 3 { factor } else { 1.0 };
        let token = |_| {
            (0..shape[1])
                .map(|i| f64::from(numbers.next()) * loud(i))
                .collect()
        };
        let module = name.strip_suffix(".weight").unwrap();
        seen.insert(module.to_owned(), (0..32).map(token).collect());
    }
    let folder = tempfile::tempdir().unwrap();
    save(&folder.path().join("src"), "Qwen3MoeForCausalLM", &all);
    let source = Checkpoint::open(&folder.path().join("src"), &Limits::default()).unwrap();
    let Verb::Quantize(mut recipe) = quantize("W4A16", "compressed-tensors") else {
        panic!("a quantize verb");
    };
    recipe.groups[0].method = AWQ;
    let file = statistics(&folder.path().join("statistics"), &seen, Lack::Nothing);
    recipe.calibration = Some(file);
    let to = folder.path().join("dst");
    let plan = rewrite::plan(&source, &Verb::Quantize(recipe), &to, &options()).unwrap();
    rewrite::run(&plan, &OsDisk, &Quiet, &CancelToken::default()).unwrap();
    let after = Checkpoint::open(&to, &Limits::default()).unwrap();
    let mut n_moved = 0;
    for layer in 0..LAYERS {
        let at = format!("model.layers.{layer}.");
        n_moved += router_follows(&source, &after, &at, "mlp.gate.weight");
    }
    n_moved
}

/// That router and norm of a layer have the same products as before; whether they changed.
fn router_follows(before: &Checkpoint, after: &Checkpoint, at: &str, router: &str) -> usize {
    let (norm, router) = (
        format!("{at}post_attention_layernorm.weight"),
        format!("{at}{router}"),
    );
    let norms = [values_of(before, &norm), values_of(after, &norm)];
    let routers = [values_of(before, &router), values_of(after, &router)];
    let width = norms[0].len();
    for (i, (a, b)) in routers[0].iter().zip(&routers[1]).enumerate() {
        let product = a * norms[0][i % width];
        assert_eq!(
            product.to_bits(),
            (b * norms[1][i % width]).to_bits(),
            "{router} {i}"
        );
    }
    usize::from(routers[0] != routers[1])
}

fn values_of(checkpoint: &Checkpoint, name: &str) -> Vec<f32> {
    let bytes = checkpoint.tensor(name).unwrap().read_all(1 << 20).unwrap();
    let value = |b: &[u8]| f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16);
    bytes.chunks(2).map(value).collect()
}
