//! Faults for the rules of `crates/audit/src/rules/tensors`.

use safequant::container::Dtype;
use safequant::schemes::{
    Code, Granularity, Part, QuantizedTensor, Role, Storage, ZeroCoding, ZeroPoint,
};
use serde_json::Value;

use super::config::{documents, edit_settings, make_dense, stated};
use super::{Fault, Planted, Random, weights};
use crate::audit::draft::Draft;
use crate::interop::fixture::Dense;

pub(super) const FAULTS: &[Fault] = &[
    Fault::new("QT001", "scale-is-lost", |draft, random| {
        lose_part(draft, random, &[Role::Scale])
    }),
    Fault::new("QT001", "other-part-is-lost", |draft, random| {
        let roles = [Role::ZeroPoint, Role::SuperScale, Role::Offset, Role::Shape];
        lose_part(draft, random, &roles)
    }),
    Fault::new("QT002", "codes-are-lost", lose_codes),
    Fault::new("QT002", "scale-of-nothing", |draft, random| {
        let (module, _) = any_part(draft, random, |_, part| part.role == Role::Scale)?;
        let name = format!("{module}_ghost.weight_scale");
        draft.add(&name, floats(&[1], 1.0));
        Some(Planted(format!("{module}_ghost")))
    }),
    Fault::new("QT003", "scale-is-an-integer", |draft, random| {
        let (module, part) = any_part(draft, random, is_float_scale)?;
        let dense = draft.tensor(&part.name)?;
        dense.dtype = match dense.dtype {
            Dtype::F32 => Dtype::U32,
            _ => Dtype::I16,
        };
        Some(Planted(module))
    }),
    Fault::new("QT004", "scales-lose-a-row", |draft, random| {
        let (module, part) = any_part(draft, random, |tensor, part| {
            // Scales of bitsandbytes, HQQ and torchao are runs of blocks.
            let is_grid = !matches!(
                tensor.convention,
                "bitsandbytes" | "hqq" | "torchao" | "quanto"
            );
            is_grid && part.role == Role::Scale && part.shape.len() == 2 && part.shape[0] > 2
        })?;
        let dense = draft.tensor(&part.name)?;
        let rows = dense.shape[0];
        let row = dense.bytes.len() / usize::try_from(rows).unwrap();
        dense.bytes.truncate(dense.bytes.len() - row);
        dense.shape[0] -= 1;
        Some(Planted(module))
    }),
    Fault::new("QT005", "dense-weight-beside-codes", |draft, random| {
        let (module, _) = any_part(draft, random, |tensor, part| {
            // Who reads GPTQ and AWQ calls it a contradiction.
            let others = ["gptq", "awq", "mxfp4"];
            let is_told = !others.iter().any(|id| tensor.convention.starts_with(id));
            is_told && part.role == Role::Codes && part.name != tensor.weight
        })?;
        let weight = format!("{module}.weight");
        if draft.tensor(&weight).is_some() {
            return None;
        }
        draft.add(&weight, floats(&[64, 64], 0.5));
        Some(Planted(weight))
    }),
    Fault::new("QT006", "optional-part-is-lost", lose_optional),
    Fault::new("QT007", "scale-of-codes-is-lost", |draft, random| {
        let (module, part) = any_part(draft, random, |tensor, part| {
            let is_it = matches!(tensor.convention, "mlx" | "bitsandbytes");
            // Of bitsandbytes the descriptor is what it is known by.
            let is_known_by = match tensor.convention {
                "mlx" => part.role == Role::Scale,
                _ => part.role == Role::Shape || part.name.strip_suffix(".SCB").is_some(),
            };
            is_it && is_known_by
        })?;
        draft.remove(&part.name)?;
        Some(Planted(module))
    }),
    Fault::new("QT010", "layer-is-lost", |draft, random| {
        grow(draft, 5)?;
        let layer = 1 + random.below(3);
        let prefix = format!("model.layers.{layer}.");
        lose_all(draft, &prefix)?;
        Some(Planted(format!("model.layers.{layer}")))
    }),
    Fault::new("QT011", "module-of-a-layer-is-lost", |draft, random| {
        grow(draft, 4)?;
        let layer = format!("model.layers.{}.", random.below(4));
        let in_layer = |tensor: &QuantizedTensor| tensor.module.starts_with(&layer);
        let modules: Vec<String> = weights(draft)
            .into_iter()
            .filter(in_layer)
            .map(|tensor| tensor.module)
            .collect();
        let module = random.choose(&modules)?.clone();
        lose_all(draft, &format!("{module}."))?;
        lose_stacked(draft, &module);
        Some(Planted(module))
    }),
    Fault::new("QT012", "half-a-block-is-lost", |draft, random| {
        let names = draft.names();
        if !names.iter().any(|name| name.contains("embed_tokens")) {
            return None;
        }
        let is_half = |name: &&String| {
            let ends = ["up_proj.", "down_proj."];
            name.starts_with("model.layers.") && ends.iter().any(|end| name.contains(end))
        };
        let halves: Vec<&String> = names.iter().filter(is_half).collect();
        let name = (*random.choose(&halves)?).clone();
        let at = name.find("_proj.")? + "_proj.".len();
        let block = name[..at - 1].rsplit_once('.')?.0.to_owned();
        lose_all(draft, &name[..at])?;
        Some(Planted(block))
    }),
    Fault::new("QT030", "expert-is-lost", |draft, random| {
        let name = expert(draft, random)?;
        lose_all(draft, &format!("{name}."))?;
        Some(Planted(name))
    }),
    Fault::new("QT030", "matrix-of-an-expert-is-lost", |draft, random| {
        let name = format!("{}.down_proj", expert(draft, random)?);
        lose_all(draft, &format!("{name}."))?;
        Some(Planted(name))
    }),
    Fault::new("QT030", "expert-is-left-dense", |draft, random| {
        let name = format!("{}.up_proj", expert(draft, random)?);
        make_dense(draft, &name)?;
        Some(Planted(name))
    }),
    Fault::new("QT031", "experts-are-stacked-too", |draft, random| {
        let name = expert(draft, random)?;
        let experts = name.rsplit_once('.')?.0.to_owned();
        draft.add(&format!("{experts}.gate_up_proj"), floats(&[4, 8, 8], 0.25));
        Some(Planted(experts))
    }),
    Fault::new("QT031", "experts-have-two-spellings", |draft, random| {
        let name = expert(draft, random)?;
        let experts = name.rsplit_once('.')?.0.to_owned();
        rename(draft, &format!("{name}.down_proj."), &format!("{name}.w2."))?;
        Some(Planted(experts))
    }),
    Fault::new("QT040", "gptq-says-it-is-v2", |draft, random| {
        let module = symmetric_gptq(draft, random)?;
        say_format(draft, "gptq_v2");
        Some(Planted(module))
    }),
    Fault::new("QT040", "zeros-are-stored-as-they-are", |draft, random| {
        let module = symmetric_gptq(draft, random)?;
        let zeros = draft.tensor(&format!("{module}.qzeros"))?;
        zeros.bytes.fill(0x88);
        Some(Planted(module))
    }),
    Fault::new("QT050", "zero-is-no-code", |draft, random| {
        let (module, part) = any_part(draft, random, |tensor, part| {
            let is_small = matches!(tensor.scheme.code, Code::Integer { bits, .. } if bits < 8);
            let is_byte = part.dtype == Dtype::I8 && !part.shape.is_empty();
            is_small
                && part.role == Role::ZeroPoint
                && is_byte
                && matches!(tensor.scheme.zero_point, ZeroPoint::Stored(_))
        })?;
        let dense = draft.tensor(&part.name)?;
        let at = random.below(dense.bytes.len());
        dense.bytes[at] = 100;
        Some(Planted(module))
    }),
    Fault::new("QT050", "zero-wraps-in-v1", |draft, random| {
        let (module, part) = any_part(draft, random, |tensor, part| {
            let is_v1 = tensor.scheme.zero_point == ZeroPoint::Stored(ZeroCoding::MinusOne);
            let bits = matches!(tensor.scheme.code, Code::Integer { bits: 4, .. });
            part.role == Role::ZeroPoint && is_v1 && bits
        })?;
        let dense = draft.tensor(&part.name)?;
        let at = random.below(dense.bytes.len());
        dense.bytes[at] = 0xff;
        Some(Planted(module))
    }),
    Fault::new("QT051", "zero-product-drifts", |draft, random| {
        let (module, part) = any_part(draft, random, |tensor, part| {
            let form = ZeroPoint::Stored(ZeroCoding::NegatedProduct);
            part.role == Role::ZeroPoint && tensor.scheme.zero_point == form
        })?;
        let dense = draft.tensor(&part.name)?;
        // 0.37: positive, so that no zero point gives it. Padding lies behind.
        dense.bytes[..2].copy_from_slice(&0x35ec_u16.to_le_bytes());
        Some(Planted(module))
    }),
    Fault::new("QT060", "index-is-in-order", |draft, _| {
        if stated(draft, "desc_act") != Some(Value::Bool(true)) {
            return None;
        }
        let mut first = None;
        for tensor in weights(draft) {
            let size = group_size(&tensor)?;
            let name = tensor.part(Role::GroupIndex)?.name.clone();
            set_index(draft, &name, |k| k / size)?;
            first.get_or_insert(tensor.module);
        }
        first.map(Planted)
    }),
    Fault::new("QT061", "index-names-no-group", |draft, random| {
        let (module, part) = any_part(draft, random, |_, part| part.role == Role::GroupIndex)?;
        let dense = draft.tensor(&part.name)?;
        let width = if dense.dtype == Dtype::I64 { 8 } else { 4 };
        let at = random.below(dense.bytes.len() / width);
        dense.bytes[width * at..][..2].copy_from_slice(&1000_u16.to_le_bytes());
        Some(Planted(module))
    }),
    Fault::new("QT062", "index-is-all-zeros", |draft, random| {
        let (module, part) = any_part(draft, random, has_groups)?;
        set_index(draft, &part.name, |_| 0)?;
        Some(Planted(module))
    }),
    Fault::new("QT062", "index-is-scattered-in-order", |draft, random| {
        if stated(draft, "desc_act") != Some(Value::Bool(false)) {
            return None;
        }
        let (module, part) = any_part(draft, random, has_groups)?;
        let dense = draft.tensor(&part.name)?;
        let len = dense.bytes.len();
        let (head, tail) = dense.bytes.split_at_mut(len - 4);
        head[..4].swap_with_slice(tail);
        Some(Planted(module))
    }),
    Fault::new("QT070", "bit-of-a-mask-flips", |draft, random| {
        let (module, part) = any_part(draft, random, |tensor, part| {
            let is_kept = |p: &Part| matches!(p.storage, Storage::Sparse { .. });
            part.role == Role::Mask && part.dtype == Dtype::U8 && tensor.parts.iter().any(is_kept)
        })?;
        let dense = draft.tensor(&part.name)?;
        let row = usize::try_from(*dense.shape.last()?).unwrap();
        let rows = dense.bytes.len() / row;
        let at = random.below(rows) * row;
        dense.bytes[at] ^= 1;
        Some(Planted(module))
    }),
];

/// A random part of a random weight that is one of these.
pub(super) fn any_part(
    draft: &Draft,
    random: &mut Random,
    is_it: impl Fn(&QuantizedTensor, &Part) -> bool,
) -> Option<(String, Part)> {
    let mut parts = Vec::new();
    for tensor in weights(draft) {
        let of_tensor = tensor.parts.iter().filter(|part| is_it(&tensor, part));
        parts.extend(of_tensor.map(|part| (tensor.module.clone(), part.clone())));
    }
    random.choose(&parts).cloned()
}

fn is_shared(part: &Part) -> bool {
    matches!(part.storage, Storage::SharedElements { .. })
}

fn lose_part(draft: &mut Draft, random: &mut Random, roles: &[Role]) -> Option<Planted> {
    let (module, part) = any_part(draft, random, |tensor, part| {
        // Without its constants a GPTQ module is another format.
        let is_own = part.name.starts_with(&tensor.module) && !is_shared(part);
        is_own && is_told(tensor) && roles.contains(&part.role)
    })?;
    draft.remove(&part.name)?;
    Some(Planted(module))
}

/// Whether its convention says what is missing. Others do not take what is left for theirs.
fn is_told(tensor: &QuantizedTensor) -> bool {
    !matches!(
        tensor.convention,
        "mlx" | "bitsandbytes" | "nunchaku" | "comfyui"
    )
}

fn lose_codes(draft: &mut Draft, random: &mut Random) -> Option<Planted> {
    let (module, part) = any_part(draft, random, |tensor, part| {
        let has_scale = tensor.part(Role::Scale).is_some_and(|s| !is_shared(s));
        // These name the missing tensor.
        let is_told = matches!(tensor.convention, "bitsandbytes" | "torchao" | "mxfp4");
        part.role == Role::Codes && has_scale && !is_told
    })?;
    if weights(draft).len() < 2 {
        return None;
    }
    draft.remove(&part.name)?;
    Some(Planted(module))
}

fn lose_optional(draft: &mut Draft, random: &mut Random) -> Option<Planted> {
    let all = weights(draft);
    if all.len() < 6 {
        return None;
    }
    let optional = ["g_idx", "input_scale", "input_global_scale"];
    let has_all = |ending: &&&str| {
        let has = |tensor: &QuantizedTensor| {
            let name = format!("{}.{ending}", tensor.module);
            tensor.parts.iter().any(|part| part.name == name)
        };
        // One scheme, so that all are of one kind.
        let one = all.iter().all(|t| t.scheme.code == all[0].scheme.code);
        one && all.iter().all(has)
    };
    let endings: Vec<&str> = optional.iter().filter(has_all).copied().collect();
    let ending = *random.choose(&endings)?;
    let module = random.choose(&all)?.module.clone();
    draft.remove(&format!("{module}.{ending}"))?;
    Some(Planted(module))
}

/// Takes out all tensors whose names begin so.
fn lose_all(draft: &mut Draft, prefix: &str) -> Option<()> {
    let names = draft.names();
    let lost: Vec<&String> = names
        .iter()
        .filter(|name| name.starts_with(prefix))
        .collect();
    lost.first()?;
    for name in lost {
        draft.remove(name)?;
    }
    Some(())
}

/// Tensors of stacked experts end in more than a dot.
fn lose_stacked(draft: &mut Draft, module: &str) {
    for ending in ["_blocks", "_scales", "_bias", "_scale_inv"] {
        draft.remove(&format!("{module}{ending}"));
    }
}

/// Gives all tensors whose names begin so another beginning.
pub(super) fn rename(draft: &mut Draft, from: &str, to: &str) -> Option<()> {
    let names = draft.names();
    let renamed: Vec<&String> = names.iter().filter(|name| name.starts_with(from)).collect();
    renamed.first()?;
    for name in renamed {
        let dense = draft.remove(name)?;
        draft.add(&format!("{to}{}", &name[from.len()..]), dense);
    }
    Some(())
}

/// Makes `n` layers of the only one there is.
fn grow(draft: &mut Draft, n: usize) -> Option<()> {
    let config = draft.config();
    let is_one = config["num_hidden_layers"] == 1;
    let all = weights(draft);
    // Others list their modules in documents or metadata.
    let known = [
        "compressed-tensors",
        "awq",
        "gptq",
        "gptq_v2",
        "fp8",
        "modelopt",
        "mlx",
    ];
    let known_too = ["bitsandbytes", "mxfp4"];
    let is_known =
        |t: &QuantizedTensor| known.contains(&t.convention) || known_too.contains(&t.convention);
    let first = "model.layers.0.";
    let names = draft.names();
    let of_layer: Vec<&String> = names
        .iter()
        .filter(|name| name.starts_with(first))
        .collect();
    if !is_one || all.is_empty() || !all.iter().all(is_known) || of_layer.len() < 8 {
        return None;
    }
    for name in of_layer {
        let dense = draft.tensor(name)?.clone();
        for layer in 1..n {
            let name = format!("model.layers.{layer}.{}", &name[first.len()..]);
            draft.add(&name, dense.clone());
        }
    }
    draft.edit("config.json", |config| {
        config["num_hidden_layers"] = n.into();
        if let Some(kinds) = config["layer_types"].as_array_mut() {
            let kind = kinds.first().cloned().unwrap_or_default();
            kinds.resize(n, kind);
        }
    });
    Some(())
}

/// A random expert that is stored by itself.
fn expert(draft: &Draft, random: &mut Random) -> Option<String> {
    let names = draft.names();
    let expert = |name: &String| {
        let (experts, rest) = name.split_once(".experts.")?;
        let number: u32 = rest.split('.').next()?.parse().ok()?;
        Some(format!("{experts}.experts.{number}"))
    };
    let mut experts: Vec<String> = names.iter().filter_map(expert).collect();
    experts.sort();
    experts.dedup();
    random.choose(&experts).cloned()
}

fn is_float_scale(tensor: &QuantizedTensor, part: &Part) -> bool {
    // Who cannot say what an integer would be there, says that the module is not supported.
    let is_checked = !matches!(tensor.convention, "comfyui" | "torchao" | "bitsandbytes");
    let is_float = matches!(part.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16);
    is_checked && part.role == Role::Scale && is_float && !is_shared(part)
}

/// A tensor of one number.
pub(super) fn floats(shape: &[u64], value: f32) -> Dense {
    let n = usize::try_from(shape.iter().product::<u64>()).unwrap();
    let high = u16::try_from(value.to_bits() >> 16).unwrap();
    Dense {
        dtype: Dtype::BF16,
        shape: shape.to_vec(),
        bytes: high.to_le_bytes().repeat(n),
    }
}

/// A module of 4-bit GPTQ in format v1 whose zero points are all 8.
fn symmetric_gptq(draft: &mut Draft, random: &mut Random) -> Option<String> {
    let is_v1 = stated(draft, "checkpoint_format") == Some("gptq".into());
    if !is_v1 || stated(draft, "sym") != Some(Value::Bool(true)) {
        return None;
    }
    let (module, part) = any_part(draft, random, |tensor, part| {
        let bits = matches!(tensor.scheme.code, Code::Integer { bits: 4, .. });
        part.role == Role::ZeroPoint && bits
    })?;
    let zeros = draft.tensor(&part.name)?;
    let is_enough = zeros.bytes.len() >= 8;
    (is_enough && zeros.bytes.iter().all(|byte| *byte == 0x77)).then_some(module)
}

fn say_format(draft: &mut Draft, format: &str) {
    for document in documents(draft) {
        edit_settings(draft, &document, |settings| {
            for key in ["checkpoint_format", "format"] {
                if settings.contains_key(key) {
                    settings.insert(key.to_owned(), format.into());
                }
            }
        });
    }
}

fn group_size(tensor: &QuantizedTensor) -> Option<u64> {
    let Granularity::IndexedGroup { size } = tensor.scheme.granularity else {
        return None;
    };
    Some(size)
}

/// An index of several groups.
fn has_groups(tensor: &QuantizedTensor, part: &Part) -> bool {
    let size = group_size(tensor).unwrap_or(u64::MAX);
    part.role == Role::GroupIndex && tensor.in_features() > size
}

/// Writes an index anew.
fn set_index(draft: &mut Draft, name: &str, group: impl Fn(u64) -> u64) -> Option<()> {
    let dense = draft.tensor(name)?;
    let width = if dense.dtype == Dtype::I64 { 8 } else { 4 };
    for (k, word) in (0..).zip(dense.bytes.chunks_exact_mut(width)) {
        word.copy_from_slice(&group(k).to_le_bytes()[..width]);
    }
    Some(())
}
