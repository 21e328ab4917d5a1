//! Reports for machines: JSON of our own, SARIF 2.1.0, annotations of `GitHub`'s workflows, `JUnit`; and one HTML page.
//!
//! What people read on a terminal is the command line's business. Names are hostile input here too: every format escapes what
//! it must, and JSON keeps them lossless.

mod github;
mod html;
mod json;
mod junit;
mod sarif;
mod wanted;

pub use github::github;
pub use html::html;
pub use json::json;
pub use junit::junit;
pub use sarif::sarif;
pub use wanted::tp_plan;

use std::fmt::Write as _;

use crate::{Finding, Losses, Place, Report};

/// What a report says about itself.
#[derive(Clone, Debug, Default)]
pub struct About {
    /// What was audited, as the user gave it.
    pub source: String,
    /// The version of the program.
    pub version: String,
    /// Findings that a baseline already knew, which are not in the report.
    pub known: usize,
    /// What was lost against a reference, where there is one.
    pub losses: Option<Losses>,
}

/// A place in one line: `model.safetensors: model.layers.0.mlp.up_proj: weight_scale [3, 4]`.
pub fn place_text(place: &Place) -> String {
    let tensor = match (&place.module, &place.tensor) {
        // The module's name stands before it already.
        (Some(module), Some(tensor)) => tensor
            .strip_prefix(module.as_str())
            .and_then(|rest| rest.strip_prefix('.'))
            .or(Some(tensor)),
        (_, tensor) => tensor.as_deref(),
    };
    let mut text = [place.file.as_deref(), place.module.as_deref(), tensor]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join(": ");
    if let Some([row, column]) = place.entry {
        let _ = write!(text, " [{row}, {column}]");
    }
    text
}

/// A finding in one paragraph: message, expected and found, help.
fn sentence(finding: &Finding) -> String {
    let mut text = finding.message.clone();
    if !finding.expected.is_empty() || !finding.found.is_empty() {
        let _ = write!(
            text,
            "; expected {}, found {}",
            finding.expected, finding.found
        );
    }
    if !finding.help.is_empty() {
        let _ = write!(text, ". {}", finding.help);
    }
    text
}

/// Errors that no rule claims, as code and text.
fn problems(report: &Report<'_>) -> Vec<(&'static str, String)> {
    let problems = report.unclaimed();
    problems
        .map(|error| (error.code(), error.to_string()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_said_once() {
        let place = Place::module("a.b")
            .tensor("a.b.weight_scale")
            .entry([3, 4]);
        assert_eq!(place_text(&place), "a.b: weight_scale [3, 4]");
        assert_eq!(place_text(&Place::file("x").tensor("t")), "x: t");
        assert_eq!(place_text(&Place::default()), "");
    }
}
