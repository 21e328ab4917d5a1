//! `quantize`: which weights become what.

use std::collections::HashMap;

use safequant_container::Checkpoint;
use safequant_quantize::Target;
use safequant_schemes::scheme::float_of;
use safequant_schemes::{
    Asked, ConventionWriter, Model, Preset, QuantizedTensor, Storage, WeightCode, Written,
};

use super::bias;
use super::method::Chooser;
use super::{
    DenseSource, Key, Ordered, QuantizeWork, Scaling, Step, Steps, Work, drop_orphans, is_dense,
    layout_of, left, share_statistics, stored,
};
use crate::select::{Choice, Kind, Selection, fused_groups, is_unoriented_stack, kind};
use crate::{AWQ, Action, Error, QuantizeRecipe, recipe};

/// Every selected linear weight becomes quantized; quantized weights that are not selected become dense.
pub(crate) fn quantize(
    checkpoint: &Checkpoint,
    model: &Model,
    recipe: &QuantizeRecipe,
) -> Result<Steps, Error> {
    let writer = recipe::writer(recipe)?;
    let mut builder = Builder {
        checkpoint,
        recipe,
        writer,
        selection: Selection::new(recipe)?,
        chooser: Chooser::new(recipe.calibration.as_ref()),
        groups: HashMap::new(),
        ordered: Ordered::default(),
        ignored: Vec::new(),
        notes: Vec::new(),
        n_foreign: 0,
        n_stacks: 0,
    };
    for name in &model.plain {
        builder.add_plain(name)?;
    }
    for tensor in &model.quantized {
        builder.add_quantized(tensor)?;
    }
    drop_orphans(checkpoint, model, &mut builder.ordered);
    let is_quantized = model.quantized.iter().any(|tensor| !is_dense(tensor));
    if let Some((convention, _)) = model.conventions.first().filter(|_| is_quantized) {
        builder.notes.push(format!(
            "the source is quantized already ({convention}): its weights are decoded and quantized again, which loses more"
        ));
    }
    builder.finish()
}

struct Builder<'a> {
    checkpoint: &'a Checkpoint,
    recipe: &'a QuantizeRecipe,
    writer: &'static dyn ConventionWriter,
    selection: Selection,
    chooser: Chooser<'a>,
    /// Which group of the recipe a module belongs to.
    groups: HashMap<String, usize>,
    ordered: Ordered,
    ignored: Vec<String>,
    notes: Vec<String>,
    /// Matrices in dtypes that are no dense float.
    n_foreign: usize,
    /// Expert stacks whose orientation is unknown.
    n_stacks: usize,
}

impl<'a> Builder<'a> {
    fn add_plain(&mut self, name: &str) -> Result<(), Error> {
        let Some(tensor) = self.checkpoint.tensor(name) else {
            return Ok(());
        };
        let info = tensor.info;
        let mut kind = kind(name, &info.shape);
        if kind != Kind::NotLinear && !info.dtype.is_dense_float() {
            self.n_foreign += 1;
            kind = Kind::NotLinear;
        }
        self.n_stacks += usize::from(is_unoriented_stack(name, &info.shape));
        let module = name.strip_suffix(".weight").unwrap_or(name);
        match self.selection.choose(module, kind)? {
            Choice::Quantize(group) => {
                let float = float_of(info.dtype).ok_or_else(|| Error::SourceDtype {
                    module: module.to_owned(),
                    found: info.dtype.name(),
                })?;
                let source = DenseSource::Plain(name.to_owned(), float);
                let step =
                    self.quantized(group, (module, &info.shape), source, info.len_bytes())?;
                self.ordered.push(Key::of(tensor), step);
            }
            Choice::Ignore => {
                self.ignored.push(module.to_owned());
                self.ordered.copy(tensor);
            }
            Choice::Copy => self.ordered.copy(tensor),
        }
        Ok(())
    }

    fn add_quantized(&mut self, tensor: &QuantizedTensor) -> Result<(), Error> {
        let (bytes, key) = stored(self.checkpoint, tensor);
        let kind = kind(&tensor.weight, &tensor.shape);
        let choice = self.selection.choose(&tensor.module, kind)?;
        let step = match choice {
            Choice::Quantize(group) => {
                let source = DenseSource::Quantized(Box::new(tensor.clone()));
                self.quantized(group, (&tensor.module, &tensor.shape), source, bytes)?
            }
            Choice::Ignore | Choice::Copy => {
                if choice == Choice::Ignore {
                    self.ignored.push(tensor.module.clone());
                }
                left(self.checkpoint, self.writer, tensor, bytes)
            }
        };
        self.ordered.push(key, step);
        Ok(())
    }

    fn quantized(
        &mut self,
        index: usize,
        (module, shape): (&str, &[u64]),
        source: DenseSource,
        source_bytes: u64,
    ) -> Result<Step, Error> {
        let group = &self.recipe.groups[index];
        let preset = &group.preset;
        let layout = self
            .writer
            .lay_out(module, shape, preset, source.float())
            .map_err(|source| Error::CannotHold {
                module: module.to_owned(),
                source: Box::new(source),
            })?;
        let target = Target {
            scheme: layout.scheme.clone(),
            rule: self.writer.scale_rule(),
            division: self.recipe.division,
            nonfinite: self.recipe.nonfinite,
        };
        let parts = layout.parts.clone();
        let chooser = &mut self.chooser;
        let matrices = chooser.choose((module, shape), &target, group)?;
        let work = Work::Quantize(Box::new(QuantizeWork {
            sources: vec![source],
            layout,
            target,
            scheme: preset.name.into(),
            matrices,
            statistics: None,
            scaling: Scaling {
                is_wanted: group.method == AWQ,
                ..Scaling::default()
            },
            start: None,
            bias: None,
        }));
        let action = Action::Quantize(preset.name);
        self.groups.insert(module.to_owned(), index);
        Ok(Step::new(module, action, shape, source_bytes, work).with_parts(&parts))
    }

    /// What was asked for a module that is quantized.
    fn asked(&self, step: &Step) -> Option<&'a Preset> {
        let (recipe, index) = (self.recipe, self.groups.get(&step.name)?);
        recipe.groups.get(*index).map(|group| &group.preset)
    }

    fn finish(mut self) -> Result<Steps, Error> {
        self.ignored.sort();
        let mut steps = std::mem::take(&mut self.ordered).into_steps();
        let layouts: Vec<QuantizedTensor> = steps.iter().filter_map(layout_of).cloned().collect();
        if layouts.is_empty() {
            return Err(Error::NothingSelected {
                source_name: self.checkpoint.name().to_owned(),
            });
        }
        let asked: Vec<&Preset> = steps.iter().filter_map(|step| self.asked(step)).collect();
        let edit = self.writer.config(&Written {
            modules: &layouts,
            ignored: &self.ignored,
            asked: match self.recipe.groups.as_slice() {
                [group] => Asked::Same(&group.preset),
                _ => Asked::Each(&asked),
            },
        })?;
        let corrected = bias::correct(self.checkpoint, self.writer, self.recipe, &mut steps)?;
        let statistics = share_statistics(&mut steps);
        self.notes.extend_from_slice(&self.recipe.notes);
        self.notes.extend(corrected);
        self.notes.extend(self.selection.notes());
        self.notes
            .extend(self.chooser.finish(self.checkpoint.name())?);
        self.notes.extend(fused_notes(&layouts, &self.ignored));
        self.notes.extend(other_blocks(&layouts, &asked));
        if self.n_foreign > 0 {
            self.notes.push(format!(
                "{} matrices are stored in dtypes that are no dense float; they are copied",
                self.n_foreign
            ));
        }
        if self.n_stacks > 0 {
            self.notes.push(format!(
                "{} stacks of experts have no `.weight` name that tells their orientation; they stay dense",
                self.n_stacks
            ));
        }
        Ok(Steps {
            list: steps,
            statistics,
            notes: self.notes,
            edit,
            ..Steps::default()
        })
    }
}

/// What is written as another block type than asked for.
fn other_blocks(layouts: &[QuantizedTensor], asked: &[&Preset]) -> Option<String> {
    let format = |(layout, preset): (&QuantizedTensor, &&Preset)| {
        let WeightCode::Block(wanted) = preset.weights else {
            return None;
        };
        let Storage::Blocks { format } = layout.parts.first()?.storage else {
            return None;
        };
        (format != wanted).then(|| (preset.name, format.name()))
    };
    let other: Vec<_> = layouts.iter().zip(asked).filter_map(format).collect();
    let (wanted, first) = other.first()?;
    Some(format!(
        "{} weights have rows that are no whole blocks of {wanted}: they become {first}, as llama-quantize has it",
        other.len(),
    ))
}

/// Siblings that runtimes load as one, of which some stay dense.
fn fused_notes(layouts: &[QuantizedTensor], ignored: &[String]) -> Vec<String> {
    let quantized = layouts.iter().map(|l| (l.module.as_str(), true));
    let dense = ignored.iter().map(|module| (module.as_str(), false));
    let all: Vec<(&str, bool)> = quantized.chain(dense).collect();
    let groups = fused_groups(all.iter().map(|(module, _)| (*module, 0)));
    let mixed = groups.iter().filter(|g| {
        let n_quantized = g.iter().filter(|&&i| all[i].1).count();
        n_quantized > 0 && n_quantized < g.len()
    });
    let names = |g: &Vec<usize>| g.iter().map(|&i| all[i].0).collect::<Vec<_>>().join(", ");
    mixed
        .map(|g| {
            format!(
                "runtimes load {} as one, but only some of them are quantized",
                names(g)
            )
        })
        .collect()
}
