"""vLLM: weights as its loaders hand them on, and a loader that reads any convention as a dense model.

Importing this module imports torch, but not vLLM; ``register`` does. Written against vllm-project/vllm@v0.31.0
(``vllm/model_executor/model_loader/base_loader.py``): a loader has ``download_model(model_config)`` and
``load_weights(model, model_config)``, and ``register_model_loader(name)`` makes it a ``load_format``.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any

import torch

from .checkpoint import Checkpoint
from .errors import UnsupportedError
from .torch import state_dict

__all__ = ["dense_overrides", "make_loader", "register", "weights_iterator"]


def weights_iterator(
    path: str | os.PathLike[str] | Checkpoint,
    *,
    as_dtype: torch.dtype | None = None,
    packed: bool = False,
) -> Generator[tuple[str, torch.Tensor], None, None]:
    """Names and whole tensors, one by one, as vLLM's ``weight_utils.safetensors_weights_iterator`` gives them.

    Tensors are whole on every rank: vLLM's parameters cut them (``weight_loader``). Each lives as long as the caller keeps it.

    Args:
        path: What ``safequant.open`` takes, or what it gave.
        as_dtype: As ``safequant.torch.state_dict`` takes it.
        packed: The stored tensors, for a model that vLLM builds packed.

    Raises:
        MalformedError, UnsupportedError, StorageError, UsageError: As ``safequant.torch.state_dict``, at the first tensor.
    """
    weights = state_dict(path, packed=True) if packed else state_dict(path, as_dtype=as_dtype)
    yield from weights


def dense_overrides(config: Any) -> Any:
    """The model's configuration without what says that it is quantized: ``LLM(..., hf_overrides=dense_overrides)``.

    vLLM builds packed layers where a configuration asks for them, and this loader brings dense weights.
    """
    for name in ("quantization_config", "compression_config", "quantization"):
        if hasattr(config, name):
            delattr(config, name)
    return config


def make_loader(base: type[Any]) -> type[Any]:
    """The loader's class, on vLLM's ``BaseModelLoader`` (or anything with its interface)."""

    class SafequantLoader(base):  # type: ignore[misc]
        """Decodes a local checkpoint of any convention into a dense model, tensor by tensor."""

        def download_model(self, model_config: Any) -> None:
            """Checks that there is something to load; nothing is downloaded.

            Raises:
                UnsupportedError: The model is no local path.
            """
            if not os.path.exists(model_config.model):
                raise UnsupportedError(f"{model_config.model} is no local path: download it first", "vllm")

        def load_weights(self, model: Any, model_config: Any) -> None:
            """Hands every weight to the model.

            Raises:
                UnsupportedError: A parameter of the model got no weight.
                SafequantError: As ``weights_iterator``.
            """
            self.download_model(model_config)
            loaded = model.load_weights(weights_iterator(model_config.model, as_dtype=_computed(model_config.dtype)))
            # Models that keep count say which parameters they filled.
            missing = set() if loaded is None else {name for name, _ in model.named_parameters()} - set(loaded)
            if missing:
                names = ", ".join(sorted(missing)[:8])
                raise UnsupportedError(f"{model_config.model}: {len(missing)} parameters got no weight: {names}", "vllm")

    return SafequantLoader


def register(name: str = "safequant") -> type[Any]:
    """Makes the loader a ``load_format`` of vLLM's: ``LLM(path, load_format="safequant", hf_overrides=dense_overrides)``.

    Raises:
        ImportError: vLLM is not installed.
    """
    from vllm.model_executor.model_loader import (  # type: ignore[import-not-found,unused-ignore]
        BaseModelLoader,
        register_model_loader,
    )

    registered: type[Any] = register_model_loader(name)(make_loader(BaseModelLoader))
    return registered


def _computed(dtype: Any) -> torch.dtype | None:
    """The model's dtype where weights are computed in it; otherwise they come in their reference's own, and vLLM casts."""
    return dtype if dtype in (torch.bfloat16, torch.float16, torch.float32) else None
