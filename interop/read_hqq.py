#!/usr/bin/env python3
"""HQQ's own dequantization of a checkpoint against a dense one; run in an environment with hqq.

usage: read_hqq.py QUANTIZED DENSE [SOURCE]

Each module is loaded by `HQQLinear.load_state_dict`, as hqq and transformers do, which evaluates the descriptors. With SOURCE, the
dense checkpoint that was quantized, the library quantizes it once more, and every tensor must be the same.
"""

import json
import sys
from pathlib import Path

import torch
from hqq.core.quantize import BaseQuantizeConfig, HQQBackend, HQQLinear
from hqq.core.utils import decode_safetensor_type
from readers import load


def settings(place):
    """What `config.json` says of all modules."""
    config = json.loads(Path(place, "config.json").read_text())["quantization_config"]
    return config["quant_config"]["weight_quant_params"]


def state_of(stored, module):
    """The state dict of one module."""
    names = [n for n in stored if n.rpartition(".")[0] == module]
    return {n.rpartition(".")[2]: stored[n] for n in names}


def loaded(state):
    """The module as the library sets it up from its state; a loader names the dtype to compute in, here the one that is stored."""
    compute = decode_safetensor_type(state["compute_dtype"], torch.dtype)
    linear = HQQLinear(None, None, compute_dtype=compute, device="cpu", initialize=False)
    linear.load_state_dict(dict(state))
    return linear


def quantized(weight, params):
    """What the library makes of a weight, with its optimizer off."""
    config = BaseQuantizeConfig(nbits=params["nbits"], group_size=params["group_size"], axis=params["axis"])
    config["weight_quant_params"].update(optimize=False)
    dense = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    dense.weight.data = weight.clone()
    linear = HQQLinear(dense, config, compute_dtype=weight.dtype, device="cpu", del_orig=False)
    return {name: value for name, value in linear.state_dict().items() if value is not None}


def difference(state, theirs):
    """The first difference between what we wrote and what the library writes."""
    if set(state) != set(theirs):
        return f"other tensors: {sorted(set(state) ^ set(theirs))}"
    for name, tensor in theirs.items():
        own = state[name]
        if own.dtype != tensor.dtype or own.shape != tensor.shape or not torch.equal(own, tensor):
            return f"{name}: {state[name].dtype} {list(state[name].shape)} against {tensor.dtype} {list(tensor.shape)}"
    return None


def main():
    HQQLinear.set_backend(HQQBackend.PYTORCH)
    stored, dense = load(sys.argv[1]), load(sys.argv[2])
    source = load(sys.argv[3]) if len(sys.argv) > 3 else None
    params = settings(sys.argv[1]) if source is not None else None
    visited = 0
    for name in sorted(stored):
        module, _, part = name.rpartition(".")
        if part != "W_q":
            continue
        visited += 1
        state = state_of(stored, module)
        theirs, own = loaded(state).dequantize(), dense[f"{module}.weight"]
        if theirs.dtype != own.dtype or theirs.shape != own.shape or not bool(((theirs == own) | (theirs.isnan() & own.isnan())).all()):
            print(f"{module}: {theirs.dtype} {list(theirs.shape)} against {own.dtype} {list(own.shape)}")
            return 1
        if source is not None:
            state.pop("bias", None)
            fault = difference(state, quantized(source[f"{module}.weight"], params))
            if fault:
                print(f"{module}: {fault}")
                return 1
    how = "read and written" if source is not None else "read"
    print(f"{visited} weights {how} as hqq does, bit for bit")
    return 0 if visited else 1


if __name__ == "__main__":
    sys.exit(main())
