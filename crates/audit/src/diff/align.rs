//! Which weight of one checkpoint is which of the other.

use std::collections::{BTreeMap, BTreeSet};

use safequant_container::{Checkpoint, FileFormat};
use safequant_schemes::{
    CONVENTIONS, Error, Headers, Model, Part, Pattern, Respelled, Respelling, Role, RowOrder,
    Spelling,
};

use super::figures::Weight;
use super::side::{Kind, Side};

/// A weight of both.
pub(super) struct Pair<'a> {
    pub(super) a: Side<'a>,
    pub(super) b: Side<'a>,
}

/// All weights and tensors.
pub(super) struct Aligned<'a> {
    /// Those of both, by A's name and then by B's.
    pub(super) pairs: Vec<Pair<'a>>,
    /// Those of one, by name.
    pub(super) only: [Vec<Weight>; 2],
    /// For people.
    pub(super) notes: Vec<String>,
}

/// Aligns by name; where one of the two respells whole models, by what it makes of the other one's names.
///
/// # Errors
/// A pattern that needs too many steps on a name.
pub(super) fn align<'a>(
    a: (&'a Checkpoint, &'a Model),
    b: (&'a Checkpoint, &'a Model),
    select: Option<&Pattern>,
) -> Result<Aligned<'a>, Error> {
    let mut notes = Vec::new();
    let mut matching = Matching {
        named: [Named::new(a), Named::new(b)],
        taken: [BTreeSet::new(), BTreeSet::new()],
        pairs: Vec::new(),
    };
    for (from, to) in [(A, B), (B, A)] {
        let (source, target) = if from == A { (a, b) } else { (b, a) };
        match respelling(source.0, target.0) {
            Ok(Some(respelling)) => matching.respelled(from, to, &*respelling, &mut notes),
            Ok(None) => {}
            Err(why) => notes.push(format!("names are compared as they stand: {why}")),
        }
    }
    matching.by_name();
    let mut only = [Vec::new(), Vec::new()];
    for (at, only) in only.iter_mut().enumerate() {
        for side in matching.left(at) {
            if is_selected(select, &side)? {
                only.push(side.weight());
            }
        }
    }
    let mut pairs = Vec::new();
    for pair in matching.pairs {
        if is_selected(select, &pair.a)? || is_selected(select, &pair.b)? {
            pairs.push(pair);
        }
    }
    pairs.sort_by(|x: &Pair<'_>, y| (x.a.name, x.b.name).cmp(&(y.a.name, y.b.name)));
    Ok(Aligned { pairs, only, notes })
}

/// How the name of a weight ends.
const WEIGHT: &str = ".weight";

/// Indices of the two checkpoints.
const A: usize = 0;
const B: usize = 1;

/// By its name or its module's.
fn is_selected(select: Option<&Pattern>, side: &Side<'_>) -> Result<bool, Error> {
    let Some(pattern) = select else {
        return Ok(true);
    };
    let module = side.quantized().map(|tensor| tensor.module.as_str());
    let of_module = module.map_or(Ok(false), |module| pattern.is_match(module))?;
    Ok(of_module || pattern.is_match(side.name)?)
}

/// How the target names what the source has, if the one respells models and the other does not.
fn respelling<'a>(
    source: &'a Checkpoint,
    target: &Checkpoint,
) -> Result<Option<Box<dyn Respelling + 'a>>, Error> {
    let format = |checkpoint: &Checkpoint| match checkpoint.gguf() {
        Some(_) => FileFormat::Gguf,
        None => FileFormat::Safetensors,
    };
    if format(source) == format(target) {
        return Ok(None);
    }
    let writers = CONVENTIONS.iter().filter_map(|c| c.writer());
    for writer in writers.filter(|writer| writer.file_format() == format(target)) {
        if let Some(found) = writer.respelling(Headers::new(source))? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// The tensors of a checkpoint by their dense names.
struct Named<'a> {
    checkpoint: &'a Checkpoint,
    kinds: BTreeMap<&'a str, Kind<'a>>,
    /// Weights that follow from others: compared where both have them, and never missed.
    derived: BTreeSet<&'a str>,
}

impl<'a> Named<'a> {
    fn new((checkpoint, model): (&'a Checkpoint, &'a Model)) -> Self {
        let mut kinds = BTreeMap::new();
        let stored = |name: &'a str| checkpoint.tensor(name);
        for name in &model.plain {
            kinds.extend(stored(name).map(|tensor| (name.as_str(), Kind::Plain(tensor))));
        }
        let companions = model.quantized.iter().flat_map(|tensor| {
            let parts = tensor.parts.iter();
            let is_one = |part: &&_| {
                matches!(
                    part,
                    Part {
                        role: Role::Auxiliary,
                        content: None,
                        ..
                    }
                )
            };
            parts.filter(is_one).map(|part| &part.name)
        });
        for name in model.orphans.iter().chain(companions) {
            kinds.extend(stored(name).map(|tensor| (name.as_str(), Kind::Companion(tensor))));
        }
        for tensor in model.quantized.iter().chain(&model.effective) {
            kinds.insert(tensor.weight.as_str(), Kind::Quantized(tensor));
        }
        let derived = model.effective.iter().map(|tensor| tensor.weight.as_str());
        Self {
            checkpoint,
            kinds,
            derived: derived.collect(),
        }
    }

    fn side(&self, name: &'a str, kind: Kind<'a>) -> Side<'a> {
        Side::new(self.checkpoint, name, kind)
    }
}

/// What has been matched so far.
struct Matching<'a> {
    named: [Named<'a>; 2],
    /// Names that have a counterpart, or need none.
    taken: [BTreeSet<&'a str>; 2],
    pairs: Vec<Pair<'a>>,
}

impl<'a> Matching<'a> {
    /// Matches what `to` respells.
    fn respelled(
        &mut self,
        from: usize,
        to: usize,
        respelling: &dyn Respelling,
        notes: &mut Vec<String>,
    ) {
        let mut left_out: BTreeMap<&str, u64> = BTreeMap::new();
        let names: Vec<_> = self.named[from]
            .kinds
            .iter()
            .map(|(n, k)| (*n, *k))
            .collect();
        for (name, kind) in names {
            if matches!(kind, Kind::Companion(_)) || self.named[from].derived.contains(name) {
                continue;
            }
            let mut source = self.named[from].side(name, kind);
            match respelling.tensor(name, &source.shape) {
                // A name that the convention has no word for stays what it is.
                Err(_) => {}
                Ok(Respelled::LeftOut(why)) => {
                    *left_out.entry(why).or_default() += 1;
                    self.taken[from].insert(name);
                }
                Ok(Respelled::As(spelling)) => {
                    let target = &self.named[to];
                    let Some((&other, &kind)) = target.kinds.get_key_value(spelling.name.as_str())
                    else {
                        continue;
                    };
                    let mut target = target.side(other, kind);
                    if respell(&mut source, &mut target, &spelling) {
                        self.taken[from].insert(name);
                        self.taken[to].insert(other);
                        let (a, b) = if from == A {
                            (source, target)
                        } else {
                            (target, source)
                        };
                        self.pairs.push(Pair { a, b });
                    }
                }
            }
        }
        for (why, n) in left_out {
            notes.push(format!(
                "{n} tensors have no counterpart and need none: {why}"
            ));
        }
        for extra in respelling.extra().unwrap_or_default() {
            if let Some((&name, _)) = self.named[to].kinds.get_key_value(extra.name.as_str()) {
                self.taken[to].insert(name);
            }
        }
    }

    /// Matches what has the same name; then what has it but for `.weight` at its end: banks of experts are parameters of their
    /// module in one toolchain and modules of their own in another.
    fn by_name(&mut self) {
        let [a, b] = &self.named;
        let stems = |name: &'a str| name.strip_suffix(WEIGHT).unwrap_or(name);
        let by_stem = b.kinds.keys().map(|&name| (stems(name), name));
        let by_stem: BTreeMap<&str, &str> = by_stem.collect();
        let exact = a.kinds.keys().map(|&name| (name, name));
        let similar = a.kinds.keys().filter_map(|&name| {
            let other = by_stem.get(stems(name))?;
            Some((name, *other))
        });
        for (name, other) in exact.chain(similar) {
            if self.taken[A].contains(name) || self.taken[B].contains(other) {
                continue;
            }
            let entries = (a.kinds.get_key_value(name), b.kinds.get_key_value(other));
            if let (Some((&name, &kind)), Some((&other, &of_other))) = entries {
                self.taken[A].insert(name);
                self.taken[B].insert(other);
                self.pairs.push(Pair {
                    a: a.side(name, kind),
                    b: b.side(other, of_other),
                });
            }
        }
    }

    /// What has no counterpart.
    fn left(&self, at: usize) -> impl Iterator<Item = Side<'a>> {
        let (named, taken) = (&self.named[at], &self.taken[at]);
        let left = named
            .kinds
            .iter()
            .filter(|(name, _)| !taken.contains(*name) && !named.derived.contains(*name));
        left.map(|(&name, &kind)| named.side(name, kind))
    }
}

/// Gives both sides what the spelling says; whether it can be followed.
fn respell(source: &mut Side<'_>, target: &mut Side<'_>, spelling: &Spelling) -> bool {
    if spelling.rows != RowOrder::Same {
        let ([n_rows] | [n_rows, _]) = *source.shape.as_slice() else {
            return false;
        };
        if spelling.rows.unit(n_rows).is_none() {
            return false;
        }
    }
    source.order = spelling.rows;
    source.values = spelling.values;
    let Some(place) = spelling.stack else {
        return true;
    };
    match target.shape.split_first() {
        Some((&count, member)) if count == place.count && place.index < count => {
            target.shape = member.to_vec();
            // A member may be a stack itself.
            let stack = target.shape.len().saturating_sub(2);
            let matrices = target.shape.iter().take(stack);
            let matrices = matrices.fold(1_u64, |n, &d| n.saturating_mul(d));
            target.first_matrix = place.index.saturating_mul(matrices);
            true
        }
        Some(_) | None => false,
    }
}
