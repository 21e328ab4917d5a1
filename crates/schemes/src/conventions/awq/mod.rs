//! AWQ: AutoAWQ, GPTQModel and llm-awq, in the four layouts that they store (specs/conventions/awq.md).

mod config;
mod evidence;
mod sizes;
mod write;

use safequant_container::{Dtype, TensorInfo};
use safequant_kernels::Tile;

use self::config::{Config, Stated};
use crate::binding::{
    check_dtype, part, qweight_modules, required, unsupported, wrong_dtype, wrong_shape,
};
use crate::scheme::{Packing, float_of};
use crate::{
    Arithmetic, Axes, Axis, Code, Convention, ConventionWriter, Error, Granularity, Headers,
    IntegerEncoding, Part, QuantizedTensor, Recognized, Role, ScaleCoding, Scheme, Storage,
    ZeroCoding, ZeroPoint,
};

/// AWQ in one of its layouts: each is a convention of its own, because none says the same bytes as another.
pub struct Awq {
    layout: Layout,
}

/// `gemm`, which nearly every checkpoint has.
pub static GEMM: Awq = Awq {
    layout: Layout::Gemm,
};
/// `gemv`.
pub static GEMV: Awq = Awq {
    layout: Layout::Gemv,
};
/// `gemv_fast`.
pub static GEMV_FAST: Awq = Awq {
    layout: Layout::GemvFast,
};
/// `llm-awq`: the bytes of `gemv_fast`, another name.
pub static LLM: Awq = Awq {
    layout: Layout::Llm,
};

/// How codes, scales and zero points lie in the tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    /// Transposed, eight output features interleaved in a word.
    Gemm,
    /// A row for each output feature, scale columns padded.
    Gemv,
    /// Four output features interleaved in 16-bit words, products of zero points and scales.
    GemvFast,
    /// The same; `scaled_zeros`.
    Llm,
}

impl Layout {
    /// The convention of this layout.
    const fn id(self) -> &'static str {
        match self {
            Layout::Gemm => "awq",
            Layout::Gemv => "awq_gemv",
            Layout::GemvFast => "awq_gemv_fast",
            Layout::Llm => "awq_llm",
        }
    }

    /// As configurations call it.
    const fn name(self) -> &'static str {
        match self {
            Layout::Gemm => "gemm",
            Layout::Gemv => "gemv",
            Layout::GemvFast => "gemv_fast",
            Layout::Llm => "llm-awq",
        }
    }

    /// The ending of the zero points.
    const fn zeros(self) -> &'static str {
        match self {
            Layout::Gemm | Layout::Gemv | Layout::GemvFast => "qzeros",
            Layout::Llm => "scaled_zeros",
        }
    }
}

impl Convention for Awq {
    fn id(&self) -> &'static str {
        self.layout.id()
    }

    fn writer(&self) -> Option<&'static dyn ConventionWriter> {
        match self.layout {
            Layout::Gemm => Some(&write::GEMM),
            Layout::Gemv => Some(&write::GEMV),
            Layout::GemvFast => Some(&write::GEMV_FAST),
            Layout::Llm => None,
        }
    }

    fn summary(&self) -> &'static str {
        match self.layout {
            Layout::Gemm => {
                "AutoAWQ and GPTQModel, gemm: 4 bits in groups with zero points, transposed, interleaved (other widths too)"
            }
            Layout::Gemv => {
                "AWQ gemv: 4 bits in groups with zero points, a row for each output feature"
            }
            Layout::GemvFast => {
                "AWQ gemv_fast: 4 bits in groups, four rows interleaved, zero points as products with the scale"
            }
            Layout::Llm => "llm-awq: as AWQ gemv_fast, with scaled_zeros (read only)",
        }
    }

    fn recognize<'a>(
        &self,
        headers: Headers<'a>,
    ) -> Result<Option<Box<dyn Recognized + 'a>>, Error> {
        let config = Config::find(headers)?;
        if config.is_none() && !headers.settings()?.is_empty() {
            return Ok(None);
        }
        let stated = config.as_ref().and_then(|c| match c.layout {
            Stated::Layout(layout) => Some(layout),
            Stated::Any => None,
        });
        let mut modules = Vec::new();
        for module in qweight_modules(headers) {
            // What the tensors do not prove is held against the layout that the configuration names.
            let layout = evidence::layout_of(headers, module).or(stated);
            if layout == Some(self.layout) {
                modules.push(module.to_owned());
            }
        }
        let is_announced = stated == Some(self.layout);
        if modules.is_empty() && !is_announced {
            return Ok(None);
        }
        let mut evidence = vec![format!(
            "{} modules with qweight and scales in AWQ's {} layout",
            modules.len(),
            self.layout.name()
        )];
        if let Some(config) = &config {
            config.check_work(modules.len())?;
            evidence.insert(0, format!("{} is of awq", config.place));
        }
        Ok(Some(Box::new(Found {
            headers,
            id: self.id(),
            layout: self.layout,
            config,
            modules,
            evidence,
        })))
    }
}

/// What was found.
struct Found<'a> {
    headers: Headers<'a>,
    id: &'static str,
    layout: Layout,
    config: Option<Config>,
    modules: Vec<String>,
    evidence: Vec<String>,
}

/// The parts of a module, all of them matrices.
struct Parts<'a> {
    qweight: &'a TensorInfo,
    scales: &'a TensorInfo,
    zeros: Option<&'a TensorInfo>,
}

/// What shapes and configuration come to.
struct Sizes {
    out_features: u64,
    in_features: u64,
    bits: u32,
    group_size: u64,
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
        self.check_config(module)?;
        let parts = self.parts(module)?;
        let sizes = match self.layout {
            Layout::Gemm => self.gemm(module, &parts)?,
            Layout::Gemv | Layout::GemvFast | Layout::Llm => self.padded(module, &parts)?,
        };
        let float = float_of(parts.scales.dtype)
            .ok_or_else(|| wrong_dtype(module, parts.scales, "F16, BF16 or F32"))?;
        let code = Code::Integer {
            bits: sizes.bits,
            encoding: IntegerEncoding::Unsigned,
        };
        let size = sizes.group_size;
        let plain = Scheme::plain(code, Granularity::Group { size }, ScaleCoding::Float(float));
        let scheme = match (parts.zeros, self.layout) {
            (None, _) => Scheme {
                zero_point: ZeroPoint::Fixed(1 << (sizes.bits - 1)),
                ..plain
            },
            (Some(_), Layout::Gemm | Layout::Gemv) => Scheme {
                zero_point: ZeroPoint::Stored(ZeroCoding::Direct),
                ..plain
            },
            (Some(zeros), Layout::GemvFast | Layout::Llm) => Scheme {
                zero_point: ZeroPoint::Stored(ZeroCoding::NegatedProduct),
                arithmetic: Arithmetic::RoundedZero(
                    float_of(zeros.dtype)
                        .ok_or_else(|| wrong_dtype(module, zeros, "F16, BF16 or F32"))?,
                ),
                ..plain
            },
        };
        Ok(QuantizedTensor {
            module: module.to_owned(),
            weight: format!("{module}.weight"),
            convention: self.id,
            shape: vec![sizes.out_features, sizes.in_features],
            scheme,
            reference_dtype: float,
            parts: self.bound(&parts, &sizes),
        })
    }
}

impl<'a> Found<'a> {
    /// What the configuration says of the module must not contradict its tensors.
    fn check_config(&self, module: &str) -> Result<(), Error> {
        let contradiction = |config: String, tensors: String| Error::Contradiction {
            module: module.to_owned(),
            config,
            tensors,
        };
        let dense = self.headers.tensor(&format!("{module}.weight"));
        if dense.is_some() {
            return Err(contradiction(
                "it is quantized".to_owned(),
                "it has both a weight and a qweight".to_owned(),
            ));
        }
        let Some(config) = &self.config else {
            return Ok(());
        };
        if let Some(entry) = config.leaves_dense(module) {
            return Err(contradiction(
                format!("modules_to_not_convert has {entry}"),
                "it has a qweight".to_owned(),
            ));
        }
        match config.layout {
            Stated::Layout(layout) if layout != self.layout => Err(contradiction(
                format!("the layout is {}", layout.name()),
                format!("it is {}", self.layout.name()),
            )),
            Stated::Layout(_) | Stated::Any => Ok(()),
        }
    }

    /// The parts of a module, their dtypes and ranks checked.
    fn parts(&self, module: &str) -> Result<Parts<'a>, Error> {
        let name = |ending: &str| format!("{module}.{ending}");
        let qweight = required(self.headers, module, &name("qweight"))?;
        let scales = required(self.headers, module, &name("scales"))?;
        let zeros = self.headers.tensor(&name(self.layout.zeros()));
        let is_symmetric = self.config.as_ref().and_then(|c| c.zero_point) == Some(false);
        if zeros.is_none() && !(is_symmetric && matches!(self.layout, Layout::Gemm | Layout::Gemv))
        {
            required(self.headers, module, &name(self.layout.zeros()))?;
        }
        if let Some(info) = self.headers.tensor(&name("g_idx"))
            && info.n_elements() > 0
        {
            return Err(Error::Contradiction {
                module: module.to_owned(),
                config: "it is AWQ".to_owned(),
                tensors: "it has a g_idx, which only GPTQ has".to_owned(),
            });
        }
        let floats = [Dtype::F16, Dtype::BF16, Dtype::F32];
        check_dtype(module, scales, &floats)?;
        match self.layout {
            Layout::Gemm | Layout::Gemv => check_dtype(module, qweight, &[Dtype::I32])?,
            Layout::GemvFast | Layout::Llm => check_dtype(module, qweight, &[Dtype::I16])?,
        }
        if let Some(zeros) = zeros {
            match self.layout {
                Layout::Gemm | Layout::Gemv => check_dtype(module, zeros, &[Dtype::I32])?,
                Layout::GemvFast | Layout::Llm => check_dtype(module, zeros, &floats)?,
            }
        }
        for info in [Some(qweight), Some(scales), zeros].into_iter().flatten() {
            if info.shape.len() != 2 {
                return Err(wrong_shape(module, info, "a matrix".to_owned()));
            }
        }
        Ok(Parts {
            qweight,
            scales,
            zeros,
        })
    }

    /// Bits and group size that the configuration states.
    fn stated(&self) -> (Option<u32>, Option<crate::config::GroupSize>) {
        let config = self.config.as_ref();
        (
            config.and_then(|c| c.bits),
            config.and_then(|c| c.group_size),
        )
    }

    /// Clauses A6 to A8: `qweight [K, words of N]`, `qzeros [G, words of N]`, `scales [G, N]`.
    fn gemm(&self, module: &str, parts: &Parts<'_>) -> Result<Sizes, Error> {
        let (stated_bits, stated_size) = self.stated();
        let [in_features, words] = [parts.qweight.shape[0], parts.qweight.shape[1]];
        let [groups, out_features] = [parts.scales.shape[0], parts.scales.shape[1]];
        let bits = match stated_bits {
            Some(bits) => bits,
            None => sizes::bits_of(words, out_features).ok_or_else(|| {
                wrong_shape(
                    module,
                    parts.qweight,
                    format!("words of 2 to 8 bits for {out_features} output features"),
                )
            })?,
        };
        let expected = sizes::words(out_features, bits);
        if words != expected {
            let expected = format!("[{in_features}, {expected}] for {bits} bits");
            return Err(wrong_shape(module, parts.qweight, expected));
        }
        if let Some(zeros) = parts.zeros
            && zeros.shape != [groups, expected]
        {
            return Err(wrong_shape(
                module,
                zeros,
                format!("[{groups}, {expected}]"),
            ));
        }
        let group_size = sizes::group_size(stated_size, in_features, groups)
            .ok_or_else(|| sizes::wrong_groups(module, parts.scales, stated_size, in_features))?;
        Ok(Sizes {
            out_features,
            in_features,
            bits,
            group_size,
        })
    }

    /// Clauses A9 to A14: layouts with padded groups.
    fn padded(&self, module: &str, parts: &Parts<'_>) -> Result<Sizes, Error> {
        let (stated_bits, stated_size) = self.stated();
        if let Some(bits) = stated_bits.filter(|b| *b != 4) {
            let format = format!("AWQ {} with {bits} bits", self.layout.name());
            return Err(unsupported(module, &format, "only 4 bits have this layout"));
        }
        let (codes, scales) = (&parts.qweight.shape, &parts.scales.shape);
        let (out_features, in_features, padded) = match self.layout {
            Layout::Gemm | Layout::Gemv => (codes[0], codes[1].saturating_mul(8), scales[1]),
            Layout::GemvFast | Layout::Llm => (codes[0].saturating_mul(4), codes[1], scales[0]),
        };
        let expected = match self.layout {
            Layout::Gemm | Layout::Gemv => [out_features, padded],
            Layout::GemvFast | Layout::Llm => [padded, out_features],
        };
        if *scales != expected {
            return Err(wrong_shape(module, parts.scales, format!("{expected:?}")));
        }
        let is_fast = self.layout != Layout::Gemv;
        if is_fast && !in_features.is_multiple_of(64) {
            let expected = "columns in multiples of 64".to_owned();
            return Err(wrong_shape(module, parts.qweight, expected));
        }
        if let Some(zeros) = parts.zeros {
            let expected = if is_fast {
                expected
            } else {
                [out_features, padded / 8]
            };
            if zeros.shape != expected {
                return Err(wrong_shape(module, zeros, format!("{expected:?}")));
            }
        }
        let group_size = match stated_size {
            Some(_) => sizes::stated(stated_size, in_features),
            None => sizes::from_padding(in_features, padded).ok_or_else(|| {
                unsupported(
                    module,
                    &format!("AWQ {} without a group size", self.layout.name()),
                    "the padded scales fit several: state group_size in quantize_config.json",
                )
            })?,
        };
        if in_features.div_ceil(group_size) > padded {
            return Err(sizes::wrong_groups(
                module,
                parts.scales,
                stated_size,
                in_features,
            ));
        }
        Ok(Sizes {
            out_features,
            in_features,
            bits: 4,
            group_size,
        })
    }

    fn bound(&self, parts: &Parts<'_>, sizes: &Sizes) -> Vec<Part> {
        let storages = storages(self.layout, sizes.bits);
        let rows = sizes.out_features;
        let extent = match self.layout {
            Layout::Gemm => None,
            Layout::Gemv => Some([rows, parts.scales.shape[1]]),
            Layout::GemvFast | Layout::Llm => Some([rows, parts.scales.shape[0]]),
        };
        let padded = |part: Part| Part { extent, ..part };
        let mut bound = vec![
            part(Role::Codes, parts.qweight, storages.codes),
            padded(part(Role::Scale, parts.scales, storages.scales)),
        ];
        if let Some(zeros) = parts.zeros {
            bound.push(padded(part(Role::ZeroPoint, zeros, storages.zeros)));
        }
        bound
    }
}

/// How the parts of a layout are stored.
struct Storages {
    codes: Storage,
    zeros: Storage,
    scales: Storage,
}

fn storages(layout: Layout, bits: u32) -> Storages {
    let packed = |axes, packing, along| Storage::Packed {
        axes,
        packing,
        along,
    };
    let stream = Packing::LsbFirst { bits };
    match layout {
        Layout::Gemm => {
            let packing = if bits == 4 {
                Packing::AwqInterleaved
            } else {
                stream
            };
            let words = packed(Axes::InOut, packing, Axis::Out);
            Storages {
                codes: words,
                zeros: words,
                scales: Storage::Elements { axes: Axes::InOut },
            }
        }
        Layout::Gemv => {
            let words = packed(Axes::OutIn, stream, Axis::In);
            Storages {
                codes: words,
                zeros: words,
                scales: Storage::Elements { axes: Axes::OutIn },
            }
        }
        Layout::GemvFast | Layout::Llm => {
            let elements = Storage::Elements { axes: Axes::InOut };
            Storages {
                codes: Storage::Tiled {
                    tile: Tile::AwqGemvFast,
                },
                zeros: elements,
                scales: elements,
            }
        }
    }
}
