//! PV003: neither a license nor a model card lies beside the weights.

use safequant_container::CheckpointKind;

use crate::{Check, Findings, Place, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "PV003",
    name: "license-missing",
    severity: Severity::Note,
    since: "0.1.0",
    summary: "neither a license nor a model card lies beside the weights",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
A directory that has other files beside the weights has a license or a model card among them: `LICENSE`, `COPYING`, `NOTICE`, `USE_POLICY`
or `README.md`, in any spelling.

## Why it matters
A quantized model is a derived work. Most licenses of models ask that their text goes with it, and nobody can tell from the tensors which
one it was: the Hub shows no license, and a review stops with `license: unknown`. Quantizers write weights and documents only, so that both
files stay behind.

## What to do
Copy `LICENSE`, `NOTICE` and `README.md` of the base model, and write into the latter what was changed. Our own writing verbs carry all files along.

## References
- huggingface/hub-docs, `repositories-licenses.md`
";

/// How the names begin that will do.
const BEGINNINGS: [&str; 8] = [
    "license",
    "licence",
    "copying",
    "notice",
    "use_policy",
    "readme",
    "model_card",
    "modelcard",
];

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    let sidecars = subject.checkpoint.sidecars();
    let is_directory = match subject.checkpoint.kind() {
        CheckpointKind::Directory | CheckpointKind::Index => true,
        CheckpointKind::File => false,
    };
    if !is_directory || sidecars.is_empty() {
        return;
    }
    let will_do = |name: &str| {
        let last = name.rsplit('/').next().unwrap_or(name);
        let lower = last.to_ascii_lowercase();
        BEGINNINGS.iter().any(|begin| lower.starts_with(begin))
    };
    if !sidecars.iter().any(|sidecar| will_do(&sidecar.name)) {
        findings
            .add(
                Place::default(),
                "there is neither a license nor a model card",
            )
            .instead("LICENSE or README.md", "none of them")
            .help("copy both from the base model, and say there what was changed");
    }
}
