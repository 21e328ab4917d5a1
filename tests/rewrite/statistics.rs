//! A small file of calibration statistics, for jobs on the small checkpoint.

use std::collections::BTreeMap;
use std::path::Path;

use safequant::container::{Disk, Dtype, FilePlan, FileWriter, Limits, OsDisk, PlannedTensor};
use safequant::rewrite::CalibrationFile;
use serde_json::json;

/// Tokens that were seen.
const N_TOKENS: u16 = 96;

/// What goes into a file.
#[derive(Clone)]
pub(crate) struct Statistics {
    /// `full` or `diagonal`.
    pub(crate) detail: &'static str,
    /// Input features and tokens by module.
    pub(crate) modules: BTreeMap<String, (usize, i64)>,
    /// Modules that share another's.
    pub(crate) shares: BTreeMap<String, String>,
    /// A value of a module's second moment that is replaced.
    pub(crate) spoiled: Option<(String, usize, f32)>,
}

impl Statistics {
    /// Of every linear layer of the small checkpoint.
    pub(crate) fn of_tiny(detail: &'static str) -> Self {
        let mut all = Self {
            detail,
            modules: BTreeMap::new(),
            shares: BTreeMap::new(),
            spoiled: None,
        };
        for layer in 0..2 {
            let at = |name: &str| format!("model.layers.{layer}.{name}");
            for (name, width) in [
                ("self_attn.q_proj", 256),
                ("self_attn.o_proj", 256),
                ("mlp.gate_proj", 256),
                ("mlp.down_proj", 384),
            ] {
                all.modules.insert(at(name), (width, 96));
            }
            for (name, of) in [
                ("self_attn.k_proj", "self_attn.q_proj"),
                ("self_attn.v_proj", "self_attn.q_proj"),
                ("mlp.up_proj", "mlp.gate_proj"),
            ] {
                all.shares.insert(at(name), at(of));
            }
        }
        all
    }

    /// Writes and opens the file.
    pub(crate) fn write(&self, path: &Path) -> CalibrationFile {
        let mut tensors = Vec::new();
        for (module, (width, count)) in &self.modules {
            let k = *width as u64;
            let (name, shape) = match self.detail {
                "full" => ("hessian", vec![k, k]),
                _ => ("hessian_diagonal", vec![k]),
            };
            let mut moment = second_moment(module, *width);
            if *count == 0 {
                moment.fill(0.0);
            }
            if let Some((_, at, value)) = self.spoiled.as_ref().filter(|(m, _, _)| m == module) {
                moment[*at] = *value;
            }
            let values: Vec<f32> = match self.detail {
                "full" => moment,
                _ => moment.iter().step_by(width + 1).copied().collect(),
            };
            let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            tensors.push((format!("{module}.{name}"), Dtype::F32, shape, bytes));
            let count = count.to_le_bytes().to_vec();
            tensors.push((
                format!("{module}.token_count"),
                Dtype::I64,
                Vec::new(),
                count,
            ));
        }
        write_tensors(path, &tensors, &self.metadata());
        CalibrationFile::open(path, &Limits::default()).unwrap()
    }

    fn metadata(&self) -> Vec<(String, String)> {
        let shares = json!(self.shares).to_string();
        [
            ("format", "safequant-calibration"),
            ("format_version", "1"),
            ("hessian", self.detail),
            ("accumulation", "F32"),
            ("sequential", "false"),
            ("shares", &shares),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .to_vec()
    }
}

pub(crate) fn write_tensors(
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
        let (_, _, _, bytes) = found.unwrap();
        writer.write_at(i, 0, bytes).unwrap();
    }
    writer.seal().unwrap();
}

/// `X^T X / n` of made-up inputs, `[width, width]`: some features are louder than others, and neighbors go together.
fn second_moment(module: &str, width: usize) -> Vec<f32> {
    let seed = module
        .bytes()
        .fold(5_u64, |a, b| a.wrapping_mul(31).wrapping_add(b.into()));
    let mut state = seed | 1;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        f32::from(u16::try_from(state >> 48).unwrap()) / 32768.0 - 1.0
    };
    let mut moment = vec![0.0_f64; width * width];
    for _ in 0..N_TOKENS {
        let mut before = 0.0;
        let token: Vec<f64> = (0..width)
            .map(|i| {
                let loud = if i % 37 == 0 { 6.0 } else { 1.0 };
                before = 0.6 * before + f64::from(next());
                loud * before
            })
            .collect();
        for (row, a) in moment.chunks_mut(width).zip(&token) {
            for (sum, b) in row.iter_mut().zip(&token) {
                *sum += a * b;
            }
        }
    }
    let n = f64::from(N_TOKENS);
    #[expect(
        clippy::cast_possible_truncation,
        reason = "statistics are stored as F32"
    )]
    let mean = |sum: f64| (sum / n) as f32;
    moment.into_iter().map(mean).collect()
}
