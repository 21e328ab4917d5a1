//! Audits of what real tools wrote: clean checkpoints, and those that were spoilt on purpose.

use safequant::audit::{self, Depth, Options, RULES, Report, Severity, Subject};

use super::interop::fixture;

fn audited(checkpoint: &safequant::Checkpoint, depth: Depth) -> Report {
    let options = Options {
        depth,
        rules: RULES.to_vec(),
    };
    audit::audit(Subject::new(checkpoint, Vec::new()), &options)
}

/// No false alarm: nobody's own output has an error.
#[test]
fn clean_checkpoints_have_no_errors() {
    let fixtures = fixture::all();
    assert!(fixtures.len() > 80, "{} fixtures", fixtures.len());
    let mut alarms = Vec::new();
    for fixture in &fixtures {
        let checkpoint = fixture.open();
        for depth in Depth::ALL {
            let report = audited(&checkpoint, depth);
            let errors = report.findings.iter();
            for error in errors.filter(|finding| finding.severity == Severity::Error) {
                alarms.push(format!("{} {depth:?}: {error:?}", fixture.name));
            }
            for error in &report.unclaimed {
                alarms.push(format!("{} {depth:?}: {error}", fixture.name));
            }
        }
    }
    assert!(alarms.is_empty(), "{}", alarms.join("\n"));
}
