//! `convert`: codes carried over, and what is done with weights whose codes cannot be.

use safequant_container::{Checkpoint, FileFormat};
use safequant_quantize::Target;
use safequant_quantize::quantizer::{Division, NonFinite};
use safequant_schemes::pattern::Pattern;
use safequant_schemes::{
    Asked, Changes, ConfigEdit, ConventionWriter, Model, Preset, QuantizedTensor, Written,
};

use super::{
    Carried, DenseSource, Key, MatrixWork, Method, Ordered, QuantizeWork, Scaling, Step, Steps,
    TranscodeWork, Work, drop_orphans, is_dense, layout_of, left, share_statistics, stored,
};
use crate::convert::{Conversion, Label, conversion};
use crate::select::{Kind, kind};
use crate::{Action, ConvertRecipe, Error, LossPolicy, recipe};

/// Refused modules that an error names.
const MAX_NAMED: usize = 3;

/// Every quantized weight goes over to another convention; everything else stays.
pub(crate) fn convert(
    checkpoint: &Checkpoint,
    model: &Model,
    recipe: &ConvertRecipe,
) -> Result<Steps, Error> {
    let writer = recipe::writer_of(recipe.convention)?;
    // Another file format is something to convert to even if nothing is quantized.
    if model.quantized.is_empty() && writer.file_format() == FileFormat::Safetensors {
        return Err(Error::NothingQuantized {
            source_name: checkpoint.name().to_owned(),
        });
    }
    let mut builder = Builder {
        checkpoint,
        recipe,
        writer,
        ignore: recipe
            .ignore
            .iter()
            .map(|text| Pattern::new(text))
            .collect::<Result<_, _>>()?,
        ordered: Ordered::default(),
        ignored: Vec::new(),
        refused: Vec::new(),
        left_out: 0,
        cast: (0, Changes::default()),
        lossy: 0,
        is_unchanged: true,
    };
    for tensor in &model.quantized {
        builder.add(tensor)?;
    }
    builder.refuse(model.quantized.len())?;
    for name in &model.plain {
        if let Some(tensor) = checkpoint.tensor(name) {
            if kind(name, &tensor.info.shape) != Kind::NotLinear {
                let module = name.strip_suffix(".weight").unwrap_or(name);
                builder.ignored.push(module.to_owned());
            }
            builder.ordered.copy(tensor);
        }
    }
    if builder.is_unchanged {
        // What belongs to the convention and to no weight still does: `scaled_fp8` without which ComfyUI would not see scales.
        keep_orphans(checkpoint, model, &mut builder.ordered);
    } else {
        drop_orphans(checkpoint, model, &mut builder.ordered);
    }
    builder.finish()
}

fn keep_orphans(checkpoint: &Checkpoint, model: &Model, ordered: &mut Ordered) {
    for name in &model.orphans {
        if let Some(tensor) = checkpoint.tensor(name) {
            ordered.copy(tensor);
        }
    }
}

struct Builder<'a> {
    checkpoint: &'a Checkpoint,
    recipe: &'a ConvertRecipe,
    writer: &'static dyn ConventionWriter,
    ignore: Vec<Pattern>,
    ordered: Ordered,
    ignored: Vec<String>,
    /// Modules that cannot be converted as asked, with the reason.
    refused: Vec<(String, Label, String)>,
    /// Companions of modules (activation scales) that the new convention has no place for.
    left_out: usize,
    /// Modules whose scales change, and by how much.
    cast: (usize, Changes),
    /// Modules whose codes change.
    lossy: usize,
    /// Every weight so far is of this convention already and keeps its parts.
    is_unchanged: bool,
}

impl Builder<'_> {
    fn add(&mut self, tensor: &QuantizedTensor) -> Result<(), Error> {
        let (bytes, key) = stored(self.checkpoint, tensor);
        for pattern in &self.ignore {
            if pattern.is_match(&tensor.module)? {
                self.ignored.push(tensor.module.clone());
                self.is_unchanged = false;
                let step = left(self.checkpoint, self.writer, tensor, bytes);
                self.ordered.push(key, step);
                return Ok(());
            }
        }
        let is_same_file = self.writer.file_format() == FileFormat::Gguf;
        if is_dense(tensor) || (is_same_file && tensor.convention == self.writer.id()) {
            self.copy(tensor);
            return Ok(());
        }
        let found = conversion(self.checkpoint, tensor, self.writer)?;
        let is_allowed = self.recipe.loss == LossPolicy::Allow;
        let label = found.label;
        if label == Label::Cast {
            self.cast.0 += 1;
            self.cast.1.add(&found.changes);
        }
        let step = match found {
            Conversion {
                carried: Some((plain, layout)),
                ..
            } => {
                self.left_out += left_out(tensor, &layout);
                let is_own = tensor.convention == layout.convention;
                self.is_unchanged &= is_own && tensor.parts == layout.parts;
                transcoded(tensor, plain, layout, label, bytes)
            }
            Conversion {
                preset: Some(preset),
                ..
            } if is_allowed => {
                self.lossy += 1;
                self.is_unchanged = false;
                self.quantized(tensor, &preset, bytes)?
            }
            Conversion { reason, .. } => {
                self.refused.push((tensor.module.clone(), label, reason));
                return Ok(());
            }
        };
        self.ordered.push(key, step);
        Ok(())
    }

    /// A weight of a GGUF model that stays in one (some block types can only be read), or that is not quantized at all: bytes
    /// are copied.
    fn copy(&mut self, tensor: &QuantizedTensor) {
        for part in &tensor.parts {
            if let Some(part) = self.checkpoint.tensor(&part.name) {
                let mut step = Step::copy(part.info);
                if !is_dense(tensor) {
                    step.action = Action::Convert(Label::Exact);
                }
                self.ordered.push(Key::of(part), step);
            }
        }
    }

    /// A weight whose codes change.
    fn quantized(
        &self,
        tensor: &QuantizedTensor,
        preset: &Preset,
        bytes: u64,
    ) -> Result<Step, Error> {
        let source = DenseSource::Quantized(Box::new(tensor.clone()));
        let layout = self
            .writer
            .lay_out(&tensor.module, &tensor.shape, preset, source.float())
            .map_err(|source| Error::CannotHold {
                module: tensor.module.clone(),
                source: Box::new(source),
            })?;
        let target = Target {
            scheme: layout.scheme.clone(),
            rule: self.writer.scale_rule(),
            division: Division::SourceDtype,
            nonfinite: NonFinite::Refuse,
        };
        let parts = layout.parts.clone();
        let work = Work::Quantize(Box::new(QuantizeWork {
            sources: vec![source],
            layout,
            target,
            scheme: preset.name.into(),
            matrices: vec![MatrixWork::plain(Method::named("rtn")?)],
            statistics: None,
            scaling: Scaling::default(),
            start: None,
            bias: None,
        }));
        let action = Action::Convert(Label::Lossy);
        let step = Step::new(&tensor.module, action, &tensor.shape, bytes, work);
        Ok(step.with_parts(&parts))
    }

    /// # Errors
    /// If any module cannot be converted as asked.
    fn refuse(&self, n_all: usize) -> Result<(), Error> {
        if self.refused.is_empty() {
            return Ok(());
        }
        let advice = |label: Label| match label {
            Label::Lossy => "quantize it anew with --allow-lossy, or leave it dense with --ignore",
            Label::Exact | Label::Cast | Label::Impossible => "leave it dense with --ignore",
        };
        let named = self.refused.iter().take(MAX_NAMED);
        let mut first: Vec<String> = named
            .map(|(module, label, reason)| format!("{module}: {reason} ({})", advice(*label)))
            .collect();
        if self.refused.len() > MAX_NAMED {
            first.push(format!("and {} more", self.refused.len() - MAX_NAMED));
        }
        Err(Error::WouldLose {
            convention: self.writer.id(),
            n: self.refused.len(),
            n_all,
            first: first.join("; "),
        })
    }

    /// What is not exact, one line each.
    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        let (n, changes) = &self.cast;
        if *n > 0 && changes.n_rounded > 0 {
            notes.push(format!(
                "{n} modules are cast: {} of {} scales are rounded, by at most {:.1e} of their value; {} became zero",
                changes.n_rounded, changes.n_numbers, changes.max_relative_error, changes.n_underflows
            ));
        } else if *n > 0 {
            notes.push(format!(
                "{n} modules are cast: their scales are repeated for smaller groups or multiplied together, none is rounded"
            ));
        }
        if self.lossy > 0 {
            notes.push(format!(
                "{} modules are dequantized and quantized again, which loses more",
                self.lossy
            ));
        }
        notes
    }

    fn finish(mut self) -> Result<Steps, Error> {
        self.ignored.sort();
        let mut notes = self.notes();
        let mut steps = self.ordered.into_steps();
        let layouts: Vec<QuantizedTensor> = steps.iter().filter_map(layout_of).cloned().collect();
        if layouts.is_empty() && self.writer.file_format() == FileFormat::Safetensors {
            return Err(Error::NothingSelected {
                source_name: self.checkpoint.name().to_owned(),
            });
        }
        let keeps_documents = self.is_unchanged;
        let edit = if keeps_documents {
            ConfigEdit::default()
        } else {
            self.writer.config(&Written {
                modules: &layouts,
                ignored: &self.ignored,
                asked: Asked::Nothing,
            })?
        };
        let statistics = share_statistics(&mut steps);
        if self.left_out > 0 {
            notes.push(format!(
                "{} tensors that belong to modules but not to weights (activation scales and the like) have no place in {} and are left out",
                self.left_out,
                self.writer.id()
            ));
        }
        Ok(Steps {
            list: steps,
            statistics,
            notes,
            edit,
            keeps_documents,
            gguf: None,
            folded: None,
        })
    }
}

/// Companions of the source that the layout has no place for.
fn left_out(source: &QuantizedTensor, layout: &QuantizedTensor) -> usize {
    let companions = source
        .parts
        .iter()
        .filter(|p| p.role == safequant_schemes::Role::Auxiliary);
    companions
        .filter(|p| source.convention != layout.convention && !layout.parts.contains(p))
        .count()
}

fn transcoded(
    source: &QuantizedTensor,
    plain: QuantizedTensor,
    layout: QuantizedTensor,
    label: Label,
    bytes: u64,
) -> Step {
    let parts = layout.parts.clone();
    let work = Work::Transcode(Box::new(TranscodeWork {
        members: vec![Carried {
            source: source.clone(),
            plain,
            layout: layout.clone(),
        }],
        layout,
    }));
    let action = Action::Convert(label);
    Step::new(&source.module, action, &source.shape, bytes, work).with_parts(&parts)
}
