//! Audits of what real tools wrote: clean checkpoints, and those that were spoilt on purpose.

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "what a test spoils is one kind of thing; all others are passed over"
)]
mod diff;
mod draft;
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "what a fault spoils is one kind of thing; all others are passed over"
)]
mod faults;
mod reading;
mod repair;

use std::collections::{BTreeMap, BTreeSet};

use safequant::audit::{Depth, Finding, Options, Severity, Wanted, all_rules};

use self::draft::Draft;
use self::faults::{Fault, Planted, Random, faults};
use super::interop::fixture::{self, Fixture};

fn options(depth: Depth) -> Options {
    Options {
        depth,
        rules: all_rules().collect(),
    }
}

/// No false alarm: nobody's own output has an error.
#[test]
fn clean_checkpoints_have_no_errors() {
    let fixtures = fixture::all();
    assert!(fixtures.len() > 80, "{} fixtures", fixtures.len());
    let mut alarms = Vec::new();
    for fixture in &fixtures {
        let draft = Draft::of(fixture);
        for depth in Depth::ALL {
            let (findings, unclaimed) = draft.audit(&Wanted::default(), &options(depth));
            for error in findings
                .iter()
                .filter(|finding| finding.severity == Severity::Error)
            {
                alarms.push(format!("{} {depth:?}: {error:?}", fixture.name));
            }
            for error in &unclaimed {
                alarms.push(format!("{} {depth:?}: {error}", fixture.name));
            }
        }
    }
    println!(
        "{} clean checkpoints at {} depths: {} false errors",
        fixtures.len(),
        Depth::ALL.len(),
        alarms.len()
    );
    assert!(alarms.is_empty(), "{}", alarms.join("\n"));
}

/// Every rule has a fault, and every fault a rule.
#[test]
fn every_rule_has_a_fault() {
    let known: BTreeSet<&str> = all_rules().map(|rule| rule.id).collect();
    let planted: BTreeSet<&str> = faults().map(|fault| fault.rule).collect();
    assert_eq!(known, planted);
    let names: BTreeSet<&str> = faults().map(|fault| fault.name).collect();
    assert_eq!(names.len(), faults().count(), "two faults have one name");
}

/// How often faults were planted and found.
#[derive(Default)]
struct Recall {
    planted: usize,
    found: usize,
    missed: Vec<String>,
}

/// Plants every fault in `most` fixtures of each (all: `SAFEQUANT_MUTATE=all`; other places: `SAFEQUANT_MUTATE_SEED`) and looks for what the rule says there. The
/// clean case of a rule is the same checkpoint before: what it said there already does not count.
#[test]
fn planted_faults_are_found() {
    let all = std::env::var("SAFEQUANT_MUTATE").is_ok_and(|value| value == "all");
    let most = if all { usize::MAX } else { 3 };
    let seed = std::env::var("SAFEQUANT_MUTATE_SEED");
    let seed = seed.map_or(0, |seed| seed.parse::<u64>().unwrap());
    let first = seed * 1_000_003 + 1;
    let fixtures = fixture::all();
    let mut before = BTreeMap::new();
    let mut table = BTreeMap::new();
    for (seed, fault) in (first..).zip(faults()) {
        let recall = table
            .entry((fault.rule, fault.name))
            .or_insert_with(Recall::default);
        let mut random = Random(seed);
        let mut order: Vec<&Fixture> = fixtures.iter().collect();
        while let (Some(at), true) = (order.len().checked_sub(1), recall.planted < most) {
            let fixture = order.swap_remove(random.below(at + 1));
            try_one(fault, fixture, &mut random, &mut before, recall);
        }
    }
    let (planted, found): (usize, usize) = table.values().fold((0, 0), |(p, f), recall| {
        (p + recall.planted, f + recall.found)
    });
    for ((rule, name), recall) in &table {
        println!("{rule} {name}: {} of {}", recall.found, recall.planted);
    }
    let percent = 100 * found / planted.max(1);
    println!(
        "{} faults, planted {planted} times, found {found}: {percent} %",
        table.len()
    );
    let silent: Vec<_> = table
        .iter()
        .filter(|(_, recall)| recall.found == 0)
        .collect();
    let silent: Vec<_> = silent.iter().map(|(name, _)| name).collect();
    assert!(silent.is_empty(), "never found: {silent:?}");
    let missed: Vec<_> = table.values().flat_map(|recall| &recall.missed).collect();
    assert!(found * 100 >= planted * 98, "missed: {missed:#?}");
}

/// What a checkpoint's rules say before anything is done to it, by fixture and what is wanted.
type Before = BTreeMap<String, Vec<Finding>>;

fn try_one(
    fault: &Fault,
    fixture: &Fixture,
    random: &mut Random,
    before: &mut Before,
    recall: &mut Recall,
) {
    let mut draft = Draft::of(fixture);
    let wanted = (fault.wanted)();
    let options = options(Depth::Full);
    let clean = before
        .entry(format!("{} {wanted:?}", fixture.name))
        .or_insert_with(|| draft.audit(&wanted, &options).0)
        .clone();
    let Some(planted) = (fault.plant)(&mut draft, random) else {
        return;
    };
    recall.planted += 1;
    let (findings, unclaimed) = draft.audit(&wanted, &options);
    if is_found(fault, &planted, &findings, &clean) {
        recall.found += 1;
    } else {
        let said: Vec<_> = findings.iter().map(|f| (f.rule, &f.place)).collect();
        let (name, what) = (fault.name, &planted.0);
        recall.missed.push(format!(
            "{name} in {}, {what}: {said:?} {:?}",
            fixture.name, unclaimed
        ));
    }
}

fn is_found(fault: &Fault, planted: &Planted, said: &[Finding], clean: &[Finding]) -> bool {
    let names = |finding: &Finding| {
        let place = &finding.place;
        let fields = [&place.file, &place.module, &place.tensor];
        planted.0.is_empty()
            || fields.into_iter().flatten().any(|name| *name == planted.0)
            || finding.message.contains(&planted.0)
    };
    let mut of_rule = said.iter().filter(|finding| finding.rule == fault.rule);
    of_rule.any(|finding| names(finding) && !clean.contains(finding))
}
