//! Memory-mapped sources, for callers that take the responsibility for the file.
//!
//! A load from a mapping beyond the end of a file that somebody cut short is a SIGBUS: it ends the process, and no
//! error handling sees it. Therefore [`crate::ReadAt`] for [`MmapSource`] reads with `pread` from the same descriptor,
//! and the mapped slice is only to be had through an `unsafe` function whose contract says what must not happen
//! (docs/adr/0002-pread-by-default.md).
#![expect(unsafe_code, reason = "the one module of this crate that maps files")]

use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;

use memmap2::MmapMut;

use crate::{Checkpoint, CheckpointKind, Error, FileSource, Header, Limits, ReadAt, TensorView};

/// A regular file that is mapped as well as opened.
#[derive(Debug)]
pub struct MmapSource {
    source: FileSource,
    /// Private: a write through a pointer into it (a tensor that was handed to another language) stays in this process and
    /// never reaches the file.
    map: MmapMut,
}

impl MmapSource {
    /// Opens a path given by the user, under the rules of [`FileSource::open`].
    ///
    /// # Errors
    /// As [`FileSource::open`]; whatever the system answers to the mapping; `UnexpectedEof` if the file shrank
    /// meanwhile.
    pub fn open(path: &Path) -> io::Result<Self> {
        let source = FileSource::open(path)?;
        let len = usize::try_from(source.len_bytes()).map_err(|_| io::ErrorKind::OutOfMemory)?;
        // SAFETY: a mapping as such is no access to it. Nothing in this module or crate reads through `map`, whose
        // bytes could change or vanish; the only way to them is `as_slice`, whose caller promises that they do not.
        let map = unsafe {
            memmap2::MmapOptions::new()
                .len(len)
                .no_reserve_swap()
                .map_copy(source.file())?
        };
        Ok(Self { source, map })
    }

    /// The whole file.
    ///
    /// # Errors
    /// As [`ReadAt::verify_unchanged`]: size, modification time and inode are checked at each call.
    ///
    /// # Safety
    /// As long as the slice lives:
    /// - nobody, in this process or another, may truncate the file (a load beyond its end is a SIGBUS);
    /// - nobody may write to it (a `&[u8]` must not change);
    /// - its medium must not fail (a page that cannot be read is a SIGBUS as well): no network file system.
    pub unsafe fn as_slice(&self) -> io::Result<&[u8]> {
        self.source.verify_unchanged()?;
        Ok(&self.map)
    }
}

impl ReadAt for MmapSource {
    fn len_bytes(&self) -> u64 {
        self.source.len_bytes()
    }

    fn read_exact_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.source.read_exact_at(offset, out)
    }

    fn will_need(&self, offset: u64, len_bytes: u64) {
        self.source.will_need(offset, len_bytes);
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.source.descriptor()
    }

    fn verify_unchanged(&self) -> io::Result<()> {
        self.source.verify_unchanged()
    }
}

/// A checkpoint whose shards are mapped: tensors as borrowed bytes, without a copy.
pub struct MappedCheckpoint {
    checkpoint: Checkpoint,
    /// In the order of the checkpoint's shards.
    maps: Vec<MmapSource>,
}

impl MappedCheckpoint {
    /// Opens a checkpoint as [`Checkpoint::open`] does, and maps its shards.
    ///
    /// # Errors
    /// As [`Checkpoint::open`]; a shard that was replaced between the two openings.
    ///
    /// # Safety
    /// As long as the value lives, for every shard: nobody may truncate or write to it, and its medium must not fail (see
    /// [`MmapSource::as_slice`]).
    pub unsafe fn open(path: &Path, limits: &Limits) -> Result<Self, Error> {
        let checkpoint = Checkpoint::open(path, limits)?;
        let folder = path.parent().unwrap_or(Path::new("."));
        let mut maps = Vec::new();
        for shard in checkpoint.shards() {
            let file = match checkpoint.kind() {
                CheckpointKind::Directory => path.join(&shard.name),
                CheckpointKind::Index => folder.join(&shard.name),
                CheckpointKind::File => path.to_owned(),
            };
            let io = |error| Error::io(&shard.name, error);
            let map = MmapSource::open(&file).map_err(io)?;
            if Header::read(&map, &shard.name, limits)? != shard.header {
                return Err(io(io::Error::other(
                    "the file was replaced while it was opened",
                )));
            }
            maps.push(map);
        }
        Ok(Self { checkpoint, maps })
    }

    /// The checkpoint, for everything that needs no borrowed bytes.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// A tensor as the bytes of the file. Whether the file is unchanged is not asked here: that was promised.
    pub fn tensor(&self, name: &str) -> Option<TensorView<'_>> {
        let tensor = self.checkpoint.tensor(name)?;
        let shards = self.checkpoint.shards();
        let at = shards.iter().position(|s| std::ptr::eq(s, tensor.shard))?;
        let range = &tensor.info.range;
        let (start, end) = (
            usize::try_from(range.start).ok()?,
            usize::try_from(range.end).ok()?,
        );
        Some(TensorView {
            dtype: tensor.info.dtype,
            shape: &tensor.info.shape,
            bytes: self.maps.get(at)?.map.get(start..end)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_tensors_are_the_bytes_that_are_read() -> Result<(), Box<dyn std::error::Error>> {
        let folder = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../fixtures/llm-compressor/ct-w4a16-g128/model.safetensors"
        );
        // SAFETY: nobody writes to the fixtures while tests run.
        let mapped = unsafe { MappedCheckpoint::open(Path::new(folder), &Limits::default())? };
        let mut visited = 0;
        for tensor in mapped.checkpoint().tensors() {
            let view = mapped.tensor(tensor.name()).ok_or("it is there")?;
            assert_eq!(view.bytes, tensor.read_all(1 << 30)?);
            assert_eq!((view.dtype, view.shape), (tensor.dtype(), tensor.shape()));
            visited += 1;
        }
        assert!(visited > 10, "{visited} tensors");
        assert!(mapped.tensor("nothing").is_none());
        Ok(())
    }

    #[test]
    fn the_slice_is_the_file_until_the_file_changes() -> io::Result<()> {
        let root = tempfile::tempdir()?;
        let path = root.path().join("file");
        std::fs::write(&path, b"0123456789")?;
        let source = MmapSource::open(&path)?;
        // SAFETY: the file lies in a fresh temporary folder of this test, and the slice is gone before it is cut short.
        assert_eq!(unsafe { source.as_slice() }?, b"0123456789");
        std::fs::write(&path, b"01")?;
        let mut out = [0; 10];
        let outcome = source
            .read_exact_at(0, &mut out)
            .map_err(|error| error.kind());
        assert_eq!(outcome, Err(io::ErrorKind::UnexpectedEof));
        // SAFETY: the check fails, so that there is no slice.
        assert!(unsafe { source.as_slice() }.is_err());
        Ok(())
    }
}
