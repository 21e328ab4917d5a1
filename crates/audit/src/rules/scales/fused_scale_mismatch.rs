//! SC020: layers that runtimes fuse have different scales.

use std::collections::BTreeMap;

use safequant_schemes::{Granularity, QuantizedTensor, SuperScale};

use super::common::{has_float_scale, has_global_scale, is_fused_at_run_time};
use crate::measure::{Measured, ScaleStatistics};
use crate::{Check, Findings, ModuleName, Part, Place, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "SC020",
    name: "fused-scale-mismatch",
    severity: Severity::Warning,
    since: "0.1.0",
    summary: "layers that runtimes make one matrix of have different scales",
    doc: DOC,
    check: Check::AllScales(check),
};

const DOC: &str = "\
## What it checks
Queries, keys and values of a layer, and gate and up of a feed-forward block or expert, have the same scale, where there is one scale
for the whole matrix: the global scale of NVFP4, the scale of per-tensor FP8. NVFP4's must be equal; for FP8 a ratio below 2 is a note,
since runtimes requantize the smaller ones, at the cost of a rounding. So it is for formats whose runtimes do not fuse.

## Why it matters
Runtimes keep one scale for a fused matrix. For NVFP4 they take the largest and leave the block scales as they are, so that the other
layers' weights are wrong by the ratio: `w1_weight_scale_2 must match w3_weight_scale_2. Accuracy may be affected.`, or a warning that
the global scales of parallel layers differ. Reported: 33 of 36 layers of one checkpoint, ratio up to 2.14; elsewhere up to 10.

## What to do
Quantize with fused layers in one group (llm-compressor and ModelOpt do so for names that they know), or rescale the block scales to a
shared global scale.

## References
- vllm-project/vllm#54974, #47515, #55073, NVIDIA/TensorRT-LLM#14199, intel/auto-round#2380
- formats: nvfp4-mxfp4, sections 9 and 10; fp8, section 5
";

/// One layer's scale.
struct Member<'a> {
    tensor: &'a QuantizedTensor,
    scale: f32,
}

fn check(subject: &Subject<'_>, measured: &Measured, findings: &mut Findings<'_>) {
    let mut groups: BTreeMap<(&str, &[Part]), Vec<Member<'_>>> = BTreeMap::new();
    for tensor in &subject.model.quantized {
        let name = ModuleName::parse(&tensor.module);
        let fused = name.fused_with();
        let statistics = measured.get(&tensor.module);
        if let Some(scale) = statistics.and_then(|weight| whole_scale(tensor, &weight.scales))
            && !fused.is_empty()
        {
            let group = groups.entry((name.parent, fused)).or_default();
            group.push(Member { tensor, scale });
        }
    }
    for members in groups.values() {
        compare(members, findings);
    }
}

/// The scale of a matrix that has only one.
fn whole_scale(tensor: &QuantizedTensor, scales: &ScaleStatistics) -> Option<f32> {
    let floats = match tensor.scheme.super_scale {
        SuperScale::Multiply | SuperScale::Divide => &scales.supers,
        SuperScale::None if tensor.scheme.granularity == Granularity::Tensor => {
            Some(&scales.scales).filter(|_| has_float_scale(tensor))?
        }
        SuperScale::None
        | SuperScale::Nested { .. }
        | SuperScale::Grouped { .. }
        | SuperScale::Channel => return None,
    };
    floats.only().filter(|_| floats.n == 1)
}

fn compare(members: &[Member<'_>], findings: &mut Findings<'_>) {
    let Some(first) = members.first() else {
        return;
    };
    let (mut least, mut most) = (first.scale, first.scale);
    for member in members {
        least = least.min(member.scale);
        most = most.max(member.scale);
    }
    if least.total_cmp(&most).is_eq() {
        return;
    }
    let ratio = most / least;
    let listed: Vec<String> = members
        .iter()
        .map(|member| format!("{} {:e}", member.tensor.module, member.scale))
        .collect();
    let finding = findings.add(
        Place::module(&*first.tensor.module),
        format!(
            "layers that are fused have scales that differ by {ratio:.3}: {}",
            listed.join(", ")
        ),
    );
    let is_requantized = !has_global_scale(first.tensor) && ratio < 2.0;
    if is_requantized || !is_fused_at_run_time(first.tensor.convention) {
        finding.severity = Severity::Note;
    }
    finding
        .instead(
            "one scale for all of them",
            format!("{least:e} to {most:e}"),
        )
        .help("quantize them with one scale, or rescale them to the shared one");
}
