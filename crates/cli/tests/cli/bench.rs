//! `bench`: its table, its record, what it refuses, and that it stops when asked to.

use std::process::Stdio;
use std::time::Duration;

use crate::schema::check;
use crate::support::{Ran, command, run, workplace};

#[test]
fn the_table_has_a_line_for_each_format_and_place() {
    let workplace = workplace();
    let line = "safequant bench --quick --only 'fp8*' --only int4_g128 --only Q4_K";
    let ran = run(workplace.path(), line).expect(0);
    let lines = |name: &str| {
        let first = |line: &&str| line.split_whitespace().next() == Some(name);
        ran.stdout.lines().filter(first).count()
    };
    for name in [
        "fp8_tensor",
        "fp8_channel",
        "fp8_block",
        "int4_g128",
        "Q4_K",
    ] {
        assert_eq!(lines(name), 2, "{name}: {}", ran.stdout);
    }
    assert_eq!(lines("nvfp4"), 0);
    assert!(ran.stdout.starts_with("backend "), "{}", ran.stdout);
    assert_eq!(
        ran.stdout.matches("into fresh memory").count(),
        1,
        "{}",
        ran.stdout
    );
    assert!(ran.stderr.contains("5/5 Q4_K"), "{}", ran.stderr);
}

#[test]
fn the_record_follows_its_schema() {
    let workplace = workplace();
    let line = "safequant bench --only mxfp4 --quick --threads 2 --json --quiet";
    let ran = run(workplace.path(), line).expect(0);
    assert_eq!(ran.stderr, "");
    let record = ran.json();
    check("bench.schema.json", &record);
    let measurements = record["measurements"].as_array().unwrap();
    assert_eq!(measurements.len(), 2);
    for measured in measurements {
        assert_eq!(measured["threads"], 2);
        for rate in [
            "bytes_per_second",
            "copy_bytes_per_second",
            "portable_bytes_per_second",
        ] {
            assert!(measured[rate].as_f64().unwrap() > 0.0, "{measured:#}");
        }
        let fresh = measured["fresh_bytes_per_second"].as_f64();
        let is_measured = fresh.is_some_and(|rate| rate > 0.0);
        assert_eq!(is_measured, measured["place"] == "DRAM", "{measured:#}");
    }
}

#[test]
fn a_pattern_that_matches_nothing_or_does_not_compile_is_refused() {
    let workplace = workplace();
    let ran = run(workplace.path(), "safequant bench --only abacus").expect(4);
    assert!(ran.stderr.contains("fp8_tensor"), "{}", ran.stderr);
    let record = run(workplace.path(), "safequant bench --only 're:(' --json")
        .expect(4)
        .json();
    check("error.schema.json", &record);
    assert_eq!(record["error"]["code"], "usage");
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_it_with_a_status_of_ours() {
    use rustix::process::{Pid, Signal, kill_process};
    use std::io::Read;

    let workplace = workplace();
    let mut child = command(workplace.path())
        .arg("bench")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The first line of progress says that signals are listened to.
    child.stderr.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    let pid = Pid::from_child(&child);
    // The second one ends it at once, however long a measurement takes here.
    for _ in 0..2 {
        kill_process(pid, Signal::INT).unwrap();
        std::thread::sleep(Duration::from_millis(50));
    }
    let output = child.wait_with_output().unwrap();
    Ran::new("safequant bench, SIGINT".to_owned(), &output).expect(4);
    assert!(output.stdout.is_empty());
}
