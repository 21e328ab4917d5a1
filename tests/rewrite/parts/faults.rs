//! Faults of the disk, at every operation of a job in parts.

use safequant::container::OsDisk;
use safequant::rewrite::{Destination, Error, ErrorGroup};
use safequant_test_support::{Fault, FaultDisk};

use super::super::tiny::{Bench, contents, quantize};
use super::{Job, PARTIAL, remove};

/// Fails every `step`-th operation, one in each run, until a job in parts meets no fault; gives how many operations there are.
fn fault_loop(step: usize, fault: impl Fn(u64) -> Fault) -> u64 {
    let bench = Bench::new();
    let mut job = Job::new(&bench, "src", quantize("W8A16", "compressed-tensors"));
    job.options.threads = 1;
    job.options.max_shard_bytes = 500_000;
    bench.run(&job.verb, "good", &job.options).unwrap();
    let good = contents(&bench.path("good"));
    for at in (0..).step_by(step) {
        let disk = FaultDisk::new(fault(at));
        let result = job.run(&disk, Destination::New, 2);
        let is_complete = job.destination.exists();
        if is_complete {
            assert!(contents(&job.destination) == good, "operation {at}: torn");
        }
        match &result {
            Ok(_) => assert!(is_complete, "operation {at}"),
            Err(error) => assert_eq!(error.group(), ErrorGroup::Io, "operation {at}: {error}"),
        }
        let is_left = bench.path(PARTIAL).exists();
        if !is_complete || is_left {
            // By parts again, in another number, or by one process.
            let resumed = if at % 2 == 0 {
                job.run(&OsDisk, Destination::Resume, 3)
            } else {
                job.run_locally(Destination::Resume)
            };
            match resumed {
                Ok(_) => {}
                Err(error) => panic!("operation {at}: {error}"),
            }
            assert!(contents(&job.destination) == good, "operation {at}");
            assert_eq!(bench.names(), ["dst", "good", "src"], "operation {at}");
        }
        remove(&job.destination);
        if !disk.was_hit() {
            assert!(result.is_ok());
            return at;
        }
    }
    unreachable!()
}

#[test]
fn a_crash_at_any_operation_of_a_job_in_parts_can_be_resumed() {
    let n = fault_loop(1, |at| Fault::Crash { at });
    assert!(n > 100, "only {n} operations");
}

#[test]
fn an_operation_that_fails_in_a_job_in_parts_can_be_resumed() {
    let n = fault_loop(3, |at| Fault::Fail {
        at,
        kind: std::io::ErrorKind::Other,
    });
    assert!(n > 100, "only {n} operations");
}

#[test]
fn a_part_meets_a_full_disk_and_tells_needed_and_free_bytes() {
    let bench = Bench::new();
    let job = Job::new(&bench, "src", quantize("W8A16", "compressed-tensors"));
    job.begin(&OsDisk, Destination::New).unwrap();
    let disk = FaultDisk::new(Fault::Full {
        budget_bytes: 200_000,
    });
    let error = job.part(&disk, 0, 2).unwrap_err();
    assert!(matches!(error, Error::DiskFull { .. }), "{error}");
    // Others may be at work, so that it is the caller who gives up.
    assert!(bench.path(PARTIAL).exists());
    job.run(&OsDisk, Destination::Resume, 2).unwrap();
    assert_eq!(bench.names(), ["dst", "src"]);
}
