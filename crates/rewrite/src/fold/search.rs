//! Which scales a group of modules gets: those with which its outputs lose least on the calibration inputs.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;
use safequant_container::Checkpoint;
use safequant_kernels::Backend;
use safequant_quantize::scaling::{self, STEPS, output_noise, powers_of_two, scaled_inputs};
use safequant_quantize::{Inputs, Prepared, Statistics};

use super::dense::Dense;
use super::layers::{Divided, Group, wanted};
use super::refused;
use crate::Error;
use crate::budget::Budget;
use crate::calibration::Calibration;
use crate::prepare::as_inputs;
use crate::scratch::Scratch;
use crate::steps::{QuantizeWork, Step};
use crate::tile::StepContext;

/// Rows of each weight by which candidates are compared; the best of them is then held against no scaling on all rows.
const SAMPLED_ROWS: u64 = 512;
/// Values of a weight that are worked on at once.
const CHUNK_VALUES: u64 = 1 << 18;
/// No packing unites more rows than this.
const ROW_UNIT: u64 = 32;
/// Copies of a chunk: the weight, scaled, its codes and what the search for scales holds, dequantized, errors and outputs.
const COPIES: u64 = 12;

/// What is scaled how.
#[derive(Clone, Debug)]
pub(super) struct Chosen {
    /// Which of the candidates.
    pub(super) step: u32,
    /// What columns of the readers are multiplied by.
    pub(super) scales: Arc<[f32]>,
    /// The bytes of the norm, or of the bias.
    pub(super) source: Option<Vec<u8>>,
    /// The bytes of each router.
    pub(super) routers: Vec<Vec<u8>>,
    /// What outputs lose with these scales, and without any.
    pub(super) noise: (f64, f64),
}

/// Everything that a search needs.
pub(super) struct Search<'a> {
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) file: &'a Calibration,
    pub(super) steps: &'a [Step],
    pub(super) budget: Budget,
    pub(super) pool: &'a rayon::ThreadPool,
    /// The inputs that were read last.
    pub(super) inputs: Option<Known>,
}

/// The inputs of a module.
#[derive(Clone)]
pub(super) struct Known {
    owner: String,
    inputs: Arc<Inputs>,
    mean_abs: Option<Arc<Vec<f32>>>,
}

impl Known {
    /// Whether any token was seen.
    fn tokens(&self) -> Option<u64> {
        self.inputs.token_count.filter(|n| *n > 0)
    }
}

/// Rows of which weights are looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    Some,
    All,
}

impl Search<'_> {
    /// The scales of a group; `None` if none are better.
    ///
    /// # Errors
    /// [`Error::Fold`] where statistics are missing; those of reading and quantizing.
    pub(super) fn choose(&mut self, group: &Group) -> Result<Option<Chosen>, Error> {
        let Some(mean_abs) = self.mean_abs(group)? else {
            return Ok(None);
        };
        let mut candidates = self.candidates(group, &mean_abs)?;
        let look = if self.is_long(group) {
            Look::Some
        } else {
            Look::All
        };
        let mut noise = self.noise(group, &candidates, look)?;
        let Some(best) = least(&noise).filter(|best| *best > 0) else {
            return Ok(None);
        };
        candidates.swap(1, best);
        candidates.truncate(2);
        if look == Look::Some {
            noise = self.noise(group, &candidates, Look::All)?;
        } else {
            noise.swap(1, best);
        }
        let (Some(&without), Some(&with)) = (noise.first(), noise.get(1)) else {
            return Ok(None);
        };
        let chosen = candidates.pop().filter(|_| with < without);
        Ok(chosen.map(|chosen| Chosen {
            noise: (with, without),
            ..chosen
        }))
    }

    /// The mean magnitude of each input of a group, over all tokens; `None` if no token was seen.
    fn mean_abs(&mut self, group: &Group) -> Result<Option<Vec<f64>>, Error> {
        let mut sums: Option<Vec<f64>> = None;
        let mut n_tokens = 0.0;
        for &reader in &group.readers {
            let known = self.known(reader)?;
            let Some(tokens) = known.tokens() else {
                continue;
            };
            let mean_abs = known.mean_abs.ok_or_else(|| {
                refused(
                    &self.steps[reader].name,
                    format!(
                        "{} has no mean magnitude of its inputs, by which features are scaled; `safequant.calibrate` writes it",
                        self.file.file()
                    ),
                )
            })?;
            #[expect(clippy::cast_precision_loss, reason = "a weight in a mean")]
            let tokens = tokens as f64;
            let sums = sums.get_or_insert_with(|| vec![0.0; mean_abs.len()]);
            for (sum, mean) in sums.iter_mut().zip(mean_abs.iter()) {
                *sum += tokens * f64::from(*mean);
            }
            n_tokens += tokens;
        }
        Ok(sums.map(|sums| sums.iter().map(|sum| sum / n_tokens).collect()))
    }

    /// What is known of the inputs of a module.
    fn known(&mut self, reader: usize) -> Result<Known, Error> {
        let step = &self.steps[reader];
        let file = self.file;
        let missing = || {
            let reason = format!("{} has no statistics of its inputs", file.file());
            refused(&step.name, reason)
        };
        let entry = file.module(&step.name).ok_or_else(missing)?;
        if let Some(known) = self
            .inputs
            .as_ref()
            .filter(|known| known.owner == entry.owner)
        {
            return Ok(known.clone());
        }
        self.inputs = None;
        let width = step.shape.last().copied().unwrap_or(0);
        let mut found = file.statistics(&step.name, width)?.ok_or_else(missing)?;
        let mean_abs = found.mean_abs.take().map(Arc::new);
        let known = Known {
            owner: entry.owner,
            inputs: Arc::new(as_inputs(found)),
            mean_abs,
        };
        self.inputs = Some(known.clone());
        Ok(known)
    }

    /// No scaling, and every other candidate.
    fn candidates(&self, group: &Group, mean_abs: &[f64]) -> Result<Vec<Chosen>, Error> {
        let norm = match group.source {
            Divided::Norm { step, gain } => {
                let dense = Dense::read(self.checkpoint, &self.steps[step])?;
                if dense.values.len() != mean_abs.len() {
                    return Err(refused(
                        &group.name,
                        format!(
                            "it has {} values, and its readers have {} columns",
                            dense.values.len(),
                            mean_abs.len()
                        ),
                    ));
                }
                Some((dense, gain))
            }
            Divided::Linear { .. } => None,
        };
        let bias = match group.source {
            Divided::Linear {
                bias: Some(bias), ..
            } => Some(Dense::read(self.checkpoint, &self.steps[bias])?),
            Divided::Linear { bias: None, .. } | Divided::Norm { .. } => None,
        };
        let routers = group.routers.iter();
        let routers: Vec<Dense> = routers
            .map(|&router| Dense::read(self.checkpoint, &self.steps[router]))
            .collect::<Result<_, _>>()?;
        let must_be_powers = norm.is_none() || !routers.is_empty();
        let mut found: Vec<Chosen> = Vec::new();
        for step in 0..STEPS {
            let mut scales = scaling::scales(mean_abs, step);
            if must_be_powers {
                powers_of_two(&mut scales);
                keep_exact(&mut scales, norm.as_ref(), bias.as_ref(), &routers);
            }
            let (source, scales) = match (&norm, &bias) {
                (Some((norm, gain)), _) => {
                    let (bytes, actual) = norm.divided_gain(*gain, &scales);
                    (Some(bytes), actual)
                }
                (None, Some(bias)) => {
                    let bytes = bias.multiplied(&inverse(&scales, bias.values.len())).0;
                    (Some(bytes), scales)
                }
                (None, None) => (None, scales),
            };
            if found.iter().any(|other| *other.scales == *scales) {
                continue;
            }
            let routers = routers.iter().map(|router| router.multiplied(&scales).0);
            found.push(Chosen {
                step,
                routers: routers.collect(),
                scales: scales.into(),
                source,
                noise: (0.0, 0.0),
            });
        }
        Ok(found)
    }

    fn is_long(&self, group: &Group) -> bool {
        let rows = group
            .readers
            .iter()
            .map(|&reader| rows_of(&self.steps[reader]));
        rows.max().unwrap_or(0) > SAMPLED_ROWS
    }

    /// What outputs of a group lose with each candidate.
    fn noise(
        &mut self,
        group: &Group,
        candidates: &[Chosen],
        look: Look,
    ) -> Result<Vec<f64>, Error> {
        let mut sums = vec![0.0; candidates.len()];
        for &reader in &group.readers {
            let known = self.known(reader)?;
            let step = &self.steps[reader];
            let Some(work) = wanted(step).filter(|_| known.tokens().is_some()) else {
                continue;
            };
            let prepared: Vec<Statistics> = candidates
                .iter()
                .map(|candidate| prepare(step, work, &known.inputs, &candidate.scales))
                .collect::<Result<_, _>>()?;
            let context = StepContext::new(reader, step, self.checkpoint, None)?;
            let chunks = chunks(rows_of(step), group.in_features, look);
            let measure = |run: &Range<u64>| -> Result<Vec<f64>, Error> {
                let values = context.weights(work, run, &mut Scratch::default())?;
                let both = candidates.iter().zip(&prepared);
                both.map(|(candidate, prepared)| {
                    let pair = (values.as_slice(), &*candidate.scales);
                    let errors = context.scaled_errors(work, run, pair, prepared)?;
                    let noise = output_noise(&errors, &known.inputs, Backend::detect());
                    Ok(noise.iter().sum())
                })
                .collect()
            };
            for wave in chunks.chunks(self.width(group)) {
                let found: Vec<_> = self.pool.install(|| wave.par_iter().map(measure).collect());
                for noise in found {
                    let noise: Vec<f64> = noise?;
                    sums.iter_mut().zip(noise).for_each(|(sum, n)| *sum += n);
                }
            }
        }
        Ok(sums)
    }

    /// Chunks that fit the budget at once.
    fn width(&self, group: &Group) -> usize {
        let chunk = chunk_rows(group.in_features).saturating_mul(group.in_features);
        let bytes = chunk.saturating_mul(4 * COPIES).max(1);
        let width = (self.budget.for_tiles() / bytes).clamp(1, self.budget.threads as u64);
        usize::try_from(width).unwrap_or(1)
    }
}

/// Scales of features where something would be rounded become 1.
fn keep_exact(
    scales: &mut [f32],
    norm: Option<&(Dense, super::pairs::Gain)>,
    bias: Option<&Dense>,
    routers: &[Dense],
) {
    let mut exact = vec![true; scales.len()];
    let mut and = |found: &[bool]| {
        exact
            .iter_mut()
            .zip(found)
            .for_each(|(all, one)| *all &= one);
    };
    if let Some((norm, gain)) = norm {
        let (_, actual) = norm.divided_gain(*gain, scales);
        let same: Vec<bool> = actual
            .iter()
            .zip(&*scales)
            .map(|(a, b)| a.to_bits() == b.to_bits())
            .collect();
        and(&same);
    }
    if let Some(bias) = bias {
        let (_, found) = bias.multiplied(&inverse(scales, bias.values.len()));
        and(found
            .get(found.len().saturating_sub(scales.len())..)
            .unwrap_or_default());
    }
    for router in routers {
        and(&router.multiplied(scales).1);
    }
    let both = scales.iter_mut().zip(&exact);
    both.filter(|(_, exact)| !**exact)
        .for_each(|(scale, _)| *scale = 1.0);
}

/// One over each scale for the last of so many rows, and 1 for those before.
fn inverse(scales: &[f32], n_rows: usize) -> Vec<f32> {
    let before = n_rows.saturating_sub(scales.len());
    let ones = std::iter::repeat_n(1.0, before);
    ones.chain(scales.iter().map(|scale| scale.recip()))
        .collect()
}

/// What the quantizer derives from the inputs of scaled columns.
fn prepare(
    step: &Step,
    work: &QuantizeWork,
    inputs: &Inputs,
    scales: &[f32],
) -> Result<Statistics, Error> {
    let matrix = work.matrix(0);
    let scaled = Arc::new(scaled_inputs(inputs, scales));
    let (target, settings) = (&work.target, &matrix.settings);
    let quantizer = matrix.method.0;
    let prepared: Result<Option<Arc<Prepared>>, _> = quantizer.prepare(
        target,
        scales.len(),
        Some(&scaled),
        settings,
        Backend::detect(),
    );
    Ok(Statistics {
        extremes: Vec::new(),
        prepared: prepared.map_err(|source| Error::Quantize {
            module: step.name.clone(),
            source,
        })?,
    })
}

fn rows_of(step: &Step) -> u64 {
    step.shape.first().copied().unwrap_or(0)
}

/// Rows that are worked on at once.
fn chunk_rows(in_features: u64) -> u64 {
    let rows = CHUNK_VALUES / in_features.max(1);
    (rows / ROW_UNIT * ROW_UNIT).clamp(ROW_UNIT, 4 * ROW_UNIT)
}

/// All rows in chunks, or as many, evenly spread, as have [`SAMPLED_ROWS`] together.
fn chunks(n_rows: u64, in_features: u64, look: Look) -> Vec<Range<u64>> {
    let size = chunk_rows(in_features);
    let n = n_rows.div_ceil(size);
    let wanted = match look {
        Look::All => n,
        Look::Some => n.min(SAMPLED_ROWS.div_ceil(size)),
    };
    let chunk = |i: u64| {
        let start = (i * n / wanted.max(1)) * size;
        start..(start + size).min(n_rows)
    };
    (0..wanted).map(chunk).collect()
}

/// The place of the least number; the first of equals, and none if there is none.
fn least(noise: &[f64]) -> Option<usize> {
    let all = noise.iter().enumerate();
    let least = all.min_by(|(_, a), (_, b)| a.total_cmp(b));
    least.map(|(at, _)| at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_all_rows_once_or_a_sample_of_them() {
        for (n_rows, width) in [(1, 8), (31, 28_672), (4096, 4096), (1000, 1000)] {
            let all = chunks(n_rows, width, Look::All);
            let mut next = 0;
            for chunk in &all {
                assert_eq!(chunk.start, next);
                next = chunk.end;
            }
            assert_eq!(next, n_rows);
            let some = chunks(n_rows, width, Look::Some);
            let n: u64 = some.iter().map(|chunk| chunk.end - chunk.start).sum();
            assert!(
                n >= n_rows.min(SAMPLED_ROWS - chunk_rows(width)),
                "{n_rows} {width}: {n}"
            );
            assert!(some.windows(2).all(|pair| pair[0].end <= pair[1].start));
            assert!(some.iter().all(|chunk| chunk.start % ROW_UNIT == 0));
        }
    }

    #[test]
    fn the_first_of_equals_is_the_least() {
        assert_eq!(least(&[2.0, 1.0, 1.0]), Some(1));
        assert_eq!(least(&[0.0, 0.0]), Some(0));
        assert_eq!(least(&[]), None);
    }
}
