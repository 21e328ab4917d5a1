//! FP8 weights with scales per tensor, channel or block: DeepSeek, transformers, vLLM, FBGEMM, GPTQModel
//! (specs/conventions/fp8.md).

mod config;
mod write;

use std::cell::LazyCell;
use std::collections::HashSet;

use safequant_container::{Dtype, Members, TensorInfo};
use safequant_kernels::{Float, Minifloat};

use self::config::Config;
use crate::binding::{part, unsupported, wrong_shape};
use crate::scheme::{Packing, float_of, minifloat_of};
use crate::{
    Arithmetic, Axes, Axis, Code, Convention, ConventionWriter, E8M0Rule, Error, Granularity,
    Headers, Part, QuantizedTensor, Recognized, Role, ScaleCoding, ScaleDirection, Scheme, Storage,
};

/// See the module.
pub struct Fp8;

/// The id.
const ID: &str = "fp8";

/// Endings of a weight's scale after `<module>.`; all of them multiply, unless the configuration says otherwise.
const SCALES: [&str; 4] = ["weight_scale_inv", "weight_scale", "scale", "qscale_weight"];
/// Endings of a fused expert tensor's scale, directly after the tensor's name.
const FUSED_SCALES: [&str; 2] = ["_scale_inv", "_scale"];
/// Endings of tensors that belong to a module, but not to its weight.
const COMPANIONS: [&str; 6] = [
    "input_scale",
    "activation_scale",
    "input_scale_ub",
    "output_scale",
    "k_scale",
    "v_scale",
];
/// Endings of attention scales.
const ATTENTION: [&str; 5] = [
    "k_scale",
    "v_scale",
    "q_scale",
    "kv_scale",
    "prob_output_scale",
];
/// Block sides that are tried where no configuration states them, in order of likelihood.
const LIKELY_BLOCKS: [u64; 4] = [128, 64, 32, 256];
/// Columns that share a power of two in the MX formats.
const MX: u64 = 32;

impl Convention for Fp8 {
    fn id(&self) -> &'static str {
        ID
    }

    fn summary(&self) -> &'static str {
        "DeepSeek, transformers, vLLM, FBGEMM and GPTQModel: FP8 with scales per block, channel or tensor, MXFP8, FP4 experts"
    }

    fn recognize<'a>(
        &self,
        headers: Headers<'a>,
    ) -> Result<Option<Box<dyn Recognized + 'a>>, Error> {
        let Some(config) = Config::find(headers)? else {
            return Ok(None);
        };
        let is_comfy = |i: &TensorInfo| {
            i.name.ends_with("scaled_fp8")
                || i.name.ends_with(".comfy_quant")
                || i.name.ends_with(".scale_weight")
        };
        if headers.tensors().any(is_comfy) {
            return Ok(None);
        }
        let reference = headers.model_dtype()?.unwrap_or(Float::Bf16);
        let found = Found::new(headers, config, reference);
        let is_ours = found.config.place.is_some() || !found.modules.is_empty();
        Ok(is_ours.then(|| Box::new(found) as Box<dyn Recognized + 'a>))
    }

    fn writer(&self) -> Option<&'static dyn ConventionWriter> {
        Some(&write::Writer)
    }
}

/// What was found.
struct Found<'a> {
    headers: Headers<'a>,
    config: Config,
    reference: Float,
    modules: Vec<String>,
    orphans: Vec<String>,
    evidence: Vec<String>,
}

/// The tensor with a module's codes: `<module>.weight`, or the module itself where experts are fused.
fn codes_of<'a>(
    headers: Headers<'a>,
    module: &str,
    members: Members<'a>,
) -> Option<&'a TensorInfo> {
    let is_small = |i: &&TensorInfo| minifloat_of(i.dtype).is_some() || i.dtype == Dtype::I8;
    let own = members.get("weight").map(|tensor| tensor.info);
    own.filter(is_small)
        .or_else(|| headers.tensor(module).filter(is_small))
}

/// Whether a scale is a power of two.
fn is_power(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F8E8M0 | Dtype::U8)
}

/// Where a module's scale stands.
enum ScaleAt<'a> {
    /// In a tensor of its own.
    Own(&'a TensorInfo),
    /// In the scale of fused experts, beside codes per expert.
    Fused {
        info: &'a TensorInfo,
        expert: u64,
        /// Half of a fused `gate_up_proj`: which, of how many.
        half: u64,
        halves: u64,
    },
}

impl<'a> ScaleAt<'a> {
    fn info(&self) -> &'a TensorInfo {
        match self {
            ScaleAt::Own(info) | ScaleAt::Fused { info, .. } => info,
        }
    }
}

fn scale_of<'a>(
    headers: Headers<'a>,
    module: &str,
    members: Members<'a>,
    codes: &TensorInfo,
) -> Option<ScaleAt<'a>> {
    if codes.name == module {
        let mut names = FUSED_SCALES.iter().map(|e| format!("{module}{e}"));
        return names.find_map(|n| headers.tensor(&n)).map(ScaleAt::Own);
    }
    if let Some(tensor) = SCALES.iter().find_map(|ending| members.get(ending)) {
        return Some(ScaleAt::Own(tensor.info));
    }
    // transformers 5 saves codes per expert, and one scale for all of them: `experts.<i>.up_proj.weight` beside
    // `experts.gate_up_proj_scale_inv`.
    let (rest, proj) = module.rsplit_once('.')?;
    let (experts, number) = rest.rsplit_once('.')?;
    let expert: u64 = number.parse().ok()?;
    let candidates = [
        (proj, 0, 1),
        ("gate_up_proj", u64::from(proj == "up_proj"), 2),
    ];
    candidates.into_iter().find_map(|(name, half, halves)| {
        if halves == 2 && !matches!(proj, "gate_proj" | "up_proj") {
            return None;
        }
        let info = headers.tensor(&format!("{experts}.{name}_scale_inv"))?;
        Some(ScaleAt::Fused {
            info,
            expert,
            half,
            halves,
        })
    })
}

impl<'a> Found<'a> {
    fn new(headers: Headers<'a>, config: Config, reference: Float) -> Self {
        let mut found = Self {
            headers,
            config,
            reference,
            modules: Vec::new(),
            orphans: Vec::new(),
            evidence: Vec::new(),
        };
        let mut used = Vec::new();
        for info in headers.tensors() {
            let module = info.name.strip_suffix(".weight").unwrap_or(&info.name);
            let is_packed = info.dtype == Dtype::I8 && module != info.name;
            if minifloat_of(info.dtype).is_none() && !is_packed {
                continue;
            }
            let scale = scale_of(headers, module, headers.members(module), info);
            // DeepSeek-V4's experts: two E2M1 codes to a byte, and nothing else has I8 here.
            let has_power = scale.as_ref().is_some_and(|s| is_power(s.info().dtype));
            if is_packed && !(has_power && found.config.place.is_some()) {
                continue;
            }
            // Without a configuration only DeepSeek's own name will do: ComfyUI, compressed-tensors and vLLM all say
            // `weight_scale`, and round differently.
            let is_known = scale
                .as_ref()
                .is_some_and(|s| s.info().name.ends_with("_scale_inv"));
            if !is_known && found.config.place.is_none() {
                continue;
            }
            if let Some(scale) = scale {
                used.push(scale.info().name.as_str());
            }
            found.modules.push(module.to_owned());
        }
        if found.config.place.is_some() || !found.modules.is_empty() {
            used.sort_unstable();
            found.find_orphans(used);
            found.describe();
        }
        found
    }

    /// Scales of weights that are dense after all (transformers writes them uninitialized where blocks do not divide the
    /// weight), and scales of attention. `used`: the scales that are neither, by name.
    fn find_orphans(&mut self, used: Vec<&str>) {
        let mut used = used.into_iter().peekable();
        let modules = LazyCell::new(|| {
            let modules = self.modules.iter().map(String::as_str);
            modules.collect::<HashSet<&str>>()
        });
        for info in self.headers.tensors() {
            let Some((module, ending)) = info.name.rsplit_once('.') else {
                continue;
            };
            // `_scale_inv` is an ending of fused experts' scales too.
            let is_scale = SCALES[..2].contains(&ending) || ending.ends_with("_scale_inv");
            let is_beside = COMPANIONS.contains(&ending) || ATTENTION.contains(&ending);
            // Both lists are in order.
            while used.next_if(|name| *name < info.name.as_str()).is_some() {}
            let is_used = used.peek().is_some_and(|name| info.name == *name);
            let is_stale = is_scale && !is_used;
            if is_stale || (is_beside && !modules.contains(module)) {
                self.orphans.push(info.name.to_string());
            }
        }
    }

    fn describe(&mut self) {
        if let Some(place) = &self.config.place {
            let block = match self.config.block {
                Some((r, c)) => format!(", weight_block_size [{r}, {c}]"),
                None => String::new(),
            };
            self.evidence
                .push(format!("{place} is of {}{block}", self.config.method));
        }
        self.evidence.push(format!(
            "{} FP8 (or FP4) weights with scales",
            self.modules.len()
        ));
        match (self.direction(), self.config.direction) {
            (ScaleDirection::Divide, _) => {
                self.evidence
                    .push("scales divide (weight_scale_semantics inverse)".to_owned());
            }
            (ScaleDirection::Multiply, None) if self.config.place.is_none() => {
                self.evidence.push(
                    "without a configuration scales are taken to multiply; GPTQModel's divide"
                        .to_owned(),
                );
            }
            (ScaleDirection::Multiply, _) => {}
        }
    }

    fn direction(&self) -> ScaleDirection {
        self.config.direction.unwrap_or(ScaleDirection::Multiply)
    }

    /// What shares one scale: from the shape of the scale, and from the configuration where shapes leave a choice.
    fn granularity(
        &self,
        module: &str,
        scale: &TensorInfo,
        shape: &[u64],
        minifloat: Minifloat,
    ) -> Result<Granularity, Error> {
        let is_packed = minifloat == Minifloat::E2M1;
        let (stack, matrix) = shape.split_at(shape.len() - 2);
        let (rows, columns) = (matrix[0], matrix[1]);
        let own = scale.shape.strip_prefix(stack).unwrap_or(&scale.shape);
        let is_block = |(r, c): (u64, u64)| own == [rows.div_ceil(r), columns.div_ceil(c)];
        // MX: DeepSeek-V4's experts whatever the block size is, transformers' mxfp8 where none or [1, 32] is given.
        let is_mx = is_packed || matches!(self.config.block, None | Some((1, MX)));
        if is_power(scale.dtype) && is_mx && columns.is_multiple_of(MX) && is_block((1, MX)) {
            return Ok(Granularity::Group { size: MX });
        }
        if is_packed {
            let expected = format!("[{rows}, {}]", columns.div_ceil(MX));
            return Err(wrong_shape(module, scale, expected));
        }
        let block = |(rows, columns)| Granularity::Block { rows, columns };
        if let Some(size) = self.config.block
            && is_block(size)
        {
            return Ok(block(size));
        }
        let found = match own {
            [] | [1] | [1, 1] if scale.n_elements() == stack.iter().product::<u64>() => {
                Some(Granularity::Tensor)
            }
            [n] | [n, 1] if *n == rows => Some(Granularity::Channel),
            [1, n] if *n == rows && !stack.is_empty() => Some(Granularity::Channel),
            [_, _] if self.config.block.is_none() => LIKELY_BLOCKS
                .into_iter()
                .map(|b| (b, b))
                .find(|&b| is_block(b))
                .map(block),
            _ => None,
        };
        let declared = match self.config.granularity.as_deref() {
            Some("tensor") => found == Some(Granularity::Tensor),
            Some("row") => matches!(found, Some(Granularity::Channel | Granularity::Tensor)),
            Some("block") => false,
            _ => true,
        };
        found.filter(|_| declared).ok_or_else(|| {
            let expected = match self.config.block {
                Some((r, c)) => format!("[{}, {}]", rows.div_ceil(r), columns.div_ceil(c)),
                None => format!("scales of a weight of shape {shape:?}"),
            };
            wrong_shape(module, scale, expected)
        })
    }

    /// The scale of one expert inside the scale of all of them.
    fn fused_part(
        &self,
        module: &str,
        shape: &[u64],
        at: &ScaleAt<'_>,
    ) -> Result<(Part, Granularity), Error> {
        let &ScaleAt::Fused {
            info,
            expert,
            half,
            halves,
        } = at
        else {
            return Err(unsupported(module, "this layout of expert scales", ""));
        };
        let Some((block_rows, block_columns)) = self.config.block else {
            return Err(unsupported(
                module,
                "fused expert scales without weight_block_size",
                "",
            ));
        };
        let grid = [
            shape[0].div_ceil(block_rows),
            shape[1].div_ceil(block_columns),
        ];
        let fits = match *info.shape.as_slice() {
            [experts, r, c] if shape.len() == 2 => {
                expert < experts && Some(r) == grid[0].checked_mul(halves) && c == grid[1]
            }
            _ => false,
        };
        if !fits {
            let expected = format!(
                "[more than {expert}, {}, {}]",
                grid[0].saturating_mul(halves),
                grid[1]
            );
            return Err(wrong_shape(module, info, expected));
        }
        // The header's element count fits 64 bits, and this is an index below it.
        let first = (expert * halves + half) * grid[0] * grid[1];
        let granularity = Granularity::Block {
            rows: block_rows,
            columns: block_columns,
        };
        Ok((
            part(Role::Scale, info, Storage::SharedElements { first }),
            granularity,
        ))
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
        let missing = |part: &str| Error::MissingPart {
            module: module.to_owned(),
            part: part.to_owned(),
        };
        let members = self.headers.members(module);
        let codes =
            codes_of(self.headers, module, members).ok_or_else(|| missing("an FP8 weight"))?;
        let minifloat = minifloat_of(codes.dtype).unwrap_or(Minifloat::E2M1);
        if codes.shape.len() < 2 {
            return Err(wrong_shape(
                module,
                codes,
                "a matrix or a stack of matrices".to_owned(),
            ));
        }
        let scale = scale_of(self.headers, module, members, codes).ok_or_else(|| {
            let names: Vec<String> = SCALES.iter().map(|e| format!("{module}.{e}")).collect();
            missing(&format!("the scale ({})", names.join(", ")))
        })?;
        // Llama 4 experts under FBGEMM are stored [experts, in, out]: the scale's place of `out` gives it away.
        let mut shape = codes.shape.to_vec();
        let mut axes = Axes::OutIn;
        if minifloat == Minifloat::E2M1
            && let Some(last) = shape.last_mut()
        {
            *last = last.saturating_mul(2);
        }
        if self.config.method == "fbgemm_fp8" && codes.name == module && shape.len() == 3 {
            shape.swap(1, 2);
            axes = Axes::InOut;
        }
        let (scale_part, granularity) = match &scale {
            ScaleAt::Own(info) => {
                let granularity = self.granularity(module, info, &shape, minifloat)?;
                (
                    part(Role::Scale, info, Storage::Elements { axes: Axes::OutIn }),
                    granularity,
                )
            }
            ScaleAt::Fused { .. } if minifloat == Minifloat::E2M1 => {
                return Err(unsupported(module, "FP4 experts with fused scales", ""));
            }
            ScaleAt::Fused { .. } => self.fused_part(module, &shape, &scale)?,
        };
        let coding = self.coding(module, &scale_part, granularity)?;
        let storage = if minifloat == Minifloat::E2M1 {
            Storage::Packed {
                axes,
                packing: Packing::LsbFirst { bits: 4 },
                along: Axis::In,
            }
        } else {
            Storage::Elements { axes }
        };
        let mut parts = vec![part(Role::Codes, codes, storage), scale_part];
        for ending in COMPANIONS {
            if let Some(tensor) = members.get(ending) {
                parts.push(part(Role::Auxiliary, tensor.info, Storage::Vector));
            }
        }
        Ok(QuantizedTensor {
            module: module.to_owned(),
            weight: codes.name.to_string(),
            convention: ID,
            shape,
            scheme: Scheme {
                direction: self.direction(),
                arithmetic: match self.direction() {
                    ScaleDirection::Multiply => Arithmetic::ScaledDifference,
                    ScaleDirection::Divide => Arithmetic::RoundedScale(self.reference),
                },
                ..Scheme::plain(Code::Minifloat(minifloat), granularity, coding)
            },
            reference_dtype: self.reference,
            parts,
        })
    }
}

impl Found<'_> {
    /// How a scale is stored. Bytes are powers of two, but groups of 32 columns of them are another format.
    fn coding(
        &self,
        module: &str,
        scale: &Part,
        granularity: Granularity,
    ) -> Result<ScaleCoding, Error> {
        if let Some(float) = float_of(scale.dtype) {
            return Ok(ScaleCoding::Float(float));
        }
        if let (Dtype::U8, Granularity::Group { .. }) = (scale.dtype, granularity) {
            // transformers reads bytes by `exp2`, so that 255 is infinite, and an E8M0 dtype by a cast.
            return Ok(ScaleCoding::E8M0(E8M0Rule::TopIsInfinity));
        }
        let is_block =
            matches!(granularity, Granularity::Block { .. }) && self.config.block.is_some();
        if scale.dtype == Dtype::F8E8M0 || (scale.dtype == Dtype::U8 && is_block) {
            return Ok(ScaleCoding::E8M0(E8M0Rule::Ocp));
        }
        if scale.dtype == Dtype::U8 {
            return Err(unsupported(module, "FP8", "U8 scales of this shape"));
        }
        Err(Error::PartDtype {
            module: module.to_owned(),
            part: scale.name.clone(),
            expected: "F32, F16, BF16, F8_E8M0 or U8".to_owned(),
            found: scale.dtype,
        })
    }
}
