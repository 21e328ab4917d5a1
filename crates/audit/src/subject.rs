//! What is audited: a checkpoint as far as it could be opened and bound, what stood in the way, and what is asked of it.

use std::collections::BTreeMap;
use std::path::Path;
use std::ptr;

use safequant_container::{Checkpoint, Error as OpenError, ErrorGroup, Limits, TensorInfo};
use safequant_schemes::{Error, Headers, Model, Settings, config};
use serde_json::{Map, Value};

use crate::ModuleName;
use crate::inventory::{Stacks, Stored, Trunk, find_plain, find_stacks, find_trunk, take_apart};

/// A checkpoint on the table.
pub struct Subject<'a> {
    /// The files.
    pub checkpoint: &'a Checkpoint,
    /// Names, shapes and documents.
    pub headers: Headers<'a>,
    /// The weights, as far as they bind.
    pub model: Model,
    /// What did not open or bind.
    pub problems: Vec<Error>,
    /// `config.json`; empty if there is none, or none that can be read (which is one of the problems then).
    pub config: Map<String, Value>,
    /// What the documents say about quantization, in the order of lookup; empty if they cannot be read.
    pub settings: Vec<Settings>,
    /// What it should be able to do.
    pub wanted: Wanted,
    /// Every tensor by name, and what its name says.
    pub(crate) stored: Vec<Stored<'a>>,
    /// Tensors that are no part of a quantized weight, by name: those of `model.plain`.
    pub(crate) plain: Vec<&'a TensorInfo>,
    /// The stacks of layers.
    pub(crate) stacks: Stacks<'a>,
    /// The stack of the language model.
    pub(crate) trunk: Option<Trunk<'a>>,
}

/// What a checkpoint should be able to do, as the user asks.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Tensor-parallel degrees that it should be cut into.
    pub tensor_parallel: Vec<u64>,
    /// Runtimes, by name, that should load it.
    pub runtimes: Vec<String>,
}

impl<'a> Subject<'a> {
    /// Binds everything that can be bound. `problems`: what was met while the files were opened
    /// ([`Checkpoint::survey`]).
    pub fn new(
        checkpoint: &'a Checkpoint,
        problems: Vec<safequant_container::Error>,
        wanted: Wanted,
    ) -> Self {
        let headers = Headers::new(checkpoint);
        let (mut stored, mut stacks) = (Vec::new(), Stacks::new());
        // Binding stays on this thread: glibc enlarges the heaps of other threads page by page, a system call each.
        let (model, errors) = rayon::in_place_scope(|scope| {
            scope.spawn(|_| {
                stored = take_apart(headers);
                stacks = find_stacks(&stored);
            });
            Model::survey(checkpoint)
        });
        Self {
            checkpoint,
            headers,
            plain: find_plain(&stored, &model.plain),
            trunk: find_trunk(&stored, &stacks),
            model,
            stored,
            problems: problems
                .into_iter()
                .map(Error::from)
                .chain(errors)
                .collect(),
            config: object(headers, "config.json"),
            settings: headers.settings().unwrap_or_default(),
            wanted,
            stacks,
        }
    }

    /// The modules that names of tensors tell, with what is stored of each. A module may come several times: its tensors need not
    /// lie side by side.
    pub(crate) fn modules(&self) -> impl Iterator<Item = (ModuleName<'a>, &[Stored<'a>])> {
        // Neighbors of one module share its name.
        let is_same = |a: &Stored<'_>, b: &Stored<'_>| ptr::eq(a.module.module, b.module.module);
        let all = self.stored.chunk_by(is_same);
        all.filter_map(|of_module| Some((of_module.first()?.module, of_module)))
    }

    /// A number of `config.json`: at the top, or in the sub-configuration of a text model.
    pub fn number(&self, key: &str) -> Option<u64> {
        self.config_value(key)?.as_u64()
    }

    /// A value of `config.json` that is there and not null: at the top, or in the sub-configuration of a text model.
    pub fn config_value(&self, key: &str) -> Option<&Value> {
        let sub = [
            "text_config",
            "llm_config",
            "language_config",
            "thinker_config",
        ];
        let subs = sub
            .iter()
            .filter_map(|name| self.config.get(*name)?.as_object());
        let mut all = std::iter::once(&self.config).chain(subs);
        all.find_map(|object| object.get(key).filter(|value| !value.is_null()))
    }
}

/// A document that is a JSON object; empty where it is not.
pub(crate) fn object(headers: Headers<'_>, document: &str) -> Map<String, Value> {
    let value = headers
        .document(document)
        .and_then(|bytes| config::parse(document, bytes).ok());
    match value {
        Some(Value::Object(map)) => map,
        Some(_) | None => Map::new(),
    }
}

/// What can be opened, and what stands in the way. What is no checkpoint at all is an empty one with one problem: a rule is about
/// that too.
///
/// # Errors
/// What the system refused.
pub fn survey(source: &Path, limits: &Limits) -> Result<(Checkpoint, Vec<OpenError>), OpenError> {
    match Checkpoint::survey(source, limits) {
        Err(error) if error.group() != ErrorGroup::Io => {
            let name = source.to_string_lossy();
            let (empty, _) =
                Checkpoint::survey_sources(&name, Vec::new(), BTreeMap::new(), limits)?;
            Ok((empty, vec![error]))
        }
        surveyed => surveyed,
    }
}
