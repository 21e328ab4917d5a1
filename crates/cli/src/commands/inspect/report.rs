//! The figures of `inspect`, as plain data.

use std::collections::{BTreeMap, HashMap, HashSet};

use safequant::container::{Checkpoint, CheckpointKind, Dtype, TensorInfo};
use safequant::schemes::pattern::Pattern;
use safequant::schemes::{Model, QuantizedTensor, Role};

use crate::describe::Place;
use crate::exit::Failure;

/// What a checkpoint is.
#[derive(Debug)]
pub(super) struct Report {
    /// How it was given.
    pub(super) kind: CheckpointKind,
    /// Shards: name, length in bytes, tensors.
    pub(super) files: Vec<(String, u64, usize)>,
    /// Conventions with what was seen.
    pub(super) conventions: Vec<(&'static str, Vec<String>)>,
    /// Quantized modules and plain tensors, by name.
    pub(super) entries: Vec<Entry>,
    /// Stored tensors, by name.
    pub(super) tensors: Vec<Stored>,
    /// Tensors that belong to a convention but to no weight.
    pub(super) orphans: Vec<String>,
    /// Whether the conventions were bound, so that parameters are known.
    pub(super) is_bound: bool,
}

/// A quantized module or a plain tensor.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    /// Its name.
    pub(super) name: String,
    /// The convention of a quantized module.
    pub(super) convention: Option<&'static str>,
    /// The scheme in words, or the dtype of a plain tensor.
    pub(super) scheme: String,
    /// Logical shape.
    pub(super) shape: Vec<u64>,
    /// Logical parameters; 0 for a plain tensor that holds no floats (`position_ids`).
    pub(super) parameters: u64,
    /// Bytes stored, all parts together.
    pub(super) len_bytes: u64,
    /// Where in the model it stands.
    pub(super) place: Place,
}

/// A stored tensor.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Stored {
    pub(super) name: String,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<u64>,
    pub(super) len_bytes: u64,
    pub(super) n_elements: u64,
    /// The shard that holds it.
    pub(super) file: String,
    /// The quantized module it is a part of, and the part's role.
    pub(super) part_of: Option<(String, Role)>,
}

/// Sums over entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sum {
    pub(super) count: u64,
    pub(super) parameters: u64,
    pub(super) len_bytes: u64,
}

impl Sum {
    fn add(&mut self, entry: &Entry) {
        self.count += 1;
        self.parameters = self.parameters.saturating_add(entry.parameters);
        self.len_bytes = self.len_bytes.saturating_add(entry.len_bytes);
    }
}

/// Sums over stored tensors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct StoredSum {
    pub(super) tensors: u64,
    pub(super) n_elements: u64,
    pub(super) len_bytes: u64,
}

impl StoredSum {
    fn add(&mut self, stored: &Stored) {
        self.tensors += 1;
        self.n_elements = self.n_elements.saturating_add(stored.n_elements);
        self.len_bytes = self.len_bytes.saturating_add(stored.len_bytes);
    }
}

impl Report {
    /// The report of a checkpoint whose conventions are bound.
    ///
    /// # Errors
    /// A filter that needs too many steps on a name.
    pub(super) fn new(
        checkpoint: &Checkpoint,
        model: &Model,
        filter: Option<&Pattern>,
    ) -> Result<Self, Failure> {
        let mut entries = quantized_entries(checkpoint, model);
        let plain = model.plain.iter().chain(&model.orphans);
        entries.extend(
            plain
                .filter_map(|name| checkpoint.tensor(name))
                .map(|t| plain_entry(t.info)),
        );
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        let parts = model
            .quantized
            .iter()
            .flat_map(|q| q.parts.iter().map(move |part| (q, part)));
        let parts: HashMap<_, _> = parts
            .map(|(q, part)| (part.name.as_str(), (q.module.as_str(), part.role)))
            .collect();
        let report = Self {
            conventions: model.conventions.clone(),
            entries,
            orphans: model.orphans.clone(),
            is_bound: true,
            ..Self::bare(checkpoint, &parts)
        };
        report.filtered(filter)
    }

    /// The report of a checkpoint of which only the container is understood.
    ///
    /// # Errors
    /// As [`Report::new`].
    pub(super) fn of_container(
        checkpoint: &Checkpoint,
        filter: Option<&Pattern>,
    ) -> Result<Self, Failure> {
        let entries = checkpoint.tensors().map(|t| plain_entry(t.info)).collect();
        Self {
            entries,
            ..Self::bare(checkpoint, &HashMap::new())
        }
        .filtered(filter)
    }

    fn bare(checkpoint: &Checkpoint, parts: &HashMap<&str, (&str, Role)>) -> Self {
        let files = checkpoint.shards().iter();
        let files = files.map(|s| (s.name.clone(), s.source.len_bytes(), s.header.tensors.len()));
        let tensors = checkpoint.tensors().map(|t| Stored {
            name: t.info.name.to_string(),
            dtype: t.info.dtype,
            shape: t.info.shape.to_vec(),
            len_bytes: t.info.len_bytes(),
            n_elements: t.info.n_elements(),
            file: t.shard.name.clone(),
            part_of: parts
                .get(t.name())
                .map(|(module, role)| ((*module).to_owned(), *role)),
        });
        Self {
            kind: checkpoint.kind(),
            files: files.collect(),
            conventions: Vec::new(),
            entries: Vec::new(),
            tensors: tensors.collect(),
            orphans: Vec::new(),
            is_bound: false,
        }
    }

    /// Only what matches: a pattern is about modules, so a tensor also matches by the name of its module.
    fn filtered(mut self, filter: Option<&Pattern>) -> Result<Self, Failure> {
        let Some(pattern) = filter else {
            return Ok(self);
        };
        let mut entries = Vec::new();
        for entry in self.entries {
            if matches(pattern, &entry.name)? {
                entries.push(entry);
            }
        }
        let mut tensors = Vec::new();
        for tensor in self.tensors {
            let of_module = match &tensor.part_of {
                Some((module, _)) => matches(pattern, module)?,
                None => false,
            };
            if of_module || matches(pattern, &tensor.name)? {
                tensors.push(tensor);
            }
        }
        (self.entries, self.tensors) = (entries, tensors);
        Ok(self)
    }

    /// Everything together.
    pub(super) fn total(&self) -> Sum {
        self.sum(|_| true)
    }

    /// The quantized modules together.
    pub(super) fn quantized(&self) -> Sum {
        self.sum(|entry| entry.convention.is_some())
    }

    fn sum(&self, which: impl Fn(&Entry) -> bool) -> Sum {
        let mut sum = Sum::default();
        self.entries
            .iter()
            .filter(|entry| which(entry))
            .for_each(|entry| sum.add(entry));
        sum
    }

    /// What is stored, all dtypes together.
    pub(super) fn stored(&self) -> StoredSum {
        let mut sum = StoredSum::default();
        self.tensors.iter().for_each(|tensor| sum.add(tensor));
        sum
    }

    /// What is stored, by dtype.
    pub(super) fn dtypes(&self) -> BTreeMap<Dtype, StoredSum> {
        let mut sums: BTreeMap<Dtype, StoredSum> = BTreeMap::new();
        self.tensors
            .iter()
            .for_each(|tensor| sums.entry(tensor.dtype).or_default().add(tensor));
        sums
    }

    /// By convention and scheme; plain tensors have no convention and their dtype as the scheme.
    pub(super) fn schemes(&self) -> BTreeMap<(Option<&'static str>, &str), Sum> {
        let mut sums: BTreeMap<_, Sum> = BTreeMap::new();
        for entry in &self.entries {
            sums.entry((entry.convention, entry.scheme.as_str()))
                .or_default()
                .add(entry);
        }
        sums
    }

    /// By place in the model, empty ones left out.
    pub(super) fn places(&self) -> Vec<(Place, Sum)> {
        let sums = Place::ALL
            .iter()
            .map(|&place| (place, self.sum(|entry| entry.place == place)));
        sums.filter(|(_, sum)| sum.count > 0).collect()
    }
}

fn matches(pattern: &Pattern, name: &str) -> Result<bool, Failure> {
    let module = name.rsplit_once('.').map_or(name, |(module, _)| module);
    Ok(pattern.is_match(name)? || pattern.is_match(module)?)
}

/// Parts that several modules share (fused scales) are counted once, with the first of them.
fn quantized_entries(checkpoint: &Checkpoint, model: &Model) -> Vec<Entry> {
    let mut counted = HashSet::new();
    let mut entry = |quantized: &QuantizedTensor| {
        let mut len_bytes = 0u64;
        for part in &quantized.parts {
            if counted.insert(part.name.clone()) {
                let stored = checkpoint
                    .tensor(&part.name)
                    .map_or(0, |t| t.info.len_bytes());
                len_bytes = len_bytes.saturating_add(stored);
            }
        }
        Entry {
            name: quantized.module.clone(),
            convention: Some(quantized.convention),
            scheme: quantized.scheme.to_string(),
            shape: quantized.shape.clone(),
            parameters: quantized
                .shape
                .iter()
                .fold(1, |product, dim| dim.saturating_mul(product)),
            len_bytes,
            place: Place::of(&quantized.module),
        }
    };
    model.quantized.iter().map(&mut entry).collect()
}

fn plain_entry(info: &TensorInfo) -> Entry {
    Entry {
        name: info.name.to_string(),
        convention: None,
        scheme: info.dtype.name().to_owned(),
        shape: info.shape.to_vec(),
        parameters: if info.dtype.is_dense_float() {
            info.n_elements()
        } else {
            0
        },
        len_bytes: info.len_bytes(),
        place: Place::of(&info.name),
    }
}
