//! QT031: experts are stored one by one and stacked, or under two spellings.

use std::collections::{BTreeMap, BTreeSet};

use safequant_container::TensorInfo;
use safequant_schemes::scheme::float_of;
use safequant_schemes::{QuantizedTensor, Role};

use crate::{Check, Findings, ModuleName, Part, Place, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "QT031",
    name: "mixed-expert-layout",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "experts of one model are stored one by one here and stacked there, or under two spellings",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
All experts of a model are stored in one layout: one by one (`experts.0.up_proj`) or stacked (`experts.gate_up_proj`), and under one
spelling (`gate_proj`, `up_proj`, `down_proj` or `w1`, `w2`, `w3`). Both in one block is an error; different layouts in different layers
are a warning, since layers that predict further tokens often differ from the others. Scales of a whole stack beside codes of single
experts are a layout of transformers and no mixture.

## Why it matters
A loader knows one layout for a model. The tensors of the other one are skipped with a warning (`not found in params_dict`), and the
experts that they hold stay uninitialized: the model says `capital capital capital`.

## What to do
Store all experts in one layout.

## References
- sgl-project/sglang#37679, vllm-project/vllm#36997, vllm-project/llm-compressor#2464, ModelCloud/GPTQModel#2694
";

/// How the experts of one block are stored.
#[derive(Default)]
struct Layouts {
    /// Tensors of stacks.
    stacked: BTreeSet<String>,
    /// Modules of single experts, with their spelling.
    single: BTreeMap<&'static str, String>,
}

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    let blocks = blocks(subject);
    for (block, layouts) in &blocks {
        check_block(block, layouts, findings);
    }
    let is_stacked = |layouts: &&Layouts| !layouts.stacked.is_empty();
    let is_single = |layouts: &&Layouts| !layouts.single.is_empty();
    let n_stacked = blocks.values().filter(is_stacked).count();
    let n_single = blocks.values().filter(is_single).count();
    if n_stacked == 0 || n_single == 0 {
        return;
    }
    for (block, layouts) in &blocks {
        let is_rare = if n_stacked < n_single {
            is_stacked(&layouts) && !is_single(&layouts)
        } else {
            is_single(&layouts) && !is_stacked(&layouts)
        };
        if is_rare {
            report_rare(block, (n_stacked, n_single), findings);
        }
    }
}

fn blocks<'a>(subject: &'a Subject<'_>) -> BTreeMap<&'a str, Layouts> {
    let mut blocks: BTreeMap<&str, Layouts> = BTreeMap::new();
    for (name, stored) in subject.modules() {
        if let Some((experts, _, rest)) = name.around_expert() {
            if let Some(spelling) = spelling(rest) {
                let single = &mut blocks.entry(experts).or_default().single;
                let module = || name.module.to_owned();
                single.entry(spelling).or_insert_with(module);
            }
            continue;
        }
        for tensor in stored {
            if let Some(experts) = stack_of(tensor.info) {
                let stacked = &mut blocks.entry(experts).or_default().stacked;
                stacked.insert(tensor.info.name.to_string());
            }
        }
    }
    let is_stack = |tensor: &&QuantizedTensor| tensor.shape.len() == 3;
    for tensor in subject.model.quantized.iter().filter(is_stack) {
        let experts = tensor.module.rsplit_once('.');
        if let (Some((experts, _)), Some(part)) = (experts, tensor.part(Role::Codes))
            && experts.ends_with("experts")
            && let Some(layouts) = blocks.get_mut(experts)
        {
            layouts.stacked.insert(part.name.clone());
        }
    }
    blocks
}

/// The experts of a stack: a dense tensor of three dimensions, or the codes of a quantized one, directly under `experts`.
fn stack_of(info: &TensorInfo) -> Option<&str> {
    let name = info.name.strip_suffix(".weight").unwrap_or(&info.name);
    let name = name.strip_suffix("_blocks").unwrap_or(name);
    let (experts, matrix) = name.rsplit_once('.')?;
    let is_experts = experts == "experts" || experts.ends_with(".experts");
    if !is_experts {
        return None;
    }
    let is_matrix = matches!(
        ModuleName::parse(name).part,
        Part::Gate | Part::Up | Part::GateUp | Part::Down
    );
    let is_weight = info.shape.len() >= 3
        && (float_of(info.dtype).is_some() || info.shape.len() == 4 || info.dtype.bits() == 8);
    (is_matrix && is_weight && !matrix.contains("scale")).then_some(experts)
}

/// Which spelling a matrix of an expert has.
fn spelling(matrix: &str) -> Option<&'static str> {
    match matrix.split('.').next()? {
        "gate_proj" | "up_proj" | "down_proj" => Some("gate_proj, up_proj, down_proj"),
        "w1" | "w2" | "w3" => Some("w1, w2, w3"),
        _ => None,
    }
}

fn check_block(block: &str, layouts: &Layouts, findings: &mut Findings<'_>) {
    let first_stacked = layouts.stacked.first();
    let first_single = layouts.single.values().next();
    if let (Some(stacked), Some(single)) = (first_stacked, first_single) {
        findings
            .add(
                Place::module(block).tensor(stacked),
                format!("{block} holds {single} and the stack {stacked}"),
            )
            .instead("one layout", "experts one by one and stacked")
            .help("keep the experts in one layout");
    }
    if layouts.single.len() > 1 {
        let spellings: Vec<&str> = layouts.single.keys().copied().collect();
        findings
            .add(
                Place::module(block),
                format!("{block} holds experts under two spellings"),
            )
            .instead("one spelling", spellings.join(" and "))
            .help("rename the matrices of all experts alike");
    }
}

fn report_rare(block: &str, (n_stacked, n_single): (usize, usize), findings: &mut Findings<'_>) {
    let finding = findings.add(
        Place::module(block),
        format!("{block} is stored in another layout than most blocks of experts"),
    );
    finding.severity = Severity::Warning;
    finding.instead(
        "one layout in all layers",
        format!("{n_stacked} blocks stacked, {n_single} expert by expert"),
    );
}
