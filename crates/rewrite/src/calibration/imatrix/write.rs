//! Writes an importance matrix in either form (specs/imatrix.md, clauses 15 to 18).

use std::collections::BTreeMap;
use std::path::Path;

use safequant_container::{
    Disk, Dtype, GgmlType, GgufMetadata, GgufTensor, GgufValue, write_gguf_header,
};

use super::super::Error;
use super::super::names::{self, Stored};
use super::gguf;

/// The form of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ImatrixForm {
    /// GGUF.
    Gguf,
    /// The old binary form.
    Binary,
}

/// What stands in a file beside the values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImatrixOptions {
    /// The form.
    pub form: ImatrixForm,
    /// Names of the texts.
    pub datasets: Vec<String>,
    /// Tokens of a chunk; 0 is taken for 1.
    pub chunk_tokens: u32,
}

/// What is written about one module.
#[derive(Clone, Debug, PartialEq)]
pub struct ImatrixModule {
    /// The module, by its name in the model or in GGUF (without `.weight`).
    pub name: String,
    /// The tokens that it saw.
    pub token_count: u64,
    /// The mean of `x^2`, `[in_features]`.
    pub mean_squares: Vec<f32>,
}

/// The matrices of one weight in GGUF.
struct Stack<'m> {
    /// By number; 0 alone for what is no stack.
    members: BTreeMap<u64, &'m ImatrixModule>,
    width: usize,
}

impl Stack<'_> {
    /// How many matrices are written: one more than the largest number.
    fn n_matrices(&self) -> u64 {
        self.members
            .keys()
            .last()
            .map_or(0, |&last| last.saturating_add(1))
    }

    fn counts(&self) -> impl Iterator<Item = u64> {
        (0..self.n_matrices()).map(|at| self.members.get(&at).map_or(0, |m| m.token_count))
    }
}

/// Most matrices of a stack; models have hundreds.
const MAX_MATRICES: u64 = 1 << 16;

/// Writes a file: under a temporary name, made durable, then renamed.
///
/// # Errors
/// `Unwritable` for modules that no file can hold: two of one name, experts of different widths, a name that is too long, values
/// that are negative or not finite, or none at all; `Io`; those of the container.
pub fn write(
    disk: &dyn Disk,
    path: &Path,
    modules: &[ImatrixModule],
    options: &ImatrixOptions,
) -> Result<(), Error> {
    let file = path.display().to_string();
    let stacks = stacks(&file, modules)?;
    let bytes = match options.form {
        ImatrixForm::Gguf => gguf_bytes(&file, &stacks, options)?,
        ImatrixForm::Binary => binary_bytes(&file, &stacks, options)?,
    };
    publish(disk, path, &bytes)
}

fn unwritable(file: &str, module: &str, reason: impl Into<String>) -> Error {
    Error::Unwritable {
        file: file.to_owned(),
        module: module.to_owned(),
        reason: reason.into(),
    }
}

/// The modules by the names of their weights in GGUF, with `.weight`.
fn stacks<'m>(
    file: &str,
    modules: &'m [ImatrixModule],
) -> Result<BTreeMap<String, Stack<'m>>, Error> {
    let mut stacks: BTreeMap<String, Stack<'m>> = BTreeMap::new();
    for module in modules {
        let wrong = |reason: &str| Err(unwritable(file, &module.name, reason));
        let (name, number) = place_of(&module.name);
        let width = module.mean_squares.len();
        if width == 0
            || module
                .mean_squares
                .iter()
                .any(|v| !v.is_finite() || *v < 0.0)
        {
            return wrong("its mean squares must be finite numbers, none of them negative");
        }
        if number >= MAX_MATRICES {
            return wrong("its number within a stack is too large");
        }
        let members = BTreeMap::new();
        let stack = stacks.entry(name).or_insert(Stack { members, width });
        if stack.width != width {
            return wrong("the experts of a stack must have one number of input features");
        }
        if stack.members.insert(number, module).is_some() {
            return wrong("another module has the same name in GGUF");
        }
    }
    if stacks.is_empty() {
        return Err(unwritable(
            file,
            "a file without modules",
            "llama.cpp reads none",
        ));
    }
    Ok(stacks)
}

/// The name of the weight in GGUF, and which matrix of it a module is.
fn place_of(module: &str) -> (String, u64) {
    let module = names::without_suffix(module);
    let stored = names::stored(module).or_else(|| {
        let (base, number) = names::numbered(module)?;
        names::is_stack(base).then(|| Stored {
            base: base.to_owned(),
            expert: Some(number),
        })
    });
    match stored {
        Some(Stored { base, expert }) => (format!("{base}.weight"), expert.unwrap_or(0)),
        None => (format!("{module}.weight"), 0),
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "llama.cpp stores counts as F32 likewise"
)]
fn float(count: u64) -> f32 {
    count as f32
}

fn largest(stacks: &BTreeMap<String, Stack<'_>>) -> u64 {
    stacks.values().flat_map(Stack::counts).max().unwrap_or(0)
}

fn gguf_bytes(
    file: &str,
    stacks: &BTreeMap<String, Stack<'_>>,
    options: &ImatrixOptions,
) -> Result<Vec<u8>, Error> {
    let chunk_tokens = options.chunk_tokens.max(1);
    let n_chunks = (largest(stacks) / u64::from(chunk_tokens)).max(1);
    let mut metadata = GgufMetadata::new();
    metadata.push(gguf::TYPE, GgufValue::String(gguf::IMATRIX.as_bytes()));
    let datasets = options.datasets.iter().map(String::as_bytes);
    metadata.push_strings(gguf::DATASETS, datasets);
    let n_chunks = u32::try_from(n_chunks).unwrap_or(u32::MAX);
    metadata.push(gguf::CHUNK_COUNT, GgufValue::U32(n_chunks));
    metadata.push(gguf::CHUNK_SIZE, GgufValue::U32(chunk_tokens));
    let tensors: Vec<GgufTensor> = stacks
        .iter()
        .flat_map(|(name, stack)| {
            let tensor = |suffix, width| GgufTensor {
                name: format!("{name}{suffix}"),
                shape: shape(stack.n_matrices(), width),
                ggml_type: GgmlType::Dense(Dtype::F32),
            };
            [
                tensor(gguf::SUMS, stack.width as u64),
                tensor(gguf::COUNTS, 1),
            ]
        })
        .collect();
    let (mut bytes, header) = write_gguf_header(file, &metadata, &tensors)?;
    let data = stacks
        .values()
        .flat_map(|stack| [sums(stack), counts(stack)]);
    for (tensor, values) in header.tensors.iter().zip(data) {
        let start = usize::try_from(tensor.range.start).unwrap_or(usize::MAX);
        bytes.resize(bytes.len().max(start), 0);
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }
    let padded = bytes.len() as u64;
    let padded = padded.next_multiple_of(metadata.alignment());
    bytes.resize(usize::try_from(padded).unwrap_or(bytes.len()), 0);
    Ok(bytes)
}

/// ggml leaves out outer dimensions of 1.
fn shape(n_matrices: u64, width: u64) -> Vec<u64> {
    match n_matrices {
        1 => vec![width],
        n => vec![n, width],
    }
}

fn sums(stack: &Stack<'_>) -> Vec<f32> {
    let mut values = Vec::new();
    for number in 0..stack.n_matrices() {
        match stack.members.get(&number) {
            Some(module) => {
                let count = float(module.token_count);
                values.extend(module.mean_squares.iter().map(|square| square * count));
            }
            None => values.resize(values.len().saturating_add(stack.width), 0.0),
        }
    }
    values
}

fn counts(stack: &Stack<'_>) -> Vec<f32> {
    stack.counts().map(float).collect()
}

fn binary_bytes(
    file: &str,
    stacks: &BTreeMap<String, Stack<'_>>,
    options: &ImatrixOptions,
) -> Result<Vec<u8>, Error> {
    let chunk_tokens = u64::from(options.chunk_tokens.max(1));
    let number = |name: &str, n: u64| {
        let n = i32::try_from(n);
        n.map_err(|_| unwritable(file, name, "the binary form counts in 32 bits"))
    };
    let seen: Vec<(&String, &Stack<'_>)> = stacks
        .iter()
        .filter(|(_, stack)| stack.counts().any(|count| count > 0))
        .collect();
    if seen.is_empty() {
        return Err(unwritable(
            file,
            "a file without tokens",
            "llama.cpp reads none",
        ));
    }
    let mut bytes = Vec::new();
    let mut push = |n: i32| bytes.extend_from_slice(&n.to_le_bytes());
    push(number("the file", seen.len() as u64)?);
    for (name, stack) in seen {
        let chunks = stack.counts().max().unwrap_or(0).div_ceil(chunk_tokens);
        let values = scaled(stack, float(chunks));
        bytes.extend_from_slice(&number(name, name.len() as u64)?.to_le_bytes());
        bytes.extend_from_slice(name.as_bytes());
        bytes.extend_from_slice(&number(name, chunks)?.to_le_bytes());
        bytes.extend_from_slice(&number(name, values.len() as u64)?.to_le_bytes());
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }
    let n_chunks = (largest(stacks) / chunk_tokens).max(1);
    bytes.extend_from_slice(&number("the file", n_chunks)?.to_le_bytes());
    let dataset = options.datasets.last().map_or("", String::as_str);
    bytes.extend_from_slice(&number("the dataset", dataset.len() as u64)?.to_le_bytes());
    bytes.extend_from_slice(dataset.as_bytes());
    Ok(bytes)
}

/// Mean squares times the number of chunks; ones for what saw no token.
fn scaled(stack: &Stack<'_>, chunks: f32) -> Vec<f32> {
    let mut values = Vec::new();
    for number in 0..stack.n_matrices() {
        let seen = stack.members.get(&number).filter(|m| m.token_count > 0);
        match seen {
            Some(module) => values.extend(module.mean_squares.iter().map(|m| m * chunks)),
            None => values.resize(values.len().saturating_add(stack.width), chunks),
        }
    }
    values
}

fn publish(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let failed = |e| Error::io(path, "write the file", e);
    let name = path
        .file_name()
        .ok_or_else(|| failed(std::io::ErrorKind::InvalidInput.into()))?;
    let partial = path.with_file_name(format!(".{}.safequant-partial", name.to_string_lossy()));
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    };
    let written = disk.open_file(&partial, true).and_then(|file| {
        file.set_len(bytes.len() as u64)?;
        file.write_all_at(0, bytes)?;
        file.sync()
    });
    let moved = written.and_then(|()| disk.rename(&partial, path));
    if let Err(error) = moved {
        // Nothing half-written stays; if that fails too, the first failure is the one to tell.
        let _ = disk.remove_file(&partial);
        return Err(failed(error));
    }
    disk.sync_dir(parent).map_err(failed)
}
