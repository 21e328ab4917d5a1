//! The rotation of queries and keys: `rope_parameters` of transformers 5, `rope_scaling` and `rope_theta` before it, brought to
//! one form as `modeling_rope_utils.py` does.

use std::f64::consts::PI;

use safequant_container::GgufMetadata;
use serde_json::Map;

use super::architecture::Architecture;
use super::documents::{Document, Push, narrow};
use crate::Error;

/// The rotation.
#[derive(Debug, PartialEq)]
pub(super) struct Rope {
    theta: f64,
    scaling: Scaling,
}

/// What is done to its angles.
#[derive(Debug, PartialEq)]
enum Scaling {
    None,
    Linear {
        factor: f64,
    },
    Yarn {
        factor: f64,
        original_length: u32,
        /// Key and value of what is optional.
        details: Vec<(&'static str, f64)>,
    },
    Llama3(Llama3),
}

/// Slow angles are slower by a factor, fast ones as they are, and there is a slope between them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Llama3 {
    theta: f64,
    factor: f64,
    low: f64,
    high: f64,
    original_length: f64,
}

/// Where readers look for the kind of scaling.
const FIELD: &str = "rope.scaling.type";

impl Rope {
    pub(super) fn of(architecture: &Architecture, config: &Document) -> Result<Self, Error> {
        let rope = parameters(config)?;
        for key in ["full_attention", "sliding_attention", "mrope_section"] {
            if rope.get(key).is_some() {
                return Err(rope.unknown(key, FIELD, "one rotation for all layers"));
            }
        }
        for document in [&rope, config] {
            let part = document.number("partial_rotary_factor")?.unwrap_or(1.0);
            if (part - 1.0).abs() > f64::EPSILON {
                let known = "1: heads that rotate as a whole";
                return Err(document.unknown(
                    "partial_rotary_factor",
                    "rope.dimension_count",
                    known,
                ));
            }
        }
        let theta = rope.number("rope_theta")?;
        let theta = theta.or(config.number("rope_theta")?);
        let theta = theta.unwrap_or(architecture.rope_theta);
        let scaling = scaling(architecture, config, &rope, theta)?;
        Ok(Self { theta, scaling })
    }

    /// Adds `<architecture>.rope.*`.
    pub(super) fn push(&self, metadata: &mut GgufMetadata, architecture: &str) {
        let key = |name: &str| format!("{architecture}.rope.{name}");
        match &self.scaling {
            Scaling::None | Scaling::Llama3(_) => {}
            Scaling::Linear { factor } => {
                metadata.text(&key("scaling.type"), "linear");
                metadata.number(&key("scaling.factor"), *factor);
            }
            Scaling::Yarn {
                factor,
                original_length,
                details,
            } => {
                metadata.text(&key("scaling.type"), "yarn");
                metadata.number(&key("scaling.factor"), *factor);
                metadata.count(&key("scaling.original_context_length"), *original_length);
                for (name, value) in details {
                    metadata.number(&key(name), *value);
                }
            }
        }
        metadata.number(&key("freq_base"), self.theta);
    }

    /// The divisors of the angles that readers take from a tensor, where there are some.
    pub(super) fn llama3(&self) -> Option<Llama3> {
        match self.scaling {
            Scaling::None | Scaling::Linear { .. } | Scaling::Yarn { .. } => None,
            Scaling::Llama3(llama3) => Some(llama3),
        }
    }
}

/// The object with the parameters; an empty one if there is none. `rope_scaling` is looked at first, as transformers does.
fn parameters(config: &Document) -> Result<Document, Error> {
    for key in ["rope_scaling", "rope_parameters"] {
        if let Some(found) = config.object(key)?
            && !found.map().is_empty()
        {
            return Ok(found);
        }
    }
    Ok(Document::of("config.json: rope_parameters", Map::new()))
}

fn scaling(
    architecture: &Architecture,
    config: &Document,
    rope: &Document,
    theta: f64,
) -> Result<Scaling, Error> {
    let key = match rope.get("rope_type") {
        Some(_) => "rope_type",
        None => "type",
    };
    let required = |key: &str| {
        let found = rope.number(key)?;
        found.ok_or_else(|| rope.missing(key, "rope.scaling.factor"))
    };
    match rope.text(key)?.unwrap_or("default") {
        "default" => Ok(Scaling::None),
        "linear" => Ok(Scaling::Linear {
            factor: required("factor")?,
        }),
        "yarn" => Ok(Scaling::Yarn {
            factor: required("factor")?,
            original_length: original_length(config, rope)?,
            details: yarn_details(rope)?,
        }),
        "llama3" if architecture.id == "llama" => {
            let or = |key: &str, default| Ok::<_, Error>(rope.number(key)?.unwrap_or(default));
            Ok(Scaling::Llama3(Llama3 {
                theta,
                factor: or("factor", 8.0)?,
                low: or("low_freq_factor", 1.0)?,
                high: or("high_freq_factor", 4.0)?,
                original_length: original_length(config, rope)?.into(),
            }))
        }
        _ => Err(rope.unknown(
            key,
            FIELD,
            "default, linear, yarn, and llama3 for Llama and Mistral",
        )),
    }
}

/// The length that the model was first trained for. (A key of this name at the top is none of these classes' own, and is not
/// looked at.)
fn original_length(config: &Document, rope: &Document) -> Result<u32, Error> {
    let field = "rope.scaling.original_context_length";
    match rope.unsigned("original_max_position_embeddings")? {
        Some(length) => Ok(length),
        None => config.count("max_position_embeddings", field),
    }
}

/// What else a `YaRN` may say, by key.
fn yarn_details(rope: &Document) -> Result<Vec<(&'static str, f64)>, Error> {
    let attention = if rope.map().contains_key("attention_factor") {
        "attention_factor"
    } else {
        "attn_factor"
    };
    let keys = [
        ("extrapolation_factor", "scaling.yarn_ext_factor"),
        (attention, "scaling.yarn_attn_factor"),
        ("beta_fast", "scaling.yarn_beta_fast"),
        ("beta_slow", "scaling.yarn_beta_slow"),
    ];
    let mut details = Vec::new();
    for (key, field) in keys {
        if let Some(value) = rope.number(key)? {
            details.push((field, value));
        }
    }
    Ok(details)
}

impl Llama3 {
    /// `rope_freqs.weight`: one divisor for each pair of a head's features (`LlamaModel.generate_extra_tensors`). F32 at each
    /// step, as torch computes it.
    pub(super) fn factors(self, head_dim: u32) -> Vec<f32> {
        let low = narrow(self.low);
        let low_wavelength = narrow(self.original_length / self.low);
        let high_wavelength = narrow(self.original_length / self.high);
        let factor = narrow(self.factor);
        let factors = (0..head_dim / 2).map(|pair| {
            let exponent = narrow(f64::from(2 * pair)) / narrow(f64::from(head_dim));
            let frequency = 1.0 / narrow(self.theta.powf(exponent.into()));
            let wavelength = narrow(2.0 * PI) / frequency;
            if wavelength < high_wavelength {
                1.0
            } else if wavelength > low_wavelength {
                factor
            } else {
                let smooth = (narrow(self.original_length) / wavelength - low)
                    / narrow(self.high - self.low);
                1.0 / ((1.0 - smooth) / factor + smooth)
            }
        });
        factors.collect()
    }
}
