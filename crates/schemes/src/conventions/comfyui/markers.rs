//! What a file says about its layers: marker tensors and the header's `_quantization_metadata`
//! (specs/conventions/comfyui.md, clauses C3 to C7).

use std::collections::BTreeMap;

use safequant_container::Dtype;
use serde_json::{Map, Value};

use crate::config::{MAX_GROUP, shorten};
use crate::{Error, Headers, Rotation, Settings};

/// The ending of a marker's name.
pub(super) const MARKER: &str = ".comfy_quant";
/// The key of the header's description.
pub(super) const HEADER_KEY: &str = "_quantization_metadata";
/// Input features per rotation, where it is not stated.
const DEFAULT_ROTATION: i64 = 256;

/// The description of one layer.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Layer {
    settings: Settings,
}

/// What of a description decides how a weight is read.
#[derive(Debug, PartialEq)]
struct Meaning {
    format: Option<String>,
    rotation: Option<u64>,
    group: Option<u64>,
    shape: Option<Vec<u64>>,
}

impl Layer {
    fn new(place: String, map: Map<String, Value>) -> Self {
        Self {
            settings: Settings { place, map },
        }
    }

    /// Where it stands.
    pub(super) fn place(&self) -> &str {
        &self.settings.place
    }

    /// `format`; the dialect of `ComfyUI-INT8-Fast` has none.
    pub(super) fn format(&self) -> Result<Option<&str>, Error> {
        self.settings.text("format")
    }

    /// The settings in which a key stands: at the top, or in `params`.
    fn place_of(&self, key: &str) -> Result<Settings, Error> {
        if self.settings.get(key).is_some() {
            return Ok(self.settings.clone());
        }
        Ok(self
            .settings
            .object("params")?
            .unwrap_or_else(|| self.settings.clone()))
    }

    /// The size of a group, 1 to 2^31 - 1.
    pub(super) fn group_size(&self) -> Result<Option<u64>, Error> {
        let settings = self.place_of("group_size")?;
        let size = settings.integer("group_size", 1..=MAX_GROUP)?;
        Ok(size.map(i64::unsigned_abs))
    }

    /// The rotation of a format that is always rotated.
    pub(super) fn rotation(&self) -> Result<Rotation, Error> {
        const KEY: &str = "convrot_groupsize";
        let settings = self.place_of(KEY)?;
        let size = settings
            .integer(KEY, 1..=MAX_GROUP)?
            .unwrap_or(DEFAULT_ROTATION);
        Rotation::conv_rot(size.unsigned_abs()).ok_or_else(|| {
            settings.wrong(
                KEY,
                "a power of 4 from 4 to 65536 that divides a row",
                &size.into(),
            )
        })
    }

    /// The rotation of a format that may be rotated.
    pub(super) fn optional_rotation(&self) -> Result<Rotation, Error> {
        match self.place_of("convrot")?.boolean("convrot")? {
            Some(true) => self.rotation(),
            Some(false) | None => Ok(Rotation::None),
        }
    }

    /// `orig_shape`: the shape without padding.
    pub(super) fn shape(&self) -> Result<Option<Vec<u64>>, Error> {
        let Some(value) = self.settings.get("orig_shape") else {
            return Ok(None);
        };
        let sides = value
            .as_array()
            .and_then(|items| items.iter().map(Value::as_u64).collect::<Option<Vec<_>>>());
        match sides {
            Some(sides) if sides.len() >= 2 => Ok(Some(sides)),
            _ => Err(self.settings.wrong("orig_shape", "two integers", value)),
        }
    }

    /// `num_experts`.
    pub(super) fn experts(&self) -> Result<Option<u64>, Error> {
        let experts = self.settings.integer("num_experts", 0..=MAX_GROUP)?;
        Ok(experts.map(i64::unsigned_abs))
    }

    fn meaning(&self) -> Result<Meaning, Error> {
        let format = self.format()?;
        let rotation = match format {
            Some("asym_w4a8_int8" | "convrot_w4a4") => self.rotation()?,
            _ => self.optional_rotation()?,
        };
        let group = match format {
            Some("asym_w4a8_int8") => self.group_size()?.or(Some(16)),
            Some("awq_w4a16") => self.group_size()?.or(Some(64)),
            _ => None,
        };
        Ok(Meaning {
            format: format.map(str::to_owned),
            rotation: match rotation {
                Rotation::None => None,
                Rotation::ConvRot { size } => Some(size),
            },
            group,
            shape: self.shape()?,
        })
    }

    /// The header overwrites the marker when `ComfyUI` loads; where the two mean different weights, nobody can tell which
    /// is right.
    fn agree(header: &Layer, marker: &Layer) -> Result<(), Error> {
        let (first, second) = (header.meaning()?, marker.meaning()?);
        let unlike = |key: &str, a: String, b: String| {
            Err(Error::ConfigsDisagree {
                key: key.to_owned(),
                first: header.place().to_owned(),
                first_value: a,
                second: marker.place().to_owned(),
                second_value: b,
            })
        };
        let text = |v: &Option<u64>| v.map_or("none".to_owned(), |v| v.to_string());
        if let (Some(a), Some(b)) = (&first.format, &second.format)
            && a != b
        {
            return unlike("format", shorten(a), shorten(b));
        }
        if first.rotation != second.rotation {
            return unlike("convrot", text(&first.rotation), text(&second.rotation));
        }
        if first.group != second.group {
            return unlike("group_size", text(&first.group), text(&second.group));
        }
        match (first.shape, second.shape) {
            (Some(a), Some(b)) if a != b => {
                unlike("orig_shape", format!("{a:?}"), format!("{b:?}"))
            }
            _ => Ok(()),
        }
    }
}

/// Every description of a file, by module, and what became of markers that describe nothing.
#[derive(Default)]
pub(super) struct Markers {
    /// By module name: what to read the layer by.
    pub(super) layers: BTreeMap<String, Layer>,
    /// Whether the header describes layers.
    pub(super) has_header: bool,
    /// Markers that describe nothing: no such weight, or a dense one with an empty marker.
    pub(super) idle: Vec<String>,
    /// Modules that the header names and the file does not have.
    pub(super) absent: Vec<String>,
}

impl Markers {
    /// Reads the header's description and every marker.
    pub(super) fn find(headers: Headers<'_>) -> Result<Self, Error> {
        let mut found = Self::default();
        let described = headers.all_metadata().filter(|(key, _)| *key == HEADER_KEY);
        for (_, text) in described {
            found.has_header = true;
            found.read_header(headers, text)?;
        }
        for info in headers.tensors() {
            let Some(module) = info.name.strip_suffix(MARKER) else {
                continue;
            };
            if info.dtype != Dtype::U8 || info.shape.len() != 1 {
                return Err(Error::PartDtype {
                    module: module.to_owned(),
                    part: info.name.to_string(),
                    expected: "U8, one dimension".to_owned(),
                    found: info.dtype,
                });
            }
            found.read_marker(headers, module, &info.name)?;
        }
        Ok(found)
    }

    fn read_header(&mut self, headers: Headers<'_>, text: &str) -> Result<(), Error> {
        let document = format!("__metadata__.{HEADER_KEY}");
        let value = crate::config::parse(&document, text.as_bytes())?;
        let layers = value
            .get("layers")
            .and_then(Value::as_object)
            .ok_or_else(|| Error::ConfigValue {
                document: document.clone(),
                key: "layers".to_owned(),
                expected: "an object".to_owned(),
                found: shorten(&value.to_string()),
            })?;
        for (module, value) in layers {
            let place = format!("{document}: {module}");
            let layer = layer_of(place, value)?;
            if headers.tensor(&format!("{module}.weight")).is_none() {
                self.absent.push(module.clone());
            } else if let Some(other) = self.layers.insert(module.clone(), layer.clone()) {
                Layer::agree(&other, &layer)?;
            }
        }
        Ok(())
    }

    fn read_marker(&mut self, headers: Headers<'_>, module: &str, name: &str) -> Result<(), Error> {
        let Some(weight) = headers.tensor(&format!("{module}.weight")) else {
            self.idle.push(name.to_owned());
            return Ok(());
        };
        let bytes = headers.descriptor(name)?;
        let is_empty = bytes.iter().all(|&b| b == 0);
        if is_empty && crate::scheme::float_of(weight.dtype).is_some() {
            self.idle.push(name.to_owned());
            return Ok(());
        }
        let layer = layer_of(name.to_owned(), &crate::config::parse(name, &bytes)?)?;
        if let Some(header) = self.layers.get(module) {
            return Layer::agree(header, &layer);
        }
        self.layers.insert(module.to_owned(), layer);
        Ok(())
    }
}

/// A description: an object, or a text that is the format.
fn layer_of(place: String, value: &Value) -> Result<Layer, Error> {
    if let Some(map) = value.as_object() {
        return Ok(Layer::new(place, map.clone()));
    }
    if value.is_string() {
        let map = Map::from_iter([("format".to_owned(), value.clone())]);
        return Ok(Layer::new(place, map));
    }
    Err(Error::ConfigValue {
        document: place,
        key: "the description".to_owned(),
        expected: "a JSON object".to_owned(),
        found: shorten(&value.to_string()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn layer(place: &str, value: &Value) -> Layer {
        layer_of(place.to_owned(), value).unwrap()
    }

    #[test]
    fn options_are_found_at_the_top_and_in_params() {
        let nested = json!({"format": "int8_tensorwise", "params": {"convrot": true, "convrot_groupsize": 16}});
        let rotation = layer("m", &nested).optional_rotation().unwrap();
        assert_eq!(rotation, Rotation::ConvRot { size: 16 });
        let default = layer("m", &json!({"convrot": true}))
            .optional_rotation()
            .unwrap();
        assert_eq!(default, Rotation::ConvRot { size: 256 });
        assert_eq!(layer("m", &json!("nvfp4")).format().unwrap(), Some("nvfp4"));
    }

    #[test]
    fn sizes_are_checked() {
        for bad in [
            json!(0),
            json!(-4),
            json!(8),
            json!(512),
            json!(1_u64 << 40),
            json!("256"),
            json!(true),
        ] {
            let value = json!({"convrot": true, "convrot_groupsize": bad});
            assert!(layer("m", &value).optional_rotation().is_err(), "{value}");
        }
        for bad in [json!(0), json!(-1), json!(1.5), json!([16])] {
            assert!(
                layer("m", &json!({"group_size": bad}))
                    .group_size()
                    .is_err()
            );
        }
        for bad in [json!([16]), json!("16x16"), json!([16, -1]), json!([])] {
            assert!(layer("m", &json!({"orig_shape": bad})).shape().is_err());
        }
        assert!(layer_of("m".into(), &json!([1])).is_err());
    }

    #[test]
    fn header_and_marker_must_mean_the_same() {
        let rotated =
            json!({"format": "int8_tensorwise", "convrot": true, "convrot_groupsize": 256});
        let plain = json!({"format": "int8_tensorwise"});
        let more = json!({"format": "int8_tensorwise", "convrot": true, "per_row": true});
        let agree = |a: &Value, b: &Value| Layer::agree(&layer("header", a), &layer("marker", b));
        agree(&rotated, &more).unwrap();
        let e = agree(&plain, &rotated).unwrap_err().to_string();
        assert!(
            e.contains("header") && e.contains("marker") && e.contains("convrot"),
            "{e}"
        );
        assert!(agree(&json!("nvfp4"), &json!("mxfp8")).is_err());
    }
}
