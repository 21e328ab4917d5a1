"""transformers: any checkpoint that the engine opens as a dense model, and packed ones where transformers knows how.

Importing this module imports torch and transformers (5 or later).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
import transformers

from . import _gguf, _gguf_config
from .audits import audit
from .checkpoint import Checkpoint, open
from .errors import MalformedError, SafequantError, UnsupportedError
from .torch import StateDict, state_dict

__all__ = ["from_packed", "from_quantized"]

#: Where configurations say how weights are quantized; a dense model has none of it.
_QUANTIZATION = ("quantization_config", "compression_config", "quantization")

#: transformers reads a switch of the process: one load at a time turns it.
_SWITCH = "HF_DEACTIVATE_ASYNC_LOAD"
_LOCK = threading.Lock()

#: What reads a weight.
_Read = Callable[[], torch.Tensor]


def from_quantized(
    path: str | os.PathLike[str] | Checkpoint,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    config: transformers.PreTrainedConfig | None = None,
    model_class: type[transformers.PreTrainedModel] | None = None,
    **kwargs: Any,
) -> Any:
    """Loads a checkpoint of any convention as a dense model.

    Weights are decoded one by one into the model that transformers builds: nothing is written, and beside the model there is one
    weight at a time (all experts of a layer where transformers stacks them). Names are converted by transformers' own rules.

    A GGUF model is loaded from its file alone (any part of one that is split), its configuration made from the metadata. It needs the
    package ``gguf``, for llama.cpp's names.

    Args:
        path: What ``safequant.open`` takes, or what it gave.
        dtype: The model's dtype. ``None``: that of the configuration, else that of the weights. Weights are dequantized to the
            dtype of their reference, and cast as transformers casts what it loads.
        device: Where the model goes; the CPU, unless torch's default device is another.
        config: The configuration, where there is no ``config.json`` and no metadata, or another one is wanted.
        model_class: The model's class, where ``architectures`` in the configuration does not name one of transformers'.
        kwargs: As ``PreTrainedModel.from_pretrained`` takes them (``attn_implementation=...``).

    Returns:
        The model, in evaluation mode.

    Raises:
        UnsupportedError: transformers does not know the architecture, or weights and model do not go together: the message names
            what is missing, what is left over and what has another shape. Of GGUF models, also: the metadata says what no configuration
            of transformers can, or ``gguf`` is not installed.
        MalformedError, StorageError: As ``safequant.open``.
    """
    checkpoint = path if isinstance(path, Checkpoint) else open(path)
    is_gguf = _gguf.is_gguf(checkpoint)
    dense = config
    if dense is None:
        dense = _gguf_config.configuration(checkpoint) if is_gguf else _dense_config(checkpoint)
    build = _class_of(dense, checkpoint) if model_class is None else model_class
    # What is turned into another layout is turned on the CPU.
    weights = state_dict(checkpoint, device="cpu" if device is None or is_gguf else device)
    chosen = dtype or getattr(dense, "dtype", None) or _dtype_of(weights)
    if device is not None:
        kwargs.setdefault("device_map", {"": torch.device(device)})
    if is_gguf:
        readers, told = _gguf.weights(weights, build, dense)
        _check(checkpoint, told)
    else:
        readers = _readers(weights, build, dense)
    lazy = _lazy(readers)
    # Of another shape is told like all the rest, by name.
    kwargs |= {"ignore_mismatched_sizes": True, "output_loading_info": True}
    load: Any = build.from_pretrained
    with _one_by_one():
        try:
            model, told = load(None, config=dense, state_dict=lazy.mapping, dtype=chosen, **kwargs)
        except Exception as error:  # noqa: BLE001 - a configuration can make transformers raise anything
            # transformers sums up what went wrong with weights; what the engine said is the better answer.
            if lazy.failures:
                raise lazy.failures[0] from error
            raise UnsupportedError(f"{checkpoint.path}: transformers cannot load it: {error}", "transformers") from error
    _check(checkpoint, told)
    model.config.name_or_path = str(checkpoint.path)
    if not is_gguf:
        _read_generation_config(checkpoint, model)
    return model


def from_packed(path: str | os.PathLike[str], *, auto_class: Any = None, **kwargs: Any) -> Any:
    """Loads a checkpoint with its weights packed, by transformers itself, where the engine's profile says that it can.

    Args:
        path: A directory in the Hugging Face layout.
        auto_class: One of transformers' ``Auto`` classes; ``AutoModelForCausalLM`` by default.
        kwargs: As its ``from_pretrained`` takes them.

    Raises:
        UnsupportedError: transformers does not load it: the message has the reasons. ``from_quantized`` loads it as a dense model.
        MalformedError, StorageError: As ``safequant.audit``.
    """
    verdict = audit(path, depth="headers", runtimes=["transformers"]).runtimes[0]
    if not verdict.loads:
        reasons = "; ".join(verdict.reasons)
        raise UnsupportedError(
            f"{os.fspath(path)}: transformers does not load it packed: {reasons}",
            "transformers",
            "safequant.transformers.from_quantized loads it as a dense model",
        )
    build = transformers.AutoModelForCausalLM if auto_class is None else auto_class
    kwargs.setdefault("dtype", "auto")
    return build.from_pretrained(os.fspath(path), **kwargs)


def _dense_config(checkpoint: Checkpoint) -> transformers.PreTrainedConfig:
    told = checkpoint.config
    model_type = told.get("model_type")
    if not isinstance(model_type, str) or model_type not in transformers.CONFIG_MAPPING:
        raise UnsupportedError(
            f"{checkpoint.path}: transformers {transformers.__version__} has no model of the type {model_type!r}",
            "transformers",
            "pass config= and model_class=",
        )
    config_class: Any = transformers.CONFIG_MAPPING[model_type]
    try:
        made: transformers.PreTrainedConfig = config_class.from_dict(_stripped(told))
    except Exception as error:  # noqa: BLE001 - whatever it raises, it cannot read this
        raise MalformedError(f"{checkpoint.path}: transformers cannot read config.json: {error}", "config") from error
    return made


def _stripped(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration without what says how weights are quantized, its sub-configurations likewise."""
    kept = {key: value for key, value in config.items() if key not in _QUANTIZATION}
    return {key: _stripped(value) if isinstance(value, dict) else value for key, value in kept.items()}


def _class_of(config: transformers.PreTrainedConfig, checkpoint: Checkpoint) -> type[transformers.PreTrainedModel]:
    names = getattr(config, "architectures", None) or []
    found = getattr(transformers, str(names[0]), None) if names else None
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise UnsupportedError(
            f"{checkpoint.path}: transformers {transformers.__version__} has no model called {names}",
            "transformers",
            "pass model_class=",
        )
    return found


def _dtype_of(weights: StateDict) -> torch.dtype:
    """The dtype of the first weight that a model can be built in."""
    for name in weights.keys():
        dtype, _ = weights.describe(name)
        if dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
            return dtype
    return torch.get_default_dtype()


class _Lazy:
    """A weight that is decoded when transformers takes ``[...]`` of it, as it does with safetensors' slices."""

    def __init__(self, read: _Read, failures: list[SafequantError]) -> None:
        self._read, self._failures = read, failures

    def __getitem__(self, index: Any) -> torch.Tensor:
        try:
            taken: torch.Tensor = self._read()[index]
        except SafequantError as error:
            self._failures.append(error)
            raise
        return taken


class _Stacks:
    """Matrices of stacks. The stack that was asked for last is kept: its experts are asked for one after the other."""

    def __init__(self, weights: StateDict) -> None:
        self._weights = weights
        self._last: tuple[str, torch.Tensor] | None = None

    def matrix(self, name: str, expert: int) -> torch.Tensor:
        if self._last is None or self._last[0] != name:
            self._last = None
            self._last = name, self._weights[name]
        # A copy: what is handed out must not keep the whole stack alive.
        return self._last[1][expert].clone()


class _LazyWeights(NamedTuple):
    """Weights under transformers' names, and what went wrong when they were read."""

    mapping: dict[str, _Lazy]
    failures: list[SafequantError]


def _lazy(readers: Mapping[str, _Read]) -> _LazyWeights:
    """All weights, none of them read."""
    failures: list[SafequantError] = []
    return _LazyWeights({name: _Lazy(read, failures) for name, read in readers.items()}, failures)


def _readers(weights: StateDict, build: type[transformers.PreTrainedModel], config: Any) -> dict[str, _Read]:
    """What reads each weight, under names of transformers.

    Stacks of quantized matrices are ``[experts, out_features, in_features]`` for the engine; some of transformers' models hold them
    transposed, and say so (``is_transposed``). Dense stacks lie in the file as the model wants them.
    """
    modules = weights.checkpoint.modules.values()
    stacks = {module.weight for module in modules if len(module.shape) > 2}
    transposed = bool(stacks) and _holds_transposed(build, config)
    readers: dict[str, _Read] = {}
    split = _Stacks(weights)

    def turned(name: str) -> torch.Tensor:
        return weights[name].transpose(-1, -2).contiguous()

    for name in weights.keys():
        parent, mlx, projection = name.partition(".switch_mlp.")
        shape = weights.describe(name)[1] if mlx else ()
        # A header may claim any number of matrices that have no elements.
        if len(shape) == 3 and 0 not in shape:
            for expert in range(shape[0]):
                matrix = f"{parent}.experts.{expert}.{_of_expert(parent, projection)}"
                readers[matrix] = partial(split.matrix, name, expert)
        else:
            readers[name] = partial(turned if transposed and name in stacks else weights.__getitem__, name)
    return readers


def _of_expert(parent: str, projection: str) -> str:
    """The name within an expert, as it was before mlx_lm stacked it (``sanitize`` in its mixtral.py and qwen3_moe.py)."""
    if not parent.endswith("block_sparse_moe"):
        return projection
    word, _, ending = projection.partition(".")
    return f"{ {'gate_proj': 'w1', 'down_proj': 'w2', 'up_proj': 'w3'}.get(word, word)}.{ending}"


def _holds_transposed(build: Any, config: Any) -> bool:
    try:
        with torch.device("meta"):
            skeleton = build(config)
    except Exception:  # noqa: BLE001 - loading will say what is the matter with the configuration
        return False
    return any(getattr(module, "is_transposed", False) for module in skeleton.modules())


@contextmanager
def _one_by_one() -> Iterator[None]:
    """Keeps transformers from loading on threads of its own, which hold weights that nobody has asked for yet: decoding one weight
    takes all cores already."""
    with _LOCK:
        before = os.environ.get(_SWITCH)
        os.environ[_SWITCH] = "1"
        try:
            yield
        finally:
            if before is None:
                del os.environ[_SWITCH]
            else:
                os.environ[_SWITCH] = before


def _check(checkpoint: Checkpoint, told: dict[str, Any]) -> None:
    """That every weight found its place, and every place its weight."""
    kinds = {
        "missing_keys": "missing from the checkpoint",
        "unexpected_keys": "unknown to the model",
        "mismatched_keys": "of another shape",
        "error_msgs": "not loaded",
    }
    faults = []
    for kind, words in kinds.items():
        names = sorted(_named(entry) for entry in told.get(kind) or [])
        if names:
            more = f" and {len(names) - 8} more" if len(names) > 8 else ""
            faults.append(f"{words}: {', '.join(names[:8])}{more}")
    if faults:
        raise UnsupportedError(f"{checkpoint.path}: weights and model do not go together: {'; '.join(faults)}", "transformers")


def _named(entry: Any) -> str:
    """A name; with both shapes where those differ."""
    if isinstance(entry, tuple) and len(entry) == 3:
        name, found, wanted = entry
        return f"{name} ({list(found)} for {list(wanted)})"
    return str(entry)


def _read_generation_config(checkpoint: Checkpoint, model: Any) -> None:
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    if model.can_generate() and (folder / "generation_config.json").is_file():
        model.generation_config = transformers.GenerationConfig.from_pretrained(os.fspath(folder))
