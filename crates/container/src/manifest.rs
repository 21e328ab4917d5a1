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

/// The manifest beside the shards, `safequant-manifest.json` (specs/container/manifest.md).
///
/// It has no digest of a file, and no name of one: splitting the same tensors into other shards gives the same manifest,
/// so that two outputs can be compared however they are split. Nor does it have the version of the engine, which belongs
/// to the journal of a run: equal content gives equal bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifest {
    /// By tensor name.
    pub tensors: Vec<ManifestEntry>,
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
        json.push_str("\n  }\n}\n");
        json.into_bytes()
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
        let (mut has_version, mut tensors) = (false, None);
        reader.object(|reader, key| {
            match &*key {
                "schema_version" => {
                    check_version(reader.u64())?;
                    has_version = true;
                }
                "tensors" => tensors = Some(parse_tensors(reader)?),
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
        Ok(Self { tensors })
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

    #[test]
    fn a_manifest_reads_back_and_equal_content_gives_equal_bytes() -> Result<(), Error> {
        let one = Manifest {
            tensors: ["b", "a\n\u{1F600}", ""].map(entry).to_vec(),
        };
        let other = Manifest {
            tensors: ["", "b", "a\n\u{1F600}"].map(entry).to_vec(),
        };
        assert_eq!(one.to_json(), other.to_json());
        let read = Manifest::from_json(&one.to_json())?;
        assert_eq!(read.to_json(), one.to_json());
        assert_eq!(read.tensors[0].name, "");
        assert_eq!(
            Manifest::from_json(&Manifest::default().to_json())?,
            Manifest::default()
        );
        let value: serde_json::Value = serde_json::from_slice(&one.to_json()).unwrap();
        assert_eq!(value["tensors"]["b"]["dtype"], "BF16");
        Ok(())
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
