//! Recipes: which modules get which scheme, by which method, as a YAML or JSON file.
//!
//! ```yaml
//! safequant_recipe: 1
//! convention: compressed-tensors
//! ignore: [lm_head]
//! groups:
//!   - scheme: W8A16
//!     targets: ["*.down_proj"]
//!   - scheme: W4A16
//!     group_size: 64
//!     method: refine
//!     effort: high
//! ```
//!
//! A module that several groups want gets the one whose target says most: a whole name, then a pattern, then a group without targets.
//! llm-compressor's recipes are read, too, for the modifiers that we cover; what is not covered is refused by name.

mod llm_compressor;
mod yaml;

use safequant_quantize::{Biases, Order};
use safequant_rewrite::{CalibrationFile, QuantizeRecipe, SchemeGroup};
use safequant_schemes::PresetGranularity;
use serde_json::{Map, Value, json};

use crate::options::{self, Choosing, OptionError};

/// The key that says that a recipe is one of ours, and its version.
const KEY: &str = "safequant_recipe";
const VERSION: u64 = 1;

/// Longest recipe in bytes: a mixture of a hundred thousand experts, each named, is shorter.
pub const MAX_BYTES: usize = 32 << 20;

/// A recipe, its words looked up.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Recipe {
    /// The convention to write, where it says so.
    pub convention: Option<&'static str>,
    /// The schemes, and which modules get them.
    pub groups: Vec<SchemeGroup>,
    /// Modules to leave dense.
    pub ignore: Vec<String>,
    /// What it says that has no effect.
    pub notes: Vec<String>,
}

impl Recipe {
    /// Reads a recipe in either form; `file` is the name that errors carry.
    ///
    /// # Errors
    /// One line that names what is not understood or not covered.
    pub fn parse(
        file: &str,
        text: &str,
        calibration: Option<&CalibrationFile>,
    ) -> Result<Self, OptionError> {
        let failed =
            |problem: Problem| OptionError::new(format!("{file}: {}", problem.text), problem.help);
        if text.len() > MAX_BYTES {
            return Err(failed(Problem::new(format!(
                "it is longer than {MAX_BYTES} bytes"
            ))));
        }
        let value = yaml::parse(text).map_err(|text| failed(Problem::new(text)))?;
        let read = if value.get(KEY).is_none() && llm_compressor::is_one(&value) {
            llm_compressor::read(&value)
        } else {
            own(&value, calibration)
        };
        let recipe = read.map_err(failed)?;
        if recipe.groups.is_empty() {
            return Err(failed(Problem::new("it has no group".to_owned())));
        }
        Ok(recipe)
    }

    /// What a job does, to be done again.
    pub fn of(recipe: &QuantizeRecipe) -> Self {
        Self {
            convention: Some(recipe.convention),
            groups: recipe.groups.clone(),
            ignore: recipe.ignore.clone(),
            notes: Vec::new(),
        }
    }

    /// The file's text: JSON, which is YAML.
    pub fn to_json(&self) -> String {
        let value = json!({
            KEY: VERSION,
            "convention": self.convention,
            "ignore": self.ignore,
            "groups": self.groups.iter().map(group_json).collect::<Value>(),
        });
        format!("{value:#}\n")
    }
}

fn group_json(group: &SchemeGroup) -> Value {
    let mut value = json!({"scheme": group.preset.name});
    let named = safequant_schemes::Preset::by_name(group.preset.name).ok();
    if named.is_none_or(|named| named.granularity != group.preset.granularity) {
        value["group_size"] = match group.preset.granularity {
            PresetGranularity::Group { size } => json!(size),
            PresetGranularity::Channel
            | PresetGranularity::Tensor
            | PresetGranularity::Block { .. } => json!(-1),
        };
    }
    value["method"] = json!(group.method);
    if group.settings.effort != safequant_quantize::Effort::default() {
        value["effort"] = json!(group.settings.effort.name());
    }
    if let Some(order) = group.settings.order {
        value["order"] = json!(Order::name(order));
    }
    if let Some(damping) = group.settings.damping {
        value["damping"] = json!(damping);
    }
    if group.settings.biases == Biases::Corrected {
        value["bias_correction"] = json!(true);
    }
    for (key, patterns) in [("targets", &group.targets), ("ignore", &group.ignore)] {
        if !patterns.is_empty() {
            value[key] = json!(patterns);
        }
    }
    value
}

/// Our own form.
fn own(value: &Value, calibration: Option<&CalibrationFile>) -> Result<Recipe, Problem> {
    let mut members = Members::of("the recipe", value)?;
    let version = members.take(KEY);
    if version.as_ref().and_then(Value::as_u64) != Some(VERSION) {
        let found = version.unwrap_or(Value::Null);
        return Err(Problem::new(format!(
            "{KEY}: expected {VERSION}, found {found}"
        )));
    }
    let convention = members.text("convention")?;
    let convention = convention.map(|asked| options::written_convention(&asked));
    let groups = members.take("groups");
    let ignore = members.texts("ignore")?.unwrap_or_default();
    options::check_patterns("ignore", &ignore)?;
    members.done()?;
    let Some(Value::Array(groups)) = groups else {
        return Err(Problem::new("groups: expected a list".to_owned()));
    };
    let groups = groups.iter().enumerate();
    let groups =
        groups.map(|(i, group)| own_group(&format!("group {}", i + 1), group, calibration));
    Ok(Recipe {
        convention: convention.transpose()?,
        groups: groups.collect::<Result<_, _>>()?,
        ignore,
        notes: Vec::new(),
    })
}

fn own_group(
    at: &str,
    value: &Value,
    calibration: Option<&CalibrationFile>,
) -> Result<SchemeGroup, Problem> {
    let mut members = Members::of(at, value)?;
    let scheme = members.text("scheme")?;
    let scheme = scheme.ok_or_else(|| Problem::new(format!("{at}: scheme is missing")))?;
    let size = members.take("group_size");
    let size = match &size {
        None | Some(Value::Null) => None,
        Some(size) => Some(size.as_i64().ok_or_else(|| {
            Problem::new(format!(
                "{at}: group_size: expected a whole number, found {size}"
            ))
        })?),
    };
    let words = ["method", "effort", "order"].map(|key| members.text(key));
    let [method, effort, order] = words;
    let (method, effort, order) = (method?, effort?, order?);
    let choosing = Choosing {
        method: method.as_deref(),
        effort: effort.as_deref(),
        order: order.as_deref(),
        damping: members.number("damping")?,
        biases: match members.flag("bias_correction")? {
            Some(true) => Biases::Corrected,
            Some(false) | None => Biases::Kept,
        },
    };
    let (method, settings) = choosing.resolve(calibration)?;
    let targets = members.texts("targets")?.unwrap_or_default();
    let ignore = members.texts("ignore")?.unwrap_or_default();
    options::check_patterns("targets", &targets)?;
    options::check_patterns("ignore", &ignore)?;
    members.done()?;
    Ok(SchemeGroup {
        preset: options::preset(&scheme, size)?,
        method,
        settings,
        targets,
        ignore,
    })
}

/// llm-compressor's targets as patterns: a class of layers, a whole name, or `re:` and a regular expression.
fn patterns(texts: Vec<String>, at: &str) -> Result<Vec<String>, Problem> {
    let is_class = |text: &str| {
        !text.contains(['.', ':', '_', '*']) && text.starts_with(|c: char| c.is_ascii_uppercase())
    };
    let one = |text: String| match text.as_str() {
        "Linear" => Ok("*".to_owned()),
        class if is_class(class) => Err(Problem::new(format!(
            "{at}: {class}: a file has names and no classes; only Linear is known, for all linear weights"
        ))),
        _ => Ok(text),
    };
    let patterns = texts.into_iter().map(one).collect::<Result<Vec<_>, _>>()?;
    options::check_patterns("targets or ignore", &patterns)?;
    Ok(patterns)
}

/// What is wrong with a recipe.
struct Problem {
    text: String,
    help: String,
}

impl Problem {
    fn new(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            help: "docs/quantizing.md has what a recipe may say".to_owned(),
        }
    }

    fn unknown(at: &str, key: &str) -> Self {
        Self::new(format!("{at}: {key} is not known here"))
    }
}

impl From<OptionError> for Problem {
    fn from(error: OptionError) -> Self {
        Self {
            text: error.message,
            help: error.help,
        }
    }
}

/// The members of an object, taken one by one; what is left in the end is not known.
struct Members {
    at: String,
    left: Map<String, Value>,
}

impl Members {
    fn of(at: &str, value: &Value) -> Result<Self, Problem> {
        match value {
            Value::Object(members) => Ok(Self {
                at: at.to_owned(),
                left: members.clone(),
            }),
            Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::String(_)
            | Value::Array(_) => Err(Problem::new(format!(
                "{at}: expected members by name, found {value}"
            ))),
        }
    }

    fn take(&mut self, key: &str) -> Option<Value> {
        self.left.remove(key)
    }

    fn wrong(&self, key: &str, expected: &str, found: &Value) -> Problem {
        Problem::new(format!(
            "{}: {key}: expected {expected}, found {found}",
            self.at
        ))
    }

    fn text(&mut self, key: &str) -> Result<Option<String>, Problem> {
        match self.take(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(key, "a text", &other)),
        }
    }

    fn texts(&mut self, key: &str) -> Result<Option<Vec<String>>, Problem> {
        match self.take(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match texts(&value) {
                Some(texts) => Ok(Some(texts)),
                None => Err(self.wrong(key, "a list of texts", &value)),
            },
        }
    }

    fn number(&mut self, key: &str) -> Result<Option<f64>, Problem> {
        match self.take(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_f64() {
                Some(number) => Ok(Some(number)),
                None => Err(self.wrong(key, "a number", &value)),
            },
        }
    }

    fn flag(&mut self, key: &str) -> Result<Option<bool>, Problem> {
        match self.take(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => Err(self.wrong(key, "true or false", &other)),
        }
    }

    /// What would have an effect that we have not.
    fn only_null(&mut self, key: &str) -> Result<(), Problem> {
        match self.take(key) {
            None | Some(Value::Null) => Ok(()),
            Some(_) => Err(Problem::new(format!("{}: {key} is not covered", self.at))),
        }
    }

    /// What decides about memory, speed or a spelling, not about the result.
    fn without_effect(&mut self, key: &str) {
        self.left.remove(key);
    }

    fn done(self) -> Result<(), Problem> {
        match self.left.keys().next() {
            None => Ok(()),
            Some(key) => Err(Problem::unknown(&self.at, key)),
        }
    }
}

/// A list of texts, or one text.
fn texts(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(text) => Some(vec![text.clone()]),
        Value::Array(items) => {
            let items = items.iter().map(|item| item.as_str().map(str::to_owned));
            items.collect()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => None,
    }
}

#[cfg(test)]
mod tests;
