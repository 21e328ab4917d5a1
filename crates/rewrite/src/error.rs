//! What can go wrong while rewriting.

use std::io;
use std::path::Path;

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
    /// Calibration statistics.
    #[error(transparent)]
    Calibration(#[from] crate::calibration::Error),
    /// The system refused an operation on an output file.
    #[error("{path}: cannot {action}: {source}")]
    Io {
        /// The file or directory.
        path: String,
        /// What was tried.
        action: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// The weights of a module cannot be quantized.
    #[error("{module}: {source}")]
    Quantize {
        /// The module.
        module: String,
        /// Why.
        source: safequant_quantize::Error,
    },
    /// The convention cannot hold a module that the recipe selects.
    #[error(
        "{module}: {source}; leave it dense with --ignore, or choose another group size or scheme"
    )]
    CannotHold {
        /// The module.
        module: String,
        /// Why.
        source: Box<safequant_schemes::Error>,
    },
    /// A selected weight has a dtype that quantizers do not take.
    #[error(
        "{module}: expected a weight in F32, F16 or BF16, found {found}; leave it dense with --ignore"
    )]
    SourceDtype {
        /// The module.
        module: String,
        /// Its dtype.
        found: &'static str,
    },
    /// The recipe selects nothing.
    #[error("nothing to quantize: no linear weight in {source_name} is selected by the recipe")]
    NothingSelected {
        /// The source.
        source_name: String,
    },
    /// Nothing in the source is quantized.
    #[error("nothing in {source_name} is quantized: no known convention was found")]
    NothingQuantized {
        /// The source.
        source_name: String,
    },
    /// Not one module that is to be quantized has statistics in the calibration file.
    #[error(
        "{file} is a calibration of another model: it has no statistics for any module of {source_name} that is to be quantized"
    )]
    CalibrationOfAnother {
        /// The calibration file.
        file: String,
        /// The source.
        source_name: String,
    },
    /// Not one weight of a quantized checkpoint can be given better codes.
    #[error("no weight of {source_name} can be given better codes: {reason}")]
    NothingToRefine {
        /// The source.
        source_name: String,
        /// Why not, of each kind of weight.
        reason: String,
    },
    /// What is named as the reference is not what the source was made of.
    #[error("the reference is not what the source was made of: {name}: {reason}")]
    AnotherModel {
        /// The module or tensor that shows it.
        name: String,
        /// How.
        reason: String,
    },
    /// So few bits a weight cannot be had.
    #[error(
        "{target} bits per weight cannot be had: the cheapest of the schemes takes {least:.3}; name a cheaper one, or leave fewer modules to it"
    )]
    TargetBits {
        /// What was asked for.
        target: f64,
        /// The least that there is.
        least: f64,
    },
    /// The method cannot do without statistics of inputs, and there is no calibration file.
    #[error("method {method} needs statistics of the modules' inputs: --calibration FILE")]
    NoCalibration {
        /// The method.
        method: &'static str,
    },
    /// Scales that were asked for cannot be folded.
    #[error("method awq: {name}: {reason}")]
    Fold {
        /// The module, tensor or document that stands in the way.
        name: String,
        /// Why, and what to do.
        reason: String,
    },
    /// A bias that was asked to be corrected cannot be.
    #[error("bias correction: {name}: {reason}")]
    Bias {
        /// The module, convention or source.
        name: String,
        /// Why.
        reason: String,
    },
    /// The calibration file has no statistics of a module any more: it changed since the job was planned.
    #[error("{module}: its statistics are gone: the calibration file changed in between")]
    CalibrationGone {
        /// The module.
        module: String,
    },
    /// No quantizer has this id.
    #[error("unknown method {method}")]
    UnknownMethod {
        /// The id.
        method: String,
    },
    /// No convention that can be written has this id.
    #[error("convention {convention} cannot be written")]
    NotWritable {
        /// The id.
        convention: String,
    },
    /// Codes would change, or cannot be held, and that was not allowed.
    #[error(
        "{convention} cannot take over the codes of {n} of {n_all} modules as they are: {first}"
    )]
    WouldLose {
        /// The convention to write.
        convention: &'static str,
        /// How many.
        n: usize,
        /// Of how many.
        n_all: usize,
        /// The first few, each with the reason and what to do.
        first: String,
    },
    /// A weight that was planned to keep its codes cannot: the source changed in between.
    #[error("{module} cannot keep its codes after all: {reason}")]
    NotCarried {
        /// The module.
        module: String,
        /// Why not.
        reason: String,
    },
    /// The convention does not know the scheme.
    #[error("convention {convention} cannot hold {scheme}; it holds {holds}")]
    SchemeNotHeld {
        /// The convention.
        convention: &'static str,
        /// The scheme asked for.
        scheme: &'static str,
        /// The schemes it holds.
        holds: String,
    },
    /// The destination's name claims another format than the convention is written in.
    #[error(
        "{path}: the name claims a {claimed} file, but what is written is {written}: name a directory or a {written} file"
    )]
    DestinationFormat {
        /// The destination.
        path: String,
        /// How its name ends.
        claimed: &'static str,
        /// How names of such files end.
        written: &'static str,
    },
    /// A stack of experts in the new convention lacks a member, or they differ.
    #[error("{name}: cannot be stacked: {problem}")]
    Stack {
        /// The stack.
        name: String,
        /// What is wrong.
        problem: String,
    },
    /// The rows of a weight cannot be put in the order of the new convention.
    #[error("{module}: its rows cannot be put in the order of {convention}: {problem}")]
    RowOrder {
        /// The module.
        module: String,
        /// The convention.
        convention: &'static str,
        /// Why not.
        problem: String,
    },
    /// A document that must be edited is not understood.
    #[error("{file}: cannot be edited: {problem} at byte {offset}")]
    Document {
        /// The document.
        file: String,
        /// What is wrong.
        problem: &'static str,
        /// Where.
        offset: usize,
    },
    /// A document that must be edited is not UTF-8.
    #[error("{file}: is not UTF-8")]
    DocumentEncoding {
        /// The document.
        file: String,
    },
    /// What must change stands in documents beside a file that was given alone.
    #[error("{source_name}: what must change stands beside this file; give its directory")]
    SingleFile {
        /// The source.
        source_name: String,
    },
    /// A sidecar's name is no plain relative name.
    #[error("{name:?}: not a name of a file inside a checkpoint")]
    SidecarName {
        /// The name.
        name: String,
    },
    /// The memory budget does not hold the smallest piece of work.
    #[error(
        "{module}: needs {} of buffers, but --memory allows {}", Size(*.needed_bytes), Size(*.budget_bytes)
    )]
    MemoryTooSmall {
        /// The module or tensor that needs most.
        module: String,
        /// Bytes that it needs.
        needed_bytes: u64,
        /// The budget.
        budget_bytes: u64,
    },
    /// A number does not fit the machine.
    #[error("{module}: a piece of {bytes} bytes does not fit this machine's address space")]
    AddressSpace {
        /// The module or tensor.
        module: String,
        /// Bytes.
        bytes: u64,
    },
    /// The destination is taken.
    #[error("{path} exists and is not empty; --force replaces it")]
    DestinationExists {
        /// The destination.
        path: String,
    },
    /// The destination is a file where a directory must appear, a symlink, a device ...
    #[error("{path} is {found}, and cannot become {expected}")]
    DestinationKind {
        /// The destination.
        path: String,
        /// What it is.
        found: &'static str,
        /// What it should become.
        expected: &'static str,
    },
    /// The destination has no name, or the directory that should hold it does not exist.
    #[error("{path}: the directory that should hold it does not exist")]
    NoParent {
        /// The destination.
        path: String,
    },
    /// Writing the destination would touch the source.
    #[error(
        "{destination} is, holds or lies inside the source {source_name}; sources are never changed"
    )]
    DestinationTouchesSource {
        /// The destination.
        destination: String,
        /// The source.
        source_name: String,
    },
    /// Two directories cannot be swapped in one step.
    #[error("{path}: this file system cannot replace a directory in one step; remove it first")]
    NoExchange {
        /// The destination.
        path: String,
    },
    /// Not enough room.
    #[error("{path}: the disk is too small: {} needed, {} free", Size(*.needed_bytes), Size(*.free_bytes))]
    DiskFull {
        /// The directory.
        path: String,
        /// Bytes needed.
        needed_bytes: u64,
        /// Bytes free.
        free_bytes: u64,
    },
    /// Another process works on the same destination.
    #[error("{path} is in use: another process is writing this destination")]
    Busy {
        /// The directory of the partial work.
        path: String,
    },
    /// The interrupted job was another one.
    #[error(
        "cannot resume: the {field} differs (then {then}, now {now}); without --resume the job starts anew"
    )]
    ResumeDiffers {
        /// What differs.
        field: String,
        /// What the journal says.
        then: String,
        /// What was asked for now.
        now: String,
    },
    /// A part was asked for, or the end of a job in parts, where none was begun or it is over.
    #[error("{path}: no job in parts is under way here")]
    NotBegun {
        /// The directory of the partial work.
        path: String,
    },
    /// A part belongs to another job than the one that was begun.
    #[error(
        "this is not the job that was begun: the {field} differs (begun with {then}, here {now})"
    )]
    PartDiffers {
        /// What differs.
        field: String,
        /// What the journal says.
        then: String,
        /// What the part was planned with.
        now: String,
    },
    /// The job has fewer parts.
    #[error("there is no part {index}: the job has {n_parts}, counted from 0")]
    NoSuchPart {
        /// The part asked for.
        index: usize,
        /// Parts of the job.
        n_parts: usize,
    },
    /// The end of a job in parts was asked for too early.
    #[error("{file} is not complete ({n_missing} of {n_files} files are not): a part is missing")]
    PartMissing {
        /// The first output file that is not.
        file: String,
        /// How many are not.
        n_missing: usize,
        /// Of how many.
        n_files: usize,
    },
    /// An output tensor was not filled: a bug, caught before it is published.
    #[error("{tensor}: {found} of {expected} bytes were written")]
    Unfilled {
        /// The tensor.
        tensor: String,
        /// Its length in bytes.
        expected: u64,
        /// Bytes written.
        found: u64,
    },
    /// A worker panicked: a bug, which must end the job and not leave it waiting.
    #[error(
        "{module}: a worker failed: a defect of safequant, please report it with the line above"
    )]
    Defect {
        /// The module or tensor it worked on.
        module: String,
    },
    /// The threads could not be started.
    #[error("cannot start {threads} threads: {source}")]
    Threads {
        /// How many.
        threads: usize,
        /// Why.
        source: rayon::ThreadPoolBuildError,
    },
    /// The environment failed, and the work so far is kept.
    #[error("{source}; the work done so far is kept in {partial}: continue it with --resume")]
    Kept {
        /// What failed.
        source: Box<Error>,
        /// The directory of the partial work.
        partial: String,
    },
    /// The caller asked to stop.
    #[error("canceled; the work done so far is kept: continue it with --resume")]
    Canceled,
}

/// A number of bytes, exact and for people.
struct Size(u64);

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // In tenths of a MiB, rounded up: the figure given is enough.
        let tenths = (u128::from(self.0) * 10).div_ceil(1 << 20);
        write!(f, "{}.{} MiB ({} bytes)", tenths / 10, tenths % 10, self.0)
    }
}

impl Error {
    /// The stable name of the condition, for `--json` and for tests.
    pub fn code(&self) -> &'static str {
        match self {
            Error::Container(e) => e.code(),
            Error::Schemes(e) => e.code(),
            Error::Calibration(e) => e.code(),
            Error::Kept { source, .. } => source.code(),
            Error::Io { .. } => "io_output",
            Error::Quantize { .. } => "quantize",
            Error::CannotHold { .. } => "convention_cannot_hold",
            Error::SourceDtype { .. } => "source_dtype",
            Error::NothingSelected { .. } => "nothing_selected",
            Error::NothingQuantized { .. } => "nothing_quantized",
            Error::CalibrationOfAnother { .. } => "calibration_of_another",
            Error::NothingToRefine { .. } => "nothing_to_refine",
            Error::AnotherModel { .. } => "reference_of_another",
            Error::TargetBits { .. } => "target_bits",
            Error::NoCalibration { .. } => "no_calibration",
            Error::Fold { .. } => "cannot_fold",
            Error::Bias { .. } => "cannot_correct_bias",
            Error::CalibrationGone { .. } => "calibration_gone",
            Error::UnknownMethod { .. } => "unknown_method",
            Error::NotWritable { .. } => "convention_not_writable",
            Error::WouldLose { .. } => "would_lose",
            Error::NotCarried { .. } => "not_carried",
            Error::SchemeNotHeld { .. } => "scheme_not_held",
            Error::DestinationFormat { .. } => "destination_format",
            Error::Stack { .. } => "stack",
            Error::RowOrder { .. } => "row_order",
            Error::Document { .. } => "document",
            Error::DocumentEncoding { .. } => "document_encoding",
            Error::SingleFile { .. } => "single_file",
            Error::SidecarName { .. } => "sidecar_name",
            Error::MemoryTooSmall { .. } => "memory_too_small",
            Error::AddressSpace { .. } => "address_space",
            Error::DestinationExists { .. } => "destination_exists",
            Error::DestinationKind { .. } => "destination_kind",
            Error::NoParent { .. } => "destination_no_parent",
            Error::DestinationTouchesSource { .. } => "destination_touches_source",
            Error::NoExchange { .. } => "no_exchange",
            Error::DiskFull { .. } => "disk_full",
            Error::Busy { .. } => "destination_busy",
            Error::ResumeDiffers { .. } => "resume_differs",
            Error::NotBegun { .. } => "parts_not_begun",
            Error::PartDiffers { .. } => "part_differs",
            Error::NoSuchPart { .. } => "no_such_part",
            Error::PartMissing { .. } => "part_missing",
            Error::Unfilled { .. } => "unfilled_tensor",
            Error::Defect { .. } => "defect",
            Error::Threads { .. } => "threads",
            Error::Canceled => "canceled",
        }
    }

    /// The group this condition belongs to; decides the exit status.
    pub fn group(&self) -> ErrorGroup {
        match self {
            Error::Container(e) => e.group(),
            Error::Schemes(e) => e.group(),
            Error::Calibration(e) => e.group(),
            Error::CannotHold { source, .. } => source.group(),
            Error::Kept { source, .. } => source.group(),
            Error::Quantize { source, .. } => match source {
                safequant_quantize::Error::NonFinite { .. }
                | safequant_quantize::Error::ScaleOverflow { .. }
                | safequant_quantize::Error::Inputs { .. } => ErrorGroup::Refused,
                safequant_quantize::Error::UnsupportedScheme { .. }
                | safequant_quantize::Error::MissingStatistics { .. }
                | safequant_quantize::Error::Unreadable { .. } => ErrorGroup::Unsupported,
            },
            Error::NothingQuantized { .. }
            | Error::Stack { .. }
            | Error::Document { .. }
            | Error::DocumentEncoding { .. }
            | Error::SidecarName { .. } => ErrorGroup::Malformed,
            Error::SourceDtype { .. } | Error::NotWritable { .. } | Error::SchemeNotHeld { .. } => {
                ErrorGroup::Unsupported
            }
            Error::AddressSpace { .. } => ErrorGroup::Limit,
            Error::Io { .. }
            | Error::DiskFull { .. }
            | Error::NoParent { .. }
            | Error::NoExchange { .. }
            | Error::Unfilled { .. }
            | Error::Defect { .. }
            | Error::Threads { .. } => ErrorGroup::Io,
            Error::NothingSelected { .. }
            | Error::CalibrationOfAnother { .. }
            | Error::NothingToRefine { .. }
            | Error::AnotherModel { .. }
            | Error::TargetBits { .. }
            | Error::NoCalibration { .. }
            | Error::Fold { .. }
            | Error::Bias { .. }
            | Error::CalibrationGone { .. }
            | Error::DestinationFormat { .. }
            | Error::RowOrder { .. }
            | Error::WouldLose { .. }
            | Error::SingleFile { .. }
            | Error::NotCarried { .. }
            | Error::MemoryTooSmall { .. }
            | Error::UnknownMethod { .. }
            | Error::DestinationExists { .. }
            | Error::DestinationKind { .. }
            | Error::DestinationTouchesSource { .. }
            | Error::Busy { .. }
            | Error::ResumeDiffers { .. }
            | Error::NotBegun { .. }
            | Error::PartDiffers { .. }
            | Error::NoSuchPart { .. }
            | Error::PartMissing { .. }
            | Error::Canceled => ErrorGroup::Refused,
        }
    }

    /// An I/O error that names file and operation.
    pub(crate) fn io(path: &Path, action: &'static str, source: io::Error) -> Self {
        Error::Io {
            path: path.display().to_string(),
            action,
            source,
        }
    }

    /// Whether the file system or a quota is full, wherever the error was met.
    pub(crate) fn is_disk_full(&self) -> bool {
        let mut next: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(error) = next {
            if let Some(io) = error.downcast_ref::<io::Error>() {
                return matches!(
                    io.kind(),
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
                );
            }
            next = error.source();
        }
        false
    }
}
