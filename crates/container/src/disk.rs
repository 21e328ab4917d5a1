//! Every operation that changes a disk, behind one trait with a fault-injecting twin in the tests.
//!
//! Reading goes through [`crate::ReadAt`]; writing, syncing, renaming and removing go through [`Disk`]. Nothing else in
//! the libraries opens a file.

use std::io;
use std::path::{Path, PathBuf};

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
    /// Sets the length, extending with zeros.
    ///
    /// # Errors
    /// The system's answer.
    fn set_len(&self, len_bytes: u64) -> io::Result<()>;
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
