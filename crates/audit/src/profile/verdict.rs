//! What a runtime says of a checkpoint as a whole.

use super::judge::{Objection, Topic, objections};
use super::{Effect, Profile, profile};
use crate::{Place, Subject};

/// Whether a runtime loads a checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// The runtime as it was asked for.
    pub runtime: String,
    /// Its profile; `None` if there is none of this name and version.
    pub profile: Option<&'static Profile>,
    /// Whether it loads and computes what the file means.
    pub loads: bool,
    /// Why not, and what else is to be known; the first modules in each reason stand for all.
    pub reasons: Vec<Reason>,
}

/// One thing that a runtime has against a checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Reason {
    /// What happens.
    pub effect: Effect,
    /// The sentence, for the first place.
    pub message: String,
    /// The first place.
    pub place: Place,
    /// How many places there are.
    pub count: u64,
    /// What the runtime takes.
    pub expected: String,
    /// What to do.
    pub help: String,
    /// Where the limit was read.
    pub source: &'static str,
}

/// What every runtime that was asked for says.
pub fn verdicts(subject: &Subject<'_>) -> Vec<Verdict> {
    let wanted = subject.wanted.runtimes.iter();
    wanted.map(|runtime| verdict(runtime, subject)).collect()
}

fn verdict(runtime: &str, subject: &Subject<'_>) -> Verdict {
    let profile = profile(runtime);
    let mut reasons: Vec<(Objection, Reason)> = Vec::new();
    if let Some(profile) = profile {
        for topic in Topic::ALL {
            for objection in objections(profile, subject, topic) {
                let same = |(first, _): &&mut (Objection, Reason)| {
                    std::ptr::eq(first.line, objection.line) && first.what == objection.what
                };
                if let Some((_, reason)) = reasons.iter_mut().find(same) {
                    reason.count += 1;
                    continue;
                }
                let reason = Reason {
                    effect: objection.line.effect,
                    message: objection.message(profile),
                    place: objection.place.clone(),
                    count: 1,
                    expected: objection.expected.clone(),
                    help: objection.help(),
                    source: &objection.line.source,
                };
                reasons.push((objection, reason));
            }
        }
    }
    let reasons: Vec<Reason> = reasons.into_iter().map(|(_, reason)| reason).collect();
    let stumbles = reasons
        .iter()
        .all(|reason| reason.effect == Effect::Stumbles);
    Verdict {
        runtime: runtime.to_owned(),
        profile,
        loads: profile.is_some() && stumbles,
        reasons,
    }
}
