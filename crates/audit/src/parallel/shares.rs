//! What of each dense tensor one rank of a tensor-parallel group holds: along which dimension it is cut, and where.
//!
//! The knowledge is that of a plan, told to whoever loads weights. Cuts are in features of the dense tensor, so that groups,
//! blocks and packed words stand in nobody's way here.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::ops::Range;

use safequant_schemes::Axis;

use super::layout::{Layout, Share, Size, Way, way};
use crate::{ModuleName, Part, Subject};

/// What of one dense tensor a rank holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RankShare {
    /// The tensor, by its name in the dense checkpoint.
    pub name: String,
    /// Where it is cut; `None` where every rank holds all of it.
    pub cut: Option<Cut>,
}

/// The pieces of a tensor that belong to a rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The dimension of the dense tensor, outermost first.
    pub dimension: usize,
    /// Features along it, in this order; several where weights were fused.
    pub ranges: Vec<Range<u64>>,
}

/// Why a checkpoint cannot be shared among ranks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShareError {
    /// There is no such rank.
    Rank {
        /// The rank.
        rank: u64,
        /// Ranks.
        degree: u64,
    },
    /// Attention heads do not divide.
    Heads {
        /// The sentence of the plan.
        message: String,
    },
    /// Features do not divide.
    Features {
        /// The tensor.
        name: String,
        /// Features along the axis.
        features: u64,
        /// Ranks.
        ranks: u64,
    },
    /// The configuration does not explain the rows of a fused weight.
    Fused {
        /// The tensor.
        name: String,
        /// Its rows.
        rows: u64,
    },
    /// A dense stack of matrices: neither names nor headers say which dimension is which.
    Stack {
        /// The tensor.
        name: String,
    },
    /// A block takes its input by weights that are known and gives its output by others, or the reverse: to cut one of them
    /// alone would give wrong numbers.
    Unpaired {
        /// A weight that would be cut.
        name: String,
        /// What stands beside it in models that are known.
        without: &'static str,
    },
}

impl ShareError {
    /// The stable name of the condition.
    pub fn code(&self) -> &'static str {
        match self {
            ShareError::Rank { .. } => "rank",
            ShareError::Heads { .. } => "heads_do_not_divide",
            ShareError::Features { .. } => "features_do_not_divide",
            ShareError::Fused { .. } => "fused_rows_unexplained",
            ShareError::Stack { .. } => "dense_stack",
            ShareError::Unpaired { .. } => "block_not_known",
        }
    }
}

impl fmt::Display for ShareError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ShareError::Rank { rank, degree } => {
                write!(f, "there is no rank {rank} of {degree}: ranks count from 0")
            }
            ShareError::Heads { message } => f.write_str(message),
            ShareError::Features {
                name,
                features,
                ranks,
            } => write!(
                f,
                "{name}: {features} features do not divide among {ranks} ranks"
            ),
            ShareError::Fused { name, rows } => write!(
                f,
                "{name}: config.json does not say of which weights its {rows} rows are fused"
            ),
            ShareError::Stack { name } => write!(
                f,
                "{name}: a dense stack of matrices does not say which of its dimensions are the output features"
            ),
            ShareError::Unpaired { name, without } => write!(
                f,
                "{name}: there is no {without} beside it that this version knows, so that it must not be cut alone"
            ),
        }
    }
}

impl std::error::Error for ShareError {}

/// What rank `rank` of `degree` holds of every tensor of the dense checkpoint, by name.
///
/// Rows of the vocabulary that do not divide are handed out in equal runs, of which the last ones are shorter: runtimes pad
/// them.
///
/// # Errors
/// Every variant of [`ShareError`].
pub fn shares(subject: &Subject<'_>, rank: u64, degree: u64) -> Result<Vec<RankShare>, ShareError> {
    if rank >= degree {
        return Err(ShareError::Rank { rank, degree });
    }
    let dense = dense(subject);
    let layout = Layout::new(subject);
    if degree > 1 {
        if let Some(obstacle) = layout.heads(degree) {
            let message = obstacle.message;
            return Err(ShareError::Heads { message });
        }
        check_pairs(&dense)?;
    }
    let share = |tensor: Dense<'_>| {
        Ok(RankShare {
            cut: cut(&layout, &tensor, rank, degree)?,
            name: tensor.name.to_owned(),
        })
    };
    dense.into_iter().map(share).collect()
}

/// A tensor of the dense checkpoint.
struct Dense<'a> {
    name: &'a str,
    module: &'a str,
    part: Part,
    shape: Vec<u64>,
    kind: Kind,
}

/// What is known of its dimensions.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A quantized weight: `[.., out_features, in_features]`.
    Weight,
    /// A quantized weight of gpt-oss, of which ranks hold whole groups.
    Groups,
    /// A dense weight.
    PlainWeight,
    /// A dense bias: `[.., out_features]`.
    Bias,
    /// A bias beside [`Kind::Groups`].
    BiasOfGroups,
}

/// Every tensor of the dense checkpoint.
fn dense<'a>(subject: &'a Subject<'_>) -> Vec<Dense<'a>> {
    let model = &subject.model;
    let quantized = model.quantized.iter().chain(&model.effective);
    let weights = quantized.map(|tensor| Dense {
        name: &tensor.weight,
        module: &tensor.module,
        part: ModuleName::parse(&tensor.module).part,
        shape: tensor.shape.clone(),
        kind: match tensor.convention {
            "mxfp4" => Kind::Groups,
            _ => Kind::Weight,
        },
    });
    let weights: Vec<_> = weights.collect();
    let groups = weights.iter().filter(|w| w.kind == Kind::Groups);
    let groups: HashSet<&str> = groups.map(|weight| weight.module).collect();
    let plain = model.plain.iter().filter_map(|name| {
        let shape = subject.headers.tensor(name)?.shape.to_vec();
        Some(plain(name, shape, &groups))
    });
    let plain: Vec<_> = plain.collect();
    weights.into_iter().chain(plain).collect()
}

fn plain<'a>(name: &'a str, shape: Vec<u64>, groups: &HashSet<&str>) -> Dense<'a> {
    let (parent, ending) = name.rsplit_once('.').unwrap_or(("", name));
    let (module, part, is_bias) = match ending {
        "weight" => (parent, ModuleName::parse(parent).part, false),
        "bias" => (parent, ModuleName::parse(parent).part, true),
        // Stacks of experts have no ending of their own: `experts.gate_up_proj`, `experts.gate_up_proj_bias`.
        _ => match name.strip_suffix("_bias") {
            Some(module) => (module, part_of_last_word(module), true),
            None => (name, part_of_last_word(name), false),
        },
    };
    Dense {
        name,
        module,
        part,
        shape,
        kind: match (is_bias, groups.contains(module)) {
            (true, true) => Kind::BiasOfGroups,
            (true, false) => Kind::Bias,
            (false, _) => Kind::PlainWeight,
        },
    }
}

/// What the last word alone says: `k_proj.k_scale` is no key.
fn part_of_last_word(name: &str) -> Part {
    let word = name.rsplit_once('.').map_or(name, |(_, word)| word);
    ModuleName::parse(word).part
}

/// What becomes of one tensor.
fn cut(
    layout: &Layout,
    tensor: &Dense<'_>,
    rank: u64,
    degree: u64,
) -> Result<Option<Cut>, ShareError> {
    if degree <= 1 || !is_cut(tensor) {
        return Ok(None);
    }
    let Some((out_axis, shape)) = matrix(tensor)? else {
        return Ok(None);
    };
    let share = match tensor.kind {
        Kind::Groups | Kind::BiasOfGroups => Share::Uneven { ranks: degree },
        Kind::Weight | Kind::PlainWeight | Kind::Bias => {
            layout.share_of(shape, tensor.part, degree)
        }
    };
    let name = || tensor.name.to_owned();
    let (axis, ranges) = match share {
        // The part is one that is cut, so that it is the sizes which are not known.
        Share::Whole => {
            let (name, [rows, _]) = (name(), shape);
            return Err(ShareError::Fused { name, rows });
        }
        Share::Vocabulary { ranks } => {
            let run = shape[0].div_ceil(ranks.max(1));
            let ours = run_of(run, rank, shape[0]);
            (Axis::Out, vec![ours])
        }
        Share::Uneven { ranks } => {
            let (axis, ours) = uneven(tensor.part, shape, rank, ranks);
            (axis, vec![ours])
        }
        Share::Cut { axis, sizes } => match even(&sizes, rank, degree) {
            Ok(ranges) => (axis, ranges),
            Err(Size { features, ranks }) => {
                let name = name();
                return Err(ShareError::Features {
                    name,
                    features,
                    ranks,
                });
            }
        },
    };
    let dimension = match axis {
        Axis::Out => out_axis,
        Axis::In => tensor.shape.len() - 1,
    };
    Ok(Some(Cut { dimension, ranges }))
}

/// The dimension of the output features, and `[out_features, in_features]`; `None` for what is no matrix.
fn matrix(tensor: &Dense<'_>) -> Result<Option<(usize, [u64; 2])>, ShareError> {
    let n = tensor.shape.len();
    match (tensor.kind, tensor.shape.as_slice()) {
        (Kind::Bias | Kind::BiasOfGroups, [.., out]) => Ok(Some((n - 1, [*out, 1]))),
        (Kind::PlainWeight, [out, inner]) => Ok(Some((0, [*out, *inner]))),
        (Kind::Weight | Kind::Groups, [.., out, inner]) => Ok(Some((n - 2, [*out, *inner]))),
        (Kind::PlainWeight, _) => {
            let name = tensor.name.to_owned();
            Err(ShareError::Stack { name })
        }
        (Kind::Weight | Kind::Groups | Kind::Bias | Kind::BiasOfGroups, _) => Ok(None),
    }
}

/// Whether ranks hold different pieces of it: norms, routers and what is added behind the last matrix of a block are whole.
fn is_cut(tensor: &Dense<'_>) -> bool {
    let is_bias = matches!(tensor.kind, Kind::Bias | Kind::BiasOfGroups);
    match way(tensor.part) {
        Way::Not => false,
        Way::Rows => !is_bias && tensor.shape.len() > 1,
        Way::Columns | Way::Vocabulary => tensor.shape.len() > usize::from(!is_bias),
    }
}

/// The run of `len` features that is the rank's, as far as there are so many.
fn run_of(len: u64, rank: u64, features: u64) -> Range<u64> {
    let start = len.saturating_mul(rank).min(features);
    start..start.saturating_add(len).min(features)
}

/// Equal pieces of each of the fused weights; the size that does not divide otherwise.
fn even(sizes: &[Size], rank: u64, degree: u64) -> Result<Vec<Range<u64>>, Size> {
    let mut start = 0_u64;
    let mut ranges = Vec::new();
    for size in sizes {
        if size.ranks == 0 || !size.features.is_multiple_of(size.ranks) {
            return Err(*size);
        }
        let len = size.features / size.ranks;
        // Where there are more ranks than pieces, neighbors hold the same one.
        let copies = (degree / size.ranks).max(1);
        let at = start.saturating_add(len.saturating_mul(rank / copies));
        ranges.push(at..at.saturating_add(len));
        start = start.saturating_add(size.features);
    }
    Ok(ranges)
}

/// Whole groups of 32 of the experts' inner features, whose rows for gate and up alternate.
fn uneven(part: Part, shape: [u64; 2], rank: u64, ranks: u64) -> (Axis, Range<u64>) {
    let run = |features: u64| {
        let groups = features.div_ceil(32).div_ceil(ranks.max(1));
        run_of(groups.saturating_mul(32), rank, features)
    };
    match way(part) {
        Way::Rows => (Axis::In, run(shape[1])),
        Way::Columns | Way::Vocabulary | Way::Not => {
            let Range { start, end } = run(shape[0] / 2);
            (Axis::Out, start * 2..end * 2)
        }
    }
}

/// The weights of a layer that were seen.
#[derive(Default)]
struct Seen<'a> {
    attention: [Option<&'a str>; 2],
    feed_forward: [Option<&'a str>; 2],
}

/// Checks that what is cut on the way into a block is cut on the way out of it.
fn check_pairs(dense: &[Dense<'_>]) -> Result<(), ShareError> {
    let mut layers: BTreeMap<_, Seen<'_>> = BTreeMap::new();
    for tensor in dense {
        let is_bias = matches!(tensor.kind, Kind::Bias | Kind::BiasOfGroups);
        if is_bias || !is_cut(tensor) {
            continue;
        }
        let name = ModuleName::parse(tensor.module);
        let layer = name
            .around_layer()
            .map(|(before, number, _)| (before, number));
        let seen = layers.entry((layer, name.expert)).or_default();
        let place = match tensor.part {
            Part::Query | Part::Key | Part::Value | Part::QueryKeyValue => &mut seen.attention[0],
            Part::Output => &mut seen.attention[1],
            Part::Gate | Part::Up | Part::GateUp => &mut seen.feed_forward[0],
            Part::Down => &mut seen.feed_forward[1],
            Part::Router | Part::Embedding | Part::Head | Part::Other => continue,
        };
        *place = Some(tensor.name);
    }
    for seen in layers.values() {
        pair(
            seen.attention,
            ["projection of queries", "output projection"],
        )?;
        pair(
            seen.feed_forward,
            ["gate or up projection", "down projection"],
        )?;
    }
    Ok(())
}

fn pair(seen: [Option<&str>; 2], names: [&'static str; 2]) -> Result<(), ShareError> {
    let (name, without) = match seen {
        [Some(_), Some(_)] | [None, None] => return Ok(()),
        [Some(name), None] => (name.to_owned(), names[1]),
        [None, Some(name)] => (name.to_owned(), names[0]),
    };
    Err(ShareError::Unpaired { name, without })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::tests::checkpoint;
    use super::*;
    use crate::Wanted;

    fn config() -> Value {
        json!({"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 8, "head_dim": 2})
    }

    /// Shares of BF16 tensors, by name behind `model.layers.0.`.
    fn shared(
        tensors: &[(&str, &[u64])],
        rank: u64,
        degree: u64,
    ) -> Result<Vec<RankShare>, ShareError> {
        let names = tensors.iter().map(|(name, shape)| {
            let name = format!("model.layers.0.{name}");
            (name, *shape)
        });
        let names: Vec<_> = names.collect();
        let listed: Vec<_> = names
            .iter()
            .map(|(n, s)| (n.as_str(), "BF16", *s))
            .collect();
        let checkpoint = checkpoint(&config(), &listed);
        let subject = Subject::new(&checkpoint, Vec::new(), Wanted::default());
        shares(&subject, rank, degree)
    }

    fn cut_of(shares: &[RankShare], name: &str) -> Option<(usize, Vec<(u64, u64)>)> {
        let name = format!("model.layers.0.{name}");
        let share = shares.iter().find(|share| share.name == name).unwrap();
        let ends = |range: &Range<u64>| (range.start, range.end);
        let cut = share.cut.as_ref()?;
        Some((cut.dimension, cut.ranges.iter().map(ends).collect()))
    }

    #[test]
    fn fused_weights_are_cut_by_their_parts_and_keys_are_copied() {
        let tensors: [(&str, &[u64]); 8] = [
            ("self_attn.qkv_proj.weight", &[16, 8]),
            ("self_attn.qkv_proj.bias", &[16]),
            ("self_attn.o_proj.weight", &[8, 8]),
            ("self_attn.o_proj.bias", &[8]),
            ("mlp.gate_up_proj.weight", &[12, 8]),
            ("mlp.down_proj.weight", &[8, 6]),
            ("self_attn.q_norm.weight", &[2]),
            ("self_attn.k_proj.k_scale", &[1]),
        ];
        let second = shared(&tensors, 1, 2).unwrap();
        let qkv = Some((0, vec![(4, 8), (10, 12), (14, 16)]));
        assert_eq!(cut_of(&second, "self_attn.qkv_proj.weight"), qkv);
        assert_eq!(cut_of(&second, "self_attn.qkv_proj.bias"), qkv);
        let row = |start, end| Some((1, vec![(start, end)]));
        assert_eq!(cut_of(&second, "self_attn.o_proj.weight"), row(4, 8));
        assert_eq!(cut_of(&second, "mlp.down_proj.weight"), row(3, 6));
        let gate_up = Some((0, vec![(3, 6), (9, 12)]));
        assert_eq!(cut_of(&second, "mlp.gate_up_proj.weight"), gate_up);
        for whole in [
            "self_attn.o_proj.bias",
            "self_attn.q_norm.weight",
            "self_attn.k_proj.k_scale",
        ] {
            assert_eq!(cut_of(&second, whole), None, "{whole}");
        }
        // Ranks 2 and 3 of 4 hold the second head of keys and values.
        let attention = &tensors[..4];
        let last = shared(attention, 3, 4).unwrap();
        let qkv = Some((0, vec![(6, 8), (10, 12), (14, 16)]));
        assert_eq!(cut_of(&last, "self_attn.qkv_proj.weight"), qkv);
        assert!(
            shared(&tensors, 0, 1)
                .unwrap()
                .iter()
                .all(|s| s.cut.is_none())
        );
    }

    #[test]
    fn the_last_rank_has_fewer_groups_and_fewer_rows_of_the_vocabulary() {
        // 96 inner features are 3 groups of 32.
        let rows = |rank| uneven(Part::GateUp, [192, 64], rank, 2);
        let columns = |rank| uneven(Part::Down, [64, 96], rank, 2);
        assert_eq!(
            (rows(0), rows(1)),
            ((Axis::Out, 0..128), (Axis::Out, 128..192))
        );
        assert_eq!(
            (columns(0), columns(1)),
            ((Axis::In, 0..64), (Axis::In, 64..96))
        );
        assert_eq!([0, 1, 2].map(|rank| run_of(2, rank, 3)), [0..2, 2..3, 3..3]);
        let shares = shared(&[("embed_tokens.weight", &[5, 8])], 1, 2).unwrap();
        assert_eq!(
            cut_of(&shares, "embed_tokens.weight"),
            Some((0, vec![(3, 5)]))
        );
    }

    #[test]
    fn what_cannot_be_shared_is_named() {
        let q: (&str, &[u64]) = ("self_attn.q_proj.weight", &[8, 8]);
        let o: (&str, &[u64]) = ("self_attn.o_proj.weight", &[8, 8]);
        let code = |tensors: &[(&str, &[u64])], rank, degree| {
            let error = shared(tensors, rank, degree).unwrap_err();
            (error.code(), error.to_string())
        };
        let cases = [
            (code(&[q, o], 2, 2), "rank", "rank 2 of 2"),
            (code(&[q, o], 0, 3), "heads_do_not_divide", "3 ranks"),
            (
                code(&[q], 0, 2),
                "block_not_known",
                "self_attn.q_proj.weight",
            ),
            (
                code(&[o], 0, 2),
                "block_not_known",
                "self_attn.o_proj.weight",
            ),
            (
                code(
                    &[
                        ("mlp.up_proj.weight", &[7, 8]),
                        ("mlp.down_proj.weight", &[8, 7]),
                    ],
                    0,
                    2,
                ),
                "features_do_not_divide",
                "7 features",
            ),
            (
                code(&[("self_attn.qkv_proj.weight", &[14, 8]), o], 0, 2),
                "fused_rows_unexplained",
                "14 rows",
            ),
            (
                code(
                    &[
                        ("mlp.experts.gate_up_proj", &[4, 8, 8]),
                        ("mlp.experts.down_proj", &[4, 8, 4]),
                    ],
                    0,
                    2,
                ),
                "dense_stack",
                "mlp.experts.down_proj",
            ),
        ];
        for ((code, message), expected, words) in cases {
            assert_eq!(code, expected, "{message}");
            assert!(message.contains(words), "{message}");
        }
    }
}
