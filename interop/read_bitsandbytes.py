#!/usr/bin/env python3
"""bitsandbytes' own dequantization of a checkpoint against a dense one; run in an environment with bitsandbytes.

usage: read_bitsandbytes.py QUANTIZED DENSE

States are made by the library's own loader (`QuantState.from_dict`), which refuses unknown and missing tensors.
"""

import sys

import torch
from bitsandbytes import functional
from readers import load

MARK = ".quant_state.bitsandbytes__"


def four_bit(stored, name):
    """The weight whose descriptor has this name."""
    weight = name[:name.index(MARK)]
    state = {n.removeprefix(f"{weight}."): t for n, t in stored.items() if n.startswith(f"{weight}.")}
    state = functional.QuantState.from_dict(state, device=torch.device("cpu"))
    return weight, functional.dequantize_4bit(stored[weight], quant_state=state)


def int8(stored, name):
    """The weight whose row maxima have this name."""
    module = name.removesuffix(".SCB")
    assert stored.get(f"{module}.weight_format", torch.tensor(0)).item() == 0, f"{module} is not stored by rows"
    return f"{module}.weight", functional.int8_vectorwise_dequant(stored[f"{module}.weight"], stored[name])


def main():
    stored, dense = load(sys.argv[1]), load(sys.argv[2])
    visited = 0
    for name in sorted(stored):
        if MARK in name:
            weight, theirs = four_bit(stored, name)
        elif name.endswith(".SCB"):
            weight, theirs = int8(stored, name)
        else:
            continue
        visited += 1
        own = dense[weight]
        if theirs.dtype != own.dtype or not torch.equal(theirs, own):
            print(f"{weight}: {theirs.dtype} {list(theirs.shape)} against {own.dtype} {list(own.shape)}")
            return 1
    print(f"{visited} weights equal to bitsandbytes', bit for bit")
    return 0 if visited else 1


if __name__ == "__main__":
    sys.exit(main())
