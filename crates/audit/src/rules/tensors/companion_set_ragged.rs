//! QT006: one module lacks a tensor that all others of its kind have.

use std::collections::{BTreeMap, BTreeSet};

use safequant_schemes::{Part, QuantizedTensor, Role};

use crate::{Check, Findings, Place, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "QT006",
    name: "companion-set-ragged",
    severity: Severity::Warning,
    since: "0.1.0",
    summary: "one module lacks a tensor that all others of its kind have",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
Tensors that a format leaves to choice (activation scales, group indices, zero points) are there for all modules of one scheme, or for
none. A module is reported where at least four others have the tensor and at most one in eight lacks it.

## Why it matters
A missing `g_idx` is read as \"in order\": the module computes nonsense without a word. A missing `input_scale` keeps what was in memory,
or zero, which is inverted to infinity: `activation scaling factor not positive`.

## What to do
Take the tensor from the original checkpoint, or quantize the module again.

## References
- vllm-project/vllm#45212, NVIDIA/Model-Optimizer#1265, ml-explore/mlx-lm#730
";

/// Modules that have a tensor, at least, for its absence to be noticed.
const MIN_PRESENT: usize = 4;
/// One in so many may lack it.
const MAX_ABSENT: usize = 8;

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    let mut kinds: BTreeMap<String, Vec<&QuantizedTensor>> = BTreeMap::new();
    // Neighbors are mostly of one kind.
    for run in subject.model.quantized.chunk_by(is_same_kind) {
        if let Some(first) = run.first() {
            kinds.entry(kind(first)).or_default().extend(run);
        }
    }
    for modules in kinds.values() {
        check_kind(modules, findings);
    }
}

/// What modules have in common that hold the same tensors.
fn kind(tensor: &QuantizedTensor) -> String {
    let scheme = &tensor.scheme;
    format!(
        "{} {:?} {:?} {:?}",
        tensor.convention, scheme.code, scheme.scale, scheme.super_scale
    )
}

fn is_same_kind(a: &QuantizedTensor, b: &QuantizedTensor) -> bool {
    let key = |of: &QuantizedTensor| (of.convention, of.scheme.code, of.scheme.scale);
    key(a) == key(b) && a.scheme.super_scale == b.scheme.super_scale
}

fn check_kind(modules: &[&QuantizedTensor], findings: &mut Findings<'_>) {
    let sets: Vec<BTreeSet<&str>> = modules.iter().map(|tensor| endings(tensor)).collect();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for ending in sets.iter().flatten() {
        *counts.entry(ending).or_default() += 1;
    }
    for (ending, n_present) in counts {
        let n_absent = modules.len() - n_present;
        let few = (modules.len() / MAX_ABSENT).max(1);
        if n_absent == 0 || n_absent > few || n_present < MIN_PRESENT {
            continue;
        }
        let lacking = modules.iter().zip(&sets);
        for (tensor, _) in lacking.filter(|(_, set)| !set.contains(ending)) {
            let name = format!("{}.{ending}", tensor.module);
            findings
                .add(
                    Place::module(&*tensor.module),
                    format!("{name} is missing, which {n_present} other modules of this kind have"),
                )
                .instead(name, "nothing")
                .help("take the tensor from the original checkpoint, or quantize the module again");
        }
    }
}

/// What the module's optional tensors are called behind its name. Tensors that modules share have other names.
fn endings(tensor: &QuantizedTensor) -> BTreeSet<&str> {
    let behind = |name: &'_ str| {
        let rest = name.strip_prefix(tensor.module.as_str())?;
        rest.strip_prefix('.').map(str::len)
    };
    let is_optional = |part: &&Part| {
        matches!(
            part.role,
            Role::GroupIndex | Role::ZeroPoint | Role::Auxiliary
        )
    };
    let parts = tensor.parts.iter().filter(is_optional);
    parts
        .filter_map(|part| {
            let len = behind(&part.name)?;
            part.name.get(part.name.len() - len..)
        })
        .collect()
}
