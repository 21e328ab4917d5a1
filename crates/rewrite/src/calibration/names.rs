//! Names of llama.cpp's tensors and what they are called elsewhere (specs/imatrix.md, clauses 10 to 12).
//!
//! Source: gguf-py 0.19, `tensor_mapping.py`. The writer of the GGUF convention has its own table, which knows the architecture
//! and turns names in one direction; here no architecture is known, and names are looked up from either side. A test holds both
//! against files of llama.cpp's own converter.

/// What stands before the number of a layer. A prefix that is not listed (a vision tower's `layers.`) is another model's layer.
const LAYERS: &[&str] = &[
    "model.layers.",
    "layers.",
    "model.language_model.layers.",
    "language_model.model.layers.",
    "encoder.layer.",
    "bert.encoder.layer.",
    "roberta.encoder.layer.",
    "transformer.h.",
    "h.",
    "gpt_neox.layers.",
];

/// What stands before the number of a layer in GGUF.
const BLOCK: &str = "blk.";

/// Names outside of layers; the first one is listed.
const OUTER: &[(&str, &[&str])] = &[
    ("output", &["lm_head"]),
    ("token_embd", &["model.embed_tokens"]),
];

/// Names within a layer; the first one is listed.
const INNER: &[(&str, &[&str])] = &[
    (
        "attn_q",
        &["self_attn.q_proj", "attention.self.query", "attention.wq"],
    ),
    (
        "attn_k",
        &["self_attn.k_proj", "attention.self.key", "attention.wk"],
    ),
    (
        "attn_v",
        &["self_attn.v_proj", "attention.self.value", "attention.wv"],
    ),
    (
        "attn_qkv",
        &[
            "self_attn.qkv_proj",
            "attn.c_attn",
            "attention.query_key_value",
            "self_attention.query_key_value",
            "attn.Wqkv",
        ],
    ),
    (
        "attn_output",
        &[
            "self_attn.o_proj",
            "attention.output.dense",
            "attn.c_proj",
            "attention.dense",
            "self_attention.dense",
            "self_attn.dense",
            "attn.out_proj",
            "attention.wo",
        ],
    ),
    ("attn_q_a", &["self_attn.q_a_proj"]),
    ("attn_q_b", &["self_attn.q_b_proj"]),
    ("attn_kv_a_mqa", &["self_attn.kv_a_proj_with_mqa"]),
    ("attn_kv_b", &["self_attn.kv_b_proj"]),
    ("ffn_gate", &["mlp.gate_proj", "feed_forward.w1"]),
    (
        "ffn_up",
        &[
            "mlp.up_proj",
            "intermediate.dense",
            "mlp.gate_up_proj",
            "mlp.c_fc",
            "mlp.dense_h_to_4h",
            "mlp.fc1",
            "feed_forward.w3",
        ],
    ),
    (
        "ffn_down",
        &[
            "mlp.down_proj",
            "output.dense",
            "mlp.c_proj",
            "mlp.dense_4h_to_h",
            "mlp.fc2",
            "feed_forward.w2",
        ],
    ),
    (
        "ffn_gate_inp",
        &["mlp.gate", "block_sparse_moe.gate", "mlp.router"],
    ),
    (
        "ffn_gate_shexp",
        &[
            "mlp.shared_expert.gate_proj",
            "mlp.shared_experts.gate_proj",
        ],
    ),
    (
        "ffn_up_shexp",
        &["mlp.shared_expert.up_proj", "mlp.shared_experts.up_proj"],
    ),
    (
        "ffn_down_shexp",
        &[
            "mlp.shared_expert.down_proj",
            "mlp.shared_experts.down_proj",
        ],
    ),
    ("ffn_gate_inp_shexp", &["mlp.shared_expert_gate"]),
];

/// Stacks of experts: what stands before an expert's number, and after it; the first pair is listed.
const STACKS: &[(&str, &[(&str, &str)])] = &[
    (
        "ffn_gate_exps",
        &[
            ("mlp.experts.", "gate_proj"),
            ("block_sparse_moe.experts.", "w1"),
        ],
    ),
    (
        "ffn_up_exps",
        &[
            ("mlp.experts.", "up_proj"),
            ("block_sparse_moe.experts.", "w3"),
        ],
    ),
    (
        "ffn_down_exps",
        &[
            ("mlp.experts.", "down_proj"),
            ("block_sparse_moe.experts.", "w2"),
        ],
    ),
];

/// How names of weights end.
const WEIGHT: &str = ".weight";

/// A weight by its name in GGUF, without `.weight`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Stored {
    pub(super) base: String,
    /// Which matrix of a stack.
    pub(super) expert: Option<u64>,
}

/// The name of a weight without `.weight`.
pub(super) fn without_suffix(name: &str) -> &str {
    name.strip_suffix(WEIGHT).unwrap_or(name)
}

/// Whether llama.cpp stacks experts under this name.
pub(super) fn is_stack(base: &str) -> bool {
    split_block(base).is_some_and(|(_, inner)| STACKS.iter().any(|(name, _)| *name == inner))
}

/// What a module is called in GGUF, if the table has its name.
pub(super) fn stored(module: &str) -> Option<Stored> {
    let plain = |base: String| Stored { base, expert: None };
    if let Some(outer) = find(OUTER, module) {
        return Some(plain(outer.to_owned()));
    }
    let mut layers = LAYERS.iter().filter_map(|prefix| layer_of(prefix, module));
    layers.find_map(|(layer, inner)| match find(INNER, inner) {
        Some(found) => Some(plain(format!("{BLOCK}{layer}.{found}"))),
        None => expert_of(inner).map(|(stack, expert)| Stored {
            base: format!("{BLOCK}{layer}.{stack}"),
            expert: Some(expert),
        }),
    })
}

/// The name under which a weight, or the matrix of a stack, is listed.
pub(super) fn listed(base: &str, expert: Option<u64>) -> String {
    known(base, expert).unwrap_or_else(|| match expert {
        Some(expert) => format!("{base}.{expert}"),
        None => base.to_owned(),
    })
}

/// The inverse of [`listed`] for matrices of stacks that the table does not know: `<base>.<number>`.
pub(super) fn numbered(module: &str) -> Option<(&str, u64)> {
    let (base, digits) = module.rsplit_once('.')?;
    Some((base, number(digits)?))
}

fn known(base: &str, expert: Option<u64>) -> Option<String> {
    let first = |table: &[(&str, &'static [&'static str])], name: &str| {
        let row = table.iter().find(|(theirs, _)| *theirs == name);
        row.and_then(|(_, ours)| ours.first().copied())
    };
    let model = LAYERS.first()?;
    match (split_block(base), expert) {
        (None, None) => first(OUTER, base).map(str::to_owned),
        (None, Some(_)) => None,
        (Some((layer, inner)), None) => {
            first(INNER, inner).map(|inner| format!("{model}{layer}.{inner}"))
        }
        (Some((layer, inner)), Some(expert)) => {
            let row = STACKS.iter().find(|(theirs, _)| *theirs == inner)?;
            let (before, after) = row.1.first()?;
            Some(format!("{model}{layer}.{before}{expert}.{after}"))
        }
    }
}

fn find(table: &[(&'static str, &[&str])], name: &str) -> Option<&'static str> {
    let row = table.iter().find(|(_, names)| names.contains(&name));
    row.map(|(theirs, _)| *theirs)
}

fn expert_of(inner: &str) -> Option<(&'static str, u64)> {
    let of_row = |(stack, names): &(&'static str, &[(&str, &str)])| {
        let mut names = names.iter();
        let expert = names.find_map(|(before, after)| {
            let (expert, rest) = inner.strip_prefix(before)?.split_once('.')?;
            (rest == *after).then(|| number(expert)).flatten()
        });
        expert.map(|expert| (*stack, expert))
    };
    STACKS.iter().find_map(of_row)
}

/// Layer and name within it.
fn layer_of<'n>(prefix: &str, name: &'n str) -> Option<(u64, &'n str)> {
    let (layer, inner) = name.strip_prefix(prefix)?.split_once('.')?;
    Some((number(layer)?, inner))
}

fn split_block(base: &str) -> Option<(u64, &str)> {
    layer_of(BLOCK, base)
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use safequant_container::{Checkpoint, Limits};

    use super::*;

    fn stored_as(module: &str) -> Option<(String, Option<u64>)> {
        stored(module).map(|found| (found.base, found.expert))
    }

    #[test]
    fn every_name_of_the_table_has_one_meaning_and_lists_back() {
        let mut n_names = 0;
        for (theirs, ours) in INNER {
            for name in *ours {
                let found = stored_as(&format!("model.layers.7.{name}"));
                assert_eq!(found, Some((format!("blk.7.{theirs}"), None)), "{name}");
                n_names += 1;
            }
            let listed = listed(&format!("blk.7.{theirs}"), None);
            assert_eq!(listed, format!("model.layers.7.{}", ours[0]));
        }
        for (theirs, ours) in STACKS {
            for (before, after) in *ours {
                let found = stored_as(&format!("model.layers.7.{before}31.{after}"));
                assert_eq!(found, Some((format!("blk.7.{theirs}"), Some(31))));
                n_names += 1;
            }
            assert!(is_stack(&format!("blk.7.{theirs}")));
        }
        assert!(n_names >= 40, "{n_names} names");
    }

    #[test]
    fn what_is_not_in_the_table_keeps_its_name() {
        assert_eq!(stored("vision.layers.0.self_attn.q_proj"), None);
        assert_eq!(stored("model.layers.07.self_attn.q_proj"), None);
        assert_eq!(listed("blk.0.ssm_in", None), "blk.0.ssm_in");
        assert_eq!(listed("blk.0.ssm_in", Some(3)), "blk.0.ssm_in.3");
        assert_eq!(numbered("blk.0.ssm_in.3"), Some(("blk.0.ssm_in", 3)));
        assert_eq!(listed("output", None), "lm_head");
    }

    /// The names of models before and after llama.cpp's own converter.
    #[test]
    fn the_table_agrees_with_llama_cpp_s_converter() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/llama.cpp");
        let mut n_matrices = 0;
        for folder in ["hf-llama-spm", "hf-mixtral-spm", "hf-qwen2", "hf-qwen3-moe"] {
            let open = |name| Checkpoint::open(&root.join(folder).join(name), &Limits::default());
            let before = open("model.safetensors").unwrap();
            let after = open("expected.gguf").unwrap();
            for tensor in before.tensors().filter(|t| t.shape().len() == 2) {
                let module = without_suffix(tensor.name());
                let found = stored(module).unwrap_or_else(|| panic!("{folder}: {module}"));
                if found.base == "output" {
                    continue; // it may be tied to the embeddings, and left out
                }
                let theirs = after.tensor(&format!("{}.weight", found.base));
                let theirs = theirs.unwrap_or_else(|| panic!("{folder}: {module}: {found:?}"));
                let columns = theirs.info.logical_shape();
                assert_eq!(columns.last(), tensor.shape().last(), "{folder}: {module}");
                assert_eq!(columns.len() == 3, found.expert.is_some(), "{module}");
                n_matrices += 1;
            }
        }
        assert!(n_matrices >= 40, "{n_matrices} matrices");
    }
}
