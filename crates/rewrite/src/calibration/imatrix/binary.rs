//! The old binary form (specs/imatrix.md, clauses 5 to 9 and 13).

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use safequant_container::ReadAt;

use super::super::error::shown;
use super::super::{Error, names, values};
use super::{Counts, Entry, Imatrix};

/// The shortest entry: a name of one byte and one value.
const MIN_ENTRY_BYTES: u64 = 4 + 1 + 4 + 4 + 4;

/// Longest name; ggml allows 63 bytes.
const MAX_NAME_BYTES: u64 = 4096;

/// Longest path of a dataset that is kept.
const MAX_DATASET_BYTES: u64 = 1 << 16;

impl Imatrix {
    pub(in super::super) fn open_binary(
        file: &str,
        source: Arc<dyn ReadAt>,
    ) -> Result<Self, Error> {
        let mut cursor = Cursor {
            file,
            source: source.as_ref(),
            at: 0,
        };
        let n_entries = cursor.count("at least one entry, and room for all of them")?;
        let mut entries = BTreeMap::new();
        for _ in 0..n_entries {
            let start = cursor.at;
            let (name, entry) = cursor.entry()?;
            let base = names::without_suffix(&name).to_owned();
            if entries.insert(base, entry).is_some() {
                let found = format!("{} twice", shown(&name));
                return Err(cursor.wrong(start, "each name once", found));
            }
        }
        let (n_chunks, dataset) = cursor.trailer()?;
        Ok(Self {
            file: file.to_owned(),
            source,
            entries,
            datasets: dataset.into_iter().collect(),
            n_chunks,
            chunk_tokens: None,
        })
    }
}

/// A file, read from its start to its end; values are passed over.
struct Cursor<'a> {
    file: &'a str,
    source: &'a dyn ReadAt,
    at: u64,
}

impl Cursor<'_> {
    fn wrong(&self, offset: u64, expected: &'static str, found: String) -> Error {
        Error::Binary {
            file: self.file.to_owned(),
            offset,
            expected,
            found,
        }
    }

    fn left(&self) -> u64 {
        self.source.len_bytes().saturating_sub(self.at)
    }

    /// The next `n` bytes, which are few.
    fn take(&mut self, n: u64, what: &'static str) -> Result<Vec<u8>, Error> {
        if n > self.left() {
            let found = format!("{} bytes to the end of the file", self.left());
            return Err(self.wrong(self.at, what, found));
        }
        let len = usize::try_from(n).map_err(|_| Error::OutOfMemory {
            file: self.file.to_owned(),
            len_bytes: n,
        })?;
        let mut bytes = vec![0; len];
        let read = self.source.read_exact_at(self.at, &mut bytes);
        read.map_err(|e| Error::io(Path::new(self.file), "read the file", e))?;
        self.at = self.at.saturating_add(n);
        Ok(bytes)
    }

    fn i32(&mut self, what: &'static str) -> Result<i32, Error> {
        let bytes = self.take(4, what)?;
        Ok(i32::from_le_bytes(
            bytes.first_chunk().copied().unwrap_or_default(),
        ))
    }

    /// A number from 1 to `most`.
    fn length(&mut self, most: u64, what: &'static str) -> Result<u64, Error> {
        let start = self.at;
        let found = self.i32(what)?;
        match u64::try_from(found) {
            Ok(length) if (1..=most).contains(&length) => Ok(length),
            Ok(_) | Err(_) => Err(self.wrong(start, what, found.to_string())),
        }
    }

    fn count(&mut self, what: &'static str) -> Result<u64, Error> {
        self.length(self.source.len_bytes() / MIN_ENTRY_BYTES, what)
    }

    fn entry(&mut self) -> Result<(String, Entry), Error> {
        let most = MAX_NAME_BYTES.min(self.left());
        let length = self.length(most, "the length of a name, 1 to 4096 bytes")?;
        let start = self.at;
        let name = String::from_utf8(self.take(length, "a name")?);
        let name = name.map_err(|e| {
            let found = shown(&String::from_utf8_lossy(e.as_bytes()));
            self.wrong(start, "a name in UTF-8", found)
        })?;
        let start = self.at;
        let chunks = self.i32("the number of chunks")?;
        let chunks = u32::try_from(chunks).map_err(|_| {
            let found = format!("{chunks} for {}", shown(&name));
            self.wrong(start, "a number of chunks that is not negative", found)
        })?;
        let most = self.left() / values::VALUE_BYTES;
        let n_values = self.length(
            most,
            "the number of values, at least 1 and as many as follow",
        )?;
        let offset = self.at;
        let len_bytes = n_values.saturating_mul(values::VALUE_BYTES);
        if len_bytes > self.left() {
            let found = format!("{} bytes to the end of the file", self.left());
            return Err(self.wrong(offset, "the values of an entry", found));
        }
        self.at = offset.saturating_add(len_bytes);
        let counts = Counts::Chunks(chunks);
        Ok((
            name,
            Entry {
                counts,
                offset,
                n_values,
            },
        ))
    }

    /// The number of chunks and the dataset, if they are there. llama.cpp does not look behind them.
    fn trailer(&mut self) -> Result<(Option<u64>, Option<String>), Error> {
        if self.left() == 0 {
            return Ok((None, None));
        }
        let n_chunks = self.i32("the number of all chunks")?;
        let n_chunks = u64::try_from(n_chunks).ok();
        if self.left() == 0 {
            return Ok((n_chunks, None));
        }
        let start = self.at;
        let length = self.i32("the length of the dataset's name")?;
        let length = u64::try_from(length)
            .ok()
            .filter(|&n| n <= MAX_DATASET_BYTES.min(self.left()));
        let length = length.ok_or_else(|| {
            let expected = "the length of the dataset's name, which follows";
            self.wrong(start, expected, "another number".to_owned())
        })?;
        let dataset = self.take(length, "the dataset's name")?;
        let dataset = String::from_utf8_lossy(&dataset).into_owned();
        Ok((n_chunks, Some(dataset).filter(|name| !name.is_empty())))
    }
}
