//! Jobs that go by what is known of the modules' inputs.

use safequant::container::{ErrorGroup, Manifest, OsDisk};
use safequant::quantize::{Effort, Needs, QUANTIZERS, Quantizer};
use safequant::rewrite::parts;
use safequant::rewrite::{
    self, AUTO, CalibrationFile, CancelToken, Destination, Error, JobOptions, Summary, Verb,
};

use super::statistics::Statistics;
use super::tiny::{Bench, Quiet, Watch, contents, options, quantize, resume};

/// A job on the small checkpoint by a method, with these statistics.
fn job(method: &'static str, calibration: Option<CalibrationFile>) -> Verb {
    let Verb::Quantize(mut recipe) = quantize("W4A16", "compressed-tensors") else {
        panic!("a quantize verb");
    };
    recipe.groups[0].method = method;
    recipe.calibration = calibration;
    // Without sweeps what outputs lose costs more than it took to choose the codes, and is left out by default.
    recipe.groups[0].settings.effort = effort_of(method);
    Verb::Quantize(recipe)
}

fn effort_of(method: &str) -> Effort {
    if method == "gptq" {
        Effort::High
    } else {
        Effort::Default
    }
}

/// The quantizers that look at statistics of inputs.
fn looking() -> Vec<&'static dyn Quantizer> {
    let all = QUANTIZERS.iter().copied();
    let looking: Vec<_> = all.filter(|q| q.needs() != Needs::Nothing).collect();
    assert!(
        looking.len() >= 3,
        "{} methods look at inputs",
        looking.len()
    );
    looking
}

fn has_second_moment(method: &str) -> bool {
    let mut all = QUANTIZERS.iter();
    all.any(|q| q.id() == method && q.needs() == Needs::SecondMoment)
}

/// By name, as manifests have them.
fn quantized(summary: &Summary) -> Vec<&rewrite::ModuleSummary> {
    let modules = summary.modules.iter();
    let mut found: Vec<_> = modules.filter(|m| m.method.is_some()).collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

fn notes(bench: &Bench, verb: &Verb) -> Vec<String> {
    let checkpoint = bench.open("src");
    let plan = rewrite::plan(&checkpoint, verb, &bench.path("planned"), &options()).unwrap();
    plan.notes
}

fn refusal(bench: &Bench, verb: &Verb) -> (&'static str, ErrorGroup, String) {
    let error = bench.run(verb, "dst", &options()).unwrap_err();
    assert!(!bench.path("dst").exists());
    (error.code(), error.group(), error.to_string())
}

#[test]
fn bytes_and_losses_do_not_depend_on_threads_or_budget() {
    let bench = Bench::new();
    let file = Statistics::of_tiny("full").write(&bench.path("statistics"));
    for quantizer in looking() {
        let verb = job(quantizer.id(), Some(file.clone()));
        let mut first = None;
        for (threads, memory_bytes) in [(1, 64 << 20), (5, 64 << 20), (2, 8 << 20)] {
            let options = JobOptions {
                memory_bytes,
                threads,
                ..options()
            };
            let summary = bench.run(&verb, "dst", &options).unwrap();
            assert!(summary.peak_buffer_bytes <= memory_bytes);
            let found = (contents(&bench.path("dst")), summary.modules);
            let first = first.get_or_insert_with(|| found.clone());
            assert!(
                found.0 == first.0,
                "{} on {threads} threads",
                quantizer.id()
            );
            assert_eq!(found.1, first.1, "{} on {threads} threads", quantizer.id());
            std::fs::remove_dir_all(bench.path("dst")).unwrap();
        }
    }
}

#[test]
fn outputs_lose_less_the_more_is_known() {
    let bench = Bench::new();
    let file = Statistics::of_tiny("full").write(&bench.path("statistics"));
    let mut n_known = 0;
    for quantizer in looking() {
        let method = quantizer.id();
        let summary = bench.run(&job(method, Some(file.clone())), method, &options());
        let summary = summary.unwrap();
        let modules = quantized(&summary);
        assert_eq!(modules.len(), 14, "{method}");
        for module in modules {
            assert_eq!(module.method.as_deref(), Some(method), "{}", module.name);
            assert_eq!(module.effort, Some(effort_of(method)));
            let Some(output) = module.output_loss else {
                assert!(!has_second_moment(method), "{method}: {}", module.name);
                continue;
            };
            n_known += 1;
            assert!(output.signal > 0.0 && output.relative() < 0.1, "{output:?}");
            let share = module.loss.unwrap();
            if has_second_moment(method) {
                // The weights themselves are further off than the outputs.
                assert!(
                    output.relative() < share.noise / share.signal,
                    "{}",
                    module.name
                );
            }
        }
        let bytes = std::fs::read(bench.path(method).join(Manifest::FILE_NAME)).unwrap();
        let manifest = Manifest::from_json(&bytes).unwrap();
        assert_eq!(manifest.modules.len(), 14);
        for (listed, module) in manifest.modules.iter().zip(quantized(&summary)) {
            assert_eq!(listed.name, module.name);
            assert_eq!(
                (listed.method.as_str(), listed.scheme.as_str()),
                (method, "W4A16")
            );
            assert_eq!(listed.losses.noise, module.loss.map(|l| l.noise));
            assert_eq!(
                listed.losses.output_noise,
                module.output_loss.map(|l| l.noise)
            );
        }
    }
    assert!(n_known >= 28, "{n_known} modules");
}

#[test]
fn an_interrupted_job_goes_on_to_the_same_bytes_and_losses() {
    let bench = Bench::new();
    let file = Statistics::of_tiny("full").write(&bench.path("statistics"));
    let verb = job(AUTO, Some(file));
    let good = bench.run(&verb, "good", &options()).unwrap();
    let mut n_interrupted = 0;
    for after in [1, 4, 9, 14] {
        let watch = Watch::new(after);
        let ran = bench.run_on(&OsDisk, &verb, "dst", &options(), &watch, &watch.cancel);
        assert!(matches!(ran, Err(Error::Canceled)), "after {after}");
        n_interrupted += 1;
        let summary = bench.run(&verb, "dst", &resume()).unwrap();
        assert!(contents(&bench.path("dst")) == contents(&bench.path("good")));
        assert_eq!(summary.modules, good.modules);
        std::fs::remove_dir_all(bench.path("dst")).unwrap();
    }
    assert_eq!(n_interrupted, 4);
}

#[test]
fn another_calibration_file_is_another_job() {
    let bench = Bench::new();
    let file = Statistics::of_tiny("full").write(&bench.path("statistics"));
    let watch = Watch::new(3);
    let verb = job(AUTO, Some(file));
    let ran = bench.run_on(&OsDisk, &verb, "dst", &options(), &watch, &watch.cancel);
    assert!(matches!(ran, Err(Error::Canceled)));
    let other = Statistics::of_tiny("diagonal").write(&bench.path("other"));
    let error = bench
        .run(&job(AUTO, Some(other)), "dst", &resume())
        .unwrap_err();
    assert_eq!(error.code(), "resume_differs", "{error}");
    assert!(error.to_string().contains("recipe"), "{error}");
}

#[test]
fn parts_give_the_bytes_of_a_local_run() {
    let bench = Bench::new();
    let file = Statistics::of_tiny("full").write(&bench.path("statistics"));
    let verb = job(AUTO, Some(file));
    let small = JobOptions {
        max_shard_bytes: 60_000,
        ..options()
    };
    bench.run(&verb, "good", &small).unwrap();
    let checkpoint = bench.open("src");
    let to = bench.path("dst");
    let plan = |destination| {
        let options = JobOptions {
            destination,
            ..small.clone()
        };
        rewrite::plan(&checkpoint, &verb, &to, &options).unwrap()
    };
    parts::begin(&plan(Destination::New), &OsDisk, &Quiet).unwrap();
    let n = parts::parts(&plan(Destination::Resume), 3).len();
    assert_eq!(n, 3);
    for index in (0..n).rev() {
        let plan = plan(Destination::Resume);
        let part = parts::run_part(&plan, index, n, &OsDisk, &Quiet, &CancelToken::default());
        part.unwrap();
    }
    let plan = plan(Destination::Resume);
    parts::finish(&plan, &OsDisk, &Quiet, &CancelToken::default()).unwrap();
    assert!(contents(&to) == contents(&bench.path("good")));
}

#[test]
fn what_is_not_known_is_done_without_and_said() {
    let bench = Bench::new();
    let mut some = Statistics::of_tiny("full");
    some.modules.remove("model.layers.1.mlp.down_proj");
    some.modules
        .get_mut("model.layers.0.mlp.down_proj")
        .unwrap()
        .1 = 0;
    let file = some.write(&bench.path("statistics"));
    let method = looking()
        .into_iter()
        .find(|q| q.needs() == Needs::SecondMoment);
    let method = method.expect("a method that needs the second moment").id();
    for asked in [method, AUTO] {
        let verb = job(asked, Some(file.clone()));
        let summary = bench.run(&verb, "dst", &options()).unwrap();
        for module in quantized(&summary) {
            let is_known = !module.name.contains("down_proj");
            assert_eq!(
                module.method.as_deref() == Some("mse"),
                !is_known,
                "{}",
                module.name
            );
            assert_eq!(module.output_loss.is_some(), is_known, "{}", module.name);
        }
        let notes = notes(&bench, &verb).join("\n");
        for text in [
            "has no statistics for 1 matrices: model.layers.1.mlp.down_proj",
            "1 matrices saw no token in calibration: model.layers.0.mlp.down_proj",
        ] {
            assert!(notes.contains(text), "{notes}");
        }
        assert_eq!(
            notes.contains("--method auto: mse for 2 matrices"),
            asked == AUTO,
            "{notes}"
        );
        std::fs::remove_dir_all(bench.path("dst")).unwrap();
    }
}

/// A stack of experts of which some saw no token, in a format that holds them as one.

#[test]
fn a_diagonal_is_not_the_second_moment() {
    let bench = Bench::new();
    let file = Statistics::of_tiny("diagonal").write(&bench.path("statistics"));
    for quantizer in looking() {
        let verb = job(quantizer.id(), Some(file.clone()));
        let summary = bench.run(&verb, "dst", &options()).unwrap();
        let falls_back = quantizer.needs() == Needs::SecondMoment;
        let expected = if falls_back { "mse" } else { quantizer.id() };
        let modules = quantized(&summary);
        assert!(
            modules
                .iter()
                .all(|m| m.method.as_deref() == Some(expected))
        );
        let notes = notes(&bench, &verb).join("\n");
        assert_eq!(
            notes.contains("has only the diagonal for 14"),
            falls_back,
            "{notes}"
        );
        std::fs::remove_dir_all(bench.path("dst")).unwrap();
    }
}

#[test]
fn statistics_that_do_not_fit_are_refused_by_name() {
    let bench = Bench::new();
    let at = bench.path("statistics");
    let q_proj = "model.layers.0.self_attn.q_proj";

    let mut other = Statistics::of_tiny("full");
    other.shares.clear();
    let renamed = other
        .modules
        .iter()
        .map(|(name, of)| (name.replace("model.", "net."), *of));
    other.modules = renamed.collect();
    let (code, group, text) = refusal(&bench, &job(AUTO, Some(other.write(&at))));
    assert_eq!(
        (code, group),
        ("calibration_of_another", ErrorGroup::Refused)
    );
    assert!(
        text.contains("statistics") && text.contains("src"),
        "{text}"
    );

    let mut wide = Statistics::of_tiny("full");
    wide.modules.get_mut(q_proj).unwrap().0 = 384;
    let (code, _, text) = refusal(&bench, &job(AUTO, Some(wide.write(&at))));
    assert_eq!(code, "calibration_width");
    for word in ["layers.0.self_attn", "256", "384"] {
        assert!(text.contains(word), "{text}");
    }

    for (place, value, word) in [
        (257, f32::NAN, "NaN"),
        (1, -3.0, "symmetric"),
        (0, -1.0, "-1"),
    ] {
        let mut spoiled = Statistics::of_tiny("full");
        spoiled.spoiled = Some((q_proj.to_owned(), place, value));
        let (code, group, text) = refusal(&bench, &job(AUTO, Some(spoiled.write(&at))));
        assert_eq!(
            (code, group),
            ("calibration_value", ErrorGroup::Malformed),
            "{text}"
        );
        assert!(
            text.contains("layers.0.self_attn") && text.contains(word),
            "{text}"
        );
    }
}

#[test]
fn a_method_that_cannot_do_without_statistics_says_so() {
    let bench = Bench::new();
    let mut n_refused = 0;
    for quantizer in QUANTIZERS {
        let ran = bench.run(&job(quantizer.id(), None), "dst", &options());
        if quantizer.needs() == Needs::SecondMoment {
            assert_eq!(ran.unwrap_err().code(), "no_calibration");
            n_refused += 1;
        } else {
            let summary = ran.unwrap();
            assert!(summary.modules.iter().all(|m| m.output_loss.is_none()));
            std::fs::remove_dir_all(bench.path("dst")).unwrap();
        }
    }
    assert_eq!(n_refused, 2);
}

#[test]
fn the_plan_says_what_is_held_beside_the_budget() {
    let bench = Bench::new();
    let file = Statistics::of_tiny("full").write(&bench.path("statistics"));
    let checkpoint = bench.open("src");
    let planned = |verb: &Verb| {
        let plan = rewrite::plan(&checkpoint, verb, &bench.path("dst"), &options()).unwrap();
        plan.peak_statistics_bytes
    };
    assert_eq!(planned(&job(AUTO, Some(file.clone()))), 3 * 4 * 384 * 384);
    assert_eq!(planned(&job("rtn", Some(file.clone()))), 0);
    assert_eq!(planned(&job("mse", None)), 0);
    let unused = notes(&bench, &job("rtn", Some(file))).join("\n");
    assert!(unused.contains("is not used"), "{unused}");
}
