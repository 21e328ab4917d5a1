//! compressed-tensors: llm-compressor's and vLLM's own format (`specs/conventions/compressed_tensors.md`).

mod config;
mod evidence;
mod grids;
mod layout;
mod sparse;
mod write;

use std::collections::BTreeSet;

use safequant_container::{Dtype, TensorInfo};
use safequant_kernels::Minifloat;

use self::config::{Config, Kind, Order, Strategy, WeightArgs, Zero};
use self::grids::{check_bits, check_grid, grid, last, reference, scale_coding, strategy_of};
use crate::binding::{check_dtype, part, required, unsupported, wrong_shape};
use crate::scheme::{Packing, minifloat_of};
use crate::{
    Axes, Axis, Code, Convention, ConventionWriter, Error, Granularity, Headers, IntegerEncoding,
    Part, QuantizedTensor, Recognized, Role, Scheme, Storage, SuperScale, ZeroCoding, ZeroPoint,
};

/// See the module.
pub struct CompressedTensors;

/// The id.
const ID: &str = "compressed-tensors";

impl Convention for CompressedTensors {
    fn id(&self) -> &'static str {
        ID
    }

    fn summary(&self) -> &'static str {
        "llm-compressor and vLLM: packed integers of 1 to 8 bits, int8, FP8, NVFP4, MXFP4 and MXFP8, per tensor, channel, \
         group or block"
    }

    fn recognize<'a>(
        &self,
        headers: Headers<'a>,
    ) -> Result<Option<Box<dyn Recognized + 'a>>, Error> {
        let Some(config) = Config::find(headers)? else {
            return Ok(None);
        };
        let found = Found::new(headers, config)?;
        let is_ours = found.config.place.is_some() || !found.modules.is_empty();
        Ok(is_ours.then(|| Box::new(found) as Box<dyn Recognized + 'a>))
    }

    fn writer(&self) -> Option<&'static dyn ConventionWriter> {
        Some(&write::Writer)
    }
}

/// Endings of tensors that belong to a module beside its codes.
const COMPANIONS: [&str; 11] = [
    "weight_scale",
    "weight_zero_point",
    "weight_shape",
    "weight_g_idx",
    "weight_global_scale",
    "input_scale",
    "input_zero_point",
    "input_global_scale",
    "input_g_idx",
    "output_scale",
    "output_zero_point",
];
/// Endings of attention and KV-cache scales.
const ATTENTION: [&str; 10] = [
    "k_scale",
    "v_scale",
    "q_scale",
    "kv_scale",
    "k_zero_point",
    "v_zero_point",
    "q_zero_point",
    "k_global_scale",
    "v_global_scale",
    "q_global_scale",
];

/// What was found.
struct Found<'a> {
    headers: Headers<'a>,
    config: Config,
    modules: Vec<String>,
    orphans: Vec<String>,
    evidence: Vec<String>,
}

impl<'a> Found<'a> {
    fn new(headers: Headers<'a>, config: Config) -> Result<Self, Error> {
        let mut modules = BTreeSet::new();
        for info in headers.tensors() {
            if let Some(module) = module_of(headers, info, &config) {
                modules.insert(module.to_owned());
            }
        }
        config.check_work(modules.len())?;
        let orphans = headers
            .tensors()
            .filter(|info| {
                info.name.rsplit_once('.').is_some_and(|(module, ending)| {
                    ATTENTION.contains(&ending)
                        || (COMPANIONS.contains(&ending) && !modules.contains(module))
                })
            })
            .map(|info| info.name.to_string())
            .collect();
        let mut found = Self {
            headers,
            config,
            modules: modules.into_iter().collect(),
            orphans,
            evidence: Vec::new(),
        };
        if found.config.place.is_none() && found.modules.is_empty() {
            found.orphans.clear();
        }
        found.evidence = found.describe();
        Ok(found)
    }
}

/// The module of which a tensor holds the codes.
fn module_of<'i>(headers: Headers<'_>, info: &'i TensorInfo, config: &Config) -> Option<&'i str> {
    if let Some(module) = info.name.strip_suffix(".weight_packed") {
        // Without a configuration, only the layouts that explain themselves.
        let companion = |ending: &str| headers.tensor(&format!("{module}.{ending}"));
        let is_mx = companion("weight_scale").is_some_and(|s| s.dtype == Dtype::U8);
        let is_fp4 = is_mx || companion("weight_global_scale").is_some();
        let explains = companion("weight_shape").is_some() || (info.dtype == Dtype::U8 && is_fp4);
        return (config.place.is_some() || explains).then_some(module);
    }
    if let Some(module) = sparse::module_of(headers, info) {
        return Some(module);
    }
    let module = info.name.strip_suffix(".weight")?;
    let is_small = info.dtype == Dtype::I8 || minifloat_of(info.dtype).is_some();
    (config.place.is_some() && is_small).then_some(module)
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
        if let Some(codes) = self.headers.tensor(&format!("{module}.weight_packed")) {
            self.bind_packed(module, codes)
        } else if let Some(prefix) = sparse::prefix(self.headers, module) {
            self.bind_sparse(module, &prefix)
        } else {
            let codes = required(self.headers, module, &format!("{module}.weight"))?;
            self.bind_unpacked(module, codes)
        }
    }
}

impl Found<'_> {
    /// The weights' arguments that the configuration gives, checked against the kind of codes found.
    fn args(&self, module: &str, kind: Kind, format: &str) -> Result<Option<WeightArgs>, Error> {
        if self.config.place.is_none() {
            return Ok(None);
        }
        let contradiction = |config: String| Error::Contradiction {
            module: module.to_owned(),
            config,
            tensors: format!("it is {format}"),
        };
        let group = self.config.group(module)?;
        let group = group.ok_or_else(|| contradiction("no group targets the module".to_owned()))?;
        if self.config.is_ignored(module)? {
            return Err(contradiction("the module is on the ignore list".to_owned()));
        }
        let args = group.weights.clone();
        let args = args.ok_or_else(|| contradiction(format!("{} has no weights", group.name)))?;
        if args.kind != kind {
            return Err(contradiction(format!(
                "{} has type {:?}",
                group.name, args.kind
            )));
        }
        let declared = group.format.as_deref().or(self.config.format.as_deref());
        let fits = match declared {
            None | Some("mixed-precision" | "fakequant" | "dense") => true,
            Some("naive-quantized") => matches!(format, "int-quantized" | "float-quantized"),
            Some(declared) => declared == format,
        };
        if !fits {
            return Err(contradiction(format!(
                "format {}",
                declared.unwrap_or_default()
            )));
        }
        Ok(Some(args))
    }

    /// `weight_packed`: integers in I32 words, or pairs of E2M1 codes in bytes.
    fn bind_packed(&self, module: &str, codes: &TensorInfo) -> Result<QuantizedTensor, Error> {
        let scales = self.headers.tensor(&format!("{module}.scale_packed"));
        if let Some(scales) = scales {
            return self.bind_marlin(module, codes, scales);
        }
        if codes.dtype == Dtype::U8 {
            return self.bind_fp4(module, codes);
        }
        check_dtype(module, codes, &[Dtype::I32])?;
        let (shape, descriptor) = self.shape(module, &format!("{module}.weight_shape"))?;
        let [rows, columns] = shape;
        let args = match self.args(module, Kind::Integer, "pack-quantized")? {
            Some(args) => args,
            None => self.infer(module, codes, shape)?,
        };
        let packing = self.packing(args.bits, columns, last(codes));
        let packing = packing.filter(|_| codes.shape.len() == 2 && codes.shape[0] == rows);
        let packing = packing.ok_or_else(|| {
            let width = (columns.saturating_mul(u64::from(args.bits))).div_ceil(32);
            let expected = format!("[{rows}, {width}] for {}-bit codes of {shape:?}", args.bits);
            wrong_shape(module, codes, expected)
        })?;
        let storage = Storage::Packed {
            axes: Axes::OutIn,
            packing,
            along: Axis::In,
        };
        let encoding = IntegerEncoding::Unsigned;
        let code = Code::Integer {
            bits: args.bits,
            encoding,
        };
        let parts = vec![
            part(Role::Codes, codes, storage),
            part(Role::Shape, descriptor, Storage::Vector),
        ];
        self.finish(module, shape, code, &args, parts)
    }

    /// `weight_packed` in bytes: E2M1, the even element in the low nibble (clauses F1 to F5).
    fn bind_fp4(&self, module: &str, codes: &TensorInfo) -> Result<QuantizedTensor, Error> {
        let &[rows, bytes] = codes.shape.as_slice() else {
            return Err(wrong_shape(module, codes, "[out, in / 2]".to_owned()));
        };
        let scale = required(self.headers, module, &format!("{module}.weight_scale"))?;
        let format = if matches!(scale.dtype, Dtype::U8 | Dtype::F8E8M0) {
            "mxfp4-pack-quantized"
        } else {
            "nvfp4-pack-quantized"
        };
        let shape = [rows, bytes.saturating_mul(2)];
        let args = match self.args(module, Kind::Float, format)? {
            Some(args) => args,
            None => WeightArgs {
                bits: 4,
                kind: Kind::Float,
                zero: Zero::Symmetric,
                strategy: Some(if format == "mxfp4-pack-quantized" {
                    Strategy::Group(grids::MX_GROUP)
                } else {
                    Strategy::TensorGroup(grids::FP4_GROUP)
                }),
                order: Order::Natural,
            },
        };
        check_bits(module, &args, 4, codes)?;
        let storage = Storage::Packed {
            axes: Axes::OutIn,
            packing: Packing::LsbFirst { bits: 4 },
            along: Axis::In,
        };
        let parts = vec![part(Role::Codes, codes, storage)];
        self.finish(
            module,
            shape,
            Code::Minifloat(Minifloat::E2M1),
            &args,
            parts,
        )
    }

    /// `weight` in I8 or FP8.
    fn bind_unpacked(&self, module: &str, codes: &TensorInfo) -> Result<QuantizedTensor, Error> {
        let &[rows, columns] = codes.shape.as_slice() else {
            let detail = format!("a weight of shape {:?}", codes.shape);
            return Err(unsupported(
                module,
                "compressed-tensors other than matrices",
                &detail,
            ));
        };
        let storage = Storage::Elements { axes: Axes::OutIn };
        let parts = vec![part(Role::Codes, codes, storage)];
        self.bind_bytes(module, [rows, columns], codes, parts)
    }

    /// Codes of a byte each, wherever they lie.
    fn bind_bytes(
        &self,
        module: &str,
        shape: [u64; 2],
        codes: &TensorInfo,
        parts: Vec<Part>,
    ) -> Result<QuantizedTensor, Error> {
        let float = minifloat_of(codes.dtype);
        let scale = required(self.headers, module, &format!("{module}.weight_scale"))?;
        let (kind, format) = match (float, scale.dtype) {
            (Some(_), Dtype::U8 | Dtype::F8E8M0) => (Kind::Float, "mxfp8-quantized"),
            (Some(_), _) => (Kind::Float, "float-quantized"),
            (None, _) => (Kind::Integer, "int-quantized"),
        };
        let args = self.args(module, kind, format)?;
        let args = args.ok_or_else(|| unsupported(module, format, "without a configuration"))?;
        let code = match float {
            Some(minifloat) => {
                check_bits(module, &args, 8, codes)?;
                Code::Minifloat(minifloat)
            }
            None => Code::Integer {
                bits: args.bits,
                encoding: IntegerEncoding::TwosComplement,
            },
        };
        self.finish(module, shape, code, &args, parts)
    }

    /// Adds scales, zero points and the rest.
    fn finish(
        &self,
        module: &str,
        shape: [u64; 2],
        code: Code,
        args: &WeightArgs,
        mut parts: Vec<Part>,
    ) -> Result<QuantizedTensor, Error> {
        let scale = required(self.headers, module, &format!("{module}.weight_scale"))?;
        let coding = scale_coding(module, code, scale)?;
        let strategy = match args.strategy {
            Some(strategy) => strategy,
            None => strategy_of(module, shape, scale)?,
        };
        let grid = grid(strategy, shape);
        check_grid(module, scale, strategy, grid)?;
        parts.push(part(
            Role::Scale,
            scale,
            Storage::Elements { axes: Axes::OutIn },
        ));
        let zero_point = self.zero_point(module, code, args, grid, &mut parts)?;
        let super_scale = self.super_scale(module, code, args, &mut parts)?;
        let granularity = self.granularity(module, strategy, args.order, &mut parts)?;
        self.add_auxiliaries(module, &mut parts);
        Ok(QuantizedTensor {
            module: module.to_owned(),
            weight: format!("{module}.weight"),
            convention: ID,
            shape: shape.to_vec(),
            scheme: Scheme {
                super_scale,
                zero_point,
                ..Scheme::plain(code, granularity, coding)
            },
            reference_dtype: reference(coding),
            parts,
        })
    }

    /// What else belongs to the module.
    fn add_auxiliaries(&self, module: &str, parts: &mut Vec<Part>) {
        for ending in COMPANIONS {
            let name = format!("{module}.{ending}");
            if let Some(info) = self.headers.tensor(&name)
                && parts.iter().all(|p| p.name != name)
            {
                parts.push(part(Role::Auxiliary, info, Storage::Vector));
            }
        }
    }

    /// The global scale of `tensor_group`, which divides the scales (clause F3).
    fn super_scale(
        &self,
        module: &str,
        code: Code,
        args: &WeightArgs,
        parts: &mut Vec<Part>,
    ) -> Result<SuperScale, Error> {
        let name = format!("{module}.weight_global_scale");
        let Some(info) = self.headers.tensor(&name) else {
            return if args.strategy.is_some_and(Strategy::is_nested) {
                Err(Error::MissingPart {
                    module: module.to_owned(),
                    part: name,
                })
            } else {
                Ok(SuperScale::None)
            };
        };
        if !matches!(code, Code::Minifloat(_)) {
            let detail = format!("{name} beside codes that are no floats");
            return Err(unsupported(module, "compressed-tensors", &detail));
        }
        check_dtype(module, info, &[Dtype::F32])?;
        if info.n_elements() != 1 {
            return Err(wrong_shape(module, info, "one number".to_owned()));
        }
        let storage = Storage::Elements { axes: Axes::OutIn };
        parts.push(part(Role::SuperScale, info, storage));
        Ok(SuperScale::Divide)
    }

    /// The zero point, and its part. What is stored wins over `symmetric`: the library subtracts it in any case.
    fn zero_point(
        &self,
        module: &str,
        code: Code,
        args: &WeightArgs,
        grid: [u64; 2],
        parts: &mut Vec<Part>,
    ) -> Result<ZeroPoint, Error> {
        let name = format!("{module}.weight_zero_point");
        let stored = self.headers.tensor(&name);
        let Code::Integer { bits, .. } = code else {
            return match stored {
                None => Ok(ZeroPoint::Fixed(0)),
                Some(_) => Err(unsupported(module, "float codes with zero points", "")),
            };
        };
        let Some(info) = stored else {
            return match args.zero {
                Zero::Symmetric => Ok(ZeroPoint::Fixed(1 << (bits - 1))),
                Zero::Asymmetric => Err(Error::MissingPart {
                    module: module.to_owned(),
                    part: name,
                }),
            };
        };
        check_dtype(module, info, &[Dtype::I8, Dtype::I32])?;
        let axes = Axes::OutIn;
        let (storage, coding) = if info.dtype == Dtype::I8 {
            (Storage::Elements { axes }, ZeroCoding::Signed)
        } else {
            let lanes = info.shape.first().copied().unwrap_or(0);
            let packing = self.packing(bits, grid[0], lanes).ok_or_else(|| {
                wrong_shape(module, info, format!("[{}, {}] packed", grid[0], grid[1]))
            })?;
            (
                Storage::Packed {
                    axes,
                    packing,
                    along: Axis::Out,
                },
                ZeroCoding::Direct,
            )
        };
        let last_fits = info.shape.len() < 2 || last(info) == grid[1];
        let elements = info.dtype != Dtype::I8 || info.n_elements() == grid[0] * grid[1];
        if !last_fits || !elements {
            return Err(wrong_shape(
                module,
                info,
                format!("{grid:?}, or packed along its rows"),
            ));
        }
        parts.push(part(Role::ZeroPoint, info, storage));
        Ok(ZeroPoint::Stored(coding))
    }

    fn granularity(
        &self,
        module: &str,
        strategy: Strategy,
        order: Order,
        parts: &mut Vec<Part>,
    ) -> Result<Granularity, Error> {
        Ok(match strategy {
            Strategy::Tensor => Granularity::Tensor,
            Strategy::Channel => Granularity::Channel,
            Strategy::Block(rows, columns) => Granularity::Block { rows, columns },
            Strategy::TensorGroup(size) => Granularity::Group { size },
            Strategy::Group(size) => {
                let index = self.headers.tensor(&format!("{module}.weight_g_idx"));
                match (order, index) {
                    (Order::Indexed, Some(info)) => {
                        check_dtype(module, info, &[Dtype::I32, Dtype::I64])?;
                        parts.push(part(Role::GroupIndex, info, Storage::Vector));
                        Granularity::IndexedGroup { size }
                    }
                    (Order::Indexed | Order::Natural, _) => Granularity::Group { size },
                }
            }
        })
    }

    /// The logical shape, from `weight_shape` or, of a sparse weight, `shape`.
    fn shape(&self, module: &str, name: &str) -> Result<([u64; 2], &TensorInfo), Error> {
        let info = required(self.headers, module, name)?;
        check_dtype(module, info, &[Dtype::I64, Dtype::I32])?;
        if info.n_elements() != 2 {
            return Err(wrong_shape(module, info, "two numbers".to_owned()));
        }
        let bytes = self.headers.descriptor(name)?;
        let numbers: Vec<i64> = if info.dtype == Dtype::I64 {
            bytes
                .as_chunks()
                .0
                .iter()
                .map(|&b| i64::from_le_bytes(b))
                .collect()
        } else {
            bytes
                .as_chunks()
                .0
                .iter()
                .map(|&b| i64::from(i32::from_le_bytes(b)))
                .collect()
        };
        let sides: Option<Vec<u64>> = numbers
            .iter()
            .map(|&n| u64::try_from(n).ok().filter(|&n| n > 0))
            .collect();
        match sides.as_deref() {
            // Each side is bounded by what is stored before anything is calculated with it.
            Some(&[rows, columns]) if rows < 1 << 40 && columns < 1 << 40 => {
                Ok(([rows, columns], info))
            }
            _ => Err(Error::Contradiction {
                module: module.to_owned(),
                config: format!("{name} must hold two positive sizes"),
                tensors: format!("it holds {numbers:?}"),
            }),
        }
    }

    /// The packing in which `n` codes take `width` words: dense since 0.18, before that without straddling. Where both
    /// fit, the bytes differ only for 3, 5, 6 and 7 bits, and the version decides.
    fn packing(&self, bits: u32, n: u64, width: u64) -> Option<Packing> {
        let dense = n.checked_mul(u64::from(bits)).map(|b| b.div_ceil(32)) == Some(width);
        let old = n.div_ceil(u64::from(32 / bits)) == width;
        let is_new = self.config.version.is_some_and(|v| v >= (0, 18));
        match (dense, old) {
            (true, true) if 32 % bits != 0 && !is_new => Some(Packing::LsbFirstNoStraddle { bits }),
            (true, _) => Some(Packing::LsbFirst { bits }),
            (false, true) => Some(Packing::LsbFirstNoStraddle { bits }),
            (false, false) => None,
        }
    }

    /// Bits, groups and zero points from shapes alone: a file without configuration.
    fn infer(
        &self,
        module: &str,
        codes: &TensorInfo,
        shape: [u64; 2],
    ) -> Result<WeightArgs, Error> {
        let scale = required(self.headers, module, &format!("{module}.weight_scale"))?;
        let width = last(codes);
        let fits: Vec<u32> = (1..=8)
            .filter(|&b| (shape[1] * u64::from(b)).div_ceil(32) == width)
            .collect();
        let &[bits] = fits.as_slice() else {
            let detail = format!("bits cannot be told from {width} words per row");
            return Err(unsupported(
                module,
                "pack-quantized without a configuration",
                &detail,
            ));
        };
        let zero = self.headers.tensor(&format!("{module}.weight_zero_point"));
        Ok(WeightArgs {
            bits,
            kind: Kind::Integer,
            zero: if zero.is_some() {
                Zero::Asymmetric
            } else {
                Zero::Symmetric
            },
            strategy: Some(strategy_of(module, shape, scale)?),
            order: Order::Indexed,
        })
    }
}
