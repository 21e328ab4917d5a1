//! Nunchaku: SVDQuant W4A4 weights and AWQ W4A16 modulation layers, every tensor of a W4A4 layer in the order of MMA
//! fragments (specs/conventions/nunchaku.md).

use safequant_container::{Dtype, TensorInfo};
use safequant_kernels::{Float, Tile};
use serde_json::Value;

use crate::binding::{check_dtype, part, required, unsupported, wrong_dtype, wrong_shape};
use crate::config::shorten;
use crate::scheme::float_of;
use crate::{
    Arithmetic, Axes, Basis, Code, ColumnFactor, Convention, Error, Granularity, Headers,
    IntegerEncoding, OffsetForm, Part, QuantizedTensor, Recognized, Role, Rotation, ScaleCoding,
    Scheme, Storage, ZeroPoint,
};

/// See the module.
pub struct Nunchaku;

/// The id.
const ID: &str = "nunchaku";
/// Input features per scale.
const GROUP: u64 = 64;
/// The ending of a packed bias, which is a module of its own: it is not stored in its order.
const BIAS: &str = ".bias";

impl Convention for Nunchaku {
    fn id(&self) -> &'static str {
        ID
    }

    fn summary(&self) -> &'static str {
        "Nunchaku: SVDQuant W4A4 with low-rank factors, AWQ W4A16 modulation layers (read only)"
    }

    fn recognize<'a>(
        &self,
        headers: Headers<'a>,
    ) -> Result<Option<Box<dyn Recognized + 'a>>, Error> {
        let mut modules = Vec::new();
        let mut n_weights = 0;
        for info in headers.tensors() {
            let Some(module) = info.name.strip_suffix(".qweight") else {
                continue;
            };
            if headers.tensor(&format!("{module}.wscales")).is_none() {
                continue;
            }
            n_weights += 1;
            modules.push(module.to_owned());
            let bias = format!("{module}{BIAS}");
            if info.dtype == Dtype::I8 && headers.tensor(&bias).is_some() {
                modules.push(bias);
            }
        }
        if modules.is_empty() {
            return Ok(None);
        }
        let mut evidence = vec![format!("{n_weights} modules with qweight and wscales")];
        if let Some(text) = headers.metadata("quantization_config") {
            evidence.push(check_config(text)?);
        }
        Ok(Some(Box::new(Found {
            headers,
            modules,
            evidence,
        })))
    }
}

/// What the header says must be what can be read; what it says in a line.
fn check_config(text: &str) -> Result<String, Error> {
    const PLACE: &str = "__metadata__.quantization_config";
    let config = crate::config::parse(PLACE, text.as_bytes())?;
    let wrong = |key: &str, expected: &str, found: Option<&Value>| Error::ConfigValue {
        document: PLACE.to_owned(),
        key: key.to_owned(),
        expected: expected.to_owned(),
        found: found.map_or("nothing".to_owned(), |v| shorten(&v.to_string())),
    };
    let method = config.get("method");
    if method.is_some_and(|m| m.as_str() != Some("svdquant")) {
        return Err(wrong("method", "\"svdquant\"", method));
    }
    let dtype = config.pointer("/weight/dtype");
    match dtype.and_then(Value::as_str) {
        Some("int4") => {}
        None if dtype.is_none_or(Value::is_null) => {}
        Some("fp4_e2m1_all") => {
            return Err(unsupported(PLACE, "Nunchaku FP4 (fp4_e2m1_all)", ""));
        }
        _ => return Err(wrong("weight.dtype", "\"int4\"", dtype)),
    }
    let group = config.pointer("/weight/group_size");
    if group.is_some_and(|g| !g.is_null() && g.as_u64() != Some(GROUP)) {
        return Err(wrong("weight.group_size", "64", group));
    }
    Ok(format!("{PLACE} is of svdquant"))
}

/// What was found.
struct Found<'a> {
    headers: Headers<'a>,
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
        let module = Module {
            headers: self.headers,
            name: module,
        };
        let Some(codes) = module.get("qweight") else {
            return module.bias();
        };
        if codes.dtype == Dtype::I8 {
            module.w4a4(codes)
        } else {
            check_dtype(module.name, codes, &[Dtype::I8, Dtype::I32])?;
            module.w4a16(codes)
        }
    }
}

/// One module on its way to a tensor.
struct Module<'a> {
    headers: Headers<'a>,
    name: &'a str,
}

const fn tiled(tile: Tile) -> Storage {
    Storage::Tiled { tile }
}

impl<'a> Module<'a> {
    fn get(&self, ending: &str) -> Option<&'a TensorInfo> {
        self.headers.tensor(&format!("{}.{ending}", self.name))
    }

    /// The first of these that is there: the two versions of the names.
    fn one_of(&self, endings: [&str; 2]) -> Option<&'a TensorInfo> {
        endings.iter().find_map(|e| self.get(e))
    }

    fn need(&self, endings: [&str; 2]) -> Result<&'a TensorInfo, Error> {
        let name = format!("{}.{}", self.name, endings[0]);
        self.one_of(endings)
            .map_or_else(|| required(self.headers, self.name, &name), Ok)
    }

    /// A tensor of 16-bit floats with this shape.
    fn halves(&self, info: &TensorInfo, shape: &[u64]) -> Result<Float, Error> {
        if info.shape != shape {
            return Err(wrong_shape(self.name, info, format!("{shape:?}")));
        }
        match float_of(info.dtype) {
            Some(float @ (Float::F16 | Float::Bf16)) => Ok(float),
            Some(Float::F32) | None => Err(wrong_dtype(self.name, info, "F16 or BF16")),
        }
    }

    fn w4a4(&self, codes: &'a TensorInfo) -> Result<QuantizedTensor, Error> {
        let &[rows, bytes] = codes.shape.as_slice() else {
            return Err(wrong_shape(self.name, codes, "[rows, bytes]".to_owned()));
        };
        let columns = bytes.saturating_mul(2);
        let is_whole = |n: u64, unit: u64| n > 0 && n.is_multiple_of(unit);
        if !is_whole(rows, 128) || !is_whole(columns, 128) {
            let expected = "whole tiles of 128 rows and 128 columns".to_owned();
            return Err(wrong_shape(self.name, codes, expected));
        }
        let scale = self.need(["wscales", "wscales"])?;
        if scale.dtype == Dtype::F8E4M3 || self.one_of(["wtscale", "wcscales"]).is_some() {
            return Err(unsupported(
                self.name,
                "Nunchaku FP4",
                "wscales of groups of 16, wcscales, wtscale",
            ));
        }
        let float = self.halves(scale, &[columns / GROUP, rows])?;
        let smooth = self.need(["smooth", "smooth_factor"])?;
        self.halves(smooth, &[columns])?;
        let mut parts = vec![
            part(Role::Codes, codes, tiled(Tile::NunchakuCodes)),
            part(Role::Scale, scale, tiled(Tile::NunchakuScales)),
            part(Role::ColumnFactor, smooth, tiled(Tile::NunchakuScales)),
        ];
        let rank = self.low_rank([rows, columns], &mut parts)?;
        for ending in ["smooth_orig", "smooth_factor_orig"] {
            let original = self.get(ending);
            parts.extend(original.map(|info| part(Role::Auxiliary, info, Storage::Vector)));
        }
        Ok(self.tensor(
            vec![rows, columns],
            Scheme {
                zero_point: ZeroPoint::Fixed(8),
                basis: Basis {
                    rotation: Rotation::None,
                    columns: ColumnFactor::Divide,
                    rank,
                },
                ..Scheme::plain(
                    Code::Integer {
                        bits: 4,
                        encoding: IntegerEncoding::TwosComplement,
                    },
                    Granularity::Group { size: GROUP },
                    ScaleCoding::Float(float),
                )
            },
            parts,
        ))
    }

    /// The low-rank factors; the rank.
    fn low_rank(&self, [rows, columns]: [u64; 2], parts: &mut Vec<Part>) -> Result<u64, Error> {
        const DOWN: [&str; 2] = ["lora_down", "proj_down"];
        const UP: [&str; 2] = ["lora_up", "proj_up"];
        if self.one_of(DOWN).is_none() && self.one_of(UP).is_none() {
            return Ok(0);
        }
        let (down, up) = (self.need(DOWN)?, self.need(UP)?);
        let rank = down.shape.last().copied().unwrap_or(0);
        if !rank.is_multiple_of(16) {
            let expected = "a rank in multiples of 16".to_owned();
            return Err(wrong_shape(self.name, down, expected));
        }
        self.halves(down, &[columns, rank])?;
        self.halves(up, &[rows, rank])?;
        let role = |role| if rank == 0 { Role::Auxiliary } else { role };
        parts.push(part(
            role(Role::LowRankUp),
            up,
            tiled(Tile::NunchakuLowRank),
        ));
        parts.push(part(
            role(Role::LowRankDown),
            down,
            tiled(Tile::NunchakuLowRankDown),
        ));
        Ok(rank)
    }

    fn w4a16(&self, codes: &'a TensorInfo) -> Result<QuantizedTensor, Error> {
        let &[fours, words] = codes.shape.as_slice() else {
            return Err(wrong_shape(
                self.name,
                codes,
                "[rows / 4, words]".to_owned(),
            ));
        };
        let (rows, columns) = (fours.saturating_mul(4), words.saturating_mul(2));
        if rows == 0 || columns == 0 || !columns.is_multiple_of(GROUP) {
            let expected = format!("groups of {GROUP} columns");
            return Err(wrong_shape(self.name, codes, expected));
        }
        let groups = columns / GROUP;
        let (scale, zeros) = (
            self.need(["wscales", "wscales"])?,
            self.need(["wzeros", "wzeros"])?,
        );
        // There may be more rows of scales than groups: zeros.
        let stored = scale.shape.first().copied().unwrap_or(0);
        if stored < groups {
            let expected = format!("[{groups} or more, {rows}]");
            return Err(wrong_shape(self.name, scale, expected));
        }
        let float = self.halves(scale, &[stored, rows])?;
        self.halves(zeros, &[stored, rows])?;
        let by_columns = Storage::Elements { axes: Axes::InOut };
        let grid = |role, info| Part {
            extent: (stored > groups).then_some([rows, stored]),
            ..part(role, info, by_columns)
        };
        Ok(self.tensor(
            vec![rows, columns],
            Scheme {
                zero_point: ZeroPoint::Offset {
                    zero: 0,
                    form: OffsetForm::Added,
                },
                arithmetic: Arithmetic::ScaledDifference,
                ..Scheme::plain(
                    Code::Integer {
                        bits: 4,
                        encoding: IntegerEncoding::Unsigned,
                    },
                    Granularity::Group { size: GROUP },
                    ScaleCoding::Float(float),
                )
            },
            vec![
                part(Role::Codes, codes, tiled(Tile::AwqGemvFast)),
                grid(Role::Scale, scale),
                grid(Role::Offset, zeros),
            ],
        ))
    }

    /// Nothing else than the order of a bias is unusual.
    fn bias(&self) -> Result<QuantizedTensor, Error> {
        let info = required(self.headers, self.name, self.name)?;
        let &[rows] = info.shape.as_slice() else {
            return Err(wrong_shape(self.name, info, "[rows]".to_owned()));
        };
        if rows == 0 || !rows.is_multiple_of(128) {
            let expected = "whole tiles of 128".to_owned();
            return Err(wrong_shape(self.name, info, expected));
        }
        let float = self.halves(info, &[rows])?;
        Ok(QuantizedTensor {
            module: self.name.to_owned(),
            weight: self.name.to_owned(),
            convention: ID,
            shape: vec![rows],
            scheme: Scheme::plain(Code::Dense(float), Granularity::Tensor, ScaleCoding::One),
            reference_dtype: float,
            parts: vec![part(Role::Codes, info, tiled(Tile::NunchakuScales))],
        })
    }

    /// No runtime gives such a weight on a CPU: the closed form in F32.
    fn tensor(&self, shape: Vec<u64>, scheme: Scheme, parts: Vec<Part>) -> QuantizedTensor {
        QuantizedTensor {
            module: self.name.to_owned(),
            weight: format!("{}.weight", self.name),
            convention: ID,
            shape,
            scheme,
            reference_dtype: Float::F32,
            parts,
        }
    }
}
