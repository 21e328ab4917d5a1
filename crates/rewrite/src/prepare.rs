//! What quantizers make of the inputs of a matrix before they see its rows: derived once for all matrices that saw the same inputs,
//! one at a time, so that memory is bounded by the largest of them.

use std::collections::HashMap;
use std::sync::Arc;

use safequant_kernels::Backend;
use safequant_quantize::scaling::scaled_inputs;
use safequant_quantize::{Biases, DAMPING, Inputs, Prepared, Settings, Target};

use crate::Error;
use crate::calibration::{self, CalibrationFile, Detail};
use crate::steps::{InputsOf, MatrixWork, Method, QuantizeWork, Step, Work};

/// Bytes of one value of a second moment.
const VALUE_BYTES: u64 = 4;
/// A second moment, and what is derived from it: a factor, and one more matrix of its size.
const MATRICES: u64 = 3;

/// What is at hand.
pub(crate) struct Preparations<'p> {
    file: Option<&'p CalibrationFile>,
    /// The inputs that were read last.
    inputs: Option<(String, Arc<Inputs>)>,
    /// What was derived last.
    derived: Option<Derived>,
    /// Matrices to come that want inputs, by the owner of these.
    to_come: HashMap<&'p str, u64>,
}

/// What a quantizer derived, and from what.
struct Derived {
    owner: Option<String>,
    method: Method,
    settings: Settings,
    target: Target,
    /// What the columns are multiplied by.
    columns: Option<Arc<[f32]>>,
    in_features: usize,
    prepared: Option<Arc<Prepared>>,
}

impl Derived {
    /// Whether it is what a quantizer would derive for this matrix.
    fn is_of(&self, work: &QuantizeWork, matrix: &MatrixWork, in_features: usize) -> bool {
        let owner = matrix.inputs.as_ref().map(|of| of.owner.as_str());
        self.owner.as_deref() == owner
            && self.method == matrix.method
            && self.settings == matrix.settings
            && self.in_features == in_features
            && self.target == work.target
            && self.columns == work.scaling.columns
    }
}

/// Whether something large is to be read and derived, which is not done while tiles are in flight.
pub(crate) fn is_large(matrix: &MatrixWork) -> bool {
    let inputs = matrix.inputs.as_ref();
    inputs.is_some_and(|of| of.detail == Detail::Full)
}

impl<'p> Preparations<'p> {
    /// Nothing at hand, and these steps to come.
    pub(crate) fn new(
        file: Option<&'p CalibrationFile>,
        steps: impl Iterator<Item = &'p Step>,
    ) -> Self {
        let mut to_come = HashMap::new();
        for owner in steps.flat_map(owners) {
            let n: &mut u64 = to_come.entry(owner).or_default();
            *n = n.saturating_add(1);
        }
        Self {
            file,
            inputs: None,
            derived: None,
            to_come,
        }
    }

    /// What is at hand for a matrix; `None` where the quantizer derives nothing.
    ///
    /// # Errors
    /// [`NotAtHand`] if it has to be derived.
    pub(crate) fn at_hand(
        &self,
        work: &QuantizeWork,
        matrix: &MatrixWork,
    ) -> Result<Option<Arc<Prepared>>, NotAtHand> {
        let in_features = usize::try_from(work.layout.in_features()).map_err(|_| NotAtHand)?;
        let derived = self.derived.as_ref().ok_or(NotAtHand)?;
        if derived.is_of(work, matrix, in_features) {
            Ok(derived.prepared.clone())
        } else {
            Err(NotAtHand)
        }
    }

    /// Reads the inputs of a matrix and derives what its quantizer needs of them, in the pool that it is called in.
    ///
    /// # Errors
    /// Those of [`calibration::Calibration::statistics`]; [`Error::Quantize`] for what the quantizer cannot use.
    pub(crate) fn derive(
        &mut self,
        step: &Step,
        work: &QuantizeWork,
        matrix: &MatrixWork,
    ) -> Result<Option<Arc<Prepared>>, Error> {
        let refused = |source| Error::Quantize {
            module: step.name.clone(),
            source,
        };
        let bytes = work.layout.in_features();
        let in_features = usize::try_from(bytes).map_err(|_| Error::AddressSpace {
            module: step.name.clone(),
            bytes,
        })?;
        self.derived = None;
        let inputs = match &matrix.inputs {
            Some(of) => Some(self.read(of, bytes)?),
            None => None,
        };
        let inputs = match (inputs, &work.scaling.columns) {
            (Some(inputs), Some(columns)) => Some(Arc::new(scaled_inputs(&inputs, columns))),
            (inputs, _) => inputs,
        };
        let inputs = match (inputs, matrix.settings.biases) {
            (Some(inputs), Biases::Corrected) => Some(inputs.about_mean().map_or(inputs, Arc::new)),
            (inputs, Biases::Kept | Biases::Corrected) => inputs,
        };
        let prepared = matrix.method.0.prepare(
            &work.target,
            in_features,
            inputs.as_ref(),
            &matrix.settings,
            Backend::detect(),
        );
        let prepared = prepared.map_err(refused)?;
        self.derived = Some(Derived {
            owner: matrix.inputs.as_ref().map(|of| of.owner.clone()),
            method: matrix.method,
            settings: matrix.settings,
            target: work.target.clone(),
            columns: work.scaling.columns.clone(),
            in_features,
            prepared: prepared.clone(),
        });
        Ok(prepared)
    }

    /// The inputs of a matrix, which may be those of the one before.
    fn read(&mut self, of: &InputsOf, in_features: u64) -> Result<Arc<Inputs>, Error> {
        if let Some((owner, inputs)) = &self.inputs
            && *owner == of.owner
        {
            return Ok(Arc::clone(inputs));
        }
        self.inputs = None;
        let gone = || Error::CalibrationGone {
            module: of.module.clone(),
        };
        let file = self.file.ok_or_else(gone)?.calibration();
        let found = match of.expert {
            Some(expert) => file.expert_statistics(&of.module, expert, in_features)?,
            None => file.statistics(&of.module, in_features)?,
        };
        let inputs = Arc::new(as_inputs(found.ok_or_else(gone)?));
        self.inputs = Some((of.owner.clone(), Arc::clone(&inputs)));
        Ok(inputs)
    }

    /// The last tile of a matrix is on its way: what no other matrix wants is let go.
    pub(crate) fn used(&mut self, matrix: &MatrixWork) {
        let Some(of) = &matrix.inputs else {
            return;
        };
        let n = self.to_come.get_mut(of.owner.as_str());
        let left = n.map_or(0, |n| {
            *n = n.saturating_sub(1);
            *n
        });
        if left == 0 {
            self.inputs = None;
            self.derived = None;
        }
    }
}

/// It has to be derived first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotAtHand;

/// The owners of the inputs of a step's matrices.
fn owners(step: &Step) -> impl Iterator<Item = &str> {
    let matrices = match &step.work {
        Work::Quantize(work) => work.matrices.as_slice(),
        Work::Copy | Work::Drop | Work::Dense(_) | Work::Content(_) | Work::Transcode(_) => &[],
    };
    let inputs = matrices.iter().filter_map(|matrix| matrix.inputs.as_ref());
    inputs.map(|of| of.owner.as_str())
}

/// The owner of the inputs of a step's first matrix.
pub(crate) fn first_owner(step: &Step) -> Option<&str> {
    owners(step).next()
}

/// Bytes of the largest second moment that steps need and of what is derived from it.
pub(crate) fn peak_bytes(steps: &[Step]) -> u64 {
    let of_step = |step: &Step| {
        let Work::Quantize(work) = &step.work else {
            return 0;
        };
        let columns = work.layout.in_features();
        let values = |of: &InputsOf| match of.detail {
            Detail::Full => columns.saturating_mul(columns),
            Detail::Diagonal => columns,
        };
        let bytes = |matrix: &MatrixWork| {
            let n_matrices = match matrix.settings.biases {
                Biases::Kept => MATRICES,
                // Beside the moment itself there is that about the mean.
                Biases::Corrected => MATRICES + 1,
            };
            let inputs = matrix.inputs.as_ref().map_or(0, values);
            inputs.saturating_mul(n_matrices * VALUE_BYTES)
        };
        work.matrices.iter().map(bytes).max().unwrap_or(0)
    };
    steps.iter().map(of_step).max().unwrap_or(0)
}

/// What is worth a line about what was derived.
pub(crate) fn note(
    step: &Step,
    matrix: &MatrixWork,
    prepared: Option<&Prepared>,
) -> Option<String> {
    let used = prepared?.damping()?;
    let asked = matrix.settings.damping.unwrap_or(DAMPING);
    // A matrix that could not be factored with what was asked for gets at least twice as much.
    (used > 1.5 * asked).then(|| {
        format!(
            "{}: the second moment is not positive definite with a damping of {asked}: it is raised to {used:.3}",
            step.name
        )
    })
}

pub(crate) fn as_inputs(found: calibration::Statistics) -> Inputs {
    Inputs {
        in_features: found.in_features,
        token_count: found.token_count,
        second_moment: found.second_moment,
        mean: found.mean,
        cross: None,
    }
}
