//! The units of work: what each module or plain tensor becomes, and which tensors that writes.

mod convert;

use safequant_container::{Checkpoint, Dtype, PlannedTensor, TensorGroup, TensorInfo};
use safequant_kernels::Float;
use safequant_quantize::Target;
use safequant_schemes::scheme::{dtype_of, float_of};
use safequant_schemes::{ConfigEdit, ConventionWriter, Model, QuantizedTensor, Written};

pub(crate) use self::convert::convert;
use crate::budget::Tiling;
use crate::select::{Choice, Kind, Selection, fused_groups, is_unoriented_stack, kind};
use crate::{Action, DequantizeRecipe, Error, QuantizeRecipe, recipe};

/// One unit of work.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    /// Module, or tensor for a copy.
    pub(crate) name: String,
    pub(crate) action: Action,
    pub(crate) shape: Vec<u64>,
    pub(crate) source_bytes: u64,
    pub(crate) work: Work,
    /// The tensors it writes; for quantized modules in the order of the layout's parts.
    pub(crate) outputs: Vec<Output>,
    pub(crate) tiling: Tiling,
}

/// A tensor that a step writes.
#[derive(Clone, Debug)]
pub(crate) struct Output {
    pub(crate) tensor: PlannedTensor,
    pub(crate) len_bytes: u64,
    /// Index of the output file, and of the tensor in it.
    pub(crate) at: (usize, usize),
}

/// How a step comes by its bytes.
#[derive(Clone, Debug)]
pub(crate) enum Work {
    /// Byte for byte.
    Copy,
    /// Nothing is written.
    Drop,
    /// Rows of floats of this dtype.
    Dequantize(Box<QuantizedTensor>, Float),
    /// Rows of floats, quantized.
    Quantize(Box<QuantizeWork>),
    /// Codes and scales, carried over to another layout.
    Transcode(Box<TranscodeWork>),
}

/// A module whose codes stay.
#[derive(Clone, Debug)]
pub(crate) struct TranscodeWork {
    pub(crate) source: QuantizedTensor,
    /// The source with its scheme as simple as its numbers allow.
    pub(crate) plain: QuantizedTensor,
    pub(crate) layout: QuantizedTensor,
}

/// A module to quantize.
#[derive(Clone, Debug)]
pub(crate) struct QuantizeWork {
    pub(crate) source: DenseSource,
    pub(crate) layout: QuantizedTensor,
    pub(crate) target: Target,
    /// Index into the job's groups that share statistics; `None` where none are needed.
    pub(crate) statistics: Option<usize>,
}

/// Where rows of floats come from.
#[derive(Clone, Debug)]
pub(crate) enum DenseSource {
    /// A dense tensor.
    Plain(String, Float),
    /// A quantized weight, decoded.
    Quantized(Box<QuantizedTensor>),
}

impl DenseSource {
    /// The dtype the weight counts as.
    pub(crate) fn float(&self) -> Float {
        match self {
            DenseSource::Plain(_, float) => *float,
            DenseSource::Quantized(tensor) => tensor.reference_dtype,
        }
    }
}

impl Step {
    fn new(name: &str, action: Action, shape: &[u64], source_bytes: u64, work: Work) -> Self {
        Self {
            name: name.to_owned(),
            action,
            shape: shape.to_vec(),
            source_bytes,
            work,
            outputs: Vec::new(),
            tiling: Tiling::default(),
        }
    }

    fn with_output(mut self, name: &str, dtype: Dtype, shape: &[u64]) -> Self {
        let n_elements: u64 = shape.iter().product();
        self.outputs.push(Output {
            tensor: PlannedTensor {
                name: name.to_owned(),
                dtype,
                shape: shape.to_vec(),
            },
            len_bytes: dtype.size_bytes(n_elements).unwrap_or(u64::MAX),
            at: (0, 0),
        });
        self
    }

    fn with_parts(self, parts: &[safequant_schemes::Part]) -> Self {
        parts.iter().fold(self, |step, part| {
            step.with_output(&part.name, part.dtype, &part.shape)
        })
    }

    fn copy(info: &TensorInfo) -> Self {
        let name = &info.name;
        Self::new(
            name,
            Action::Copy,
            &info.shape,
            info.len_bytes(),
            Work::Copy,
        )
        .with_output(name, info.dtype, &info.shape)
    }

    fn drop(info: &TensorInfo) -> Self {
        Self::new(&info.name, Action::Drop, &info.shape, 0, Work::Drop)
    }

    fn dequantize(tensor: &QuantizedTensor, float: Float, source_bytes: u64) -> Self {
        let action = Action::Dequantize(tensor.convention);
        let work = Work::Dequantize(Box::new(tensor.clone()), float);
        Self::new(&tensor.module, action, &tensor.shape, source_bytes, work).with_output(
            &tensor.weight,
            dtype_of(float),
            &tensor.shape,
        )
    }

    /// Bytes of the tensors it writes.
    pub(crate) fn output_bytes(&self) -> u64 {
        self.outputs.iter().map(|o| o.len_bytes).sum()
    }

    /// Logical weights.
    pub(crate) fn n_weights(&self) -> u64 {
        self.shape.iter().product()
    }

    /// What must share a shard; `None` where nothing is written.
    pub(crate) fn group(&self) -> Option<TensorGroup> {
        let tensors: Vec<_> = self.outputs.iter().map(|o| o.tensor.clone()).collect();
        (!tensors.is_empty()).then_some(TensorGroup { tensors })
    }
}

/// The steps of a job, before anything is laid out in files.
#[derive(Default)]
pub(crate) struct Steps {
    pub(crate) list: Vec<Step>,
    /// Indices of steps whose statistics are taken together.
    pub(crate) statistics: Vec<Vec<usize>>,
    pub(crate) notes: Vec<String>,
    pub(crate) edit: ConfigEdit,
    /// The source's own documents describe the result: nothing changed its convention or its spelling.
    pub(crate) keeps_documents: bool,
}

/// Bytes of a quantized tensor's parts, and the shard that the first of them lies in.
fn stored(checkpoint: &Checkpoint, tensor: &QuantizedTensor) -> (u64, String) {
    let parts = tensor
        .parts
        .iter()
        .filter_map(|p| checkpoint.tensor(&p.name));
    let mut bytes = 0;
    let mut first: Option<String> = None;
    for part in parts {
        bytes += part.info.len_bytes();
        let name = part.shard.name.clone();
        first = Some(first.map_or(name.clone(), |f| f.min(name)));
    }
    (bytes, first.unwrap_or_default())
}

/// Steps with the key that orders them: the source's shard, then the name.
struct Ordered(Vec<((String, String), Step)>);

impl Ordered {
    fn push(&mut self, shard: &str, step: Step) {
        self.0.push(((shard.to_owned(), step.name.clone()), step));
    }

    fn into_steps(mut self) -> Vec<Step> {
        self.0.sort_by(|a, b| a.0.cmp(&b.0));
        self.0.into_iter().map(|(_, step)| step).collect()
    }
}

/// Every quantized weight becomes dense; everything else stays.
pub(crate) fn dequantize(
    checkpoint: &Checkpoint,
    model: &Model,
    recipe: &DequantizeRecipe,
) -> Result<Steps, Error> {
    if model.quantized.is_empty() {
        return Err(Error::NothingQuantized {
            source_name: checkpoint.name().to_owned(),
        });
    }
    let mut ordered = Ordered(Vec::new());
    for tensor in &model.quantized {
        let float = recipe.dtype.of(tensor);
        let (bytes, shard) = stored(checkpoint, tensor);
        ordered.push(&shard, Step::dequantize(tensor, float, bytes));
    }
    for tensor in &model.effective {
        let (_, shard) = stored(checkpoint, tensor);
        let mut step = Step::dequantize(tensor, recipe.dtype.of(tensor), 0);
        step.name.clone_from(&tensor.weight);
        ordered.push(&shard, step);
    }
    let mut notes = Vec::new();
    if !model.effective.is_empty() {
        notes.push(format!(
            "{} weights expect inputs that are multiplied by a factor per feature: they are written as they are, and with \
             the factor applied as `<weight>_effective`",
            model.effective.len()
        ));
    }
    for name in &model.plain {
        if let Some(tensor) = checkpoint.tensor(name) {
            ordered.push(&tensor.shard.name, Step::copy(tensor.info));
        }
    }
    drop_orphans(checkpoint, model, &mut ordered);
    Ok(Steps {
        list: ordered.into_steps(),
        notes,
        ..Steps::default()
    })
}

fn drop_orphans(checkpoint: &Checkpoint, model: &Model, ordered: &mut Ordered) {
    for name in &model.orphans {
        if let Some(tensor) = checkpoint.tensor(name) {
            ordered.push(&tensor.shard.name, Step::drop(tensor.info));
        }
    }
}

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
        ordered: Ordered(Vec::new()),
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
    if let Some((convention, _)) = model
        .conventions
        .first()
        .filter(|_| !model.quantized.is_empty())
    {
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
    ordered: Ordered,
    ignored: Vec<String>,
    notes: Vec<String>,
    /// Matrices in dtypes that are no dense float.
    n_foreign: usize,
    /// Expert stacks whose orientation is unknown.
    n_stacks: usize,
}

impl Builder<'_> {
    fn add_plain(&mut self, name: &str) -> Result<(), Error> {
        let Some(tensor) = self.checkpoint.tensor(name) else {
            return Ok(());
        };
        let (info, shard) = (tensor.info, tensor.shard.name.as_str());
        let mut kind = kind(name, &info.shape);
        if kind != Kind::NotLinear && !info.dtype.is_dense_float() {
            self.n_foreign += 1;
            kind = Kind::NotLinear;
        }
        self.n_stacks += usize::from(is_unoriented_stack(name, &info.shape));
        let module = name.strip_suffix(".weight").unwrap_or(name);
        match self.selection.choose(module, kind)? {
            Choice::Quantize => {
                let float = float_of(info.dtype).ok_or_else(|| Error::SourceDtype {
                    module: module.to_owned(),
                    found: info.dtype.name(),
                })?;
                let source = DenseSource::Plain(name.to_owned(), float);
                let step = self.quantized(module, &info.shape, source, info.len_bytes())?;
                self.ordered.push(shard, step);
            }
            Choice::Ignore => {
                self.ignored.push(module.to_owned());
                self.ordered.push(shard, Step::copy(info));
            }
            Choice::Copy => self.ordered.push(shard, Step::copy(info)),
        }
        Ok(())
    }

    fn add_quantized(&mut self, tensor: &QuantizedTensor) -> Result<(), Error> {
        let (bytes, shard) = stored(self.checkpoint, tensor);
        let kind = kind(&tensor.weight, &tensor.shape);
        let choice = self.selection.choose(&tensor.module, kind)?;
        let step = match choice {
            Choice::Quantize => {
                let source = DenseSource::Quantized(Box::new(tensor.clone()));
                self.quantized(&tensor.module, &tensor.shape, source, bytes)?
            }
            Choice::Ignore | Choice::Copy => {
                if choice == Choice::Ignore {
                    self.ignored.push(tensor.module.clone());
                }
                Step::dequantize(tensor, tensor.reference_dtype, bytes)
            }
        };
        self.ordered.push(&shard, step);
        Ok(())
    }

    fn quantized(
        &self,
        module: &str,
        shape: &[u64],
        source: DenseSource,
        source_bytes: u64,
    ) -> Result<Step, Error> {
        let preset = &self.recipe.preset;
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
        let work = Work::Quantize(Box::new(QuantizeWork {
            source,
            layout,
            target,
            statistics: None,
        }));
        let action = Action::Quantize(preset.name);
        Ok(Step::new(module, action, shape, source_bytes, work).with_parts(&parts))
    }

    fn finish(mut self) -> Result<Steps, Error> {
        self.ignored.sort();
        let mut steps = self.ordered.into_steps();
        let layouts: Vec<QuantizedTensor> = steps.iter().filter_map(layout_of).cloned().collect();
        if layouts.is_empty() {
            return Err(Error::NothingSelected {
                source_name: self.checkpoint.name().to_owned(),
            });
        }
        let edit = self.writer.config(&Written {
            modules: &layouts,
            ignored: &self.ignored,
            preset: Some(&self.recipe.preset),
        })?;
        let statistics = share_statistics(&mut steps, self.recipe.method)?;
        self.notes.extend(self.selection.notes());
        self.notes.extend(fused_notes(&layouts, &self.ignored));
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
            keeps_documents: false,
        })
    }
}

fn layout_of(step: &Step) -> Option<&QuantizedTensor> {
    match &step.work {
        Work::Quantize(work) => Some(&work.layout),
        Work::Transcode(work) => Some(&work.layout),
        Work::Copy | Work::Drop | Work::Dequantize(..) => None,
    }
}

/// Groups the steps that need statistics of the whole weight; fused siblings together, so that they get one scale.
fn share_statistics(steps: &mut [Step], method: &str) -> Result<Vec<Vec<usize>>, Error> {
    let quantizer = recipe::quantizer(method)?;
    let mut needing = Vec::new();
    for (i, step) in steps.iter().enumerate() {
        match &step.work {
            Work::Quantize(work) if quantizer.needs_statistics(&work.target) => needing.push(i),
            Work::Quantize(_)
            | Work::Copy
            | Work::Drop
            | Work::Dequantize(..)
            | Work::Transcode(_) => {}
        }
    }
    let sharing: Vec<usize> = needing
        .iter()
        .copied()
        .filter(|&i| shares_scales(&steps[i]))
        .collect();
    let named = sharing.iter().map(|&i| {
        let step = &steps[i];
        (step.name.as_str(), step.shape.last().copied().unwrap_or(0))
    });
    let fused = fused_groups(named);
    let mut groups: Vec<Vec<usize>> = fused
        .iter()
        .map(|g| g.iter().map(|&k| sharing[k]).collect())
        .collect();
    let is_fused: std::collections::BTreeSet<usize> = groups.iter().flatten().copied().collect();
    groups.extend(
        needing
            .iter()
            .filter(|i| !is_fused.contains(i))
            .map(|&i| vec![i]),
    );
    groups.sort();
    for (g, group) in groups.iter().enumerate() {
        for &i in group {
            if let Work::Quantize(work) = &mut steps[i].work {
                work.statistics = Some(g);
            }
        }
    }
    Ok(groups)
}

fn shares_scales(step: &Step) -> bool {
    match &step.work {
        Work::Quantize(work) => work.target.rule.shares_fused_scales(),
        Work::Copy | Work::Drop | Work::Dequantize(..) | Work::Transcode(_) => false,
    }
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
