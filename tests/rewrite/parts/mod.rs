//! Jobs in parts: the bytes of a local run, however they are divided, whoever fails, and whatever is asked for twice
//! (specs/journal.md, clauses 16-23).

mod faults;
mod resumed;

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use safequant::container::{Checkpoint, Disk, Limits, OsDisk};
use safequant::rewrite::parts::{self, Begun, Part, PartSummary};
use safequant::rewrite::{
    self, CancelToken, ConvertRecipe, Destination, Error, ErrorGroup, Event, Events, JobOptions,
    LossPolicy, OutputDtype, Plan, Summary, Verb,
};
use safequant_test_support::{Fault, FaultDisk};

use super::tiny::{Bench, Quiet, contents, dequantize, options, quantize};
use resumed::half_done;

const PARTIAL: &str = ".dst.safequant-partial";

/// A job; everything that is done about it opens the source and plans anew, as processes on several machines do.
struct Job {
    source: PathBuf,
    verb: Verb,
    destination: PathBuf,
    options: JobOptions,
}

impl Job {
    fn new(bench: &Bench, source: &str, verb: Verb) -> Self {
        Self {
            source: bench.path(source),
            verb,
            destination: bench.path("dst"),
            options: small(),
        }
    }

    fn planned<T>(
        &self,
        destination: Destination,
        then: impl FnOnce(&Plan<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let checkpoint = Checkpoint::open(&self.source, &Limits::default()).unwrap();
        let options = JobOptions {
            destination,
            ..self.options.clone()
        };
        let plan = rewrite::plan(&checkpoint, &self.verb, &self.destination, &options)?;
        then(&plan)
    }

    fn run_locally(&self, destination: Destination) -> Result<Summary, Error> {
        self.planned(destination, |plan| {
            rewrite::run(plan, &OsDisk, &Quiet, &CancelToken::default())
        })
    }

    fn parts(&self, n: usize) -> Vec<Part> {
        let divided = self.planned(Destination::Resume, |plan| Ok(parts::parts(plan, n)));
        divided.unwrap()
    }

    fn begin(&self, disk: &dyn Disk, destination: Destination) -> Result<Begun, Error> {
        self.planned(destination, |plan| parts::begin(plan, disk, &Quiet))
    }

    fn part(&self, disk: &dyn Disk, index: usize, n: usize) -> Result<PartSummary, Error> {
        self.watched(disk, index, n, &Quiet, &CancelToken::default())
    }

    fn watched(
        &self,
        disk: &dyn Disk,
        index: usize,
        n: usize,
        events: &dyn Events,
        cancel: &CancelToken,
    ) -> Result<PartSummary, Error> {
        self.planned(Destination::Resume, |plan| {
            parts::run_part(plan, index, n, disk, events, cancel)
        })
    }

    fn finish(&self, disk: &dyn Disk) -> Result<Summary, Error> {
        self.planned(Destination::Resume, |plan| {
            parts::finish(plan, disk, &Quiet, &CancelToken::default())
        })
    }

    /// All of it, one part after the other.
    fn run(&self, disk: &dyn Disk, destination: Destination, n: usize) -> Result<Summary, Error> {
        if self.begin(disk, destination)? == Begun::Open {
            for part in self.parts(n) {
                self.part(disk, part.index, n)?;
            }
        }
        self.finish(disk)
    }
}

/// As [`options`], with files so small that there are enough for every number of parts.
fn small() -> JobOptions {
    JobOptions {
        max_shard_bytes: 120_000,
        ..options()
    }
}

fn convert(convention: &'static str) -> Verb {
    Verb::Convert(ConvertRecipe {
        convention,
        loss: LossPolicy::Refuse,
        ignore: Vec::new(),
    })
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../fixtures")
        .join(name)
}

/// A copy of a fixture without what lies beside it for the tests.
fn copied(bench: &Bench, name: &str) -> PathBuf {
    let folder = bench.path(&name.replace('/', "-"));
    std::fs::create_dir(&folder).unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(fixture(name).join(file), folder.join(file)).unwrap();
    }
    folder
}

/// Bytes of what lies at the destination.
fn written(path: &Path) -> std::collections::BTreeMap<String, Vec<u8>> {
    if path.is_dir() {
        return contents(path);
    }
    let beside = path.with_file_name(format!(
        "{}.manifest.json",
        path.file_name().unwrap().display()
    ));
    let name = |path: &Path| path.extension().unwrap().display().to_string();
    let files = [path.to_owned(), beside];
    files
        .into_iter()
        .map(|file| (name(&file), std::fs::read(file).unwrap()))
        .collect()
}

fn remove(path: &Path) {
    if path.is_dir() {
        std::fs::remove_dir_all(path).unwrap();
    } else {
        std::fs::remove_file(path).unwrap();
    }
}

/// Runs a job in 1, 2, 3 and 7 parts, in several orders and at once, and holds the results against the local one's.
fn compare(job: &Job, name: &str) -> usize {
    let expected_summary = job.run_locally(Destination::New).unwrap();
    let expected = written(&job.destination);
    remove(&job.destination);
    let n_files = job.parts(usize::MAX).len();
    for n in [1, 2, 3, 7] {
        let all = job.parts(n);
        assert_eq!(all.len(), n.min(n_files), "{name}");
        let mut orders: Vec<Vec<usize>> = vec![(0..all.len()).collect()];
        orders.push((0..all.len()).rev().collect());
        for order in orders {
            assert_eq!(job.begin(&OsDisk, Destination::New).unwrap(), Begun::Open);
            let mut done = 0;
            for index in order {
                let summary = job.part(&OsDisk, index, n).unwrap();
                assert_eq!(summary.part, all[index]);
                assert_eq!(summary.resumed_modules, 0, "{name}: {n} parts");
                done += summary.part.n_modules;
            }
            let n_written = expected_summary.modules.iter();
            let n_written = n_written.filter(|m| m.output_bytes > 0).count();
            assert_eq!(done, n_written, "{name}: every module in one part");
            let summary = job.finish(&OsDisk).unwrap();
            assert_eq!(summary.modules, expected_summary.modules, "{name}");
            assert_eq!(summary.files, expected_summary.files, "{name}");
            assert!(written(&job.destination) == expected, "{name}: {n} parts");
            assert!(!job.destination.with_file_name(PARTIAL).exists());
            remove(&job.destination);
        }
        job.begin(&OsDisk, Destination::New).unwrap();
        std::thread::scope(|scope| {
            for part in &all {
                scope.spawn(move || job.part(&OsDisk, part.index, n).unwrap());
            }
        });
        job.finish(&OsDisk).unwrap();
        assert!(written(&job.destination) == expected, "{name}: {n} at once");
        remove(&job.destination);
    }
    n_files
}

#[test]
fn parts_in_any_number_and_order_give_the_bytes_of_a_local_run() {
    let bench = Bench::new();
    bench
        .run(&quantize("W4A16", "gptq"), "packed", &options())
        .unwrap();
    let mut jobs = vec![
        ("src", quantize("W4A16", "gptq")),
        // One scale for a whole weight, shared by q, k and v, which lie in different files.
        ("src", quantize("FP8", "compressed-tensors")),
        ("src", quantize("FP8_BLOCK", "fp8")),
        ("packed", convert("compressed-tensors")),
        ("packed", convert("awq")),
        ("packed", dequantize(OutputDtype::Auto)),
    ];
    let mut n_files = Vec::new();
    for (source, verb) in jobs.drain(..) {
        let name = format!("{source} {verb:?}");
        n_files.push(compare(&Job::new(&bench, source, verb), &name));
    }
    assert_eq!(n_files.len(), 6);
    assert!(n_files.iter().all(|n| *n >= 3), "{n_files:?}");
}

#[test]
fn checkpoints_of_other_tools_are_done_in_parts_too() {
    let bench = Bench::new();
    let mut n_files = Vec::new();
    for (source, verb, max_shard_bytes) in [
        ("all-minilm-l6-v2", quantize("W8A16", "gptq"), 500_000),
        (
            "autoawq/awq-autoawq-gemm-g128",
            dequantize(OutputDtype::Auto),
            100_000,
        ),
        (
            "gptqmodel/gptq-w4g128-sym",
            convert("compressed-tensors"),
            50_000,
        ),
    ] {
        let mut job = Job::new(&bench, "", verb);
        job.source = copied(&bench, source);
        job.options.max_shard_bytes = max_shard_bytes;
        n_files.push(compare(&job, source));
    }
    assert!(n_files.iter().all(|n| *n >= 3), "{n_files:?}");
}

#[test]
fn a_result_of_one_file_is_one_part() {
    let bench = Bench::new();
    let mut job = Job::new(&bench, "", quantize("W8A16", "gptq"));
    job.source = fixture("all-minilm-l6-v2/model.safetensors");
    job.destination = bench.path("dst.safetensors");
    assert_eq!(compare(&job, "a file"), 1);
    assert_eq!(
        bench.names(),
        ["dst.safetensors.manifest.json", "src"],
        "the comparison removes the file alone"
    );
}

#[test]
fn parts_are_balanced_by_what_they_read_and_write() {
    let bench = Bench::new();
    let job = Job::new(&bench, "src", quantize("W8A16", "compressed-tensors"));
    let files = job.parts(usize::MAX);
    let bytes = |part: &Part| part.source_bytes + part.output_bytes;
    let largest_file = files.iter().map(bytes).max().unwrap();
    let total: u64 = files.iter().map(bytes).sum();
    for n in 1..=files.len() {
        let all = job.parts(n);
        assert_eq!(all.len(), n);
        assert_eq!(all.iter().map(bytes).sum::<u64>(), total);
        let largest = all.iter().map(bytes).max().unwrap();
        assert!(
            largest <= total / n as u64 + largest_file,
            "{n} parts: {largest} of {total}"
        );
        for (i, part) in all.iter().enumerate() {
            assert_eq!(part.index, i);
        }
    }
}

#[test]
fn a_part_that_is_missing_is_named_and_can_follow() {
    let bench = Bench::new();
    let job = Job::new(&bench, "src", quantize("W4A16", "gptq"));
    bench.run(&job.verb, "good", &small()).unwrap();
    let error = job.part(&OsDisk, 0, 3).unwrap_err();
    assert!(matches!(error, Error::NotBegun { .. }), "{error}");
    let error = job.finish(&OsDisk).unwrap_err();
    assert!(matches!(error, Error::NotBegun { .. }), "{error}");
    assert_eq!(bench.names(), ["good", "src"], "nothing was created");

    job.begin(&OsDisk, Destination::New).unwrap();
    for index in [2, 0] {
        job.part(&OsDisk, index, 3).unwrap();
        let error = job.finish(&OsDisk).unwrap_err();
        let Error::PartMissing {
            file, n_missing, ..
        } = &error
        else {
            panic!("{error}");
        };
        assert!(file.starts_with("model-0000"), "{error}");
        assert!(*n_missing > 0, "{error}");
        assert_eq!(error.group(), ErrorGroup::Refused);
        assert!(!job.destination.exists());
    }
    let error = job.part(&OsDisk, 3, 3).unwrap_err();
    assert!(
        matches!(
            error,
            Error::NoSuchPart {
                index: 3,
                n_parts: 3
            }
        ),
        "{error}"
    );
    job.part(&OsDisk, 1, 3).unwrap();
    job.finish(&OsDisk).unwrap();
    assert!(contents(&job.destination) == contents(&bench.path("good")));
    let error = job.part(&OsDisk, 1, 3).unwrap_err();
    assert!(matches!(error, Error::NotBegun { .. }), "{error}");
    assert_eq!(bench.names(), ["dst", "good", "src"]);
}

#[test]
fn a_part_of_another_job_is_refused_with_the_name_of_what_differs() {
    let bench = Bench::new();
    let job = Job::new(&bench, "src", quantize("W4A16", "gptq"));
    job.begin(&OsDisk, Destination::New).unwrap();
    let refused = |other: &Job, expected: &str| {
        for error in [
            other.part(&OsDisk, 0, 2).unwrap_err(),
            other.finish(&OsDisk).unwrap_err(),
        ] {
            let Error::PartDiffers { field, then, now } = error else {
                panic!("{error}");
            };
            assert!(field.contains(expected), "{field}: {then} {now}");
            assert_ne!(then, now);
        }
        let left = std::fs::read_dir(bench.path(PARTIAL).join("parts")).unwrap();
        assert_eq!(left.count(), 0, "a part that is refused leaves nothing");
    };
    refused(
        &Job::new(&bench, "src", quantize("W8A16", "gptq")),
        "recipe",
    );
    let mut other = Job::new(&bench, "src", quantize("W4A16", "gptq"));
    other.options.max_shard_bytes += 1;
    refused(&other, "max shard size");
    let journal = bench.path(PARTIAL).join("journal.jsonl");
    let text = std::fs::read_to_string(&journal).unwrap();
    let version = concat!("\"", env!("CARGO_PKG_VERSION"), "\"");
    std::fs::write(&journal, text.replacen(version, "\"0.0.0\"", 1)).unwrap();
    refused(&job, "engine version");
    std::fs::write(&journal, &text).unwrap();
    let shard = bench.open("src").shards()[1].name.clone();
    let path = bench.path("src").join(&shard);
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes).unwrap();
    refused(&job, &shard);
}

#[test]
fn a_part_that_is_done_is_not_done_twice() {
    let bench = Bench::new();
    let job = Job::new(&bench, "src", quantize("W4A16", "gptq"));
    bench.run(&job.verb, "good", &small()).unwrap();
    job.begin(&OsDisk, Destination::New).unwrap();
    for part in job.parts(2) {
        let first = job.part(&OsDisk, part.index, 2).unwrap();
        assert_eq!(first.resumed_modules, 0);
        let disk = FaultDisk::new(Fault::None);
        let again = job.part(&disk, part.index, 2).unwrap();
        assert_eq!(again.resumed_modules, part.n_modules);
        assert_eq!(again.modules, first.modules, "losses are kept");
        let log = disk.log();
        assert!(log.len() > 10, "{log:?}");
        let writes = ["write_all_at", "copy_from", "set_len", "rename"];
        assert!(
            log.iter().all(|o| !writes.contains(&o.name)),
            "nothing is written: {log:?}"
        );
        let data = |o: &&safequant_test_support::Operation| {
            o.name == "read_exact_at" && o.path.extension().is_some_and(|e| e == "safetensors")
        };
        let n_headers = log.iter().filter(data).count();
        assert_eq!(
            n_headers,
            part.files.len(),
            "headers are read, data are not"
        );
    }
    // Another division finds the same files done.
    for part in job.parts(3) {
        let again = job.part(&OsDisk, part.index, 3).unwrap();
        assert_eq!(again.resumed_modules, part.n_modules);
    }
    job.finish(&OsDisk).unwrap();
    assert!(contents(&job.destination) == contents(&bench.path("good")));
}

/// Tries, from inside a running part, everything that must not disturb it.
struct Intruder<'a> {
    job: &'a Job,
    seen: Mutex<usize>,
}

impl Events for Intruder<'_> {
    fn event(&self, event: Event<'_>) {
        if !matches!(event, Event::Module { .. } | Event::Shard { .. }) {
            return;
        }
        let job = self.job;
        let busy = |answer: Result<(), Error>, what: &str| match answer {
            Err(Error::Busy { .. }) => {}
            Err(error) => panic!("{what}: {error}"),
            Ok(()) => panic!("{what}: done"),
        };
        busy(job.part(&OsDisk, 0, 2).map(drop), "the same part");
        busy(job.part(&OsDisk, 0, 1).map(drop), "a part with its files");
        busy(job.finish(&OsDisk).map(drop), "finish");
        busy(job.begin(&OsDisk, Destination::New).map(drop), "anew");
        busy(job.run_locally(Destination::New).map(drop), "run");
        busy(
            job.run_locally(Destination::Resume).map(drop),
            "run with resume",
        );
        let discarded = job.planned(Destination::Resume, |plan| {
            parts::discard(plan, &OsDisk, &Quiet)
        });
        busy(discarded, "discard");
        assert_eq!(
            job.begin(&OsDisk, Destination::Resume).unwrap(),
            Begun::Open
        );
        *self.seen.lock().unwrap() += 1;
    }
}

#[test]
fn nobody_disturbs_a_part_that_is_running() {
    let bench = Bench::new();
    let job = Job::new(&bench, "src", quantize("W4A16", "gptq"));
    bench.run(&job.verb, "good", &small()).unwrap();
    job.begin(&OsDisk, Destination::New).unwrap();
    let intruder = Intruder {
        job: &job,
        seen: Mutex::default(),
    };
    job.watched(&OsDisk, 0, 2, &intruder, &CancelToken::default())
        .unwrap();
    assert!(*intruder.seen.lock().unwrap() > 5);
    // What the intruders tried left the job open.
    job.part(&OsDisk, 1, 2).unwrap();
    job.finish(&OsDisk).unwrap();
    assert!(contents(&job.destination) == contents(&bench.path("good")));
    assert_eq!(bench.names(), ["dst", "good", "src"]);
}

#[test]
fn a_replacement_in_parts_keeps_the_old_until_the_end() {
    let bench = Bench::new();
    let job = Job::new(&bench, "src", quantize("W4A16", "gptq"));
    bench.run(&job.verb, "good", &small()).unwrap();
    bench
        .run(&quantize("W8A8", "compressed-tensors"), "dst", &options())
        .unwrap();
    let old = contents(&job.destination);
    let error = job.begin(&OsDisk, Destination::New).unwrap_err();
    assert!(matches!(error, Error::DestinationExists { .. }), "{error}");
    job.begin(&OsDisk, Destination::Replace).unwrap();
    for part in job.parts(3) {
        job.part(&OsDisk, part.index, 3).unwrap();
        assert!(contents(&job.destination) == old);
    }
    job.finish(&OsDisk).unwrap();
    assert!(contents(&job.destination) == contents(&bench.path("good")));
    assert_eq!(bench.names(), ["dst", "good", "src"]);
}

#[test]
fn a_job_that_is_given_up_leaves_nothing() {
    let bench = Bench::new();
    let job = Job::new(&bench, "src", quantize("W4A16", "gptq"));
    let discard = || {
        job.planned(Destination::Resume, |plan| {
            parts::discard(plan, &OsDisk, &Quiet)
        })
    };
    discard().unwrap();
    half_done(&job, 2);
    discard().unwrap();
    assert_eq!(bench.names(), ["src"]);
    // Without --resume what is left of another job goes as well.
    half_done(&job, 2);
    let other = Job::new(&bench, "src", quantize("W8A16", "compressed-tensors"));
    other.run(&OsDisk, Destination::New, 2).unwrap();
    bench.run(&other.verb, "good", &small()).unwrap();
    assert!(contents(&other.destination) == contents(&bench.path("good")));
    assert_eq!(bench.names(), ["dst", "good", "src"]);
}
