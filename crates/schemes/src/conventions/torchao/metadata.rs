//! torchao's entries in `__metadata__`: for every parameter its class and attributes (specs/conventions/torchao.md, T1 to T4).

use std::collections::{BTreeMap, BTreeSet};

use safequant_kernels::Float;
use serde_json::Value;

use crate::config::{Settings, parse, shorten};
use crate::{Error, Headers};

/// The key with the names of all parameters.
const NAMES: &str = "tensor_names";
/// The class of a parameter that is a plain tensor.
const PLAIN: &str = "Tensor";

/// A parameter that is no plain tensor.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// The parameter: `model.layers.0.mlp.up_proj.weight`.
    pub(super) name: String,
    /// Its tensor subclass.
    pub(super) class: String,
    /// Attributes.
    pub(super) data: Settings,
    /// Names of the tensors that it consists of (`qdata`, `scale` ...).
    pub(super) parts: Vec<String>,
}

/// Every entry of a checkpoint.
#[derive(Debug, Default)]
pub(super) struct Metadata {
    /// By parameter.
    pub(super) entries: BTreeMap<String, Entry>,
    /// Shards that have the list of names.
    pub(super) n_shards: usize,
}

impl Metadata {
    /// Reads and merges the metadata of all shards. `Ok(None)`: there is none of torchao's.
    ///
    /// # Errors
    /// A listed parameter without an entry, an entry that is no description, shards that contradict each other.
    pub(super) fn find(headers: Headers<'_>) -> Result<Option<Self>, Error> {
        let mut texts: BTreeMap<&str, &str> = BTreeMap::new();
        let mut names = BTreeSet::new();
        let mut n_shards = 0;
        for (key, text) in headers.all_metadata() {
            if key == NAMES {
                let Some(listed) = list_of_names(text) else {
                    continue;
                };
                names.extend(listed);
                n_shards += 1;
            } else if let Some(other) = texts.insert(key, text)
                && other != text
                && is_entry(other)
            {
                agree(key, other, text)?;
            }
        }
        if n_shards == 0 {
            return Ok(None);
        }
        let mut found = Self {
            n_shards,
            ..Self::default()
        };
        for name in names {
            let Some(text) = texts.remove(name.as_str()) else {
                return Err(Error::MissingPart {
                    module: name.clone(),
                    part: format!("its entry in __metadata__, which {NAMES} promises,"),
                });
            };
            found.add(&name, text)?;
        }
        // Readers go by the keys too.
        for (key, text) in texts.into_iter().filter(|(_, text)| is_entry(text)) {
            found.add(key, text)?;
        }
        Ok(Some(found))
    }

    fn add(&mut self, name: &str, text: &str) -> Result<(), Error> {
        if let Some(entry) = entry(name, text)? {
            self.entries.insert(name.to_owned(), entry);
        }
        Ok(())
    }
}

/// A JSON list of texts, if it is one.
fn list_of_names(text: &str) -> Option<Vec<String>> {
    let value = parse(NAMES, text.as_bytes()).ok()?;
    let items = value.as_array()?;
    items
        .iter()
        .map(|i| i.as_str().map(str::to_owned))
        .collect()
}

/// Whether a value describes a parameter.
fn is_entry(text: &str) -> bool {
    text.trim_start().starts_with('{') && text.contains("\"_type\"")
}

/// Two shards may write the same thing in another order.
fn agree(key: &str, first: &str, second: &str) -> Result<(), Error> {
    let place = "__metadata__";
    if parse(place, first.as_bytes())? == parse(place, second.as_bytes())? {
        return Ok(());
    }
    Err(Error::ConfigsDisagree {
        key: key.to_owned(),
        first: "__metadata__ of a shard".to_owned(),
        first_value: shorten(first),
        second: "that of another".to_owned(),
        second_value: shorten(second),
    })
}

/// One entry; `None` for a plain tensor.
fn entry(name: &str, text: &str) -> Result<Option<Entry>, Error> {
    let place = format!("__metadata__: {name}");
    let Value::Object(map) = parse(&place, text.as_bytes())? else {
        return Err(Error::Document {
            document: place,
            problem: "not an object".to_owned(),
        });
    };
    let all = Settings { place, map };
    let missing = |key: &str| Error::ConfigValue {
        document: all.place.clone(),
        key: key.to_owned(),
        expected: "a value".to_owned(),
        found: "null".to_owned(),
    };
    let class = all.text("_type")?.ok_or_else(|| missing("_type"))?;
    if class == PLAIN {
        return Ok(None);
    }
    let class = class.to_owned();
    let data = all.object("_data")?.ok_or_else(|| missing("_data"))?;
    let parts = all.texts("_tensor_data_names")?;
    Ok(Some(Entry {
        name: name.to_owned(),
        class,
        data,
        parts,
    }))
}

impl Entry {
    /// The module: without `.weight`; other parameters (fused experts) are modules of their own.
    pub(super) fn module(&self) -> &str {
        self.name.strip_suffix(".weight").unwrap_or(&self.name)
    }

    /// What the names of its tensors begin with: `M._p_` for the parameter `M.p`.
    ///
    /// # Errors
    /// A name without a dot, which torchao cannot split.
    pub(super) fn prefix(&self) -> Result<String, Error> {
        let (module, parameter) = self
            .name
            .rsplit_once('.')
            .ok_or_else(|| Error::ConfigValue {
                document: "__metadata__".to_owned(),
                key: NAMES.to_owned(),
                expected: "names with a dot".to_owned(),
                found: shorten(&self.name),
            })?;
        Ok(format!("{module}._{parameter}_"))
    }

    /// The text of an encoded attribute (`{"_type": .., "_data": "bfloat16"}`) of this type.
    fn encoded(&self, key: &str, kind: &str) -> Result<Option<String>, Error> {
        let Some(value) = self.data.get(key) else {
            return Ok(None);
        };
        let text = value.get("_data").and_then(Value::as_str);
        let is_kind = value.get("_type").and_then(Value::as_str) == Some(kind);
        match text {
            Some(text) if is_kind => Ok(Some(text.to_owned())),
            _ => Err(self.data.wrong(key, kind, value)),
        }
    }

    /// The name of a dtype.
    pub(super) fn dtype(&self, key: &str) -> Result<Option<String>, Error> {
        self.encoded(key, "torch.dtype")
    }

    /// An element type: a dtype, or one of the texts that torchao has for types that torch lacks.
    pub(super) fn element_dtype(&self, key: &str) -> Result<Option<String>, Error> {
        match self.data.get(key) {
            Some(Value::String(text)) => Ok(Some(text.clone())),
            _ => self.dtype(key),
        }
    }

    /// A dense float dtype.
    pub(super) fn float(&self, key: &str) -> Result<Option<Float>, Error> {
        let Some(name) = self.dtype(key)? else {
            return Ok(None);
        };
        match name.as_str() {
            "bfloat16" => Ok(Some(Float::Bf16)),
            "float16" | "half" => Ok(Some(Float::F16)),
            "float32" | "float" => Ok(Some(Float::F32)),
            _ => Err(self
                .data
                .wrong(key, "bfloat16, float16 or float32", &name.into())),
        }
    }

    /// A list of sizes; `None` where it is null or empty.
    pub(super) fn sizes(&self, key: &str) -> Result<Option<Vec<u64>>, Error> {
        let Some(value) = self.data.get(key) else {
            return Ok(None);
        };
        let wrong = || self.data.wrong(key, "a list of sizes above 0", value);
        let items = value.as_array().ok_or_else(wrong)?;
        let size = |item: &Value| item.as_u64().filter(|&n| n > 0 && n < 1 << 48);
        let sizes: Option<Vec<u64>> = items.iter().map(size).collect();
        let sizes = sizes.ok_or_else(wrong)?;
        Ok((!sizes.is_empty()).then_some(sizes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_tensors_have_no_entry_and_others_need_a_class() {
        assert!(entry("m.bias", r#"{"_type": "Tensor"}"#).unwrap().is_none());
        let text = r#"{"_type": "Int8Tensor", "_data": {"block_size": [1, 8], "dtype": {"_type": "torch.dtype", "_data": "bfloat16"}}, "_tensor_data_names": ["qdata"]}"#;
        let e = entry("m.weight", text).unwrap().unwrap();
        assert_eq!(
            (e.module(), e.prefix().unwrap().as_str()),
            ("m", "m._weight_")
        );
        assert_eq!(e.float("dtype").unwrap(), Some(Float::Bf16));
        assert_eq!(e.sizes("block_size").unwrap(), Some(vec![1, 8]));
        for bad in ["[]", "{", "{\"_data\": {}}", r#"{"_type": 3, "_data": {}}"#] {
            assert!(entry("m.weight", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_are_strict() {
        for bad in [
            "[0, 8]",
            "[-1, 8]",
            "[1.5]",
            "8",
            "[\"8\"]",
            "[18446744073709551615]",
        ] {
            let text = format!(r#"{{"_type": "X", "_data": {{"block_size": {bad}}}}}"#);
            let e = entry("m.weight", &text).unwrap().unwrap();
            assert!(e.sizes("block_size").is_err(), "{bad}");
        }
    }
}
