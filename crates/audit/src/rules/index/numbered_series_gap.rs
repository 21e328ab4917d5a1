//! IX006: a series of numbered files is not complete.

use std::collections::{BTreeMap, BTreeSet};

use safequant_container::CheckpointKind;

use crate::{Check, Findings, Place, Rule, Severity, Subject, problem};

pub(crate) static RULE: Rule = Rule {
    id: "IX006",
    name: "numbered-series-gap",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "a series of numbered files is not complete",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
If a file is called `model-00001-of-00003.safetensors`, the other two of the three are there. Where an index names the files, it is the
index that counts, and a gap in its names is a warning; of a part that is audited as a file of its own it is a note.

## Why it matters
Without an index nothing else says that a shard is missing, and the check that every weight was loaded is off for quantized models: vLLM
loads what it finds, and the rest stays uninitialized. The answers are `!!!!` or nonsense. Files of two saves in one directory
(`-of-00002` beside `-of-00003`) show in the same way.

## What to do
Fetch the missing files, and remove those of another save. If the model is complete, `safequant reshard SRC -o DST` gives the files names
that say so.

## References
- vllm-project/vllm#34859, sgl-project/sglang#32279
";

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    let names = names(subject);
    let mut present: BTreeMap<Series<'_>, BTreeSet<u64>> = BTreeMap::new();
    for (series, number) in names.iter().filter_map(|name| parse(name)) {
        present.entry(series).or_default().insert(number);
    }
    let severity = match (subject.checkpoint.index(), subject.checkpoint.kind()) {
        (Some(_), _) => Severity::Warning,
        (None, CheckpointKind::File) => Severity::Note,
        (None, CheckpointKind::Directory | CheckpointKind::Index) => Severity::Error,
    };
    for (series, numbers) in &present {
        // Some writers count from 0.
        let start = u64::from(!numbers.contains(&0));
        let expected = start..start.saturating_add(series.count);
        let n_present = numbers.range(expected.clone()).count() as u64;
        let missing = expected.clone().find(|number| !numbers.contains(number));
        let Some(missing) = missing else {
            continue;
        };
        let finding = findings.add(
            Place::file(series.name(missing)),
            format!("{n_present} of {} numbered files are there", series.count),
        );
        finding.severity = severity;
        finding
            .instead(format!("{} files", series.count), n_present.to_string())
            .help("fetch the missing files, or rename those that are there");
    }
}

/// The names that should be complete: those of the index, or of all files, unreadable ones included.
fn names(subject: &Subject<'_>) -> BTreeSet<String> {
    if let Some(index) = subject.checkpoint.index() {
        return index.shard_names().into_iter().map(str::to_owned).collect();
    }
    let shards = subject.checkpoint.shards().iter();
    let broken = subject.problems.iter().map(problem::place);
    shards
        .map(|shard| shard.name.clone())
        .chain(broken.filter_map(|place| place.file))
        .collect()
}

/// What the names of a series have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Series<'a> {
    /// Before the number.
    before: &'a str,
    /// Digits of the number.
    width: usize,
    /// The number of files, as it is written and as it is meant.
    written_count: &'a str,
    count: u64,
    /// After the number of files.
    after: &'a str,
}

impl Series<'_> {
    fn name(&self, number: u64) -> String {
        let (before, width, count, after) =
            (self.before, self.width, self.written_count, self.after);
        format!("{before}{number:0width$}-of-{count}{after}")
    }
}

/// `model-00002-of-00003.fp16.safetensors`: its series and its number. Parts of a GGUF model are the container's business.
fn parse(name: &str) -> Option<(Series<'_>, u64)> {
    let is_digit = |c: char| c.is_ascii_digit();
    let (left, right) = name.rsplit_once("-of-")?;
    let before = left.trim_end_matches(is_digit);
    let after = right.trim_start_matches(is_digit);
    let number = left.get(before.len()..)?;
    let written_count = right.get(..right.len().checked_sub(after.len())?)?;
    if !name.ends_with(".safetensors") {
        return None;
    }
    let series = Series {
        before,
        width: number.len(),
        written_count,
        count: written_count.parse().ok()?,
        after,
    };
    Some((series, number.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_series_are_taken_apart() {
        let (series, number) = parse("m-00002-of-000163.fp16.safetensors").unwrap();
        assert_eq!((series.before, series.after), ("m-", ".fp16.safetensors"));
        assert_eq!((series.count, number), (163, 2));
        assert_eq!(series.name(7), "m-00007-of-000163.fp16.safetensors");
        for name in [
            "model.safetensors",
            "best-of-breed.safetensors",
            "a-1-of-.safetensors",
            "a-of-2.safetensors",
            "a-1-of-2.gguf",
            "a-1-of-99999999999999999999.safetensors",
        ] {
            assert!(parse(name).is_none(), "{name}");
        }
    }
}
