//! QC013: readers of an ignore list disagree in what it names.

use std::collections::BTreeSet;

use crate::ignore::{Entry, IgnoreList, MAX_TRIES, Reader, lists};
use crate::inventory::dense_matrices;
use crate::{Check, Findings, ModuleName, Place, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "QC013",
    name: "pattern-semantics-differ",
    severity: Severity::Warning,
    since: "0.1.0",
    summary: "readers of an ignore list disagree in which modules it names",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
An entry of an ignore list means the same modules to all readers of the method. vLLM compares whole names (fp8), components
(bitsandbytes), pieces of names (AWQ) or globs and pieces (ModelOpt); SGLang takes whole components (fp8); transformers takes an entry for
a regular expression from the start of the name, or for its end. An entry is reported where a reader takes a quantized module for a dense
one, or a dense matrix of a block for a quantized one.

## Why it matters
The checkpoint loads in one runtime and not in the other. `gate` in a list for AWQ means the router to transformers, and `gate_proj` as
well to vLLM: `KeyError: 'layers.0.mlp.gate_up_proj.qweight'`.

## What to do
Write whole names: `model.layers.0.mlp.gate`, one for each layer.

## References
- sgl-project/sglang#23467, vllm-project/vllm#54547, sgl-project/sglang#24929, intel/auto-round#586
";

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    let mut lists = lists(subject);
    lists.retain(|list| list.readers.len() > 1);
    if lists.is_empty() {
        return;
    }
    let quantized: BTreeSet<&str> = subject
        .model
        .quantized
        .iter()
        .map(|tensor| tensor.module.as_str())
        .collect();
    let dense: BTreeSet<&str> = dense_matrices(subject)
        .map(|(module, _)| module)
        .filter(|module| ModuleName::parse(module).part.is_block_matrix())
        .collect();
    for list in &lists {
        let n_names = quantized.len() + dense.len();
        if list.entries.len().saturating_mul(n_names) > MAX_TRIES {
            continue;
        }
        check_list(list, &quantized, &dense, findings);
    }
}

fn check_list(
    list: &IgnoreList,
    quantized: &BTreeSet<&str>,
    dense: &BTreeSet<&str>,
    findings: &mut Findings<'_>,
) {
    for entry in &list.entries {
        let differs = |module: &&&str| !is_agreed(list, entry, module);
        // Another entry may say what this one leaves open.
        let is_open = |module: &&&str| list.entry_for_all(module).is_none();
        let first = quantized.iter().find(differs);
        let first = first.or_else(|| dense.iter().filter(is_open).find(differs));
        if let Some(module) = first {
            report(list, entry, module, findings);
        }
    }
}

/// Whether all readers answer alike.
fn is_agreed(list: &IgnoreList, entry: &Entry, module: &str) -> bool {
    let mut answers = list
        .readers
        .iter()
        .map(|r| entry.matches(r.semantics, module));
    let first = answers.next();
    answers.all(|answer| Some(answer) == first)
}

fn report(list: &IgnoreList, entry: &Entry, module: &str, findings: &mut Findings<'_>) {
    let (dense, quantized): (Vec<&Reader>, Vec<&Reader>) = list
        .readers
        .iter()
        .partition(|reader| entry.matches(reader.semantics, module));
    let names = |readers: &[&Reader]| {
        let all: Vec<&str> = readers.iter().map(|reader| reader.name).collect();
        all.join(" and ")
    };
    let mut place = Place::module(module);
    place.file = Some(list.file().to_owned());
    findings
        .add(
            place,
            format!("{}: readers disagree about `{}`", list.path(), entry.text),
        )
        .instead(
            "an entry that means one thing",
            format!(
                "dense to {}, quantized to {}",
                names(&dense),
                names(&quantized)
            ),
        )
        .help("list modules by their whole names");
}
