//! Names of files inside a checkpoint: names, not paths (specs/container/checkpoint.md, clauses P1-P6).
//!
//! A name is checked as text first, and then the *opened* object is checked: string tests alone were bypassed three
//! times in four years elsewhere. The directory is opened once; everything inside is opened relative to it with
//! `openat2(RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS)`, without which (old kernels, other systems) the canonical path is
//! compared instead.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::source::{OpenFailure, READ_FLAGS};
use crate::{Error, FileSource, Sidecar};

/// How the name of a weight file ends.
pub(crate) const WEIGHTS_SUFFIX: &str = ".safetensors";

/// How the name of an index ends.
pub(crate) const INDEX_SUFFIX: &str = ".safetensors.index.json";

/// Most files, and deepest folders, that travel along with the weights.
const MAX_ENTRIES: usize = 100_000;
const MAX_FOLDER_DEPTH: usize = 8;

/// Checks the name of a shard as text; `file` is the index or directory that has it.
pub(crate) fn check_shard_name(file: &str, name: &str) -> Result<(), Error> {
    let why = if name.is_empty() {
        "is empty"
    } else if name.len() > 1024 {
        "is longer than 1024 bytes"
    } else if name.chars().any(char::is_control) {
        "has a control character"
    } else if name.contains(['/', '\\', ':']) {
        "is a path: `/`, `\\` and `:` are not allowed"
    } else if !name.ends_with(WEIGHTS_SUFFIX) {
        "does not end in .safetensors"
    } else {
        return Ok(());
    };
    Err(Error::FileName {
        file: file.to_owned(),
        name: name.to_owned(),
        why,
    })
}

/// Why a file inside the directory could not be opened.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// It resolves to something outside.
    Escape,
    /// Anything else.
    Open(OpenFailure),
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        Refusal::Open(errno.into())
    }
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Refusal::Open(OpenFailure::Io(error))
    }
}

impl Refusal {
    /// Whether nothing has that name.
    pub(crate) fn is_missing(&self) -> bool {
        match self {
            Refusal::Open(OpenFailure::Io(error)) => error.kind() == io::ErrorKind::NotFound,
            Refusal::Open(OpenFailure::NotRegular(_)) | Refusal::Escape => false,
        }
    }
}

/// The directory of a checkpoint, opened once.
pub(crate) struct Directory {
    fd: Arc<OwnedFd>,
    /// As the user wrote it.
    pub(crate) shown: String,
    /// Canonical.
    real: PathBuf,
    /// The Hub cache's `blobs` folder, if the directory is one of its snapshots.
    blobs: Option<PathBuf>,
}

/// What a directory holds, sorted by name.
#[derive(Default)]
pub(crate) struct Listing {
    /// Names of `*.safetensors`, at the top.
    pub(crate) weights: Vec<String>,
    /// Names of `*.safetensors.index.json`, at the top.
    pub(crate) indexes: Vec<String>,
    /// Everything else.
    pub(crate) sidecars: Vec<Sidecar>,
}

impl Directory {
    /// Opens a directory given by the user (it may be a symlink).
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        let shown = path.to_string_lossy().into_owned();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(CWD, path, flags, Mode::empty())
            .map_err(|errno| Error::io(&shown, errno.into()))?;
        let real = path
            .canonicalize()
            .map_err(|error| Error::io(&shown, error))?;
        let blobs = hub_blobs(&real);
        Ok(Self {
            fd: Arc::new(fd),
            shown,
            real,
            blobs,
        })
    }

    /// The name of a file of this directory, for messages.
    pub(crate) fn show(&self, name: &str) -> String {
        Path::new(&self.shown)
            .join(name)
            .to_string_lossy()
            .into_owned()
    }

    /// Opens a regular file inside the directory for reading.
    pub(crate) fn open_file(&self, name: &str) -> Result<FileSource, Error> {
        self.try_open_file(name)
            .map_err(|refusal| self.error(name, refusal))
    }

    /// The error for a file of this directory that could not be opened.
    pub(crate) fn error(&self, name: &str, refusal: Refusal) -> Error {
        match refusal {
            Refusal::Escape => Error::PathEscape {
                directory: self.shown.clone(),
                name: name.to_owned(),
            },
            Refusal::Open(OpenFailure::Io(error)) => Error::io(&self.show(name), error),
            Refusal::Open(OpenFailure::NotRegular(found)) => Error::NotRegularFile {
                path: self.show(name),
                found,
            },
        }
    }

    /// As [`Directory::open_file`], telling the reasons apart.
    pub(crate) fn try_open_file(&self, name: &str) -> Result<FileSource, Refusal> {
        let fd = match open_beneath(&self.fd, name) {
            Ok(fd) => fd,
            // It leaves the directory, or passes through a magic link: only the Hub cache may.
            Err(Errno::XDEV | Errno::LOOP) => self.open_blob(&self.canonical(name)?)?,
            Err(Errno::NOSYS) => self.open_by_path(name)?,
            Err(errno) => return Err(errno.into()),
        };
        FileSource::beneath(fd, Arc::clone(&self.fd), Path::new(name)).map_err(Refusal::Open)
    }

    fn canonical(&self, name: &str) -> Result<PathBuf, Refusal> {
        Ok(self.real.join(name).canonicalize()?)
    }

    /// Without `openat2`: the canonical path must lie inside, and must still be the opened object afterwards.
    fn open_by_path(&self, name: &str) -> Result<OwnedFd, Refusal> {
        let path = self.canonical(name)?;
        if !path.starts_with(&self.real) {
            return self.open_blob(&path);
        }
        let flags = READ_FLAGS | OFlags::NOFOLLOW;
        let fd = rustix::fs::openat(CWD, &path, flags, Mode::empty())?;
        let opened = rustix::fs::fstat(&fd)?;
        let named = rustix::fs::statat(CWD, &path, AtFlags::SYMLINK_NOFOLLOW)?;
        let same = (opened.st_dev, opened.st_ino) == (named.st_dev, named.st_ino);
        if !same || self.canonical(name)? != path {
            return Err(Refusal::Escape);
        }
        Ok(fd)
    }

    /// Opens a file directly inside the Hub cache's `blobs`, and nothing else.
    fn open_blob(&self, path: &Path) -> Result<OwnedFd, Refusal> {
        let (Some(blobs), Some(name)) = (&self.blobs, path.file_name()) else {
            return Err(Refusal::Escape);
        };
        if path.parent() != Some(blobs) {
            return Err(Refusal::Escape);
        }
        let folder_flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let folder = rustix::fs::openat(CWD, blobs, folder_flags, Mode::empty())?;
        Ok(rustix::fs::openat(
            folder,
            name,
            READ_FLAGS | OFlags::NOFOLLOW,
            Mode::empty(),
        )?)
    }

    /// Everything in the directory and its folders but hidden files and links that leave it.
    pub(crate) fn list(&self) -> Result<Listing, Error> {
        let mut listing = Listing::default();
        self.walk(&self.fd, "", 0, &mut listing)?;
        listing.weights.sort_unstable();
        listing.indexes.sort_unstable();
        listing
            .sidecars
            .sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(listing)
    }

    fn walk(
        &self,
        folder: &OwnedFd,
        prefix: &str,
        depth: usize,
        listing: &mut Listing,
    ) -> Result<(), Error> {
        let limit = |what, limit| Error::TooManyEntries {
            directory: self.shown.clone(),
            what,
            limit,
        };
        let io_error = |errno: Errno| Error::io(&self.show(prefix), errno.into());
        if depth > MAX_FOLDER_DEPTH {
            return Err(limit("levels of folders", MAX_FOLDER_DEPTH));
        }
        for entry in Dir::read_from(folder).map_err(io_error)? {
            let entry = entry.map_err(io_error)?;
            let bytes = entry.file_name().to_bytes();
            if bytes.starts_with(b".") {
                continue;
            }
            let name = std::str::from_utf8(bytes).map_err(|_| Error::FileName {
                file: self.show(prefix),
                name: String::from_utf8_lossy(bytes).into_owned(),
                why: "is not UTF-8",
            })?;
            if listing.weights.len() + listing.sidecars.len() >= MAX_ENTRIES {
                return Err(limit("files", MAX_ENTRIES));
            }
            self.take_entry(folder, prefix, name, depth, listing)?;
        }
        Ok(())
    }

    fn take_entry(
        &self,
        folder: &OwnedFd,
        prefix: &str,
        name: &str,
        depth: usize,
        listing: &mut Listing,
    ) -> Result<(), Error> {
        let full = format!("{prefix}{name}");
        let io_error = |errno: Errno| Error::io(&self.show(&full), errno.into());
        let stat = match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(()), // removed since it was listed
            stat => stat.map_err(io_error)?,
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Directory {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let inner = rustix::fs::openat(folder, name, flags, Mode::empty()).map_err(io_error)?;
            return self.walk(&inner, &format!("{full}/"), depth + 1, listing);
        }
        if name.ends_with(WEIGHTS_SUFFIX) || name.ends_with(INDEX_SUFFIX) {
            match (depth, name.ends_with(WEIGHTS_SUFFIX)) {
                (0, true) => listing.weights.push(full),
                (0, false) => listing.indexes.push(full),
                (_, _) => {} // weights of another model
            }
            return Ok(());
        }
        // A document that is no regular file in the directory is listed here and refused when it is read; any other such
        // file stays behind.
        let is_document = depth == 0 && Path::new(name).extension() == Some(OsStr::new("json"));
        let len_bytes = if kind == FileType::RegularFile {
            u64::try_from(stat.st_size).ok()
        } else if kind == FileType::Symlink {
            match self.try_open_file(&full) {
                Ok(source) => Some(crate::ReadAt::len_bytes(&source)),
                Err(refusal) => (is_document && !refusal.is_missing()).then_some(0),
            }
        } else {
            is_document.then_some(0)
        };
        if let (Some(len_bytes), false) = (len_bytes, full == crate::Manifest::FILE_NAME) {
            listing.sidecars.push(Sidecar {
                name: full,
                len_bytes,
            });
        }
        Ok(())
    }
}

#[cfg(target_os = "linux")]
fn open_beneath(directory: &OwnedFd, name: &str) -> Result<OwnedFd, Errno> {
    use rustix::fs::{ResolveFlags, openat2};
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    for _ in 0..16 {
        match openat2(directory, name, READ_FLAGS, Mode::empty(), resolve) {
            // A rename somewhere on the system raced with the check of `..`.
            Err(Errno::AGAIN) => {}
            // Sandboxes answer PERM for a call that they do not know.
            Err(Errno::PERM) => return Err(Errno::NOSYS),
            answer => return answer,
        }
    }
    Err(Errno::AGAIN)
}

#[cfg(not(target_os = "linux"))]
fn open_beneath(_directory: &OwnedFd, _name: &str) -> Result<OwnedFd, Errno> {
    Err(Errno::NOSYS)
}

/// `.../blobs` for a directory `.../snapshots/<rev>` or a folder inside one.
fn hub_blobs(real: &Path) -> Option<PathBuf> {
    let snapshot = real.ancestors().find(|folder| {
        folder.parent().and_then(Path::file_name) == Some(OsStr::new("snapshots"))
    })?;
    Some(snapshot.parent()?.parent()?.join("blobs"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn shard_names_are_names_and_not_paths() {
        let long = format!("{}.safetensors", "x".repeat(1024));
        let refused = [
            "",
            "/etc/passwd.safetensors",
            "../x.safetensors",
            "a/../x.safetensors",
            "a//x.safetensors",
            "a/x.safetensors",
            "a\\x.safetensors",
            "C:x.safetensors",
            "x\0.safetensors",
            "x\n.safetensors",
            "x\u{9b}.safetensors",
            "x.bin",
            "x.SAFETENSORS",
            "..",
            ".",
            &long,
        ];
        for name in refused {
            assert!(check_shard_name("index", name).is_err(), "{name:?}");
        }
        for name in [
            "model.safetensors",
            "ä b.safetensors",
            ".safetensors",
            "..safetensors",
        ] {
            assert!(check_shard_name("index", name).is_ok(), "{name:?}");
        }
    }

    /// Both ways of opening must give one verdict.
    fn outcome(directory: &Directory, name: &str) -> &'static str {
        let word = |result: &Result<(), Refusal>| match result {
            Ok(()) => "opened",
            Err(Refusal::Escape) => "escape",
            Err(Refusal::Open(OpenFailure::NotRegular(found))) => found,
            Err(refusal) if refusal.is_missing() => "missing",
            Err(Refusal::Open(OpenFailure::Io(_))) => "io",
        };
        let by_path = directory.open_by_path(name).and_then(|fd| {
            let source = FileSource::beneath(fd, Arc::clone(&directory.fd), Path::new(name));
            source.map(drop).map_err(Refusal::Open)
        });
        let beneath = directory.try_open_file(name).map(drop);
        assert_eq!(word(&beneath), word(&by_path), "{name}");
        word(&beneath)
    }

    #[test]
    fn only_regular_files_inside_the_directory_open() -> Result<(), Box<dyn std::error::Error>> {
        let root = tempfile::tempdir()?;
        let model = root.path().join("model");
        std::fs::create_dir_all(model.join("folder"))?;
        std::fs::write(root.path().join("secret"), "secret")?;
        std::fs::write(model.join("file"), "file")?;
        symlink("../secret", model.join("out"))?;
        symlink(root.path(), model.join("parent"))?;
        symlink("file", model.join("inside"))?;
        symlink("loop", model.join("loop"))?;
        symlink("nothing", model.join("dangling"))?;
        rustix::fs::mknodat(CWD, model.join("fifo"), FileType::Fifo, Mode::RUSR, 0)?;
        let socket = std::os::unix::net::UnixListener::bind(model.join("socket"))?;
        let directory = Directory::open(&model)?;
        for (name, expected) in [
            ("file", "opened"),
            ("inside", "opened"),
            ("out", "escape"),
            ("parent/secret", "escape"),
            ("../secret", "escape"),
            ("dangling", "missing"),
            ("loop", "io"),
            ("folder", "a directory"),
            ("fifo", "a FIFO"),
            ("socket", "a socket or a device"),
        ] {
            assert_eq!(outcome(&directory, name), expected, "{name}");
        }
        drop(socket);
        Ok(())
    }

    #[test]
    fn the_hub_cache_may_link_to_its_blobs_and_nowhere_else() -> io::Result<()> {
        let root = tempfile::tempdir()?;
        let snapshot = root.path().join("models--a--b/snapshots/0123");
        let blobs = root.path().join("models--a--b/blobs");
        std::fs::create_dir_all(snapshot.join("unet"))?;
        std::fs::create_dir_all(blobs.join("inner"))?;
        std::fs::write(blobs.join("abc"), "blob")?;
        std::fs::write(blobs.join("inner/deep"), "deep")?;
        std::fs::write(root.path().join("secret"), "secret")?;
        symlink("../../blobs/abc", snapshot.join("good"))?;
        symlink("../../../blobs/abc", snapshot.join("unet/good"))?;
        symlink("../../../secret", snapshot.join("bad"))?;
        symlink("../../blobs/inner/deep", snapshot.join("deep"))?;
        symlink("../../secret", blobs.join("hop"))?;
        symlink("../../blobs/hop", snapshot.join("hop"))?;
        let directory = Directory::open(&snapshot).map_err(io::Error::other)?;
        for (name, expected) in [
            ("good", "opened"),
            ("unet/good", "opened"),
            ("bad", "escape"),
            ("deep", "escape"),
            ("hop", "escape"),
        ] {
            assert_eq!(outcome(&directory, name), expected, "{name}");
        }
        let unet = Directory::open(&snapshot.join("unet")).map_err(io::Error::other)?;
        assert_eq!(outcome(&unet, "good"), "opened");
        Ok(())
    }
}
