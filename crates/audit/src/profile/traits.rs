//! What a quantized weight is, in the words of profiles.

use safequant_kernels::Packing;
use safequant_schemes::{
    Code, Granularity, QuantizedTensor, Role, ScaleDirection, Settings, Storage, ZeroPoint,
};
use serde_json::Value;

use crate::Subject;

/// The codes: `int4`, `e4m3`, `nf4`, or the block type of ggml (`Q4_K`).
pub(super) fn codes(tensor: &QuantizedTensor) -> String {
    let storage = tensor.part(Role::Codes).map(|part| part.storage);
    if let Some(Storage::Blocks { format }) = storage {
        return format.name().to_owned();
    }
    match tensor.scheme.code {
        Code::Integer { bits, encoding: _ } => format!("int{bits}"),
        Code::Minifloat(format) => format!("{format:?}").to_ascii_lowercase(),
        Code::Codebook(table) => format!("{table:?}").to_ascii_lowercase(),
        Code::StoredCodebook => "codebook".to_owned(),
        Code::Dense(float) => format!("{float:?}").to_ascii_lowercase(),
    }
}

/// What shares a scale, and how much of it.
pub(super) fn granularity(tensor: &QuantizedTensor) -> &'static str {
    match tensor.scheme.granularity {
        Granularity::Tensor => "tensor",
        Granularity::Channel => "channel",
        Granularity::Group { .. } | Granularity::IndexedGroup { .. } => "group",
        Granularity::Block { .. } => "block",
        Granularity::Flat { .. } => "flat",
        Granularity::Strided { .. } => "strided",
    }
}

/// Elements of a group; `None` where there are no groups, or one for a whole row.
pub(super) fn group_size(tensor: &QuantizedTensor) -> Option<u64> {
    match tensor.scheme.granularity {
        Granularity::Group { size } | Granularity::IndexedGroup { size } => {
            (size < tensor.in_features()).then_some(size)
        }
        Granularity::Flat { size } => Some(size),
        Granularity::Tensor
        | Granularity::Channel
        | Granularity::Block { .. }
        | Granularity::Strided { .. } => None,
    }
}

/// Rows and columns of a block.
pub(super) fn block_size(tensor: &QuantizedTensor) -> Option<[u64; 2]> {
    match tensor.scheme.granularity {
        Granularity::Block { rows, columns } => Some([rows, columns]),
        Granularity::Tensor
        | Granularity::Channel
        | Granularity::Group { .. }
        | Granularity::IndexedGroup { .. }
        | Granularity::Flat { .. }
        | Granularity::Strided { .. } => None,
    }
}

/// Whether zero points are stored that mean something. GPTQ stores them always: there the settings say.
pub(super) fn zero_points(subject: &Subject<'_>, tensor: &QuantizedTensor) -> &'static str {
    match tensor.scheme.zero_point {
        ZeroPoint::Fixed(_) => "symmetric",
        ZeroPoint::Stored(_) if is_gptq(tensor) && says(subject, "sym", true) => "symmetric",
        ZeroPoint::Stored(_) => "stored",
        ZeroPoint::Offset { .. } => "float",
    }
}

/// Whether the input features of a group are spread over the row. GPTQ stores a group index always: there the settings say.
pub(crate) fn is_activation_ordered(subject: &Subject<'_>, tensor: &QuantizedTensor) -> bool {
    match tensor.scheme.granularity {
        Granularity::IndexedGroup { size } => {
            let has_groups = size < tensor.in_features();
            has_groups && (!is_gptq(tensor) || !says(subject, "desc_act", false))
        }
        Granularity::Tensor
        | Granularity::Channel
        | Granularity::Group { .. }
        | Granularity::Block { .. }
        | Granularity::Flat { .. }
        | Granularity::Strided { .. } => false,
    }
}

fn is_gptq(tensor: &QuantizedTensor) -> bool {
    tensor.convention.starts_with("gptq")
}

/// Whether the settings say so of everything: at the top, and nothing else in rules for single modules.
fn says(subject: &Subject<'_>, key: &str, value: bool) -> bool {
    let agrees = |found: Option<&Value>| found.and_then(Value::as_bool) == Some(value);
    let of_rules = |settings: &Settings| {
        let rules = settings.map.get("dynamic").and_then(Value::as_object);
        let mut rules = rules.into_iter().flat_map(|rules| rules.values());
        rules.all(|rule| rule.get(key).is_none_or(|found| agrees(Some(found))))
    };
    let top = subject.settings.iter().find(|s| s.map.contains_key(key));
    top.is_some_and(|settings| agrees(settings.map.get(key)))
        && subject.settings.iter().all(of_rules)
}

/// Whether only some of the codes are stored.
pub(super) fn is_sparse(tensor: &QuantizedTensor) -> bool {
    let storage = tensor.part(Role::Codes).map(|part| part.storage);
    matches!(storage, Some(Storage::Sparse { .. }))
}

/// Whether codes straddle words; widths that divide a word never do.
pub(super) fn packing(tensor: &QuantizedTensor) -> &'static str {
    let storage = tensor.part(Role::Codes).map(|part| part.storage);
    let Some(Storage::Packed { packing, .. }) = storage else {
        return "other";
    };
    match packing {
        Packing::LsbFirst { bits } if !32_u32.is_multiple_of(bits.max(1)) => "straddling",
        Packing::LsbFirst { .. } | Packing::LsbFirstNoStraddle { .. } | Packing::Bytes => "whole",
        Packing::Planar { .. } | Packing::NibblesHighFirst | Packing::AwqInterleaved => "other",
    }
}

/// What a scale does.
pub(super) fn direction(tensor: &QuantizedTensor) -> &'static str {
    match tensor.scheme.direction {
        ScaleDirection::Multiply => "multiply",
        ScaleDirection::Divide => "divide",
    }
}

/// How the experts are laid out; `None` for what is no expert.
pub(super) fn experts(tensor: &QuantizedTensor) -> Option<&'static str> {
    let is_expert = crate::ModuleName::parse(&tensor.module).expert.is_some();
    let is_stack = tensor.shape.len() > 2;
    match (is_expert, is_stack) {
        (true, _) => Some("each"),
        (false, true) => Some("stack"),
        (false, false) => None,
    }
}

/// Kind of the weight files.
pub(super) fn files(subject: &Subject<'_>) -> &'static str {
    let checkpoint = subject.checkpoint;
    if checkpoint.gguf().is_some() {
        "gguf"
    } else if checkpoint.index().is_some() {
        "indexed"
    } else if checkpoint.shards().len() <= 1 {
        "single"
    } else {
        "unindexed"
    }
}

/// The end of a part's name, behind the module's.
pub(super) fn ending<'a>(tensor: &QuantizedTensor, name: &'a str) -> &'a str {
    let inside = name.strip_prefix(tensor.module.as_str());
    let inside = inside.and_then(|rest| rest.strip_prefix('.'));
    inside.unwrap_or_else(|| name.rsplit('.').next().unwrap_or(name))
}

/// Numbers in a row.
pub(super) fn list(numbers: &[u64]) -> String {
    let numbers: Vec<_> = numbers.iter().map(u64::to_string).collect();
    numbers.join(", ")
}
