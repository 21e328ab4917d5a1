//! What becomes of a tensor's name (gguf-py `tensor_mapping.py`, llama.cpp `conversion/llama.py`, `conversion/qwen.py`).

use super::architecture::{Architecture, Experts, NARROW_READERS, RotaryRows};
use super::documents::cannot_derive;
use super::hyper_parameters::Sizes;
use crate::{Error, Respelled, RowOrder, Spelling, StackPlace, Values};

/// Names of tensors outside of layers.
const OUTER: &[(&str, &str)] = &[
    ("model.embed_tokens", "token_embd"),
    ("model.norm", "output_norm"),
    (HEAD, "output"),
];

/// The matrix of the logits.
const HEAD: &str = "lm_head";

/// Names within a layer that all architectures share.
const LAYER: &[(&str, &str)] = &[
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("post_attention_layernorm", "ffn_norm"),
];

/// Names of a dense MLP.
const DENSE: &[(&str, &str)] = &[
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// What stands for a router.
const ROUTER: &str = "ffn_gate_inp";

/// What becomes of a tensor of this name and shape.
pub(super) fn spell(
    architecture: &Architecture,
    sizes: &Sizes,
    name: &str,
    shape: &[u64],
) -> Result<Respelled, Error> {
    if name.ends_with(".rotary_emb.inv_freq") {
        return Ok(Respelled::LeftOut("the runtime computes it"));
    }
    let Some((stem, suffix)) = split_suffix(name) else {
        return Err(unknown(architecture, name));
    };
    if stem == HEAD && sizes.has_tied_embeddings {
        return Ok(Respelled::LeftOut("it is tied to the embeddings"));
    }
    if let Some(outer) = find(OUTER, stem) {
        let is_vocabulary = outer != "output_norm" && suffix == "weight";
        if is_vocabulary && shape.first() != Some(&u64::from(sizes.vocabulary)) {
            return Err(wrong_rows(name, shape, u64::from(sizes.vocabulary)));
        }
        return Ok(plain(format!("{outer}.{suffix}"), shape));
    }
    let layer = layer_of(stem).filter(|(layer, _)| *layer < u64::from(sizes.layers));
    let Some((layer, inner)) = layer else {
        return Err(unknown(architecture, name));
    };
    let named = |inner: &str| format!("blk.{layer}.{inner}.{suffix}");
    if let Some(experts) = architecture.experts() {
        if inner == experts.router {
            return Ok(plain(named(ROUTER), shape));
        }
        if let Some((index, projection)) = expert_of(experts, inner) {
            let place = stack_place(sizes, name, index)?;
            return match suffix {
                "weight" => Ok(stacked(named(projection), place)),
                _ => Err(unknown(architecture, name)),
            };
        }
    }
    let dense = architecture.experts().is_none().then_some(DENSE);
    let tables = [Some(LAYER), Some(architecture.layer_names), dense];
    let found = tables.into_iter().flatten().find_map(|t| find(t, inner));
    let Some(found) = found else {
        return Err(unknown(architecture, name));
    };
    let mut spelling = plain(named(found), shape);
    if let Respelled::As(spelling) = &mut spelling {
        spelling.rows = rows(architecture, sizes, name, found, shape)?;
    }
    Ok(spelling)
}

/// Stem and suffix: `.weight` or `.bias`.
fn split_suffix(name: &str) -> Option<(&str, &str)> {
    let (stem, suffix) = name.rsplit_once('.')?;
    ["weight", "bias"]
        .contains(&suffix)
        .then_some((stem, suffix))
}

fn find(table: &[(&str, &'static str)], name: &str) -> Option<&'static str> {
    table
        .iter()
        .find(|(theirs, _)| *theirs == name)
        .map(|(_, ours)| *ours)
}

/// Layer and name within it.
fn layer_of(stem: &str) -> Option<(u64, &str)> {
    let (layer, inner) = stem.strip_prefix("model.layers.")?.split_once('.')?;
    Some((number(layer)?, inner))
}

/// A number spelled without sign and leading zeros, so that two names never become one.
fn number(digits: &str) -> Option<u64> {
    let is_plain = digits.bytes().all(|b| b.is_ascii_digit()) && !digits.starts_with('0');
    if is_plain || digits == "0" {
        digits.parse().ok()
    } else {
        None
    }
}

/// Number and projection of an expert's tensor.
fn expert_of(experts: &Experts, inner: &str) -> Option<(u64, &'static str)> {
    let (index, projection) = inner.strip_prefix(experts.prefix)?.split_once('.')?;
    Some((number(index)?, find(&experts.projections, projection)?))
}

fn stack_place(sizes: &Sizes, name: &str, index: u64) -> Result<StackPlace, Error> {
    let count = u64::from(sizes.experts.unwrap_or(0));
    if index < count {
        return Ok(StackPlace { index, count });
    }
    Err(Error::Contradiction {
        module: name.to_owned(),
        config: format!("{count} experts"),
        tensors: format!("there is an expert {index}"),
    })
}

/// A tensor whose rows stay where they are. Vectors, norms and routers are F32, as is all that is no weight.
fn plain(name: String, shape: &[u64]) -> Respelled {
    let is_weight = split_suffix(&name).is_some_and(|(_, suffix)| suffix == "weight");
    let is_wide = shape.len() <= 1
        || !is_weight
        || name.ends_with("_norm.weight")
        || name.ends_with("ffn_gate_inp.weight");
    Respelled::As(Spelling {
        name,
        rows: RowOrder::Same,
        stack: None,
        values: Values::Same,
        float: is_wide.then_some(NARROW_READERS),
    })
}

fn stacked(name: String, place: StackPlace) -> Respelled {
    Respelled::As(Spelling {
        name,
        rows: RowOrder::Same,
        stack: Some(place),
        values: Values::Same,
        float: None,
    })
}

/// The order of the rows of queries and keys, weights and biases.
fn rows(
    architecture: &Architecture,
    sizes: &Sizes,
    name: &str,
    spelled: &str,
    shape: &[u64],
) -> Result<RowOrder, Error> {
    let heads = match spelled {
        "attn_q" => sizes.heads,
        "attn_k" => sizes.kv_heads,
        _ => return Ok(RowOrder::Same),
    };
    let heads = u64::from(heads);
    let expected = heads * u64::from(sizes.head_dim);
    if shape.first() != Some(&expected) {
        return Err(wrong_rows(name, shape, expected));
    }
    match architecture.rotary_rows {
        RotaryRows::Same => Ok(RowOrder::Same),
        RotaryRows::Alternating if sizes.head_dim.is_multiple_of(2) => {
            Ok(RowOrder::AlternatingHalves { heads })
        }
        RotaryRows::Alternating => Err(Error::Contradiction {
            module: name.to_owned(),
            config: format!("heads of {}", sizes.head_dim),
            tensors: "they have no halves".to_owned(),
        }),
    }
}

fn wrong_rows(name: &str, shape: &[u64], expected: u64) -> Error {
    Error::PartShape {
        module: name.to_owned(),
        part: name.to_owned(),
        expected: format!("{expected} rows, by config.json"),
        found: shape.to_vec(),
    }
}

fn unknown(architecture: &Architecture, name: &str) -> Error {
    let class = architecture.class;
    cannot_derive(
        &format!("the name of {name}"),
        format!("{class} has no tensor of that name"),
    )
}
