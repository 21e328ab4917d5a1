//! A checkpoint in the layout of Hugging Face, as a GGUF model (specs/conventions/gguf.md, W1 and after).

use safequant_container::{GgufMetadata, GgufValue};

use super::architecture::Architecture;
use super::documents::Document;
use super::general::{self, Parameters};
use super::hyper_parameters::{self, Sizes};
use super::rope::Rope;
use super::{names, tokenizer};
use crate::{Error, ExtraTensor, Headers, QuantizedTensor, Respelled, Respelling, WrittenDense};

/// The spelling of a checkpoint that `config.json` describes.
///
/// # Errors
/// If there is no `config.json`, its architecture is not known, or a size is missing.
pub(crate) fn respelling(headers: Headers<'_>) -> Result<Box<dyn Respelling + '_>, Error> {
    let config = Document::config(headers)?;
    let architecture = Architecture::of(&config)?;
    let sizes = Sizes::of(architecture, &config)?;
    Ok(Box::new(HuggingFace {
        headers,
        config,
        architecture,
        sizes,
    }))
}

struct HuggingFace<'a> {
    headers: Headers<'a>,
    config: Document,
    architecture: &'static Architecture,
    sizes: Sizes,
}

impl Respelling for HuggingFace<'_> {
    fn tensor(&self, name: &str, shape: &[u64]) -> Result<Respelled, Error> {
        names::spell(self.architecture, &self.sizes, name, shape)
    }

    fn extra(&self) -> Result<Vec<ExtraTensor>, Error> {
        let rope = Rope::of(self.architecture, &self.config)?;
        let Some(llama3) = rope.llama3() else {
            return Ok(Vec::new());
        };
        Ok(vec![ExtraTensor {
            name: "rope_freqs.weight".to_owned(),
            values: llama3.factors(self.sizes.head_dim),
        }])
    }

    fn metadata(
        &self,
        quantized: &[QuantizedTensor],
        dense: &[WrittenDense<'_>],
    ) -> Result<GgufMetadata, Error> {
        let mut metadata = GgufMetadata::new();
        let parameters = Parameters::count(self, quantized, dense)?;
        let (headers, config) = (self.headers, &self.config);
        general::push(
            &mut metadata,
            headers,
            self.architecture,
            config,
            &parameters,
        )?;
        let file_type = general::file_type(self, quantized, dense)?;
        hyper_parameters::push(
            &mut metadata,
            self.architecture,
            config,
            &self.sizes,
            file_type,
        )?;
        metadata.push(
            "general.quantization_version",
            GgufValue::U32(general::QUANTIZATION_VERSION),
        );
        tokenizer::push(&mut metadata, headers, self.architecture, &self.sizes)?;
        Ok(metadata)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use std::sync::Arc;

    use safequant_container::{BytesSource, Checkpoint, Dtype, Limits, ReadAt};
    use safequant_kernels::Float;
    use safequant_kernels::portable::convert::widen;
    use serde_json::{Value, json};

    use super::*;
    use crate::scheme::float_of;
    use crate::{RowOrder, Spelling, Values};

    /// Fixtures by llama.cpp's own converter.
    const FIXTURES: &[&str] = &[
        "hf-llama-spm",
        "hf-llama3-bpe",
        "hf-mistral-fast",
        "hf-mixtral-spm",
        "hf-qwen2",
        "hf-qwen3-moe",
    ];

    /// Shape and bytes of a tensor.
    type Tensor = (Dtype, Vec<u64>, Vec<u8>);

    fn open(path: &str) -> Checkpoint {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/llama.cpp");
        Checkpoint::open(&root.join(path), &Limits::default()).unwrap()
    }

    /// The rows of a dense tensor in their new order, in F32 where that is asked for.
    fn carried_over(spelled: &Spelling, shape: &[u64], dtype: Dtype, bytes: &[u8]) -> Tensor {
        assert_eq!(spelled.values, Values::Same);
        let n_rows = shape[0];
        let row_bytes = bytes.len() / usize::try_from(n_rows).unwrap();
        let mut rows = Vec::new();
        for row in 0..n_rows {
            let from = usize::try_from(spelled.rows.source(row, n_rows)).unwrap() * row_bytes;
            rows.extend_from_slice(&bytes[from..from + row_bytes]);
        }
        if spelled.float.is_none() || dtype == Dtype::F32 {
            return (dtype, shape.to_vec(), rows);
        }
        let float = float_of(dtype).unwrap();
        let mut wide = vec![0.0; rows.len() / float.size_bytes()];
        widen(float, &rows, &mut wide);
        let bytes = wide.iter().flat_map(|value| value.to_le_bytes());
        (Dtype::F32, shape.to_vec(), bytes.collect())
    }

    /// Everything that the spelling makes of a dense checkpoint.
    fn carry_over(spelling: &dyn Respelling, source: &Checkpoint) -> BTreeMap<String, Tensor> {
        let mut tensors: BTreeMap<String, Tensor> = BTreeMap::new();
        let mut stacks: BTreeMap<String, BTreeMap<u64, Tensor>> = BTreeMap::new();
        for tensor in source.tensors() {
            let Respelled::As(spelled) = spelling.tensor(tensor.name(), tensor.shape()).unwrap()
            else {
                continue;
            };
            let bytes = tensor.read_all(1 << 24).unwrap();
            let made = carried_over(&spelled, tensor.shape(), tensor.dtype(), &bytes);
            let known = match spelled.stack {
                Some(place) => {
                    let stack = stacks.entry(spelled.name).or_default();
                    stack.insert(place.index, made)
                }
                None => tensors.insert(spelled.name, made),
            };
            assert!(known.is_none(), "{} is made twice", tensor.name());
        }
        for (name, stack) in stacks {
            let (dtype, shape, _) = stack[&0].clone();
            let bytes: Vec<u8> = stack.values().flat_map(|(_, _, b)| b.clone()).collect();
            let shape = [vec![stack.len() as u64], shape].concat();
            tensors.insert(name, (dtype, shape, bytes));
        }
        for extra in spelling.extra().unwrap() {
            let bytes = extra.values.iter().flat_map(|value| value.to_le_bytes());
            let shape = vec![extra.values.len() as u64];
            tensors.insert(extra.name, (Dtype::F32, shape, bytes.collect()));
        }
        tensors
    }

    /// The dense tensors that are written.
    fn written<'a>(spelling: &dyn Respelling, source: &'a Checkpoint) -> Vec<WrittenDense<'a>> {
        let written = source.tensors().filter_map(|tensor| {
            let name = tensor.info.name.as_str();
            let Respelled::As(spelled) = spelling.tensor(name, tensor.shape()).unwrap() else {
                return None;
            };
            Some(WrittenDense {
                name,
                shape: &tensor.info.shape,
                float: spelled.float.or(float_of(tensor.dtype())).unwrap(),
            })
        });
        written.collect()
    }

    #[test]
    fn tensors_are_those_of_the_converter_bit_for_bit() {
        let (mut n_tensors, mut n_permuted, mut n_stacks) = (0, 0, 0);
        for name in FIXTURES {
            let (source, expected) = (open(name), open(&format!("{name}/expected.gguf")));
            let spelling = respelling(Headers::new(&source)).unwrap();
            let made = carry_over(&*spelling, &source);
            let found: Vec<&str> = made.keys().map(String::as_str).collect();
            let mut names: Vec<&str> = expected.tensors().map(|t| t.info.name.as_str()).collect();
            names.sort_unstable();
            assert_eq!(found, names, "{name}");
            for tensor in expected.tensors() {
                let (dtype, shape, bytes) = &made[tensor.name()];
                let place = format!("{name}: {}", tensor.name());
                assert_eq!(
                    (*dtype, &shape[..]),
                    (tensor.dtype(), tensor.shape()),
                    "{place}"
                );
                assert_eq!(*bytes, tensor.read_all(1 << 24).unwrap(), "{place}");
                n_tensors += 1;
            }
            for tensor in source.tensors() {
                if let Respelled::As(spelled) =
                    spelling.tensor(tensor.name(), tensor.shape()).unwrap()
                {
                    n_permuted += usize::from(spelled.rows != RowOrder::Same);
                    n_stacks += usize::from(spelled.stack.is_some_and(|p| p.index == 0));
                }
            }
        }
        // 2 layers of 2; 1 of 4 with biases; 2 of 2. Two models with experts.
        assert_eq!((n_tensors, n_permuted, n_stacks), (94, 12, 6));
    }

    #[test]
    fn metadata_is_that_of_the_converter_key_for_key() {
        let mut n_keys = 0;
        for name in FIXTURES {
            let (source, expected) = (open(name), open(&format!("{name}/expected.gguf")));
            let spelling = respelling(Headers::new(&source)).unwrap();
            let made = spelling
                .metadata(&[], &written(&*spelling, &source))
                .unwrap();
            let mut made = made.iter();
            for (key, value) in expected.gguf().unwrap().iter() {
                // Where config.json does not tell a name, the converter takes that of the folder; we leave it out.
                let is_folder = key == "general.name" && value.as_str().unwrap().starts_with("Hf ");
                if is_folder {
                    continue;
                }
                assert_eq!(made.next(), Some((key, value)), "{name}: {key}");
                n_keys += 1;
            }
            assert_eq!(made.next(), None, "{name}");
        }
        assert_eq!(n_keys, 183);
    }

    #[test]
    fn quantized_tensors_decide_the_label_and_are_counted() {
        let source = open("hf-llama-spm");
        let spelling = respelling(Headers::new(&source)).unwrap();
        let dense = written(&*spelling, &source);
        let without: Vec<WrittenDense<'_>> = dense
            .iter()
            .copied()
            .filter(|t| t.float == Float::F32)
            .collect();
        let label = |dense: &[WrittenDense<'_>]| {
            let metadata = spelling.metadata(&[], dense).unwrap();
            let file_type = metadata.get("general.file_type").unwrap().as_u64().unwrap();
            let size = metadata
                .get("general.size_label")
                .unwrap()
                .as_str()
                .unwrap()
                .to_owned();
            (file_type, size)
        };
        assert_eq!(label(&dense), (1, "2.4K".to_owned()));
        assert_eq!(label(&without), (0, "0.04K".to_owned()));
    }

    /// The documents of a fixture, and no weights.
    fn documents(name: &str) -> BTreeMap<String, Vec<u8>> {
        let source = open(name);
        let headers = Headers::new(&source);
        let names = source
            .sidecars()
            .iter()
            .map(|sidecar| sidecar.name.as_str());
        let names = names.filter(|name| !name.starts_with("expected"));
        names
            .map(|name| (name.to_owned(), headers.sidecar(name).unwrap().unwrap()))
            .collect()
    }

    /// What is answered for a checkpoint with these documents.
    fn answer(documents: BTreeMap<String, Vec<u8>>) -> Result<GgufMetadata, Error> {
        let header = br#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
        let shard = [&(header.len() as u64).to_le_bytes()[..], header, &[0; 4]].concat();
        let shard: Arc<dyn ReadAt> = Arc::new(BytesSource(shard.into()));
        let shards = vec![("model.safetensors".to_owned(), shard)];
        let source = Checkpoint::from_sources("m", shards, documents, &Limits::default())?;
        let spelling = respelling(Headers::new(&source))?;
        spelling.extra()?;
        spelling.metadata(&[], &[])
    }

    /// The answer when the value at `pointer` is another one, or gone.
    fn changed(name: &str, document: &str, pointer: &str, value: Value) -> Error {
        let mut documents = documents(name);
        let mut json: Value = serde_json::from_slice(&documents[document]).unwrap();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        json.pointer_mut(parent).unwrap()[key] = value;
        documents.insert(document.to_owned(), json.to_string().into_bytes());
        answer(documents).unwrap_err()
    }

    #[test]
    fn what_cannot_be_derived_is_refused_by_name() {
        let (config, tokenizer) = ("config.json", "tokenizer.json");
        #[rustfmt::skip]
        let cases = [
            ("hf-qwen2", config, "/architectures", json!(["FalconForCausalLM"]), "general.architecture", "FalconForCausalLM"),
            ("hf-qwen2", config, "/architectures", json!(null), "general.architecture", "architectures"),
            ("hf-qwen2", config, "/hidden_size", json!(null), "qwen2.embedding_length", "hidden_size"),
            ("hf-qwen2", config, "/num_key_value_heads", json!(null), "qwen2.attention.head_count_kv", "num_key_value_heads"),
            ("hf-qwen2", config, "/rms_norm_eps", json!(null), "qwen2.attention.layer_norm_rms_epsilon", "rms_norm_eps"),
            ("hf-qwen2", config, "/hidden_act", json!("gelu"), "qwen2.activation", "gelu"),
            ("hf-qwen2", config, "/rope_scaling/type", json!("llama3"), "rope.scaling.type", "llama3"),
            ("hf-qwen2", config, "/rope_scaling/factor", json!(null), "rope.scaling.factor", "factor"),
            ("hf-llama3-bpe", config, "/rope_scaling/rope_type", json!("longrope"), "rope.scaling.type", "longrope"),
            ("hf-llama3-bpe", config, "/partial_rotary_factor", json!(0.5), "rope.dimension_count", "0.5"),
            ("hf-qwen3-moe", config, "/num_experts", json!(null), "qwen3moe.expert_count", "num_experts"),
            ("hf-qwen3-moe", config, "/mlp_only_layers", json!([0]), "qwen3moe.expert_count", "mlp_only_layers"),
            ("hf-qwen3-moe", config, "/moe_intermediate_size", json!(null), "qwen3moe.expert_feed_forward_length", "moe_intermediate_size"),
            ("hf-qwen2", tokenizer, "/pre_tokenizer/pretokenizers/0/pattern/Regex", json!("a"), "tokenizer.ggml.pre", "pre_tokenizer"),
            ("hf-qwen2", tokenizer, "/model/type", json!("Unigram"), "tokenizer.ggml.model", "Unigram"),
            ("hf-qwen2", tokenizer, "/model/byte_fallback", json!(true), "tokenizer.ggml.model", "byte_fallback"),
            ("hf-qwen2", tokenizer, "/model/vocab", json!({}), "tokenizer.ggml.tokens", "model.vocab"),
            ("hf-qwen2", tokenizer, "/model/merges", json!([]), "tokenizer.ggml.merges", "model.merges"),
            ("hf-qwen2", tokenizer, "/model/merges", json!([["a"]]), "tokenizer.ggml.merges", "pair"),
            ("hf-qwen2", config, "/vocab_size", json!(61), "tokenizer.ggml.tokens", "<tool_call>"),
            ("hf-mistral-fast", config, "/vocab_size", json!(60), "tokenizer.ggml.tokens", "58 tokens"),
            ("hf-qwen2", "tokenizer_config.json", "/pad_token", json!("<new>"), "tokenizer.ggml.tokens", "<new>"),
        ];
        for (name, document, pointer, value, field, problem) in cases {
            let error = changed(name, document, pointer, value);
            assert_eq!(error.code(), "cannot_derive", "{pointer}: {error}");
            let error = error.to_string();
            assert!(
                error.contains(field) && error.contains(problem),
                "{pointer}: {error}"
            );
        }
    }

    #[test]
    fn a_checkpoint_without_its_documents_is_refused_by_what_is_missing() {
        for (name, missing, problem) in [
            ("hf-qwen2", "config.json", "config.json"),
            (
                "hf-qwen2",
                "tokenizer.json",
                "tokenizer.json nor tokenizer.model",
            ),
            (
                "hf-llama-spm",
                "tokenizer.model",
                "tokenizer.json nor tokenizer.model",
            ),
        ] {
            let mut documents = documents(name);
            assert!(documents.remove(missing).is_some(), "{name} has {missing}");
            let error = answer(documents).unwrap_err();
            assert_eq!(error.code(), "cannot_derive");
            assert!(error.to_string().contains(problem), "{error}");
        }
    }

    #[test]
    fn documents_of_wrong_kinds_and_cut_short_are_errors() {
        let (mut n_errors, mut n_changes) = (0, 0);
        for name in FIXTURES {
            assert!(answer(documents(name)).is_ok(), "{name}");
            for (document, bytes) in documents(name) {
                if document == "model.safetensors" || document == "fixture.json" {
                    continue;
                }
                for part in [0, 1, bytes.len() / 2, bytes.len() - 1] {
                    let mut documents = documents(name);
                    documents.insert(document.clone(), bytes[..part].to_vec());
                    n_errors += usize::from(answer(documents).is_err());
                    n_changes += 1;
                }
                for text in ["[]", "{}", "1", "\"\"", "null"] {
                    let mut documents = documents(name);
                    documents.insert(document.clone(), text.into());
                    n_errors += usize::from(answer(documents).is_err());
                    n_changes += 1;
                }
            }
        }
        // A chat template is any text, and most documents may be empty objects.
        assert!(n_errors * 10 > n_changes * 7, "{n_errors} of {n_changes}");
    }

    #[test]
    fn tensors_that_do_not_fit_the_configuration_are_errors() {
        #[rustfmt::skip]
        let cases: &[(&str, &str, &[u64], &str)] = &[
            ("hf-qwen2", "model.layers.1.input_layernorm.weight", &[8], "cannot_derive"),
            ("hf-qwen2", "model.layers.00.input_layernorm.weight", &[8], "cannot_derive"),
            ("hf-qwen2", "model.layers.0.self_attn.q_norm.weight", &[4], "cannot_derive"),
            ("hf-qwen2", "model.layers.0.self_attn.q_proj.weight_scale", &[8], "cannot_derive"),
            ("hf-qwen2", "transformer.wte.weight", &[64, 8], "cannot_derive"),
            ("hf-qwen2", "model.layers.0.self_attn.q_proj.weight", &[12, 8], "part_shape"),
            ("hf-qwen2", "model.embed_tokens.weight", &[63, 8], "part_shape"),
            ("hf-qwen3-moe", "model.layers.0.mlp.experts.3.up_proj.weight", &[8, 8], "contradiction"),
            ("hf-qwen3-moe", "model.layers.0.mlp.experts.0.up_proj.bias", &[8], "cannot_derive"),
            ("hf-qwen3-moe", "model.layers.0.mlp.up_proj.weight", &[24, 8], "cannot_derive"),
        ];
        for (name, tensor, shape, code) in cases {
            let source = open(name);
            let spelling = respelling(Headers::new(&source)).unwrap();
            let error = spelling.tensor(tensor, shape).unwrap_err();
            assert_eq!(error.code(), *code, "{tensor}: {error}");
            assert!(error.to_string().contains(tensor), "{error}");
        }
    }

    #[test]
    fn what_a_runtime_derives_or_repeats_is_left_out() {
        let source = open("hf-llama3-bpe");
        let spelling = respelling(Headers::new(&source)).unwrap();
        for name in [
            "lm_head.weight",
            "model.layers.0.self_attn.rotary_emb.inv_freq",
        ] {
            let found = spelling.tensor(name, &[64, 8]).unwrap();
            assert!(matches!(found, Respelled::LeftOut(_)), "{name}: {found:?}");
        }
    }

    #[test]
    fn a_tokenizer_beyond_the_limit_is_refused_before_it_is_read() {
        let mut documents = documents("hf-llama-spm");
        let len = usize::try_from(crate::headers::MAX_SIDECAR_BYTES).unwrap() + 1;
        documents.insert("tokenizer.model".to_owned(), vec![0; len]);
        let error = answer(documents).unwrap_err();
        assert_eq!(error.code(), "sidecar_too_large", "{error}");
    }
}
