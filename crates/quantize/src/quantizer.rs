//! The seam of all quantizers: rows of floats and a target in, codes and scales out.

use safequant_kernels::{Backend, CodeForm, Float, Floats, Stores};
use safequant_schemes::{CodeTile, Granularity, Scheme, SuperScale};

pub use safequant_schemes::ScaleRule;

use std::sync::Arc;

use crate::Error;
use crate::inputs::{Inputs, Needs, OutputLoss, Settings};
use crate::prepared::Prepared;
use crate::quantizers::{RoundToNearest, Searched};

/// What to quantize to.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// Codes, granularity, scale dtype, zero point: from the convention's layout.
    pub scheme: Scheme,
    /// How scale and zero point are chosen.
    pub rule: ScaleRule,
    /// Where divisions round.
    pub division: Division,
    /// What to do with NaN and infinities.
    pub nonfinite: NonFinite,
}

/// The precision in which a weight is divided by its scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Division {
    /// In the dtype of the dense weight, as the reference tools do on a CPU.
    SourceDtype,
    /// In F32, as compressed-tensors 0.19 does on a GPU: closer to the weight.
    F32,
}

/// What to do with NaN and infinities in a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NonFinite {
    /// Refuse, naming row and column.
    Refuse,
    /// NaN becomes 0, an infinity the largest finite value of the source dtype with its sign.
    Clamp,
}

/// Consecutive rows of one weight.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// `[n_rows, in_features]`, row-major: the stored bytes, or what was calculated.
    pub values: Floats<'a>,
    /// Input features.
    pub in_features: usize,
    /// Row of the stack that `values` begins with; a multiple of `encode::row_unit`.
    pub first_row: u64,
    /// Output features of one matrix of the stack: blocks do not cross it.
    pub out_features: u64,
    /// The dtype the weight is stored in.
    pub source: Float,
}

impl Rows<'_> {
    /// How many rows there are: 0 if they have no input features.
    ///
    /// # Panics
    /// If the values are no whole number of rows.
    pub fn n_rows(&self) -> usize {
        let Some(rest) = self.values.len().checked_rem(self.in_features) else {
            assert!(self.values.is_empty(), "values without input features");
            return 0;
        };
        assert_eq!(rest, 0, "the values must be whole rows");
        self.values.len() / self.in_features
    }
}

/// Where quantized rows go. Nothing of it is allocated anew, if the caller keeps it.
#[derive(Debug)]
pub struct Output<'a> {
    /// The codes of all rows as one packed run.
    pub codes: &'a mut [u8],
    /// How codes are stored: rows are whole units of the packing.
    pub form: CodeForm,
    /// How codes reach memory.
    pub stores: Stores,
    /// Everything else: whatever it held is replaced, and it has no codes.
    pub tile: &'a mut CodeTile,
    /// What each row's outputs lose on the calibration inputs: whatever it held is replaced. Empty where their whole second moment
    /// is not known, or the quantizer does not look.
    pub output_losses: &'a mut Vec<OutputLoss>,
}

/// What must be known of the whole weight (or of fused siblings together) before a row can be quantized. Merging is
/// order-free, so tiles can be observed in parallel.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Statistics {
    /// For each matrix of the stack its smallest and largest value, both including 0.
    pub extremes: Vec<(f32, f32)>,
    /// What [`Quantizer::prepare`] made for the matrix whose rows are quantized.
    pub prepared: Option<Arc<Prepared>>,
}

impl Statistics {
    /// Merges another part's extremes into these.
    pub fn merge(&mut self, other: &Statistics) {
        self.extremes
            .resize(self.extremes.len().max(other.extremes.len()), (0.0, 0.0));
        for (mine, theirs) in self.extremes.iter_mut().zip(&other.extremes) {
            *mine = (mine.0.min(theirs.0), mine.1.max(theirs.1));
        }
    }
}

/// What a quantizer holds beside the rows it works on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RowWork {
    /// Rows that it likes to be given at once; 0 if it takes each for itself.
    pub n_rows: u64,
    /// Bytes for each row.
    pub bytes_per_row: u64,
}

/// An algorithm that chooses codes and scales. It sees rows and a target, never a name or a file.
pub trait Quantizer: Sync {
    /// The word for `--method`.
    fn id(&self) -> &'static str;

    /// One line for `--help`.
    fn summary(&self) -> &'static str;

    /// Whether [`Quantizer::observe`] must see every row before [`Quantizer::quantize`] is called.
    fn needs_statistics(&self, target: &Target) -> bool {
        let scheme = &target.scheme;
        matches!(scheme.granularity, Granularity::Tensor)
            || matches!(
                scheme.super_scale,
                SuperScale::Multiply | SuperScale::Divide
            )
    }

    /// What it does with what is known of the inputs.
    fn needs(&self) -> Needs {
        Needs::Nothing
    }

    /// Derives what all rows of one matrix need, from its inputs (which it may keep): for [`Statistics::prepared`], without which a quantizer with
    /// needs must not be asked to quantize. Uses the threads of the pool that it is called in; the result does not depend on how
    /// many they are.
    ///
    /// # Errors
    /// [`Error::Inputs`] for a second moment that is none, or missing though it is needed.
    fn prepare(
        &self,
        _target: &Target,
        _in_features: usize,
        _inputs: Option<&Arc<Inputs>>,
        _settings: &Settings,
        _backend: &'static Backend,
    ) -> Result<Option<Arc<Prepared>>, Error> {
        Ok(None)
    }

    /// The rows that it likes to be given at once, if it does not take a row for itself, and the bytes it holds beside them for
    /// each of them.
    fn work(&self, _target: &Target, _in_features: u64) -> RowWork {
        RowWork::default()
    }

    /// Statistics of some rows.
    ///
    /// # Errors
    /// A non-finite weight, if the target refuses it.
    fn observe(
        &self,
        target: &Target,
        rows: Rows<'_>,
        backend: &'static Backend,
    ) -> Result<Statistics, Error>;

    /// Codes, scales and zero points of some rows, the codes as they are stored.
    ///
    /// # Errors
    /// A non-finite weight, or a scale that the stored dtype cannot hold: what the output then holds means nothing.
    ///
    /// # Panics
    /// If the output has not the length of the packed rows, or these are no whole units of the packing.
    fn quantize_into(
        &self,
        target: &Target,
        rows: Rows<'_>,
        statistics: Option<&Statistics>,
        output: Output<'_>,
        backend: &'static Backend,
    ) -> Result<(), Error>;

    /// Codes, scales and zero points of some rows, one code to a byte.
    ///
    /// # Errors
    /// As [`Quantizer::quantize_into`].
    fn quantize(
        &self,
        target: &Target,
        rows: Rows<'_>,
        statistics: Option<&Statistics>,
        backend: &'static Backend,
    ) -> Result<CodeTile, Error> {
        let (mut codes, mut tile) = (vec![0; rows.values.len()], CodeTile::default());
        let output = Output {
            codes: &mut codes,
            form: CodeForm::BYTES,
            stores: Stores::Ordinary,
            tile: &mut tile,
            output_losses: &mut Vec::new(),
        };
        self.quantize_into(target, rows, statistics, output, backend)?;
        tile.codes = codes;
        Ok(tile)
    }
}

/// Every quantizer.
pub static QUANTIZERS: &[&dyn Quantizer] = &[
    &RoundToNearest,
    &Searched::MeanSquares,
    &Searched::HalfQuadratic,
    &Searched::Feedback,
    &Searched::Refine,
];
