//! The tokens of a vocabulary, as the converter lists them (`conversion/base.py`: `_create_vocab_sentencepiece`,
//! `get_vocab_base`; gguf-py `LlamaHfVocab`).

use std::collections::BTreeMap;

use serde_json::Value;

use super::documents::{Document, cannot_derive};
use super::sentencepiece::{self, PieceKind};
use crate::{Error, Headers};

/// A vocabulary.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Vocabulary {
    pub texts: Vec<Vec<u8>>,
    /// Empty where the kind of tokenizer has none.
    pub scores: Vec<f32>,
    /// `tokenizer.ggml.token_type`.
    pub types: Vec<i32>,
}

/// The score of what was added to a vocabulary, and of all tokens where a tokenizer keeps none.
const ADDED_SCORE: f32 = -1000.0;
/// The score of what fills a vocabulary up.
const FILLER_SCORE: f32 = -10_000.0;

/// Where readers look for the tokens.
pub(super) const FIELD: &str = "tokenizer.ggml.tokens";

const CONFIG: &str = "tokenizer_config.json";
const TOKENIZER: &str = "tokenizer.json";

impl Vocabulary {
    fn push(&mut self, text: impl Into<Vec<u8>>, kind: PieceKind) {
        self.texts.push(text.into());
        self.types.push(kind as i32);
    }

    /// The pieces of `tokenizer.model`, and what other documents add to them.
    pub(super) fn of_sentencepiece(
        headers: Headers<'_>,
        model: &[u8],
        n_tokens: u32,
    ) -> Result<Self, Error> {
        let mut list = Self::default();
        let mut pieces = sentencepiece::pieces(model)?.into_iter();
        for id in 0..n_tokens {
            let Some(piece) = pieces.next() else {
                list.push(filler(id), PieceKind::Unused);
                list.scores.push(FILLER_SCORE);
                continue;
            };
            let kind = if piece.kind == PieceKind::UserDefined {
                // The converter does not ask for this one.
                PieceKind::Normal
            } else {
                piece.kind
            };
            list.push(piece.text, kind);
            list.scores.push(piece.score);
        }
        if let Some(added) = Document::find(headers, "added_tokens.json")? {
            for (text, id) in added.map() {
                let id = id.as_u64().ok_or_else(|| added.wrong(text, "an id", id))?;
                list.replace(id, text.as_bytes(), PieceKind::UserDefined);
            }
        }
        for (id, token) in decoder_of(headers)? {
            let (text, kind) = token.shown(token.text.clone());
            list.replace(id, text.as_bytes(), kind);
        }
        Ok(list)
    }

    /// Puts another token in a place; ids that are out of range are ignored, as the converter does.
    fn replace(&mut self, id: u64, text: &[u8], kind: PieceKind) {
        let id = usize::try_from(id).ok().filter(|id| *id < self.texts.len());
        if let Some(id) = id {
            self.texts[id] = text.to_vec();
            self.types[id] = kind as i32;
            self.scores[id] = ADDED_SCORE;
        }
    }

    /// A `tokenizer.json` that stands for a `SentencePiece` model: BPE with bytes to fall back on.
    pub(super) fn of_fallback_bpe(
        headers: Headers<'_>,
        tokenizer: &Value,
        n_tokens: u32,
    ) -> Result<Self, Error> {
        let tokens = Tokens::read(headers, tokenizer)?;
        let mut list = Self::default();
        let named = |text: &String| tokens.named.contains(text);
        for id in 0..tokens.n_base {
            let text = tokens.by_id.get(&id).ok_or_else(|| no_token(id))?;
            let kind = if is_byte(text) {
                PieceKind::Byte
            } else if named(text) {
                PieceKind::Control
            } else {
                PieceKind::Normal
            };
            list.push(text.as_bytes(), kind);
        }
        for (_, text) in tokens.by_id.range(tokens.n_base..) {
            let kind = if named(text) {
                PieceKind::Control
            } else {
                PieceKind::UserDefined
            };
            list.push(text.as_bytes(), kind);
        }
        list.scores = vec![ADDED_SCORE; list.texts.len()];
        if list.texts.len() as u64 == u64::from(n_tokens) {
            return Ok(list);
        }
        let found = list.texts.len();
        let problem =
            format!("config.json says vocab_size = {n_tokens}, {TOKENIZER} has {found} tokens");
        Err(cannot_derive(FIELD, problem))
    }

    /// A byte-level BPE.
    pub(super) fn of_byte_level(
        headers: Headers<'_>,
        tokenizer: &Value,
        n_tokens: u32,
    ) -> Result<Self, Error> {
        let tokens = Tokens::read(headers, tokenizer)?;
        if let Some((id, text)) = tokens.by_id.range(u64::from(n_tokens)..).next() {
            let problem = format!(
                "config.json says vocab_size = {n_tokens}, {TOKENIZER} has `{text}` as {id}"
            );
            return Err(cannot_derive(FIELD, problem));
        }
        let mut list = Self::default();
        for id in 0..n_tokens {
            match tokens.by_id.get(&u64::from(id)) {
                None => list.push(filler(id), PieceKind::Unused),
                Some(text) => match tokens.added.get(text) {
                    None => list.push(text.as_bytes(), PieceKind::Normal),
                    Some(added) => {
                        let (text, kind) = added.shown(added.encoded());
                        list.push(text, kind);
                    }
                },
            }
        }
        Ok(list)
    }
}

/// What fills a vocabulary up to the rows of its matrix.
fn filler(id: u32) -> String {
    format!("[PAD{id}]")
}

fn no_token(id: u64) -> Error {
    cannot_derive(FIELD, format!("{TOKENIZER} has no token {id}"))
}

/// `<0x0A>`
fn is_byte(text: &str) -> bool {
    let digits = text.strip_prefix("<0x").and_then(|t| t.strip_suffix('>'));
    digits.is_some_and(|d| d.len() == 2 && d.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// A token that was added to a vocabulary.
#[derive(Clone, Debug, PartialEq)]
struct Added {
    text: String,
    is_special: bool,
    is_normalized: bool,
}

impl Added {
    fn parse(place: &str, token: &Value) -> Result<Self, Error> {
        let text = token["content"].as_str();
        let text = text.ok_or_else(|| Error::Document {
            document: place.to_owned(),
            problem: "an added token has no `content`".to_owned(),
        })?;
        let is_special = token["special"].as_bool().unwrap_or(false);
        Ok(Self {
            text: text.to_owned(),
            is_special,
            is_normalized: token["normalized"].as_bool().unwrap_or(!is_special),
        })
    }

    /// Text and type as they are listed.
    fn shown(&self, text: String) -> (String, PieceKind) {
        if self.is_special || looks_special(&text) {
            (text, PieceKind::Control)
        } else {
            (text.replace('\u{2581}', " "), PieceKind::UserDefined)
        }
    }

    /// What encoding and decoding makes of it, where the text is no text but bytes in disguise.
    fn encoded(&self) -> String {
        let bytes: Option<Vec<u8>> = self.text.chars().map(disguised_byte).collect();
        match bytes {
            Some(bytes) if !self.is_normalized => String::from_utf8_lossy(&bytes).into_owned(),
            Some(_) | None => self.text.clone(),
        }
    }
}

/// The byte that a character of GPT-2's alphabet stands for.
fn disguised_byte(c: char) -> Option<u8> {
    let code = u32::from(c);
    let is_itself = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    if is_itself(code) {
        return u8::try_from(code).ok();
    }
    let index = usize::try_from(code.checked_sub(256)?).ok()?;
    (0..=255_u8)
        .filter(|byte| !is_itself((*byte).into()))
        .nth(index)
}

/// Whether a token ought to be special, though nothing says so (`does_token_look_special`).
fn looks_special(text: &str) -> bool {
    let between = |start, end| text.starts_with(start) && text.ends_with(end);
    ["<pad>", "<mask>", "<2mass>", "[@BOS@]"].contains(&text)
        || between("<|", "|>")
        || between("<\u{ff5c}", "\u{ff5c}>")
        || between("<unused", ">")
}

/// `added_tokens_decoder` of `tokenizer_config.json`, by id.
fn decoder_of(headers: Headers<'_>) -> Result<Vec<(u64, Added)>, Error> {
    let Some(config) = Document::find(headers, CONFIG)? else {
        return Ok(Vec::new());
    };
    let Some(decoder) = config.object("added_tokens_decoder")? else {
        return Ok(Vec::new());
    };
    let entries = decoder.map().iter().map(|(id, token)| {
        let place = format!("{}.{id}", decoder.place());
        let id = id.parse().map_err(|_| decoder.wrong(id, "an id", token))?;
        Ok((id, Added::parse(&place, token)?))
    });
    entries.collect()
}

/// A `tokenizer.json` with what transformers adds to it when it opens the folder.
struct Tokens {
    /// Tokens of the model itself; ids from here on were added.
    n_base: u64,
    by_id: BTreeMap<u64, String>,
    /// By text.
    added: BTreeMap<String, Added>,
    /// Those that have a role (`bos_token` ...).
    named: Vec<String>,
}

impl Tokens {
    fn read(headers: Headers<'_>, tokenizer: &Value) -> Result<Self, Error> {
        let vocabulary = tokenizer["model"]["vocab"].as_object();
        let vocabulary = vocabulary
            .filter(|v| !v.is_empty())
            .ok_or_else(|| cannot_derive(FIELD, format!("{TOKENIZER} has no `model.vocab`")))?;
        let mut tokens = Self {
            n_base: vocabulary.len() as u64,
            by_id: BTreeMap::new(),
            added: BTreeMap::new(),
            named: Vec::new(),
        };
        for (text, id) in vocabulary {
            tokens.place(text, id)?;
        }
        for token in tokenizer["added_tokens"].as_array().into_iter().flatten() {
            let added = Added::parse(TOKENIZER, token)?;
            if vocabulary.get(&added.text) != Some(&token["id"]) {
                tokens.place(&added.text, &token["id"])?;
            }
            tokens.added.insert(added.text.clone(), added);
        }
        let decoder = decoder_of(headers)?;
        tokens.take_over(headers, decoder)?;
        Ok(tokens)
    }

    /// Puts a token in its place, which must be free.
    fn place(&mut self, text: &str, id: &Value) -> Result<(), Error> {
        let number = id.as_u64();
        let number = number.ok_or_else(|| Error::ConfigValue {
            document: TOKENIZER.to_owned(),
            key: format!("the id of `{text}`"),
            expected: "an integer from 0 on".to_owned(),
            found: id.to_string(),
        })?;
        match self.by_id.insert(number, text.to_owned()) {
            None => Ok(()),
            Some(other) => Err(Error::Document {
                document: TOKENIZER.to_owned(),
                problem: format!("`{other}` and `{text}` both have the id {number}"),
            }),
        }
    }

    /// What `tokenizer_config.json` says of tokens, which must be there.
    fn take_over(&mut self, headers: Headers<'_>, decoder: Vec<(u64, Added)>) -> Result<(), Error> {
        let documents: &[&str] = if decoder.is_empty() {
            &[CONFIG, "special_tokens_map.json"]
        } else {
            // It holds what older folders have in a document of its own.
            &[CONFIG]
        };
        self.named = named_tokens(headers, documents)?;
        for (id, added) in decoder {
            if self.by_id.get(&id) != Some(&added.text) {
                let problem = format!("{CONFIG} has `{}` as {id}, {TOKENIZER} has not", added.text);
                return Err(cannot_derive(FIELD, problem));
            }
            self.added.insert(added.text.clone(), added);
        }
        for text in &self.named {
            if !self.by_id.values().any(|known| known == text) {
                let problem = format!("{CONFIG} names `{text}`, which {TOKENIZER} does not have");
                return Err(cannot_derive(FIELD, problem));
            }
            self.added.entry(text.clone()).or_insert_with(|| Added {
                text: text.clone(),
                is_special: true,
                is_normalized: false,
            });
        }
        Ok(())
    }
}

/// The tokens that have a role, by these documents.
fn named_tokens(headers: Headers<'_>, documents: &[&str]) -> Result<Vec<String>, Error> {
    let mut named = Vec::new();
    let mut add = |token: &Value| {
        let text = token.as_str().or_else(|| token["content"].as_str());
        if let Some(text) =
            text.filter(|text| !text.is_empty() && !named.contains(&(*text).to_owned()))
        {
            named.push(text.to_owned());
        }
    };
    for name in documents {
        let Some(document) = Document::find(headers, name)? else {
            continue;
        };
        for role in ["bos", "eos", "unk", "sep", "pad", "cls", "mask"] {
            if let Some(token) = document.get(&format!("{role}_token")) {
                add(token);
            }
        }
        for list in ["additional_special_tokens", "extra_special_tokens"] {
            match document.get(list) {
                Some(Value::Array(tokens)) => tokens.iter().for_each(&mut add),
                Some(Value::Object(tokens)) => tokens.values().for_each(&mut add),
                Some(_) | None => {}
            }
        }
    }
    Ok(named)
}
