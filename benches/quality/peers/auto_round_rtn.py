"""AutoRound without tuning (``iters=0``): its search for scales, with and without an importance matrix.

It writes ggml's types, too, with scales of its own: for Q4_0, Q5_0 and Q8_0 it tries scales of both signs, and K-quants are weighted
by importances alone, where ggml weights the square of the weight as well. The blocks are packed by its writer of GGUF and read back by
ggml; but for Q5_K, whose low nibbles that writer packs with the fifth bit still in them (0.15.1): there the weights are those that its
search returns, with scales not yet rounded to F16. Q4_1 and Q5_1 have no search there, nor have asymmetric integers, whose minimum and
maximum are above llm-compressor's; IQ types are not written.

Its tuning by signed gradients is not run here: layer by layer it stays above GPTQ (0.60 against 0.33 percent at W4 g128 sym, in an
earlier measurement) and takes minutes for each format; on whole blocks, where it is at its best, it needs the model and not ``H``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from auto_round.data_type.gguf import quant_tensor_asym_float_zp_rtn, quant_tensor_gguf_asym_dq, quant_tensor_gguf_sym_dq
from auto_round.data_type.int import quant_tensor_opt_rtn_sym
from auto_round.data_type.mxfp import quant_mx_opt_rtn
from auto_round.data_type.nvfp import opt_rtn_fast_nvfp4
from auto_round.export.export_to_gguf.packing import ggml_quant
from common import Form, Module, Quantized, Variant, main, packed_bytes
from ggml import Library

#: Bits of ggml's types in blocks of 32 with a scale, in those with a minimum, and in super-blocks with and without minima.
PLAIN = {"Q4_0": 4, "Q5_0": 5, "Q8_0": 8}
WITH_MINIMUM = {"Q4_1": 4, "Q5_1": 5}
SUPER = {"Q3_K": 3, "Q6_K": 6}
SUPER_WITH_MINIMA = {"Q2_K": 2, "Q4_K": 4, "Q5_K": 5}


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


def searched(weight: torch.Tensor, kind: str, importance: torch.Tensor | None) -> tuple[torch.Tensor, dict[str, Any]]:
    """Weights that its search for ggml's types returns, and scales and minima as its writer of GGUF takes them."""
    if kind in PLAIN:
        back, scale, _ = quant_tensor_opt_rtn_sym(weight, bits=PLAIN[kind], group_size=32, imatrix=importance)
        return back, {"scale": scale}
    if kind in WITH_MINIMUM:
        back, scale, zero = quant_tensor_asym_float_zp_rtn(weight, bits=WITH_MINIMUM[kind], group_size=32)
        return back, {"scale": scale, "zp": zero}
    if kind in SUPER:
        back, scales, _ = quant_tensor_gguf_sym_dq(weight, bits=SUPER[kind], imatrix=importance)
        return back, scales
    back, scales, minima = quant_tensor_gguf_asym_dq(weight, bits=SUPER_WITH_MINIMA[kind], imatrix=importance)
    return back, {**scales, **minima}


def blocks(module: Module, library: Library, kind: str, is_weighted: bool) -> Quantized:
    """One of ggml's types. AutoRound's functions write to what they are given, hence the copies."""
    importance = module.diagonal if is_weighted else None
    back, scales = searched(module.weight.clone(), kind, importance)
    parts = {name: part.float() for name, part in scales.items()}
    if importance is not None:
        parts["imatrix"] = importance
    stored = torch.from_numpy(ggml_quant(module.weight.clone(), kind.lower(), device="cpu", **parts)).reshape(-1).contiguous()
    weight = back if kind == "Q5_K" else library.read(kind, stored, *module.weight.shape)
    return weight, float(stored.numel())


def function_of(form: Form, task: Any) -> Callable[..., Quantized] | None:
    """What quantizes to a format; nothing where it has no search."""
    if form.family == "ggml" and form.kind in PLAIN | WITH_MINIMUM | SUPER | SUPER_WITH_MINIMA:
        if task["ggml"] is None:
            print(f"SKIPPED: AutoRound's {form.name}: no --ggml to read it back", file=sys.stderr)
            return None
        return partial(blocks, library=Library(task["ggml"]), kind=form.kind)
    if form.family == "integer" and form.symmetric:
        return partial(integers, form=form)
    return partial(floats, form=form) if form.family in ("nvfp4", "mxfp4") else None


def variants(form: Form, task: Any) -> Iterator[Variant]:
    """Symmetric integers, FP4 and ggml's types, each with and without importances where they are looked at."""
    function = function_of(form, task)
    if function is None:
        return
    yield Variant("iters=0", "none", partial(function, is_weighted=False))
    if form.kind not in WITH_MINIMUM:
        yield Variant("iters=0, imatrix", "diagonal", partial(function, is_weighted=True))


if __name__ == "__main__":
    main("auto-round", variants)
