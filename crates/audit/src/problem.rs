//! What stood in the way of opening and binding, as findings: where, what was expected, what was found.

use safequant_container::Error as Container;
use safequant_schemes::Error;

use crate::{Findings, Place};

/// Reports an error under the rule whose business it is.
pub(crate) fn report(error: &Error, findings: &mut Findings<'_>) {
    let place = place(error);
    let message = without_place(error, &place);
    let finding = findings.add(place, message);
    if let Some((expected, found)) = difference(error) {
        finding.instead(expected, found);
    }
    if let Some(help) = help(error.code()) {
        finding.help(help);
    }
}

/// An error's text without the path and tensor that it begins with: they are the finding's place, or all of the checkpoint.
fn without_place(error: &Error, place: &Place) -> String {
    let text = error.to_string();
    let mut rest = text.as_str();
    let Error::Container(error) = error else {
        let module = place.module.as_deref().unwrap_or_default();
        return after(rest, module).unwrap_or(rest).to_owned();
    };
    if let Some(message) = whole(error).and_then(|whole| after(rest, whole)) {
        return message.to_owned();
    }
    // The file is the last step of the path; what stands before it may be any directory.
    let file = place.file.as_deref().unwrap_or_default();
    if let Some((path, message)) = rest.split_once(&format!("{file}: "))
        && (path.is_empty() || path.ends_with(['/', '\\']))
    {
        rest = message;
    }
    let tensor = place.tensor.as_deref().unwrap_or_default();
    let message = rest.strip_prefix("tensor ").and_then(|r| after(r, tensor));
    message.unwrap_or(rest).to_owned()
}

/// The checkpoint, where an error is about all of it.
fn whole(error: &Container) -> Option<&str> {
    if let Container::TensorInTwoShards {
        checkpoint: whole, ..
    }
    | Container::GgufSplit {
        checkpoint: whole, ..
    }
    | Container::NoWeights { directory: whole }
    | Container::OnlyGguf {
        directory: whole, ..
    }
    | Container::AmbiguousIndex {
        directory: whole, ..
    }
    | Container::PathEscape {
        directory: whole, ..
    }
    | Container::TooManyEntries {
        directory: whole, ..
    }
    | Container::ShardMissing { file: whole, .. }
    | Container::FileName { file: whole, .. } = error
    {
        return Some(whole);
    }
    None
}

/// What stands behind `name: `.
fn after<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.strip_prefix(name)?.strip_prefix(": ")
}

/// What to do about an error, by its code.
const HELP: &[(&[&str], &str)] = &[
    (
        &[
            "container_too_small",
            "container_header_beyond_file",
            "container_truncated",
            "shard_missing",
        ],
        "fetch the file again and compare its length with what the hub shows",
    ),
    (
        &["container_trailing"],
        "fetch the file again: something was appended, or a download was resumed at the wrong place",
    ),
    (
        &["container_foreign_format", "container_header_too_large"],
        "look at the first bytes of the file, and fetch the weights themselves",
    ),
    (
        &[
            "container_json",
            "container_not_utf8",
            "container_json_number",
            "container_json_depth",
            "container_duplicate_key",
            "container_metadata",
            "container_field",
            "container_field_missing",
            "container_offsets_reversed",
            "container_overlap",
            "container_hole",
            "container_size_mismatch",
            "container_fractional_bytes",
            "container_size_overflow",
        ],
        "write the file anew with its own tool, or fetch it again",
    ),
    (
        &["container_unknown_dtype", "gguf_version"],
        "correct the spelling if it is one, or read the file with a newer version of its own tool",
    ),
    (
        &["shard_name", "path_escape", "not_a_regular_file"],
        "put all shards as plain files beside the index, under plain names",
    ),
    (
        &["no_weights"],
        "download the weights, or give the path of the folder that has them",
    ),
    (&["only_gguf"], "give the path of the GGUF file itself"),
    (
        &["config_json"],
        "correct the document at the place that the message names",
    ),
    (
        &[
            "document_too_large",
            "sidecar_too_large",
            "too_many_shards",
            "too_many_entries",
            "tensor_too_large",
            "too_large",
        ],
        "audit the folder with the weights alone, and move away what is no part of the model",
    ),
    (
        &["gguf", "gguf_count", "gguf_duplicate", "gguf_row"],
        "convert the model again, or fetch the file again",
    ),
    (&["gguf_split"], "fetch all parts of one conversion"),
    (
        &["io", "io_tensor", "io_changed", "out_of_memory"],
        "see what the system says about the file, and whether a download is still running",
    ),
    (
        &["index_missing_tensor", "index_wrong_shard"],
        "fetch shards and index of one version, or write the index anew with `safequant repair`",
    ),
    (
        &["index_no_weight_map"],
        "remove the index if the model is one file, or write it anew",
    ),
    (
        &["index_ambiguous"],
        "give the path of the index that is meant",
    ),
    (
        &["tensor_in_two_shards"],
        "move the files of the other save away, or write an index",
    ),
];

fn help(code: &str) -> Option<&'static str> {
    let found = HELP.iter().find(|(codes, _)| codes.contains(&code));
    found.map(|(_, help)| *help)
}

/// Where it is.
pub(crate) fn place(error: &Error) -> Place {
    match error {
        Error::Container(error) => place_in_files(error),
        Error::Document { document, .. }
        | Error::ConfigValue { document, .. }
        | Error::SidecarTooLarge { document, .. } => place_of_document(document),
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

/// A document is a file, an entry of `__metadata__`, or a tensor that holds text and describes its module.
fn place_of_document(document: &str) -> Place {
    let is_tensor = !document.starts_with("__metadata__")
        && ![".json", ".model", ".yaml", ".txt"]
            .iter()
            .any(|suffix| document.contains(suffix));
    match document.rsplit_once('.') {
        Some((module, _)) if is_tensor => Place::module(module).tensor(document),
        Some(_) | None => Place::file(document),
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
        Container::NoWeights { .. } | Container::TooManyEntries { .. } => Place::default(),
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
    difference_in_files(error)
}

fn difference_in_files(error: &Container) -> Option<(String, String)> {
    let pair = |expected: String, found: String| Some((expected, found));
    if let Container::Truncated {
        expected, found, ..
    }
    | Container::Trailing {
        expected, found, ..
    }
    | Container::SizeMismatch {
        expected, found, ..
    } = error
    {
        return pair(format!("{expected} bytes"), format!("{found} bytes"));
    }
    if let Container::HeaderTooLarge { limit, found, .. }
    | Container::DocumentTooLarge { limit, found, .. }
    | Container::TensorTooLarge { limit, found, .. } = error
    {
        return pair(format!("at most {limit} bytes"), format!("{found} bytes"));
    }
    if let Container::Overlap {
        expected, found, ..
    }
    | Container::Hole {
        expected, found, ..
    } = error
    {
        return pair(
            format!("data_offsets from {expected} on"),
            found.to_string(),
        );
    }
    if let Container::GgufCount { most, found, .. } = error {
        return pair(format!("at most {most}"), found.to_string());
    }
    if let Container::ForeignFormat { found, .. } = error {
        return pair("a safetensors file".to_owned(), (*found).to_owned());
    }
    if let Container::UnknownDtype { found, .. } = error {
        return pair("a known dtype".to_owned(), found.clone());
    }
    if let Container::IndexWrongShard { listed, stored, .. } = error {
        return pair(listed.clone(), stored.clone());
    }
    None
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use safequant_container::Dtype;

    use super::*;
    use crate::{Check, all_rules};

    /// Codes that no rule of the kind `Problems` claims, each with the reason.
    const UNCLAIMED: &[(&str, &str)] = &[
        ("no_such_sidecar", "a caller's mistake"),
        ("outside_tensor", "a caller's mistake"),
        ("plan_duplicate_name", "about writing"),
        ("plan_reserved_name", "about writing"),
        ("plan_overflow", "about writing"),
        ("resume_mismatch", "about writing"),
        ("manifest", "PV001 reads the manifest and reports it"),
        ("manifest_entry", "PV001 reads the manifest and reports it"),
        (
            "manifest_version",
            "PV001 reads the manifest and reports it",
        ),
    ];

    #[test]
    fn every_error_about_a_file_is_one_rules_business() {
        let mut owners = BTreeMap::new();
        for rule in all_rules() {
            if let Check::Problems(codes) = rule.check {
                owners.extend(codes.iter().map(|code| (*code, rule.id)));
            }
        }
        let about_files = ["config_json", "sidecar_too_large", "too_large"];
        let all = safequant_container::Error::CODES.iter().copied();
        let mut n_claimed = 0;
        for code in all.chain(about_files) {
            let is_excused = UNCLAIMED.iter().any(|(excused, _)| *excused == code);
            let is_claimed = owners.contains_key(code);
            assert!(is_claimed != is_excused, "{code}: {:?}", owners.get(code));
            n_claimed += usize::from(is_claimed);
        }
        assert!(n_claimed > 45, "{n_claimed} codes");
    }

    #[test]
    fn what_helps_is_said_once_for_each_code() {
        let codes: Vec<_> = HELP.iter().flat_map(|(codes, _)| *codes).collect();
        for code in &codes {
            assert_eq!(codes.iter().filter(|c| *c == code).count(), 1, "{code}");
        }
        let known = safequant_container::Error::CODES.iter();
        let without = known.filter(|code| !UNCLAIMED.iter().any(|(excused, _)| excused == *code));
        let without: Vec<_> = without.filter(|code| help(code).is_none()).collect();
        assert!(without.is_empty(), "{without:?}");
    }

    #[test]
    fn messages_do_not_repeat_the_place() {
        let message = |error: Error| without_place(&error, &place(&error));
        let file = "models/a: b/model.safetensors".to_owned();
        let truncated = Container::Truncated {
            file: file.clone(),
            expected: 9,
            found: 8,
        };
        assert_eq!(message(truncated.into()), "truncated: 8 bytes, expected 9");
        let overflow = Container::SizeOverflow {
            file,
            tensor: "w".to_owned(),
            dtype: Dtype::F32,
            shape: vec![u64::MAX],
        };
        assert!(message(overflow.into()).starts_with("the number of bits"));
        let missing = Error::MissingPart {
            module: "a.b".to_owned(),
            part: "a.b.scales".to_owned(),
        };
        assert_eq!(message(missing), "a.b.scales is missing");
        let two = Container::TensorInTwoShards {
            checkpoint: "models/a".to_owned(),
            tensor: "w".to_owned(),
            first: "1".to_owned(),
            second: "2".to_owned(),
        };
        assert_eq!(message(two.into()), "tensor w is in 1 and in 2");
    }

    #[test]
    fn descriptions_are_files_or_tensors_of_a_module() {
        let place = place_of_document("a.b.comfy_quant");
        assert_eq!(place.module.as_deref(), Some("a.b"));
        assert_eq!(place.tensor.as_deref(), Some("a.b.comfy_quant"));
        for file in ["config.json", "__metadata__: a.b", "tokenizer.model"] {
            assert_eq!(place_of_document(file), Place::file(file));
        }
    }
}
