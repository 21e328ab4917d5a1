//! Digests of what was written: one BLAKE3 per tensor, independent of how shards are split
//! (specs/container/manifest.md).

use std::fmt::Write as _;

use crate::json::{MAX_TEXT_BYTES, Reader};
use crate::writer::{push_list, push_string};
use crate::{Dtype, Error};

/// The digest of one tensor's bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestEntry {
    /// The tensor.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions.
    pub shape: Vec<u64>,
    /// BLAKE3 of the tensor's bytes, in hexadecimal.
    pub blake3: String,
}

/// What quantizing one module cost, as the run that did it measured.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ManifestModule {
    /// The module.
    pub name: String,
    /// What it was quantized to, as users name it.
    pub scheme: String,
    /// The quantizer; several, joined by `+`, where the matrices of a stack were not all quantized alike.
    pub method: String,
    /// How hard it tried, where it can be told how hard.
    pub effort: Option<String>,
    /// Logical weights.
    pub n_weights: u64,
    /// Bytes of its tensors, scales and all.
    pub len_bytes: u64,
    /// What was lost.
    pub losses: ManifestLosses,
}

/// Sums over all values of a module; `None` for what nobody measured, or what no JSON number can be.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ManifestLosses {
    /// Squares of the weights.
    pub signal: Option<f64>,
    /// Squares of what they are off by.
    pub noise: Option<f64>,
    /// The largest difference.
    pub max_error: Option<f64>,
    /// Squares of the outputs for the calibration inputs, per token.
    pub output_signal: Option<f64>,
    /// Squares of what they are off by.
    pub output_noise: Option<f64>,
}

impl ManifestLosses {
    /// The error of the outputs as a share of these, where it is known.
    pub fn output_error(&self) -> Option<f64> {
        let share = self.output_noise? / self.output_signal?;
        share.is_finite().then_some(share)
    }

    /// Every number under its key.
    fn fields(&mut self) -> [(&'static str, &mut Option<f64>); 5] {
        [
            ("signal", &mut self.signal),
            ("noise", &mut self.noise),
            ("max_error", &mut self.max_error),
            ("output_signal", &mut self.output_signal),
            ("output_noise", &mut self.output_noise),
        ]
    }
}

/// The manifest beside the shards, `safequant-manifest.json` (specs/container/manifest.md).
///
/// It has no digest of a file, and no name of one: splitting the same tensors into other shards gives the same manifest,
/// so that two outputs can be compared however they are split. Nor does it have the version of the engine, which belongs
/// to the journal of a run: equal content gives equal bytes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Manifest {
    /// By tensor name.
    pub tensors: Vec<ManifestEntry>,
    /// Modules that were quantized, by name.
    pub modules: Vec<ManifestModule>,
}

/// The version of the format.
const SCHEMA_VERSION: u64 = 1;

/// A manifest is an object of an object of objects with a list.
const MAX_DEPTH: usize = 4;

impl Manifest {
    /// The file's name.
    pub const FILE_NAME: &'static str = "safequant-manifest.json";

    /// The file's bytes: sorted by name, so that equal content gives equal bytes; one line for each tensor.
    pub fn to_json(&self) -> Vec<u8> {
        let mut sorted: Vec<_> = self.tensors.iter().collect();
        sorted.sort_by(|a, b| a.name.cmp(&b.name));
        let mut json = format!("{{\n  \"schema_version\": {SCHEMA_VERSION},\n  \"tensors\": {{");
        for (i, entry) in sorted.into_iter().enumerate() {
            json.push_str(if i == 0 { "\n    " } else { ",\n    " });
            push_string(&mut json, &entry.name);
            let _ = write!(json, ": {{\"dtype\": \"{}\", \"shape\": ", entry.dtype);
            push_list(&mut json, &entry.shape);
            json.push_str(", \"blake3\": ");
            push_string(&mut json, &entry.blake3);
            json.push('}');
        }
        json.push_str("\n  }");
        self.push_modules(&mut json);
        json.push_str("\n}\n");
        json.into_bytes()
    }

    fn push_modules(&self, json: &mut String) {
        let mut sorted: Vec<_> = self.modules.iter().collect();
        sorted.sort_by(|a, b| a.name.cmp(&b.name));
        for (i, module) in sorted.iter().enumerate() {
            json.push_str(if i == 0 {
                ",\n  \"modules\": {\n    "
            } else {
                ",\n    "
            });
            push_string(json, &module.name);
            json.push_str(": {\"scheme\": ");
            push_string(json, &module.scheme);
            json.push_str(", \"method\": ");
            push_string(json, &module.method);
            json.push_str(", \"effort\": ");
            match &module.effort {
                Some(effort) => push_string(json, effort),
                None => json.push_str("null"),
            }
            let (weights, bytes) = (module.n_weights, module.len_bytes);
            let _ = write!(json, ", \"weights\": {weights}, \"bytes\": {bytes}");
            for (key, value) in module.losses.clone().fields() {
                let _ = write!(json, ", \"{key}\": {}", Padded(*value));
            }
            json.push('}');
        }
        if !sorted.is_empty() {
            json.push_str("\n  }");
        }
    }

    /// Reads a manifest; whitespace and the order of members are free, nothing else is.
    ///
    /// # Errors
    /// A named condition for anything that [`Manifest::to_json`] would not write: `ManifestVersion` for another
    /// version, `Manifest` and `ManifestEntry` for missing or unknown members and for digests that are none,
    /// `DuplicateKey`, and those of JSON.
    pub fn from_json(bytes: &[u8]) -> Result<Self, Error> {
        let file = Self::FILE_NAME;
        let found = bytes.len() as u64;
        if found > MAX_TEXT_BYTES {
            let limit = MAX_TEXT_BYTES;
            return Err(Error::DocumentTooLarge {
                file: file.to_owned(),
                found,
                limit,
            });
        }
        let text = std::str::from_utf8(bytes).map_err(|error| Error::NotUtf8 {
            file: file.to_owned(),
            offset: error.valid_up_to() as u64,
        })?;
        let mut reader = Reader::new(file, text, MAX_DEPTH);
        let (mut has_version, mut tensors, mut modules) = (false, None, Vec::new());
        reader.object(|reader, key| {
            match &*key {
                "schema_version" => {
                    check_version(reader.u64())?;
                    has_version = true;
                }
                "tensors" => tensors = Some(parse_tensors(reader)?),
                "modules" => reader.object(|reader, name| {
                    modules.push(parse_module(reader, &name)?);
                    Ok(())
                })?,
                _ => return Err(wrong("unknown member at the top")),
            }
            Ok(())
        })?;
        reader.end()?;
        if !has_version {
            return Err(wrong("schema_version is missing"));
        }
        let mut tensors = tensors.ok_or_else(|| wrong("tensors are missing"))?;
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        modules.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Self { tensors, modules })
    }
}

/// A number in always as many characters, so that the length of a manifest is known before its numbers are.
struct Padded(Option<f64>);

impl std::fmt::Display for Padded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The longest F64 in its shortest form, -2.2250738585072014e-308.
        const WIDTH: usize = 24;
        let text = match self.0.filter(|value| value.is_finite()) {
            Some(value) => format!("{value:e}"),
            None => "null".to_owned(),
        };
        write!(f, "{text:<WIDTH$}")
    }
}

fn wrong(what: &'static str) -> Error {
    Error::Manifest {
        file: Manifest::FILE_NAME.to_owned(),
        what,
    }
}

fn check_version(found: Option<u64>) -> Result<(), Error> {
    match found {
        Some(SCHEMA_VERSION) => Ok(()),
        Some(found) => Err(Error::ManifestVersion {
            file: Manifest::FILE_NAME.to_owned(),
            expected: SCHEMA_VERSION,
            found,
        }),
        None => Err(wrong("schema_version is no plain integer")),
    }
}

fn parse_tensors(reader: &mut Reader<'_>) -> Result<Vec<ManifestEntry>, Error> {
    let mut tensors = Vec::new();
    reader.object(|reader, name| {
        tensors.push(parse_entry(reader, &name)?);
        Ok(())
    })?;
    Ok(tensors)
}

fn parse_entry(reader: &mut Reader<'_>, name: &str) -> Result<ManifestEntry, Error> {
    let wrong = |what| Error::ManifestEntry {
        file: Manifest::FILE_NAME.to_owned(),
        tensor: name.to_owned(),
        what,
    };
    let (mut dtype, mut shape, mut blake3) = (None, None, None);
    reader.object(|reader, key| {
        match &*key {
            "dtype" => dtype = Dtype::from_name(&reader.string()?),
            "shape" => {
                let mut dims = Vec::new();
                reader.array(|reader| {
                    dims.push(
                        reader
                            .u64()
                            .ok_or_else(|| wrong("shape is no list of integers"))?,
                    );
                    Ok(())
                })?;
                shape = Some(dims);
            }
            "blake3" => blake3 = Some(reader.string()?).filter(|digest| is_digest(digest)),
            _ => return Err(wrong("unknown member")),
        }
        Ok(())
    })?;
    Ok(ManifestEntry {
        name: name.to_owned(),
        dtype: dtype.ok_or_else(|| wrong("dtype is missing or unknown"))?,
        shape: shape.ok_or_else(|| wrong("shape is missing"))?,
        blake3: blake3
            .ok_or_else(|| wrong("blake3 must be 64 lower-case hexadecimal digits"))?
            .into_owned(),
    })
}

fn parse_module(reader: &mut Reader<'_>, name: &str) -> Result<ManifestModule, Error> {
    let wrong = |what| Error::ManifestEntry {
        file: Manifest::FILE_NAME.to_owned(),
        tensor: name.to_owned(),
        what,
    };
    let mut module = ManifestModule {
        name: name.to_owned(),
        ..ManifestModule::default()
    };
    let mut n_members = 0;
    reader.object(|reader, key| {
        let integer = |found: Option<u64>| found.ok_or_else(|| wrong("no plain integer"));
        match &*key {
            "scheme" => module.scheme = reader.string()?.into_owned(),
            "method" => module.method = reader.string()?.into_owned(),
            "effort" if reader.peek() == Some(b'n') => reader.literal("null")?,
            "effort" => module.effort = Some(reader.string()?.into_owned()),
            "weights" => module.n_weights = integer(reader.u64())?,
            "bytes" => module.len_bytes = integer(reader.u64())?,
            key => {
                let mut fields = module.losses.fields().into_iter();
                let field = fields.find(|(name, _)| *name == key);
                let (_, field) = field.ok_or_else(|| wrong("unknown member"))?;
                *field = reader.number_or_null()?;
            }
        }
        n_members += 1;
        Ok(())
    })?;
    if n_members < 10 {
        return Err(wrong("a member is missing"));
    }
    Ok(module)
}

fn is_digest(text: &str) -> bool {
    text.len() == 64
        && text
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str) -> ManifestEntry {
        let blake3 = blake3::hash(name.as_bytes()).to_hex().to_string();
        ManifestEntry {
            name: name.to_owned(),
            dtype: Dtype::BF16,
            shape: vec![2, 0],
            blake3,
        }
    }

    fn module(name: &str) -> ManifestModule {
        ManifestModule {
            name: name.to_owned(),
            scheme: "W4A16".to_owned(),
            method: "rtn".to_owned(),
            effort: None,
            n_weights: 8,
            len_bytes: 6,
            losses: ManifestLosses {
                signal: Some(0.25),
                noise: Some(1.5e-7),
                max_error: Some(0.1),
                ..ManifestLosses::default()
            },
        }
    }

    #[test]
    fn a_manifest_reads_back_and_equal_content_gives_equal_bytes() -> Result<(), Error> {
        let one = Manifest {
            tensors: ["b", "a\n\u{1F600}", ""].map(entry).to_vec(),
            modules: ["m", "l"].map(module).to_vec(),
        };
        let other = Manifest {
            tensors: ["", "b", "a\n\u{1F600}"].map(entry).to_vec(),
            modules: ["l", "m"].map(module).to_vec(),
        };
        assert_eq!(one.to_json(), other.to_json());
        let read = Manifest::from_json(&one.to_json())?;
        assert_eq!(read.to_json(), one.to_json());
        assert_eq!(read.tensors[0].name, "");
        assert_eq!(read.modules[0], module("l"));
        assert_eq!(
            Manifest::from_json(&Manifest::default().to_json())?,
            Manifest::default()
        );
        let value: serde_json::Value = serde_json::from_slice(&one.to_json()).unwrap();
        assert_eq!(value["tensors"]["b"]["dtype"], "BF16");
        assert_eq!(value["modules"]["m"]["noise"], 1.5e-7);
        assert!(value["modules"]["m"]["output_noise"].is_null());
        Ok(())
    }

    #[test]
    fn the_length_does_not_depend_on_what_was_measured() {
        let with = |losses| Manifest {
            tensors: Vec::new(),
            modules: vec![ManifestModule {
                losses,
                ..module("m")
            }],
        };
        let nothing = with(ManifestLosses::default()).to_json();
        for number in [
            0.0,
            1.0,
            f64::MIN_POSITIVE,
            f64::MAX,
            f64::INFINITY,
            -1.0 / 3.0e-200,
        ] {
            let mut losses = ManifestLosses::default();
            losses
                .fields()
                .into_iter()
                .for_each(|(_, field)| *field = Some(number));
            let manifest = with(losses);
            assert_eq!(manifest.to_json().len(), nothing.len(), "{number}");
            let read = Manifest::from_json(&manifest.to_json()).unwrap();
            assert_eq!(
                read.modules[0].losses.noise,
                Some(number).filter(|n| n.is_finite())
            );
        }
    }

    #[test]
    fn whatever_we_would_not_write_is_refused() {
        let digest = "0".repeat(64);
        let good = format!(r#"{{"dtype":"U8","shape":[1],"blake3":"{digest}"}}"#);
        let manifest = |entry: &str| format!(r#"{{"schema_version":1,"tensors":{{"a":{entry}}}}}"#);
        assert!(Manifest::from_json(manifest(&good).as_bytes()).is_ok());
        let cases = [
            (String::new(), "container_json"),
            ("{}".to_owned(), "manifest"),
            (
                r#"{"schema_version":2,"tensors":{}}"#.to_owned(),
                "manifest_version",
            ),
            (
                r#"{"schema_version":1.0,"tensors":{}}"#.to_owned(),
                "manifest",
            ),
            (r#"{"schema_version":1}"#.to_owned(), "manifest"),
            (
                r#"{"schema_version":1,"tensors":{},"x":1}"#.to_owned(),
                "manifest",
            ),
            (
                r#"{"schema_version":1,"tensors":[]}"#.to_owned(),
                "container_json",
            ),
            (manifest("{}"), "manifest_entry"),
            (manifest(&good.replace("U8", "U9")), "manifest_entry"),
            (manifest(&good.replace('0', "A")), "manifest_entry"),
            (manifest(&good.replace("00", "0")), "manifest_entry"),
            (manifest(&good.replace("[1]", "[-1]")), "manifest_entry"),
            (manifest(&good.replace("[1]", "[[[[]]]]")), "manifest_entry"),
            (manifest(&good.replace("shape", "dtype")), "container_json"),
            (
                r#"{"schema_version":1,"tensors":{},"modules":{"m":{"scheme":"s"}}}"#.to_owned(),
                "manifest_entry",
            ),
            (
                r#"{"schema_version":1,"tensors":{},"modules":{"m":{"noise":"s"}}}"#.to_owned(),
                "container_json",
            ),
            (
                manifest(&format!(r#"{good},"a":{good}"#)),
                "container_duplicate_key",
            ),
        ];
        for (text, code) in cases {
            let outcome = Manifest::from_json(text.as_bytes()).map_err(|error| error.code());
            assert_eq!(outcome, Err(code), "{text}");
        }
        assert!(Manifest::from_json(b"\xff").is_err());
    }
}
