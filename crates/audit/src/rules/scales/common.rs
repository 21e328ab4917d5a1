//! What several rules about scales ask: where a scale stands, how a scheme is called, which tensors are scales of
//! activations.

use std::collections::BTreeMap;

use safequant_container::{Dtype, TensorInfo};
use safequant_schemes::scheme::minifloat_of;
use safequant_schemes::{
    Code, Granularity, QuantizedTensor, Role, ScaleCoding, SuperScale, ZeroPoint,
};
use serde_json::Value;

use crate::{ModuleName, Place, Subject};

/// Endings of the scales of a module's inputs.
pub(super) const INPUTS: [&str; 4] = [
    "input_scale",
    "input_global_scale",
    "activation_scale",
    "scale_input",
];

/// An entry of a role's grid in the part that holds it.
pub(super) fn place(tensor: &QuantizedTensor, role: Role, entry: Option<[u64; 2]>) -> Place {
    let part = tensor.part(role).map(|part| part.name.clone());
    Place {
        module: Some(tensor.module.clone()),
        tensor: part,
        entry,
        ..Place::default()
    }
}

/// The part of a tensor's name before one of these endings and the dot, and the ending.
pub(super) fn split<'a>(
    name: &'a str,
    endings: &[&'static str],
) -> Option<(&'a str, &'static str)> {
    endings.iter().find_map(|&ending| {
        let module = name.strip_suffix(ending)?.strip_suffix('.')?;
        Some((module, ending))
    })
}

/// The module's name with its expert's number replaced by `*`, and that number.
pub(super) fn without_expert(module: &str) -> Option<(String, u32)> {
    let expert = ModuleName::parse(module).expert?;
    let mark = format!("experts.{expert}");
    let at = module.rfind(&mark)?;
    let rest = module.get(at + mark.len()..)?;
    Some((format!("{}experts.*{rest}", module.get(..at)?), expert))
}

/// FP8 matrices that no convention has bound, with their modules: not scales and other parts (`weight_s_rel`), whose
/// dtype may be the same.
pub(super) fn unbound_fp8<'a>(
    subject: &'a Subject<'_>,
) -> impl Iterator<Item = (&'a str, &'a TensorInfo)> {
    let all = subject.plain.iter();
    all.filter_map(|info| {
        let name = info.name.as_str();
        let last = name.rsplit('.').next().unwrap_or(name);
        let is_part = last.starts_with("weight_") || last.contains("scale");
        let is_weight = minifloat_of(info.dtype).is_some() && info.shape.len() > 1 && !is_part;
        let module = name.strip_suffix(".weight").unwrap_or(name);
        is_weight.then_some((module, *info))
    })
}

/// Tensors that could be scales of weights, whatever their spelling, by module.
pub(super) struct ScalesBeside<'a>(BTreeMap<&'a str, Vec<&'a TensorInfo>>);

impl<'a> ScalesBeside<'a> {
    /// Of a whole checkpoint.
    pub(super) fn new(subject: &'a Subject<'_>) -> Self {
        /// Words that scales of something else begin with.
        const OTHERS: [&str; 10] = [
            "input",
            "output",
            "activation",
            "act_",
            "k_",
            "v_",
            "q_",
            "kv_",
            "bias",
            "scale_input",
        ];
        let mut found = Self(BTreeMap::new());
        for info in subject.headers.tensors() {
            let name = info.name.as_str();
            // `<module>.weight_scale`, or `<module>_scale` beside fused experts.
            let own = name.rsplit_once('.');
            let fused = name.find("_scale").map(|at| (&name[..at], &name[at + 1..]));
            for (module, ending) in own.into_iter().chain(fused) {
                let is_scale = ending.contains("scale") && !ending.contains('.');
                if is_scale && !OTHERS.iter().any(|word| ending.starts_with(word)) {
                    found.0.entry(module).or_default().push(info);
                }
            }
        }
        found
    }

    /// Those of a module.
    pub(super) fn of(&self, module: &str) -> &[&'a TensorInfo] {
        self.0.get(module).map_or(&[], Vec::as_slice)
    }
}

/// What a module belongs to: its name up to the first number (`model.layers`, `text_encoders.t5.encoder.block`).
pub(super) fn tree(module: &str) -> &str {
    let digits = |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
    let mut len = 0;
    for word in module.split('.') {
        if digits(word) {
            return module.get(..len).unwrap_or(module).trim_end_matches('.');
        }
        len += word.len() + 1;
    }
    module.split('.').next().unwrap_or(module)
}

/// The sides of a block as the documents state them.
pub(super) fn block_size(subject: &Subject<'_>) -> Option<[u64; 2]> {
    let sides = |value: &Value| -> Option<[u64; 2]> {
        let sides: Vec<u64> = value.as_array()?.iter().filter_map(Value::as_u64).collect();
        <[u64; 2]>::try_from(sides)
            .ok()
            .filter(|sides| !sides.contains(&0))
    };
    subject.settings.iter().find_map(|settings| {
        let own = settings.map.get("weight_block_size").and_then(sides);
        own.or_else(|| {
            let groups = settings.map.get("config_groups")?.as_object()?;
            let mut weights = groups.values().filter_map(|group| group.get("weights"));
            weights.find_map(|weights| sides(weights.get("block_structure")?))
        })
    })
}

/// The grid of block scales that a module's weight needs, and the one that it has; `None` where the part is no such
/// grid.
pub(super) fn grids(
    subject: &Subject<'_>,
    block: [u64; 2],
    module: &str,
    part: &str,
) -> Option<([u64; 2], [u64; 2])> {
    let weight = subject.headers.tensor(&format!("{module}.weight"))?;
    let scale = subject
        .headers
        .tensor(part)
        .filter(|scale| scale.name.contains("scale"))?;
    minifloat_of(weight.dtype)?;
    let [rows, columns] = *weight.shape.as_slice() else {
        return None;
    };
    let [found_rows, found_columns] = *scale.shape.as_slice() else {
        return None;
    };
    let needed = [rows.div_ceil(block[0]), columns.div_ceil(block[1])];
    Some((needed, [found_rows, found_columns]))
}

/// Keys or values.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum CacheSide {
    Keys,
    Values,
}

/// A scale of the cache of keys or values.
pub(super) struct CacheScale<'a> {
    /// The tensor.
    pub(super) name: &'a str,
    /// The attention module, as far as the name tells it.
    pub(super) attention: &'a str,
    /// Of what.
    pub(super) side: CacheSide,
    /// How the other one is called behind the attention module.
    other: &'static str,
}

impl CacheScale<'_> {
    /// The name of the other one.
    pub(super) fn partner(&self) -> String {
        format!("{}.{}", self.attention, self.other)
    }
}

/// How cache scales of keys and of values are called, behind the attention module; longer names first. (fp8, section 9)
const CACHES: [(&str, &str); 4] = [
    ("k_proj.k_scale", "v_proj.v_scale"),
    ("k_proj.output_scale", "v_proj.output_scale"),
    ("k_cache.scale", "v_cache.scale"),
    ("k_scale", "v_scale"),
];

/// All cache scales of keys and values.
pub(super) fn cache_scales<'a>(subject: &'a Subject<'_>) -> impl Iterator<Item = CacheScale<'a>> {
    // quanto gives every layer an output scale that is none of a cache.
    let mut conventions = subject.model.conventions.iter();
    let has_quanto = conventions.any(|(id, _)| *id == "quanto");
    let known = CACHES.into_iter();
    let known = known.filter(move |(keys, _)| !(has_quanto && keys.ends_with("output_scale")));
    let endings: Vec<_> = known
        .flat_map(|(keys, values)| {
            [
                (keys, values, CacheSide::Keys),
                (values, keys, CacheSide::Values),
            ]
        })
        .collect();
    // All of these endings end so.
    let may_be = |info: &&TensorInfo| info.name.ends_with("scale");
    let scales = subject.headers.tensors().filter(may_be);
    scales.filter_map(move |info| {
        let name = info.name.as_str();
        endings.iter().find_map(|&(ending, other, side)| {
            let attention = name.strip_suffix(ending)?.strip_suffix('.')?;
            Some(CacheScale {
                name,
                attention,
                side,
                other,
            })
        })
    })
}

/// Whether the runtimes that read this convention make one matrix of queries, keys and values, and of gate and up.
pub(super) fn is_fused_at_run_time(convention: &str) -> bool {
    let known = [
        "fp8",
        "compressed-tensors",
        "modelopt",
        "marlin",
        "hqq",
        "torchao",
    ];
    known.contains(&convention) || convention.starts_with("gptq") || convention.starts_with("awq")
}

/// A scheme in a few words.
pub(super) fn in_words(tensor: &QuantizedTensor) -> String {
    let scheme = &tensor.scheme;
    let code = match scheme.code {
        Code::Integer { bits, .. } => format!("{bits}-bit integers"),
        Code::Minifloat(format) => format!("{format:?}"),
        Code::Codebook(book) => format!("{book:?}"),
        Code::StoredCodebook => "a code book".to_owned(),
        Code::Dense(float) => format!("{float:?}"),
    };
    let shared = match scheme.granularity {
        Granularity::Tensor => "per tensor".to_owned(),
        Granularity::Channel => "per channel".to_owned(),
        Granularity::Group { size }
        | Granularity::IndexedGroup { size }
        | Granularity::Flat { size } => format!("in groups of {size}"),
        Granularity::Block { rows, columns } => format!("in blocks of {rows}x{columns}"),
        Granularity::Strided { count } => format!("in {count} groups"),
    };
    let zero = match scheme.zero_point {
        ZeroPoint::Fixed(_) => "",
        ZeroPoint::Stored(_) | ZeroPoint::Offset { .. } => " with zero points",
    };
    format!("{code} {shared}{zero}")
}

/// Whether scales are small floats under one scale for the matrix: NVFP4.
pub(super) fn has_global_scale(tensor: &QuantizedTensor) -> bool {
    let is_small = matches!(tensor.scheme.scale, ScaleCoding::Minifloat(_));
    let has_global = match tensor.scheme.super_scale {
        SuperScale::Multiply | SuperScale::Divide => true,
        SuperScale::None
        | SuperScale::Nested { .. }
        | SuperScale::Grouped { .. }
        | SuperScale::Channel => false,
    };
    is_small && has_global
}

/// The largest number that a code of 8 bits or fewer stands for; `None` for those that are no small floats.
pub(super) fn largest_code(tensor: &QuantizedTensor) -> Option<f32> {
    let Code::Minifloat(format) = tensor.scheme.code else {
        return None;
    };
    let values = format.table().iter().copied();
    values.filter(|value| value.is_finite()).reduce(f32::max)
}

/// Whether a scale is stored as one of the dense floats.
pub(super) fn has_float_scale(tensor: &QuantizedTensor) -> bool {
    matches!(tensor.scheme.scale, ScaleCoding::Float(_))
}

/// Whether a dtype is that of dense weights.
pub(super) fn is_dense(dtype: Dtype) -> bool {
    safequant_schemes::scheme::float_of(dtype).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn experts_are_taken_out_of_names() {
        let (key, expert) = without_expert("model.layers.3.mlp.experts.17.w1").unwrap_or_default();
        assert_eq!(
            (key.as_str(), expert),
            ("model.layers.3.mlp.experts.*.w1", 17)
        );
        assert_eq!(without_expert("model.layers.3.mlp.up_proj"), None);
        assert_eq!(
            split("a.b.input_scale", &INPUTS),
            Some(("a.b", "input_scale"))
        );
        assert_eq!(split("a.b.my_input_scale", &INPUTS), None);
        assert_eq!(tree("model.layers.3.mlp.experts.17.w1"), "model.layers");
        assert_eq!(tree("model.lm_head"), "model");
    }
}
