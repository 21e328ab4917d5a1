//! What can be wrong with the meaning of a checkpoint.

pub use safequant_container::ErrorGroup;

/// Everything this crate can answer instead of a result.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The container could not be read.
    #[error(transparent)]
    Container(#[from] safequant_container::Error),
}

impl Error {
    /// The group this condition belongs to.
    pub fn group(&self) -> ErrorGroup {
        match self {
            Error::Container(e) => e.group(),
        }
    }
}
