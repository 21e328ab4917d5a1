"""llama.cpp's ggml, through its library: every type with and without an importance matrix."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from common import Form, Module, Quantized, Variant, main

#: Numbers of ``enum ggml_type``.
TYPES = {
    "Q4_0": 2,
    "Q4_1": 3,
    "Q5_0": 6,
    "Q5_1": 7,
    "Q8_0": 8,
    "Q2_K": 10,
    "Q3_K": 11,
    "Q4_K": 12,
    "Q5_K": 13,
    "Q6_K": 14,
    "IQ2_XS": 17,
    "IQ3_XXS": 18,
    "IQ4_NL": 20,
    "IQ3_S": 21,
    "IQ2_S": 22,
    "IQ4_XS": 23,
    "MXFP4": 39,
    "NVFP4": 40,
}
#: These need an importance matrix.
WEIGHTED_ONLY = ("IQ2_XS", "IQ2_S")


class Library:
    """``libggml-base.so``."""

    def __init__(self, path: str) -> None:
        self.c = ctypes.CDLL(path)
        pointer, size = ctypes.c_void_p, ctypes.c_int64
        self.c.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, size, size, size, pointer]
        self.c.ggml_quantize_chunk.restype = ctypes.c_size_t
        self.c.ggml_row_size.argtypes = [ctypes.c_int, ctypes.c_int64]
        self.c.ggml_row_size.restype = ctypes.c_size_t
        self.c.ggml_quantize_init.argtypes = [ctypes.c_int]

    def quantize(self, module: Module, kind: str, is_weighted: bool) -> Quantized:
        """One matrix; importances are mean squares of inputs, as ``llama-imatrix`` collects them."""
        number = TYPES[kind]
        rows, columns = module.weight.shape
        given, importance = module.weight.contiguous(), module.diagonal.float().contiguous()
        row_bytes = self.c.ggml_row_size(number, columns)
        stored = torch.empty(rows * row_bytes, dtype=torch.uint8)
        pointer = importance.data_ptr() if is_weighted else None
        self.c.ggml_quantize_init(number)
        size = self.c.ggml_quantize_chunk(number, given.data_ptr(), stored.data_ptr(), 0, rows, columns, pointer)
        assert size == stored.numel(), f"{kind}: {size} bytes, expected {stored.numel()}"
        return self.read(kind, stored, rows, columns), float(size)

    def read(self, kind: str, stored: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        """Weights of stored blocks, F32 ``[rows, columns]``."""
        row_bytes = self.c.ggml_row_size(TYPES[kind], columns)
        assert stored.dtype is torch.uint8 and stored.is_contiguous() and stored.numel() == rows * row_bytes, f"{kind}: {stored.numel()} bytes"
        back = torch.empty(rows, columns)
        read = getattr(self.c, "dequantize_row_" + kind.lower().replace("_k", "_K"))
        read.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
        read.restype = None
        for row in range(rows):
            read(stored.data_ptr() + row * row_bytes, back.data_ptr() + 4 * row * columns, columns)
        return back


def variants(form: Form, task: Any) -> Iterator[Variant]:
    """With and without importances; FP4 types do not look at them."""
    kind = form.kind if form.family == "ggml" else {"nvfp4": "NVFP4", "mxfp4": "MXFP4"}.get(form.family)
    if kind is None:
        return
    library = Library(task["ggml"])
    if kind not in WEIGHTED_ONLY:
        yield Variant(kind, "none", partial(library.quantize, kind=kind, is_weighted=False))
    if kind not in ("NVFP4", "MXFP4", "Q8_0"):
        yield Variant(f"{kind}, imatrix", "diagonal", partial(library.quantize, kind=kind, is_weighted=True))


if __name__ == "__main__":
    main("", variants)
