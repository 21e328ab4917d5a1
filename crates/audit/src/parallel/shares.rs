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
    let n = tensor.shape.len();
    let (out_axis, shape) = match (tensor.kind, tensor.shape.as_slice()) {
        (Kind::Bias | Kind::BiasOfGroups, [.., out]) => (n - 1, [*out, 1]),
        (Kind::PlainWeight, [out, inner]) => (0, [*out, *inner]),
        (Kind::Weight | Kind::Groups, [.., out, inner]) => (n - 2, [*out, *inner]),
        (Kind::PlainWeight, _) => {
            let name = tensor.name.to_owned();
            return Err(ShareError::Stack { name });
        }
        (Kind::Weight | Kind::Groups | Kind::Bias | Kind::BiasOfGroups, _) => return Ok(None),
    };
    let share = match tensor.kind {
        Kind::Groups | Kind::BiasOfGroups => Share::Uneven { ranks: degree },
        Kind::Weight | Kind::PlainWeight | Kind::Bias => {
            layout.share_of(shape, tensor.part, degree)
        }
    };
    let (axis, ranges) = match share {
        // The part is one that is cut, so that it is the sizes which are not known.
        Share::Whole => {
            let (name, [rows, _]) = (tensor.name.to_owned(), shape);
            return Err(ShareError::Fused { name, rows });
        }
        Share::Vocabulary { ranks } => {
            let run = shape[0].div_ceil(ranks.max(1));
            (Axis::Out, vec![run_of(run, rank, shape[0])])
        }
        Share::Uneven { ranks } => uneven(tensor.part, shape, rank, ranks),
        Share::Cut { axis, sizes } => {
            let ranges = even(&sizes, rank, degree);
            let ranges = ranges.map_err(|size| ShareError::Features {
                name: tensor.name.to_owned(),
                features: size.features,
                ranks: size.ranks,
            })?;
            (axis, ranges)
        }
    };
    let dimension = match axis {
        Axis::Out => out_axis,
        Axis::In => n - 1,
    };
    Ok(Some(Cut { dimension, ranges }))
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
fn uneven(part: Part, shape: [u64; 2], rank: u64, ranks: u64) -> (Axis, Vec<Range<u64>>) {
    let run = |features: u64| {
        let groups = features.div_ceil(32).div_ceil(ranks.max(1));
        run_of(groups.saturating_mul(32), rank, features)
    };
    match way(part) {
        Way::Rows => (Axis::In, vec![run(shape[1])]),
        Way::Columns | Way::Vocabulary | Way::Not => {
            let Range { start, end } = run(shape[0] / 2);
            let both = start * 2..end * 2;
            (Axis::Out, vec![both])
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
