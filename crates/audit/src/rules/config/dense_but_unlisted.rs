//! QC011: a module is dense that the configuration says is quantized.

use std::cell::LazyCell;
use std::collections::HashSet;

use safequant_container::TensorInfo;
use safequant_schemes::Settings;
use serde_json::Value;

use crate::ignore::{Groups, IgnoreList, MAX_TRIES, lists, method_of, spellings};
use crate::inventory::{broken_modules, dense_matrices};
use crate::{Check, Findings, ModuleName, Place, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "QC011",
    name: "dense-but-unlisted",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "a module is dense, but the configuration says that it is quantized",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
A dense matrix of attention or feed-forward blocks, in a model whose method quantizes all linear layers but those it lists
(compressed-tensors, fp8, AWQ, GPTQ, ModelOpt), is on the list. Only matrices are looked at whose like is quantized: the same matrix of
other layers, or another one of the same block. Methods whose tensors say which modules are quantized (bitsandbytes, MLX, torchao,
quanto, HQQ) have no need of a list. With GPTQ it is a warning: vLLM looks at the tensors. So it is where FP8 blocks do not divide the
matrix: transformers leaves those dense by itself.

## Why it matters
Runtimes build a quantized layer and find a dense weight: `KeyError: 'model.layers.3.self_attn.v_proj.weight'`, a failed shape assertion,
or a router that stays all zeros.

## What to do
Put the module on the list: `safequant repair SRC -o DST --rule QC011`. If it should be quantized, quantize it.

## References
- vllm-project/vllm-omni#5573, sgl-project/sglang#35792, sgl-project/sglang#32736, vllm-project/llm-compressor#2641
";

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    let Some(settings) = subject.settings.iter().find(|s| severity(s).is_some()) else {
        return;
    };
    let Some(severity) = severity(settings) else {
        return;
    };
    let lists = lists(subject);
    let n_entries: usize = lists.iter().map(|list| list.entries.len()).sum();
    let kinds = LazyCell::new(|| Kinds::of(subject));
    let broken = broken_modules(subject);
    let is_asked = |module: &str| {
        let name = ModuleName::parse(module);
        name.part.is_block_matrix() && kinds.has_like(name) && !broken.contains(module)
    };
    let dense: Vec<(&str, &TensorInfo)> = dense_matrices(subject)
        .filter(|(module, _)| is_asked(module))
        .collect();
    if dense.len().saturating_mul(n_entries) > MAX_TRIES {
        return;
    }
    let groups = Groups::of(settings);
    // Methods without groups mean all modules.
    let is_target = |module: &str| groups.as_ref().is_none_or(|g| g.group(module).is_some());
    for (module, info) in dense {
        if is_target(module) && !is_listed(&lists, module) {
            let finding = findings.add(
                Place::module(module),
                format!("{} says that it is quantized", settings.place),
            );
            finding.severity = severity;
            // transformers leaves such weights dense when it quantizes, and knows it when it loads.
            if !blocks_divide(settings, info) {
                finding.severity = Severity::Warning;
            }
            finding
                .instead(
                    format!("a weight of {}", method_of(settings)),
                    "a dense one",
                )
                .help("put the module on the list of those that are left dense");
        }
    }
}

/// Whether the settings' blocks, if there are any, divide the matrix.
fn blocks_divide(settings: &Settings, info: &TensorInfo) -> bool {
    let block = settings
        .map
        .get("weight_block_size")
        .and_then(Value::as_array);
    let sides = block.into_iter().flatten().filter_map(Value::as_u64);
    let mut pairs = info.shape.iter().zip(sides);
    pairs.all(|(n, side)| n.is_multiple_of(side.max(1)))
}

/// How bad a dense module is that no list names; `None` where no list is needed.
fn severity(settings: &Settings) -> Option<Severity> {
    match method_of(settings).as_str() {
        "compressed-tensors" => {
            let groups = settings.map.get("config_groups").and_then(Value::as_object);
            groups
                .is_some_and(|g| !g.is_empty())
                .then_some(Severity::Error)
        }
        "fp8" | "fbgemm_fp8" | "awq" => Some(Severity::Error),
        "gptq" => Some(Severity::Warning),
        name if name.starts_with("modelopt") => {
            let algo = settings.map.get("quant_algo").and_then(Value::as_str);
            let is_mixed = algo.is_some_and(|algo| algo.eq_ignore_ascii_case("mixed_precision"));
            (!is_mixed && !settings.map.contains_key("quantized_layers")).then_some(Severity::Error)
        }
        _ => None,
    }
}

/// Whether any reader finds the module, or the fused one it becomes part of, on a list.
fn is_listed(lists: &[IgnoreList], module: &str) -> bool {
    let names = spellings(module);
    lists
        .iter()
        .any(|list| names.iter().any(|name| list.is_ignored_by_any(name)))
}

/// Which kinds of modules are quantized.
struct Kinds<'a> {
    /// Names around the layer's number.
    templates: HashSet<(&'a str, &'a str)>,
    /// Blocks.
    parents: HashSet<&'a str>,
}

impl<'a> Kinds<'a> {
    fn of(subject: &'a Subject<'_>) -> Self {
        let mut kinds = Self {
            templates: HashSet::new(),
            parents: HashSet::new(),
        };
        for tensor in &subject.model.quantized {
            let name = ModuleName::parse(&tensor.module);
            if let Some((stack, _, rest)) = name.around_layer() {
                kinds.templates.insert((stack, rest));
            }
            kinds.parents.insert(name.parent);
        }
        kinds
    }

    /// Whether the like of a matrix is quantized: the same of another layer, or its neighbor.
    fn has_like(&self, name: ModuleName<'_>) -> bool {
        let around = name.around_layer();
        let is_template =
            around.is_some_and(|(stack, _, rest)| self.templates.contains(&(stack, rest)));
        is_template || self.parents.contains(name.parent)
    }
}
