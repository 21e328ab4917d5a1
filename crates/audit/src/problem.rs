//! What stood in the way of opening and binding, as findings: where, what was expected, what was found.

use safequant_container::Error as Container;
use safequant_schemes::Error;

use crate::{Findings, Place};

/// Reports an error under the rule whose business it is.
pub(crate) fn report(error: &Error, findings: &mut Findings<'_>) {
    let finding = findings.add(place(error), error.to_string());
    if let Some((expected, found)) = difference(error) {
        finding.instead(expected, found);
    }
}

/// Where it is.
pub(crate) fn place(error: &Error) -> Place {
    match error {
        Error::Container(error) => place_in_files(error),
        Error::Document { document, .. }
        | Error::ConfigValue { document, .. }
        | Error::SidecarTooLarge { document, .. } => Place::file(document),
        Error::ConfigsDisagree { second, .. } => Place::file(document_of(second)),
        Error::Contradiction { module, .. }
        | Error::Unsupported { module, .. }
        | Error::TooLarge { module, .. }
        | Error::CannotWrite { module, .. }
        | Error::Slice { module, .. }
        | Error::Unstorable { module, .. }
        | Error::SparseRow { module, .. } => Place::module(module),
        Error::MissingPart { module, part }
        | Error::PartDtype { module, part, .. }
        | Error::PartShape { module, part, .. } => Place::module(module).tensor(part),
        Error::GroupIndexRange {
            module,
            part,
            position,
            ..
        } => Place::module(module)
            .tensor(part)
            .entry([0, *position as u64]),
        Error::CodeRange {
            module, part, row, ..
        } => Place::module(module).tensor(part).entry([*row, 0]),
        Error::ProductRange {
            module,
            part,
            row,
            group,
            ..
        } => Place::module(module).tensor(part).entry([*row, *group]),
        Error::ClaimedTwice { tensor, .. } => Place::default().tensor(tensor),
        Error::Pattern { .. }
        | Error::UnknownPreset { .. }
        | Error::PresetOption { .. }
        | Error::CannotDerive { .. } => Place::default(),
    }
}

/// `config.json: quantization_config` is a place in `config.json`.
fn document_of(place: &str) -> &str {
    place
        .split_once(':')
        .map_or(place, |(document, _)| document)
}

fn place_in_files(error: &Container) -> Place {
    match error {
        Container::TensorIo { file, tensor, .. }
        | Container::Field { file, tensor, .. }
        | Container::FieldMissing { file, tensor, .. }
        | Container::UnknownDtype { file, tensor, .. }
        | Container::OffsetsReversed { file, tensor, .. }
        | Container::Overlap { file, tensor, .. }
        | Container::Hole { file, tensor, .. }
        | Container::SizeOverflow { file, tensor, .. }
        | Container::FractionalBytes { file, tensor, .. }
        | Container::SizeMismatch { file, tensor, .. }
        | Container::OutsideTensor { file, tensor, .. }
        | Container::TensorTooLarge { file, tensor, .. }
        | Container::GgufRow { file, tensor, .. }
        | Container::PlanOverflow { file, tensor }
        | Container::IndexMissingTensor { file, tensor, .. }
        | Container::IndexWrongShard { file, tensor, .. }
        | Container::ManifestEntry { file, tensor, .. } => Place::file(base(file)).tensor(tensor),
        Container::TensorInTwoShards { tensor, second, .. } => Place::file(second).tensor(tensor),
        Container::ShardMissing { shard, .. } => Place::file(shard),
        Container::FileName { name, .. }
        | Container::PathEscape { name, .. }
        | Container::NoSuchSidecar { name, .. }
        | Container::OnlyGguf { name, .. } => Place::file(name),
        Container::AmbiguousIndex { first, .. } => Place::file(first),
        Container::NotRegularFile { path, .. } | Container::Io { path, .. } => {
            Place::file(base(path))
        }
        Container::NoWeights { .. } => Place::default(),
        Container::Changed { file, .. }
        | Container::OutOfMemory { file, .. }
        | Container::TooSmall { file, .. }
        | Container::ForeignFormat { file, .. }
        | Container::HeaderTooLarge { file, .. }
        | Container::HeaderBeyondFile { file, .. }
        | Container::NotUtf8 { file, .. }
        | Container::Json { file, .. }
        | Container::JsonDepth { file, .. }
        | Container::JsonNumberRange { file, .. }
        | Container::DuplicateKey { file, .. }
        | Container::Metadata { file, .. }
        | Container::Truncated { file, .. }
        | Container::Trailing { file, .. }
        | Container::TooManyShards { file, .. }
        | Container::NoWeightMap { file }
        | Container::DocumentTooLarge { file, .. }
        | Container::Gguf { file, .. }
        | Container::GgufVersion { file, .. }
        | Container::GgufCount { file, .. }
        | Container::GgufDuplicate { file, .. }
        | Container::GgufSplit { file, .. }
        | Container::PlannedTwice { file, .. }
        | Container::ReservedName { file }
        | Container::NotTheBegunFile { file, .. }
        | Container::Manifest { file, .. }
        | Container::ManifestVersion { file, .. } => Place::file(base(file)),
        Container::TooManyEntries { directory, .. } => Place::file(directory),
    }
}

/// The name of a file in the directory.
fn base(path: &str) -> &str {
    path.rsplit(['/', '\\']).next().unwrap_or(path)
}

/// What was expected, and what was found, where an error knows both.
fn difference(error: &Error) -> Option<(String, String)> {
    let pair = |expected: &dyn std::fmt::Display, found: &dyn std::fmt::Display| {
        Some((expected.to_string(), found.to_string()))
    };
    if let Error::PartShape {
        expected, found, ..
    } = error
    {
        return pair(expected, &format!("{found:?}"));
    }
    if let Error::PartDtype {
        expected, found, ..
    } = error
    {
        return pair(expected, found);
    }
    if let Error::Contradiction {
        config, tensors, ..
    } = error
    {
        return pair(config, tensors);
    }
    if let Error::ConfigsDisagree {
        first_value,
        second_value,
        ..
    } = error
    {
        return pair(first_value, second_value);
    }
    if let Error::MissingPart { part, .. } = error {
        return pair(part, &"nothing");
    }
    if let Error::ConfigValue {
        expected, found, ..
    } = error
    {
        return pair(expected, found);
    }
    let Error::Container(error) = error else {
        return None;
    };
    if let Container::Truncated {
        expected, found, ..
    }
    | Container::Trailing {
        expected, found, ..
    } = error
    {
        return pair(
            &format_args!("{expected} bytes"),
            &format_args!("{found} bytes"),
        );
    }
    if let Container::SizeMismatch {
        expected, found, ..
    } = error
    {
        return pair(
            &format_args!("{expected} bytes"),
            &format_args!("{found} bytes"),
        );
    }
    if let Container::IndexWrongShard { listed, stored, .. } = error {
        return pair(listed, stored);
    }
    None
}
