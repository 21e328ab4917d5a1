//! How much a checkpoint has lost against the one it was made of: both are streamed, aligned by the names of dense weights.

use std::ops::Range;
use std::path::Path;

use rayon::iter::{IntoParallelRefIterator, ParallelIterator};
use safequant_container::{
    Checkpoint, CheckpointKind, FileSource, Manifest, ManifestModule, ReadAt,
};
use safequant_kernels::{Backend, Float, Floats};
use safequant_schemes::scheme::float_of;
use safequant_schemes::{Code, DenseTensor, DenseView, Error, Model, OutputDtype, QuantizedTensor};

use crate::measure::{CodeStatistics, Measured};
use crate::{ModuleName, Part};

/// What one weight has lost.
#[derive(Clone, Debug, PartialEq)]
pub struct Loss {
    /// The module.
    pub module: String,
    /// Values compared: those that are finite in the reference.
    pub n_values: u64,
    /// Sum of the squares of the reference.
    pub signal: f64,
    /// Sum of the squares of the differences.
    pub noise: f64,
    /// Sum of the squares of what is left.
    pub energy: f64,
    /// The largest magnitude of a difference.
    pub max_error: f32,
    /// The share of codes at either end of their range; known at full depth, for integers and small floats.
    pub saturated: Option<f64>,
}

impl Loss {
    /// Square root of noise over signal; 0 where nothing is lost, infinite where nothing was there.
    pub fn relative_l2(&self) -> f64 {
        if self.noise == 0.0 {
            0.0
        } else {
            (self.noise / self.signal).sqrt()
        }
    }

    /// Signal over noise in decibels; infinite where nothing is lost.
    pub fn sqnr_db(&self) -> f64 {
        if self.noise == 0.0 {
            f64::INFINITY
        } else {
            10.0 * (self.signal / self.noise).log10()
        }
    }

    /// The cosine of the angle between both, as one vector each: by the law of cosines.
    pub fn cosine(&self) -> f64 {
        let product = (self.signal + self.energy - self.noise) / 2.0;
        let lengths = (self.signal * self.energy).sqrt();
        if lengths == 0.0 {
            1.0
        } else {
            product / lengths
        }
    }
}

/// What all weights have lost.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Losses {
    /// Quantized weights that the reference has too, the worst first (by [`Loss::sqnr_db`], then by name).
    pub modules: Vec<Loss>,
    /// Quantized weights that could not be compared, each with the reason.
    pub unmatched: Vec<(String, String)>,
    /// What the run that quantized it measured, as our manifest has it: by which method, and what outputs lose on its calibration
    /// inputs. Empty without a manifest that says so.
    pub recorded: Vec<ManifestModule>,
}

/// The losses of one part of the blocks (all `q_proj`, all experts' `down_proj`), together.
#[derive(Clone, Debug, PartialEq)]
pub struct PartLoss {
    /// Which part.
    pub part: Part,
    /// Whether of experts.
    pub of_experts: bool,
    /// Modules.
    pub n_modules: usize,
    /// Their sums; `module` is the worst one's name.
    pub sum: Loss,
}

impl Losses {
    /// Sums by part, in the order of a block; experts for themselves.
    pub fn by_part(&self) -> Vec<PartLoss> {
        let mut parts: Vec<PartLoss> = Vec::new();
        for loss in &self.modules {
            let name = ModuleName::parse(&loss.module);
            let (part, of_experts) = (name.part, name.expert.is_some());
            let known = parts.iter_mut();
            match known
                .into_iter()
                .find(|p| (p.part, p.of_experts) == (part, of_experts))
            {
                Some(known) => {
                    known.n_modules += 1;
                    known.sum.add(loss);
                }
                None => parts.push(PartLoss {
                    part,
                    of_experts,
                    n_modules: 1,
                    sum: loss.clone(),
                }),
            }
        }
        parts.sort_by_key(|part| (part.of_experts, part.part));
        parts
    }

    /// The methods of what was recorded, and the mean of the errors of outputs, as shares of these, where they are known.
    pub fn recorded_summary(&self) -> Option<(String, Option<f64>)> {
        let mut methods: Vec<&str> = self.recorded.iter().map(|m| m.method.as_str()).collect();
        methods.sort_unstable();
        methods.dedup();
        let errors: Vec<f64> = self
            .recorded
            .iter()
            .filter_map(|m| m.losses.output_error())
            .collect();
        let mean = errors.iter().sum::<f64>() / real(errors.len() as u64);
        let mean = (!errors.is_empty()).then_some(mean);
        (!methods.is_empty()).then(|| (methods.join(", "), mean))
    }

    /// All together; `None` where nothing was compared.
    pub fn total(&self) -> Option<Loss> {
        let mut all = self.modules.iter();
        let mut total = all.next()?.clone();
        all.for_each(|loss| total.add(loss));
        Some(total)
    }
}

impl Loss {
    /// Adds what another weight has lost; the name stays.
    fn add(&mut self, other: &Loss) {
        let share = |loss: &Loss| Some((loss.saturated?, loss.n_values));
        self.saturated = share(self)
            .zip(share(other))
            .map(|((a, m), (b, n))| (a * real(m) + b * real(n)) / real((m + n).max(1)));
        self.n_values += other.n_values;
        self.signal += other.signal;
        self.noise += other.noise;
        self.energy += other.energy;
        self.max_error = self.max_error.max(other.max_error);
    }
}

/// Compares every quantized weight of `checkpoint` with the same dense weight of `reference`, which may be quantized itself.
///
/// Weights are decoded to F32; the reference is read in its own dtype. Sums are F64. `measured`: what a full scan has counted, for the
/// share of saturated codes.
///
/// # Errors
/// What cannot be read.
pub fn losses(
    (checkpoint, model): (&Checkpoint, &Model),
    (reference, reference_model): (&Checkpoint, &Model),
    measured: &Measured,
) -> Result<Losses, Error> {
    let backend = Backend::detect();
    let dtype = OutputDtype::Float(Float::F32);
    let ours = DenseView::new(checkpoint, model, dtype, backend);
    let theirs = DenseView::new(reference, reference_model, OutputDtype::Auto, backend);
    let compared: Vec<_> = model
        .quantized
        .par_iter()
        .map(|tensor| {
            let pair = (ours.tensor(&tensor.weight)?, theirs.tensor(&tensor.weight)?);
            let result = match pair {
                (Some(our), Some(their)) => of_weight(&our, &their, backend)?,
                (_, _) => Err("the reference has no such weight".to_owned()),
            };
            Ok((tensor, result))
        })
        .collect::<Result<_, Error>>()?;
    let mut losses = Losses {
        recorded: recorded(checkpoint),
        ..Losses::default()
    };
    for (tensor, result) in compared {
        match result {
            Ok(mut loss) => {
                loss.module.clone_from(&tensor.module);
                let statistics = measured.weights.get(&tensor.module);
                let codes = statistics.and_then(|statistics| statistics.codes.as_ref());
                loss.saturated = codes.and_then(|codes| saturated_share(tensor, codes));
                losses.modules.push(loss);
            }
            Err(why) => losses.unmatched.push((tensor.module.clone(), why)),
        }
    }
    losses.modules.sort_by(|a, b| {
        let by_loss = a.sqnr_db().total_cmp(&b.sqnr_db());
        by_loss.then_with(|| a.module.cmp(&b.module))
    });
    Ok(losses)
}

/// What the manifest says of quantized modules; a manifest that is wrong is for a rule to say.
fn recorded(checkpoint: &Checkpoint) -> Vec<ManifestModule> {
    let bytes = checkpoint.document(Manifest::FILE_NAME);
    let bytes = bytes.map(<[u8]>::to_vec).or_else(|| beside(checkpoint));
    let manifest = bytes.and_then(|bytes| Manifest::from_json(&bytes).ok());
    manifest.map_or_else(Vec::new, |manifest| manifest.modules)
}

/// The manifest in the directory of a checkpoint, of which it is no document.
fn beside(checkpoint: &Checkpoint) -> Option<Vec<u8>> {
    let given = Path::new(checkpoint.name());
    let directory = match checkpoint.kind() {
        CheckpointKind::File => return None,
        CheckpointKind::Directory => given,
        CheckpointKind::Index => given.parent()?,
    };
    let file = FileSource::open(&directory.join(Manifest::FILE_NAME)).ok()?;
    let len_bytes = file.len_bytes();
    let most_bytes = checkpoint.limits().max_document_bytes;
    let len = usize::try_from(len_bytes).ok();
    let len = len.filter(|_| len_bytes <= most_bytes)?;
    let mut bytes = vec![0; len];
    file.read_exact_at(0, &mut bytes).ok()?;
    Some(bytes)
}

/// One weight, or why it cannot be compared.
fn of_weight(
    our: &DenseTensor<'_>,
    their: &DenseTensor<'_>,
    backend: &Backend,
) -> Result<Result<Loss, String>, Error> {
    if our.shape != their.shape {
        return Ok(Err(format!(
            "its shape is {:?}, the reference's {:?}",
            our.shape, their.shape
        )));
    }
    let Some(float) = float_of(their.dtype) else {
        return Ok(Err(format!("the reference holds it as {}", their.dtype)));
    };
    let mut sum = Loss {
        module: String::new(),
        n_values: 0,
        signal: 0.0,
        noise: 0.0,
        energy: 0.0,
        max_error: 0.0,
        saturated: None,
    };
    let (mut decoded, mut original) = (Vec::new(), Vec::new());
    for rows in our.tiles(0..our.n_rows()) {
        read(our, rows.clone(), &mut decoded)?;
        read(their, rows, &mut original)?;
        let decoded = Floats::Bytes(Float::F32, &decoded);
        let difference = (backend.compare)(Floats::Bytes(float, &original), decoded);
        sum.n_values += difference.n_values;
        sum.signal += difference.signal;
        sum.noise += difference.noise;
        sum.max_error = sum.max_error.max(difference.max_error);
        sum.energy += (backend.compare)(decoded, decoded).signal;
    }
    Ok(Ok(sum))
}

/// The share of codes at either end: the lowest and the highest integer in use, or the largest finite magnitudes of a small float.
fn saturated_share(tensor: &QuantizedTensor, codes: &CodeStatistics) -> Option<f64> {
    let used = |code: &usize| codes.histogram[*code] > 0;
    let ends: Vec<usize> = match tensor.scheme.code {
        Code::Integer { .. } => {
            let (first, last) = ((0..256).find(used)?, (0..256).rfind(used)?);
            if first == last {
                vec![first]
            } else {
                vec![first, last]
            }
        }
        Code::Minifloat(format) => {
            let table = format.table();
            let magnitude = |code: &usize| table[*code].abs();
            let finite = (0..256).filter(|code| magnitude(code).is_finite());
            let most = finite.map(|code| magnitude(&code)).fold(0.0, f32::max);
            (0..256)
                .filter(|code| magnitude(code) >= most && magnitude(code).is_finite())
                .collect()
        }
        Code::Codebook(_) | Code::StoredCodebook | Code::Dense(_) => return None,
    };
    let at_ends: u64 = ends.into_iter().map(|code| codes.histogram[code]).sum();
    Some(real(at_ends) / real(codes.n().max(1)))
}

fn read(tensor: &DenseTensor<'_>, rows: Range<u64>, out: &mut Vec<u8>) -> Result<(), Error> {
    let len = (rows.end - rows.start).saturating_mul(tensor.row_bytes());
    let too_large = || Error::TooLarge {
        module: tensor.name.to_owned(),
        what: "a tile of rows",
    };
    let len = usize::try_from(len).map_err(|_| too_large())?;
    out.clear();
    out.try_reserve_exact(len).map_err(|_| too_large())?;
    out.resize(len, 0);
    tensor.rows(rows, out)
}

#[expect(
    clippy::cast_precision_loss,
    reason = "weights of an average: 53 bits are more than are shown"
)]
fn real(n: u64) -> f64 {
    n as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loss(module: &str, signal: f64, noise: f64, energy: f64) -> Loss {
        Loss {
            module: module.to_owned(),
            n_values: 4,
            signal,
            noise,
            energy,
            max_error: 0.5,
            saturated: Some(0.25),
        }
    }

    #[test]
    fn figures_follow_from_the_sums() {
        // (3, 4) became (4, 3).
        let turned = loss("a", 25.0, 2.0, 25.0);
        assert!((turned.cosine() - 24.0 / 25.0).abs() < 1e-12);
        assert!((turned.relative_l2() - (2.0_f64 / 25.0).sqrt()).abs() < 1e-12);
        assert!((turned.sqnr_db() - 10.969_100_13).abs() < 1e-6);
        let same = loss("a", 25.0, 0.0, 25.0);
        assert_eq!((same.relative_l2(), same.sqnr_db()), (0.0, f64::INFINITY));
        assert!((loss("z", 0.0, 0.0, 0.0).cosine() - 1.0).abs() < 1e-12);
    }

    #[test]
    fn parts_are_summed_and_experts_stand_for_themselves() {
        let losses = Losses {
            modules: vec![
                loss("layers.0.mlp.experts.1.up_proj", 1.0, 0.5, 1.0),
                loss("layers.1.mlp.up_proj", 1.0, 0.25, 1.0),
                loss("layers.0.mlp.up_proj", 3.0, 0.25, 3.0),
            ],
            unmatched: Vec::new(),
            recorded: Vec::new(),
        };
        let parts = losses.by_part();
        let what: Vec<_> = parts
            .iter()
            .map(|p| (p.part, p.of_experts, p.n_modules))
            .collect();
        assert_eq!(what, [(Part::Up, false, 2), (Part::Up, true, 1)]);
        assert!((parts[0].sum.noise - 0.5).abs() < 1e-12);
        assert_eq!(losses.total().map(|total| total.n_values), Some(12));
    }
}
