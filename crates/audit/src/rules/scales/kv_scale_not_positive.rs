//! SC072: a cache scale is zero, negative or no number.

use super::common::cache_scales;
use crate::measure::Measured;
use crate::{Check, Findings, Place, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "SC072",
    name: "kv-scale-not-positive",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "a scale of the key-value cache is zero, negative, infinite or NaN",
    doc: DOC,
    check: Check::AllScales(check),
};

const DOC: &str = "\
## What it checks
Every cache scale of keys and values is a positive, finite number, or -1, which means absent.

## Why it matters
Keys and values are divided by it on their way into the cache: zero and NaN make NaN of every answer as soon as the cache is FP8, and
nothing is wrong as long as it is not. vLLM then says `Using KV cache scaling factor`, and no more.

## What to do
Calibrate the cache again, or take the scales out: 1 is then used.

## References
- vllm-project/vllm#46264, sgl-project/sglang#1559
- formats: fp8, section 9
";

fn check(subject: &Subject<'_>, measured: &Measured, findings: &mut Findings<'_>) {
    for scale in cache_scales(subject) {
        let Some(floats) = measured.small.get(scale.name) else {
            continue;
        };
        let is_absent = floats.only() == Some(1.0) && floats.negative.count == floats.n;
        let kinds = [
            ("NaN", floats.nan),
            ("infinite", floats.infinite),
            ("zero", floats.zero),
            ("negative", floats.negative),
        ];
        for (kind, places) in kinds {
            if let Some(first) = places.first.filter(|_| !is_absent) {
                findings
                    .add(
                        Place::module(scale.attention)
                            .tensor(scale.name)
                            .entry(first),
                        format!("{} of {} cache scales are {kind}", places.count, floats.n),
                    )
                    .instead("a positive number", kind)
                    .help("calibrate the cache again");
            }
        }
    }
}
