//! RT012: the weights lie in files that the runtime asked for does not read.

use crate::profile::Topic;
use crate::{Check, Findings, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "RT012",
    name: "files-not-taken",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "the weights lie in files that the runtime asked for does not read",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
The weights lie in the kind of files (one, several with an index, GGUF) that the runtimes asked for read. Runs only for runtimes that are asked for; what each takes
stands in `crates/audit/profiles`, every line with its source.

## Why it matters
`No safetensors found in ...`, `Error no file named model.safetensors, or pytorch_model.bin, found in directory`, or shards that are silently left out
because no index names them.

## What to do
Write the files anew: `safequant reshard SRC -o DST` for an index, `safequant convert SRC -o DST --to gguf` for GGUF.

## References
- Blaizzy/mlx-vlm#1464, sgl-project/sglang#32279
";

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    super::report(subject, findings, Topic::Files);
}
