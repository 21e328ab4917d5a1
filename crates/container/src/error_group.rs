//! What the conditions of [`crate::Error`] are declared with, and the groups they fall into.

use crate::Error;

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

/// Declares [`Error`] together with the code and group of each variant, so that none can be forgotten.
macro_rules! errors {
    ($(
        $(#[doc = $doc:literal])*
        #[error($($message:tt)*)]
        $variant:ident { $($(#[$field_meta:meta])* $field:ident: $type:ty,)* } = $code:literal, $group:ident;
    )*) => {
        /// Everything this crate can answer instead of a result.
        #[derive(Debug, thiserror::Error)]
        pub enum Error {
            $(
                $(#[doc = $doc])*
                #[error($($message)*)]
                $variant { $($(#[$field_meta])* $field: $type,)* },
            )*
        }

        impl Error {
            /// The code of every condition, in the order of the variants.
            pub const CODES: &'static [&'static str] = &[$($code,)*];

            /// The condition's stable name, for `--json` and for tests (`container_overlap`).
            pub fn code(&self) -> &'static str {
                match self { $(Error::$variant { .. } => $code,)* }
            }

            /// The group this condition belongs to.
            pub fn group(&self) -> crate::ErrorGroup {
                match self { $(Error::$variant { .. } => crate::ErrorGroup::$group,)* }
            }
        }
    };
}

pub(crate) use errors;

impl Error {
    pub(crate) fn io(path: &str, source: std::io::Error) -> Self {
        Error::Io {
            path: path.to_owned(),
            source,
        }
    }
}
