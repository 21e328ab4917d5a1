//! QT004: the shapes of a quantized weight's tensors do not go together.

use crate::{Check, Rule, Severity};

pub(crate) static RULE: Rule = Rule {
    id: "QT004",
    name: "part-shape",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "the shapes of a quantized weight's tensors do not go together",
    doc: DOC,
    check: Check::Problems(&["part_shape"]),
};

const DOC: &str = "\
## What it checks
Codes, scales, zero points and group index of a module have the shapes that one weight has under its bits and group size.

## Why it matters
Either the configuration's bits or group size are not those the module was quantized with, or a tensor is another module's or
transposed. Runtimes stop with a bare assertion (`AssertionError: param_data.shape == loaded_weight.shape`,
`size mismatch for model.layers.0.self_attn.q_proj.qweight`), or read scales of the wrong blocks.

## What to do
Compare with the sibling modules: if all of them disagree, the configuration is wrong, otherwise the tensor is.

## References
- unslothai/unsloth#8953, NVIDIA/TensorRT-Model-Connect#1115, sgl-project/sglang#35792
";
