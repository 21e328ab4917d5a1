//! NVIDIA `ModelOpt`: FP8, NVFP4, MXFP8 and INT4 as `export_hf_checkpoint` writes them (specs/conventions/modelopt.md).

mod config;
mod shapes;
mod write;

use std::collections::BTreeSet;

use safequant_container::{Dtype, TensorInfo};
use safequant_kernels::{Float, Minifloat};

use self::config::{Config, Layer};
use self::shapes::{Layout, block_grid, nibbles_along_in, nibbles_along_out, with_scales};
use crate::binding::{check_dtype, part, required, unsupported, wrong_dtype, wrong_shape};
use crate::scheme::float_of;
use crate::{
    Arithmetic, Axes, Basis, Code, ColumnFactor, Convention, ConventionWriter, E8M0Rule, Error,
    Granularity, Headers, IntegerEncoding, Part, QuantizedTensor, Recognized, Role, ScaleCoding,
    Scheme, Storage, SuperScale, ZeroPoint,
};

/// See the module.
pub struct ModelOpt;

/// The id.
const ID: &str = "modelopt";

/// Endings of a module's tensors beside its codes.
const COMPANIONS: [&str; 3] = ["weight_scale", "weight_scale_2", "input_scale"];
/// Endings of KV-cache scales and biases.
const ATTENTION: [&str; 5] = ["k_scale", "v_scale", "kv_scale", "k_bias", "v_bias"];

impl Convention for ModelOpt {
    fn id(&self) -> &'static str {
        ID
    }

    fn summary(&self) -> &'static str {
        "NVIDIA ModelOpt: FP8 per tensor, channel or block, NVFP4, MXFP8, INT4 AWQ, mixed"
    }

    fn recognize<'a>(
        &self,
        headers: Headers<'a>,
    ) -> Result<Option<Box<dyn Recognized + 'a>>, Error> {
        let config = Config::find(headers)?;
        if config.is_none() && !explains_itself(headers)? {
            return Ok(None);
        }
        let found = Found::new(headers, config)?;
        Ok(Some(Box::new(found)))
    }

    fn writer(&self) -> Option<&'static dyn ConventionWriter> {
        Some(&write::Writer)
    }
}

/// Without settings only NVFP4 in `ModelOpt`'s names will do: packed nibbles, E4M3 block scales and a tensor scale. `ComfyUI`
/// has the same names, with marks of its own and the scales in tiles; where the marks are missing, a grid of scales that
/// tiles cannot have proves that it is not tiled.
fn explains_itself(headers: Headers<'_>) -> Result<bool, Error> {
    let is_marked = |i: &TensorInfo| i.name.ends_with(".comfy_quant");
    if !headers.settings()?.is_empty()
        || headers.metadata("_quantization_metadata").is_some()
        || headers.tensors().any(is_marked)
    {
        return Ok(false);
    }
    let is_linear = |info: &TensorInfo| {
        let second = format!("{}_2", info.name);
        let rest = info.name.strip_suffix("_scale")?;
        let codes = headers.tensor(rest)?;
        let (&[rows, columns], &[n, bytes]) = (info.shape.as_slice(), codes.shape.as_slice())
        else {
            return None;
        };
        let is_grid = rows == n && columns.checked_mul(8) == Some(bytes);
        let is_tiled = rows.is_multiple_of(128) && columns.is_multiple_of(4);
        let dtypes = info.dtype == Dtype::F8E4M3 && codes.dtype == Dtype::U8;
        (dtypes && is_grid && !is_tiled && headers.tensor(&second).is_some()).then_some(())
    };
    Ok(headers
        .tensors()
        .filter(|i| i.name.ends_with(".weight_scale"))
        .any(|i| is_linear(i).is_some()))
}

/// What was found.
struct Found<'a> {
    headers: Headers<'a>,
    config: Option<Config>,
    reference: Float,
    modules: Vec<String>,
    orphans: Vec<String>,
    evidence: Vec<String>,
}

/// The names of a module's tensors: `<m>.weight`, `<m>.weight_scale` ..., and where experts are fused
/// `<m>`, `<m>_weight_scale` ....
struct Names {
    codes: String,
    prefix: String,
}

impl Names {
    fn of(headers: Headers<'_>, module: &str) -> Self {
        let weight = format!("{module}.weight");
        if headers.tensor(&weight).is_some() {
            return Self {
                codes: weight,
                prefix: format!("{module}."),
            };
        }
        Self {
            codes: module.to_owned(),
            prefix: format!("{module}_"),
        }
    }

    fn part(&self, ending: &str) -> String {
        format!("{}{ending}", self.prefix)
    }
}

/// The module of which a tensor holds the codes.
fn module_of<'i>(headers: Headers<'_>, info: &'i TensorInfo) -> Option<&'i str> {
    if !matches!(info.dtype, Dtype::F8E4M3 | Dtype::U8 | Dtype::I8) || info.shape.len() < 2 {
        return None;
    }
    if let Some(module) = info.name.strip_suffix(".weight") {
        return Some(module);
    }
    let scale = format!("{}_weight_scale", info.name);
    headers.tensor(&scale).map(|_| info.name.as_str())
}

impl<'a> Found<'a> {
    fn new(headers: Headers<'a>, config: Option<Config>) -> Result<Self, Error> {
        let modules: BTreeSet<&str> = headers
            .tensors()
            .filter_map(|info| module_of(headers, info))
            .collect();
        if let Some(config) = &config {
            config.check_work(modules.len())?;
        }
        let is_orphan = |info: &TensorInfo| {
            info.name.rsplit_once('.').is_some_and(|(module, ending)| {
                ATTENTION.contains(&ending)
                    || (COMPANIONS.contains(&ending) && !modules.contains(module))
            })
        };
        let orphans = headers.tensors().filter(|i| is_orphan(i));
        let mut evidence = vec![format!("{} quantized weights", modules.len())];
        match &config {
            Some(config) => {
                evidence.insert(0, format!("{}: {}", config.place, config.layer.algo));
            }
            None => evidence.insert(0, "no configuration: NVFP4 by its names".to_owned()),
        }
        Ok(Self {
            orphans: orphans.map(|i| i.name.to_string()).collect(),
            modules: modules.into_iter().map(str::to_owned).collect(),
            reference: headers.model_dtype()?.unwrap_or(Float::Bf16),
            headers,
            config,
            evidence,
        })
    }
}

/// What kind of codes and scales a module has, by the dtypes of its tensors alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Fp8,
    MxFp8,
    NvFp4,
    MxFp4,
    Int4,
    Int8,
}

impl Kind {
    fn of(module: &str, codes: &TensorInfo, scale: &TensorInfo) -> Result<Self, Error> {
        let is_float = float_of(scale.dtype).is_some();
        let is_e8m0 = matches!(scale.dtype, Dtype::U8 | Dtype::F8E8M0);
        let found = if codes.dtype == Dtype::U8 {
            match (is_float, is_e8m0) {
                (true, _) => Some(Kind::Int4),
                (_, true) => Some(Kind::MxFp4),
                _ => (scale.dtype == Dtype::F8E4M3).then_some(Kind::NvFp4),
            }
        } else if codes.dtype == Dtype::I8 {
            is_float.then_some(Kind::Int8)
        } else {
            match (is_float, is_e8m0) {
                (true, _) => Some(Kind::Fp8),
                (_, true) => Some(Kind::MxFp8),
                _ => None,
            }
        };
        let expected = format!("the scales of {} weights", codes.dtype);
        found.ok_or_else(|| wrong_dtype(module, scale, &expected))
    }

    /// The values of `quant_algo` that mean this kind.
    fn algos(self) -> &'static [&'static str] {
        match self {
            Kind::Fp8 => &[
                "FP8",
                "FP8_PER_CHANNEL_PER_TOKEN",
                "FP8_PB_WO",
                "FP8_PB_REAL",
            ],
            Kind::MxFp8 => &["MXFP8"],
            Kind::NvFp4 => &["NVFP4", "NVFP4_AWQ", "W4A16_NVFP4", "W4A8_NVFP4_FP8"],
            Kind::MxFp4 => &["MXFP4", "W4A8_MXFP4_FP8"],
            Kind::Int4 => &["W4A16_AWQ", "W4A8_AWQ"],
            Kind::Int8 => &["W8A16", "W8A8_SQ_PER_CHANNEL"],
        }
    }
}

impl Recognized for Found<'_> {
    fn modules(&self) -> &[String] {
        &self.modules
    }

    fn orphans(&self) -> &[String] {
        &self.orphans
    }

    fn evidence(&self) -> &[String] {
        &self.evidence
    }

    fn bind(&self, module: &str) -> Result<QuantizedTensor, Error> {
        let names = Names::of(self.headers, module);
        let codes = required(self.headers, module, &names.codes)?;
        let scale = required(self.headers, module, &names.part("weight_scale"))?;
        if self
            .headers
            .tensor(&names.part("svdquant_lora_a"))
            .is_some()
        {
            return Err(unsupported(module, "ModelOpt NVFP4_SVD", ""));
        }
        let kind = Kind::of(module, codes, scale)?;
        let layer = self.layer(module, kind)?;
        let (layout, mut scheme) = match kind {
            Kind::Fp8 => self.fp8(module, codes, scale, layer)?,
            Kind::Int8 => int8(module, codes, scale)?,
            Kind::MxFp8 => mxfp8(module, codes, scale)?,
            Kind::NvFp4 => nvfp4(module, codes, scale)?,
            Kind::MxFp4 => mxfp4(module, codes, scale)?,
            Kind::Int4 => int4(module, codes, scale)?,
        };
        check_group(module, scheme.granularity, layer)?;
        let axes = Storage::Elements { axes: layout.axes };
        let mut parts = vec![
            part(Role::Codes, codes, layout.codes),
            part(Role::Scale, scale, axes),
        ];
        if kind == Kind::NvFp4 {
            let second = required(self.headers, module, &names.part("weight_scale_2"))?;
            check_dtype(module, second, &[Dtype::F32])?;
            scheme.super_scale = SuperScale::Multiply;
            // One for each matrix, whichever way those lie.
            let elements = Storage::Elements { axes: Axes::OutIn };
            parts.push(part(Role::SuperScale, second, elements));
        }
        scheme.basis.columns = self.beside(module, &names, &layout.shape, &mut parts)?;
        Ok(QuantizedTensor {
            module: module.to_owned(),
            weight: names.codes,
            convention: ID,
            shape: layout.shape,
            scheme,
            reference_dtype: self.reference,
            parts,
        })
    }
}

impl Found<'_> {
    /// What the configuration says of a module, checked against the kind of its tensors.
    fn layer(&self, module: &str, kind: Kind) -> Result<Option<&Layer>, Error> {
        let Some(config) = &self.config else {
            return Ok(None);
        };
        let contradiction = |claim: String| Error::Contradiction {
            module: module.to_owned(),
            config: claim,
            tensors: format!("it is {kind:?}"),
        };
        if let Some(pattern) = config.excludes(module)? {
            return Err(contradiction(format!(
                "the module is excluded by `{pattern}`"
            )));
        }
        let layer = config.of(module);
        match layer {
            Some(layer) if !kind.algos().contains(&layer.algo.as_str()) => {
                Err(contradiction(format!("quant_algo {}", layer.algo)))
            }
            _ => Ok(layer),
        }
    }

    fn fp8(
        &self,
        module: &str,
        codes: &TensorInfo,
        scale: &TensorInfo,
        layer: Option<&Layer>,
    ) -> Result<(Layout, Scheme), Error> {
        let (layout, granularity) = with_scales(module, codes, scale)?;
        let fits = match layer.map(|l| l.algo.as_str()) {
            Some("FP8_PER_CHANNEL_PER_TOKEN") => granularity == Granularity::Channel,
            Some("FP8_PB_WO" | "FP8_PB_REAL") => block_grid(scale).is_some(),
            Some("FP8") => block_grid(scale).is_none(),
            _ => true,
        };
        if !fits {
            let algo = layer.map(|l| l.algo.clone()).unwrap_or_default();
            return Err(wrong_shape(module, scale, format!("the scales of {algo}")));
        }
        let code = Code::Minifloat(Minifloat::E4M3);
        let scheme = Scheme {
            arithmetic: Arithmetic::EachStep(self.reference),
            ..Scheme::plain(code, granularity, dense(module, scale)?)
        };
        Ok((layout, scheme))
    }

    /// The parts that stand beside the weight, and what `pre_quant_scale` means for it.
    fn beside(
        &self,
        module: &str,
        names: &Names,
        shape: &[u64],
        parts: &mut Vec<Part>,
    ) -> Result<ColumnFactor, Error> {
        for ending in ["weight_scale_2", "input_scale"] {
            let name = names.part(ending);
            if let Some(info) = self.headers.tensor(&name)
                && parts.iter().all(|p| p.name != name)
            {
                parts.push(part(Role::Auxiliary, info, Storage::Vector));
            }
        }
        let Some(info) = self.headers.tensor(&names.part("pre_quant_scale")) else {
            return Ok(ColumnFactor::None);
        };
        if float_of(info.dtype).is_none() {
            return Err(wrong_dtype(module, info, "F32, F16 or BF16"));
        }
        let columns = shape.last().copied().unwrap_or(1);
        if info.n_elements() != columns {
            return Err(wrong_shape(module, info, format!("[{columns}]")));
        }
        parts.push(part(Role::ColumnFactor, info, Storage::Vector));
        Ok(ColumnFactor::Inputs)
    }
}

/// The coding of scales that are dense floats.
fn dense(module: &str, scale: &TensorInfo) -> Result<ScaleCoding, Error> {
    let float = float_of(scale.dtype);
    let float = float.ok_or_else(|| wrong_dtype(module, scale, "F32, F16 or BF16"))?;
    Ok(ScaleCoding::Float(float))
}

/// The configured group size must be the one that the shapes have.
fn check_group(module: &str, granularity: Granularity, layer: Option<&Layer>) -> Result<(), Error> {
    match (granularity, layer.and_then(|l| l.group)) {
        (Granularity::Group { size }, Some(declared)) if size != declared => {
            Err(Error::Contradiction {
                module: module.to_owned(),
                config: format!("group_size {declared}"),
                tensors: format!("the scales have groups of {size}"),
            })
        }
        _ => Ok(()),
    }
}

fn int8(module: &str, codes: &TensorInfo, scale: &TensorInfo) -> Result<(Layout, Scheme), Error> {
    let (layout, granularity) = with_scales(module, codes, scale)?;
    let code = Code::Integer {
        bits: 8,
        encoding: IntegerEncoding::TwosComplement,
    };
    let scheme = Scheme {
        zero_point: ZeroPoint::Fixed(128),
        ..Scheme::plain(code, granularity, dense(module, scale)?)
    };
    Ok((layout, scheme))
}

fn int4(module: &str, codes: &TensorInfo, scale: &TensorInfo) -> Result<(Layout, Scheme), Error> {
    let (layout, size) = nibbles_along_out(module, codes, scale)?;
    let code = Code::Integer {
        bits: 4,
        encoding: IntegerEncoding::TwosComplement,
    };
    let granularity = Granularity::Group { size };
    let scheme = Scheme {
        zero_point: ZeroPoint::Fixed(8),
        ..Scheme::plain(code, granularity, dense(module, scale)?)
    };
    Ok((layout, scheme))
}

fn nvfp4(module: &str, codes: &TensorInfo, scale: &TensorInfo) -> Result<(Layout, Scheme), Error> {
    let (layout, size) = nibbles_along_in(module, codes, scale)?;
    let scheme = Scheme {
        super_scale: SuperScale::Multiply,
        basis: Basis::WEIGHT,
        ..Scheme::plain(
            Code::Minifloat(Minifloat::E2M1),
            Granularity::Group { size },
            ScaleCoding::Minifloat(Minifloat::E4M3),
        )
    };
    Ok((layout, scheme))
}

fn mxfp4(module: &str, codes: &TensorInfo, scale: &TensorInfo) -> Result<(Layout, Scheme), Error> {
    let (layout, size) = nibbles_along_in(module, codes, scale)?;
    let code = Code::Minifloat(Minifloat::E2M1);
    let scheme = powers_of_two(module, scale, code, size)?;
    Ok((layout, scheme))
}

fn mxfp8(module: &str, codes: &TensorInfo, scale: &TensorInfo) -> Result<(Layout, Scheme), Error> {
    let shape = codes.shape.to_vec();
    let size = shapes::group(&shape, &scale.shape);
    let size = size.ok_or_else(|| wrong_shape(module, scale, shapes::groups_of(&shape, 32)))?;
    let code = Code::Minifloat(Minifloat::E4M3);
    let scheme = powers_of_two(module, scale, code, size)?;
    Ok((Layout::elements(shape), scheme))
}

/// MX: blocks of 32 with a power of two each; byte 255 is infinite, as `exp2` has it.
fn powers_of_two(module: &str, scale: &TensorInfo, code: Code, size: u64) -> Result<Scheme, Error> {
    if size != 32 {
        return Err(wrong_shape(module, scale, "blocks of 32".to_owned()));
    }
    let granularity = Granularity::Group { size };
    let coding = ScaleCoding::E8M0(E8M0Rule::TopIsInfinity);
    Ok(Scheme::plain(code, granularity, coding))
}
