//! What of a model is cut, and along which axis.

use safequant_schemes::{Axis, QuantizedTensor};

use super::{Obstacle, ObstacleKind};
use crate::{ModuleName, Part, Subject};

/// Attention heads, as far as `config.json` says.
pub(super) struct Layout {
    /// Query heads.
    heads: Option<u64>,
    /// Heads of keys and values.
    key_value_heads: Option<u64>,
    /// Features of a head.
    head_dim: Option<u64>,
}

/// One of several weights that were fused, or the only one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    /// Features along the axis.
    pub(super) features: u64,
    /// Among how many ranks they are shared; fewer than the degree where ranks hold copies (keys and values).
    pub(super) ranks: u64,
}

/// What becomes of a weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Share {
    /// Every rank has all of it.
    Whole,
    /// Rows of the vocabulary: runtimes pad them to what divides.
    Vocabulary {
        /// Ranks.
        ranks: u64,
    },
    /// Whole groups, as evenly as they go: gpt-oss.
    Uneven {
        /// Ranks.
        ranks: u64,
    },
    /// Equal shares along an axis.
    Cut {
        /// The axis.
        axis: Axis,
        /// What is fused along it.
        sizes: Vec<Size>,
    },
}

/// How a part of a model is cut.
#[derive(Clone, Copy)]
pub(super) enum Way {
    Columns,
    Rows,
    Vocabulary,
    Not,
}

pub(super) fn way(part: Part) -> Way {
    match part {
        Part::Query
        | Part::Key
        | Part::Value
        | Part::QueryKeyValue
        | Part::Gate
        | Part::Up
        | Part::GateUp => Way::Columns,
        Part::Output | Part::Down => Way::Rows,
        Part::Embedding | Part::Head => Way::Vocabulary,
        Part::Router | Part::Other => Way::Not,
    }
}

impl Layout {
    pub(super) fn new(subject: &Subject<'_>) -> Self {
        let number = |key| subject.number(key).filter(|&n| n > 0);
        let heads = number("num_attention_heads");
        let per_head = || number("hidden_size")?.checked_div(heads?);
        Self {
            heads,
            key_value_heads: number("num_key_value_heads").or(heads),
            head_dim: number("head_dim").or_else(per_head),
        }
    }

    /// What of a weight one rank has.
    pub(super) fn share(
        &self,
        tensor: &QuantizedTensor,
        name: ModuleName<'_>,
        degree: u64,
    ) -> Share {
        if degree <= 1 {
            return Share::Whole;
        }
        // Readers of gpt-oss hand out whole groups of 32 and let the last rank have fewer
        // (vllm-project/vllm@v0.33.0:vllm/model_executor/models/gpt_oss.py).
        if tensor.convention == "mxfp4" {
            return Share::Uneven { ranks: degree };
        }
        let shape = [tensor.out_features(), tensor.in_features()];
        self.share_of(shape, name.part, degree)
    }

    /// What one rank has of a weight of `[out_features, in_features]`.
    pub(super) fn share_of(&self, shape: [u64; 2], part: Part, degree: u64) -> Share {
        let [rows, columns] = shape;
        let all = |features, ranks| vec![Size { features, ranks }];
        let (axis, sizes) = match (way(part), part) {
            (Way::Not, _) => return Share::Whole,
            (Way::Vocabulary, _) => return Share::Vocabulary { ranks: degree },
            (Way::Rows, _) => (Axis::In, all(columns, degree)),
            (Way::Columns, Part::Key | Part::Value) => {
                let ranks = self.key_value_ranks(degree);
                (Axis::Out, all(rows, ranks))
            }
            (Way::Columns, Part::GateUp) => {
                let half = rows / 2;
                let size = Size {
                    features: half,
                    ranks: degree,
                };
                if half.checked_mul(2) != Some(rows) {
                    return Share::Whole;
                }
                (Axis::Out, vec![size, size])
            }
            (Way::Columns, Part::QueryKeyValue) => match self.fused(rows, degree) {
                Some(sizes) => (Axis::Out, sizes),
                None => return Share::Whole,
            },
            (Way::Columns, _) => (Axis::Out, all(rows, degree)),
        };
        Share::Cut { axis, sizes }
    }

    /// The sizes of q, k and v in one matrix; `None` where the configuration does not explain its rows.
    fn fused(&self, rows: u64, degree: u64) -> Option<Vec<Size>> {
        let (dim, ranks) = (self.head_dim?, self.key_value_ranks(degree));
        let query = self.heads?.checked_mul(dim)?;
        let key = self.key_value_heads?.checked_mul(dim)?;
        let sum = key.checked_mul(2)?.checked_add(query)?;
        let size = |features, ranks| Size { features, ranks };
        let sizes = vec![size(query, degree), size(key, ranks), size(key, ranks)];
        (sum == rows).then_some(sizes)
    }

    /// Ranks that keys and values are shared among: where there are more ranks than heads, ranks hold copies.
    fn key_value_ranks(&self, degree: u64) -> u64 {
        match self.key_value_heads {
            Some(heads) if heads < degree && degree.is_multiple_of(heads) => heads,
            Some(_) | None => degree,
        }
    }

    /// What the numbers of heads say to a degree.
    pub(super) fn heads(&self, degree: u64) -> Option<Obstacle> {
        let (heads, key_value) = (self.heads?, self.key_value_heads?);
        let divides = |n: u64| n.is_multiple_of(degree.max(1));
        let (what, n) = if !divides(heads) {
            ("attention heads", heads)
        } else if !divides(key_value) && !degree.is_multiple_of(key_value) {
            ("heads of keys and values", key_value)
        } else {
            return None;
        };
        let best = (1..degree)
            .rev()
            .take(1024)
            .find(|d| heads.is_multiple_of(*d));
        Some(Obstacle {
            kind: ObstacleKind::Heads,
            part: Part::Other,
            axis: None,
            module: String::new(),
            count: 0,
            features: n,
            share: None,
            unit: 1,
            message: format!("{n} {what} do not divide among {degree} ranks"),
            fix: match best {
                Some(best) => format!("use {best} ranks, or combine with pipeline parallelism"),
                None => "use fewer ranks".to_owned(),
            },
        })
    }

    /// Bytes of a dense tensor on one rank.
    pub(super) fn plain_share(&self, subject: &Subject<'_>, name: &str, degree: u64) -> u64 {
        let Some(info) = subject.headers.tensor(name) else {
            return 0;
        };
        let (module, ending) = name.rsplit_once('.').unwrap_or((name, ""));
        let parsed = match ending {
            "weight" | "bias" => ModuleName::parse(module),
            _ => ModuleName::parse(name),
        };
        let ranks = match (way(parsed.part), parsed.part) {
            (Way::Not, _) => 1,
            (Way::Rows, _) if ending == "bias" => 1,
            (Way::Columns, Part::Key | Part::Value) => self.key_value_ranks(degree),
            (Way::Rows | Way::Columns | Way::Vocabulary, _) => degree,
        };
        info.len_bytes().div_ceil(ranks.max(1))
    }
}
