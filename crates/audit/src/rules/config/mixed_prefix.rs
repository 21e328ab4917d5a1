//! QC030: the layers of one model stand under two prefixes.

use std::collections::BTreeMap;

use crate::{Check, Findings, Place, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "QC030",
    name: "mixed-prefix",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "the layers of one model stand under two prefixes",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
Tensors of one stack of layers have one prefix. Names that differ only in the words of wrappers (`model`, `language_model`, `module`,
`base_model`, `_orig_mod`, `diffusion_model`) are of one stack.

## Why it matters
Some tools rename what they quantize and not the rest, or the reverse: one half of the model is then not found.
`KeyError: 'language_model.language_model.layers.0.input_layernorm.weight'`, `KeyError: 'language_model.embed_tokens.weight'`.

## What to do
Rename the tensors of the smaller family: `safequant rename`.

## References
- intel/auto-round#1759, vllm-project/llm-compressor#2568, ModelCloud/GPTQModel#1788, vllm-project/vllm#50355
";

/// Words that wrap a model and mean nothing.
const WRAPPERS: [&str; 6] = [
    "model",
    "language_model",
    "module",
    "base_model",
    "_orig_mod",
    "diffusion_model",
];

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    let stacks = &subject.stacks;
    let mut families: BTreeMap<&str, Vec<(&str, usize)>> = BTreeMap::new();
    for (stack, layers) in stacks {
        let n_tensors = layers.values().map(Vec::len).sum();
        let family = families.entry(without_wrappers(stack)).or_default();
        family.push((stack, n_tensors));
    }
    for family in families.values().filter(|family| family.len() > 1) {
        let Some((most, _)) = family.iter().max_by_key(|(_, n)| *n) else {
            continue;
        };
        for (stack, n_tensors) in family.iter().filter(|(stack, _)| stack != most) {
            findings
                .add(
                    Place::module(*stack),
                    format!("{n_tensors} tensors stand under {stack}, others of the same layers under {most}"),
                )
                .instead(*most, *stack)
                .help("rename the tensors of the smaller family");
        }
    }
}

fn without_wrappers(stack: &str) -> &str {
    let mut rest = stack;
    while let Some((word, behind)) = rest.split_once('.')
        && WRAPPERS.contains(&word)
    {
        rest = behind;
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrappers_are_taken_off() {
        assert_eq!(without_wrappers("model.language_model.layers"), "layers");
        assert_eq!(without_wrappers("layers"), "layers");
        assert_eq!(without_wrappers("model.visual.blocks"), "visual.blocks");
        assert_eq!(without_wrappers("model"), "model");
    }
}
