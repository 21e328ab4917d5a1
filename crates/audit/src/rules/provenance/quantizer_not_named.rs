//! PV004: nothing says which tool quantized the model.

use serde_json::{Map, Value};

use crate::{Check, Findings, Place, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "PV004",
    name: "quantizer-not-named",
    severity: Severity::Note,
    since: "0.1.0",
    summary: "nothing says which tool quantized the model",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
If there are quantized weights, something says what wrote them: `producer`, `meta.quantizer`, `autoround_version`, a `version` with a number
in the quantization settings, a key such as `quantized_by` or `producer` in `__metadata__` or GGUF metadata, or a `recipe.yaml`.

## Why it matters
Formats have changed under an unchanged name: zero points of GPTQ, the bit layout of `pack-quantized`, scales of FP8. Whoever meets garbage
(`!!!!`) later wants to know the tool and its version, and for most formats the tensors cannot tell. Many quantizers do not write it.

## What to do
Note tool and version in the model card, or add `\"producer\": {\"name\": ..., \"version\": ...}` to the quantization settings.

## References
- vllm-project/compressed-tensors, commit 66e631f6; AutoGPTQ/AutoGPTQ#640
";

/// Keys that name a tool wherever they stand.
const KEYS: [&str; 9] = [
    "quantizer",
    "quantized_by",
    "producer",
    "autoround_version",
    "auto_round_version",
    "quant_library",
    "created_by",
    "generator",
    "converter",
];

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    if subject.model.quantized.is_empty() {
        return;
    }
    let metadata = subject.headers.all_metadata();
    let mut keys = metadata.map(|(key, _)| key.rsplit('.').next().unwrap_or(key));
    let is_named = subject.settings.iter().any(|s| names_a_tool(&s.map))
        || keys.any(|key| KEYS.contains(&key))
        || subject.headers.gguf().is_some_and(|gguf| {
            gguf.get("general.quantized_by").is_some()
                || gguf.get("general.quantization_version").is_some()
        })
        || subject
            .checkpoint
            .sidecars()
            .iter()
            .any(|sidecar| sidecar.name == "recipe.yaml");
    if !is_named {
        findings
            .add(
                Place::default(),
                "nothing says which tool quantized the model",
            )
            .instead("a tool and its version", "none")
            .help("note tool and version in the model card");
    }
}

/// Settings name a tool by one of the keys, at the top or one level below, or by a version that is a number: AWQ's
/// `version` is a kernel.
fn names_a_tool(settings: &Map<String, Value>) -> bool {
    let is_number = |value: &Value| {
        let text = value.as_str();
        text.is_some_and(|text| {
            text.starts_with(|c: char| c.is_ascii_digit()) && text.contains('.')
        })
    };
    let has_key = |map: &Map<String, Value>| map.keys().any(|key| KEYS.contains(&key.as_str()));
    let below = settings.values().filter_map(Value::as_object);
    has_key(settings)
        || below.into_iter().any(has_key)
        || settings.get("version").is_some_and(is_number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tools_are_named_in_several_ways() {
        let names = |text: &str| {
            let value: Value = serde_json::from_str(text).unwrap();
            names_a_tool(value.as_object().unwrap())
        };
        assert!(names(r#"{"version":"0.19.0"}"#));
        assert!(names(r#"{"meta":{"quantizer":["gptqmodel:7.7.0"]}}"#));
        assert!(names(r#"{"producer":{"name":"modelopt"}}"#));
        assert!(!names(r#"{"quant_method":"awq","version":"gemm"}"#));
    }
}
