//! Our own format (specs/calibration.md).

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use safequant_container::{Checkpoint, Dtype, FileFormat, Limits, ReadAt, TensorRef};
use serde_json::Value;

use super::check::{self, Subject};
use super::error::shown;
use super::{Detail, Error, Module, SecondMoment, Statistics, values};

/// What `format` must say.
const FORMAT: &str = "safequant-calibration";

/// What `format_version` must say.
const VERSION: &str = "1";

/// What follows the last dot of a tensor's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Statistic {
    Hessian,
    HessianDiagonal,
    MeanAbsInput,
    MeanInput,
    TokenCount,
}

impl Statistic {
    const ALL: [Statistic; 5] = [
        Statistic::Hessian,
        Statistic::HessianDiagonal,
        Statistic::MeanAbsInput,
        Statistic::MeanInput,
        Statistic::TokenCount,
    ];

    const fn name(self) -> &'static str {
        match self {
            Statistic::Hessian => "hessian",
            Statistic::HessianDiagonal => "hessian_diagonal",
            Statistic::MeanAbsInput => "mean_abs_input",
            Statistic::MeanInput => "mean_input",
            Statistic::TokenCount => "token_count",
        }
    }

    const fn dtype(self) -> Dtype {
        match self {
            Statistic::Hessian
            | Statistic::HessianDiagonal
            | Statistic::MeanAbsInput
            | Statistic::MeanInput => Dtype::F32,
            Statistic::TokenCount => Dtype::I64,
        }
    }
}

/// A file, its layout validated.
pub(super) struct Stored {
    file: String,
    checkpoint: Checkpoint,
    metadata: Vec<(String, String)>,
    modules: BTreeMap<String, Entry>,
}

/// What a name stands for.
enum Entry {
    /// A module with tensors.
    Own(Own),
    /// The name of the module whose statistics it shares.
    Shared(String),
}

/// A module with tensors.
struct Own {
    in_features: u64,
    token_count: u64,
    detail: Detail,
    has_mean_abs: bool,
    has_mean: bool,
}

impl Stored {
    pub(super) fn open(
        file: &str,
        source: Arc<dyn ReadAt>,
        limits: &Limits,
    ) -> Result<Self, Error> {
        let name = format!("calibration{}", FileFormat::Safetensors.suffix());
        let shards = vec![(name, source)];
        let checkpoint = Checkpoint::from_sources(file, shards, BTreeMap::new(), limits)?;
        let metadata = match checkpoint.shards().first() {
            Some(shard) => shard.header.metadata.clone().unwrap_or_default(),
            None => Vec::new(),
        };
        let mut opened = Self {
            file: file.to_owned(),
            checkpoint,
            metadata,
            modules: BTreeMap::new(),
        };
        let detail = opened.check_metadata()?;
        opened.modules = opened.read_modules(detail)?;
        opened.add_shares()?;
        Ok(opened)
    }

    pub(super) fn file(&self) -> &str {
        &self.file
    }

    pub(super) fn metadata(&self) -> &[(String, String)] {
        &self.metadata
    }

    pub(super) fn modules(&self) -> impl Iterator<Item = Module> {
        self.modules.keys().filter_map(|name| self.module(name))
    }

    pub(super) fn module(&self, name: &str) -> Option<Module> {
        let (owner, own) = self.own(name)?;
        Some(Module {
            name: name.to_owned(),
            owner: owner.to_owned(),
            in_features: Some(own.in_features),
            n_values: own.in_features,
            token_count: Some(own.token_count),
            detail: own.detail,
        })
    }

    pub(super) fn statistics(
        &self,
        name: &str,
        in_features: u64,
    ) -> Result<Option<Statistics>, Error> {
        let Some((stored, own)) = self.own_of_width(name, in_features)? else {
            return Ok(None);
        };
        if own.token_count == 0 {
            return Ok(Some(Statistics::of_nothing(in_features)));
        }
        let read = |statistic| self.values(stored, statistic);
        let second_moment = match own.detail {
            Detail::Full => SecondMoment::Full(read(Statistic::Hessian)?),
            Detail::Diagonal => SecondMoment::Diagonal(read(Statistic::HessianDiagonal)?),
        };
        let if_there = |is_there: bool, statistic| is_there.then(|| read(statistic)).transpose();
        let mut found = Statistics {
            in_features: usize::try_from(in_features).unwrap_or(usize::MAX),
            token_count: Some(own.token_count),
            second_moment,
            mean_abs: if_there(own.has_mean_abs, Statistic::MeanAbsInput)?,
            mean: if_there(own.has_mean, Statistic::MeanInput)?,
        };
        let subject = Subject {
            file: &self.file,
            module: name,
        };
        check::statistics(subject, &mut found)?;
        Ok(Some(found))
    }

    pub(super) fn mean(&self, name: &str, in_features: u64) -> Result<Option<Vec<f32>>, Error> {
        let Some((stored, own)) = self.own_of_width(name, in_features)? else {
            return Ok(None);
        };
        if own.token_count == 0 || !own.has_mean {
            return Ok(None);
        }
        let mean = self.values(stored, Statistic::MeanInput)?;
        let subject = Subject {
            file: &self.file,
            module: name,
        };
        subject.finite(Statistic::MeanInput.name(), &mean)?;
        Ok(Some(mean))
    }

    /// As [`Self::own`], of a module whose inputs have so many features.
    fn own_of_width<'f>(
        &'f self,
        name: &'f str,
        in_features: u64,
    ) -> Result<Option<(&'f str, &'f Own)>, Error> {
        match self.own(name) {
            Some((_, own)) if own.in_features != in_features => Err(Error::Width {
                file: self.file.clone(),
                module: name.to_owned(),
                expected: in_features,
                found: own.in_features,
            }),
            found => Ok(found),
        }
    }

    /// A module with tensors, by its own name or by one that shares its statistics.
    fn own<'f>(&'f self, name: &'f str) -> Option<(&'f str, &'f Own)> {
        let stored = match self.modules.get(name)? {
            Entry::Own(own) => return Some((name, own)),
            Entry::Shared(stored) => stored,
        };
        match self.modules.get(stored)? {
            Entry::Own(own) => Some((stored, own)),
            Entry::Shared(_) => None,
        }
    }

    fn values(&self, module: &str, statistic: Statistic) -> Result<Vec<f32>, Error> {
        let tensor = self.checkpoint.tensor(&tensor_name(module, statistic));
        let tensor = tensor.ok_or_else(|| self.missing(module, statistic))?;
        let (source, range) = (tensor.shard.source.as_ref(), &tensor.info.range);
        let n = tensor.info.len_bytes() / values::VALUE_BYTES;
        values::read(&self.file, source, range.start, n)
    }

    fn missing(&self, module: &str, statistic: Statistic) -> Error {
        self.layout(
            &tensor_name(module, statistic),
            "a tensor of this name".to_owned(),
            "none".to_owned(),
        )
    }

    fn layout(&self, tensor: &str, expected: String, found: String) -> Error {
        Error::Layout {
            file: self.file.clone(),
            tensor: tensor.to_owned(),
            expected,
            found,
        }
    }

    fn value_of(&self, key: &str) -> Option<&str> {
        let found = self.metadata.iter().find(|(found, _)| found == key);
        found.map(|(_, value)| value.as_str())
    }

    /// Clause 8; answers what `hessian` says.
    fn check_metadata(&self) -> Result<Detail, Error> {
        let found = self.value_of("format");
        if found != Some(FORMAT) {
            return Err(Error::Kind {
                file: self.file.clone(),
                expected: "a file of calibration statistics (format: safequant-calibration)",
                found: found.map_or_else(
                    || "a safetensors file without `format`".to_owned(),
                    |f| format!("format: {}", shown(f)),
                ),
            });
        }
        self.one_of("format_version", &[VERSION], "1")?;
        self.one_of("accumulation", &["F32", "F64"], "F32 or F64")?;
        self.one_of("sequential", &["true", "false"], "true or false")?;
        let detail = self.one_of("hessian", &["full", "diagonal"], "full or diagonal")?;
        Ok(if detail == "full" {
            Detail::Full
        } else {
            Detail::Diagonal
        })
    }

    fn one_of(
        &self,
        key: &'static str,
        allowed: &[&str],
        expected: &'static str,
    ) -> Result<&str, Error> {
        match self.value_of(key) {
            Some(found) if allowed.contains(&found) => Ok(found),
            found => Err(Error::Metadata {
                file: self.file.clone(),
                key,
                expected,
                found: found.map_or_else(|| "nothing".to_owned(), shown),
            }),
        }
    }

    fn read_modules(&self, detail: Detail) -> Result<BTreeMap<String, Entry>, Error> {
        let mut found: BTreeMap<&str, BTreeMap<Statistic, TensorRef<'_>>> = BTreeMap::new();
        for tensor in self.checkpoint.tensors() {
            let (module, statistic) = split(tensor.name()).ok_or_else(|| {
                let names = Statistic::ALL.map(Statistic::name).join(", ");
                let expected = format!("a module, a dot and one of {names}");
                self.layout(tensor.name(), expected, "another name".to_owned())
            })?;
            self.check_dtype(tensor, statistic)?;
            found.entry(module).or_default().insert(statistic, tensor);
        }
        let own = |(module, parts): (&str, _)| {
            let own = self.read_module(module, detail, &parts)?;
            Ok((module.to_owned(), Entry::Own(own)))
        };
        found.into_iter().map(own).collect()
    }

    fn check_dtype(&self, tensor: TensorRef<'_>, statistic: Statistic) -> Result<(), Error> {
        let expected = statistic.dtype();
        if tensor.dtype() == expected {
            return Ok(());
        }
        let found = tensor.dtype().name().to_owned();
        Err(self.layout(tensor.name(), expected.name().to_owned(), found))
    }

    fn read_module(
        &self,
        module: &str,
        detail: Detail,
        parts: &BTreeMap<Statistic, TensorRef<'_>>,
    ) -> Result<Own, Error> {
        let (wanted, unwanted) = match detail {
            Detail::Full => (Statistic::Hessian, Statistic::HessianDiagonal),
            Detail::Diagonal => (Statistic::HessianDiagonal, Statistic::Hessian),
        };
        let part = |statistic| parts.get(&statistic).copied();
        let moment = part(wanted).ok_or_else(|| self.missing(module, wanted))?;
        if let Some(tensor) = part(unwanted) {
            let expected = format!("only {}, by `hessian` in the metadata", wanted.name());
            return Err(self.layout(tensor.name(), expected, "both".to_owned()));
        }
        let in_features = moment.shape().first().copied().unwrap_or(0);
        if in_features == 0 {
            let found = format!("{:?}", moment.shape());
            return Err(self.layout(
                moment.name(),
                "at least one input feature".to_owned(),
                found,
            ));
        }
        let square = [in_features, in_features];
        let shape = match detail {
            Detail::Full => &square[..],
            Detail::Diagonal => &square[..1],
        };
        self.check_shape(moment, shape)?;
        for statistic in [Statistic::MeanAbsInput, Statistic::MeanInput] {
            if let Some(tensor) = part(statistic) {
                self.check_shape(tensor, &[in_features])?;
            }
        }
        let count = part(Statistic::TokenCount);
        let count = count.ok_or_else(|| self.missing(module, Statistic::TokenCount))?;
        self.check_shape(count, &[])?;
        Ok(Own {
            in_features,
            token_count: self.read_count(module, count)?,
            detail,
            has_mean_abs: part(Statistic::MeanAbsInput).is_some(),
            has_mean: part(Statistic::MeanInput).is_some(),
        })
    }

    fn check_shape(&self, tensor: TensorRef<'_>, expected: &[u64]) -> Result<(), Error> {
        if tensor.shape() == expected {
            return Ok(());
        }
        let (expected, found) = (format!("{expected:?}"), format!("{:?}", tensor.info.shape));
        Err(self.layout(tensor.name(), expected, found))
    }

    fn read_count(&self, module: &str, tensor: TensorRef<'_>) -> Result<u64, Error> {
        let mut bytes = [0; 8];
        tensor.read_exact_at(0, &mut bytes)?;
        let found = i64::from_le_bytes(bytes);
        u64::try_from(found).map_err(|_| Error::Value {
            file: self.file.clone(),
            module: module.to_owned(),
            statistic: Statistic::TokenCount.name(),
            expected: "no negative number",
            found: found.to_string(),
        })
    }

    /// Clause 7.
    fn add_shares(&mut self) -> Result<(), Error> {
        const KEY: &str = "shares";
        const EXPECTED: &str =
            "a JSON object from names without tensors to names of modules with tensors";
        let wrong = |found: String| Error::Metadata {
            file: self.file.clone(),
            key: KEY,
            expected: EXPECTED,
            found,
        };
        let Some(text) = self.value_of(KEY) else {
            return Ok(());
        };
        let Ok(Value::Object(shares)) = serde_json::from_str(text) else {
            return Err(wrong("something else".to_owned()));
        };
        let own: HashSet<&str> = self.modules.keys().map(String::as_str).collect();
        let mut added = Vec::new();
        for (name, of) in shares {
            match of.as_str() {
                Some(of) if own.contains(of) && !own.contains(name.as_str()) => {
                    added.push((name, Entry::Shared(of.to_owned())));
                }
                Some(_) | None => {
                    return Err(wrong(format!(
                        "{}: {}",
                        shown(&name),
                        shown(&of.to_string())
                    )));
                }
            }
        }
        self.modules.extend(added);
        Ok(())
    }
}

fn tensor_name(module: &str, statistic: Statistic) -> String {
    format!("{module}.{}", statistic.name())
}

fn split(tensor: &str) -> Option<(&str, Statistic)> {
    let (module, last) = tensor.rsplit_once('.')?;
    let statistic = Statistic::ALL.into_iter().find(|s| s.name() == last)?;
    Some((module, statistic))
}
