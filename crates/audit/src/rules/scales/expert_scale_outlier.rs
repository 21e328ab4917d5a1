//! SC031: an expert's scales are unlike its siblings'.

use std::collections::BTreeMap;

use super::common::{INPUTS, place, split, without_expert};
use crate::measure::{FloatStatistics, Measured};
use crate::{Check, Findings, Place, Rule, Severity, Subject};
use safequant_schemes::Role;

pub(crate) static RULE: Rule = Rule {
    id: "SC031",
    name: "expert-scale-outlier",
    severity: Severity::Warning,
    since: "0.1.0",
    summary: "an expert's scales are far larger or smaller than its siblings'",
    doc: DOC,
    check: Check::AllScales(check),
};

const DOC: &str = "\
## What it checks
Among the experts of a layer (three or more), the median scale of each projection, its second-level scale and its activation scale are
within a factor of 64 of the median of all experts.

## Why it matters
Experts of a layer are trained alike, and their weights differ by a factor of a few. One that is far off was quantized from something
else, or its activations were never seen (`activation scaling factor not positive`, NaN for some prompts only), or its scale is damaged.

## What to do
Compare the expert with the source; calibrate with more tokens; quantize it again.

## References
- vllm-project/vllm#45320, NVIDIA/Model-Optimizer#1354, ModelCloud/GPTQModel#1680
";

/// Powers of two. Experts that saw few tokens have activation scales ten times smaller than others; 64 leaves room.
const MOST: i32 = 6;
/// Of two that differ, nobody can say which is wrong.
const LEAST_EXPERTS: usize = 3;

/// What is compared, and where it stands.
type Entry = (i32, Place);

fn check(subject: &Subject<'_>, measured: &Measured, findings: &mut Findings<'_>) {
    let mut groups: BTreeMap<(String, &str), Vec<Entry>> = BTreeMap::new();
    let mut add = |module: &str, what, floats: &FloatStatistics, place: Place| {
        if let (Some((projection, _)), Some(median)) =
            (without_expert(module), floats.median_exponent())
        {
            groups
                .entry((projection, what))
                .or_default()
                .push((median, place));
        }
    };
    for tensor in &subject.model.quantized {
        if let Some(weight) = measured.get(&tensor.module) {
            let (scales, supers) = (&weight.scales.scales, &weight.scales.supers);
            add(
                &tensor.module,
                "median scale",
                scales,
                place(tensor, Role::Scale, None),
            );
            let at = place(tensor, Role::SuperScale, None);
            add(&tensor.module, "second-level scale", supers, at);
        }
    }
    for (name, floats) in &measured.small {
        if let Some((module, ending)) = split(name, &INPUTS) {
            add(
                module,
                ending,
                floats,
                Place::module(module).tensor(&**name),
            );
        }
    }
    for ((projection, what), entries) in groups {
        compare(&projection, what, &entries, findings);
    }
}

fn compare(projection: &str, what: &str, entries: &[Entry], findings: &mut Findings<'_>) {
    if entries.len() < LEAST_EXPERTS {
        return;
    }
    let mut exponents: Vec<i32> = entries.iter().map(|(exponent, _)| *exponent).collect();
    exponents.sort_unstable();
    let Some(&median) = exponents.get(exponents.len() / 2) else {
        return;
    };
    for (exponent, place) in entries {
        if exponent.abs_diff(median) > MOST.unsigned_abs() {
            findings
                .add(
                    place.clone(),
                    format!(
                        "the {what} is around 2^{exponent}, that of the {} experts of {projection} around 2^{median}",
                        entries.len()
                    ),
                )
                .instead(format!("around 2^{median}"), format!("around 2^{exponent}"))
                .help("compare this expert with the source, and quantize it again");
        }
    }
}
