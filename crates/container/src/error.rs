//! What can be wrong with a file, by name.
//!
//! Every name that comes from a file passes through [`Shown`] on its way into a message: control and bidirectional
//! characters are written as `\u{..}`, and long names are cut (reliability.md, P9). The fields keep the raw text.

use crate::Dtype;
use crate::error_group::errors;
use crate::shown::{Shown, ShownShape};

errors! {
    /// The system refused an operation.
    #[error("{}: {source}", Shown(path))]
    Io {
        /// The file, as the user knows it.
        path: String,
        /// The system's answer.
        source: std::io::Error,
    } = "io", Io;

    /// The system refused to read or write bytes of a tensor.
    #[error("{}: tensor {}: {source}", Shown(file), Shown(tensor))]
    TensorIo {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// The system's answer.
        source: std::io::Error,
    } = "io_tensor", Io;

    /// A file changed after it was opened (reliability.md, P8).
    #[error("{}: changed while it was in use: {source}", Shown(file))]
    Changed {
        /// The file.
        file: String,
        /// What changed.
        source: std::io::Error,
    } = "io_changed", Io;

    /// Memory in proportion to the file was not to be had.
    #[error("{}: no memory for {len_bytes} bytes", Shown(file))]
    OutOfMemory {
        /// The file.
        file: String,
        /// The request.
        len_bytes: u64,
    } = "out_of_memory", Io;

    /// The file is shorter than the length word.
    #[error("{}: {len_bytes} bytes, expected at least 8", Shown(file))]
    TooSmall {
        /// The file.
        file: String,
        /// Its length.
        len_bytes: u64,
    } = "container_too_small", Malformed;

    /// The file is of a well-known other kind.
    #[error("{}: expected a safetensors file, found {found}", Shown(file))]
    ForeignFormat {
        /// The file.
        file: String,
        /// What it is, and what to do about it.
        found: &'static str,
    } = "container_foreign_format", Malformed;

    /// The header is longer than the limit.
    #[error("{}: header of {found} bytes, at most {limit} are read", Shown(file))]
    HeaderTooLarge {
        /// The file.
        file: String,
        /// The length word.
        found: u64,
        /// The limit.
        limit: u64,
    } = "container_header_too_large", Limit;

    /// The header is longer than the file.
    #[error("{}: header of {found} bytes in a file of {len_bytes}", Shown(file))]
    HeaderBeyondFile {
        /// The file.
        file: String,
        /// The length word.
        found: u64,
        /// The file's length.
        len_bytes: u64,
    } = "container_header_beyond_file", Malformed;

    /// The text is not UTF-8.
    #[error("{}: invalid UTF-8 at byte {offset} of the JSON text", Shown(file))]
    NotUtf8 {
        /// The file.
        file: String,
        /// The first bad byte, from the start of the text.
        offset: u64,
    } = "container_not_utf8", Malformed;

    /// The text is not JSON, or not of the required structure.
    #[error("{}: expected {expected} at byte {offset} of the JSON text", Shown(file))]
    Json {
        /// The file.
        file: String,
        /// Where, from the start of the text.
        offset: u64,
        /// What should have stood there.
        expected: &'static str,
    } = "container_json", Malformed;

    /// The text is nested too deeply.
    #[error("{}: more than {limit} nested values at byte {offset} of the JSON text", Shown(file))]
    JsonDepth {
        /// The file.
        file: String,
        /// Where, from the start of the text.
        offset: u64,
        /// The limit.
        limit: usize,
    } = "container_json_depth", Limit;

    /// A number overflows a double.
    #[error("{}: number out of range at byte {offset} of the JSON text", Shown(file))]
    JsonNumberRange {
        /// The file.
        file: String,
        /// Where, from the start of the text.
        offset: u64,
    } = "container_json_number", Malformed;

    /// An object has two members of the same name, compared after unescaping.
    #[error("{}: key {} occurs twice in one object, again at byte {offset} of the JSON text", Shown(file), Shown(key))]
    DuplicateKey {
        /// The file.
        file: String,
        /// Where the second one stands, from the start of the text.
        offset: u64,
        /// The key, unescaped.
        key: String,
    } = "container_duplicate_key", Malformed;

    /// `__metadata__` is neither null nor a map of strings.
    #[error("{}: __metadata__ must map strings to strings, found something else at byte {offset} of the JSON text", Shown(file))]
    Metadata {
        /// The file.
        file: String,
        /// Where, from the start of the text.
        offset: u64,
    } = "container_metadata", Malformed;

    /// A field of a tensor's entry has the wrong form.
    #[error("{}: tensor {}: {field} must be {expected}", Shown(file), Shown(tensor))]
    Field {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// The field, or `entry` for the entry as a whole.
        field: &'static str,
        /// What it must be.
        expected: &'static str,
    } = "container_field", Malformed;

    /// A field of a tensor's entry is missing.
    #[error("{}: tensor {}: field {field} is missing", Shown(file), Shown(tensor))]
    FieldMissing {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// The field.
        field: &'static str,
    } = "container_field_missing", Malformed;

    /// No element type has this spelling.
    #[error("{}: tensor {}: unknown dtype {}", Shown(file), Shown(tensor), Shown(found))]
    UnknownDtype {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// The spelling.
        found: String,
    } = "container_unknown_dtype", Unsupported;

    /// A tensor ends before it begins.
    #[error("{}: tensor {}: data_offsets [{begin}, {end}] end before they begin", Shown(file), Shown(tensor))]
    OffsetsReversed {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// First byte, relative to the data section.
        begin: u64,
        /// One past the last.
        end: u64,
    } = "container_offsets_reversed", Malformed;

    /// A tensor begins before its predecessor ends.
    #[error("{}: tensor {}: begins at {found}, inside its predecessor, which ends at {expected}", Shown(file), Shown(tensor))]
    Overlap {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// Where the predecessor ends, relative to the data section.
        expected: u64,
        /// Where it begins.
        found: u64,
    } = "container_overlap", Malformed;

    /// Bytes belong to no tensor.
    #[error("{}: tensor {}: begins at {found}, and bytes {expected}..{found} belong to no tensor", Shown(file), Shown(tensor))]
    Hole {
        /// The file.
        file: String,
        /// The tensor after the hole.
        tensor: String,
        /// Where the predecessor ends, relative to the data section.
        expected: u64,
        /// Where it begins.
        found: u64,
    } = "container_hole", Malformed;

    /// Elements or bits of a tensor do not fit 64 bits.
    #[error("{}: tensor {}: the number of bits of {dtype} {} does not fit 64 bits", Shown(file), Shown(tensor), ShownShape(shape))]
    SizeOverflow {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// Element type.
        dtype: Dtype,
        /// Dimensions.
        shape: Vec<u64>,
    } = "container_size_overflow", Malformed;

    /// The bits of a tensor are no whole number of bytes.
    #[error("{}: tensor {}: {dtype} {} is no whole number of bytes", Shown(file), Shown(tensor), ShownShape(shape))]
    FractionalBytes {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// Element type.
        dtype: Dtype,
        /// Dimensions.
        shape: Vec<u64>,
    } = "container_fractional_bytes", Malformed;

    /// The range of a tensor has another length than dtype and shape demand.
    #[error("{}: tensor {}: {found} bytes, expected {expected} for its dtype and shape", Shown(file), Shown(tensor))]
    SizeMismatch {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// Bytes that dtype and shape demand.
        expected: u64,
        /// Bytes between the offsets.
        found: u64,
    } = "container_size_mismatch", Malformed;

    /// The file ends before its last tensor.
    #[error("{}: truncated: {found} bytes, expected {expected}", Shown(file))]
    Truncated {
        /// The file.
        file: String,
        /// The length that the header demands.
        expected: u64,
        /// The file's length.
        found: u64,
    } = "container_truncated", Malformed;

    /// The file goes on after its last tensor.
    #[error("{}: {} bytes after the last tensor: {found} bytes, expected {expected}", Shown(file), found - expected)]
    Trailing {
        /// The file.
        file: String,
        /// The length that the header demands.
        expected: u64,
        /// The file's length.
        found: u64,
    } = "container_trailing", Malformed;

    /// The name of a file inside a checkpoint is not allowed (specs/container/checkpoint.md, P1).
    #[error("{}: file name {} {why}", Shown(file), Shown(name))]
    FileName {
        /// The index or directory that has it.
        file: String,
        /// The name.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    } = "shard_name", Malformed;

    /// A file of a checkpoint resolves to something outside its directory.
    #[error("{}: {} leaves the directory of the checkpoint", Shown(directory), Shown(name))]
    PathEscape {
        /// The directory.
        directory: String,
        /// The name.
        name: String,
    } = "path_escape", Malformed;

    /// A name stands for something that is no regular file.
    #[error("{}: expected a regular file, found {found}", Shown(path))]
    NotRegularFile {
        /// The path.
        path: String,
        /// What it is.
        found: &'static str,
    } = "not_a_regular_file", Malformed;

    /// The index names a shard that is not there.
    #[error("{}: shard {} is missing", Shown(file), Shown(shard))]
    ShardMissing {
        /// The index.
        file: String,
        /// The shard.
        shard: String,
    } = "shard_missing", Malformed;

    /// A checkpoint has more shards than the limit.
    #[error("{}: {found} shards, at most {limit} are read", Shown(file))]
    TooManyShards {
        /// The directory or index.
        file: String,
        /// The number.
        found: usize,
        /// The limit.
        limit: usize,
    } = "too_many_shards", Limit;

    /// A directory has no weights.
    #[error("{}: no .safetensors file", Shown(directory))]
    NoWeights {
        /// The directory.
        directory: String,
    } = "no_weights", Malformed;

    /// A directory has several index files and none has the usual name.
    #[error("{}: indexes {} and {}: give the path of the one that is meant", Shown(directory), Shown(first), Shown(second))]
    AmbiguousIndex {
        /// The directory.
        directory: String,
        /// One.
        first: String,
        /// Another one.
        second: String,
    } = "index_ambiguous", Refused;

    /// The index has no `weight_map`, or an empty one.
    #[error("{}: weight_map is missing or empty", Shown(file))]
    NoWeightMap {
        /// The index.
        file: String,
    } = "index_no_weight_map", Malformed;

    /// The index lists a tensor that no shard has.
    #[error("{}: tensor {} is not in {}, nor in any other shard", Shown(file), Shown(tensor), Shown(shard))]
    IndexMissingTensor {
        /// The index.
        file: String,
        /// The tensor.
        tensor: String,
        /// The shard that should have it.
        shard: String,
    } = "index_missing_tensor", Malformed;

    /// The index lists a tensor in one shard, and another one has it.
    #[error("{}: tensor {} is listed in {}, but stored in {}", Shown(file), Shown(tensor), Shown(listed), Shown(stored))]
    IndexWrongShard {
        /// The index.
        file: String,
        /// The tensor.
        tensor: String,
        /// The shard that the index names.
        listed: String,
        /// The shard that has it.
        stored: String,
    } = "index_wrong_shard", Malformed;

    /// Two shards have a tensor, and no index says which one counts.
    #[error("{}: tensor {} is in {} and in {}", Shown(checkpoint), Shown(tensor), Shown(first), Shown(second))]
    TensorInTwoShards {
        /// The checkpoint.
        checkpoint: String,
        /// The tensor.
        tensor: String,
        /// One shard.
        first: String,
        /// The other.
        second: String,
    } = "tensor_in_two_shards", Malformed;

    /// A file that is read as a whole is longer than the limit.
    #[error("{}: {found} bytes, at most {limit} are read", Shown(file))]
    DocumentTooLarge {
        /// The file.
        file: String,
        /// Its length.
        found: u64,
        /// The limit.
        limit: u64,
    } = "document_too_large", Limit;

    /// A directory holds more files or deeper folders than are carried along.
    #[error("{}: more than {limit} {what}", Shown(directory))]
    TooManyEntries {
        /// The directory.
        directory: String,
        /// What there is too much of.
        what: &'static str,
        /// The limit.
        limit: usize,
    } = "too_many_entries", Limit;

    /// A checkpoint has no such file beside its weights.
    #[error("{}: no file {} beside the weights", Shown(checkpoint), Shown(name))]
    NoSuchSidecar {
        /// The checkpoint.
        checkpoint: String,
        /// The name asked for.
        name: String,
    } = "no_such_sidecar", Refused;

    /// Bytes outside a tensor were asked for.
    #[error("{}: tensor {}: bytes {offset}..+{len_bytes} of {tensor_len_bytes} were asked for", Shown(file), Shown(tensor))]
    OutsideTensor {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// First byte asked for, relative to the tensor.
        offset: u64,
        /// Bytes asked for.
        len_bytes: u64,
        /// The tensor's length.
        tensor_len_bytes: u64,
    } = "outside_tensor", Refused;

    /// A tensor is longer than its reader is ready for.
    #[error("{}: tensor {}: {found} bytes, at most {limit} are read", Shown(file), Shown(tensor))]
    TensorTooLarge {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// Its length.
        found: u64,
        /// The limit.
        limit: u64,
    } = "tensor_too_large", Limit;

    /// Something else should stand in the header of a GGUF file.
    #[error("{}: expected {expected} at byte {offset}", Shown(file))]
    Gguf {
        /// The file.
        file: String,
        /// Where, from the start of the file.
        offset: u64,
        /// What should stand there.
        expected: &'static str,
    } = "gguf", Malformed;

    /// A GGUF file of a version that is not read.
    #[error("{}: GGUF version {found}, expected 2 or 3 in little-endian order", Shown(file))]
    GgufVersion {
        /// The file.
        file: String,
        /// The version.
        found: u32,
    } = "gguf_version", Unsupported;

    /// A header declares more of something than its bytes can hold.
    #[error("{}: {found} {what} are declared, and there is room for {most}", Shown(file))]
    GgufCount {
        /// The file.
        file: String,
        /// Of what.
        what: &'static str,
        /// The number declared.
        found: u64,
        /// The number that file and limit leave room for.
        most: u64,
    } = "gguf_count", Malformed;

    /// A key or a tensor occurs twice.
    #[error("{}: {what} {} occurs twice", Shown(file), Shown(name))]
    GgufDuplicate {
        /// The file.
        file: String,
        /// `key` or `tensor`.
        what: &'static str,
        /// Its name.
        name: String,
    } = "gguf_duplicate", Malformed;

    /// A row is no whole number of blocks.
    #[error("{}: tensor {}: rows of {elements} elements are no whole number of {block} blocks", Shown(file), Shown(tensor))]
    GgufRow {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// The block type.
        block: &'static str,
        /// Elements of a row.
        elements: u64,
    } = "gguf_row", Malformed;

    /// Files that should be the parts of one model are not.
    #[error("{}: {}: {what}", Shown(checkpoint), Shown(file))]
    GgufSplit {
        /// The model.
        checkpoint: String,
        /// The part.
        file: String,
        /// What is wrong with it.
        what: &'static str,
    } = "gguf_split", Malformed;

    /// A directory has GGUF files and nothing else.
    #[error("{}: no .safetensors file, but {}: give the path of the GGUF file itself", Shown(directory), Shown(name))]
    OnlyGguf {
        /// The directory.
        directory: String,
        /// One of them.
        name: String,
    } = "only_gguf", Refused;

    /// A name would be written twice: of a tensor or of a metadata entry.
    #[error("{}: {} would be written twice", Shown(file), Shown(name))]
    PlannedTwice {
        /// The file to be written.
        file: String,
        /// The name.
        name: String,
    } = "plan_duplicate_name", Refused;

    /// A tensor cannot be called `__metadata__`.
    #[error("{}: a tensor cannot be called __metadata__", Shown(file))]
    ReservedName {
        /// The file to be written.
        file: String,
    } = "plan_reserved_name", Refused;

    /// A file to be written is longer than 2^63 - 1 bytes.
    #[error("{}: tensor {} ends beyond the longest file", Shown(file), Shown(tensor))]
    PlanOverflow {
        /// The file to be written.
        file: String,
        /// The tensor.
        tensor: String,
    } = "plan_overflow", Refused;

    /// A file that an earlier run began is not the one of the plan.
    #[error("{}: not the file that was begun: {what}", Shown(file))]
    NotTheBegunFile {
        /// The file.
        file: String,
        /// What differs.
        what: &'static str,
    } = "resume_mismatch", Refused;

    /// A manifest is not one of ours.
    #[error("{}: {what}", Shown(file))]
    Manifest {
        /// The file.
        file: String,
        /// What is wrong.
        what: &'static str,
    } = "manifest", Malformed;

    /// An entry of a manifest is not one of ours.
    #[error("{}: tensor {}: {what}", Shown(file), Shown(tensor))]
    ManifestEntry {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// What is wrong.
        what: &'static str,
    } = "manifest_entry", Malformed;

    /// A manifest is of another version.
    #[error("{}: schema_version {found}, expected {expected}", Shown(file))]
    ManifestVersion {
        /// The file.
        file: String,
        /// The version that is read.
        expected: u64,
        /// The version found.
        found: u64,
    } = "manifest_version", Unsupported;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shown::MAX_SHOWN_CHARS;

    #[test]
    fn messages_never_carry_control_characters_and_are_short() {
        let name: String = (0..=0x2100).filter_map(char::from_u32).collect();
        for name in [
            name,
            "x".repeat(1 << 20),
            "\u{1b}[31m\r\n\u{202e}".to_owned(),
        ] {
            let error = Error::NoSuchSidecar {
                checkpoint: name.clone(),
                name,
            };
            let message = error.to_string();
            assert!(message.chars().count() < 12 * 2 * MAX_SHOWN_CHARS);
            assert!(!message.chars().any(|c| c.is_control() || c == '\u{202e}'));
        }
    }

    #[test]
    fn codes_are_unique_snake_case_words() {
        let mut codes = Error::CODES.to_vec();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), Error::CODES.len());
        assert!(
            codes
                .iter()
                .all(|code| code.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'))
        );
    }
}
