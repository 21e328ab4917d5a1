//! What feeds what within a layer, for each architecture whose scales can be folded: data.
//!
//! Sources: `AutoAWQ` 0.2.9, `awq/models/{llama,mistral,mixtral,qwen2,qwen3,qwen2_moe,qwen3_moe,gemma2,phi3}.py` (`get_layers_for_scaling`);
//! llm-compressor, `modifiers/awq/mappings.py`; and the forward passes of transformers' models, which decide where those differ. Both peers leave
//! routers out of what a norm feeds: here they are listed, and follow. A layer with a tensor that its row does not list is refused, so a model
//! that merely looks like one of these is never folded wrongly.

/// Models whose layers are alike.
#[derive(Debug)]
pub(crate) struct Architecture {
    /// `architectures[0]` of `config.json`.
    pub(crate) classes: &'static [&'static str],
    pub(crate) gain: Gain,
    pub(crate) pairs: &'static [Pair],
    /// Other tensors of a layer, without `.weight`: no scale touches them.
    pub(crate) others: &'static [&'static str],
}

/// What a norm multiplies by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gain {
    /// Its weight.
    Weight,
    /// `1 + weight`, in F32 (transformers' `GemmaRMSNorm`).
    OnePlusWeight,
}

/// A module and those that read what it makes, and nothing else reads it. In a name `*` is the number of an expert.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) source: Source,
    pub(crate) readers: &'static [&'static str],
    /// Readers that usually stay dense.
    pub(crate) routers: &'static [&'static str],
}

/// What is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// A norm without bias.
    Norm(&'static str),
    /// The last rows of a linear layer that has so many times as many as its reader has columns. Another number means that rows are shared by
    /// several columns (grouped-query attention), and nothing can be folded.
    Linear(&'static str, u64),
}

impl Source {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Source::Norm(name) | Source::Linear(name, _) => name,
        }
    }
}

/// What stands before the number of a layer.
pub(crate) const LAYERS: &[&str] = &[
    "model.layers.",
    "model.language_model.layers.",
    "language_model.model.layers.",
];

const QKV: &[&str] = &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"];

const ATTENTION: Pair = Pair {
    source: Source::Norm("input_layernorm"),
    readers: QKV,
    routers: &[],
};

const OUTPUT: Pair = Pair {
    source: Source::Linear("self_attn.v_proj", 1),
    readers: &["self_attn.o_proj"],
    routers: &[],
};

const DOWN: Pair = Pair {
    source: Source::Linear("mlp.up_proj", 1),
    readers: &["mlp.down_proj"],
    routers: &[],
};

const EXPERT_DOWN: Pair = Pair {
    source: Source::Linear("mlp.experts.*.up_proj", 1),
    readers: &["mlp.experts.*.down_proj"],
    routers: &[],
};

const MLP: Pair = Pair {
    source: Source::Norm("post_attention_layernorm"),
    readers: &["mlp.gate_proj", "mlp.up_proj"],
    routers: &[],
};

/// Every architecture.
pub(crate) static ARCHITECTURES: &[Architecture] = &[
    Architecture {
        classes: &[
            "LlamaForCausalLM",
            "MistralForCausalLM",
            "Mistral3ForConditionalGeneration",
            "Qwen2ForCausalLM",
        ],
        gain: Gain::Weight,
        pairs: &[ATTENTION, OUTPUT, MLP, DOWN],
        others: &["self_attn.rotary_emb.inv_freq"],
    },
    Architecture {
        classes: &["Qwen3ForCausalLM"],
        gain: Gain::Weight,
        pairs: &[ATTENTION, OUTPUT, MLP, DOWN],
        others: &["self_attn.q_norm", "self_attn.k_norm"],
    },
    Architecture {
        classes: &["MixtralForCausalLM"],
        gain: Gain::Weight,
        pairs: &[
            ATTENTION,
            OUTPUT,
            Pair {
                source: Source::Norm("post_attention_layernorm"),
                readers: &[
                    "block_sparse_moe.experts.*.w1",
                    "block_sparse_moe.experts.*.w3",
                ],
                routers: &["block_sparse_moe.gate"],
            },
            Pair {
                source: Source::Linear("block_sparse_moe.experts.*.w3", 1),
                readers: &["block_sparse_moe.experts.*.w2"],
                routers: &[],
            },
        ],
        others: &["self_attn.rotary_emb.inv_freq"],
    },
    Architecture {
        classes: &["Qwen2MoeForCausalLM"],
        gain: Gain::Weight,
        pairs: &[
            ATTENTION,
            OUTPUT,
            Pair {
                source: Source::Norm("post_attention_layernorm"),
                readers: &[
                    "mlp.gate_proj",
                    "mlp.up_proj",
                    "mlp.experts.*.gate_proj",
                    "mlp.experts.*.up_proj",
                    "mlp.shared_expert.gate_proj",
                    "mlp.shared_expert.up_proj",
                ],
                routers: &["mlp.gate", "mlp.shared_expert_gate"],
            },
            DOWN,
            EXPERT_DOWN,
            Pair {
                source: Source::Linear("mlp.shared_expert.up_proj", 1),
                readers: &["mlp.shared_expert.down_proj"],
                routers: &[],
            },
        ],
        others: &[],
    },
    Architecture {
        classes: &["Qwen3MoeForCausalLM"],
        gain: Gain::Weight,
        pairs: &[
            ATTENTION,
            OUTPUT,
            Pair {
                source: Source::Norm("post_attention_layernorm"),
                readers: &[
                    "mlp.gate_proj",
                    "mlp.up_proj",
                    "mlp.experts.*.gate_proj",
                    "mlp.experts.*.up_proj",
                ],
                routers: &["mlp.gate"],
            },
            DOWN,
            EXPERT_DOWN,
        ],
        others: &["self_attn.q_norm", "self_attn.k_norm"],
    },
    Architecture {
        classes: &["GemmaForCausalLM"],
        gain: Gain::OnePlusWeight,
        pairs: &[ATTENTION, OUTPUT, MLP, DOWN],
        others: &["self_attn.rotary_emb.inv_freq"],
    },
    Architecture {
        classes: &[
            "Gemma2ForCausalLM",
            "Gemma3ForCausalLM",
            "Gemma3ForConditionalGeneration",
        ],
        gain: Gain::OnePlusWeight,
        pairs: &[
            ATTENTION,
            OUTPUT,
            Pair {
                source: Source::Norm("pre_feedforward_layernorm"),
                readers: &["mlp.gate_proj", "mlp.up_proj"],
                routers: &[],
            },
            DOWN,
        ],
        // What the last two make is added to the residual: no linear layer reads it.
        others: &[
            "self_attn.q_norm",
            "self_attn.k_norm",
            "post_attention_layernorm",
            "post_feedforward_layernorm",
        ],
    },
    Architecture {
        classes: &["Phi3ForCausalLM"],
        gain: Gain::Weight,
        pairs: &[
            Pair {
                source: Source::Norm("input_layernorm"),
                readers: &["self_attn.qkv_proj"],
                routers: &[],
            },
            // Queries, keys and values: a third each, unless heads are grouped.
            Pair {
                source: Source::Linear("self_attn.qkv_proj", 3),
                readers: &["self_attn.o_proj"],
                routers: &[],
            },
            Pair {
                source: Source::Norm("post_attention_layernorm"),
                readers: &["mlp.gate_up_proj"],
                routers: &[],
            },
            // The second half is what the activated first is multiplied by.
            Pair {
                source: Source::Linear("mlp.gate_up_proj", 2),
                readers: &["mlp.down_proj"],
                routers: &[],
            },
        ],
        others: &[],
    },
];

/// The row of a class.
pub(crate) fn of_class(class: &str) -> Option<&'static Architecture> {
    let mut all = ARCHITECTURES.iter();
    all.find(|architecture| architecture.classes.contains(&class))
}

/// What a name is for a pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Match<'n> {
    /// The pattern itself.
    Plain,
    /// Of this expert.
    Expert(&'n str),
}

impl<'n> Match<'n> {
    /// The expert's number.
    pub(crate) fn expert(self) -> Option<&'n str> {
        match self {
            Match::Plain => None,
            Match::Expert(expert) => Some(expert),
        }
    }
}

/// Whether a name is that of a pattern, and which expert it is of.
pub(crate) fn matches<'n>(pattern: &str, name: &'n str) -> Option<Match<'n>> {
    let Some((before, after)) = pattern.split_once('*') else {
        return (pattern == name).then_some(Match::Plain);
    };
    let expert = name.strip_prefix(before)?.strip_suffix(after)?;
    let is_number = !expert.is_empty() && expert.bytes().all(|b| b.is_ascii_digit());
    is_number.then_some(Match::Expert(expert))
}
