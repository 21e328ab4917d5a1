//! QT002: a scale, zero point or descriptor belongs to no quantized weight.

use std::collections::BTreeMap;

use safequant_container::TensorInfo;
use safequant_schemes::scheme::float_of;

use crate::inventory::{broken_modules, companion, is_partial};
use crate::{Check, Findings, Place, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "QT002",
    name: "companion-without-weight",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "a scale, zero point or descriptor belongs to no quantized weight",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
A tensor whose name says that it belongs to a quantized weight (`weight_scale`, `qzeros`, `absmax`, ...) does: the module's codes are
there, and the set of tensors is one that a format knows. Scales beside a dense weight are a warning: transformers writes some that
nobody reads. Scales of keys and values belong to no weight and are left alone.

## Why it matters
What is left of a module whose codes were lost looks like this, and no runtime complains about the codes. Those that complain about
the rest say `KeyError: layers.0.mlp.gate.qweight` or `There is no module or parameter named '...weight_scale'`. A scale whose weight has
another name is not applied: weights are then 200 times too large.

## What to do
Fetch the file again if the codes should be there. If the module is dense on purpose, remove the tensor.

## References
- vllm-project/vllm#34930, unslothai/unsloth#6200, vllm-project/vllm#32859
";

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    let model = &subject.model;
    // Where documents or a whole convention failed, nothing binds, and that is reported already.
    let has_failed = !subject.problems.is_empty() && model.quantized.is_empty();
    if has_failed || is_partial(subject) {
        return;
    }
    let broken = broken_modules(subject);
    let mut left: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for name in model.plain.iter().chain(&model.orphans) {
        let Some((module, ending)) = companion(name) else {
            continue;
        };
        // What stands in the way of a module that does not bind is reported by itself.
        let is_explained = model.module(module).is_some() || broken.contains(module);
        let is_stacked = ending.starts_with('_') && has_codes_elsewhere(subject, module);
        if !is_explained && !is_stacked {
            left.entry(module).or_default().push(name);
        }
    }
    for (module, names) in left {
        if !is_telling(subject, &names) {
            continue;
        }
        report(subject, module, &names, findings);
    }
}

/// Whether the names left are no dense model's: a name that only quantized weights have, several of those that others have too, or
/// one in a dtype of codes.
fn is_telling(subject: &Subject<'_>, names: &[&str]) -> bool {
    let common = ["scales", "biases", "bitmask", "row_offsets", "output_scale"];
    let is_common = |name: &&&str| {
        let ending = name.rsplit('.').next();
        ending.is_some_and(|ending| common.contains(&ending))
    };
    let dtype = |name: &str| subject.headers.tensor(name).map(|info| info.dtype);
    let is_bytes = |name: &&str| dtype(name).is_some_and(|dtype| dtype.bits() <= 8);
    names.len() > 1 || !names.iter().all(|name| is_common(&name)) || names.iter().any(is_bytes)
}

/// Whether the weight is bound under another name: `experts.0.up_proj` beside `experts.gate_up_proj_scale_inv`.
fn has_codes_elsewhere(subject: &Subject<'_>, module: &str) -> bool {
    let bound = &subject.model.quantized;
    let own = bound.iter().any(|tensor| tensor.weight == module);
    own || module.rsplit_once('.').is_some_and(|(experts, _)| {
        let prefix = format!("{experts}.");
        let is_experts = experts.ends_with("experts");
        is_experts && bound.iter().any(|t| t.module.starts_with(&prefix))
    })
}

fn report(subject: &Subject<'_>, module: &str, names: &[&str], findings: &mut Findings<'_>) {
    let place = Place::module(module).tensor(names.first().copied().unwrap_or(module));
    let listed = names.join(", ");
    let weight = subject.headers.tensor(&format!("{module}.weight"));
    let is_dense = |info: &TensorInfo| float_of(info.dtype).is_some();
    let finding = match weight {
        None => findings.add(
            place,
            format!("{listed}: there is no weight that this belongs to"),
        ),
        Some(info) if is_dense(info) => {
            let finding = findings.add(place, format!("{listed} beside a dense weight"));
            finding.severity = Severity::Warning;
            finding
        }
        Some(info) => findings.add(
            place,
            format!(
                "{module} has a weight of {} and {listed}, which is no set that a format knows",
                info.dtype
            ),
        ),
    };
    finding
        .instead("the tensors of a whole quantized weight", listed)
        .help(
            "fetch the file that holds the rest of the module again, or remove what is left of it",
        );
}
