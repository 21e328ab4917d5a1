"""Other people's readers of quantized checkpoints: `{weight name: tensor}`, none of it our arithmetic.

Where no library on a CPU reads a convention, its published formula stands here in torch, with its source.
"""

import json
from pathlib import Path

import torch
from safetensors import safe_open


def load(place):
    """Every tensor of a checkpoint, by safetensors' own reader."""
    out = {}
    for path in sorted(Path(place).glob("*.safetensors")):
        with safe_open(path, "pt") as opened:
            out.update({name: opened.get_tensor(name) for name in opened.keys()})
    return out


def quantization_config(place):
    """`quantization_config` of config.json."""
    return json.loads(Path(place, "config.json").read_text())["quantization_config"]


def parts_by_module(tensors, marks):
    """`{module: {part: tensor}}` of the modules that have one of these parts."""
    modules = {}
    for name, tensor in tensors.items():
        module, _, part = name.rpartition(".")
        modules.setdefault(module, {})[part] = tensor
    return {module: parts for module, parts in sorted(modules.items()) if parts.keys() & set(marks)}


def compressed_tensors(place):
    """The compressor classes of compressed-tensors, module by module, as its own model decompression calls them."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.compressors.format import infer_module_format
    from compressed_tensors.quantization import QuantizationConfig
    from compressed_tensors.utils.match import match_name

    raw = quantization_config(place)
    config = QuantizationConfig.model_validate({k: v for k, v in raw.items() if k not in ("quant_method", "version")})
    out = {}
    for module, parts in parts_by_module(load(place), ("weight_packed", "weight_scale")).items():
        assert not any(match_name(module, ignored) for ignored in config.ignore or []), f"{module} is ignored by the config"
        groups = [g for g in config.config_groups.values() if any(t == "Linear" or match_name(module, t) for t in g.targets)]
        assert groups, f"{module} is no target of the config"
        told = getattr(groups[0], "format", None) or config.format
        inferred = infer_module_format(torch.nn.Linear, groups[0])
        told, inferred = (getattr(f, "value", f) for f in (told, inferred))
        assert told == inferred, f"{module}: format {told}, compressed-tensors infers {inferred}"
        compressor = BaseCompressor.get_value_from_registry(told)
        out[f"{module}.weight"] = compressor.decompress(dict(parts), groups[0])["weight"].data
    return out


def unpack_dense(words, bits, axis):
    """Codes of int32 words, lowest bits first along `axis`; a code may straddle two words (3 bits)."""
    words = words.movedim(axis, -1).to(torch.int64) & 0xFFFFFFFF
    shifts = torch.arange(32)
    stream = ((words.unsqueeze(-1) >> shifts) & 1).flatten(-2)
    codes = stream.unflatten(-1, (-1, bits)) << torch.arange(bits)
    return codes.sum(-1).movedim(-1, axis)


def gptq(place):
    """The formula of GPTQModel's TorchLinear (`dequantize_weight`): `scales[g_idx] * (code - zeros[g_idx])`.

    `gptq` (v1) stores zero points minus one, taken from the whole word (`convert_gptq_v1_to_v2_format_module`); at 3 bits
    they are stored field by field.
    """
    config = quantization_config(place)
    bits, v1 = config["bits"], config.get("checkpoint_format", "gptq") == "gptq"
    out = {}
    for module, parts in parts_by_module(load(place), ("qweight",)).items():
        zero_words = parts["qzeros"].to(torch.int64)
        if v1 and bits != 3:
            zero_words = zero_words + sum(1 << at for at in range(0, 32, bits))
        zeros = unpack_dense(zero_words, bits, 1)
        if v1 and bits == 3:
            zeros = (zeros + 1) & 7
        groups, scales = parts["g_idx"].long(), parts["scales"]
        # Rows that do not fill their last word are padded (GPTQModel 7.7 crops them, too).
        codes = unpack_dense(parts["qweight"], bits, 0)[: len(groups)]
        zeros = zeros[:, : scales.shape[1]]
        out[f"{module}.weight"] = (scales[groups] * (codes - zeros[groups])).to(scales.dtype).T.contiguous()
    return out


def awq(place):
    """AutoAWQ's `dequantize_gemm` (`scale * (code - zero)` in the scale's dtype), and GPTQModel's formula of `gemv_fast`.

    `gemm` interleaves the nibbles of a word along output features, `gemv` packs them in order along input features, both with
    zero points as they are; `gemv_fast` interleaves four rows and adds `qzeros`, the rounded product `-(scale * zero)`.
    """
    config = quantization_config(place)
    version, size = config["version"], config["group_size"]
    out = {}
    for module, parts in parts_by_module(load(place), ("qweight",)).items():
        scales = parts["scales"]
        if version == "gemm":
            lanes = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])
            codes, zeros = (
                unpack_dense(parts[p], 4, 1).reshape(parts[p].shape[0], -1, 8)[:, :, lanes].flatten(1).T for p in ("qweight", "qzeros")
            )
            scales = scales.T
        elif version == "gemv":
            codes, zeros = unpack_dense(parts["qweight"], 4, 1), unpack_dense(parts["qzeros"], 4, 1)
        else:
            codes, zeros, scales = awq_fast_codes(parts["qweight"]), parts["qzeros"].T, scales.T
        groups = torch.arange(codes.shape[1]) // (size if size > 0 else codes.shape[1])
        if version == "gemv_fast":
            weight = codes.double() * scales[:, groups].double() + zeros[:, groups].double()
        else:
            weight = scales[:, groups].float() * (codes - zeros[:, groups])
        out[f"{module}.weight"] = weight.to(scales.dtype).contiguous()
    return out


def awq_fast_codes(words):
    """Codes [N, K] of `qweight` I16 [N / 4, K]: blocks of 4 x 64, four nibbles in a word (llm-awq's `pack_intweight`)."""
    rows, columns = words.shape[0] * 4, words.shape[1]
    n = torch.arange(rows).unsqueeze(1)
    k = torch.arange(columns).unsqueeze(0)
    t = 32 * (k % 64 // 32) + 8 * ((k >> 1) & 3) + 4 * (k & 1) + ((k >> 3) & 3)
    word = words[n // 4, k // 64 * 64 + n % 4 * 16 + t // 4].int()
    return (word >> (4 * (t % 4))) & 15


def fp8(place):
    """Codes times scale in F32, rounded to the checkpoint's dtype: DeepSeek's `weight_dequant`, vLLM's per-channel form."""
    block = quantization_config(place).get("weight_block_size")
    tensors = load(place)
    dtype = tensors["model.norm.weight"].dtype
    out = {}
    for module, parts in parts_by_module(tensors, ("weight_scale_inv", "weight_scale")).items():
        codes = parts["weight"].float()
        scale = parts.get("weight_scale_inv", parts.get("weight_scale")).float()
        if block and scale.ndim == 2:
            scale = scale.repeat_interleave(block[0], 0)[: codes.shape[0]]
            scale = scale.repeat_interleave(block[1], 1)[:, : codes.shape[1]]
        elif scale.ndim == 1 and scale.numel() > 1:
            scale = scale.unsqueeze(1)
        out[f"{module}.weight"] = (codes * scale).to(dtype)
    return out


def transformers_model(place, **how):
    """The model as transformers loads it, on the CPU."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(place, dtype="auto", **how).eval()


def transformers_quantized(place):
    """The model with transformers' own reader of the convention, dequantized at load."""
    import transformers

    method = quantization_config(place)["quant_method"]
    if method == "compressed-tensors":
        how = transformers.CompressedTensorsConfig(dequantize=True)
    else:
        how = transformers.FineGrainedFP8Config(dequantize=True)
    return transformers_model(place, quantization_config=how)
