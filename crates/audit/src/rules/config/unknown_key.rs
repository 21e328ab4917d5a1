//! QC002: a key that readers of the schema refuse.

use safequant_schemes::Settings;
use serde_json::{Map, Value};

use crate::ignore::method_of;
use crate::{Check, Findings, Place, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "QC002",
    name: "unknown-key",
    severity: Severity::Warning,
    since: "0.1.0",
    summary: "a key that readers of compressed-tensors refuse",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
Schemes and their arguments in a configuration of compressed-tensors have no keys but those of its schema (version 0.19), which forbids
others. Other formats ignore what they do not know, and so does this rule.

## Why it matters
vLLM and transformers parse the configuration with that schema and stop: `scale_dtype Extra inputs are not permitted`. Keys that were
added later stop older readers in the same way.

## What to do
Remove the key, or load the checkpoint with a reader that is new enough.

## References
- vllm-project/compressed-tensors#599, vllm-project/llm-compressor#2234, vllm-project/vllm#25706
";

/// Of a scheme.
const SCHEME: &[&str] = &[
    "targets",
    "weights",
    "input_activations",
    "output_activations",
    "format",
];
/// Of `QuantizationArgs`.
const ARGS: &[&str] = &[
    "num_bits",
    "type",
    "symmetric",
    "strategy",
    "group_size",
    "block_structure",
    "dynamic",
    "actorder",
    "scale_dtype",
    "zp_dtype",
    "observer",
    "observer_kwargs",
];
/// Keys of a scheme whose values are arguments.
const OF_ARGS: [&str; 3] = ["weights", "input_activations", "output_activations"];

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    for settings in &subject.settings {
        // ModelOpt's settings look alike, and it has no such schema.
        if method_of(settings) == "compressed-tensors" {
            check_settings(settings, findings);
        }
    }
}

fn check_settings(settings: &Settings, findings: &mut Findings<'_>) {
    let object = |map: &'_ Map<String, Value>, key: &str| map.get(key)?.as_object().cloned();
    let place = &settings.place;
    if let Some(args) = object(&settings.map, "kv_cache_scheme") {
        check_keys(&args, ARGS, &format!("{place}.kv_cache_scheme"), findings);
    }
    let groups = object(&settings.map, "config_groups").unwrap_or_default();
    for (name, group) in &groups {
        let Some(scheme) = group.as_object() else {
            continue;
        };
        let place = format!("{place}.config_groups.{name}");
        check_keys(scheme, SCHEME, &place, findings);
        for key in OF_ARGS {
            if let Some(args) = object(scheme, key) {
                check_keys(&args, ARGS, &format!("{place}.{key}"), findings);
            }
        }
    }
}

fn check_keys(map: &Map<String, Value>, known: &[&str], place: &str, findings: &mut Findings<'_>) {
    let file = place.split(':').next().unwrap_or(place);
    for key in map.keys().filter(|key| !known.contains(&key.as_str())) {
        findings
            .add(
                Place::file(file),
                format!("{place}.{key} is no key of the schema"),
            )
            .instead(known.join(", "), key)
            .help("remove the key, or use a reader whose schema has it");
    }
}
