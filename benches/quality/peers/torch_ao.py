"""torchao: MXFP4 with its ways to choose an exponent, NVFP4 with its scale of a tensor, symmetric integers with its HQQ for scales.

Its prototype of GPTQ is left out: natural order with scales from minimum and maximum, which llm-compressor and GPTQModel have, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from common import Form, Module, Quantized, Variant, main, packed_bytes
from torchao.prototype.mx_formats.mx_tensor import MXTensor, ScaleCalculationMode
from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, per_tensor_amax_to_scale
from torchao.quantization.quant_primitives import _choose_qparams_and_quantize_scale_only_hqq as scale_only_hqq


def mxfp4(module: Module, mode: str) -> Quantized:
    """E2M1 with exponents per 32."""
    chosen = ScaleCalculationMode[mode]
    made = MXTensor.to_mx(module.weight, torch.float4_e2m1fn_x2, 32, scaling_mode=chosen)
    return made.dequantize(torch.float32), packed_bytes(module.weight, 4) + module.weight.numel() / 32


def nvfp4(module: Module) -> Quantized:
    """E2M1 with E4M3 scales per 16 and an F32 scale of the tensor."""
    whole = per_tensor_amax_to_scale(module.weight.abs().max())
    made = NVFP4Tensor.to_nvfp4(module.weight, per_tensor_scale=whole)
    return made.dequantize(torch.float32), packed_bytes(module.weight, 4) + module.weight.numel() / 16 + 4


def integers(module: Module, form: Form) -> Quantized:
    """Symmetric codes; scales in BF16, as a BF16 checkpoint has them."""
    half = 2 ** (form.bits - 1)
    codes, scale = scale_only_hqq(module.weight, [1, form.group], -half, half - 1)
    wide = scale.to(torch.bfloat16).float().repeat_interleave(form.group, dim=1)
    return codes * wide, packed_bytes(module.weight, form.bits) + 2 * scale.numel()


def variants(form: Form, task: Any) -> Iterator[Variant]:
    """FP4 formats and symmetric integers."""
    if form.family == "integer" and form.symmetric:
        yield Variant("HQQ, scale only", "none", partial(integers, form=form))
    if form.family == "nvfp4":
        yield Variant("nvfp4", "none", nvfp4)
    if form.family == "mxfp4":
        for mode in ("FLOOR", "RCEIL", "CEIL", "EVEN"):
            yield Variant(f"mxfp4 {mode.lower()}", "none", partial(mxfp4, mode=mode))


if __name__ == "__main__":
    main("torchao", variants)
