//! Words for what the libraries describe: actions, and the place of a tensor in a model.

use safequant::rewrite::Action;

/// What is done with a module, for a table.
pub(crate) fn action(action: &Action) -> String {
    match action {
        Action::Copy => "copy".to_owned(),
        Action::Quantize(scheme) => format!("quantize to {scheme}"),
        Action::Dequantize(convention) => format!("dequantize from {convention}"),
        Action::Convert(label) => format!("convert ({})", label.word()),
        Action::Respell => "respell".to_owned(),
        Action::Drop => "drop".to_owned(),
        Action::Fold => "divide by folded scales".to_owned(),
        Action::Refine => "better codes".to_owned(),
    }
}

/// What is done with a module and how, for a table; rounding to nearest goes without saying.
pub(crate) fn action_by(kind: &Action, method: Option<&str>) -> String {
    match method.filter(|method| *method != "rtn") {
        Some(method) => format!("{} by {method}", action(kind)),
        None => action(kind),
    }
}

/// What is done with a module, for JSON: the verb, and the scheme or convention that goes with it.
pub(crate) const fn action_parts(action: &Action) -> (&'static str, Option<&'static str>) {
    match action {
        Action::Copy => ("copy", None),
        Action::Quantize(scheme) => ("quantize", Some(*scheme)),
        Action::Dequantize(convention) => ("dequantize", Some(*convention)),
        Action::Convert(_) => ("convert", None),
        Action::Respell => ("respell", None),
        Action::Drop => ("drop", None),
        Action::Fold => ("fold", None),
        Action::Refine => ("refine", None),
    }
}

/// How much survives, where something is converted.
pub(crate) const fn label(action: &Action) -> Option<&'static str> {
    match action {
        Action::Convert(label) => Some(label.word()),
        Action::Copy
        | Action::Quantize(_)
        | Action::Dequantize(_)
        | Action::Respell
        | Action::Drop
        | Action::Fold
        | Action::Refine => None,
    }
}

/// What a tensor does in a model, judged by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Place {
    Attention,
    Mlp,
    Experts,
    Embeddings,
    Norms,
    LmHead,
    Other,
}

/// Parts of names by place, lower case; the first that occurs decides. Norms and experts come first because their names
/// also carry the name of the block they stand in (`attention.output.LayerNorm`, `mlp.experts.0`).
const PLACES: &[(Place, &[&str])] = &[
    (Place::LmHead, &["lm_head", "output_head", "embed_out"]),
    (Place::Norms, &["norm", "ln_", ".ln"]),
    (Place::Experts, &["expert"]),
    (Place::Embeddings, &["embed", "wte", "wpe", "tok_"]),
    (
        Place::Attention,
        &[
            "attn",
            "attention",
            "q_proj",
            "k_proj",
            "v_proj",
            "o_proj",
            "qkv",
            "query_key_value",
        ],
    ),
    (
        Place::Mlp,
        &[
            "mlp",
            "feed_forward",
            "ffn",
            "gate_proj",
            "up_proj",
            "down_proj",
            "intermediate.dense",
            "output.dense",
            "fc1",
            "fc2",
        ],
    ),
];

impl Place {
    /// Every place, in the order of tables.
    pub(crate) const ALL: [Place; 7] = [
        Place::Attention,
        Place::Mlp,
        Place::Experts,
        Place::Embeddings,
        Place::Norms,
        Place::LmHead,
        Place::Other,
    ];

    /// Where a tensor or module of this name stands.
    pub(crate) fn of(name: &str) -> Place {
        let name = name.to_ascii_lowercase();
        let found = PLACES
            .iter()
            .find(|(_, parts)| parts.iter().any(|part| name.contains(part)));
        found.map_or(Place::Other, |(place, _)| *place)
    }

    /// The word for it.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Place::Attention => "attention",
            Place::Mlp => "mlp",
            Place::Experts => "experts",
            Place::Embeddings => "embeddings",
            Place::Norms => "norms",
            Place::LmHead => "lm_head",
            Place::Other => "other",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_common_models_are_placed() {
        let cases = [
            ("model.layers.3.self_attn.q_proj.weight", Place::Attention),
            ("model.layers.3.mlp.down_proj.weight", Place::Mlp),
            ("model.layers.3.mlp.experts.7.up_proj", Place::Experts),
            ("model.layers.3.input_layernorm.weight", Place::Norms),
            ("model.embed_tokens.weight", Place::Embeddings),
            ("lm_head.weight", Place::LmHead),
            (
                "encoder.layer.0.attention.output.LayerNorm.bias",
                Place::Norms,
            ),
            (
                "encoder.layer.0.attention.output.dense.weight",
                Place::Attention,
            ),
            ("encoder.layer.0.output.dense.weight", Place::Mlp),
            ("encoder.layer.0.intermediate.dense.weight", Place::Mlp),
            ("embeddings.position_ids", Place::Embeddings),
            ("transformer.h.0.ln_1.weight", Place::Norms),
            ("pooler.dense.weight", Place::Other),
            ("", Place::Other),
        ];
        for (name, place) in cases {
            assert_eq!(Place::of(name), place, "{name}");
        }
    }
}
