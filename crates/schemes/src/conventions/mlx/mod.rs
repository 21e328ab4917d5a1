//! MLX: integers with a scale and a bias for each group, and its MXFP4, MXFP8 and NVFP4; the same payload as mistral.rs
//! and transformers' metal quantizer spell it (specs/conventions/mlx.md).

mod config;
mod write;

use safequant_container::{Dtype, TensorInfo};
use safequant_kernels::{Float, Minifloat};

use self::config::{Args, Config, Entry, Mode};
use crate::binding::{check_dtype, part, required, unsupported, wrong_dtype, wrong_shape};
use crate::scheme::{Packing, float_of};
use crate::{
    Arithmetic, Axes, Axis, Code, Convention, ConventionWriter, E8M0Rule, Error, Granularity,
    Headers, IntegerEncoding, OffsetForm, Part, QuantizedTensor, Recognized, Role, ScaleCoding,
    Scheme, Storage, ZeroPoint,
};

/// See the module.
pub struct Mlx;

/// The id.
const ID: &str = "mlx";
/// Bits of a packed word.
const WORD_BITS: u64 = 32;

impl Convention for Mlx {
    fn id(&self) -> &'static str {
        ID
    }

    fn summary(&self) -> &'static str {
        "MLX: 1 to 8 bits with scale and bias per group, mxfp4, mxfp8, nvfp4; mistral.rs AFQ; transformers' metal"
    }

    fn recognize<'a>(
        &self,
        headers: Headers<'a>,
    ) -> Result<Option<Box<dyn Recognized + 'a>>, Error> {
        let config = Config::find(headers)?;
        let modules: Vec<String> = headers
            .tensors()
            .filter(|info| info.dtype == Dtype::U32)
            .filter_map(|info| info.name.strip_suffix(".weight"))
            .filter(|module| Spelling::of(headers, module).is_some())
            .map(str::to_owned)
            .collect();
        if modules.is_empty() && config.place.is_none() {
            return Ok(None);
        }
        for module in config.announced() {
            let dense = headers.tensor(&format!("{module}.weight"));
            if let Some(info) = dense.filter(|i| i.dtype != Dtype::U32) {
                return Err(Error::Contradiction {
                    module: module.to_owned(),
                    config: "it is quantized".to_owned(),
                    tensors: format!("its weight is {}", info.dtype),
                });
            }
        }
        let mut evidence: Vec<String> = config.describe().into_iter().collect();
        evidence.push(format!(
            "{} modules with a U32 weight and scales",
            modules.len()
        ));
        Ok(Some(Box::new(Found {
            headers,
            config,
            modules,
            evidence,
        })))
    }

    fn writer(&self) -> Option<&'static dyn ConventionWriter> {
        Some(&write::Writer)
    }
}

/// Whose names a module's tensors have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spelling {
    /// `<m>.scales`, `<m>.biases`: MLX, mistral.rs.
    Mlx,
    /// `<m>.scales`, `<m>.qbiases`: transformers' metal quantizer.
    Metal,
    /// `<m>.weight.scales`, `<m>.weight.biases`, and the sizes in tensors of their own: mistral.rs' UQFF.
    Uqff,
}

impl Spelling {
    fn of(headers: Headers<'_>, module: &str) -> Option<Self> {
        let has = |ending: &str| headers.tensor(&format!("{module}.{ending}")).is_some();
        match (has("scales"), has("weight.scales")) {
            (true, _) if has("qbiases") => Some(Spelling::Metal),
            (true, _) => Some(Spelling::Mlx),
            (false, true) => Some(Spelling::Uqff),
            (false, false) => None,
        }
    }

    /// Endings of scales and biases.
    const fn names(self) -> (&'static str, &'static str) {
        match self {
            Spelling::Mlx => ("scales", "biases"),
            Spelling::Metal => ("scales", "qbiases"),
            Spelling::Uqff => ("weight.scales", "weight.biases"),
        }
    }
}

/// What was found.
struct Found<'a> {
    headers: Headers<'a>,
    config: Config,
    modules: Vec<String>,
    evidence: Vec<String>,
}

/// The tensors of a module.
struct Parts<'a> {
    weight: &'a TensorInfo,
    scales: &'a TensorInfo,
    biases: Option<&'a TensorInfo>,
}

/// Bits of a code and input features of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sizes {
    bits: u32,
    group: u64,
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
        let spelling = Spelling::of(self.headers, module).ok_or_else(|| Error::MissingPart {
            module: module.to_owned(),
            part: format!("{module}.scales"),
        })?;
        let parts = self.parts(module, spelling)?;
        let args = match self.config.module(module)? {
            Entry::Quantized(args) => args,
            Entry::Dense => {
                return Err(contradiction(
                    module,
                    "it is left dense",
                    "it has a U32 weight and scales",
                ));
            }
        };
        let (args, descriptors) = match spelling {
            Spelling::Mlx | Spelling::Metal => (args, Vec::new()),
            Spelling::Uqff => self.uqff_sizes(module)?,
        };
        let mode = mode_of(module, args, &parts)?;
        let sizes = sizes_of(module, mode, args, &parts)?;
        let shape = shape_of(module, sizes, &parts)?;
        let packed = Storage::Packed {
            axes: Axes::OutIn,
            packing: Packing::LsbFirst { bits: sizes.bits },
            along: Axis::In,
        };
        let elements = Storage::Elements { axes: Axes::OutIn };
        let mut bound = vec![
            part(Role::Codes, parts.weight, packed),
            part(Role::Scale, parts.scales, elements),
        ];
        if let Some(biases) = parts.biases {
            bound.push(part(Role::Offset, biases, elements));
        }
        bound.extend(descriptors);
        let float = float_of(parts.scales.dtype);
        let scheme = scheme(mode, sizes, float.unwrap_or(Float::F32));
        Ok(QuantizedTensor {
            module: module.to_owned(),
            weight: parts.weight.name.to_string(),
            convention: ID,
            shape,
            scheme: match spelling {
                Spelling::Mlx | Spelling::Uqff => scheme,
                // Its `dequantize` computes in F32 and rounds once.
                Spelling::Metal => Scheme {
                    arithmetic: Arithmetic::ScaledDifference,
                    ..scheme
                },
            },
            reference_dtype: float.unwrap_or(Float::Bf16),
            parts: bound,
        })
    }
}

impl<'a> Found<'a> {
    /// The tensors of a module, dtypes and ranks checked.
    fn parts(&self, module: &str, spelling: Spelling) -> Result<Parts<'a>, Error> {
        let get = |ending: &str| required(self.headers, module, &format!("{module}.{ending}"));
        let (scales_name, biases_name) = spelling.names();
        let (weight, scales) = (get("weight")?, get(scales_name)?);
        let biases = self.headers.tensor(&format!("{module}.{biases_name}"));
        check_dtype(module, weight, &[Dtype::U32])?;
        let rank = weight.shape.len();
        if rank < 2 {
            return Err(wrong_shape(
                module,
                weight,
                "a matrix or a stack of matrices".to_owned(),
            ));
        }
        if scales.shape.len() != rank || scales.shape[..rank - 1] != weight.shape[..rank - 1] {
            let expected = format!("{:?} and a number of groups", &weight.shape[..rank - 1]);
            return Err(wrong_shape(module, scales, expected));
        }
        if let Some(biases) = biases {
            check_dtype(module, biases, &[scales.dtype])?;
            if biases.shape != scales.shape {
                return Err(wrong_shape(module, biases, format!("{:?}", scales.shape)));
            }
        }
        let global = format!("{module}.global_scale");
        if self.headers.tensor(&global).is_some() {
            return Err(unsupported(module, "MLX nvfp4 with a global scale", ""));
        }
        Ok(Parts {
            weight,
            scales,
            biases,
        })
    }

    /// Bits and group size of UQFF, from tensors of one number each.
    fn uqff_sizes(&self, module: &str) -> Result<(Args, Vec<Part>), Error> {
        let mut descriptors = Vec::new();
        let mut number = |ending: &str| -> Result<u64, Error> {
            let name = format!("{module}.weight.{ending}");
            let info = required(self.headers, module, &name)?;
            check_dtype(module, info, &[Dtype::U8])?;
            let content = self.headers.descriptor(&name)?;
            let &[value] = content.as_slice() else {
                return Err(wrong_shape(module, info, "one number".to_owned()));
            };
            descriptors.push(Part {
                content: Some(content),
                ..part(Role::Auxiliary, info, Storage::Vector)
            });
            Ok(u64::from(value))
        };
        let (bits, group) = (number("bits")?, number("group_size")?);
        let narrow = u32::try_from(bits).ok().filter(|b| (1..=8).contains(b));
        let bits = narrow.ok_or_else(|| {
            let format = format!("mistral.rs AFQ with bits {bits}");
            unsupported(module, &format, "1 to 8 are integers")
        })?;
        let args = Args {
            mode: Some(Mode::Affine),
            bits: Some(bits),
            group: Some(group),
        };
        Ok((args, descriptors))
    }
}

fn contradiction(module: &str, config: &str, tensors: &str) -> Error {
    Error::Contradiction {
        module: module.to_owned(),
        config: config.to_owned(),
        tensors: tensors.to_owned(),
    }
}

/// The mode that dtypes tell (affine or not), and the configuration or the ratio of columns among the others.
fn mode_of(module: &str, args: Args, parts: &Parts<'_>) -> Result<Mode, Error> {
    let bytes = [Dtype::U8, Dtype::F8E8M0, Dtype::F8E4M3];
    if bytes.contains(&parts.scales.dtype) {
        if let Some(biases) = parts.biases {
            let tensors = format!(
                "{} is {}, but there is {}",
                parts.scales.name, parts.scales.dtype, biases.name
            );
            let config = args.mode.map_or("nothing of the mode", Mode::name);
            return Err(contradiction(module, config, &tensors));
        }
        let ratio = ratio(parts);
        return match args.mode {
            Some(Mode::Affine) => {
                let tensors = format!("{} is {}", parts.scales.name, parts.scales.dtype);
                Err(contradiction(module, "affine", &tensors))
            }
            Some(mode @ (Mode::Mxfp4 | Mode::Mxfp8 | Mode::Nvfp4)) => Ok(mode),
            None if ratio == Some(128) => Ok(Mode::Mxfp4),
            None if ratio == Some(256) => Ok(Mode::Mxfp8),
            None if ratio == Some(64) => Ok(Mode::Nvfp4),
            None => Err(wrong_shape(
                module,
                parts.scales,
                "groups of mxfp4, mxfp8 or nvfp4".to_owned(),
            )),
        };
    }
    if float_of(parts.scales.dtype).is_none() {
        return Err(wrong_dtype(
            module,
            parts.scales,
            "F32, F16, BF16, or U8 of mxfp4, mxfp8 or nvfp4",
        ));
    }
    match args.mode {
        Some(mode @ (Mode::Mxfp4 | Mode::Mxfp8 | Mode::Nvfp4)) => {
            let tensors = format!("{} is {}", parts.scales.name, parts.scales.dtype);
            Err(contradiction(module, mode.name(), &tensors))
        }
        None | Some(Mode::Affine) => match parts.biases {
            Some(_) => Ok(Mode::Affine),
            None => Err(Error::MissingPart {
                module: module.to_owned(),
                part: format!("{module}.biases"),
            }),
        },
    }
}

/// Bits of the weight for each scale, `bits * group_size`, where it is a whole number.
fn ratio(parts: &Parts<'_>) -> Option<u64> {
    let (words, groups) = (last(parts.weight), last(parts.scales));
    let bits = words.checked_mul(WORD_BITS)?;
    let ratio = bits.checked_div(groups)?;
    (ratio > 0 && ratio * groups == bits).then_some(ratio)
}

fn last(info: &TensorInfo) -> u64 {
    info.shape.last().copied().unwrap_or(0)
}

/// Bits and group size: what is said, and what the shapes leave open only where they leave no choice.
fn sizes_of(module: &str, mode: Mode, args: Args, parts: &Parts<'_>) -> Result<Sizes, Error> {
    let check = |sizes: Sizes| {
        let product = u64::from(sizes.bits).checked_mul(sizes.group);
        let fits = product.and_then(|p| p.checked_mul(last(parts.scales)))
            == last(parts.weight).checked_mul(WORD_BITS);
        if fits && sizes.bits > 0 {
            return Ok(sizes);
        }
        let config = format!("bits {}, group_size {}", sizes.bits, sizes.group);
        let tensors = format!(
            "{} columns of words and {} of scales",
            last(parts.weight),
            last(parts.scales)
        );
        Err(contradiction(module, &config, &tensors))
    };
    if mode != Mode::Affine {
        let (bits, group) = mode.default_sizes();
        let other = args.bits.is_some_and(|b| b != bits) || args.group.is_some_and(|g| g != group);
        if other {
            let found = format!(
                "{} with bits {:?}, group_size {:?}",
                mode.name(),
                args.bits,
                args.group
            );
            let only = format!("bits {bits} and group_size {group} are all there is");
            return Err(unsupported(module, &found, &only));
        }
        return check(Sizes { bits, group });
    }
    let candidates: Vec<Sizes> = match (args.bits, args.group) {
        (Some(bits), Some(group)) => vec![Sizes { bits, group }],
        _ => match ratio(parts) {
            Some(ratio) => candidates(ratio, args),
            None => Vec::new(),
        },
    };
    match candidates.as_slice() {
        [one] => check(*one),
        several => {
            let shown: Vec<String> = several
                .iter()
                .map(|s| format!("{} bits in groups of {}", s.bits, s.group))
                .collect();
            let detail = if shown.is_empty() {
                "no bits and group size fit its columns".to_owned()
            } else {
                format!("its shapes fit {}", shown.join(", "))
            };
            Err(unsupported(
                module,
                "MLX without a configuration of bits and group_size",
                &detail,
            ))
        }
    }
}

/// What MLX can write whose product is `ratio`, as far as one of the two is not given.
fn candidates(ratio: u64, args: Args) -> Vec<Sizes> {
    let mut found = Vec::new();
    for bits in [1, 2, 3, 4, 5, 6, 8] {
        let fits = args.bits.is_none_or(|b| b == bits) && ratio.is_multiple_of(u64::from(bits));
        let group = ratio / u64::from(bits);
        let known = [32, 64, 128].contains(&group) && args.group.is_none();
        if fits && (known || args.group == Some(group)) {
            found.push(Sizes { bits, group });
        }
    }
    found
}

/// `[.., out_features, in_features]`.
fn shape_of(module: &str, sizes: Sizes, parts: &Parts<'_>) -> Result<Vec<u64>, Error> {
    let mut shape = parts.scales.shape.to_vec();
    let columns = last(parts.scales).checked_mul(sizes.group);
    let too_large = || Error::TooLarge {
        module: module.to_owned(),
        what: "a row",
    };
    if let Some(last) = shape.last_mut() {
        *last = columns.ok_or_else(too_large)?;
    }
    shape
        .iter()
        .try_fold(1_u64, |n, &d| n.checked_mul(d))
        .ok_or_else(too_large)?;
    Ok(shape)
}

/// What the numbers of a mode mean; `float` is the dtype of affine scales.
fn scheme(mode: Mode, sizes: Sizes, float: Float) -> Scheme {
    let granularity = Granularity::Group { size: sizes.group };
    let power = ScaleCoding::E8M0(E8M0Rule::TopIsInfinity);
    let plain = |code, coding| Scheme::plain(Code::Minifloat(code), granularity, coding);
    match mode {
        Mode::Affine => Scheme {
            zero_point: ZeroPoint::Offset {
                zero: 0,
                form: OffsetForm::Added,
            },
            arithmetic: Arithmetic::EachStep(float),
            ..Scheme::plain(
                Code::Integer {
                    bits: sizes.bits,
                    encoding: IntegerEncoding::Unsigned,
                },
                granularity,
                ScaleCoding::Float(float),
            )
        },
        Mode::Mxfp4 => plain(Minifloat::E2M1, power),
        Mode::Mxfp8 => plain(Minifloat::E4M3, power),
        Mode::Nvfp4 => plain(Minifloat::E2M1, ScaleCoding::Minifloat(Minifloat::E4M3)),
    }
}
