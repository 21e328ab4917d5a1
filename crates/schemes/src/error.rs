//! What can be wrong with the meaning of a checkpoint.

use safequant_container::Dtype;

pub use safequant_container::ErrorGroup;

/// Everything this crate can answer instead of a result.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The container could not be read.
    #[error(transparent)]
    Container(#[from] safequant_container::Error),

    /// A document is no JSON, or has a key twice.
    #[error("{document}: {problem}")]
    Document {
        /// The document, `config.json`.
        document: String,
        /// What the parser answered, with line and column.
        problem: String,
    },

    /// A file beside the weights that is read as a whole is too large for that.
    #[error("{document} has {found} bytes, read are at most {limit}")]
    SidecarTooLarge {
        /// The file.
        document: String,
        /// Its length.
        found: u64,
        /// The most that is read.
        limit: u64,
    },

    /// A configuration value that we act on has the wrong type or is out of range.
    #[error("{document}: {key} must be {expected}, found {found}")]
    ConfigValue {
        /// The document.
        document: String,
        /// The path of the key inside the document.
        key: String,
        /// What would be accepted.
        expected: String,
        /// What stands there, shortened.
        found: String,
    },

    /// Two documents state the same parameter differently.
    #[error("{first} says {key} = {first_value}, but {second} says {second_value}")]
    ConfigsDisagree {
        /// The parameter.
        key: String,
        /// One document.
        first: String,
        /// Its value.
        first_value: String,
        /// The other document.
        second: String,
        /// Its value.
        second_value: String,
    },

    /// The configuration and the tensors of a module contradict each other.
    #[error("{module}: the configuration says {config}, but the tensors say {tensors}")]
    Contradiction {
        /// The module.
        module: String,
        /// The claim.
        config: String,
        /// The evidence.
        tensors: String,
    },

    /// A part of a quantized module is not in the checkpoint.
    #[error("{module}: {part} is missing")]
    MissingPart {
        /// The module.
        module: String,
        /// The tensor, or the tensors that would do.
        part: String,
    },

    /// A part has a dtype that its role does not allow.
    #[error("{module}: {part} has dtype {found}, expected {expected}")]
    PartDtype {
        /// The module.
        module: String,
        /// The tensor.
        part: String,
        /// What would be accepted.
        expected: String,
        /// What the header says.
        found: Dtype,
    },

    /// A part has a shape that does not fit the others.
    #[error("{module}: {part} has shape {found:?}, expected {expected}")]
    PartShape {
        /// The module.
        module: String,
        /// The tensor.
        part: String,
        /// What would be accepted.
        expected: String,
        /// What the header says.
        found: Vec<u64>,
    },

    /// An entry of a group index names no group.
    #[error("{module}: {part}[{position}] is {value}, but there are {n_groups} groups")]
    GroupIndexRange {
        /// The module.
        module: String,
        /// The tensor.
        part: String,
        /// Input feature.
        position: usize,
        /// The entry.
        value: i64,
        /// Groups that have a scale.
        n_groups: u64,
    },

    /// A stored integer does not fit the bits that the scheme declares.
    #[error("{module}: {part} holds {value} in row {row}, which is no {bits}-bit code")]
    CodeRange {
        /// The module.
        module: String,
        /// The tensor.
        part: String,
        /// Row of the stack.
        row: u64,
        /// The stored number.
        value: i8,
        /// Bits per code.
        bits: u32,
    },

    /// A stored product of scale and zero point that no zero point gives.
    #[error(
        "{module}: {part} holds {value} in row {row}, group {group}, which is no zero point times the scale {scale}"
    )]
    ProductRange {
        /// The module.
        module: String,
        /// The tensor.
        part: String,
        /// Row of the grid within its matrix.
        row: u64,
        /// Column of the grid.
        group: u64,
        /// The stored product.
        value: String,
        /// The scale beside it.
        scale: String,
    },

    /// The mask of a sparse tensor does not fit what is stored.
    #[error("{module}: row {row} of the mask {problem}")]
    SparseRow {
        /// The module.
        module: String,
        /// Row of the matrix.
        row: u64,
        /// What is wrong with it.
        problem: String,
    },

    /// The file is right as far as we can see, and we cannot read it yet.
    #[error("{module}: {format} is not supported yet{}", hint(.detail))]
    Unsupported {
        /// The module or tensor where it was seen, or the document that announces it.
        module: String,
        /// The format, as its makers call it.
        format: String,
        /// More, if there is more to say.
        detail: String,
    },

    /// A pattern cannot be compiled, is too long, or needs too many steps.
    #[error("pattern `{pattern}`: {problem}")]
    Pattern {
        /// The pattern, shortened.
        pattern: String,
        /// What is wrong with it.
        problem: String,
    },

    /// Two conventions or modules claim the same tensor.
    #[error("{tensor} is claimed by {first} and by {second}")]
    ClaimedTwice {
        /// The tensor.
        tensor: String,
        /// Convention and module.
        first: String,
        /// Convention and module.
        second: String,
    },

    /// A size does not fit this machine's address space.
    #[error("{module}: {what} does not fit in memory addresses")]
    TooLarge {
        /// The module.
        module: String,
        /// What was computed.
        what: &'static str,
    },

    /// No preset has this name.
    #[error("there is no scheme `{name}`; known are {known}")]
    UnknownPreset {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },

    /// An option does not go with a preset.
    #[error("{preset}: {problem}")]
    PresetOption {
        /// The preset.
        preset: &'static str,
        /// Why not.
        problem: String,
    },

    /// A convention cannot hold what was asked for.
    #[error("{convention} cannot hold {module} as {preset}: {reason}")]
    CannotWrite {
        /// The convention's id.
        convention: &'static str,
        /// The module.
        module: String,
        /// The preset's name.
        preset: String,
        /// Why, and what could.
        reason: String,
    },

    /// A convention's own file needs something that the documents of the source do not tell.
    #[error("{convention} cannot be written: {field} cannot be derived: {problem}")]
    CannotDerive {
        /// The convention's id.
        convention: &'static str,
        /// What is needed, as the convention calls it.
        field: String,
        /// The document, and what is wrong with it or not in it.
        problem: String,
    },

    /// A weight cannot be cut there.
    #[error("{module} cannot be sliced: {problem}")]
    Slice {
        /// The module.
        module: String,
        /// The numbers that do not go together.
        problem: String,
    },

    /// A value of a tile has no stored form.
    #[error("{module}: the {what} {value} in row {row}, group {group} cannot be stored{}", hint(.detail))]
    Unstorable {
        /// The module.
        module: String,
        /// Zero point, scale or code.
        what: &'static str,
        /// The value.
        value: String,
        /// Row of the grid within its matrix.
        row: u64,
        /// Column of the grid.
        group: u64,
        /// What could hold it.
        detail: String,
    },
}

/// `: detail`, or nothing.
fn hint(detail: &str) -> String {
    if detail.is_empty() {
        String::new()
    } else {
        format!(": {detail}")
    }
}

impl Error {
    /// The stable name of the condition, for `--json` and for tests.
    pub fn code(&self) -> &'static str {
        match self {
            Error::Container(e) => e.code(),
            Error::Document { .. } => "config_json",
            Error::ConfigValue { .. } => "config_value",
            Error::ConfigsDisagree { .. } => "configs_disagree",
            Error::Contradiction { .. } => "contradiction",
            Error::MissingPart { .. } => "missing_part",
            Error::PartDtype { .. } => "part_dtype",
            Error::PartShape { .. } => "part_shape",
            Error::GroupIndexRange { .. } => "group_index_range",
            Error::CodeRange { .. } => "code_range",
            Error::ProductRange { .. } => "product_range",
            Error::SparseRow { .. } => "sparse_row",
            Error::ClaimedTwice { .. } => "claimed_twice",
            Error::Unsupported { .. } => "unsupported_format",
            Error::TooLarge { .. } => "too_large",
            Error::SidecarTooLarge { .. } => "sidecar_too_large",
            Error::Pattern { .. } => "pattern",
            Error::UnknownPreset { .. } => "unknown_scheme",
            Error::PresetOption { .. } => "scheme_option",
            Error::CannotWrite { .. } => "convention_cannot_hold",
            Error::CannotDerive { .. } => "cannot_derive",
            Error::Unstorable { .. } => "unstorable_value",
            Error::Slice { .. } => "slice",
        }
    }

    /// The group this condition belongs to.
    pub fn group(&self) -> ErrorGroup {
        match self {
            Error::Container(e) => e.group(),
            Error::Document { .. }
            | Error::ConfigValue { .. }
            | Error::ConfigsDisagree { .. }
            | Error::Contradiction { .. }
            | Error::MissingPart { .. }
            | Error::PartDtype { .. }
            | Error::PartShape { .. }
            | Error::GroupIndexRange { .. }
            | Error::CodeRange { .. }
            | Error::ProductRange { .. }
            | Error::SparseRow { .. }
            | Error::ClaimedTwice { .. } => ErrorGroup::Malformed,
            Error::Unsupported { .. } => ErrorGroup::Unsupported,
            Error::TooLarge { .. } | Error::SidecarTooLarge { .. } | Error::Pattern { .. } => {
                ErrorGroup::Limit
            }
            Error::UnknownPreset { .. }
            | Error::PresetOption { .. }
            | Error::CannotWrite { .. }
            | Error::CannotDerive { .. }
            | Error::Slice { .. }
            | Error::Unstorable { .. } => ErrorGroup::Refused,
        }
    }
}
