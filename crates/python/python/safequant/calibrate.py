"""Calibration of torch models: ``safequant.calibrate`` (specs/calibration.md). Needs torch, when it is called."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .errors import UsageError
from .statistics import Detail, ModuleStatistics, Statistics

if TYPE_CHECKING:
    import torch

__all__ = ["OnBlock", "Progress", "calibrate"]

#: Called with what is being worked on (a block's name), how many steps are done, and how many there are.
Progress = Callable[[str, int, int], None]

#: Called when a block is done, with its name, the block and its statistics; it may replace weights in place.
OnBlock = Callable[[str, "torch.nn.Module", Mapping[str, ModuleStatistics]], None]


def calibrate(
    model: torch.nn.Module,
    batches: Iterable[Any],
    *,
    modules: Sequence[str] | Callable[[str], bool] | None = None,
    hessian: Detail = "full",
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    blocks: str | None = None,
    sequential: bool = False,
    on_block: OnBlock | None = None,
    path: str | os.PathLike[str] | None = None,
    metadata: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Statistics:
    """Runs a model over text and keeps what its linear layers saw: ``X^T X / n``, means, token counts.

    The model is worked off block by block, so that the statistics of one block (one decoder layer) are in memory at a time, beside
    the states between blocks. Linear layers are ``torch.nn.Linear``, transformers' ``Conv1D``, and stacks of experts of transformers,
    whose members are modules of their own. Modules are named as in the checkpoint that ``save_pretrained`` writes.

    Args:
        model: Any torch model. It is put into evaluation mode meanwhile, without caches, and otherwise left as it was.
        batches: What the model is called with, again and again: mappings (keyword arguments: ``input_ids``, ``attention_mask``),
            tuples (arguments) or tensors. Where ``attention_mask`` ([batch, tokens]) is 0, a token is padding and not counted. All
            batches are kept in memory.
        modules: Which layers: names or patterns (``fnmatch``) of modules, or a function of a name. ``None``: all linear layers
            inside of the blocks; those outside of them (``lm_head``) must be named.
        hessian: ``"full"`` or ``"diagonal"``.
        dtype: ``torch.float32`` (the default) or ``torch.float64``: what ``X^T X`` is summed in. Vectors are always summed in F64.
        device: Where blocks run, each moved there for its turn and back. ``None``: where they are.
        blocks: The name of the list of blocks (``"model.layers"``). ``None``: the ``ModuleList`` with the most parameters.
            ``""``: none, the model runs as a whole.
        sequential: Later blocks see what earlier ones put out after ``on_block`` has changed them. Needs ``on_block``.
        on_block: Called after each block. Without ``sequential`` its changes do not reach later statistics.
        path: A file that statistics are written to as they come, instead of being kept; the result then reads from it.
        metadata: Further keys and values for the file's metadata; ``model_digest`` given here is not computed.
        progress: Called after each batch of each block.

    Returns:
        The statistics, by module.

    Raises:
        UsageError: Options contradict each other, a name matches nothing, or the model does what cannot be followed (a block
            that runs twice in one pass, padding whose rows are not to be told from others).
        MalformedError: Inputs that are not finite, with the module's name.
        ImportError: torch is not there.

    Example:
        >>> statistics = safequant.calibrate(model, batches, path="statistics.safetensors")      # doctest: +SKIP
        >>> statistics["model.layers.0.self_attn.q_proj"].hessian.shape                          # doctest: +SKIP
        (4096, 4096)
    """
    import torch

    from ._calibrating import Calibrator, Options

    if hessian not in ("full", "diagonal"):
        raise UsageError(f"hessian: expected 'full' or 'diagonal', found {hessian!r}")
    dtype = torch.float32 if dtype is None else dtype
    if dtype not in (torch.float32, torch.float64):
        raise UsageError(f"dtype: expected torch.float32 or torch.float64, found {dtype}")
    if sequential and on_block is None:
        raise UsageError("sequential needs on_block: without it no block changes")
    options = Options(
        modules=modules,
        hessian=hessian,
        dtype=dtype,
        device=None if device is None else torch.device(device),
        blocks=blocks,
        sequential=sequential,
        on_block=on_block,
        path=None if path is None else os.fspath(path),
        metadata=dict(metadata or {}),
        progress=progress,
    )
    return Calibrator(model, batches, options).run()
