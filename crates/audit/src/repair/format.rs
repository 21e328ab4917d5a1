//! Single values of documents that the tensors decide: whether embeddings are tied, and which form of zero points GPTQ's are.

use std::collections::BTreeSet;

use safequant_container::TensorRef;
use safequant_schemes::{Code, QuantizedTensor};
use serde_json::Value;

use super::shards::have_equal_bytes;
use super::{DocumentAction, Work};
use crate::ignore::method_of;
use crate::{Finding, Severity};

const TIED: &str = "tie_word_embeddings";

/// Sets `tie_word_embeddings` to what is stored.
pub(super) fn tie_flag(work: &mut Work<'_>, findings: &[&Finding]) {
    for finding in findings {
        let Some(head) = &finding.place.tensor else {
            set_flag(
                work,
                true,
                "no output matrix is stored, so that it can only be the embeddings",
            );
            return;
        };
        // A head of the embeddings' shape is the embeddings once more, and the flag right, or a matrix of its own.
        let is_copy = match finding.severity {
            Severity::Note => is_copy_of_embeddings(work, head),
            Severity::Warning | Severity::Error => Some(false),
        };
        match is_copy {
            Some(true) => {}
            Some(false) => {
                let text = format!("{head} is stored, and it is not the embeddings");
                set_flag(work, false, &text);
                return;
            }
            None => work.refuse("QC040", format!("{head}: it cannot be read")),
        }
    }
}

fn is_copy_of_embeddings(work: &Work<'_>, head: &str) -> Option<bool> {
    let subject = &work.report.subject;
    let embedding = format!("{}.weight", subject.trunk.as_ref()?.embedding);
    let tensor = |name: &str| -> Option<TensorRef<'_>> { subject.checkpoint.tensor(name) };
    have_equal_bytes(tensor(head)?, tensor(&embedding)?)
}

/// Sets the flag wherever `config.json` has it.
fn set_flag(work: &mut Work<'_>, flag: impl Into<Value>, why: &str) {
    let flag: Value = flag.into();
    let config = &work.report.subject.config;
    let text = config.get("text_config").and_then(|text| text.get(TIED));
    let mut paths = Vec::new();
    if config.contains_key(TIED) {
        paths.push(vec![TIED.to_owned()]);
    }
    if text.is_some() {
        paths.push(vec!["text_config".to_owned(), TIED.to_owned()]);
    }
    for path in paths {
        work.edit("config.json", path, DocumentAction::Set(flag.clone()));
    }
    work.reason("QC040", format!("config.json: {TIED} is {flag}: {why}"));
}

/// Zero points that must agree, at least, as the rule has it.
const MIN_ZEROS: u64 = 16;

/// Sets `checkpoint_format` (and `format`) to what the zero points are.
pub(super) fn checkpoint_format(work: &mut Work<'_>, findings: &[&Finding]) {
    let other = match format_of_zeros(work, findings) {
        Ok(other) => other,
        Err(why) => return work.refuse("QT040", why),
    };
    let keys = ["checkpoint_format", "format"];
    let subject = &work.report.subject;
    let ours = subject.settings.iter();
    let ours: Vec<_> = ours.filter(|s| method_of(s) == "gptq").collect();
    let is_stated = |key: &str| {
        ours.iter()
            .any(|s| s.map.get(key).is_some_and(|v| !v.is_null()))
    };
    let stated: Vec<&str> = keys.into_iter().filter(|key| is_stated(key)).collect();
    let mut edits = Vec::new();
    for settings in &ours {
        for key in keys {
            let is_here = settings.map.get(key).is_some_and(|value| !value.is_null());
            // Where no document says it, all of them do from now on.
            if is_here || (stated.is_empty() && key == keys[0]) {
                let (document, mut path) = located(&settings.place);
                path.push(key.to_owned());
                edits.push((document, path));
            }
        }
    }
    if edits.is_empty() {
        return work.refuse("QT040", "no document of GPTQ's is there to be set right");
    }
    for (document, path) in edits {
        let text = format!(
            "{document}: {} is {other}, as the zero points are",
            path.join(".")
        );
        work.edit(&document, path, DocumentAction::Set(other.into()));
        work.reason("QT040", text);
    }
}

/// The format that all symmetric weights have; why not, where they do not agree.
fn format_of_zeros(work: &Work<'_>, findings: &[&Finding]) -> Result<&'static str, String> {
    let named: BTreeSet<&str> = findings
        .iter()
        .filter_map(|finding| finding.place.module.as_deref())
        .collect();
    let weights = &work.report.subject.model.quantized;
    let ours = || {
        weights
            .iter()
            .filter(|tensor| tensor.convention.starts_with("gptq"))
    };
    let is_right = |tensor: &&QuantizedTensor| {
        !named.contains(tensor.module.as_str()) && has_middle_zeros(work, tensor)
    };
    if let Some(right) = ours().find(is_right) {
        let wrong = named.first().copied().unwrap_or_default();
        return Err(format!(
            "{wrong} has zero points of one format and {} of the other: no word is right for both",
            right.module
        ));
    }
    let mut formats = ours().filter(|tensor| named.contains(tensor.module.as_str()));
    match formats.next().map(|tensor| tensor.convention) {
        Some("gptq") => Ok("gptq_v2"),
        Some("gptq_v2") => Ok("gptq"),
        Some(_) | None => Err("codes in bit planes have one format of zero points only".to_owned()),
    }
}

/// Whether zero points, as the documents have them, are those of symmetric codes.
fn has_middle_zeros(work: &Work<'_>, tensor: &QuantizedTensor) -> bool {
    let Code::Integer { bits, .. } = tensor.scheme.code else {
        return false;
    };
    let middle = 1_i32 << (bits.clamp(1, 8) - 1);
    let measured = work.report.measured.get(&tensor.module);
    measured.is_some_and(|weight| {
        let zeros = &weight.scales.zeros;
        zeros.n >= MIN_ZEROS && zeros.only() == Some(middle)
    })
}

/// The document and the keys that a place of settings names (`config.json: text_config.quantization_config`).
pub(super) fn located(place: &str) -> (String, Vec<String>) {
    match place.split_once(": ") {
        Some((document, path)) => {
            let keys = path.split('.').map(str::to_owned);
            (document.to_owned(), keys.collect())
        }
        None => (place.to_owned(), Vec::new()),
    }
}
