"""GPTQModel: its GPTQ in the orders that it has, with its MSE search for scales.

The file has an underscore in its name so that it does not shadow the library.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from common import Form, Module, Quantized, Variant, main, packed_bytes
from gptqmodel.quantization import QuantizeConfig
from gptqmodel.quantization.gptq import GPTQ

#: Orders and grids with which it is at its best; without its search for scales it is worse by a tenth to a half. The last stores ``g_idx``.
WAYS: dict[str, dict[str, Any]] = {
    "GPTQ desc_act static, mse=2.4": {"desc_act": True, "act_group_aware": False, "static_groups": True, "mse": 2.4},
    "GPTQ group-aware, mse=2.4": {"desc_act": False, "act_group_aware": True, "mse": 2.4},
    "GPTQ desc_act, g_idx": {"desc_act": True, "act_group_aware": False, "static_groups": False},
}


def quantize(module: Module, form: Form, way: dict[str, Any]) -> Quantized:
    """One layer; the sums of its Hessian are put in place of those of a run."""
    linear = torch.nn.Linear(module.weight.shape[1], module.weight.shape[0], bias=False)
    linear.weight.data = module.weight
    config = QuantizeConfig(bits=form.bits, group_size=form.group, sym=form.symmetric, offload_to_disk=False, **way)
    config.damp_percent = config.damp_percent or 0.05
    worker = GPTQ(linear, config)
    worker.quantizer.configure(perchannel=True)
    worker.fallback = None
    worker.H = 2 * module.hessian
    worker.nsamples = worker._hessian_total_samples = module.tokens
    worker._hessian_dirty = False
    weight, scale, zero, g_idx, *_ = worker.quantize()
    in_place = bool((g_idx == torch.arange(module.weight.shape[1]) // form.group).all())
    zeros = 0 if form.symmetric else zero.numel() * form.bits / 8
    stored = packed_bytes(module.weight, form.bits) + 2 * scale.numel() + zeros + (0 if in_place else 4 * g_idx.numel())
    return as_stored(weight, scale, zero, g_idx.long(), module), stored


def as_stored(weight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, group: torch.Tensor, module: Module) -> torch.Tensor:
    """The weights that its files hold: the codes, times scales rounded to F16. Asserts that they are codes of their groups."""
    codes = weight / scale[:, group] + zero[:, group]
    off = float((codes - codes.round()).abs().max())
    if off > 0.05:
        raise ValueError(f"{module.name}: weights are not on the grid of their groups (off by {off:.2f})")
    return (codes.round() - zero[:, group]) * scale.half().float()[:, group]


def variants(form: Form, task: Any) -> Iterator[Variant]:
    """All of ``WAYS`` for integers."""
    if form.family == "integer":
        for name, way in WAYS.items():
            yield Variant(name, "full", partial(quantize, form=form, way=way), "g_idx" not in name)


if __name__ == "__main__":
    main("gptqmodel", variants)
