//! What a rule has found, and where.

use crate::{Rule, Severity};

/// One thing that is wrong in one place.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// The rule's id.
    pub rule: &'static str,
    /// The rule's, unless the case is a milder one.
    pub severity: Severity,
    /// Where.
    pub place: Place,
    /// What is the matter, without the place.
    pub message: String,
    /// What was expected; empty where the message says all.
    pub expected: String,
    /// What was found instead.
    pub found: String,
    /// What to do about it.
    pub help: String,
}

/// Where something is: as much of it as is known.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// A file's name inside the checkpoint.
    pub file: Option<String>,
    /// A module (`model.layers.0.mlp.up_proj`).
    pub module: Option<String>,
    /// A stored tensor.
    pub tensor: Option<String>,
    /// An entry of the tensor, by its logical indices.
    pub entry: Option<[u64; 2]>,
}

impl Place {
    /// A file of the checkpoint.
    pub fn file(name: impl Into<String>) -> Self {
        Self {
            file: Some(name.into()),
            ..Self::default()
        }
    }

    /// A quantized weight.
    pub fn module(name: impl Into<String>) -> Self {
        Self {
            module: Some(name.into()),
            ..Self::default()
        }
    }

    /// The tensor of a module, or of none.
    #[must_use]
    pub fn tensor(mut self, name: impl Into<String>) -> Self {
        self.tensor = Some(name.into());
        self
    }

    /// Row and column.
    #[must_use]
    pub fn entry(mut self, entry: [u64; 2]) -> Self {
        self.entry = Some(entry);
        self
    }
}

/// Where a rule leaves what it finds.
pub struct Findings<'a> {
    rule: &'static Rule,
    list: &'a mut Vec<Finding>,
}

impl<'a> Findings<'a> {
    pub(crate) fn new(rule: &'static Rule, list: &'a mut Vec<Finding>) -> Self {
        Self { rule, list }
    }

    /// A finding of the rule's own severity, to be filled in further.
    pub fn add(&mut self, place: Place, message: impl Into<String>) -> &mut Finding {
        let at = self.list.len();
        self.list.push(Finding {
            rule: self.rule.id,
            severity: self.rule.severity,
            place,
            message: message.into(),
            expected: String::new(),
            found: String::new(),
            help: String::new(),
        });
        &mut self.list[at]
    }
}

impl Finding {
    /// What was expected, and what was found.
    pub fn instead(&mut self, expected: impl Into<String>, found: impl Into<String>) -> &mut Self {
        self.expected = expected.into();
        self.found = found.into();
        self
    }

    /// What to do about it.
    pub fn help(&mut self, help: impl Into<String>) -> &mut Self {
        self.help = help.into();
        self
    }
}
