//! The descriptors beside the weights of an HQQ module: small tensors that say how to read it (specs/conventions/hqq.md, H4).

use safequant_container::{Dtype, TensorInfo};

use super::{Float, Headers, Planes, nested};
use crate::Error;
use crate::binding::{required, unsupported, wrong_dtype, wrong_shape};

/// Endings of a module's descriptors, in the order of the library's state dict.
pub(super) const DESCRIPTORS: &[&str] = &[
    "nbits",
    "group_size",
    "shape",
    "axis",
    "packing",
    "unpack_view_dtype",
    "view_as_float",
    "quant_scale",
    "quant_zero",
    "compute_dtype",
    "offload_meta",
    "encoded_state_dict",
    "stores_quant_config",
    "channel_wise",
    "optimize",
    "round_zero",
];

/// Longest descriptor: `torch.bfloat16` has 14 bytes.
const MAX_BYTES: u64 = 64;

/// Which axis of the grouped matrix a group follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Axis {
    /// `axis` 0: columns of the matrix `[group_size, n / group_size]`.
    Out,
    /// `axis` 1: rows of the matrix `[n / group_size, group_size]`.
    In,
}

/// What the descriptors of a module say.
#[derive(Clone, Debug)]
pub(super) struct Module {
    /// As stated; 1.58 means three values.
    pub(super) nbits: Option<f64>,
    /// Bits of a code: the whole number above `nbits`.
    pub(super) bits: u32,
    pub(super) planes: Planes,
    pub(super) group_size: Option<u64>,
    pub(super) axis: Axis,
    /// As stated, if it is.
    pub(super) stated_axis: Option<Axis>,
    /// `[out_features, in_features]`.
    pub(super) shape: [u64; 2],
    pub(super) is_channel_wise: bool,
    pub(super) is_float_view: bool,
    pub(super) compute: Option<Float>,
}

impl Module {
    /// Reads them. Dtypes are texts that the library evaluates; here only those it writes are known.
    ///
    /// # Errors
    /// A descriptor with another dtype, shape or value than the library writes.
    pub(super) fn read(
        headers: Headers<'_>,
        module: &str,
        scale: &TensorInfo,
    ) -> Result<Self, Error> {
        let reader = Reader { headers, module };
        let packing = reader.text("packing")?;
        let nbits = reader.number("nbits")?;
        let (bits, planes) = widths(module, nbits, packing.as_deref())?;
        for ending in ["quant_scale", "quant_zero"] {
            if reader.flag(ending)? == Some(true) {
                return Err(nested(module, &format!("{ending} is set")));
            }
        }
        let group_size = match reader.integer("group_size")? {
            None => None,
            Some(size) => Some(u64::try_from(size).ok().filter(|s| *s > 0).ok_or_else(|| {
                reader.wrong("group_size", "a number above 0", &size.to_string())
            })?),
        };
        let stated_axis = match reader.integer("axis")? {
            None => None,
            Some(0) => Some(Axis::Out),
            Some(1) => Some(Axis::In),
            Some(other) => return Err(reader.wrong("axis", "0 or 1", &other.to_string())),
        };
        reader.check_view(planes)?;
        Ok(Self {
            nbits,
            bits,
            planes,
            group_size,
            // Without it the scales still tell: they are a column or a row.
            axis: stated_axis.unwrap_or(match scale.shape.first() {
                Some(1) => Axis::Out,
                Some(_) | None => Axis::In,
            }),
            stated_axis,
            shape: reader.shape()?,
            is_channel_wise: reader.flag("channel_wise")?.unwrap_or(true),
            is_float_view: reader.flag("view_as_float")?.unwrap_or(false),
            compute: reader.compute()?,
        })
    }
}

/// Bits of a code and the planes it lies in; `nbits` and `packing` must go together.
fn widths(module: &str, nbits: Option<f64>, packing: Option<&str>) -> Result<(u32, Planes), Error> {
    const WIDTHS: [(f64, u32, &str); 8] = [
        (8.0, 8, "8bit_u8"),
        (6.0, 6, "8bit_u8"),
        (5.0, 5, "8bit_u8"),
        (4.0, 4, "4bit_u8"),
        (3.0, 3, "3bit_32"),
        (2.0, 2, "2bit_u8"),
        (1.58, 2, "2bit_u8"),
        (1.0, 1, "1bit_u8"),
    ];
    let of_packing = |name: &str| WIDTHS.iter().find(|w| w.2 == name);
    let found = match (nbits, packing) {
        (None, None) => {
            return Err(Error::MissingPart {
                module: module.to_owned(),
                part: format!("{module}.packing or {module}.nbits"),
            });
        }
        (None, Some(name)) => of_packing(name),
        (Some(n), _) => WIDTHS.iter().find(|w| (w.0 - n).abs() < 1e-3),
    };
    let Some(&(_, bits, name)) = found else {
        let shown = packing.map_or_else(String::new, crate::config::shorten);
        let number = nbits.map_or_else(String::new, |n| format!("nbits {n}"));
        return Err(unsupported(
            module,
            "HQQ with this packing",
            &format!("{shown}{number}"),
        ));
    };
    if let Some(stated) = packing.filter(|p| *p != name) {
        return Err(Error::Contradiction {
            module: module.to_owned(),
            config: format!("nbits is {}", nbits.unwrap_or_default()),
            tensors: format!("{module}.packing is {}", crate::config::shorten(stated)),
        });
    }
    let stored = match name {
        "8bit_u8" => 8,
        _ => bits,
    };
    Ok((bits, Planes::HighFirst { bits: stored }))
}

/// The bytes of a descriptor.
///
/// # Errors
/// If it is longer than any that the library writes, or cannot be read.
pub(super) fn bytes(
    headers: Headers<'_>,
    module: &str,
    info: &TensorInfo,
) -> Result<Vec<u8>, Error> {
    if info.len_bytes() > MAX_BYTES {
        return Err(wrong_shape(
            module,
            info,
            format!("at most {MAX_BYTES} bytes"),
        ));
    }
    headers.descriptor(&info.name)
}

/// The text of a dense dtype.
pub(super) const fn dtype_text(float: Float) -> &'static str {
    match float {
        Float::F32 => "torch.float32",
        Float::F16 => "torch.float16",
        Float::Bf16 => "torch.bfloat16",
    }
}

/// Reads descriptors of one module.
struct Reader<'a> {
    headers: Headers<'a>,
    module: &'a str,
}

impl Reader<'_> {
    fn name(&self, ending: &str) -> String {
        format!("{}.{ending}", self.module)
    }

    fn wrong(&self, ending: &str, expected: &str, found: &str) -> Error {
        Error::ConfigValue {
            document: self.module.to_owned(),
            key: ending.to_owned(),
            expected: expected.to_owned(),
            found: crate::config::shorten(found),
        }
    }

    /// Header and bytes of a descriptor that may be there.
    fn find(&self, ending: &str) -> Result<Option<(&TensorInfo, Vec<u8>)>, Error> {
        let Some(info) = self.headers.tensor(&self.name(ending)) else {
            return Ok(None);
        };
        Ok(Some((info, bytes(self.headers, self.module, info)?)))
    }

    /// A single number of any dtype that the library writes.
    fn number(&self, ending: &str) -> Result<Option<f64>, Error> {
        let Some((info, bytes)) = self.find(ending)? else {
            return Ok(None);
        };
        if info.dtype == Dtype::F32
            && let Ok(four) = <[u8; 4]>::try_from(bytes.as_slice())
        {
            return Ok(Some(f64::from(f32::from_le_bytes(four))));
        }
        let whole = self.whole(info, &bytes)?;
        match i32::try_from(whole) {
            Ok(n) => Ok(Some(f64::from(n))),
            Err(_) => Err(self.wrong(ending, "a small number", &whole.to_string())),
        }
    }

    fn integer(&self, ending: &str) -> Result<Option<i64>, Error> {
        let found = self.find(ending)?;
        found
            .map(|(info, bytes)| self.whole(info, &bytes))
            .transpose()
    }

    fn whole(&self, info: &TensorInfo, bytes: &[u8]) -> Result<i64, Error> {
        if info.n_elements() != 1 {
            return Err(wrong_shape(self.module, info, "one value".to_owned()));
        }
        let four = <[u8; 4]>::try_from(bytes).map(|b| i64::from(i32::from_le_bytes(b)));
        let eight = <[u8; 8]>::try_from(bytes).map(i64::from_le_bytes);
        let value = match (info.dtype, bytes) {
            (Dtype::U8 | Dtype::Bool, [byte]) => Some(i64::from(*byte)),
            (Dtype::I32, _) => four.ok(),
            (Dtype::I64, _) => eight.ok(),
            _ => None,
        };
        value.ok_or_else(|| wrong_dtype(self.module, info, "U8, I32 or I64"))
    }

    fn flag(&self, ending: &str) -> Result<Option<bool>, Error> {
        match self.integer(ending)? {
            None => Ok(None),
            Some(0) => Ok(Some(false)),
            Some(1) => Ok(Some(true)),
            Some(other) => Err(self.wrong(ending, "0 or 1", &other.to_string())),
        }
    }

    fn text(&self, ending: &str) -> Result<Option<String>, Error> {
        let Some((info, bytes)) = self.find(ending)? else {
            return Ok(None);
        };
        if info.dtype != Dtype::U8 {
            return Err(wrong_dtype(self.module, info, "U8"));
        }
        if !bytes.is_ascii() {
            let found = String::from_utf8_lossy(&bytes).into_owned();
            return Err(self.wrong(ending, "ASCII", &found));
        }
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    }

    fn shape(&self) -> Result<[u64; 2], Error> {
        let info = required(self.headers, self.module, &self.name("shape"))?;
        if !matches!(info.dtype, Dtype::I64 | Dtype::I32) {
            return Err(wrong_dtype(self.module, info, "I64"));
        }
        let bytes = bytes(self.headers, self.module, info)?;
        let values: Vec<i64> = if info.dtype == Dtype::I64 {
            let each = bytes.as_chunks().0.iter();
            each.map(|&b| i64::from_le_bytes(b)).collect()
        } else {
            let each = bytes.as_chunks().0.iter();
            each.map(|&b| i64::from(i32::from_le_bytes(b))).collect()
        };
        match values[..] {
            [out, columns] if out > 0 && columns > 0 => {
                Ok([out.unsigned_abs(), columns.unsigned_abs()])
            }
            _ => Err(self.wrong("shape", "two numbers above 0", &format!("{values:?}"))),
        }
    }

    /// The dtype that everything is computed in.
    fn compute(&self) -> Result<Option<Float>, Error> {
        let Some(text) = self.text("compute_dtype")? else {
            return Ok(None);
        };
        match text.as_str() {
            "torch.bfloat16" => Ok(Some(Float::Bf16)),
            "torch.float16" | "torch.half" => Ok(Some(Float::F16)),
            "torch.float32" | "torch.float" => Ok(Some(Float::F32)),
            _ => Err(self.wrong(
                "compute_dtype",
                "torch.bfloat16, torch.float16 or torch.float32",
                &text,
            )),
        }
    }

    /// `unpack_view_dtype` is the integer type of a word.
    fn check_view(&self, planes: Planes) -> Result<(), Error> {
        let wanted = super::write::view_text(planes);
        match self.text("unpack_view_dtype")? {
            Some(text) if text != wanted => Err(self.wrong("unpack_view_dtype", wanted, &text)),
            Some(_) | None => Ok(()),
        }
    }
}
