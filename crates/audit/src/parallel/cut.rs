//! One weight, cut: asks `slice` for a rank, and puts what it refuses into numbers.

use safequant_schemes::{
    Axes, Axis, Granularity, Part as StoredPart, QuantizedTensor, Role, Selection, Storage,
    SuperScale, slice,
};

use super::layout::{Share, Size};
use super::{Obstacle, ObstacleKind, Outcome};
use crate::profile::is_activation_ordered;
use crate::{Part, Subject};

/// How many answers are kept: models have a dozen shapes, hostile ones a new one for each module.
const KEPT: usize = 64;

/// Remembers answers: the modules of a model are of few kinds.
#[derive(Default)]
pub(super) struct Cutter<'a> {
    answers: Vec<(&'a QuantizedTensor, Share, Outcome)>,
}

impl<'a> Cutter<'a> {
    /// Answers for a weight, from memory if it was asked one like it.
    pub(super) fn ask(
        &mut self,
        subject: &Subject<'_>,
        tensor: &'a QuantizedTensor,
        part: Part,
        share: &Share,
        tell: impl FnOnce(&Outcome),
    ) {
        let same = |(other, s, _): &&(&QuantizedTensor, Share, Outcome)| {
            s == share && is_alike(other, tensor)
        };
        if let Some((_, _, outcome)) = self.answers.iter().find(same) {
            // The answer names the part that it was given for, which may be another of the same shape.
            match outcome {
                Err(obstacle) if obstacle.part != part => tell(&Err(Obstacle {
                    part,
                    ..obstacle.clone()
                })),
                Ok(_) | Err(_) => tell(outcome),
            }
            return;
        }
        let outcome = cut(subject, tensor, part, share);
        tell(&outcome);
        if self.answers.len() >= KEPT {
            drop(self.answers.remove(0));
        }
        self.answers.push((tensor, share.clone(), outcome));
    }
}

/// Whether two weights differ in names only.
fn is_alike(a: &QuantizedTensor, b: &QuantizedTensor) -> bool {
    let same = |(a, b): (&StoredPart, &StoredPart)| {
        a.role == b.role
            && a.dtype == b.dtype
            && a.shape == b.shape
            && a.storage == b.storage
            && a.extent == b.extent
    };
    a.convention == b.convention
        && a.shape == b.shape
        && a.scheme == b.scheme
        && a.parts.len() == b.parts.len()
        && a.parts.iter().zip(&b.parts).all(same)
}

fn bytes(parts: &[StoredPart]) -> u64 {
    let of_part = |part: &StoredPart| {
        let n = part.shape.iter().try_fold(1_u64, |n, &d| n.checked_mul(d));
        n.and_then(|n| part.dtype.size_bytes(n)).unwrap_or(0)
    };
    parts
        .iter()
        .fold(0, |sum: u64, part| sum.saturating_add(of_part(part)))
}

fn cut(subject: &Subject<'_>, tensor: &QuantizedTensor, part: Part, share: &Share) -> Outcome {
    let whole = bytes(&tensor.parts);
    match share {
        Share::Whole => Ok(whole),
        Share::Vocabulary { ranks } | Share::Uneven { ranks } => Ok(whole.div_ceil(*ranks)),
        Share::Cut { axis, sizes } => {
            if let Some(size) = sizes.iter().find(|s| !s.features.is_multiple_of(s.ranks)) {
                return Err(features(part, *axis, *size));
            }
            along(subject, tensor, part, *axis, sizes)
        }
    }
}

/// Cuts where every size divides.
fn along(
    subject: &Subject<'_>,
    tensor: &QuantizedTensor,
    part: Part,
    axis: Axis,
    sizes: &[Size],
) -> Outcome {
    let refuse = |kind, unit, message, fix| {
        let features = sizes.first().map_or(0, |size| size.features);
        let ranks = sizes.first().map_or(1, |size| size.ranks.max(1));
        Err(Obstacle {
            kind,
            part,
            axis: Some(axis),
            module: String::new(),
            count: 0,
            features,
            share: Some(features / ranks),
            unit,
            message,
            fix,
        })
    };
    let is_ordered = is_activation_ordered(subject, tensor);
    if is_ordered && axis == Axis::In {
        let message = "activation order spreads its groups over all input features, so every rank needs all scales"
            .to_owned();
        let fix = "quantize without activation order, or with the static kind".to_owned();
        return refuse(ObstacleKind::ActivationOrder, 1, message, fix);
    }
    let natural = natural(tensor, is_ordered);
    let tensor = natural.as_ref().unwrap_or(tensor);
    let size = sizes.first().copied().unwrap_or(Size {
        features: 0,
        ranks: 1,
    });
    let share = size.features / size.ranks.max(1);
    let mut rank_bytes = 0;
    for rank in 0..2 {
        match slice(tensor, &selection(axis, sizes, rank)) {
            Ok(slice) => rank_bytes = bytes(&slice.tensor.parts),
            Err(error) => {
                let (kind, unit) = match unit(tensor, axis) {
                    // Something else than groups and blocks is cut: a rotation, a sparse row.
                    (_, unit) if share.is_multiple_of(unit) => (ObstacleKind::Whole, 1),
                    cut => cut,
                };
                let message = match kind {
                    ObstacleKind::Group | ObstacleKind::Block => {
                        let what = kind.name();
                        let axis = axis_name(axis);
                        format!(
                            "{} {axis} features among {} ranks are {share} each, no multiple of the {what} of {unit}",
                            size.features, size.ranks
                        )
                    }
                    ObstacleKind::Word
                    | ObstacleKind::Features
                    | ObstacleKind::Heads
                    | ObstacleKind::ActivationOrder
                    | ObstacleKind::Whole => problem(&error),
                };
                return refuse(kind, unit, message, fix(kind, size, unit));
            }
        }
    }
    match word(tensor, axis, sizes) {
        None => Ok(rank_bytes),
        Some((name, unit, entries)) => {
            let message = format!(
                "a rank would begin inside a packed word of {name}: {entries} entries each, {unit} to a word"
            );
            let fix = fix(ObstacleKind::Word, size, unit);
            refuse(ObstacleKind::Word, unit, message, fix)
        }
    }
}

/// What the first ranks' share is. Each size divides; the last rank begins where the whole ends at the latest.
fn selection(axis: Axis, sizes: &[Size], rank: u64) -> Selection {
    let mut start = 0_u64;
    let mut ranges = Vec::with_capacity(sizes.len());
    for size in sizes {
        let ranks = size.ranks.max(1);
        let share = size.features / ranks;
        let first = rank.min(ranks - 1).saturating_mul(share);
        let first = first.saturating_add(start);
        ranges.push(first..first.saturating_add(share));
        start = size.features.saturating_add(start);
    }
    Selection { axis, ranges }
}

/// The weight without a group index that means nothing; `None` where it has none.
fn natural(tensor: &QuantizedTensor, is_ordered: bool) -> Option<QuantizedTensor> {
    let Granularity::IndexedGroup { size } = tensor.scheme.granularity else {
        return None;
    };
    if is_ordered {
        return None;
    }
    let mut natural = tensor.clone();
    natural.scheme.granularity = Granularity::Group { size };
    natural.parts.retain(|part| part.role != Role::GroupIndex);
    Some(natural)
}

/// What must not be cut along an axis, and what that is called.
fn unit(tensor: &QuantizedTensor, axis: Axis) -> (ObstacleKind, u64) {
    match (axis, tensor.scheme.granularity) {
        (Axis::In, Granularity::Group { size }) => match tensor.scheme.super_scale {
            SuperScale::Grouped { size: above } => {
                (ObstacleKind::Group, size.saturating_mul(above))
            }
            SuperScale::Nested { .. } => (ObstacleKind::Whole, 1),
            SuperScale::None | SuperScale::Multiply | SuperScale::Divide | SuperScale::Channel => {
                (ObstacleKind::Group, size)
            }
        },
        (Axis::In, Granularity::Flat { size }) => (ObstacleKind::Group, size),
        (Axis::In, Granularity::Block { rows: _, columns }) => (ObstacleKind::Block, columns),
        (Axis::Out, Granularity::Block { rows, columns: _ }) => (ObstacleKind::Block, rows),
        (
            Axis::In,
            Granularity::Tensor
            | Granularity::Channel
            | Granularity::IndexedGroup { .. }
            | Granularity::Strided { .. },
        )
        | (
            Axis::Out,
            Granularity::Tensor
            | Granularity::Channel
            | Granularity::Group { .. }
            | Granularity::IndexedGroup { .. }
            | Granularity::Flat { .. }
            | Granularity::Strided { .. },
        ) => (ObstacleKind::Whole, 1),
    }
}

/// The part whose packed words a cut would go through: its name, codes in a word, codes of a rank.
fn word<'a>(
    tensor: &'a QuantizedTensor,
    axis: Axis,
    sizes: &[Size],
) -> Option<(&'a str, u64, u64)> {
    for part in &tensor.parts {
        let (Storage::Packed {
            axes,
            packing,
            along,
        }
        | Storage::PackedConstant {
            axes,
            packing,
            along,
            lane: _,
        }) = part.storage
        else {
            continue;
        };
        let (Axes::OutIn | Axes::InOut) = axes;
        let bytes = usize::try_from(part.dtype.bits() / 8).unwrap_or(1);
        if along != axis || !matches!(bytes, 1 | 2 | 4 | 8) || !packing.is_valid() {
            continue;
        }
        let (unit, _) = packing.codes_per_word_unit(bytes);
        let unit = u64::try_from(unit).unwrap_or(1).max(1);
        for size in sizes {
            let share = size.features / size.ranks.max(1);
            let entries = match (part.role, axis, tensor.scheme.granularity) {
                (Role::Codes, _, _) => share,
                (_, Axis::In, Granularity::Group { size } | Granularity::Flat { size }) => {
                    share / size.max(1)
                }
                (_, Axis::Out, Granularity::Block { rows, columns: _ }) => share / rows.max(1),
                (_, Axis::Out | Axis::In, _) => share,
            };
            if size.ranks > 1 && !entries.is_multiple_of(unit) {
                return Some((&part.name, unit, entries));
            }
        }
    }
    None
}

fn axis_name(axis: Axis) -> &'static str {
    match axis {
        Axis::Out => "output",
        Axis::In => "input",
    }
}

fn features(part: Part, axis: Axis, size: Size) -> Obstacle {
    let Size { features, ranks } = size;
    let axis_name = axis_name(axis);
    Obstacle {
        kind: ObstacleKind::Features,
        part,
        axis: Some(axis),
        module: String::new(),
        count: 0,
        features,
        share: None,
        unit: 1,
        message: format!("{features} {axis_name} features do not divide among {ranks} ranks"),
        fix: fix(ObstacleKind::Features, size, 1),
    }
}

/// What `slice` says, without the module.
fn problem(error: &safequant_schemes::Error) -> String {
    if let safequant_schemes::Error::Slice { problem, module: _ } = error {
        return problem.clone();
    }
    error.to_string()
}

/// What to do about a unit that is cut.
fn fix(kind: ObstacleKind, size: Size, unit: u64) -> String {
    let Size { features, ranks } = size;
    let whole = unit.saturating_mul(ranks).max(1);
    let padded = features.checked_next_multiple_of(whole);
    let pad = padded.map_or_else(String::new, |n| format!("pad to {n} features, "));
    let share = features / ranks.max(1);
    let smaller = gcd(share, unit);
    match kind {
        ObstacleKind::Group if smaller >= 16 => {
            format!("quantize in groups of {smaller}, {pad}or keep this module on every rank")
        }
        ObstacleKind::Block if smaller >= 16 => {
            format!("quantize in blocks of {smaller}, {pad}or keep this module on every rank")
        }
        ObstacleKind::Group
        | ObstacleKind::Block
        | ObstacleKind::Word
        | ObstacleKind::Features
        | ObstacleKind::Heads => format!("{pad}use fewer ranks, or keep this module on every rank"),
        ObstacleKind::ActivationOrder | ObstacleKind::Whole => {
            "keep this module on every rank, or convert to a convention whose groups lie in rows"
                .to_owned()
        }
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}
