"""HQQ: its half-quadratic solver, groups along input features, scale and zero point in half precision."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from common import Form, Module, Quantized, Variant, main, packed_bytes
from hqq.core.quantize import Quantizer


def quantize(module: Module, bits: int, group: int) -> Quantized:
    """Float scales and zero points, which files hold in half precision."""
    codes, meta = Quantizer.quantize(module.weight, nbits=bits, channel_wise=True, group_size=group, optimize=True, axis=1, device="cpu", compute_dtype=torch.float32)
    for part in ("scale", "zero"):
        meta[part] = meta[part].to(torch.float16).to(torch.float32)
    meta["compute_dtype"] = torch.float32
    stored = 2 * (meta["scale"].numel() + meta["zero"].numel())
    return Quantizer.dequantize(codes, meta), packed_bytes(module.weight, bits) + stored


def variants(form: Form, task: Any) -> Iterator[Variant]:
    """Float zeros."""
    if form.family == "float zero":
        yield Variant("HQQ", "none", partial(quantize, bits=form.bits, group=form.group))


if __name__ == "__main__":
    main("hqq", variants)
