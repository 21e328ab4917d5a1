//! TP006: a rank's share is no multiple of what the kernels of a runtime need.

use crate::profile::{FusedRows, Limit, is_taken, multiples, profile};
use crate::{Check, Findings, Place, Rule, Severity, Subject, parallel};

pub(crate) static RULE: Rule = Rule {
    id: "TP006",
    name: "rank-does-not-fit-kernel",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "a rank's share of a weight is no multiple of what the kernels of the runtime asked for need",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
For every degree and runtime asked for (`--tp`, `--runtime`): output and input features of a rank's share are multiples of what the runtime's kernels
need, where those of the whole weight are (otherwise rule RT006 has it).

## Why it matters
Kernels work on tiles: `Weight output_size_per_partition = 96 is not divisible by min_thread_n = 64. Consider reducing tensor_parallel_size`.

## What to do
Use a smaller degree, or a convention whose kernels take the shape.

## References
- vllm-project/vllm#57792, sgl-project/sglang#35792
";

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    let wanted = &subject.wanted;
    if wanted.tensor_parallel.is_empty() || wanted.runtimes.is_empty() {
        return;
    }
    let model = &subject.model.quantized;
    let fused = FusedRows::new(model.iter().map(|tensor| (tensor, tensor.out_features())));
    for profile in wanted.runtimes.iter().filter_map(|r| profile(r)) {
        parallel::shapes_of_ranks(subject, |tensor, degree, [rows, columns]| {
            if !is_taken(profile, tensor.convention) {
                return;
            }
            for line in multiples(profile, tensor) {
                let (axis, whole, share, n) = match line.limit {
                    Limit::OutMultiple(n) => ("output", fused.rows(tensor), rows, n),
                    Limit::InMultiple(n) => ("input", tensor.in_features(), columns, n),
                    Limit::Loads(_)
                    | Limit::Codes(_)
                    | Limit::Granularities(_)
                    | Limit::GroupSizes(_)
                    | Limit::BlockSizes(_)
                    | Limit::ZeroPoints(_)
                    | Limit::ScaleDtypes(_)
                    | Limit::ModelDtypes(_)
                    | Limit::Sparse(_)
                    | Limit::Packings(_)
                    | Limit::Directions(_)
                    | Limit::DenseParts(_)
                    | Limit::ActivationOrder(_)
                    | Limit::Experts(_)
                    | Limit::Names(_)
                    | Limit::Config(_)
                    | Limit::Documents(_)
                    | Limit::Files(_) => continue,
                };
                if share.is_multiple_of(n) || !whole.is_multiple_of(n) {
                    continue;
                }
                let message = format!(
                    "among {degree} ranks, {share} {axis} features each, which {} does not take",
                    profile.name()
                );
                findings
                    .add(Place::module(&*tensor.module), message)
                    .instead(format!("a multiple of {n}"), share.to_string())
                    .help("use fewer ranks, or a convention whose kernels take the shape");
            }
        });
    }
}
