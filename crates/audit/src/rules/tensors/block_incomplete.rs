//! QT012: a block has some of its matrices, but not all.

use std::collections::{BTreeMap, BTreeSet};

use crate::inventory::Stored;
use crate::{Check, Findings, Part, Place, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "QT012",
    name: "block-incomplete",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "a feed-forward block has some of its matrices, but not all",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
In a language model, a feed-forward block that has a gate has the matrix up and the matrix back as well; one that has a way up has a way
back, and the reverse.

## Why it matters
No model computes with half of such a block. The matrix was lost with a shard, by a filter, or under another name:
`KeyError: 'layers.0.block_sparse_moe.experts.w2_weight'`, or no error and an uninitialized matrix.

## What to do
Look for the matrix under another name; fetch or quantize the module again.

## References
- sgl-project/sglang#37679, sgl-project/sglang#33759, vllm-project/vllm#34930
";

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    // Extracts of a few modules are no models.
    let Some(trunk) = &subject.trunk else {
        return;
    };
    let prefix = format!("{}.", trunk.name);
    let mut blocks: BTreeMap<&str, BTreeSet<Part>> = BTreeMap::new();
    let is_inside = |tensor: &Stored<'_>| tensor.info.name.starts_with(&prefix);
    for (name, stored) in subject.modules() {
        if !stored.iter().any(is_inside) {
            continue;
        }
        let parts = blocks.entry(name.parent).or_default();
        parts.insert(name.part);
        // Blocks of two matrices call them w1 and w2, and some of three call the third v1.
        if name.module.rsplit('.').next() == Some("w1") {
            parts.insert(Part::Up);
        }
    }
    for (block, parts) in blocks {
        let has = |part| parts.contains(&part);
        // Attention may have a gate of its own.
        let is_attention = has(Part::Query) || has(Part::Key) || has(Part::QueryKeyValue);
        if is_attention || has(Part::Value) || has(Part::Output) {
            continue;
        }
        let takes = has(Part::Up) || has(Part::GateUp);
        let missing = if has(Part::Gate) && !has(Part::Up) {
            Some(Part::Up)
        } else if takes && !has(Part::Down) {
            Some(Part::Down)
        } else if has(Part::Down) && !takes {
            Some(Part::Up)
        } else {
            None
        };
        if let Some(missing) = missing {
            report(block, &parts, missing, findings);
        }
    }
}

fn report(block: &str, parts: &BTreeSet<Part>, missing: Part, findings: &mut Findings<'_>) {
    let there: Vec<&str> = parts.iter().map(|part| part.name()).collect();
    findings
        .add(
            Place::module(block),
            format!("{block} has no `{}`", missing.name()),
        )
        .instead("gate, up and down, or up and down", there.join(", "))
        .help("look for the matrix under another name; fetch or quantize the module again");
}
