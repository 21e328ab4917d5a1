//! The logical shape of a packed weight, which quanto does not store: from its bias, from where it stands in the model, or
//! because only one shape goes with its groups (specs/conventions/quanto.md, Q8).

use serde_json::Value;

use crate::config::parse;
use crate::{Error, Headers};

/// What quanto starts with when it looks for a group size, and in what steps it goes down.
const LARGEST_GROUP: u64 = 128;
const GROUP_STEP: u64 = 32;

/// Names of linear modules that read the residual stream: `in_features` is the hidden size.
const READS_HIDDEN: &[&str] = &[
    "q_proj",
    "k_proj",
    "v_proj",
    "qkv_proj",
    "query",
    "key",
    "value",
    "query_key_value",
    "c_attn",
    "Wqkv",
    "wq",
    "wk",
    "wv",
    "wqkv",
    "gate_proj",
    "up_proj",
    "gate_up_proj",
    "w1",
    "w3",
    "fc1",
    "c_fc",
    "dense_h_to_4h",
    "lm_head",
    "embed_out",
    "gate",
    "router",
    "shared_expert_gate",
];
/// Names of linear modules that write it: `out_features` is the hidden size.
const WRITES_HIDDEN: &[&str] = &[
    "o_proj",
    "out_proj",
    "down_proj",
    "fc2",
    "c_proj",
    "w2",
    "wo",
    "dense_4h_to_h",
];
/// Keys of `config.json` for the hidden size.
const HIDDEN_KEYS: [&str; 4] = ["hidden_size", "n_embd", "d_model", "dim"];
/// Weights of normalizations of the residual stream, one element per hidden feature.
const NORMS: &[&str] = &[
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
    "pre_feedforward_layernorm.weight",
    "attention_norm.weight",
    "ffn_norm.weight",
    "self_attn_layer_norm.weight",
    "final_layer_norm.weight",
    "layer_norm1.weight",
    "layer_norm2.weight",
    "ln_1.weight",
    "ln_2.weight",
    "norm1.weight",
    "norm2.weight",
    "norm.weight",
    "ln_f.weight",
];

/// `[out_features, in_features]` of the weight whose grouped matrix is `[rows, columns]`.
///
/// # Errors
/// If nothing tells, or what tells does not go with the groups.
pub(super) fn logical(
    headers: Headers<'_>,
    module: &str,
    [rows, columns]: [u64; 2],
) -> Result<[u64; 2], Error> {
    let contradiction = |told: &str| Error::Contradiction {
        module: module.to_owned(),
        config: told.to_owned(),
        tensors: format!("groups of {columns}, {rows} of them"),
    };
    let Some(n) = rows.checked_mul(columns) else {
        return Err(Error::TooLarge {
            module: module.to_owned(),
            what: "the weight",
        });
    };
    // A size that nothing in the group rule gives is the whole row.
    let is_group = columns <= LARGEST_GROUP && columns.is_multiple_of(GROUP_STEP);
    let whole = [rows, columns];
    if !is_group {
        return Ok(whole);
    }
    let told = |size: u64, shape: [u64; 2], what: &str| {
        let fits = size > 0 && n.is_multiple_of(size) && group_of(shape[1]) == columns;
        if fits {
            Ok(shape)
        } else {
            Err(contradiction(&format!("{what} is {size}")))
        }
    };
    let of_out = |out: u64| [out, n / out.max(1)];
    let of_in = |columns: u64| [n / columns.max(1), columns];
    if let Some(bias) = headers.tensor(&format!("{module}.bias")) {
        let out = bias.n_elements();
        return told(out, of_out(out), "the length of its bias");
    }
    let name = module.rsplit('.').next().unwrap_or(module);
    let (reads, writes) = (READS_HIDDEN.contains(&name), WRITES_HIDDEN.contains(&name));
    if (reads || writes)
        && let Some((hidden, place)) = hidden_size(headers, module)?
    {
        let shape = if reads { of_in(hidden) } else { of_out(hidden) };
        return told(hidden, shape, &place);
    }
    // No room for another shape.
    if only_shape(n, columns) {
        return Ok(whole);
    }
    Err(Error::MissingPart {
        module: module.to_owned(),
        part: format!(
            "its shape: quanto does not store it, and there is no bias, hidden size or normalization that tells {rows} groups of {columns} apart"
        ),
    })
}

/// The group size that quanto takes for so many input features; all of them if none divides.
pub(super) fn group_of(in_features: u64) -> u64 {
    if in_features <= LARGEST_GROUP {
        return in_features;
    }
    let mut size = LARGEST_GROUP;
    while !in_features.is_multiple_of(size) && size > GROUP_STEP {
        size -= GROUP_STEP;
    }
    if in_features.is_multiple_of(size) {
        size
    } else {
        in_features
    }
}

/// Whether `in_features` can be nothing but `columns`.
fn only_shape(n: u64, columns: u64) -> bool {
    if columns == 0 || group_of(columns) != columns {
        return false;
    }
    // Input features are a multiple of the group and divide the whole; the smallest candidates decide.
    let rows = n / columns;
    let mut factor = 2_u64;
    while factor <= rows && factor <= 1 << 16 {
        let fits = rows.is_multiple_of(factor);
        let wide = columns.saturating_mul(factor);
        if fits && group_of(wide) == columns {
            return false;
        }
        factor += 1;
    }
    factor > rows
}

/// The hidden size as the nearest normalization has it, else as `config.json` says; and who says so.
fn hidden_size(headers: Headers<'_>, module: &str) -> Result<Option<(u64, String)>, Error> {
    let mut place = module;
    while let Some((parent, _)) = place.rsplit_once('.') {
        for norm in NORMS {
            let name = format!("{parent}.{norm}");
            if let Some(info) = headers.tensor(&name)
                && info.shape.len() == 1
            {
                return Ok(Some((info.n_elements(), format!("the length of {name}"))));
            }
        }
        place = parent;
    }
    let Some(bytes) = headers.document("config.json") else {
        return Ok(None);
    };
    let config = parse("config.json", bytes)?;
    let text = config.get("text_config");
    for object in [text, Some(&config)].into_iter().flatten() {
        for key in HIDDEN_KEYS {
            if let Some(size) = object.get(key).and_then(Value::as_u64) {
                return Ok(Some((size, format!("{key} of config.json"))));
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_size_is_that_of_quanto() {
        let sizes = [
            (64, 64),
            (128, 128),
            (129, 129),
            (160, 32),
            (192, 96),
            (256, 128),
            (320, 64),
        ];
        for (in_features, group) in sizes {
            assert_eq!(group_of(in_features), group, "{in_features}");
        }
    }

    #[test]
    fn a_shape_is_certain_only_where_no_other_goes_with_the_groups() {
        assert!(
            !only_shape(128 * 128, 128),
            "[64, 256] has groups of 128 too"
        );
        assert!(only_shape(128, 128));
        assert!(!only_shape(7 * 64, 64), "[1, 448] has groups of 64 too");
        assert!(only_shape(3 * 64, 64), "[1, 192] has groups of 96");
        assert!(!only_shape(32 * 96, 96), "[16, 192] has groups of 96 too");
    }
}
