//! SC073: some attention layers have cache scales, others have none.

use std::collections::{BTreeMap, BTreeSet};

use super::common::cache_scales;
use crate::{Check, Findings, ModuleName, Part, Place, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "SC073",
    name: "kv-scale-missing",
    severity: Severity::Warning,
    since: "0.1.0",
    summary: "some attention layers have cache scales, others have none",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
If one layer of a stack has cache scales for keys and values, every layer of the stack with projections for keys has.

## Why it matters
The layers without one use 1, which clips their keys and values in an FP8 cache: `Using KV cache scaling factor 1.0 for fp8_e4m3`, once
for all layers, so that nobody sees which.

## What to do
Calibrate the cache again, and look whether a shard or a renaming lost the scales.

## References
- vllm-project/vllm#54623, sgl-project/sglang#39942
- formats: compressed-tensors, section 11, clause 7; fp8, section 9
";

/// The name up to the number of its layer, and that number.
fn stack_of(module: &str) -> Option<(&str, u32)> {
    let layer = ModuleName::parse(module).layer?;
    let at = module.find(&format!(".{layer}."))?;
    Some((module.get(..at)?, layer))
}

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    let mut having: BTreeMap<&str, BTreeSet<u32>> = BTreeMap::new();
    for scale in cache_scales(subject) {
        if let Some((stack, layer)) = stack_of(scale.name) {
            having.entry(stack).or_default().insert(layer);
        }
    }
    if having.is_empty() {
        return;
    }
    let mut reported = BTreeSet::new();
    for info in subject.headers.tensors() {
        let Some((module, _)) = info.name.rsplit_once('.') else {
            continue;
        };
        match ModuleName::parse(module).part {
            Part::Key | Part::QueryKeyValue => {}
            Part::Query
            | Part::Value
            | Part::Output
            | Part::Gate
            | Part::Up
            | Part::GateUp
            | Part::Down
            | Part::Router
            | Part::Embedding
            | Part::Head
            | Part::Other => continue,
        }
        let Some((stack, layer)) = stack_of(module) else {
            continue;
        };
        let Some(layers) = having.get(stack) else {
            continue;
        };
        if layers.contains(&layer) || !reported.insert((stack, layer)) {
            continue;
        }
        findings
            .add(
                Place::module(module),
                format!(
                    "layer {layer} of {stack} has no cache scales; {} other layers have",
                    layers.len()
                ),
            )
            .instead("k_scale and v_scale", "neither")
            .help("calibrate the cache again, or look where the scales were lost");
    }
}
