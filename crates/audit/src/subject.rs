//! What is audited: a checkpoint as far as it could be opened and bound, and what stood in the way.

use safequant_container::Checkpoint;
use safequant_schemes::{Error, Headers, Model};

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
}

impl<'a> Subject<'a> {
    /// Binds everything that can be bound. `problems`: what was met while the files were opened.
    pub fn new(checkpoint: &'a Checkpoint, problems: Vec<Error>) -> Self {
        let (model, errors) = Model::survey(checkpoint);
        Self {
            checkpoint,
            headers: Headers::new(checkpoint),
            model,
            problems: problems.into_iter().chain(errors).collect(),
        }
    }
}
