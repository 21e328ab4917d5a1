//! QC060: scales of the cache of keys and values, and the configuration that asks for them.

use serde_json::Value;

use crate::{Check, Findings, Place, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "QC060",
    name: "cache-scales",
    severity: Severity::Warning,
    since: "0.1.0",
    summary: "the configuration asks for scales of a cache that are not stored, or does not ask for those that are",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
Where `kv_cache_scheme` of compressed-tensors asks for static scales of keys and values, some are stored; where scales are stored, a
configuration asks for them (`kv_cache_scheme`, `kv_cache_quant_algo`). ModelOpt writes no scales where all of them are 1.

## Why it matters
Runtimes fall back to 1.0 with a line in the log: `Using KV cache scaling factor 1.0 for fp8_e4m3. If this is unintended, verify that
k/v_scale scaling factors are properly set in the checkpoint.` Scales that nobody asks for are dropped without one.

## What to do
Quantize the cache again, or correct the configuration.

## References
- vllm-project/vllm#54623, vllm-project/vllm#46264, sgl-project/sglang#39942, sgl-project/sglang#1559
";

/// Endings of such scales.
const SCALES: [&str; 6] = [
    ".k_scale",
    ".v_scale",
    ".kv_scale",
    ".k_proj.output_scale",
    ".v_proj.output_scale",
    ".k_cache.scale",
];

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    let mut tensors = subject.headers.tensors();
    let first = tensors.find(|info| SCALES.iter().any(|ending| info.name.ends_with(ending)));
    let schemes: Vec<(String, &Value)> = schemes(subject);
    match first {
        None => {
            let needs = |scheme: &&(String, &Value)| {
                scheme.1.get("dynamic").and_then(Value::as_bool) == Some(false)
            };
            let place = schemes
                .iter()
                .find(needs)
                .filter(|(place, _)| !place.starts_with("hf_"));
            if let Some((place, scheme)) = place
                && is_compressed(subject)
            {
                let file = place.split(':').next().unwrap_or_default();
                let message = format!("{place} asks for scales of the cache ({})", summary(scheme));
                findings
                    .add(Place::file(file), message)
                    .instead("k_scale and v_scale for each layer", "none")
                    .help("quantize the cache again, or remove the scheme");
            }
        }
        Some(info) if schemes.is_empty() && !subject.settings.is_empty() => {
            findings
                .add(
                    Place::default().tensor(info.name.as_str()),
                    format!(
                        "{} is stored, but no configuration asks for scales of a cache",
                        info.name
                    ),
                )
                .instead("kv_cache_scheme, or no such scales", "scales and no scheme")
                .help("add the scheme to the configuration");
        }
        Some(_) => {}
    }
}

/// What documents say of the cache, and where.
fn schemes<'a>(subject: &'a Subject<'_>) -> Vec<(String, &'a Value)> {
    let mut found = Vec::new();
    for settings in &subject.settings {
        let nested = settings.map.get("quantization").and_then(Value::as_object);
        for map in std::iter::once(&settings.map).chain(nested) {
            for key in ["kv_cache_scheme", "kv_cache_quant_algo"] {
                let value = map.get(key).filter(|value| !value.is_null());
                found.extend(value.map(|value| (format!("{}.{key}", settings.place), value)));
            }
        }
    }
    found
}

fn is_compressed(subject: &Subject<'_>) -> bool {
    let mut settings = subject.settings.iter();
    settings.any(|settings| crate::ignore::method_of(settings) == "compressed-tensors")
}

fn summary(scheme: &Value) -> String {
    let bits = scheme.get("num_bits").and_then(Value::as_u64).unwrap_or(8);
    let kind = scheme
        .get("type")
        .and_then(Value::as_str)
        .unwrap_or("float");
    format!("{kind} of {bits} bits, static")
}
