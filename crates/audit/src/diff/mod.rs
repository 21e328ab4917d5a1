//! What two checkpoints have in common and what not, whatever conventions they are written in.
//!
//! Weights are aligned by the names of the dense tensors that they stand for, and compared in the neutral form: codes as unsigned
//! numbers, scales with everything that scales them, zero points in steps of the codes, values in F32. So packing, transposition
//! and the order of codes in a word are no differences; and neither are the order of rows and the stacks of experts in a
//! convention that respells a whole model, where it can be derived from the documents of the other checkpoint.
//!
//! Both checkpoints are streamed: a thread holds a few tiles of rows. What is summed is summed within one weight, so that
//! results do not depend on the number of threads.

mod align;
mod bytes;
mod codes;
mod documents;
mod entries;
mod figures;
mod json;
mod side;
mod structure;
mod values;

use rayon::iter::{IntoParallelRefIterator, ParallelIterator};
use safequant_container::Checkpoint;
use safequant_schemes::{Error, Model};

use self::align::Pair;
pub use self::documents::{DocumentChange, DocumentDiff};
pub use self::figures::{
    Change, Codes, Compared, Options, Scales, Sums, Values, Weight, WeightDiff, ZeroPoints,
};
pub use self::json::json;

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Names, shapes, dtypes, conventions, schemes. Reads headers.
    Structure,
    /// `config.json` and the other JSON documents, and the metadata of the files.
    Config,
    /// Codes, scales and zero points.
    Codes,
    /// The weights that they stand for, and all other tensors.
    Values,
}

impl Level {
    /// All of them, from the outside to the inside.
    pub const ALL: [Level; 4] = [Level::Structure, Level::Config, Level::Codes, Level::Values];

    /// As users spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Level::Structure => "structure",
            Level::Config => "config",
            Level::Codes => "codes",
            Level::Values => "values",
        }
    }
}

/// What two checkpoints, A and B, have in common and what not. Pairs hold A's first.
#[derive(Clone, Debug, PartialEq)]
pub struct Diff {
    /// What was compared, in the order of [`Level::ALL`].
    pub levels: Vec<Level>,
    /// See [`Options::tolerance`].
    pub tolerance: f64,
    /// The conventions of each.
    pub conventions: [Vec<&'static str>; 2],
    /// What only one of them has, by name.
    pub only: [Vec<Weight>; 2],
    /// Weights and tensors of both, by name.
    pub weights: Vec<WeightDiff>,
    /// Documents that differ, by name.
    pub documents: Vec<DocumentDiff>,
    /// What was left out of the comparison, for people.
    pub notes: Vec<String>,
}

impl Diff {
    /// Whether they differ in this, as far as it was compared.
    pub fn differs(&self, level: Level) -> bool {
        if !self.levels.contains(&level) {
            return false;
        }
        let one_has_more = self.only.iter().flatten().any(|weight| match level {
            Level::Structure => true,
            Level::Config => false,
            Level::Codes => weight.has_codes && weight.is_weight,
            Level::Values => weight.is_weight,
        });
        let of_weights = |weight: &WeightDiff| weight.differs(level, self.tolerance);
        match level {
            Level::Config => !self.documents.is_empty(),
            Level::Structure => {
                let [a, b] = &self.conventions;
                one_has_more || a != b || self.weights.iter().any(of_weights)
            }
            Level::Codes | Level::Values => one_has_more || self.weights.iter().any(of_weights),
        }
    }

    /// Whether they differ in nothing that was compared.
    pub fn is_equal(&self) -> bool {
        !Level::ALL.into_iter().any(|level| self.differs(level))
    }

    /// All weights together.
    pub fn sums(&self) -> Sums {
        Sums::of(&self.weights, self.tolerance)
    }
}

/// Compares two checkpoints.
///
/// # Errors
/// What cannot be read, in either of them.
pub fn diff(
    a: (&Checkpoint, &Model),
    b: (&Checkpoint, &Model),
    options: &Options,
) -> Result<Diff, Error> {
    let mut levels = options.levels.clone();
    levels.sort_unstable();
    levels.dedup();
    let aligned = align::align(a, b, options.select.as_ref())?;
    let weights = aligned.pairs.par_iter().map(|pair| weight(pair, options));
    let weights = weights.collect::<Result<Vec<_>, Error>>()?;
    let mut notes = aligned.notes;
    let documents = if levels.contains(&Level::Config) {
        documents::compare(a.0, b.0, &mut notes)
    } else {
        Vec::new()
    };
    let ids = |model: &Model| {
        let mut ids: Vec<_> = model.conventions.iter().map(|(id, _)| *id).collect();
        ids.sort_unstable();
        ids
    };
    Ok(Diff {
        levels,
        tolerance: options.tolerance,
        conventions: [ids(a.1), ids(b.1)],
        only: aligned.only,
        weights,
        documents,
        notes,
    })
}

/// One weight of both.
fn weight(pair: &Pair<'_>, options: &Options) -> Result<WeightDiff, Error> {
    let wants = |level| options.levels.contains(&level);
    let mut found = WeightDiff::new(pair.a.weight(), pair.b.weight());
    if wants(Level::Structure) {
        found.changes = structure::changes(pair);
    }
    if !wants(Level::Codes) && !wants(Level::Values) {
        return Ok(found);
    }
    let have_codes = pair.a.codes().is_some() || pair.b.codes().is_some();
    if bytes::are_equal(pair)? {
        if wants(Level::Codes) && have_codes {
            found.codes = Compared::SameBytes;
            found.scales = Compared::SameBytes;
        }
        if wants(Level::Values) {
            found.values = Compared::SameBytes;
        }
        return Ok(found);
    }
    if pair.a.shape != pair.b.shape {
        let why = format!("shapes {:?} and {:?}", pair.a.shape, pair.b.shape);
        if wants(Level::Codes) && have_codes {
            found.codes = Compared::Not(why.clone());
        }
        if wants(Level::Values) {
            found.values = Compared::Not(why);
        }
        return Ok(found);
    }
    if wants(Level::Codes) && have_codes {
        (found.codes, found.scales, found.zeros) = codes::compare(pair, options.tolerance)?;
    }
    if wants(Level::Values) {
        found.values = values::compare(pair)?;
    }
    Ok(found)
}
