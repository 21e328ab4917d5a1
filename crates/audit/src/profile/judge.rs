//! A checkpoint against a profile.

use std::collections::BTreeMap;

use safequant_schemes::{QuantizedTensor, Role, Settings};
use serde_json::Value;

use super::{Answer, ConfigLimit, Effect, Limit, Line, Profile, traits};
use crate::{ModuleName, Part, Place, Severity, Subject};

/// What a line is about: one rule of the family RT for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Topic {
    /// The convention as such.
    Convention,
    /// Bits and kinds of codes.
    Codes,
    /// What shares a scale.
    Groups,
    /// Symmetric or not.
    ZeroPoints,
    /// Dtypes of scales and of the model.
    Dtype,
    /// Multiples of features.
    Shape,
    /// Spread groups.
    ActivationOrder,
    /// Modules that must be dense.
    DenseParts,
    /// Layout of experts.
    Experts,
    /// Names of parts.
    Names,
    /// Settings.
    Config,
    /// Files.
    Files,
}

impl Topic {
    /// All of them, in the order of the rules.
    pub(crate) const ALL: [Topic; 12] = [
        Topic::Convention,
        Topic::Codes,
        Topic::Groups,
        Topic::ZeroPoints,
        Topic::Dtype,
        Topic::Shape,
        Topic::ActivationOrder,
        Topic::DenseParts,
        Topic::Experts,
        Topic::Names,
        Topic::Config,
        Topic::Files,
    ];

    fn of(limit: &Limit) -> Self {
        match limit {
            Limit::Loads(_) => Topic::Convention,
            Limit::Codes(_) | Limit::Sparse(_) | Limit::Packings(_) => Topic::Codes,
            Limit::Granularities(_) | Limit::GroupSizes(_) | Limit::BlockSizes(_) => Topic::Groups,
            Limit::ZeroPoints(_) => Topic::ZeroPoints,
            Limit::ScaleDtypes(_) | Limit::ModelDtypes(_) | Limit::Directions(_) => Topic::Dtype,
            Limit::OutMultiple(_) | Limit::InMultiple(_) => Topic::Shape,
            Limit::ActivationOrder(_) => Topic::ActivationOrder,
            Limit::DenseParts(_) => Topic::DenseParts,
            Limit::Experts(_) => Topic::Experts,
            Limit::Names(_) => Topic::Names,
            Limit::Config(_) | Limit::Documents(_) => Topic::Config,
            Limit::Files(_) => Topic::Files,
        }
    }
}

/// Something that a runtime does not take.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Objection {
    /// The line that says so.
    pub(crate) line: &'static Line,
    /// Where.
    pub(crate) place: Place,
    /// What is the matter, without runtime and place.
    pub(crate) what: String,
    /// What the runtime takes.
    pub(crate) expected: String,
    /// What there is.
    pub(crate) found: String,
}

impl Objection {
    /// How bad it is.
    pub(crate) fn severity(&self) -> Severity {
        match self.line.effect {
            Effect::Refuses | Effect::Wrong => Severity::Error,
            Effect::Stumbles => Severity::Warning,
        }
    }

    /// The whole sentence.
    pub(crate) fn message(&self, profile: &Profile) -> String {
        let (name, what) = (profile.name(), &self.what);
        let verb = match self.line.effect {
            Effect::Refuses => "does not load",
            Effect::Wrong => "loads, but misreads",
            Effect::Stumbles => "stumbles over",
        };
        match self.line.says.as_str() {
            "" => format!("{name} {verb} {what}"),
            says => format!("{name} {verb} {what}: `{says}`"),
        }
    }

    /// What to do.
    pub(crate) fn help(&self) -> String {
        if !self.line.help.is_empty() {
            return self.line.help.clone();
        }
        let help = match Topic::of(&self.line.limit) {
            Topic::Convention => {
                "convert to a convention that it takes: `safequant convert SRC -o DST --to CONVENTION`"
            }
            Topic::Codes | Topic::Groups | Topic::ZeroPoints | Topic::Shape => {
                "quantize again within what it takes, or leave this module dense: `safequant convert SRC -o DST --to CONVENTION --ignore MODULE`"
            }
            Topic::DenseParts => {
                "leave it dense: `safequant convert SRC -o DST --to CONVENTION --ignore MODULE`"
            }
            Topic::ActivationOrder => {
                "quantize again without activation order, or with the static kind whose groups lie together"
            }
            Topic::Dtype => "write it in a dtype that the runtime takes",
            Topic::Experts | Topic::Names => {
                "write the checkpoint in the convention's usual spelling: `safequant convert SRC -o DST --to CONVENTION`"
            }
            Topic::Config => {
                "write the settings anew: `safequant convert SRC -o DST --to CONVENTION`"
            }
            Topic::Files => "write the files anew: `safequant convert SRC -o DST --to CONVENTION`",
        };
        help.to_owned()
    }
}

/// What a profile has against a checkpoint, under one topic. Modules of a convention that is not taken at all are not looked at
/// further.
pub(crate) fn objections(
    profile: &'static Profile,
    subject: &Subject<'_>,
    topic: Topic,
) -> Vec<Objection> {
    let lines = profile.lines.iter();
    let lines: Vec<&'static Line> = lines.filter(|l| Topic::of(&l.limit) == topic).collect();
    let mut found = Vec::new();
    let conventions = present(subject);
    for line in &lines {
        of_checkpoint(profile, line, subject, &conventions, &mut found);
    }
    if lines.iter().any(|line| is_about_weights(&line.limit)) {
        let fused = FusedRows::new(
            subject
                .model
                .quantized
                .iter()
                .map(|t| (t, t.out_features())),
        );
        for tensor in &subject.model.quantized {
            if !is_taken(profile, tensor.convention) {
                continue;
            }
            let lines = lines.iter().filter(|line| holds_for(line, tensor));
            found.extend(lines.flat_map(|line| of_weight(line, subject, &fused, tensor)));
        }
    }
    found
}

/// Output features of what runtimes make one matrix of: kernels see the sum.
pub(crate) struct FusedRows<'a> {
    sums: BTreeMap<(&'a str, Part), u64>,
}

impl<'a> FusedRows<'a> {
    /// From the output features of each weight.
    pub(crate) fn new(rows: impl Iterator<Item = (&'a QuantizedTensor, u64)>) -> Self {
        let mut sums = BTreeMap::new();
        for (tensor, rows) in rows {
            if let Some(key) = Self::key(tensor) {
                let sum: &mut u64 = sums.entry(key).or_default();
                *sum = sum.saturating_add(rows);
            }
        }
        Self { sums }
    }

    fn key(tensor: &QuantizedTensor) -> Option<(&str, Part)> {
        let name = ModuleName::parse(&tensor.module);
        let first = name.fused_with().first()?;
        Some((name.parent, *first))
    }

    /// The output features of the matrix that a weight becomes part of.
    pub(crate) fn rows(&self, tensor: &QuantizedTensor) -> u64 {
        self.rows_or(tensor, tensor.out_features())
    }

    /// The same, with `alone` for a weight that stays alone.
    pub(crate) fn rows_or(&self, tensor: &QuantizedTensor, alone: u64) -> u64 {
        let sum = Self::key(tensor).and_then(|key| self.sums.get(&key));
        sum.copied().unwrap_or(alone)
    }
}

/// The multiples of output and input features that a profile asks for, on each rank.
pub(crate) fn multiples(
    profile: &'static Profile,
    tensor: &QuantizedTensor,
) -> impl Iterator<Item = &'static Line> {
    let lines = profile.lines.iter();
    lines.filter(move |line| {
        matches!(line.limit, Limit::OutMultiple(_) | Limit::InMultiple(_))
            && holds_for(line, tensor)
    })
}

/// Whether the runtime takes this convention.
pub(crate) fn is_taken(profile: &Profile, convention: &str) -> bool {
    let line = profile.convention(convention);
    line.is_none_or(|line| line.limit == Limit::Loads(Answer::Yes))
}

/// How many weights of each convention there are, and the first of them.
type Present<'a> = BTreeMap<&'static str, (u64, &'a QuantizedTensor)>;

fn present<'a>(subject: &'a Subject<'_>) -> Present<'a> {
    let mut conventions = Present::new();
    for tensor in &subject.model.quantized {
        let entry = conventions.entry(tensor.convention).or_insert((0, tensor));
        entry.0 += 1;
    }
    conventions
}

fn is_about_weights(limit: &Limit) -> bool {
    match limit {
        Limit::Codes(_)
        | Limit::Granularities(_)
        | Limit::GroupSizes(_)
        | Limit::BlockSizes(_)
        | Limit::ZeroPoints(_)
        | Limit::ScaleDtypes(_)
        | Limit::OutMultiple(_)
        | Limit::InMultiple(_)
        | Limit::Sparse(_)
        | Limit::Packings(_)
        | Limit::Directions(_)
        | Limit::DenseParts(_)
        | Limit::ActivationOrder(_)
        | Limit::Experts(_)
        | Limit::Names(_) => true,
        Limit::Loads(_)
        | Limit::ModelDtypes(_)
        | Limit::Config(_)
        | Limit::Documents(_)
        | Limit::Files(_) => false,
    }
}

fn holds_for(line: &Line, tensor: &QuantizedTensor) -> bool {
    let is_named = |id: &String| id == tensor.convention;
    (line.conventions.is_empty() || line.conventions.iter().any(is_named))
        && (line.codes.is_empty() || line.codes.contains(&traits::codes(tensor)))
}

/// The lines that are about the checkpoint as a whole.
fn of_checkpoint(
    profile: &Profile,
    line: &'static Line,
    subject: &Subject<'_>,
    conventions: &Present<'_>,
    found: &mut Vec<Objection>,
) {
    let is_named =
        |id: &str| line.conventions.is_empty() || line.conventions.iter().any(|n| n == id);
    let mut named = conventions.iter().filter(|(id, _)| is_named(id)).peekable();
    if named.peek().is_none() && !line.conventions.is_empty() {
        return;
    }
    let file = || {
        subject
            .checkpoint
            .shards()
            .first()
            .map(|shard| &*shard.name)
    };
    let config = || Place::file("config.json");
    let beyond: Vec<(Place, Beyond)> = match &line.limit {
        Limit::Loads(Answer::No) => {
            let place = || place_of_settings(subject);
            let refused = named.map(|(id, (n, first))| {
                let what = format!("{id} ({n} modules, {} the first)", first.module);
                (place(), (what, taken(profile), (*id).to_owned()))
            });
            refused.collect()
        }
        Limit::Files(kinds) => {
            let kind = traits::files(subject);
            let is_known = kinds.iter().any(|known| known == kind);
            let expected: Vec<_> = kinds.iter().map(|kind| files_in_words(kind)).collect();
            let what = format!("{} of weights", files_in_words(kind));
            let is = files_in_words(kind).to_owned();
            let place = file().map_or_else(Place::default, Place::file);
            let beyond = (place, (what, expected.join(", or "), is));
            if is_known { Vec::new() } else { vec![beyond] }
        }
        Limit::ModelDtypes(dtypes) => {
            let dtype = subject.headers.model_dtype().ok().flatten();
            let dtype = dtype.map(|float| format!("{float:?}").to_ascii_uppercase());
            let unknown = dtype.filter(|dtype| !dtypes.contains(dtype));
            let what = |dtype: &String| format!("a model of {dtype}");
            let beyond = unknown.map(|d| (config(), (what(&d), dtypes.join(" or "), d)));
            beyond.into_iter().collect()
        }
        Limit::Config(limit) => {
            let all = settings_beyond(limit, subject).into_iter();
            all.map(|beyond| (place_of_settings(subject), beyond))
                .collect()
        }
        Limit::Documents(documents) => {
            let beyond = documents_beyond(documents, subject);
            beyond
                .map(|beyond| (config(), beyond))
                .into_iter()
                .collect()
        }
        Limit::Loads(Answer::Yes)
        | Limit::Codes(_)
        | Limit::Granularities(_)
        | Limit::GroupSizes(_)
        | Limit::BlockSizes(_)
        | Limit::ZeroPoints(_)
        | Limit::ScaleDtypes(_)
        | Limit::OutMultiple(_)
        | Limit::InMultiple(_)
        | Limit::Sparse(_)
        | Limit::Packings(_)
        | Limit::Directions(_)
        | Limit::DenseParts(_)
        | Limit::ActivationOrder(_)
        | Limit::Experts(_)
        | Limit::Names(_) => Vec::new(),
    };
    for (place, (what, expected, is)) in beyond {
        found.push(Objection {
            line,
            place,
            what,
            expected,
            found: is,
        });
    }
}

/// Settings that stand in none of these documents.
fn documents_beyond(documents: &[String], subject: &Subject<'_>) -> Option<Beyond> {
    let places = subject.settings.iter().map(|s| document(&s.place));
    let places: Vec<&str> = places.collect();
    if places
        .iter()
        .any(|name| documents.iter().any(|d| d == name))
    {
        return None;
    }
    let is = match places.as_slice() {
        [] => "no settings".to_owned(),
        names => names.join(", "),
    };
    let what = "a checkpoint whose settings stand elsewhere".to_owned();
    Some((what, documents.join(" or "), is))
}

/// The conventions that a runtime takes.
fn taken(profile: &Profile) -> String {
    let lines = profile.lines.iter();
    let taken = lines.filter(|line| line.limit == Limit::Loads(Answer::Yes));
    let ids: Vec<&str> = taken
        .flat_map(|line| line.conventions.iter().map(String::as_str))
        .collect();
    match ids.as_slice() {
        [] => "dense weights".to_owned(),
        ids => ids.join(", "),
    }
}

fn files_in_words(kind: &str) -> &'static str {
    match kind {
        "gguf" => "a GGUF file",
        "indexed" => "several safetensors files with an index",
        "unindexed" => "several safetensors files without an index",
        _ => "one safetensors file",
    }
}

/// The document that settings stand in.
fn document(place: &str) -> &str {
    place.split(':').next().unwrap_or(place)
}

fn place_of_settings(subject: &Subject<'_>) -> Place {
    let settings = subject.settings.first().map(|s| document(&s.place));
    let file = subject.checkpoint.shards().first().map(|s| &*s.name);
    settings.or(file).map_or_else(Place::default, Place::file)
}

/// What settings say that is refused, or do not say that is needed.
fn settings_beyond(limit: &ConfigLimit, subject: &Subject<'_>) -> Vec<Beyond> {
    let key = &limit.key;
    // ModelOpt nests its settings once more in a document of its own.
    let value = |s: &'_ Settings| {
        let inner = || s.map.get("quantization")?.get(key);
        s.map.get(key).or_else(inner).cloned()
    };
    let values: Vec<Value> = subject.settings.iter().filter_map(value).collect();
    let mut found = Vec::new();
    for value in values.iter().filter(|value| limit.refuses.contains(value)) {
        let refuses: Vec<_> = limit.refuses.iter().map(Value::to_string).collect();
        found.push((
            format!("{key} = {value}"),
            format!("{key} not {}", refuses.join(" or ")),
            value.to_string(),
        ));
    }
    if limit.required == Answer::Yes && values.is_empty() {
        let what = format!("settings without {key}");
        found.push((what, key.clone(), "no such key".to_owned()));
    }
    found
}

/// What a weight has that a limit does not list: the sentence, what is listed, and what there is.
type Beyond = (String, String, String);

/// The lines that are about one weight.
fn of_weight(
    line: &'static Line,
    subject: &Subject<'_>,
    fused: &FusedRows<'_>,
    tensor: &QuantizedTensor,
) -> Vec<Objection> {
    let beyond = match &line.limit {
        Limit::Codes(_)
        | Limit::Granularities(_)
        | Limit::GroupSizes(_)
        | Limit::BlockSizes(_)
        | Limit::ZeroPoints(_)
        | Limit::ScaleDtypes(_) => beyond_scheme(&line.limit, subject, tensor),
        Limit::Sparse(answer) => (*answer == Answer::No && traits::is_sparse(tensor)).then(|| {
            let what = format!("{} that is stored sparse", tensor.convention);
            (what, "every code".to_owned(), "some".to_owned())
        }),
        Limit::Packings(known) => {
            let is = traits::packing(tensor);
            let what = || format!("{} with codes packed otherwise", traits::codes(tensor));
            let is_known = known.iter().any(|k| k == is);
            (!is_known).then(|| (what(), known.join(" or "), is.to_owned()))
        }
        Limit::Directions(known) => {
            let is = traits::direction(tensor);
            let what = || format!("scales that {is}");
            let is_known = known.iter().any(|k| k == is);
            (!is_known).then(|| (what(), known.join(" or "), is.to_owned()))
        }
        Limit::OutMultiple(n) => multiple("output", fused.rows(tensor), *n),
        Limit::InMultiple(n) => multiple("input", tensor.in_features(), *n),
        Limit::DenseParts(parts) => {
            let part = ModuleName::parse(&tensor.module).part;
            let what = || format!("a quantized {}", part.name());
            let is_dense = parts.contains(&part);
            is_dense.then(|| (what(), "a dense weight".to_owned(), traits::codes(tensor)))
        }
        Limit::ActivationOrder(answer) => {
            let is_ordered = traits::is_activation_ordered(subject, tensor);
            (*answer == Answer::No && is_ordered).then(|| {
                let what = format!("{} with activation order", tensor.convention);
                let found = "a group index".to_owned();
                (what, "groups that lie together".to_owned(), found)
            })
        }
        Limit::Experts(known) => experts(known, tensor),
        Limit::Names(known) => return names(line, known, tensor),
        Limit::Loads(_)
        | Limit::ModelDtypes(_)
        | Limit::Config(_)
        | Limit::Documents(_)
        | Limit::Files(_) => None,
    };
    let objection = |(what, expected, found): Beyond| Objection {
        line,
        place: Place::module(&*tensor.module),
        what,
        expected,
        found,
    };
    beyond.into_iter().map(objection).collect()
}

/// Codes, scales and zero points.
fn beyond_scheme(limit: &Limit, subject: &Subject<'_>, tensor: &QuantizedTensor) -> Option<Beyond> {
    let convention = tensor.convention;
    let lacks = |known: &[String], is: &str| !known.iter().any(|k| k == is);
    if let Limit::Codes(known) = limit {
        let codes = traits::codes(tensor);
        let what = format!("{codes} codes of {convention}");
        return lacks(known, &codes).then(|| (what, known.join(", "), codes));
    }
    if let Limit::Granularities(known) = limit {
        let is = traits::granularity(tensor);
        let what = || format!("{convention} with scales per {is}");
        let expected = || format!("scales per {}", known.join(" or "));
        return lacks(known, is).then(|| (what(), expected(), is.to_owned()));
    }
    if let Limit::GroupSizes(known) = limit {
        let size = traits::group_size(tensor).filter(|size| !known.contains(size))?;
        let what = format!("{convention} in groups of {size}");
        return Some((what, traits::list(known), size.to_string()));
    }
    if let Limit::BlockSizes(known) = limit {
        let size = traits::block_size(tensor).filter(|size| !known.contains(size))?;
        let text = |[rows, columns]: [u64; 2]| format!("{rows} x {columns}");
        let known: Vec<_> = known.iter().map(|size| text(*size)).collect();
        let what = format!("{convention} in blocks of {}", text(size));
        return Some((what, known.join(", "), text(size)));
    }
    if let Limit::ZeroPoints(known) = limit {
        let is = traits::zero_points(subject, tensor);
        let what = match is {
            "symmetric" => format!("{convention} without zero points"),
            _ => format!("{convention} with zero points ({is})"),
        };
        return lacks(known, is).then(|| (what, known.join(" or "), is.to_owned()));
    }
    let (Limit::ScaleDtypes(known), Some(part)) = (limit, tensor.part(Role::Scale)) else {
        return None;
    };
    let dtype = part.dtype.name();
    let what = || format!("scales of {dtype} ({})", part.name);
    lacks(known, dtype).then(|| (what(), known.join(" or "), dtype.to_owned()))
}

fn experts(known: &[String], tensor: &QuantizedTensor) -> Option<Beyond> {
    let words = |layout: &str| match layout {
        "stack" => "one stack for all experts",
        _ => "a module for each expert",
    };
    let layout = traits::experts(tensor).filter(|layout| !known.iter().any(|k| k == layout))?;
    let known: Vec<_> = known.iter().map(|k| words(k)).collect();
    let what = format!("{} experts as {}", tensor.convention, words(layout));
    Some((what, known.join(" or "), words(layout).to_owned()))
}

fn multiple(axis: &str, features: u64, n: u64) -> Option<Beyond> {
    let what = || format!("{features} {axis} features");
    let expected = || format!("a multiple of {n}");
    (!features.is_multiple_of(n)).then(|| (what(), expected(), features.to_string()))
}

/// Parts whose names the runtime does not look for.
fn names(line: &'static Line, known: &[String], tensor: &QuantizedTensor) -> Vec<Objection> {
    let mut found = Vec::new();
    for part in &tensor.parts {
        let counts = match part.role {
            Role::Scale
            | Role::ZeroPoint
            | Role::Offset
            | Role::SuperScale
            | Role::ScaleTable
            | Role::Codebook
            | Role::ColumnFactor
            | Role::LowRankUp
            | Role::LowRankDown
            | Role::Mask
            | Role::RowStart
            | Role::GroupIndex => true,
            Role::Codes | Role::Shape | Role::Auxiliary => false,
        };
        let ending = traits::ending(tensor, &part.name);
        if counts && !known.iter().any(|k| ending.ends_with(k.as_str())) {
            found.push(Objection {
                line,
                place: Place::module(&*tensor.module).tensor(&*part.name),
                what: format!("a part called {ending}"),
                expected: known.join(", "),
                found: ending.to_owned(),
            });
        }
    }
    found
}
