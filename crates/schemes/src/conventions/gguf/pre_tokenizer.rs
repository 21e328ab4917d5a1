//! The pre-tokenizer of a byte-level BPE, by the name that llama.cpp gives it.
//!
//! The converter looks the digest of a test string's token ids up in a table of known models (`get_vocab_base_pre`). We cannot
//! run a tokenizer, but `tokenizer.json` says how it splits, and that is what the name stands for: llama.cpp has a list of
//! regular expressions behind each (`llm_tokenizer_bpe` in `src/llama-vocab.cpp`). Where several names have the same, the one
//! of the model that brought them stands here.

use serde_json::{Value, json};

use super::documents::cannot_derive;
use crate::Error;
use crate::config::shorten;

/// Where readers look for the name.
pub(super) const FIELD: &str = "tokenizer.ggml.pre";

/// How words are split.
struct Known {
    name: &'static str,
    /// The regular expressions before the bytes, none for GPT-2's own.
    steps: &'static [Step],
    /// Whether the whole word is looked up before merges are tried (`ignore_merges`); llama.cpp ties it to the name.
    merges: Merges,
    /// Whether Unicode's composed form may be asked for; llama.cpp does without.
    normalizer: Normalizer,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Regex(&'static str),
    /// `Digits`, each on its own.
    Digits,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Merges {
    Always,
    WholeWordsFirst,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Normalizer {
    None,
    MaybeNfc,
}

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const KNOWN: &[Known] = &[
    Known {
        name: "llama-bpe",
        steps: &[Step::Regex(LLAMA3)],
        merges: Merges::WholeWordsFirst,
        normalizer: Normalizer::None,
    },
    Known {
        name: "smaug-bpe",
        steps: &[Step::Regex(LLAMA3)],
        merges: Merges::Always,
        normalizer: Normalizer::None,
    },
    Known {
        name: "qwen2",
        steps: &[Step::Regex(QWEN2)],
        merges: Merges::Always,
        normalizer: Normalizer::MaybeNfc,
    },
    Known {
        name: "tekken",
        steps: &[Step::Regex(TEKKEN)],
        merges: Merges::WholeWordsFirst,
        normalizer: Normalizer::None,
    },
    Known {
        name: "gpt-2",
        steps: &[],
        merges: Merges::Always,
        normalizer: Normalizer::None,
    },
    Known {
        name: "starcoder",
        steps: &[Step::Digits],
        merges: Merges::Always,
        normalizer: Normalizer::None,
    },
];

/// The name for the pre-tokenizer of a `tokenizer.json`.
pub(super) fn name(tokenizer: &Value) -> Result<&'static str, Error> {
    let steps = steps(&tokenizer["pre_tokenizer"])?;
    let merges = match tokenizer["model"]["ignore_merges"].as_bool() {
        Some(true) => Merges::WholeWordsFirst,
        Some(false) | None => Merges::Always,
    };
    let same = |known: &&Known| known.steps.iter().map(step_json).eq(steps.iter().cloned());
    let mut found = KNOWN.iter().filter(same).peekable();
    if found.peek().is_none() {
        return Err(unknown("pre_tokenizer", &tokenizer["pre_tokenizer"]));
    }
    let found = found.find(|known| known.merges == merges);
    let known = found
        .ok_or_else(|| unknown("model.ignore_merges", &tokenizer["model"]["ignore_merges"]))?;
    let normalizer = &tokenizer["normalizer"];
    let is_known = match known.normalizer {
        Normalizer::None => normalizer.is_null(),
        Normalizer::MaybeNfc => normalizer.is_null() || *normalizer == json!({"type": "NFC"}),
    };
    if is_known {
        Ok(known.name)
    } else {
        Err(unknown("normalizer", normalizer))
    }
}

fn unknown(key: &str, found: &Value) -> Error {
    let names: Vec<&str> = KNOWN.iter().map(|known| known.name).collect();
    let found = shorten(&found.to_string());
    let problem = format!(
        "tokenizer.json: {key} is {found}, which is none of {}",
        names.join(", ")
    );
    cannot_derive(FIELD, problem)
}

/// What precedes the bytes, in the form of [`step_json`].
fn steps(pre_tokenizer: &Value) -> Result<Vec<Value>, Error> {
    let all = match pre_tokenizer["type"].as_str() {
        Some("Sequence") => pre_tokenizer["pretokenizers"].as_array().cloned(),
        Some(_) => Some(vec![pre_tokenizer.clone()]),
        None => None,
    };
    let all = all.unwrap_or_default();
    let refused = || unknown("pre_tokenizer", pre_tokenizer);
    let (bytes, before) = all.split_last().ok_or_else(refused)?;
    let is_level = bytes["type"] == "ByteLevel" && bytes["add_prefix_space"] == false;
    let has_regex = bytes["use_regex"].as_bool().unwrap_or(true);
    // GPT-2's own expression, or one before it that takes its place; digits go before GPT-2's.
    let has_split = before.iter().any(|step| step["type"] == "Split");
    if !is_level || has_regex == has_split {
        return Err(refused());
    }
    Ok(before.to_vec())
}

fn step_json(step: &Step) -> Value {
    match step {
        Step::Regex(pattern) => json!({
            "type": "Split",
            "pattern": {"Regex": pattern},
            "behavior": "Isolated",
            "invert": false,
        }),
        Step::Digits => json!({"type": "Digits", "individual_digits": true}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokenizer(steps: &[Step], regex: bool, ignore_merges: bool) -> Value {
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex});
        let mut all: Vec<Value> = steps.iter().map(step_json).collect();
        all.push(bytes);
        json!({
            "normalizer": null,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": all},
            "model": {"type": "BPE", "ignore_merges": ignore_merges},
        })
    }

    #[test]
    fn each_is_found_by_how_it_splits() {
        for known in KNOWN {
            let regex = !known.steps.iter().any(|s| matches!(s, Step::Regex(_)));
            let whole = known.merges == Merges::WholeWordsFirst;
            let found = name(&tokenizer(known.steps, regex, whole)).unwrap();
            assert_eq!(found, known.name);
        }
    }

    #[test]
    fn what_is_not_known_is_refused_by_field() {
        let cases = [
            (
                tokenizer(&[Step::Regex("a|b")], false, false),
                "pre_tokenizer",
            ),
            (
                tokenizer(&[Step::Regex(LLAMA3)], true, true),
                "pre_tokenizer",
            ),
            (
                tokenizer(&[Step::Regex(QWEN2)], false, true),
                "ignore_merges",
            ),
            (json!({}), "pre_tokenizer"),
            (
                json!({"pre_tokenizer": {"type": "Sequence", "pretokenizers": []}}),
                "pre_tokenizer",
            ),
            (
                json!({"pre_tokenizer": {"type": "Metaspace"}}),
                "pre_tokenizer",
            ),
        ];
        for (tokenizer, field) in cases {
            let error = name(&tokenizer).unwrap_err().to_string();
            assert!(error.contains(field) && error.contains(FIELD), "{error}");
        }
        let mut lower = tokenizer(&[Step::Regex(LLAMA3)], false, true);
        lower["normalizer"] = json!({"type": "Lowercase"});
        assert!(name(&lower).unwrap_err().to_string().contains("normalizer"));
    }
}
