//! What can go wrong while rewriting.

pub use safequant_container::ErrorGroup;

/// Everything this crate can answer instead of a result.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The container.
    #[error(transparent)]
    Container(#[from] safequant_container::Error),
    /// The meaning.
    #[error(transparent)]
    Schemes(#[from] safequant_schemes::Error),
    /// The caller asked to stop.
    #[error("canceled; the work done so far is kept: continue it with --resume")]
    Canceled,
}

impl Error {
    /// The group this condition belongs to; decides the exit status.
    pub fn group(&self) -> ErrorGroup {
        match self {
            Error::Container(e) => e.group(),
            Error::Schemes(e) => e.group(),
            Error::Canceled => ErrorGroup::Refused,
        }
    }
}
