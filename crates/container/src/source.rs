//! Where bytes come from: one trait, implemented by files, by memory and (later) by remote objects.

use std::io;
use std::path::Path;

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

    /// What tells this object from a later one of the same length, cheaply (a modification time, an ETag); `None` where
    /// nothing does. Equal stamps make equal content likely, never certain.
    fn stamp(&self) -> Option<String> {
        None
    }
}

/// A regular file read with `pread`: the default. A file that shrinks gives an error, never a signal.
#[derive(Debug)]
pub struct FileSource {}

impl FileSource {
    /// Opens a path given by the user (it may be a symlink; the object must be a regular file; never blocks on a FIFO).
    ///
    /// # Errors
    /// Whatever the system answers, or `InvalidInput` if the object is no regular file.
    pub fn open(_path: &Path) -> io::Result<Self> {
        unimplemented!()
    }
}

impl ReadAt for FileSource {
    fn len_bytes(&self) -> u64 {
        unimplemented!()
    }
    fn read_exact_at(&self, _offset: u64, _out: &mut [u8]) -> io::Result<()> {
        unimplemented!()
    }
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
        let bytes = range.and_then(|r| self.0.get(r)).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        Ok(())
    }
}
