//! QT010: a layer is missing in the middle of the model.

use crate::{Check, Findings, Place, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "QT010",
    name: "layer-missing",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "layers are numbered with a gap: nothing is stored of the layers between",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
The layers under one name (`model.layers`, `visual.blocks`) are numbered without a gap, from the first that is stored to the last.

## Why it matters
A whole layer is lost with a shard, or by a filter on names. Runtimes that do not check quantized models build it from memory as it
was; others say `Missing key(s) in state_dict: model.layers.7.self_attn.q_proj.qweight`.

## What to do
Fetch the missing shard again. A model from which layers were cut on purpose has to be numbered anew.

## References
- vllm-project/vllm#34859, elder-plinius/OBLITERATUS#197
";

/// Tensors that a layer has at least: what is numbered in a sequence of small modules has gaps where functions without weights
/// stand.
const MIN_TENSORS: usize = 4;
/// Layers that a stack has at least.
const MIN_LAYERS: usize = 3;

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    for (stack, layers) in &subject.stacks {
        let is_block = |(_, held): &(&u32, &Vec<&str>)| held.len() >= MIN_TENSORS;
        let blocks = layers.iter().filter(is_block);
        let numbers: Vec<u32> = blocks.map(|(number, _)| *number).collect();
        let (Some(&first), Some(&last)) = (numbers.first(), numbers.last()) else {
            continue;
        };
        let span = u64::from(last - first) + 1;
        let n_missing = span - numbers.len() as u64;
        // Numbers that are mostly missing are no count of layers.
        if numbers.len() < MIN_LAYERS || n_missing == 0 || n_missing > numbers.len() as u64 {
            continue;
        }
        for layer in (first..last).filter(|layer| !layers.contains_key(layer)) {
            let name = format!("{stack}.{layer}");
            findings
                .add(
                    Place::module(&*name),
                    format!("nothing of {name} is stored"),
                )
                .instead(
                    format!("layers {first} to {last}"),
                    format!("{} of {span}", numbers.len()),
                )
                .help("fetch the shard that holds this layer again");
        }
    }
}
