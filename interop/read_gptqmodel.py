#!/usr/bin/env python3
"""GPTQModel's own dequantization of a checkpoint against a dense one; run in an environment with GPTQModel.

usage: read_gptqmodel.py QUANTIZED DENSE
"""

import sys

import torch
from gptqmodel import BACKEND, GPTQModel
from gptqmodel.nn_modules.qlinear import PackableQuantLinear
from gptqmodel.nn_modules.qlinear.torch import TorchLinear
from gptqmodel.nn_modules.qlinear.torch_awq import AwqTorchLinear
from readers import load, quantization_config


def weight_of(module):
    """The weight that the module computes with; of AWQ, which shows none, what it makes of unit vectors."""
    if isinstance(module, TorchLinear):
        return PackableQuantLinear.dequantize_weight(module).T.contiguous()
    module.bias = None
    with torch.no_grad():
        return module(torch.eye(module.in_features, dtype=module.scales.dtype)).T.contiguous()


def main():
    stored, dense = load(sys.argv[1]), load(sys.argv[2])
    dtype = next(tensor.dtype for name, tensor in stored.items() if name.endswith(".scales"))
    backend = BACKEND.AWQ_TORCH if quantization_config(sys.argv[1])["quant_method"] == "awq" else BACKEND.GPTQ_TORCH
    model = GPTQModel.load(sys.argv[1], backend=backend, device="cpu", dtype=dtype)
    visited = 0
    for name, module in model.model.named_modules():
        if not isinstance(module, (TorchLinear, AwqTorchLinear)):
            continue
        visited += 1
        weight = weight_of(module)
        own = dense[f"{name}.weight"]
        if weight.dtype != own.dtype or not torch.equal(weight, own):
            print(f"{name}: {weight.dtype} against {own.dtype}, {int((weight != own).sum())} of {own.numel()} differ")
            return 1
    print(f"{visited} weights equal to GPTQModel's, bit for bit")
    return 0 if visited else 1


if __name__ == "__main__":
    sys.exit(main())
