//! Special tokens and the chat template, as gguf-py's `SpecialVocab` finds them (`gguf/vocab.py` of llama.cpp): the post-processor
//! of `tokenizer.json`, `tokenizer_config.json`, `config.json`, `chat_template.jinja`.

use safequant_container::GgufMetadata;
use serde_json::{Map, Value};

use super::documents::{Document, Push};
use crate::{Error, Headers};

/// The kinds that are looked for, and the key of each id; none where GGUF has no key.
const KINDS: &[(&str, Option<&str>)] = &[
    ("bos", Some("tokenizer.ggml.bos_token_id")),
    ("eos", Some("tokenizer.ggml.eos_token_id")),
    ("unk", Some("tokenizer.ggml.unknown_token_id")),
    ("sep", Some("tokenizer.ggml.seperator_token_id")),
    ("pad", Some("tokenizer.ggml.padding_token_id")),
    ("cls", None),
    ("mask", Some("tokenizer.ggml.mask_token_id")),
    ("eot", Some("tokenizer.ggml.eot_token_id")),
    ("eom", Some("tokenizer.ggml.eom_token_id")),
];

/// Those that are always looked for; `eot` and `eom` only take what another one leaves.
const ALWAYS: usize = 7;

/// What was found, in the order in which it was.
#[derive(Debug, Default)]
pub(super) struct SpecialTokens {
    ids: Vec<(&'static str, u32)>,
    adds: Vec<(&'static str, bool)>,
    template: Option<Value>,
}

/// `tokenizer_config.json` while it is looked at: what it leaves open is filled in.
struct Search<'a> {
    config: Option<Map<String, Value>>,
    kinds: Vec<&'static str>,
    found: SpecialTokens,
    /// `added_tokens` of `tokenizer.json`.
    added: &'a [Value],
    /// Ids from here on are none.
    n_tokens: Option<usize>,
}

impl SpecialTokens {
    /// What the documents say; ids beyond `n_tokens` do not count.
    pub(super) fn find(
        headers: Headers<'_>,
        tokenizer: Option<&Value>,
        n_tokens: Option<usize>,
    ) -> Result<Self, Error> {
        let config = Document::find(headers, "tokenizer_config.json")?;
        let added = tokenizer.and_then(|t| t["added_tokens"].as_array());
        let mut search = Search {
            config: config
                .map(|config| config.map().clone())
                .filter(|config| !config.is_empty()),
            kinds: KINDS[..ALWAYS].iter().map(|(kind, _)| *kind).collect(),
            found: Self::default(),
            added: added.map_or(&[], Vec::as_slice),
            n_tokens,
        };
        if let Some(tokenizer) = tokenizer {
            search.look_at_processors(tokenizer)?;
        }
        search.look_at_config(headers)?;
        if let Some(config) = Document::find(headers, "config.json")? {
            for kind in search.kinds.clone() {
                let id = config.get(&format!("{kind}_token_id"));
                search.set(kind, id);
            }
        }
        Ok(search.found)
    }

    /// Says that no begin is to be added, whatever the documents say.
    pub(super) fn without_begin(&mut self) {
        self.adds.retain(|(kind, _)| *kind != "bos");
        self.adds.push(("bos", false));
    }

    /// Adds them.
    pub(super) fn push(&self, metadata: &mut GgufMetadata) {
        for (kind, id) in &self.ids {
            let key = KINDS.iter().find(|(name, _)| name == kind);
            if let Some((_, Some(key))) = key {
                metadata.count(key, *id);
            }
        }
        for (kind, value) in &self.adds {
            if ["bos", "eos", "sep"].contains(kind) {
                metadata.boolean(&format!("tokenizer.ggml.add_{kind}_token"), *value);
            }
        }
        match &self.template {
            Some(Value::Array(choices)) => push_choices(metadata, choices),
            Some(template) => {
                metadata.text(
                    "tokenizer.chat_template",
                    template.as_str().unwrap_or_default(),
                );
            }
            None => {}
        }
    }
}

/// Templates by name; the one called `default` is the template.
fn push_choices(metadata: &mut GgufMetadata, choices: &[Value]) {
    const KEY: &str = "tokenizer.chat_template";
    let (mut names, mut default) = (Vec::new(), None);
    for choice in choices {
        let name = choice["name"].as_str().unwrap_or_default();
        let is_plain = |c: char| c.is_ascii_alphanumeric();
        let name: String = name
            .chars()
            .map(|c| if is_plain(c) { c } else { '_' })
            .collect();
        let Some(template) = choice["template"].as_str().filter(|_| !name.is_empty()) else {
            continue;
        };
        if name == "default" {
            default = Some(template);
        } else if !names.contains(&name) {
            metadata.text(&format!("{KEY}.{name}"), template);
            names.push(name);
        }
    }
    if !names.is_empty() {
        // The converter's order is that of a Python set: by chance.
        names.sort();
        let names = names.iter().map(String::as_bytes);
        metadata.push_strings(
            "tokenizer.chat_templates",
            names.collect::<Vec<_>>().into_iter(),
        );
    }
    metadata.text(KEY, default.unwrap_or_default());
}

/// A token's text: itself, or the `content` of an object. (The converter compares what stands there, text or object.)
fn content(token: Option<&Value>) -> Option<&str> {
    let token = token?;
    token.as_str().or_else(|| token["content"].as_str())
}

impl Search<'_> {
    /// A token of the configuration; null and empty text are none.
    fn token(&self, kind: &str) -> Option<Value> {
        let token = self.config.as_ref()?.get(&format!("{kind}_token"))?;
        let is_none = token.is_null() || token == "";
        (!is_none).then(|| token.clone())
    }

    /// Fills a token in, if there is a configuration.
    fn fill(&mut self, kind: &str, token: Option<Value>) {
        if let (Some(config), Some(token)) = (&mut self.config, token) {
            config.insert(format!("{kind}_token"), token);
        }
    }

    fn add(&mut self, kind: &'static str, value: bool) {
        match self.found.adds.iter_mut().find(|(name, _)| *name == kind) {
            Some((_, known)) => *known = value,
            None => self.found.adds.push((kind, value)),
        }
    }

    fn add_if_open(&mut self, kind: &'static str, value: bool) {
        if !self.found.adds.iter().any(|(name, _)| *name == kind) {
            self.found.adds.push((kind, value));
        }
    }

    /// The first id counts.
    fn set(&mut self, kind: &'static str, id: Option<&Value>) {
        let id = id
            .and_then(Value::as_u64)
            .and_then(|id| u32::try_from(id).ok());
        let is_known = self.found.ids.iter().any(|(name, _)| *name == kind);
        if let Some(id) = id.filter(|_| !is_known)
            && self.n_tokens.is_none_or(|n| (id as usize) < n)
        {
            self.found.ids.push((kind, id));
        }
    }

    fn look_at_processors(&mut self, tokenizer: &Value) -> Result<(), Error> {
        for (kind, stand_in) in [("bos", "cls"), ("eos", "sep")] {
            if self.token(kind).is_none() {
                let token = self.token(stand_in);
                self.fill(kind, token);
            }
        }
        let post = &tokenizer["post_processor"];
        let processors = match post["processors"].as_array() {
            Some(processors) => processors.as_slice(),
            None => std::slice::from_ref(post),
        };
        for processor in processors {
            match processor["type"].as_str() {
                Some("ByteLevel") => {
                    self.add_if_open("bos", false);
                    self.add_if_open("eos", false);
                }
                Some("TemplateProcessing") => self.look_at_template(processor),
                Some("RobertaProcessing") => {
                    return Err(super::documents::cannot_derive(
                        "tokenizer.ggml.add_bos_token",
                        "tokenizer.json: the post-processor RobertaProcessing is not known for these architectures",
                    ));
                }
                Some(_) | None => {}
            }
        }
        Ok(())
    }

    /// A template: the special token at its beginning is the first one, that at its end the last one.
    fn look_at_template(&mut self, processor: &Value) {
        let empty = Vec::new();
        let single = processor["single"].as_array().unwrap_or(&empty);
        let pair = processor["pair"].as_array().unwrap_or(&empty);
        let (mut first, mut last) = (None, None);
        if let [begin, .., end] = single.as_slice() {
            first = special(begin);
            last = special(end);
        }
        let sep = self.token("sep");
        if let Some(first) = first {
            self.take_first(first);
        }
        let eos = match last {
            Some(last) => self.take_last(last),
            None => self.token("eos"),
        };
        if let Some(between) = between(pair, first, last) {
            let is_end = |token: Option<&str>| {
                let token = token.map(Value::from);
                token.is_some() && [&sep, &eos].contains(&&token)
            };
            let second = between.get(1).and_then(special);
            let has_end = (is_end(special(&between[0])) && last.is_none())
                || (between.len() == 2 && is_end(second));
            self.add("sep", has_end);
            if has_end && sep.is_none() {
                self.fill("sep", eos);
            }
        }
    }

    /// What no configuration names is what the template says.
    fn take_first(&mut self, first: &str) {
        let first = Some(Value::from(first));
        let (mut bos, mut cls) = (self.token("bos"), self.token("cls"));
        if self.config.is_none() {
            bos.clone_from(&first);
        } else if first != bos && first != cls {
            if bos.is_none() {
                self.fill("bos", first.clone());
                bos.clone_from(&first);
            }
            if cls.is_none() {
                self.fill("cls", first.clone());
                cls.clone_from(&first);
            }
        }
        self.add("bos", first == bos || first == cls);
    }

    /// The template is right about the end, and is what it says from here on.
    fn take_last(&mut self, last: &str) -> Option<Value> {
        let last = Some(Value::from(last));
        let eos = self.token("eos");
        if self.config.is_some() && eos != last {
            self.keep_as_turn_end(eos);
            self.fill("eos", last.clone());
        }
        self.add("eos", true);
        last
    }

    /// The end that another one replaces is the end of a turn, or of a message.
    fn keep_as_turn_end(&mut self, token: Option<Value>) {
        let free = ["eot", "eom"]
            .into_iter()
            .find(|kind| !self.kinds.contains(kind));
        if let Some(kind) = free {
            self.kinds.push(kind);
            self.fill(kind, token);
        }
    }

    fn look_at_config(&mut self, headers: Headers<'_>) -> Result<(), Error> {
        let Some(config) = self.config.clone() else {
            return Ok(());
        };
        let template = match config.get("chat_template") {
            Some(template) => Some(template.clone()),
            None => template_beside(headers)?,
        };
        self.found.template = template.filter(|t| t.is_string() || t.is_array());
        for kind in self.kinds.clone() {
            if let Some(Value::Bool(add)) = config.get(&format!("add_{kind}_token")) {
                self.add_if_open(kind, *add);
            }
            let Some(token) = content(config.get(&format!("{kind}_token"))) else {
                continue;
            };
            let added = self.added;
            let found = added.iter().find(|a| a["content"] == token);
            self.set(kind, found.map(|a| &a["id"]));
        }
        Ok(())
    }
}

/// The special token of a template's step.
fn special(step: &Value) -> Option<&str> {
    let id = step["SpecialToken"]["id"].as_str();
    id.filter(|id| !id.is_empty())
}

/// What stands between two texts `A` and `B` of a pair, its own first and last tokens put aside; `None` if nothing does.
fn between<'v>(pair: &'v [Value], first: Option<&str>, last: Option<&str>) -> Option<&'v [Value]> {
    let starts = first.is_some() && pair.first().and_then(special) == first;
    let ends = last.is_some() && pair.last().and_then(special) == last;
    let inner = pair.get(usize::from(starts)..pair.len().checked_sub(usize::from(ends))?)?;
    let is = |step: Option<&Value>, id: &str| step.is_some_and(|s| s["Sequence"]["id"] == id);
    if !is(inner.first(), "A") || !is(inner.last(), "B") {
        return None;
    }
    inner
        .get(1..inner.len() - 1)
        .filter(|between| !between.is_empty())
}

/// `chat_template.jinja` with what `additional_chat_templates` holds, or the document that older models have.
fn template_beside(headers: Headers<'_>) -> Result<Option<Value>, Error> {
    const FOLDER: &str = "additional_chat_templates";
    let Some(template) = text(headers, "chat_template.jinja")? else {
        let document = Document::find(headers, "chat_template.json")?;
        return Ok(document.and_then(|d| d.get("chat_template").cloned()));
    };
    let mut choices = vec![choice("default", &template)];
    for name in headers.sidecars_in(FOLDER) {
        let stem = name
            .strip_prefix(FOLDER)
            .and_then(|n| n.strip_suffix(".jinja"));
        let stem = stem.map(|stem| stem.trim_start_matches('/'));
        if let Some(stem) = stem.filter(|stem| !stem.contains('/'))
            && let Some(template) = text(headers, name)?
        {
            choices.push(choice(stem, &template));
        }
    }
    if choices.len() == 1 {
        return Ok(Some(template.into()));
    }
    Ok(Some(choices.into()))
}

fn choice(name: &str, template: &str) -> Value {
    serde_json::json!({"name": name, "template": template})
}

fn text(headers: Headers<'_>, name: &str) -> Result<Option<String>, Error> {
    let Some(bytes) = headers.sidecar(name)? else {
        return Ok(None);
    };
    let text = String::from_utf8(bytes).map_err(|_| Error::Document {
        document: name.to_owned(),
        problem: "it is no UTF-8".to_owned(),
    })?;
    // Python opens text so that lines end in one character.
    Ok(Some(text.replace("\r\n", "\n").replace('\r', "\n")))
}
