//! Configuration documents: read tolerantly where the ecosystem is tolerant, strictly where we act on a value.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "JSON values are not our enum, and everything but the expected kind is one error"
)]

use std::fmt;

use safequant_kernels::Float;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::{Error, Headers};

/// A JSON object that states how a checkpoint is quantized, and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Document and path: `config.json: quantization_config`.
    pub place: String,
    /// The object.
    pub map: Map<String, Value>,
}

/// Documents that hold nothing but quantization settings.
const OWN_DOCUMENTS: [&str; 3] = [
    "quantize_config.json",
    "quant_config.json",
    "hf_quant_config.json",
];
/// Keys of `config.json` under which settings stand.
const CONFIG_KEYS: [&str; 3] = ["quantization_config", "compression_config", "quantization"];

/// See [`Headers::settings`].
pub(crate) fn find_settings(headers: Headers<'_>) -> Result<Vec<Settings>, Error> {
    let mut found = Vec::new();
    for name in OWN_DOCUMENTS {
        if let Some(bytes) = headers.document(name)
            && let Value::Object(map) = parse(name, bytes)?
        {
            found.push(Settings {
                place: name.to_owned(),
                map,
            });
        }
    }
    let Some(bytes) = headers.document("config.json") else {
        return Ok(found);
    };
    let Value::Object(config) = parse("config.json", bytes)? else {
        return Ok(found);
    };
    if !settings_in(&config, "config.json: ", &mut found) {
        for (key, value) in &config {
            if let Value::Object(sub) = value {
                settings_in(sub, &format!("config.json: {key}."), &mut found);
            }
        }
    }
    Ok(found)
}

/// Appends the settings of one object; whether there were any.
fn settings_in(object: &Map<String, Value>, prefix: &str, found: &mut Vec<Settings>) -> bool {
    let before = found.len();
    for key in CONFIG_KEYS {
        let Some(Value::Object(map)) = object.get(key) else {
            continue;
        };
        if map.is_empty() {
            continue;
        }
        // Very old compressed-tensors files nest the settings once more.
        let place = format!("{prefix}{key}");
        match map.get("quantization_config") {
            Some(Value::Object(inner)) if !map.contains_key("quant_method") => {
                found.push(Settings {
                    place: format!("{place}.quantization_config"),
                    map: inner.clone(),
                });
            }
            _ => found.push(Settings {
                place,
                map: map.clone(),
            }),
        }
    }
    found.len() > before
}

/// See [`Headers::model_dtype`].
pub(crate) fn model_dtype(headers: Headers<'_>) -> Result<Option<Float>, Error> {
    let Some(bytes) = headers.document("config.json") else {
        return Ok(None);
    };
    let Value::Object(config) = parse("config.json", bytes)? else {
        return Ok(None);
    };
    let text = config.get("text_config").and_then(Value::as_object);
    let name = [Some(&config), text]
        .into_iter()
        .flatten()
        .find_map(|object| {
            ["dtype", "torch_dtype"]
                .iter()
                .find_map(|key| object.get(*key).and_then(Value::as_str))
        });
    Ok(name.and_then(|n| match n.trim_start_matches("torch.") {
        "bfloat16" => Some(Float::Bf16),
        "float16" | "half" => Some(Float::F16),
        "float32" | "float" => Some(Float::F32),
        _ => None,
    }))
}

/// Reads JSON as the ecosystem writes it: `NaN`, `Infinity` and `-Infinity` become null, a byte order mark is skipped;
/// but a key that occurs twice in one object is refused, and numbers beyond a double are errors.
///
/// # Errors
/// [`Error::Document`] with line and column.
pub fn parse(document: &str, bytes: &[u8]) -> Result<Value, Error> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let plain = without_non_finite(bytes);
    serde_json::from_slice::<Strict>(&plain)
        .map(|s| s.0)
        .map_err(|e| Error::Document {
            document: document.to_owned(),
            problem: e.to_string(),
        })
}

/// Replaces Python's non-finite literals outside strings by null.
fn without_non_finite(bytes: &[u8]) -> Vec<u8> {
    const LITERALS: [&[u8]; 3] = [b"-Infinity", b"Infinity", b"NaN"];
    let mut out = Vec::with_capacity(bytes.len());
    let (mut i, mut in_string) = (0, false);
    while i < bytes.len() {
        let byte = bytes[i];
        if in_string && byte == b'\\' {
            out.extend_from_slice(&bytes[i..bytes.len().min(i + 2)]);
            i += 2;
            continue;
        }
        in_string ^= byte == b'"';
        let literal = LITERALS
            .iter()
            .find(|l| !in_string && bytes[i..].starts_with(l));
        if let Some(literal) = literal {
            out.extend_from_slice(b"null");
            i += literal.len();
        } else {
            out.push(byte);
            i += 1;
        }
    }
    out
}

/// A JSON value in which no object has a key twice.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Strict)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }
    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(Value::Number(v.into()))
    }
    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(Value::Number(v.into()))
    }
    fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
        Ok(Number::from_f64(v).map_or(Value::Null, Value::Number))
    }
    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(Value::String(v.to_owned()))
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(Strict(item)) = seq.next_element()? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let Strict(value) = map.next_value()?;
            if object.insert(key.clone(), value).is_some() {
                return Err(serde::de::Error::custom(format_args!(
                    "duplicate key {key:?}"
                )));
            }
        }
        Ok(Value::Object(object))
    }
}

/// A group size as configurations have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GroupSize {
    /// −1: all input features.
    WholeRow,
    /// That many input features.
    Features(u64),
}

/// The group size of `groups` groups where no configuration states one: the whole row for a single group, else the one
/// power of two that gives so many groups (the last may be short), else their equal share. `None` where that is no whole
/// number.
pub(crate) fn implied_group_size(in_features: u64, groups: u64) -> Option<u64> {
    if groups == 0 {
        return (in_features == 0).then_some(1);
    }
    if groups == 1 {
        return Some(in_features.max(1));
    }
    let power = (0..64)
        .map(|i| 1_u64 << i)
        .find(|&size| in_features.div_ceil(size) == groups);
    power.or_else(|| {
        let size = in_features / groups;
        (size > 0 && in_features.is_multiple_of(groups)).then_some(size)
    })
}

/// Largest group size that is taken for one.
pub(crate) const MAX_GROUP: i64 = (1 << 31) - 1;
/// Largest side of a block.
pub(crate) const MAX_BLOCK: i64 = 1 << 20;

impl Settings {
    /// The settings' method in lower case: `quant_method`, or `method`.
    pub fn method(&self) -> Option<String> {
        ["quant_method", "method"]
            .iter()
            .find_map(|k| self.map.get(*k).and_then(Value::as_str))
            .map(str::to_ascii_lowercase)
    }

    /// An object view of a nested value, under a longer place.
    pub(crate) fn sub(&self, key: &str, map: &Map<String, Value>) -> Settings {
        Settings {
            place: format!("{}.{key}", self.place),
            map: map.clone(),
        }
    }

    /// A value that is there and not null.
    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    /// An integer within `range`; never a float, a boolean or a text.
    pub(crate) fn integer(
        &self,
        key: &str,
        range: std::ops::RangeInclusive<i64>,
    ) -> Result<Option<i64>, Error> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value.as_i64().filter(|v| range.contains(v)) {
            Some(v) => Ok(Some(v)),
            None => Err(self.wrong(key, &format!("an integer in {range:?}"), value)),
        }
    }

    /// A group size: −1 or 1 to 2^31 − 1.
    pub(crate) fn group_size(&self, key: &str) -> Result<Option<GroupSize>, Error> {
        match self.integer(key, -1..=MAX_GROUP)? {
            None => Ok(None),
            Some(-1) => Ok(Some(GroupSize::WholeRow)),
            Some(0) => Err(self.wrong(key, "-1 or an integer above 0", &Value::from(0))),
            Some(v) => Ok(Some(GroupSize::Features(v.unsigned_abs()))),
        }
    }

    /// A boolean.
    pub(crate) fn boolean(&self, key: &str) -> Result<Option<bool>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(*b)),
            Some(other) => Err(self.wrong(key, "true or false", other)),
        }
    }

    /// A text.
    pub(crate) fn text(&self, key: &str) -> Result<Option<&str>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(other) => Err(self.wrong(key, "a text", other)),
        }
    }

    /// A list of texts; empty if absent.
    pub(crate) fn texts(&self, key: &str) -> Result<Vec<String>, Error> {
        let Some(value) = self.get(key) else {
            return Ok(Vec::new());
        };
        let items = value
            .as_array()
            .ok_or_else(|| self.wrong(key, "a list of texts", value))?;
        items
            .iter()
            .map(|i| match i {
                Value::String(s) => Ok(s.clone()),
                other => Err(self.wrong(key, "a list of texts", other)),
            })
            .collect()
    }

    /// A block of `[rows, columns]`, or the text `RxC`.
    pub(crate) fn block(&self, key: &str) -> Result<Option<(u64, u64)>, Error> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let sides: Option<Vec<i64>> = match value {
            Value::Array(items) => items.iter().map(Value::as_i64).collect(),
            Value::String(s) => s.split('x').map(|p| p.parse().ok()).collect(),
            _ => None,
        };
        match sides.as_deref() {
            Some(&[r, c]) if (1..=MAX_BLOCK).contains(&r) && (1..=MAX_BLOCK).contains(&c) => {
                Ok(Some((r.unsigned_abs(), c.unsigned_abs())))
            }
            _ => Err(self.wrong(key, "two integers in 1..=1048576", value)),
        }
    }

    /// An object.
    pub(crate) fn object(&self, key: &str) -> Result<Option<Settings>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(self.sub(key, map))),
            Some(other) => Err(self.wrong(key, "an object", other)),
        }
    }

    /// The error for a value that we cannot act on.
    pub(crate) fn wrong(&self, key: &str, expected: &str, found: &Value) -> Error {
        Error::ConfigValue {
            document: self.place.clone(),
            key: key.to_owned(),
            expected: expected.to_owned(),
            found: shorten(&found.to_string()),
        }
    }
}

/// At most 80 characters of a text, for messages.
pub(crate) fn shorten(text: &str) -> String {
    if text.chars().count() <= 80 {
        return text.to_owned();
    }
    text.chars().take(77).chain("...".chars()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn python_literals_outside_strings_become_null() {
        let v = parse(
            "c",
            br#"{"a": NaN, "b": [-Infinity, Infinity], "c": "NaN \" Infinity"}"#,
        )
        .unwrap();
        assert_eq!(v["a"], Value::Null);
        assert_eq!(v["b"][0], Value::Null);
        assert_eq!(v["c"], "NaN \" Infinity");
    }

    #[test]
    fn a_key_twice_is_refused_at_every_level_and_after_unescaping() {
        for text in [r#"{"a":1,"a":2}"#, r#"{"x":[{"a":1,"\u0061":2}]}"#] {
            let e = parse("c", text.as_bytes()).unwrap_err();
            assert!(e.to_string().contains("duplicate key"), "{e}");
        }
    }

    #[test]
    fn deep_nesting_and_huge_numbers_are_errors() {
        let deep = "[".repeat(100_000);
        assert!(parse("c", deep.as_bytes()).is_err());
        assert!(parse("c", b"{\"a\": 1e400}").is_err());
        assert!(parse("c", b"").is_err());
        assert!(parse("c", b"\"\\").is_err());
    }

    #[test]
    fn a_group_size_follows_from_the_number_of_groups() {
        assert_eq!(implied_group_size(344, 6), Some(64));
        assert_eq!(implied_group_size(96, 2), Some(64));
        assert_eq!(implied_group_size(4096, 32), Some(128));
        assert_eq!(implied_group_size(4096, 1), Some(4096));
        assert_eq!(
            implied_group_size(60, 3),
            Some(20),
            "no power of two gives 3"
        );
        assert_eq!(implied_group_size(10, 20), None);
        assert_eq!(implied_group_size(u64::MAX, 2), Some(1 << 63));
    }

    #[test]
    fn integers_are_strict() {
        let texts = [
            "0",
            "-2",
            "2147483648",
            "9223372036854775807",
            "18446744073709551616",
            "1.5",
            "\"4\"",
            "[]",
            "true",
        ];
        for text in texts {
            let map = match parse("c", format!("{{\"g\":{text}}}").as_bytes()).unwrap() {
                Value::Object(map) => map,
                other => panic!("{other}"),
            };
            let s = Settings {
                place: "c".into(),
                map,
            };
            assert!(s.group_size("g").is_err(), "{text}");
            assert!(s.integer("g", 1..=8).is_err(), "{text}");
            assert!(s.block("g").is_err(), "{text}");
        }
    }
}
