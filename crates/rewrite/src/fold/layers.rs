//! Which steps of a job feed which, by the table of pairs.

use std::collections::{BTreeMap, BTreeSet};

use super::pairs::{Architecture, Gain, LAYERS, Pair, Source, matches};
use super::refused;
use crate::Error;
use crate::steps::{QuantizeWork, Step, Work};

/// A module and those that read what it makes, as indices of steps.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    /// The module that is divided, as notes and digests name it.
    pub(crate) name: String,
    pub(crate) source: Divided,
    /// What is quantized after its columns were multiplied.
    pub(crate) readers: Vec<usize>,
    /// What stays dense, its columns multiplied.
    pub(crate) routers: Vec<usize>,
    /// Features that are scaled.
    pub(crate) in_features: u64,
}

/// What is divided by scales.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Divided {
    Norm {
        step: usize,
        gain: Gain,
    },
    /// The last rows of a linear layer, and its bias if it has one.
    Linear {
        step: usize,
        bias: Option<usize>,
    },
}

/// Pairs that stay as they are, each by its source, and why.
#[derive(Debug, Default)]
pub(crate) struct Left {
    /// Values that several heads share.
    pub(crate) grouped: Vec<String>,
    /// Modules that are not quantized by this method.
    pub(crate) dense: Vec<String>,
}

/// The steps of one layer by their names in it.
struct Layer<'s> {
    prefix: String,
    /// Without `.weight`.
    modules: BTreeMap<&'s str, usize>,
    steps: &'s [Step],
}

/// Every pair of every layer.
///
/// # Errors
/// [`Error::Fold`] for a layer that is not as the architecture has it.
pub(crate) fn groups(
    steps: &[Step],
    architecture: &Architecture,
) -> Result<(Vec<Group>, Left), Error> {
    let (mut found, mut left) = (Vec::new(), Left::default());
    for layer in layers(steps).into_values() {
        layer.check(architecture)?;
        for pair in architecture.pairs {
            for expert in layer.experts(pair) {
                layer.pair(architecture, pair, expert.as_deref(), &mut found, &mut left)?;
            }
        }
    }
    Ok((found, left))
}

fn layers(steps: &[Step]) -> BTreeMap<(usize, u64), Layer<'_>> {
    let mut layers: BTreeMap<(usize, u64), Layer<'_>> = BTreeMap::new();
    for (i, step) in steps.iter().enumerate() {
        if matches!(step.work, Work::Drop) {
            continue;
        }
        let place = LAYERS.iter().enumerate().find_map(|(p, prefix)| {
            let (number, rest) = step.name.strip_prefix(prefix)?.split_once('.')?;
            Some((p, *prefix, number.parse::<u64>().ok()?, rest))
        });
        let Some((p, prefix, number, rest)) = place else {
            continue;
        };
        let layer = layers.entry((p, number)).or_insert_with(|| Layer {
            prefix: format!("{prefix}{number}."),
            modules: BTreeMap::new(),
            steps,
        });
        let module = rest.strip_suffix(".weight").unwrap_or(rest);
        layer.modules.insert(module, i);
    }
    layers
}

impl Layer<'_> {
    /// That the layer has no tensor which the table does not know: it might read what is divided.
    fn check(&self, architecture: &Architecture) -> Result<(), Error> {
        let linears = architecture.pairs.iter().flat_map(|pair| {
            let source = match pair.source {
                Source::Linear(name, _) => Some(name),
                Source::Norm(_) => None,
            };
            pair.readers
                .iter()
                .chain(pair.routers)
                .copied()
                .chain(source)
        });
        let linears: Vec<&str> = linears.collect();
        let norms = architecture.pairs.iter().map(|pair| pair.source.name());
        let known: Vec<&str> = norms
            .chain(architecture.others.iter().copied())
            .chain(linears.iter().copied())
            .collect();
        let is_one = |names: &[&str], name: &str| names.iter().any(|n| matches(n, name).is_some());
        let is_known = |name: &str| {
            let bias = name.strip_suffix(".bias");
            is_one(&known, name) || bias.is_some_and(|of| is_one(&linears, of))
        };
        match self.modules.keys().find(|name| !is_known(name)) {
            None => Ok(()),
            Some(name) => Err(refused(
                &self.full(name),
                format!(
                    "layers of {} are not known to have it, and it may read what would be divided by scales",
                    architecture.classes.join(", ")
                ),
            )),
        }
    }

    fn full(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// The experts that a pair is for; one `None` for a pair that is for the layer.
    fn experts(&self, pair: &Pair) -> Vec<Option<String>> {
        if !pair.source.name().contains('*') {
            return vec![None];
        }
        let of = |pattern: &str| -> Vec<String> {
            let names = self.modules.keys();
            names
                .filter_map(|name| matches(pattern, name)?.expert().map(str::to_owned))
                .collect()
        };
        let readers = pair.readers.iter().flat_map(|pattern| of(pattern));
        let all: BTreeSet<String> = of(pair.source.name()).into_iter().chain(readers).collect();
        all.into_iter().map(Some).collect()
    }

    /// The modules that a pattern names, by name.
    fn find(&self, pattern: &str, expert: Option<&str>) -> Vec<usize> {
        let named = self.modules.iter().filter(|(name, _)| {
            matches(pattern, name).is_some_and(|of| expert.is_none() || of.expert() == expert)
        });
        named.map(|(_, step)| *step).collect()
    }

    fn pair(
        &self,
        architecture: &Architecture,
        pair: &Pair,
        expert: Option<&str>,
        found: &mut Vec<Group>,
        left: &mut Left,
    ) -> Result<(), Error> {
        let all = |patterns: &[&str]| -> Vec<usize> {
            patterns.iter().flat_map(|p| self.find(p, expert)).collect()
        };
        let (mut readers, routers) = (all(pair.readers), all(pair.routers));
        let name = match expert {
            Some(expert) => self.full(&pair.source.name().replace('*', expert)),
            None => self.full(pair.source.name()),
        };
        let source = self.find(pair.source.name(), expert).first().copied();
        let (Some(&first), Some(source)) = (readers.first(), source) else {
            // A layer may have no dense block, or no experts; it has both sides of a pair or none.
            return if readers.is_empty() && source.is_none() {
                Ok(())
            } else {
                Err(refused(&name, "one side of the pair is missing".to_owned()))
            };
        };
        let in_features = self.columns(first);
        if let Source::Linear(_, times) = pair.source
            && self.rows(source) != in_features.saturating_mul(times)
        {
            left.grouped.push(name);
            return Ok(());
        }
        // A router that is quantized like the others is one of them.
        let (quantized, routers): (Vec<_>, Vec<_>) = routers
            .into_iter()
            .partition(|&i| wanted(&self.steps[i]).is_some());
        readers.extend(quantized);
        let source_is_linear = matches!(pair.source, Source::Linear(..));
        let must = readers
            .iter()
            .copied()
            .chain(source_is_linear.then_some(source));
        let other: Vec<usize> = must.filter(|&i| wanted(&self.steps[i]).is_none()).collect();
        let stays = routers
            .iter()
            .copied()
            .filter(|&i| !matches!(self.steps[i].work, Work::Copy));
        let other: Vec<usize> = other.into_iter().chain(stays).collect();
        if !other.is_empty() {
            let names = other.iter().map(|&i| module_of(&self.steps[i]));
            left.dense.extend(names);
            return Ok(());
        }
        self.check_shapes(&readers, &routers, in_features)?;
        let divided = match pair.source {
            Source::Norm(_) => Divided::Norm {
                step: source,
                gain: architecture.gain,
            },
            Source::Linear(..) => Divided::Linear {
                step: source,
                bias: self.bias(source),
            },
        };
        found.push(Group {
            name,
            source: divided,
            readers,
            routers,
            in_features,
        });
        Ok(())
    }

    fn check_shapes(&self, readers: &[usize], routers: &[usize], width: u64) -> Result<(), Error> {
        for &i in readers.iter().chain(routers) {
            let step = &self.steps[i];
            if step.shape.len() != 2 || self.columns(i) != width {
                return Err(refused(
                    &step.name,
                    format!(
                        "expected a matrix with {width} input features, found the shape {:?}",
                        step.shape
                    ),
                ));
            }
        }
        Ok(())
    }

    fn bias(&self, step: usize) -> Option<usize> {
        let module = module_of(&self.steps[step]);
        let name = module.strip_prefix(&self.prefix)?;
        self.modules.get(format!("{name}.bias").as_str()).copied()
    }

    fn columns(&self, step: usize) -> u64 {
        self.steps[step].shape.last().copied().unwrap_or(0)
    }

    fn rows(&self, step: usize) -> u64 {
        match *self.steps[step].shape {
            [rows, _] => rows,
            _ => 0,
        }
    }
}

/// What is quantized by this method.
pub(crate) fn wanted(step: &Step) -> Option<&QuantizeWork> {
    step.quantizing().filter(|work| work.scaling.is_wanted)
}

fn module_of(step: &Step) -> String {
    let module = step.name.strip_suffix(".weight");
    module.unwrap_or(&step.name).to_owned()
}
