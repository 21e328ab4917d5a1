//! `quantization_config` of compressed-tensors (`specs/conventions/compressed_tensors.md`, clauses C1 to C9).
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "JSON values are not our enum, and everything but the expected kind is one error"
)]

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::binding::unsupported;
use crate::config::GroupSize;
use crate::{Error, Headers, Pattern, Settings, pattern};

/// What the configuration says, parsed; or nothing, for files without one.
#[derive(Debug, Default)]
pub(super) struct Config {
    /// Where it stands, for messages.
    pub(super) place: Option<String>,
    /// Groups in the order of the file.
    pub(super) groups: Vec<Group>,
    targets: Matcher,
    ignore: Matcher,
    /// The global format.
    pub(super) format: Option<String>,
    /// The format of `sparsity_config`.
    pub(super) sparsity: Option<String>,
    /// Major and minor version of the writer.
    pub(super) version: Option<(u64, u64)>,
}

/// One entry of `config_groups`.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) name: String,
    pub(super) format: Option<String>,
    pub(super) weights: Option<WeightArgs>,
}

/// `QuantizationArgs` of the weights.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct WeightArgs {
    pub(super) bits: u32,
    pub(super) kind: Kind,
    pub(super) zero: Zero,
    /// `None` where only a preset's name is given: the scale's shape decides.
    pub(super) strategy: Option<Strategy>,
    pub(super) order: Order,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Integer,
    Float,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Zero {
    Symmetric,
    Asymmetric,
}

/// What shares one scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Strategy {
    Tensor,
    Channel,
    Group(u64),
    /// As `Group`, under one global scale.
    TensorGroup(u64),
    Block(u64, u64),
}

impl Strategy {
    /// Whether scales are themselves scaled.
    pub(super) const fn is_nested(self) -> bool {
        matches!(self, Strategy::TensorGroup(_))
    }
}

/// Whether `weight_g_idx` assigns columns to groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// As the columns stand: no actorder, `weight` or `static`.
    Natural,
    /// `group`, and the older `dynamic` and `true`.
    Indexed,
}

/// Targets or ignores.
#[derive(Debug, Default)]
struct Matcher {
    names: BTreeMap<String, usize>,
    /// By text: that is the order in which they are tried.
    patterns: BTreeMap<String, (Pattern, usize)>,
    classes: BTreeMap<String, usize>,
}

/// Classes that every quantized matrix belongs to, as far as names can tell.
const LINEAR: [&str; 2] = ["Linear", "LinearBase"];

impl Matcher {
    /// Sorts in a target. A target listed twice belongs to the later group.
    fn add(&mut self, target: &str, group: usize) -> Result<(), Error> {
        if let Some(regex) = target.strip_prefix("re:") {
            pattern::check_count(self.patterns.len() + 1)?;
            let pattern = Pattern::regex(regex)?;
            self.patterns.insert(target.to_owned(), (pattern, group));
        } else if target.contains('.') || !target.starts_with(char::is_uppercase) {
            self.names.insert(target.to_owned(), group);
        } else {
            self.classes.insert(target.to_owned(), group);
        }
        Ok(())
    }

    /// The group that names or patterns give: full names first, then patterns in order of their text.
    fn by_name(&self, module: &str) -> Result<Option<usize>, Error> {
        let spelled = spellings(module);
        if let Some(group) = spelled.iter().find_map(|name| self.names.get(name)) {
            return Ok(Some(*group));
        }
        for (pattern, group) in self.patterns.values() {
            for name in &spelled {
                if pattern.is_match(name)? {
                    return Ok(Some(*group));
                }
            }
        }
        Ok(None)
    }

    fn by_class(&self) -> Option<usize> {
        if let Some(group) = LINEAR.iter().find_map(|class| self.classes.get(*class)) {
            return Some(*group);
        }
        // Other class names cannot be seen from a file; they decide only where they leave no choice.
        let groups: BTreeSet<usize> = self.classes.values().copied().collect();
        if groups.len() == 1 {
            groups.first().copied()
        } else {
            None
        }
    }
}

/// The name, and the same with or without the outermost `model.`: checkpoints differ in it.
fn spellings(module: &str) -> Vec<String> {
    let other = match module.strip_prefix("model.") {
        Some(rest) => rest.to_owned(),
        None => format!("model.{module}"),
    };
    vec![module.to_owned(), other]
}

impl Config {
    /// Finds the settings that are ours among all of them, and parses them.
    ///
    /// `Ok(None)`: the settings belong to someone else. `Ok(Some(default))`: there are none.
    pub(super) fn find(headers: Headers<'_>) -> Result<Option<Self>, Error> {
        let all = headers.settings()?;
        let ours = all.iter().find(|s| is_ours(s));
        match ours {
            Some(settings) => Self::parse(settings).map(Some),
            None if all.is_empty() => Ok(Some(Self::default())),
            None => Ok(None),
        }
    }

    fn parse(settings: &Settings) -> Result<Self, Error> {
        refuse_transforms(settings)?;
        let mut config = Self {
            place: Some(settings.place.clone()),
            format: settings.text("format")?.map(str::to_owned),
            version: settings.text("version")?.and_then(version),
            sparsity: sparsity(settings)?,
            ..Self::default()
        };
        for target in settings.texts("ignore")? {
            config.ignore.add(&target, 0)?;
        }
        let Some(groups) = settings.object("config_groups")? else {
            return Ok(config);
        };
        for (name, value) in &groups.map {
            let group = config.groups.len();
            let targets = match value {
                Value::Object(map) => {
                    let scheme = groups.sub(name, map);
                    config.groups.push(parse_group(name, &scheme)?);
                    scheme.texts("targets")?
                }
                Value::Array(_) => {
                    let weights = preset(name)
                        .ok_or_else(|| unsupported(&groups.place, &format!("scheme {name}"), ""))?;
                    config.groups.push(Group {
                        name: name.clone(),
                        format: None,
                        weights: Some(weights),
                    });
                    groups.texts(name)?
                }
                other => return Err(groups.wrong(name, "a scheme or a list of targets", other)),
            };
            for target in targets {
                config.targets.add(&target, group)?;
            }
        }
        Ok(config)
    }

    /// Refuses a configuration whose patterns are too many to be tried on so many modules.
    pub(super) fn check_work(&self, n_modules: usize) -> Result<(), Error> {
        // Each pattern is tried on both spellings of a name.
        let n_patterns = 2 * (self.targets.patterns.len() + self.ignore.patterns.len());
        pattern::check_work(n_patterns, n_modules)
    }

    /// The group whose scheme a module has.
    pub(super) fn group(&self, module: &str) -> Result<Option<&Group>, Error> {
        let index = match self.targets.by_name(module)? {
            Some(group) => Some(group),
            None => self.targets.by_class(),
        };
        Ok(index.and_then(|i| self.groups.get(i)))
    }

    /// Whether the module is on the ignore list, by name or pattern.
    pub(super) fn is_ignored(&self, module: &str) -> Result<bool, Error> {
        Ok(self.ignore.by_name(module)?.is_some())
    }
}

fn is_ours(settings: &Settings) -> bool {
    match settings.method() {
        Some(method) => method == "compressed-tensors",
        None => {
            settings.map.contains_key("config_groups")
                || settings.map.contains_key("sparsity_config")
                || settings.place.ends_with("compression_config")
        }
    }
}

/// `0.19.0`, `0.12.3.a20251010` ... to major and minor.
fn version(text: &str) -> Option<(u64, u64)> {
    let mut numbers = text.split('.').map(|n| n.parse::<u64>().ok());
    Some((numbers.next()??, numbers.next()??))
}

/// The sparse format that is announced, one that we read.
fn sparsity(settings: &Settings) -> Result<Option<String>, Error> {
    let Some(sparsity) = settings.object("sparsity_config")? else {
        return Ok(None);
    };
    match sparsity.text("format")? {
        Some("dense" | "sparse-bitmask" | "sparse-24-bitmask") | None => {
            Ok(sparsity.text("format")?.map(str::to_owned))
        }
        Some(format) => Err(unsupported(&sparsity.place, format, "a sparse layout")),
    }
}

/// Rotations that must run online: the stored weights alone are not the dense model.
fn refuse_transforms(settings: &Settings) -> Result<(), Error> {
    let Some(transforms) = settings.object("transform_config")? else {
        return Ok(());
    };
    let Some(groups) = transforms.object("config_groups")? else {
        return Ok(());
    };
    match groups.map.keys().next() {
        None => Ok(()),
        Some(name) => Err(unsupported(
            &groups.place,
            &format!("transform {name}"),
            "the stored weights are rotated, and the rotation runs online",
        )),
    }
}

fn parse_group(name: &str, scheme: &Settings) -> Result<Group, Error> {
    let weights = match scheme.object("weights")? {
        Some(args) => Some(parse_weights(&args)?),
        None => None,
    };
    let format = scheme.text("format")?.map(str::to_owned);
    Ok(Group {
        name: name.to_owned(),
        format,
        weights,
    })
}

fn parse_weights(args: &Settings) -> Result<WeightArgs, Error> {
    let bits = args.integer("num_bits", 1..=8)?.unwrap_or(8);
    let kind = match args.text("type")? {
        None | Some("int") => Kind::Integer,
        Some("float") => Kind::Float,
        Some(other) => return Err(args.wrong("type", "\"int\" or \"float\"", &other.into())),
    };
    let symmetric = args.boolean("symmetric")?.unwrap_or(true);
    Ok(WeightArgs {
        bits: u32::try_from(bits).expect("checked to be 1 to 8"),
        kind,
        zero: if symmetric {
            Zero::Symmetric
        } else {
            Zero::Asymmetric
        },
        strategy: Some(parse_strategy(args, kind)?),
        order: parse_order(args)?,
    })
}

fn parse_strategy(args: &Settings, kind: Kind) -> Result<Strategy, Error> {
    let size = args.group_size("group_size")?;
    let block = args.block("block_structure")?;
    let group = || match size {
        Some(GroupSize::Features(size)) => Ok(Strategy::Group(size)),
        Some(GroupSize::WholeRow) => Ok(Strategy::Channel),
        None => Err(args.wrong("group_size", "an integer above 0", &Value::Null)),
    };
    match args.text("strategy")? {
        None if size.is_some() => group(),
        None | Some("tensor") => Ok(Strategy::Tensor),
        Some("channel") => Ok(Strategy::Channel),
        Some("group") => group(),
        Some("block") => match block {
            Some((rows, columns)) => Ok(Strategy::Block(rows, columns)),
            None => Err(args.wrong("block_structure", "two integers", &Value::Null)),
        },
        // Only NVFP4 has it: a group scale under a global one.
        Some("tensor_group") if kind == Kind::Float => match size {
            Some(GroupSize::Features(size)) => Ok(Strategy::TensorGroup(size)),
            Some(GroupSize::WholeRow) | None => {
                Err(args.wrong("group_size", "an integer above 0", &Value::Null))
            }
        },
        Some(other) => {
            Err(args.wrong("strategy", "tensor, channel, group or block", &other.into()))
        }
    }
}

fn parse_order(args: &Settings) -> Result<Order, Error> {
    match args.get("actorder") {
        None | Some(Value::Bool(false)) => Ok(Order::Natural),
        Some(Value::Bool(true)) => Ok(Order::Indexed),
        Some(value) => match value.as_str().map(str::to_ascii_lowercase).as_deref() {
            Some("weight" | "static") => Ok(Order::Natural),
            Some("group" | "dynamic") => Ok(Order::Indexed),
            _ => Err(args.wrong("actorder", "group, weight, static, dynamic or null", value)),
        },
    }
}

/// The weights of a scheme that is given by its name alone. Granularity is left to the scales' shapes: `W8A16` was per
/// channel in compressed-tensors 0.14 and has groups of 128 since 0.17.
fn preset(name: &str) -> Option<WeightArgs> {
    let name = name.to_ascii_uppercase();
    let args = |bits, kind, zero| {
        Some(WeightArgs {
            bits,
            kind,
            zero,
            strategy: None,
            order: Order::Natural,
        })
    };
    match name.as_str() {
        "FP8" | "FP8_DYNAMIC" | "FP8_BLOCK" | "MXFP8" | "MXFP8A16" => {
            args(8, Kind::Float, Zero::Symmetric)
        }
        "NVFP4" | "NVFP4A16" | "MXFP4" | "MXFP4A16" => args(4, Kind::Float, Zero::Symmetric),
        "INT8" => args(8, Kind::Integer, Zero::Symmetric),
        "W4AFP8" => args(4, Kind::Integer, Zero::Symmetric),
        _ => {
            let (bits, rest) = name.strip_prefix('W')?.split_once('A')?;
            let zero = match rest {
                "4" | "8" | "16" => Zero::Symmetric,
                "16_ASYM" => Zero::Asymmetric,
                _ => return None,
            };
            let bits = bits.parse().ok().filter(|b| (2..=8).contains(b))?;
            args(bits, Kind::Integer, zero)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(text: &str) -> Settings {
        match crate::config::parse("config.json", text.as_bytes()).unwrap() {
            Value::Object(map) => Settings {
                place: "config.json".into(),
                map,
            },
            other => panic!("{other}"),
        }
    }

    const WEIGHTS: &str =
        r#""weights":{"num_bits":4,"type":"int","strategy":"group","group_size":64}"#;

    #[test]
    fn names_win_over_patterns_and_patterns_over_classes() {
        let text = format!(
            r#"{{"config_groups":{{
            "a":{{"targets":["Linear"],{WEIGHTS}}},
            "b":{{"targets":["re:.*mlp"],{WEIGHTS}}},
            "c":{{"targets":["model.layers.0.mlp.up_proj"],{WEIGHTS}}}}},"ignore":["lm_head","re:.*gate$"]}}"#
        );
        let config = Config::parse(&settings(&text)).unwrap();
        let group = |m: &str| config.group(m).unwrap().unwrap().name.clone();
        assert_eq!(group("model.layers.0.self_attn.q_proj"), "a");
        assert_eq!(group("model.layers.1.mlp.up_proj"), "b");
        assert_eq!(group("layers.0.mlp.up_proj"), "c");
        assert!(config.is_ignored("lm_head").unwrap());
        assert!(config.is_ignored("model.layers.3.gate").unwrap());
        assert!(!config.is_ignored("model.layers.3.gate_proj").unwrap());
    }

    #[test]
    fn every_numeric_field_refuses_what_is_no_number_of_its_range() {
        let bad = [
            "0",
            "-2",
            "9223372036854775807",
            "-9223372036854775808",
            "2147483648",
            "1e400",
            "1.5",
            "18446744073709551616",
            "\"x\"",
            "[]",
            "{}",
            "true",
        ];
        let mut visited = 0;
        for value in bad {
            for (field, rest) in [
                ("num_bits", r#""strategy":"channel""#),
                ("group_size", r#""strategy":"group""#),
                ("block_structure", r#""strategy":"block""#),
            ] {
                let text = format!(
                    r#"{{"config_groups":{{"g":{{"targets":["Linear"],"weights":{{"{field}":{value},{rest}}}}}}}}}"#
                );
                let parsed = crate::config::parse("c", text.as_bytes());
                let Ok(Value::Object(map)) = parsed else {
                    continue;
                };
                let answer = Config::parse(&Settings {
                    place: "c".into(),
                    map,
                });
                assert!(answer.is_err(), "{field} = {value}");
                visited += 1;
            }
        }
        assert_eq!(visited, 33);
    }

    #[test]
    fn schemes_by_name_are_known() {
        assert_eq!(preset("w4a16_asym").unwrap().zero, Zero::Asymmetric);
        assert_eq!(preset("FP8_BLOCK").unwrap().kind, Kind::Float);
        assert_eq!(preset("W7A16").unwrap().bits, 7);
        for (name, bits) in [("NVFP4", 4), ("MXFP4A16", 4), ("MXFP8", 8)] {
            let args = preset(name).unwrap();
            assert_eq!((args.kind, args.bits), (Kind::Float, bits), "{name}");
        }
        assert!(preset("NVFP5").is_none());
        assert!(preset("W9A16").is_none());
    }

    #[test]
    fn online_rotations_and_sparsity_are_unsupported() {
        for text in [
            r#"{"quant_method":"compressed-tensors","sparsity_config":{"format":"sparse-of-later"}}"#,
            r#"{"quant_method":"compressed-tensors","transform_config":{"config_groups":{"R1":{}}}}"#,
        ] {
            let e = Config::parse(&settings(text)).unwrap_err();
            assert_eq!(e.group(), crate::ErrorGroup::Unsupported, "{e}");
        }
        assert!(
            Config::parse(&settings(r#"{"sparsity_config":{},"transform_config":{}}"#)).is_ok()
        );
    }
}
