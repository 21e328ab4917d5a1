//! The logical weights of a checkpoint: which modules are quantized and how, and which tensors are plain.

use std::collections::{BTreeSet, HashMap};

use safequant_container::Checkpoint;

use crate::convention::CONVENTIONS;
use crate::{ColumnFactor, Error, Headers, Part, QuantizedTensor, Role, Storage, foreign};

/// A checkpoint as weights instead of tensors.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// Quantized weights, by module name.
    pub quantized: Vec<QuantizedTensor>,
    /// What weights amount to whose runtimes multiply the *inputs* by a factor per feature ([`ColumnFactor::Inputs`]): the
    /// same tensors with the factor applied, under the name `<weight>_effective`. Derived; they own no parts.
    pub effective: Vec<QuantizedTensor>,
    /// Names of tensors that are no part of a quantized weight, by name: dense weights, norms, embeddings ...
    pub plain: Vec<String>,
    /// Tensors that belong to a convention but to no weight (see `Recognized::orphans`).
    pub orphans: Vec<String>,
    /// The conventions found, with what was seen.
    pub conventions: Vec<(&'static str, Vec<String>)>,
}

impl Model {
    /// Recognizes and binds everything in a checkpoint.
    ///
    /// # Errors
    /// The first module that does not bind, a tensor that two conventions claim, or [`Error::Unsupported`] for a
    /// quantized checkpoint whose convention we do not know: it is never taken for a dense one.
    pub fn bind(checkpoint: &Checkpoint) -> Result<Self, Error> {
        Self::bind_with(checkpoint, Err)
    }

    /// As [`Model::bind`], but goes on behind what does not bind: what could be bound, and everything that stood in the way,
    /// in the order in which it was met. For reports; whoever computes on weights wants [`Model::bind`].
    pub fn survey(checkpoint: &Checkpoint) -> (Self, Vec<Error>) {
        let mut errors = Vec::new();
        let model = Self::bind_with(checkpoint, |error| {
            errors.push(error);
            Ok(())
        });
        match model {
            Ok(model) => (model, errors),
            Err(error) => {
                errors.push(error);
                (Self::default(), errors)
            }
        }
    }

    /// `fail` says whether to go on.
    fn bind_with(
        checkpoint: &Checkpoint,
        mut fail: impl FnMut(Error) -> Result<(), Error>,
    ) -> Result<Self, Error> {
        let headers = Headers::new(checkpoint);
        let settings = headers.settings()?;
        let mut model = Model::default();
        let mut claims = Claims::new(headers);
        let mut orphans = BTreeSet::new();
        let mut has_failed = false;
        for convention in CONVENTIONS {
            let recognized = match convention.recognize(headers) {
                Ok(Some(recognized)) => recognized,
                Ok(None) => continue,
                Err(error) => {
                    has_failed = true;
                    fail(error)?;
                    continue;
                }
            };
            for module in recognized.modules() {
                let bound = recognized
                    .bind(module)
                    .and_then(|tensor| claims.add(&tensor).map(|()| tensor));
                match bound {
                    Ok(tensor) => model.quantized.push(tensor),
                    Err(error) => {
                        has_failed = true;
                        fail(error)?;
                    }
                }
            }
            orphans.extend(recognized.orphans().iter().cloned());
            model
                .conventions
                .push((convention.id(), recognized.evidence().to_vec()));
        }
        orphans.retain(|name| {
            headers
                .place(name)
                .is_none_or(|place| claims.is_free(place))
        });
        for (place, info) in headers.tensors().enumerate() {
            if claims.is_free(place) && !orphans.contains(&*info.name) {
                model.plain.push(info.name.to_string());
            }
        }
        // What a module that did not bind leaves behind looks like a convention that we do not know.
        if !has_failed {
            check_weights(&model).or_else(&mut fail)?;
            foreign::check(headers, &settings, &model).or_else(&mut fail)?;
        }
        model.orphans = orphans.into_iter().collect();
        model.quantized.sort_by(|a, b| a.module.cmp(&b.module));
        model.effective = model.quantized.iter().filter_map(effective).collect();
        Ok(model)
    }

    /// The quantized weight of this module.
    pub fn module(&self, name: &str) -> Option<&QuantizedTensor> {
        let at = self
            .quantized
            .binary_search_by(|t| t.module.as_str().cmp(name))
            .ok()?;
        self.quantized.get(at)
    }
}

/// The weight with the factors of its inputs applied, where it has them.
fn effective(tensor: &QuantizedTensor) -> Option<QuantizedTensor> {
    let has_factors = tensor.scheme.basis.columns == ColumnFactor::Inputs
        && tensor.part(Role::ColumnFactor).is_some();
    has_factors.then(|| {
        let mut tensor = tensor.clone();
        tensor.weight.push_str("_effective");
        tensor.scheme.basis.columns = ColumnFactor::Multiply;
        tensor
    })
}

/// No two modules, and no module and dense tensor, stand for the same weight.
fn check_weights(model: &Model) -> Result<(), Error> {
    let mut weights = HashMap::with_capacity(model.quantized.len());
    for tensor in &model.quantized {
        let sign = |tensor: &QuantizedTensor| signed(&tensor.module, tensor.convention);
        let other = weights.insert(tensor.weight.as_str(), tensor).map(sign);
        let is_dense = || model.plain.binary_search(&tensor.weight).is_ok();
        let other = other.or_else(|| is_dense().then(|| "a dense tensor".to_owned()));
        if let Some(first) = other {
            return Err(Error::ClaimedTwice {
                tensor: tensor.weight.clone(),
                first,
                second: sign(tensor),
            });
        }
    }
    Ok(())
}

/// A module, and who claims it.
fn signed(module: &str, convention: &str) -> String {
    format!("{module} ({convention})")
}

/// Who owns which tensor.
struct Claims<'a> {
    headers: Headers<'a>,
    /// The number of the owner of each tensor, by the tensor's place.
    owner: Vec<Option<(usize, Sharing)>>,
    /// The modules that own something, and their conventions.
    owners: Vec<(String, &'static str)>,
}

/// Whether several modules may own a tensor together.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sharing {
    Alone,
    Shared,
}

impl Sharing {
    fn of(part: &Part) -> Self {
        match part.storage {
            Storage::SharedElements { .. } => Sharing::Shared,
            Storage::Elements { .. }
            | Storage::Common
            | Storage::LowHigh { .. }
            | Storage::Packed { .. }
            | Storage::PackedConstant { .. }
            | Storage::Tiled { .. }
            | Storage::Flat { .. }
            | Storage::Planes { .. }
            | Storage::Sparse { .. }
            | Storage::Blocks { .. }
            | Storage::Vector => Sharing::Alone,
        }
    }
}

impl<'a> Claims<'a> {
    fn new(headers: Headers<'a>) -> Self {
        Self {
            headers,
            owner: headers.tensors().map(|_| None).collect(),
            owners: Vec::new(),
        }
    }

    fn is_free(&self, place: usize) -> bool {
        self.owner.get(place).is_none_or(Option::is_none)
    }

    fn add(&mut self, tensor: &QuantizedTensor) -> Result<(), Error> {
        let me = self.owners.len();
        self.owners.push((tensor.module.clone(), tensor.convention));
        let members = self.headers.members(&tensor.module);
        for part in &tensor.parts {
            let own = part.name.strip_prefix(&tensor.module);
            let place = match own.and_then(|rest| rest.strip_prefix('.')) {
                Some(ending) => members.place(ending),
                None => self.headers.place(&part.name),
            };
            // Parts come out of headers, so that each has a place.
            let Some(owner) = place.and_then(|place| self.owner.get_mut(place)) else {
                continue;
            };
            let sharing = Sharing::of(part);
            let Some((first, other)) = *owner else {
                *owner = Some((me, sharing));
                continue;
            };
            if let Some((module, convention)) = self.owners.get(first)
                && (sharing == Sharing::Alone || other == Sharing::Alone)
            {
                return Err(Error::ClaimedTwice {
                    tensor: part.name.clone(),
                    first: signed(module, convention),
                    second: signed(&tensor.module, tensor.convention),
                });
            }
        }
        Ok(())
    }
}
