//! SC021: layers that runtimes fuse are quantized differently.

use std::collections::HashMap;

use safequant_schemes::QuantizedTensor;

use super::common::{in_words, is_dense, is_fused_at_run_time};
use crate::{Check, Findings, ModuleName, Part, Place, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "SC021",
    name: "fused-scheme-mismatch",
    severity: Severity::Warning,
    since: "0.1.0",
    summary: "layers that runtimes make one matrix of are quantized in different ways",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
Queries, keys and values of a layer, and gate and up of a block, have the same scheme: bits, groups, zero points; or all of them are
dense.

## Why it matters
Runtimes that make one matrix of them have no place for two schemes: `Detected some but not all shards of ... are quantized. All shards
of fused layers to have the same precision.`, a `KeyError`, or the wrong half of a matrix.

## What to do
Quantize them alike, or leave all of them dense. Runtimes that do not fuse (transformers, llama.cpp, MLX) read the checkpoint as it is.

## References
- vllm-project/vllm#41457, intel/auto-round#1726
- formats: gptq, section 11, clause 8; compressed-tensors, section 11, clause 9
";

/// A layer, and what it is.
struct Member<'a> {
    module: &'a str,
    tensor: Option<&'a QuantizedTensor>,
}

impl Member<'_> {
    fn is_like(&self, other: &Self) -> bool {
        match (self.tensor, other.tensor) {
            (None, None) => true,
            (Some(one), Some(two)) => {
                let (one, two) = (&one.scheme, &two.scheme);
                one.code == two.code
                    && one.granularity == two.granularity
                    && one.scale == two.scale
                    && one.super_scale == two.super_scale
                    && one.zero_point == two.zero_point
            }
            (None, Some(_)) | (Some(_), None) => false,
        }
    }

    fn in_words(&self) -> String {
        self.tensor.map_or_else(|| "dense".to_owned(), in_words)
    }
}

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    // Matrices are fused that take the same input, so they are as wide.
    let mut groups: HashMap<(&str, &[Part], u64), Vec<Member<'_>>> = HashMap::new();
    let fused = subject.model.quantized.iter();
    let fused = fused.filter(|tensor| is_fused_at_run_time(tensor.convention));
    let quantized =
        fused.map(|tensor| (tensor.module.as_str(), tensor.in_features(), Some(tensor)));
    let dense = subject.plain.iter().filter_map(|info| {
        let [_, width] = *info.shape.as_slice() else {
            return None;
        };
        let module = info
            .name
            .strip_suffix(".weight")
            .filter(|_| is_dense(info.dtype))?;
        Some((module, width, None))
    });
    for (module, width, tensor) in quantized.chain(dense) {
        let name = ModuleName::parse(module);
        if !name.fused_with().is_empty() {
            let group = groups
                .entry((name.parent, name.fused_with(), width))
                .or_default();
            group.push(Member { module, tensor });
        }
    }
    for members in groups.values() {
        compare(members, findings);
    }
}

fn compare(members: &[Member<'_>], findings: &mut Findings<'_>) {
    let Some(first) = members.first() else {
        return;
    };
    let Some(other) = members.iter().find(|member| !member.is_like(first)) else {
        return;
    };
    let listed: Vec<String> = members
        .iter()
        .map(|member| format!("{} ({})", member.module, member.in_words()))
        .collect();
    findings
        .add(
            Place::module(other.module),
            format!(
                "layers that are fused are quantized in different ways: {}",
                listed.join(", ")
            ),
        )
        .instead(first.in_words(), other.in_words())
        .help("quantize them alike, or leave all of them dense");
}
