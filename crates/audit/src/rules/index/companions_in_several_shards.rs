//! IX010: the tensors of one quantized weight lie in several shards.

use std::collections::BTreeSet;

use safequant_schemes::QuantizedTensor;

use crate::{Check, Findings, Place, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "IX010",
    name: "companions-in-several-shards",
    severity: Severity::Note,
    since: "0.1.0",
    summary: "the tensors of one quantized weight lie in several shards",
    doc: DOC,
    check: Check::Module(check),
};

const DOC: &str = "\
## What it checks
Codes, scales and zero points of a weight are in one shard.

## Why it matters
Splitters count bytes and know nothing of companions. A reader that goes through one shard after the other meets a scale before its codes,
or long after; scripts that dequantize shard by shard say `KeyError: 'model.layers.0.mlp.down_proj.weight_scale_inv'` (DeepSeek's own
converter opens the other shard for that), and a shard that was exchanged alone mixes two quantizations.

## What to do
Nothing, for the usual runtimes. `safequant reshard SRC -o DST` keeps companions together.

## References
- deepseek-ai/DeepSeek-V3, `fp8_cast_bf16.py`
";

fn check(subject: &Subject<'_>, tensor: &QuantizedTensor, findings: &mut Findings<'_>) {
    if subject.checkpoint.shards().len() < 2 {
        return;
    }
    let members = subject.checkpoint.members(&tensor.module);
    let stored = tensor.parts.iter().filter_map(|part| {
        let own = part.name.strip_prefix(&tensor.module);
        match own.and_then(|rest| rest.strip_prefix('.')) {
            Some(ending) => members.get(ending),
            None => subject.checkpoint.tensor(&part.name),
        }
    });
    let shards: BTreeSet<&str> = stored.map(|part| part.shard.name.as_str()).collect();
    if shards.len() > 1 {
        let found: Vec<&str> = shards.into_iter().collect();
        findings
            .add(
                Place::module(&*tensor.module),
                format!("its tensors lie in {} shards", found.len()),
            )
            .instead("one shard", found.join(", "))
            .help("nothing for most readers; `safequant reshard` keeps companions together");
    }
}
