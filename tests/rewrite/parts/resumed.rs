//! Parts that were interrupted, or are no longer as their journals say, are continued.

use std::path::Path;

use safequant::container::OsDisk;
use safequant::rewrite::parts::Begun;
use safequant::rewrite::{self, Destination, Error};

use super::super::tiny::{Bench, Watch, contents, quantize};
use super::{Job, PARTIAL, remove, small};

/// Runs a job in parts, the `i`-th of which is canceled after `after` tiles.
pub(super) fn half_done(job: &Job, after: usize) {
    job.begin(&OsDisk, Destination::New).unwrap();
    let parts = job.parts(3);
    for part in &parts[1..] {
        let watch = Watch::new(after);
        match job.watched(&OsDisk, part.index, 3, &watch, &watch.cancel) {
            Ok(_) | Err(Error::Canceled) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn canceled_parts_are_continued_by_others_or_by_one_process() {
    let bench = Bench::new();
    for verb in [
        quantize("W4A16", "gptq"),
        quantize("FP8", "compressed-tensors"),
    ] {
        let job = Job::new(&bench, "src", verb);
        bench.run(&job.verb, "good", &small()).unwrap();
        let good = contents(&bench.path("good"));
        let mut most = 0;
        for after in [1, 2, 4, 7, 100] {
            half_done(&job, after);
            assert_eq!(
                job.begin(&OsDisk, Destination::Resume).unwrap(),
                Begun::Open
            );
            let mut resumed = 0;
            for part in job.parts(2) {
                resumed += job.part(&OsDisk, part.index, 2).unwrap().resumed_modules;
            }
            most = most.max(resumed);
            job.finish(&OsDisk).unwrap();
            assert!(contents(&job.destination) == good, "after {after} tiles");
            remove(&job.destination);

            half_done(&job, after);
            let summary = job.run_locally(Destination::Resume).unwrap();
            // Workers may be a tile further than the one that canceled, so that the number differs between two attempts.
            most = most.max(summary.resumed_modules);
            assert!(contents(&job.destination) == good, "after {after} tiles");
            assert_eq!(bench.names(), ["dst", "good", "src"]);
            remove(&job.destination);
        }
        assert!(most >= 5, "at most {most} modules were taken over");
        remove(&bench.path("good"));
    }
}

#[test]
fn a_job_of_one_process_is_continued_in_parts_and_back() {
    let bench = Bench::new();
    let job = Job::new(&bench, "src", quantize("W4A16", "gptq"));
    bench.run(&job.verb, "good", &small()).unwrap();
    let good = contents(&bench.path("good"));
    let interrupted = |destination, after| {
        let watch = Watch::new(after);
        let error = job.planned(destination, |plan| {
            rewrite::run(plan, &OsDisk, &watch, &watch.cancel)
        });
        assert!(matches!(error, Err(Error::Canceled)));
    };
    interrupted(Destination::New, 6);
    let error = job.part(&OsDisk, 0, 2).unwrap_err();
    assert!(matches!(error, Error::NotBegun { .. }), "{error}");
    assert_eq!(
        job.begin(&OsDisk, Destination::Resume).unwrap(),
        Begun::Open
    );
    let first = job.part(&OsDisk, 0, 2).unwrap();
    assert!(first.resumed_modules >= 3, "{first:?}");
    // And back: a run takes over, stops again, and what parts said is over.
    interrupted(Destination::Resume, 3);
    assert!(!bench.path(PARTIAL).join("parts").exists());
    let error = job.part(&OsDisk, 1, 2).unwrap_err();
    assert!(matches!(error, Error::NotBegun { .. }), "{error}");
    job.begin(&OsDisk, Destination::Resume).unwrap();
    let mut resumed = 0;
    for part in job.parts(7) {
        resumed += job.part(&OsDisk, part.index, 7).unwrap().resumed_modules;
    }
    assert!(resumed >= first.part.n_modules, "{resumed}");
    job.finish(&OsDisk).unwrap();
    assert!(contents(&job.destination) == good);
    assert_eq!(bench.names(), ["dst", "good", "src"]);
}

#[test]
fn what_is_no_longer_as_a_journal_says_is_done_again() {
    let bench = Bench::new();
    let job = Job::new(&bench, "src", quantize("W4A16", "gptq"));
    bench.run(&job.verb, "good", &small()).unwrap();
    let good = contents(&bench.path("good"));
    job.begin(&OsDisk, Destination::New).unwrap();
    for part in job.parts(2) {
        job.part(&OsDisk, part.index, 2).unwrap();
    }
    let out = bench.path(PARTIAL).join("out");
    let first = std::fs::read_dir(&out).unwrap().next().unwrap();
    let first = first.unwrap().path();
    // A complete file that was cut short, and one that is gone.
    for spoil in [
        |path: &Path| {
            let file = std::fs::File::options().write(true).open(path).unwrap();
            file.set_len(1000).unwrap();
        },
        |path: &Path| std::fs::remove_file(path).unwrap(),
    ] {
        spoil(&first);
        let error = job.finish(&OsDisk).unwrap_err();
        assert!(
            matches!(error, Error::PartMissing { n_missing: 1, .. }),
            "{error}"
        );
        for part in job.parts(2) {
            job.part(&OsDisk, part.index, 2).unwrap();
        }
    }
    // A journal that was cut, in the middle of a line.
    let name = first.file_name().unwrap().display();
    let journal = bench.path(PARTIAL).join(format!("parts/{name}.jsonl"));
    let text = std::fs::read(&journal).unwrap();
    std::fs::write(&journal, &text[..text.len() - 30]).unwrap();
    let error = job.finish(&OsDisk).unwrap_err();
    assert!(matches!(error, Error::PartMissing { .. }), "{error}");
    for part in job.parts(2) {
        job.part(&OsDisk, part.index, 2).unwrap();
    }
    job.finish(&OsDisk).unwrap();
    assert!(contents(&job.destination) == good);
}
