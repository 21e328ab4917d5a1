//! Two checkpoints compared: each with itself, with what it is converted to, and with what a single number was changed in.

use std::collections::BTreeMap;
use std::path::Path;

use safequant::audit::diff::{Compared, Diff, Level, Options, WeightDiff, diff};
use safequant::container::{Checkpoint, Dtype, ErrorGroup, Limits, OsDisk};
use safequant::kernels::Float;
use safequant::rewrite::plan::Action;
use safequant::rewrite::{
    self, CancelToken, ConvertRecipe, DequantizeRecipe, Destination, Event, Events, JobOptions,
    Label, LossPolicy, OutputDtype, Verb,
};
use safequant::schemes::{CONVENTIONS, Code, Model, Part, QuantizedTensor, Role, Storage};
use serde_json::json;

use super::draft::Draft;
use super::faults::Random;
use crate::interop::fixture::{self, Fixture};

/// Only these levels.
fn only(levels: &[Level]) -> Options {
    Options {
        levels: levels.to_vec(),
        ..Options::default()
    }
}

fn compare(a: &Checkpoint, b: &Checkpoint, options: &Options) -> Diff {
    let (of_a, of_b) = (Model::bind(a).unwrap(), Model::bind(b).unwrap());
    diff((a, &of_a), (b, &of_b), options).unwrap()
}

/// The weights that differ in this.
fn differing(diff: &Diff, level: Level) -> Vec<&WeightDiff> {
    let all = diff.weights.iter();
    all.filter(|weight| weight.differs(level, 0.0)).collect()
}

#[test]
fn every_checkpoint_is_equal_to_itself() {
    let fixtures = fixture::all();
    assert!(fixtures.len() > 80, "{} fixtures", fixtures.len());
    for fixture in &fixtures {
        let (a, b) = (fixture.open(), fixture.open());
        let found = compare(&a, &b, &Options::default());
        assert!(found.is_equal(), "{}: {found:#?}", fixture.name);
        let sums = found.sums();
        assert_eq!(sums.n_valued, sums.n_weights, "{}", fixture.name);
        assert!(sums.n_weights > 0, "{}", fixture.name);
    }
}

struct Quiet;

impl Events for Quiet {
    fn event(&self, _: Event<'_>) {}
}

fn job() -> JobOptions {
    JobOptions {
        memory_bytes: 256 << 20,
        threads: 1,
        max_shard_bytes: 1 << 30,
        destination: Destination::New,
    }
}

/// A fixture's own files in a folder.
fn laid_out(fixture: &Fixture, folder: &Path) -> Checkpoint {
    std::fs::create_dir(folder).unwrap();
    let (shards, documents) = fixture.files();
    for (name, bytes) in shards.iter().chain(&documents) {
        std::fs::write(folder.join(name), bytes).unwrap();
    }
    Checkpoint::open(folder, &Limits::default()).unwrap()
}

/// What a checkpoint is converted to, if all of it that is quantized can be carried over exactly.
fn converted(source: &Checkpoint, convention: &'static str, to: &Path) -> Option<Checkpoint> {
    let verb = Verb::Convert(ConvertRecipe {
        convention,
        loss: LossPolicy::Refuse,
        ignore: Vec::new(),
    });
    let plan = match rewrite::plan(source, &verb, to, &job()) {
        Ok(plan) => plan,
        Err(error) => {
            assert_ne!(error.group(), ErrorGroup::Io, "{error}");
            return None;
        }
    };
    let labels = plan.modules.iter().map(|module| &module.action);
    let mut labels = labels.filter_map(|action| match action {
        Action::Convert(label) => Some(*label),
        _ => None,
    });
    if !labels.all(|label| label == Label::Exact) {
        return None;
    }
    rewrite::run(&plan, &OsDisk, &Quiet, &CancelToken::default()).unwrap();
    Some(Checkpoint::open(to, &Limits::default()).unwrap())
}

/// Convention, packing and transposition change; codes, scales, zero points and values do not.
#[test]
fn exact_conversions_keep_codes_scales_and_values() {
    let mut n: BTreeMap<&str, u64> = BTreeMap::new();
    let (mut faults, mut unreadable) = (Vec::new(), Vec::new());
    for fixture in fixture::all() {
        let folder = tempfile::tempdir().unwrap();
        let source = laid_out(&fixture, &folder.path().join("source"));
        let model = Model::bind(&source).unwrap();
        for convention in CONVENTIONS.iter().filter(|c| c.writer().is_some()) {
            let id = convention.id();
            if model.conventions.iter().any(|(own, _)| *own == id) {
                continue;
            }
            let Some(made) = converted(&source, id, &folder.path().join(id)) else {
                continue;
            };
            let name = format!("{} to {id}", fixture.name);
            // A model of a few numbers can contradict itself in another convention's terms.
            if let Err(error) = Model::bind(&made) {
                unreadable.push(format!("{name}: {error}"));
                continue;
            }
            let found = compare(&source, &made, &Options::default());
            let mut expect = |holds: bool, what: &str| {
                if !holds {
                    faults.push(format!("{name}: {what} {found:#?}"));
                }
            };
            expect(found.differs(Level::Structure), "structure is the same");
            for level in [Level::Codes, Level::Values] {
                expect(differing(&found, level).is_empty(), level.name());
            }
            let sums = found.sums();
            expect(sums.n_codes_not_compared == 0, "not compared");
            expect(sums.codes.n > 0 && sums.codes.n_flipped == 0, "codes");
            expect(found.only.iter().flatten().all(|w| !w.is_weight), "only");
            *n.entry(id).or_default() += 1;
        }
    }
    println!("exact conversions: {n:?}, not bound: {unreadable:#?}");
    assert!(
        faults.is_empty(),
        "{} faults, {}",
        faults.len(),
        faults[..faults.len().min(5)].join("\n")
    );
    assert!(n.values().sum::<u64>() > 60 && n.len() > 5, "{n:?}");
}

/// A part of a random weight that is one number for each entry, or codes.
fn part<'m>(
    model: &'m Model,
    random: &mut Random,
    fits: impl Fn(&QuantizedTensor, &Part) -> bool,
) -> Option<(&'m QuantizedTensor, &'m Part)> {
    let weights = model.quantized.iter();
    let parts = weights.flat_map(|tensor| tensor.parts.iter().map(move |part| (tensor, part)));
    let fitting: Vec<_> = parts.filter(|(tensor, part)| fits(tensor, part)).collect();
    let at = random.below(fitting.len().max(1));
    fitting.get(at).copied()
}

/// Whether a bit of a part is a bit of one code, wherever it is taken.
fn is_all_codes(tensor: &QuantizedTensor, part: &Part) -> bool {
    let is_whole = match part.storage {
        Storage::Elements { .. } => true,
        // Words whose last bits may be no code, of rows that may end within one.
        Storage::Packed { packing, .. } => matches!(packing.bits(), 1 | 2 | 4 | 8),
        _ => false,
    };
    let divides = tensor.shape.iter().rev().take(2).all(|d| d % 64 == 0);
    let is_full = match tensor.scheme.code {
        Code::Integer { bits, .. } => part.dtype.bits() > 8 || bits == 8,
        Code::Minifloat(format) => {
            format.bits() == 8 || !matches!(part.storage, Storage::Elements { .. })
        }
        Code::Codebook(_) => true,
        Code::StoredCodebook | Code::Dense(_) => false,
    };
    part.role == Role::Codes && part.extent.is_none() && is_whole && divides && is_full
}

#[test]
fn a_flipped_bit_is_one_code_of_one_weight() {
    let mut n = 0;
    for (seed, fixture) in (1..).zip(fixture::all()) {
        let mut random = Random(seed);
        let a = fixture.open();
        let model = Model::bind(&a).unwrap();
        let Some((weight, part)) = part(&model, &mut random, is_all_codes) else {
            continue;
        };
        let mut draft = Draft::of(&fixture);
        let bytes = &mut draft.tensor(&part.name).unwrap().bytes;
        let at = random.below(bytes.len());
        bytes[at] ^= 1 << random.below(8);
        let (b, _) = draft.open();
        let found = compare(&a, &b, &Options::default());
        let codes = differing(&found, Level::Codes);
        let names: Vec<_> = codes.iter().map(|weight| &weight.a.name).collect();
        assert_eq!(names, [&weight.weight], "{}", fixture.name);
        let Compared::Found(codes) = codes[0].codes else {
            panic!("{}: {:?}", fixture.name, codes[0]);
        };
        assert_eq!(codes.n_flipped, 1, "{}", fixture.name);
        assert!(codes.first.is_some());
        assert!(!found.differs(Level::Structure) && !found.differs(Level::Config));
        let scales = found.sums().scales;
        assert_eq!(scales.n_differ, 0, "{}", fixture.name);
        n += 1;
    }
    println!("{n} codes flipped");
    assert!(n > 40, "{n} codes flipped");
}

#[test]
fn a_doubled_scale_is_found_with_its_ratio() {
    let mut n = 0;
    for (seed, fixture) in (1..).zip(fixture::all()) {
        let mut random = Random(seed);
        let a = fixture.open();
        let model = Model::bind(&a).unwrap();
        let is_scale = |_: &QuantizedTensor, part: &Part| {
            let is_float = matches!(part.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16);
            let is_own = matches!(part.storage, Storage::Elements { .. });
            part.role == Role::Scale && is_float && is_own && part.extent.is_none()
        };
        let Some((weight, part)) = part(&model, &mut random, is_scale) else {
            continue;
        };
        let mut draft = Draft::of(&fixture);
        let dense = draft.tensor(&part.name).unwrap();
        let size = usize::try_from(dense.dtype.bits() / 8).unwrap();
        let at = random.below(dense.bytes.len() / size) * size;
        // One more in the exponent.
        let step: u32 = match dense.dtype {
            Dtype::F32 => 1 << 23,
            Dtype::F16 => 1 << 10,
            _ => 1 << 7,
        };
        let mut word = [0; 4];
        word[..size].copy_from_slice(&dense.bytes[at..at + size]);
        if word == [0; 4] {
            continue;
        }
        let word = (u32::from_le_bytes(word) + step).to_le_bytes();
        dense.bytes[at..at + size].copy_from_slice(&word[..size]);
        let (b, _) = draft.open();
        let found = compare(&a, &b, &Options::default());
        let changed = differing(&found, Level::Codes);
        let names: Vec<_> = changed.iter().map(|weight| &weight.a.name).collect();
        // The second, if there is one, is the same weight times what its inputs are divided by.
        assert_eq!(names[0], &weight.weight, "{}", fixture.name);
        let effective = format!("{}_effective", weight.weight);
        assert!(names[1..].iter().all(|name| **name == effective));
        let scales = changed[0].scales.found().unwrap();
        assert_eq!(scales.n_differ, 1, "{}: {scales:?}", fixture.name);
        let most = scales
            .max_ratio
            .unwrap()
            .max(1.0 / scales.min_ratio.unwrap());
        assert!((most - 2.0).abs() < 1e-6, "{}: {scales:?}", fixture.name);
        assert_eq!(found.sums().codes.n_flipped, 0, "{}", fixture.name);
        n += 1;
    }
    println!("{n} scales doubled");
    assert!(n > 50, "{n} scales doubled");
}

#[test]
fn a_value_of_a_document_is_found_by_its_path() {
    let mut n = 0;
    for fixture in fixture::all() {
        let mut draft = Draft::of(&fixture);
        if !draft.config().is_object() {
            continue;
        }
        let a = draft.open().0;
        draft.edit("config.json", |config| {
            config["planted"] = json!({"list": [1, {"deep": "value"}]});
        });
        let b = draft.open().0;
        draft.edit("config.json", |config| {
            config["planted"]["list"][1]["deep"] = json!("other");
        });
        let c = draft.open().0;
        let added = compare(&a, &b, &Options::default());
        assert!(!added.differs(Level::Structure) && !added.differs(Level::Values));
        assert_eq!(added.documents.len(), 1, "{}", fixture.name);
        let change = &added.documents[0].changes[0];
        assert_eq!((change.path.as_str(), &change.a), ("planted", &None));
        let changed = compare(&b, &c, &only(&[Level::Config]));
        let [document] = &changed.documents[..] else {
            panic!("{}: {:?}", fixture.name, changed.documents);
        };
        assert_eq!(
            (document.name.as_str(), document.n_changes),
            ("config.json", 1)
        );
        let change = &document.changes[0];
        assert_eq!(change.path, "planted.list[1].deep");
        assert_eq!(change.b, Some(json!("other")));
        n += 1;
    }
    assert!(n > 60, "{n} documents");
}

/// llama.cpp renames tensors, puts the rows of heads in another order, stacks experts and rounds nothing.
#[test]
fn models_that_llama_cpp_has_respelled_are_the_same() {
    let root = fixture::root().join("llama.cpp");
    let mut n = 0;
    for entry in std::fs::read_dir(root).unwrap() {
        let folder = entry.unwrap().path();
        let made = folder.join("expected.gguf");
        if !made.exists() {
            continue;
        }
        let limits = Limits::default();
        let source = Checkpoint::open(&folder, &limits).unwrap();
        let made = Checkpoint::open(&made, &limits).unwrap();
        for (a, b) in [(&source, &made), (&made, &source)] {
            let found = compare(a, b, &Options::default());
            let name = folder.display();
            assert!(!found.differs(Level::Values), "{name}: {found:#?}");
            assert!(!found.differs(Level::Codes), "{name}: {found:#?}");
            assert!(found.differs(Level::Structure) && found.differs(Level::Config));
            assert!(found.weights.len() > 5, "{name}");
        }
        n += 1;
    }
    assert_eq!(n, 6);
}

/// A dense copy in another dtype: no codes, and values as near as that dtype is.
#[test]
fn a_dense_copy_is_near_and_has_no_codes() {
    let mut n = 0;
    for fixture in fixture::all().iter().step_by(9) {
        let folder = tempfile::tempdir().unwrap();
        let source = laid_out(fixture, &folder.path().join("source"));
        let to = folder.path().join("dense");
        let dtype = OutputDtype::Float(Float::F16);
        let verb = Verb::Dequantize(DequantizeRecipe { dtype });
        let Ok(plan) = rewrite::plan(&source, &verb, &to, &job()) else {
            continue;
        };
        rewrite::run(&plan, &OsDisk, &Quiet, &CancelToken::default()).unwrap();
        let made = Checkpoint::open(&to, &Limits::default()).unwrap();
        let near = Options {
            levels: vec![Level::Values],
            tolerance: 1e-3,
            ..Options::default()
        };
        let found = compare(&source, &made, &near);
        let mut differing = differing_by(&found, 1e-3);
        // What is beyond F16 is infinite in the copy.
        differing.retain(|weight| {
            let values = weight.values.found();
            let loss = values.and_then(|values| values.loss.as_ref());
            loss.is_none_or(|loss| loss.max_error.is_finite())
        });
        assert!(differing.is_empty(), "{}: {differing:#?}", fixture.name);
        let codes = compare(&source, &made, &only(&[Level::Codes]));
        assert!(codes.differs(Level::Codes), "{}", fixture.name);
        let sums = codes.sums();
        assert_eq!((sums.n_coded, sums.n_valued), (0, 0), "{}", fixture.name);
        n += 1;
    }
    assert!(n > 5, "{n} copies");
}

fn differing_by(diff: &Diff, tolerance: f64) -> Vec<&WeightDiff> {
    let all = diff.weights.iter();
    all.filter(|weight| weight.differs(Level::Values, tolerance))
        .collect()
}
