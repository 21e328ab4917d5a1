//! The hyper-parameters of `config.json`, in the order and with the types of llama.cpp's converter
//! (`conversion/base.py`, `TextModel.set_gguf_parameters`), and the defaults of the classes of transformers.

use safequant_container::{GgufMetadata, GgufValue};

use super::architecture::{Architecture, HeadDim, KvHeads};
use super::documents::{Document, Push, cannot_derive};
use super::rope::Rope;
use crate::Error;

/// What names and rows depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sizes {
    pub layers: u32,
    pub hidden: u32,
    pub heads: u32,
    pub kv_heads: u32,
    /// Rows of a head of queries or keys.
    pub head_dim: u32,
    pub vocabulary: u32,
    /// Experts of a layer.
    pub experts: Option<u32>,
    /// Whether the matrix of the logits is that of the embeddings.
    pub has_tied_embeddings: bool,
}

impl Sizes {
    pub(super) fn of(architecture: &Architecture, config: &Document) -> Result<Self, Error> {
        let key = |name: &str| format!("{}.{name}", architecture.id);
        let heads = config.count("num_attention_heads", &key("attention.head_count"))?;
        let hidden = config.count("hidden_size", &key("embedding_length"))?;
        let kv_heads = match (
            config.unsigned("num_key_value_heads")?,
            architecture.kv_heads,
        ) {
            (Some(count), _) if count > 0 => count,
            (None, KvHeads::SameAsHeads) => heads,
            (_, KvHeads::SameAsHeads | KvHeads::Stated) => {
                let field = key("attention.head_count_kv");
                return Err(config.missing("num_key_value_heads", &field));
            }
        };
        let head_dim = match (config.unsigned("head_dim")?, architecture.head_dim) {
            (Some(size), _) | (None, HeadDim::Default(size)) => size,
            (None, HeadDim::Derived | HeadDim::Implied) => hidden / heads,
        };
        let mut experts = None;
        if architecture.experts().is_some() {
            let names = ["num_local_experts", "num_experts"];
            let name = names.into_iter().find(|name| config.get(name).is_some());
            let name = name.unwrap_or("num_experts");
            experts = Some(config.count(name, &key("expert_count"))?);
        }
        Ok(Self {
            layers: config.count("num_hidden_layers", &key("block_count"))?,
            hidden,
            heads,
            kv_heads,
            head_dim,
            vocabulary: config.count("vocab_size", &key("vocab_size"))?,
            experts,
            has_tied_embeddings: config.boolean("tie_word_embeddings")? == Some(true),
        })
    }
}

/// Adds `<architecture>.*` and, in its place among them, `general.file_type`.
pub(super) fn push(
    metadata: &mut GgufMetadata,
    architecture: &Architecture,
    config: &Document,
    sizes: &Sizes,
    file_type: u32,
) -> Result<(), Error> {
    let key = |name: &str| format!("{}.{name}", architecture.id);
    refuse_what_has_no_key(architecture, config)?;
    metadata.count(&key("block_count"), sizes.layers);
    let plain = [
        ("max_position_embeddings", "context_length"),
        ("hidden_size", "embedding_length"),
        ("intermediate_size", "feed_forward_length"),
    ];
    for (name, field) in plain {
        metadata.count(&key(field), config.count(name, &key(field))?);
    }
    metadata.count(&key("attention.head_count"), sizes.heads);
    metadata.count(&key("attention.head_count_kv"), sizes.kv_heads);
    if config.boolean("is_causal")? == Some(false) {
        metadata.boolean(&key("attention.causal"), false);
    }
    Rope::of(architecture, config)?.push(metadata, architecture.id);
    let field = key("attention.layer_norm_rms_epsilon");
    let epsilon = config.number("rms_norm_eps")?;
    let epsilon = epsilon.ok_or_else(|| config.missing("rms_norm_eps", &field))?;
    metadata.number(&field, epsilon);
    if let Some(experts) = sizes.experts {
        metadata.count(&key("expert_count"), experts);
        let field = key("expert_used_count");
        metadata.count(&field, config.count("num_experts_per_tok", &field)?);
    }
    let is_stated = match architecture.head_dim {
        HeadDim::Derived | HeadDim::Default(_) => true,
        HeadDim::Implied => config.get("head_dim").is_some(),
    };
    if is_stated {
        metadata.count(&key("attention.key_length"), sizes.head_dim);
        metadata.count(&key("attention.value_length"), sizes.head_dim);
    }
    metadata.push("general.file_type", GgufValue::U32(file_type));
    push_last(metadata, architecture, config, sizes)
}

/// What the classes of the converter add to what all have.
fn push_last(
    metadata: &mut GgufMetadata,
    architecture: &Architecture,
    config: &Document,
    sizes: &Sizes,
) -> Result<(), Error> {
    let key = |name: &str| format!("{}.{name}", architecture.id);
    if architecture.id == "llama" {
        metadata.count(&key("vocab_size"), sizes.vocabulary);
        metadata.count(&key("rope.dimension_count"), sizes.head_dim);
    }
    let inner_size = architecture.experts().and_then(|e| e.inner_size);
    if let Some(name) = inner_size {
        let field = key("expert_feed_forward_length");
        metadata.count(&field, config.count(name, &field)?);
    }
    Ok(())
}

/// What a reader would do otherwise than the model, because GGUF has no key for it.
fn refuse_what_has_no_key(architecture: &Architecture, config: &Document) -> Result<(), Error> {
    let activation = config.text("hidden_act")?.unwrap_or("silu");
    if !["silu", "swish"].contains(&activation) {
        let field = format!("{}.activation", architecture.id);
        return Err(config.unknown("hidden_act", &field, "silu"));
    }
    let dense = config.get("mlp_only_layers").and_then(|v| v.as_array());
    let has_dense_layers = dense.is_some_and(|layers| !layers.is_empty())
        || config.unsigned("decoder_sparse_step")?.unwrap_or(1) != 1;
    if architecture.experts().is_some() && has_dense_layers {
        let problem = "config.json: some layers have no experts (mlp_only_layers, decoder_sparse_step), which readers of this architecture do not expect";
        return Err(cannot_derive(
            &format!("{}.expert_count", architecture.id),
            problem,
        ));
    }
    Ok(())
}
