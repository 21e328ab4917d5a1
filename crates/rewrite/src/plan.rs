//! What a job is going to do, before it does anything: exact bytes, peak memory, per-module action.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use safequant_container::{
    Checkpoint, CheckpointPlan, Disk, FileFormat, FilePlan, Manifest, ManifestEntry,
    ManifestLosses, ManifestModule, OsDisk, TensorGroup,
};
use safequant_quantize::Effort;
use safequant_schemes::{ConventionWriter, Model};
use serde_json::{Value, json};

use crate::budget::Budget;
use crate::config::{Travel, travels};
use crate::journal::{Fingerprint, Record};
use crate::outputs::file_of;
use crate::place::{OutputKind, Place};
use crate::steps::{QuantizeWork, Step, Steps};
use crate::{
    CalibrationFile, ConvertRecipe, DequantizeRecipe, Error, Label, QuantizeRecipe, Reference,
    RefineRecipe, config, fold, offsets, prepare, recipe, steps,
};

/// A writing verb with its recipe.
#[derive(Clone, Debug, PartialEq)]
pub enum Verb {
    /// Dense (or quantized) in, quantized out.
    Quantize(QuantizeRecipe),
    /// Any convention in, dense out.
    Dequantize(DequantizeRecipe),
    /// Any convention in, another one out.
    Convert(ConvertRecipe),
    /// Quantized in, the same with better codes out.
    Refine(RefineRecipe),
}

impl Verb {
    /// The statistics that it goes by.
    fn calibration(&self) -> Option<&CalibrationFile> {
        match self {
            Verb::Quantize(recipe) => recipe.calibration.as_ref(),
            Verb::Refine(recipe) => Some(&recipe.calibration),
            Verb::Convert(_) | Verb::Dequantize(_) => None,
        }
    }

    /// What it reads beside the source.
    fn reference(&self) -> Option<&Reference> {
        match self {
            Verb::Refine(recipe) => Some(&recipe.reference),
            Verb::Quantize(_) | Verb::Convert(_) | Verb::Dequantize(_) => None,
        }
    }
}

/// What to do when the destination exists or an earlier job was interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Destination {
    /// It must not exist, or be an empty directory.
    New,
    /// What is there is replaced, at the end and atomically.
    Replace,
    /// Continue an interrupted job; source, recipe and engine version must be those of its journal.
    Resume,
}

/// Options that do not change the output's content.
#[derive(Clone, Debug, PartialEq)]
pub struct JobOptions {
    /// Hard budget for buffers, in bytes.
    pub memory_bytes: u64,
    /// Worker threads; 0 means one per core.
    pub threads: usize,
    /// Largest payload of a shard.
    pub max_shard_bytes: u64,
    /// See [`Destination`].
    pub destination: Destination,
}

/// A job, planned: everything that the run then does.
pub struct Plan<'a> {
    /// What is read.
    pub checkpoint: &'a Checkpoint,
    /// Where the result appears.
    pub destination: PathBuf,
    /// A directory or a single file.
    pub kind: OutputKind,
    /// Output files: name and exact length in bytes, shards and documents.
    pub files: Vec<(String, u64)>,
    /// What becomes of each module or plain tensor.
    pub modules: Vec<PlannedModule>,
    /// Bytes of buffers at the peak.
    pub peak_memory_bytes: u64,
    /// Bytes beside that budget, for the largest second moment of a module's inputs and what is derived from it; 0 where none is
    /// read.
    pub peak_statistics_bytes: u64,
    /// Bytes the file system must have free.
    pub scratch_bytes: u64,
    /// Things the user should know, one line each.
    pub notes: Vec<String>,
    pub(crate) job: Job,
}

/// The inside of a plan: what the run needs and the user need not see.
pub(crate) struct Job {
    pub(crate) place: Place,
    pub(crate) mode: Destination,
    pub(crate) budget: Budget,
    pub(crate) calibration: Option<CalibrationFile>,
    pub(crate) reference: Option<Reference>,
    pub(crate) shards: Vec<FilePlan>,
    pub(crate) index: Option<Vec<u8>>,
    pub(crate) documents: Vec<(String, Vec<u8>)>,
    /// Files that travel byte for byte.
    pub(crate) sidecars: Vec<(String, u64)>,
    pub(crate) steps: Vec<Step>,
    /// The order in which steps are carried out, as indices: within each file those together that go by the same statistics.
    pub(crate) order: Vec<usize>,
    pub(crate) statistics: Vec<Vec<usize>>,
    pub(crate) fingerprint: Fingerprint,
}

/// What becomes of one module or plain tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedModule {
    /// Module or tensor name.
    pub name: String,
    /// What is done.
    pub action: Action,
    /// The quantizer of what is quantized; several, joined by `+`, where the matrices of a stack are not all quantized alike.
    pub method: Option<String>,
    /// How hard it tries; `None` for methods that cannot be told.
    pub effort: Option<Effort>,
    /// Logical shape.
    pub shape: Vec<u64>,
    /// Bytes read.
    pub source_bytes: u64,
    /// Bytes written.
    pub output_bytes: u64,
}

/// What is done with a module.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Copied byte for byte.
    Copy,
    /// Quantized to this scheme (as users name it).
    Quantize(&'static str),
    /// Dequantized from this convention.
    Dequantize(&'static str),
    /// Codes carried over to another convention, with what that costs.
    Convert(Label),
    /// Values stay, but for their dtype; rows, stacks or norms are spelled as the new convention has them.
    Respell,
    /// Left out: belongs to the old convention only.
    Drop,
    /// Divided by scales that the weights after it are multiplied by.
    Fold,
    /// Codes are chosen anew; nothing else of it changes.
    Refine,
}

impl Action {
    /// The word for it, in plans and summaries.
    pub const fn word(&self) -> &'static str {
        match self {
            Action::Copy => "copy",
            Action::Quantize(_) => "quantize",
            Action::Dequantize(_) => "dequantize",
            Action::Convert(_) => "convert",
            Action::Respell => "respell",
            Action::Drop => "drop",
            Action::Fold => "fold",
            Action::Refine => "refine",
        }
    }

    /// The scheme quantized to, the convention dequantized from, or the label of a conversion.
    pub const fn detail(&self) -> Option<&'static str> {
        match self {
            Action::Copy | Action::Respell | Action::Drop | Action::Fold | Action::Refine => None,
            Action::Quantize(name) | Action::Dequantize(name) => Some(name),
            Action::Convert(label) => Some(label.word()),
        }
    }
}

/// Plans a job; reads headers, documents and group indices, and weights only where scales that are folded have to be chosen
/// ([`crate::AWQ`]) or scales are quantized themselves (bitsandbytes' double quantization).
///
/// # Errors
/// Everything that can be known before the first byte: unsupported combinations, destination taken, disk too small,
/// memory budget too small (names the module that needs more, and how much).
pub fn plan<'a>(
    checkpoint: &'a Checkpoint,
    verb: &Verb,
    destination: &Path,
    options: &JobOptions,
) -> Result<Plan<'a>, Error> {
    plan_on(&OsDisk, checkpoint, verb, destination, options)
}

/// As [`plan`], looking at the destination through a given disk.
///
/// # Errors
/// As [`plan`].
pub fn plan_on<'a>(
    disk: &dyn Disk,
    checkpoint: &'a Checkpoint,
    verb: &Verb,
    destination: &Path,
    options: &JobOptions,
) -> Result<Plan<'a>, Error> {
    let writer = match verb {
        Verb::Quantize(recipe) => Some(recipe::writer(recipe)?),
        Verb::Convert(recipe) => Some(recipe::writer_of(recipe.convention)?),
        Verb::Dequantize(_) | Verb::Refine(_) => None,
    };
    let format = writer.map_or(FileFormat::Safetensors, ConventionWriter::file_format);
    let place = Place::new(destination, checkpoint.kind(), format)?;
    if let Some(reference) = verb.reference() {
        place.check_apart(disk, reference.checkpoint())?;
    }
    place.check(disk, checkpoint, options.destination)?;
    let model = Model::bind(checkpoint)?;
    let mut steps = match verb {
        Verb::Quantize(recipe) => steps::quantize(checkpoint, &model, recipe)?,
        Verb::Dequantize(recipe) => steps::dequantize(checkpoint, &model, recipe)?,
        Verb::Convert(recipe) => steps::convert(checkpoint, &model, recipe)?,
        Verb::Refine(recipe) => steps::refine(checkpoint, &model, recipe)?,
    };
    if let Verb::Quantize(recipe) = verb {
        fold::fold(checkpoint, recipe, options, &mut steps)?;
    }
    if let Some(writer) = writer {
        let budget = Budget::new(options.memory_bytes, options.threads);
        offsets::find(checkpoint, writer, budget, &mut steps.list)?;
        steps = steps::respell(checkpoint, writer, steps)?;
    }
    Planner {
        checkpoint,
        verb,
        options,
        place,
        notes: Vec::new(),
    }
    .finish(steps)
}

struct Planner<'a, 'b> {
    checkpoint: &'a Checkpoint,
    verb: &'b Verb,
    options: &'b JobOptions,
    place: Place,
    notes: Vec<String>,
}

impl<'a> Planner<'a, '_> {
    fn finish(mut self, mut built: Steps) -> Result<Plan<'a>, Error> {
        let metadata = self.metadata(&built);
        let documents = self.documents(&mut built)?;
        let (shards, index) = self.lay_out(&mut built, &metadata)?;
        let sidecars = self.sidecars(&documents);
        let budget = Budget::new(self.options.memory_bytes, self.options.threads);
        budget.cut(&mut built.list, self.checkpoint)?;
        let files = self.files(
            &shards,
            index.as_deref(),
            &documents,
            &sidecars,
            &built.list,
        );
        let fingerprint = self.fingerprint(&shards, built.folded.as_deref())?;
        let journal_bytes = fingerprint.journal_bound(&built.list);
        self.notes.append(&mut built.notes);
        Ok(Plan {
            checkpoint: self.checkpoint,
            destination: self.place.destination.clone(),
            kind: self.place.kind,
            scratch_bytes: files.iter().map(|(_, len)| len).sum::<u64>() + journal_bytes,
            files,
            modules: built.list.iter().map(planned).collect(),
            peak_memory_bytes: budget.peak_bytes(&built.list),
            peak_statistics_bytes: prepare::peak_bytes(&built.list),
            notes: self.notes,
            job: Job {
                place: self.place,
                mode: self.options.destination,
                budget,
                calibration: self.verb.calibration().cloned(),
                reference: self.verb.reference().cloned(),
                order: order(&built.list),
                shards,
                index,
                documents,
                sidecars,
                steps: built.list,
                statistics: built.statistics,
                fingerprint,
            },
        })
    }

    /// The source's `__metadata__`, merged; the first shard that has a key wins.
    fn metadata(&self, built: &Steps) -> Vec<(String, String)> {
        let outputs: BTreeSet<&str> = (built.list.iter().flat_map(|s| &s.outputs))
            .map(|o| o.tensor.name.as_str())
            .collect();
        let is_written = |prefix: &str| {
            let mut from = outputs.range(prefix..);
            from.next().is_some_and(|name| name.starts_with(prefix))
        };
        let shards = self.checkpoint.shards().iter();
        let source = shards.flat_map(|s| s.header.metadata.iter().flatten());
        let mut merged = if built.keeps_documents {
            crate::metadata::same(source)
        } else {
            crate::metadata::merged(source, &built.edit.metadata, is_written)
        };
        if merged.iter().all(|(key, _)| key != "format") {
            merged.push(("format".to_owned(), "pt".to_owned()));
        }
        // A single file has no config beside it that belongs to it alone.
        if self.place.kind == OutputKind::File && !built.edit.quantization_config.is_empty() {
            let value = Value::Object(built.edit.quantization_config.clone()).to_string();
            merged.push(("quantization_config".to_owned(), value));
        }
        merged
    }

    fn documents(&mut self, built: &mut Steps) -> Result<Vec<(String, Vec<u8>)>, Error> {
        let states_config = !built.edit.quantization_config.is_empty();
        let mut documents = match self.verb {
            Verb::Refine(_) => config::same_documents(self.checkpoint),
            Verb::Convert(_) if built.keeps_documents => config::same_documents(self.checkpoint),
            Verb::Quantize(_) | Verb::Convert(_) => {
                let edit = std::mem::take(&mut built.edit);
                config::quantized_documents(self.checkpoint, edit)?
            }
            Verb::Dequantize(recipe) => config::dense_documents(self.checkpoint, recipe.dtype)?,
        };
        let has_config = self.checkpoint.document(config::CONFIG).is_some();
        if self.place.kind == OutputKind::Directory && built.gguf.is_some() && !has_config {
            documents.clear();
        }
        if self.place.kind == OutputKind::File {
            documents.clear();
            if states_config {
                self.notes.push(
                    "a single file has no config.json: the quantization config is written to its __metadata__"
                        .to_owned(),
                );
            }
        } else if !has_config && !documents.is_empty() {
            self.notes.push(
                "the source has no config.json; a new one holds the quantization config only"
                    .to_owned(),
            );
        }
        documents.sort();
        Ok(documents)
    }

    /// Lays the outputs out in files and tells each step where its tensors are.
    fn lay_out(
        &self,
        built: &mut Steps,
        metadata: &[(String, String)],
    ) -> Result<(Vec<FilePlan>, Option<Vec<u8>>), Error> {
        let steps = &mut built.list;
        let groups: Vec<TensorGroup> = steps.iter().filter_map(Step::group).collect();
        let (files, index) = match (self.place.kind, &built.gguf) {
            (OutputKind::Directory, gguf) => {
                let cap = self.options.max_shard_bytes;
                let layout = match gguf {
                    Some(gguf) => CheckpointPlan::gguf(GGUF_STEM, groups, cap, gguf)?,
                    None => CheckpointPlan::new(groups, cap, metadata)?,
                };
                (layout.files, layout.index)
            }
            (OutputKind::File, gguf) => {
                let tensors: Vec<_> = groups.into_iter().flat_map(|g| g.tensors).collect();
                let name = self.place.file_name();
                let file = match gguf {
                    Some(gguf) => FilePlan::gguf(&name, &tensors, gguf)?,
                    None => FilePlan::new(&name, tensors, metadata)?,
                };
                (vec![file], None)
            }
        };
        let mut places = HashMap::new();
        for (f, file) in files.iter().enumerate() {
            for (t, tensor) in file.tensors.iter().enumerate() {
                places.insert(tensor.name.as_str(), (f, t));
            }
        }
        for output in steps.iter_mut().flat_map(|s| &mut s.outputs) {
            output.at = places
                .get(output.tensor.name.as_str())
                .copied()
                .unwrap_or_default();
        }
        Ok((files, index))
    }

    fn sidecars(&mut self, documents: &[(String, Vec<u8>)]) -> Vec<(String, u64)> {
        if self.place.kind == OutputKind::File {
            return Vec::new();
        }
        let mut copied = Vec::new();
        for sidecar in self.checkpoint.sidecars() {
            match travels(&sidecar.name) {
                Travel::Copied if documents.iter().all(|(name, _)| *name != sidecar.name) => {
                    copied.push((sidecar.name.clone(), sidecar.len_bytes));
                }
                // What describes the source's quantization describes the result's.
                Travel::Replaced
                    if matches!(self.verb, Verb::Refine(_))
                        && !sidecar.name.ends_with(Manifest::FILE_NAME)
                        && documents.iter().all(|(name, _)| *name != sidecar.name) =>
                {
                    copied.push((sidecar.name.clone(), sidecar.len_bytes));
                }
                Travel::Copied | Travel::Replaced => {}
                Travel::Weights => self.notes.push(format!(
                    "{:?} is not copied: weights in another format",
                    sidecar.name
                )),
            }
        }
        copied
    }

    /// Every file of the result with its exact length.
    fn files(
        &self,
        shards: &[FilePlan],
        index: Option<&[u8]>,
        documents: &[(String, Vec<u8>)],
        sidecars: &[(String, u64)],
        steps: &[Step],
    ) -> Vec<(String, u64)> {
        let mut files: Vec<(String, u64)> = shards
            .iter()
            .map(|f| (f.name.clone(), f.len_bytes))
            .collect();
        files.extend(index.map(|bytes| (INDEX.to_owned(), bytes.len() as u64)));
        files.extend(
            documents
                .iter()
                .map(|(name, bytes)| (name.clone(), bytes.len() as u64)),
        );
        files.extend(sidecars.iter().cloned());
        // Digests and losses have a fixed length, so the manifest's is known before them.
        let manifest = manifest(steps, |_| None).to_json();
        files.push((manifest_name(&self.place), manifest.len() as u64));
        files
    }

    fn fingerprint(&self, shards: &[FilePlan], folded: Option<&str>) -> Result<Fingerprint, Error> {
        let mut recipe = recipe::canonical(self.verb);
        if let (Value::Object(fields), Some(digest)) = (&mut recipe, folded) {
            fields.insert("folded".to_owned(), json!(digest));
        }
        Fingerprint::new(
            self.checkpoint,
            recipe,
            self.options.max_shard_bytes,
            shards,
        )
    }
}

/// The order in which steps are carried out. Files are begun in their order; within one, a step stands behind the first that goes
/// by the same statistics.
fn order(steps: &[Step]) -> Vec<usize> {
    let mut first_of: HashMap<(Option<usize>, &str), usize> = HashMap::new();
    let mut keyed: Vec<(usize, usize)> = Vec::new();
    for (i, step) in steps.iter().enumerate() {
        let owner = prepare::first_owner(step);
        let first = owner.map_or(i, |owner| {
            *first_of.entry((file_of(step), owner)).or_insert(i)
        });
        keyed.push((first, i));
    }
    keyed.sort_unstable();
    keyed.into_iter().map(|(_, i)| i).collect()
}

/// The index of a sharded result.
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// What the names of GGUF files in a directory begin with.
const GGUF_STEM: &str = "model";

/// The manifest's file name at the destination.
pub(crate) fn manifest_name(place: &Place) -> String {
    match place.kind {
        OutputKind::Directory => Manifest::FILE_NAME.to_owned(),
        OutputKind::File => {
            let path = place.manifest_beside();
            path.file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned()
        }
    }
}

/// The manifest of the steps' outputs; without a record it has the length that it will have with one.
pub(crate) fn manifest<'r>(
    steps: &[Step],
    record: impl Fn(usize) -> Option<&'r Record>,
) -> Manifest {
    let (mut tensors, mut modules) = (Vec::new(), Vec::new());
    let unknown = "0".repeat(2 * blake3::OUT_LEN);
    for (s, step) in steps.iter().enumerate() {
        let record = record(s);
        for (o, output) in step.outputs.iter().enumerate() {
            let digest = record.and_then(|record| record.digests.get(o));
            tensors.push(ManifestEntry {
                name: output.tensor.name.clone(),
                dtype: output.tensor.dtype,
                shape: output.tensor.shape.clone(),
                blake3: digest.unwrap_or(&unknown).clone(),
            });
        }
        modules.extend(step.quantizing().map(|work| listed(step, work, record)));
    }
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    modules.sort_by(|a, b| a.name.cmp(&b.name));
    Manifest { tensors, modules }
}

/// What the manifest says of a module that is quantized.
fn listed(step: &Step, work: &QuantizeWork, record: Option<&Record>) -> ManifestModule {
    let loss = record.and_then(|record| record.loss);
    let output = record.and_then(|record| record.output_loss);
    ManifestModule {
        name: step.name.clone(),
        scheme: work.scheme.clone().into_owned(),
        method: work.methods(),
        effort: work.effort().map(|effort| effort.name().to_owned()),
        n_weights: step.n_weights(),
        len_bytes: step.output_bytes(),
        losses: ManifestLosses {
            signal: loss.map(|loss| loss.signal),
            noise: loss.map(|loss| loss.noise),
            max_error: loss.map(|loss| loss.max_error),
            output_signal: output.map(|loss| loss.signal),
            output_noise: output.map(|loss| loss.noise),
        },
    }
}

fn planned(step: &Step) -> PlannedModule {
    PlannedModule {
        name: step.name.clone(),
        action: step.action.clone(),
        method: step.quantizing().map(QuantizeWork::methods),
        effort: step.quantizing().and_then(QuantizeWork::effort),
        shape: step.shape.clone(),
        source_bytes: step.source_bytes,
        output_bytes: step.output_bytes(),
    }
}

impl Plan<'_> {
    /// The plan as data for `--dry-run --json`.
    pub fn to_json(&self) -> Value {
        let files = self
            .files
            .iter()
            .map(|(name, len)| json!({"name": name, "len_bytes": len}));
        let modules = self.modules.iter().map(|m| {
            json!({
                "name": m.name,
                "action": m.action.word(),
                "detail": m.action.detail(),
                "method": m.method,
                "effort": m.effort.map(Effort::name),
                "shape": m.shape,
                "source_bytes": m.source_bytes,
                "output_bytes": m.output_bytes,
            })
        });
        json!({
            "destination": self.destination.display().to_string(),
            "files": files.collect::<Vec<_>>(),
            "modules": modules.collect::<Vec<_>>(),
            "peak_memory_bytes": self.peak_memory_bytes,
            "peak_statistics_bytes": self.peak_statistics_bytes,
            "scratch_bytes": self.scratch_bytes,
            "notes": self.notes,
        })
    }
}
