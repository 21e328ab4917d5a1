//! Writing quanto: `weight._data`, `_scale` and `_shift` of frozen modules, and `quanto_qmap.json` (specs/conventions/quanto.md,
//! clauses Q13 to Q17).

use safequant_container::Dtype;
use safequant_kernels::{Float, Minifloat, Planes};
use serde_json::{Map, Value, json};

use super::qmap::{DOCUMENT, name_of};
use super::shape::group_of;
use super::{COMPANIONS, ID, bytes_scheme, packed_scheme};
use crate::binding::{cannot_write, constant, integer_bits, matrix_only, planned};
use crate::scheme::dtype_of;
use crate::{
    Axes, Basis, Code, ConfigEdit, ConventionWriter, Error, Granularity, IntegerEncoding, Part,
    Preset, PresetGranularity, QuantizedTensor, Role, ScaleRule, Storage, WeightCode, Written,
    ZeroPoint,
};

pub(super) struct Writer;

impl ConventionWriter for Writer {
    fn id(&self) -> &'static str {
        ID
    }

    fn lay_out(
        &self,
        module: &str,
        shape: &[u64],
        preset: &Preset,
        source: Float,
    ) -> Result<QuantizedTensor, Error> {
        let refuse = |reason: &str| cannot_write(ID, module, preset.name, reason);
        let shape = matrix_only(ID, module, shape, preset.name)?;
        let form = match (preset.weights, preset.granularity) {
            (
                WeightCode::AsymmetricInteger {
                    bits: bits @ (2 | 4),
                },
                granularity,
            ) => {
                let wanted = wanted_group(preset, granularity);
                check_group(wanted, shape[1]).map_err(|e| refuse(&e))?;
                Form::Packed { bits }
            }
            (WeightCode::SymmetricInteger { bits: 8 }, granularity) => {
                if wanted_group(preset, granularity).is_some_and(|size| size < shape[1]) {
                    return Err(refuse(
                        "its 8-bit integers have one scale per row (group size -1)",
                    ));
                }
                Form::Int8
            }
            (WeightCode::Minifloat(format), PresetGranularity::Channel) => Form::Float8(format),
            (
                WeightCode::SymmetricInteger { .. }
                | WeightCode::AsymmetricInteger { .. }
                | WeightCode::Minifloat(_)
                | WeightCode::Nvfp4
                | WeightCode::Mx(_)
                | WeightCode::Codebook(_)
                | WeightCode::NestedCodebook(_)
                | WeightCode::Block(_),
                _,
            ) => {
                return Err(refuse(
                    "it holds 4 and 2 bits with a shift, and symmetric 8-bit integers and floats with a scale per row",
                ));
            }
        };
        form.lay_out(module, shape, source)
            .map_err(|reason| refuse(&reason))
    }

    fn lay_out_like(&self, source: &QuantizedTensor) -> Result<QuantizedTensor, Error> {
        if source.convention == ID {
            return Ok(source.clone());
        }
        let kind = format!("{:?}", source.scheme.code);
        let refuse = |reason: &str| cannot_write(ID, &source.module, &kind, reason);
        let shape = matrix_only(ID, &source.module, &source.shape, &kind)?;
        if source.scheme.basis != Basis::WEIGHT {
            return Err(refuse("its weights are not rotated, rescaled or in parts"));
        }
        let form = held(source).map_err(|reason| refuse(&reason))?;
        // Readers take the dtype of the scales for that of the weight, and never change it.
        form.lay_out(&source.module, shape, source.reference_dtype)
            .map_err(|reason| refuse(&reason))
    }

    fn config(&self, written: &Written<'_>) -> Result<ConfigEdit, Error> {
        let mut map = Map::new();
        for tensor in written.modules {
            let dtype = tensor.part(Role::Codes).map(|part| part.dtype);
            let name = dtype.and_then(|dtype| name_of(dtype, integer_bits(tensor)));
            let name = name.ok_or_else(|| {
                let kind = format!("{:?}", tensor.scheme.code);
                cannot_write(ID, &tensor.module, &kind, "no type of quanto describes it")
            })?;
            let entry = json!({"weights": name, "activations": "none"});
            map.insert(tensor.module.clone(), entry);
        }
        let bytes = serde_json::to_vec_pretty(&Value::Object(map)).unwrap_or_default();
        Ok(ConfigEdit {
            documents: vec![(DOCUMENT.to_owned(), bytes)],
            metadata: vec![("format".to_owned(), "pt".to_owned())],
            ..ConfigEdit::default()
        })
    }

    fn presets(&self) -> &'static [&'static str] {
        &["W4A16_ASYM", "W2A16_ASYM", "W8A16", "FP8_DYNAMIC"]
    }

    fn scale_rule(&self) -> ScaleRule {
        ScaleRule::Quanto
    }
}

/// The group size that was asked for: `None` where the preset is as its name has it, which leaves the choice to quanto.
fn wanted_group(preset: &Preset, granularity: PresetGranularity) -> Option<u64> {
    let is_default = preset.is_as_named();
    match granularity {
        PresetGranularity::Group { size } if !is_default => Some(size),
        PresetGranularity::Channel if !is_default => Some(u64::MAX),
        PresetGranularity::Group { .. }
        | PresetGranularity::Channel
        | PresetGranularity::Tensor
        | PresetGranularity::Block { .. } => None,
    }
}

/// Its groups follow from the number of input features.
fn check_group(wanted: Option<u64>, columns: u64) -> Result<(), String> {
    let own = group_of(columns);
    match wanted {
        Some(size) if size.min(columns) != own => Err(format!(
            "its groups follow from the input features, and are {own} of {columns}"
        )),
        Some(_) | None => Ok(()),
    }
}

/// The form that holds the codes of a tensor, or why none does.
fn held(source: &QuantizedTensor) -> Result<Form, String> {
    let scheme = &source.scheme;
    let columns = source.in_features();
    let shared = match scheme.granularity {
        Granularity::Group { size } | Granularity::Block { columns: size, .. } => size.min(columns),
        Granularity::Tensor | Granularity::Channel => columns,
        Granularity::Flat { size } if size > 0 && columns.is_multiple_of(size) => size,
        Granularity::IndexedGroup { .. } => {
            return Err("it has no group index (activation order); gptq has".to_owned());
        }
        Granularity::Flat { .. } | Granularity::Strided { .. } => {
            return Err("its groups are consecutive input features of one row".to_owned());
        }
    };
    let is_row = shared == columns;
    match (scheme.code, scheme.zero_point) {
        (Code::Minifloat(format), _) if is_row => Ok(Form::Float8(format)),
        (Code::Minifloat(_), _) => {
            Err("its floats have one scale per row; compressed-tensors and fp8 have more".to_owned())
        }
        (Code::Integer { bits, .. }, _) if bits <= 4 => {
            let own = group_of(columns);
            if own == 0 || !shared.is_multiple_of(own) {
                return Err(format!(
                    "its groups follow from the input features, and are {own} of {columns}: {shared} cannot be cut into them"
                ));
            }
            let bits = if bits <= 2 { 2 } else { 4 };
            Ok(Form::Packed { bits })
        }
        (Code::Integer { .. }, ZeroPoint::Fixed(_)) if is_row => Ok(Form::Int8),
        (Code::Integer { .. }, _) => Err(
            "its integers of more than 4 bits are symmetric with one scale per row; compressed-tensors, gptq and mlx have more"
                .to_owned(),
        ),
        (Code::Codebook(_) | Code::StoredCodebook | Code::Dense(_), _) => {
            Err("its codes are integers of 8, 4 and 2 bits and 8-bit floats".to_owned())
        }
    }
}

/// The forms that there are.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    /// `qint4`, `qint2`: planes of the grouped matrix, with a shift.
    Packed {
        /// 4 or 2.
        bits: u32,
    },
    Int8,
    /// `qfloat8_*`.
    Float8(Minifloat),
}

impl Form {
    /// The parts of a module; the reason where there are none.
    fn lay_out(
        self,
        module: &str,
        [rows, columns]: [u64; 2],
        float: Float,
    ) -> Result<QuantizedTensor, String> {
        let n = rows.checked_mul(columns).filter(|n| *n > 0);
        let n = n.ok_or("a weight has elements, and not more than can be counted")?;
        let elements = Storage::Elements { axes: Axes::OutIn };
        let name = |ending: &str| format!("{module}.weight.{ending}");
        let bytes = |dtype| {
            let shape = vec![rows, columns];
            planned(Role::Codes, name("_data"), dtype, shape, elements)
        };
        // The library takes a single row for a whole tensor.
        let (per_row, row_grid) = if rows == 1 {
            (Granularity::Tensor, Vec::new())
        } else {
            (Granularity::Channel, vec![rows, 1])
        };
        let (codes, scheme, grid) = match self {
            Form::Packed { bits } => {
                let group = group_of(columns);
                let grid = n / group;
                let packed = grid.div_ceil(8 / u64::from(bits));
                let storage = Storage::Planes {
                    planes: Planes::LowFirst { bits },
                    len: packed.saturating_mul(group),
                };
                let shape = vec![packed, group];
                let codes = planned(Role::Codes, name("_data._data"), Dtype::U8, shape, storage);
                let granularity = if group == columns {
                    Granularity::Channel
                } else {
                    Granularity::Group { size: group }
                };
                (
                    codes,
                    packed_scheme(bits, granularity, float),
                    vec![grid, 1],
                )
            }
            Form::Int8 => {
                let code = Code::Integer {
                    bits: 8,
                    encoding: IntegerEncoding::TwosComplement,
                };
                (
                    bytes(Dtype::I8),
                    bytes_scheme(code, per_row, float),
                    row_grid,
                )
            }
            Form::Float8(format) => {
                let scheme = bytes_scheme(Code::Minifloat(format), per_row, float);
                (bytes(dtype_of_codes(format)?), scheme, row_grid)
            }
        };
        let float_part =
            |role, ending| planned(role, name(ending), dtype_of(float), grid.clone(), elements);
        let mut parts = vec![codes, float_part(Role::Scale, "_scale")];
        if matches!(self, Form::Packed { .. }) {
            parts.push(float_part(Role::Offset, "_shift"));
        }
        parts.extend(COMPANIONS.iter().map(|ending| one(module, ending, float)));
        Ok(QuantizedTensor {
            module: module.to_owned(),
            weight: format!("{module}.weight"),
            convention: ID,
            shape: vec![rows, columns],
            scheme,
            reference_dtype: float,
            parts,
        })
    }
}

/// The scale of activations that are not quantized.
fn one(module: &str, ending: &str, float: Float) -> Part {
    let bytes = match float {
        Float::F32 => 1.0_f32.to_le_bytes().to_vec(),
        Float::F16 => 0x3c00_u16.to_le_bytes().to_vec(),
        Float::Bf16 => 0x3f80_u16.to_le_bytes().to_vec(),
    };
    constant(
        format!("{module}.{ending}"),
        dtype_of(float),
        Vec::new(),
        bytes,
    )
}

fn dtype_of_codes(format: Minifloat) -> Result<Dtype, String> {
    match format {
        Minifloat::E4M3 => Ok(Dtype::F8E4M3),
        Minifloat::E5M2 => Ok(Dtype::F8E5M2),
        Minifloat::E4M3Fnuz => Ok(Dtype::F8E4M3Fnuz),
        Minifloat::E5M2Fnuz
        | Minifloat::E8M0
        | Minifloat::E2M1
        | Minifloat::E2M3
        | Minifloat::E3M2 => {
            Err("its floats are E4M3, E5M2 and E4M3 without infinities and minus zero".to_owned())
        }
    }
}
