//! QC020: the configuration counts other layers, experts or tokens than are stored.

use std::collections::BTreeSet;

use safequant_container::TensorInfo;
use safequant_schemes::QuantizedTensor;

use crate::inventory::{EXPERT_KEYS, LAYER_KEYS, MTP_KEYS, Trunk, agreed_number};
use crate::{Check, Findings, ModuleName, Place, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "QC020",
    name: "count-differs",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "the configuration counts other layers, experts or tokens than are stored",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
In a language model, as many layers are stored as `config.json` says (and those that predict further tokens: a warning if they are
missing), stacks of experts and routers have as many rows as there are experts, and embeddings as many rows as there are tokens. More rows than
tokens are padding and a note.

## Why it matters
Layers that a quantizer dropped stay uninitialized, or speculative decoding fails; converters make a file with a block that does not
exist. `size mismatch for model.embed_tokens.weight: copying a param with shape torch.Size([...])`.

## What to do
Fetch the missing layers from the original model, or write the numbers that are stored.

## References
- intel/auto-round#1477, vllm-project/llm-compressor#2735, NVIDIA/Model-Optimizer#733, casper-hansen/AutoAWQ#736,
  vllm-project/vllm-ascend#15531
";

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    // Extracts of a model, and drafts that share its embeddings, count nothing.
    let Some(trunk) = &subject.trunk else {
        return;
    };
    check_layers(subject, trunk, findings);
    check_tokens(subject, trunk, findings);
    check_experts(subject, findings);
}

fn check_layers(subject: &Subject<'_>, trunk: &Trunk<'_>, findings: &mut Findings<'_>) {
    let Some((key, declared)) = agreed_number(subject, LAYER_KEYS) else {
        return;
    };
    let mtp = agreed_number(subject, MTP_KEYS).map_or(0, |(_, n)| n);
    let layers = subject.stacks.get(trunk.name);
    let Some(last) = layers.and_then(|layers| layers.keys().last()) else {
        return;
    };
    let stored = u64::from(*last) + 1;
    if stored < declared {
        findings
            .add(
                Place::module(trunk.name),
                format!("{key} is {declared}, but the last layer stored is {last}"),
            )
            .instead(format!("{declared} layers"), format!("{stored}"))
            .help("fetch the missing layers again, or correct the number");
    } else if stored > declared.saturating_add(mtp) {
        let finding = findings.add(
            Place::module(trunk.name),
            format!("{key} is {declared}, but the last layer stored is {last}"),
        );
        finding.severity = Severity::Warning;
        finding.instead(format!("{declared} layers"), format!("{stored}"));
    }
    if mtp > 0 && stored == declared && !has_mtp(subject) {
        let finding = findings.add(
            Place::module(trunk.name),
            format!("{mtp} layers that predict further tokens are declared, and none is stored"),
        );
        finding.severity = Severity::Warning;
        finding
            .instead(format!("{mtp} such layers"), "none")
            .help("take them from the original model, or set the number to 0");
    }
}

/// Whether layers that predict further tokens are stored under a name of their own.
fn has_mtp(subject: &Subject<'_>) -> bool {
    let words = ["mtp", "nextn", "mtp_layers", "mtp_block", "mtp_blocks"];
    let mut tensors = subject.headers.tensors();
    tensors.any(|info| info.name.split('.').any(|word| words.contains(&word)))
}

fn check_tokens(subject: &Subject<'_>, trunk: &Trunk<'_>, findings: &mut Findings<'_>) {
    let Some((key, declared)) = agreed_number(subject, &["vocab_size"]) else {
        return;
    };
    let mut modules = vec![trunk.embedding];
    // The head of a draft model may know fewer tokens.
    let is_draft = subject.config.contains_key("draft_vocab_size");
    let has_head = subject.headers.tensor("lm_head.weight").is_some()
        || subject.model.module("lm_head").is_some();
    if has_head && !is_draft {
        modules.push("lm_head");
    }
    for module in modules {
        let Some(stored) = rows(subject, module) else {
            continue;
        };
        let place = Place::module(module);
        if stored < declared {
            findings
                .add(
                    place,
                    format!("{key} is {declared}, but {module} has {stored} rows"),
                )
                .instead(format!("{declared} rows"), stored.to_string())
                .help("correct vocab_size, or take the matrix from the original model");
        } else if stored > declared {
            let finding = findings.add(
                place,
                format!("{key} is {declared}, and {module} has {stored} rows"),
            );
            finding.severity = Severity::Note;
            finding.instead(
                format!("{declared} rows"),
                format!("{stored}, the rest is padding"),
            );
        }
    }
}

/// Output features of a weight, quantized or dense.
fn rows(subject: &Subject<'_>, module: &str) -> Option<u64> {
    if let Some(tensor) = subject.model.module(module) {
        return (tensor.shape.len() == 2).then(|| tensor.out_features());
    }
    let name = format!("{module}.weight");
    let is_plain = subject.model.plain.binary_search(&name).is_ok();
    let info = subject.headers.tensor(&name).filter(|_| is_plain)?;
    let shape = info.logical_shape();
    (shape.len() == 2).then(|| shape.first().copied()).flatten()
}

/// Stacks of experts, and the routers that choose them.
fn check_experts(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    let Some((key, declared)) = agreed_number(subject, EXPERT_KEYS) else {
        return;
    };
    let is_stack = |tensor: &&QuantizedTensor| tensor.shape.len() == 3;
    let stacks = subject.model.quantized.iter().filter(is_stack);
    let stacks = stacks.filter_map(|tensor| {
        let parent = ModuleName::parse(&tensor.module).parent;
        let is_experts = parent.ends_with("experts") || parent.ends_with("switch_mlp");
        is_experts.then(|| (tensor.module.as_str(), tensor.n_matrices()))
    });
    for (module, stored) in stacks.chain(routers(subject)) {
        if stored == declared {
            continue;
        }
        let finding = findings.add(
            Place::module(module),
            format!("{key} is {declared}, but {module} has {stored}"),
        );
        // Some routers know experts that compute nothing.
        if stored > declared {
            finding.severity = Severity::Warning;
        }
        finding
            .instead(format!("{declared} experts"), stored.to_string())
            .help("correct the number, or take the missing experts from the original model");
    }
}

/// The routers that stand beside experts, and their rows.
fn routers<'a>(subject: &'a Subject<'_>) -> impl Iterator<Item = (&'a str, u64)> {
    let around = |info: &'a TensorInfo| info.name.split_once(".experts.").map(|(name, _)| name);
    let mut blocks: Vec<&str> = subject.headers.tensors().filter_map(around).collect();
    // Most of them repeat the one before.
    blocks.dedup();
    let blocks: BTreeSet<&str> = blocks.into_iter().collect();
    subject.headers.tensors().filter_map(move |info| {
        let module = info.name.strip_suffix(".weight")?;
        let (parent, last) = module.rsplit_once('.')?;
        let is_router = matches!(last, "gate" | "router") && blocks.contains(parent);
        let rows = is_router.then(|| rows(subject, module))?;
        Some((module, rows?))
    })
}
