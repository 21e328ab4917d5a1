//! What a convention may look at: names, dtypes, shapes, documents, and small descriptor tensors. Never weights.

use std::ops::Range;

use safequant_container::{Checkpoint, Members, TensorInfo};

use crate::Error;
use crate::config::{self, Settings};

/// Most bytes that [`Headers::sidecar`] reads: the largest tokenizers in use have a quarter of that.
pub const MAX_SIDECAR_BYTES: u64 = 128 << 20;

/// The evidence a convention binds from.
#[derive(Clone, Copy)]
pub struct Headers<'a> {
    checkpoint: &'a Checkpoint,
}

impl<'a> Headers<'a> {
    /// The evidence in a checkpoint.
    pub fn new(checkpoint: &'a Checkpoint) -> Self {
        Self { checkpoint }
    }

    /// What the header says of a tensor.
    pub fn tensor(self, name: &str) -> Option<&'a TensorInfo> {
        self.checkpoint.tensor(name).map(|t| t.info)
    }

    /// The tensors of a module, for whoever asks for several of them.
    pub fn members(self, module: &str) -> Members<'a> {
        self.checkpoint.members(module)
    }

    /// The number of the tensor of this name in [`Headers::tensors`].
    pub fn place(self, name: &str) -> Option<usize> {
        self.checkpoint.place(name)
    }

    /// Every tensor, by name.
    pub fn tensors(self) -> impl Iterator<Item = &'a TensorInfo> {
        self.checkpoint.tensors().map(|t| t.info)
    }

    /// A value of a shard's `__metadata__`; the first shard that has the key counts.
    pub fn metadata(self, key: &str) -> Option<&'a str> {
        let entries = self
            .checkpoint
            .shards()
            .iter()
            .filter_map(|s| s.header.metadata.as_ref());
        let mut values = entries.flatten().filter(|(k, _)| k == key);
        values.next().map(|(_, v)| v.as_str())
    }

    /// Every entry of the shards' `__metadata__`, shard after shard; a key comes once for every shard that has it.
    pub fn all_metadata(self) -> impl Iterator<Item = (&'a str, &'a str)> {
        let shards = self.checkpoint.shards().iter();
        shards
            .flat_map(|s| s.header.metadata.iter().flatten())
            .map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Bytes that [`Headers::descriptor`] and [`Headers::rectangle`] read at most.
    pub fn descriptor_limit(self) -> u64 {
        self.checkpoint.limits().max_descriptor_bytes
    }

    /// A few bytes of a larger tensor, seen as rows of `row_len` bytes: where the padding of a matrix begins, which nothing
    /// else in the file may say. At most [`Headers::descriptor_limit`] bytes.
    ///
    /// # Errors
    /// If there is no such tensor, the rectangle is too large or not in it, or it cannot be read.
    pub fn rectangle(
        self,
        name: &str,
        row_len: u64,
        rows: Range<u64>,
        columns: Range<u64>,
    ) -> Result<Vec<u8>, Error> {
        let missing = || Error::MissingPart {
            module: name.to_owned(),
            part: name.to_owned(),
        };
        let tensor = self.checkpoint.tensor(name).ok_or_else(missing)?;
        let n_rows = rows.end.saturating_sub(rows.start);
        let len = n_rows.saturating_mul(columns.end.saturating_sub(columns.start));
        let is_inside = columns.end <= row_len
            && rows.end.saturating_mul(row_len) <= tensor.info.len_bytes()
            && len <= self.descriptor_limit();
        let len = usize::try_from(len).ok().filter(|_| is_inside);
        let mut bytes = vec![0; len.ok_or_else(missing)?];
        tensor.read_rectangle(row_len, rows, columns, &mut bytes)?;
        Ok(bytes)
    }

    /// The keys and values of a GGUF model.
    pub fn gguf(self) -> Option<&'a safequant_container::GgufMetadata> {
        self.checkpoint.gguf()
    }

    /// A document beside the weights.
    pub fn document(self, name: &str) -> Option<&'a [u8]> {
        self.checkpoint.document(name)
    }

    /// A file beside the weights that need be no JSON (`tokenizer.model`), as a whole; `None` if there is none.
    ///
    /// # Errors
    /// If it has more than [`MAX_SIDECAR_BYTES`], or cannot be read.
    pub fn sidecar(self, name: &str) -> Result<Option<Vec<u8>>, Error> {
        let listed = self.checkpoint.sidecars().iter();
        let Some(sidecar) = listed.into_iter().find(|sidecar| sidecar.name == name) else {
            return Ok(None);
        };
        let too_large = |found: u64| Error::SidecarTooLarge {
            document: name.to_owned(),
            found,
            limit: MAX_SIDECAR_BYTES,
        };
        if sidecar.len_bytes > MAX_SIDECAR_BYTES {
            return Err(too_large(sidecar.len_bytes));
        }
        // It may have grown since it was listed.
        let source = self.checkpoint.sidecar(name)?;
        let found = source.len_bytes();
        let len = usize::try_from(found).ok();
        let len = len.filter(|_| found <= MAX_SIDECAR_BYTES);
        let len = len.ok_or_else(|| too_large(found))?;
        let mut bytes = vec![0; len];
        let read = source.read_exact_at(0, &mut bytes);
        read.map_err(|source| safequant_container::Error::Io {
            path: name.to_owned(),
            source,
        })?;
        Ok(Some(bytes))
    }

    /// The names of the files beside the weights in this folder (`additional_chat_templates`), in order.
    pub fn sidecars_in(self, folder: &str) -> impl Iterator<Item = &'a str> {
        let names = self.checkpoint.sidecars().iter().map(|s| s.name.as_str());
        let prefix = format!("{folder}/");
        names.filter(move |name| name.starts_with(&prefix))
    }

    /// The bytes of a descriptor tensor (a shape, a JSON text), at most `Limits::max_descriptor_bytes`.
    ///
    /// # Errors
    /// If there is no such tensor, it is too large, or it cannot be read.
    pub fn descriptor(self, name: &str) -> Result<Vec<u8>, Error> {
        let tensor = self
            .checkpoint
            .tensor(name)
            .ok_or_else(|| Error::MissingPart {
                module: name.to_owned(),
                part: name.to_owned(),
            })?;
        Ok(tensor.read_all(self.checkpoint.limits().max_descriptor_bytes)?)
    }

    /// The quantization settings that documents state, in the field's order of lookup: `quantize_config.json`,
    /// `quant_config.json`, `hf_quant_config.json`, and `config.json` (`quantization_config`, `compression_config`,
    /// `quantization`; at the top, one level deeper, or in a sub-model's configuration).
    ///
    /// # Errors
    /// If a document is no JSON (tolerantly: `NaN` and `Infinity` are read as null) or has a key twice.
    pub fn settings(self) -> Result<Vec<Settings>, Error> {
        config::find_settings(self)
    }

    /// The dtype that `config.json` gives for the dense model (`dtype`, `torch_dtype`; top level or `text_config`).
    ///
    /// # Errors
    /// As [`Headers::settings`].
    pub fn model_dtype(self) -> Result<Option<safequant_kernels::Float>, Error> {
        config::model_dtype(self)
    }
}
