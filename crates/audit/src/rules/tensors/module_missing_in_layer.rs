//! QT011: a layer lacks a module that the layers like it have.

use std::collections::{BTreeMap, BTreeSet};

use crate::inventory::{Layers, companion};
use crate::names::split_last;
use crate::{Check, Findings, ModuleName, Part, Place, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "QT011",
    name: "module-missing-in-layer",
    severity: Severity::Warning,
    since: "0.1.0",
    summary: "one layer lacks a weight that the layers like it have",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
Layers are grouped by what they hold. A layer that holds less than a group of others, and nothing that these do not hold, lacks
something. Models with several kinds of layers (dense and expert layers, attention and recurrent ones) have no such layers: each kind
has something of its own. Layers from which whole blocks were cut on purpose are reported too, so that this is a warning.

## Why it matters
Tensors that a tool's filter or a renaming lost are not missed by loaders of quantized models: the weight stays as memory was.
`Found 15 tensor(s) in the source checkpoint that are absent from the saved output` is how a quantizer says it.

## What to do
Compare with the original model; fetch or quantize the module again.

## References
- vllm-project/llm-compressor#2735, intel/auto-round#1984, vllm-project/vllm#57108
";

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    for (stack, layers) in &subject.stacks {
        let modules: BTreeMap<u32, BTreeSet<&str>> = weights(layers);
        let mut kinds: BTreeMap<&BTreeSet<&str>, Vec<u32>> = BTreeMap::new();
        for (layer, held) in &modules {
            kinds.entry(held).or_default().push(*layer);
        }
        for (held, of_kind) in &kinds {
            let &[layer] = of_kind.as_slice() else {
                continue;
            };
            if let Some(fuller) = fuller(held, &kinds) {
                for rest in fuller.difference(held) {
                    report(&format!("{stack}.{layer}"), rest, findings);
                }
            }
        }
    }
}

/// What matrices, and biases beside them, each layer holds.
fn weights<'a>(layers: &Layers<'a>) -> BTreeMap<u32, BTreeSet<&'a str>> {
    let module = |rest: &'a str| {
        let (module, ending) = companion(rest).or_else(|| split_last(rest))?;
        let part = ModuleName::parse(module).part;
        let is_weight = part != Part::Other || ending != "weight" && ending != "bias";
        let name = if ending == "bias" { rest } else { module };
        is_weight.then_some(name)
    };
    let of_layer = |rests: &Vec<&'a str>| rests.iter().filter_map(|rest| module(rest)).collect();
    layers
        .iter()
        .map(|(layer, rests)| (*layer, of_layer(rests)))
        .collect()
}

/// The kind of most layers that holds all this and a little more.
fn fuller<'k>(
    held: &BTreeSet<&str>,
    kinds: &BTreeMap<&'k BTreeSet<&'k str>, Vec<u32>>,
) -> Option<&'k BTreeSet<&'k str>> {
    let is_fuller = |other: &BTreeSet<&str>| {
        other.len() > held.len() && other.len() <= 2 * held.len().max(1) && held.is_subset(other)
    };
    let fuller = kinds.iter().filter(|(other, _)| is_fuller(other));
    let (most, layers) = fuller.max_by_key(|(_, layers)| layers.len())?;
    (layers.len() >= 2).then_some(*most)
}

fn report(layer: &str, rest: &str, findings: &mut Findings<'_>) {
    let name = format!("{layer}.{rest}");
    findings
        .add(
            Place::module(&*name),
            format!("{name} is missing, which the layers like this one have"),
        )
        .instead(name, "nothing")
        .help("compare with the original model; fetch or quantize the module again");
}
