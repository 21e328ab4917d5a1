#!/usr/bin/env python3
"""MLX's own dequantization of a checkpoint against a dense one; run in an environment with mlx (mlx[cpu] on Linux).

usage: read_mlx.py QUANTIZED DENSE

Every module is dequantized as `mlx.nn.quantize` would set it up from `config.json`: an entry of its own takes nothing from the
values above it.
"""

import json
import sys
from pathlib import Path

import mlx.core as mx

DEFAULTS = {"affine": (64, 4), "mxfp4": (32, 4), "mxfp8": (32, 8), "nvfp4": (16, 4)}


def load(place):
    """Every tensor of a checkpoint, by MLX's own reader."""
    out = {}
    for path in sorted(Path(place).glob("*.safetensors")):
        out.update(mx.load(str(path)))
    return out


def sizes(config, module):
    """Group size, bits and mode of a module."""
    entry = config.get(module)
    entry = entry if isinstance(entry, dict) else {k: config[k] for k in ("group_size", "bits", "mode") if k in config}
    mode = entry.get("mode", "affine")
    group, bits = DEFAULTS[mode]
    return {"group_size": entry.get("group_size", group), "bits": entry.get("bits", bits), "mode": mode}


def main():
    config = json.loads(Path(sys.argv[1], "config.json").read_text())
    assert config["quantization"] == config["quantization_config"], "the copy of the settings differs"
    stored, dense = load(sys.argv[1]), load(sys.argv[2])
    visited = 0
    for name in sorted(stored):
        module, _, part = name.rpartition(".")
        if part != "scales":
            continue
        visited += 1
        options = sizes(config["quantization"], module)
        weight = mx.dequantize(stored[f"{module}.weight"], stored[name], stored.get(f"{module}.biases"), **options)
        own = dense[f"{module}.weight"]
        if weight.dtype != own.dtype or weight.shape != own.shape or not bool(mx.array_equal(weight, own, equal_nan=True)):
            print(f"{module} {options}: {weight.dtype} {weight.shape} against {own.dtype} {own.shape}")
            return 1
    print(f"{visited} weights equal to MLX's, bit for bit")
    return 0 if visited else 1


if __name__ == "__main__":
    sys.exit(main())
