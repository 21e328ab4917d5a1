//! HQQ: 8 to 1 bits with a float zero point, planes of rows in the bits of the same words (specs/conventions/hqq.md).

mod module;
mod write;

use safequant_container::{Dtype, TensorInfo};
use safequant_kernels::{Float, Planes};
use serde_json::Value;

use self::module::{Axis, DESCRIPTORS, Module};
use crate::binding::{part, required, unsupported, wrong_dtype, wrong_shape};
use crate::scheme::float_of;
use crate::{
    Arithmetic, Axes, Code, Convention, ConventionWriter, Error, Granularity, Headers,
    IntegerEncoding, OffsetForm, Part, QuantizedTensor, Recognized, Role, ScaleCoding, Scheme,
    Settings, Storage, ZeroPoint,
};

/// See the module.
pub struct Hqq;

/// The id.
const ID: &str = "hqq";

impl Convention for Hqq {
    fn id(&self) -> &'static str {
        ID
    }

    fn summary(&self) -> &'static str {
        "HQQ: 8, 4, 3, 2 and 1 bits in groups along either axis, float zero points, planes in bytes or words"
    }

    fn recognize<'a>(
        &self,
        headers: Headers<'a>,
    ) -> Result<Option<Box<dyn Recognized + 'a>>, Error> {
        let modules: Vec<String> = headers
            .tensors()
            .filter_map(|info| info.name.strip_suffix(".W_q"))
            .map(str::to_owned)
            .collect();
        let settings = headers.settings()?;
        let config = settings
            .into_iter()
            .find(|s| s.method().as_deref() == Some(ID));
        if modules.is_empty() && config.is_none() {
            return Ok(None);
        }
        let mut evidence = vec![format!(
            "{} modules with W_q, scale and zero",
            modules.len()
        )];
        if let Some(config) = &config {
            evidence.insert(0, format!("{} is of hqq", config.place));
        }
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

/// What was found.
struct Found<'a> {
    headers: Headers<'a>,
    config: Option<Settings>,
    modules: Vec<String>,
    evidence: Vec<String>,
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
        for ending in ["scale_q", "zero_q", "zero_scale", "meta_scale", "meta_zero"] {
            if self.headers.tensor(&format!("{module}.{ending}")).is_some() {
                return Err(nested(module, ending));
            }
        }
        let get = |ending: &str| required(self.headers, module, &format!("{module}.{ending}"));
        let (codes, scale, zero) = (get("W_q")?, get("scale")?, get("zero")?);
        let about = Module::read(self.headers, module, scale)?;
        self.agrees_with_config(module, &about)?;
        let float = |info: &TensorInfo| {
            float_of(info.dtype).ok_or_else(|| wrong_dtype(module, info, "F32, F16 or BF16"))
        };
        let scale_float = float(scale)?;
        float(zero)?;
        let compute = about.compute.unwrap_or(scale_float);
        let planes = about.planes;
        let matrix = Matrix::new(module, &about, codes)?;
        let granularity = matrix.granularity(&about);
        matrix.check_grid(module, &about, scale)?;
        matrix.check_grid(module, &about, zero)?;
        let elements = Storage::Elements { axes: Axes::OutIn };
        let len = matrix.packed_rows.saturating_mul(matrix.columns);
        let mut parts = vec![
            part(Role::Codes, codes, Storage::Planes { planes, len }),
            part(Role::Scale, scale, elements),
            part(Role::Offset, zero, elements),
        ];
        parts.extend(self.descriptors(module)?);
        Ok(QuantizedTensor {
            module: module.to_owned(),
            weight: format!("{module}.weight"),
            convention: ID,
            shape: about.shape.to_vec(),
            scheme: scheme(about.bits, granularity, scale_float, compute),
            reference_dtype: compute,
            parts,
        })
    }
}

impl Found<'_> {
    /// The descriptors of a module, with their content: they follow from the layout.
    fn descriptors(&self, module: &str) -> Result<Vec<Part>, Error> {
        let mut parts = Vec::new();
        for ending in DESCRIPTORS {
            let name = format!("{module}.{ending}");
            let Some(info) = self.headers.tensor(&name) else {
                continue;
            };
            parts.push(if *ending == "shape" {
                part(Role::Shape, info, Storage::Vector)
            } else {
                Part {
                    content: Some(module::bytes(self.headers, module, info)?),
                    ..part(Role::Auxiliary, info, Storage::Vector)
                }
            });
        }
        Ok(parts)
    }

    /// A configuration for all modules alike must say what the modules say. One for each kind of module is not looked at:
    /// readers do not either.
    fn agrees_with_config(&self, module: &str, about: &Module) -> Result<(), Error> {
        let Some(config) = &self.config else {
            return Ok(());
        };
        let Some(outer) = config.object("quant_config")? else {
            return Ok(());
        };
        let Some(params) = outer.object("weight_quant_params")? else {
            return Ok(());
        };
        let differs = |key: &str, stated: String, found: String| Error::Contradiction {
            module: module.to_owned(),
            config: format!("{key} is {stated}"),
            tensors: format!("{module}.{key} is {found}"),
        };
        let stated = params.get("nbits").and_then(Value::as_f64);
        if let (Some(stated), Some(found)) = (stated, about.nbits)
            && (found - stated).abs() > 1e-3
        {
            return Err(differs("nbits", stated.to_string(), found.to_string()));
        }
        if let (Some(stated), Some(found)) = (params.integer("axis", 0..=1)?, about.stated_axis) {
            let found = i64::from(found == Axis::In);
            if stated != found {
                return Err(differs("axis", stated.to_string(), found.to_string()));
            }
        }
        Ok(())
    }
}

/// What a module's numbers mean: scales in the dtype `scale`, every step in `compute`.
fn scheme(bits: u32, granularity: Granularity, scale: Float, compute: Float) -> Scheme {
    let code = Code::Integer {
        bits,
        encoding: IntegerEncoding::Unsigned,
    };
    Scheme {
        zero_point: ZeroPoint::Offset {
            zero: 0,
            form: OffsetForm::BeforeScale,
        },
        arithmetic: Arithmetic::EachStep(compute),
        ..Scheme::plain(code, granularity, ScaleCoding::Float(scale))
    }
}

/// Scales that are quantized themselves, which HQQ itself cannot save in this form.
fn nested(module: &str, detail: &str) -> Error {
    unsupported(
        module,
        "HQQ with quantized or offloaded scales and zero points",
        detail,
    )
}

/// The matrix that is cut in planes: groups are its rows or its columns.
struct Matrix {
    rows: u64,
    columns: u64,
    /// Rows of words.
    packed_rows: u64,
}

impl Matrix {
    /// From the descriptors, agreeing with the shape of the words.
    fn new(module: &str, about: &Module, codes: &TensorInfo) -> Result<Self, Error> {
        let [out, columns] = about.shape;
        let n = out.checked_mul(columns).ok_or_else(|| Error::TooLarge {
            module: module.to_owned(),
            what: "the matrix",
        })?;
        let size = match (about.is_channel_wise, about.group_size, about.axis) {
            (true, Some(size), _) => size,
            (true, None, Axis::In) | (false, _, Axis::In) => columns,
            (true, None, Axis::Out) | (false, _, Axis::Out) => out,
        };
        if !n.is_multiple_of(size) {
            return Err(Error::Contradiction {
                module: module.to_owned(),
                config: format!("group_size is {size}"),
                tensors: format!("shape is {:?}", about.shape),
            });
        }
        let [rows, columns] = match about.axis {
            Axis::In => [n / size, size],
            Axis::Out => [size, n / size],
        };
        let per_word = crate::storage::to_u64(about.planes.n_planes());
        let found = Self {
            rows,
            columns,
            packed_rows: rows.div_ceil(per_word),
        };
        found.check_words(module, about, codes, per_word)?;
        Ok(found)
    }

    fn check_words(
        &self,
        module: &str,
        about: &Module,
        codes: &TensorInfo,
        per_word: u64,
    ) -> Result<(), Error> {
        let word = crate::storage::to_u64(about.planes.word_bytes());
        let is_lost = word == 1 && !self.rows.is_multiple_of(per_word);
        let element = codes.dtype.bits() / 8;
        let is_float = float_of(codes.dtype).is_some();
        let integer = if word == 1 { Dtype::U8 } else { Dtype::I32 };
        if is_float != about.is_float_view || !(is_float || codes.dtype == integer) {
            let expected = if about.is_float_view {
                "F32, F16 or BF16 (view_as_float)"
            } else {
                integer.name()
            };
            return Err(wrong_dtype(module, codes, expected));
        }
        let row = self.columns.saturating_mul(word);
        let fits = *codes.shape == [self.packed_rows, row / element.max(1)]
            && row.is_multiple_of(element.max(1));
        if fits && !is_lost {
            return Ok(());
        }
        let mut expected = format!("[{}, {}]", self.packed_rows, row / element.max(1));
        if is_lost {
            expected = format!(
                "a multiple of {per_word} rows: {} bits drop what is left of {} rows, those weights are lost",
                about.planes.bits(),
                self.rows
            );
        }
        Err(wrong_shape(module, codes, expected))
    }

    fn granularity(&self, about: &Module) -> Granularity {
        let in_features = about.shape[1];
        match (about.is_channel_wise, about.axis) {
            (false, _) => Granularity::Tensor,
            (true, Axis::Out) => Granularity::Strided {
                count: self.columns,
            },
            (true, Axis::In) if self.columns == in_features => Granularity::Channel,
            (true, Axis::In) if in_features.is_multiple_of(self.columns) => {
                Granularity::Group { size: self.columns }
            }
            (true, Axis::In) => Granularity::Flat { size: self.columns },
        }
    }

    /// Scales and zero points: one per group.
    fn check_grid(&self, module: &str, about: &Module, info: &TensorInfo) -> Result<(), Error> {
        let fits = match (about.is_channel_wise, about.axis) {
            (true, Axis::In) => *info.shape == [self.rows, 1],
            (true, Axis::Out) => *info.shape == [1, self.columns],
            (false, _) => info.n_elements() == 1,
        };
        if fits {
            return Ok(());
        }
        let expected = match (about.is_channel_wise, about.axis) {
            (true, Axis::In) => format!("[{}, 1]", self.rows),
            (true, Axis::Out) => format!("[1, {}]", self.columns),
            (false, _) => "one value".to_owned(),
        };
        Err(wrong_shape(module, info, expected))
    }
}
