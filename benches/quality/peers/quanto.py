"""optimum-quanto: groups with a scale and a shift, from its two optimizers."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from common import Form, Module, Quantized, Variant, main, packed_bytes
from optimum.quanto import HqqOptimizer, MaxOptimizer, qint2, qint4
from optimum.quanto.tensor import quantize_weight


def quantize(module: Module, bits: int, group: int, optimizer: type) -> Quantized:
    """Scale and shift in BF16, as a BF16 checkpoint has them."""
    kind = {2: qint2, 4: qint4}[bits]
    scale, shift = optimizer()(module.weight, kind, 0, group)
    scale, shift = (part.to(torch.bfloat16).to(torch.float32) for part in (scale, shift))
    made = quantize_weight(module.weight, kind, 0, scale, shift, group_size=group, optimized=False)
    return made.dequantize(), packed_bytes(module.weight, bits) + 2 * (scale.numel() + shift.numel())


def variants(form: Form, task: Any) -> Iterator[Variant]:
    """Float zeros of 2 and 4 bits."""
    if form.family == "float zero" and form.bits in (2, 4):
        for name, optimizer in (("MaxOptimizer", MaxOptimizer), ("HqqOptimizer", HqqOptimizer)):
            yield Variant(name, "none", partial(quantize, bits=form.bits, group=form.group, optimizer=optimizer))


if __name__ == "__main__":
    main("optimum-quanto", variants)
