//! Writing MLX: parts, and `quantization` with its copy for the hub.

use std::collections::BTreeMap;

use safequant_container::Dtype;
use safequant_kernels::{Codebook, Float, Minifloat};
use serde_json::{Map, Value, json};

use super::config::Mode;
use super::{ID, Sizes, WORD_BITS, scheme};
use crate::binding::{cannot_write, planned};
use crate::scheme::{Packing, dtype_of};
use crate::{
    Axes, Axis, Code, ConfigEdit, ConventionWriter, Error, Granularity, Preset, PresetGranularity,
    QuantizedTensor, Role, Rotation, ScaleCoding, ScaleRule, Storage, SuperScale, WeightCode,
    Written, ZeroPoint,
};

pub(super) struct Writer;

/// Group sizes of affine modules, the largest first.
const GROUPS: [u64; 3] = [128, 64, 32];

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
        let refuse = |reason: &str| refusal(module, preset.name, reason);
        let PresetGranularity::Group { size } = preset.granularity else {
            return Err(refuse("its scales are per group of input features"));
        };
        let (mode, bits) = match preset.weights {
            WeightCode::AsymmetricInteger { bits } => (Mode::Affine, bits),
            WeightCode::Mx(Minifloat::E2M1) => (Mode::Mxfp4, 4),
            WeightCode::Mx(Minifloat::E4M3) => (Mode::Mxfp8, 8),
            // Its scales are those of the values themselves: a scale of scales is an argument that no tool stores.
            WeightCode::Nvfp4 => (Mode::Nvfp4, 4),
            WeightCode::SymmetricInteger { .. } => {
                return Err(refuse(
                    "its integers always have a bias (the _ASYM schemes)",
                ));
            }
            WeightCode::Mx(_)
            | WeightCode::Minifloat(_)
            | WeightCode::Codebook(_)
            | WeightCode::NestedCodebook(_)
            | WeightCode::Block(_) => {
                return Err(refuse("its floats are mxfp4, mxfp8 and nvfp4"));
            }
        };
        check_sizes(mode, Sizes { bits, group: size }).map_err(|e| refuse(&e))?;
        lay_out(module, shape, mode, Sizes { bits, group: size }, source)
            .map_err(|reason| refuse(&reason))
    }

    fn lay_out_like(&self, source: &QuantizedTensor) -> Result<QuantizedTensor, Error> {
        if is_own_spelling(source) {
            return Ok(source.clone());
        }
        let kind = format!("{:?}", source.scheme.code);
        let refuse = |reason: String| refusal(&source.module, &kind, &reason);
        let (mode, sizes) = held(source).map_err(refuse)?;
        let float = match source.scheme.scale {
            ScaleCoding::Float(float) => float,
            ScaleCoding::E8M0(_)
            | ScaleCoding::Minifloat(_)
            | ScaleCoding::StoredTable
            | ScaleCoding::Integer
            | ScaleCoding::One => source.reference_dtype,
        };
        lay_out(&source.module, &source.shape, mode, sizes, float).map_err(refuse)
    }

    fn config(&self, written: &Written<'_>) -> Result<ConfigEdit, Error> {
        let mut counts = BTreeMap::new();
        for tensor in written.modules {
            let one = described(tensor)?;
            *counts.entry(one).or_insert(0_u64) += 1;
        }
        // The most frequent one stands above; of equally frequent ones the first in the order of the list.
        let most = counts.values().max().copied().unwrap_or(0);
        let mut global = None;
        for tensor in written.modules {
            let one = described(tensor)?;
            if counts.get(&one) == Some(&most) {
                global = Some(one);
                break;
            }
        }
        let global = global.unwrap_or(("affine", 4, 64));
        let mut map = Map::new();
        map.insert("group_size".to_owned(), json!(global.2));
        map.insert("bits".to_owned(), json!(global.1));
        map.insert("mode".to_owned(), json!(global.0));
        for tensor in written.modules {
            let (mode, bits, group) = described(tensor)?;
            if (mode, bits, group) == global {
                continue;
            }
            let mut entry = Map::new();
            entry.insert("group_size".to_owned(), json!(group));
            entry.insert("bits".to_owned(), json!(bits));
            if mode != Mode::Affine.name() {
                entry.insert("mode".to_owned(), json!(mode));
            }
            map.insert(tensor.module.clone(), Value::Object(entry));
        }
        Ok(ConfigEdit {
            config: Map::from_iter([("quantization".to_owned(), Value::Object(map.clone()))]),
            quantization_config: map,
            metadata: vec![("format".to_owned(), "mlx".to_owned())],
            ..ConfigEdit::default()
        })
    }

    fn presets(&self) -> &'static [&'static str] {
        &[
            "W4A16_ASYM",
            "W2A16_ASYM",
            "W3A16_ASYM",
            "W5A16_ASYM",
            "W6A16_ASYM",
            "W8A16_ASYM",
            "NVFP4A16",
            "MXFP4A16",
            "MXFP8A16",
        ]
    }

    fn scale_rule(&self) -> ScaleRule {
        ScaleRule::Mlx
    }
}

fn refusal(module: &str, wanted: &str, reason: &str) -> Error {
    cannot_write(ID, module, wanted, reason)
}

/// Whether a tensor was bound by this convention from names that MLX itself uses.
fn is_own_spelling(source: &QuantizedTensor) -> bool {
    let named = |role, ending: &str| {
        source
            .part(role)
            .is_none_or(|part| part.name == format!("{}.{ending}", source.module))
    };
    source.convention == ID && named(Role::Scale, "scales") && named(Role::Offset, "biases")
}

/// The mode and sizes that hold the codes of a tensor, or why none do.
fn held(source: &QuantizedTensor) -> Result<(Mode, Sizes), String> {
    let scheme = &source.scheme;
    let basis = scheme.basis;
    let is_plain = basis.rotation == Rotation::None && basis.rank == 0;
    if !is_plain || basis != crate::Basis::WEIGHT {
        return Err("its weights are not rotated, rescaled or in parts".to_owned());
    }
    let groups_of = |size| scheme.granularity == Granularity::Group { size };
    match (scheme.code, scheme.scale) {
        (Code::Integer { bits, .. }, _) => {
            let group = group_of(source)?;
            let bits = if bits == 7 { 8 } else { bits };
            Ok((Mode::Affine, Sizes { bits, group }))
        }
        (
            Code::Minifloat(Minifloat::E2M1) | Code::Codebook(Codebook::DoubledE2M1),
            ScaleCoding::E8M0(_),
        ) if groups_of(32) => Ok((Mode::Mxfp4, sizes(Mode::Mxfp4))),
        (Code::Minifloat(Minifloat::E4M3), ScaleCoding::E8M0(_)) if groups_of(32) => {
            Ok((Mode::Mxfp8, sizes(Mode::Mxfp8)))
        }
        (Code::Minifloat(Minifloat::E2M1), ScaleCoding::Minifloat(Minifloat::E4M3))
            if groups_of(16) =>
        {
            if scheme.super_scale == SuperScale::None {
                Ok((Mode::Nvfp4, sizes(Mode::Nvfp4)))
            } else {
                Err("its nvfp4 has no global scale; compressed-tensors and modelopt have one".to_owned())
            }
        }
        (
            Code::Minifloat(_) | Code::Codebook(_) | Code::StoredCodebook | Code::Dense(_),
            ScaleCoding::Float(_)
            | ScaleCoding::E8M0(_)
            | ScaleCoding::Minifloat(_)
            | ScaleCoding::StoredTable
            | ScaleCoding::Integer
            | ScaleCoding::One,
        ) => Err("its floats are E2M1 in groups of 32 or 16 and E4M3 in groups of 32, with scales of one byte".to_owned()),
    }
}

fn sizes(mode: Mode) -> Sizes {
    let (bits, group) = mode.default_sizes();
    Sizes { bits, group }
}

/// The largest group size of affine modules that what shares a scale can be cut into.
fn group_of(source: &QuantizedTensor) -> Result<u64, String> {
    let columns = source.in_features();
    let shared = match source.scheme.granularity {
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
    let fits = |size: &u64| shared.is_multiple_of(*size) && columns.is_multiple_of(*size);
    GROUPS.into_iter().find(fits).ok_or_else(|| {
        format!(
            "groups of {shared} of {columns} input features cannot be cut into groups of 32, 64 or 128"
        )
    })
}

/// Whether a mode has these sizes.
fn check_sizes(mode: Mode, sizes: Sizes) -> Result<(), String> {
    let Sizes { bits, group } = sizes;
    let (fits, all) = if mode == Mode::Affine {
        let fits = GROUPS.contains(&group) && matches!(bits, 1..=6 | 8);
        (
            fits,
            "1 to 6 and 8 bits in groups of 32, 64 and 128".to_owned(),
        )
    } else {
        let (only_bits, only_group) = mode.default_sizes();
        let all = format!(
            "{only_bits} bits in groups of {only_group} as {}",
            mode.name()
        );
        ((bits, group) == (only_bits, only_group), all)
    };
    if fits {
        return Ok(());
    }
    Err(format!("{bits} bits in groups of {group}; it has {all}"))
}

/// The parts of a module; the reason where its columns do not fit.
fn lay_out(
    module: &str,
    shape: &[u64],
    mode: Mode,
    sizes: Sizes,
    float: Float,
) -> Result<QuantizedTensor, String> {
    let Some((&columns, rows)) = shape.split_last().filter(|(_, rows)| !rows.is_empty()) else {
        return Err("a weight has rows and columns".to_owned());
    };
    let Sizes { bits, group } = sizes;
    if !columns.is_multiple_of(group) {
        return Err(format!(
            "groups of {group} do not divide {columns} input features"
        ));
    }
    // Groups are multiples of 16, so that rows of 4 and 8 bits are whole words; others have groups of 32.
    let words = columns
        .checked_mul(u64::from(bits))
        .map(|n| n / WORD_BITS)
        .ok_or_else(|| "its rows are too long".to_owned())?;
    let with = |last: u64| {
        let mut all = rows.to_vec();
        all.push(last);
        all
    };
    let packed = Storage::Packed {
        axes: Axes::OutIn,
        packing: Packing::LsbFirst { bits },
        along: Axis::In,
    };
    let elements = Storage::Elements { axes: Axes::OutIn };
    let name = |ending: &str| format!("{module}.{ending}");
    let scheme = scheme(mode, sizes, float);
    let (scale_dtype, reference) = if mode == Mode::Affine {
        (dtype_of(float), float)
    } else {
        (Dtype::U8, Float::Bf16)
    };
    let grid = with(columns / group);
    let mut parts = vec![
        planned(Role::Codes, name("weight"), Dtype::U32, with(words), packed),
        planned(
            Role::Scale,
            name("scales"),
            scale_dtype,
            grid.clone(),
            elements,
        ),
    ];
    if matches!(scheme.zero_point, ZeroPoint::Offset { .. }) {
        let biases = planned(Role::Offset, name("biases"), scale_dtype, grid, elements);
        parts.push(biases);
    }
    Ok(QuantizedTensor {
        module: module.to_owned(),
        weight: name("weight"),
        convention: ID,
        shape: shape.to_vec(),
        scheme,
        reference_dtype: reference,
        parts,
    })
}

/// Mode, bits and group size of a laid out module.
fn described(tensor: &QuantizedTensor) -> Result<(&'static str, u32, u64), Error> {
    let scheme = &tensor.scheme;
    let other = || {
        let wanted = format!("{:?}", scheme.code);
        refusal(&tensor.module, &wanted, "no mode describes it")
    };
    let Granularity::Group { size } = scheme.granularity else {
        return Err(other());
    };
    match (scheme.code, scheme.scale) {
        (Code::Integer { bits, .. }, ScaleCoding::Float(_)) => {
            Ok((Mode::Affine.name(), bits, size))
        }
        (Code::Minifloat(code), ScaleCoding::E8M0(_)) => {
            let mode = if code == Minifloat::E2M1 {
                Mode::Mxfp4
            } else {
                Mode::Mxfp8
            };
            Ok((mode.name(), code.bits(), size))
        }
        (Code::Minifloat(code), ScaleCoding::Minifloat(_)) => {
            Ok((Mode::Nvfp4.name(), code.bits(), size))
        }
        (
            Code::Integer { .. }
            | Code::Minifloat(_)
            | Code::Codebook(_)
            | Code::StoredCodebook
            | Code::Dense(_),
            ScaleCoding::Float(_)
            | ScaleCoding::E8M0(_)
            | ScaleCoding::Minifloat(_)
            | ScaleCoding::StoredTable
            | ScaleCoding::Integer
            | ScaleCoding::One,
        ) => Err(other()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{IntegerEncoding, Scheme, ZeroCoding};

    fn integers(granularity: Granularity, columns: u64) -> QuantizedTensor {
        let code = Code::Integer {
            bits: 4,
            encoding: IntegerEncoding::Unsigned,
        };
        QuantizedTensor {
            module: "m".into(),
            weight: "m.weight".into(),
            convention: "another",
            shape: vec![8, columns],
            scheme: Scheme {
                zero_point: ZeroPoint::Stored(ZeroCoding::Direct),
                ..Scheme::plain(code, granularity, ScaleCoding::Float(Float::F16))
            },
            reference_dtype: Float::F16,
            parts: Vec::new(),
        }
    }

    #[test]
    fn the_default_of_mlx_is_w4a16_asym_in_groups_of_64() {
        let preset = Preset::by_name("W4A16_ASYM").unwrap();
        let preset = preset.with_group_size(Some(64)).unwrap();
        let tensor = Writer
            .lay_out("m", &[4, 16, 192], &preset, Float::Bf16)
            .unwrap();
        let shapes: Vec<_> = tensor
            .parts
            .iter()
            .map(|p| (p.name.as_str(), p.dtype, p.shape.clone()))
            .collect();
        assert_eq!(
            shapes,
            [
                ("m.weight", Dtype::U32, vec![4, 16, 24]),
                ("m.scales", Dtype::BF16, vec![4, 16, 3]),
                ("m.biases", Dtype::BF16, vec![4, 16, 3]),
            ]
        );
        let odd = Writer.lay_out("m", &[16, 100], &preset, Float::Bf16);
        assert!(odd.unwrap_err().to_string().contains("do not divide 100"));
        let w4 = Preset::by_name("W4A16").unwrap();
        assert!(Writer.lay_out("m", &[16, 128], &w4, Float::Bf16).is_err());
    }

    #[test]
    fn larger_groups_are_cut_and_what_cannot_be_is_refused() {
        let group = |granularity, columns| {
            let tensor = Writer.lay_out_like(&integers(granularity, columns)).ok()?;
            let groups = tensor.parts[1].shape[1];
            Some(columns / groups)
        };
        assert_eq!(group(Granularity::Group { size: 64 }, 128), Some(64));
        assert_eq!(group(Granularity::Group { size: 256 }, 512), Some(128));
        assert_eq!(group(Granularity::Channel, 96), Some(32));
        assert_eq!(group(Granularity::Group { size: 16 }, 64), None);
        assert_eq!(group(Granularity::Group { size: 128 }, 200), None);
        assert_eq!(group(Granularity::IndexedGroup { size: 128 }, 256), None);
        assert_eq!(group(Granularity::Flat { size: 64 }, 96), None);
    }
}
