"""llm-compressor: its observers with rounding to nearest, and its GPTQ; with minimum and maximum it is compressed-tensors' own way.

The file has an underscore in its name so that it does not shadow the library. Weights are observed in F32, which is kinder than the BF16 of a checkpoint; scales are rounded to BF16 as they are stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from common import Form, Module, Quantized, Variant, main, packed_bytes
from compressed_tensors.quantization import QuantizationArgs, preset_name_to_scheme
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight
from llmcompressor.observers import Observer

FP8: dict[str, dict[str, Any]] = {"channel": {"strategy": "channel"}, "tensor": {"strategy": "tensor"}, "block": {"strategy": "block", "block_structure": [128, 128]}}


def arguments(form: Form) -> QuantizationArgs:
    """The format in its words."""
    if form.family == "integer":
        return QuantizationArgs(num_bits=form.bits, type="int", symmetric=form.symmetric, strategy="group", group_size=form.group)
    if form.family == "fp8":
        return QuantizationArgs(num_bits=8, type="float", symmetric=True, **FP8[form.kind])
    preset = {"nvfp4": "NVFP4A16", "mxfp4": "MXFP4A16"}[form.family]
    return preset_name_to_scheme(preset, ["Linear"]).weights


def parameters(module: Module, args: QuantizationArgs, observer: str) -> dict[str, Any]:
    """Scales and zero points that an observer chooses, rounded as they are stored."""
    linear = torch.nn.Linear(module.weight.shape[1], module.weight.shape[0], bias=False)
    linear.weight.data = module.weight
    watching = Observer.load_from_registry(observer, base_name="weight", args=args.model_copy(update={"observer": observer}))
    if "imatrix" in observer:
        watching._imatrix_sum = module.diagonal * module.tokens
        watching._imatrix_count = torch.tensor(module.tokens)
    found: dict[str, Any] = watching(linear.weight.data).get_qparams()
    is_power = args.scale_dtype is not None
    found["scale"] = found["scale"].float() if is_power else found["scale"].to(torch.bfloat16).float()
    return found


def stored(module: Module, args: QuantizationArgs, found: dict[str, Any]) -> float:
    """Codes, scales (BF16, or a byte in FP4 formats), packed zero points, and NVFP4's scale of the tensor."""
    scale_bytes = 2 if args.scale_dtype is None else 1
    zeros = 0 if args.symmetric else found["zero_point"].numel() * args.num_bits / 8
    whole = 4 if found["global_scale"] is not None else 0
    scales: float = found["scale"].numel() * scale_bytes
    return packed_bytes(module.weight, args.num_bits) + scales + zeros + whole


def nearest(module: Module, args: QuantizationArgs, observer: str) -> Quantized:
    """Rounding to nearest with an observer's scales."""
    found = parameters(module, args, observer)
    weight = fake_quantize(module.weight, found["scale"], found["zero_point"], args, global_scale=found["global_scale"])
    return weight, stored(module, args, found)


def gptq(module: Module, args: QuantizationArgs, observer: str, order: str | None) -> Quantized:
    """GPTQ as its modifier calls it: damping 0.01, blocks of 128; its Hessian has the factor 2 of the papers."""
    ordered = args.model_copy(update={"actorder": order})
    found = parameters(module, args, observer)
    whole = found["global_scale"]
    weight, _, fallback = quantize_weight(
        weights=module.weight[None].clone(),
        hessians=2 * module.hessian[None],
        scale=found["scale"][None],
        zero_point=found["zero_point"][None],
        global_scale=None if whole is None else whole.reshape(-1)[:1],
        quant_args=QuantizationArgs.model_validate(ordered.model_dump()),
    )
    if bool(fallback.any()):
        raise ValueError(f"{module.name}: GPTQ fell back to rounding")
    return weight[0], stored(module, args, found)


def variants(form: Form, task: Any) -> Iterator[Variant]:
    """Observers data-free and with the diagonal, GPTQ with each of them."""
    if form.family not in ("integer", "fp8", "nvfp4", "mxfp4"):
        return
    args = arguments(form)
    is_grouped = form.family != "fp8" or form.kind == "channel"
    observers = {"min-max": "memoryless_minmax", "MSE observer": "memoryless_mse"}
    weighted = {"imatrix observer": "imatrix_mse"} if is_grouped else {}
    if form.family == "nvfp4":
        observers = {"expanded MSE observer": "nvfp4_expanded_mse"}
        weighted = {"expanded imatrix observer": "nvfp4_expanded_imatrix"}
    if form.family == "integer":
        del observers["min-max"]  # above the others in every format of integers
    for name, observer in observers.items():
        yield Variant("RTN min-max" if name == "min-max" else name, "none", partial(nearest, args=args, observer=observer))
    for name, observer in weighted.items():
        yield Variant(name, "diagonal", partial(nearest, args=args, observer=observer))
    for name, observer in (observers | weighted).items():
        # In natural order it is worse wherever it has the choice.
        order = "static" if is_grouped else None
        yield Variant(f"GPTQ act-order, {name}" if order else f"GPTQ, {name}", "full", partial(gptq, args=args, observer=observer, order=order))


if __name__ == "__main__":
    main("llmcompressor", variants)
