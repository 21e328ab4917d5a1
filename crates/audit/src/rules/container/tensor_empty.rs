//! ST023: a tensor has no elements.

use crate::{Check, Findings, Place, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "ST023",
    name: "tensor-empty",
    severity: Severity::Note,
    since: "0.1.0",
    summary: "a tensor has no elements",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
No tensor has a dimension of 0. Markers that are empty on purpose (`scaled_fp8` of ComfyUI) are left out.

## Why it matters
Often it is a weight that was offloaded, sharded or not yet initialized when it was saved: under DeepSpeed ZeRO-3 and on the meta device
parameters have shape `[0]`, and loading says `size mismatch for ...: copying a param with shape torch.Size([0])`. fastsafetensors refuses
an empty tensor that is listed behind another one of the same offset. Some layouts store an empty `g_idx` and mean it.

## What to do
If it is a weight: save the model again with all parameters gathered. If it is a marker, nothing.

## References
- vllm-project/vllm#1687
";

/// Names of markers that say everything by being there.
const MARKERS: [&str; 1] = ["scaled_fp8"];

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    for shard in subject.checkpoint.shards() {
        for tensor in &shard.header.tensors {
            if tensor.n_elements() > 0 {
                continue;
            }
            let name = tensor.name.as_str();
            let last = name.rsplit('.').next().unwrap_or(name);
            if MARKERS.contains(&last) {
                continue;
            }
            let place = Place::file(&*shard.name).tensor(name);
            findings
                .add(place, "the tensor has no elements")
                .instead("dimensions above 0", format!("{:?}", &*tensor.shape))
                .help("if it is a weight, save the model again with all parameters gathered");
        }
    }
}
