//! What `hf_quant_config.json` and `quantization_config` of ModelOpt say (specs/conventions/modelopt.md, clauses MO1 to MO4).

use std::collections::BTreeMap;

use serde_json::Value;

use crate::config::MAX_GROUP;
use crate::{Error, Headers, Pattern, Settings, pattern};

/// Each layer names its own algorithm.
const MIXED: &str = "MIXED_PRECISION";

/// What the configuration says.
#[derive(Debug, Default)]
pub(super) struct Config {
    /// Where it stands; empty without one.
    pub(super) place: String,
    /// Of the whole model.
    pub(super) layer: Layer,
    /// Of single modules (or whole blocks of them), where the algorithms are mixed.
    layers: BTreeMap<String, Layer>,
    exclude: Vec<Pattern>,
}

/// What is said of a layer.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Layer {
    /// `quant_algo` in capitals: the exporter writes both.
    pub(super) algo: String,
    /// `group_size`; none where it is absent or 0.
    pub(super) group: Option<u64>,
}

impl Config {
    /// Finds and parses the settings; two documents must agree. `Ok(None)`: there are none of `ModelOpt`.
    pub(super) fn find(headers: Headers<'_>) -> Result<Option<Self>, Error> {
        let mut found: Option<Config> = None;
        for settings in headers.settings()? {
            let Some(ours) = quantization(&settings)? else {
                continue;
            };
            let config = Self::parse(&ours)?;
            match &found {
                None => found = Some(config),
                Some(first) => first.agree(&config)?,
            }
        }
        Ok(found)
    }

    fn parse(settings: &Settings) -> Result<Self, Error> {
        let mut config = Self {
            place: settings.place.clone(),
            layer: layer(settings)?,
            ..Self::default()
        };
        if config.layer.group.is_none() && config.layer.algo != MIXED {
            config.layer.group = group_of_groups(settings)?;
        }
        if let Some(layers) = settings.object("quantized_layers")? {
            for (name, value) in &layers.map {
                let Value::Object(map) = value else {
                    return Err(layers.wrong(name, "an object", value));
                };
                let one = layers.sub(name, map);
                config.layers.insert(name.clone(), layer(&one)?);
            }
        }
        let mut patterns = settings.texts("exclude_modules")?;
        patterns.extend(settings.texts("ignore")?);
        pattern::check_count(patterns.len())?;
        config.exclude = patterns
            .iter()
            .map(|p| Pattern::glob(p))
            .collect::<Result<_, _>>()?;
        Ok(config)
    }

    /// What two documents state must be the same; silence contradicts nothing.
    fn agree(&self, other: &Self) -> Result<(), Error> {
        let differ = |key: &str, a: String, b: String| Error::ConfigsDisagree {
            key: key.to_owned(),
            first: self.place.clone(),
            first_value: a,
            second: other.place.clone(),
            second_value: b,
        };
        let (a, b) = (&self.layer, &other.layer);
        if a.algo != b.algo {
            return Err(differ("quant_algo", a.algo.clone(), b.algo.clone()));
        }
        if let (Some(x), Some(y)) = (a.group, b.group)
            && x != y
        {
            return Err(differ("group_size", x.to_string(), y.to_string()));
        }
        Ok(())
    }

    /// Refuses a configuration that asks for too much matching.
    pub(super) fn check_work(&self, n_modules: usize) -> Result<(), Error> {
        pattern::check_work(self.exclude.len(), n_modules)
    }

    /// What is said of a module: of itself, of the nearest module around it, or of the whole model.
    pub(super) fn of(&self, module: &str) -> Option<&Layer> {
        if self.layer.algo != MIXED {
            return Some(&self.layer);
        }
        let mut name = module;
        loop {
            if let Some(layer) = self.layers.get(name) {
                return Some(layer);
            }
            name = name.rsplit_once('.')?.0;
        }
    }

    /// The pattern that excludes a module, if one does. The whole name must match, as the exporter means it; that vLLM
    /// accepts substrings too is for files older than the wildcards.
    pub(super) fn excludes(&self, module: &str) -> Result<Option<&str>, Error> {
        for pattern in &self.exclude {
            if pattern.is_match(module)? {
                return Ok(Some(pattern.text()));
            }
        }
        Ok(None)
    }
}

/// The object with `quant_algo`, if the settings are of `ModelOpt`: `hf_quant_config.json` nests it, `config.json` does not.
fn quantization(settings: &Settings) -> Result<Option<Settings>, Error> {
    let method = settings.method();
    let is_named = method.as_deref().is_some_and(|m| m.starts_with("modelopt"));
    if method.is_some() && !is_named {
        return Ok(None);
    }
    let inner = match settings.get("quantization") {
        Some(Value::Object(map)) => settings.sub("quantization", map),
        _ => settings.clone(),
    };
    Ok(inner.text("quant_algo")?.is_some().then_some(inner))
}

fn layer(settings: &Settings) -> Result<Layer, Error> {
    let algo = settings.text("quant_algo")?.unwrap_or_default();
    let group = settings.integer("group_size", 0..=MAX_GROUP)?;
    Ok(Layer {
        algo: algo.to_ascii_uppercase(),
        group: group.map(i64::unsigned_abs).filter(|&g| g > 0),
    })
}

/// The group size of the weights in `config_groups`, where all of them say the same.
fn group_of_groups(settings: &Settings) -> Result<Option<u64>, Error> {
    let Some(groups) = settings.object("config_groups")? else {
        return Ok(None);
    };
    let mut sizes = Vec::new();
    for (name, value) in &groups.map {
        let Value::Object(map) = value else {
            return Err(groups.wrong(name, "an object", value));
        };
        if let Some(weights) = groups.sub(name, map).object("weights")? {
            sizes.push(layer(&weights)?.group);
        }
    }
    sizes.dedup();
    Ok(match sizes.as_slice() {
        [size] => *size,
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn settings(value: Value) -> Settings {
        let Value::Object(map) = value else {
            panic!("no object")
        };
        Settings {
            place: "hf_quant_config.json".into(),
            map,
        }
    }

    fn parse(value: Value) -> Result<Config, Error> {
        let ours = quantization(&settings(value))?.expect("settings of ModelOpt");
        Config::parse(&ours)
    }

    #[test]
    fn both_forms_of_the_configuration_say_the_same() {
        let nested = parse(json!({"producer": {"name": "modelopt"}, "quantization": {
            "quant_algo": "NVFP4", "kv_cache_quant_algo": null, "group_size": 16, "exclude_modules": ["lm_head"]}}));
        let flat = parse(
            json!({"quant_method": "modelopt", "quant_algo": "nvfp4", "ignore": ["lm_head"],
            "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "float", "group_size": 16}}}}),
        );
        let (nested, flat) = (nested.unwrap(), flat.unwrap());
        assert_eq!(nested.layer, flat.layer);
        assert_eq!(flat.layer.group, Some(16));
        assert_eq!(flat.excludes("lm_head").unwrap(), Some("lm_head"));
        nested.agree(&flat).unwrap();
        assert!(
            nested
                .agree(&parse(json!({"quant_algo": "FP8"})).unwrap())
                .is_err()
        );
    }

    #[test]
    fn mixed_layers_are_found_by_name_or_by_the_module_around() {
        let config = parse(
            json!({"quantization": {"quant_algo": "MIXED_PRECISION", "quantized_layers": {
            "m.q_proj": {"quant_algo": "FP8"},
            "m.experts": {"quant_algo": "NVFP4", "group_size": 16}}}}),
        )
        .unwrap();
        assert_eq!(config.of("m.q_proj").unwrap().algo, "FP8");
        assert_eq!(config.of("m.experts.3.up_proj").unwrap().group, Some(16));
        assert_eq!(config.of("n.q_proj"), None);
    }

    #[test]
    fn exclusions_are_wildcards_on_whole_names() {
        let config = parse(json!({"quant_algo": "FP8", "ignore": ["*.gate*", "lm_head"]})).unwrap();
        assert!(
            config
                .excludes("model.layers.0.mlp.gate")
                .unwrap()
                .is_some()
        );
        assert!(config.excludes("model.lm_head").unwrap().is_none());
    }

    #[test]
    fn others_and_nonsense_are_told_apart() {
        for foreign in [
            json!({"quant_method": "fp8"}),
            json!({"quantization": {"quant_algo": null}}),
            json!({"bits": 4}),
        ] {
            assert!(quantization(&settings(foreign)).unwrap().is_none());
        }
        for bad in [
            json!({"quant_algo": "NVFP4", "group_size": -1}),
            json!({"quant_algo": "NVFP4", "group_size": 1.5}),
            json!({"quant_algo": "NVFP4", "group_size": u64::MAX}),
            json!({"quant_algo": "NVFP4", "config_groups": []}),
            json!({"quant_algo": "NVFP4", "config_groups": {"g": 1}}),
            json!({"quant_algo": "NVFP4", "exclude_modules": "lm_head"}),
            json!({"quant_algo": "MIXED_PRECISION", "quantized_layers": {"m": 4}}),
        ] {
            assert!(parse(bad.clone()).is_err(), "{bad}");
        }
        assert!(quantization(&settings(json!({"quant_algo": 4}))).is_err());
    }
}
