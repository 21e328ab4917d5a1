//! What the README shows is what the program prints.

use std::fs;

use crate::support::{root, run};

const COMMAND: &str = "cargo run --release -- quantize fixtures/all-minilm-l6-v2 -o target/minilm-w4a16 --scheme W4A16";

#[cfg(unix)]
#[test]
fn the_first_command_of_the_readme_prints_what_stands_there() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let after = readme.split_once(COMMAND).expect("the first command").1;
    let shown = after
        .split_once("```text\n")
        .unwrap()
        .1
        .split_once("```")
        .unwrap()
        .0;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    std::os::unix::fs::symlink(
        root().join("fixtures").canonicalize().unwrap(),
        path.join("fixtures"),
    )
    .unwrap();
    fs::create_dir(path.join("target")).unwrap();
    let line = COMMAND.replace("cargo run --release --", "safequant");
    assert_eq!(run(path, &line).expect(0).stdout, shown);
}
