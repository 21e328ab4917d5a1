//! What the name of a module says: layer, expert, and which matrix of a block it is.
//!
//! Names are conventions of model code, not of file formats, and there are several: `q_proj`, `wq`, `to_q`, `attn_q`. Rules that
//! compare modules (fused siblings, experts, layers) and reports (layer by role) look at this and at no name themselves.

/// Which matrix of a model a module is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// Queries.
    Query,
    /// Keys.
    Key,
    /// Values.
    Value,
    /// Queries, keys and values as one matrix.
    QueryKeyValue,
    /// The attention's output.
    Output,
    /// The gate of a gated feed-forward block.
    Gate,
    /// The other matrix that takes the block's input.
    Up,
    /// Both as one matrix.
    GateUp,
    /// The matrix back.
    Down,
    /// What chooses experts.
    Router,
    /// Tokens to vectors.
    Embedding,
    /// Vectors to tokens.
    Head,
    /// Anything else.
    Other,
}

impl Part {
    /// All of them, in the order of a block.
    pub const ALL: [Part; 13] = [
        Part::Query,
        Part::Key,
        Part::Value,
        Part::QueryKeyValue,
        Part::Output,
        Part::Gate,
        Part::Up,
        Part::GateUp,
        Part::Down,
        Part::Router,
        Part::Embedding,
        Part::Head,
        Part::Other,
    ];

    /// As reports spell it.
    pub fn name(self) -> &'static str {
        match self {
            Part::Query => "q",
            Part::Key => "k",
            Part::Value => "v",
            Part::QueryKeyValue => "qkv",
            Part::Output => "o",
            Part::Gate => "gate",
            Part::Up => "up",
            Part::GateUp => "gate_up",
            Part::Down => "down",
            Part::Router => "router",
            Part::Embedding => "embedding",
            Part::Head => "lm_head",
            Part::Other => "other",
        }
    }
}

/// The last words of names, and what they are. A name is looked up from its end: the first word that is listed counts.
const WORDS: &[(&str, Part)] = &[
    ("q_proj", Part::Query),
    ("query", Part::Query),
    ("wq", Part::Query),
    ("to_q", Part::Query),
    ("attn_q", Part::Query),
    ("q_lin", Part::Query),
    ("k_proj", Part::Key),
    ("key", Part::Key),
    ("wk", Part::Key),
    ("to_k", Part::Key),
    ("attn_k", Part::Key),
    ("k_lin", Part::Key),
    ("v_proj", Part::Value),
    ("value", Part::Value),
    ("wv", Part::Value),
    ("to_v", Part::Value),
    ("attn_v", Part::Value),
    ("v_lin", Part::Value),
    ("qkv_proj", Part::QueryKeyValue),
    ("query_key_value", Part::QueryKeyValue),
    ("c_attn", Part::QueryKeyValue),
    ("attn_qkv", Part::QueryKeyValue),
    ("qkv", Part::QueryKeyValue),
    ("Wqkv", Part::QueryKeyValue),
    ("wqkv", Part::QueryKeyValue),
    ("o_proj", Part::Output),
    ("out_proj", Part::Output),
    ("wo", Part::Output),
    ("to_out", Part::Output),
    ("attn_output", Part::Output),
    ("out_lin", Part::Output),
    ("gate_proj", Part::Gate),
    ("w1", Part::Gate),
    ("ffn_gate", Part::Gate),
    ("ffn_gate_exps", Part::Gate),
    ("up_proj", Part::Up),
    ("w3", Part::Up),
    ("ffn_up", Part::Up),
    ("ffn_up_exps", Part::Up),
    ("fc1", Part::Up),
    ("lin1", Part::Up),
    ("dense_h_to_4h", Part::Up),
    ("gate_up_proj", Part::GateUp),
    ("down_proj", Part::Down),
    ("w2", Part::Down),
    ("ffn_down", Part::Down),
    ("ffn_down_exps", Part::Down),
    ("fc2", Part::Down),
    ("lin2", Part::Down),
    ("dense_4h_to_h", Part::Down),
    ("router", Part::Router),
    ("gate", Part::Router),
    ("ffn_gate_inp", Part::Router),
    ("shared_expert_gate", Part::Router),
    ("embed_tokens", Part::Embedding),
    ("wte", Part::Embedding),
    ("token_embd", Part::Embedding),
    ("word_embeddings", Part::Embedding),
    ("embed_in", Part::Embedding),
    ("lm_head", Part::Head),
    ("embed_out", Part::Head),
];

/// A name, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModuleName<'a> {
    /// The whole name.
    pub module: &'a str,
    /// The module around it (`model.layers.0.mlp` of `model.layers.0.mlp.up_proj`); empty at the top.
    pub parent: &'a str,
    /// The number behind `layers`, `h`, `blocks` and the like: the first number of the name.
    pub layer: Option<u32>,
    /// The number behind `experts`.
    pub expert: Option<u32>,
    /// What it is.
    pub part: Part,
}

impl<'a> ModuleName<'a> {
    /// Takes a name apart; every name can be.
    pub fn parse(module: &'a str) -> Self {
        let parent = module.rsplit_once('.').map_or("", |(parent, _)| parent);
        let mut expert = None;
        let mut layer = None;
        let mut before = "";
        for word in module.split('.') {
            if word.starts_with(|c: char| c.is_ascii_digit())
                && let Ok(number) = word.parse()
            {
                if before == "experts" {
                    expert = Some(number);
                } else if layer.is_none() {
                    layer = Some(number);
                }
            }
            before = word;
        }
        let is_word = |word: &str| WORDS.iter().find(|(name, _)| *name == word);
        let found = module.rsplit('.').take(3).find_map(is_word);
        Self {
            module,
            parent,
            layer,
            expert,
            part: found.map_or(Part::Other, |&(_, part)| part),
        }
    }

    /// The name cut at its layer's number: what stands before it (`model.layers`), the number, and what follows
    /// (`mlp.up_proj`). `None` for names without a layer.
    pub fn around_layer(self) -> Option<(&'a str, u32, &'a str)> {
        let mut start = 0;
        for word in self.module.split('.') {
            let end = start + word.len();
            let before = self.module.get(..start)?.trim_end_matches('.');
            if let Ok(number) = word.parse()
                && !before.ends_with("experts")
            {
                let rest = self.module.get(end..)?;
                return Some((before, number, rest.strip_prefix('.').unwrap_or(rest)));
            }
            start = end + 1;
        }
        None
    }

    /// The name cut at its expert's number: the experts (`model.layers.0.mlp.experts`), the number, and what follows
    /// (`up_proj`).
    pub fn around_expert(self) -> Option<(&'a str, u32, &'a str)> {
        let (before, after) = self.module.split_once("experts.")?;
        let is_word = before.is_empty() || before.ends_with('.');
        let (number, rest) = after.split_once('.').unwrap_or((after, ""));
        let end = before.len() + "experts".len();
        let experts = self.module.get(..end).filter(|_| is_word)?;
        Some((experts, number.parse().ok()?, rest))
    }

    /// Which parts runtimes make one matrix of together with this one, itself included; empty if none.
    pub fn fused_with(self) -> &'static [Part] {
        match self.part {
            Part::Query | Part::Key | Part::Value => &[Part::Query, Part::Key, Part::Value],
            Part::Gate | Part::Up => &[Part::Gate, Part::Up],
            Part::QueryKeyValue
            | Part::Output
            | Part::GateUp
            | Part::Down
            | Part::Router
            | Part::Embedding
            | Part::Head
            | Part::Other => &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_several_model_codes() {
        let cases = [
            (
                "model.layers.3.self_attn.q_proj",
                Some(3),
                None,
                Part::Query,
            ),
            (
                "model.layers.3.mlp.experts.17.w1",
                Some(3),
                Some(17),
                Part::Gate,
            ),
            ("model.layers.3.mlp.gate", Some(3), None, Part::Router),
            (
                "model.layers.3.mlp.gate.linear",
                Some(3),
                None,
                Part::Router,
            ),
            (
                "transformer.h.0.attn.c_attn",
                Some(0),
                None,
                Part::QueryKeyValue,
            ),
            ("double_blocks.2.attn.to_out.0", Some(2), None, Part::Output),
            ("blk.11.ffn_gate", Some(11), None, Part::Gate),
            ("lm_head", None, None, Part::Head),
            ("", None, None, Part::Other),
            ("encoder.layer.99999999999.x", None, None, Part::Other),
        ];
        for (module, layer, expert, part) in cases {
            let name = ModuleName::parse(module);
            assert_eq!(
                (name.layer, name.expert, name.part),
                (layer, expert, part),
                "{module}"
            );
        }
        assert_eq!(ModuleName::parse("a.b.c").parent, "a.b");
        assert_eq!(ModuleName::parse("c").parent, "");
    }

    #[test]
    fn names_are_cut_at_their_numbers() {
        let layer = |name| ModuleName::parse(name).around_layer();
        let expert = |name| ModuleName::parse(name).around_expert();
        assert_eq!(
            layer("model.layers.12.mlp.up"),
            Some(("model.layers", 12, "mlp.up"))
        );
        assert_eq!(layer("h.0"), Some(("h", 0, "")));
        assert_eq!(layer("experts.3.w1"), None);
        assert_eq!(layer("lm_head"), None);
        assert_eq!(expert("a.1.experts.7.w1"), Some(("a.1.experts", 7, "w1")));
        assert_eq!(expert("experts.7"), Some(("experts", 7, "")));
        assert_eq!(expert("a.shared_experts.7.w1"), None);
        assert_eq!(expert("a.experts.gate_up_proj"), None);
    }

    #[test]
    fn every_word_is_listed_once() {
        for (at, (word, _)) in WORDS.iter().enumerate() {
            assert!(WORDS[..at].iter().all(|(other, _)| other != word), "{word}");
        }
    }
}
