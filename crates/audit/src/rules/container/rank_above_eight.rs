//! ST026: a tensor has more than eight dimensions.

use crate::{Check, Findings, Place, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "ST026",
    name: "rank-above-eight",
    severity: Severity::Note,
    since: "0.1.0",
    summary: "a tensor has more than eight dimensions",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
No tensor has more than eight dimensions.

## Why it matters
The format has no limit, and readers have theirs: ggml takes 4 (`tensor 'NAME' has invalid number of dimensions: 9 > 4`),
stable-diffusion.cpp 5, TensorRT 8, NumPy 64 (`maximum supported dimension for an ndarray is 64`). No weight needs so many, and a shape of
a million dimensions is made to cost a reader time.

## What to do
Save the tensor in the shape that the model's code uses.

## References
- ggml-org/llama.cpp, `GGML_MAX_DIMS`
";

/// The most that `TensorRT` takes, and twice what any weight of a usual model has.
const MAX_RANK: usize = 8;

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    for shard in subject.checkpoint.shards() {
        for tensor in &shard.header.tensors {
            let rank = tensor.shape.len();
            if rank > MAX_RANK {
                let place = Place::file(&*shard.name).tensor(tensor.name.as_str());
                findings
                    .add(place, format!("the tensor has {rank} dimensions"))
                    .instead(format!("at most {MAX_RANK}"), rank.to_string())
                    .help("save it in the shape that the model's code uses");
            }
        }
    }
}
