//! A disk that fails: no destination, a clear error, and a resumable state or nothing (P14, P16-P18).

use std::io::ErrorKind;

use safequant::container::OsDisk;
use safequant::rewrite::{self, CancelToken, Destination, Error, ErrorGroup, JobOptions, Verb};
use safequant_test_support::{Fault, FaultDisk};

use super::tiny::{Bench, Quiet, Watch, contents, options, quantize, resume};

fn one_thread() -> JobOptions {
    JobOptions {
        threads: 1,
        max_shard_bytes: 900_000,
        ..options()
    }
}

fn verb() -> Verb {
    quantize("W8A16", "compressed-tensors")
}

/// Fails operation after operation until a run meets no fault; gives how many there are.
fn fault_loop(fault: impl Fn(u64) -> Fault, check: impl Fn(&Bench, u64, Result<(), Error>)) -> u64 {
    let bench = Bench::new();
    bench.run(&verb(), "good", &one_thread()).unwrap();
    let good = contents(&bench.path("good"));
    for at in 0.. {
        let disk = FaultDisk::new(fault(at));
        let cancel = CancelToken::default();
        let result = bench.run_on(&disk, &verb(), "dst", &one_thread(), &Quiet, &cancel);
        let was_hit = disk.was_hit();
        let is_complete = bench.path("dst").exists();
        if result.is_ok() || is_complete {
            assert!(
                contents(&bench.path("dst")) == good,
                "operation {at}: a torn result"
            );
        }
        check(&bench, at, result.map(|_| ()));
        if !is_complete {
            bench
                .run(
                    &verb(),
                    "dst",
                    &JobOptions {
                        destination: Destination::Resume,
                        ..one_thread()
                    },
                )
                .unwrap();
            assert!(
                contents(&bench.path("dst")) == good,
                "operation {at}: resumed to something else"
            );
            assert_eq!(bench.names(), ["dst", "good", "src"], "operation {at}");
        }
        let _ = std::fs::remove_dir_all(bench.path(".dst.safequant-partial"));
        std::fs::remove_dir_all(bench.path("dst")).unwrap();
        if !was_hit {
            return at;
        }
    }
    unreachable!()
}

#[test]
fn every_failing_operation_leaves_no_destination_and_can_be_resumed() {
    let n = fault_loop(
        |at| Fault::Fail {
            at,
            kind: ErrorKind::Other,
        },
        |bench, at, result| match result {
            // What fails after the publication is the removal of the workspace: a note, not an error.
            Ok(()) => assert!(bench.path("dst").exists()),
            Err(error) => {
                assert_eq!(error.group(), ErrorGroup::Io, "operation {at}: {error}");
                assert!(!bench.path("dst").exists(), "operation {at}: {error}");
            }
        },
    );
    assert!(n > 60, "only {n} operations");
}

#[test]
fn a_disk_that_is_full_at_any_operation_leaves_nothing() {
    let n = fault_loop(
        |at| Fault::ShortWrite {
            at,
            kind: ErrorKind::StorageFull,
        },
        |bench, at, result| {
            if let Err(error) = result {
                assert_eq!(error.group(), ErrorGroup::Io, "operation {at}: {error}");
                assert_eq!(bench.names(), ["good", "src"], "operation {at}: {error}");
            }
        },
    );
    assert!(n > 60, "only {n} operations");
}

#[test]
fn a_crash_at_any_operation_leaves_nothing_or_all_and_can_be_resumed() {
    let n = fault_loop(
        |at| Fault::Crash { at },
        |bench, at, result| {
            // Whatever the dead process believed: what is at the destination is complete, which the loop checks. If it is
            // there, resuming must see that it is.
            if bench.path("dst").exists() && bench.path(".dst.safequant-partial").exists() {
                let again = JobOptions {
                    destination: Destination::Resume,
                    ..one_thread()
                };
                bench
                    .run(&verb(), "dst", &again)
                    .unwrap_or_else(|e| panic!("operation {at}: {e}"));
                assert_eq!(bench.names(), ["dst", "good", "src"], "operation {at}");
            }
            drop(result);
        },
    );
    assert!(n > 60, "only {n} operations");
}

#[test]
fn a_crash_while_replacing_leaves_the_old_or_the_new() {
    let bench = Bench::new();
    bench.run(&verb(), "good", &one_thread()).unwrap();
    let good = contents(&bench.path("good"));
    let old = [("old.txt".to_owned(), b"old".to_vec())].into();
    let replace = JobOptions {
        destination: Destination::Replace,
        ..one_thread()
    };
    let mut n_old = 0;
    for at in 0.. {
        std::fs::create_dir(bench.path("dst")).unwrap();
        std::fs::write(bench.path("dst/old.txt"), "old").unwrap();
        let disk = FaultDisk::new(Fault::Crash { at });
        let _ = bench.run_on(
            &disk,
            &verb(),
            "dst",
            &replace,
            &Quiet,
            &CancelToken::default(),
        );
        let left = contents(&bench.path("dst"));
        assert!(left == good || left == old, "operation {at}: a torn result");
        n_old += usize::from(left == old);
        if bench.path(".dst.safequant-partial/journal.jsonl").exists() {
            // A crash before the first line of the journal leaves nothing to resume, and the destination is taken.
            match bench.run(
                &verb(),
                "dst",
                &JobOptions {
                    destination: Destination::Resume,
                    ..one_thread()
                },
            ) {
                Ok(_) => assert!(contents(&bench.path("dst")) == good, "operation {at}"),
                Err(error) => assert!(
                    matches!(error, Error::DestinationExists { .. }),
                    "operation {at}: {error}"
                ),
            }
        }
        std::fs::remove_dir_all(bench.path("dst")).unwrap();
        let _ = std::fs::remove_dir_all(bench.path(".dst.safequant-partial"));
        if !disk.was_hit() {
            break;
        }
    }
    assert!(n_old > 60, "only {n_old} crashes left the old state");
}

#[test]
fn a_full_disk_is_told_with_needed_and_free_bytes() {
    let bench = Bench::new();
    for budget_bytes in [0, 1000, 100_000, 400_000, 600_000, 800_000] {
        let disk = FaultDisk::new(Fault::Full { budget_bytes });
        let cancel = CancelToken::default();
        let error = bench
            .run_on(&disk, &verb(), "dst", &options(), &Quiet, &cancel)
            .unwrap_err();
        let Error::DiskFull {
            needed_bytes,
            free_bytes,
            ..
        } = error
        else {
            panic!("{budget_bytes}: {error}");
        };
        assert!(
            needed_bytes > budget_bytes && free_bytes > 0,
            "{needed_bytes} {free_bytes}"
        );
        assert_eq!(bench.names(), ["src"], "{budget_bytes}");
    }
}

#[test]
fn everything_is_synced_before_the_rename_and_the_directory_after() {
    let bench = Bench::new();
    let disk = FaultDisk::new(Fault::None);
    bench
        .run_on(
            &disk,
            &verb(),
            "dst",
            &options(),
            &Quiet,
            &CancelToken::default(),
        )
        .unwrap();
    let log = disk.log();
    let rename = log.iter().position(|o| o.name == "rename").unwrap();
    assert_eq!(log.iter().filter(|o| o.name == "rename").count(), 1);
    let mut n_files = 0;
    for (i, operation) in log.iter().enumerate() {
        if operation.name == "write_all_at" || operation.name == "set_len" {
            assert!(i < rename, "a write after the rename: {operation:?}");
            let sync = |o: &safequant_test_support::Operation| {
                o.name == "sync" && o.path == operation.path
            };
            assert!(
                log[i..rename].iter().any(sync),
                "never synced: {operation:?}"
            );
            n_files += 1;
        }
    }
    assert!(n_files > 40, "only {n_files} writes seen");
    let synced = |range: &[safequant_test_support::Operation], name: &str| {
        range
            .iter()
            .any(|o| o.name == "sync_dir" && o.path == bench.path(name))
    };
    assert!(synced(&log[..rename], ".dst.safequant-partial/out"));
    assert!(synced(&log[..rename], ".dst.safequant-partial/out/extra"));
    assert!(synced(&log[rename..], ""), "{:?}", &log[rename..]);
}

#[test]
fn a_source_that_changes_during_the_job_is_never_published() {
    let bench = Bench::new();
    let checkpoint = bench.open("src");
    let plan = rewrite::plan(&checkpoint, &verb(), &bench.path("dst"), &options()).unwrap();
    let shard = checkpoint.shards()[0].name.clone();
    let path = bench.path("src").join(shard);
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes).unwrap();
    let error = rewrite::run(&plan, &OsDisk, &Watch::new(0), &CancelToken::default()).unwrap_err();
    assert!(!bench.path("dst").exists(), "{error}");
    assert!(
        error.to_string().contains("chang") || error.to_string().contains("modif"),
        "{error}"
    );
    let _ = resume();
}
