//! The dense checkpoint that a quantized one was made of.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use safequant_container::{Checkpoint, Limits};
use serde_json::{Value, json};

use crate::Error;
use crate::journal::shard_identity;

/// A checkpoint whose weights are the originals. Clones share what is opened.
#[derive(Clone)]
pub struct Reference {
    checkpoint: Arc<Checkpoint>,
    /// What tells it from others, for journals.
    identity: Value,
}

impl Reference {
    /// Opens it.
    ///
    /// It is known by its shards, as a source is (specs/journal.md).
    ///
    /// # Errors
    /// As [`Checkpoint::open`]; [`Error::Io`].
    pub fn open(path: &Path, limits: &Limits) -> Result<Self, Error> {
        Self::new(Checkpoint::open(path, limits)?)
    }

    /// As [`Reference::open`], of a checkpoint that is open.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn new(checkpoint: Checkpoint) -> Result<Self, Error> {
        let shards = checkpoint.shards().iter();
        let known = shards.map(|shard| Ok(json!([shard.name, shard_identity(shard)?])));
        let identity = known.collect::<Result<Value, Error>>()?;
        Ok(Self {
            checkpoint: Arc::new(checkpoint),
            identity,
        })
    }

    /// What was opened.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    pub(crate) fn identity(&self) -> &Value {
        &self.identity
    }
}

impl PartialEq for Reference {
    fn eq(&self, other: &Self) -> bool {
        self.identity == other.identity
    }
}

impl fmt::Debug for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Reference");
        shown.field("checkpoint", &self.checkpoint.name());
        shown
            .field("identity", &self.identity)
            .finish_non_exhaustive()
    }
}
