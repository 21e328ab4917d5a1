//! One HTML page, complete in itself: no other file, no request, light and dark.
//!
//! The page is a constant text around a block of JSON, which its script reads and puts on the page as text nodes only: no name of
//! a tensor ever becomes markup. In the JSON `<`, `>`, `&` and the two line separators of JavaScript are written as escapes, so that
//! no name can end the block.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use safequant_schemes::{Model, QuantizedTensor};
use serde_json::{Value, json};

use super::{About, json as record};
use crate::measure::{FloatStatistics, WeightStatistics};
use crate::{Finding, Loss, ModuleName, Report, Severity, rule};

const STYLE: &str = include_str!("page/style.css");
const SCRIPT: &str = include_str!("page/script.js");

/// Modules whose histograms are in the page: those with findings first, then those that lost most, then by name. More would make a
/// page that no browser likes.
const MAX_HISTOGRAMS: usize = 2000;

/// Findings in the page, the gravest first.
const MAX_FINDINGS: usize = 5000;

/// The page.
pub fn html(report: &Report<'_>, about: &About) -> String {
    let title = format!("safequant audit: {}", about.source);
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; \
         script-src 'unsafe-inline'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{}</title>\n<style>\n{STYLE}</style>\n\
         </head>\n<body>\n<main id=\"page\"></main>\n<noscript>This report is drawn by its own script, which is not allowed to \
         run here. <code>safequant audit</code> without <code>--format</code> prints the same as text.</noscript>\n\
         <script type=\"application/json\" id=\"data\">{}</script>\n<script>\n{SCRIPT}</script>\n</body>\n</html>\n",
        escape_text(&title),
        escape_json(&data(report, about))
    )
}

/// Text of an element.
fn escape_text(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

/// JSON inside a script element.
fn escape_json(value: &Value) -> String {
    let mut text = String::new();
    // All of these can stand inside strings only.
    for c in value.to_string().chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                let _ = write!(text, "\\u{:04x}", u32::from(c));
            }
            c => text.push(c),
        }
    }
    text
}

/// Everything that the script draws.
fn data(report: &Report<'_>, about: &About) -> Value {
    let losses: BTreeMap<&str, &Loss> = about
        .losses
        .iter()
        .flat_map(|losses| &losses.modules)
        .map(|loss| (loss.module.as_str(), loss))
        .collect();
    let mut findings: Vec<&Finding> = report.findings.iter().collect();
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    let mut record = record::json(report, about);
    if let Some(record) = record.as_object_mut() {
        record.remove("loss");
    }
    record["findings"] = findings
        .iter()
        .take(MAX_FINDINGS)
        .map(|f| record::finding(f))
        .collect();
    record["findings_left_out"] = findings.len().saturating_sub(MAX_FINDINGS).into();
    record["rules"] = rules(&findings);
    record["schemes"] = schemes(report);
    record["modules"] = modules(report, &losses);
    record["has_reference"] = about.losses.is_some().into();
    record["max_histograms"] = MAX_HISTOGRAMS.into();
    record["bytes"] = report
        .subject
        .checkpoint
        .tensors()
        .map(|t| t.info.len_bytes())
        .sum::<u64>()
        .into();
    record
}

/// The rules that found something: name, summary, what they say about themselves.
fn rules(findings: &[&Finding]) -> Value {
    let mut rules = serde_json::Map::new();
    for finding in findings {
        if let (false, Some(rule)) = (rules.contains_key(finding.rule), rule(finding.rule)) {
            let about = json!({"name": rule.name, "summary": rule.summary, "doc": rule.doc});
            rules.insert(rule.id.to_owned(), about);
        }
    }
    rules.into()
}

/// Bytes and weights by scheme, dense tensors by dtype; the largest first.
fn schemes(report: &Report<'_>) -> Value {
    let Model {
        quantized,
        plain,
        orphans,
        ..
    } = &report.subject.model;
    let mut sums: BTreeMap<(String, String), (u64, u64, u64)> = BTreeMap::new();
    let mut add = |key: (String, String), weights: u64, bytes: u64| {
        let sum = sums.entry(key).or_default();
        *sum = (
            sum.0 + 1,
            sum.1.saturating_add(weights),
            sum.2.saturating_add(bytes),
        );
    };
    for tensor in quantized {
        let key = (tensor.scheme.to_string(), tensor.convention.to_owned());
        add(key, weights_of(tensor), bytes_of(report, tensor));
    }
    for name in plain.iter().chain(orphans) {
        if let Some(tensor) = report.subject.headers.tensor(name) {
            let key = (format!("{} as it is", tensor.dtype), String::new());
            add(key, tensor.n_elements(), tensor.len_bytes());
        }
    }
    let mut sums: Vec<_> = sums.into_iter().collect();
    sums.sort_by_key(|(_, (_, _, bytes))| std::cmp::Reverse(*bytes));
    let record = |((scheme, convention), (count, weights, bytes))| json!({"scheme": scheme, "convention": convention, "count": count, "weights": weights, "bytes": bytes});
    sums.into_iter().map(record).collect()
}

fn weights_of(tensor: &QuantizedTensor) -> u64 {
    tensor.shape.iter().fold(1, |n, &d| n.saturating_mul(d))
}

/// Bytes of all parts.
fn bytes_of(report: &Report<'_>, tensor: &QuantizedTensor) -> u64 {
    let parts = tensor.parts.iter();
    let lengths =
        parts.filter_map(|part| Some(report.subject.headers.tensor(&part.name)?.len_bytes()));
    lengths.fold(0, u64::saturating_add)
}

/// One record for each quantized module.
fn modules(report: &Report<'_>, losses: &BTreeMap<&str, &Loss>) -> Value {
    let mut gravest: BTreeMap<&str, Severity> = BTreeMap::new();
    for finding in &report.findings {
        if let Some(module) = &finding.place.module {
            let known = gravest.entry(module).or_insert(finding.severity);
            *known = finding.severity.max(*known);
        }
    }
    let mut order: Vec<&QuantizedTensor> = report.subject.model.quantized.iter().collect();
    order.sort_by(|a, b| {
        let severity = |t: &QuantizedTensor| gravest.get(t.module.as_str()).copied();
        let sqnr = |t: &QuantizedTensor| {
            losses
                .get(t.module.as_str())
                .map_or(f64::INFINITY, |l| l.sqnr_db())
        };
        let by_severity = severity(b).cmp(&severity(a));
        by_severity
            .then(sqnr(a).total_cmp(&sqnr(b)))
            .then_with(|| a.module.cmp(&b.module))
    });
    let record = |(at, tensor): (usize, &QuantizedTensor)| {
        let name = ModuleName::parse(&tensor.module);
        let statistics = report
            .measured
            .get(&tensor.module)
            .filter(|_| at < MAX_HISTOGRAMS);
        json!({
            "module": tensor.module,
            "layer": name.layer,
            "expert": name.expert,
            "part": name.part.name(),
            "scheme": tensor.scheme.to_string(),
            "convention": tensor.convention,
            "shape": tensor.shape,
            "weights": weights_of(tensor),
            "bytes": bytes_of(report, tensor),
            "severity": gravest.get(tensor.module.as_str()).map(|severity| severity.name()),
            "loss": losses.get(tensor.module.as_str()).map(|loss| record::loss(loss)),
            "scales": statistics.map(|s| floats(&s.scales.scales)),
            "codes": statistics.and_then(codes),
        })
    };
    order.into_iter().enumerate().map(record).collect()
}

/// Scales by power of two.
fn floats(floats: &FloatStatistics) -> Value {
    let exponents = (-127_i32..).zip(floats.exponents.iter());
    let used: Vec<Value> = exponents
        .filter(|(_, count)| **count > 0)
        .map(|(exponent, count)| json!([exponent, count]))
        .collect();
    json!({
        "n": floats.n,
        "smallest": floats.smallest,
        "largest": floats.largest,
        "zero": floats.zero.count,
        "nan": floats.nan.count,
        "exponents": used,
    })
}

/// How often each code occurs.
fn codes(statistics: &WeightStatistics) -> Option<Value> {
    let codes = statistics.codes.as_ref()?;
    let used = codes
        .histogram
        .iter()
        .enumerate()
        .filter(|(_, count)| **count > 0);
    Some(used.map(|(code, count)| json!([code, count])).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_ends_its_block() {
        let hostile = "</script><script>alert(1)</script><!--\u{2028}&";
        let text = escape_json(&json!({ hostile: hostile }));
        assert!(!text.contains(['<', '>', '&', '\u{2028}']));
        let back: Value = serde_json::from_str(&text).expect("still JSON");
        assert_eq!(back[hostile], hostile);
        assert_eq!(escape_text("<a & b>"), "&lt;a &amp; b&gt;");
    }

    #[test]
    fn the_page_asks_for_nothing_outside() {
        for text in [STYLE, SCRIPT] {
            for needle in [
                "http:",
                "https:",
                "@import",
                "url(",
                "innerHTML",
                "insertAdjacent",
                "document.write",
                "eval(",
            ] {
                let allowed = needle == "http:"
                    && text.matches(needle).count()
                        == text.matches("http://www.w3.org/2000/svg").count();
                assert!(allowed || !text.contains(needle), "{needle}");
            }
        }
    }
}
