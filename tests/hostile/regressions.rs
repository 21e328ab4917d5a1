//! What a fuzz target once crashed on, run by an ordinary test.

use std::path::Path;

use super::fuzz_harness::TARGETS;

#[test]
fn inputs_that_once_crashed_a_target_no_longer_do() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/regressions");
    let mut targets = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if !path.is_dir() {
            continue;
        }
        targets += 1;
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let target = TARGETS.iter().find(|(target, _)| *target == name);
        let (_, run) = target.unwrap_or_else(|| panic!("no fuzz target {name}"));
        let mut visited = 0;
        for file in std::fs::read_dir(&path).unwrap() {
            run(&std::fs::read(file.unwrap().path()).unwrap());
            visited += 1;
        }
        println!("{name}: {visited} inputs");
        assert!(visited > 0, "{name}: nothing was visited");
    }
    assert_eq!(targets, TARGETS.len());
}
