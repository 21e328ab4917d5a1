//! The configurations of MLX checkpoints (specs/conventions/mlx.md, clauses M8 to M12).

use serde_json::{Map, Value};

use crate::config::shorten;
use crate::{Error, Headers, Settings};

/// How codes and scales are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Integers, a scale and a bias for each group.
    Affine,
    /// E2M1 in groups of 32 with powers of two.
    Mxfp4,
    /// E4M3 in groups of 32 with powers of two.
    Mxfp8,
    /// E2M1 in groups of 16 with E4M3 scales.
    Nvfp4,
}

impl Mode {
    /// Every mode.
    pub(super) const ALL: [Mode; 4] = [Mode::Affine, Mode::Mxfp4, Mode::Mxfp8, Mode::Nvfp4];

    /// As configurations have it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Mode::Affine => "affine",
            Mode::Mxfp4 => "mxfp4",
            Mode::Mxfp8 => "mxfp8",
            Mode::Nvfp4 => "nvfp4",
        }
    }

    /// `(bits, group size)`; the only ones of all modes but affine.
    pub(super) const fn default_sizes(self) -> (u32, u64) {
        match self {
            Mode::Affine => (4, 64),
            Mode::Mxfp4 => (4, 32),
            Mode::Mxfp8 => (8, 32),
            Mode::Nvfp4 => (4, 16),
        }
    }
}

/// What holds for one module; `None` where nothing says it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Args {
    pub(super) mode: Option<Mode>,
    pub(super) bits: Option<u32>,
    pub(super) group: Option<u64>,
}

/// What the configuration says of a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// Quantized so.
    Quantized(Args),
    /// `false`: left dense.
    Dense,
}

/// Keys of the settings that are no module's.
const OWN_KEYS: [&str; 9] = [
    "group_size",
    "bits",
    "mode",
    "quant_method",
    "method",
    "modules_to_not_convert",
    "linear_class",
    "quantize_embeddings",
    "dequantize",
];

/// What the configuration says.
#[derive(Debug, Default)]
pub(super) struct Config {
    /// Where it stands; `None` without one.
    pub(super) place: Option<String>,
    global: Args,
    modules: Map<String, Value>,
}

impl Config {
    /// Finds and parses the settings; several documents must agree. Settings of someone else count as none.
    pub(super) fn find(headers: Headers<'_>) -> Result<Self, Error> {
        let all = headers.settings()?;
        let ours: Vec<&Settings> = all.iter().filter(|s| is_ours(s)).collect();
        // MLX looks at `quantization` and takes the copy for the hub only where that is missing.
        let first = ours
            .iter()
            .find(|s| s.place.ends_with("quantization"))
            .or(ours.first());
        let Some(first) = first else {
            return Ok(Self::default());
        };
        for other in &ours {
            agree(first, other)?;
        }
        Self::parse(first)
    }

    fn parse(settings: &Settings) -> Result<Self, Error> {
        let mut global = args(settings)?;
        // Files of before there were modes; mistral.rs and transformers have none.
        global.mode = global.mode.or(Some(Mode::Affine));
        Ok(Self {
            place: Some(settings.place.clone()),
            global: with_defaults(global),
            modules: settings
                .map
                .iter()
                .filter(|(key, value)| {
                    let is_entry = value.is_object() || value.is_boolean();
                    is_entry && !OWN_KEYS.contains(&key.as_str())
                })
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect(),
        })
    }

    /// What is said of a module.
    pub(super) fn module(&self, module: &str) -> Result<Entry, Error> {
        let place = self.place.as_deref().unwrap_or_default();
        match self.modules.get(module) {
            Some(Value::Bool(false)) => Ok(Entry::Dense),
            Some(Value::Object(map)) => {
                let settings = Settings {
                    place: format!("{place}.{module}"),
                    map: map.clone(),
                };
                // `to_quantized(**entry)`: what an entry leaves out is MLX's default, whatever stands above it.
                let mut args = args(&settings)?;
                let mode = args.mode.unwrap_or(Mode::Affine);
                args.mode = Some(mode);
                args.bits = args.bits.or(Some(mode.default_sizes().0));
                args.group = args.group.or(Some(mode.default_sizes().1));
                Ok(Entry::Quantized(args))
            }
            _ => Ok(Entry::Quantized(self.global)),
        }
    }

    /// Modules that the configuration says are quantized.
    pub(super) fn announced(&self) -> impl Iterator<Item = &str> {
        self.modules
            .iter()
            .filter(|(_, value)| **value != Value::Bool(false))
            .map(|(key, _)| key.as_str())
    }

    /// In words.
    pub(super) fn describe(&self) -> Option<String> {
        let place = self.place.as_deref()?;
        let mode = self.global.mode.map_or("no mode", Mode::name);
        let number = |n: Option<u64>| n.map_or_else(|| "unknown".to_owned(), |n| n.to_string());
        Some(format!(
            "{place}: {mode}, bits {}, group_size {}, {} modules of their own",
            number(self.global.bits.map(u64::from)),
            number(self.global.group),
            self.modules.len()
        ))
    }
}

/// MLX's own settings have no method; mistral.rs and transformers name theirs.
fn is_ours(settings: &Settings) -> bool {
    if let Some(method) = settings.method() {
        return matches!(method.as_str(), "afq" | "mlx" | "metal");
    }
    let has = |key: &str| settings.map.contains_key(key);
    // Not GPTQ or AWQ without a method, not ModelOpt.
    let others = ["sym", "desc_act", "zero_point", "quant_algo", "w_bit"];
    settings.place.starts_with("config.json")
        && (has("bits") || has("mode"))
        && !others.into_iter().any(has)
}

fn args(settings: &Settings) -> Result<Args, Error> {
    let bits = settings.integer("bits", 1..=8)?;
    let group = settings.integer("group_size", 1..=crate::config::MAX_GROUP)?;
    let mode = match settings.text("mode")? {
        None => None,
        Some(name) => {
            let mode = Mode::ALL.into_iter().find(|m| m.name() == name);
            let wrong =
                || settings.wrong("mode", "affine, mxfp4, mxfp8 or nvfp4", &Value::from(name));
            Some(mode.ok_or_else(wrong)?)
        }
    };
    Ok(Args {
        mode,
        bits: bits.and_then(|b| u32::try_from(b).ok()),
        group: group.map(i64::unsigned_abs),
    })
}

/// Sizes that follow from the mode.
fn with_defaults(args: Args) -> Args {
    match args.mode {
        None | Some(Mode::Affine) => args,
        Some(mode @ (Mode::Mxfp4 | Mode::Mxfp8 | Mode::Nvfp4)) => Args {
            mode: Some(mode),
            bits: args.bits.or(Some(mode.default_sizes().0)),
            group: args.group.or(Some(mode.default_sizes().1)),
        },
    }
}

/// What two documents state must be the same; silence contradicts nothing.
fn agree(first: &Settings, other: &Settings) -> Result<(), Error> {
    for (key, value) in &first.map {
        let Some(also) = other.map.get(key).filter(|also| *also != value) else {
            continue;
        };
        return Err(Error::ConfigsDisagree {
            key: key.clone(),
            first: first.place.clone(),
            first_value: shorten(&value.to_string()),
            second: other.place.clone(),
            second_value: shorten(&also.to_string()),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(value: Value) -> Result<Config, Error> {
        let Value::Object(map) = value else {
            panic!("no object")
        };
        Config::parse(&Settings {
            place: "config.json: quantization".into(),
            map,
        })
    }

    #[test]
    fn an_entry_of_a_module_takes_no_value_from_above() {
        let config = parse(json!({"group_size": 32, "bits": 8, "mode": "mxfp8",
            "a": {"bits": 6}, "b": {"mode": "nvfp4"}, "c": false, "d": true}))
        .unwrap();
        let args = |mode, bits, group| {
            Entry::Quantized(Args {
                mode: Some(mode),
                bits: Some(bits),
                group: Some(group),
            })
        };
        assert_eq!(config.module("a").unwrap(), args(Mode::Affine, 6, 64));
        assert_eq!(config.module("b").unwrap(), args(Mode::Nvfp4, 4, 16));
        assert_eq!(config.module("c").unwrap(), Entry::Dense);
        assert_eq!(config.module("d").unwrap(), args(Mode::Mxfp8, 8, 32));
        assert_eq!(config.module("e").unwrap(), args(Mode::Mxfp8, 8, 32));
        assert_eq!(config.announced().collect::<Vec<_>>(), ["a", "b", "d"]);
    }

    #[test]
    fn values_are_checked() {
        for bad in [
            json!({"bits": 0}),
            json!({"bits": 9}),
            json!({"bits": "4"}),
            json!({"bits": 4.5}),
            json!({"bits": 4, "group_size": 0}),
            json!({"bits": 4, "group_size": -1}),
            json!({"bits": 4, "group_size": 1_u64 << 40}),
            json!({"bits": 4, "mode": "nf4"}),
            json!({"bits": 4, "mode": 1}),
        ] {
            assert!(parse(bad.clone()).is_err(), "{bad}");
        }
        let config = parse(json!({"bits": 4, "m": {"bits": 99}})).unwrap();
        assert!(config.module("m").is_err());
    }
}
