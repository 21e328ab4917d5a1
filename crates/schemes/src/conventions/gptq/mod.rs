//! GPTQ: AutoGPTQ, GPTQModel and everyone who took over their layout (specs/conventions/gptq.md).

mod config;
mod evidence;
mod write;

use safequant_container::{Dtype, TensorInfo};

use self::config::{Config, Format, ModuleArgs, Writer};
use crate::binding::{
    check_dtype, part, qweight_modules, required, unsupported, wrong_dtype, wrong_shape,
};
use crate::config::{GroupSize, implied_group_size};
use crate::scheme::{Packing, float_of};
use crate::{
    Axes, Axis, Code, Convention, ConventionWriter, Error, Granularity, Headers, IntegerEncoding,
    QuantizedTensor, Recognized, Role, ScaleCoding, Scheme, Storage, ZeroCoding, ZeroPoint,
};

/// GPTQ v1, which stores zero points minus one.
pub struct Gptq;

/// GPTQ v2: zero points as they are.
pub struct GptqV2;

impl Convention for Gptq {
    fn id(&self) -> &'static str {
        "gptq"
    }

    fn summary(&self) -> &'static str {
        "AutoGPTQ and GPTQModel: 2, 3, 4 or 8 bits in groups, transposed, zero points stored minus one; with act-order"
    }

    fn recognize<'a>(
        &self,
        headers: Headers<'a>,
    ) -> Result<Option<Box<dyn Recognized + 'a>>, Error> {
        recognize(headers, self.id(), Format::V1)
    }

    fn writer(&self) -> Option<&'static dyn ConventionWriter> {
        Some(&write::V1)
    }
}

impl Convention for GptqV2 {
    fn id(&self) -> &'static str {
        "gptq_v2"
    }

    fn summary(&self) -> &'static str {
        "GPTQModel's second format: as gptq, but zero points are stored as they are"
    }

    fn recognize<'a>(
        &self,
        headers: Headers<'a>,
    ) -> Result<Option<Box<dyn Recognized + 'a>>, Error> {
        recognize(headers, self.id(), Format::V2)
    }

    fn writer(&self) -> Option<&'static dyn ConventionWriter> {
        Some(&write::V2)
    }
}

/// GPTQModel's planar format.
pub struct GptqPlanar;

impl Convention for GptqPlanar {
    fn id(&self) -> &'static str {
        "gptq_p"
    }

    fn summary(&self) -> &'static str {
        "GPTQModel's planar format: as gptq_v2, but codes are cut in bit planes; 2 to 8 bits"
    }

    fn recognize<'a>(
        &self,
        headers: Headers<'a>,
    ) -> Result<Option<Box<dyn Recognized + 'a>>, Error> {
        recognize(headers, self.id(), Format::Planar)
    }

    fn writer(&self) -> Option<&'static dyn ConventionWriter> {
        Some(&write::PLANAR)
    }
}

fn recognize<'a>(
    headers: Headers<'a>,
    id: &'static str,
    format: Format,
) -> Result<Option<Box<dyn Recognized + 'a>>, Error> {
    let mut modules: Vec<String> = qweight_modules(headers).map(str::to_owned).collect();
    let config = match Config::find(headers)? {
        Some(config) => config,
        None if !headers.settings()?.is_empty() => return Ok(None),
        None => {
            modules.retain(|module| evidence::is_gptq(headers, module));
            match evidence::format_of(headers, &modules)? {
                Some(format) => Config::of_tensors(format),
                None => return Ok(None),
            }
        }
    };
    if config.format != format {
        return Ok(None);
    }
    config.check_work(modules.len())?;
    let format = match config.format {
        Format::V1 => "gptq, zero points minus one",
        Format::V2 => "gptq_v2, zero points as they are",
        Format::Planar => "gptq_p, bit planes",
    };
    let writer = match config.writer {
        Writer::GptqModel => " by GPTQModel",
        Writer::Other => "",
    };
    let evidence = vec![
        format!("{} is of {format}{writer}", config.place),
        format!("{} modules with qweight, qzeros and scales", modules.len()),
    ];
    Ok(Some(Box::new(Found {
        headers,
        id,
        config,
        modules,
        evidence,
    })))
}

/// What was found.
struct Found<'a> {
    headers: Headers<'a>,
    id: &'static str,
    config: Config,
    modules: Vec<String>,
    evidence: Vec<String>,
}

/// The parts of a module.
struct Parts<'a> {
    qweight: &'a TensorInfo,
    qzeros: &'a TensorInfo,
    scales: &'a TensorInfo,
    g_idx: Option<&'a TensorInfo>,
    /// Bytes of a packed word.
    word: u64,
}

impl Recognized for Found<'_> {
    fn modules(&self) -> &[String] {
        &self.modules
    }

    fn orphans(&self) -> &[String] {
        &[]
    }

    fn evidence(&self) -> &[String] {
        &self.evidence
    }

    fn bind(&self, module: &str) -> Result<QuantizedTensor, Error> {
        let args = self.config.module(module)?;
        let contradiction = |config: &str, tensors: &str| Error::Contradiction {
            module: module.to_owned(),
            config: config.to_owned(),
            tensors: tensors.to_owned(),
        };
        let args =
            args.ok_or_else(|| contradiction("dynamic leaves it dense", "it has a qweight"))?;
        let parts = self.parts(module)?;
        let dense = format!("{module}.weight");
        if self.headers.tensor(&dense).is_some() {
            return Err(contradiction(
                "it is quantized",
                "it has both a weight and a qweight",
            ));
        }
        if evidence::is_awq(&parts) {
            return Err(contradiction(
                "it is gptq",
                "its qweight is packed along output features, as AWQ's",
            ));
        }
        let bits = match args.bits {
            Some(bits) => bits,
            None => evidence::bits_of(&parts).ok_or_else(|| {
                let expected = "as many words as one width needs".to_owned();
                wrong_shape(module, parts.qzeros, expected)
            })?,
        };
        let packing = self.packing(module, bits, &parts)?;
        let shape = shape_of(module, packing, &parts)?;
        let size = group_size(module, args, shape[1], &parts)?;
        let scale_float = float_of(parts.scales.dtype)
            .ok_or_else(|| wrong_dtype(module, parts.scales, "F16, BF16 or F32"))?;
        Ok(QuantizedTensor {
            module: module.to_owned(),
            weight: dense,
            convention: self.id,
            shape: shape.to_vec(),
            scheme: Scheme {
                zero_point: ZeroPoint::Stored(self.zero_coding(bits)),
                ..Scheme::plain(
                    Code::Integer {
                        bits,
                        encoding: IntegerEncoding::Unsigned,
                    },
                    match parts.g_idx {
                        Some(_) => Granularity::IndexedGroup { size },
                        None => Granularity::Group { size },
                    },
                    ScaleCoding::Float(scale_float),
                )
            },
            reference_dtype: scale_float,
            parts: parts.bound(packing),
        })
    }
}

impl<'a> Found<'a> {
    /// The parts of a module, as far as the configuration allows them.
    fn parts(&self, module: &str) -> Result<Parts<'a>, Error> {
        let parts = Parts::find(self.headers, module)?;
        let qweight = parts.qweight;
        if let Some(stated) = self.config.pack_dtype.filter(|d| *d != qweight.dtype) {
            return Err(Error::Contradiction {
                module: module.to_owned(),
                config: format!("pack_dtype is {stated}"),
                tensors: format!("qweight is {}", qweight.dtype),
            });
        }
        Ok(parts)
    }

    fn packing(&self, module: &str, bits: u32, parts: &Parts<'_>) -> Result<Packing, Error> {
        let stream = matches!(bits, 2 | 3 | 4 | 8);
        match self.config.format {
            Format::Planar if parts.word == 4 => Ok(Packing::Planar { bits }),
            Format::V1 | Format::V2 if stream && (bits != 3 || parts.word == 4) => {
                Ok(Packing::LsbFirst { bits })
            }
            format @ (Format::V1 | Format::V2 | Format::Planar) => Err(unsupported(
                module,
                &format!(
                    "GPTQ {format:?} with {bits} bits in words of {} bytes",
                    parts.word
                ),
                "",
            )),
        }
    }

    /// How zero points are stored (gptq.md, section 4). The three rules of v1 differ only where some zero point is 0.
    fn zero_coding(&self, bits: u32) -> ZeroCoding {
        match (self.config.format, self.config.writer) {
            (Format::V2 | Format::Planar, _) => ZeroCoding::Direct,
            (Format::V1, _) if bits == 3 => ZeroCoding::MinusOneModulo,
            (Format::V1, Writer::GptqModel) => ZeroCoding::MinusOneWord,
            (Format::V1, Writer::Other) => ZeroCoding::MinusOne,
        }
    }
}

impl<'a> Parts<'a> {
    /// The parts of a module, their dtypes and ranks checked.
    fn find(headers: Headers<'a>, module: &str) -> Result<Self, Error> {
        let get = |ending: &str| required(headers, module, &format!("{module}.{ending}"));
        let (qweight, qzeros, scales) = (get("qweight")?, get("qzeros")?, get("scales")?);
        check_dtype(module, qweight, &[Dtype::I32, Dtype::I16, Dtype::I8])?;
        check_dtype(module, qzeros, &[qweight.dtype])?;
        for info in [qweight, qzeros, scales] {
            if info.shape.len() != 2 {
                return Err(wrong_shape(module, info, "a matrix".to_owned()));
            }
        }
        let g_idx = headers.tensor(&format!("{module}.g_idx"));
        // Very old files hold an empty one.
        let g_idx = g_idx.filter(|i| i.n_elements() > 0);
        if let Some(info) = g_idx {
            check_dtype(module, info, &[Dtype::I32, Dtype::I64])?;
            if info.shape.len() != 1 {
                return Err(wrong_shape(
                    module,
                    info,
                    "one group per input feature".to_owned(),
                ));
            }
        }
        Ok(Parts {
            qweight,
            qzeros,
            scales,
            g_idx,
            word: qweight.dtype.bits() / 8,
        })
    }

    fn bound(&self, packing: Packing) -> Vec<crate::Part> {
        let axes = Axes::InOut;
        let packed = |along| Storage::Packed {
            axes,
            packing,
            along,
        };
        let mut parts = vec![
            part(Role::Codes, self.qweight, packed(Axis::In)),
            part(Role::ZeroPoint, self.qzeros, packed(Axis::Out)),
            part(Role::Scale, self.scales, Storage::Elements { axes }),
        ];
        if let Some(info) = self.g_idx {
            parts.push(part(Role::GroupIndex, info, Storage::Vector));
        }
        parts
    }
}

/// Words that a run takes.
fn words(packing: Packing, n: u64, word: u64) -> u64 {
    let (codes, bytes) = packing.codes_per_unit();
    let (codes, bytes) = (crate::storage::to_u64(codes), crate::storage::to_u64(bytes));
    let rest = (n % codes)
        .saturating_mul(u64::from(packing.bits()))
        .div_ceil(8);
    let rest = if matches!(packing, Packing::LsbFirst { .. }) {
        rest
    } else {
        bytes * u64::from(!n.is_multiple_of(codes))
    };
    (n / codes)
        .saturating_mul(bytes)
        .saturating_add(rest)
        .div_ceil(word)
}

/// `[out_features, in_features]`: in from the group index (or from full words), out from the scales.
fn shape_of(module: &str, packing: Packing, parts: &Parts<'_>) -> Result<[u64; 2], Error> {
    let rows = parts.qweight.shape[0];
    let out_features = parts.scales.shape[1];
    let in_features = match parts.g_idx {
        Some(info) => info.n_elements(),
        None => rows.saturating_mul(parts.word * 8) / u64::from(packing.bits()),
    };
    let expected = words(packing, in_features, parts.word);
    if rows != expected || parts.qweight.shape[1] != out_features {
        let expected = format!("[{expected}, {out_features}]");
        return Err(wrong_shape(module, parts.qweight, expected));
    }
    let (groups, columns) = (
        parts.scales.shape[0],
        words(packing, out_features, parts.word),
    );
    if parts.qzeros.shape != [groups, columns] {
        return Err(wrong_shape(
            module,
            parts.qzeros,
            format!("[{groups}, {columns}]"),
        ));
    }
    Ok([out_features, in_features])
}

/// Input features per group, agreeing with the number of scales.
fn group_size(
    module: &str,
    args: ModuleArgs,
    in_features: u64,
    parts: &Parts<'_>,
) -> Result<u64, Error> {
    let groups = parts.scales.shape[0];
    let size = match args.group_size {
        Some(GroupSize::WholeRow) => in_features.max(1),
        Some(GroupSize::Features(size)) => size,
        // With a group index any size will do that gives so many groups.
        None => implied_group_size(in_features, groups)
            .or_else(|| {
                Some(in_features.div_ceil(groups.max(1)).max(1)).filter(|_| parts.g_idx.is_some())
            })
            .unwrap_or(1),
    };
    if in_features.div_ceil(size) == groups {
        return Ok(size);
    }
    let expected = format!(
        "{} groups of {size} of {in_features} input features",
        in_features.div_ceil(size)
    );
    Err(wrong_shape(module, parts.scales, expected))
}
