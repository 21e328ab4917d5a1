//! Faults for the rules of `crates/audit/src/rules/runtime`: checkpoints that a runtime loads, changed so that it no longer does,
//! though most are still whole and mean the same.

use safequant::audit::{ModuleName, Subject, Wanted, profile};
use safequant::container::Dtype;
use safequant::schemes::{Granularity, QuantizedTensor, Role};
use serde_json::{Value, json};

use super::config::{documents, edit_settings, stated};
use super::tensors::rename;
use super::{Fault, Planted, Random, weights};
use crate::audit::draft::{Draft, INDEX};
use crate::interop::fixture::{self, Dense};

pub(super) const FAULTS: &[Fault] = &[
    fault(
        "RT001",
        "stack-of-mxfp4-for-candle",
        for_candle,
        |draft, _| {
            let name = "planted.experts.down_proj";
            let bytes = |shape: &[u64]| Dense {
                dtype: Dtype::U8,
                shape: shape.to_vec(),
                bytes: vec![120; usize::try_from(shape.iter().product::<u64>()).unwrap()],
            };
            draft.add(&format!("{name}_blocks"), bytes(&[1, 2, 2, 16]));
            draft.add(&format!("{name}_scales"), bytes(&[1, 2, 2]));
            bound(draft, name).map(|_| Planted("mxfp4".to_owned()))
        },
    ),
    fault("RT002", "e5m2-for-vllm", for_vllm, |draft, random| {
        let tensor = any(draft, random, |t| {
            t.convention == "fp8" && dtype(t, Role::Codes) == Some(Dtype::F8E4M3)
        })?;
        let name = tensor.part(Role::Codes)?.name.clone();
        draft.tensor(&name)?.dtype = Dtype::F8E5M2;
        bound(draft, &tensor.module)
    }),
    fault("RT003", "groups-of-16-for-vllm", for_vllm, smaller_groups),
    fault(
        "RT003",
        "groups-of-16-for-sglang",
        for_sglang,
        smaller_groups,
    ),
    fault("RT004", "asymmetric-for-vllm", for_vllm, |draft, random| {
        // Where a rule for single modules says otherwise already, all of them are taken for asymmetric.
        let has_rules = stated(draft, "dynamic").is_some_and(|rules| rules.is_object());
        if stated(draft, "sym") != Some(Value::Bool(true)) || has_rules {
            return None;
        }
        set(draft, "sym", &json!(false));
        let tensor = any(draft, random, |t| {
            matches!(t.convention, "gptq" | "gptq_v2")
        })?;
        Some(Planted(tensor.module))
    }),
    fault("RT005", "scales-of-bf16", for_mistral, |draft, random| {
        let tensor = any(draft, random, |t| {
            matches!(t.convention, "gptq" | "gptq_v2" | "awq")
                && dtype(t, Role::Scale) == Some(Dtype::F16)
        })?;
        let name = tensor.part(Role::Scale)?.name.clone();
        draft.tensor(&name)?.dtype = Dtype::BF16;
        bound(draft, &tensor.module)
    }),
    fault(
        "RT006",
        "a-word-of-rows-is-cut-off",
        for_sglang,
        |draft, random| {
            let tensor = any(draft, random, |t| {
                t.convention == "gptq"
                    && t.out_features() > 64
                    && t.out_features().is_multiple_of(64)
                    && ModuleName::parse(&t.module).fused_with().is_empty()
            })?;
            // 32 codes of any width fill whole words.
            for part in &tensor.parts {
                let dense = draft.tensor(&part.name)?;
                if let [_, columns] = dense.shape.as_slice() {
                    let cut = columns * 32 / tensor.out_features();
                    keep_columns(dense, columns - cut)?;
                }
            }
            let bias = format!("{}.bias", tensor.module);
            if let Some(dense) = draft.tensor(&bias) {
                let kept = tensor.out_features() - 32;
                dense.bytes.truncate(
                    dense.bytes.len() / usize::try_from(dense.shape[0]).unwrap()
                        * usize::try_from(kept).unwrap(),
                );
                dense.shape = vec![kept];
            }
            bound(draft, &tensor.module)
        },
    ),
    fault(
        "RT007",
        "activation-order-for-vllm",
        for_vllm,
        |draft, random| {
            if stated(draft, "desc_act") != Some(Value::Bool(false)) {
                return None;
            }
            set(draft, "desc_act", &json!(true));
            let tensor = any(draft, random, |t| {
                let is_ordered = matches!(t.scheme.granularity, Granularity::IndexedGroup { size } if size < t.in_features());
                t.convention.starts_with("gptq") && t.convention != "gptq_p" && is_ordered
            })?;
            Some(Planted(tensor.module))
        },
    ),
    fault("RT008", "router-is-quantized", for_vllm, |draft, random| {
        let tensor = any(draft, random, |t| {
            matches!(t.convention, "gptq" | "gptq_v2" | "awq" | "fp8")
                && t.parts
                    .iter()
                    .all(|p| p.name.starts_with(&format!("{}.", t.module)))
        })?;
        let router = format!("{}.planted.gate", tensor.module);
        rename(draft, &format!("{}.", tensor.module), &format!("{router}."))?;
        bound(draft, &router)
    }),
    fault("RT009", "experts-apart", for_vllm, |draft, random| {
        let tensor = any(draft, random, |t| {
            t.convention == "mxfp4" && t.shape.len() == 3
        })?;
        let (parent, proj) = tensor.module.rsplit_once('.')?;
        let expert = format!("{parent}.0.{proj}");
        for part in &tensor.parts {
            let mut dense = draft.remove(&part.name)?;
            let n = usize::try_from(*dense.shape.first()?).ok()?;
            dense.bytes.truncate(dense.bytes.len() / n);
            dense.shape[0] = 1;
            let ending = part.name.strip_prefix(&tensor.module)?;
            draft.add(&format!("{expert}{ending}"), dense);
        }
        bound(draft, &expert)
    }),
    fault("RT010", "scale-called-otherwise", for_llama, other_scale),
    fault(
        "RT010",
        "scale-called-otherwise-for-mistral",
        for_mistral,
        other_scale,
    ),
    fault("RT011", "setting-is-missing", for_vllm, |draft, random| {
        let needed: &[(&str, &[&str])] = &[
            ("fp8", &["activation_scheme"]),
            ("gptq", &["desc_act"]),
            ("gptq_v2", &["desc_act"]),
            ("awq", &["zero_point"]),
        ];
        let (_, keys) = needed.iter().find(|(id, _)| count(draft, id) > 0)?;
        let key = (*random.choose(keys)?).to_owned();
        stated(draft, &key)?;
        for document in documents(draft) {
            edit_settings(draft, &document, |settings| {
                settings.remove(&key);
            });
        }
        Some(Planted(key))
    }),
    fault(
        "RT011",
        "settings-stand-elsewhere",
        for_transformers,
        |draft, _| {
            let settings = draft.config().get("quantization_config")?.clone();
            let needs = [
                "gptq",
                "gptq_v2",
                "awq",
                "fp8",
                "bitsandbytes",
                "compressed-tensors",
            ];
            if !needs.iter().any(|id| count(draft, id) > 0) {
                return None;
            }
            draft.edit("config.json", |config| {
                config
                    .as_object_mut()
                    .unwrap()
                    .remove("quantization_config");
            });
            let bytes = serde_json::to_vec(&settings).unwrap();
            draft
                .documents
                .insert("quantize_config.json".to_owned(), bytes);
            let is_bound = needs.iter().any(|id| count(draft, id) > 0);
            is_bound.then(|| Planted("config.json".to_owned()))
        },
    ),
    fault(
        "RT012",
        "shards-without-an-index",
        for_transformers,
        |draft, _| {
            draft.split()?;
            draft.documents.remove(INDEX)?;
            (!weights(draft).is_empty()).then(|| Planted(String::new()))
        },
    ),
];

/// A fault for which a runtime is asked.
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

fn runtime(name: &str) -> Wanted {
    Wanted {
        runtimes: vec![name.to_owned()],
        ..Wanted::default()
    }
}

fn for_vllm() -> Wanted {
    runtime("vllm")
}

fn for_sglang() -> Wanted {
    runtime("sglang")
}

fn for_mistral() -> Wanted {
    runtime("mistral.rs")
}

fn for_llama() -> Wanted {
    runtime("llama.cpp")
}

fn for_candle() -> Wanted {
    runtime("candle")
}

fn for_transformers() -> Wanted {
    runtime("transformers")
}

/// A weight of this kind.
pub(super) fn any(
    draft: &Draft,
    random: &mut Random,
    is_it: impl Fn(&QuantizedTensor) -> bool,
) -> Option<QuantizedTensor> {
    let of_kind: Vec<_> = weights(draft).into_iter().filter(|t| is_it(t)).collect();
    random.choose(&of_kind).cloned()
}

/// The module, if it still binds.
pub(super) fn bound(draft: &Draft, module: &str) -> Option<Planted> {
    let is_bound = weights(draft).iter().any(|tensor| tensor.module == module);
    is_bound.then(|| Planted(module.to_owned()))
}

/// Weights of a convention.
fn count(draft: &Draft, convention: &str) -> usize {
    let all = weights(draft);
    all.iter().filter(|t| t.convention == convention).count()
}

fn dtype(tensor: &QuantizedTensor, role: Role) -> Option<Dtype> {
    tensor.part(role).map(|part| part.dtype)
}

/// Sets a key of the settings, wherever they stand.
pub(super) fn set(draft: &mut Draft, key: &str, value: &Value) {
    for document in documents(draft) {
        edit_settings(draft, &document, |settings| {
            if settings.contains_key(key) {
                settings.insert(key.to_owned(), value.clone());
            }
        });
    }
}

/// The same GPTQ weights in groups of 16: every row of scales and zero points several times over.
fn smaller_groups(draft: &mut Draft, random: &mut Random) -> Option<Planted> {
    let size = stated(draft, "group_size")?
        .as_u64()
        .filter(|size| size % 16 == 0)?;
    let is_plain = stated(draft, "desc_act") == Some(Value::Bool(false));
    let of_gptq = |t: &QuantizedTensor| matches!(t.convention, "gptq" | "gptq_v2");
    let tensors: Vec<_> = weights(draft).into_iter().filter(of_gptq).collect();
    let is_whole = tensors.iter().all(|t| t.in_features().is_multiple_of(size));
    if !is_plain
        || size == 16
        || !is_whole
        || stated(draft, "dynamic").is_some_and(|d| d.is_object())
    {
        return None;
    }
    for tensor in &tensors {
        for part in &tensor.parts {
            let dense = draft.tensor(&part.name)?;
            match part.role {
                Role::Scale | Role::ZeroPoint | Role::Auxiliary if dense.shape.len() == 2 => {
                    repeat_rows(dense, usize::try_from(size / 16).ok()?)?;
                }
                Role::GroupIndex => {
                    let n = u32::try_from(tensor.in_features()).ok()?;
                    dense.bytes = (0..n).flat_map(|i| (i / 16).to_le_bytes()).collect();
                }
                _ => {}
            }
        }
    }
    set(draft, "group_size", &json!(16));
    let tensor = any(draft, random, of_gptq)?;
    Some(Planted(tensor.module))
}

/// Writes each row of a matrix `n` times.
fn repeat_rows(dense: &mut Dense, n: usize) -> Option<()> {
    let rows = usize::try_from(*dense.shape.first()?).ok()?;
    let len = dense.bytes.len().checked_div(rows)?;
    dense.bytes = dense
        .bytes
        .chunks(len)
        .flat_map(|row| row.repeat(n))
        .collect();
    dense.shape[0] *= u64::try_from(n).ok()?;
    Some(())
}

/// Keeps the first columns of a matrix.
fn keep_columns(dense: &mut Dense, columns: u64) -> Option<()> {
    let [rows, before] = dense.shape.as_slice() else {
        return None;
    };
    let (rows, before) = (usize::try_from(*rows).ok()?, usize::try_from(*before).ok()?);
    let row = dense.bytes.len().checked_div(rows)?;
    let kept = row / before * usize::try_from(columns).ok()?;
    let short = dense.bytes.chunks(row).flat_map(|r| r[..kept].to_vec());
    dense.bytes = short.collect();
    dense.shape[1] = columns;
    Some(())
}

/// `weight_scale_inv` under the name that DeepSeek-V4 has for it.
fn other_scale(draft: &mut Draft, random: &mut Random) -> Option<Planted> {
    let tensor = any(draft, random, |t| {
        let scale = t.part(Role::Scale).map(|p| p.name.as_str());
        t.convention == "fp8" && scale == Some(&*format!("{}.weight_scale_inv", t.module))
    })?;
    let name = &tensor.part(Role::Scale)?.name;
    let dense = draft.remove(name)?;
    draft.add(&format!("{}.scale", tensor.module), dense);
    bound(draft, &tensor.module)
}

/// What every runtime says to every fixture, as `--nocapture` prints it: the fixtures that interop tests can load there. Each
/// runtime loads some and refuses some; what must be so, by the producer's own words, is asserted.
#[test]
fn runtimes_judge_the_fixtures() {
    let runtimes: Vec<_> = profile::profiles()
        .iter()
        .map(|p| p.runtime.clone())
        .collect();
    let wanted = Wanted {
        runtimes: runtimes.clone(),
        ..Wanted::default()
    };
    let (mut loads, mut refuses) = (vec![0; runtimes.len()], vec![0; runtimes.len()]);
    let mut table = std::collections::BTreeMap::new();
    for fixture in fixture::all() {
        let (checkpoint, problems) = Draft::of(&fixture).open();
        let subject = Subject::new(&checkpoint, problems, wanted.clone());
        if subject.model.quantized.is_empty() {
            continue;
        }
        for (at, verdict) in profile::verdicts(&subject).into_iter().enumerate() {
            if verdict.loads {
                loads[at] += 1;
            } else {
                refuses[at] += 1;
            }
            let reasons = verdict.reasons.iter();
            let reasons: Vec<_> = reasons
                .map(|r| format!("{} ({}x, {:?})", r.message, r.count, r.effect))
                .collect();
            println!(
                "{} | {} | {} | {}",
                fixture.name,
                verdict.runtime,
                if verdict.loads { "loads" } else { "no" },
                reasons.join("; ")
            );
            table.insert((fixture.name.clone(), verdict.runtime), verdict.loads);
        }
    }
    println!("{runtimes:?}: {loads:?} load, {refuses:?} do not");
    assert!(refuses.iter().all(|n| *n > 0), "{refuses:?}");
    for (fixture, runtime, expected) in [
        ("llm-compressor/ct-w4a16-g128", "vllm", true),
        ("llm-compressor/ct-old-w4a16-actorder-group", "vllm", false),
        ("llm-compressor/ct-w4a16-g128", "transformers", true),
        ("llm-compressor/ct-w4a16-g128", "llama.cpp", true),
        ("llm-compressor/ct-w3a16-g64", "llama.cpp", false),
        ("llm-compressor/ct-w3a16-g64", "vllm", true),
        ("llm-compressor/ct-old-w3-pack", "vllm", false),
        ("llm-compressor/ct-old-w3-pack", "llama.cpp", true),
        ("llm-compressor/ct-old-marlin24", "vllm", false),
        ("llm-compressor/ct-old-marlin24", "transformers", false),
        ("llm-compressor/ct-old-w3-pack", "transformers", false),
        (
            "llm-compressor/ct-old-w4a16-actorder-group",
            "transformers",
            false,
        ),
        ("llm-compressor/ct-fp8-dynamic", "transformers", false),
        ("llm-compressor/ct-nvfp4", "transformers", true),
        ("llm-compressor/ct-w4a16-asym", "transformers", false),
        ("llm-compressor/ct-w4a16-asym", "vllm", true),
        ("gptqmodel/gptqmodel-fp8-block", "llama.cpp", false),
        ("hqq/hqq-4bit-g64", "transformers", false),
        ("torchao/torchao-intx4", "transformers", true),
        ("gptqmodel/gptq-w4g128-sym", "vllm", true),
        ("gptqmodel/gptq-w4g128-sym", "llama.cpp", true),
        ("gptqmodel/gptq-w4g128-asym", "vllm", false),
        ("gptqmodel/gptq-w3g128-sym", "llama.cpp", false),
        ("gptqmodel/gptq-w4g32-descact", "vllm", false),
        ("gptqmodel/gptq-w4g32-descact", "llama.cpp", true),
        ("autoawq/awq-autoawq-gemm-g128", "vllm", true),
        ("autoawq/awq-autoawq-gemm-g128", "mlx-lm", true),
        ("autoawq/awq-autoawq-gemm-g128", "llama.cpp", false),
        ("gptqmodel/awq-gptqmodel-gemv-g64", "vllm", false),
        ("bitsandbytes/bnb-nf4", "transformers", true),
        ("bitsandbytes/bnb-nf4", "vllm", false),
        ("mlx/mlx-4bit-g64", "mlx-lm", true),
        ("mlx/mlx-4bit-g64", "mistral.rs", true),
        ("mlx/mlx-4bit-g64", "vllm", false),
        ("mlx/mlx-4bit-g64", "transformers", false),
        ("composed/gpt-oss-mxfp4", "vllm", true),
        ("modelopt/modelopt-nvfp4", "tensorrt-llm", true),
        ("transformers/fgfp8-block128", "vllm", true),
    ] {
        let found = table.get(&(fixture.to_owned(), runtime.to_owned()));
        assert_eq!(found, Some(&expected), "{fixture} in {runtime}");
    }
}
