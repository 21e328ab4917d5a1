//! Quantized checkpoints of conventions that are not here yet: they must be reported, never taken for dense ones.

use safequant_container::{Dtype, TensorInfo};

use crate::{Error, Headers, Model, Settings};

/// Name endings that only one family of formats uses.
const MARKERS: &[(&str, &str)] = &[
    ("_qdata", "torchao"),
    (".weight._data", "quanto"),
    (".weight._scale", "quanto"),
    (".comfy_quant", "ComfyUI"),
    (".wscales", "Nunchaku SVDQuant"),
    (".qweight", "an AWQ, GPTQ or related layout"),
    (".trellis", "EXL3"),
    (".s_channel", "QQQ"),
    (".B", "Marlin or QQQ"),
    (".weight_scale_2", "ModelOpt NVFP4"),
    ("_blocks", "MXFP4 (gpt-oss)"),
    (".scale_weight", "ComfyUI scaled FP8"),
    (".bitmask", "compressed-tensors sparse"),
    (".scale_packed", "compressed-tensors marlin-24"),
    (".weight_packed", "a compressed-tensors packed layout"),
];

/// What is left over must look dense.
///
/// # Errors
/// [`Error::Unsupported`] naming format and tensor or document.
pub(crate) fn check(
    headers: Headers<'_>,
    settings: &[Settings],
    model: &Model,
) -> Result<(), Error> {
    let is_read = model.conventions.iter().any(|(id, _)| *id == "comfyui");
    if headers.metadata("_quantization_metadata").is_some() && !is_read {
        return Err(unsupported(
            "__metadata__",
            "ComfyUI",
            "_quantization_metadata",
        ));
    }
    for name in &model.plain {
        let Some(info) = headers.tensor(name) else {
            continue;
        };
        if let Some(format) = marker(headers, info) {
            return Err(unsupported(name, format, ""));
        }
    }
    for info in settings {
        announced(info, model)?;
    }
    for name in &model.plain {
        let Some(info) = headers.tensor(name) else {
            continue;
        };
        if let Some(format) = suspicious(info) {
            return Err(unsupported(
                name,
                &format,
                "no scale and no configuration that say how to read it",
            ));
        }
    }
    Ok(())
}

fn unsupported(module: &str, format: &str, detail: &str) -> Error {
    Error::Unsupported {
        module: module.to_owned(),
        format: format.to_owned(),
        detail: detail.to_owned(),
    }
}

/// A tensor that only quantized checkpoints of another convention have.
fn marker(headers: Headers<'_>, info: &TensorInfo) -> Option<&'static str> {
    let name = info.name.as_str();
    if name == "scaled_fp8" || name.ends_with(".scaled_fp8") {
        return Some("ComfyUI scaled FP8");
    }
    let (ending, format) = MARKERS.iter().find(|(ending, _)| name.ends_with(ending))?;
    match *ending {
        // Ordinary names that mean quantization only together with their companion.
        "_blocks" => {
            let scales = format!("{}_scales", name.strip_suffix("_blocks")?);
            (info.dtype == Dtype::U8 && headers.tensor(&scales).is_some()).then_some(*format)
        }
        ".B" => (info.dtype == Dtype::I32 && info.shape.len() == 2).then_some(*format),
        _ => Some(format),
    }
}

/// A configuration that announces a convention of which nothing was recognized.
fn announced(settings: &Settings, model: &Model) -> Result<(), Error> {
    let is_mlx =
        settings.place.ends_with(": quantization") || settings.place.ends_with(".quantization");
    let modelopt = settings
        .map
        .get("quantization")
        .and_then(|q| q.get("quant_algo"));
    let format = match settings.method() {
        Some(method) => method,
        None if modelopt.is_some_and(|a| !a.is_null()) => "modelopt".to_owned(),
        None if is_mlx && settings.map.contains_key("bits") => "mlx".to_owned(),
        None => return Ok(()),
    };
    // A convention that recognized its own announcement may well have found no quantized weight.
    let known: &[&str] = match format.as_str() {
        "compressed-tensors" => &["compressed-tensors"],
        "gptq" => &["gptq", "gptq_v2", "gptq_p", "marlin"],
        "marlin" => &["marlin", "gptq"],
        "awq" => &["awq", "awq_gemv", "awq_gemv_fast", "awq_llm", "marlin"],
        "fp8" | "fbgemm_fp8" | "mxfp8" => &["fp8"],
        "hqq" => &["hqq"],
        "quanto" => &["quanto"],
        "torchao" => &["torchao"],
        "bitsandbytes" => &["bitsandbytes"],
        "mlx" | "afq" | "metal" => &["mlx"],
        "mxfp4" | "gpt_oss_mxfp4" => &["mxfp4"],
        name if name.starts_with("modelopt") => &["modelopt"],
        method if method.starts_with("comfy") => &["comfyui"],
        _ => &[],
    };
    if model.conventions.iter().any(|(id, _)| known.contains(id)) {
        return Ok(());
    }
    Err(unsupported(&settings.place, &format, ""))
}

/// A weight in a dtype that no dense model uses.
fn suspicious(info: &TensorInfo) -> Option<String> {
    let format = || {
        Some(format!(
            "a {} weight without a known convention",
            info.dtype
        ))
    };
    match info.dtype {
        Dtype::F4
        | Dtype::F6E2M3
        | Dtype::F6E3M2
        | Dtype::F8E5M2
        | Dtype::F8E4M3
        | Dtype::F8E8M0
        | Dtype::F8E4M3Fnuz
        | Dtype::F8E5M2Fnuz => format(),
        Dtype::U8 | Dtype::I8 | Dtype::I32 | Dtype::U32
            if info.name.ends_with(".weight") && info.shape.len() > 1 =>
        {
            format()
        }
        Dtype::Bool
        | Dtype::U8
        | Dtype::I8
        | Dtype::I16
        | Dtype::U16
        | Dtype::F16
        | Dtype::BF16
        | Dtype::I32
        | Dtype::U32
        | Dtype::F32
        | Dtype::C64
        | Dtype::F64
        | Dtype::I64
        | Dtype::U64 => None,
    }
}
