//! Runtime profiles: what a runtime takes, as data.
//!
//! One file in `profiles/` for each runtime and range of versions. A profile is a list of lines; each line states one limit for
//! some conventions, says what the runtime does beyond it, and names the public source where that was read. Rules of the family
//! RT and [`verdicts`] interpret the lines; nothing about a runtime stands in code.

mod judge;
mod load;
mod traits;
mod verdict;

use std::sync::LazyLock;

use crate::Part;

pub(crate) use judge::{FusedRows, Topic, is_taken, multiples, objections};
pub use load::{ProfileError, load};
pub(crate) use traits::is_activation_ordered;
pub use verdict::{Reason, Verdict, verdicts};

/// The files, by name. A later range of versions of a runtime stands before an earlier one.
const FILES: &[(&str, &str)] = &[
    ("vllm.json", include_str!("../../profiles/vllm.json")),
    ("sglang.json", include_str!("../../profiles/sglang.json")),
    (
        "transformers.json",
        include_str!("../../profiles/transformers.json"),
    ),
    (
        "tensorrt-llm.json",
        include_str!("../../profiles/tensorrt-llm.json"),
    ),
    (
        "llama.cpp.json",
        include_str!("../../profiles/llama.cpp.json"),
    ),
    ("mlx-lm.json", include_str!("../../profiles/mlx-lm.json")),
    (
        "mistral.rs.json",
        include_str!("../../profiles/mistral.rs.json"),
    ),
    ("candle.json", include_str!("../../profiles/candle.json")),
];

static PROFILES: LazyLock<Vec<Profile>> = LazyLock::new(|| {
    let loaded = FILES.iter().map(|(name, text)| load(name, text));
    loaded
        .collect::<Result<_, _>>()
        .expect("the profiles are part of this crate, and a test loads each")
});

/// Every profile.
pub fn profiles() -> &'static [Profile] {
    &PROFILES
}

/// The profile of a runtime by its name, or by name and version (`vllm@0.33.1`). Without a version the newest is meant.
pub fn profile(wanted: &str) -> Option<&'static Profile> {
    let (name, version) = match wanted.split_once('@') {
        Some((name, version)) => (name, Some(version)),
        None => (wanted, None),
    };
    let of_runtime = |profile: &&Profile| {
        profile.runtime.eq_ignore_ascii_case(name) || profile.title.eq_ignore_ascii_case(name)
    };
    let mut found = PROFILES.iter().filter(of_runtime);
    match version {
        Some(version) => found.find(|profile| profile.versions.holds(version)),
        None => found.next(),
    }
}

/// What a range of versions of one runtime takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    /// As users name it in options: `vllm`.
    pub runtime: String,
    /// As it names itself: `vLLM`.
    pub title: String,
    /// The versions that the lines hold for.
    pub versions: Versions,
    /// Every limit.
    pub lines: Vec<Line>,
}

/// A range of versions.
#[derive(Clone, Debug, PartialEq)]
pub struct Versions {
    /// The one whose source was read: the first that the profile holds for.
    pub from: String,
    /// The first that it no longer holds for; `None` where none is known.
    pub before: Option<String>,
}

impl Versions {
    /// Whether a version lies in the range. Versions are compared number by number.
    pub fn holds(&self, version: &str) -> bool {
        let numbers = |text: &str| -> Vec<u64> {
            let words = text.split(|c: char| !c.is_ascii_digit());
            words.filter_map(|word| word.parse().ok()).collect()
        };
        let version = numbers(version);
        let is_before = |before: &String| version < numbers(before);
        version >= numbers(&self.from) && self.before.as_ref().is_none_or(is_before)
    }
}

impl std::fmt::Display for Versions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.before {
            Some(before) => write!(f, "{} to before {before}", self.from),
            None => write!(f, "{} and later", self.from),
        }
    }
}

impl Profile {
    /// Title and versions, for messages.
    pub fn name(&self) -> String {
        format!("{} {}", self.title, self.versions.from)
    }

    /// What the profile says of a whole convention.
    pub fn convention(&self, id: &str) -> Option<&Line> {
        self.lines.iter().find(|line| {
            matches!(line.limit, Limit::Loads(_)) && line.conventions.iter().any(|c| c == id)
        })
    }
}

/// One limit.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// The conventions it holds for; empty: all.
    pub conventions: Vec<String>,
    /// The codes it holds for (`int4`, `e4m3`, `Q4_K`); empty: all.
    pub codes: Vec<String>,
    /// What is taken.
    pub limit: Limit,
    /// What happens beyond it.
    pub effect: Effect,
    /// What the runtime says then, in its own words; empty where it says nothing.
    pub says: String,
    /// What to do about it; empty where the rule knows.
    pub help: String,
    /// Where this was read: `owner/repository@revision:path`, or a thread `owner/repository#number`.
    pub source: String,
}

/// What happens beyond a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// It does not load.
    Refuses,
    /// It loads, and computes with other numbers than the file means.
    Wrong,
    /// It loads, but slowly, by another way, or not everywhere.
    Stumbles,
}

impl Effect {
    /// All of them.
    pub const ALL: [Effect; 3] = [Effect::Refuses, Effect::Wrong, Effect::Stumbles];

    /// As profiles spell it.
    pub fn name(self) -> &'static str {
        match self {
            Effect::Refuses => "refuses",
            Effect::Wrong => "wrong",
            Effect::Stumbles => "stumbles",
        }
    }
}

/// What is taken. Names are those that the loader lists.
#[derive(Clone, Debug, PartialEq)]
pub enum Limit {
    /// The convention as such.
    Loads(Answer),
    /// These codes.
    Codes(Vec<String>),
    /// Scales per one of these.
    Granularities(Vec<String>),
    /// Groups of one of these sizes, where there are groups.
    GroupSizes(Vec<u64>),
    /// Blocks of one of these sizes, where there are blocks.
    BlockSizes(Vec<[u64; 2]>),
    /// Zero points of these kinds.
    ZeroPoints(Vec<String>),
    /// Scales stored in one of these dtypes.
    ScaleDtypes(Vec<String>),
    /// Models of one of these dtypes (`dtype` of `config.json`).
    ModelDtypes(Vec<String>),
    /// Output features that are a multiple of this, on each rank. Of weights that runtimes fuse (q, k, v; gate, up) the sum counts.
    OutMultiple(u64),
    /// Input features that are a multiple of this, on each rank.
    InMultiple(u64),
    /// Weights that are stored sparse, or not.
    Sparse(Answer),
    /// Codes packed like this.
    Packings(Vec<String>),
    /// Scales that multiply or divide.
    Directions(Vec<String>),
    /// Every module but these, which must be dense.
    DenseParts(Vec<Part>),
    /// Activation order, or none.
    ActivationOrder(Answer),
    /// Experts laid out like this.
    Experts(Vec<String>),
    /// Scales, zero points and the like whose names end like this.
    Names(Vec<String>),
    /// A key of the settings.
    Config(ConfigLimit),
    /// Settings that stand in one of these documents.
    Documents(Vec<String>),
    /// Weights in such files.
    Files(Vec<String>),
}

impl Limit {
    /// Scales per one of these.
    pub const GRANULARITIES: [&'static str; 6] =
        ["tensor", "channel", "group", "block", "flat", "strided"];
    /// Kinds of zero points.
    pub const ZERO_POINTS: [&'static str; 3] = ["symmetric", "stored", "float"];
    /// Packings, where it matters: codes may straddle words, or not.
    pub const PACKINGS: [&'static str; 3] = ["straddling", "whole", "other"];
    /// What a scale does.
    pub const DIRECTIONS: [&'static str; 2] = ["multiply", "divide"];
    /// Layouts of experts: a module for each, or one for all.
    pub const EXPERTS: [&'static str; 2] = ["each", "stack"];
    /// Kinds of files: one safetensors file, several with an index, several without, GGUF.
    pub const FILES: [&'static str; 4] = ["single", "indexed", "unindexed", "gguf"];
}

/// Yes or no.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Answer {
    /// It is taken.
    Yes,
    /// It is not.
    No,
}

/// What is asked of a key of the settings (`quantization_config` and the like).
#[derive(Clone, Debug, PartialEq)]
pub struct ConfigLimit {
    /// The key.
    pub key: String,
    /// Values that are refused.
    pub refuses: Vec<serde_json::Value>,
    /// Whether it must be there.
    pub required: Answer,
}

#[cfg(test)]
mod tests;
