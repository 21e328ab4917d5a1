//! The units of work: what each module or plain tensor becomes, and which tensors that writes.

mod bias;
mod convert;
mod method;
mod quantize;
mod refine;
mod respell;
mod sharing;

use std::borrow::Cow;
use std::sync::Arc;

use safequant_container::{
    BlockType, Checkpoint, Dtype, FileFormat, GgufMetadata, PlannedTensor, TensorGroup, TensorInfo,
    TensorRef,
};
use safequant_kernels::Float;
use safequant_quantize::{Effort, Needs, Target};
use safequant_schemes::scheme::dtype_of;
use safequant_schemes::{
    Code, ConfigEdit, ConventionWriter, ExtraTensor, Model, Part, QuantizedTensor, RowOrder,
    Storage, Values,
};

pub(crate) use self::convert::convert;
pub(crate) use self::method::{InputsOf, MatrixWork, Method};
pub(crate) use self::quantize::quantize;
pub(crate) use self::refine::refine;
pub(crate) use self::respell::respell;
use self::sharing::share_statistics;
use crate::budget::Tiling;
use crate::{AWQ, Action, DequantizeRecipe, Error, Reference};

/// One unit of work.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    /// Module, or tensor for a copy.
    pub(crate) name: String,
    pub(crate) action: Action,
    pub(crate) shape: Vec<u64>,
    pub(crate) source_bytes: u64,
    pub(crate) work: Work,
    /// The order in which rows are written, within each matrix.
    pub(crate) rows: RowOrder,
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
    /// Rows of floats.
    Dense(Box<DenseWork>),
    /// Rows of floats, quantized.
    Quantize(Box<QuantizeWork>),
    /// Codes and scales, carried over to another layout.
    Transcode(Box<TranscodeWork>),
    /// Bytes that are known.
    Content(Vec<u8>),
}

/// A weight (or a vector) that becomes dense, or is dense and becomes something else.
#[derive(Clone, Debug)]
pub(crate) struct DenseWork {
    /// The weight, or the members of a stack, in order.
    pub(crate) sources: Vec<DenseSource>,
    /// Matrices, rows of each, and columns.
    pub(crate) shape: [u64; 3],
    /// The dtype written.
    pub(crate) float: Float,
    /// What is done to the values.
    pub(crate) values: Values,
}

/// A module whose codes stay.
#[derive(Clone, Debug)]
pub(crate) struct TranscodeWork {
    /// The module, or the members of a stack, in order.
    pub(crate) members: Vec<Carried>,
    /// What is written, the whole stack in one.
    pub(crate) layout: QuantizedTensor,
}

/// A weight and what its codes are carried over to.
#[derive(Clone, Debug)]
pub(crate) struct Carried {
    pub(crate) source: QuantizedTensor,
    /// The source with its scheme as simple as its numbers allow.
    pub(crate) plain: QuantizedTensor,
    pub(crate) layout: QuantizedTensor,
}

/// A module to quantize.
#[derive(Clone, Debug)]
pub(crate) struct QuantizeWork {
    /// The weight, or the members of a stack, in order.
    pub(crate) sources: Vec<DenseSource>,
    pub(crate) layout: QuantizedTensor,
    pub(crate) target: Target,
    /// The scheme, as users name it, or in a phrase.
    pub(crate) scheme: Cow<'static, str>,
    /// How each matrix of the stack is quantized; one for all of them where they are alike.
    pub(crate) matrices: Vec<MatrixWork>,
    /// Index into the job's groups that share statistics; `None` where none are needed.
    pub(crate) statistics: Option<usize>,
    /// What the weight is multiplied by before it is quantized.
    pub(crate) scaling: Scaling,
    /// Where the weights of `sources` stand, if the source has codes that are to be better: under `layout`, of which nothing else changes.
    /// The codes are then the first output, and all others are copied.
    pub(crate) start: Option<Reference>,
    /// The bias that makes up for what the mean input loses; it is the output behind the parts.
    pub(crate) bias: Option<BiasWork>,
}

/// A bias that is corrected.
#[derive(Clone, Debug)]
pub(crate) struct BiasWork {
    /// The tensor.
    pub(crate) name: String,
    pub(crate) float: Float,
    /// The mean input, `[in_features]`.
    pub(crate) mean: Arc<[f32]>,
}

/// What a weight is multiplied by, so that its inputs can be divided by the same, or its outputs by what the next weight is multiplied by
/// (`fold`).
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Scaling {
    /// It was asked for.
    pub(crate) is_wanted: bool,
    /// What each column is multiplied by.
    pub(crate) columns: Option<Arc<[f32]>>,
    /// What each row is divided by: powers of two.
    pub(crate) rows: Option<Arc<[f32]>>,
}

impl Scaling {
    /// Whether the weight stays as it is.
    pub(crate) fn is_nothing(&self) -> bool {
        self.columns.is_none() && self.rows.is_none()
    }

    /// Scales whole rows, the first of which has this number.
    pub(crate) fn apply(&self, values: &mut [f32], first_row: u64, in_features: usize) {
        let first_row = usize::try_from(first_row).unwrap_or(usize::MAX);
        for (at, row) in values.chunks_mut(in_features.max(1)).enumerate() {
            let divisor = self
                .rows
                .as_ref()
                .map(|rows| rows.get(first_row.saturating_add(at)));
            if let Some(divisor) = divisor.flatten() {
                for value in row.iter_mut() {
                    *value /= divisor;
                }
            }
            if let Some(columns) = &self.columns {
                let scaled = row.iter_mut().zip(columns.iter());
                scaled.for_each(|(value, scale)| *value *= scale);
            }
        }
    }
}

impl QuantizeWork {
    /// The checkpoint that has the weights.
    pub(crate) fn origin<'c>(&'c self, checkpoint: &'c Checkpoint) -> &'c Checkpoint {
        self.start
            .as_ref()
            .map_or(checkpoint, Reference::checkpoint)
    }

    /// How a matrix of the stack is quantized.
    ///
    /// # Panics
    /// If nothing says how any is.
    pub(crate) fn matrix(&self, index: u64) -> &MatrixWork {
        let found = usize::try_from(index)
            .ok()
            .and_then(|i| self.matrices.get(i));
        let found = found.or(self.matrices.last());
        found.expect("whoever plans a step to quantize says how")
    }

    /// The quantizer; several, joined by `+`, where matrices of the stack are not all quantized alike.
    pub(crate) fn methods(&self) -> String {
        if self.scaling.columns.is_some() {
            return AWQ.to_owned();
        }
        let mut ids: Vec<&str> = Vec::new();
        for id in self.matrices.iter().map(|matrix| matrix.method.id()) {
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
        ids.join("+")
    }

    /// How hard it tries; `None` for methods that cannot be told.
    pub(crate) fn effort(&self) -> Option<Effort> {
        let mut matrices = self.matrices.iter();
        let found = matrices.find(|matrix| matrix.method.0.needs() != Needs::Nothing);
        found.map(|matrix| matrix.settings.effort)
    }

    /// The bias that is corrected.
    pub(crate) fn corrected_bias(&self) -> Option<String> {
        self.bias.as_ref().map(|bias| bias.name.clone())
    }

    /// The matrix of the stack that a row belongs to.
    pub(crate) fn matrix_of(&self, row: u64) -> u64 {
        row / self.layout.out_features().max(1)
    }
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

impl Output {
    fn new(name: &str, dtype: Dtype, shape: &[u64], block: Option<&'static BlockType>) -> Self {
        let n_elements = shape.iter().try_fold(1_u64, |n, &d| n.checked_mul(d));
        Self {
            tensor: PlannedTensor {
                name: name.to_owned(),
                dtype,
                shape: shape.to_vec(),
                block,
            },
            len_bytes: n_elements
                .and_then(|n| dtype.size_bytes(n))
                .unwrap_or(u64::MAX),
            at: (0, 0),
        }
    }

    fn of_part(part: &Part) -> Self {
        let block = match part.storage {
            Storage::Blocks { format } => BlockType::from_name(format.name()),
            Storage::Elements { .. }
            | Storage::Packed { .. }
            | Storage::SharedElements { .. }
            | Storage::Common
            | Storage::LowHigh { .. }
            | Storage::PackedConstant { .. }
            | Storage::Vector
            | Storage::Tiled { .. }
            | Storage::Flat { .. }
            | Storage::Planes { .. }
            | Storage::Sparse { .. } => None,
        };
        Self::new(&part.name, part.dtype, &part.shape, block)
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
            rows: RowOrder::Same,
            outputs: Vec::new(),
            tiling: Tiling::default(),
        }
    }

    /// Changes what is quantized to another layout with the same parts; their shapes may differ.
    pub(crate) fn lay_out_as(&mut self, layout: QuantizedTensor) {
        let Work::Quantize(work) = &mut self.work else {
            return;
        };
        // What stands behind the parts, a bias, stays.
        for (output, part) in self.outputs.iter_mut().zip(&layout.parts) {
            *output = Output::of_part(part);
        }
        work.target.scheme = layout.scheme.clone();
        work.layout = layout;
    }

    fn with_output(mut self, name: &str, dtype: Dtype, shape: &[u64]) -> Self {
        self.outputs.push(Output::new(name, dtype, shape, None));
        self
    }

    fn with_parts(mut self, parts: &[Part]) -> Self {
        self.outputs = parts.iter().map(Output::of_part).collect();
        self
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
        .with_output_of(info)
    }

    /// An output like a tensor of the source.
    fn with_output_of(mut self, info: &TensorInfo) -> Self {
        let output = Output::new(&info.name, info.dtype, &info.shape, info.block);
        self.outputs.push(output);
        self
    }

    /// A tensor that is in no source.
    fn content(extra: &ExtraTensor) -> Self {
        let bytes = extra.values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let shape = [extra.values.len() as u64];
        Self::new(
            &extra.name,
            Action::Respell,
            &shape,
            0,
            Work::Content(bytes),
        )
        .with_output(&extra.name, Dtype::F32, &shape)
    }

    fn drop(info: &TensorInfo) -> Self {
        Self::new(&info.name, Action::Drop, &info.shape, 0, Work::Drop)
    }

    fn dequantize(tensor: &QuantizedTensor, float: Float, source_bytes: u64) -> Self {
        let action = Action::Dequantize(tensor.convention);
        let work = Work::Dense(Box::new(DenseWork {
            sources: vec![DenseSource::Quantized(Box::new(tensor.clone()))],
            shape: [
                tensor.n_matrices(),
                tensor.out_features(),
                tensor.in_features(),
            ],
            float,
            values: Values::Same,
        }));
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

    /// What is quantized anew, if anything is.
    pub(crate) fn quantizing(&self) -> Option<&QuantizeWork> {
        match &self.work {
            Work::Quantize(work) => Some(work),
            Work::Copy | Work::Drop | Work::Dense(_) | Work::Content(_) | Work::Transcode(_) => {
                None
            }
        }
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
    /// The metadata of GGUF files; `None` for safetensors.
    pub(crate) gguf: Option<GgufMetadata>,
    /// A digest of all scales that are folded; `None` where the recipe asks for none.
    pub(crate) folded: Option<String>,
}

/// What steps are ordered by, before their names: the source's shard, and in a GGUF file, whose tensors have an order of their
/// own, the place in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    shard: String,
    at: u64,
}

impl Key {
    fn of(tensor: TensorRef<'_>) -> Self {
        let is_gguf = tensor.shard.header.gguf.is_some();
        Self {
            shard: tensor.shard.name.clone(),
            at: if is_gguf { tensor.info.range.start } else { 0 },
        }
    }
}

/// Bytes of a quantized tensor's parts, and the key of the first of them.
fn stored(checkpoint: &Checkpoint, tensor: &QuantizedTensor) -> (u64, Key) {
    let parts = tensor.parts.iter();
    let parts: Vec<_> = parts.filter_map(|p| checkpoint.tensor(&p.name)).collect();
    let bytes = parts.iter().map(|part| part.info.len_bytes()).sum();
    let first = parts.into_iter().map(Key::of).min();
    (bytes, first.unwrap_or_default())
}

/// Steps with their keys.
#[derive(Default)]
struct Ordered(Vec<(Key, Step)>);

impl Ordered {
    fn push(&mut self, key: Key, step: Step) {
        self.0.push((key, step));
    }

    fn copy(&mut self, tensor: TensorRef<'_>) {
        self.push(Key::of(tensor), Step::copy(tensor.info));
    }

    fn into_steps(mut self) -> Vec<Step> {
        self.0
            .sort_by(|a, b| (&a.0, &a.1.name).cmp(&(&b.0, &b.1.name)));
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
    let mut ordered = Ordered::default();
    for tensor in &model.quantized {
        let float = recipe.dtype.of(tensor);
        let (bytes, key) = stored(checkpoint, tensor);
        ordered.push(key, Step::dequantize(tensor, float, bytes));
    }
    for tensor in &model.effective {
        let (_, key) = stored(checkpoint, tensor);
        let mut step = Step::dequantize(tensor, recipe.dtype.of(tensor), 0);
        step.name.clone_from(&tensor.weight);
        ordered.push(key, step);
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
            ordered.copy(tensor);
        }
    }
    drop_orphans(checkpoint, model, &mut ordered);
    Ok(Steps {
        list: ordered.into_steps(),
        notes,
        ..Steps::default()
    })
}

/// Whether a weight that a convention claims is a plain tensor all the same: F16 in a GGUF file, which is read as F32.
fn is_dense(tensor: &QuantizedTensor) -> bool {
    let elements = |part: &Part| matches!(part.storage, Storage::Elements { .. });
    matches!(tensor.scheme.code, Code::Dense(_))
        && matches!(tensor.parts.as_slice(), [part] if elements(part))
}

/// A quantized weight that is left out of quantizing or converting: dense, or as it is where it is dense already (a type of
/// GGUF that is no block) or the files hold nothing but this convention.
fn left(
    checkpoint: &Checkpoint,
    writer: &dyn ConventionWriter,
    tensor: &QuantizedTensor,
    bytes: u64,
) -> Step {
    let stays = writer.file_format() == FileFormat::Gguf && checkpoint.gguf().is_some();
    match tensor
        .parts
        .first()
        .and_then(|p| checkpoint.tensor(&p.name))
    {
        Some(part) if is_dense(tensor) || (stays && tensor.parts.len() == 1) => {
            Step::copy(part.info)
        }
        Some(_) | None => Step::dequantize(tensor, tensor.reference_dtype, bytes),
    }
}

fn drop_orphans(checkpoint: &Checkpoint, model: &Model, ordered: &mut Ordered) {
    for name in &model.orphans {
        if let Some(tensor) = checkpoint.tensor(name) {
            ordered.push(Key::of(tensor), Step::drop(tensor.info));
        }
    }
}

/// Names that a note shows.
const MAX_NAMED: usize = 3;

/// The first of `n` names, `most` of them, and how many more there are.
pub(crate) fn named(first: &[String], n: usize, most: usize) -> String {
    let shown = first.iter().take(most).map(String::as_str);
    let shown: Vec<&str> = shown.collect();
    let more = match n.saturating_sub(shown.len()) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    shown.join(", ") + &more
}

/// What a quantized weight of a step is laid out as; `None` for dense ones.
pub(crate) fn layout_of(step: &Step) -> Option<&QuantizedTensor> {
    match &step.work {
        Work::Quantize(work) => Some(&work.layout),
        Work::Transcode(work) => Some(&work.layout),
        Work::Copy | Work::Drop | Work::Dense(_) | Work::Content(_) => None,
    }
}
