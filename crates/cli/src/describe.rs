//! Words for what the libraries describe: schemes, actions, and the place of a tensor in a model.

use safequant::kernels::{Codebook, Float, Minifloat};
use safequant::rewrite::Action;
use safequant::schemes::{Code, Granularity, ScaleCoding, Scheme, ZeroPoint};

/// A scheme in one phrase: `int4 asym, group 128, scale BF16`.
pub(crate) fn scheme(scheme: &Scheme) -> String {
    let zero = match scheme.zero_point {
        ZeroPoint::Fixed(_) => "",
        ZeroPoint::Stored(_) => " asym",
        ZeroPoint::Offset { .. } => " with offsets",
    };
    let scale = match scheme.scale {
        ScaleCoding::Float(float) => float_name(float),
        ScaleCoding::E8M0(_) => "E8M0",
        ScaleCoding::Minifloat(minifloat) => minifloat_name(minifloat),
        ScaleCoding::StoredTable => "8-bit codes",
        ScaleCoding::Integer => "integers",
        ScaleCoding::One => "1",
    };
    format!(
        "{}{zero}, {}, scale {scale}",
        code(scheme.code),
        granularity(scheme.granularity)
    )
}

fn code(code: Code) -> String {
    match code {
        Code::Integer { bits, .. } => format!("int{bits}"),
        Code::Minifloat(minifloat) => minifloat_name(minifloat).to_owned(),
        Code::Codebook(Codebook::Nf4) => "nf4".to_owned(),
        Code::Codebook(Codebook::BnbFp4) => "fp4 (bitsandbytes)".to_owned(),
        Code::Codebook(Codebook::Iq4Nl) => "iq4_nl".to_owned(),
        Code::Codebook(Codebook::DoubledE2M1) => "f4_e2m1 (doubled)".to_owned(),
        Code::Codebook(Codebook::W4A8) => "w4a8".to_owned(),
        Code::StoredCodebook => "code book".to_owned(),
        Code::Dense(float) => float_name(float).to_owned(),
    }
}

fn granularity(granularity: Granularity) -> String {
    match granularity {
        Granularity::Tensor => "tensor".to_owned(),
        Granularity::Channel => "channel".to_owned(),
        Granularity::Group { size } => format!("group {size}"),
        Granularity::IndexedGroup { size } => format!("group {size} by index"),
        Granularity::Block { rows, columns } => format!("block {rows}x{columns}"),
        Granularity::Flat { size } => format!("flat group {size}"),
        Granularity::Strided { count } => format!("{count} strided groups"),
    }
}

const fn minifloat_name(minifloat: Minifloat) -> &'static str {
    match minifloat {
        Minifloat::E4M3 => "fp8 E4M3",
        Minifloat::E5M2 => "fp8 E5M2",
        Minifloat::E4M3Fnuz => "fp8 E4M3FNUZ",
        Minifloat::E5M2Fnuz => "fp8 E5M2FNUZ",
        Minifloat::E8M0 => "E8M0",
        Minifloat::E2M3 => "fp6 E2M3",
        Minifloat::E3M2 => "fp6 E3M2",
        Minifloat::E2M1 => "fp4 E2M1",
    }
}

const fn float_name(float: Float) -> &'static str {
    match float {
        Float::F32 => "F32",
        Float::F16 => "F16",
        Float::Bf16 => "BF16",
    }
}

/// What is done with a module, for a table.
pub(crate) fn action(action: &Action) -> String {
    match action {
        Action::Copy => "copy".to_owned(),
        Action::Quantize(scheme) => format!("quantize to {scheme}"),
        Action::Dequantize(convention) => format!("dequantize from {convention}"),
        Action::Convert(label) => format!("convert ({})", label.word()),
        Action::Drop => "drop".to_owned(),
    }
}

/// What is done with a module, for JSON: the verb, and the scheme or convention that goes with it.
pub(crate) const fn action_parts(action: &Action) -> (&'static str, Option<&'static str>) {
    match action {
        Action::Copy => ("copy", None),
        Action::Quantize(scheme) => ("quantize", Some(*scheme)),
        Action::Dequantize(convention) => ("dequantize", Some(*convention)),
        Action::Convert(_) => ("convert", None),
        Action::Drop => ("drop", None),
    }
}

/// How much survives, where something is converted.
pub(crate) const fn label(action: &Action) -> Option<&'static str> {
    match action {
        Action::Convert(label) => Some(label.word()),
        Action::Copy | Action::Quantize(_) | Action::Dequantize(_) | Action::Drop => None,
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
