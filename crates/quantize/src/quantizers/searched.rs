//! Quantizers that search: for scales (`mse`, `hqq`), with the errors of columns passed on (`gptq`), and with sweeps over codes and
//! scales after that (`refine`). Spec: `specs/quantizers/searched.md`.

mod tile;

use std::sync::Arc;

use safequant_kernels::Backend;
use safequant_schemes::Granularity;

use self::tile::Tile;
pub(crate) use self::tile::append_codes;
use super::RoundToNearest;
use super::round_to_nearest::{check_output, with_finite};
use crate::lattice;
use crate::prepared::{Prepared, factored, weigh};
use crate::quantizer::RowWork;
use crate::{Error, Inputs, Needs, Output, Quantizer, Rows, Settings, Statistics, Target};

/// A quantizer that searches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Searched {
    /// The scales with the least squared error, each weight to the nearest level.
    MeanSquares,
    /// Scales and offsets by half-quadratic splitting, each weight to the nearest level.
    HalfQuadratic,
    /// Searched scales, then error feedback.
    Feedback,
    /// Error feedback, then sweeps over codes and scales.
    Refine,
}

impl Quantizer for Searched {
    fn id(&self) -> &'static str {
        match self {
            Self::MeanSquares => "mse",
            Self::HalfQuadratic => "hqq",
            Self::Feedback => "gptq",
            Self::Refine => "refine",
        }
    }

    fn summary(&self) -> &'static str {
        match self {
            Self::MeanSquares => {
                "scales by search for the least squared error, weighted by the inputs' second moment where it is known"
            }
            Self::HalfQuadratic => {
                "half-quadratic scales and offsets, without data: for schemes with float offsets"
            }
            Self::Feedback => {
                "error feedback (GPTQ) with fixed groups and searched scales; needs --calibration with the whole second moment"
            }
            Self::Refine => {
                "gptq, then sweeps over codes and scales, the more the higher --effort; needs the same"
            }
        }
    }

    fn needs(&self) -> Needs {
        match self {
            Self::HalfQuadratic => Needs::Nothing,
            Self::MeanSquares => Needs::Welcome,
            Self::Feedback | Self::Refine => Needs::SecondMoment,
        }
    }

    fn prepare(
        &self,
        target: &Target,
        in_features: usize,
        inputs: Option<&Arc<Inputs>>,
        settings: &Settings,
        backend: &'static Backend,
    ) -> Result<Option<Arc<Prepared>>, Error> {
        let prepared = match self {
            Self::HalfQuadratic => Prepared::of_nothing(in_features, *settings),
            Self::MeanSquares => weigh(inputs, in_features, settings)?,
            Self::Feedback | Self::Refine => {
                let size = target.scheme.granularity.group_size();
                let group = size.and_then(|size| usize::try_from(size).ok());
                let group = group.unwrap_or(in_features);
                let (settings, group) = lattice::ordered(&target.scheme, settings, group);
                factored(inputs, in_features, group, &settings, backend)?
            }
        };
        Ok(Some(Arc::new(prepared)))
    }

    fn work(&self, target: &Target, in_features: u64) -> RowWork {
        // Values, levels and what is left of them, at the highest effort of four hypotheses; for sweeps their gradient, errors and
        // scales, and what those are moved by.
        let buffers = match self {
            Self::MeanSquares | Self::HalfQuadratic => 4,
            Self::Feedback => 16,
            Self::Refine => 20,
        };
        let n_rows = match target.scheme.granularity {
            Granularity::Block { rows, .. } => tile::ROWS.next_multiple_of(rows.max(1)),
            Granularity::Tensor
            | Granularity::Channel
            | Granularity::Group { .. }
            | Granularity::IndexedGroup { .. }
            | Granularity::Flat { .. }
            | Granularity::Strided { .. } => tile::ROWS,
        };
        RowWork {
            n_rows,
            bytes_per_row: buffers * 4 * in_features,
        }
    }

    fn observe(
        &self,
        target: &Target,
        rows: Rows<'_>,
        backend: &'static Backend,
    ) -> Result<Statistics, Error> {
        RoundToNearest.observe(target, rows, backend)
    }

    fn quantize_into(
        &self,
        target: &Target,
        rows: Rows<'_>,
        statistics: Option<&Statistics>,
        mut output: Output<'_>,
        backend: &'static Backend,
    ) -> Result<(), Error> {
        check_output(&rows, &output);
        output.output_losses.clear();
        let mut codes = with_finite(target, &rows, backend, |values| {
            output.tile.clear();
            output.output_losses.clear();
            let values = values.widened(backend);
            if (backend.first_non_finite)(&values).is_some() {
                return Err(super::round_to_nearest::Stop::NonFinite);
            }
            let mut tile = Tile::new((*self, target), &rows, statistics, &mut output, backend)?;
            tile.quantize(&values)?;
            Ok(tile.codes)
        })?;
        for code in &mut codes {
            *code ^= output.form.flip;
        }
        (backend.pack)(output.form.packing, &codes, output.codes);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
