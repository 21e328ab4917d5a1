//! The GGUF form (specs/imatrix.md, clauses 1 to 4).

use std::collections::BTreeMap;
use std::sync::Arc;

use safequant_container::{Checkpoint, Dtype, FileFormat, GgufValue, Limits, ReadAt, TensorRef};

use super::super::check::Subject;
use super::super::error::shown;
use super::super::{Error, names, values};
use super::{Counts, Entry, Imatrix};

/// The key that says what the file is, and what it says.
pub(super) const TYPE: &str = "general.type";
/// See [`TYPE`].
pub(super) const IMATRIX: &str = "imatrix";

/// Names of the texts.
pub(super) const DATASETS: &str = "imatrix.datasets";
/// How many chunks there were.
pub(super) const CHUNK_COUNT: &str = "imatrix.chunk_count";
/// Tokens of a chunk.
pub(super) const CHUNK_SIZE: &str = "imatrix.chunk_size";

/// What the name of a tensor of sums ends in.
pub(super) const SUMS: &str = ".in_sum2";
/// What the name of a tensor of counts ends in.
pub(super) const COUNTS: &str = ".counts";

/// The first float that no longer counts tokens one by one is far below; beyond this one not even F64 does.
const MAX_COUNT: f64 = 9_007_199_254_740_992.0;

impl Imatrix {
    pub(in super::super) fn open_gguf(
        file: &str,
        source: Arc<dyn ReadAt>,
        limits: &Limits,
    ) -> Result<Self, Error> {
        let name = format!("{IMATRIX}{}", FileFormat::Gguf.suffix());
        let shards = vec![(name, Arc::clone(&source))];
        let checkpoint = Checkpoint::from_sources(file, shards, BTreeMap::new(), limits)?;
        let metadata = checkpoint.gguf();
        let value = |key| metadata.and_then(|metadata| metadata.get(key));
        let kind = value(TYPE).and_then(GgufValue::as_str);
        if kind != Some(IMATRIX) {
            return Err(Error::Kind {
                file: file.to_owned(),
                expected: "an importance matrix (general.type: imatrix)",
                found: match kind {
                    Some(kind) => format!("general.type: {}", shown(kind)),
                    None => "a GGUF file without general.type".to_owned(),
                },
            });
        }
        let mut imatrix = Self {
            file: file.to_owned(),
            source,
            entries: BTreeMap::new(),
            datasets: value(DATASETS).map(texts).unwrap_or_default(),
            n_chunks: value(CHUNK_COUNT).and_then(GgufValue::as_u64),
            chunk_tokens: value(CHUNK_SIZE).and_then(GgufValue::as_u64),
        };
        imatrix.add_entries(&checkpoint)?;
        Ok(imatrix)
    }

    fn add_entries(&mut self, checkpoint: &Checkpoint) -> Result<(), Error> {
        for tensor in checkpoint.tensors() {
            if let Some(weight) = tensor.name().strip_suffix(COUNTS)
                && checkpoint.tensor(&format!("{weight}{SUMS}")).is_none()
            {
                return Err(self.layout(weight, "sums beside its counts", "none".to_owned()));
            }
            let Some(weight) = tensor.name().strip_suffix(SUMS) else {
                continue;
            };
            let counts = checkpoint.tensor(&format!("{weight}{COUNTS}"));
            let Some(counts) = counts else {
                return Err(self.layout(weight, "counts beside its sums", "none".to_owned()));
            };
            let entry = self.entry(weight, tensor, counts)?;
            let base = names::without_suffix(weight);
            if self.entries.insert(base.to_owned(), entry).is_some() {
                return Err(self.layout(weight, "each weight once", "it occurs twice".to_owned()));
            }
        }
        if self.entries.is_empty() {
            return Err(self.layout("the file", "tensors of sums and counts", "none".to_owned()));
        }
        Ok(())
    }

    fn entry(
        &self,
        weight: &str,
        sums: TensorRef<'_>,
        counts: TensorRef<'_>,
    ) -> Result<Entry, Error> {
        for tensor in [sums, counts] {
            if tensor.dtype() != Dtype::F32 {
                let found = tensor.dtype().name().to_owned();
                return Err(self.layout(tensor.name(), "F32", found));
            }
        }
        let (n_values, n_counts) = (sums.info.n_elements(), counts.info.n_elements());
        if n_values == 0 || n_counts == 0 || !n_values.is_multiple_of(n_counts) {
            let found = format!("{n_values} sums and {n_counts} counts");
            return Err(self.layout(weight, "sums for as many rows as there are counts", found));
        }
        Ok(Entry {
            counts: Counts::Tokens(self.counts(weight, counts)?),
            offset: sums.info.range.start,
            n_values,
        })
    }

    fn counts(&self, weight: &str, tensor: TensorRef<'_>) -> Result<Vec<u64>, Error> {
        let (offset, n) = (tensor.info.range.start, tensor.info.n_elements());
        let found = values::read(&self.file, self.source.as_ref(), offset, n)?;
        let subject = Subject {
            file: &self.file,
            module: weight,
        };
        subject.not_negative("counts", &found)?;
        let rounded = found.into_iter().map(|count| {
            let count = f64::from(count).round();
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "it was compared with 0 and 2^53"
            )]
            let whole = (count < MAX_COUNT).then_some(count as u64);
            whole.ok_or_else(|| Error::Value {
                file: self.file.clone(),
                module: weight.to_owned(),
                statistic: "counts",
                expected: "numbers below 2^53",
                found: count.to_string(),
            })
        });
        rounded.collect()
    }
}

/// The elements of a list of text; those that are no UTF-8 are shown as far as they are.
fn texts(value: GgufValue<'_>) -> Vec<String> {
    let GgufValue::Array(array) = value else {
        return Vec::new();
    };
    let text = |element| {
        let GgufValue::String(text) = element else {
            return None;
        };
        Some(String::from_utf8_lossy(text).into_owned())
    };
    array.iter().filter_map(text).collect()
}
