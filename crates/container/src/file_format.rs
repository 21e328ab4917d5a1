//! The formats of weight files.

use crate::gguf;
use crate::paths::WEIGHTS_SUFFIX;

/// The format of a weight file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileFormat {
    /// safetensors.
    Safetensors,
    /// GGUF, version 3.
    Gguf,
}

impl FileFormat {
    /// Every format.
    pub const ALL: &'static [FileFormat] = &[FileFormat::Safetensors, FileFormat::Gguf];

    /// How the names of such files end.
    pub const fn suffix(self) -> &'static str {
        match self {
            FileFormat::Safetensors => WEIGHTS_SUFFIX,
            FileFormat::Gguf => gguf::SUFFIX,
        }
    }

    /// The format that a file name claims.
    pub fn of_name(name: &str) -> Option<Self> {
        let mut all = FileFormat::ALL.iter().copied();
        all.find(|format| name.ends_with(format.suffix()))
    }
}
