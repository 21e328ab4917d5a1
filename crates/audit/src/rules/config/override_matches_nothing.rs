//! QC014: a rule for single modules names none.

use std::cell::LazyCell;
use std::collections::BTreeSet;

use safequant_schemes::{Pattern, Settings};
use serde_json::{Map, Value};

use crate::ignore::{MAX_TRIES, is_component_run, method_of, spellings};
use crate::{Check, Findings, Place, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "QC014",
    name: "override-matches-nothing",
    severity: Severity::Warning,
    since: "0.1.0",
    summary: "a rule for single modules names no module of the checkpoint",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
Every rule that gives single modules other bits, group sizes or algorithms names a module: the patterns of GPTQModel's `dynamic`, the
entries of MLX, and ModelOpt's `quantized_layers`.

## Why it matters
The rule was meant for a module that is called otherwise, so that this one has the global values in every reader:
`size mismatch for ...down_proj.scales`. Or the module was lost.

## What to do
Write the name as the checkpoint has it, or remove the rule.

## References
- vllm-project/vllm#48508, intel/auto-round#1759, ModelCloud/GPTQModel#1788
";

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    let modules = LazyCell::new(|| {
        let names = subject.modules().map(|(name, _)| name.module);
        names.collect::<BTreeSet<&str>>()
    });
    for settings in &subject.settings {
        let rules = rules(settings);
        if rules.is_empty() || rules.len().saturating_mul(modules.len()) > MAX_TRIES {
            continue;
        }
        for rule in rules.iter().filter(|rule| !rule.names_any(&modules)) {
            let file = settings.place.split(':').next().unwrap_or_default();
            findings
                .add(
                    Place::file(file),
                    format!(
                        "{}: the rule for `{}` names no module",
                        settings.place,
                        rule.text()
                    ),
                )
                .instead("a module of the checkpoint", rule.text())
                .help("write the name as the checkpoint has it, or remove the rule");
        }
    }
}

/// Whom a rule is for.
enum Named<'a> {
    /// Modules that match from the start of their name.
    Matching(&'a str, Pattern),
    /// A module, or a block of them.
    Module(&'a str),
}

impl Named<'_> {
    fn text(&self) -> &str {
        match self {
            Named::Matching(text, _) | Named::Module(text) => text,
        }
    }

    fn names_any(&self, modules: &BTreeSet<&str>) -> bool {
        match self {
            Named::Matching(_, pattern) => modules
                .iter()
                .any(|module| pattern.is_match(module).unwrap_or(true)),
            Named::Module(name) => {
                let spelled = spellings(name);
                let is_known = spelled.iter().any(|name| modules.contains(name.as_str()));
                is_known || modules.iter().any(|module| is_component_run(module, name))
            }
        }
    }
}

fn rules(settings: &Settings) -> Vec<Named<'_>> {
    let mut rules = Vec::new();
    let object =
        |map: &'_ Map<String, Value>, key: &str| map.get(key).is_some_and(Value::is_object);
    if let Some(Value::Object(dynamic)) = settings.map.get("dynamic") {
        for key in dynamic.keys().filter(|key| !key.starts_with("-:")) {
            let text = key.strip_prefix("+:").unwrap_or(key);
            rules.extend(Pattern::regex(text).ok().map(|p| Named::Matching(text, p)));
        }
    }
    let nested = settings.map.get("quantization").and_then(Value::as_object);
    let own = nested.unwrap_or(&settings.map);
    if let Some(Value::Object(layers)) = own.get("quantized_layers") {
        rules.extend(layers.keys().map(|key| Named::Module(key)));
    }
    if method_of(settings) == "mlx" {
        let keys = settings.map.keys();
        let of_modules = keys.filter(|key| key.contains('.') && object(&settings.map, key));
        rules.extend(of_modules.map(|key| Named::Module(key)));
    }
    rules
}
