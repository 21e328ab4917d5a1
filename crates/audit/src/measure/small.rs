//! Scales of activations, and of keys and values in a cache: a few bytes each, which decide what every token comes to.

use std::collections::{BTreeMap, BTreeSet};

use safequant_container::{Checkpoint, TensorRef};
use safequant_kernels::Backend;
use safequant_schemes::{Error, Model, Role, scheme::float_of};

use super::{FloatStatistics, smallest_normal};

/// Scales that are one number, or one per head or expert: what has more is something else. (The most experts of a released
/// model are 512.)
const MOST_ELEMENTS: u64 = 4096;

/// Endings of tensors that belong to a module or to nothing that binds, and are scales of activations or caches.
const ENDINGS: &[&str] = &[
    "input_scale",
    "scale_input",
    "input_global_scale",
    "activation_scale",
    "output_scale",
    "k_scale",
    "v_scale",
    "q_scale",
    "kv_scale",
    "prob_output_scale",
    "k_cache.scale",
    "v_cache.scale",
];

/// Measures them all, by tensor. What cannot be read goes to `problems`.
pub(crate) fn small_scales(
    model: &Model,
    checkpoint: &Checkpoint,
    problems: &mut Vec<Error>,
) -> BTreeMap<String, FloatStatistics> {
    let parts = model.quantized.iter().flat_map(|tensor| &tensor.parts);
    let auxiliary = parts.filter(|part| part.role == Role::Auxiliary);
    let names = auxiliary.map(|part| &part.name);
    let names = names.chain(&model.plain).chain(&model.orphans);
    let names: BTreeSet<&String> = names.filter(|name| is_scale(name)).collect();
    let mut measured = BTreeMap::new();
    for name in names {
        match checkpoint.tensor(name).map(one) {
            Some(Ok(Some(statistics))) => drop(measured.insert(name.clone(), statistics)),
            Some(Ok(None)) | None => {}
            Some(Err(error)) => problems.push(error),
        }
    }
    measured
}

/// Whether a tensor's name says that it is such a scale.
fn is_scale(name: &str) -> bool {
    ENDINGS.iter().any(|ending| {
        name.strip_suffix(ending)
            .is_some_and(|rest| rest.is_empty() || rest.ends_with(['.', '_']))
    })
}

/// `None` for what is no small tensor of floats after all.
fn one(tensor: TensorRef<'_>) -> Result<Option<FloatStatistics>, Error> {
    let Some(float) = float_of(tensor.dtype()) else {
        return Ok(None);
    };
    if tensor.info.n_elements() > MOST_ELEMENTS {
        return Ok(None);
    }
    let bytes = tensor.read_all(tensor.info.len_bytes())?;
    let mut values = vec![0.0; bytes.len() / float.size_bytes()];
    (Backend::detect().widen)(float, &bytes, &mut values);
    let columns = tensor.shape().last().copied().unwrap_or(1).max(1);
    let mut statistics = FloatStatistics::default();
    statistics.add(&values, (0, columns), smallest_normal(float));
    Ok(Some(statistics))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_of_caches_are_known_by_name() {
        for name in [
            "model.layers.0.self_attn.k_scale",
            "layers.0.self_attn.k_proj.k_scale",
            "a.experts.gate_up_proj_input_scale",
            "input_scale",
            "layers.0.k_cache.scale",
        ] {
            assert!(is_scale(name), "{name}");
        }
        for name in [
            "clip.logit_scale",
            "a.weight_scale",
            "a.netk_scale.weight",
            "axk_scale",
        ] {
            assert!(!is_scale(name), "{name}");
        }
    }
}
