//! What must be known of a matrix before its tiles are handed out: the extremes of whole weights, and what quantizers derive from what
//! is known of the inputs.

use std::sync::Arc;

use rayon::prelude::*;
use safequant_quantize::{Prepared, Statistics};

use super::Pipeline;
use crate::prepare;
use crate::steps::{MatrixWork, QuantizeWork, Step, Work};
use crate::tile::StepContext;
use crate::{Error, Event};

/// What is known of a matrix before its tiles are handed out.
pub(super) enum Ready {
    /// So much.
    Now(Option<Arc<Statistics>>),
    /// The tiles in flight must come back first.
    AfterTiles,
}

impl<'p> Pipeline<'_, 'p> {
    /// What the tiles of the cursor's matrix need to know.
    pub(super) fn known_of(&mut self, step: &'p Step) -> Result<Ready, Error> {
        let Work::Quantize(work) = &step.work else {
            return Ok(Ready::Now(None));
        };
        let (i, tile) = self.cursor;
        let index = step.matrix(tile);
        if let Some((at, matrix, known)) = &self.matrix
            && (*at, *matrix) == (i, index)
        {
            return Ok(Ready::Now(known.clone()));
        }
        let Ready::Now(observed) = self.statistics_of(work)? else {
            return Ok(Ready::AfterTiles);
        };
        let matrix = work.matrix(index);
        if work.start.is_some() && matrix.inputs.is_none() {
            // Codes that nothing is known about stay.
            return Ok(Ready::Now(None));
        }
        let prepared = match self.preparations.at_hand(work, matrix) {
            Ok(prepared) => prepared,
            Err(_) if prepare::is_large(matrix) && !self.in_flight.is_empty() => {
                return Ok(Ready::AfterTiles);
            }
            Err(_) if prepare::is_large(matrix) => self.derive(step, work, matrix)?,
            // Not worth waiting for a worker.
            Err(_) => self.preparations.derive(step, work, matrix)?,
        };
        let known = match prepared {
            None => observed,
            Some(prepared) => Some(Arc::new(Statistics {
                extremes: observed.map_or_else(Vec::new, |seen| seen.extremes.clone()),
                prepared: Some(prepared),
            })),
        };
        self.matrix = Some((i, index, known.clone()));
        Ok(Ready::Now(known))
    }

    /// Derives what a quantizer needs of a second moment, on all threads.
    fn derive(
        &mut self,
        step: &Step,
        work: &QuantizeWork,
        matrix: &MatrixWork,
    ) -> Result<Option<Arc<Prepared>>, Error> {
        self.check_cancel()?;
        let began = self.outputs.listener().seconds();
        let preparations = &mut self.preparations;
        let derived = self
            .pool
            .install(|| preparations.derive(step, work, matrix))?;
        let ended = self.outputs.listener().seconds();
        self.deriving = began.zip(ended).map(|(a, b)| (b - a).max(0.0));
        if let Some(text) = prepare::note(step, matrix, derived.as_deref()) {
            self.outputs.event(Event::Note { text: &text });
        }
        Ok(derived)
    }

    /// The last tile of a matrix is handed out: its tiles hold what they need.
    pub(super) fn leave(&mut self, step: &Step, index: u64) {
        self.matrix = None;
        if let Work::Quantize(work) = &step.work {
            self.preparations.used(work.matrix(index));
        }
    }

    /// Statistics that a step needs of its whole weight, and of those that share scales with it.
    fn statistics_of(&mut self, work: &QuantizeWork) -> Result<Ready, Error> {
        let Some(group) = work.statistics else {
            return Ok(Ready::Now(None));
        };
        if self.statistics[group].is_none() {
            // Taking them uses the budget too.
            if !self.in_flight.is_empty() {
                return Ok(Ready::AfterTiles);
            }
            let mut merged = Statistics::default();
            for &i in &self.plan.job.statistics[group] {
                merged.merge(&self.observe(i)?);
            }
            self.statistics[group] = Some(Arc::new(merged));
        }
        Ok(Ready::Now(self.statistics[group].clone()))
    }

    /// Statistics of one step: a first pass over its source, in waves that fit the budget.
    fn observe(&mut self, i: usize) -> Result<Statistics, Error> {
        let step = &self.plan.job.steps[i];
        let budget = self.plan.job.budget;
        let context = StepContext::new(i, step, self.plan.checkpoint, None)?;
        let width = budget.width(step);
        self.peak_bytes = self.peak_bytes.max(width * step.tiling.need_bytes);
        let mut merged = Statistics::default();
        let mut next = 0;
        while next < step.n_tiles() {
            self.check_cancel()?;
            let wave = next..(next + width).min(step.n_tiles());
            next = wave.end;
            let observe = |tile| {
                let mut scratch = self.scratches.take();
                let seen = context.observe(&step.tile(tile), &mut scratch);
                self.scratches.give_back(scratch);
                seen
            };
            let seen: Vec<Result<Statistics, Error>> = self
                .pool
                .install(|| wave.into_par_iter().map(observe).collect());
            for statistics in seen {
                merged.merge(&statistics?);
            }
        }
        Ok(merged)
    }
}
