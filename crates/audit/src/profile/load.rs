//! The strict reader of profile files: what it does not know, it refuses.

use std::fmt;

use serde_json::{Map, Value};

use super::{Answer, ConfigLimit, Effect, Limit, Line, Profile, Versions};
use crate::Part;

/// What is wrong with a profile file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProfileError {
    /// The file.
    pub file: String,
    /// Which line of the profile, from 0, if it is in one.
    pub line: Option<usize>,
    /// What.
    pub problem: String,
}

impl fmt::Display for ProfileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}, line {line}: {}", self.file, self.problem),
            None => write!(f, "{}: {}", self.file, self.problem),
        }
    }
}

impl std::error::Error for ProfileError {}

/// Reads a profile.
///
/// # Errors
/// If it is no JSON, has a key that is not known, lacks one that is needed, or a value is not of its kind.
pub fn load(file: &str, text: &str) -> Result<Profile, ProfileError> {
    let fail = |line, problem| ProfileError {
        file: file.to_owned(),
        line,
        problem,
    };
    let value: Value = serde_json::from_str(text).map_err(|e| fail(None, e.to_string()))?;
    let mut map = object(value).map_err(|e| fail(None, e))?;
    let read = (|| {
        let mut profile = Profile {
            runtime: string(&mut map, "runtime")?,
            title: string(&mut map, "title")?,
            versions: Versions {
                from: string(&mut map, "from")?,
                before: optional(&mut map, "before")?,
            },
            lines: Vec::new(),
        };
        let lines = array(map.remove("lines").ok_or("lines is missing")?)?;
        nothing_left(&map)?;
        profile.lines.reserve(lines.len());
        Ok((profile, lines))
    })();
    let (mut profile, lines) = read.map_err(|e: String| fail(None, e))?;
    for (i, value) in lines.into_iter().enumerate() {
        let line = line(value).map_err(|e| fail(Some(i), e))?;
        profile.lines.push(line);
    }
    Ok(profile)
}

fn line(value: Value) -> Result<Line, String> {
    let mut map = object(value)?;
    let line = Line {
        conventions: match map.remove("for") {
            Some(value) => strings(value)?,
            None => Vec::new(),
        },
        codes: match map.remove("when_codes") {
            Some(value) => strings(value)?,
            None => Vec::new(),
        },
        effect: match optional(&mut map, "effect")? {
            Some(name) => effect(&name)?,
            None => Effect::Refuses,
        },
        says: optional(&mut map, "says")?.unwrap_or_default(),
        help: optional(&mut map, "help")?.unwrap_or_default(),
        source: string(&mut map, "source")?,
        limit: limit(&mut map)?,
    };
    nothing_left(&map)?;
    Ok(line)
}

fn effect(name: &str) -> Result<Effect, String> {
    let found = Effect::ALL.into_iter().find(|e| e.name() == name);
    found.ok_or_else(|| format!("{name:?} is no effect"))
}

/// What a limit's value becomes.
type ReadLimit = fn(Value) -> Result<Limit, String>;

/// The key of each limit, and how its value is read.
const LIMITS: &[(&str, ReadLimit)] = &[
    ("loads", |v| Ok(Limit::Loads(answer(&v)?))),
    ("codes", |v| Ok(Limit::Codes(strings(v)?))),
    ("granularity", |v| {
        Ok(Limit::Granularities(words(v, &Limit::GRANULARITIES)?))
    }),
    ("group_size", |v| Ok(Limit::GroupSizes(numbers(v)?))),
    ("block_size", |v| Ok(Limit::BlockSizes(pairs(v)?))),
    ("zero_points", |v| {
        Ok(Limit::ZeroPoints(words(v, &Limit::ZERO_POINTS)?))
    }),
    ("scale_dtypes", |v| Ok(Limit::ScaleDtypes(strings(v)?))),
    ("model_dtypes", |v| Ok(Limit::ModelDtypes(strings(v)?))),
    ("out_multiple", |v| Ok(Limit::OutMultiple(multiple(&v)?))),
    ("in_multiple", |v| Ok(Limit::InMultiple(multiple(&v)?))),
    ("sparse", |v| Ok(Limit::Sparse(answer(&v)?))),
    ("packing", |v| {
        Ok(Limit::Packings(words(v, &Limit::PACKINGS)?))
    }),
    ("direction", |v| {
        Ok(Limit::Directions(words(v, &Limit::DIRECTIONS)?))
    }),
    ("dense", |v| Ok(Limit::DenseParts(parts(v)?))),
    ("activation_order", |v| {
        Ok(Limit::ActivationOrder(answer(&v)?))
    }),
    ("experts", |v| {
        Ok(Limit::Experts(words(v, &Limit::EXPERTS)?))
    }),
    ("names", |v| Ok(Limit::Names(strings(v)?))),
    ("config", |v| Ok(Limit::Config(config(v)?))),
    ("documents", |v| Ok(Limit::Documents(strings(v)?))),
    ("files", |v| Ok(Limit::Files(words(v, &Limit::FILES)?))),
];

/// The one limit of a line.
fn limit(map: &mut Map<String, Value>) -> Result<Limit, String> {
    let mut found = None;
    for (key, read) in LIMITS {
        if let Some(value) = map.remove(*key) {
            let limit = read(value).map_err(|e| format!("{key}: {e}"))?;
            if found.replace(limit).is_some() {
                return Err(format!("{key} is a second limit of this line"));
            }
        }
    }
    found.ok_or_else(|| "the line states no limit".to_owned())
}

fn config(value: Value) -> Result<ConfigLimit, String> {
    let mut map = object(value)?;
    let limit = ConfigLimit {
        key: string(&mut map, "key")?,
        refuses: match map.remove("refuses") {
            Some(value) => array(value)?,
            None => Vec::new(),
        },
        required: match map.remove("required") {
            Some(value) => answer(&value)?,
            None => Answer::No,
        },
    };
    nothing_left(&map)?;
    if limit.refuses.is_empty() && limit.required == Answer::No {
        return Err("it neither refuses a value nor requires the key".to_owned());
    }
    Ok(limit)
}

fn parts(value: Value) -> Result<Vec<Part>, String> {
    let names = strings(value)?.into_iter();
    let part = |name: String| {
        let found = Part::ALL.into_iter().find(|part| part.name() == name);
        found.ok_or_else(|| format!("{name:?} is no part of a model"))
    };
    names.map(part).collect()
}

fn object(value: Value) -> Result<Map<String, Value>, String> {
    let Value::Object(map) = value else {
        return Err(format!("{value} is no object"));
    };
    Ok(map)
}

fn array(value: Value) -> Result<Vec<Value>, String> {
    let Value::Array(values) = value else {
        return Err(format!("{value} is no list"));
    };
    Ok(values)
}

fn text(value: Value) -> Result<String, String> {
    let Value::String(text) = value else {
        return Err(format!("{value} is no text"));
    };
    if text.trim().is_empty() {
        return Err("a text is empty".to_owned());
    }
    Ok(text)
}

fn string(map: &mut Map<String, Value>, key: &str) -> Result<String, String> {
    let value = map.remove(key).ok_or_else(|| format!("{key} is missing"))?;
    text(value).map_err(|e| format!("{key}: {e}"))
}

fn optional(map: &mut Map<String, Value>, key: &str) -> Result<Option<String>, String> {
    let value = map.remove(key);
    value.map(text).transpose()
}

fn strings(value: Value) -> Result<Vec<String>, String> {
    array(value)?.into_iter().map(text).collect()
}

/// Words of a list.
fn words(value: Value, known: &[&str]) -> Result<Vec<String>, String> {
    let words = strings(value)?;
    match words.iter().find(|word| !known.contains(&word.as_str())) {
        Some(word) => Err(format!("{word:?} is none of {known:?}")),
        None => Ok(words),
    }
}

fn answer(value: &Value) -> Result<Answer, String> {
    let Value::Bool(is_so) = *value else {
        return Err(format!("{value} is neither true nor false"));
    };
    Ok(if is_so { Answer::Yes } else { Answer::No })
}

fn number(value: &Value) -> Result<u64, String> {
    let number = value.as_u64();
    number.ok_or_else(|| format!("{value} is no number"))
}

fn multiple(value: &Value) -> Result<u64, String> {
    match number(value)? {
        0 => Err("nothing is a multiple of 0".to_owned()),
        n => Ok(n),
    }
}

fn numbers(value: Value) -> Result<Vec<u64>, String> {
    array(value)?.iter().map(number).collect()
}

fn pairs(value: Value) -> Result<Vec<[u64; 2]>, String> {
    let pair = |value: Value| {
        let numbers = numbers(value)?;
        <[u64; 2]>::try_from(numbers).map_err(|n| format!("{n:?} is no pair"))
    };
    array(value)?.into_iter().map(pair).collect()
}

fn nothing_left(map: &Map<String, Value>) -> Result<(), String> {
    match map.keys().next() {
        Some(key) => Err(format!("{key:?} is not known")),
        None => Ok(()),
    }
}
