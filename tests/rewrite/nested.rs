//! Scales that are quantized themselves, bitsandbytes' double quantization: a job writes what the tool writes, the same for any number of
//! threads and any budget, and its searches lose no more than rounding.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use safequant::audit::{self, Depth, Options, Subject, Wanted, all_rules};
use safequant::container::{Checkpoint, Dtype, Limits, OsDisk};
use safequant::kernels::{Backend, Float};
use safequant::quantize::Effort;
use safequant::rewrite::{
    self, AUTO, AWQ, CalibrationFile, CancelToken, Destination, Error, JobOptions, ModuleSummary,
    QuantizeRecipe, Summary, Verb, mixed, parts,
};
use safequant::schemes::{Model, SuperScale};
use safequant::{Decoder, RowsOut};
use serde_json::Value;

use super::statistics::{Statistics, write_tensors};
use super::tiny::{Bench, Quiet, Watch, contents, group, options, quantize, resume, tensor};

const SCHEMES: [&str; 2] = ["NF4_DQ", "FP4_DQ"];

fn job(scheme: &str, method: &'static str, calibration: Option<CalibrationFile>) -> Verb {
    let Verb::Quantize(mut recipe) = quantize(scheme, "bitsandbytes") else {
        panic!("a quantize verb");
    };
    recipe.groups[0].method = method;
    recipe.groups[0].settings.effort = Effort::High;
    recipe.calibration = calibration;
    Verb::Quantize(recipe)
}

fn fixture(name: &str) -> std::path::PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/bitsandbytes");
    root.join(name)
}

/// Every tensor: dtype, shape, bytes.
fn tensors(checkpoint: &Checkpoint) -> BTreeMap<String, (Dtype, Vec<u64>, Vec<u8>)> {
    let all = checkpoint.tensors().map(|t| {
        let bytes = t.read_all(1 << 24).unwrap();
        (t.name().to_owned(), (t.dtype(), t.shape().to_vec(), bytes))
    });
    all.collect()
}

fn open(path: &Path) -> Checkpoint {
    Checkpoint::open(path, &Limits::default()).unwrap()
}

/// What is added to the scales of a module.
fn offset(checkpoint: &Checkpoint, module: &str) -> f32 {
    let model = Model::bind(checkpoint).unwrap();
    let scheme = &model.module(module).unwrap().scheme;
    let SuperScale::Nested { size: 256, offset } = scheme.super_scale else {
        panic!("{module}: {scheme:?}");
    };
    offset
}

/// The weight of a module as readers have it, in F32.
fn dequantized(checkpoint: &Checkpoint, module: &str) -> Vec<f32> {
    let model = Model::bind(checkpoint).unwrap();
    let bound = model.module(module).unwrap();
    let decoder = Decoder::new(bound, checkpoint, Backend::detect()).unwrap();
    let n = usize::try_from(bound.n_rows() * bound.in_features()).unwrap();
    let mut values = vec![0.0; n];
    let all = 0..bound.n_rows();
    decoder.rows(all, RowsOut::F32(&mut values)).unwrap();
    values
}

/// The audit of a checkpoint: rules that found something, and every error that no rule claims.
fn findings(path: &Path) -> BTreeSet<String> {
    let (checkpoint, problems) = audit::survey(path, &Limits::default()).unwrap();
    let subject = Subject::new(&checkpoint, problems, Wanted::default());
    let options = Options {
        depth: Depth::Full,
        rules: all_rules().collect(),
    };
    let report = audit::audit(subject, &options);
    let unclaimed = report.unclaimed().map(ToString::to_string);
    let found = report.findings.iter().map(|f| f.rule.to_owned());
    found.chain(unclaimed).collect()
}

/// bitsandbytes.md B8, B17; `round_to_nearest.md` 85 to 89.
#[test]
fn a_job_writes_what_the_tool_writes() {
    let bench = Bench::new();
    let (mut n_same, mut n_near) = (0, 0);
    for (name, scheme) in [
        ("rtn-bnb-nf4-dq-bf16", "NF4_DQ"),
        ("rtn-bnb-fp4-dq-f32", "FP4_DQ"),
    ] {
        let source = bench.path(&format!("source-{scheme}"));
        std::fs::create_dir(&source).unwrap();
        let from = fixture(name).join("source.safetensors");
        std::fs::copy(from, source.join("model.safetensors")).unwrap();
        let checkpoint = open(&source);
        let to = bench.path(scheme);
        let plan = rewrite::plan(&checkpoint, &job(scheme, "rtn", None), &to, &options()).unwrap();
        rewrite::run(&plan, &OsDisk, &Quiet, &CancelToken::default()).unwrap();
        let (written, tool) = (open(&to), open(&fixture(name).join("model.safetensors")));
        let (ours, theirs) = (tensors(&written), tensors(&tool));
        assert!(ours.keys().eq(theirs.keys()), "{name}");
        for module in &Model::bind(&tool).unwrap().quantized {
            let module = module.module.as_str();
            let (a, b) = (offset(&written, module), offset(&tool, module));
            let of_module = |name: &&String| name.starts_with(&format!("{module}."));
            for part in theirs.keys().filter(of_module) {
                // What follows from another last bit is compared in `tests/quantize`, with the tool's.
                let depends = [
                    "absmax",
                    "nested_absmax",
                    "bitsandbytes__nf4",
                    "bitsandbytes__fp4",
                ];
                let depends = depends.iter().any(|ending| part.ends_with(ending));
                if a.to_bits() == b.to_bits() || !depends {
                    assert!(ours[part] == theirs[part], "{name}: {part}");
                }
            }
            // torch adds up in F32.
            assert!(a.to_bits().abs_diff(b.to_bits()) <= 1, "{module}: {a} {b}");
            n_same += usize::from(a.to_bits() == b.to_bits());
            n_near += usize::from(a.to_bits() != b.to_bits());
        }
        let config = std::fs::read(to.join("config.json")).unwrap();
        let config: Value = serde_json::from_slice(&config).unwrap();
        let config = &config["quantization_config"];
        assert_eq!(config["bnb_4bit_use_double_quant"], true);
        assert_eq!(config["bnb_4bit_quant_type"], scheme[..3].to_lowercase());
    }
    assert_eq!(n_same + n_near, 8);
    assert!(n_same >= 6, "{n_same} offsets to the last bit");
}

#[test]
fn bytes_do_not_depend_on_threads_budget_interruptions_or_parts() {
    let bench = Bench::new();
    let file = Statistics::of_tiny("full").write(&bench.path("statistics"));
    let mut n_interrupted = 0;
    for (scheme, method) in [
        ("NF4_DQ", "rtn"),
        ("NF4_DQ", "mse"),
        ("FP4_DQ", "gptq"),
        ("NF4_DQ", AUTO),
    ] {
        let calibration = ["gptq", AUTO].contains(&method).then(|| file.clone());
        let verb = job(scheme, method, calibration);
        let good = bench.run(&verb, "good", &options()).unwrap();
        let bytes = contents(&bench.path("good"));
        for (threads, memory_bytes) in [(1, 64 << 20), (5, 48 << 20), (3, 8 << 20)] {
            let options = JobOptions {
                memory_bytes,
                threads,
                ..options()
            };
            let found = bench.run(&verb, "dst", &options).unwrap();
            assert!(
                contents(&bench.path("dst")) == bytes,
                "{method}, {threads} threads"
            );
            assert_eq!(found.modules, good.modules);
            std::fs::remove_dir_all(bench.path("dst")).unwrap();
        }
        for after in [2, 7] {
            let watch = Watch::new(after);
            let ran = bench.run_on(&OsDisk, &verb, "dst", &options(), &watch, &watch.cancel);
            assert!(matches!(ran, Err(Error::Canceled)), "after {after}");
            n_interrupted += 1;
            bench.run(&verb, "dst", &resume()).unwrap();
            assert!(contents(&bench.path("dst")) == bytes, "{method}");
            std::fs::remove_dir_all(bench.path("dst")).unwrap();
        }
        in_parts(&bench, &verb);
        assert!(contents(&bench.path("dst")) == bytes, "{method} in parts");
        std::fs::remove_dir_all(bench.path("dst")).unwrap();
        std::fs::remove_dir_all(bench.path("good")).unwrap();
    }
    assert_eq!(n_interrupted, 8);
}

/// Runs a job in parts, each of which plans for itself.
fn in_parts(bench: &Bench, verb: &Verb) {
    let checkpoint = bench.open("src");
    let to = bench.path("dst");
    let plan = |destination| {
        let options = JobOptions {
            destination,
            ..options()
        };
        rewrite::plan(&checkpoint, verb, &to, &options).unwrap()
    };
    parts::begin(&plan(Destination::New), &OsDisk, &Quiet).unwrap();
    let n = parts::parts(&plan(Destination::Resume), 3).len();
    assert!(n > 1, "{n} parts");
    for index in (0..n).rev() {
        let plan = plan(Destination::Resume);
        let part = parts::run_part(&plan, index, n, &OsDisk, &Quiet, &CancelToken::default());
        part.unwrap();
    }
    let plan = plan(Destination::Resume);
    parts::finish(&plan, &OsDisk, &Quiet, &CancelToken::default()).unwrap();
}

fn quantized(summary: &Summary) -> Vec<&ModuleSummary> {
    let modules = summary.modules.iter();
    modules.filter(|m| m.method.is_some()).collect()
}

/// Sums of squares of what quantizing lost, by module.
fn noises(summary: &Summary) -> Vec<f64> {
    let modules = quantized(summary).into_iter();
    modules.map(|m| m.loss.unwrap().noise).collect()
}

#[test]
fn searches_lose_less_than_rounding_even_with_whole_scales() {
    let bench = Bench::new();
    let file = Statistics::of_tiny("full").write(&bench.path("statistics"));
    for (scheme, whole) in [("NF4_DQ", "NF4"), ("FP4_DQ", "FP4")] {
        let run = |scheme: &str, method: &'static str, file: Option<&CalibrationFile>| {
            let to = format!("{scheme}-{method}");
            let verb = job(scheme, method, file.cloned());
            bench.run(&verb, &to, &options()).unwrap()
        };
        let [rtn, mse] = ["rtn", "mse"].map(|method| run(scheme, method, None));
        for (searched, rounded) in noises(&mse).iter().zip(noises(&rtn)) {
            assert!(
                *searched < rounded,
                "{scheme}: mse {searched} rtn {rounded}"
            );
        }
        let outputs = |summary: &Summary| -> Vec<f64> {
            let modules = quantized(summary).into_iter();
            modules.map(|m| m.output_loss.unwrap().noise).collect()
        };
        let [gptq, refine] = ["gptq", "refine"].map(|method| run(scheme, method, Some(&file)));
        for (refined, fed_back) in outputs(&refine).iter().zip(outputs(&gptq)) {
            assert!(*refined < fed_back, "{scheme}: {refined} {fed_back}");
        }
        let plain = run(whole, "rtn", None);
        let sum = |summary: &Summary| noises(summary).iter().sum::<f64>();
        let share = sum(&rtn) / sum(&plain);
        assert!((0.99..1.02).contains(&share), "{scheme} rtn: {share}");
        // A search gains more than scales of 8 bits lose.
        assert!(sum(&mse) < 0.9 * sum(&plain), "{scheme} mse");
        for (method, nested) in [("rtn", &rtn), ("mse", &mse), ("refine", &refine)] {
            let bits = |summary: &Summary| -> f64 {
                let modules = quantized(summary);
                let bytes: u64 = modules.iter().map(|m| m.output_bytes).sum();
                let weights: u64 = modules.iter().map(|m| m.n_weights).sum();
                let number = |n: u64| f64::from(u32::try_from(n).unwrap());
                8.0 * number(bytes) / number(weights)
            };
            // Of these small matrices the table of scales is a fair part: 0.127 bits where it is none.
            assert!(bits(nested) < bits(&plain) - 0.15, "{scheme}");
            // What the small checkpoint lacks is found in either.
            let of = |to: &str| findings(&bench.path(to));
            let found = of(&format!("{scheme}-{method}"));
            let expected = of(&format!("{whole}-rtn"));
            assert!(found.is_subset(&expected), "{found:?}");
        }
    }
}

/// Shapes whose blocks of scales are short, cross rows, or are but one.
#[test]
fn any_matrix_has_scales_that_are_quantized() {
    let bench = Bench::new();
    let weights = [
        tensor("a.weight", &[257, 64]),
        tensor("b.weight", &[40, 33]),
        tensor("c.weight", &[4, 16]),
        tensor("d.weight", &[9, 2112]),
        tensor("e.weight", &[1, 64]),
        tensor("f.weight", &[3, 100]),
    ];
    let n_weights = weights.len();
    super::tiny::write_tensors(&bench.path("odd"), weights.to_vec(), 1 << 30);
    let checkpoint = bench.open("odd");
    let run = |scheme: &str, method: &'static str| {
        let to = bench.path(&format!("{scheme}-{method}"));
        let verb = job(scheme, method, None);
        let plan = rewrite::plan(&checkpoint, &verb, &to, &options()).unwrap();
        let summary = rewrite::run(&plan, &OsDisk, &Quiet, &CancelToken::default()).unwrap();
        (summary, findings(&to))
    };
    for (scheme, whole) in [("NF4_DQ", "NF4"), ("FP4_DQ", "FP4")] {
        let (plain, expected) = run(whole, "rtn");
        let [rounded, searched] = ["rtn", AUTO].map(|method| {
            let (summary, found) = run(scheme, method);
            assert!(found.is_subset(&expected), "{scheme} {method}: {found:?}");
            assert_eq!(quantized(&summary).len(), n_weights);
            noises(&summary)
        });
        let losses = rounded.iter().zip(&searched).zip(noises(&plain));
        for ((rounded, searched), plain) in losses {
            assert!(*rounded < 1.05 * plain, "{scheme}: {rounded} {plain}");
            // The same where no search is made, because blocks cross rows.
            assert!(searched <= rounded, "{scheme}: {searched} {rounded}");
        }
        let n_better = searched.iter().zip(&rounded).filter(|(a, b)| a < b).count();
        // A single scale is the mean, and can be nothing else.
        assert_eq!(n_better, 2, "{scheme}: {searched:?} {rounded:?}");
    }
}

#[test]
fn weights_of_nothing_but_zeros_stay_zeros() {
    let bench = Bench::new();
    std::fs::create_dir(bench.path("zeros")).unwrap();
    let bytes = vec![0; 2 * 300 * 64];
    let zeros = ("a.weight".to_owned(), Dtype::F16, vec![300, 64], bytes);
    write_tensors(
        &bench.path("zeros").join("model.safetensors"),
        &[zeros],
        &[],
    );
    let checkpoint = bench.open("zeros");
    for scheme in SCHEMES {
        for method in ["rtn", "mse"] {
            let to = bench.path(&format!("{scheme}-{method}"));
            let verb = job(scheme, method, None);
            let plan = rewrite::plan(&checkpoint, &verb, &to, &options()).unwrap();
            rewrite::run(&plan, &OsDisk, &Quiet, &CancelToken::default()).unwrap();
            let written = open(&to);
            assert_eq!(offset(&written, "a").to_bits(), 0);
            // As the tool has them (`mlp.d_proj` of the fixtures).
            let parts = tensors(&written);
            let all = |name: &str, byte: u8| parts[name].2.iter().all(|b| *b == byte);
            assert!(all("a.weight.absmax", 0) && all("a.weight.nested_absmax", 0));
            assert!(all("a.weight", if scheme == "NF4_DQ" { 0x77 } else { 0 }));
            let values = dequantized(&written, "a");
            assert!(values.iter().all(|v| *v == 0.0), "{scheme} {method}");
        }
    }
}

#[test]
fn a_mixture_takes_the_bits_that_it_promises() {
    let bench = Bench::new();
    let Verb::Quantize(recipe) = quantize("NF4", "bitsandbytes") else {
        panic!("a quantize verb");
    };
    let recipe = QuantizeRecipe {
        groups: ["NF4", "NF4_DQ"].map(group).to_vec(),
        ..recipe
    };
    for target in [4.4, 4.45] {
        let checkpoint = bench.open("src");
        let cancel = CancelToken::default();
        let found = mixed::choose(&checkpoint, &recipe, target, &options(), &cancel).unwrap();
        assert!(found.bits_per_weight <= target);
        assert_eq!(found.recipe.groups.len(), 2, "{}", found.note());
        let to = format!("mixed-{target}");
        let summary = bench.run(&Verb::Quantize(found.recipe.clone()), &to, &options());
        let summary = summary.unwrap();
        for module in quantized(&summary) {
            let planned = found.modules.iter().find(|m| m.name == module.name);
            let planned = planned.unwrap();
            assert_eq!(planned.candidates[planned.chosen].0, module.output_bytes);
        }
    }
}

#[test]
fn what_would_need_other_offsets_is_refused() {
    let bench = Bench::new();
    let file = Statistics::of_tiny("full").write(&bench.path("statistics"));
    let error = bench
        .run(&job("NF4_DQ", AWQ, Some(file)), "dst", &options())
        .unwrap_err();
    assert!(
        error.to_string().contains("scales of more than a row"),
        "{error}"
    );
    let stack = vec![tensor("a.experts.up_proj.weight", &[4, 64, 256])];
    super::tiny::write_tensors(&bench.path("stack"), stack, 1 << 30);
    let checkpoint = bench.open("stack");
    let plan = |scheme: &str| {
        let verb = job(scheme, "rtn", None);
        let plan = rewrite::plan(&checkpoint, &verb, &bench.path("dst"), &options());
        plan.map(|_| ()).unwrap_err().to_string()
    };
    // Neither scheme takes stacks, for the same reason.
    let reason = plan("NF4");
    assert_eq!(plan("NF4_DQ"), reason.replace("NF4", "NF4_DQ"));
    assert!(!bench.path("dst").exists());
}

/// A weight that is not finite is found while the job is planned, and clamped weights have a mean.
#[test]
fn what_is_not_finite_is_refused_or_clamped_before_anything_is_written() {
    let bench = Bench::new();
    std::fs::create_dir(bench.path("infinite")).unwrap();
    let values = (0..128 * 64).map(|i| if i == 777 { f32::INFINITY } else { 0.5 });
    let bytes = values.flat_map(f32::to_le_bytes).collect();
    let weight = ("a.weight".to_owned(), Dtype::F32, vec![128, 64], bytes);
    let path = bench.path("infinite").join("model.safetensors");
    write_tensors(&path, &[weight], &[]);
    let checkpoint = bench.open("infinite");
    let verb = job("NF4_DQ", "rtn", None);
    let plan = rewrite::plan(&checkpoint, &verb, &bench.path("dst"), &options());
    let error = plan.map(|_| ()).unwrap_err().to_string();
    assert!(
        error.contains("row 12") && error.contains("column 9"),
        "{error}"
    );
    let Verb::Quantize(mut recipe) = verb else {
        panic!("a quantize verb");
    };
    recipe.nonfinite = safequant::quantize::NonFinite::Clamp;
    let verb = Verb::Quantize(recipe);
    let plan = rewrite::plan(&checkpoint, &verb, &bench.path("dst"), &options()).unwrap();
    rewrite::run(&plan, &OsDisk, &Quiet, &CancelToken::default()).unwrap();
    let found = offset(&open(&bench.path("dst")), "a");
    let mean = f64::from(f32::MAX) / 128.0;
    assert!((f64::from(found) / mean - 1.0).abs() < 1e-6, "{found}");
    assert_eq!(Float::F32.nearest(found).to_bits(), found.to_bits());
}
