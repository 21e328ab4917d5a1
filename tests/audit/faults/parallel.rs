//! Faults for the rules of `crates/audit/src/rules/parallel`. Most fixtures are too small for any degree, so a module gets a name
//! that makes runtimes cut it, where the cut goes through something.

use safequant::audit::Wanted;
use safequant::schemes::{Axis, Granularity, QuantizedTensor, Role, Storage, SuperScale};
use serde_json::{Value, json};

use super::config::stated;
use super::runtime::{any, bound, set};
use super::tensors::rename;
use super::{Fault, Planted, Random};
use crate::audit::draft::Draft;

/// Degrees that are asked for.
const DEGREES: [u64; 5] = [2, 4, 8, 16, 32];

pub(super) const FAULTS: &[Fault] = &[
    fault(
        "TP001",
        "rank-ends-inside-a-group",
        in_powers,
        |draft, random| {
            let tensor = movable(draft, random, |t| match t.scheme.granularity {
                Granularity::Group { size } => cuts(t.in_features(), size) && !is_nested(t),
                _ => false,
            })?;
            call(draft, &tensor, "down_proj")
        },
    ),
    fault(
        "TP002",
        "rank-ends-inside-a-block-of-rows",
        in_powers,
        |draft, random| {
            let tensor = movable(draft, random, |t| match t.scheme.granularity {
                Granularity::Block { rows, .. } => cuts(t.out_features(), rows),
                _ => false,
            })?;
            call(draft, &tensor, "up_proj")
        },
    ),
    fault(
        "TP002",
        "rank-ends-inside-a-block-of-columns",
        in_powers,
        |draft, random| {
            let tensor = movable(draft, random, |t| match t.scheme.granularity {
                Granularity::Block { columns, .. } => cuts(t.in_features(), columns),
                _ => false,
            })?;
            call(draft, &tensor, "down_proj")
        },
    ),
    fault(
        "TP003",
        "rank-begins-inside-a-word",
        in_many,
        |draft, random| {
            let tensor = movable(draft, random, |t| {
                let is_packed = |part: &safequant::schemes::Part| {
                    matches!(
                        part.storage,
                        Storage::Packed {
                            along: Axis::Out,
                            ..
                        } | Storage::PackedConstant {
                            along: Axis::Out,
                            ..
                        }
                    )
                };
                matches!(t.convention, "awq" | "gptq" | "gptq_v2")
                    && t.parts.iter().any(is_packed)
                    && t.out_features().is_multiple_of(64)
                    && !(t.out_features() / 64).is_multiple_of(8)
            })?;
            call(draft, &tensor, "up_proj")
        },
    ),
    fault(
        "TP004",
        "features-among-three",
        among_three,
        |draft, random| {
            let tensor = movable(draft, random, |t| !t.in_features().is_multiple_of(3))?;
            call(draft, &tensor, "down_proj")
        },
    ),
    fault("TP004", "rows-among-three", among_three, |draft, random| {
        let tensor = movable(draft, random, |t| !t.out_features().is_multiple_of(3))?;
        call(draft, &tensor, "gate_proj")
    }),
    fault("TP005", "seven-heads", in_powers, |draft, _| {
        draft.documents.get("config.json")?;
        draft.edit("config.json", |config| {
            config["num_attention_heads"] = json!(7);
        });
        Some(Planted("7 attention heads".to_owned()))
    }),
    fault("TP005", "six-heads-of-keys", in_powers, |draft, _| {
        draft.documents.get("config.json")?;
        draft.edit("config.json", |config| {
            config["num_attention_heads"] = json!(96);
            config["num_key_value_heads"] = json!(6);
        });
        Some(Planted("6 heads of keys".to_owned()))
    }),
    fault(
        "TP006",
        "share-is-no-tile",
        in_eight_for_sglang,
        |draft, random| {
            let tensor = movable(draft, random, |t| {
                matches!(t.convention, "gptq" | "gptq_v2")
                    && t.out_features().is_multiple_of(64)
                    && !(t.out_features() / 8).is_multiple_of(64)
            })?;
            call(draft, &tensor, "up_proj")
        },
    ),
    fault(
        "TP010",
        "activation-order-across-ranks",
        in_powers,
        |draft, random| {
            if stated(draft, "desc_act") != Some(Value::Bool(false)) {
                return None;
            }
            let tensor = movable(draft, random, |t| {
                matches!(t.scheme.granularity, Granularity::IndexedGroup { size } if size < t.in_features())
                    && t.in_features().is_multiple_of(2)
            })?;
            set(draft, "desc_act", &json!(true));
            call(draft, &tensor, "down_proj")
        },
    ),
    fault(
        "TP011",
        "nested-blocks-straddle-rows",
        in_many,
        |draft, random| {
            let tensor = movable(draft, random, |t| {
                let (Granularity::Flat { size } | Granularity::Group { size }, rows) =
                    (t.scheme.granularity, t.out_features())
                else {
                    return false;
                };
                let SuperScale::Nested { size: nested, .. } = t.scheme.super_scale else {
                    return false;
                };
                // A share of 64 ranks that is no whole number of nested blocks.
                rows.is_multiple_of(64) && rows / 64 * t.in_features() % (size * nested) != 0
            })?;
            call(draft, &tensor, "up_proj")
        },
    ),
    fault(
        "TP011",
        "nested-scales-along-rows",
        in_powers,
        |draft, random| {
            let tensor = movable(draft, random, |t| {
                let is_group = matches!(t.scheme.granularity, Granularity::Group { .. });
                is_group && is_nested(t) && t.in_features().is_multiple_of(2)
            })?;
            call(draft, &tensor, "down_proj")
        },
    ),
    fault(
        "TP011",
        "groups-run-down-columns",
        in_powers,
        |draft, random| {
            let tensor = movable(draft, random, |t| {
                matches!(t.scheme.granularity, Granularity::Strided { .. })
                    && t.out_features().is_multiple_of(2)
            })?;
            call(draft, &tensor, "up_proj")
        },
    ),
];

/// A fault for which degrees are asked.
const fn fault(
    rule: &'static str,
    name: &'static str,
    wanted: fn() -> Wanted,
    plant: fn(&mut Draft, &mut Random) -> Option<Planted>,
) -> Fault {
    Fault {
        rule,
        name,
        wanted,
        plant,
    }
}

fn degrees(degrees: &[u64]) -> Wanted {
    Wanted {
        tensor_parallel: degrees.to_vec(),
        ..Wanted::default()
    }
}

fn in_powers() -> Wanted {
    degrees(&DEGREES)
}

fn in_many() -> Wanted {
    degrees(&[64])
}

fn among_three() -> Wanted {
    degrees(&[3])
}

fn in_eight_for_sglang() -> Wanted {
    Wanted {
        tensor_parallel: vec![8],
        runtimes: vec!["sglang".to_owned()],
    }
}

/// Whether one of the degrees divides the features, but not into whole units.
fn cuts(features: u64, unit: u64) -> bool {
    DEGREES.iter().any(|degree| {
        features.is_multiple_of(*degree) && !(features / degree).is_multiple_of(unit.max(1))
    })
}

/// Whether its scales are scaled in groups of their own.
fn is_nested(tensor: &QuantizedTensor) -> bool {
    matches!(tensor.scheme.super_scale, SuperScale::Nested { .. })
}

/// A weight of this kind whose tensors all begin with its name.
fn movable(
    draft: &Draft,
    random: &mut Random,
    is_it: impl Fn(&QuantizedTensor) -> bool,
) -> Option<QuantizedTensor> {
    any(draft, random, |t| {
        let own = format!("{}.", t.module);
        t.part(Role::Codes).is_some()
            && t.shape.len() == 2
            && t.parts.iter().all(|part| part.name.starts_with(&own))
            && is_it(t)
    })
}

/// Gives a module a name that says how it is cut.
fn call(draft: &mut Draft, tensor: &QuantizedTensor, word: &str) -> Option<Planted> {
    let name = format!("{}.planted.{word}", tensor.module);
    rename(draft, &format!("{}.", tensor.module), &format!("{name}."))?;
    bound(draft, &name)
}
