//! The documents beside the weights: which travel, which are edited, which belong to the old convention only.

use safequant_container::{Checkpoint, Manifest};
use safequant_kernels::Float;
use safequant_schemes::ConfigEdit;
use serde_json::Value;

use crate::{Error, OutputDtype, splice};

/// The document that says how weights are quantized.
pub(crate) const CONFIG: &str = "config.json";

/// Documents of conventions: they describe the quantization of the *source*, so they never travel.
const CONVENTION_DOCUMENTS: &[&str] = &[
    "quantize_config.json",
    "quant_config.json",
    "quant_log.csv",
    "hf_quant_config.json",
    "quanto_qmap.json",
    "quantization_config.json",
    "recipe.yaml",
    "hqq_config.json",
];

/// Keys of `config.json` that say how weights are quantized.
const CONFIG_KEYS: &[&str] = &["quantization_config", "compression_config", "quantization"];

/// Endings of weight files in other formats: they would contradict, or double, what is written.
const OTHER_WEIGHTS: &[&str] = &[
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".h5",
    ".msgpack",
    ".onnx",
    ".gguf",
];

/// Whether a file beside the weights travels along.
pub(crate) fn travels(name: &str) -> Travel {
    let last = name.rsplit('/').next().unwrap_or(name);
    if name == CONFIG || CONVENTION_DOCUMENTS.contains(&name) || last == Manifest::FILE_NAME {
        return Travel::Replaced;
    }
    if OTHER_WEIGHTS.iter().any(|ending| last.ends_with(ending)) {
        return Travel::Weights;
    }
    Travel::Copied
}

/// What becomes of a file beside the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Travel {
    /// Copied byte for byte.
    Copied,
    /// Written anew or left out: it describes the source's quantization.
    Replaced,
    /// Left out: weights in another format.
    Weights,
}

/// `config.json` and the further documents after quantizing.
pub(crate) fn quantized_documents(
    checkpoint: &Checkpoint,
    edit: ConfigEdit,
) -> Result<Vec<(String, Vec<u8>)>, Error> {
    let mut keys = edit.config;
    if !edit.quantization_config.is_empty() {
        let value = Value::Object(edit.quantization_config);
        keys.insert(CONFIG_KEYS[0].to_owned(), value);
    }
    let text = if let Some(text) = config_text(checkpoint)? {
        let mut edited = without_quantization(text)?;
        for (key, value) in &keys {
            edited = splice::set(CONFIG, &edited, 0, key, value)?;
        }
        Some(edited)
    } else {
        // A convention that describes its weights in the file itself needs no document.
        (!keys.is_empty()).then(|| format!("{:#}\n", Value::Object(keys)))
    };
    let config = text.map(|text| (CONFIG.to_owned(), text.into_bytes()));
    Ok(config.into_iter().chain(edit.documents).collect())
}

/// `config.json` and the convention's own documents as they are: what they say still holds.
pub(crate) fn same_documents(checkpoint: &Checkpoint) -> Vec<(String, Vec<u8>)> {
    let names = std::iter::once(&CONFIG).chain(CONVENTION_DOCUMENTS);
    names
        .filter_map(|name| Some(((*name).to_owned(), checkpoint.document(name)?.to_vec())))
        .collect()
}

/// `config.json` after dequantizing, if there is one.
pub(crate) fn dense_documents(
    checkpoint: &Checkpoint,
    dtype: OutputDtype,
) -> Result<Vec<(String, Vec<u8>)>, Error> {
    let Some(text) = config_text(checkpoint)? else {
        return Ok(Vec::new());
    };
    let mut text = without_quantization(text)?;
    match dtype {
        OutputDtype::Auto => {}
        OutputDtype::Float(float) => text = with_dtype(text, float)?,
    }
    Ok(vec![(CONFIG.to_owned(), text.into_bytes())])
}

fn config_text(checkpoint: &Checkpoint) -> Result<Option<String>, Error> {
    let Some(bytes) = checkpoint.document(CONFIG) else {
        return Ok(None);
    };
    let text = std::str::from_utf8(bytes).map_err(|_| Error::DocumentEncoding {
        file: CONFIG.to_owned(),
    })?;
    Ok(Some(text.to_owned()))
}

/// Offsets of the objects that describe (part of) a model: the whole text and every member `*_config`.
fn model_objects(text: &str) -> Result<Vec<usize>, Error> {
    let mut starts = vec![0];
    let (members, _) = splice::members(CONFIG, text, 0)?;
    for member in members {
        let is_object = text.as_bytes().get(member.value.start) == Some(&b'{');
        if member.key.ends_with("_config") && is_object {
            starts.push(member.value.start);
        }
    }
    // From the back, so that an edit moves no offset that is still needed.
    starts.reverse();
    Ok(starts)
}

fn without_quantization(text: String) -> Result<String, Error> {
    let mut edited = text;
    for key in CONFIG_KEYS {
        for start in model_objects(&edited)? {
            edited = splice::remove(CONFIG, &edited, start, key)?;
        }
    }
    Ok(edited)
}

fn with_dtype(text: String, float: Float) -> Result<String, Error> {
    let name = match float {
        Float::F32 => "float32",
        Float::F16 => "float16",
        Float::Bf16 => "bfloat16",
    };
    let mut edited = text;
    for start in model_objects(&edited)? {
        for key in ["torch_dtype", "dtype"] {
            let (members, _) = splice::members(CONFIG, &edited, start)?;
            if members.iter().any(|member| member.key == key) {
                edited = splice::set(CONFIG, &edited, start, key, &Value::from(name))?;
            }
        }
    }
    Ok(edited)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantization_leaves_the_config_and_its_nested_ones() {
        let text = "{\"text_config\": {\"dtype\": \"a\", \"quantization_config\": {\"x\": 1}}, \
                    \"quantization_config\": {\"y\": {}}, \"torch_dtype\": \"bfloat16\"}";
        let dense = without_quantization(text.to_owned()).unwrap();
        assert_eq!(
            dense,
            "{\"text_config\": {\"dtype\": \"a\"}, \"torch_dtype\": \"bfloat16\"}"
        );
        let cast = with_dtype(dense, Float::F16).unwrap();
        assert_eq!(
            cast,
            "{\"text_config\": {\"dtype\": \"float16\"}, \"torch_dtype\": \"float16\"}"
        );
    }

    #[test]
    fn tokenizers_travel_and_other_weights_do_not() {
        assert_eq!(travels("tokenizer.json"), Travel::Copied);
        assert_eq!(travels("original/params.json"), Travel::Copied);
        assert_eq!(travels("original/consolidated.00.pth"), Travel::Weights);
        assert_eq!(travels("quantize_config.json"), Travel::Replaced);
        assert_eq!(travels("safequant-manifest.json"), Travel::Replaced);
    }
}
