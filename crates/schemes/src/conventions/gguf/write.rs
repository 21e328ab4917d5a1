//! Writing GGUF: block types for weights, and the models that are GGUF already.

use safequant_container::{Dtype, FileFormat, GgufMetadata, GgufValue};
use safequant_kernels::{Float, Minifloat};

use super::{ID, WEIGHT, general};
use crate::binding::{cannot_write, planned};
use crate::scheme::{BlockFormat, scheme_of_blocks};
use crate::{
    Axes, Code, ConfigEdit, ConventionWriter, Error, ExtraTensor, Granularity, Headers, OffsetForm,
    Preset, QuantizedTensor, Respelled, Respelling, Role, RowOrder, ScaleCoding, ScaleRule,
    Spelling, Storage, SuperScale, Values, WeightCode, Written, WrittenDense, ZeroPoint,
};

pub(super) struct Writer;

/// What `llama-quantize` takes where a row is no whole number of blocks (`tensor_type_fallback` in llama.cpp's
/// `src/llama-quant.cpp`).
const FALLBACKS: &[(BlockFormat, BlockFormat)] = &[
    (BlockFormat::Q2K, BlockFormat::Q4_0),
    (BlockFormat::Q3K, BlockFormat::Q4_0),
    (BlockFormat::Q4K, BlockFormat::Q5_0),
    (BlockFormat::Q5K, BlockFormat::Q5_1),
    (BlockFormat::Q6K, BlockFormat::Q8_0),
    (BlockFormat::Iq4Xs, BlockFormat::Iq4Nl),
    (BlockFormat::Iq3S, BlockFormat::Iq4Nl),
    (BlockFormat::Iq3Xxs, BlockFormat::Iq4Nl),
    (BlockFormat::Iq2S, BlockFormat::Iq4Nl),
    (BlockFormat::Iq2Xs, BlockFormat::Iq4Nl),
    (BlockFormat::Iq2Xxs, BlockFormat::Iq4Nl),
];

impl ConventionWriter for Writer {
    fn id(&self) -> &'static str {
        ID
    }

    fn file_format(&self) -> FileFormat {
        FileFormat::Gguf
    }

    fn lay_out(
        &self,
        module: &str,
        shape: &[u64],
        preset: &Preset,
        _source: Float,
    ) -> Result<QuantizedTensor, Error> {
        let refuse = |reason: &str| cannot_write(ID, module, preset.name, reason);
        let wanted = match preset.weights {
            WeightCode::Block(format) => format,
            WeightCode::Mx(Minifloat::E2M1) => BlockFormat::Mxfp4,
            WeightCode::Nvfp4 => BlockFormat::Nvfp4,
            WeightCode::SymmetricInteger { .. }
            | WeightCode::AsymmetricInteger { .. }
            | WeightCode::Minifloat(_)
            | WeightCode::Mx(_)
            | WeightCode::Codebook(_)
            | WeightCode::NestedCodebook(_) => {
                return Err(refuse("it holds the block types of ggml only"));
            }
        };
        let columns = shape.last().copied().unwrap_or(0);
        let fitting = fitting(wanted, columns).ok_or_else(|| {
            refuse(&format!(
                "rows of {columns} are no whole blocks of {} or 32",
                wanted.elements()
            ))
        })?;
        Ok(layout(module, &format!("{module}{WEIGHT}"), shape, fitting))
    }

    fn lay_out_like(&self, source: &QuantizedTensor) -> Result<QuantizedTensor, Error> {
        if source.convention == ID {
            return Ok(source.clone());
        }
        let kind = format!("{:?}", source.scheme.code);
        let refuse = |reason: String| cannot_write(ID, &source.module, &kind, reason);
        let format = held(source).map_err(refuse)?;
        if !is_whole(format, source.in_features()) {
            return Err(refuse(format!(
                "rows of {} are no whole blocks of {}",
                source.in_features(),
                format.elements()
            )));
        }
        let mut tensor = layout(&source.module, &source.weight, &source.shape, format);
        if format == BlockFormat::Nvfp4 && source.scheme.super_scale != SuperScale::None {
            tensor.scheme.super_scale = SuperScale::Multiply;
            let shape = match source.shape.split_last_chunk::<2>() {
                Some(([], _)) | None => vec![1],
                Some((stack, _)) => stack.to_vec(),
            };
            tensor.parts.push(planned(
                Role::SuperScale,
                format!("{}.scale", source.module),
                Dtype::F32,
                shape,
                Storage::Elements { axes: Axes::OutIn },
            ));
        }
        Ok(tensor)
    }

    fn config(&self, _written: &Written<'_>) -> Result<ConfigEdit, Error> {
        Ok(ConfigEdit::default())
    }

    fn respelling<'a>(
        &self,
        source: Headers<'a>,
    ) -> Result<Option<Box<dyn Respelling + 'a>>, Error> {
        let respelling = match source.gguf() {
            Some(metadata) => Box::new(Kept { metadata }),
            None => super::spelling::respelling(source)?,
        };
        Ok(Some(respelling))
    }

    fn presets(&self) -> &'static [&'static str] {
        &[
            "Q2_K", "Q3_K", "Q4_0", "Q4_1", "Q4_K", "Q5_0", "Q5_1", "Q5_K", "Q6_K", "Q8_0",
            "IQ4_NL", "IQ4_XS", "IQ3_S", "IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS", "MXFP4A16",
            "NVFP4A16",
        ]
    }

    fn scale_rule(&self) -> ScaleRule {
        ScaleRule::Ggml
    }
}

fn is_whole(format: BlockFormat, columns: u64) -> bool {
    columns.is_multiple_of(format.elements() as u64)
}

/// The type itself, or what `llama-quantize` takes in its place.
fn fitting(wanted: BlockFormat, columns: u64) -> Option<BlockFormat> {
    let fallback = FALLBACKS.iter().find(|(from, _)| *from == wanted);
    let fallback = fallback.map(|(_, to)| *to);
    std::iter::once(wanted)
        .chain(fallback)
        .find(|format| is_whole(*format, columns))
}

/// A weight in blocks.
fn layout(module: &str, weight: &str, shape: &[u64], format: BlockFormat) -> QuantizedTensor {
    let mut stored = shape.to_vec();
    if let Some(last) = stored.last_mut() {
        *last = (*last / format.elements() as u64).saturating_mul(format.bytes() as u64);
    }
    QuantizedTensor {
        module: module.to_owned(),
        weight: weight.to_owned(),
        convention: ID,
        shape: shape.to_vec(),
        scheme: scheme_of_blocks(format),
        reference_dtype: Float::F32,
        parts: vec![planned(
            Role::Codes,
            weight.to_owned(),
            Dtype::U8,
            stored,
            Storage::Blocks { format },
        )],
    }
}

/// The block type that holds as much as can be held of a tensor's codes and scales.
fn held(source: &QuantizedTensor) -> Result<BlockFormat, String> {
    let scheme = &source.scheme;
    let group = match scheme.granularity {
        Granularity::Group { size } => size,
        Granularity::Channel | Granularity::Tensor => source.in_features(),
        Granularity::IndexedGroup { .. }
        | Granularity::Block { .. }
        | Granularity::Flat { .. }
        | Granularity::Strided { .. } => {
            return Err("its scales are for runs of input features".to_owned());
        }
    };
    let is_symmetric = match scheme.zero_point {
        ZeroPoint::Fixed(_) => true,
        ZeroPoint::Stored(_)
        | ZeroPoint::Offset {
            form: OffsetForm::Added | OffsetForm::Subtracted | OffsetForm::BeforeScale,
            ..
        } => false,
    };
    let format = match (scheme.code, scheme.scale) {
        (Code::Integer { bits, .. }, ScaleCoding::Float(_)) => match (bits, is_symmetric) {
            (..=4, true) => BlockFormat::Q4_0,
            (..=4, false) => BlockFormat::Q4_1,
            (5, true) => BlockFormat::Q5_0,
            (5, false) => BlockFormat::Q5_1,
            (_, true) => BlockFormat::Q8_0,
            (_, false) => return Err("integers of over 5 bits have no zero point".to_owned()),
        },
        (Code::Minifloat(Minifloat::E2M1), ScaleCoding::E8M0(_)) => BlockFormat::Mxfp4,
        (Code::Minifloat(Minifloat::E2M1), ScaleCoding::Minifloat(Minifloat::E4M3)) => {
            BlockFormat::Nvfp4
        }
        (code, scale) => {
            return Err(format!(
                "no block type has codes {code:?} with scales {scale:?}"
            ));
        }
    };
    let run = scheme_of_blocks(format).granularity;
    match run {
        Granularity::Group { size } if group.is_multiple_of(size) => Ok(format),
        Granularity::Group { size } => Err(format!(
            "its groups of {group} are no whole groups of {size}, which {} has",
            format.name()
        )),
        Granularity::Tensor
        | Granularity::Channel
        | Granularity::IndexedGroup { .. }
        | Granularity::Block { .. }
        | Granularity::Flat { .. }
        | Granularity::Strided { .. } => Ok(format),
    }
}

/// A model that is GGUF already: names, rows and metadata stay.
struct Kept<'a> {
    metadata: &'a GgufMetadata,
}

/// The label of a file; the type of each tensor is the truth (formats: gguf §3).
const FILE_TYPE: &str = "general.file_type";

impl Respelling for Kept<'_> {
    fn tensor(&self, name: &str, _shape: &[u64]) -> Result<Respelled, Error> {
        Ok(Respelled::As(Spelling {
            name: name.to_owned(),
            rows: RowOrder::Same,
            stack: None,
            values: Values::Same,
            float: None,
        }))
    }

    fn extra(&self) -> Result<Vec<ExtraTensor>, Error> {
        Ok(Vec::new())
    }

    /// The model's own, but for the keys that say how it was split, and the label of what was quantized anew.
    fn metadata(
        &self,
        quantized: &[QuantizedTensor],
        dense: &[WrittenDense<'_>],
    ) -> Result<GgufMetadata, Error> {
        let said = self.metadata.get(FILE_TYPE);
        let label = match quantized {
            [] => None,
            [..] => Some(general::file_type(self, quantized, dense)?),
        };
        let is_split = |key: &str| key.starts_with("split.");
        if !self.metadata.iter().any(|(key, _)| is_split(key))
            && label.is_none_or(|label| said.and_then(GgufValue::as_u64) == Some(label.into()))
        {
            return Ok(self.metadata.clone());
        }
        let mut metadata = GgufMetadata::new();
        for (key, value) in self.metadata.iter().filter(|(key, _)| !is_split(key)) {
            match label.filter(|_| key == FILE_TYPE) {
                Some(label) => metadata.push(key, GgufValue::U32(label)),
                None => metadata.push(key, value),
            }
        }
        Ok(metadata)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Clause T2.
    #[test]
    fn rows_that_are_no_whole_blocks_take_what_llama_quantize_takes() {
        let mut n_blocks = 0;
        for name in Writer.presets() {
            let preset = Preset::by_name(name).unwrap();
            let WeightCode::Block(wanted) = preset.weights else {
                continue;
            };
            let found = |columns: u64| {
                let tensor = Writer.lay_out("m", &[3, columns], &preset, Float::Bf16)?;
                match tensor.parts.first().map(|part| &part.storage) {
                    Some(Storage::Blocks { format }) => Ok::<_, Error>(*format),
                    other => panic!("{name}: {other:?}"),
                }
            };
            assert_eq!(found(512).unwrap(), wanted, "{name}");
            let fallback = match *name {
                "Q2_K" | "Q3_K" => BlockFormat::Q4_0,
                "Q4_K" => BlockFormat::Q5_0,
                "Q5_K" => BlockFormat::Q5_1,
                "Q6_K" => BlockFormat::Q8_0,
                "IQ4_XS" | "IQ3_S" | "IQ3_XXS" | "IQ2_S" | "IQ2_XS" | "IQ2_XXS" => {
                    BlockFormat::Iq4Nl
                }
                _ => wanted,
            };
            assert_eq!(found(384).unwrap(), fallback, "{name}");
            assert!(found(40).is_err(), "{name}");
            n_blocks += 1;
        }
        assert_eq!(n_blocks, 17);
    }

    #[test]
    fn blocks_of_a_code_book_are_no_integers() {
        for (name, is_integer) in [
            ("Q4_K", true),
            ("IQ4_NL", false),
            ("IQ4_XS", false),
            ("IQ3_S", false),
            ("IQ2_XXS", false),
        ] {
            let preset = Preset::by_name(name).unwrap();
            assert_eq!(preset.weights.is_integer(), is_integer, "{name}");
            assert!(!preset.weights.is_asymmetric() || is_integer, "{name}");
        }
    }
}
