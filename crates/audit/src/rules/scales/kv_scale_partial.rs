//! SC070: keys have a cache scale and values have none, or the reverse.

use super::common::{CacheSide, cache_scales};
use crate::{Check, Findings, Place, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "SC070",
    name: "kv-scale-partial",
    severity: Severity::Warning,
    since: "0.1.0",
    summary: "of the cache scales of keys and values only one is there",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
An attention layer has cache scales for keys and for values (`k_scale` and `v_scale` in their several spellings), or neither. Values
alone are an error.

## Why it matters
vLLM takes the scale of the keys for the values too if theirs is missing, and fails an assertion if that of the keys is. Others take 1:
`Using KV cache scaling factor 1.0 for fp8_e4m3. This may cause accuracy issues`.

## What to do
Take the missing scale from the source, or calibrate the cache again.

## References
- vllm-project/vllm#54623, #46264, sgl-project/sglang#39942, #20705
- formats: fp8, section 9
";

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    for scale in cache_scales(subject) {
        let partner = scale.partner();
        if subject.headers.tensor(&partner).is_some() {
            continue;
        }
        let (own, other) = match scale.side {
            CacheSide::Keys => ("keys", "values"),
            CacheSide::Values => ("values", "keys"),
        };
        let finding = findings.add(
            Place::module(scale.attention).tensor(scale.name),
            format!("a cache scale for {own}, and none for {other}"),
        );
        if scale.side == CacheSide::Values {
            finding.severity = Severity::Error;
        }
        finding
            .instead(partner, "nothing")
            .help("take the missing scale from the source, or calibrate the cache again");
    }
}
