"""qwantize: the scale of each FP4 block with the least squared error, or the least error on the block's part of ``H``."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from common import Form, Module, Quantized, Variant, main, packed_bytes
from qwantize import mxfp4_optimal, mxfp4_optimal_hessian, nvfp4_optimal, nvfp4_optimal_hessian

METHODS = {
    "nvfp4": {"none": nvfp4_optimal, "full": nvfp4_optimal_hessian},
    "mxfp4": {"none": mxfp4_optimal, "full": mxfp4_optimal_hessian},
}


def quantize(module: Module, form: Form, statistics: str) -> Quantized:
    """NVFP4's scale of the tensor is set so that the largest block's scale is E4M3's largest, as other tools do.

    What needs inputs gets a square root of ``H`` as inputs, which has the same products.
    """
    whole = float(module.weight.abs().max()) / (6 * 448) if form.family == "nvfp4" else 1.0
    blocks = (module.weight / whole).reshape(module.weight.shape[0], -1, form.group)
    options = {} if statistics == "none" else {"X": root(module.hessian)}
    weight = METHODS[form.family][statistics](blocks, dim=-1, return_dequant=True, **options)[-1]
    stored = packed_bytes(module.weight, 4) + module.weight.numel() / form.group + (4 if form.family == "nvfp4" else 0)
    return weight.reshape(module.weight.shape) * whole, stored


def root(hessian: torch.Tensor) -> torch.Tensor:
    """``X`` with ``X^T X = H``."""
    values, vectors = torch.linalg.eigh(hessian.double())
    found: torch.Tensor = (vectors * values.clamp(min=0).sqrt()).T.float().contiguous()
    return found


def variants(form: Form, task: Any) -> Iterator[Variant]:
    """FP4 formats, with and without ``H``."""
    if form.family in METHODS:
        yield Variant("SSE-optimal scale", "none", partial(quantize, form=form, statistics="none"))
        yield Variant("Hessian-optimal scale", "full", partial(quantize, form=form, statistics="full"))


if __name__ == "__main__":
    main("qwantize", variants)
