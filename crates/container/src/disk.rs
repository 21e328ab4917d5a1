//! Every operation that changes a disk, behind one trait with a fault-injecting twin in the tests.
//!
//! Reading goes through [`crate::ReadAt`]; writing, syncing, renaming and removing go through [`Disk`]. Nothing else in
//! the libraries opens a file.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{Advice, AtFlags, CWD, FileType, FlockOperation, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use crate::source::{advise, describe};

/// The operations of a file system that writing a checkpoint needs.
pub trait Disk: Send + Sync {
    /// Creates a directory (parents must exist).
    ///
    /// # Errors
    /// The system's answer; `AlreadyExists` if something has that name.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// Opens a file for writing and reading back, creating it (mode from the umask) if `create`, never truncating.
    ///
    /// # Errors
    /// The system's answer.
    fn open_file(&self, path: &Path, create: bool) -> io::Result<Box<dyn DiskFile>>;
    /// Renames a file or directory, replacing a file or an *empty* directory at `to`.
    ///
    /// # Errors
    /// The system's answer.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Swaps two names atomically (`renameat2(RENAME_EXCHANGE)`).
    ///
    /// # Errors
    /// `Unsupported` where the file system cannot.
    fn exchange(&self, a: &Path, b: &Path) -> io::Result<()>;
    /// Makes the entries of a directory durable.
    ///
    /// # Errors
    /// The system's answer: final, never retried.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Removes a file.
    ///
    /// # Errors
    /// The system's answer.
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Removes a directory with all it holds (never follows a symlink).
    ///
    /// # Errors
    /// The system's answer.
    fn remove_dir_all(&self, path: &Path) -> io::Result<()>;
    /// What the path is now, if anything: `None` when nothing has that name.
    ///
    /// # Errors
    /// The system's answer.
    fn entry(&self, path: &Path) -> io::Result<Option<Entry>>;
    /// The path with every symlink resolved: to compare two paths, never to open one.
    ///
    /// # Errors
    /// The system's answer; `NotFound` if nothing has that name.
    fn canonicalize(&self, path: &Path) -> io::Result<PathBuf> {
        path.canonicalize()
    }
    /// Names in a directory, sorted.
    ///
    /// # Errors
    /// The system's answer.
    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>>;
    /// Bytes free for this user on the file system that holds `path`.
    ///
    /// # Errors
    /// The system's answer.
    fn free_bytes(&self, path: &Path) -> io::Result<u64>;
    /// Gives the file that `source` is a further name. `false` where that cannot be done (another file system, a source that
    /// is no file): the bytes are the caller's to copy then.
    ///
    /// # Errors
    /// The system's answer if it failed, rather than could not.
    fn link(&self, _source: &dyn crate::ReadAt, _path: &Path) -> io::Result<bool> {
        Ok(false)
    }
}

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A regular file of this length.
    File(u64),
    /// A directory.
    Directory,
    /// Anything else: a symlink, a device, a FIFO, a socket.
    Other,
}

/// An open file of a [`Disk`].
pub trait DiskFile: crate::ReadAt {
    /// Writes all of `bytes` at `offset`.
    ///
    /// # Errors
    /// The system's answer; a short write is continued, an interrupted one retried.
    fn write_all_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Lets the system copy bytes `from..from + len_bytes` of a source to `offset`, without their passing through this
    /// program: blocks are shared where the file system can do that. Gives how many bytes were copied, which is fewer, or none,
    /// where it cannot: the rest is the caller's to write.
    ///
    /// # Errors
    /// The system's answer if it failed, rather than could not.
    fn copy_from(
        &self,
        offset: u64,
        source: &dyn crate::ReadAt,
        from: u64,
        len_bytes: u64,
    ) -> io::Result<u64>;
    /// Sets the length, extending with zeros.
    ///
    /// # Errors
    /// The system's answer.
    fn set_len(&self, len_bytes: u64) -> io::Result<()>;
    /// Lets the system begin to write out these bytes, without waiting for it: so that [`DiskFile::sync`] finds little left,
    /// and memory does not fill with bytes that wait for the disk. A hint: what goes wrong shows in [`DiskFile::sync`].
    fn start_writeback(&self, offset: u64, len_bytes: u64);
    /// Makes data and length durable.
    ///
    /// # Errors
    /// The system's answer: final, never retried into success.
    fn sync(&self) -> io::Result<()>;
    /// Takes an exclusive advisory lock, held until the file is dropped. `false` if another process holds it.
    ///
    /// # Errors
    /// The system's answer.
    fn try_lock(&self) -> io::Result<bool>;
}

/// The operating system's disk.
#[derive(Clone, Copy, Debug, Default)]
pub struct OsDisk;

/// A file of [`OsDisk`].
struct OsFile {
    file: File,
    len_bytes: AtomicU64,
}

impl Disk for OsDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        std::fs::create_dir(path)
    }

    fn open_file(&self, path: &Path, create: bool) -> io::Result<Box<dyn DiskFile>> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let flags = if create {
            flags | OFlags::CREATE
        } else {
            flags
        };
        // Read and write for everyone, less what the umask takes: a file must not become 0600 by accident (P23).
        let fd = rustix::fs::openat(CWD, path, flags, Mode::from_raw_mode(0o666))?;
        let stat = rustix::fs::fstat(&fd)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind != FileType::RegularFile {
            let message = format!("expected a regular file, found {}", describe(kind));
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let len_bytes = u64::try_from(stat.st_size).map_err(|_| io::ErrorKind::InvalidData)?;
        Ok(Box::new(OsFile {
            file: File::from(fd),
            len_bytes: AtomicU64::new(len_bytes),
        }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn exchange(&self, a: &Path, b: &Path) -> io::Result<()> {
        match rustix::fs::renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE) {
            Err(Errno::NOSYS | Errno::INVAL | Errno::OPNOTSUPP) => {
                Err(io::ErrorKind::Unsupported.into())
            }
            answer => Ok(answer?),
        }
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(CWD, path, flags, Mode::empty())?;
        flush(&fd)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_dir_all(path)
    }

    fn entry(&self, path: &Path) -> io::Result<Option<Entry>> {
        match std::fs::symlink_metadata(path) {
            Ok(status) if status.is_file() => Ok(Some(Entry::File(status.len()))),
            Ok(status) if status.is_dir() => Ok(Some(Entry::Directory)),
            Ok(_) => Ok(Some(Entry::Other)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(path)? {
            names.push(PathBuf::from(entry?.file_name()));
        }
        names.sort_unstable();
        Ok(names)
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        let status = rustix::fs::statvfs(path)?;
        Ok(status.f_bavail.saturating_mul(status.f_frsize))
    }

    fn link(&self, source: &dyn crate::ReadAt, path: &Path) -> io::Result<bool> {
        let Some(descriptor) = source.descriptor() else {
            return Ok(false);
        };
        link_opened(descriptor, path)
    }
}

/// Links the file that was opened, whatever has its name by now: `/proc` has a name for every descriptor (open(2), `O_TMPFILE`).
#[cfg(any(target_os = "linux", target_os = "android"))]
fn link_opened(descriptor: BorrowedFd<'_>, path: &Path) -> io::Result<bool> {
    let opened = format!("/proc/self/fd/{}", descriptor.as_raw_fd());
    match rustix::fs::linkat(CWD, opened, CWD, path, AtFlags::SYMLINK_FOLLOW) {
        Ok(()) => Ok(true),
        // Another file system, one without links, too many of them, a file of someone else (`protected_hardlinks`), a file
        // that has no name any more, no `/proc`.
        Err(
            Errno::XDEV
            | Errno::OPNOTSUPP
            | Errno::MLINK
            | Errno::PERM
            | Errno::ACCESS
            | Errno::NOENT
            | Errno::NOSYS,
        ) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// A descriptor has no name here.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn link_opened(_: BorrowedFd<'_>, _: &Path) -> io::Result<bool> {
    Ok(false)
}

/// Copies bytes from one file to another within the system, as far as it can.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn copy_range(
    source: impl AsFd,
    mut from: u64,
    target: impl AsFd,
    mut to: u64,
    len_bytes: u64,
) -> io::Result<u64> {
    let mut copied = 0;
    while copied < len_bytes {
        let left = usize::try_from(len_bytes - copied).unwrap_or(usize::MAX);
        let n = match rustix::fs::copy_file_range(
            &source,
            Some(&mut from),
            &target,
            Some(&mut to),
            left,
        ) {
            Ok(n) => n as u64,
            Err(Errno::INTR) => continue,
            // Another file system, a file system without it, an old system, a sandbox that forbids it.
            Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS | Errno::PERM) => 0,
            Err(errno) => return Err(errno.into()),
        };
        if n == 0 {
            // The end of the source, or a file system that says so without meaning it: reading will tell.
            break;
        }
        copied += n;
    }
    Ok(copied)
}

/// No such call here.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn copy_range(_: impl AsFd, _: u64, _: impl AsFd, _: u64, _: u64) -> io::Result<u64> {
    Ok(0)
}

/// Makes an object durable. An interrupted or failed call is final: after it the system may have dropped the pages.
fn flush(fd: impl AsFd) -> io::Result<()> {
    #[cfg(target_vendor = "apple")]
    return Ok(rustix::fs::fcntl_fullfsync(fd)?);
    #[cfg(not(target_vendor = "apple"))]
    Ok(rustix::fs::fsync(fd)?)
}

impl crate::ReadAt for OsFile {
    fn len_bytes(&self) -> u64 {
        self.len_bytes.load(Ordering::Acquire)
    }

    fn read_exact_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(out, offset)
    }
}

impl DiskFile for OsFile {
    fn write_all_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let end = offset
            .checked_add(bytes.len() as u64)
            .ok_or(io::ErrorKind::FileTooLarge)?;
        self.file.write_all_at(bytes, offset)?;
        self.len_bytes.fetch_max(end, Ordering::AcqRel);
        Ok(())
    }

    fn copy_from(
        &self,
        offset: u64,
        source: &dyn crate::ReadAt,
        from: u64,
        len_bytes: u64,
    ) -> io::Result<u64> {
        let Some(descriptor) = source.descriptor() else {
            return Ok(0);
        };
        let copied = copy_range(descriptor, from, &self.file, offset, len_bytes)?;
        self.len_bytes.fetch_max(offset + copied, Ordering::AcqRel);
        Ok(copied)
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        self.file.set_len(len_bytes)?;
        self.len_bytes.store(len_bytes, Ordering::Release);
        Ok(())
    }

    fn start_writeback(&self, offset: u64, len_bytes: u64) {
        // Linux begins to write the dirty pages of a range that is no longer needed, and keeps them until they are clean
        // (mm/fadvise.c): what sync_file_range(SYNC_FILE_RANGE_WRITE) does, by a call that every system has. An error of
        // such a write is kept for fsync.
        advise(&self.file, offset, len_bytes, Advice::DontNeed);
    }

    fn sync(&self) -> io::Result<()> {
        flush(&self.file)
    }

    fn try_lock(&self) -> io::Result<bool> {
        match rustix::fs::flock(&self.file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(true),
            Err(Errno::WOULDBLOCK) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_disk_creates_writes_renames_exchanges_and_removes() -> io::Result<()> {
        let root = tempfile::tempdir()?;
        let path = |name: &str| root.path().join(name);
        let disk = OsDisk;
        disk.create_dir(&path("dir"))?;
        assert_eq!(
            disk.create_dir(&path("dir")).map_err(|error| error.kind()),
            Err(io::ErrorKind::AlreadyExists)
        );
        let missing = disk.open_file(&path("dir/a"), false).map(drop);
        assert_eq!(
            missing.map_err(|error| error.kind()),
            Err(io::ErrorKind::NotFound)
        );
        let file = disk.open_file(&path("dir/a"), true)?;
        file.set_len(10)?;
        file.write_all_at(3, b"abc")?;
        file.sync()?;
        let mut out = [9; 10];
        file.read_exact_at(0, &mut out)?;
        assert_eq!(&out, b"\0\0\0abc\0\0\0\0");
        assert_eq!(file.len_bytes(), 10);
        assert_eq!(disk.entry(&path("dir/a"))?, Some(Entry::File(10)));
        assert_eq!(disk.entry(&path("dir"))?, Some(Entry::Directory));
        assert_eq!(disk.entry(&path("none"))?, None);
        disk.create_dir(&path("other"))?;
        disk.exchange(&path("dir"), &path("other"))?;
        assert_eq!(disk.list(&path("other"))?, [PathBuf::from("a")]);
        disk.rename(&path("other/a"), &path("b"))?;
        disk.sync_dir(root.path())?;
        assert_eq!(
            disk.list(root.path())?,
            ["b", "dir", "other"].map(PathBuf::from)
        );
        disk.remove_file(&path("b"))?;
        disk.remove_dir_all(&path("dir"))?;
        assert!(disk.free_bytes(root.path())? > 0);
        Ok(())
    }

    #[test]
    fn ranges_are_copied_from_files_and_from_nothing_else() -> io::Result<()> {
        let root = tempfile::tempdir()?;
        let bytes: Vec<u8> = (0..251).cycle().take(100_000).collect();
        std::fs::write(root.path().join("source"), &bytes)?;
        let source = crate::FileSource::open(&root.path().join("source"))?;
        let target = OsDisk.open_file(&root.path().join("target"), true)?;
        let copied = target.copy_from(7, &source, 1000, 50_000)?;
        assert_eq!(target.len_bytes(), if copied > 0 { 7 + copied } else { 0 });
        let mut found = vec![0; usize::try_from(copied).unwrap_or_default()];
        target.read_exact_at(7, &mut found)?;
        assert_eq!(found, bytes[1000..1000 + found.len()]);
        // Beyond the end there is nothing to copy, and it is no error of the copy: reading gives that.
        assert_eq!(target.copy_from(0, &source, 100_000, 10)?, 0);
        let memory = crate::BytesSource(bytes.into());
        assert_eq!(target.copy_from(0, &memory, 0, 10)?, 0);
        Ok(())
    }

    #[test]
    fn work_files_are_regular_and_no_links() -> io::Result<()> {
        let root = tempfile::tempdir()?;
        let path = |name: &str| root.path().join(name);
        std::fs::write(path("file"), "x")?;
        std::os::unix::fs::symlink("file", path("link"))?;
        rustix::fs::mknodat(
            CWD,
            path("fifo"),
            FileType::Fifo,
            Mode::RUSR | Mode::WUSR,
            0,
        )?;
        for name in ["link", "fifo", "."] {
            assert!(OsDisk.open_file(&path(name), true).is_err(), "{name}");
        }
        assert_eq!(OsDisk.entry(&path("link"))?, Some(Entry::Other));
        Ok(())
    }

    #[test]
    fn a_lock_is_held_until_the_file_is_dropped() -> io::Result<()> {
        let root = tempfile::tempdir()?;
        let path = root.path().join("lock");
        let first = OsDisk.open_file(&path, true)?;
        let second = OsDisk.open_file(&path, true)?;
        assert!(first.try_lock()?);
        assert!(!second.try_lock()?);
        drop(first);
        assert!(second.try_lock()?);
        Ok(())
    }

    #[test]
    fn the_mode_of_a_new_file_follows_the_umask() -> io::Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let root = tempfile::tempdir()?;
        drop(OsDisk.open_file(&root.path().join("ours"), true)?);
        std::fs::write(root.path().join("plain"), "")?;
        let mode = |name: &str| -> io::Result<u32> {
            Ok(std::fs::metadata(root.path().join(name))?
                .permissions()
                .mode())
        };
        assert_eq!(mode("ours")?, mode("plain")?);
        Ok(())
    }
}
