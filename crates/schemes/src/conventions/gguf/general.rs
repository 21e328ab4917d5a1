//! `general.*`: what the file is, how it was named, how it wants to be sampled from.

use std::collections::BTreeMap;

use safequant_container::{GgufMetadata, GgufValue};
use safequant_kernels::Float;

use super::architecture::Architecture;
use super::documents::{Document, Push};
use super::model_id::ModelId;
use crate::{
    Error, Headers, QuantizedTensor, Respelled, Respelling, Spelling, Storage, WrittenDense,
};

/// How readers name the layout of quantized blocks.
pub(super) const QUANTIZATION_VERSION: u32 = 2;

/// Adds what stands before the hyper-parameters.
pub(super) fn push(
    metadata: &mut GgufMetadata,
    headers: Headers<'_>,
    architecture: &Architecture,
    config: &Document,
    parameters: &Parameters,
) -> Result<(), Error> {
    metadata.text("general.architecture", architecture.id);
    metadata.text("general.type", "model");
    push_sampling(metadata, headers)?;
    let id = config.text("_name_or_path")?;
    let id = id.map_or_else(ModelId::default, |path| {
        ModelId::parse(path, parameters.total)
    });
    let label = id.size_label.clone();
    for (field, value) in [
        ("name", id.name),
        ("organization", id.organization),
        ("finetune", id.finetune),
        ("basename", id.basename),
        ("size_label", label.or_else(|| parameters.label())),
    ] {
        // `version` stands before `organization` in the converter's order.
        if field == "organization" {
            push_some(metadata, "version", id.version.as_deref());
        }
        push_some(metadata, field, value.as_deref());
    }
    Ok(())
}

fn push_some(metadata: &mut GgufMetadata, field: &str, value: Option<&str>) {
    metadata.text(&format!("general.{field}"), value.unwrap_or_default());
}

/// `general.sampling.*` from `generation_config.json`.
fn push_sampling(metadata: &mut GgufMetadata, headers: Headers<'_>) -> Result<(), Error> {
    enum Kind {
        Integer,
        Number,
    }
    let Some(config) = Document::find(headers, "generation_config.json")? else {
        return Ok(());
    };
    let repetition = if config.map().contains_key("penalty_repeat") {
        "penalty_repeat"
    } else {
        "repetition_penalty"
    };
    for (key, field, kind) in [
        ("top_k", "top_k", Kind::Integer),
        ("top_p", "top_p", Kind::Number),
        ("min_p", "min_p", Kind::Number),
        ("xtc_probability", "xtc_probability", Kind::Number),
        ("xtc_threshold", "xtc_threshold", Kind::Number),
        ("temperature", "temp", Kind::Number),
        ("penalty_last_n", "penalty_last_n", Kind::Integer),
        (repetition, "penalty_repeat", Kind::Number),
        ("mirostat", "mirostat", Kind::Integer),
        ("mirostat_tau", "mirostat_tau", Kind::Number),
        ("mirostat_eta", "mirostat_eta", Kind::Number),
    ] {
        let Some(value) = config.get(key) else {
            continue;
        };
        let field = format!("general.sampling.{field}");
        match kind {
            Kind::Number => {
                if let Some(number) = config.number(key)? {
                    metadata.number(&field, number);
                }
            }
            Kind::Integer => {
                let integer = value.as_i64().and_then(|v| i32::try_from(v).ok());
                let integer = integer.ok_or_else(|| config.wrong(key, "an integer", value))?;
                metadata.push(&field, GgufValue::I32(integer));
            }
        }
    }
    Ok(())
}

/// How many values there are, as the converter counts them for its label.
#[derive(Debug, Default)]
pub(super) struct Parameters {
    /// All.
    total: u64,
    /// Those in stacks of experts, of one expert each.
    of_an_expert: u64,
    in_stacks: u64,
    /// Experts of all stacks, and stacks.
    experts: u64,
    stacks: u64,
}

impl Parameters {
    /// Counts what is written.
    pub(super) fn count(
        spelling: &dyn Respelling,
        quantized: &[QuantizedTensor],
        dense: &[WrittenDense<'_>],
    ) -> Result<Self, Error> {
        let quantized = quantized.iter().map(|t| (t.weight.as_str(), &t.shape[..]));
        let dense = dense.iter().map(|t| (t.name, t.shape));
        let mut counted = Self::default();
        for (name, shape) in quantized.chain(dense) {
            if let Respelled::As(spelled) = spelling.tensor(name, shape)? {
                counted.add(&spelled, shape);
            }
        }
        for extra in spelling.extra()? {
            counted.total += extra.values.len() as u64;
        }
        Ok(counted)
    }

    fn add(&mut self, spelled: &Spelling, shape: &[u64]) {
        let n = elements(shape);
        self.total = self.total.saturating_add(n);
        let Some(place) = spelled.stack else {
            return;
        };
        self.in_stacks = self.in_stacks.saturating_add(n);
        if place.index == 0 {
            self.of_an_expert = self.of_an_expert.saturating_add(n);
            self.experts = self.experts.saturating_add(place.count);
            self.stacks += 1;
        }
    }

    /// `1.1B`, `8x7B`: gguf-py `size_label`. Nothing of nothing.
    fn label(&self) -> Option<String> {
        if self.total == 0 {
            return None;
        }
        if self.stacks == 0 {
            return Some(rounded(self.total));
        }
        let experts = self.experts / self.stacks;
        let shared = self.total - self.in_stacks;
        Some(format!(
            "{experts}x{}",
            rounded(shared.saturating_add(self.of_an_expert))
        ))
    }
}

fn elements(shape: &[u64]) -> u64 {
    shape.iter().fold(1, |n, &d| n.saturating_mul(d))
}

/// A count in thousands, millions ..., with two digits at least (gguf-py `model_weight_count_rounded_notation`).
#[expect(
    clippy::cast_precision_loss,
    reason = "Python divides the same doubles"
)]
fn rounded(count: u64) -> String {
    let count = count as f64;
    let (scaled, suffix) = if count > 1e12 {
        (count * 1e-12, 'T')
    } else if count > 1e9 {
        (count * 1e-9, 'B')
    } else if count > 1e6 {
        (count * 1e-6, 'M')
    } else {
        (count * 1e-3, 'K')
    };
    // Both Python and Rust round halves to even here; a leading zero is no digit.
    let whole = format!("{:.0}", scaled.round_ties_even());
    let digits = whole.trim_start_matches('0').len();
    let places = 2_usize.saturating_sub(digits);
    format!("{scaled:.places$}{suffix}")
}

/// `general.file_type`: ggml's name for the type that most values have. A label: the types stand beside the tensors.
pub(super) fn file_type(
    spelling: &dyn Respelling,
    quantized: &[QuantizedTensor],
    dense: &[WrittenDense<'_>],
) -> Result<u32, Error> {
    let mut values: BTreeMap<&str, u64> = BTreeMap::new();
    let mut add = |name, shape: &[u64]| {
        let sum = values.entry(name).or_default();
        *sum = sum.saturating_add(elements(shape));
    };
    for tensor in quantized {
        add(block_name(tensor), &tensor.shape);
    }
    for tensor in dense {
        // What must be F32 in any file says nothing about this one.
        if let Respelled::As(spelled) = spelling.tensor(tensor.name, tensor.shape)?
            && spelled.float.is_none()
        {
            add(float_name(tensor.float), tensor.shape);
        }
    }
    let most = values.iter().max_by_key(|(_, sum)| **sum);
    let name = most.map_or("F32", |(name, _)| *name);
    let is_mixed = values.keys().filter(|name| is_block(name)).count() > 1;
    Ok(label_of(name, is_mixed))
}

fn block_name(tensor: &QuantizedTensor) -> &'static str {
    let blocks = tensor.parts.iter().find_map(|part| {
        let Storage::Blocks { format } = part.storage else {
            return None;
        };
        Some(format.name())
    });
    blocks.unwrap_or("F32")
}

fn float_name(float: Float) -> &'static str {
    match float {
        Float::F16 => "F16",
        Float::Bf16 => "BF16",
        Float::F32 => "F32",
    }
}

fn is_block(name: &str) -> bool {
    !["F32", "F16", "BF16"].contains(&name)
}

/// llama.cpp's `llama_ftype`: pure K-quants are `S`, mixtures `M`.
fn label_of(name: &str, is_mixed: bool) -> u32 {
    let (pure, mixed) = match name {
        "F16" => (1, 1),
        "BF16" => (32, 32),
        "Q4_0" => (2, 2),
        "Q4_1" => (3, 3),
        "Q8_0" => (7, 7),
        "Q5_0" => (8, 8),
        "Q5_1" => (9, 9),
        "Q2_K" => (21, 10),
        "Q3_K" => (11, 12),
        "Q4_K" => (14, 15),
        "Q5_K" => (16, 17),
        "Q6_K" => (18, 18),
        "IQ2_XXS" => (19, 19),
        "IQ2_XS" => (20, 20),
        "IQ3_XXS" => (23, 23),
        "IQ1_S" => (24, 24),
        "IQ4_NL" => (25, 25),
        "IQ3_S" => (26, 27),
        "IQ2_S" => (28, 29),
        "IQ4_XS" => (30, 30),
        "IQ1_M" => (31, 31),
        "TQ1_0" => (36, 36),
        "TQ2_0" => (37, 37),
        "MXFP4" => (38, 38),
        "NVFP4" => (39, 39),
        "Q1_0" => (40, 40),
        "Q2_0" => (41, 41),
        _ => (0, 0),
    };
    if is_mixed { mixed } else { pure }
}
