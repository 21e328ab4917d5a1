//! Where bytes come from: one trait, implemented by files, by memory and (later) by remote objects.
//!
//! **Why `pread` and not a mapping.** A mapping of a file that somebody truncates answers a load with SIGBUS, which no
//! error handling catches; the official parser dies that way in 26 of 30 runs of a race test. `pread` answers with a
//! short read, which becomes an error. So [`ReadAt`] never touches a mapping (docs/adr/0002-pread-by-default.md).

use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Advice, AtFlags, CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

/// A finite, immutable run of bytes that can be read at any offset from several threads at once.
///
/// Nothing above this trait may assume a local file. Implementations must not end the process when the bytes go away:
/// a source that shrinks answers with an error of kind `UnexpectedEof`.
pub trait ReadAt: Send + Sync {
    /// Length in bytes when the source was opened.
    fn len_bytes(&self) -> u64;

    /// Fills `out` with the bytes from `offset` on.
    ///
    /// # Errors
    /// `UnexpectedEof` if the range does not lie within the source (any more); any other error of the medium.
    fn read_exact_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;

    /// Whether the source is still the one that was opened (size, modification time, inode).
    ///
    /// # Errors
    /// An error that says what changed. Sources that cannot change always succeed.
    fn verify_unchanged(&self) -> io::Result<()> {
        Ok(())
    }

    /// Says that these bytes will be read soon, so that the medium can begin to fetch them. Costs next to nothing if they
    /// are at hand already. A hint: what goes wrong shows when they are read.
    fn will_need(&self, _offset: u64, _len_bytes: u64) {}

    /// The descriptor of the file that these bytes are, if they are one: for copies that the system makes by itself.
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// What tells this object from a later one of the same length, cheaply (a modification time, an `ETag`); `None` where
    /// nothing does. Equal stamps make equal content likely, never certain.
    fn stamp(&self) -> Option<String> {
        None
    }
}

/// A regular file read with `pread`: the default. A file that shrinks gives an error, never a signal.
#[derive(Debug)]
pub struct FileSource {
    file: File,
    identity: Identity,
    place: Place,
}

/// Under which name a file was opened, to look it up again.
#[derive(Clone, Debug)]
enum Place {
    /// An absolute path.
    Path(PathBuf),
    /// A name relative to an open directory.
    Beneath(Arc<OwnedFd>, PathBuf),
}

/// What must stay the same of a file that is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    len_bytes: u64,
    modified: (i128, i128),
}

impl Identity {
    /// `None` if the status has a negative length.
    #[expect(
        clippy::useless_conversion,
        reason = "the fields' types differ between platforms"
    )]
    fn of(stat: &Stat) -> Option<Self> {
        Some(Self {
            device: u64::try_from(stat.st_dev).ok()?,
            inode: u64::try_from(stat.st_ino).ok()?,
            len_bytes: u64::try_from(stat.st_size).ok()?,
            modified: (i128::from(stat.st_mtime), i128::from(stat.st_mtime_nsec)),
        })
    }
}

/// What a name stands for, in words.
pub(crate) fn describe(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "a regular file",
        FileType::Directory => "a directory",
        FileType::Symlink => "a symbolic link",
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        FileType::Unknown => "something else",
    }
}

/// How files are opened for reading: never waiting for a FIFO's writer, never becoming a controlling terminal.
pub(crate) const READ_FLAGS: OFlags = OFlags::RDONLY
    .union(OFlags::CLOEXEC)
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY);

/// Why a file could not be opened.
#[derive(Debug)]
pub(crate) enum OpenFailure {
    /// The system refused.
    Io(io::Error),
    /// It is something else than a regular file.
    NotRegular(&'static str),
}

impl From<Errno> for OpenFailure {
    fn from(errno: Errno) -> Self {
        match errno {
            // What opening a socket, or a device without a driver, answers.
            Errno::NXIO | Errno::NODEV => OpenFailure::NotRegular("a socket or a device"),
            errno => OpenFailure::Io(errno.into()),
        }
    }
}

impl FileSource {
    /// Opens a path given by the user (it may be a symlink; the object must be a regular file; never blocks on a FIFO).
    ///
    /// # Errors
    /// Whatever the system answers, or `InvalidInput` if the object is no regular file.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::open_any(path).map_err(|failure| match failure {
            OpenFailure::Io(error) => error,
            OpenFailure::NotRegular(found) => {
                let message = format!("expected a regular file, found {found}");
                io::Error::new(io::ErrorKind::InvalidInput, message)
            }
        })
    }

    /// As [`FileSource::open`], telling the two failures apart.
    pub(crate) fn open_any(path: &Path) -> Result<Self, OpenFailure> {
        let fd = rustix::fs::openat(CWD, path, READ_FLAGS, Mode::empty())?;
        let place = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        Self::from_fd(fd, Place::Path(place))
    }

    /// Takes over a file that was opened as `name` beneath `directory`.
    pub(crate) fn beneath(
        fd: OwnedFd,
        directory: Arc<OwnedFd>,
        name: &Path,
    ) -> Result<Self, OpenFailure> {
        Self::from_fd(fd, Place::Beneath(directory, name.to_owned()))
    }

    fn from_fd(fd: OwnedFd, place: Place) -> Result<Self, OpenFailure> {
        let stat = rustix::fs::fstat(&fd)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind != FileType::RegularFile {
            return Err(OpenFailure::NotRegular(describe(kind)));
        }
        let identity = Identity::of(&stat)
            .ok_or_else(|| OpenFailure::Io(io::ErrorKind::InvalidData.into()))?;
        Ok(Self {
            file: File::from(fd),
            identity,
            place,
        })
    }

    /// The descriptor, for a mapping of the same file.
    #[cfg(feature = "mmap")]
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    fn stat_by_name(&self) -> io::Result<Stat> {
        let stat = match &self.place {
            Place::Path(path) => rustix::fs::statat(CWD, path, AtFlags::empty()),
            Place::Beneath(directory, name) => {
                rustix::fs::statat(directory, name, AtFlags::empty())
            }
        };
        Ok(stat?)
    }
}

impl ReadAt for FileSource {
    fn len_bytes(&self) -> u64 {
        self.identity.len_bytes
    }

    fn read_exact_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(out.len() as u64);
        if end.is_none_or(|end| end > self.identity.len_bytes) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.file.read_exact_at(out, offset)
    }

    fn will_need(&self, offset: u64, len_bytes: u64) {
        advise(&self.file, offset, len_bytes, Advice::WillNeed);
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }

    fn stamp(&self) -> Option<String> {
        let Identity {
            device,
            inode,
            len_bytes,
            modified: (seconds, nanos),
        } = self.identity;
        Some(format!("{device}:{inode}:{len_bytes}:{seconds}.{nanos}"))
    }

    fn verify_unchanged(&self) -> io::Result<()> {
        let opened = self.identity;
        let differs = |now: &Stat| match Identity::of(now) {
            Some(now) if now == opened => None,
            Some(now) if (now.device, now.inode) != (opened.device, opened.inode) => {
                Some("another file has its name now")
            }
            Some(now) if now.len_bytes != opened.len_bytes => Some("its size changed"),
            Some(_) => Some("its modification time changed"),
            None => Some("its size is negative"),
        };
        let by_descriptor = differs(&rustix::fs::fstat(self.file.as_fd())?);
        let difference = match by_descriptor {
            Some(difference) => Some(difference),
            None => differs(&self.stat_by_name()?),
        };
        match difference {
            None => Ok(()),
            Some(difference) => Err(io::Error::other(difference)),
        }
    }
}

/// Tells the system what will become of a range of a file. The answer is of no interest: nothing depends on it.
pub(crate) fn advise(file: &File, offset: u64, len_bytes: u64, advice: Advice) {
    #[cfg(not(target_vendor = "apple"))]
    if let Some(len) = NonZeroU64::new(len_bytes) {
        let _ = rustix::fs::fadvise(file, offset, Some(len), advice);
    }
    #[cfg(target_vendor = "apple")]
    let _ = (file, offset, len_bytes, advice);
}

/// Bytes in memory.
#[derive(Clone, Debug)]
pub struct BytesSource(pub std::sync::Arc<[u8]>);

impl ReadAt for BytesSource {
    fn len_bytes(&self) -> u64 {
        self.0.len() as u64
    }
    fn read_exact_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).ok();
        let range = start.and_then(|s| s.checked_add(out.len()).map(|e| s..e));
        let bytes = range
            .and_then(|r| self.0.get(r))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        Ok(())
    }
}
