//! A small model on disk with its statistics, quantized and read back.

use std::path::{Path, PathBuf};

use safequant::container::{
    Checkpoint, Disk, Dtype, ErrorGroup, FilePlan, FileWriter, Limits, OsDisk, PlannedTensor,
    TensorRef,
};
use safequant::quantize::Settings;
use safequant::rewrite::{
    self, CalibrationFile, CancelToken, Error, JobOptions, OutputDtype, Summary, Verb,
};
use serde_json::json;

use super::super::tiny::{Quiet, dequantize, options, quantize};
use super::models::{Kind, Seen, Tensors, forward, model};

pub(super) fn store(
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

pub(super) fn save(directory: &Path, class: &str, model: &Tensors) {
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

pub(super) fn load(checkpoint: &Checkpoint) -> Tensors {
    let tensor = |t: TensorRef<'_>| {
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

/// What a file of statistics lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lack {
    Nothing,
    Means,
    Module(&'static str),
    OffDiagonal,
}

pub(super) fn statistics(path: &Path, seen: &Seen, lack: Lack) -> CalibrationFile {
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
pub(super) struct Bench {
    folder: tempfile::TempDir,
    pub(super) kind: Kind,
    logits: Vec<Vec<f64>>,
    pub(super) seen: Seen,
}

impl Bench {
    pub(super) fn new(kind: Kind) -> Self {
        Self::of(kind, model(kind))
    }

    #[expect(clippy::needless_pass_by_value, reason = "made for this bench")]
    pub(super) fn of(kind: Kind, model: Tensors) -> Self {
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

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(super) fn open(&self, name: &str) -> Checkpoint {
        Checkpoint::open(&self.path(name), &Limits::default()).unwrap()
    }

    pub(super) fn verb(&self, scheme: &str, method: &'static str, lack: Lack) -> Verb {
        let Verb::Quantize(mut recipe) = quantize(scheme, "compressed-tensors") else {
            panic!("a quantize verb");
        };
        recipe.groups[0].method = method;
        recipe.groups[0].settings = Settings::default();
        let path = self.path(&format!("statistics-{lack:?}"));
        recipe.calibration = Some(statistics(&path, &self.seen, lack));
        Verb::Quantize(recipe)
    }

    pub(super) fn run(
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

    pub(super) fn notes(&self, verb: &Verb) -> String {
        let checkpoint = self.open("src");
        let plan = rewrite::plan(&checkpoint, verb, &self.path("planned"), &options()).unwrap();
        plan.notes.join("\n")
    }

    pub(super) fn refusal(&self, verb: &Verb) -> String {
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
    pub(super) fn dense(&self, name: &str) -> Tensors {
        let to = format!("{name}-dense");
        self.run(name, &dequantize(OutputDtype::Auto), &to, &options())
            .unwrap();
        load(&self.open(&to))
    }

    /// How far logits are off, as a share of them.
    pub(super) fn lost(&self, model: &Tensors) -> f64 {
        let (logits, _) = forward(self.kind, &with_head(model));
        let pairs = || self.logits.iter().flatten().zip(logits.iter().flatten());
        let noise: f64 = pairs().map(|(a, b)| (a - b).powi(2)).sum();
        let signal: f64 = pairs().map(|(a, _)| a * a).sum();
        noise / signal
    }
}

/// The head under a name that has a parent.
pub(super) fn with_head(model: &Tensors) -> Tensors {
    let mut all = model.clone();
    let head = all["lm_head.weight"].clone();
    all.insert("model.lm_head.weight".to_owned(), head);
    all
}
