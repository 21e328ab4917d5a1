#!/usr/bin/env python3
"""torchao's own dequantization of a checkpoint against a dense one; run in an environment with torchao.

usage: read_torchao.py QUANTIZED DENSE [SOURCE]

Subclasses are put together by the library's own loader (`unflatten_tensor_state_dict`) from the tensors and `__metadata__`. With
SOURCE, the dense checkpoint that was quantized, the library quantizes it once more with the configuration that `config.json` names,
and every tensor and attribute must be the same.
"""

import json
import sys
from pathlib import Path

import torch
import torchao.quantization as quantization
from readers import load
from safetensors import safe_open
from torchao.core.config import config_from_dict
from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict, unflatten_tensor_state_dict


def metadata(place):
    """`__metadata__` of all shards, merged."""
    out = {}
    for path in sorted(Path(place).glob("*.safetensors")):
        with safe_open(path, "pt") as opened:
            out.update(opened.metadata() or {})
    return out


def parameters(stored, about):
    """Every parameter that the metadata takes apart, as the library puts it together."""
    names = json.loads(about["tensor_names"])
    classes = {name: json.loads(about[name])["_type"] for name in names}
    owned = lambda key: any(key == n or key.startswith("._".join(n.rsplit(".", 1)) + "_") for n in names)
    whole, left = unflatten_tensor_state_dict({k: t for k, t in stored.items() if owned(k)}, about)
    assert not left, f"tensors that belong to no parameter: {list(left)[:3]}"
    return {name: whole[name] for name, kind in classes.items() if kind != "Tensor"}


def dequantized(parameter):
    """The library's own weight; of a class without `dequantize` nothing."""
    return parameter.dequantize() if hasattr(parameter, "dequantize") else None


def difference(ours, theirs):
    """The first difference between two parameters: class, attributes, tensors."""
    (own, own_about), (other, other_about) = (flatten_tensor_state_dict({"m.weight": t}) for t in (ours, theirs))
    a, b = (json.loads(about["m.weight"]) for about in (own_about, other_about))
    if (a["_type"], a["_data"]) != (b["_type"], b["_data"]):
        return f"{a['_type']} {a['_data']} against {b['_type']} {b['_data']}"
    if set(own) != set(other):
        return f"other tensors: {sorted(set(own) ^ set(other))}"
    for name, tensor in other.items():
        if own[name].dtype != tensor.dtype or own[name].shape != tensor.shape:
            return f"{name}: {own[name].dtype} {list(own[name].shape)} against {tensor.dtype} {list(tensor.shape)}"
        a, b = (t.contiguous().reshape(-1).view(torch.uint8) for t in (own[name], tensor))
        count = int((a != b).sum())
        if count:
            return f"{name}: {count} bytes of {b.numel()} differ"
    return None


def quantized(weight, config):
    """What the library makes of a weight, on a CPU: its check for a GPU that could run the result is left out."""
    module = torch.nn.Sequential(torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype))
    module[0].weight.data = weight.clone()
    quantization.quant_api._check_hardware_support = lambda granularity: None
    quantization.quantize_(module, config)
    return module[0].weight


def main():
    stored, about, dense = load(sys.argv[1]), metadata(sys.argv[1]), load(sys.argv[2])
    source = load(sys.argv[3]) if len(sys.argv) > 3 else None
    visited = 0
    for name, parameter in sorted(parameters(stored, about).items()):
        theirs, own = dequantized(parameter), dense[name]
        visited += 1
        is_same = theirs.dtype == own.dtype and theirs.shape == own.shape
        if not is_same or not bool(((theirs == own) | (theirs.isnan() & own.isnan())).all()):
            print(f"{name} {type(parameter).__name__}: {theirs.dtype} {list(theirs.shape)} against {own.dtype} {list(own.shape)}")
            return 1
        if source is not None:
            config = json.loads(Path(sys.argv[1], "config.json").read_text())["quantization_config"]["quant_type"]["default"]
            fault = difference(parameter, quantized(source[name], config_from_dict(config)))
            if fault:
                print(f"{name}: {fault}")
                return 1
    how = "read and written" if source is not None else "read"
    print(f"{visited} weights {how} as torchao does, bit for bit")
    return 0 if visited else 1


if __name__ == "__main__":
    sys.exit(main())
