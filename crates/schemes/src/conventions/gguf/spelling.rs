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

    use safequant_container::{Checkpoint, Dtype, Limits};
    use safequant_kernels::Float;
    use safequant_kernels::portable::convert::widen;

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
        assert!(n_keys > 150, "{n_keys}");
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
}
