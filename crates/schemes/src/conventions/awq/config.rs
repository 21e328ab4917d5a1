//! The configurations of AWQ checkpoints (specs/conventions/awq.md, clauses A20 to A24).

use serde_json::Value;

use crate::binding::unsupported;
use crate::config::{GroupSize, shorten};
use crate::{Error, Headers, Settings, pattern};

use super::Layout;

/// What the configuration says.
#[derive(Debug)]
pub(super) struct Config {
    /// Where it stands.
    pub(super) place: String,
    /// The layout it names, unless it leaves that to the tensors.
    pub(super) layout: Stated,
    pub(super) bits: Option<u32>,
    pub(super) group_size: Option<GroupSize>,
    pub(super) zero_point: Option<bool>,
    /// Pieces of module names that mean "left dense".
    skip: Vec<String>,
}

/// What a configuration says of the layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stated {
    /// This one.
    Layout(Layout),
    /// A name that stands for several layouts: the tensors decide. AutoAWQ's `marlin` is tiles, GPTQModel's is `gemm`
    /// that is repacked when loaded.
    Any,
}

/// Keys of one meaning, and the key under which it is reported.
const BITS: [&str; 3] = ["bits", "w_bit", "wbits"];
const GROUP_SIZE: [&str; 2] = ["group_size", "q_group_size"];
const LAYOUT: [&str; 3] = ["version", "format", "checkpoint_format"];

impl Config {
    /// Finds and parses the settings; several documents must agree. `None`: there are none, or they are someone else's.
    pub(super) fn find(headers: Headers<'_>) -> Result<Option<Self>, Error> {
        let all = headers.settings()?;
        if all.is_empty() || !all.iter().all(is_ours) {
            return Ok(None);
        }
        let bits = agreed(&all, &BITS)?;
        let size = agreed(&all, &GROUP_SIZE)?;
        let zero = agreed(&all, &["zero_point"])?;
        let layout = agreed(&all, &LAYOUT)?;
        let skip = agreed(&all, &["modules_to_not_convert"])?;
        let bits = match bits {
            Some((settings, key)) => settings.integer(key, 2..=8)?,
            None => None,
        };
        Ok(Some(Self {
            place: all[0].place.clone(),
            layout: stated_layout(&all, layout)?,
            bits: bits.and_then(|b| u32::try_from(b).ok()),
            group_size: match size {
                Some((settings, key)) => settings.group_size(key)?,
                None => None,
            },
            zero_point: match zero {
                Some((settings, key)) => settings.boolean(key)?,
                None => None,
            },
            skip: match skip {
                Some((settings, key)) => settings.texts(key)?,
                None => Vec::new(),
            },
        }))
    }

    /// Refuses a configuration whose entries are too many to be tried on so many modules.
    pub(super) fn check_work(&self, n_modules: usize) -> Result<(), Error> {
        pattern::check_work(self.skip.len(), n_modules)
    }

    /// The entry of `modules_to_not_convert` that names this module, or whole components of its name. AutoAWQ looks for the
    /// text anywhere, others for whole components: where they differ, the tensors decide.
    pub(super) fn leaves_dense(&self, module: &str) -> Option<&str> {
        let dotted = format!(".{module}.");
        let named = |entry: &&String| {
            let entry = entry.trim_matches('.');
            !entry.is_empty() && dotted.contains(&format!(".{entry}."))
        };
        self.skip.iter().find(named).map(String::as_str)
    }
}

/// `quant_method` awq; or an AutoAWQ `quant_config.json`, which has no method.
pub(super) fn is_ours(settings: &Settings) -> bool {
    if let Some(method) = settings.method() {
        return method == "awq";
    }
    let has = |key: &str| settings.map.contains_key(key);
    has("zero_point") && (BITS.iter().any(|k| has(k)) || GROUP_SIZE.iter().any(|k| has(k)))
}

/// The one value that all documents state under any of some keys: where it stands.
fn agreed<'s, 'k>(
    all: &'s [Settings],
    keys: &[&'k str],
) -> Result<Option<(&'s Settings, &'k str)>, Error> {
    let mut first: Option<(&Settings, &str, &Value)> = None;
    for settings in all {
        for &key in keys {
            let Some(value) = settings.get(key) else {
                continue;
            };
            match first {
                None => first = Some((settings, key, value)),
                Some((other, other_key, expected)) if !same(expected, value) => {
                    return Err(Error::ConfigsDisagree {
                        key: key.to_owned(),
                        first: format!("{} ({other_key})", other.place),
                        first_value: shorten(&expected.to_string()),
                        second: settings.place.clone(),
                        second_value: shorten(&value.to_string()),
                    });
                }
                Some(_) => {}
            }
        }
    }
    Ok(first.map(|(settings, key, _)| (settings, key)))
}

/// AutoAWQ writes `GEMM`, transformers `gemm`.
fn same(a: &Value, b: &Value) -> bool {
    match (a.as_str(), b.as_str()) {
        (Some(a), Some(b)) => a.eq_ignore_ascii_case(b),
        _ => a == b,
    }
}

/// The layout that the settings name; `gemm` if they name none.
fn stated_layout(all: &[Settings], named: Option<(&Settings, &str)>) -> Result<Stated, Error> {
    for settings in all {
        // The older backend of that name wrote gemv's layout.
        let backend = settings.text("backend")?;
        if backend.is_some_and(|b| b.eq_ignore_ascii_case("llm-awq")) {
            return Ok(Stated::Any);
        }
    }
    let Some((settings, key)) = named else {
        return Ok(Stated::Layout(Layout::Gemm));
    };
    let text = settings.text(key)?.unwrap_or_default().to_ascii_lowercase();
    match text.as_str() {
        // Kernels that repack `gemm` files when they load them.
        "gemm" | "exllama" | "exllamav2" | "exllama_v2" | "ipex" => {
            Ok(Stated::Layout(Layout::Gemm))
        }
        "gemv" => Ok(Stated::Layout(Layout::Gemv)),
        "gemv_fast" | "gemv-fast" | "gemvfast" => Ok(Stated::Layout(Layout::GemvFast)),
        "llm-awq" | "llm_awq" => Ok(Stated::Layout(Layout::Llm)),
        "marlin" => Ok(Stated::Any),
        other => Err(unsupported(
            &settings.place,
            &format!("AWQ as {}", shorten(other)),
            "",
        )),
    }
}
