//! Interrupted jobs: continued exactly, or refused with the name of what differs (P15, P19, P27).

use std::sync::Mutex;

use safequant::container::OsDisk;
use safequant::rewrite::{
    self, CancelToken, Destination, Error, Event, Events, JobOptions, Plan, Verb,
};

use super::tiny::{Bench, Quiet, Watch, contents, dequantize, options, quantize, resume};

const PARTIAL: &str = ".dst.safequant-partial";

fn verb() -> Verb {
    quantize("W4A16", "gptq")
}

/// Runs until so many advances were made; true if the job was canceled before its end.
fn interrupt(bench: &Bench, verb: &Verb, options: &JobOptions, after: usize) -> bool {
    let watch = Watch::new(after);
    match bench.run_on(&OsDisk, verb, "dst", options, &watch, &watch.cancel) {
        Ok(_) => false,
        Err(Error::Canceled) => true,
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_job_canceled_at_any_tile_resumes_to_the_same_bytes() {
    let bench = Bench::new();
    let small = JobOptions {
        memory_bytes: 3 << 20,
        ..options()
    };
    for verb in [verb(), quantize("FP8", "compressed-tensors")] {
        bench.run(&verb, "good", &small).unwrap();
        let good = contents(&bench.path("good"));
        let mut n_interrupted = 0;
        let mut most = 0;
        while interrupt(&bench, &verb, &small, n_interrupted + 1) {
            n_interrupted += 1;
            assert!(!bench.path("dst").exists());
            // The budget and the threads may change between the runs.
            let again = JobOptions {
                threads: 3,
                ..resume()
            };
            let summary = bench.run(&verb, "dst", &again).unwrap();
            most = most.max(summary.resumed_modules);
            assert!(
                contents(&bench.path("dst")) == good,
                "after {n_interrupted} tiles"
            );
            assert_eq!(bench.names(), ["dst", "good", "src"]);
            std::fs::remove_dir_all(bench.path("dst")).unwrap();
        }
        assert!(n_interrupted >= 15, "only {n_interrupted} tiles");
        assert!(most >= 10, "at most {most} modules were taken over");
        std::fs::remove_dir_all(bench.path("dst")).unwrap();
        std::fs::remove_dir_all(bench.path("good")).unwrap();
    }
}

#[test]
fn losses_of_resumed_modules_are_those_of_the_first_run() {
    let bench = Bench::new();
    let whole = bench.run(&verb(), "good", &options()).unwrap();
    assert!(interrupt(&bench, &verb(), &options(), 12));
    let resumed = bench.run(&verb(), "dst", &resume()).unwrap();
    assert!(resumed.resumed_modules > 0);
    assert_eq!(whole.modules, resumed.modules);
}

#[test]
fn work_that_was_damaged_is_done_again() {
    let bench = Bench::new();
    bench.run(&verb(), "good", &options()).unwrap();
    let good = contents(&bench.path("good"));
    assert!(interrupt(&bench, &verb(), &options(), 14));
    let mut n_damaged = 0;
    for (name, mut bytes) in contents(&bench.path(PARTIAL).join("out")) {
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        std::fs::write(bench.path(PARTIAL).join("out").join(name), bytes).unwrap();
        n_damaged += 1;
    }
    assert!(n_damaged > 0);
    bench.run(&verb(), "dst", &resume()).unwrap();
    assert!(contents(&bench.path("dst")) == good);
}

#[test]
fn a_job_interrupted_again_and_again_still_ends_in_the_same_bytes() {
    let bench = Bench::new();
    bench.run(&verb(), "good", &options()).unwrap();
    assert!(interrupt(&bench, &verb(), &options(), 6));
    let mut n_rounds = 0;
    while interrupt(&bench, &verb(), &resume(), 3) {
        n_rounds += 1;
        // Damage what is there, so that steps are done, and listed, twice.
        for (name, mut bytes) in contents(&bench.path(PARTIAL).join("out")) {
            if n_rounds == 2 {
                let last = bytes.len() - 1;
                bytes[last] ^= 1;
                std::fs::write(bench.path(PARTIAL).join("out").join(name), bytes).unwrap();
            }
        }
    }
    assert!(n_rounds > 3, "only {n_rounds} rounds");
    assert!(contents(&bench.path("dst")) == contents(&bench.path("good")));
    assert_eq!(bench.names(), ["dst", "good", "src"]);
}

#[test]
fn a_torn_or_foreign_line_of_the_journal_is_as_if_it_were_not_there() {
    let bench = Bench::new();
    bench.run(&verb(), "good", &options()).unwrap();
    let good = contents(&bench.path("good"));
    for tail in [
        "{\"module\": \"half",
        "\0\0\0\0",
        "{\"other\": 1}\n{\"module\": 3}\n",
    ] {
        assert!(interrupt(&bench, &verb(), &options(), 10));
        let path = bench.path(PARTIAL).join("journal.jsonl");
        let mut journal = std::fs::read(&path).unwrap();
        journal.extend_from_slice(tail.as_bytes());
        std::fs::write(&path, journal).unwrap();
        bench.run(&verb(), "dst", &resume()).unwrap();
        assert!(contents(&bench.path("dst")) == good, "{tail:?}");
        std::fs::remove_dir_all(bench.path("dst")).unwrap();
    }
}

#[test]
fn another_job_is_refused_with_the_name_of_what_differs() {
    let bench = Bench::new();
    let interrupted = || assert!(interrupt(&bench, &verb(), &options(), 5));
    let refused = |verb: &Verb, options: &JobOptions, expected: &str| {
        let error = bench.run(verb, "dst", options).unwrap_err();
        let Error::ResumeDiffers { field, then, now } = error else {
            panic!("{error}");
        };
        assert!(field.contains(expected), "{field}: {then} {now}");
        assert_ne!(then, now);
    };
    interrupted();
    refused(&quantize("W8A16", "gptq"), &resume(), "recipe");
    let other_shards = JobOptions {
        max_shard_bytes: 1 << 30,
        ..resume()
    };
    refused(&verb(), &other_shards, "max shard size");

    let journal = bench.path(PARTIAL).join("journal.jsonl");
    let text = std::fs::read_to_string(&journal).unwrap();
    let version = concat!("\"", env!("CARGO_PKG_VERSION"), "\"");
    assert!(text.contains(version));
    std::fs::write(&journal, text.replacen(version, "\"0.0.0\"", 1)).unwrap();
    refused(&verb(), &resume(), "engine version");
    std::fs::write(&journal, &text).unwrap();

    // The same length and header, another content: the file's time tells.
    let shard = bench.open("src").shards()[1].name.clone();
    let path = bench.path("src").join(&shard);
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    let stamp = std::fs::metadata(&path).unwrap().modified().unwrap();
    std::fs::write(&path, &bytes).unwrap();
    refused(&verb(), &resume(), &shard);
    // And under the old time the samples of the data tell.
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_modified(stamp).unwrap();
    let error = bench.run(&verb(), "dst", &resume()).unwrap_err();
    let Error::ResumeDiffers { then, now, .. } = error else {
        panic!("{error}");
    };
    let samples = |shown: &str| shown.split("\"samples\":").nth(1).map(str::to_owned);
    assert_ne!(samples(&then), samples(&now));

    // Without --resume the job starts anew, and says so.
    let watch = Watch::new(usize::MAX);
    bench
        .run_on(&OsDisk, &verb(), "dst", &options(), &watch, &watch.cancel)
        .unwrap();
    let notes = watch.notes.lock().unwrap();
    assert!(notes.iter().any(|n| n.contains("discarded")), "{notes:?}");
}

#[test]
fn resuming_without_partial_work_starts_anew() {
    let bench = Bench::new();
    let watch = Watch::new(usize::MAX);
    let summary = bench
        .run_on(&OsDisk, &verb(), "dst", &resume(), &watch, &watch.cancel)
        .unwrap();
    assert_eq!(summary.resumed_modules, 0);
    assert!(
        watch
            .notes
            .lock()
            .unwrap()
            .iter()
            .any(|n| n.contains("nothing to resume"))
    );
    let error = bench.run(&verb(), "dst", &resume()).unwrap_err();
    assert!(matches!(error, Error::DestinationExists { .. }), "{error}");
    assert_eq!(bench.names(), ["dst", "src"]);
}

#[test]
fn an_interrupted_replacement_goes_on_as_one() {
    let bench = Bench::new();
    bench.run(&verb(), "good", &options()).unwrap();
    bench.run(&dequantized(&bench), "dst", &options()).unwrap();
    let old = contents(&bench.path("dst"));
    let replace = JobOptions {
        destination: Destination::Replace,
        ..options()
    };
    assert!(interrupt(&bench, &verb(), &replace, 9));
    assert!(
        contents(&bench.path("dst")) == old,
        "the old stays until the new is complete"
    );
    bench.run(&verb(), "dst", &resume()).unwrap();
    assert!(contents(&bench.path("dst")) == contents(&bench.path("good")));
    assert_eq!(bench.names(), ["dst", "good", "src"]);
}

/// Another job on the same source.
fn dequantized(_: &Bench) -> Verb {
    quantize("W8A8", "compressed-tensors")
}

/// Starts a second job from inside the first one.
struct Second<'a> {
    bench: &'a Bench,
    plan: Plan<'a>,
    seen: Mutex<Vec<String>>,
}

impl Events for Second<'_> {
    fn event(&self, event: Event<'_>) {
        if !matches!(event, Event::Module { .. } | Event::Commit) {
            return;
        }
        let error = rewrite::run(&self.plan, &OsDisk, &Quiet, &CancelToken::default()).unwrap_err();
        assert!(matches!(error, Error::Busy { .. }), "{error}");
        let error = self.bench.run(&verb(), "dst", &resume()).unwrap_err();
        assert!(matches!(error, Error::Busy { .. }), "{error}");
        self.seen.lock().unwrap().push(error.to_string());
    }
}

#[test]
fn a_second_writer_is_refused_and_harms_nothing() {
    let bench = Bench::new();
    bench.run(&verb(), "good", &options()).unwrap();
    let checkpoint = bench.open("src");
    let plan = rewrite::plan(&checkpoint, &verb(), &bench.path("dst"), &options()).unwrap();
    let second = Second {
        bench: &bench,
        plan,
        seen: Mutex::default(),
    };
    rewrite::run(&second.plan, &OsDisk, &second, &CancelToken::default()).unwrap();
    assert!(second.seen.lock().unwrap().len() > 15);
    assert!(contents(&bench.path("dst")) == contents(&bench.path("good")));
    assert_eq!(bench.names(), ["dst", "good", "src"]);
}

#[test]
fn a_dequantizing_job_resumes_too() {
    let bench = Bench::new();
    bench.run(&verb(), "packed", &options()).unwrap();
    let checkpoint = bench.open("packed");
    let verb = dequantize(rewrite::OutputDtype::Auto);
    let run = |name: &str, options: &JobOptions, watch: &Watch| {
        let plan = rewrite::plan(&checkpoint, &verb, &bench.path(name), options)?;
        rewrite::run(&plan, &OsDisk, watch, &watch.cancel)
    };
    run("good", &options(), &Watch::new(0)).unwrap();
    for after in [1, 5, 10, 15] {
        let error = run("dst", &options(), &Watch::new(after)).unwrap_err();
        assert!(matches!(error, Error::Canceled), "{error}");
        run("dst", &resume(), &Watch::new(0)).unwrap();
        assert!(contents(&bench.path("dst")) == contents(&bench.path("good")));
        std::fs::remove_dir_all(bench.path("dst")).unwrap();
    }
}
