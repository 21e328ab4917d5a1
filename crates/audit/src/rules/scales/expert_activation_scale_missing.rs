//! SC030: an expert has no activation scale, though others have.

use std::collections::{BTreeMap, BTreeSet};

use super::common::{INPUTS, split, without_expert};
use crate::{Check, Findings, ModuleName, Place, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "SC030",
    name: "expert-activation-scale-missing",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "an expert has no activation scale, though its siblings have one",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
Where one expert's projection has an activation scale (`input_scale`, `input_global_scale`), that of every expert of the layer has one.

## Why it matters
The router sent the expert no token while the model was calibrated, so nothing was measured. The parameter keeps what memory held, or
zero, which is inverted to infinity: simple prompts work, mathematics gives pad tokens or NaN. Or loading stops with `activation scaling
factor not positive`.

## What to do
Calibrate with more, or more varied, samples, or with every token sent to every expert. Giving the expert the largest scale of its
siblings is a guess that nobody should make without saying so.

## References
- vllm-project/vllm#45212, #45320, NVIDIA/Model-Optimizer#1265, #1142, vllm-project/llm-compressor#2826
";

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    // By projection (the expert's number left out) and ending: the experts that have it.
    let mut having: BTreeMap<(String, &str), BTreeSet<u32>> = BTreeMap::new();
    for info in subject.headers.tensors() {
        if let Some((module, ending)) = split(&info.name, &INPUTS)
            && let Some((projection, expert)) = without_expert(module)
        {
            having
                .entry((projection, ending))
                .or_default()
                .insert(expert);
        }
    }
    if having.is_empty() {
        return;
    }
    for tensor in &subject.model.quantized {
        let Some((projection, expert)) = without_expert(&tensor.module) else {
            continue;
        };
        for ending in INPUTS {
            let Some(experts) = having.get(&(projection.clone(), ending)) else {
                continue;
            };
            if experts.contains(&expert) {
                continue;
            }
            let name = format!("{}.{ending}", tensor.module);
            let layer = ModuleName::parse(&tensor.module).layer;
            let layer = layer.map_or_else(String::new, |layer| format!(" of layer {layer}"));
            findings
                .add(
                    Place::module(&*tensor.module).tensor(&*name),
                    format!(
                        "expert {expert}{layer} has no {ending}; {} of its siblings have one",
                        experts.len()
                    ),
                )
                .instead(name, "nothing")
                .help("calibrate so that every expert sees tokens");
        }
    }
}
