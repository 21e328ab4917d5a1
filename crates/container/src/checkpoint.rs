//! A named set of files: shards, index, and the documents beside them (specs/container/checkpoint.md).

mod members;
mod reading;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

pub use self::members::Members;
use self::reading::{ReadShard, open_shard, read_documents, read_index, read_shard};
use crate::gguf::split::{self, read_gguf_shard};
use crate::lookup::match_names;
use crate::paths::{Directory, INDEX_SUFFIX, Listing, WEIGHTS_SUFFIX, check_shard_name};
use crate::source::OpenFailure;
use crate::{
    BytesSource, Error, FileSource, GgufMetadata, Header, Index, Limits, ReadAt, TensorRef, gguf,
};

/// How a checkpoint was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckpointKind {
    /// One `.safetensors` file, or one GGUF model.
    File,
    /// A directory in the Hugging Face layout, with or without an index.
    Directory,
    /// An index file, and with it the directory around it.
    Index,
}

/// One safetensors or GGUF file of a checkpoint.
pub struct Shard {
    /// The file's name inside the checkpoint (a name, never a path).
    pub name: String,
    /// Its validated header.
    pub header: Header,
    /// Its bytes.
    pub source: Arc<dyn ReadAt>,
}

/// A file beside the weights that is neither a shard nor the index: configuration, tokenizer, license, README ...
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sidecar {
    /// Its name inside the checkpoint; sub-folders appear as `folder/name`.
    pub name: String,
    /// Its length in bytes.
    pub len_bytes: u64,
}

/// The index that is used if there are several.
const INDEX_NAME: &str = "model.safetensors.index.json";

/// The documents that belong to a single file: those that say how it is quantized.
const FILE_DOCUMENTS: &[&str] = &[
    "config.json",
    "quantize_config.json",
    "quant_config.json",
    "hf_quant_config.json",
    "generation_config.json",
];

/// An opened checkpoint: headers validated, index and shards in agreement, nothing of the data read.
///
/// Every shard keeps a file descriptor open.
pub struct Checkpoint {
    kind: CheckpointKind,
    name: String,
    limits: Limits,
    shards: Vec<Shard>,
    /// (shard, tensor in its header), by tensor name.
    by_name: Vec<(u32, u32)>,
    documents: BTreeMap<String, Vec<u8>>,
    sidecars: Vec<Sidecar>,
    directory: Option<Directory>,
    index: Option<Index>,
    unreferenced: Vec<String>,
}

impl Checkpoint {
    /// Opens a file, a directory or an index file (anything that ends in `.json`). A file is a GGUF file if its first bytes
    /// or its name say so; any part of a split model opens all of it.
    ///
    /// # Errors
    /// A named condition; the message carries file and tensor. Those of [`Header::read`] and of
    /// specs/container/checkpoint.md: `FileName`, `PathEscape`, `NotRegularFile`, `ShardMissing`, `TooManyShards`,
    /// `NoWeights`, `AmbiguousIndex`, `NoWeightMap`, `IndexMissingTensor`, `IndexWrongShard`, `TensorInTwoShards`,
    /// `DocumentTooLarge`, `TooManyEntries`, `Changed`, `Io`; those of specs/container/gguf.md: `Gguf*`, `OnlyGguf`.
    pub fn open(path: &Path, limits: &Limits) -> Result<Self, Error> {
        Self::open_with(path, limits, &mut Err)
    }

    /// As [`Checkpoint::open`], but goes on behind what is wrong: the shards, documents and index entries that are valid, and
    /// everything that stood in the way, in the order in which it was met. For reports; a checkpoint without any shard may
    /// come out. Whoever reads weights wants [`Checkpoint::open`].
    ///
    /// # Errors
    /// Where the system refuses to open the path itself, or what lies there is no checkpoint of any kind.
    pub fn survey(path: &Path, limits: &Limits) -> Result<(Self, Vec<Error>), Error> {
        let mut errors = Vec::new();
        let checkpoint = Self::open_with(path, limits, &mut |error| {
            errors.push(error);
            Ok(())
        })?;
        Ok((checkpoint, errors))
    }

    /// As [`Checkpoint::survey`] of a directory, or of the directory around an index, but all its `*.safetensors` are shards,
    /// whatever an index says: there is none then.
    ///
    /// # Errors
    /// As [`Checkpoint::survey`]; where the path is neither.
    pub fn survey_files(path: &Path, limits: &Limits) -> Result<(Self, Vec<Error>), Error> {
        let is_index = path.extension().is_some_and(|e| e == "json");
        let folder = if is_index { parent(path) } else { path };
        let directory = Directory::open(folder)?;
        let listing = directory.list()?;
        let shown = path.to_string_lossy();
        let kind = if is_index {
            CheckpointKind::Index
        } else {
            CheckpointKind::Directory
        };
        let mut errors = Vec::new();
        let mut fail = |error| {
            errors.push(error);
            Ok(())
        };
        let given = (kind, &*shown);
        let checkpoint = Self::open_listed(given, directory, listing, None, limits, &mut fail)?;
        Ok((checkpoint, errors))
    }

    fn open_with(path: &Path, limits: &Limits, fail: Fail<'_>) -> Result<Self, Error> {
        let shown = path.to_string_lossy();
        let status = std::fs::metadata(path).map_err(|error| Error::io(&shown, error))?;
        if status.is_dir() {
            return Self::open_directory(path, &shown, limits, fail);
        }
        if path
            .extension()
            .is_some_and(|extension| extension == "json")
        {
            return Self::open_index(path, &shown, limits, fail);
        }
        Self::open_single(path, &shown, limits, fail)
    }

    fn open_single(
        path: &Path,
        shown: &str,
        limits: &Limits,
        fail: Fail<'_>,
    ) -> Result<Self, Error> {
        let source = open_given(path, shown)?;
        let name = file_name(path);
        if name.ends_with(gguf::SUFFIX) || gguf::is_gguf(&source) {
            return Self::open_gguf(path, shown, source, limits);
        }
        let shard = kept(read_shard(name, shown, Arc::new(source), limits), fail)?;
        let directory = Directory::open(parent(path))?;
        let documents = read_documents(&directory, FILE_DOCUMENTS.iter().copied(), limits, fail)?;
        let shards = shard.into_iter().collect();
        let mut checkpoint =
            Self::assemble_with(CheckpointKind::File, shown, shards, None, limits, fail)?;
        checkpoint.documents = documents;
        Ok(checkpoint)
    }

    fn open_index(
        path: &Path,
        shown: &str,
        limits: &Limits,
        fail: Fail<'_>,
    ) -> Result<Self, Error> {
        let source = open_given(path, shown)?;
        let index = kept(read_index(&source, &file_name(path), shown, limits), fail)?;
        let directory = Directory::open(parent(path))?;
        let listing = directory.list()?;
        let kind = CheckpointKind::Index;
        Self::open_listed((kind, shown), directory, listing, index, limits, fail)
    }

    fn open_directory(
        path: &Path,
        shown: &str,
        limits: &Limits,
        fail: Fail<'_>,
    ) -> Result<Self, Error> {
        let directory = Directory::open(path)?;
        let listing = directory.list()?;
        let name = match listing.indexes.as_slice() {
            [] => None,
            [only] => Some(only.clone()),
            names if names.iter().any(|name| name == INDEX_NAME) => Some(INDEX_NAME.to_owned()),
            [first, second, ..] => {
                fail(Error::AmbiguousIndex {
                    directory: shown.to_owned(),
                    first: first.clone(),
                    second: second.clone(),
                })?;
                None
            }
        };
        let index = match name {
            None => None,
            Some(name) => {
                let read = directory
                    .open_file(&name)
                    .and_then(|source| read_index(&source, &name, &directory.show(&name), limits));
                kept(read, fail)?
            }
        };
        let kind = CheckpointKind::Directory;
        Self::open_listed((kind, shown), directory, listing, index, limits, fail)
    }

    /// The shards that the index names, or without an index all `*.safetensors`, and everything beside them.
    fn open_listed(
        (kind, shown): (CheckpointKind, &str),
        directory: Directory,
        listing: Listing,
        index: Option<Index>,
        limits: &Limits,
        fail: Fail<'_>,
    ) -> Result<Self, Error> {
        let names: Vec<String> = match &index {
            Some(index) => index.shard_names().into_iter().map(str::to_owned).collect(),
            None => listing.weights.clone(),
        };
        check_shard_count(shown, names.len(), limits)?;
        let mut shards = Vec::new();
        for name in names {
            let shard = open_shard(&directory, index.as_ref(), name, limits);
            shards.extend(kept(shard, fail)?);
        }
        if shards.is_empty() && listing.weights.is_empty() {
            let mut names = listing.sidecars.iter().map(|sidecar| &sidecar.name);
            let directory = shown.to_owned();
            fail(match names.find(|name| name.ends_with(gguf::SUFFIX)) {
                Some(name) => Error::OnlyGguf {
                    directory,
                    name: name.clone(),
                },
                None => Error::NoWeights { directory },
            })?;
        }
        let top = listing.sidecars.iter().map(|sidecar| sidecar.name.as_str());
        let is_document = |name: &&str| {
            is_document_name(name) && index.as_ref().is_none_or(|index| index.name != **name)
        };
        let documents = read_documents(&directory, top.filter(is_document), limits, fail)?;
        let mut checkpoint = Self::assemble_with(kind, shown, shards, index, limits, fail)?;
        let is_shard = |name: &String| {
            checkpoint
                .shards
                .binary_search_by(|shard| shard.name.as_str().cmp(name))
                .is_ok()
        };
        checkpoint.unreferenced = listing
            .weights
            .into_iter()
            .filter(|name| !is_shard(name))
            .collect();
        checkpoint.documents = documents;
        checkpoint.sidecars = listing.sidecars;
        if let Some(index) = &checkpoint.index {
            checkpoint
                .sidecars
                .retain(|sidecar| sidecar.name != index.name);
        }
        checkpoint.directory = Some(directory);
        Ok(checkpoint)
    }

    /// Builds a checkpoint from sources that are already open: tests, fuzzing, and remote stores.
    ///
    /// A document whose name ends in `.safetensors.index.json` is the index. Shards whose names end in `.gguf` are the
    /// parts of a GGUF model; there are no others beside them then.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn from_sources(
        name: &str,
        shards: Vec<(String, Arc<dyn ReadAt>)>,
        documents: BTreeMap<String, Vec<u8>>,
        limits: &Limits,
    ) -> Result<Self, Error> {
        Self::from_sources_with(name, shards, documents, limits, &mut Err)
    }

    /// As [`Checkpoint::survey`], from sources that are already open.
    ///
    /// # Errors
    /// Names of shards that no checkpoint can have, parts of a GGUF model that do not fit together.
    pub fn survey_sources(
        name: &str,
        shards: Vec<(String, Arc<dyn ReadAt>)>,
        documents: BTreeMap<String, Vec<u8>>,
        limits: &Limits,
    ) -> Result<(Self, Vec<Error>), Error> {
        let mut errors = Vec::new();
        let checkpoint = Self::from_sources_with(name, shards, documents, limits, &mut |error| {
            errors.push(error);
            Ok(())
        })?;
        Ok((checkpoint, errors))
    }

    fn from_sources_with(
        name: &str,
        shards: Vec<(String, Arc<dyn ReadAt>)>,
        mut documents: BTreeMap<String, Vec<u8>>,
        limits: &Limits,
        fail: Fail<'_>,
    ) -> Result<Self, Error> {
        check_shard_count(name, shards.len(), limits)?;
        let index_name = documents
            .keys()
            .find(|name| name.ends_with(INDEX_SUFFIX))
            .cloned();
        let index = match index_name.and_then(|name| documents.remove_entry(&name)) {
            Some((file, bytes)) => kept(Index::parse(&file, &file, &bytes, limits), fail)?,
            None => None,
        };
        if let Some(index) = &index {
            for shard in index.shard_names() {
                if shards.iter().all(|(file, _)| file != shard) {
                    fail(Error::ShardMissing {
                        file: index.name.clone(),
                        shard: shard.to_owned(),
                    })?;
                }
            }
        }
        let kind = match (shards.len(), &index) {
            (1, None) => CheckpointKind::File,
            (_, None | Some(_)) => CheckpointKind::Directory,
        };
        let mut opened = Vec::new();
        for (file, source) in shards {
            let (read, checked): (ReadShard, _) = match file.strip_suffix(gguf::SUFFIX) {
                Some(stem) => (read_gguf_shard, format!("{stem}{WEIGHTS_SUFFIX}")),
                None => (read_shard, file.clone()),
            };
            check_shard_name(name, &checked)?;
            opened.extend(kept(read(file.clone(), &file, source, limits), fail)?);
        }
        opened.sort_by(|a, b| a.name.cmp(&b.name));
        if opened.iter().any(|shard| shard.header.gguf.is_some()) {
            split::check(name, &opened)?;
        }
        if let Some(pair) = opened.windows(2).find(|pair| pair[0].name == pair[1].name) {
            let (file, name) = (name.to_owned(), pair[0].name.clone());
            return Err(Error::FileName {
                file,
                name,
                why: "occurs twice",
            });
        }
        let mut checkpoint = Self::assemble_with(kind, name, opened, index, limits, fail)?;
        checkpoint.sidecars = documents
            .iter()
            .map(|(name, bytes)| Sidecar {
                name: name.clone(),
                len_bytes: bytes.len() as u64,
            })
            .collect();
        checkpoint.documents = documents;
        Ok(checkpoint)
    }

    pub(crate) fn assemble(
        kind: CheckpointKind,
        name: &str,
        shards: Vec<Shard>,
        index: Option<Index>,
        limits: &Limits,
    ) -> Result<Self, Error> {
        Self::assemble_with(kind, name, shards, index, limits, &mut Err)
    }

    fn assemble_with(
        kind: CheckpointKind,
        name: &str,
        shards: Vec<Shard>,
        index: Option<Index>,
        limits: &Limits,
        fail: Fail<'_>,
    ) -> Result<Self, Error> {
        let by_name = match_names(name, &shards, index.as_ref(), fail)?;
        Ok(Self {
            kind,
            name: name.to_owned(),
            limits: limits.clone(),
            shards,
            by_name,
            documents: BTreeMap::new(),
            sidecars: Vec::new(),
            directory: None,
            index,
            unreferenced: Vec::new(),
        })
    }

    /// How the checkpoint was given.
    pub fn kind(&self) -> CheckpointKind {
        self.kind
    }

    /// The path or name it was opened under, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The limits it was opened with.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The shards, by file name.
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// The index, if there is one. It may leave tensors unlisted; every tensor that it lists is where it says.
    pub fn index(&self) -> Option<&Index> {
        self.index.as_ref()
    }

    /// The keys and values of a GGUF model (of its first part, if it is split); `None` for any other checkpoint.
    pub fn gguf(&self) -> Option<&GgufMetadata> {
        self.shards.first()?.header.gguf.as_deref()
    }

    /// Names of `*.safetensors` files in the directory that the index does not name; empty without an index.
    pub fn unreferenced(&self) -> &[String] {
        &self.unreferenced
    }

    /// Every tensor, by name (byte order). Where two shards have one name, the one that the index names is meant.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = TensorRef<'_>> {
        self.by_name.iter().map(|&place| self.at(place))
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<TensorRef<'_>> {
        let found = self.place(name)?;
        Some(self.at(self.by_name[found]))
    }

    /// The number of the tensor of this name in [`Checkpoint::tensors`].
    pub fn place(&self, name: &str) -> Option<usize> {
        let order = |&place: &_| self.at(place).info.name.as_bytes().cmp(name.as_bytes());
        self.by_name.binary_search_by(order).ok()
    }

    fn at(&self, (shard, tensor): (u32, u32)) -> TensorRef<'_> {
        let shard = &self.shards[shard as usize];
        TensorRef {
            shard,
            info: &shard.header.tensors[tensor as usize],
        }
    }

    /// A document beside the weights (`config.json`, `quantize_config.json`, `hf_quant_config.json` ...), if it is there.
    /// Only `*.json` files at the top are documents; the index is not one. A checkpoint opened as a single file has
    /// only those documents that say how it is quantized.
    pub fn document(&self, name: &str) -> Option<&[u8]> {
        self.documents.get(name).map(Vec::as_slice)
    }

    /// Every file beside the weights, by name, documents included; shards, index and our own manifest are not listed,
    /// nor hidden files and symlinks that leave the directory. Empty for a checkpoint opened as a single file.
    pub fn sidecars(&self) -> &[Sidecar] {
        &self.sidecars
    }

    /// Opens a sidecar for reading, under the same path rules as a shard.
    ///
    /// # Errors
    /// If it is gone or no longer a regular file inside the directory; `NoSuchSidecar` if it is not in the list.
    pub fn sidecar(&self, name: &str) -> Result<Arc<dyn ReadAt>, Error> {
        let listed = self.sidecars.iter().any(|sidecar| sidecar.name == name);
        match (listed, &self.directory, self.documents.get(name)) {
            (true, Some(directory), _) => Ok(Arc::new(directory.open_file(name)?)),
            (true, None, Some(bytes)) => Ok(Arc::new(BytesSource(bytes.as_slice().into()))),
            (_, _, _) => Err(Error::NoSuchSidecar {
                checkpoint: self.name.clone(),
                name: name.to_owned(),
            }),
        }
    }

    /// Whether every shard is still the file that was opened (P8).
    ///
    /// # Errors
    /// Names the first file that changed, and how.
    pub fn verify_unchanged(&self) -> Result<(), Error> {
        for shard in &self.shards {
            let changed = |source| Error::Changed {
                file: shard.name.clone(),
                source,
            };
            shard.source.verify_unchanged().map_err(changed)?;
        }
        Ok(())
    }
}

/// What is done about an error: it ends the work (`Err`), or it is noted and the work goes on.
pub(crate) type Fail<'a> = &'a mut dyn FnMut(Error) -> Result<(), Error>;

/// The value, or nothing where `fail` goes on without it.
fn kept<T>(result: Result<T, Error>, fail: Fail<'_>) -> Result<Option<T>, Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) => fail(error).map(|()| None),
    }
}

/// Whether a file at the top of the directory is a document.
fn is_document_name(name: &str) -> bool {
    name.strip_suffix(".json")
        .is_some_and(|stem| !stem.contains('/'))
}

pub(crate) fn file_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// The directory of a file given by the user, before symlinks are followed: that is where its companions are.
pub(crate) fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("."))
}

/// Opens a path given by the user.
fn open_given(path: &Path, shown: &str) -> Result<FileSource, Error> {
    FileSource::open_any(path).map_err(|failure| match failure {
        OpenFailure::Io(error) => Error::io(shown, error),
        OpenFailure::NotRegular(found) => Error::NotRegularFile {
            path: shown.to_owned(),
            found,
        },
    })
}

pub(crate) fn check_shard_count(file: &str, found: usize, limits: &Limits) -> Result<(), Error> {
    if found > limits.max_shards {
        let limit = limits.max_shards;
        return Err(Error::TooManyShards {
            file: file.to_owned(),
            found,
            limit,
        });
    }
    Ok(())
}
