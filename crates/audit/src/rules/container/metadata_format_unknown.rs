//! ST021: `__metadata__` of a transformers checkpoint has no format that transformers knows.

use crate::{Check, Findings, Place, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "ST021",
    name: "metadata-format-unknown",
    severity: Severity::Warning,
    since: "0.1.0",
    summary: "`__metadata__` of a transformers checkpoint has no format that transformers knows",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
Where a `config.json` of transformers lies beside the weights, `__metadata__` of every safetensors file has `format`, and it is `pt`, `tf`,
`flax` or `mlx`. A file without any `__metadata__` is a note only.

## Why it matters
transformers 4 refuses such a file: `OSError: The safetensors archive passed at ... does not contain the valid metadata. Make sure you save
your model with the save_pretrained method.` Some of its versions fail where there is no metadata at all, with `AttributeError: 'NoneType'
object has no attribute 'get'`; others say `does not contain metadata. ... Defaulting to 'pt' metadata.` Version 5 no longer looks. The key
is lost whenever somebody loads the tensors and saves them again without `metadata={\"format\": \"pt\"}`.

## What to do
Write the files anew: `safequant reshard SRC -o DST` sets `format`.

## References
- safetensors/safetensors#549, ml-explore/mlx#743, huggingface/accelerate#1151, meta-pytorch/torchtune#1126
";

/// What transformers 4 takes.
const FORMATS: [&str; 4] = ["pt", "tf", "flax", "mlx"];

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    let is_transformers = ["model_type", "architectures"]
        .iter()
        .any(|key| subject.config.contains_key(*key));
    if !is_transformers {
        return;
    }
    for shard in subject.checkpoint.shards() {
        let format = shard.header.metadata_value("format");
        let is_known = format.is_some_and(|format| FORMATS.contains(&format));
        if is_known || shard.header.gguf.is_some() {
            continue;
        }
        let has_metadata = shard.header.metadata.is_some();
        let (message, found) = match (has_metadata, format) {
            (true, Some(format)) => ("`format` is none that transformers knows", format),
            (true, None) => ("`__metadata__` has no `format`", "no such key"),
            (false, _) => ("there is no `__metadata__`", "none"),
        };
        let finding = findings.add(Place::file(&*shard.name), message);
        if !has_metadata {
            finding.severity = Severity::Note;
        }
        finding
            .instead("`format` in `__metadata__`, `pt` for example", found)
            .help("write the file anew with `safequant reshard`, which sets `format`");
    }
}
