//! `tokenizer.*`: which kind of tokenizer the files beside the weights describe, and its keys in the converter's order.

use safequant_container::GgufMetadata;
use serde_json::Value;

use super::architecture::{Architecture, TokenizerJson};
use super::documents::{Document, Push, cannot_derive};
use super::hyper_parameters::Sizes;
use super::special_tokens::SpecialTokens;
use super::vocabulary::Vocabulary;
use super::{pre_tokenizer, sentencepiece};
use crate::config;
use crate::{Error, Headers};

const DOCUMENT: &str = "tokenizer.json";
const MODEL: &str = "tokenizer.ggml.model";
const MERGES: &str = "tokenizer.ggml.merges";

/// What a vocabulary is for.
struct Kind {
    /// `tokenizer.ggml.model`.
    model: &'static str,
    /// `tokenizer.ggml.pre`.
    pre: &'static str,
    vocabulary: Vocabulary,
    merges: Vec<String>,
}

/// Adds `tokenizer.*`.
pub(super) fn push(
    metadata: &mut GgufMetadata,
    headers: Headers<'_>,
    architecture: &Architecture,
    sizes: &Sizes,
) -> Result<(), Error> {
    let is_llama = architecture.id == "llama";
    if let Some(config) = Document::find(headers, "tokenizer_config.json")?
        && let Some(prefix) = config.boolean("add_prefix_space")?.filter(|_| is_llama)
    {
        metadata.boolean("tokenizer.ggml.add_space_prefix", prefix);
    }
    let tokenizer = match headers.document(DOCUMENT) {
        Some(bytes) => Some(config::parse(DOCUMENT, bytes)?),
        None => None,
    };
    let kind = Kind::find(headers, architecture, sizes, tokenizer.as_ref())?;
    push_vocabulary(metadata, &kind);
    let n_tokens = kind
        .merges
        .is_empty()
        .then_some(kind.vocabulary.texts.len());
    let mut special = SpecialTokens::find(headers, tokenizer.as_ref(), n_tokens)?;
    // Two models that the converter knows by the size of their vocabularies: small Granites, and CodeLlama below.
    if is_llama && sizes.vocabulary == 49_152 {
        special.without_begin();
    }
    special.push(metadata);
    if is_llama && sizes.vocabulary == 32_016 {
        metadata.count("tokenizer.ggml.eot_token_id", 32_010);
    }
    Ok(())
}

fn push_vocabulary(metadata: &mut GgufMetadata, kind: &Kind) {
    metadata.text(MODEL, kind.model);
    metadata.text(pre_tokenizer::FIELD, kind.pre);
    let list = &kind.vocabulary;
    metadata.push_strings(
        super::vocabulary::FIELD,
        list.texts.iter().map(Vec::as_slice),
    );
    if !list.scores.is_empty() {
        metadata.push_f32s("tokenizer.ggml.scores", &list.scores);
    }
    metadata.push_i32s("tokenizer.ggml.token_type", &list.types);
    if !kind.merges.is_empty() {
        metadata.push_strings(MERGES, kind.merges.iter().map(String::as_bytes));
    }
}

impl Kind {
    /// A `SentencePiece` model if there is one, else what `tokenizer.json` is.
    fn find(
        headers: Headers<'_>,
        architecture: &Architecture,
        sizes: &Sizes,
        tokenizer: Option<&Value>,
    ) -> Result<Self, Error> {
        if let Some(model) = headers.sidecar(sentencepiece::DOCUMENT)? {
            let vocabulary = Vocabulary::of_sentencepiece(headers, &model, sizes.vocabulary)?;
            return Ok(Self::of_pieces(vocabulary));
        }
        let tokenizer = tokenizer.ok_or_else(|| {
            let problem = "there is neither tokenizer.json nor tokenizer.model beside the weights";
            cannot_derive(MODEL, problem)
        })?;
        let model = &tokenizer["model"];
        if model["type"] != "BPE" {
            let kind = &model["type"];
            let problem = format!("{DOCUMENT}: model.type is {kind}, known is BPE");
            return Err(cannot_derive(MODEL, problem));
        }
        let has_fallback = model["byte_fallback"] == true;
        match (has_fallback, tokenizer["decoder"]["type"].as_str()) {
            (true, Some("Sequence")) if architecture.tokenizer == TokenizerJson::AnyBpe => {
                let list = Vocabulary::of_fallback_bpe(headers, tokenizer, sizes.vocabulary)?;
                Ok(Self::of_pieces(list))
            }
            (false, Some("ByteLevel")) => Self::of_byte_level(headers, tokenizer, sizes),
            (_, _) => {
                let problem = format!(
                    "{DOCUMENT}: model.byte_fallback is {has_fallback} and the decoder {}, which {} does not have",
                    tokenizer["decoder"]["type"], architecture.class
                );
                Err(cannot_derive(MODEL, problem))
            }
        }
    }

    fn of_pieces(vocabulary: Vocabulary) -> Self {
        Self {
            model: "llama",
            pre: "default",
            vocabulary,
            merges: Vec::new(),
        }
    }

    fn of_byte_level(
        headers: Headers<'_>,
        tokenizer: &Value,
        sizes: &Sizes,
    ) -> Result<Self, Error> {
        Ok(Self {
            model: "gpt2",
            pre: pre_tokenizer::name(tokenizer)?,
            vocabulary: Vocabulary::of_byte_level(headers, tokenizer, sizes.vocabulary)?,
            merges: merges(&tokenizer["model"]["merges"])?,
        })
    }
}

/// Pairs as texts with a space between; a space within a token is spelled as GPT-2's alphabet has it.
fn merges(merges: &Value) -> Result<Vec<String>, Error> {
    let merges = merges.as_array().filter(|merges| !merges.is_empty());
    let merges =
        merges.ok_or_else(|| cannot_derive(MERGES, format!("{DOCUMENT} has no `model.merges`")))?;
    let merge = |merge: &Value| match merge {
        Value::String(text) => Some(text.clone()),
        Value::Array(pair) => {
            let [left, right] = &pair[..] else {
                return None;
            };
            let spelled = |part: &Value| Some(part.as_str()?.replace(' ', "\u{120}"));
            Some(format!("{} {}", spelled(left)?, spelled(right)?))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => None,
    };
    let read: Option<Vec<String>> = merges.iter().map(merge).collect();
    let problem = || format!("{DOCUMENT}: an entry of `model.merges` is no pair of texts");
    read.ok_or_else(|| cannot_derive(MERGES, problem()))
}
