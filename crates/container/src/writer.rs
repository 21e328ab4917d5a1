//! Plan headers and offsets before the first byte; write rows of tensors in any order (specs/container/safetensors.md,
//! clauses W1-W8).

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::header::{METADATA, size_bytes};
use crate::{BlockType, DiskFile, Dtype, Error, TensorInfo, TensorRef};

/// A tensor that a file is going to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedTensor {
    /// Its name.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions, outermost first; the last one counts bytes where there are blocks.
    pub shape: Vec<u64>,
    /// The block type that the bytes are of, for a GGUF file.
    pub block: Option<&'static BlockType>,
}

/// Tensors that must share a shard: the parts of one module, or one plain tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorGroup {
    /// The tensors, in any order.
    pub tensors: Vec<PlannedTensor>,
}

/// One output file, byte for byte but for the data: header and offsets are fixed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilePlan {
    /// The file's name (`model-00001-of-00002.safetensors`).
    pub name: String,
    /// The first bytes of the file: length word and padded JSON.
    pub prefix: Vec<u8>,
    /// The tensors in file order with their byte ranges relative to the start of the file.
    pub tensors: Vec<crate::TensorInfo>,
    /// Length of the whole file.
    pub len_bytes: u64,
}

/// Longest header that the official parser reads.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Longest file of a system: offsets are signed there.
const MAX_FILE_BYTES: u64 = i64::MAX as u64;

/// The header is padded, so that data begins at a multiple of this.
const ALIGNMENT: usize = 8;

impl FilePlan {
    /// Lays out one file: descending dtype rank, then name; `__metadata__` first, keys sorted; padded to 8 bytes.
    ///
    /// The bytes are those of the official writer (whose order of metadata keys is arbitrary). Empty `metadata` gives no
    /// `__metadata__` at all.
    ///
    /// # Errors
    /// `PlannedTwice` for a tensor's or a metadata key's name, `ReservedName` for a tensor `__metadata__`,
    /// `SizeOverflow`, `FractionalBytes` and `PlanOverflow` for a size that does not fit, `HeaderTooLarge` for a header
    /// over the official cap.
    pub fn new(
        name: &str,
        mut tensors: Vec<PlannedTensor>,
        metadata: &[(String, String)],
    ) -> Result<Self, Error> {
        check_names(name, tensors.iter().map(|tensor| tensor.name.as_str()))?;
        check_unique(name, metadata.iter().map(|(key, _)| key.as_str()))?;
        tensors.sort_by(|a, b| b.dtype.cmp(&a.dtype).then_with(|| a.name.cmp(&b.name)));
        let mut placed = Vec::with_capacity(tensors.len());
        let mut end = 0;
        for PlannedTensor {
            name: tensor,
            dtype,
            shape,
            block,
        } in tensors
        {
            let start = end;
            end = add_bytes(
                name,
                &tensor,
                end,
                size_bytes(name, &tensor, dtype, &shape)?,
            )?;
            placed.push(TensorInfo {
                name: tensor.into(),
                dtype,
                shape: shape.into(),
                range: start..end,
                block,
            });
        }
        let prefix = prefix(name, &placed, metadata)?;
        let data_start = prefix.len() as u64;
        for tensor in &mut placed {
            let end = add_bytes(name, &tensor.name, data_start, tensor.range.end)?;
            tensor.range = data_start + tensor.range.start..end;
        }
        Ok(Self {
            name: name.to_owned(),
            prefix,
            tensors: placed,
            len_bytes: data_start + end,
        })
    }

    /// Bytes of all tensors.
    pub fn payload_bytes(&self) -> u64 {
        self.len_bytes - self.prefix.len() as u64
    }
}

pub(crate) fn check_names<'a>(
    file: &str,
    names: impl Iterator<Item = &'a str>,
) -> Result<(), Error> {
    let names: Vec<_> = names.collect();
    if names.contains(&METADATA) {
        return Err(Error::ReservedName {
            file: file.to_owned(),
        });
    }
    check_unique(file, names.into_iter())
}

fn check_unique<'a>(file: &str, names: impl Iterator<Item = &'a str>) -> Result<(), Error> {
    let mut names: Vec<_> = names.collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        None => Ok(()),
        Some(pair) => Err(Error::PlannedTwice {
            file: file.to_owned(),
            name: pair[0].to_owned(),
        }),
    }
}

fn add_bytes(file: &str, tensor: &str, start: u64, len_bytes: u64) -> Result<u64, Error> {
    let end = start
        .checked_add(len_bytes)
        .filter(|&end| end <= MAX_FILE_BYTES);
    end.ok_or_else(|| Error::PlanOverflow {
        file: file.to_owned(),
        tensor: tensor.to_owned(),
    })
}

/// Length word and padded JSON; the ranges are relative to the data section.
fn prefix(
    file: &str,
    tensors: &[TensorInfo],
    metadata: &[(String, String)],
) -> Result<Vec<u8>, Error> {
    let mut json = String::from("{");
    if !metadata.is_empty() {
        let sorted: BTreeMap<_, _> = metadata.iter().map(|(key, value)| (key, value)).collect();
        json.push_str("\"__metadata__\":{");
        for (i, (key, value)) in sorted.into_iter().enumerate() {
            json.push_str(if i == 0 { "" } else { "," });
            push_string(&mut json, key);
            json.push(':');
            push_string(&mut json, value);
        }
        json.push('}');
    }
    for (i, tensor) in tensors.iter().enumerate() {
        json.push_str(if i == 0 && metadata.is_empty() {
            ""
        } else {
            ","
        });
        push_string(&mut json, &tensor.name);
        let _ = write!(json, ":{{\"dtype\":\"{}\",\"shape\":", tensor.dtype);
        push_list(&mut json, &tensor.shape);
        json.push_str(",\"data_offsets\":");
        push_list(&mut json, &[tensor.range.start, tensor.range.end]);
        json.push('}');
    }
    json.push('}');
    let padded = json.len().next_multiple_of(ALIGNMENT);
    let found = padded as u64;
    if found > MAX_HEADER_BYTES {
        let limit = MAX_HEADER_BYTES;
        return Err(Error::HeaderTooLarge {
            file: file.to_owned(),
            found,
            limit,
        });
    }
    let mut bytes = found.to_le_bytes().to_vec();
    bytes.extend_from_slice(json.as_bytes());
    bytes.resize(ALIGNMENT + padded, b' ');
    Ok(bytes)
}

/// A list of numbers in compact JSON.
pub(crate) fn push_list(json: &mut String, numbers: &[u64]) {
    json.push('[');
    for (i, number) in numbers.iter().enumerate() {
        let _ = write!(json, "{}{number}", if i == 0 { "" } else { "," });
    }
    json.push(']');
}

/// A JSON string with the escapes of `serde_json`: only quote, backslash and C0 are escaped.
pub(crate) fn push_string(json: &mut String, text: &str) {
    push_escaped(json, text, |_| false);
}

/// A JSON string with the escapes of Python's `json.dumps`: everything outside printable ASCII is escaped too.
fn push_ascii_string(json: &mut String, text: &str) {
    push_escaped(json, text, |char| !(' '..='~').contains(&char));
}

fn push_escaped(json: &mut String, text: &str, must_escape: impl Fn(char) -> bool) {
    json.push('"');
    for char in text.chars() {
        match char {
            '"' => json.push_str("\\\""),
            '\\' => json.push_str("\\\\"),
            '\u{8}' => json.push_str("\\b"),
            '\u{c}' => json.push_str("\\f"),
            '\n' => json.push_str("\\n"),
            '\r' => json.push_str("\\r"),
            '\t' => json.push_str("\\t"),
            _ if char < ' ' || must_escape(char) => {
                for unit in char.encode_utf16(&mut [0; 2]) {
                    let _ = write!(json, "\\u{unit:04x}");
                }
            }
            _ => json.push(char),
        }
    }
    json.push('"');
}

/// All output files of a checkpoint, and its index if there is more than one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointPlan {
    /// The files in order.
    pub files: Vec<FilePlan>,
    /// The bytes of `model.safetensors.index.json`; `None` for a single file.
    pub index: Option<Vec<u8>>,
}

impl CheckpointPlan {
    /// The name of the index beside the files.
    pub const INDEX_NAME: &'static str = "model.safetensors.index.json";

    /// Splits groups, in the order given, into shards of at most `max_shard_bytes` of payload: a new shard begins when
    /// the next group does not fit; a group larger than the cap gets a shard of its own (the hub splitter's rule: that
    /// shard comes before the one that is being filled).
    ///
    /// Each file gets all of `metadata`. No group gives one file without tensors.
    ///
    /// # Errors
    /// As [`FilePlan::new`]; a name that occurs in two groups.
    pub fn new(
        groups: Vec<TensorGroup>,
        max_shard_bytes: u64,
        metadata: &[(String, String)],
    ) -> Result<Self, Error> {
        let all = groups.iter().flat_map(|group| &group.tensors);
        check_names("checkpoint", all.map(|tensor| tensor.name.as_str()))?;
        let shards = split_groups(groups, max_shard_bytes)?;
        let n_shards = shards.len();
        let mut files = Vec::with_capacity(n_shards);
        for (i, tensors) in shards.into_iter().enumerate() {
            let name = match n_shards {
                1 => "model.safetensors".to_owned(),
                _ => format!("model-{:05}-of-{n_shards:05}.safetensors", i + 1),
            };
            files.push(FilePlan::new(&name, tensors, metadata)?);
        }
        let index = (n_shards > 1).then(|| index_json(&files));
        Ok(Self { files, index })
    }

    /// Bytes of all files, the index included.
    pub fn len_bytes(&self) -> u64 {
        let index = self.index.as_ref().map_or(0, |index| index.len() as u64);
        self.files
            .iter()
            .map(|file| file.len_bytes)
            .fold(index, u64::saturating_add)
    }
}

/// The tensors of each shard.
pub(crate) fn split_groups(
    groups: Vec<TensorGroup>,
    max_shard_bytes: u64,
) -> Result<Vec<Vec<PlannedTensor>>, Error> {
    let mut shards = Vec::new();
    let mut current: Vec<PlannedTensor> = Vec::new();
    let mut current_bytes = 0_u64;
    for group in groups {
        let mut bytes = 0;
        for tensor in &group.tensors {
            let len_bytes = size_bytes("checkpoint", &tensor.name, tensor.dtype, &tensor.shape)?;
            bytes = add_bytes("checkpoint", &tensor.name, bytes, len_bytes)?;
        }
        if bytes > max_shard_bytes {
            shards.push(group.tensors);
            continue;
        }
        if current_bytes + bytes > max_shard_bytes {
            shards.push(std::mem::take(&mut current));
            current_bytes = 0;
        }
        current.extend(group.tensors);
        current_bytes += bytes;
    }
    if !current.is_empty() || shards.is_empty() {
        shards.push(current);
    }
    Ok(shards)
}

/// What `json.dumps(index, indent=2, sort_keys=True)` gives.
fn index_json(files: &[FilePlan]) -> Vec<u8> {
    let mut weight_map = BTreeMap::new();
    for file in files {
        weight_map.extend(
            file.tensors
                .iter()
                .map(|tensor| (tensor.name.as_str(), &file.name)),
        );
    }
    let total = files
        .iter()
        .map(FilePlan::payload_bytes)
        .fold(0, u64::saturating_add);
    let mut json = format!("{{\n  \"metadata\": {{\n    \"total_size\": {total}\n  }},\n");
    json.push_str("  \"weight_map\": {");
    for (i, (tensor, file)) in weight_map.into_iter().enumerate() {
        json.push_str(if i == 0 { "\n    " } else { ",\n    " });
        push_ascii_string(&mut json, tensor);
        json.push_str(": ");
        push_ascii_string(&mut json, file);
    }
    json.push_str("\n  }\n}");
    json.into_bytes()
}

/// Writes one planned file: prefix and length first, then rows of tensors in any order, from any thread.
pub struct FileWriter {
    plan: FilePlan,
    file: Box<dyn DiskFile>,
}

impl FileWriter {
    /// Starts the file: sets its final length and writes the prefix.
    ///
    /// What the file held before is gone: it is emptied first, so that bytes which are never written are zeros.
    ///
    /// # Errors
    /// I/O, with the file's name.
    pub fn create(plan: FilePlan, file: Box<dyn DiskFile>) -> Result<Self, Error> {
        file.set_len(0)
            .and_then(|()| file.set_len(plan.len_bytes))
            .and_then(|()| file.write_all_at(0, &plan.prefix))
            .map_err(|error| Error::io(&plan.name, error))?;
        Ok(Self { plan, file })
    }

    /// Takes up a file that an earlier run started: checks length and prefix, writes nothing.
    ///
    /// # Errors
    /// `NotTheBegunFile` if the file is not the one the plan describes; I/O.
    pub fn resume(plan: FilePlan, file: Box<dyn DiskFile>) -> Result<Self, Error> {
        let differs = |what| Error::NotTheBegunFile {
            file: plan.name.clone(),
            what,
        };
        if file.len_bytes() != plan.len_bytes {
            return Err(differs("its length differs"));
        }
        let mut prefix = vec![0; plan.prefix.len()];
        file.read_exact_at(0, &mut prefix)
            .map_err(|error| Error::io(&plan.name, error))?;
        if prefix != plan.prefix {
            return Err(differs("its header differs"));
        }
        Ok(Self { plan, file })
    }

    /// The plan this file follows.
    pub fn plan(&self) -> &FilePlan {
        &self.plan
    }

    /// Writes `bytes` at `offset` within tensor number `tensor` (index into `plan().tensors`).
    ///
    /// # Errors
    /// I/O with file and tensor.
    ///
    /// # Panics
    /// If the bytes do not lie within the tensor: the caller's bug.
    pub fn write_at(&self, tensor: usize, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let start = self.position(tensor, offset, bytes.len());
        let written = self.file.write_all_at(start, bytes);
        written.map_err(|source| self.io_error(tensor, source))
    }

    /// Copies bytes of a source's tensor, which were read, to `offset` within tensor number `tensor`: within the system where it
    /// can do that, else by writing them.
    ///
    /// # Errors
    /// As [`FileWriter::write_at`].
    ///
    /// # Panics
    /// As [`FileWriter::write_at`].
    pub fn copy_at(
        &self,
        tensor: usize,
        offset: u64,
        source: (TensorRef<'_>, u64),
        bytes: &[u8],
    ) -> Result<(), Error> {
        let (from, from_offset) = source;
        let start = self.position(tensor, offset, bytes.len());
        let from_start = from.info.range.start + from_offset;
        let file = &self.file;
        let source = from.shard.source.as_ref();
        let copied = file.copy_from(start, source, from_start, bytes.len() as u64);
        let copied = copied.map_err(|source| self.io_error(tensor, source))?;
        let rest = usize::try_from(copied).map_or(&[][..], |n| bytes.get(n..).unwrap_or_default());
        if rest.is_empty() {
            return Ok(());
        }
        self.write_at(tensor, offset + copied, rest)
    }

    /// Reads back bytes of a tensor, to digest or verify what the file holds.
    ///
    /// # Errors
    /// I/O with file and tensor.
    ///
    /// # Panics
    /// As [`FileWriter::write_at`].
    pub fn read_at(&self, tensor: usize, offset: u64, out: &mut [u8]) -> Result<(), Error> {
        let start = self.position(tensor, offset, out.len());
        let read = self.file.read_exact_at(start, out);
        read.map_err(|source| self.io_error(tensor, source))
    }

    /// Lets the system begin to write out bytes of a tensor.
    ///
    /// # Panics
    /// As [`FileWriter::write_at`].
    pub fn start_writeback(&self, tensor: usize, range: std::ops::Range<u64>) {
        let len_bytes = range.end.saturating_sub(range.start);
        let len = usize::try_from(len_bytes).unwrap_or(usize::MAX);
        let start = self.position(tensor, range.start, len);
        self.file.start_writeback(start, len_bytes);
    }

    fn position(&self, tensor: usize, offset: u64, len: usize) -> u64 {
        let info = &self.plan.tensors[tensor];
        let end = offset.checked_add(len as u64);
        assert!(
            end.is_some_and(|end| end <= info.len_bytes()),
            "bytes {offset}..+{len} of tensor {:?}, which has {}",
            info.name,
            info.len_bytes(),
        );
        info.range.start + offset
    }

    fn io_error(&self, tensor: usize, source: std::io::Error) -> Error {
        let tensor = self.plan.tensors[tensor].name.to_string();
        Error::TensorIo {
            file: self.plan.name.clone(),
            tensor,
            source,
        }
    }

    /// Makes the file durable.
    ///
    /// # Errors
    /// I/O with the file's name: final.
    pub fn seal(self) -> Result<(), Error> {
        self.file
            .sync()
            .map_err(|error| Error::io(&self.plan.name, error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BytesSource, Disk, Header, Limits, OsDisk};

    fn tensor(name: &str, dtype: Dtype, shape: &[u64]) -> PlannedTensor {
        PlannedTensor {
            name: name.to_owned(),
            dtype,
            shape: shape.to_vec(),
            block: None,
        }
    }

    fn bytes(name: &str, n: u64) -> TensorGroup {
        TensorGroup {
            tensors: vec![tensor(name, Dtype::U8, &[n])],
        }
    }

    #[test]
    fn the_worked_example_of_the_format_page_is_reproduced() -> Result<(), Error> {
        let plan = FilePlan::new("x", vec![tensor("attn0", Dtype::F32, &[1, 1, 2, 3])], &[])?;
        assert_eq!(plan.prefix[..8], 72_u64.to_le_bytes());
        assert_eq!(plan.tensors[0].range, 80..104);
        assert_eq!(plan.len_bytes, 104);
        let json = r#"{"attn0":{"dtype":"F32","shape":[1,1,2,3],"data_offsets":[0,24]}}"#;
        assert_eq!(plan.prefix[8..], *format!("{json:<72}").as_bytes());
        Ok(())
    }

    #[test]
    fn a_plan_reads_back_as_the_same_header() -> Result<(), Error> {
        let tensors = vec![
            tensor("b", Dtype::U8, &[3]),
            tensor("a\n\u{1F600}", Dtype::U8, &[]),
            tensor("f4", Dtype::F4, &[2, 3]),
            tensor("z", Dtype::I64, &[2]),
            tensor("none", Dtype::F32, &[0, 7]),
        ];
        let metadata = [("b", "2"), ("a", "1")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        let plan = FilePlan::new("x", tensors, &metadata)?;
        let mut file = plan.prefix.clone();
        file.resize(usize::try_from(plan.len_bytes).unwrap(), 0);
        let header = Header::read(&BytesSource(file.into()), "x", &Limits::default())?;
        assert_eq!(header.tensors, plan.tensors);
        assert_eq!(header.metadata_value("b"), Some("2"));
        assert_eq!(header.metadata.unwrap()[0].0, "a");
        let names: Vec<_> = plan
            .tensors
            .iter()
            .map(|tensor| tensor.name.as_str())
            .collect();
        assert_eq!(names, ["z", "none", "a\n\u{1F600}", "b", "f4"]);
        Ok(())
    }

    #[test]
    fn impossible_plans_are_refused_by_name() {
        let code = |tensors, metadata: &[(String, String)]| {
            FilePlan::new("x", tensors, metadata)
                .map(drop)
                .map_err(|error| error.code())
        };
        let a = || tensor("a", Dtype::U8, &[1]);
        assert_eq!(code(vec![a(), a()], &[]), Err("plan_duplicate_name"));
        assert_eq!(
            code(vec![tensor("__metadata__", Dtype::U8, &[1])], &[]),
            Err("plan_reserved_name")
        );
        assert_eq!(
            code(vec![tensor("a", Dtype::F4, &[3])], &[]),
            Err("container_fractional_bytes")
        );
        assert_eq!(
            code(vec![tensor("a", Dtype::U8, &[1 << 62])], &[]),
            Err("container_size_overflow")
        );
        let huge = |name| tensor(name, Dtype::U64, &[(1 << 58) - 1]);
        assert_eq!(
            code(["a", "b", "c", "d", "e"].map(huge).to_vec(), &[]),
            Err("plan_overflow")
        );
        let twice = [
            ("k".to_owned(), String::new()),
            ("k".to_owned(), String::new()),
        ];
        assert_eq!(code(vec![], &twice), Err("plan_duplicate_name"));
        let long = [("k".to_owned(), "x".repeat(100_000_000))];
        assert_eq!(code(vec![], &long), Err("container_header_too_large"));
        let two = vec![bytes("a", 1), bytes("a", 1)];
        let outcome = CheckpointPlan::new(two, 1, &[])
            .map(drop)
            .map_err(|error| error.code());
        assert_eq!(outcome, Err("plan_duplicate_name"));
    }

    #[test]
    fn shards_are_split_as_the_hub_splits_them() -> Result<(), Error> {
        let sizes = [
            ("a", 6),
            ("b", 6),
            ("c", 2),
            ("d", 20),
            ("e", 6),
            ("f", 2),
            ("g", 2),
        ];
        let groups = sizes.map(|(name, n)| bytes(name, n)).to_vec();
        let plan = CheckpointPlan::new(groups, 10, &[])?;
        let names: Vec<String> = plan
            .files
            .iter()
            .map(|file| {
                file.tensors
                    .iter()
                    .map(|tensor| tensor.name.as_str())
                    .collect()
            })
            .collect();
        assert_eq!(names, ["a", "d", "bc", "efg"]);
        assert_eq!(plan.files[1].name, "model-00002-of-00004.safetensors");
        let index = String::from_utf8(plan.index.unwrap()).unwrap();
        let start = "{\n  \"metadata\": {\n    \"total_size\": 44\n  },\n  \"weight_map\": {\n    \"a\": \"model-00001-of-00004.safetensors\",\n    \"b\": ";
        assert!(
            index.starts_with(start) && index.ends_with("safetensors\"\n  }\n}"),
            "{index}"
        );
        Ok(())
    }

    #[test]
    fn companions_share_a_shard_and_few_tensors_share_one_file() -> Result<(), Error> {
        let pair = |a: &str, b: &str| TensorGroup {
            tensors: vec![tensor(a, Dtype::U8, &[4]), tensor(b, Dtype::U8, &[4])],
        };
        let plan = CheckpointPlan::new(vec![pair("a", "b"), pair("c", "d")], 12, &[])?;
        assert_eq!(plan.files.len(), 2);
        let plan = CheckpointPlan::new(vec![pair("a", "b")], 12, &[])?;
        assert_eq!(
            (plan.files[0].name.as_str(), &plan.index),
            ("model.safetensors", &None)
        );
        let empty = CheckpointPlan::new(vec![], 12, &[])?;
        assert_eq!(empty.files[0].prefix, b"\x08\0\0\0\0\0\0\0{}      ");
        Ok(())
    }

    #[test]
    fn names_outside_ascii_are_escaped_in_the_index_as_python_does_it() {
        let mut json = String::new();
        push_ascii_string(&mut json, "\u{e9}\u{1F600}\u{7f}\"\\\n~");
        assert_eq!(json, r#""\u00e9\ud83d\ude00\u007f\"\\\n~""#);
    }

    #[test]
    fn escapes_are_those_of_serde_json() {
        for char in (0..=0x2100).filter_map(char::from_u32) {
            let mut json = String::new();
            push_string(&mut json, char.encode_utf8(&mut [0; 4]));
            assert_eq!(json, serde_json::to_string(&char).unwrap());
        }
    }

    #[test]
    fn a_file_is_written_in_any_order_and_taken_up_again() -> Result<(), Box<dyn std::error::Error>>
    {
        let root = tempfile::tempdir()?;
        let path = root.path().join("out");
        std::fs::write(&path, vec![7; 500])?;
        let tensors = vec![tensor("a", Dtype::U8, &[4]), tensor("b", Dtype::U16, &[2])];
        let plan = FilePlan::new("out", tensors, &[])?;
        let writer = FileWriter::create(plan.clone(), OsDisk.open_file(&path, true)?)?;
        std::thread::scope(|scope| {
            scope.spawn(|| writer.write_at(1, 2, b"cd").unwrap());
            scope.spawn(|| writer.write_at(0, 0, b"xyzw").unwrap());
        });
        drop(writer);
        let writer = FileWriter::resume(plan.clone(), OsDisk.open_file(&path, false)?)?;
        writer.write_at(1, 0, b"ab")?;
        let mut out = [0; 4];
        writer.read_at(1, 0, &mut out)?;
        assert_eq!(&out, b"abcd");
        writer.seal()?;
        let bytes = std::fs::read(&path)?;
        assert_eq!(bytes[plan.prefix.len()..], *b"xyzwabcd");
        let other = FilePlan::new("out", vec![tensor("c", Dtype::U8, &[8])], &[])?;
        let outcome = FileWriter::resume(other, OsDisk.open_file(&path, false)?);
        assert_eq!(
            outcome.map(drop).map_err(|error| error.code()),
            Err("resume_mismatch")
        );
        Ok(())
    }

    #[test]
    #[should_panic(expected = "of tensor \"a\"")]
    fn writing_beyond_a_tensor_is_the_callers_bug() {
        let root = tempfile::tempdir().unwrap();
        let plan = FilePlan::new("out", vec![tensor("a", Dtype::U8, &[4])], &[]).unwrap();
        let file = OsDisk.open_file(&root.path().join("out"), true).unwrap();
        let writer = FileWriter::create(plan, file).unwrap();
        let _ = writer.write_at(0, 3, b"ab");
    }
}
