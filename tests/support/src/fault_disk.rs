//! A disk that fails on purpose: at the n-th operation, half-way through a write, when it is full, or for good.
//!
//! A fault loop runs the work under test with the fault at operation 0, 1, 2 ... until a run ends without having met
//! its fault ([`FaultDisk::was_hit`]), and checks after each run that what is left is the old state or the new one
//! (reliability.md, P15-P18). Operations are counted over all files and threads; reads through the disk count too.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use safequant_container::{Disk, DiskFile, Entry, OsDisk, ReadAt};

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing: operations are counted and logged only.
    None,
    /// Operation number `at` (from 0) fails with an error of this kind and has no effect. Later ones succeed.
    Fail {
        /// The operation.
        at: u64,
        /// The error.
        kind: io::ErrorKind,
    },
    /// Operation number `at` fails; if it is a write, the first half of its bytes reach the file. Later ones succeed.
    ShortWrite {
        /// The operation.
        at: u64,
        /// The error.
        kind: io::ErrorKind,
    },
    /// Writes fail with `StorageFull` once this many bytes were written in all; what fits is written.
    Full {
        /// Bytes that fit.
        budget_bytes: u64,
    },
    /// Operation number `at` and every later one fail, as if the process had been killed: nothing that the program does
    /// afterwards to clean up has an effect. If the operation is a write, the first half of its bytes reach the file.
    Crash {
        /// The operation.
        at: u64,
    },
}

/// One operation, as logged before it is carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// The name of the method (`rename`, `write_all_at`, `sync` ...).
    pub name: &'static str,
    /// The path it concerns; the first of two.
    pub path: PathBuf,
}

#[derive(Debug)]
struct State {
    fault: Fault,
    log: Vec<Operation>,
    written_bytes: u64,
    was_hit: bool,
}

/// How an operation goes on.
enum Verdict {
    Proceed,
    /// Write this many bytes, then fail.
    Fail(usize, io::Error),
}

/// The operating system's disk, with a fault.
#[derive(Clone, Debug)]
pub struct FaultDisk {
    state: Arc<Mutex<State>>,
}

impl FaultDisk {
    /// A disk with this fault.
    pub fn new(fault: Fault) -> Self {
        let state = State {
            fault,
            log: Vec::new(),
            written_bytes: 0,
            was_hit: false,
        };
        Self {
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// Whether the fault occurred.
    pub fn was_hit(&self) -> bool {
        self.lock().was_hit
    }

    /// Operations asked for so far.
    pub fn n_operations(&self) -> u64 {
        self.lock().log.len() as u64
    }

    /// Every operation asked for, in order: to check that data is synced before it is renamed, and the directory after.
    pub fn log(&self) -> Vec<Operation> {
        self.lock().log.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an operation that writes no data.
    fn step(&self, name: &'static str, path: &Path) -> io::Result<()> {
        match self.judge(name, path, 0) {
            Verdict::Proceed => Ok(()),
            Verdict::Fail(_, error) => Err(error),
        }
    }

    fn judge(&self, name: &'static str, path: &Path, len: usize) -> Verdict {
        let mut state = self.lock();
        let number = state.log.len() as u64;
        state.log.push(Operation {
            name,
            path: path.to_owned(),
        });
        let fits = match state.fault {
            Fault::Full { budget_bytes } => usize::try_from(budget_bytes - state.written_bytes)
                .unwrap_or(usize::MAX)
                .min(len),
            Fault::None | Fault::Fail { .. } | Fault::ShortWrite { .. } | Fault::Crash { .. } => {
                len
            }
        };
        state.written_bytes += fits as u64;
        let failure = match state.fault {
            Fault::Fail { at, kind } if number == at => Some((0, kind)),
            Fault::ShortWrite { at, kind } if number == at => Some((len / 2, kind)),
            Fault::Crash { at } if number == at => Some((len / 2, io::ErrorKind::Other)),
            Fault::Crash { at } if number > at => Some((0, io::ErrorKind::Other)),
            Fault::Full { .. } if fits < len => Some((fits, io::ErrorKind::StorageFull)),
            Fault::None
            | Fault::Fail { .. }
            | Fault::ShortWrite { .. }
            | Fault::Full { .. }
            | Fault::Crash { .. } => None,
        };
        let Some((len, kind)) = failure else {
            return Verdict::Proceed;
        };
        state.was_hit = true;
        Verdict::Fail(
            len,
            io::Error::new(kind, format!("fault injected at {name} ({number})")),
        )
    }
}

impl Disk for FaultDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.step("create_dir", path)?;
        OsDisk.create_dir(path)
    }

    fn open_file(&self, path: &Path, create: bool) -> io::Result<Box<dyn DiskFile>> {
        self.step("open_file", path)?;
        let file = OsDisk.open_file(path, create)?;
        Ok(Box::new(FaultFile {
            disk: self.clone(),
            path: path.to_owned(),
            file,
        }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step("rename", from)?;
        OsDisk.rename(from, to)
    }

    fn exchange(&self, a: &Path, b: &Path) -> io::Result<()> {
        self.step("exchange", a)?;
        OsDisk.exchange(a, b)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.step("sync_dir", path)?;
        OsDisk.sync_dir(path)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.step("remove_file", path)?;
        OsDisk.remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.step("remove_dir_all", path)?;
        OsDisk.remove_dir_all(path)
    }

    fn entry(&self, path: &Path) -> io::Result<Option<Entry>> {
        self.step("entry", path)?;
        OsDisk.entry(path)
    }

    fn canonicalize(&self, path: &Path) -> io::Result<PathBuf> {
        self.step("canonicalize", path)?;
        OsDisk.canonicalize(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        self.step("list", path)?;
        OsDisk.list(path)
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        self.step("free_bytes", path)?;
        OsDisk.free_bytes(path)
    }
}

/// An open file of a [`FaultDisk`].
struct FaultFile {
    disk: FaultDisk,
    path: PathBuf,
    file: Box<dyn DiskFile>,
}

impl ReadAt for FaultFile {
    fn len_bytes(&self) -> u64 {
        self.file.len_bytes()
    }

    fn read_exact_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.disk.step("read_exact_at", &self.path)?;
        self.file.read_exact_at(offset, out)
    }
}

impl DiskFile for FaultFile {
    fn write_all_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        match self.disk.judge("write_all_at", &self.path, bytes.len()) {
            Verdict::Proceed => self.file.write_all_at(offset, bytes),
            Verdict::Fail(len, error) => {
                self.file.write_all_at(offset, &bytes[..len])?;
                Err(error)
            }
        }
    }

    fn copy_from(
        &self,
        offset: u64,
        source: &dyn ReadAt,
        from: u64,
        len_bytes: u64,
    ) -> io::Result<u64> {
        let len = usize::try_from(len_bytes).unwrap_or(usize::MAX);
        match self.disk.judge("copy_from", &self.path, len) {
            Verdict::Proceed => self.file.copy_from(offset, source, from, len_bytes),
            Verdict::Fail(len, error) => {
                self.file.copy_from(offset, source, from, len as u64)?;
                Err(error)
            }
        }
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        self.disk.step("set_len", &self.path)?;
        self.file.set_len(len_bytes)
    }

    fn start_writeback(&self, offset: u64, len_bytes: u64) {
        // It has no answer that could be a fault: what goes wrong shows in `sync`.
        self.file.start_writeback(offset, len_bytes);
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.step("sync", &self.path)?;
        self.file.sync()
    }

    fn try_lock(&self) -> io::Result<bool> {
        self.disk.step("try_lock", &self.path)?;
        self.file.try_lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use safequant_container::{Dtype, Error, ErrorGroup, FilePlan, FileWriter, PlannedTensor};

    fn work(disk: &FaultDisk, root: &Path) -> io::Result<()> {
        let file = disk.open_file(&root.join("a"), true)?;
        file.write_all_at(0, b"abcdef")?;
        file.write_all_at(6, b"ghij")?;
        file.sync()?;
        disk.rename(&root.join("a"), &root.join("b"))?;
        disk.sync_dir(root)
    }

    #[test]
    fn every_operation_fails_once_in_a_fault_loop() -> io::Result<()> {
        let root = tempfile::tempdir()?;
        for at in 0.. {
            let disk = FaultDisk::new(Fault::Fail {
                at,
                kind: io::ErrorKind::PermissionDenied,
            });
            let outcome = work(&disk, root.path());
            if !disk.was_hit() {
                assert_eq!(at, 6);
                return outcome;
            }
            assert_eq!(
                outcome.map_err(|error| error.kind()),
                Err(io::ErrorKind::PermissionDenied)
            );
        }
        Ok(())
    }

    fn write_checkpoint_file(disk: &FaultDisk, path: &Path) -> Result<(), Error> {
        let tensors = ["a", "b"].map(|name| PlannedTensor {
            name: name.to_owned(),
            dtype: Dtype::U8,
            shape: vec![3],
            block: None,
        });
        let plan = FilePlan::new("out.safetensors", tensors.to_vec(), &[])?;
        let open = |source| Error::Io {
            path: "out.safetensors".to_owned(),
            source,
        };
        let writer = FileWriter::create(plan, disk.open_file(path, true).map_err(open)?)?;
        writer.write_at(1, 0, b"xyz")?;
        writer.write_at(0, 0, b"abc")?;
        writer.read_at(0, 0, &mut [0; 3])?;
        writer.seal()
    }

    #[test]
    fn the_writer_of_the_container_reports_every_failing_operation() {
        let root = tempfile::tempdir().expect("a temporary folder");
        let path = root.path().join("out.safetensors");
        let mut n_failures = 0;
        loop {
            let disk = FaultDisk::new(Fault::Fail {
                at: n_failures,
                kind: io::ErrorKind::Other,
            });
            let outcome = write_checkpoint_file(&disk, &path);
            if !disk.was_hit() {
                assert!(outcome.is_ok());
                break;
            }
            let error = outcome.expect_err("no failure is swallowed");
            assert_eq!(error.group(), ErrorGroup::Io);
            assert!(
                error.to_string().starts_with("out.safetensors: "),
                "{error}"
            );
            n_failures += 1;
        }
        // open, set_len twice, prefix, two writes, read, sync
        assert_eq!(n_failures, 8);
    }

    #[test]
    fn faults_leave_what_they_say() -> io::Result<()> {
        let kind = io::ErrorKind::Interrupted;
        for (fault, left) in [
            (Fault::None, "abcdefghij"),
            (Fault::ShortWrite { at: 1, kind }, "abc"),
            (Fault::Full { budget_bytes: 8 }, "abcdefgh"),
            (Fault::Crash { at: 2 }, "abcdefgh"),
        ] {
            let root = tempfile::tempdir()?;
            let disk = FaultDisk::new(fault);
            assert_eq!(work(&disk, root.path()).is_ok(), fault == Fault::None);
            let name = if fault == Fault::None { "b" } else { "a" };
            assert_eq!(
                std::fs::read_to_string(root.path().join(name))?,
                left,
                "{fault:?}"
            );
            let again = disk.remove_file(&root.path().join(name));
            assert_eq!(again.is_err(), matches!(fault, Fault::Crash { .. }));
        }
        Ok(())
    }
}
