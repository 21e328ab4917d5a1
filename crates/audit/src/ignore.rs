//! Lists of modules that a configuration says are left dense, what the readers of such lists take an entry for, and the groups of
//! modules that a configuration gives one scheme.
//!
//! The same list means something else to each reader: whole names, pieces of names, globs, regular expressions from the start. What
//! is here follows vLLM (`quantization/utils/quant_utils.py is_layer_skipped`, `compressed_tensors/utils.py should_ignore_layer`,
//! `modelopt.py is_layer_excluded`, `bitsandbytes.py is_layer_skipped_bnb`), `SGLang` (`quantization/utils.py is_layer_skipped`,
//! sgl-project/sglang#23467) and transformers (`quantizers_utils.py should_convert_module`).

use std::collections::BTreeSet;

use safequant_schemes::{Pattern, Settings};
use serde_json::Value;

use crate::Subject;

/// What an entry of a list means to a reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Semantics {
    /// The whole name.
    Exact,
    /// The whole name, or `re:` and a regular expression from the start.
    ExactOrRegex,
    /// A regular expression from the start, or the end of the name.
    StartOrEnd,
    /// Whole components of the name, anywhere.
    Components,
    /// A piece of the name, anywhere.
    Substring,
    /// A glob for the whole name.
    Glob,
    /// A glob for the whole name, or a piece of it.
    GlobOrSubstring,
    /// A regular expression from the start.
    Regex,
}

/// A program that reads such lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reader {
    /// Its name.
    pub(crate) name: &'static str,
    pub(crate) semantics: Semantics,
}

const fn reader(name: &'static str, semantics: Semantics) -> Reader {
    Reader { name, semantics }
}

/// The readers of a method's list; whoever takes the fewest modules for ignored comes first.
fn readers(method: &str) -> &'static [Reader] {
    const COMPRESSED: &[Reader] = &[reader("vLLM and SGLang", Semantics::ExactOrRegex)];
    const FP8: &[Reader] = &[
        reader("vLLM", Semantics::Exact),
        reader("SGLang", Semantics::Components),
        reader("transformers", Semantics::StartOrEnd),
    ];
    const AWQ: &[Reader] = &[
        reader("transformers", Semantics::StartOrEnd),
        reader("vLLM, SGLang and AutoAWQ", Semantics::Substring),
    ];
    const BITSANDBYTES: &[Reader] = &[
        reader("vLLM", Semantics::Components),
        reader("transformers", Semantics::StartOrEnd),
    ];
    const MODELOPT: &[Reader] = &[
        reader("ModelOpt and SGLang", Semantics::Glob),
        reader("vLLM", Semantics::GlobOrSubstring),
    ];
    const HQQ: &[Reader] = &[reader("transformers", Semantics::Substring)];
    const TRANSFORMERS: &[Reader] = &[reader("transformers", Semantics::StartOrEnd)];
    const DYNAMIC: &[Reader] = &[reader("GPTQModel and vLLM", Semantics::Regex)];
    const MLX: &[Reader] = &[reader("mlx-lm", Semantics::Exact)];
    match method {
        "compressed-tensors" => COMPRESSED,
        "fp8" | "fbgemm_fp8" => FP8,
        "awq" => AWQ,
        "bitsandbytes" => BITSANDBYTES,
        "hqq" => HQQ,
        "dynamic" => DYNAMIC,
        "mlx" => MLX,
        name if name.starts_with("modelopt") => MODELOPT,
        _ => TRANSFORMERS,
    }
}

/// An entry, ready to be tried.
pub(crate) struct Entry {
    /// As it stands in the list.
    pub(crate) text: String,
    /// The regular expression, where the entry can be taken for one that is more than its own text.
    regex: Option<Pattern>,
    glob: Option<Pattern>,
}

/// A list of modules that are left dense.
pub(crate) struct IgnoreList {
    /// Document and path of the settings (`config.json: quantization_config`).
    pub(crate) place: String,
    /// The key.
    pub(crate) key: &'static str,
    pub(crate) readers: &'static [Reader],
    pub(crate) entries: Vec<Entry>,
    /// Texts of the entries.
    texts: BTreeSet<String>,
}

/// Tries of entries on names that a rule may spend: a second.
pub(crate) const MAX_TRIES: usize = 20_000_000;

const KEYS: [&str; 7] = [
    "ignore",
    "exclude_modules",
    "modules_to_not_convert",
    "ignored_layers",
    "llm_int8_skip_modules",
    "skip_modules",
    "exclude",
];

/// All lists of the documents. Entries that are no text or no valid pattern are left out: other rules report them.
pub(crate) fn lists(subject: &Subject<'_>) -> Vec<IgnoreList> {
    let mut found = Vec::new();
    for settings in &subject.settings {
        let nested = settings.map.get("quantization").and_then(Value::as_object);
        for map in std::iter::once(&settings.map).chain(nested) {
            for key in KEYS {
                let items = map.get(key).and_then(Value::as_array);
                let texts = items.into_iter().flatten().filter_map(Value::as_str);
                found.extend(IgnoreList::new(settings, key, &method_of(settings), texts));
            }
        }
        found.extend(dynamic(settings));
        found.extend(dense_entries(settings));
    }
    found
}

/// The method that settings are of, where they do not name it.
pub(crate) fn method_of(settings: &Settings) -> String {
    let has = |key: &str| settings.map.contains_key(key);
    let is_modelopt = settings.place.starts_with("hf_quant_config") || has("quant_algo");
    match settings.method() {
        Some(method) => method,
        None if is_modelopt => "modelopt".to_owned(),
        None if has("config_groups") || has("sparsity_config") => "compressed-tensors".to_owned(),
        None if has("zero_point") => "awq".to_owned(),
        None if has("desc_act") || has("sym") => "gptq".to_owned(),
        None if has("bits") || has("mode") => "mlx".to_owned(),
        None => String::new(),
    }
}

/// GPTQ's `dynamic` rules that leave modules dense.
fn dynamic(settings: &Settings) -> Option<IgnoreList> {
    let dynamic = settings.map.get("dynamic")?.as_object()?;
    let texts = dynamic.keys().filter_map(|key| key.strip_prefix("-:"));
    IgnoreList::new(settings, "dynamic", "dynamic", texts)
}

/// MLX's modules with `false`.
fn dense_entries(settings: &Settings) -> Option<IgnoreList> {
    if method_of(settings) != "mlx" {
        return None;
    }
    let is_dense = |(key, value): (&'_ String, &Value)| {
        let is_module = key.contains('.') || key == "lm_head";
        (is_module && *value == Value::Bool(false)).then(|| key.clone())
    };
    let keys: Vec<String> = settings.map.iter().filter_map(is_dense).collect();
    IgnoreList::new(settings, "false", "mlx", keys.iter().map(String::as_str))
}

impl IgnoreList {
    fn new<'t>(
        settings: &Settings,
        key: &'static str,
        method: &str,
        texts: impl Iterator<Item = &'t str>,
    ) -> Option<Self> {
        let readers = readers(method);
        let entries: Vec<Entry> = texts.map(|text| Entry::new(text, readers)).collect();
        let texts = entries.iter().map(|entry| entry.text.clone()).collect();
        (!entries.is_empty()).then(|| Self {
            place: settings.place.clone(),
            key,
            readers,
            entries,
            texts,
        })
    }

    /// The file it stands in.
    pub(crate) fn file(&self) -> &str {
        self.place.split(':').next().unwrap_or(&self.place)
    }

    /// `config.json: quantization_config.ignore`.
    pub(crate) fn path(&self) -> String {
        format!("{}.{}", self.place, self.key)
    }

    /// The entry by which a reader leaves a module dense.
    pub(crate) fn entry_for(&self, semantics: Semantics, module: &str) -> Option<&Entry> {
        let is_plain = matches!(
            semantics,
            Semantics::Exact | Semantics::ExactOrRegex | Semantics::Glob
        );
        if is_plain && self.texts.contains(module) {
            return self.entries.iter().find(|entry| entry.text == module);
        }
        let mut entries = self.entries.iter();
        match semantics {
            Semantics::Exact => None,
            Semantics::ExactOrRegex => entries.find(|entry| entry.is_regex(module)),
            Semantics::Glob => entries.find(|entry| entry.is_glob(module)),
            Semantics::StartOrEnd
            | Semantics::Components
            | Semantics::Substring
            | Semantics::GlobOrSubstring
            | Semantics::Regex => entries.find(|entry| entry.matches(semantics, module)),
        }
    }

    /// The entry by which *every* reader leaves a module dense: what the first one takes, the others must take as well.
    pub(crate) fn entry_for_all(&self, module: &str) -> Option<&Entry> {
        let (first, others) = self.readers.split_first()?;
        let entry = self.entry_for(first.semantics, module)?;
        let agrees = |reader: &Reader| self.entry_for(reader.semantics, module).is_some();
        others.iter().all(agrees).then_some(entry)
    }

    /// Whether some reader leaves a module dense.
    pub(crate) fn is_ignored_by_any(&self, module: &str) -> bool {
        let mut readers = self.readers.iter();
        readers.any(|reader| self.entry_for(reader.semantics, module).is_some())
    }
}

impl Entry {
    fn new(text: &str, readers: &[Reader]) -> Self {
        let reads = |semantics: &[Semantics]| {
            readers
                .iter()
                .any(|reader| semantics.contains(&reader.semantics))
        };
        let is_more = text.contains(|c: char| "*+?[](){}|^$\\".contains(c));
        let regex = match text.strip_prefix("re:") {
            Some(regex) if reads(&[Semantics::ExactOrRegex]) => Some(regex),
            _ if is_more && reads(&[Semantics::StartOrEnd, Semantics::Regex]) => Some(text),
            _ => None,
        };
        let is_glob = is_more && reads(&[Semantics::Glob, Semantics::GlobOrSubstring]);
        Self {
            text: text.to_owned(),
            regex: regex.and_then(|regex| Pattern::regex(regex).ok()),
            glob: is_glob.then(|| Pattern::glob(text).ok()).flatten(),
        }
    }

    fn is_regex(&self, module: &str) -> bool {
        let regex = self.regex.as_ref();
        regex.is_some_and(|regex| regex.is_match(module).unwrap_or(false))
    }

    fn is_glob(&self, module: &str) -> bool {
        let glob = self.glob.as_ref();
        glob.is_some_and(|glob| glob.is_match(module).unwrap_or(false))
    }

    /// Whether a reader takes this entry for that module.
    pub(crate) fn matches(&self, semantics: Semantics, module: &str) -> bool {
        let text = self.text.as_str();
        match semantics {
            Semantics::Exact => module == text,
            Semantics::ExactOrRegex => module == text || self.is_regex(module),
            Semantics::StartOrEnd => {
                let is_start = match &self.regex {
                    Some(_) => self.is_regex(module),
                    None => module.starts_with(text),
                };
                is_start || module.ends_with(text)
            }
            Semantics::Components => is_component_run(module, text.trim_matches('.')),
            Semantics::Substring => !text.is_empty() && module.contains(text),
            Semantics::Glob => module == text || self.is_glob(module),
            Semantics::GlobOrSubstring => {
                self.is_glob(module) || (!text.is_empty() && module.contains(text))
            }
            Semantics::Regex => match &self.regex {
                Some(_) => self.is_regex(module),
                None => module.starts_with(text),
            },
        }
    }

    /// Whether the text is more than a name: a glob or a regular expression.
    pub(crate) fn is_pattern(&self) -> bool {
        self.regex.is_some() || self.glob.is_some()
    }
}

/// Whether `run` is one or several whole components of a name.
pub(crate) fn is_component_run(name: &str, run: &str) -> bool {
    if run.is_empty() {
        return false;
    }
    name.match_indices(run).any(|(at, _)| {
        let before = name.get(..at).unwrap_or_default();
        let after = name.get(at + run.len()..).unwrap_or_default();
        (before.is_empty() || before.ends_with('.')) && (after.is_empty() || after.starts_with('.'))
    })
}

/// A name, and the same with and without the words that wrappers put before it: checkpoints and lists differ in them.
pub(crate) fn spellings(module: &str) -> Vec<String> {
    let mut rest = module;
    while let Some(shorter) = rest
        .strip_prefix("model.")
        .or_else(|| rest.strip_prefix("language_model."))
    {
        rest = shorter;
    }
    let mut all = vec![module.to_owned()];
    for prefix in [
        "",
        "model.",
        "language_model.",
        "language_model.model.",
        "model.language_model.",
    ] {
        let spelled = format!("{prefix}{rest}");
        if !all.contains(&spelled) {
            all.push(spelled);
        }
    }
    all
}

/// The groups of `config_groups`, with their targets.
pub(crate) struct Groups<'a> {
    groups: Vec<(&'a str, &'a Value, Vec<Target<'a>>)>,
}

/// Whom a group is for.
enum Target<'a> {
    /// Names that match from the start.
    Matching(Pattern),
    /// A name, or a class.
    Name(&'a str),
}

impl<'a> Groups<'a> {
    /// `None` where the settings have no groups.
    pub(crate) fn of(settings: &'a Settings) -> Option<Self> {
        let map = settings.map.get("config_groups")?.as_object()?;
        let target = |text: &'a str| match text.strip_prefix("re:") {
            Some(regex) => Pattern::regex(regex).ok().map(Target::Matching),
            None => Some(Target::Name(text)),
        };
        let groups = map.iter().map(|(name, group)| {
            // A preset's name stands for its scheme, and the value is the list.
            let list = group.get("targets").unwrap_or(group).as_array();
            let texts = list.into_iter().flatten().filter_map(Value::as_str);
            (name.as_str(), group, texts.filter_map(target).collect())
        });
        Some(Self {
            groups: groups.collect(),
        })
    }

    /// The group that a module is of: by its name, else as a linear layer.
    pub(crate) fn group(&self, module: &str) -> Option<(&'a str, &'a Value)> {
        let names = spellings(module);
        let is_named = |target: &Target<'_>| match target {
            Target::Matching(pattern) => names.iter().any(|n| pattern.is_match(n).unwrap_or(false)),
            Target::Name(text) => names.iter().any(|name| name == text),
        };
        let is_linear = |target: &Target<'_>| matches!(target, Target::Name("Linear"));
        let mut groups = self.groups.iter();
        let found = groups.find(|(_, _, targets)| targets.iter().any(is_named));
        let mut groups = self.groups.iter();
        let found = found.or_else(|| groups.find(|(_, _, targets)| targets.iter().any(is_linear)));
        found.map(|(name, group, _)| (*name, *group))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_win_over_classes() {
        let map = serde_json::json!({"config_groups": {
            "a": {"targets": ["Linear"]}, "b": {"targets": ["re:.*down"]}, "FP8": ["layers.0.x"]}});
        let settings = Settings {
            place: "config.json".to_owned(),
            map: map.as_object().unwrap().clone(),
        };
        let groups = Groups::of(&settings).unwrap();
        let name = |module| groups.group(module).map(|(name, _)| name);
        assert_eq!(name("model.layers.0.down"), Some("b"));
        assert_eq!(name("model.layers.0.x"), Some("FP8"));
        assert_eq!(name("model.layers.0.y"), Some("a"));
    }

    fn takes(method: &str, text: &str, module: &str) -> Vec<bool> {
        let readers = readers(method);
        let entry = Entry::new(text, readers);
        readers
            .iter()
            .map(|reader| entry.matches(reader.semantics, module))
            .collect()
    }

    #[test]
    fn readers_take_entries_for_different_things() {
        let up = "model.layers.1.mlp.gate_proj";
        assert_eq!(takes("compressed-tensors", "re:.*gate", up), [true]);
        assert_eq!(takes("compressed-tensors", "gate_proj", up), [false]);
        assert_eq!(takes("fp8", up, up), [true, true, true]);
        assert_eq!(takes("fp8", "mlp", up), [false, true, false]);
        assert_eq!(takes("fp8", "gate", up), [false, false, false]);
        assert_eq!(takes("fp8", "gate_proj", up), [false, true, true]);
        assert_eq!(takes("fp8", "model.layers.1", up), [false, true, true]);
        assert_eq!(
            takes("fp8", "model.layers.1", "model.layers.10.mlp.x"),
            [false, false, true]
        );
        assert_eq!(takes("awq", "gate", up), [false, true]);
        assert_eq!(takes("modelopt", "*.gate*", up), [true, true]);
        assert_eq!(takes("modelopt", "mlp", up), [false, true]);
        assert_eq!(takes("bitsandbytes", "gate_proj", up), [true, true]);
        assert_eq!(takes("dynamic", ".*gate_pr", up), [true]);
        assert_eq!(
            takes("mxfp4", "model.layers.*.mlp", up),
            [true],
            "a regular expression to transformers"
        );
    }

    #[test]
    fn runs_are_of_whole_components() {
        assert!(is_component_run("a.b.c", "b"));
        assert!(is_component_run("a.b.c", "a.b"));
        assert!(!is_component_run("a.bb.c", "b"));
        assert!(is_component_run("a.bb.b", "b"));
        assert!(!is_component_run("a.b", ""));
    }

    #[test]
    fn wrappers_change_names() {
        let all = spellings("model.layers.0.x");
        assert!(all.contains(&"layers.0.x".to_owned()));
        assert!(all.contains(&"language_model.model.layers.0.x".to_owned()));
        assert_eq!(all[0], "model.layers.0.x");
    }
}
