"""bitsandbytes: NF4 and FP4 in blocks of 64, with and without double quantization."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from common import Form, Module, Quantized, Variant, main


def quantize(module: Module, kind: str, is_double: bool) -> Quantized:
    """Through the library's own functions."""
    codes, state = quantize_4bit(module.weight, blocksize=64, quant_type=kind, compress_statistics=is_double)
    parts = [codes, *(t for t in state.as_dict(packed=True).values() if isinstance(t, torch.Tensor))]
    size = sum(part.numel() * part.element_size() for part in parts)
    return dequantize_4bit(codes, state), float(size)


def variants(form: Form, task: Any) -> Iterator[Variant]:
    """One for each of its formats."""
    if form.family == "codebook":
        kind, _, double = form.kind.partition("-")
        yield Variant("RTN, absmax", "none", partial(quantize, kind=kind, is_double=bool(double)))


if __name__ == "__main__":
    main("bitsandbytes", variants)
