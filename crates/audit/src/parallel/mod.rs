//! Tensor-parallel plans: which degrees a checkpoint can be cut into, and what stands in the way of the others.
//!
//! Runtimes cut a model the same way: what takes a block's input (q, k, v, gate, up) along its output features, what gives a
//! block's output (o, down) along its input features, embeddings and head along the vocabulary; everything else is kept whole.
//! Whether a quantized weight can be cut at a place is what [`safequant_schemes::slice()`] says.

mod cut;
mod layout;
mod shares;

use std::collections::BTreeMap;

use safequant_schemes::{Axis, QuantizedTensor};

use crate::profile::FusedRows;
use crate::{ModuleName, Part, Subject};

use cut::Cutter;
use layout::{Layout, Share};

pub use shares::{Cut, RankShare, ShareError, shares};

/// What stands in the way of a degree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObstacleKind {
    /// A group of input features straddles two ranks.
    Group,
    /// A block straddles two ranks.
    Block,
    /// A packed word straddles two ranks.
    Word,
    /// Features do not divide.
    Features,
    /// Attention heads do not divide.
    Heads,
    /// Activation order spreads groups over all ranks.
    ActivationOrder,
    /// The weight cannot be cut along this axis at all.
    Whole,
}

impl ObstacleKind {
    /// As tables spell it.
    pub fn name(self) -> &'static str {
        match self {
            ObstacleKind::Group => "group",
            ObstacleKind::Block => "block",
            ObstacleKind::Word => "packed word",
            ObstacleKind::Features => "features",
            ObstacleKind::Heads => "heads",
            ObstacleKind::ActivationOrder => "activation order",
            ObstacleKind::Whole => "whole only",
        }
    }
}

/// The plans of a checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Bytes of all tensors.
    pub total_bytes: u64,
    /// One for each degree asked for, in that order.
    pub degrees: Vec<DegreePlan>,
}

/// One degree.
#[derive(Clone, Debug, PartialEq)]
pub struct DegreePlan {
    /// Ranks.
    pub degree: u64,
    /// Whether nothing stands in the way.
    pub works: bool,
    /// Bytes of weights on one rank; what cannot be cut counts whole.
    pub rank_bytes: u64,
    /// What stands in the way: one entry for each kind, part of the model and set of numbers.
    pub obstacles: Vec<Obstacle>,
}

/// What stands in the way of a degree, for all modules that have the same trouble.
#[derive(Clone, Debug, PartialEq)]
pub struct Obstacle {
    /// What it is.
    pub kind: ObstacleKind,
    /// The part of the model; [`Part::Other`] for the model as a whole.
    pub part: Part,
    /// The axis that would be cut; `None` for the model as a whole.
    pub axis: Option<Axis>,
    /// The first module.
    pub module: String,
    /// How many modules have it; 0 for the model as a whole.
    pub count: u64,
    /// Features (or heads) along the axis.
    pub features: u64,
    /// Features on one rank, where they divide.
    pub share: Option<u64>,
    /// What must not be cut: features in a group, block or word; 1 where there is no such unit.
    pub unit: u64,
    /// The sentence.
    pub message: String,
    /// What to do.
    pub fix: String,
}

/// Which degrees work, what stands in the way of the others, and what a rank holds. A degree of 0 is taken for 1.
pub fn plan(subject: &Subject<'_>, degrees: &[u64]) -> Plan {
    let layout = Layout::new(subject);
    let bytes = |name: &str| {
        let tensor = subject.headers.tensor(name);
        tensor.map_or(0, safequant_container::TensorInfo::len_bytes)
    };
    let all = subject.headers.tensors();
    Plan {
        total_bytes: all.fold(0, |sum, info| sum.saturating_add(info.len_bytes())),
        degrees: degrees
            .iter()
            .map(|&degree| one(subject, &layout, degree.max(1), &bytes))
            .collect(),
    }
}

fn one(
    subject: &Subject<'_>,
    layout: &Layout,
    degree: u64,
    bytes: &dyn Fn(&str) -> u64,
) -> DegreePlan {
    let mut groups: BTreeMap<_, Obstacle> = BTreeMap::new();
    let mut rank_bytes = 0_u64;
    each(subject, layout, degree, |tensor, part, result| {
        let of_tensor = match result {
            Ok(bytes) => *bytes,
            Err(obstacle) => {
                let mut obstacle = obstacle.clone();
                obstacle.module.clone_from(&tensor.module);
                let key = (obstacle.kind, part, obstacle.features, obstacle.unit);
                groups.entry(key).or_insert(obstacle).count += 1;
                let parts = tensor.parts.iter();
                parts.fold(0, |sum: u64, part| sum.saturating_add(bytes(&part.name)))
            }
        };
        rank_bytes = rank_bytes.saturating_add(of_tensor);
    });
    for name in subject.model.plain.iter().chain(&subject.model.orphans) {
        let share = layout.plain_share(subject, name, degree);
        rank_bytes = rank_bytes.saturating_add(share);
    }
    let mut obstacles: Vec<Obstacle> = layout.heads(degree).into_iter().collect();
    obstacles.extend(groups.into_values());
    DegreePlan {
        degree,
        works: obstacles.is_empty(),
        rank_bytes,
        obstacles,
    }
}

/// What one weight says to a degree: the bytes of a rank, or what stands in the way.
type Outcome = Result<u64, Obstacle>;

/// Asks every quantized weight. Weights of one shape and scheme are asked once.
fn each(
    subject: &Subject<'_>,
    layout: &Layout,
    degree: u64,
    mut tell: impl FnMut(&QuantizedTensor, Part, &Outcome),
) {
    let mut cutter = Cutter::default();
    for tensor in &subject.model.quantized {
        let name = ModuleName::parse(&tensor.module);
        let share = layout.share(tensor, name, degree);
        cutter.ask(subject, tensor, name.part, &share, |outcome| {
            tell(tensor, name.part, outcome);
        });
    }
}

/// Every obstacle of one kind, module by module, for the rules of the family TP: module (`None` for the model as a whole),
/// degree and obstacle.
pub(crate) fn obstacles(
    subject: &Subject<'_>,
    kind: ObstacleKind,
    mut tell: impl FnMut(Option<&str>, u64, &Obstacle),
) {
    if subject.wanted.tensor_parallel.is_empty() {
        return;
    }
    let layout = Layout::new(subject);
    for &degree in &subject.wanted.tensor_parallel {
        if kind == ObstacleKind::Heads {
            if let Some(obstacle) = layout.heads(degree) {
                tell(None, degree, &obstacle);
            }
            continue;
        }
        each(subject, &layout, degree, |tensor, _, outcome| {
            if let Err(obstacle) = outcome
                && obstacle.kind == kind
            {
                tell(Some(&tensor.module), degree, obstacle);
            }
        });
    }
}

/// Output and input features of every weight on one rank, for each degree asked for: what kernels see, fused weights as one.
pub(crate) fn shapes_of_ranks(
    subject: &Subject<'_>,
    mut tell: impl FnMut(&QuantizedTensor, u64, [u64; 2]),
) {
    if subject.wanted.tensor_parallel.is_empty() {
        return;
    }
    let layout = Layout::new(subject);
    for &degree in &subject.wanted.tensor_parallel {
        let shapes = subject.model.quantized.iter().filter_map(|tensor| {
            let share = layout.share(tensor, ModuleName::parse(&tensor.module), degree);
            let Share::Cut { axis, sizes } = share else {
                return None;
            };
            let cut = sizes.iter().try_fold(0_u64, |sum, size| {
                let divides = size.features.is_multiple_of(size.ranks);
                divides.then(|| sum.saturating_add(size.features / size.ranks.max(1)))
            })?;
            let shape = match axis {
                Axis::Out => [cut, tensor.in_features()],
                Axis::In => [tensor.out_features(), cut],
            };
            Some((tensor, shape))
        });
        let shapes: Vec<_> = shapes.collect();
        let fused = FusedRows::new(shapes.iter().map(|(tensor, [rows, _])| (*tensor, *rows)));
        for (tensor, [rows, columns]) in shapes {
            tell(tensor, degree, [fused.rows_or(tensor, rows), columns]);
        }
    }
}

#[cfg(test)]
mod tests;
