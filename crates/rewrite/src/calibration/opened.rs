//! A calibration file as a recipe holds it: opened, and known by what it is.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use safequant_container::{FileSource, Limits, ReadAt};
use serde_json::{Value, json};

use super::{Calibration, Error};
use crate::journal::samples;

/// Statistics that a job goes by. Clones share what is opened.
#[derive(Clone)]
pub struct CalibrationFile {
    calibration: Arc<Calibration>,
    source: Arc<dyn ReadAt>,
    /// What tells it from other files, for journals.
    identity: Value,
}

impl CalibrationFile {
    /// Opens a file in any form that [`Calibration::open`] takes.
    ///
    /// It is known by its length, the BLAKE3 of windows spread over its bytes, and its stamp (the modification time), as the shards
    /// of a source are (specs/journal.md).
    ///
    /// # Errors
    /// As [`Calibration::open`].
    pub fn open(path: &Path, limits: &Limits) -> Result<Self, Error> {
        let source = FileSource::open(path).map_err(|e| Error::io(path, "open the file", e))?;
        Self::from_source(&path.display().to_string(), Arc::new(source), limits)
    }

    /// As [`CalibrationFile::open`], from bytes wherever they are; `file` is the name that errors carry.
    ///
    /// # Errors
    /// As [`Calibration::open`].
    pub fn from_source(
        file: &str,
        source: Arc<dyn ReadAt>,
        limits: &Limits,
    ) -> Result<Self, Error> {
        let calibration = Calibration::from_source(file, Arc::clone(&source), limits)?;
        let digest = samples(source.as_ref(), 0);
        let digest = digest.map_err(|e| Error::io(Path::new(file), "read the file", e))?;
        let identity = json!({
            "len_bytes": source.len_bytes(),
            "samples": digest,
            "stamp": source.stamp(),
        });
        Ok(Self {
            calibration: Arc::new(calibration),
            source,
            identity,
        })
    }

    /// What the file has.
    pub fn calibration(&self) -> &Calibration {
        &self.calibration
    }

    pub(crate) fn identity(&self) -> &Value {
        &self.identity
    }

    /// That the file is the one that was opened.
    pub(crate) fn verify_unchanged(&self) -> Result<(), Error> {
        let path = Path::new(self.calibration.file());
        let unchanged = self.source.verify_unchanged();
        unchanged.map_err(|e| Error::io(path, "go on with the file", e))
    }
}

impl PartialEq for CalibrationFile {
    fn eq(&self, other: &Self) -> bool {
        self.identity == other.identity
    }
}

impl fmt::Debug for CalibrationFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("CalibrationFile");
        shown.field("file", &self.calibration.file());
        shown
            .field("identity", &self.identity)
            .finish_non_exhaustive()
    }
}
