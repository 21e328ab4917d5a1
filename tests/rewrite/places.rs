//! Where a result may appear (P14, P20).

use std::os::unix::fs::symlink;

use safequant::rewrite::{Destination, Error, JobOptions};

use super::tiny::{Bench, contents, options, quantize};

fn replace() -> JobOptions {
    JobOptions {
        destination: Destination::Replace,
        ..options()
    }
}

#[test]
fn the_source_is_never_the_destination() {
    let bench = Bench::new();
    let before = contents(&bench.path("src"));
    std::fs::create_dir(bench.path("other")).unwrap();
    symlink(bench.path("src"), bench.path("link")).unwrap();
    symlink(bench.path("src/extra"), bench.path("deep")).unwrap();
    let verb = quantize("W8A8", "compressed-tensors");
    let cases = [
        "src",
        "src/inner",
        "src/extra/inner",
        "link",
        "link/inner",
        "deep/inner",
        "other/../src",
        "src/../src/x",
    ];
    for destination in cases {
        for options in [
            options(),
            replace(),
            JobOptions {
                destination: Destination::Resume,
                ..options()
            },
        ] {
            let error = bench.run(&verb, destination, &options).unwrap_err();
            assert!(
                matches!(error, Error::DestinationTouchesSource { .. }),
                "{destination}: {error}"
            );
        }
    }
    assert_eq!(contents(&bench.path("src")), before);
    assert_eq!(bench.names(), ["deep", "link", "other", "src"]);
}

#[test]
fn a_destination_that_holds_the_source_is_refused() {
    let bench = Bench::new();
    super::tiny::write_dense(&bench.path("outer/inner"), 1 << 40);
    let checkpoint = bench.open("outer/inner");
    let verb = quantize("W8A8", "compressed-tensors");
    let planned = safequant::rewrite::plan(&checkpoint, &verb, &bench.path("outer"), &replace());
    let error = planned.err().unwrap();
    assert!(
        matches!(error, Error::DestinationTouchesSource { .. }),
        "{error}"
    );
}

#[test]
fn what_exists_is_replaced_only_on_demand_and_only_by_its_kind() {
    let bench = Bench::new();
    let verb = quantize("W8A8", "compressed-tensors");
    std::fs::create_dir(bench.path("empty")).unwrap();
    bench.run(&verb, "empty", &options()).unwrap();
    std::fs::create_dir(bench.path("full")).unwrap();
    std::fs::write(bench.path("full/old"), "old").unwrap();
    let error = bench.run(&verb, "full", &options()).unwrap_err();
    assert!(matches!(error, Error::DestinationExists { .. }), "{error}");
    bench.run(&verb, "full", &replace()).unwrap();
    assert_eq!(
        contents(&bench.path("full")),
        contents(&bench.path("empty"))
    );
    std::fs::write(bench.path("file"), "old").unwrap();
    symlink(bench.path("full"), bench.path("link")).unwrap();
    for name in ["file", "link"] {
        let error = bench.run(&verb, name, &replace()).unwrap_err();
        assert!(
            matches!(error, Error::DestinationKind { .. }),
            "{name}: {error}"
        );
        let error = bench.run(&verb, name, &options()).unwrap_err();
        assert!(
            matches!(error, Error::DestinationExists { .. }),
            "{name}: {error}"
        );
    }
    let error = bench.run(&verb, "absent/dst", &options()).unwrap_err();
    assert!(matches!(error, Error::NoParent { .. }), "{error}");
    assert_eq!(bench.names(), ["empty", "file", "full", "link", "src"]);
}
