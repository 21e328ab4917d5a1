//! Calibration statistics: what quantizers know of a layer's inputs (specs/calibration.md, specs/imatrix.md).
//!
//! A file is opened by its headers. The statistics of one module are read when they are asked for, so memory is bounded by the
//! largest of them.

mod check;
mod error;
mod file;
pub mod imatrix;
mod names;
mod opened;
mod values;

use std::path::Path;
use std::sync::Arc;

use safequant_container::{FileSource, Limits, ReadAt};

pub use error::Error;
pub use opened::CalibrationFile;
pub use safequant_quantize::SecondMoment;

use imatrix::Imatrix;

/// Statistics of a model, opened.
pub struct Calibration {
    source: Source,
}

/// Where statistics come from.
enum Source {
    /// Our own format.
    File(Box<file::Stored>),
    /// llama.cpp's, in either form.
    Imatrix(Imatrix),
}

/// What a file has about one module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Its name, as [`Calibration::statistics`] takes it.
    pub name: String,
    /// The module whose statistics these are: itself, or the one that it shares them with because both saw the same inputs. What a
    /// quantizer derives from them need be derived once for each.
    pub owner: String,
    /// Its input features. `None` for a stack of experts in the old binary form of an importance matrix, which holds them one
    /// after the other and does not say how many they are.
    pub in_features: Option<u64>,
    /// Values of the diagonal: `in_features`, or in that stack those of all experts.
    pub n_values: u64,
    /// The tokens that it saw; `None` where the file does not count them (the same form).
    pub token_count: Option<u64>,
    /// How much of the second moment there is.
    pub detail: Detail,
}

/// How much of `X^T X / n` there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Detail {
    /// All of it.
    Full,
    /// The diagonal.
    Diagonal,
}

/// The statistics of one module over `n` tokens, validated.
#[derive(Clone, Debug, PartialEq)]
pub struct Statistics {
    /// `K`.
    pub in_features: usize,
    /// `n`; `None` where the file does not say. 0 means that nothing is known of the module: the second moment is a diagonal of
    /// zeros then, whatever the file holds, and there are no means.
    pub token_count: Option<u64>,
    /// `X^T X / n`: finite, exactly symmetric, no negative on the diagonal.
    pub second_moment: SecondMoment,
    /// The mean of `|x|`, `[K]`.
    pub mean_abs: Option<Vec<f32>>,
    /// The mean of `x`, `[K]`.
    pub mean: Option<Vec<f32>>,
}

impl Statistics {
    /// Those of a module that saw no token.
    fn of_nothing(in_features: u64) -> Self {
        let in_features = usize::try_from(in_features).unwrap_or(usize::MAX);
        Self {
            in_features,
            token_count: Some(0),
            second_moment: SecondMoment::Diagonal(vec![0.0; in_features]),
            mean_abs: None,
            mean: None,
        }
    }
}

impl Calibration {
    /// Opens a file: our own format, or llama.cpp's importance matrix in its GGUF or its old binary form. What it is shows in its
    /// first bytes; its name does not matter.
    ///
    /// # Errors
    /// `Io`; those of the container; `Kind`, `Metadata`, `Layout` and `Binary` for a file that breaks the rules of its format;
    /// `Value` for a negative count.
    pub fn open(path: &Path, limits: &Limits) -> Result<Self, Error> {
        let source = FileSource::open(path).map_err(|e| Error::io(path, "open the file", e))?;
        Self::from_source(&path.display().to_string(), Arc::new(source), limits)
    }

    /// As [`Calibration::open`], from bytes wherever they are; `file` is the name that errors carry.
    ///
    /// # Errors
    /// As [`Calibration::open`].
    pub fn from_source(
        file: &str,
        source: Arc<dyn ReadAt>,
        limits: &Limits,
    ) -> Result<Self, Error> {
        let source = match Form::of(file, source.as_ref())? {
            Form::Safetensors => Source::File(Box::new(file::Stored::open(file, source, limits)?)),
            Form::Gguf => Source::Imatrix(Imatrix::open_gguf(file, source, limits)?),
            Form::Binary => Source::Imatrix(Imatrix::open_binary(file, source)?),
        };
        Ok(Self { source })
    }

    /// The file, as errors name it.
    pub fn file(&self) -> &str {
        match &self.source {
            Source::File(file) => file.file(),
            Source::Imatrix(imatrix) => imatrix.file(),
        }
    }

    /// The modules, by ascending name as the file has it.
    pub fn modules(&self) -> Box<dyn Iterator<Item = Module> + '_> {
        match &self.source {
            Source::File(file) => Box::new(file.modules()),
            Source::Imatrix(imatrix) => Box::new(imatrix.modules()),
        }
    }

    /// What the file has about a module. For an importance matrix the name may be any that llama.cpp's tensor has elsewhere.
    pub fn module(&self, name: &str) -> Option<Module> {
        match &self.source {
            Source::File(file) => file.module(name),
            Source::Imatrix(imatrix) => imatrix.module(name),
        }
    }

    /// What the file has about one matrix of a stack of experts, which is stored under one name, as
    /// [`Calibration::expert_statistics`] finds it.
    pub fn expert_module(&self, stack: &str, expert: u64) -> Option<Module> {
        if let Source::Imatrix(imatrix) = &self.source
            && let Some(found) = imatrix.expert_module(stack, expert)
        {
            return Some(found);
        }
        let members = members_of(stack, expert);
        members.iter().find_map(|member| self.module(member))
    }

    /// The statistics of a module whose weight has `in_features` columns; `None` if the file has none.
    ///
    /// # Errors
    /// `Width` if they belong to a weight of other columns, `Value` if the numbers cannot be statistics, `Io`,
    /// `OutOfMemory`; those of the container.
    pub fn statistics(&self, name: &str, in_features: u64) -> Result<Option<Statistics>, Error> {
        match &self.source {
            Source::File(file) => file.statistics(name, in_features),
            Source::Imatrix(imatrix) => imatrix.statistics(name, None, in_features),
        }
    }

    /// The mean input of a module whose weight has `in_features` columns; `None` if the file has none, or the module saw no token.
    ///
    /// # Errors
    /// As [`Calibration::statistics`]. Nothing but the mean is read.
    pub fn mean(&self, name: &str, in_features: u64) -> Result<Option<Vec<f32>>, Error> {
        match &self.source {
            Source::File(file) => file.mean(name, in_features),
            Source::Imatrix(_) => Ok(None),
        }
    }

    /// The statistics of one matrix of a stack of experts, which is stored under one name (`blk.0.ffn_up_exps`,
    /// `model.layers.0.mlp.experts.up_proj`; `gate_up_proj` for the two that share their inputs); `None` if the file has none.
    ///
    /// # Errors
    /// As [`Calibration::statistics`].
    pub fn expert_statistics(
        &self,
        stack: &str,
        expert: u64,
        in_features: u64,
    ) -> Result<Option<Statistics>, Error> {
        if let Source::Imatrix(imatrix) = &self.source {
            let found = imatrix.statistics(stack, Some(expert), in_features)?;
            if found.is_some() {
                return Ok(found);
            }
        }
        for member in members_of(stack, expert) {
            let found = self.statistics(&member, in_features)?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// Keys and values that say how the statistics came about, as the file spells them; for people and reports.
    pub fn provenance(&self) -> Vec<(String, String)> {
        match &self.source {
            Source::File(file) => file.metadata().to_vec(),
            Source::Imatrix(imatrix) => imatrix.provenance(),
        }
    }
}

/// What a member of a stack may be called where experts are modules of their own: its number stands before the last part.
fn members_of(stack: &str, expert: u64) -> Vec<String> {
    let Some((before, projection)) = stack.rsplit_once('.') else {
        return Vec::new();
    };
    let projections = match projection {
        // Fused where a model is loaded, and often two where it is saved; their inputs are the same.
        "gate_up_proj" => &["gate_up_proj", "gate_proj"][..],
        other => &[other],
    };
    let member = |projection| format!("{before}.{expert}.{projection}");
    projections.iter().map(member).collect()
}

/// The forms of a file.
enum Form {
    Safetensors,
    Gguf,
    Binary,
}

impl Form {
    /// Tells by the first 8 bytes (specs/imatrix.md, clause 5).
    fn of(file: &str, source: &dyn ReadAt) -> Result<Self, Error> {
        let mut head = [0; 8];
        if source.len_bytes() < head.len() as u64 {
            return Ok(Form::Safetensors); // which says that the file is too small
        }
        let read = source.read_exact_at(0, &mut head);
        read.map_err(|e| Error::io(Path::new(file), "read the file", e))?;
        Ok(match head {
            [b'G', b'G', b'U', b'F', ..] => Form::Gguf,
            [.., 0, 0, 0, 0] => Form::Safetensors,
            _ => Form::Binary,
        })
    }
}

#[cfg(test)]
mod tests;
