//! QT030: experts of one block differ in what they hold, or some are missing.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use safequant_schemes::QuantizedTensor;

use crate::inventory::{EXPERT_KEYS, agreed_number};
use crate::{Check, Findings, Place, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "QT030",
    name: "expert-set-ragged",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "experts of one block are missing, or hold other weights or schemes than the rest",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
Experts that are stored one by one are numbered from 0 to the number that the configuration states, without a gap; all of a block hold the
same matrices; and each matrix has one scheme in all experts.

## Why it matters
Runtimes stack the experts of a block in one tensor. A missing expert leaves a hole with whatever was in memory: simple prompts work,
others give pad tokens. Experts of two schemes do not fit one kernel: `KeyError: 'layers.0.block_sparse_moe.experts.w2_weight'`,
`not found in params_dict`.

## What to do
Fetch or quantize the missing experts again; give all experts of a block one scheme.

## References
- sgl-project/sglang#37679, sgl-project/sglang#33759, vllm-project/vllm#54052, vllm-project/vllm#45212
";

/// What one expert holds: its matrices, and the scheme of each.
type Expert<'a> = BTreeMap<&'a str, BTreeSet<Rc<str>>>;

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    let declared = agreed_number(subject, EXPERT_KEYS);
    for (experts, held) in blocks(subject) {
        let wanted = match &declared {
            Some((_, n)) => *n,
            None => held.keys().max().map_or(0, |last| u64::from(*last) + 1),
        };
        check_count(experts, &held, wanted, findings);
        check_sets(experts, &held, findings);
    }
}

fn blocks<'a>(subject: &'a Subject<'_>) -> BTreeMap<&'a str, BTreeMap<u32, Expert<'a>>> {
    let mut blocks: BTreeMap<&str, BTreeMap<u32, Expert<'_>>> = BTreeMap::new();
    let mut schemes = Schemes::default();
    for (name, _) in subject.modules() {
        let Some((experts, number, rest)) = name.around_expert() else {
            continue;
        };
        let scheme = schemes.text(subject.model.module(name.module));
        let block = blocks.entry(experts).or_default();
        let expert = block.entry(number).or_default();
        expert.entry(rest).or_default().insert(scheme);
    }
    blocks
}

/// Schemes in one line. Most modules have that of the module before them, and share its text.
#[derive(Default)]
struct Schemes<'a> {
    last: Option<(&'a QuantizedTensor, Rc<str>)>,
}

impl<'a> Schemes<'a> {
    fn text(&mut self, tensor: Option<&'a QuantizedTensor>) -> Rc<str> {
        let Some(tensor) = tensor else {
            return Rc::from("dense");
        };
        let key = |of: &QuantizedTensor| (of.convention, of.scheme.code, of.scheme.granularity);
        let last = self.last.take();
        let same = last.filter(|(other, _)| key(other) == key(tensor));
        let (_, text) = self.last.insert(same.unwrap_or_else(|| {
            let (convention, code, granularity) = key(tensor);
            let text = format!("{convention} {code:?} {granularity:?}");
            (tensor, Rc::from(text))
        }));
        Rc::clone(text)
    }
}

/// Extracts of a model may hold a few experts of many: what is missing is listed where at most half is.
fn check_count(
    experts: &str,
    held: &BTreeMap<u32, Expert<'_>>,
    wanted: u64,
    findings: &mut Findings<'_>,
) {
    let is_missing = |number: &u64| u32::try_from(*number).is_ok_and(|n| !held.contains_key(&n));
    let n_held = held.len() as u64;
    if wanted > n_held.saturating_mul(2) {
        let place = Place::module(experts);
        findings
            .add(place, format!("{experts} has {n_held} experts"))
            .instead(format!("{wanted} experts"), n_held.to_string());
        return;
    }
    for number in (0..wanted).filter(is_missing) {
        let name = format!("{experts}.{number}");
        findings
            .add(
                Place::module(&*name),
                format!("nothing of {name} is stored"),
            )
            .instead(format!("{wanted} experts"), n_held.to_string())
            .help("fetch or quantize this expert again");
    }
}

fn check_sets(experts: &str, held: &BTreeMap<u32, Expert<'_>>, findings: &mut Findings<'_>) {
    let mut counts: BTreeMap<(&str, &BTreeSet<Rc<str>>), usize> = BTreeMap::new();
    for (matrix, schemes) in held.values().flatten() {
        *counts.entry((matrix, schemes)).or_default() += 1;
    }
    let matrices: BTreeSet<&str> = counts.keys().map(|(matrix, _)| *matrix).collect();
    for matrix in matrices {
        let of_matrix = counts.iter().filter(|((m, _), _)| *m == matrix);
        let Some((&(_, usual), _)) = of_matrix.max_by_key(|(_, count)| **count) else {
            continue;
        };
        for (number, expert) in held {
            let name = || format!("{experts}.{number}.{matrix}");
            match expert.get(matrix) {
                Some(found) if found == usual => {}
                Some(found) => report_scheme(&name(), usual, found, findings),
                None => report_missing(&name(), findings),
            }
        }
    }
}

fn report_missing(name: &str, findings: &mut Findings<'_>) {
    findings
        .add(
            Place::module(name),
            format!("{name} is missing, which other experts have"),
        )
        .instead(name, "nothing")
        .help("fetch or quantize this expert again");
}

fn report_scheme(
    name: &str,
    usual: &BTreeSet<Rc<str>>,
    found: &BTreeSet<Rc<str>>,
    findings: &mut Findings<'_>,
) {
    let text = |schemes: &BTreeSet<Rc<str>>| {
        let all: Vec<&str> = schemes.iter().map(|scheme| &**scheme).collect();
        all.join(", ")
    };
    findings
        .add(
            Place::module(name),
            format!("{name} is quantized in another way than the same matrix of other experts"),
        )
        .instead(text(usual), text(found))
        .help("give all experts of a block one scheme: runtimes make one tensor of them");
}
