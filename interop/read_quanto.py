#!/usr/bin/env python3
"""optimum-quanto's own dequantization of a checkpoint against a dense one; run in an environment with optimum-quanto.

usage: read_quanto.py QUANTIZED DENSE [SOURCE]

Each module is a `QLinear` of the type that `quanto_qmap.json` says and of the sizes of the model, as `requantize` sets it up; what
is stored must fit it. With SOURCE, the dense checkpoint that was quantized, the library quantizes it once more, and every tensor
must be the same.
"""

import json
import os
import sys
from pathlib import Path

import torch
from optimum.quanto import freeze
from optimum.quanto.nn import QLinear
from optimum.quanto.tensor import WeightQBitsTensor, WeightQBytesTensor, qtypes, quantize_weight
from readers import load


def linear_of(weight, kind):
    """The library's module for a weight of this shape and dtype, not frozen."""
    dense = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    dense.weight.data = weight.clone()
    return QLinear.from_module(dense, weights=qtypes[kind])


def weight_of(stored, module, linear):
    """The stored weight, loaded as `QModuleMixin._load_from_state_dict` does it, before it is moved into a kernel's layout."""
    state = {n: t for n, t in stored.items() if n.startswith(f"{module}.weight.")}
    prefix, missing = f"{module}.weight.", []
    size, stride = linear.weight.size(), linear.weight.stride()
    options = {"qtype": linear.weight_qtype, "axis": 0, "size": size, "stride": stride, "missing_keys": missing}
    if linear.weight_qtype.bits == 8:
        weight = WeightQBytesTensor.load_from_state_dict(state, prefix, activation_qtype=None, **options)
    else:
        weight = WeightQBitsTensor.load_from_state_dict(state, prefix, group_size=linear.weight_group_size, **options)
    assert not missing and not state, f"missing {missing}, not taken {list(state)}"
    for name in ("input_scale", "output_scale"):
        theirs = getattr(linear, name)
        own = stored[f"{module}.{name}"]
        assert own.dtype == theirs.dtype and own.shape == theirs.shape, f"{name}: {own.dtype} {list(own.shape)}"
    return weight


def equal(ours, theirs):
    """The same dtype, shape and values; not a number where the other one is none."""
    if ours.dtype != theirs.dtype or ours.shape != theirs.shape:
        return False
    ours, theirs = (t.float() if t.is_floating_point() else t for t in (ours, theirs))
    return torch.equal(ours, theirs) or bool(((ours == theirs) | (ours.isnan() & theirs.isnan())).all())


def difference(stored, module, linear):
    """The first difference between what we wrote and what the library writes."""
    if linear.weight_qtype.bits == 8:
        freeze(torch.nn.Sequential(linear))
    else:
        # As `freeze`, but not moved into the layout of a kernel (TinyGemm), whose way back rounds shifts once more.
        options = {"qtype": linear.weight_qtype, "axis": 0, "group_size": linear.weight_group_size}
        scale, shift = linear.optimizer(linear.weight, **options)
        linear.weight = torch.nn.Parameter(quantize_weight(linear.weight, scale=scale, shift=shift, optimized=False, **options))
    theirs = {f"{module}.{n}": t for n, t in linear.state_dict().items()}
    own = {n: t for n, t in stored.items() if n.startswith(f"{module}.") and not n.endswith(".bias")}
    if set(own) != set(theirs):
        return f"other tensors: {sorted(set(own) ^ set(theirs))}"
    return next((f"{n}: {own[n].dtype} {list(own[n].shape)}" for n, t in theirs.items() if not equal(own[n], t)), None)


def main():
    # The library compiles its kernel for a CPU with the environment's own ninja.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    qmap = json.loads(Path(sys.argv[1], "quanto_qmap.json").read_text())
    stored, dense = load(sys.argv[1]), load(sys.argv[2])
    source = load(sys.argv[3]) if len(sys.argv) > 3 else None
    for module, kinds in sorted(qmap.items()):
        own = dense[f"{module}.weight"]
        linear = linear_of(own, kinds["weights"])
        theirs = weight_of(stored, module, linear).dequantize()
        if not equal(theirs, own):
            print(f"{module} {kinds}: {theirs.dtype} {list(theirs.shape)} against {own.dtype} {list(own.shape)}")
            return 1
        if source is not None:
            fault = difference(stored, module, linear_of(source[f"{module}.weight"], kinds["weights"]))
            if fault:
                print(f"{module} {kinds}: {fault}")
                return 1
    how = "read and written" if source is not None else "read"
    print(f"{len(qmap)} weights {how} as quanto does, bit for bit")
    return 0 if qmap else 1


if __name__ == "__main__":
    sys.exit(main())
