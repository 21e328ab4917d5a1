//! The architectures whose names and keys are known, as data (llama.cpp `conversion/{llama,qwen}.py`).

use safequant_kernels::Float;

use super::documents::{Document, cannot_derive};
use crate::Error;

/// What sets one architecture apart.
#[derive(Debug)]
pub(super) struct Architecture {
    /// `architectures[0]` of `config.json`.
    pub class: &'static str,
    /// `general.architecture`, which begins the keys of its hyper-parameters.
    pub id: &'static str,
    /// The rows of `q_proj` and `k_proj`.
    pub rotary_rows: RotaryRows,
    /// Further names within a layer.
    pub layer_names: &'static [(&'static str, &'static str)],
    /// What stands for the MLP.
    pub mlp: Mlp,
    /// `attention.key_length`, where `config.json` does not say it.
    pub head_dim: HeadDim,
    /// `attention.head_count_kv`, where `config.json` does not say it.
    pub kv_heads: KvHeads,
    /// `rope_theta`, where `config.json` does not say it (the default of its class in transformers).
    pub rope_theta: f64,
    /// How a `tokenizer.json` is taken.
    pub tokenizer: TokenizerJson,
}

/// The rows of queries and keys. Readers of the architecture `llama` rotate neighbors, all others halves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RotaryRows {
    /// Halves alternate.
    Alternating,
    /// As they are.
    Same,
}

/// What stands for the MLP of a layer.
#[derive(Clone, Copy, Debug)]
pub(super) enum Mlp {
    /// `mlp.{gate,up,down}_proj`.
    Dense,
    /// Experts, stacked when written.
    Experts(&'static Experts),
}

/// The names of experts within a layer.
#[derive(Debug)]
pub(super) struct Experts {
    /// The router, a dense matrix.
    pub router: &'static str,
    /// What stands before the number.
    pub prefix: &'static str,
    /// Name after the number, and what stands for it.
    pub projections: [(&'static str, &'static str); 3],
    /// The key of `config.json` with the inner size, if the ordinary one is that of dense layers.
    pub inner_size: Option<&'static str>,
}

/// What stands for a size of heads that `config.json` does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeadDim {
    /// `hidden_size / num_attention_heads`, written.
    Derived,
    /// The same, which readers assume without a key.
    Implied,
    /// This many.
    Default(u32),
}

/// What stands for a number of key-value heads that `config.json` does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KvHeads {
    /// As many as there are heads.
    SameAsHeads,
    /// Nothing: the classes of transformers assume numbers that fit one model size.
    Stated,
}

/// What a `tokenizer.json` may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenizerJson {
    /// BPE over characters with bytes to fall back on, as a `SentencePiece` model; or byte-level BPE.
    AnyBpe,
    /// Byte-level BPE.
    ByteLevel,
}

const HEAD_NORMS: &[(&str, &str)] = &[
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
];

const MIXTRAL: Experts = Experts {
    router: "block_sparse_moe.gate",
    prefix: "block_sparse_moe.experts.",
    projections: [
        ("w1", "ffn_gate_exps"),
        ("w2", "ffn_down_exps"),
        ("w3", "ffn_up_exps"),
    ],
    inner_size: None,
};

const QWEN: Experts = Experts {
    router: "mlp.gate",
    prefix: "mlp.experts.",
    projections: [
        ("gate_proj", "ffn_gate_exps"),
        ("down_proj", "ffn_down_exps"),
        ("up_proj", "ffn_up_exps"),
    ],
    inner_size: Some("moe_intermediate_size"),
};

const LLAMA: Architecture = Architecture {
    class: "LlamaForCausalLM",
    id: "llama",
    rotary_rows: RotaryRows::Alternating,
    layer_names: &[],
    mlp: Mlp::Dense,
    head_dim: HeadDim::Derived,
    kv_heads: KvHeads::SameAsHeads,
    rope_theta: 10_000.0,
    tokenizer: TokenizerJson::AnyBpe,
};

const QWEN2: Architecture = Architecture {
    class: "Qwen2ForCausalLM",
    id: "qwen2",
    rotary_rows: RotaryRows::Same,
    layer_names: &[],
    mlp: Mlp::Dense,
    head_dim: HeadDim::Implied,
    kv_heads: KvHeads::Stated,
    rope_theta: 10_000.0,
    tokenizer: TokenizerJson::ByteLevel,
};

/// Every architecture that can be written.
pub(super) const ARCHITECTURES: &[Architecture] = &[
    LLAMA,
    Architecture {
        class: "MistralForCausalLM",
        kv_heads: KvHeads::Stated,
        ..LLAMA
    },
    Architecture {
        class: "MixtralForCausalLM",
        mlp: Mlp::Experts(&MIXTRAL),
        head_dim: HeadDim::Implied,
        kv_heads: KvHeads::Stated,
        rope_theta: 1_000_000.0,
        ..LLAMA
    },
    QWEN2,
    Architecture {
        class: "Qwen3ForCausalLM",
        id: "qwen3",
        layer_names: HEAD_NORMS,
        head_dim: HeadDim::Default(128),
        ..QWEN2
    },
    Architecture {
        class: "Qwen3MoeForCausalLM",
        id: "qwen3moe",
        layer_names: HEAD_NORMS,
        mlp: Mlp::Experts(&QWEN),
        ..QWEN2
    },
];

impl Architecture {
    /// The architecture that `config.json` names.
    pub(super) fn of(config: &Document) -> Result<&'static Self, Error> {
        const FIELD: &str = "general.architecture";
        let classes = config.texts("architectures")?;
        let Some(class) = classes.first() else {
            return Err(cannot_derive(FIELD, "config.json has no `architectures`"));
        };
        let found = ARCHITECTURES.iter().find(|a| a.class == class);
        found.ok_or_else(|| {
            let known: Vec<&str> = ARCHITECTURES.iter().map(|a| a.class).collect();
            let known = known.join(", ");
            let problem = format!(
                "config.json: the names of {class} are not known; known are those of {known}"
            );
            cannot_derive(FIELD, problem)
        })
    }

    /// The experts, if it has some.
    pub(super) fn experts(&self) -> Option<&'static Experts> {
        match self.mlp {
            Mlp::Dense => None,
            Mlp::Experts(experts) => Some(experts),
        }
    }
}

/// The dtype in which readers want vectors, norms and routers.
pub(super) const NARROW_READERS: Float = Float::F32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_is_listed_once() {
        let mut classes: Vec<&str> = ARCHITECTURES.iter().map(|a| a.class).collect();
        classes.sort_unstable();
        classes.dedup();
        assert_eq!(classes.len(), ARCHITECTURES.len());
    }
}
