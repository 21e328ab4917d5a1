//! Mixed precision: a scheme for each module, so that all of them together take no more than so many bits a weight and lose as little as
//! may be.
//!
//! Every module is quantized with every candidate, and what it loses is measured: the squared error of its weights, weighted by the mean
//! square of their inputs where that is known (which is what its outputs lose if the errors of columns are independent, as those of
//! rounding to nearest are), as a share of the same sum over the weights. Modules that runtimes load as one get one scheme. From the
//! cheapest choice on, the step that saves most loss for each byte is taken, on the lower convex hull of each module's choices.

mod hull;

use std::collections::BTreeMap;

use rayon::prelude::*;
use safequant_container::Checkpoint;
use safequant_quantize::{Effort, Settings};
use safequant_schemes::Model;

use crate::budget::Budget;
use crate::calibration::CalibrationFile;
use crate::scratch::Scratch;
use crate::select::fused_groups;
use crate::steps::{self, QuantizeWork, Step};
use crate::tile::StepContext;
use crate::{CancelToken, Error, JobOptions, QuantizeRecipe, SchemeGroup, offsets, recipe};

/// What was measured, and what was chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Mixture {
    /// The recipe, its groups now those that were chosen, each with the names of its modules.
    pub recipe: QuantizeRecipe,
    /// Bits per weight of the modules that are quantized, scales and all.
    pub bits_per_weight: f64,
    /// What each module loses with each candidate, in the order of the recipe that was asked for.
    pub modules: Vec<Measured>,
}

impl Mixture {
    /// One line about it.
    pub fn note(&self) -> String {
        let groups = self.recipe.groups.iter();
        let groups = groups.map(|g| format!("{} for {}", g.preset.name, g.targets.len()));
        format!(
            "{:.3} bits per weight of the {} quantized modules: {}",
            self.bits_per_weight,
            self.modules.len(),
            groups.collect::<Vec<_>>().join(", ")
        )
    }
}

/// A module with its candidates.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// The module.
    pub name: String,
    /// Logical weights.
    pub n_weights: u64,
    /// For each candidate: bytes, and what is lost as a share of what there is.
    pub candidates: Vec<(u64, f64)>,
    /// The candidate that was chosen.
    pub chosen: usize,
}

/// Chooses one of a recipe's groups for each module that the first of them selects. The groups are candidates here: their targets are
/// those of the first.
///
/// # Errors
/// As planning, for each candidate alone; [`Error::TargetBits`] if even the cheapest candidates take more.
pub fn choose(
    checkpoint: &Checkpoint,
    recipe: &QuantizeRecipe,
    target_bits: f64,
    options: &JobOptions,
    cancel: &CancelToken,
) -> Result<Mixture, Error> {
    let model = Model::bind(checkpoint)?;
    let budget = Budget::new(options.memory_bytes, options.threads);
    let pool = budget.pool()?;
    let mut candidates = Vec::new();
    for group in &recipe.groups {
        candidates.push(Candidate::new(checkpoint, &model, recipe, group, budget)?);
    }
    let mut modules = Vec::new();
    let n_modules = candidates.first().map_or(0, |c| c.steps.len());
    for at in 0..n_modules {
        let mut measured: Option<Measured> = None;
        for candidate in &candidates {
            if cancel.is_canceled() {
                return Err(Error::Canceled);
            }
            let Some(step) = candidate.steps.get(at) else {
                continue;
            };
            let lost = candidate.measure(checkpoint, at, recipe.calibration.as_ref(), &pool)?;
            let module = measured.get_or_insert_with(|| Measured {
                name: step.name.clone(),
                n_weights: step.n_weights(),
                candidates: Vec::new(),
                chosen: 0,
            });
            module.candidates.push((step.output_bytes(), lost));
        }
        modules.extend(measured);
    }
    decide(recipe, modules, target_bits, &candidates)
}

/// A scheme that every module is measured with.
struct Candidate {
    /// What is quantized, in the order of the source.
    steps: Vec<Step>,
    budget: Budget,
}

impl Candidate {
    fn new(
        checkpoint: &Checkpoint,
        model: &Model,
        recipe: &QuantizeRecipe,
        group: &SchemeGroup,
        budget: Budget,
    ) -> Result<Self, Error> {
        let first = recipe.groups.first().unwrap_or(group);
        let alone = QuantizeRecipe {
            groups: vec![SchemeGroup {
                // A quick look: what searching gains differs little from scheme to scheme.
                method: "rtn",
                settings: Settings {
                    effort: Effort::Fast,
                    ..Settings::default()
                },
                targets: first.targets.clone(),
                ignore: first.ignore.clone(),
                preset: group.preset.clone(),
            }],
            calibration: None,
            ..recipe.clone()
        };
        let built = steps::quantize(checkpoint, model, &alone)?;
        let is_quantized = |step: &Step| step.quantizing().is_some();
        let mut steps: Vec<Step> = built.list.into_iter().filter(is_quantized).collect();
        offsets::find(checkpoint, recipe::writer(recipe)?, budget, &mut steps)?;
        // Scales of whole matrices are observed for each module alone: what siblings share hardly matters here.
        budget.cut(&mut steps, checkpoint)?;
        Ok(Self { steps, budget })
    }

    /// What a module loses, as a share of what there is.
    fn measure(
        &self,
        checkpoint: &Checkpoint,
        at: usize,
        file: Option<&CalibrationFile>,
        pool: &rayon::ThreadPool,
    ) -> Result<f64, Error> {
        let Some((step, work)) = self.steps.get(at).and_then(|s| Some((s, s.quantizing()?))) else {
            return Ok(0.0);
        };
        let context = StepContext::new(at, step, checkpoint, None)?;
        let tiles: Vec<u64> = (0..step.n_tiles()).collect();
        let width = usize::try_from(self.budget.width(step)).unwrap_or(1);
        let mut seen = None;
        if work.statistics.is_some() {
            let seen = seen.get_or_insert_with(safequant_quantize::Statistics::default);
            for wave in tiles.chunks(width) {
                let observe =
                    |tile: &u64| context.observe(&step.tile(*tile), &mut Scratch::default());
                let found: Vec<_> = pool.install(|| wave.par_iter().map(observe).collect());
                for statistics in found {
                    seen.merge(&statistics?);
                }
            }
        }
        let mut columns: Option<(u64, Vec<f32>)> = None;
        let (mut signal, mut noise) = (0.0, 0.0);
        for wave in waves(step, &tiles, width) {
            let matrix = wave.first().map_or(0, |tile| step.matrix(*tile));
            if columns.as_ref().is_none_or(|(of, _)| *of != matrix) {
                columns = Some((matrix, weights_of(step, work, matrix, file)?));
            }
            let weights = columns.as_ref().map_or(&[][..], |(_, weights)| weights);
            let measure = |tile: &u64| {
                let mut scratch = Scratch::default();
                context.lost(&step.tile(*tile), seen.as_ref(), weights, &mut scratch)
            };
            let found: Vec<_> = pool.install(|| wave.par_iter().map(measure).collect());
            for lost in found {
                for (s, n) in lost? {
                    signal += s;
                    noise += n;
                }
            }
        }
        Ok(if noise == 0.0 { 0.0 } else { noise / signal })
    }
}

/// Tiles that are worked off together: no more than so many, and of one matrix.
fn waves<'t>(step: &Step, tiles: &'t [u64], width: usize) -> Vec<&'t [u64]> {
    let matrices = tiles.chunk_by(|a, b| step.matrix(*a) == step.matrix(*b));
    matrices.flat_map(|of_one| of_one.chunks(width)).collect()
}

/// The mean square of each input feature of a matrix; ones where nothing is known.
fn weights_of(
    step: &Step,
    work: &QuantizeWork,
    matrix: u64,
    file: Option<&CalibrationFile>,
) -> Result<Vec<f32>, Error> {
    let width = work.layout.in_features();
    let stack = step.shape.len() == 3;
    let known = match file.map(CalibrationFile::calibration) {
        None => None,
        Some(file) if stack => file.expert_statistics(&step.name, matrix, width)?,
        Some(file) => file.statistics(&step.name, width)?,
    };
    let known = known.map(|found| found.second_moment.diagonal());
    let known = known.filter(|diagonal| diagonal.iter().any(|square| *square > 0.0));
    Ok(known.unwrap_or_else(|| vec![1.0; usize::try_from(width).unwrap_or(usize::MAX)]))
}

/// The choice, as a recipe.
fn decide(
    recipe: &QuantizeRecipe,
    mut modules: Vec<Measured>,
    target_bits: f64,
    candidates: &[Candidate],
) -> Result<Mixture, Error> {
    let units = units(&modules, candidates);
    let n_weights: u64 = modules.iter().map(|module| module.n_weights).sum();
    let choices = |unit: &Vec<usize>| -> Vec<(u64, f64)> {
        let n = recipe.groups.len();
        let sum = |c: usize| {
            let of = unit
                .iter()
                .filter_map(|&m| modules.get(m)?.candidates.get(c));
            of.fold((0, 0.0), |(bytes, lost), (b, l)| (bytes + b, lost + l))
        };
        (0..n).map(sum).collect()
    };
    let choices: Vec<_> = units.iter().map(choices).collect();
    let bits = |bytes: u64| {
        #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
        let bits = 8.0 * bytes as f64 / n_weights.max(1) as f64;
        bits
    };
    let found = hull::choose(&choices, |bytes| bits(bytes) <= target_bits);
    let found = found.map_err(|least| Error::TargetBits {
        target: target_bits,
        least: bits(least),
    })?;
    for (unit, &chosen) in units.iter().zip(&found.chosen) {
        for &m in unit {
            if let Some(module) = modules.get_mut(m) {
                module.chosen = chosen;
            }
        }
    }
    let mut groups = Vec::new();
    for (c, group) in recipe.groups.iter().enumerate() {
        let of = modules.iter().filter(|module| module.chosen == c);
        let targets: Vec<String> = of.map(|module| exactly(&module.name)).collect();
        if !targets.is_empty() {
            groups.push(SchemeGroup {
                targets,
                ignore: Vec::new(),
                ..group.clone()
            });
        }
    }
    Ok(Mixture {
        recipe: QuantizeRecipe {
            groups,
            ..recipe.clone()
        },
        bits_per_weight: bits(found.bytes),
        modules,
    })
}

/// Modules that get one scheme together: those that runtimes load as one, and each other alone.
fn units(modules: &[Measured], candidates: &[Candidate]) -> Vec<Vec<usize>> {
    let width = |m: usize| {
        let step = candidates.first().and_then(|c| c.steps.get(m));
        step.and_then(|step| step.shape.last().copied())
            .unwrap_or(0)
    };
    let named = modules.iter().enumerate();
    let named = named.map(|(m, module)| (module.name.as_str(), width(m)));
    let mut units: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    let fused = fused_groups(named);
    let first_of = |m: usize| {
        let unit = fused.iter().find(|unit| unit.contains(&m));
        unit.and_then(|unit| unit.first().copied()).unwrap_or(m)
    };
    for m in 0..modules.len() {
        units.entry(first_of(m)).or_default().push(m);
    }
    units.into_values().collect()
}

/// The pattern that this name alone matches.
fn exactly(name: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/');
    if name.chars().all(is_plain) {
        return name.to_owned();
    }
    let mut pattern = "re:".to_owned();
    for c in name.chars() {
        if !c.is_alphanumeric() && !matches!(c, '_' | '-' | '/') {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern.push('$');
    pattern
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_signs_of_patterns_match_themselves_alone() {
        for name in ["model.layers.0.mlp", "a[b].c*", "x{1}", "\u{e9}.y z"] {
            let pattern = safequant_schemes::Pattern::new(&exactly(name)).unwrap();
            assert!(pattern.is_match(name).unwrap(), "{name}: {}", exactly(name));
            assert!(!pattern.is_match(&format!("{name}x")).unwrap());
        }
    }
}
