#!/usr/bin/env python3
"""ModelOpt's own dequantization of a checkpoint against a dense one; run in an environment with nvidia-modelopt.

usage: read_modelopt.py QUANTIZED DENSE [SOURCE]

Weights are dequantized by ModelOpt's tensor classes. With SOURCE, the dense checkpoint that was quantized, ModelOpt quantizes and
exports it once more, and every tensor of a quantized module and `hf_quant_config.json` must be the same.
"""

import json
import sys
import tempfile
from pathlib import Path

import modelopt.torch.quantization as mtq
import torch
from modelopt.torch.export import export_hf_checkpoint
from modelopt.torch.quantization.qtensor import FP8QTensor, MXFP8QTensor, NVFP4QTensor
from readers import load
from transformers import AutoModelForCausalLM

#: ModelOpt's configuration for an algorithm.
CONFIGS = {
    "FP8_PER_CHANNEL_PER_TOKEN": "FP8_PER_CHANNEL_PER_TOKEN_CFG",
    "FP8_PB_WO": "FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG",
    "MXFP8": "MXFP8_DEFAULT_CFG",
    "W4A16_NVFP4": "W4A16_NVFP4_CFG",
    "W4A16_AWQ": "INT4_BLOCKWISE_WEIGHT_ONLY_CFG",
    "W8A16": "INT8_WEIGHT_ONLY_CFG",
}


def dequantized(weight, scale, second, dtype):
    """The weight as ModelOpt's classes compute it; nothing for the integers, for which it has none."""
    if weight.dtype == torch.uint8 and scale.dtype == torch.float8_e4m3fn:
        shape = torch.Size((weight.shape[0], weight.shape[1] * 2))
        tensor = NVFP4QTensor(shape, dtype, weight)
        return tensor.dequantize(dtype, scale=scale, double_scale=second, block_sizes={-1: 16})
    if weight.dtype != torch.float8_e4m3fn:
        return None
    if scale.dtype == torch.uint8:
        return MXFP8QTensor(weight.shape, dtype, weight).dequantize(dtype, scale=scale, block_sizes={-1: 32})
    tensor = FP8QTensor(weight.shape, dtype, weight)
    if scale.numel() == 1:
        return tensor.dequantize(dtype, scale=scale.reshape(()))
    if scale.ndim <= 2:
        return tensor.dequantize(dtype, scale=scale.reshape(-1, 1))
    scale = scale.reshape(scale.shape[0], scale.shape[2])
    ceil = tuple(-(-n // 128) for n in weight.shape)
    sizes = (128, 128) if ceil == scale.shape else tuple(n // r for n, r in zip(weight.shape, scale.shape))
    sizes = {-2: sizes[0], -1: sizes[1]}
    return tensor.dequantize(dtype, scale=scale, block_sizes=sizes)


def exported(source, algorithm):
    """The folder that ModelOpt makes of a dense checkpoint."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
    mtq.quantize(model, getattr(mtq, CONFIGS[algorithm.upper()]), lambda m: m(torch.tensor([[1, 5, 9]])))
    place = tempfile.mkdtemp()
    with torch.no_grad():
        export_hf_checkpoint(model, dtype=next(model.parameters()).dtype, export_dir=place)
    return place


def difference(stored, theirs, modules):
    """The first difference between the tensors of quantized modules, ours and theirs."""
    of = lambda tensors: {n: t for n, t in tensors.items() if n.rpartition(".")[0] in modules}
    own, other = of(stored), of(theirs)
    if set(own) != set(other):
        return f"other tensors: {sorted(set(own) ^ set(other))[:4]}"
    for name, tensor in sorted(other.items()):
        if own[name].dtype != tensor.dtype or own[name].shape != tensor.shape:
            return f"{name}: {own[name].dtype} {list(own[name].shape)} against {tensor.dtype} {list(tensor.shape)}"
        a, b = (t.contiguous().reshape(-1).view(torch.uint8) for t in (own[name], tensor))
        if not torch.equal(a, b):
            return f"{name}: {int((a != b).sum())} of {b.numel()} bytes differ"
    return None


def main():
    stored, dense = load(sys.argv[1]), load(sys.argv[2])
    modules = {n.removesuffix(".weight_scale") for n in stored if n.endswith(".weight_scale")}
    visited = 0
    for module in sorted(modules):
        own = dense[f"{module}.weight"]
        part = lambda name: stored.get(f"{module}.{name}")
        theirs = dequantized(part("weight"), part("weight_scale"), part("weight_scale_2"), own.dtype)
        if theirs is None:
            continue
        visited += 1
        if theirs.shape != own.shape or theirs.dtype != own.dtype or not bool(((theirs == own) | (theirs.isnan() & own.isnan())).all()):
            print(f"{module}: {theirs.dtype} {list(theirs.shape)} against {own.dtype} {list(own.shape)}")
            return 1
    how = f"{visited} weights read"
    if len(sys.argv) > 3:
        document = json.loads(Path(sys.argv[1], "hf_quant_config.json").read_text())
        place = exported(sys.argv[3], document["quantization"]["quant_algo"])
        fault = difference(stored, load(place), modules)
        theirs = json.loads(Path(place, "hf_quant_config.json").read_text())["quantization"]
        # Embeddings are no linear modules; the exporter lists them all the same.
        told = lambda settings: {k: v for k, v in settings.items() if k != "exclude_modules"}
        if not fault and told(theirs) != told(document["quantization"]):
            fault = f"{document['quantization']} against {theirs}"
        if fault:
            print(fault)
            return 1
        how, visited = f"{how}, {len(modules)} written", len(modules)
    # Integers and stacks of experts: the row says that nothing was compared.
    print(f"{how} as ModelOpt does, bit for bit" if visited else "not compared: ModelOpt has no class for these codes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
