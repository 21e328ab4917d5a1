//! Steps whose weights are looked at together before any is quantized.

use super::{QuantizeWork, Step, Work};
use crate::select::fused_groups;

/// Groups the steps that need statistics of the whole weight; fused siblings together, so that they get one scale.
pub(super) fn share_statistics(steps: &mut [Step]) -> Vec<Vec<usize>> {
    let mut needing = Vec::new();
    for (i, step) in steps.iter().enumerate() {
        match &step.work {
            Work::Quantize(work) if needs_statistics(work) => needing.push(i),
            Work::Quantize(_)
            | Work::Copy
            | Work::Drop
            | Work::Dense(_)
            | Work::Content(_)
            | Work::Transcode(_) => {}
        }
    }
    let sharing: Vec<usize> = needing
        .iter()
        .copied()
        .filter(|&i| shares_scales(&steps[i]))
        .collect();
    let named = sharing.iter().map(|&i| {
        let step = &steps[i];
        (step.name.as_str(), step.shape.last().copied().unwrap_or(0))
    });
    let fused = fused_groups(named);
    let mut groups: Vec<Vec<usize>> = fused
        .iter()
        .map(|g| g.iter().map(|&k| sharing[k]).collect())
        .collect();
    let is_fused: std::collections::BTreeSet<usize> = groups.iter().flatten().copied().collect();
    groups.extend(
        needing
            .iter()
            .filter(|i| !is_fused.contains(i))
            .map(|&i| vec![i]),
    );
    groups.sort();
    for (g, group) in groups.iter().enumerate() {
        for &i in group {
            if let Work::Quantize(work) = &mut steps[i].work {
                work.statistics = Some(g);
            }
        }
    }
    groups
}

fn needs_statistics(work: &QuantizeWork) -> bool {
    // Scales that stay need no statistics.
    if work.start.is_some() {
        return false;
    }
    let mut matrices = work.matrices.iter();
    matrices.any(|matrix| matrix.method.0.needs_statistics(&work.target))
}

fn shares_scales(step: &Step) -> bool {
    match &step.work {
        Work::Quantize(work) => work.target.rule.shares_fused_scales(),
        Work::Copy | Work::Drop | Work::Dense(_) | Work::Content(_) | Work::Transcode(_) => false,
    }
}
