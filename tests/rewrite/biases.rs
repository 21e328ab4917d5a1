//! Biases that make up for what the mean input loses (specs/quantizers/searched.md, clauses 29 to 32), against an F64 calculation on the
//! very inputs that the statistics are of.

use std::path::Path;

use safequant::container::{Checkpoint, Dtype, Limits, OsDisk, PlannedTensor};
use safequant::kernels::{Backend, Float};
use safequant::quantize::Biases;
use safequant::rewrite::{
    self, CalibrationFile, CancelToken, Error, JobOptions, ModuleSummary, QuantizeRecipe, Summary,
    Verb,
};
use safequant::schemes::Model;
use safequant::{Decoder, RowsOut};

use super::statistics::write_tensors;
use super::tiny::{Quiet, Watch, contents, options, quantize, resume, tensor};

const WIDTH: usize = 256;
const N_TOKENS: usize = 160;

/// Modules as Qwen 2 has them: those of attention's inputs have a bias, the others not.
const MODULES: [(&str, u64, bool); 4] = [
    ("model.layers.0.self_attn.q_proj", 128, true),
    ("model.layers.0.self_attn.k_proj", 64, true),
    ("model.layers.0.self_attn.v_proj", 64, true),
    ("model.layers.0.mlp.up_proj", 192, false),
];

/// Inputs of all modules, `[N_TOKENS, WIDTH]`: some features have a mean that is larger than what they vary by.
fn inputs() -> Vec<f64> {
    let mut state = 12_345_u64;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        f64::from(u32::try_from(state >> 32).unwrap()) / f64::from(u32::MAX) - 0.5
    };
    let means: Vec<f64> = (0..WIDTH).map(|_| 1.2 * next()).collect();
    let mut all = Vec::new();
    for _ in 0..N_TOKENS {
        let common = next();
        all.extend(means.iter().enumerate().map(|(j, mean)| {
            let loud = if j % 41 == 0 { 4.0 } else { 1.0 };
            loud * (mean + next() + 0.5 * common)
        }));
    }
    all
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "statistics are stored as F32"
)]
fn narrow(values: impl Iterator<Item = f64>) -> Vec<u8> {
    values.flat_map(|v| (v as f32).to_le_bytes()).collect()
}

/// Which statistics a file has.
#[derive(Clone, Copy, PartialEq)]
enum Has {
    Everything,
    Diagonal,
    NoMean,
}

struct Bench {
    folder: tempfile::TempDir,
    inputs: Vec<f64>,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let bench = Self {
            folder,
            inputs: inputs(),
        };
        let mut tensors: Vec<PlannedTensor> = Vec::new();
        for (module, rows, has_bias) in MODULES {
            tensors.push(tensor(&format!("{module}.weight"), &[rows, WIDTH as u64]));
            if has_bias {
                tensors.push(tensor(&format!("{module}.bias"), &[rows]));
            }
        }
        super::tiny::write_tensors(&bench.path("src"), tensors, 600_000);
        bench
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    fn calibration(&self, has: Has) -> CalibrationFile {
        let n = 1.0 / f64::from(u32::try_from(N_TOKENS).unwrap());
        let rows = || self.inputs.chunks(WIDTH);
        let mut moment = vec![0.0; WIDTH * WIDTH];
        let mut mean = vec![0.0; WIDTH];
        for row in rows() {
            for (i, a) in row.iter().enumerate() {
                mean[i] += n * a;
                for (sum, b) in moment[i * WIDTH..(i + 1) * WIDTH].iter_mut().zip(row) {
                    *sum += n * a * b;
                }
            }
        }
        let k = WIDTH as u64;
        let mut tensors = Vec::new();
        for (module, _, _) in MODULES {
            let mut add = |statistic: &str, dtype, shape: Vec<u64>, bytes: Vec<u8>| {
                tensors.push((format!("{module}.{statistic}"), dtype, shape, bytes));
            };
            if has == Has::Diagonal {
                let diagonal = moment.iter().step_by(WIDTH + 1).copied();
                add("hessian_diagonal", Dtype::F32, vec![k], narrow(diagonal));
            } else {
                add(
                    "hessian",
                    Dtype::F32,
                    vec![k, k],
                    narrow(moment.iter().copied()),
                );
            }
            if has != Has::NoMean {
                add(
                    "mean_input",
                    Dtype::F32,
                    vec![k],
                    narrow(mean.iter().copied()),
                );
            }
            let count = i64::try_from(N_TOKENS).unwrap().to_le_bytes();
            add("token_count", Dtype::I64, Vec::new(), count.to_vec());
        }
        let hessian = if has == Has::Diagonal {
            "diagonal"
        } else {
            "full"
        };
        let metadata = [
            ("format", "safequant-calibration"),
            ("format_version", "1"),
            ("hessian", hessian),
            ("accumulation", "F64"),
            ("sequential", "false"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()));
        let path = self.path("statistics");
        write_tensors(&path, &tensors, &metadata);
        CalibrationFile::open(&path, &Limits::default()).unwrap()
    }

    fn verb(&self, method: &'static str, biases: Biases, has: Has) -> Verb {
        Verb::Quantize(self.recipe(method, biases, has, "compressed-tensors"))
    }

    fn recipe(
        &self,
        method: &'static str,
        biases: Biases,
        has: Has,
        convention: &'static str,
    ) -> QuantizeRecipe {
        let scheme = if convention == "gguf" {
            "Q4_0"
        } else {
            "W3A16"
        };
        let Verb::Quantize(mut recipe) = quantize(scheme, convention) else {
            panic!("a quantize verb");
        };
        recipe.groups[0].method = method;
        recipe.groups[0].settings.biases = biases;
        recipe.groups[0].settings.effort = safequant::quantize::Effort::High;
        recipe.calibration = Some(self.calibration(has));
        recipe
    }

    fn run(&self, verb: &Verb, to: &str, options: &JobOptions) -> Result<Summary, Error> {
        let checkpoint = open(&self.path("src"));
        let plan = rewrite::plan(&checkpoint, verb, &self.path(to), options)?;
        rewrite::run(&plan, &OsDisk, &Quiet, &CancelToken::default())
    }

    /// For each row `W`, `Q`, the bias before and after.
    fn rows(&self, to: &str, module: &str) -> Vec<Row> {
        let (before, after) = (open(&self.path("src")), open(&self.path(to)));
        let model = Model::bind(&after).unwrap();
        let found = model.quantized.iter().find(|t| t.module == module).unwrap();
        let decoder = Decoder::new(found, &after, Backend::detect()).unwrap();
        let n_rows = usize::try_from(found.n_rows()).unwrap();
        let float = found.reference_dtype;
        let mut bytes = vec![0; n_rows * WIDTH * float.size_bytes()];
        decoder
            .rows(0..found.n_rows(), RowsOut::Bytes(float, &mut bytes))
            .unwrap();
        let mut q = vec![0.0; n_rows * WIDTH];
        (Backend::detect().widen)(float, &bytes, &mut q);
        let w = floats(&before, &format!("{module}.weight")).unwrap();
        let zeros = || vec![0.0; n_rows];
        let bias = format!("{module}.bias");
        let had = floats(&before, &bias).unwrap_or_else(zeros);
        let has = floats(&after, &bias).unwrap_or_else(zeros);
        let rows = w
            .chunks(WIDTH)
            .zip(q.chunks(WIDTH))
            .zip(had.into_iter().zip(has));
        rows.map(|((w, q), (had, has))| Row {
            w: w.iter().map(|v| f64::from(*v)).collect(),
            q: q.iter().map(|v| f64::from(*v)).collect(),
            had,
            has,
        })
        .collect()
    }

    /// `sum (y - y')^2 / sum (W x)^2` over all tokens and rows.
    fn output_error(&self, rows: &[Row]) -> f64 {
        let (mut noise, mut signal) = (0.0, 0.0);
        for x in self.inputs.chunks(WIDTH) {
            for row in rows {
                let dot = |weights: &[f64]| weights.iter().zip(x).map(|(a, b)| a * b).sum::<f64>();
                let (y, q) = (dot(&row.w), dot(&row.q));
                noise += (y + f64::from(row.had) - q - f64::from(row.has)).powi(2);
                signal += y * y;
            }
        }
        noise / signal
    }
}

struct Row {
    w: Vec<f64>,
    q: Vec<f64>,
    had: f32,
    has: f32,
}

fn open(path: &Path) -> Checkpoint {
    Checkpoint::open(path, &Limits::default()).unwrap()
}

fn floats(checkpoint: &Checkpoint, name: &str) -> Option<Vec<f32>> {
    let tensor = checkpoint.tensor(name)?;
    assert_eq!(tensor.info.dtype, Dtype::BF16, "{name}");
    let bytes = tensor.read_all(u64::MAX).unwrap();
    let mut values = vec![0.0; bytes.len() / 2];
    (Backend::detect().widen)(Float::Bf16, &bytes, &mut values);
    Some(values)
}

fn module<'s>(summary: &'s Summary, name: &str) -> &'s ModuleSummary {
    summary.modules.iter().find(|m| m.name == name).unwrap()
}

#[test]
fn biases_are_those_of_the_formula_and_outputs_lose_less() {
    let bench = Bench::new();
    let n = 1.0 / f64::from(u32::try_from(N_TOKENS).unwrap());
    let mut n_checked = 0;
    for (method, has) in [
        ("mse", Has::Everything),
        ("mse", Has::Diagonal),
        ("gptq", Has::Everything),
        ("refine", Has::Everything),
        ("auto", Has::Everything),
    ] {
        let to = format!("{method}{}", u8::from(has == Has::Diagonal));
        let plain = format!("{to}-plain");
        let corrected = bench.verb(method, Biases::Corrected, has);
        let summary = bench.run(&corrected, &to, &options()).unwrap();
        let kept = bench.verb(method, Biases::Kept, has);
        let without = bench.run(&kept, &plain, &options()).unwrap();
        for (name, _, has_bias) in MODULES {
            let (rows, plain_rows) = (bench.rows(&to, name), bench.rows(&plain, name));
            let (found, other) = (bench.output_error(&rows), bench.output_error(&plain_rows));
            let summary = module(&summary, name);
            if !has_bias {
                assert_eq!(summary.corrected_bias, None);
                assert!(found.to_bits() == other.to_bits(), "{method} {name}");
                continue;
            }
            assert_eq!(summary.corrected_bias, Some(format!("{name}.bias")));
            assert_eq!(module(&without, name).corrected_bias, None);
            assert!(found < other, "{method} {name}: {found} without {other}");
            for row in &rows {
                let columns = row.w.iter().zip(&row.q).enumerate();
                let lost: f64 = columns
                    .map(|(j, (w, q))| {
                        let column = bench.inputs.iter().skip(j).step_by(WIDTH);
                        (w - q) * n * column.sum::<f64>()
                    })
                    .sum();
                let wanted = f64::from(row.had) + lost;
                // Half a step of BF16 is at most this share; and what F32 statistics leave.
                let half = wanted.abs() / 256.0 + 1e-6;
                assert!(
                    (f64::from(row.has) - wanted).abs() <= 1.01 * half,
                    "{method} {name}"
                );
                n_checked += 1;
            }
            if let Some(loss) = summary.output_loss {
                let told = loss.relative();
                // Error feedback counts what the damping of the moment costs, too.
                let above = if method == "gptq" { 0.25 } else { 0.01 };
                assert!(
                    told > 0.99 * found && told < (1.0 + above) * found,
                    "{method} {name}: {told}, {found}"
                );
            } else {
                assert_eq!(method, "mse");
            }
        }
    }
    assert_eq!(n_checked, 5 * (128 + 64 + 64));
}

#[test]
fn what_cannot_be_corrected_is_refused_by_name() {
    let bench = Bench::new();
    let refusal = |verb: &Verb| {
        let error = bench.run(verb, "refused", &options()).unwrap_err();
        assert!(!bench.path("refused").exists());
        (error.code(), error.to_string())
    };
    let (code, text) = refusal(&bench.verb("refine", Biases::Corrected, Has::NoMean));
    assert_eq!(code, "cannot_correct_bias");
    assert!(
        text.contains("self_attn.") && text.contains("no mean input"),
        "{text}"
    );
    let mut recipe = bench.recipe(
        "refine",
        Biases::Corrected,
        Has::Everything,
        "compressed-tensors",
    );
    recipe.groups[0].targets = vec!["*.up_proj".to_owned()];
    let (code, text) = refusal(&Verb::Quantize(recipe));
    assert_eq!(code, "cannot_correct_bias");
    assert!(text.contains("has a bias"), "{text}");
}

#[test]
fn the_plan_names_biases_and_an_interrupted_job_gives_the_same_bytes() {
    let bench = Bench::new();
    let verb = bench.verb("refine", Biases::Corrected, Has::Everything);
    let checkpoint = open(&bench.path("src"));
    let plan = rewrite::plan(&checkpoint, &verb, &bench.path("dst"), &options()).unwrap();
    let note = plan
        .notes
        .iter()
        .find(|note| note.contains("3 biases make up"));
    let note = note.unwrap_or_else(|| panic!("{:?}", plan.notes));
    assert!(note.contains("1 modules have no bias"), "{note}");
    let is_bias = |name: &str| name.rsplit('.').next() == Some("bias");
    assert!(plan.modules.iter().all(|m| !is_bias(&m.name)));
    bench.run(&verb, "dst", &options()).unwrap();
    for threads in [1, 4] {
        let options = JobOptions {
            threads,
            memory_bytes: 8 << 20,
            ..options()
        };
        let to = format!("dst{threads}");
        bench.run(&verb, &to, &options).unwrap();
        assert!(contents(&bench.path("dst")) == contents(&bench.path(&to)));
    }
    let watch = Watch::new(2);
    let plan = rewrite::plan(&checkpoint, &verb, &bench.path("late"), &options()).unwrap();
    let stopped = rewrite::run(&plan, &OsDisk, &watch, &watch.cancel).unwrap_err();
    assert_eq!(stopped.code(), "canceled");
    bench.run(&verb, "late", &resume()).unwrap();
    assert!(contents(&bench.path("dst")) == contents(&bench.path("late")));
    // It is another job without.
    let kept = bench.verb("refine", Biases::Kept, Has::Everything);
    bench.run(&kept, "kept", &options()).unwrap();
    assert!(contents(&bench.path("dst")) != contents(&bench.path("kept")));
}
