//! QC016: GPTQ's `lm_head` says something else than the tensors.

use std::cell::LazyCell;

use serde_json::Value;

use crate::ignore::method_of;
use crate::{Check, Findings, ModuleName, Part, Place, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "QC016",
    name: "lm-head-flag",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "the configuration's `lm_head` says something else than the tensors",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
In a configuration of GPTQModel, AutoGPTQ or AutoAWQ, `lm_head` is true if the output matrix is quantized, and false if not.

## Why it matters
Runtimes build the output matrix by this flag alone: `KeyError: 'lm_head.qweight'`, `KeyError: 'lm_head.weight'`,
`ValueError: There is no module or parameter named 'lm_head.input_scale'`.

## What to do
Set `lm_head` to what the tensors are, in all documents.

## References
- vllm-project/vllm#45132, sgl-project/sglang#2935, vllm-project/llm-compressor#1820
";

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    let head = LazyCell::new(|| {
        let mut quantized = subject.model.quantized.iter();
        quantized.find(|tensor| ModuleName::parse(&tensor.module).part == Part::Head)
    });
    let is_dense = subject
        .plain
        .iter()
        .any(|info| info.name == "lm_head.weight");
    for settings in &subject.settings {
        let is_ours = matches!(method_of(settings).as_str(), "gptq" | "awq" | "fp8");
        let flag = settings.map.get("lm_head").and_then(Value::as_bool);
        let (Some(flag), true) = (flag, is_ours) else {
            continue;
        };
        let found = match *head {
            Some(tensor) if !flag => format!("{} is quantized", tensor.module),
            None if flag && is_dense => "lm_head.weight is dense".to_owned(),
            Some(_) | None => continue,
        };
        let file = settings.place.split(':').next().unwrap_or_default();
        findings
            .add(
                Place::file(file),
                format!("{}.lm_head is {flag}, but {found}", settings.place),
            )
            .instead(format!("\"lm_head\": {}", !flag), flag.to_string())
            .help("set lm_head to what the tensors are");
    }
}
