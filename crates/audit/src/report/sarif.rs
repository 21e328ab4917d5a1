//! SARIF 2.1.0 (<https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html>): what code scanning services read.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::{About, place_text, sentence};
use crate::{Finding, Report, Rule, Severity};

/// The whole report as one run.
pub fn sarif(report: &Report<'_>, about: &About) -> Value {
    let results = report.findings.iter();
    let results: Vec<Value> = results
        .map(|finding| result(report, about, finding))
        .collect();
    let notifications: Vec<Value> = super::problems(report)
        .into_iter()
        .map(|(code, message)| {
            json!({ "descriptor": { "id": code }, "level": "error", "message": { "text": message } })
        })
        .collect();
    json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": { "driver": {
                "name": "safequant",
                "semanticVersion": about.version,
                "rules": report.ran.iter().map(|rule| descriptor(rule)).collect::<Vec<_>>(),
            }},
            "invocations": [{
                "executionSuccessful": notifications.is_empty(),
                "toolExecutionNotifications": notifications,
            }],
            "results": results,
        }],
    })
}

fn descriptor(rule: &Rule) -> Value {
    json!({
        "id": rule.id,
        "name": rule.name,
        "shortDescription": { "text": rule.summary },
        "fullDescription": { "text": rule.summary },
        "help": { "text": rule.doc, "markdown": rule.doc },
        "defaultConfiguration": { "level": level(rule.severity) },
    })
}

fn result(report: &Report<'_>, about: &About, finding: &Finding) -> Value {
    let place = place_text(&finding.place);
    let index = report.ran.iter().position(|rule| rule.id == finding.rule);
    let file = finding.place.file.as_deref().unwrap_or(".");
    let mut location = json!({
        "physicalLocation": { "artifactLocation": { "uri": uri(&about.source, file) } },
    });
    let logical = finding
        .place
        .module
        .as_ref()
        .or(finding.place.tensor.as_ref());
    if let Some(name) = logical {
        location["logicalLocations"] = json!([{ "fullyQualifiedName": name, "kind": "element" }]);
    }
    let text = match place.as_str() {
        "" => sentence(finding),
        place => format!("{place}: {}", sentence(finding)),
    };
    let mut result = json!({
        "ruleId": finding.rule,
        "level": level(finding.severity),
        "message": { "text": text },
        "locations": [location],
        "partialFingerprints": { "place/v1": format!("{} {place}", finding.rule) },
    });
    if let Some(index) = index {
        result["ruleIndex"] = index.into();
    }
    result
}

/// A file of the checkpoint as a relative reference: what is no letter, digit or `-._~/` is percent-encoded.
fn uri(source: &str, file: &str) -> String {
    let path = match (source.ends_with(file), file) {
        (true, _) | (false, ".") => source.to_owned(),
        (false, file) => format!("{}/{file}", source.trim_end_matches('/')),
    };
    let mut uri = String::new();
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                uri.push(char::from(byte));
            }
            _ => {
                let _ = write!(uri, "%{byte:02X}");
            }
        }
    }
    uri
}

fn level(severity: Severity) -> &'static str {
    severity.name()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_encoded() {
        assert_eq!(
            uri("models/a b", "m.safetensors"),
            "models/a%20b/m.safetensors"
        );
        assert_eq!(
            uri("dir/m.safetensors", "m.safetensors"),
            "dir/m.safetensors"
        );
        assert_eq!(uri("dir/", "."), "dir/");
        assert_eq!(uri("d", "<é>"), "d/%3C%C3%A9%3E");
    }
}
