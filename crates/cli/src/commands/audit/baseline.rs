//! Findings that are known already: a file of rules and places, so that only what is new fails a pipeline.

use std::collections::BTreeSet;
use std::path::Path;

use safequant::audit::{Finding, Place};
use serde_json::{Value, json};

use crate::exit::Failure;
use crate::output;

/// Largest file that is read: a million findings.
const MAX_BYTES: u64 = 256 << 20;

/// A rule and a place. The entry (row and column) is left out: it moves with every new calibration.
type Key = (String, Option<String>, Option<String>, Option<String>);

fn key(rule: &str, place: &Place) -> Key {
    let Place {
        file,
        module,
        tensor,
        entry: _,
    } = place.clone();
    (rule.to_owned(), file, module, tensor)
}

/// Writes all findings.
pub(super) fn write(path: &Path, findings: &[Finding]) -> Result<(), Failure> {
    let keys: BTreeSet<Key> = findings.iter().map(|f| key(f.rule, &f.place)).collect();
    let record = |(rule, file, module, tensor): &Key| json!({"rule": rule, "file": file, "module": module, "tensor": tensor});
    let known: Vec<Value> = keys.iter().map(record).collect();
    let text =
        output::json_text(&json!({"schema_version": output::SCHEMA_VERSION, "findings": known}));
    super::write_file(path, text.as_bytes())
}

/// Takes out what the file knows; how many those were.
pub(super) fn leave_out(path: &Path, findings: &mut Vec<Finding>) -> Result<usize, Failure> {
    let known = read(path)?;
    let before = findings.len();
    findings.retain(|finding| !known.contains(&key(finding.rule, &finding.place)));
    Ok(before - findings.len())
}

#[expect(
    clippy::disallowed_methods,
    reason = "a baseline is no part of a checkpoint"
)]
fn read(path: &Path) -> Result<BTreeSet<Key>, Failure> {
    let shown = path.to_string_lossy();
    let failed = |source| Failure::File {
        path: shown.clone().into_owned(),
        source,
    };
    let unfit = || {
        let help = "write one with `safequant audit SRC --write-baseline FILE`";
        Failure::usage(format!("{shown}: not a baseline of this program"), help)
    };
    if std::fs::metadata(path).map_err(failed)?.len() > MAX_BYTES {
        return Err(unfit());
    }
    let bytes = std::fs::read(path).map_err(failed)?;
    let value: Value = serde_json::from_slice(&bytes).map_err(|_| unfit())?;
    if value["schema_version"] != output::SCHEMA_VERSION {
        return Err(unfit());
    }
    let records = value["findings"].as_array().ok_or_else(unfit)?;
    let text = |record: &Value, name: &str| record[name].as_str().map(str::to_owned);
    let keys = records.iter().map(|record| {
        let rule = text(record, "rule").ok_or_else(unfit)?;
        Ok((
            rule,
            text(record, "file"),
            text(record, "module"),
            text(record, "tensor"),
        ))
    });
    keys.collect()
}
