//! Better codes for checkpoints that other tools quantized: nothing but codes changes, and no output loses more.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use safequant::container::{Checkpoint, ErrorGroup, Limits, OsDisk};
use safequant::kernels::Backend;
use safequant::quantize::{Effort, Settings};
use safequant::rewrite::{
    self, Action, CalibrationFile, CancelToken, Error, JobOptions, Reference, RefineRecipe,
    Summary, Verb,
};
use safequant::schemes::{Model, Role};
use safequant::{Decoder, RowsOut};

use super::statistics::Statistics;
use super::tiny::{Quiet, Watch, contents, options, resume};

/// Producers with fixtures that have the dense source beside what the tool made of it.
const PRODUCERS: &[&str] = &[
    "bitsandbytes",
    "comfyui",
    "gptqmodel",
    "hqq",
    "llm-compressor",
    "mlx",
    "optimum-quanto",
    "torchao",
    "transformers",
];

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures")
}

fn sources() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for producer in PRODUCERS {
        for entry in std::fs::read_dir(fixtures().join(producer)).unwrap() {
            let folder = entry.unwrap().path();
            if folder.join("source.safetensors").exists() {
                found.push(folder);
            }
        }
    }
    found.sort();
    found
}

/// A quantized checkpoint in `quantized`, and what it was made of in `dense`.
struct Pair {
    folder: tempfile::TempDir,
}

impl Pair {
    /// A fixture that has both.
    fn of(fixture: &Path) -> Self {
        let pair = Self::quantized(fixture);
        std::fs::create_dir(pair.path("dense")).unwrap();
        let source = fixture.join("source.safetensors");
        std::fs::copy(source, pair.path("dense/model.safetensors")).unwrap();
        pair
    }

    fn quantized(fixture: &Path) -> Self {
        let pair = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        std::fs::create_dir(pair.path("quantized")).unwrap();
        for entry in std::fs::read_dir(fixture).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            let is_beside = name.starts_with("expected") || name.starts_with("source");
            if !is_beside && name != "fixture.json" {
                std::fs::copy(&path, pair.path("quantized").join(name)).unwrap();
            }
        }
        pair
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn open(&self, name: &str) -> Checkpoint {
        Checkpoint::open(&self.path(name), &Limits::default()).unwrap()
    }

    /// Statistics of every quantized weight.
    fn statistics(&self, detail: &'static str) -> Statistics {
        let checkpoint = self.open("quantized");
        let model = Model::bind(&checkpoint).unwrap();
        let module = |t: &safequant::QuantizedTensor| {
            let width = usize::try_from(t.in_features()).unwrap();
            (t.module.clone(), (width, 96))
        };
        Statistics {
            detail,
            modules: model.quantized.iter().map(module).collect(),
            shares: BTreeMap::new(),
            spoiled: None,
        }
    }

    fn calibration(&self) -> CalibrationFile {
        self.statistics("full").write(&self.path("statistics"))
    }

    fn verb(&self, calibration: CalibrationFile, effort: Effort) -> Verb {
        Verb::Refine(RefineRecipe {
            reference: Reference::open(&self.path("dense"), &Limits::default()).unwrap(),
            calibration,
            settings: Settings {
                effort,
                ..Settings::default()
            },
            ignore: Vec::new(),
        })
    }

    fn run(&self, verb: &Verb, to: &str, options: &JobOptions) -> Result<Summary, Error> {
        let checkpoint = self.open("quantized");
        let plan = rewrite::plan(&checkpoint, verb, &self.path(to), options)?;
        rewrite::run(&plan, &OsDisk, &Quiet, &CancelToken::default())
    }

    fn refusal(&self, verb: &Verb) -> (&'static str, ErrorGroup, String) {
        let error = self.run(verb, "refused", &options()).unwrap_err();
        assert!(!self.path("refused").exists());
        (error.code(), error.group(), error.to_string())
    }

    /// Makes up a dense checkpoint that could have become the quantized one: its values, and noise of a fraction of their size.
    fn make_up_source(&self) {
        let checkpoint = self.open("quantized");
        let model = Model::bind(&checkpoint).unwrap();
        let mut tensors = Vec::new();
        for tensor in &model.quantized {
            let n = usize::try_from(tensor.n_rows() * tensor.in_features()).unwrap();
            let mut values = vec![0.0; n];
            let decoder = Decoder::new(tensor, &checkpoint, Backend::detect()).unwrap();
            decoder
                .rows(0..tensor.n_rows(), RowsOut::F32(&mut values))
                .unwrap();
            let mut state = 17_u32;
            for value in &mut values {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let share = f32::from(u16::try_from(state >> 16).unwrap()) / 65536.0 - 0.5;
                *value += 0.004 * share;
            }
            let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            tensors.push((
                tensor.weight.clone(),
                safequant::Dtype::F32,
                tensor.shape.clone(),
                bytes,
            ));
        }
        std::fs::create_dir(self.path("dense")).unwrap();
        let to = self.path("dense/model.safetensors");
        super::statistics::write_tensors(&to, &tensors, &[]);
    }
}

/// Every tensor's bytes.
fn tensors(checkpoint: &Checkpoint) -> BTreeMap<String, Vec<u8>> {
    let read = |t: safequant::TensorRef<'_>| {
        let bytes = t.read_all(u64::MAX).unwrap();
        (t.info.name.to_string(), bytes)
    };
    checkpoint.tensors().map(read).collect()
}

/// The stored tensors that hold codes.
fn code_parts(checkpoint: &Checkpoint) -> BTreeSet<String> {
    let model = Model::bind(checkpoint).unwrap();
    let parts = model.quantized.iter().filter_map(|t| t.part(Role::Codes));
    parts.map(|part| part.name.clone()).collect()
}

fn refined(summary: &Summary) -> Vec<&rewrite::ModuleSummary> {
    let modules = summary.modules.iter();
    modules.filter(|m| m.action == Action::Refine).collect()
}

/// Nothing but codes differs; gives how many tensors of codes do.
fn check_only_codes_changed(pair: &Pair, to: &str, name: &str) -> usize {
    let (before, after) = (pair.open("quantized"), pair.open(to));
    let codes = code_parts(&before);
    let (was, is) = (tensors(&before), tensors(&after));
    assert_eq!(
        was.keys().collect::<Vec<_>>(),
        is.keys().collect::<Vec<_>>(),
        "{name}"
    );
    let changed: Vec<&String> = was.keys().filter(|key| was[*key] != is[*key]).collect();
    for key in &changed {
        assert!(codes.contains(*key), "{name}: {key} changed");
    }
    let (before, after) = (contents(&pair.path("quantized")), contents(&pair.path(to)));
    for (file, bytes) in &before {
        if !file.ends_with(".safetensors") {
            assert!(after.get(file) == Some(bytes), "{name}: {file}");
        }
    }
    changed.len()
}

/// What a module's outputs are off by as a share of them, calculated in F64 from the three files.
fn reference_error(pair: &Pair, from: &str, module: &str, calibration: &CalibrationFile) -> f64 {
    let checkpoint = pair.open(from);
    let model = Model::bind(&checkpoint).unwrap();
    let tensor = model.quantized.iter().find(|t| t.module == module).unwrap();
    let k = usize::try_from(tensor.in_features()).unwrap();
    let n_rows = usize::try_from(tensor.n_rows()).unwrap();
    let mut back = vec![0.0; n_rows * k];
    let decoder = Decoder::new(tensor, &checkpoint, Backend::detect()).unwrap();
    decoder
        .rows(0..tensor.n_rows(), RowsOut::F32(&mut back))
        .unwrap();
    let dense = pair.open("dense");
    let weight = dense.tensor(&tensor.weight).unwrap();
    let float = safequant::schemes::scheme::float_of(weight.info.dtype).unwrap();
    let bytes = weight.read_all(u64::MAX).unwrap();
    let mut values = vec![0.0; n_rows * k];
    (Backend::detect().widen)(float, &bytes, &mut values);
    let statistics = calibration.calibration().statistics(module, k as u64);
    let statistics = statistics.unwrap().unwrap();
    let safequant::quantize::SecondMoment::Full(moment) = &statistics.second_moment else {
        panic!("a whole second moment");
    };
    let form = |row: &[f64]| -> f64 {
        let lines = moment.chunks(k).zip(row);
        lines
            .map(|(line, a)| {
                a * line
                    .iter()
                    .zip(row)
                    .map(|(h, b)| f64::from(*h) * b)
                    .sum::<f64>()
            })
            .sum()
    };
    let (mut signal, mut noise) = (0.0, 0.0);
    for (row, back) in values.chunks(k).zip(back.chunks(k)) {
        let wide: Vec<f64> = row.iter().map(|v| f64::from(*v)).collect();
        let error: Vec<f64> = wide
            .iter()
            .zip(back)
            .map(|(w, q)| f64::from(*q) - w)
            .collect();
        signal += form(&wide);
        noise += form(&error);
    }
    // A weight of zeros loses nothing of nothing.
    if noise == 0.0 { 0.0 } else { noise / signal }
}

#[test]
fn what_other_tools_rounded_gets_better_codes_and_keeps_everything_else() {
    let (mut n_modules, mut conventions, mut refused) = (0, BTreeSet::new(), BTreeSet::new());
    let (mut strangers, mut wrong) = (BTreeSet::new(), Vec::new());
    let mut ratios: Vec<f64> = Vec::new();
    for fixture in sources() {
        let name = fixture.file_name().unwrap().to_str().unwrap().to_owned();
        let pair = Pair::of(&fixture);
        let calibration = pair.calibration();
        let verb = pair.verb(calibration.clone(), Effort::Default);
        let summary = match pair.run(&verb, "dst", &options()) {
            Ok(summary) => summary,
            Err(Error::NothingToRefine { reason, .. }) => {
                refused.insert(format!("{name}: {reason}"));
                continue;
            }
            // Rows made hostile on purpose, whose other weights a block of FP8 flushes to zero.
            Err(Error::AnotherModel { name: module, .. }) => {
                strangers.insert(format!("{name}: {module}"));
                continue;
            }
            Err(other) => panic!("{name}: {other}"),
        };
        let modules = refined(&summary);
        let n_changed = check_only_codes_changed(&pair, "dst", &name);
        assert!(n_changed > 0, "{name}");
        let (mut before, mut after) = (0.0, 0.0);
        for module in &modules {
            let (start, end) = (module.start_loss.unwrap(), module.output_loss.unwrap());
            assert!(end.noise <= start.noise, "{name}: {}", module.name);
            assert_eq!(module.method.as_deref(), Some("refine"));
            before += start.relative();
            after += end.relative();
        }
        if after >= before {
            wrong.push(format!("{name}: {before} -> {after}"));
        }
        ratios.push(after / before);
        let first = modules[0];
        for (from, loss) in [("quantized", first.start_loss), ("dst", first.output_loss)] {
            let expected = reference_error(&pair, from, &first.name, &calibration);
            let found = loss.unwrap().relative();
            if (found - expected).abs() > 0.01 * expected {
                wrong.push(format!(
                    "{name}: {} in {from}: {found} for {expected}",
                    first.name
                ));
            }
        }
        let checkpoint = pair.open("dst");
        let model = Model::bind(&checkpoint).unwrap();
        conventions.extend(model.quantized.iter().map(|t| t.convention));
        n_modules += modules.len();
    }
    assert_eq!(wrong, [""; 0]);
    // Some rows of the fixtures are such that no code fits them: they gain little.
    ratios.sort_by(f64::total_cmp);
    let median = ratios[ratios.len() / 2];
    assert!(
        refused.len() <= 2 && strangers.len() <= 2 && median < 0.7,
        "refused {refused:#?}, strangers {strangers:#?}, {ratios:?}"
    );
    assert!(
        n_modules >= 100 && conventions.len() >= 7,
        "{n_modules} modules of {conventions:?}"
    );
}

#[test]
fn groups_in_activation_order_are_refined_where_they_are() {
    for fixture in [
        "gptqmodel/gptq-w4g32-descact",
        "gptqmodel/gptq_v2-w4g64-asym-descact",
        "llm-compressor/ct-old-w4a16-actorder-group",
        "llm-compressor/ct-old-w4a16-actorder-group-asym",
        "autoawq/awq-autoawq-gemm-g128",
    ] {
        let pair = Pair::quantized(&fixtures().join(fixture));
        pair.make_up_source();
        let calibration = pair.calibration();
        let verb = pair.verb(calibration.clone(), Effort::High);
        let summary = pair.run(&verb, "dst", &options()).unwrap();
        let modules = refined(&summary);
        assert!(modules.len() >= 7, "{fixture}: {}", modules.len());
        assert!(check_only_codes_changed(&pair, "dst", fixture) >= 7);
        for module in modules {
            let (start, end) = (module.start_loss.unwrap(), module.output_loss.unwrap());
            assert!(end.noise < start.noise, "{fixture}: {}", module.name);
            let expected = reference_error(&pair, "dst", &module.name, &calibration);
            let found = end.relative();
            assert!(
                (found - expected).abs() <= 0.01 * expected,
                "{fixture}: {found}, {expected}"
            );
        }
    }
}

#[test]
fn bytes_do_not_depend_on_threads_or_budget_and_an_interrupted_job_goes_on() {
    let fixture = fixtures().join("gptqmodel/rtn-gptq-w4g128-sym-f32-minilm");
    let pair = Pair::of(&fixture);
    let verb = pair.verb(pair.calibration(), Effort::Default);
    let first = pair.run(&verb, "dst", &options()).unwrap();
    for (threads, memory_bytes) in [(1, 64 << 20), (5, 64 << 20), (2, 8 << 20)] {
        let options = JobOptions {
            memory_bytes,
            threads,
            ..options()
        };
        let to = format!("dst{threads}");
        let summary = pair.run(&verb, &to, &options).unwrap();
        assert!(summary.peak_buffer_bytes <= memory_bytes);
        assert!(contents(&pair.path("dst")) == contents(&pair.path(&to)));
        assert_eq!(summary.modules, first.modules);
    }
    let checkpoint = pair.open("quantized");
    let watch = Watch::new(2);
    let plan = rewrite::plan(&checkpoint, &verb, &pair.path("late"), &options()).unwrap();
    let stopped = rewrite::run(&plan, &OsDisk, &watch, &watch.cancel).unwrap_err();
    assert_eq!(stopped.code(), "canceled");
    let summary = pair.run(&verb, "late", &resume()).unwrap();
    assert!(summary.resumed_modules > 0);
    assert_eq!(summary.modules, first.modules);
    assert!(contents(&pair.path("dst")) == contents(&pair.path("late")));
}

#[test]
fn what_is_not_known_stays_and_says_why() {
    let fixture = fixtures().join("llm-compressor/rtn-w4a16-f32-minilm");
    let pair = Pair::of(&fixture);
    let full = pair.statistics("full");
    let names: Vec<String> = full.modules.keys().cloned().collect();
    assert!(names.len() >= 3, "{names:?}");
    let mut statistics = full.clone();
    statistics.modules.remove(&names[0]);
    statistics.modules.get_mut(&names[1]).unwrap().1 = 0;
    let verb = pair.verb(statistics.write(&pair.path("part")), Effort::Fast);
    let checkpoint = pair.open("quantized");
    let plan = rewrite::plan(&checkpoint, &verb, &pair.path("dst"), &options()).unwrap();
    let notes = plan.notes.join("\n");
    assert!(
        notes.contains("1 modules keep their codes, because there are no statistics of its inputs")
    );
    assert!(
        notes.contains(&names[0]) && notes.contains(&names[1]),
        "{notes}"
    );
    assert!(notes.contains("it saw no token in calibration"), "{notes}");
    let summary = pair.run(&verb, "dst", &options()).unwrap();
    assert_eq!(refined(&summary).len(), names.len() - 2);
    assert!(check_only_codes_changed(&pair, "dst", "part") <= names.len() - 2);
    // With nothing known at all, and with a pattern for everything.
    let diagonal = pair.statistics("diagonal").write(&pair.path("diagonal"));
    let (code, _, text) = pair.refusal(&pair.verb(diagonal, Effort::Fast));
    assert_eq!(code, "nothing_to_refine");
    assert!(text.contains("only the diagonal"), "{text}");
    let mut other = full.clone();
    other.modules = [("another.module".to_owned(), (8, 9))].into();
    let (code, group, _) = pair.refusal(&pair.verb(other.write(&pair.path("other")), Effort::Fast));
    assert_eq!(
        (code, group),
        ("calibration_of_another", ErrorGroup::Refused)
    );
    let Verb::Refine(mut recipe) = pair.verb(pair.calibration(), Effort::Fast) else {
        panic!("a refine verb");
    };
    recipe.ignore = vec!["*".to_owned()];
    let (code, _, text) = pair.refusal(&Verb::Refine(recipe));
    assert_eq!(code, "nothing_to_refine");
    assert!(text.contains("--ignore"), "{text}");
}

#[test]
fn another_model_is_no_reference() {
    let fixture = fixtures().join("llm-compressor/rtn-w4a16-f32-minilm");
    let pair = Pair::of(&fixture);
    let calibration = pair.calibration();
    // Weights of other signs: their outputs have nothing to do with each other.
    let path = pair.path("dense/model.safetensors");
    let original = std::fs::read(&path).unwrap();
    let dense = pair.open("dense");
    let opposite: Vec<_> = dense
        .tensors()
        .map(|t| {
            let mut bytes = t.read_all(u64::MAX).unwrap();
            if t.info.shape.len() == 2 {
                assert_eq!(t.info.dtype, safequant::Dtype::F32);
                bytes.chunks_exact_mut(4).for_each(|word| word[3] ^= 0x80);
            }
            (
                t.info.name.to_string(),
                t.info.dtype,
                t.info.shape.to_vec(),
                bytes,
            )
        })
        .collect();
    drop(dense);
    super::statistics::write_tensors(&path, &opposite, &[]);
    let (code, group, text) = pair.refusal(&pair.verb(calibration.clone(), Effort::Fast));
    assert_eq!((code, group), ("reference_of_another", ErrorGroup::Refused));
    assert!(text.contains("before anything changes"), "{text}");
    std::fs::write(&path, &original).unwrap();
    // A destination that is the reference.
    let verb = pair.verb(calibration, Effort::Fast);
    let error = pair.run(&verb, "dense", &options()).unwrap_err();
    assert_eq!(error.code(), "destination_touches_source");
    assert_eq!(std::fs::read(&path).unwrap(), original);
}

#[test]
fn norms_that_scales_were_folded_into_are_told_from_those_of_the_reference() {
    let fixture = fixtures().join("llm-compressor/ct-w4a16-g128");
    let pair = Pair::quantized(&fixture);
    pair.make_up_source();
    let checkpoint = pair.open("quantized");
    let norm = "model.layers.0.input_layernorm.weight";
    let found = checkpoint.tensor(norm).unwrap();
    let float = safequant::schemes::scheme::float_of(found.info.dtype).unwrap();
    let bytes = found.read_all(u64::MAX).unwrap();
    let mut values = vec![0.0; bytes.len() / float.size_bytes()];
    (Backend::detect().widen)(float, &bytes, &mut values);
    let calibration = pair.calibration();
    let dense = pair.open("dense");
    let mut all: Vec<_> = dense
        .tensors()
        .map(|t| {
            let bytes = t.read_all(u64::MAX).unwrap();
            (
                t.info.name.to_string(),
                t.info.dtype,
                t.info.shape.to_vec(),
                bytes,
            )
        })
        .collect();
    drop(dense);
    let path = pair.path("dense/model.safetensors");
    let n = values.len();
    for (factor, is_same) in [(1.0, true), (1.002, true), (1.5, false)] {
        values[n / 2] *= factor;
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        all.retain(|(name, ..)| name != norm);
        all.push((
            norm.to_owned(),
            safequant::Dtype::F32,
            vec![n as u64],
            bytes,
        ));
        super::statistics::write_tensors(&path, &all, &[]);
        let verb = pair.verb(calibration.clone(), Effort::Fast);
        if is_same {
            pair.run(&verb, &format!("dst{factor}"), &options())
                .unwrap();
        } else {
            let (code, _, text) = pair.refusal(&verb);
            assert_eq!(code, "reference_of_another");
            assert!(text.contains(norm) && text.contains("AWQ"), "{text}");
        }
    }
}
