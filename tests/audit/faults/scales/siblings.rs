//! Faults among layers that belong together: fused ones, experts, and the scales of their inputs and caches.

use safequant::container::Dtype;
use safequant::schemes::{Granularity, Part, QuantizedTensor, Role, SuperScale};

use super::super::{Planted, Random, weights};
use super::{edit, float, is_own_float, set, values};
use crate::audit::draft::Draft;
use crate::interop::fixture::Dense;

pub(super) fn unequal_fused_scales(draft: &mut Draft, random: &mut Random) -> Option<Planted> {
    let all = weights(draft);
    let has_sibling = |module: &str| {
        let pairs = [("gate_proj", "up_proj"), ("q_proj", "k_proj"), ("w1", "w3")];
        pairs.iter().any(|(one, other)| {
            let sibling = module
                .strip_suffix(one)
                .map(|rest| format!("{rest}{other}"));
            sibling.is_some_and(|name| all.iter().any(|weight| weight.module == name))
        })
    };
    let role = |weight: &QuantizedTensor| match weight.scheme.super_scale {
        SuperScale::Multiply | SuperScale::Divide => Some(Role::SuperScale),
        _ if weight.scheme.granularity == Granularity::Tensor => Some(Role::Scale),
        _ => None,
    };
    let fitting: Vec<_> = all
        .iter()
        .filter(|weight| has_sibling(&weight.module) && weight.shape.len() == 2)
        .filter_map(|weight| Some((weight, weight.part(role(weight)?)?)))
        .filter(|(_, part)| is_own_float(part))
        .collect();
    let (weight, part) = random.choose(&fitting)?;
    edit(draft.tensor(&part.name)?, 0, |value| value * 2.5);
    Some(Planted(weight.module.clone()))
}

pub(super) fn fused_sibling_is_dense(draft: &mut Draft, random: &mut Random) -> Option<Planted> {
    let all = weights(draft);
    let known = [
        "gptq",
        "gptq_v2",
        "awq",
        "compressed-tensors",
        "fp8",
        "modelopt",
    ];
    let fitting: Vec<_> = all
        .iter()
        .filter(|weight| known.contains(&weight.convention) && weight.shape.len() == 2)
        .filter(|weight| {
            // The other one must stay, and nothing of it be shared.
            let sibling = weight.module.replace("up_proj", "gate_proj");
            let is_own = |part: &Part| part.name.starts_with(&format!("{}.", weight.module));
            sibling != weight.module
                && all.iter().any(|other| other.module == sibling)
                && weight.parts.iter().all(is_own)
        })
        .collect();
    let weight = random.choose(&fitting)?;
    for part in &weight.parts {
        draft.remove(&part.name);
    }
    let n = usize::try_from(weight.out_features() * weight.in_features()).unwrap();
    let dense = Dense {
        dtype: Dtype::BF16,
        shape: vec![weight.out_features(), weight.in_features()],
        bytes: vec![0x3c; 2 * n],
    };
    draft.add(&format!("{}.weight", weight.module), dense);
    Some(Planted(weight.module.clone()))
}

/// One number, as activation scales are.
fn one(value: f32) -> Dense {
    Dense {
        dtype: Dtype::F32,
        shape: vec![1],
        bytes: value.to_le_bytes().to_vec(),
    }
}

/// Modules of experts, one projection of one layer.
fn experts(draft: &Draft, random: &mut Random) -> Vec<QuantizedTensor> {
    let all = weights(draft);
    let of_expert = |weight: &&QuantizedTensor| weight.module.contains(".experts.0.");
    let first: Vec<_> = all.iter().filter(of_expert).collect();
    let Some(first) = random.choose(&first) else {
        return Vec::new();
    };
    let (before, after) = first.module.split_once(".experts.0.").unwrap();
    let names = (0..).map(|expert| format!("{before}.experts.{expert}.{after}"));
    let found = names.map_while(|name| all.iter().find(|weight| weight.module == name));
    found.cloned().collect()
}

pub(super) fn expert_without_input_scale(
    draft: &mut Draft,
    random: &mut Random,
) -> Option<Planted> {
    let experts = experts(draft, random);
    if experts.len() < 2 {
        return None;
    }
    let poor = random.below(experts.len());
    for (at, expert) in experts.iter().enumerate() {
        let name = format!("{}.input_scale", expert.module);
        draft.remove(&name);
        if at != poor {
            draft.add(&name, one(0.01));
        }
    }
    Some(Planted(experts[poor].module.clone()))
}

pub(super) fn expert_is_an_outlier(draft: &mut Draft, random: &mut Random) -> Option<Planted> {
    let experts = experts(draft, random);
    let expert = random.choose(&experts).filter(|_| experts.len() >= 3)?;
    let part = expert.part(Role::Scale).filter(|part| is_own_float(part))?;
    let dense = draft.tensor(&part.name)?;
    let scaled: Vec<f32> = values(dense).iter().map(|value| value * 1024.0).collect();
    set(dense, &scaled);
    Some(Planted(expert.module.clone()))
}

/// Sets a scale of activations.
pub(super) fn spoil_small(
    draft: &mut Draft,
    random: &mut Random,
    endings: &[&str],
    value: f32,
) -> Option<Planted> {
    let mut names = draft.names();
    names.retain(|name| {
        endings
            .iter()
            .any(|ending| name.ends_with(&format!(".{ending}")))
    });
    let name = random.choose(&names)?.clone();
    let dense = draft.tensor(&name)?;
    float(dense.dtype)?;
    edit(dense, 0, |_| value);
    Some(Planted(name))
}

/// The attention modules of a draft, by the layers' key projections.
fn attentions(draft: &Draft) -> Vec<String> {
    let names = draft.names();
    let keys = names.iter().filter_map(|name| name.split_once(".k_proj."));
    let mut found: Vec<String> = keys.map(|(attention, _)| attention.to_owned()).collect();
    found.dedup();
    found.sort();
    found.dedup();
    found
}

/// Leaves an attention module with just these cache scales.
pub(super) fn cache_scales(
    draft: &mut Draft,
    random: &mut Random,
    names: &[&str],
) -> Option<Planted> {
    let attention = random.choose(&attentions(draft))?.clone();
    // GGUF's and ComfyUI's files have nothing of the kind.
    draft.documents.get("config.json")?;
    for name in ["k_scale", "v_scale"] {
        draft.remove(&format!("{attention}.{name}"));
    }
    for name in names {
        draft.add(&format!("{attention}.{name}"), one(0.02));
    }
    Some(Planted(format!("{attention}.{}", names[0])))
}

pub(super) fn cache_scale_is_zero(draft: &mut Draft, random: &mut Random) -> Option<Planted> {
    let planted = cache_scales(draft, random, &["v_scale", "k_scale"])?;
    edit(draft.tensor(&planted.0)?, 0, |_| 0.0);
    Some(planted)
}

pub(super) fn cache_scales_in_one_layer(draft: &mut Draft, random: &mut Random) -> Option<Planted> {
    let all = attentions(draft);
    let of_stack: Vec<&String> = all
        .iter()
        .filter(|name| name.contains(".layers."))
        .collect();
    let bare = (*random.choose(&of_stack).filter(|_| of_stack.len() > 1)?).clone();
    for attention in of_stack {
        for name in ["k_scale", "v_scale"] {
            let name = format!("{attention}.{name}");
            draft.remove(&name);
            if *attention != bare {
                draft.add(&name, one(0.02));
            }
        }
    }
    Some(Planted(format!("{bare}.k_proj")))
}
