//! What torchao and transformers are told of a parameter: its entry in `__metadata__`, and the configuration that would have
//! quantized it so.

use safequant_kernels::{Float, Minifloat};
use serde_json::{Value, json};

use super::write::{block_size, refuse};
use crate::scheme::float_of;
use crate::{
    Activations, Code, Error, Granularity, Preset, QuantizedTensor, Role, ScaleCoding, Storage,
    ZeroPoint,
};

/// A parameter, as its entry needs it.
struct About<'a> {
    tensor: &'a QuantizedTensor,
    block: Vec<u64>,
    /// What the runtime does with activations; converting leaves them as they are.
    activations: Activations,
}

/// A parameter's entry in `__metadata__`, and the configuration that would have quantized it so.
pub(super) fn describe(
    tensor: &QuantizedTensor,
    preset: Option<&Preset>,
) -> Result<(Value, Value), Error> {
    let block = block_size(&tensor.shape, tensor.scheme.granularity).ok_or_else(|| {
        refuse(
            &tensor.module,
            "its scales are per tensor, row, group or block",
        )
    })?;
    let about = About {
        tensor,
        block,
        activations: preset.map_or(Activations::Dense, |preset| preset.activations),
    };
    let (class, data, config) = match (tensor.scheme.code, tensor.scheme.scale) {
        (Code::Integer { bits: 8, .. }, _) if about.is_int8() => about.int8(),
        (Code::Integer { bits, .. }, _) => about.intx(bits),
        (Code::Minifloat(minifloat), ScaleCoding::E8M0(_)) => about.mx(minifloat),
        (Code::Minifloat(Minifloat::E2M1), _) => about.nvfp4(),
        _ => about.float8(),
    };
    let prefix = tensor
        .weight
        .rsplit_once('.')
        .map_or_else(String::new, |(m, p)| format!("{m}._{p}_"));
    let parts: Vec<&str> = tensor
        .parts
        .iter()
        .filter_map(|p| p.name.strip_prefix(&prefix))
        .collect();
    Ok((
        json!({"_type": class, "_data": data, "_tensor_data_names": parts}),
        config,
    ))
}

/// The class, its attributes, and the configuration.
type Entry = (&'static str, Value, Value);

impl About<'_> {
    /// The dtype of the dense weight.
    fn target(&self) -> Value {
        torch_dtype(match self.tensor.reference_dtype {
            Float::F32 => "float32",
            Float::F16 => "float16",
            Float::Bf16 => "bfloat16",
        })
    }

    /// Input features that share a scale.
    fn size(&self) -> u64 {
        self.block.last().copied().unwrap_or(1)
    }

    fn is_swizzled(&self) -> bool {
        let scale = self.tensor.part(Role::Scale);
        scale.is_some_and(|p| matches!(p.storage, Storage::Tiled { .. }))
    }

    /// Whether 8-bit integers are those of `Int8Tensor`: F32 scales, not per group.
    fn is_int8(&self) -> bool {
        let scale = self.tensor.part(Role::Scale);
        let is_f32 = scale.and_then(|p| float_of(p.dtype)) == Some(Float::F32);
        is_f32 && !matches!(self.tensor.scheme.granularity, Granularity::Group { .. })
    }

    fn int8(&self) -> Entry {
        let is_dynamic = self.activations == Activations::DynamicInt8PerToken;
        let kwargs = json!({"_type": "QuantizeTensorToInt8Kwargs", "_data": {
            "granularity": {"_type": "PerRow", "_data": {"dim": -1}},
            "mapping_type": symmetric(),
            "reduce_range": false,
        }});
        let config = if is_dynamic {
            config(
                "Int8DynamicActivationInt8WeightConfig",
                2,
                json!({
                    "act_mapping_type": symmetric(),
                    "weight_only_decode": false,
                    "granularity": per_row(),
                    "set_inductor_config": true,
                    "reduce_range": false,
                }),
            )
        } else {
            config(
                "Int8WeightOnlyConfig",
                2,
                json!({"group_size": null, "granularity": per_row(), "set_inductor_config": true}),
            )
        };
        let data = json!({
            "block_size": self.block,
            "dtype": self.target(),
            "act_quant_kwargs": if is_dynamic { kwargs } else { Value::Null },
            "reduce_range": false,
        });
        ("Int8Tensor", data, config)
    }

    fn intx(&self, bits: u32) -> Entry {
        let dtype = torch_dtype(&format!("int{bits}"));
        let is_symmetric = matches!(self.tensor.scheme.zero_point, ZeroPoint::Fixed(_));
        let mapping = if is_symmetric {
            "SYMMETRIC"
        } else {
            "ASYMMETRIC"
        };
        let data = json!({
            "target_dtype": dtype,
            "block_size": self.block,
            "dtype": self.target(),
            "activation_quantization": null,
        });
        let per_group =
            json!({"_type": "PerGroup", "_version": 1, "_data": {"group_size": self.size()}});
        let config = config(
            "IntxWeightOnlyConfig",
            2,
            json!({
                "weight_dtype": dtype,
                "granularity": per_group,
                "mapping_type": {"_type": "MappingType", "_data": mapping},
                "scale_dtype": null,
                "intx_packing_format": {"_type": "IntxPackingFormat", "_data": "UNPACKED_TO_INT8"},
                "intx_choose_qparams_algorithm": {"_type": "IntxChooseQParamsAlgorithm", "_data": "AFFINE"},
            }),
        );
        ("IntxUnpackedToInt8Tensor", data, config)
    }

    fn float8(&self) -> Entry {
        let is_dynamic = self.activations == Activations::DynamicFp8PerToken;
        let fast = json!({"emulate": false, "use_fast_accum": true, "pad_inner_dim": false});
        let is_tensor = self.tensor.scheme.granularity == Granularity::Tensor;
        // With one scale for the weight the library gives the activations one, too: its pair of granularities is the
        // same twice, or none of its kernels.
        let granularity = if is_tensor {
            json!({"_type": "PerTensor", "_data": {}})
        } else {
            json!({"_type": "PerRow", "_data": {"dim": -1}})
        };
        let kwargs = json!({"_type": "QuantizeTensorToFloat8Kwargs", "_data": {
            "float8_dtype": torch_dtype("float8_e4m3fn"),
            "granularity": granularity,
            "mm_config": null,
            "hp_value_lb": null,
            "hp_value_ub": null,
            "kernel_preference": kernel(),
        }});
        let data = json!({
            "block_size": self.block,
            "mm_config": if is_dynamic { json!({"_type": "Float8MMConfig", "_data": fast}) } else { Value::Null },
            "act_quant_kwargs": if is_dynamic { kwargs } else { Value::Null },
            "kernel_preference": kernel(),
            "dtype": self.target(),
        });
        if !is_dynamic {
            return ("Float8Tensor", data, weight_only_fp8());
        }
        let mut each = granularity;
        each["_version"] = json!(1);
        let config = config(
            "Float8DynamicActivationFloat8WeightConfig",
            2,
            json!({
                "activation_dtype": torch_dtype("float8_e4m3fn"),
                "weight_dtype": torch_dtype("float8_e4m3fn"),
                "granularity": [each, each],
                "packing_format": {"_type": "Float8PackingFormat", "_data": "PLAIN"},
                "mm_config": config("Float8MMConfig", 1, fast),
                "activation_value_lb": null,
                "activation_value_ub": null,
                "kernel_preference": kernel(),
                "set_inductor_config": true,
                "alg_id": 0,
            }),
        );
        ("Float8Tensor", data, config)
    }

    fn mx(&self, minifloat: Minifloat) -> Entry {
        let is_dynamic = matches!(
            self.activations,
            Activations::DynamicFp8PerGroup { .. } | Activations::DynamicFp4PerGroup { .. }
        );
        let scaling = json!({"_type": "ScaleCalculationMode", "_data": "RCEIL"});
        let kwargs = json!({"_type": "QuantizeTensorToMXKwargs", "_data": {
            "elem_dtype": element(minifloat),
            "block_size": self.size(),
            "scaling_mode": scaling,
            "kernel_preference": kernel(),
            "is_swizzled_scales": true,
        }});
        let data = json!({
            "elem_dtype": element(minifloat),
            "block_size": self.size(),
            "orig_dtype": self.target(),
            "kernel_preference": kernel(),
            "act_quant_kwargs": if is_dynamic { kwargs } else { Value::Null },
            "is_swizzled_scales": self.is_swizzled(),
        });
        if !is_dynamic {
            return ("MXTensor", data, weight_only_fp8());
        }
        let config = config(
            "MXDynamicActivationMXWeightConfig",
            1,
            json!({
                "block_size": self.size(),
                "activation_dtype": element(minifloat),
                "weight_dtype": element(minifloat),
                "kernel_preference": kernel(),
                "scaling_mode": scaling,
            }),
        );
        ("MXTensor", data, config)
    }

    fn nvfp4(&self) -> Entry {
        let data = json!({
            "block_size": self.size(),
            "orig_dtype": self.target(),
            "is_swizzled_scales": self.is_swizzled(),
            "use_triton_kernel": false,
            "act_quant_kwargs": null,
        });
        let has_second = self.tensor.part(Role::SuperScale).is_some();
        let config = config(
            "NVFP4WeightOnlyConfig",
            1,
            json!({"use_dynamic_per_tensor_scale": has_second}),
        );
        ("NVFP4Tensor", data, config)
    }
}

fn torch_dtype(name: &str) -> Value {
    json!({"_type": "torch.dtype", "_data": name})
}

fn config(name: &str, version: u32, data: Value) -> Value {
    let mut out = json!({"_type": name, "_version": version});
    out["_data"] = data;
    out
}

fn per_row() -> Value {
    config("PerRow", 1, json!({"dim": -1}))
}

fn symmetric() -> Value {
    json!({"_type": "MappingType", "_data": "SYMMETRIC"})
}

fn kernel() -> Value {
    json!({"_type": "KernelPreference", "_data": "AUTO"})
}

/// Weight-only FP8; also what transformers is told of MX weights whose activations stay as they are, for which torchao has no
/// configuration: it is parsed and, as the weights are there, not acted on.
fn weight_only_fp8() -> Value {
    config(
        "Float8WeightOnlyConfig",
        2,
        json!({
            "weight_dtype": torch_dtype("float8_e4m3fn"),
            "granularity": per_row(),
            "set_inductor_config": true,
        }),
    )
}

fn element(minifloat: Minifloat) -> Value {
    match minifloat {
        Minifloat::E5M2 | Minifloat::E5M2Fnuz => torch_dtype("float8_e5m2"),
        Minifloat::E2M1 => torch_dtype("float4_e2m1fn_x2"),
        Minifloat::E2M3 => json!("fp6_e2m3"),
        Minifloat::E3M2 => json!("fp6_e3m2"),
        Minifloat::E4M3 | Minifloat::E4M3Fnuz | Minifloat::E8M0 => torch_dtype("float8_e4m3fn"),
    }
}
