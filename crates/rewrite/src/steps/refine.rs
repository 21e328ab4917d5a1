//! `refine`: which weights get better codes, and which stay as they are, and why.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use safequant_container::{Checkpoint, TensorRef};
use safequant_kernels::Backend;
use safequant_quantize::quantizer::{Division, NonFinite};
use safequant_quantize::{Target, can_recode};
use safequant_schemes::convention::convention;
use safequant_schemes::pattern::Pattern;
use safequant_schemes::scheme::float_of;
use safequant_schemes::{Convention, Model, Part, QuantizedTensor, Role, Storage};

use super::method::{check_width, entry};
use super::{
    DenseSource, InputsOf, Key, MAX_NAMED, MatrixWork, Method, Ordered, Output, QuantizeWork,
    Scaling, Step, Steps, Work, is_dense, named, stored,
};
use crate::calibration::Detail;
use crate::{Action, Error, RefineRecipe};

/// The method that a refined module is reported with.
const REFINE: &str = "refine";

/// Bytes of a norm's weights, at most: what is longer is none.
const MAX_NORM_BYTES: u64 = 4 << 20;

/// Every quantized weight of which the original and the statistics are known gets better codes; everything else is copied, and so are all
/// parts but the codes.
pub(crate) fn refine(
    checkpoint: &Checkpoint,
    model: &Model,
    recipe: &RefineRecipe,
) -> Result<Steps, Error> {
    if model.quantized.is_empty() {
        return Err(Error::NothingQuantized {
            source_name: checkpoint.name().to_owned(),
        });
    }
    check_norms(checkpoint, model, recipe.reference.checkpoint())?;
    let ignore = recipe.ignore.iter().map(|text| Pattern::new(text));
    let mut builder = Builder {
        checkpoint,
        recipe,
        ignore: ignore.collect::<Result<_, _>>()?,
        owners: owners(model),
        ordered: Ordered::default(),
        written: BTreeSet::new(),
        kept: BTreeMap::new(),
        n_known: 0,
        n_asked: 0,
        n_refined: 0,
        n_unseen: 0,
    };
    for tensor in &model.quantized {
        builder.add(tensor)?;
    }
    builder.finish()
}

/// How many weights each stored tensor is a part of.
fn owners(model: &Model) -> HashMap<&str, usize> {
    let mut owners: HashMap<&str, usize> = HashMap::new();
    for part in model.quantized.iter().flat_map(|tensor| &tensor.parts) {
        *owners.entry(part.name.as_str()).or_default() += 1;
    }
    owners
}

struct Builder<'a> {
    checkpoint: &'a Checkpoint,
    recipe: &'a RefineRecipe,
    ignore: Vec<Pattern>,
    owners: HashMap<&'a str, usize>,
    ordered: Ordered,
    /// Tensors that a step writes.
    written: BTreeSet<String>,
    /// Modules that stay as they are, by the reason.
    kept: BTreeMap<String, Vec<String>>,
    /// Modules with an entry in the calibration file, of those that were looked up.
    n_known: usize,
    n_asked: usize,
    n_refined: usize,
    /// Matrices of refined stacks whose codes stay.
    n_unseen: usize,
}

impl Builder<'_> {
    fn add(&mut self, tensor: &QuantizedTensor) -> Result<(), Error> {
        if is_dense(tensor) {
            return Ok(());
        }
        for pattern in &self.ignore {
            if pattern.is_match(&tensor.module)? {
                return Ok(());
            }
        }
        match self.step(tensor)? {
            Ok((key, step)) => {
                let outputs = step.outputs.iter();
                self.written
                    .extend(outputs.map(|output| output.tensor.name.clone()));
                self.ordered.push(key, step);
                self.n_refined += 1;
            }
            Err(reason) => {
                let modules = self.kept.entry(reason).or_default();
                modules.push(tensor.module.clone());
            }
        }
        Ok(())
    }

    /// The step that chooses a weight's codes anew, or why they stay.
    fn step(&mut self, tensor: &QuantizedTensor) -> Result<Result<(Key, Step), String>, Error> {
        let target = match self.target(tensor) {
            Ok(target) => target,
            Err(reason) => return Ok(Err(reason)),
        };
        let source = match self.original(tensor) {
            Ok(source) => source,
            Err(reason) => return Ok(Err(reason)),
        };
        let matrices = match self.matrices(tensor)? {
            Ok(matrices) => matrices,
            Err(reason) => return Ok(Err(reason)),
        };
        let parts = self.parts(tensor);
        let (_, key) = stored(self.checkpoint, tensor);
        let work = Work::Quantize(Box::new(QuantizeWork {
            sources: vec![source],
            layout: tensor.clone(),
            target,
            scheme: tensor.scheme.to_string().into(),
            matrices,
            statistics: None,
            scaling: Scaling::default(),
            start: Some(self.recipe.reference.clone()),
            bias: None,
        }));
        let bytes = parts.iter().map(|part| part.info.len_bytes()).sum();
        let mut step = Step::new(&tensor.module, Action::Refine, &tensor.shape, bytes, work);
        let outputs = parts.iter().map(|part| {
            let info = part.info;
            Output::new(&info.name, info.dtype, &info.shape, info.block)
        });
        step.outputs = outputs.collect();
        Ok(Ok((key, step)))
    }

    /// Whether a stored tensor is one weight's alone.
    fn is_own(&self, part: &Part) -> bool {
        self.owners.get(part.name.as_str()) == Some(&1)
    }

    /// The stored tensors that are this weight's alone, its codes first.
    fn parts(&self, tensor: &QuantizedTensor) -> Vec<TensorRef<'_>> {
        let own = tensor.parts.iter().filter(|part| self.is_own(part));
        let mut parts: Vec<&Part> = own.collect();
        parts.sort_by_key(|part| part.role != Role::Codes);
        let found = parts.into_iter();
        found
            .filter_map(|part| self.checkpoint.tensor(&part.name))
            .collect()
    }

    /// What codes are chosen for, or why they cannot be.
    fn target(&self, tensor: &QuantizedTensor) -> Result<Target, String> {
        let writer = convention(tensor.convention).and_then(Convention::writer);
        let writer = writer.ok_or_else(|| format!("{} is only read", tensor.convention))?;
        can_recode(&tensor.scheme).map_err(|error| error.to_string())?;
        let codes = tensor.part(Role::Codes);
        match codes {
            Some(part) if !self.is_own(part) => {
                return Err("its codes are those of others, too".to_owned());
            }
            Some(part) => match part.storage {
                Storage::Blocks { .. } => {
                    return Err("its blocks hold scales and codes alike".to_owned());
                }
                Storage::Sparse { .. } => return Err("it is sparse".to_owned()),
                Storage::Elements { .. }
                | Storage::Packed { .. }
                | Storage::SharedElements { .. }
                | Storage::Common
                | Storage::LowHigh { .. }
                | Storage::PackedConstant { .. }
                | Storage::Vector
                | Storage::Tiled { .. }
                | Storage::Flat { .. }
                | Storage::Planes { .. } => {}
            },
            None => return Err("it has no codes".to_owned()),
        }
        Ok(Target {
            scheme: tensor.scheme.clone(),
            rule: writer.scale_rule(),
            division: Division::SourceDtype,
            nonfinite: NonFinite::Refuse,
        })
    }

    /// The weight that the reference has for this one.
    fn original(&self, tensor: &QuantizedTensor) -> Result<DenseSource, String> {
        let found = self.recipe.reference.checkpoint().tensor(&tensor.weight);
        let found = found.ok_or("the reference has no such weight")?;
        if found.info.shape != tensor.shape {
            return Err("the reference has a weight of another shape".to_owned());
        }
        let float = float_of(found.info.dtype).filter(|_| found.info.block.is_none());
        let float = float.ok_or("the reference is not dense there: dequantize it first")?;
        Ok(DenseSource::Plain(tensor.weight.clone(), float))
    }

    /// Where the statistics of each matrix are; a matrix of a stack without any keeps its codes.
    fn matrices(
        &mut self,
        tensor: &QuantizedTensor,
    ) -> Result<Result<Vec<MatrixWork>, String>, Error> {
        let file = self.recipe.calibration.calibration();
        let experts = match *tensor.shape {
            [n, _, _] => (0..n).map(Some).collect(),
            _ => vec![None],
        };
        self.n_asked += 1;
        let mut works = Vec::new();
        let (mut has_entry, mut is_seen, mut n_known) = (false, false, 0);
        for expert in experts {
            let found = entry(file, &tensor.module, expert);
            if let Some(found) = &found {
                has_entry = true;
                is_seen |= found.token_count != Some(0);
                check_width(file, found, tensor.in_features())?;
            }
            let found =
                found.filter(|found| found.detail == Detail::Full && found.token_count != Some(0));
            n_known += usize::from(found.is_some());
            works.push(MatrixWork {
                method: Method::named(REFINE)?,
                settings: self.recipe.settings,
                inputs: found.map(|found| InputsOf {
                    module: match expert {
                        Some(_) => tensor.module.clone(),
                        None => found.name,
                    },
                    expert,
                    owner: found.owner,
                    detail: found.detail,
                }),
            });
        }
        self.n_known += usize::from(has_entry);
        Ok(match (has_entry, is_seen, n_known) {
            (false, _, _) => Err("there are no statistics of its inputs".to_owned()),
            (true, false, _) => Err("it saw no token in calibration".to_owned()),
            (true, true, 0) => Err("there is only the diagonal of the second moment".to_owned()),
            (true, true, n) => {
                self.n_unseen += works.len().saturating_sub(n);
                Ok(works)
            }
        })
    }

    fn finish(mut self) -> Result<Steps, Error> {
        let source_name = self.checkpoint.name().to_owned();
        if self.n_asked > 0 && self.n_known == 0 {
            return Err(Error::CalibrationOfAnother {
                file: self.recipe.calibration.calibration().file().to_owned(),
                source_name,
            });
        }
        let mut notes: Vec<String> = self.kept.iter().map(|(why, of)| note(why, of)).collect();
        if self.n_refined == 0 {
            let reason = if notes.is_empty() {
                "all are left out by --ignore".to_owned()
            } else {
                notes.join("; ")
            };
            return Err(Error::NothingToRefine {
                source_name,
                reason,
            });
        }
        if self.n_unseen > 0 {
            notes.push(format!(
                "{} matrices of stacks saw no token in calibration: they keep their codes",
                self.n_unseen
            ));
        }
        for tensor in self.checkpoint.tensors() {
            if !self.written.contains(&*tensor.info.name) {
                self.ordered.copy(tensor);
            }
        }
        Ok(Steps {
            list: self.ordered.into_steps(),
            notes,
            keeps_documents: true,
            ..Steps::default()
        })
    }
}

/// A line about modules that stay as they are.
fn note(reason: &str, modules: &[String]) -> String {
    format!(
        "{} modules keep their codes, because {reason}: {}",
        modules.len(),
        named(modules, modules.len(), MAX_NAMED)
    )
}

/// That norms are those of the reference: where they are not, scales may have been folded into them, and weights are no longer those
/// of the reference.
fn check_norms(
    checkpoint: &Checkpoint,
    model: &Model,
    reference: &Checkpoint,
) -> Result<(), Error> {
    for name in model.plain.iter().filter(|name| name.ends_with(".weight")) {
        let (Some(mine), Some(theirs)) = (checkpoint.tensor(name), reference.tensor(name)) else {
            continue;
        };
        let (Some(mine), Some(theirs)) = (vector(mine)?, vector(theirs)?) else {
            continue;
        };
        let is_near = |(a, b): (&f32, &f32)| {
            // Casts from one dtype to another are no difference.
            let size = a.abs().max(b.abs());
            (a - b).abs() <= 0.01 * size + 1e-6 || a.to_bits() == b.to_bits()
        };
        if mine.len() != theirs.len() || !mine.iter().zip(&theirs).all(is_near) {
            return Err(Error::AnotherModel {
                name: name.clone(),
                reason: "it differs: scales were folded into it (AWQ, SmoothQuant), or it is of another model".to_owned(),
            });
        }
    }
    Ok(())
}

/// The numbers of a vector of dense floats; `None` for anything else.
fn vector(tensor: TensorRef<'_>) -> Result<Option<Vec<f32>>, Error> {
    let info = tensor.info;
    let float = float_of(info.dtype).filter(|_| info.block.is_none() && info.shape.len() == 1);
    let Some(float) = float.filter(|_| info.len_bytes() <= MAX_NORM_BYTES) else {
        return Ok(None);
    };
    let bytes = tensor.read_all(MAX_NORM_BYTES)?;
    let mut values = vec![0.0; bytes.len() / float.size_bytes()];
    (Backend::detect().widen)(float, &bytes, &mut values);
    Ok(Some(values))
}
