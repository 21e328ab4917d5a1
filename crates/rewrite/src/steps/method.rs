//! Which quantizer each matrix of a job gets, and where the statistics of its inputs are.

use std::collections::BTreeMap;
use std::fmt;

use safequant_quantize::{Needs, QUANTIZERS, Quantizer, Settings, Target};
use safequant_schemes::Granularity;

use super::{MAX_NAMED, named};
use crate::calibration::{self, Calibration, CalibrationFile, Detail, Module};
use crate::recipe::{self, AUTO, AWQ};
use crate::{Error, SchemeGroup};

/// A quantizer, as plans hold it.
#[derive(Clone, Copy)]
pub(crate) struct Method(pub(crate) &'static dyn Quantizer);

impl Method {
    /// The quantizer with this id.
    pub(crate) fn named(id: &str) -> Result<Self, Error> {
        recipe::quantizer(id).map(Self)
    }

    pub(crate) fn id(self) -> &'static str {
        self.0.id()
    }

    /// The first of these that there is; rounding to nearest if there is none.
    fn first_of(ids: &[&str]) -> Result<Self, Error> {
        let find = |id: &&str| QUANTIZERS.iter().find(|q| q.id() == *id);
        match ids.iter().find_map(find) {
            Some(quantizer) => Ok(Self(*quantizer)),
            None => Self::named("rtn"),
        }
    }
}

impl PartialEq for Method {
    fn eq(&self, other: &Self) -> bool {
        self.id() == other.id()
    }
}

impl fmt::Debug for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.id())
    }
}

/// How one matrix is quantized.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct MatrixWork {
    pub(crate) method: Method,
    pub(crate) settings: Settings,
    /// Where what is known of its inputs stands; `None` where nothing is, or the method does not ask.
    pub(crate) inputs: Option<InputsOf>,
}

impl MatrixWork {
    /// A method that asks for nothing.
    pub(crate) fn plain(method: Method) -> Self {
        Self {
            method,
            settings: Settings::default(),
            inputs: None,
        }
    }
}

/// Where the calibration file has the inputs of one matrix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct InputsOf {
    /// The name to ask for.
    pub(crate) module: String,
    /// Which matrix of a stack.
    pub(crate) expert: Option<u64>,
    /// The module whose statistics they are: matrices with the same one share what is derived from them.
    pub(crate) owner: String,
    pub(crate) detail: Detail,
}

/// How much is known of the inputs of a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    Nothing,
    Diagonal,
    Full,
}

/// Chooses for all matrices of a job, and remembers what is worth a line.
pub(crate) struct Chooser<'a> {
    file: Option<&'a CalibrationFile>,
    /// Modules that asked for statistics, and those of them that have some.
    n_asked: usize,
    n_matched: usize,
    /// Modules without an entry, those with a diagonal where more is wanted, those that saw no token; each with its method.
    missing: Fallbacks,
    diagonal: Fallbacks,
    unseen: Fallbacks,
    /// What `auto` has chosen, and for how many matrices.
    chosen: BTreeMap<&'static str, u64>,
}

/// What was done without the statistics that were wanted.
#[derive(Default)]
struct Fallbacks {
    n: usize,
    /// The first few names.
    names: Vec<String>,
    method: &'static str,
}

impl Fallbacks {
    fn add(&mut self, name: String, method: Method) {
        self.n += 1;
        self.method = method.id();
        if self.names.len() < MAX_NAMED {
            self.names.push(name);
        }
    }

    fn note(&self, what: &str, how: &str) -> Option<String> {
        (self.n > 0).then(|| {
            let names = named(&self.names, self.n, MAX_NAMED);
            format!("{what} {names}: {how} by {}", self.method)
        })
    }
}

impl<'a> Chooser<'a> {
    pub(crate) fn new(file: Option<&'a CalibrationFile>) -> Self {
        Self {
            file,
            n_asked: 0,
            n_matched: 0,
            missing: Fallbacks::default(),
            diagonal: Fallbacks::default(),
            unseen: Fallbacks::default(),
            chosen: BTreeMap::new(),
        }
    }

    /// How the matrices of a module are quantized, whose weight is `[n_matrices,] out_features, in_features`.
    ///
    /// # Errors
    /// [`calibration::Error::Width`] for statistics of another width; [`Error::UnknownMethod`].
    pub(crate) fn choose(
        &mut self,
        (module, shape): (&str, &[u64]),
        target: &Target,
        group: &SchemeGroup,
    ) -> Result<Vec<MatrixWork>, Error> {
        let in_features = shape.last().copied().unwrap_or(0);
        let experts = match *shape {
            [n, _, _] => (0..n).map(Some).collect(),
            _ => vec![None],
        };
        let needs = match group.method {
            AUTO => Needs::Welcome,
            method => Method::named(method)?.0.needs(),
        };
        let is_needed = needs == Needs::SecondMoment || group.method == AWQ;
        if is_needed && self.file.is_none() {
            return Err(Error::NoCalibration {
                method: group.method,
            });
        }
        let asks = needs != Needs::Nothing;
        let file = self.file.filter(|_| asks).map(CalibrationFile::calibration);
        let mut has_entry = false;
        let mut works = Vec::new();
        for expert in experts {
            let found = file.and_then(|file| entry(file, module, expert));
            has_entry |= found.is_some();
            if let (Some(file), Some(found)) = (file, &found) {
                check_width(file, found, in_features)?;
            }
            works.push(self.matrix((module, expert), found, target, group)?);
        }
        if file.is_some() {
            self.n_asked += 1;
            self.n_matched += usize::from(has_entry);
        }
        Ok(works)
    }

    fn matrix(
        &mut self,
        (module, expert): (&str, Option<u64>),
        found: Option<Module>,
        target: &Target,
        group: &SchemeGroup,
    ) -> Result<MatrixWork, Error> {
        let known = match &found {
            None => Known::Nothing,
            // Nothing is known of the inputs of a module that saw none.
            Some(found) if found.token_count == Some(0) => Known::Nothing,
            Some(found) => match found.detail {
                Detail::Full => Known::Full,
                Detail::Diagonal => Known::Diagonal,
            },
        };
        let (method, fell_back) = resolve(group.method, known, target)?;
        let asks = method.0.needs() != Needs::Nothing || fell_back;
        if self.file.is_some() && (asks || group.method == AUTO) {
            let name = expert.map_or_else(|| module.to_owned(), |e| format!("{module} [{e}]"));
            match (&found, known) {
                (None, _) => self.missing.add(name, method),
                (Some(_), Known::Nothing) => self.unseen.add(name, method),
                (Some(_), Known::Diagonal) if fell_back => self.diagonal.add(name, method),
                (Some(_), Known::Diagonal | Known::Full) => {}
            }
        }
        if group.method == AUTO {
            let n = self.chosen.entry(method.id()).or_default();
            *n = n.saturating_add(1);
        }
        let is_of_use = known != Known::Nothing && method.0.needs() != Needs::Nothing;
        let inputs = found.filter(|_| is_of_use).map(|found| InputsOf {
            module: match expert {
                Some(_) => module.to_owned(),
                None => found.name,
            },
            expert,
            owner: found.owner,
            detail: found.detail,
        });
        Ok(MatrixWork {
            method,
            settings: group.settings,
            inputs,
        })
    }

    /// One line for each thing that is not as it was asked for, and what `auto` chose.
    ///
    /// # Errors
    /// [`Error::CalibrationOfAnother`] if not one module has statistics.
    pub(crate) fn finish(self, source_name: &str) -> Result<Vec<String>, Error> {
        let mut notes = Vec::new();
        if let Some(file) = self.file {
            let file = file.calibration().file();
            if self.n_asked == 0 {
                notes.push(format!(
                    "{file} is not used: the method asks for no statistics"
                ));
            } else if self.n_matched == 0 {
                return Err(Error::CalibrationOfAnother {
                    file: file.to_owned(),
                    source_name: source_name.to_owned(),
                });
            }
            let n = self.missing.n;
            let what = format!("{file} has no statistics for {n} matrices:");
            notes.extend(self.missing.note(&what, "they are quantized without"));
            let n = self.diagonal.n;
            let what = format!("{file} has only the diagonal for {n} matrices:");
            notes.extend(self.diagonal.note(&what, "they are quantized"));
            let n = self.unseen.n;
            let what = format!("{n} matrices saw no token in calibration:");
            notes.extend(
                self.unseen
                    .note(&what, "they are quantized without statistics"),
            );
        }
        if !self.chosen.is_empty() {
            let chosen = self
                .chosen
                .iter()
                .map(|(id, n)| format!("{id} for {n} matrices"));
            let chosen: Vec<String> = chosen.collect();
            notes.push(format!("--method auto: {}", chosen.join(", ")));
        }
        Ok(notes)
    }
}

/// The method for what is known, and whether it is another than was asked for.
fn resolve(asked: &str, known: Known, target: &Target) -> Result<(Method, bool), Error> {
    if asked == AUTO {
        return Ok((best(known, target)?, false));
    }
    let method = Method::named(asked)?;
    match (method.0.needs(), known) {
        (Needs::SecondMoment, Known::Diagonal | Known::Nothing) => {
            Ok((best(Known::Nothing, target)?, true))
        }
        (Needs::SecondMoment, Known::Full) | (Needs::Nothing | Needs::Welcome, _) => {
            Ok((method, false))
        }
    }
}

/// The method that loses least with what is known.
fn best(known: Known, target: &Target) -> Result<Method, Error> {
    match target.scheme.granularity {
        // Searches choose for columns of a row; here groups run on from row to row, or are gathered.
        Granularity::Flat { .. }
        | Granularity::IndexedGroup { .. }
        | Granularity::Strided { .. } => Method::first_of(&["rtn"]),
        Granularity::Tensor
        | Granularity::Channel
        | Granularity::Group { .. }
        | Granularity::Block { .. } => match known {
            Known::Full => Method::first_of(&["refine", "gptq", "mse"]),
            Known::Diagonal | Known::Nothing => Method::first_of(&["mse"]),
        },
    }
}

/// What the file has about a matrix.
pub(super) fn entry(file: &Calibration, module: &str, expert: Option<u64>) -> Option<Module> {
    match expert {
        Some(expert) => file.expert_module(module, expert),
        None => file.module(module),
    }
}

pub(super) fn check_width(
    file: &Calibration,
    found: &Module,
    in_features: u64,
) -> Result<(), Error> {
    match found.in_features {
        Some(width) if width != in_features => Err(calibration::Error::Width {
            file: file.file().to_owned(),
            module: found.name.clone(),
            expected: in_features,
            found: width,
        }
        .into()),
        Some(_) | None => Ok(()),
    }
}
