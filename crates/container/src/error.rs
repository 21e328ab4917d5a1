//! What can be wrong with a file, by name.

/// Whose fault an error is; decides the exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorGroup {
    /// The file is wrong.
    Malformed,
    /// The file is right, and we cannot read it yet.
    Unsupported,
    /// The file asks for more than the limits allow.
    Limit,
    /// The environment failed: I/O, disk full, permission.
    Io,
    /// The request itself would lose or overwrite something.
    Refused,
}

/// Everything this crate can answer instead of a result.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system refused an operation.
    #[error("{path}: {source}")]
    Io {
        /// The file, as the user knows it.
        path: String,
        /// The system's answer.
        source: std::io::Error,
    },
}

impl Error {
    /// The group this condition belongs to.
    pub fn group(&self) -> ErrorGroup {
        match self {
            Error::Io { .. } => ErrorGroup::Io,
        }
    }
}
