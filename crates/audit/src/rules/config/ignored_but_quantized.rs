//! QC010: a module that the configuration leaves dense is quantized.

use std::collections::BTreeSet;

use safequant_schemes::Error;

use crate::ignore::{MAX_TRIES, lists};
use crate::{Check, Findings, Place, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "QC010",
    name: "ignored-but-quantized",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "a module that the configuration leaves dense is quantized",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
No quantized module is on the list of those that the configuration leaves dense (`ignore`, `modules_to_not_convert`,
`exclude_modules`, `llm_int8_skip_modules`, the `-:` rules of `dynamic`), as all readers of the method understand the list. Where they
differ, QC013 reports it.

## Why it matters
Runtimes build a dense layer and find the tensors of a quantized one: `ValueError: There is no module or parameter named
'...weight_packed'`, `KeyError: layers.0.mlp.gate.qweight`. Those that skip what they do not know leave the layer empty.

## What to do
Take the module off the list: `safequant repair SRC -o DST --rule QC010` writes the list that the tensors say.

## References
- vllm-project/vllm#46569, vllm-project/vllm#54547, vllm-project/llm-compressor#1652, vllm-project/compressed-tensors#712,
  casper-hansen/AutoAWQ#589
";

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    let modules = quantized(subject);
    for list in lists(subject) {
        if list.entries.len().saturating_mul(modules.len()) > MAX_TRIES {
            continue;
        }
        for module in &modules {
            if let Some(entry) = list.entry_for_all(module) {
                findings
                    .add(
                        Place::module(*module),
                        format!("{} leaves it dense, by `{}`", list.path(), entry.text),
                    )
                    .instead("a dense weight", "a quantized one")
                    .help("take the module off the list");
            }
        }
    }
}

/// Modules that are quantized, and those whose tensors contradict the configuration.
fn quantized<'a>(subject: &'a Subject<'_>) -> BTreeSet<&'a str> {
    let contradicted = subject.problems.iter().filter_map(|error| {
        let Error::Contradiction { module, .. } = error else {
            return None;
        };
        Some(module.as_str())
    });
    let bound = subject.model.quantized.iter().map(|t| t.module.as_str());
    bound.chain(contradicted).collect()
}
