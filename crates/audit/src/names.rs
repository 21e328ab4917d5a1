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

    /// Whether it is one of the matrices of a block that methods quantize.
    pub const fn is_block_matrix(self) -> bool {
        match self {
            Part::Query
            | Part::Key
            | Part::Value
            | Part::QueryKeyValue
            | Part::Output
            | Part::Gate
            | Part::Up
            | Part::GateUp
            | Part::Down => true,
            Part::Router | Part::Embedding | Part::Head | Part::Other => false,
        }
    }
}

/// What a word of a name says. A name is looked up from its end: the first word that is known counts.
fn part_of(word: &[u8]) -> Option<Part> {
    Some(match word {
        b"q_proj" | b"query" | b"wq" | b"to_q" | b"attn_q" | b"q_lin" => Part::Query,
        b"k_proj" | b"key" | b"wk" | b"to_k" | b"attn_k" | b"k_lin" => Part::Key,
        b"v_proj" | b"value" | b"wv" | b"to_v" | b"attn_v" | b"v_lin" => Part::Value,
        b"qkv_proj" | b"query_key_value" | b"c_attn" | b"attn_qkv" | b"qkv" | b"Wqkv" | b"wqkv" => {
            Part::QueryKeyValue
        }
        b"o_proj" | b"out_proj" | b"wo" | b"to_out" | b"attn_output" | b"out_lin" => Part::Output,
        b"gate_proj" | b"w1" | b"ffn_gate" | b"ffn_gate_exps" => Part::Gate,
        b"up_proj" | b"w3" | b"ffn_up" | b"ffn_up_exps" | b"fc1" | b"lin1" | b"dense_h_to_4h" => {
            Part::Up
        }
        b"gate_up_proj" => Part::GateUp,
        b"down_proj" | b"w2" | b"ffn_down" | b"ffn_down_exps" | b"fc2" | b"lin2"
        | b"dense_4h_to_h" => Part::Down,
        b"router" | b"gate" | b"ffn_gate_inp" | b"shared_expert_gate" => Part::Router,
        b"embed_tokens" | b"wte" | b"token_embd" | b"word_embeddings" | b"embed_in" => {
            Part::Embedding
        }
        b"lm_head" | b"embed_out" => Part::Head,
        _ => return None,
    })
}

/// The words of a name, between its dots. Of bytes, because searchers in text take longer to set up than names are long.
fn words(name: &str) -> impl DoubleEndedIterator<Item = &[u8]> {
    name.as_bytes().split(|&byte| byte == b'.')
}

/// A word that is a number.
fn number(word: &[u8]) -> Option<u32> {
    let may_be = matches!(word.first()?, b'0'..=b'9' | b'+');
    let text = may_be.then(|| str::from_utf8(word).ok())?;
    text?.parse().ok()
}

/// A name's module and last word; `None` if there is no dot in it.
pub(crate) fn split_last(name: &str) -> Option<(&str, &str)> {
    let dot = name.as_bytes().iter().rposition(|&byte| byte == b'.')?;
    Some((name.get(..dot)?, name.get(dot + 1..)?))
}

/// See [`ModuleName::around_layer`]; of a tensor's name as well.
pub(crate) fn around_layer(name: &str) -> Option<(&str, u32, &str)> {
    let mut start = 0;
    for word in words(name) {
        let end = start + word.len();
        if let Some(number) = number(word) {
            let before = name.get(..start)?.trim_end_matches('.');
            if !before.ends_with("experts") {
                let rest = name.get(end..)?;
                return Some((before, number, rest.strip_prefix('.').unwrap_or(rest)));
            }
        }
        start = end + 1;
    }
    None
}

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
        let parent = split_last(module).map_or("", |(parent, _)| parent);
        let mut expert = None;
        let mut layer = None;
        let mut before: &[u8] = b"";
        for word in words(module) {
            if word.first().is_some_and(u8::is_ascii_digit)
                && let Some(number) = number(word)
            {
                if before == b"experts" {
                    expert = Some(number);
                } else if layer.is_none() {
                    layer = Some(number);
                }
            }
            before = word;
        }
        let found = words(module).rev().take(3).find_map(part_of);
        Self {
            module,
            parent,
            layer,
            expert,
            part: found.unwrap_or(Part::Other),
        }
    }

    /// The name cut at its layer's number: what stands before it (`model.layers`), the number, and what follows
    /// (`mlp.up_proj`). `None` for names without a layer.
    pub fn around_layer(self) -> Option<(&'a str, u32, &'a str)> {
        around_layer(self.module)
    }

    /// The name cut at its expert's number: the experts (`model.layers.0.mlp.experts`), the number, and what follows
    /// (`up_proj`).
    pub fn around_expert(self) -> Option<(&'a str, u32, &'a str)> {
        let mut end = 0;
        for word in words(self.module) {
            end += word.len();
            if word.ends_with(b"experts") {
                let after = self.module.get(end + 1..)?;
                let (number, rest) = after.split_once('.').unwrap_or((after, ""));
                let experts = self.module.get(..end).filter(|_| word == b"experts")?;
                return Some((experts, number.parse().ok()?, rest));
            }
            end += 1;
        }
        None
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
        assert_eq!(layer("a.01.b"), Some(("a", 1, "b")));
        assert_eq!(
            layer("a.4294967296.\u{e4}.2"),
            Some(("a.4294967296.\u{e4}", 2, ""))
        );
        assert_eq!(layer("lm_head"), None);
        assert_eq!(expert("a.1.experts.7.w1"), Some(("a.1.experts", 7, "w1")));
        assert_eq!(expert("experts.7"), Some(("experts", 7, "")));
        assert_eq!(expert("a.shared_experts.7.w1"), None);
        assert_eq!(expert("a.experts.gate_up_proj"), None);
        assert_eq!(expert("a.my_experts.1.experts.2.w1"), None);
        assert_eq!(expert("a.1.experts"), None);
    }
}
