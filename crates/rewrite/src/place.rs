//! Where the result appears, where the work lies until then, and what must not be overwritten.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use safequant_container::{Checkpoint, CheckpointKind, Disk, Entry, FileFormat};

use crate::{Destination, Error};

/// What appears at the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OutputKind {
    /// A directory in the Hugging Face layout.
    Directory,
    /// One `.safetensors` or `.gguf` file, with its manifest beside it.
    File,
}

/// The paths of a job (specs/journal.md, clauses 1-3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) kind: OutputKind,
    pub(crate) destination: PathBuf,
    /// The directory that holds the destination.
    pub(crate) parent: PathBuf,
    /// The hidden sibling that holds the journal and `out`.
    pub(crate) work: PathBuf,
    /// What is renamed to the destination, or holds the file that is.
    pub(crate) out: PathBuf,
    /// The journal, which is the lock too.
    pub(crate) journal: PathBuf,
}

impl Place {
    /// The paths that go with a destination: a file if its name ends as those of the format do, else a directory. A
    /// safetensors file is written only where the source is one file, too: the documents of a directory would be lost.
    pub(crate) fn new(
        destination: &Path,
        source: CheckpointKind,
        format: FileFormat,
    ) -> Result<Self, Error> {
        let no_parent = || Error::NoParent {
            path: destination.display().to_string(),
        };
        let name = destination.file_name().ok_or_else(no_parent)?;
        let parent = match destination.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            Some(_) | None => PathBuf::from("."),
        };
        let claimed = FileFormat::of_name(&name.to_string_lossy());
        let kind = match (claimed, format, source) {
            (Some(FileFormat::Gguf), FileFormat::Gguf, _)
            | (Some(FileFormat::Safetensors), FileFormat::Safetensors, CheckpointKind::File) => {
                OutputKind::File
            }
            (None, _, _) | (Some(FileFormat::Safetensors), FileFormat::Safetensors, _) => {
                OutputKind::Directory
            }
            (Some(claimed), _, _) => {
                return Err(Error::DestinationFormat {
                    path: destination.display().to_string(),
                    claimed: claimed.suffix(),
                    written: format.suffix(),
                });
            }
        };
        let work = parent.join(with_name(".", name, ".safequant-partial"));
        Ok(Self {
            kind,
            destination: destination.to_owned(),
            parent,
            out: work.join("out"),
            journal: work.join("journal.jsonl"),
            work,
        })
    }

    /// The destination's own name.
    pub(crate) fn file_name(&self) -> String {
        let name = self.destination.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    /// Where the manifest of a single file appears.
    pub(crate) fn manifest_beside(&self) -> PathBuf {
        let name = self.destination.file_name().unwrap_or_default();
        self.parent.join(with_name("", name, ".manifest.json"))
    }

    /// Refuses a destination that is taken or that touches the source (P20).
    ///
    /// With [`Destination::Resume`] a taken destination is judged later, by the journal.
    pub(crate) fn check(
        &self,
        disk: &dyn Disk,
        checkpoint: &Checkpoint,
        mode: Destination,
    ) -> Result<(), Error> {
        let parent = resolve(disk, &self.parent)?.ok_or_else(|| Error::NoParent {
            path: self.destination.display().to_string(),
        })?;
        self.check_source(disk, checkpoint, &parent)?;
        match mode {
            Destination::New => self.check_free(disk),
            Destination::Replace => self.check_kind(disk),
            Destination::Resume => Ok(()),
        }
    }

    /// Refuses a destination that is, holds or lies inside what is read beside the source.
    pub(crate) fn check_apart(&self, disk: &dyn Disk, other: &Checkpoint) -> Result<(), Error> {
        match resolve(disk, &self.parent)? {
            Some(parent) => self.check_source(disk, other, &parent),
            None => Ok(()),
        }
    }

    fn check_source(
        &self,
        disk: &dyn Disk,
        checkpoint: &Checkpoint,
        parent: &Path,
    ) -> Result<(), Error> {
        // A checkpoint that was not opened by path has no place on this disk.
        let Some(given) = resolve(disk, Path::new(checkpoint.name()))? else {
            return Ok(());
        };
        let (source, is_directory) = match checkpoint.kind() {
            CheckpointKind::File => (given, false),
            CheckpointKind::Directory => (given, true),
            CheckpointKind::Index => (given.parent().map(Path::to_owned).unwrap_or(given), true),
        };
        let named = parent.join(self.destination.file_name().unwrap_or_default());
        let resolved = resolve(disk, &self.destination)?.unwrap_or_else(|| named.clone());
        for destination in [named, resolved] {
            let inside = is_directory && destination.starts_with(&source);
            if inside || source.starts_with(&destination) {
                return Err(Error::DestinationTouchesSource {
                    destination: self.destination.display().to_string(),
                    source_name: checkpoint.name().to_owned(),
                });
            }
        }
        Ok(())
    }

    /// Whether the destination does not exist, or is an empty directory where one is to appear.
    pub(crate) fn is_free(&self, disk: &dyn Disk) -> Result<bool, Error> {
        let path = &self.destination;
        let entry = disk
            .entry(path)
            .map_err(|e| Error::io(path, "examine", e))?;
        match (entry, self.kind) {
            (None, _) => Ok(true),
            (Some(Entry::Directory), OutputKind::Directory) => {
                let names = disk.list(path).map_err(|e| Error::io(path, "list", e))?;
                Ok(names.is_empty())
            }
            (Some(Entry::Directory | Entry::File(_) | Entry::Other), _) => Ok(false),
        }
    }

    /// Refuses a destination that exists.
    pub(crate) fn check_free(&self, disk: &dyn Disk) -> Result<(), Error> {
        if self.is_free(disk)? {
            return Ok(());
        }
        Err(Error::DestinationExists {
            path: self.destination.display().to_string(),
        })
    }

    /// Refuses to replace a thing by a thing of another kind.
    pub(crate) fn check_kind(&self, disk: &dyn Disk) -> Result<(), Error> {
        let path = &self.destination;
        let entry = disk
            .entry(path)
            .map_err(|e| Error::io(path, "examine", e))?;
        let found = match (entry, self.kind) {
            (None, _)
            | (Some(Entry::Directory), OutputKind::Directory)
            | (Some(Entry::File(_)), OutputKind::File) => return Ok(()),
            (Some(Entry::Directory), OutputKind::File) => "a directory",
            (Some(Entry::File(_)), OutputKind::Directory) => "a file",
            (Some(Entry::Other), _) => "neither a file nor a directory (a link, perhaps)",
        };
        let expected = match self.kind {
            OutputKind::Directory => "a directory",
            OutputKind::File => "a file",
        };
        Err(Error::DestinationKind {
            path: path.display().to_string(),
            found,
            expected,
        })
    }
}

/// A path without symlinks; `None` if nothing has that name.
fn resolve(disk: &dyn Disk, path: &Path) -> Result<Option<PathBuf>, Error> {
    match disk.canonicalize(path) {
        Ok(resolved) => Ok(Some(resolved)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io(path, "resolve", e)),
    }
}

fn with_name(before: &str, name: &std::ffi::OsStr, after: &str) -> OsString {
    let mut whole = OsString::from(before);
    whole.push(name);
    whole.push(after);
    whole
}
