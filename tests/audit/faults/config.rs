//! Faults for the rules of `crates/audit/src/rules/config`.

use safequant::schemes::{QuantizedTensor, Role};
use serde_json::{Map, Value, json};

use super::tensors::{any_part, floats, rename};
use super::{Fault, Planted, weights};
use crate::audit::draft::Draft;

pub(super) const FAULTS: &[Fault] = &[
    Fault::new("QC001", "documents-have-other-groups", |draft, _| {
        let is_read = stated(draft, "quant_method").is_some_and(|m| m == "gptq" || m == "awq");
        let (other, key, value) = if is_read {
            ("quantize_config.json", "group_size", json!(17))
        } else {
            ("hf_quant_config.json", "quant_algo", json!("W8A8_SQ"))
        };
        if !draft.documents.contains_key(other) {
            return None;
        }
        let mut is_changed = false;
        edit_settings(draft, other, |settings| {
            is_changed = settings.insert(key.to_owned(), value.clone()).is_some();
        });
        is_changed.then(|| Planted(String::new()))
    }),
    Fault::new("QC001", "copy-for-the-hub-differs", |draft, _| {
        let config = draft.config();
        if !config["quantization"].is_object() || !config["quantization_config"].is_object() {
            return None;
        }
        draft.edit("config.json", |config| {
            config["quantization_config"]["bits"] = json!(7);
        });
        Some(Planted("config.json".to_owned()))
    }),
    Fault::new("QC002", "weights-have-an-unknown-key", |draft, random| {
        let groups = config_groups(draft)?;
        let group = random.choose(&groups)?.clone();
        draft.edit("config.json", |config| {
            let group = &mut config["quantization_config"]["config_groups"][&group];
            let key = if group["weights"].is_object() {
                "weights"
            } else {
                "targets"
            };
            if key == "weights" {
                group[key]["rounding_mode"] = json!("even");
            } else {
                group["rounding_mode"] = json!("even");
            }
        });
        Some(Planted("rounding_mode".to_owned()))
    }),
    Fault::new("QC003", "nothing-is-quantized", |draft, _| {
        let all = weights(draft);
        let documents = documents(draft);
        let file = documents.first()?.clone();
        let is_sparse = stated(draft, "sparsity_config").is_some_and(|s| s != json!({}));
        let has_method = stated(draft, "quant_method").is_some() && !is_sparse;
        // The metadata of torchao, and the markers of others, say more than this.
        let others = ["torchao", "comfyui", "nunchaku", "mxfp4"];
        let is_other = |t: &QuantizedTensor| others.contains(&t.convention);
        if !has_method || all.is_empty() || all.iter().any(is_other) {
            return None;
        }
        for tensor in &all {
            make_dense(draft, &tensor.module)?;
        }
        Some(Planted(file))
    }),
    Fault::new("QC004", "format-is-another-one", |draft, random| {
        let groups = config_groups(draft)?;
        let module = random.choose(&weights(draft))?.module.clone();
        if stated(draft, "quant_method") != Some(json!("compressed-tensors")) {
            return None;
        }
        draft.edit("config.json", |config| {
            let settings = &mut config["quantization_config"];
            let format = |old: &Value| match old.as_str() {
                Some("pack-quantized") => json!("int-quantized"),
                _ => json!("pack-quantized"),
            };
            if settings["format"] != "mixed-precision" {
                settings["format"] = format(&settings["format"]);
            }
            for group in &groups {
                let group = &mut settings["config_groups"][group];
                if group["format"].is_string() {
                    group["format"] = format(&group["format"]);
                }
            }
        });
        Some(Planted(module))
    }),
    Fault::new("QC004", "weight-beside-qweight", |draft, random| {
        let (module, _) = any_part(draft, random, |tensor, part| {
            let is_it =
                tensor.convention.starts_with("gptq") || tensor.convention.starts_with("awq");
            is_it && part.name.ends_with(".qweight")
        })?;
        draft.add(&format!("{module}.weight"), floats(&[64, 64], 0.5));
        Some(Planted(module))
    }),
    Fault::new("QC005", "configuration-is-lost", |draft, _| {
        let all = weights(draft);
        let explain = ["comfyui", "nunchaku", "quanto", "gguf"];
        let is_self = |t: &QuantizedTensor| explain.contains(&t.convention);
        let config = draft.config();
        let has = ["quantization_config", "quantization", "compression_config"]
            .iter()
            .any(|key| config[key].is_object());
        if !has || all.is_empty() || all.iter().any(is_self) {
            return None;
        }
        for name in OWN_DOCUMENTS {
            draft.documents.remove(name);
        }
        draft.edit("config.json", |config| {
            let config = config.as_object_mut().unwrap();
            for key in ["quantization_config", "quantization", "compression_config"] {
                config.remove(key);
            }
        });
        Some(Planted("config.json".to_owned()))
    }),
    Fault::new("QC006", "bits-are-a-word", |draft, _| {
        let method = stated(draft, "quant_method");
        let method = method
            .as_ref()
            .and_then(Value::as_str)
            .unwrap_or("mlx")
            .to_owned();
        let mut is_changed = false;
        for document in documents(draft) {
            edit_settings(draft, &document, |settings| {
                let value = match method.as_str() {
                    "gptq" | "awq" => settings.get_mut("bits"),
                    "mlx" if document == "config.json" => settings.get_mut("bits"),
                    "fp8" => settings.get_mut("weight_block_size"),
                    "modelopt" if document == "hf_quant_config.json" => {
                        settings.get_mut("group_size")
                    }
                    "compressed-tensors" => weights_bits(settings),
                    _ => None,
                };
                if let Some(value) = value.filter(|value| !value.is_null()) {
                    *value = json!("four");
                    is_changed = true;
                }
            });
        }
        is_changed.then(|| Planted(String::new()))
    }),
    Fault::new("QC007", "method-is-misspelled", |draft, _| {
        let all = weights(draft);
        let explain = ["comfyui", "nunchaku", "quanto", "gguf", "mlx", "torchao"];
        let is_self = |t: &QuantizedTensor| explain.contains(&t.convention);
        if stated(draft, "quant_method").is_none() || all.iter().any(is_self) {
            return None;
        }
        for document in documents(draft) {
            edit_settings(draft, &document, |settings| {
                for key in ["quant_method", "method"] {
                    if settings.contains_key(key) {
                        settings.insert(key.to_owned(), json!("exl9"));
                    }
                }
            });
        }
        Some(Planted(String::new()))
    }),
    Fault::new("QC008", "config-is-lost", |draft, _| {
        let names = draft.names();
        let has = |word: &str| names.iter().any(|name| name.starts_with(word));
        if !has("model.embed_tokens.") || !has("model.layers.") {
            return None;
        }
        draft.documents.remove("config.json")?;
        Some(Planted("config.json".to_owned()))
    }),
    Fault::new(
        "QC010",
        "quantized-module-is-on-the-list",
        |draft, random| {
            let module = random.choose(&weights(draft))?.module.clone();
            list(draft, &module)?;
            Some(Planted(module))
        },
    ),
    Fault::new("QC011", "dense-module-is-not-listed", |draft, random| {
        let (module, _) = any_part(draft, random, |tensor, part| {
            let known = [
                "compressed-tensors",
                "fp8",
                "awq",
                "gptq",
                "gptq_v2",
                "modelopt",
            ];
            let is_linear = tensor.module.contains("_proj");
            known.contains(&tensor.convention) && is_linear && part.role == Role::Codes
        })?;
        let is_shared = stated(draft, "sparsity_config").is_some_and(|s| s != json!({}));
        let has_method = stated(draft, "quant_method").is_some();
        if !has_method || is_shared || weights(draft).len() < 2 {
            return None;
        }
        make_dense(draft, &module)?;
        // Its neighbor must be quantized.
        let block = module.rsplit_once('.')?.0;
        let has_like = weights(draft).iter().any(|t| t.module.starts_with(block));
        has_like.then_some(Planted(module))
    }),
    Fault::new("QC012", "entry-names-nothing", |draft, random| {
        let all = weights(draft);
        let module = random.choose(&all)?.module.replace("_proj", "_ghost");
        let entry = format!("{module}.conv");
        list(draft, &entry)?;
        let is_pattern = stated(draft, "quant_method") == Some(json!("gptq"));
        Some(Planted(if is_pattern {
            entry.replace('.', r"\.")
        } else {
            entry
        }))
    }),
    Fault::new("QC013", "entry-is-a-piece-of-names", |draft, random| {
        let all = weights(draft);
        let tensor = random.choose(&all)?;
        let (parent, last) = tensor.module.rsplit_once('.')?;
        let entry = match tensor.convention {
            "fp8" | "modelopt" | "bitsandbytes" => parent.rsplit('.').next()?.to_owned(),
            "awq" => last[..last.len() - 1].to_owned(),
            _ => return None,
        };
        list(draft, &entry)?;
        Some(Planted(entry))
    }),
    Fault::new("QC014", "rule-names-nothing", |draft, _| {
        let is_gptq = stated(draft, "quant_method") == Some(json!("gptq"));
        let config = draft.config();
        let is_mlx = config["quantization"].is_object();
        if !is_gptq && !is_mlx {
            return None;
        }
        for document in documents(draft) {
            edit_settings(draft, &document, |settings| {
                if is_mlx {
                    let args = json!({"bits": 4, "group_size": 64});
                    settings.insert("model.layers.0.ghost_proj".to_owned(), args);
                } else {
                    let rules = settings.entry("dynamic").or_insert_with(|| json!({}));
                    rules[r"+:.*\.ghost_proj.*"] = json!({"bits": 8});
                }
            });
        }
        Some(Planted(String::new()))
    }),
    Fault::new("QC015", "pattern-does-not-compile", |draft, _| {
        let mut is_changed = false;
        for document in documents(draft) {
            edit_settings(draft, &document, |settings| {
                if let Some(list) = settings.get_mut("ignore").and_then(Value::as_array_mut) {
                    list.push(json!("re:[a"));
                    is_changed = true;
                } else if settings.get("quant_method") == Some(&json!("gptq")) {
                    settings.insert("dynamic".to_owned(), json!({"+:*.mlp.*": {"bits": 8}}));
                    is_changed = true;
                }
            });
        }
        is_changed.then(|| Planted(String::new()))
    }),
    Fault::new("QC016", "head-is-said-to-be-quantized", |draft, _| {
        let flag = stated(draft, "lm_head")?.as_bool()?;
        let has_head = draft
            .names()
            .iter()
            .any(|name| name.starts_with("lm_head."));
        if !has_head {
            return None;
        }
        for document in documents(draft) {
            edit_settings(draft, &document, |settings| {
                if settings.contains_key("lm_head") {
                    settings.insert("lm_head".to_owned(), json!(!flag));
                }
            });
        }
        Some(Planted("lm_head".to_owned()))
    }),
    Fault::new("QC020", "a-layer-more-is-declared", |draft, random| {
        trunk(draft)?;
        let n = draft.config()["num_hidden_layers"].as_u64()?;
        let more = n + 1 + u64::from(random.below(3) == 0);
        draft.edit("config.json", |config| {
            config["num_hidden_layers"] = more.into();
        });
        Some(Planted("model.layers".to_owned()))
    }),
    Fault::new("QC020", "more-tokens-are-declared", |draft, random| {
        trunk(draft)?;
        let n = draft.config()["vocab_size"].as_u64()?;
        let more = n + 1 + random.below(100) as u64;
        draft.edit("config.json", |config| config["vocab_size"] = more.into());
        Some(Planted("model.embed_tokens".to_owned()))
    }),
    Fault::new("QC020", "an-expert-more-is-declared", |draft, _| {
        trunk(draft)?;
        let keys = ["num_local_experts", "num_experts"];
        let config = draft.config();
        let n = keys.iter().find_map(|key| config[key].as_u64())?;
        draft.edit("config.json", |config| {
            for key in keys {
                if config[key].is_u64() {
                    config[key] = (n + 1).into();
                }
            }
        });
        Some(Planted(String::new()))
    }),
    Fault::new("QC020", "layers-for-further-tokens-are-lost", |draft, _| {
        trunk(draft)?;
        draft.config()["num_hidden_layers"].as_u64()?;
        draft.edit("config.json", |config| {
            config["num_nextn_predict_layers"] = json!(1);
        });
        Some(Planted("model.layers".to_owned()))
    }),
    Fault::new("QC030", "module-has-another-prefix", |draft, random| {
        let names = draft.names();
        let is_layer = |name: &&String| name.starts_with("model.layers.");
        let of_layers: Vec<&String> = names.iter().filter(is_layer).collect();
        let module = random.choose(&of_layers)?.rsplit_once('.')?.0.to_owned();
        let rest = module.strip_prefix("model.")?;
        let moved = names
            .iter()
            .filter(|name| name.starts_with(&module))
            .count();
        if moved == of_layers.len() {
            return None;
        }
        rename(
            draft,
            &format!("{module}."),
            &format!("model.language_model.{rest}."),
        )?;
        // What is reported is the smaller half.
        Some(Planted(String::new()))
    }),
    Fault::new("QC040", "head-is-lost", |draft, _| {
        trunk(draft)?;
        if draft.config()["tie_word_embeddings"] != json!(false) {
            return None;
        }
        let names = draft.names();
        let heads: Vec<&String> = names.iter().filter(|n| n.starts_with("lm_head.")).collect();
        heads.first()?;
        for name in heads {
            draft.remove(name)?;
        }
        Some(Planted("config.json".to_owned()))
    }),
    Fault::new("QC040", "tied-head-is-another-matrix", |draft, _| {
        trunk(draft)?;
        if draft.config()["tie_word_embeddings"] != json!(true) {
            return None;
        }
        draft.add("lm_head.weight", floats(&[8, 8], 0.5));
        Some(Planted("lm_head".to_owned()))
    }),
    Fault::new("QC050", "dtype-is-another-one", |draft, _| {
        let config = draft.config();
        let keys = ["dtype", "torch_dtype"];
        let stated = keys.iter().find_map(|key| config[key].as_str())?.to_owned();
        let other = if stated == "bfloat16" {
            "float16"
        } else {
            "bfloat16"
        };
        draft.edit("config.json", |config| {
            for key in keys {
                if config[key].is_string() {
                    config[key] = other.into();
                }
            }
        });
        has_dense(draft).then(|| Planted("config.json".to_owned()))
    }),
    Fault::new("QC060", "scales-of-the-cache-are-lost", |draft, _| {
        let scheme = stated(draft, "kv_cache_scheme")?;
        if scheme["dynamic"] != json!(false) {
            return None;
        }
        let names = draft.names();
        let is_scale = |name: &&String| name.ends_with(".k_scale") || name.ends_with(".v_scale");
        let scales: Vec<&String> = names.iter().filter(is_scale).collect();
        scales.first()?;
        for name in scales {
            draft.remove(name)?;
        }
        Some(Planted("config.json".to_owned()))
    }),
    Fault::new(
        "QC060",
        "nobody-asks-for-scales-of-the-cache",
        |draft, _| {
            let config = draft.config();
            let is_asked = stated(draft, "kv_cache_scheme").is_some_and(|s| !s.is_null());
            let settings = config["quantization_config"].is_object();
            if is_asked || !settings || draft.documents.contains_key("hf_quant_config.json") {
                return None;
            }
            let name = "model.layers.0.self_attn.k_scale";
            draft.add(name, floats(&[1], 0.5));
            Some(Planted(name.to_owned()))
        },
    ),
    Fault::new("QC061", "scale-of-activations-is-lost", |draft, random| {
        let static_scheme = |settings: &Map<String, Value>| {
            let groups = settings.get("config_groups").and_then(Value::as_object)?;
            let is_static = |group: &Value| {
                let dynamic = &group["input_activations"]["dynamic"];
                dynamic == &json!(false) || dynamic == &json!("local")
            };
            groups.values().all(is_static).then_some(())
        };
        let config = draft.config();
        static_scheme(config["quantization_config"].as_object()?)?;
        let (module, part) = any_part(draft, random, |_, part| {
            part.name.ends_with(".input_scale") || part.name.ends_with(".input_global_scale")
        })?;
        draft.remove(&part.name)?;
        Some(Planted(module))
    }),
];

/// Documents that hold nothing but settings.
const OWN_DOCUMENTS: [&str; 3] = [
    "quantize_config.json",
    "quant_config.json",
    "hf_quant_config.json",
];

/// Documents with settings.
pub(super) fn documents(draft: &Draft) -> Vec<String> {
    let mut found: Vec<String> = OWN_DOCUMENTS.iter().map(|d| (*d).to_owned()).collect();
    found.retain(|document| draft.documents.contains_key(document));
    let config = draft.config();
    let keys = ["quantization_config", "quantization"];
    if keys.iter().any(|key| config[key].is_object()) {
        found.push("config.json".to_owned());
    }
    found
}

/// Changes the settings of a document, all of them.
pub(super) fn edit_settings(
    draft: &mut Draft,
    document: &str,
    mut f: impl FnMut(&mut Map<String, Value>),
) {
    draft.edit(document, |value| {
        let keys: &[&str] = match document {
            "config.json" => &["quantization_config", "quantization"],
            "hf_quant_config.json" => &["quantization"],
            _ => &[],
        };
        for key in keys {
            if let Some(settings) = value.get_mut(*key).and_then(Value::as_object_mut) {
                f(settings);
            }
        }
        if let (true, Some(settings)) = (keys.is_empty(), value.as_object_mut()) {
            f(settings);
        }
    });
}

/// What `config.json` says of quantization under this key.
pub(super) fn stated(draft: &Draft, key: &str) -> Option<Value> {
    draft.config()["quantization_config"].get(key).cloned()
}

/// Names of the groups of compressed-tensors.
fn config_groups(draft: &Draft) -> Option<Vec<String>> {
    if stated(draft, "quant_method") != Some(json!("compressed-tensors")) {
        return None;
    }
    let groups = stated(draft, "config_groups")?;
    Some(groups.as_object()?.keys().cloned().collect())
}

/// The bits of the weights of the first group.
fn weights_bits(settings: &mut Map<String, Value>) -> Option<&mut Value> {
    let groups = settings.get_mut("config_groups")?.as_object_mut()?;
    groups
        .values_mut()
        .next()?
        .get_mut("weights")?
        .get_mut("num_bits")
}

/// Puts a dense matrix of the same shape in the place of a quantized weight.
pub(super) fn make_dense(draft: &mut Draft, module: &str) -> Option<()> {
    let tensor = weights(draft).into_iter().find(|t| t.module == module)?;
    let is_shared = |part: &safequant::schemes::Part| !part.name.starts_with(module);
    if tensor.parts.iter().any(is_shared) || tensor.shape.len() != 2 {
        return None;
    }
    for part in &tensor.parts {
        draft.remove(&part.name)?;
    }
    draft.add(&tensor.weight, floats(&tensor.shape, 0.125));
    Some(())
}

/// Puts an entry on the list of modules that are left dense; `None` where there is no such list.
fn list(draft: &mut Draft, entry: &str) -> Option<()> {
    let method = stated(draft, "quant_method")?;
    let key = match method.as_str()? {
        "compressed-tensors" | "modelopt" => "ignore",
        "awq" | "fp8" | "fbgemm_fp8" => "modules_to_not_convert",
        "bitsandbytes" => "llm_int8_skip_modules",
        "hqq" => "skip_modules",
        "gptq" => "dynamic",
        _ => return None,
    };
    for document in documents(draft) {
        edit_settings(draft, &document, |settings| {
            let key = if document == "hf_quant_config.json" {
                "exclude_modules"
            } else {
                key
            };
            if key == "dynamic" {
                let rules = settings.entry(key).or_insert_with(|| json!({}));
                let pattern = format!("-:{}", entry.replace('.', r"\."));
                let mut all = Map::from_iter([(pattern, json!({}))]);
                all.extend(rules.as_object().cloned().unwrap_or_default());
                *rules = all.into();
                return;
            }
            let list = settings.entry(key).or_insert(Value::Null);
            if list.is_null() {
                *list = json!([]);
            }
            if let Some(list) = list.as_array_mut() {
                list.push(entry.into());
            }
        });
    }
    Some(())
}

/// Whether it is a language model as a whole.
fn trunk(draft: &Draft) -> Option<()> {
    let names = draft.names();
    let has = |word: &str| names.iter().any(|name| name.starts_with(word));
    (has("model.embed_tokens.") && has("model.layers.")).then_some(())
}

/// Whether it holds dense floats.
fn has_dense(draft: &Draft) -> bool {
    let names = draft.names();
    names.iter().any(|name| name.ends_with("norm.weight"))
}
