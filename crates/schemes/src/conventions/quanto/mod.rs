//! optimum-quanto: 8-bit integers and floats per row, 4 and 2 bits in planes of rows (specs/conventions/quanto.md).

mod qmap;
mod shape;
mod write;

use std::collections::BTreeSet;

use safequant_container::{Dtype, TensorInfo};
use safequant_kernels::{Float, Planes};

use self::qmap::{Qmap, Qtype};
use crate::binding::{check_dtype, part, required, unsupported, wrong_dtype, wrong_shape};
use crate::scheme::{float_of, minifloat_of};
use crate::{
    Arithmetic, Axes, Code, Convention, ConventionWriter, Error, Granularity, Headers,
    IntegerEncoding, OffsetForm, QuantizedTensor, Recognized, Role, ScaleCoding, Scheme, Storage,
    ZeroCoding, ZeroPoint,
};

/// See the module.
pub struct Quanto;

/// The id.
const ID: &str = "quanto";

/// Endings of tensors that belong to a module, but not to its weight.
const COMPANIONS: [&str; 2] = ["input_scale", "output_scale"];

impl Convention for Quanto {
    fn id(&self) -> &'static str {
        ID
    }

    fn summary(&self) -> &'static str {
        "optimum-quanto: int8 and float8 per row, int4 and int2 in groups with a float shift"
    }

    fn recognize<'a>(
        &self,
        headers: Headers<'a>,
    ) -> Result<Option<Box<dyn Recognized + 'a>>, Error> {
        let qmap = Qmap::find(headers)?;
        let modules: BTreeSet<String> = headers
            .tensors()
            .filter_map(|info| module_of(&info.name))
            .map(str::to_owned)
            .collect();
        if modules.is_empty() && qmap.is_none() {
            return Ok(None);
        }
        let orphans = headers
            .tensors()
            .filter(|info| is_orphan(&info.name, &modules, qmap.as_ref()))
            .map(|info| info.name.to_string())
            .collect();
        let mut evidence = vec![format!("{} modules with weight._data", modules.len())];
        if let Some(qmap) = &qmap {
            evidence.insert(
                0,
                format!("{} names {} modules", qmap::DOCUMENT, qmap.len()),
            );
        }
        Ok(Some(Box::new(Found {
            headers,
            qmap,
            modules: modules.into_iter().collect(),
            orphans,
            evidence,
        })))
    }

    fn writer(&self) -> Option<&'static dyn ConventionWriter> {
        Some(&write::Writer)
    }
}

/// The module of a tensor with codes.
fn module_of(name: &str) -> Option<&str> {
    let name = name.strip_suffix("._data")?;
    let name = name.strip_suffix("._data").unwrap_or(name);
    name.strip_suffix(".weight")
}

/// Activation scales of modules whose weight is dense: normalizations, excluded linears.
fn is_orphan(name: &str, modules: &BTreeSet<String>, qmap: Option<&Qmap>) -> bool {
    let Some((module, ending)) = name.rsplit_once('.') else {
        return false;
    };
    let is_ours = qmap.is_none_or(|q| q.names(module));
    COMPANIONS.contains(&ending) && is_ours && !modules.contains(module)
}

/// What was found.
struct Found<'a> {
    headers: Headers<'a>,
    qmap: Option<Qmap>,
    modules: Vec<String>,
    orphans: Vec<String>,
    evidence: Vec<String>,
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
        let stated = self.qmap.as_ref().and_then(|q| q.get(module));
        if let (Some(qmap), None) = (&self.qmap, stated)
            && qmap.len() > 0
        {
            return Err(Error::Contradiction {
                module: module.to_owned(),
                config: format!("{} does not name it", qmap::DOCUMENT),
                tensors: "it has quantized weights".to_owned(),
            });
        }
        let packed = self.headers.tensor(&format!("{module}.weight._data._data"));
        let mut tensor = match packed {
            Some(codes) => self.packed(module, codes, stated)?,
            None => self.bytes(module, stated)?,
        };
        for ending in COMPANIONS {
            if let Some(info) = self.headers.tensor(&format!("{module}.{ending}")) {
                tensor
                    .parts
                    .push(part(Role::Auxiliary, info, Storage::Vector));
            }
        }
        Ok(tensor)
    }
}

impl Found<'_> {
    fn scale(&self, module: &str) -> Result<(&TensorInfo, Float), Error> {
        let scale = required(self.headers, module, &format!("{module}.weight._scale"))?;
        let float =
            float_of(scale.dtype).ok_or_else(|| wrong_dtype(module, scale, "F32, F16 or BF16"))?;
        Ok((scale, float))
    }

    /// One byte per code, scales per row.
    fn bytes(&self, module: &str, stated: Option<Qtype>) -> Result<QuantizedTensor, Error> {
        let codes = required(self.headers, module, &format!("{module}.weight._data"))?;
        let (scale, float) = self.scale(module)?;
        let code = match minifloat_of(codes.dtype) {
            Some(minifloat) => Code::Minifloat(minifloat),
            None if codes.dtype == Dtype::I8 => Code::Integer {
                bits: 8,
                encoding: IntegerEncoding::TwosComplement,
            },
            None => return Err(wrong_dtype(module, codes, "I8 or an 8-bit float")),
        };
        let found = Qtype::Bytes(codes.dtype);
        agrees(
            module,
            stated,
            found,
            &format!("{} is {}", codes.name, codes.dtype),
        )?;
        let [rows, columns] = matrix(module, codes)?;
        let granularity = match scale.shape.as_slice() {
            [n, 1] if *n == rows => Granularity::Channel,
            [1, n] if *n == columns => Granularity::Strided { count: columns },
            _ if scale.n_elements() == 1 => Granularity::Tensor,
            _ => return Err(wrong_shape(module, scale, format!("[{rows}, 1]"))),
        };
        let elements = Storage::Elements { axes: Axes::OutIn };
        Ok(QuantizedTensor {
            module: module.to_owned(),
            weight: format!("{module}.weight"),
            convention: ID,
            shape: vec![rows, columns],
            scheme: bytes_scheme(code, granularity, float),
            reference_dtype: float,
            parts: vec![
                part(Role::Codes, codes, elements),
                part(Role::Scale, scale, elements),
            ],
        })
    }

    /// 4 or 2 bits: planes of the grouped matrix `[n / group, group]`, a scale and a shift for each of its rows.
    fn packed(
        &self,
        module: &str,
        codes: &TensorInfo,
        stated: Option<Qtype>,
    ) -> Result<QuantizedTensor, Error> {
        check_dtype(module, codes, &[Dtype::U8])?;
        let (scale, float) = self.scale(module)?;
        let shift = required(self.headers, module, &format!("{module}.weight._shift"))?;
        let [packed_rows, columns] = matrix(module, codes)?;
        let [rows, 1] = *scale.shape.as_slice() else {
            return Err(wrong_shape(
                module,
                scale,
                "one scale per row, [n, 1]".to_owned(),
            ));
        };
        if shift.shape != scale.shape {
            return Err(wrong_shape(module, shift, format!("{:?}", scale.shape)));
        }
        let bits = bits(module, codes, [rows, packed_rows], stated)?;
        let shape = shape::logical(self.headers, module, [rows, columns])?;
        let granularity = if columns == shape[1] {
            Granularity::Channel
        } else {
            Granularity::Group { size: columns }
        };
        let mut scheme = packed_scheme(bits, granularity, float);
        let zero_role = if float_of(shift.dtype).is_some() {
            Role::Offset
        } else {
            check_dtype(module, shift, &[Dtype::U8, Dtype::I8])?;
            scheme.zero_point = ZeroPoint::Stored(ZeroCoding::Direct);
            scheme.arithmetic = Arithmetic::ScaledDifference;
            Role::ZeroPoint
        };
        let elements = Storage::Elements { axes: Axes::OutIn };
        let planes = Storage::Planes {
            planes: Planes::LowFirst { bits },
            len: packed_rows.saturating_mul(columns),
        };
        Ok(QuantizedTensor {
            module: module.to_owned(),
            weight: format!("{module}.weight"),
            convention: ID,
            shape: shape.to_vec(),
            scheme,
            reference_dtype: float,
            parts: vec![
                part(Role::Codes, codes, planes),
                part(Role::Scale, scale, elements),
                part(zero_role, shift, elements),
            ],
        })
    }
}

/// What codes of one byte mean.
fn bytes_scheme(code: Code, granularity: Granularity, float: Float) -> Scheme {
    let zero = match code {
        Code::Integer { .. } => 128,
        Code::Minifloat(_) | Code::Codebook(_) | Code::StoredCodebook | Code::Dense(_) => 0,
    };
    Scheme {
        zero_point: ZeroPoint::Fixed(zero),
        ..Scheme::plain(code, granularity, ScaleCoding::Float(float))
    }
}

/// What packed codes with a float shift mean.
fn packed_scheme(bits: u32, granularity: Granularity, float: Float) -> Scheme {
    let code = Code::Integer {
        bits,
        encoding: IntegerEncoding::Unsigned,
    };
    Scheme {
        zero_point: ZeroPoint::Offset {
            zero: 0,
            form: OffsetForm::Subtracted,
        },
        arithmetic: Arithmetic::EachStep(float),
        ..Scheme::plain(code, granularity, ScaleCoding::Float(float))
    }
}

/// Rows and columns of a stored matrix.
fn matrix(module: &str, info: &TensorInfo) -> Result<[u64; 2], Error> {
    match *info.shape.as_slice() {
        [rows, columns] if rows > 0 && columns > 0 => Ok([rows, columns]),
        [_, _, _, _] => Err(unsupported(module, "a quantized convolution of quanto", "")),
        _ => Err(wrong_shape(module, info, "a matrix".to_owned())),
    }
}

/// What the document and the tensors say must be the same.
fn agrees(module: &str, stated: Option<Qtype>, found: Qtype, tensors: &str) -> Result<(), Error> {
    match stated {
        Some(stated) if stated != found => Err(Error::Contradiction {
            module: module.to_owned(),
            config: format!("{} says {stated}", qmap::DOCUMENT),
            tensors: tensors.to_owned(),
        }),
        Some(_) | None => Ok(()),
    }
}

/// Bits of a packed code: as many planes as rows lie over each other.
fn bits(
    module: &str,
    codes: &TensorInfo,
    [rows, packed_rows]: [u64; 2],
    stated: Option<Qtype>,
) -> Result<u32, Error> {
    let fits = |bits: u32| rows.div_ceil(8 / u64::from(bits)) == packed_rows;
    let found: Vec<u32> = [4, 2].into_iter().filter(|&b| fits(b)).collect();
    match (stated, found.as_slice()) {
        (Some(Qtype::Packed { bits }), _) if fits(bits) => Ok(bits),
        (None, [bits]) => Ok(*bits),
        (None, [_, _]) => Err(Error::MissingPart {
            module: module.to_owned(),
            part: format!(
                "{}, without which so few rows may be 4 or 2 bits",
                qmap::DOCUMENT
            ),
        }),
        (Some(Qtype::Bytes(_)), _) => Err(Error::Contradiction {
            module: module.to_owned(),
            config: format!("{} says 8 bits", qmap::DOCUMENT),
            tensors: format!("{} is packed", codes.name),
        }),
        (Some(Qtype::Packed { bits }), _) => {
            let expected = format!("{} rows of {bits} bits", rows.div_ceil(8 / u64::from(bits)));
            Err(wrong_shape(module, codes, expected))
        }
        (None, _) => {
            let expected = format!("{} or {} rows", rows.div_ceil(2), rows.div_ceil(4));
            Err(wrong_shape(module, codes, expected))
        }
    }
}
