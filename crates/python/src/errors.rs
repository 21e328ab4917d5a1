//! Errors of the libraries as exceptions of `safequant.errors`, one class for each group.

use pyo3::prelude::*;
use safequant::container::{self, ErrorGroup};
use safequant::options::OptionError;
use safequant::{rewrite, schemes};

/// An error on its way to Python.
#[derive(Debug)]
pub(crate) struct Failure {
    class: &'static str,
    code: &'static str,
    message: String,
    help: Option<String>,
}

impl Failure {
    /// An argument that does not do.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self {
            class: "UsageError",
            code: "usage",
            message: message.into(),
            help: None,
        }
    }

    /// A name that the checkpoint does not have.
    pub(crate) fn missing(name: &str) -> Self {
        Self {
            class: "MissingError",
            code: "missing",
            message: format!("there is no tensor or module {name}"),
            help: None,
        }
    }

    /// An error that is only looked at.
    pub(crate) fn of(error: &schemes::Error) -> Self {
        Self::new(error.code(), error.group(), error.to_string())
    }

    fn new(code: &'static str, group: ErrorGroup, message: String) -> Self {
        let class = match group {
            ErrorGroup::Malformed => "MalformedError",
            ErrorGroup::Unsupported => "UnsupportedError",
            ErrorGroup::Limit => "LimitError",
            ErrorGroup::Io => "StorageError",
            ErrorGroup::Refused => "RefusedError",
        };
        Self {
            class,
            code,
            message,
            help: None,
        }
    }
}

impl From<container::Error> for Failure {
    fn from(error: container::Error) -> Self {
        Self::new(error.code(), error.group(), error.to_string())
    }
}

impl From<schemes::Error> for Failure {
    fn from(error: schemes::Error) -> Self {
        Self::of(&error)
    }
}

impl From<rewrite::Error> for Failure {
    fn from(error: rewrite::Error) -> Self {
        Self::new(error.code(), error.group(), error.to_string())
    }
}

impl From<OptionError> for Failure {
    fn from(error: OptionError) -> Self {
        Self {
            help: Some(error.help),
            ..Self::usage(error.message)
        }
    }
}

impl From<Failure> for PyErr {
    fn from(failure: Failure) -> Self {
        Python::attach(|py| {
            let made = py
                .import("safequant.errors")
                .and_then(|module| module.getattr(failure.class))
                .and_then(|class| class.call1((failure.message, failure.code, failure.help)));
            made.map_or_else(|error| error, PyErr::from_value)
        })
    }
}
