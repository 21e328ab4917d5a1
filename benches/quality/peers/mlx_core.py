"""MLX: affine groups (float scale and bias), mxfp4 and nvfp4, by ``mx.quantize`` on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np
import torch
from common import Form, Module, Quantized, Variant, main


def quantize(module: Module, bits: int, group: int, mode: str) -> Quantized:
    """Scales and biases of affine groups have the dtype of the weight: BF16."""
    given = mx.array(module.weight.numpy()).astype(mx.bfloat16)
    parts = mx.quantize(given, group_size=group, bits=bits, mode=mode)
    back = mx.dequantize(*(wide(part) for part in parts), group_size=group, bits=bits, mode=mode, dtype=mx.float32)
    size = sum(part.nbytes for part in parts)
    return torch.from_numpy(np.array(back.astype(mx.float32))), float(size)


def wide(part: mx.array) -> mx.array:
    """Stored values in F32, so that dequantizing does not round to BF16 once more."""
    return part.astype(mx.float32) if part.dtype == mx.bfloat16 else part


def variants(form: Form, task: Any) -> Iterator[Variant]:
    """One for each format that it has."""
    if form.family == "float zero":
        yield Variant("affine", "none", partial(quantize, bits=form.bits, group=form.group, mode="affine"))
    if form.family in ("nvfp4", "mxfp4"):
        yield Variant(form.family, "none", partial(quantize, bits=4, group=form.group, mode=form.family))


if __name__ == "__main__":
    main("mlx", variants)
