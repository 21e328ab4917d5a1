//! One toolchain's spelling of schemes: the trait, and the list of all of them.

use safequant_container::FileFormat;
use safequant_kernels::Float;
use serde_json::{Map, Value};

use crate::{Error, Headers, Preset, QuantizedTensor, Respelling, ScaleRule};

/// A toolchain's spelling. A convention is a unit struct in a folder of its own; it imports no other convention and no
/// kernel, and it never computes on weights.
pub trait Convention: Sync {
    /// As in `config.json`'s `quant_method`, where there is one: `gptq`, `fp8`, `compressed-tensors`.
    fn id(&self) -> &'static str;

    /// One line for `--help` and the generated documentation.
    fn summary(&self) -> &'static str;

    /// Looks for evidence: names, dtypes and shapes first, and only then what a config claims.
    ///
    /// # Errors
    /// If the evidence contradicts itself or a config value is out of range: never a silent guess.
    fn recognize<'a>(
        &self,
        headers: Headers<'a>,
    ) -> Result<Option<Box<dyn Recognized + 'a>>, Error>;

    /// How to write it; `None` for a convention that is only read.
    fn writer(&self) -> Option<&'static dyn ConventionWriter> {
        None
    }
}

/// A convention found in a checkpoint, its config parsed.
pub trait Recognized {
    /// The modules it claims, by name.
    fn modules(&self) -> &[String];

    /// Binds one of them.
    ///
    /// # Errors
    /// If a part is missing, or a dtype or shape is not what the scheme needs: names module, part, expected, found.
    fn bind(&self, module: &str) -> Result<QuantizedTensor, Error>;

    /// Tensors that belong to the convention but to no quantized weight: KV-cache scales, a stale scale beside a dense
    /// weight. They do not survive dequantization.
    fn orphans(&self) -> &[String];

    /// What was seen, one line each, for `inspect` and for messages.
    fn evidence(&self) -> &[String];
}

/// How a convention is written.
pub trait ConventionWriter: Sync {
    /// The id of the convention written.
    fn id(&self) -> &'static str;

    /// The parts that a module becomes: names, dtypes, exact shapes, in terms of the neutral model.
    ///
    /// `preset` says what is wanted (group size and the like already resolved); `source` is the dtype of the dense weight.
    ///
    /// # Errors
    /// If the convention cannot hold it; says why and what could.
    fn lay_out(
        &self,
        module: &str,
        shape: &[u64],
        preset: &Preset,
        source: Float,
    ) -> Result<QuantizedTensor, Error>;

    /// A layout of [`ConventionWriter::lay_out`] with what is added to every scale ([`crate::SuperScale::Nested`]): it follows from the
    /// whole weight, and stands in the scheme and in what is written of it. A layout that has none comes back as it went in.
    ///
    /// # Errors
    /// As [`ConventionWriter::lay_out`].
    fn with_scale_offset(
        &self,
        layout: QuantizedTensor,
        offset: f32,
    ) -> Result<QuantizedTensor, Error> {
        let _ = offset;
        Ok(layout)
    }

    /// The layout for codes that are already there: what in this convention holds as much of `source` as can be held
    /// (its codes, granularity, zero points, group index; scales in the dtype that readers of this convention expect).
    /// Whether the result is exact is not decided here but by comparing the two tensors.
    ///
    /// A tensor of this very convention must come out as it went in: same parts, names, shapes, storage and `content`.
    ///
    /// # Errors
    /// If the convention cannot hold it in any form; says why and what could.
    fn lay_out_like(&self, source: &QuantizedTensor) -> Result<QuantizedTensor, Error> {
        Err(Error::CannotWrite {
            convention: self.id(),
            module: source.module.clone(),
            preset: format!("{:?}", source.scheme.code),
            reason: "it cannot take over the codes of another tensor".to_owned(),
        })
    }

    /// The documents (and `__metadata__`) that go with the modules written.
    ///
    /// # Errors
    /// If one config cannot describe them.
    fn config(&self, written: &Written<'_>) -> Result<ConfigEdit, Error>;

    /// The format of the files that hold it.
    fn file_format(&self) -> FileFormat {
        FileFormat::Safetensors
    }

    /// How the tensors of this very checkpoint are named and ordered, for a convention that spells whole models; `None` for
    /// all others, which keep names and rows.
    ///
    /// # Errors
    /// If the documents do not say what must be known, or the convention does not know the architecture.
    fn respelling<'a>(
        &self,
        source: Headers<'a>,
    ) -> Result<Option<Box<dyn Respelling + 'a>>, Error> {
        let _ = source;
        Ok(None)
    }

    /// Presets by name that this convention can hold.
    fn presets(&self) -> &'static [&'static str];

    /// Whose way of choosing scales goes with this convention: that of the tool which defines it.
    fn scale_rule(&self) -> ScaleRule;
}

/// What was written, for the documents that describe it.
#[derive(Clone, Copy, Debug)]
pub struct Written<'a> {
    /// The modules, as laid out. One of them may differ from the next in everything.
    pub modules: &'a [QuantizedTensor],
    /// Linear modules left dense.
    pub ignored: &'a [String],
    /// What was asked for.
    pub asked: Asked<'a>,
}

/// What was asked for when modules were quantized.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Asked<'a> {
    /// Nothing: codes were converted.
    Nothing,
    /// The same for all of them.
    Same(&'a Preset),
    /// One for each module, in their order.
    Each(&'a [&'a Preset]),
}

impl<'a> Asked<'a> {
    /// What was asked for a module, by its place in the list.
    pub fn of(self, index: usize) -> Option<&'a Preset> {
        match self {
            Asked::Nothing => None,
            Asked::Same(preset) => Some(preset),
            Asked::Each(presets) => presets.get(index).copied(),
        }
    }

    /// What was asked for all modules alike, even if there is none.
    pub fn same(self) -> Option<&'a Preset> {
        match self {
            Asked::Nothing | Asked::Each(_) => None,
            Asked::Same(preset) => Some(preset),
        }
    }
}

/// What a writer wants in the documents beside the weights.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ConfigEdit {
    /// The value of `quantization_config` in `config.json`.
    pub quantization_config: Map<String, Value>,
    /// Further documents by file name (`quantize_config.json`).
    pub documents: Vec<(String, Vec<u8>)>,
    /// Entries of the shards' `__metadata__`.
    pub metadata: Vec<(String, String)>,
    /// Further keys at the top of `config.json` (MLX's `quantization`).
    pub config: Map<String, Value>,
}

/// Every convention, in the order in which evidence is looked for.
pub static CONVENTIONS: &[&dyn Convention] = &[
    &crate::conventions::compressed_tensors::CompressedTensors,
    &crate::conventions::gptq::Gptq,
    &crate::conventions::gptq::GptqV2,
    &crate::conventions::gptq::GptqPlanar,
    &crate::conventions::awq::GEMM,
    &crate::conventions::awq::GEMV,
    &crate::conventions::awq::GEMV_FAST,
    &crate::conventions::awq::LLM,
    &crate::conventions::marlin::Marlin,
    &crate::conventions::fp8::Fp8,
    &crate::conventions::hqq::Hqq,
    &crate::conventions::quanto::Quanto,
    &crate::conventions::torchao::Torchao,
    &crate::conventions::bitsandbytes::Bitsandbytes,
    &crate::conventions::mlx::Mlx,
    &crate::conventions::modelopt::ModelOpt,
    &crate::conventions::mxfp4::Mxfp4,
    &crate::conventions::comfyui::ComfyUi,
    &crate::conventions::nunchaku::Nunchaku,
    &crate::conventions::gguf::Gguf,
];

/// The convention with this id, if there is one.
pub fn convention(id: &str) -> Option<&'static dyn Convention> {
    CONVENTIONS.iter().copied().find(|c| c.id() == id)
}

/// The presets that a convention can write, in the order of [`crate::PRESETS`]: what is offered to users.
pub fn offered_presets() -> impl Iterator<Item = &'static Preset> {
    crate::PRESETS
        .iter()
        .filter(|preset| writers_of(preset).next().is_some())
}

/// The ids of the conventions that can write a preset. Where its default is not among them (static scales of activations,
/// which need calibration), users must name one.
pub fn writers_of(preset: &Preset) -> impl Iterator<Item = &'static str> {
    let name = preset.name;
    CONVENTIONS.iter().filter_map(move |convention| {
        let writer = convention.writer()?;
        writer.presets().contains(&name).then_some(convention.id())
    })
}
