"""AutoRound without tuning (``iters=0``): its search for scales, with and without an importance matrix.

Its tuning by signed gradients is not run here: layer by layer it stays above GPTQ (0.60 against 0.33 percent at W4 g128 sym, in an
earlier measurement) and takes minutes for each format; on whole blocks, where it is at its best, it needs the model and not ``H``.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from auto_round.data_type.int import quant_tensor_opt_rtn_sym
from auto_round.data_type.mxfp import quant_mx_opt_rtn
from auto_round.data_type.nvfp import opt_rtn_fast_nvfp4
from common import Form, Module, Quantized, Variant, main, packed_bytes


def integers(module: Module, form: Form, is_weighted: bool) -> Quantized:
    """Symmetric codes with scales of either sign, which files hold in F16."""
    importance = module.diagonal if is_weighted else None
    weight, scale, _ = quant_tensor_opt_rtn_sym(module.weight.clone(), bits=form.bits, group_size=form.group, imatrix=importance)
    grouped = weight.reshape(-1, form.group)
    codes = (grouped / scale.reshape(-1, 1)).round()
    stored = packed_bytes(module.weight, form.bits) + 2 * scale.numel()
    return codes * scale.reshape(-1, 1).half().float(), stored


def floats(module: Module, form: Form, is_weighted: bool) -> Quantized:
    """FP4 blocks."""
    options = {"imatrix": module.diagonal} if is_weighted else {}
    if form.family == "mxfp4":
        weight, *_ = quant_mx_opt_rtn(module.weight.clone(), bits=4, group_size=32, **options)
        return weight, packed_bytes(module.weight, 4) + module.weight.numel() / 32
    weight, *_ = opt_rtn_fast_nvfp4(module.weight.clone(), bits=4, group_size=16, **options)
    return weight, packed_bytes(module.weight, 4) + module.weight.numel() / 16 + 4


def variants(form: Form, task: Any) -> Iterator[Variant]:
    """Symmetric integers and FP4."""
    function = {"integer": integers, "nvfp4": floats, "mxfp4": floats}.get(form.family)
    if function is not None and form.symmetric:
        yield Variant("iters=0", "none", partial(function, form=form, is_weighted=False))
        yield Variant("iters=0, imatrix", "diagonal", partial(function, form=form, is_weighted=True))


if __name__ == "__main__":
    main("auto-round", variants)
