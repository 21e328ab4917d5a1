//! The JSON descriptor of a 4-bit weight (specs/conventions/bitsandbytes.md, clauses B6 to B10).
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "JSON values are not our enum, and everything but the expected kind is one error"
)]

use safequant_kernels::{Codebook, Float};
use serde_json::Value;

use crate::config::parse;
use crate::{Error, Settings};

/// What `bitsandbytes` knows beside the tensors.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct State {
    /// Which code book.
    pub(super) kind: Kind,
    /// Elements that share one scale, counted over the flattened weight.
    pub(super) block: u64,
    /// What a reader dequantizes to.
    pub(super) dtype: Float,
    /// The logical shape.
    pub(super) shape: Vec<u64>,
    /// Of double quantization.
    pub(super) nested: Option<Nested>,
}

/// The 4-bit types of the library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `nf4`.
    Nf4,
    /// `fp4`.
    Fp4,
}

impl Kind {
    /// Both.
    pub(super) const ALL: [Kind; 2] = [Kind::Nf4, Kind::Fp4];

    /// As `quant_type` and names of tensors have it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Kind::Nf4 => "nf4",
            Kind::Fp4 => "fp4",
        }
    }

    /// Its values.
    pub(super) const fn book(self) -> Codebook {
        match self {
            Kind::Nf4 => Codebook::Nf4,
            Kind::Fp4 => Codebook::BnbFp4,
        }
    }
}

/// The second level of scales.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Nested {
    /// Scales that share one of the second level.
    pub(super) block: u64,
    /// Added to every scale.
    pub(super) offset: f32,
}

/// Every key that the library accepts.
const KEYS: [&str; 7] = [
    "quant_type",
    "blocksize",
    "dtype",
    "shape",
    "nested_blocksize",
    "nested_dtype",
    "nested_offset",
];
/// Most dimensions of a weight.
const MAX_RANK: usize = 8;

impl State {
    /// Reads the descriptor `bytes` of tensor `name`.
    ///
    /// # Errors
    /// No JSON object, an unknown key, a missing one, a value out of range: names tensor and key.
    pub(super) fn read(name: &str, bytes: &[u8]) -> Result<Self, Error> {
        let Value::Object(map) = parse(name, bytes)? else {
            return Err(Error::Document {
                document: name.to_owned(),
                problem: "it holds no JSON object".to_owned(),
            });
        };
        let settings = Settings {
            place: name.to_owned(),
            map,
        };
        if let Some((key, value)) = settings
            .map
            .iter()
            .find(|(key, _)| !KEYS.contains(&key.as_str()))
        {
            return Err(settings.wrong(key, &format!("one of {}", KEYS.join(", ")), value));
        }
        Self::parse(&settings)
    }

    fn parse(settings: &Settings) -> Result<Self, Error> {
        let name = text(settings, "quant_type")?;
        let kind = Kind::ALL.into_iter().find(|kind| kind.name() == name);
        let kind =
            kind.ok_or_else(|| settings.wrong("quant_type", "\"nf4\" or \"fp4\"", &name.into()))?;
        let dtype = match text(settings, "dtype")? {
            "bfloat16" => Float::Bf16,
            "float16" => Float::F16,
            "float32" => Float::F32,
            other => {
                let expected = "\"bfloat16\", \"float16\" or \"float32\"";
                return Err(settings.wrong("dtype", expected, &other.into()));
            }
        };
        let shape = shape(settings)?;
        let has_nested = settings.map.keys().any(|key| key.starts_with("nested_"));
        Ok(Self {
            kind,
            block: block(settings, "blocksize")?,
            dtype,
            shape,
            nested: if has_nested {
                Some(nested(settings)?)
            } else {
                None
            },
        })
    }

    /// The descriptor, byte for byte as Python's `json.dumps` of the library's dictionary.
    pub(super) fn to_json(&self) -> String {
        let shape: Vec<String> = self.shape.iter().map(u64::to_string).collect();
        let nested = self.nested.map(|nested| {
            let offset = python_float(f64::from(nested.offset));
            format!(
                ", \"nested_blocksize\": {}, \"nested_dtype\": \"float32\", \"nested_offset\": {offset}",
                nested.block
            )
        });
        format!(
            "{{\"quant_type\": \"{}\", \"blocksize\": {}, \"dtype\": \"{}\", \"shape\": [{}]{}}}",
            self.kind.name(),
            self.block,
            match self.dtype {
                Float::Bf16 => "bfloat16",
                Float::F16 => "float16",
                Float::F32 => "float32",
            },
            shape.join(", "),
            nested.unwrap_or_default()
        )
    }
}

fn missing(settings: &Settings, key: &str, expected: &str) -> Error {
    settings.wrong(key, expected, &Value::Null)
}

fn text<'s>(settings: &'s Settings, key: &str) -> Result<&'s str, Error> {
    settings
        .text(key)?
        .ok_or_else(|| missing(settings, key, "a text"))
}

fn block(settings: &Settings, key: &str) -> Result<u64, Error> {
    let expected = "a power of two in 32..=4096";
    let size = settings
        .integer(key, 32..=4096)?
        .ok_or_else(|| missing(settings, key, expected))?
        .unsigned_abs();
    if size.is_power_of_two() {
        Ok(size)
    } else {
        Err(settings.wrong(key, expected, &size.into()))
    }
}

fn shape(settings: &Settings) -> Result<Vec<u64>, Error> {
    let expected = "a list of 1 to 8 integers above 0 whose product fits 63 bits";
    let value = settings.map.get("shape").unwrap_or(&Value::Null);
    let wrong = || settings.wrong("shape", expected, value);
    let sides: Option<Vec<u64>> = match value {
        Value::Array(items) if (1..=MAX_RANK).contains(&items.len()) => items
            .iter()
            .map(|v| v.as_u64().filter(|&d| d > 0))
            .collect(),
        _ => None,
    };
    let sides = sides.ok_or_else(wrong)?;
    sides
        .iter()
        .try_fold(1_u64, |n, &d| n.checked_mul(d))
        .filter(|&n| i64::try_from(n).is_ok())
        .ok_or_else(wrong)?;
    Ok(sides)
}

fn nested(settings: &Settings) -> Result<Nested, Error> {
    match text(settings, "nested_dtype")? {
        "float32" => {}
        other => return Err(settings.wrong("nested_dtype", "\"float32\"", &other.into())),
    }
    let expected = "a finite number";
    let value = settings
        .get("nested_offset")
        .ok_or_else(|| missing(settings, "nested_offset", expected))?;
    #[expect(
        clippy::cast_possible_truncation,
        reason = "torch.tensor rounds the same number to F32 in the same way"
    )]
    let offset = value.as_f64().map(|v| v as f32).filter(|v| v.is_finite());
    Ok(Nested {
        block: block(settings, "nested_blocksize")?,
        offset: offset.ok_or_else(|| settings.wrong("nested_offset", expected, value))?,
    })
}

/// Python's `repr` of a float: the shortest digits that give it back, with an exponent below 1e-4 and from 1e16 on.
fn python_float(value: f64) -> String {
    let magnitude = value.abs();
    if magnitude == 0.0 || (1e-4..1e16).contains(&magnitude) {
        return format!("{value:?}");
    }
    let text = format!("{value:e}");
    match text.split_once('e') {
        Some((digits, exponent)) => {
            let (sign, exponent) = match exponent.strip_prefix('-') {
                Some(exponent) => ('-', exponent),
                None => ('+', exponent),
            };
            format!("{digits}e{sign}{exponent:0>2}")
        }
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Map, json};

    /// What the library writes, as a map.
    fn example() -> Map<String, Value> {
        let text = r#"{"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [32, 128],
            "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.5349999666213989}"#;
        match serde_json::from_str(text) {
            Ok(Value::Object(map)) => map,
            other => panic!("{other:?}"),
        }
    }

    fn read(map: &Map<String, Value>) -> Result<State, Error> {
        State::read("m", &serde_json::to_vec(map).unwrap())
    }

    #[test]
    fn the_descriptor_of_the_library_is_read_and_written_byte_for_byte() {
        let state = read(&example()).unwrap();
        assert_eq!(state.shape, [32, 128]);
        assert_eq!(state.nested.map(|n| n.block), Some(256));
        let text = r#"{"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [32, 128], "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.5349999666213989}"#;
        assert_eq!(state.to_json(), text);
        assert_eq!(State::read("m", text.as_bytes()).unwrap(), state);
    }

    #[test]
    fn hostile_values_are_errors() {
        let cases = [
            ("quant_type", json!("int4")),
            ("quant_type", json!(4)),
            ("blocksize", json!(0)),
            ("blocksize", json!(-64)),
            ("blocksize", json!(63)),
            ("blocksize", json!(96)),
            ("blocksize", json!(1_u64 << 40)),
            ("blocksize", json!(64.5)),
            ("dtype", json!("float64")),
            ("shape", json!([])),
            ("shape", json!([0, 4])),
            ("shape", json!([-1, 4])),
            ("shape", json!([1.5, 4])),
            ("shape", json!("x")),
            ("shape", json!([u64::MAX, 2])),
            ("shape", json!([1_u64 << 32, 1_u64 << 32])),
            ("shape", json!([1, 1, 1, 1, 1, 1, 1, 1, 1])),
            ("nested_blocksize", json!(0)),
            ("nested_blocksize", json!(null)),
            ("nested_dtype", json!("bfloat16")),
            ("nested_offset", json!(null)),
            ("nested_offset", json!("0.5")),
            ("nested_offset", json!(1e300)),
            ("surprise", json!(1)),
        ];
        for (key, value) in cases {
            let mut map = example();
            map.insert(key.to_owned(), value.clone());
            assert!(read(&map).is_err(), "{key} = {value}");
        }
        for key in &KEYS {
            let mut map = example();
            map.remove(*key);
            assert!(read(&map).is_err(), "without {key}");
        }
        for text in ["", "[]", "{", "null", "{\"shape\":[1],\"shape\":[2]}"] {
            assert!(State::read("m", text.as_bytes()).is_err(), "{text}");
        }
        assert!(State::read("m", &[0xff, 0xfe]).is_err());
    }

    #[test]
    fn floats_are_written_as_python_writes_them() {
        let cases = [
            (0.0, "0.0"),
            (1.0, "1.0"),
            (f64::from(0.1_f32), "0.10000000149011612"),
            (1e-4, "0.0001"),
            (1e-5, "1e-05"),
            (f64::from(1.5e-7_f32), "1.500000053056283e-07"),
            (1e16, "1e+16"),
            (-2.5e-10, "-2.5e-10"),
        ];
        for (value, expected) in cases {
            assert_eq!(python_float(value), expected);
        }
    }
}
