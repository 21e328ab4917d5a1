#!/usr/bin/env python3
"""comfy-kitchen's own dequantization of a checkpoint against a dense one; run in an environment with comfy-kitchen.

usage: read_comfyui.py QUANTIZED DENSE

Both are directories or files. Layers are found and described as ComfyUI does it (`comfy/utils.py convert_old_quants`, `comfy/ops.py
_load_quantized_module` and `MoEExperts._expert_qt_from`, 0271a469): the header's description goes before markers, and without one
`scaled_fp8` makes legacy names new ones. What a format of the loader holds is dequantized by the layout that ComfyUI registers for
it, in the dtype of the dense weight, and cut to its shape. Formats that stock ComfyUI does not load are counted and left to
others; so are rotated ones, whose F32 sums have no order that is promised.
"""

import json
import sys
from pathlib import Path

import torch
from comfy_kitchen import tensor as kitchen
from safetensors import safe_open

FP8 = {"float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2}
FP8_DTYPES = tuple(FP8.values())


def load(place):
    """Every tensor of a checkpoint, by safetensors' own reader, and its metadata."""
    place = Path(place)
    tensors, metadata = {}, {}
    for path in [place] if place.is_file() else sorted(place.glob("*.safetensors")):
        with safe_open(path, "pt") as opened:
            metadata.update(opened.metadata() or {})
            tensors.update({name: opened.get_tensor(name) for name in opened.keys()})
    return tensors, metadata


def descriptions(tensors, metadata):
    """What ComfyUI would know of each layer; legacy names are changed in place."""
    layers = {}
    for name, tensor in tensors.items():
        module, _, part = name.rpartition(".")
        text = tensor.numpy().tobytes() if part == "comfy_quant" else b""
        if text.strip(b"\0"):
            layers[module] = json.loads(text)
    if "_quantization_metadata" in metadata:
        layers.update(json.loads(metadata["_quantization_metadata"])["layers"])
    else:
        for marker in [n for n in tensors if n == "scaled_fp8" or n.endswith(".scaled_fp8")]:
            prefix = marker.removesuffix("scaled_fp8")
            for name in [n for n in tensors if n.startswith(prefix) and n.endswith(".scale_weight")]:
                module = name.removesuffix(".scale_weight")
                tensors[f"{module}.weight_scale"] = tensors.pop(name)
                # ComfyUI calls every one of them E4M3, and rounds the values of E5M2 and dense weights to that; here codes are
                # what they are, and dense weights stay.
                dtype = tensors[f"{module}.weight"].dtype if f"{module}.weight" in tensors else None
                layers.update({module: {"format": key} for key, value in FP8.items() if value == dtype})
    return layers


def scales(settings, parts):
    """Layout and parameters of a described layer; `None` if stock ComfyUI does not load it or rotates it."""
    name = settings.get("format")
    options = settings.get("params") if isinstance(settings.get("params"), dict) else {}
    if name in FP8:
        scale = parts.get("weight_scale", torch.ones(()))
        return kitchen.TensorCoreFP8Layout, FP8[name], {"scale": scale}
    if name == "nvfp4":
        block = parts["weight_scale"].view(torch.float8_e4m3fn)
        return kitchen.TensorCoreNVFP4Layout, torch.uint8, {"scale": parts["weight_scale_2"], "block_scale": block}
    if name == "mxfp8":
        return kitchen.TensorCoreMXFP8Layout, torch.float8_e4m3fn, {"scale": parts["weight_scale"].view(torch.float8_e8m0fnu)}
    if name == "int8_tensorwise" and not settings.get("convrot", options.get("convrot", False)):
        return kitchen.TensorWiseINT8Layout, torch.int8, {"scale": parts["weight_scale"]}
    if name == "awq_w4a16" and "weight_zeros" in parts:
        group = {"zeros": parts["weight_zeros"], "group_size": int(settings.get("group_size", 64))}
        return kitchen.TensorCoreAWQW4A16Layout, torch.int8, {"scale": parts["weight_scale"], **group}
    return None


def dequantized(settings, parts, own):
    """The weight as ComfyUI computes it, expert by expert; `None` as above."""
    found = scales(settings, parts)
    if found is None:
        return None
    layout, storage, values = found
    codes = parts["weight"].to(storage)

    def one(codes, values, shape):
        params = layout.Params(**values, orig_dtype=own.dtype, orig_shape=tuple(shape))
        weight = layout.dequantize(codes, params)
        return weight[: shape[0], : shape[1]]

    if codes.ndim == 2:
        return one(codes, values, own.shape)
    assert settings["num_experts"] == codes.shape[0], "num_experts is not the number of experts"
    of = lambda value, i: value[i] if torch.is_tensor(value) and value.dim() else value
    experts = [one(codes[i], {k: of(v, i) for k, v in values.items()}, own.shape[1:]) for i in range(codes.shape[0])]
    return torch.stack(experts)


def main():
    (stored, metadata), (dense, _) = load(sys.argv[1]), load(sys.argv[2])
    layers = descriptions(stored, metadata)
    modules = {}
    for name, tensor in stored.items():
        module, _, part = name.rpartition(".")
        modules.setdefault(module, {})[part] = tensor
    visited = casts = left = 0
    for module, parts in sorted(modules.items()):
        weight = parts.get("weight")
        if weight is None or (module not in layers and weight.dtype not in FP8_DTYPES):
            continue
        own = dense[f"{module}.weight"]
        if module in layers:
            theirs = dequantized(layers[module], parts, own)
            visited += theirs is not None
        elif parts.keys() & {"weight_scale", "scale_weight"}:
            theirs = None  # diffusers and musubi-tuner: ComfyUI ignores the scale
        else:
            theirs = weight.to(own.dtype)
            casts += 1
        if theirs is None:
            left += 1
        elif theirs.dtype != own.dtype or not torch.equal(theirs.nan_to_num(nan=7e4), own.nan_to_num(nan=7e4)):
            print(f"{module} {layers.get(module)}: {theirs.dtype} {list(theirs.shape)} against {own.dtype} {list(own.shape)}")
            return 1
    more = f", {casts} casts" * bool(casts) + f"; {left} not for stock ComfyUI, or rotated" * bool(left)
    print(f"{visited} weights equal to comfy-kitchen's, bit for bit{more}")
    return 0 if visited + casts + left else 1


if __name__ == "__main__":
    sys.exit(main())
