//! The configurations of GPTQ checkpoints (specs/conventions/gptq.md, clauses G12 to G16).
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "JSON values are not our enum, and everything but the expected kind is one error"
)]

use safequant_container::Dtype;
use serde_json::Value;

use crate::binding::unsupported;
use crate::config::GroupSize;
use crate::{Error, Headers, Pattern, Settings, pattern};

/// Which checkpoint format: where codes and zero points differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// `gptq`: zero points minus one.
    V1,
    /// `gptq_v2`: zero points as they are.
    V2,
    /// `gptq_p`: bit planes, zero points as they are.
    Planar,
}

/// What the configuration says.
#[derive(Debug)]
pub(super) struct Config {
    /// Where it stands.
    pub(super) place: String,
    pub(super) format: Format,
    pub(super) writer: Writer,
    /// The dtype of a packed word, where it is stated.
    pub(super) pack_dtype: Option<Dtype>,
    bits: Option<u32>,
    group_size: Option<GroupSize>,
    rules: Vec<Rule>,
}

/// Who wrote the file, as far as the zero points' minus one depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Writer {
    /// GPTQModel subtracts a constant from whole words.
    GptqModel,
    /// AutoGPTQ and everyone else works lane by lane.
    Other,
}

/// What holds for one module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ModuleArgs {
    pub(super) bits: Option<u32>,
    pub(super) group_size: Option<GroupSize>,
}

/// An entry of `dynamic`.
#[derive(Debug)]
struct Rule {
    pattern: Pattern,
    action: RuleAction,
}

#[derive(Debug)]
enum RuleAction {
    /// `-:`: left dense.
    Skip,
    /// Other values.
    Override(ModuleArgs),
}

impl Config {
    /// Finds and parses the settings; several documents must agree. `None`: there are none, or they are someone else's.
    pub(super) fn find(headers: Headers<'_>) -> Result<Option<Self>, Error> {
        let all = headers.settings()?;
        if all.is_empty() || !all.iter().all(is_ours) {
            return Ok(None);
        }
        for other in &all[1..] {
            for key in [
                "bits",
                "group_size",
                "sym",
                "desc_act",
                "pack_dtype",
                "dynamic",
                "lm_head",
            ] {
                agree(&all[0], other, key, all[0].get(key), other.get(key))?;
            }
            agree(
                &all[0],
                other,
                "checkpoint_format",
                format_value(&all[0]),
                format_value(other),
            )?;
        }
        // Documents agree where they speak; what one leaves out another may say.
        let first = |key: &str| all.iter().find(|s| s.get(key).is_some()).unwrap_or(&all[0]);
        let named = all
            .iter()
            .find(|s| format_value(s).is_some())
            .unwrap_or(&all[0]);
        let dynamic = first("dynamic").object("dynamic")?;
        for settings in &all {
            settings.boolean("sym")?;
            settings.boolean("desc_act")?;
        }
        Ok(Some(Self {
            place: all[0].place.clone(),
            format: parse_format(named)?,
            writer: if all.iter().any(is_by_gptqmodel) {
                Writer::GptqModel
            } else {
                Writer::Other
            },
            pack_dtype: pack_dtype(first("pack_dtype"))?,
            bits: bits(first("bits"), "bits")?,
            group_size: first("group_size").group_size("group_size")?,
            rules: match dynamic {
                Some(dynamic) => parse_rules(&dynamic)?,
                None => Vec::new(),
            },
        }))
    }

    /// What holds where no document says anything and the tensors tell the format.
    pub(super) fn of_tensors(format: Format) -> Self {
        Self {
            place: "the zero points".to_owned(),
            format,
            writer: Writer::Other,
            pack_dtype: None,
            bits: None,
            group_size: None,
            rules: Vec::new(),
        }
    }

    /// Refuses a configuration whose rules are too many to be tried on so many modules.
    pub(super) fn check_work(&self, n_modules: usize) -> Result<(), Error> {
        pattern::check_work(self.rules.len(), n_modules)
    }

    /// Bits and group size of a module; `None` if the configuration leaves it dense. The first rule that matches wins.
    pub(super) fn module(&self, module: &str) -> Result<Option<ModuleArgs>, Error> {
        let base = ModuleArgs {
            bits: self.bits,
            group_size: self.group_size,
        };
        for rule in &self.rules {
            if rule.pattern.is_match(module)? {
                return Ok(match rule.action {
                    RuleAction::Skip => None,
                    RuleAction::Override(args) => Some(ModuleArgs {
                        bits: args.bits.or(base.bits),
                        group_size: args.group_size.or(base.group_size),
                    }),
                });
            }
        }
        Ok(Some(base))
    }
}

/// `quant_method` gptq; or an AutoGPTQ `quantize_config.json`, which has no method.
fn is_ours(settings: &Settings) -> bool {
    if let Some(method) = settings.method() {
        return matches!(method.as_str(), "gptq" | "marlin" | "bitblas");
    }
    let has = |key: &str| settings.map.contains_key(key);
    has("bits") && has("group_size") && (has("desc_act") || has("sym")) && !has("zero_point")
}

fn is_by_gptqmodel(settings: &Settings) -> bool {
    let quantizer = settings.map.get("meta").and_then(|m| m.get("quantizer"));
    let is_it = |v: &Value| {
        v.as_str()
            .is_some_and(|s| s.to_ascii_lowercase().contains("gptqmodel"))
    };
    match quantizer {
        Some(Value::Array(items)) => items.iter().any(is_it),
        Some(other) => is_it(other),
        None => false,
    }
}

/// `checkpoint_format`, or `format`: GPTQModel writes both.
fn format_value(settings: &Settings) -> Option<&Value> {
    settings
        .get("checkpoint_format")
        .or_else(|| settings.get("format"))
}

fn parse_format(settings: &Settings) -> Result<Format, Error> {
    for key in ["checkpoint_format", "format"] {
        settings.text(key)?;
    }
    if let (Some(a), Some(b)) = (settings.get("checkpoint_format"), settings.get("format"))
        && a != b
    {
        agree(
            settings,
            settings,
            "checkpoint_format and format",
            Some(a),
            Some(b),
        )?;
    }
    if settings.method().as_deref() == Some("bitblas") {
        return Err(unsupported(&settings.place, "GPTQ as bitblas", ""));
    }
    match format_value(settings).and_then(Value::as_str) {
        // Of GPTQModel, which repacks when it loads. The tiles of AutoGPTQ have other names.
        None | Some("gptq" | "marlin") => Ok(Format::V1),
        Some("gptq_v2") => Ok(Format::V2),
        Some("gptq_p") => Ok(Format::Planar),
        Some(other) => Err(unsupported(
            &settings.place,
            &format!("GPTQ checkpoint format {other}"),
            "",
        )),
    }
}

fn bits(settings: &Settings, key: &str) -> Result<Option<u32>, Error> {
    let bits = settings.integer(key, 2..=8)?;
    Ok(bits.and_then(|b| u32::try_from(b).ok()))
}

/// GPTQModel's names of word dtypes, with or without torch's prefix.
fn pack_dtype(settings: &Settings) -> Result<Option<Dtype>, Error> {
    let Some(name) = settings.text("pack_dtype")? else {
        return Ok(None);
    };
    match name.strip_prefix("torch.").unwrap_or(name) {
        "int8" => Ok(Some(Dtype::I8)),
        "int16" => Ok(Some(Dtype::I16)),
        "int32" => Ok(Some(Dtype::I32)),
        "int64" => Ok(Some(Dtype::I64)),
        other => Err(settings.wrong(
            "pack_dtype",
            "int8, int16, int32 or int64",
            &Value::from(other),
        )),
    }
}

fn parse_rules(dynamic: &Settings) -> Result<Vec<Rule>, Error> {
    pattern::check_count(dynamic.map.len())?;
    let mut rules = Vec::new();
    for (key, value) in &dynamic.map {
        let (text, is_skip) = match key.strip_prefix("-:") {
            Some(text) => (text, true),
            None => (key.strip_prefix("+:").unwrap_or(key), false),
        };
        let action = match value {
            _ if is_skip => RuleAction::Skip,
            Value::Object(map) => {
                let args = dynamic.sub(key, map);
                RuleAction::Override(ModuleArgs {
                    bits: bits(&args, "bits")?,
                    group_size: args.group_size("group_size")?,
                })
            }
            other => return Err(dynamic.wrong(key, "an object", other)),
        };
        rules.push(Rule {
            pattern: Pattern::regex(text)?,
            action,
        });
    }
    Ok(rules)
}

/// What two documents state must be the same; silence contradicts nothing.
fn agree(
    first: &Settings,
    second: &Settings,
    key: &str,
    a: Option<&Value>,
    b: Option<&Value>,
) -> Result<(), Error> {
    match (a, b) {
        (Some(x), Some(y)) if x != y => Err(Error::ConfigsDisagree {
            key: key.to_owned(),
            first: first.place.clone(),
            first_value: crate::config::shorten(&x.to_string()),
            second: second.place.clone(),
            second_value: crate::config::shorten(&y.to_string()),
        }),
        _ => Ok(()),
    }
}
