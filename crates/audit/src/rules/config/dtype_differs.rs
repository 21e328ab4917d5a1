//! QC050: `config.json` gives another dtype than the dense weights have.

use std::collections::BTreeMap;

use safequant_container::Dtype;
use safequant_kernels::Float;
use safequant_schemes::scheme::float_of;

use crate::{Check, Findings, Place, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "QC050",
    name: "dtype-differs",
    severity: Severity::Note,
    since: "0.1.0",
    summary: "`config.json` gives another dtype than the dense weights have",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
The dtype that `config.json` gives (`dtype`, `torch_dtype`) is that of most elements of the dense tensors. BF16 weights under a
configuration of F16 are a warning: not every BF16 number has an F16.

## Why it matters
Runtimes cast to the dtype of the configuration while they load. From BF16 to F16, numbers above 65504 become infinite and small ones
zero: NaN when a model that was trained in BF16 runs in half precision. `torch.bfloat16 is not supported for quantization method awq` is
what makes people change the one and not the other.

## What to do
Set the dtype to what is stored.

## References
- vllm-project/vllm#1114, vllm-project/vllm#4781, casper-hansen/AutoAWQ#498, openvinotoolkit/nncf#3586
";

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    let Ok(Some(declared)) = subject.headers.model_dtype() else {
        return;
    };
    let mut counts: BTreeMap<&'static str, (Dtype, u64)> = BTreeMap::new();
    for info in &subject.plain {
        if float_of(info.dtype).is_some() {
            let count = counts.entry(info.dtype.name()).or_insert((info.dtype, 0));
            count.1 = count.1.saturating_add(info.n_elements());
        }
    }
    let Some((dtype, _)) = counts.into_values().max_by_key(|(_, count)| *count) else {
        return;
    };
    let Some(stored) = float_of(dtype).filter(|stored| *stored != declared) else {
        return;
    };
    let finding = findings.add(
        Place::file("config.json"),
        format!("the dtype is {declared:?}, but dense weights are {dtype}"),
    );
    if (stored, declared) == (Float::Bf16, Float::F16) {
        finding.severity = Severity::Warning;
    }
    finding
        .instead(format!("{declared:?}"), dtype.name())
        .help("set dtype (torch_dtype) to what is stored");
}
