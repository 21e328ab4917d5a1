//! QC040: `tie_word_embeddings` says something else than the tensors.

use serde_json::Value;

use crate::inventory::{Stored, is_partial};
use crate::{Check, Findings, ModuleName, Part, Place, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "QC040",
    name: "tie-flag",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "`tie_word_embeddings` says something else than the tensors",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
A language model whose `config.json` says `tie_word_embeddings: false` stores an output matrix. One that says `true` stores none, or the
embeddings once more: a second matrix of another shape or dtype, or a quantized one, is reported. Whether a matrix of the same shape holds
the same bytes is not looked at yet: that is a note.

## Why it matters
Flag, tensor and bytes are three facts, and runtimes go by the flag: `KeyError: 'lm_head.weight'`,
`Received 1 parameters not in model: lm_head.weight`, `Missing lm_head.weight`, or an output matrix that is loaded and then overwritten
by the embeddings.

## What to do
Set the flag to what is stored: `safequant repair SRC -o DST --rule QC040`.

## References
- vllm-project/vllm#6758, vllm-project/vllm#45544, ml-explore/mlx-lm#1298, sgl-project/sglang#2935, huggingface/transformers#46456,
  vllm-project/llm-compressor#1820
";

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    let (Some(tied), Some(trunk)) = (flag(subject), &subject.trunk) else {
        return;
    };
    let mut heads = subject
        .stored
        .iter()
        .filter(|tensor| is_head(tensor.module));
    match (tied, heads.next()) {
        (false, None) => missing(subject, findings),
        (true, Some(head)) => second(subject, *head, trunk.embedding, findings),
        (false, Some(_)) | (true, None) => {}
    }
}

/// What the configuration says, where it says one thing.
fn flag(subject: &Subject<'_>) -> Option<bool> {
    let key = "tie_word_embeddings";
    let top = subject.config.get(key).and_then(Value::as_bool);
    let text = subject.config.get("text_config").and_then(|c| c.get(key));
    match (top, text.and_then(Value::as_bool)) {
        (Some(a), Some(b)) if a != b => None,
        (Some(flag), _) | (None, Some(flag)) => Some(flag),
        (None, None) => None,
    }
}

fn is_head(name: ModuleName<'_>) -> bool {
    let last = || name.module.rsplit('.').next().unwrap_or_default();
    let is_output = || matches!(last(), "output" | "output_layer" | "head" | "ff_out");
    name.layer.is_none() && (name.part == Part::Head || is_output())
}

fn missing(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    let classes = subject
        .config
        .get("architectures")
        .and_then(Value::as_array);
    let generates = classes.into_iter().flatten().any(|class| {
        let class = class.as_str().unwrap_or_default();
        class.ends_with("ForCausalLM") || class.ends_with("LMHeadModel")
    });
    if generates && !is_partial(subject) {
        findings
            .add(
                Place::file("config.json"),
                "tie_word_embeddings is false, but no output matrix (lm_head) is stored",
            )
            .instead("lm_head.weight", "nothing")
            .help("set tie_word_embeddings to true if the model shares its embeddings");
    }
}

fn second(subject: &Subject<'_>, head: Stored<'_>, embedding: &str, findings: &mut Findings<'_>) {
    let (head, module) = (head.info, head.module.module);
    let place = Place::module(module).tensor(head.name.as_str());
    let embedded = subject.headers.tensor(&format!("{embedding}.weight"));
    let is_same = embedded.is_some_and(|e| e.shape == head.shape && e.dtype == head.dtype);
    let is_quantized = subject.model.module(module).is_some();
    let finding = findings.add(
        place,
        format!(
            "tie_word_embeddings is true, but {} is stored as well",
            head.name
        ),
    );
    if is_same {
        finding.severity = Severity::Note;
    }
    let found = match (is_quantized, is_same) {
        (true, true) => "a quantized matrix like the embeddings",
        (false, true) => "a matrix of the same shape and dtype as the embeddings",
        (true, false) => "a quantized matrix that is not the embeddings",
        (false, false) => "a matrix of another shape or dtype",
    };
    finding
        .instead("no output matrix, or the embeddings once more", found)
        .help("set tie_word_embeddings to false, or remove the matrix");
}
