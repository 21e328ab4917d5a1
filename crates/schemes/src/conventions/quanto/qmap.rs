//! `quanto_qmap.json`: which modules are quantized, and to what (specs/conventions/quanto.md, Q3).

use std::collections::BTreeMap;
use std::fmt;

use safequant_container::Dtype;
use serde_json::Value;

use crate::config::{Settings, parse};
use crate::{Error, Headers};

/// The document's name.
pub(super) const DOCUMENT: &str = "quanto_qmap.json";

/// What a module's weight is quantized to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Qtype {
    /// One code per byte, of this dtype.
    Bytes(Dtype),
    /// Codes in planes.
    Packed {
        /// 4 or 2.
        bits: u32,
    },
}

impl fmt::Display for Qtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Qtype::Bytes(dtype) => write!(f, "{dtype}"),
            Qtype::Packed { bits } => write!(f, "qint{bits}"),
        }
    }
}

/// The type of codes that are stored in a dtype, packed ones of so many bits.
pub(super) fn name_of(dtype: Dtype, bits: u32) -> Option<&'static str> {
    [
        (Dtype::I8, 8, "qint8"),
        (Dtype::U8, 4, "qint4"),
        (Dtype::U8, 2, "qint2"),
        (Dtype::F8E4M3, 8, "qfloat8_e4m3fn"),
        (Dtype::F8E5M2, 8, "qfloat8_e5m2"),
        (Dtype::F8E4M3Fnuz, 8, "qfloat8_e4m3fnuz"),
    ]
    .into_iter()
    .find(|(stored, width, _)| (*stored, *width) == (dtype, bits))
    .map(|(_, _, name)| name)
}

/// The document.
#[derive(Debug)]
pub(super) struct Qmap {
    /// Quantized modules; `None` where only activations are.
    modules: BTreeMap<String, Option<Qtype>>,
}

impl Qmap {
    /// Reads it.
    ///
    /// # Errors
    /// If it is no JSON, no map of modules, or names a type that there is not.
    pub(super) fn find(headers: Headers<'_>) -> Result<Option<Self>, Error> {
        let Some(bytes) = headers.document(DOCUMENT) else {
            return Ok(None);
        };
        let Value::Object(map) = parse(DOCUMENT, bytes)? else {
            return Err(Error::Document {
                document: DOCUMENT.to_owned(),
                problem: "not a map of modules".to_owned(),
            });
        };
        let all = Settings {
            place: DOCUMENT.to_owned(),
            map,
        };
        let mut modules = BTreeMap::new();
        for name in all.map.keys() {
            let Some(entry) = all.object(name)? else {
                continue;
            };
            modules.insert(name.clone(), qtype(&entry)?);
        }
        Ok(Some(Self { modules }))
    }

    /// What a module's weight is quantized to, if it is.
    pub(super) fn get(&self, module: &str) -> Option<Qtype> {
        self.modules.get(module).copied().flatten()
    }

    /// Modules named, those with a dense weight too.
    pub(super) fn len(&self) -> usize {
        self.modules.len()
    }

    /// Whether the module is named.
    pub(super) fn names(&self, module: &str) -> bool {
        self.modules.contains_key(module)
    }
}

fn qtype(entry: &Settings) -> Result<Option<Qtype>, Error> {
    let Some(name) = entry.text("weights")? else {
        return Ok(None);
    };
    let found = match name {
        "none" => return Ok(None),
        "qint8" => Qtype::Bytes(Dtype::I8),
        "qint4" => Qtype::Packed { bits: 4 },
        "qint2" => Qtype::Packed { bits: 2 },
        "qfloat8" | "qfloat8_e4m3fn" => Qtype::Bytes(Dtype::F8E4M3),
        "qfloat8_e5m2" => Qtype::Bytes(Dtype::F8E5M2),
        "qfloat8_e4m3fnuz" => Qtype::Bytes(Dtype::F8E4M3Fnuz),
        other => return Err(entry.wrong("weights", "a type of quanto", &other.into())),
    };
    Ok(Some(found))
}
