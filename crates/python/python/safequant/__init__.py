"""A quantization-aware storage engine over safetensors.

    import safequant

    checkpoint = safequant.open("model-awq")
    module = checkpoint["model.layers.0.mlp.up_proj"]        # scheme, shape, bits, parts
    weight = module.dequantize()                             # the reference's own bits; numpy.asarray, torch.from_dlpack
    share = module.slice(rank=1, world=4)                    # a rank's share, still packed

    safequant.quantize("model", "model-w4", scheme="W4A16")  # whole, or not at all
    safequant.audit("model-w4", runtimes=["vllm"])           # is it whole, will it load

``safequant.torch``, ``safequant.transformers``, ``safequant.vllm`` and ``safequant.ray`` are imported by name, and need the
libraries that they are named for. NumPy and ml_dtypes are all that this module needs.
"""

from __future__ import annotations

from typing import Any

from ._native import registries as _registries
from .array import Array
from .audits import AuditReport, DiffReport, Finding, RuntimeVerdict, audit, diff, explain, tp_plan
from .calibrate import calibrate
from .checkpoint import Checkpoint, Dense, DenseView, Module, Part, Slice, open
from .errors import (
    LimitError,
    MalformedError,
    MissingError,
    RefusedError,
    SafequantError,
    StorageError,
    UnsupportedError,
    UsageError,
)
from .imatrix import read_imatrix, write_imatrix
from .jobs import (
    Event,
    ModuleSummary,
    Plan,
    PlannedModule,
    Request,
    Summary,
    convert,
    convert_request,
    dequantize,
    dequantize_request,
    plan,
    quantize,
    quantize_request,
    refine,
    refine_request,
    run,
)
from .statistics import ModuleStatistics, Statistics

__all__ = [
    "Array",
    "AuditReport",
    "Checkpoint",
    "Dense",
    "DenseView",
    "DiffReport",
    "Event",
    "Finding",
    "LimitError",
    "MalformedError",
    "MissingError",
    "Module",
    "ModuleStatistics",
    "ModuleSummary",
    "Part",
    "Plan",
    "PlannedModule",
    "RefusedError",
    "Request",
    "RuntimeVerdict",
    "SafequantError",
    "Slice",
    "Statistics",
    "StorageError",
    "Summary",
    "UnsupportedError",
    "UsageError",
    "audit",
    "calibrate",
    "convert",
    "convert_request",
    "dequantize",
    "dequantize_request",
    "diff",
    "explain",
    "open",
    "plan",
    "quantize",
    "quantize_request",
    "read_imatrix",
    "refine",
    "refine_request",
    "registries",
    "run",
    "tp_plan",
    "write_imatrix",
]


def registries() -> dict[str, Any]:
    """What there is: names of ``dtypes``, ``conventions``, ``written_conventions``, ``schemes``, ``methods``, ``rules`` and
    ``runtimes``, and the engine's ``version``."""
    return _registries()


__version__: str = registries()["version"]
