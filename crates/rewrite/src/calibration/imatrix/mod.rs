//! llama.cpp's importance matrix: sums of squared inputs, in two forms (specs/imatrix.md).

mod binary;
mod gguf;
mod write;

use std::collections::BTreeMap;
use std::sync::Arc;

use safequant_container::ReadAt;

pub use write::{ImatrixForm, ImatrixModule, ImatrixOptions, write};

use super::check::Subject;
use super::names::{self, Stored};
use super::{Detail, Error, Module, SecondMoment, Statistics, values};

/// An importance matrix, its layout validated.
pub(super) struct Imatrix {
    file: String,
    source: Arc<dyn ReadAt>,
    /// By the name of the weight in GGUF, without `.weight`.
    entries: BTreeMap<String, Entry>,
    datasets: Vec<String>,
    n_chunks: Option<u64>,
    chunk_tokens: Option<u64>,
}

/// What the file has about one weight of a GGUF model.
struct Entry {
    counts: Counts,
    /// Where its values begin in the file; F32, the matrices of a stack one after the other.
    offset: u64,
    /// How many values there are; at least 1.
    n_values: u64,
}

/// What the sums are of.
enum Counts {
    /// Tokens, for each matrix; at least one number.
    Tokens(Vec<u64>),
    /// Chunks of an unknown number of tokens; how many matrices there are is unknown too.
    Chunks(u32),
}

impl Entry {
    /// How many matrices there are, if the file says it.
    fn n_matrices(&self) -> Option<u64> {
        match &self.counts {
            Counts::Tokens(counts) => Some(counts.len() as u64),
            Counts::Chunks(_) => None,
        }
    }

    fn tokens(&self, matrix: u64) -> Option<u64> {
        match &self.counts {
            // One count stands for all matrices of a stack that each token went through.
            Counts::Tokens(counts) if counts.len() == 1 => counts.first().copied(),
            Counts::Tokens(counts) => counts.get(usize::try_from(matrix).ok()?).copied(),
            Counts::Chunks(_) => None,
        }
    }

    /// What is known of a matrix without reading it.
    fn module(&self, name: String, matrix: Option<u64>) -> Module {
        let in_features = self.n_matrices();
        let in_features = in_features.and_then(|n| self.n_values.checked_div(n));
        Module {
            owner: name.clone(),
            name,
            in_features,
            n_values: in_features.unwrap_or(self.n_values),
            token_count: self.tokens(matrix.unwrap_or(0)),
            detail: Detail::Diagonal,
        }
    }
}

impl Imatrix {
    pub(super) fn file(&self) -> &str {
        &self.file
    }

    pub(super) fn modules(&self) -> impl Iterator<Item = Module> {
        self.entries.iter().flat_map(|(base, entry)| {
            let n_matrices = match entry.n_matrices() {
                Some(n) if n > 1 || names::is_stack(base) => Some(n),
                Some(_) | None => None,
            };
            let matrices: Box<dyn Iterator<Item = Option<u64>>> = match n_matrices {
                Some(n) => Box::new((0..n).map(Some)),
                None => Box::new(std::iter::once(None)),
            };
            matrices.map(|matrix| entry.module(names::listed(base, matrix), matrix))
        })
    }

    pub(super) fn module(&self, name: &str) -> Option<Module> {
        let (entry, matrix) = self.find(name)?;
        if let (Some(matrix), Some(n)) = (matrix, entry.n_matrices())
            && matrix >= n
        {
            return None;
        }
        let mut module = entry.module(name.to_owned(), matrix);
        if matrix.is_none() && entry.n_matrices().is_some_and(|n| n > 1) {
            // The name of a whole stack: of which member would the count be?
            module.token_count = None;
        }
        Some(module)
    }

    /// What is known of one matrix of the stack that `name` is.
    pub(super) fn expert_module(&self, name: &str, expert: u64) -> Option<Module> {
        let (entry, named) = self.find(name)?;
        if named.is_some() || entry.n_matrices().is_some_and(|n| n > 1 && expert >= n) {
            return None;
        }
        let mut module = entry.module(name.to_owned(), Some(expert));
        module.owner = format!("{name}.{expert}");
        Some(module)
    }

    /// The entry of a module, and which matrix of a stack it is.
    fn find(&self, name: &str) -> Option<(&Entry, Option<u64>)> {
        let name = names::without_suffix(name);
        if let Some(entry) = self.entries.get(name) {
            return Some((entry, None));
        }
        if let Some(Stored { base, expert }) = names::stored(name) {
            return self.entries.get(&base).map(|entry| (entry, expert));
        }
        let (base, matrix) = names::numbered(name)?;
        let entry = self.entries.get(base)?;
        Some((entry, Some(matrix)))
    }

    /// `matrix`: which one of the stack that `name` is.
    pub(super) fn statistics(
        &self,
        name: &str,
        matrix: Option<u64>,
        in_features: u64,
    ) -> Result<Option<Statistics>, Error> {
        let found = self.find(name);
        let Some((entry, named)) = found else {
            return Ok(None);
        };
        let width = |found| Error::Width {
            file: self.file.clone(),
            module: name.to_owned(),
            expected: in_features,
            found,
        };
        if in_features == 0 || !entry.n_values.is_multiple_of(in_features) {
            return Err(width(entry.n_values));
        }
        // How many matrices of this width the values are.
        let n_matrices = entry.n_values / in_features;
        match (entry.n_matrices(), named.or(matrix)) {
            (Some(n), _) if n > 1 && n != n_matrices => return Err(width(entry.n_values / n)),
            (_, None) if n_matrices > 1 => return Err(width(entry.n_values)),
            (_, Some(matrix)) if matrix >= n_matrices => return Ok(None),
            (_, _) => {}
        }
        let matrix = named.or(matrix).unwrap_or(0);
        self.read(name, entry, matrix, in_features).map(Some)
    }

    fn read(
        &self,
        name: &str,
        entry: &Entry,
        matrix: u64,
        in_features: u64,
    ) -> Result<Statistics, Error> {
        let token_count = entry.tokens(matrix);
        if token_count == Some(0) {
            return Ok(Statistics::of_nothing(in_features));
        }
        // Within the entry, which lies within the file.
        let skipped = matrix
            .saturating_mul(in_features)
            .saturating_mul(values::VALUE_BYTES);
        let offset = entry.offset.saturating_add(skipped);
        let mut sums = values::read(&self.file, self.source.as_ref(), offset, in_features)?;
        let subject = Subject {
            file: &self.file,
            module: name,
        };
        subject.not_negative("in_sum2", &sums)?;
        if let Some(divisor) = divisor(entry, token_count) {
            for sum in &mut sums {
                *sum /= divisor;
            }
        }
        Ok(Statistics {
            in_features: sums.len(),
            token_count,
            second_moment: SecondMoment::Diagonal(sums),
            mean_abs: None,
            mean: None,
        })
    }

    pub(super) fn provenance(&self) -> Vec<(String, String)> {
        let mut found: Vec<(String, String)> = Vec::new();
        for dataset in &self.datasets {
            found.push((gguf::DATASETS.to_owned(), dataset.clone()));
        }
        for (key, value) in [
            (gguf::CHUNK_COUNT, self.n_chunks),
            (gguf::CHUNK_SIZE, self.chunk_tokens),
        ] {
            if let Some(value) = value {
                found.push((key.to_owned(), value.to_string()));
            }
        }
        found
    }

    fn layout(&self, entry: &str, expected: &str, found: String) -> Error {
        Error::Layout {
            file: self.file.clone(),
            tensor: entry.to_owned(),
            expected: expected.to_owned(),
            found,
        }
    }
}

/// What sums are divided by to be means, in F32 as llama-quantize divides; `None` where they are taken as they are.
fn divisor(entry: &Entry, token_count: Option<u64>) -> Option<f32> {
    let count = match &entry.counts {
        Counts::Tokens(_) => token_count?,
        Counts::Chunks(0) => return None,
        Counts::Chunks(chunks) => u64::from(*chunks),
    };
    #[expect(
        clippy::cast_precision_loss,
        reason = "llama.cpp rounds counts above 2^24 likewise"
    )]
    Some(count as f32)
}
