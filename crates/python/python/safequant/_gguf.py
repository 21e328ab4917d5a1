"""The tensors of a GGUF model as the weights of a model of transformers.

How llama.cpp calls tensors and lays them out is transformers' own knowledge (``modeling_gguf_pytorch_utils``, with the names of the
package ``gguf``). The numbers are the engine's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch

from ._gguf_config import DIVISORS, Found, architecture_of, machinery_of
from .checkpoint import Checkpoint
from .errors import MalformedError, UnsupportedError
from .torch import StateDict


class Weights(NamedTuple):
    """Weights under transformers' names, none of them read, and what does not go together, as transformers tells it after loading."""

    readers: dict[str, Callable[[], torch.Tensor]]
    told: dict[str, Any]


def is_gguf(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint is a GGUF model."""
    return bool(checkpoint.metadata)


def weights(tensors: StateDict, build: Any, config: Any) -> Weights:
    """The tensors of a GGUF model as the weights of a model of transformers.

    Each reader decodes what its weight is made of, and turns it into transformers' layout; a stack of experts whose gate and up
    projections lie apart is put together. Nothing is kept between two of them.

    Args:
        tensors: The tensors, on the CPU.
        build: The model's class.
        config: Its configuration.

    Raises:
        UnsupportedError: The architecture is unknown, the package ``gguf`` is missing, or transformers cannot build the model.
    """
    checkpoint = tensors.checkpoint
    architecture, machinery = architecture_of(checkpoint), machinery_of(checkpoint)
    skeleton = _skeleton(checkpoint, build, config)
    wanted = {name: tuple(tensor.shape) for name, tensor in skeleton.state_dict().items()}
    processor = _Processor(machinery, architecture, config)
    try:
        names = machinery.get_gguf_hf_weights_map(skeleton, processor, architecture, config.num_hidden_layers)
    except Exception as error:  # noqa: BLE001 - what it knows depends on two packages
        raise UnsupportedError(f"{checkpoint.path}: transformers cannot name the tensors: {error}", "transformers") from error
    sources: dict[str, list[str]] = {}
    unknown = []
    for name in tensors.keys():
        # Stacks of experts are parameters for transformers, without a module of their own.
        target = names.get(name) or names.get(name.removesuffix(".weight"))
        if target in wanted:
            sources.setdefault(target, []).append(name)
        elif name != DIVISORS:
            unknown.append(name)
    tied = getattr(skeleton, "all_tied_weights_keys", {})
    told = {
        "missing_keys": [name for name in wanted if name not in sources and name not in tied],
        "unexpected_keys": unknown,
        "mismatched_keys": [fault for target, parts in sources.items() for fault in _sizes(tensors, target, parts, wanted[target])],
    }
    make = partial(_make, tensors, processor, names)
    return Weights({target: partial(make, parts, target, wanted[target]) for target, parts in sources.items()}, told)


def _sizes(tensors: StateDict, target: str, parts: list[str], wanted: tuple[int, ...]) -> list[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    """A weight of another size than its parts, told before memory is taken for what a header merely claims."""
    shapes = [tensors.describe(name)[1] for name in parts]
    if sum(map(math.prod, shapes)) == math.prod(wanted):
        return []
    return [(f"{target} from {name}", shape, wanted) for name, shape in zip(parts, shapes, strict=True)]


def _make(
    tensors: StateDict, processor: _Processor, names: dict[str, str], parts: list[str], target: str, wanted: tuple[int, ...]
) -> torch.Tensor:
    """Decodes the parts of a weight and puts it together as transformers has it."""
    made: dict[str, torch.Tensor] = {}
    for name in parts:
        tensor = tensors[name]
        try:
            turned = processor.process(tensor.numpy(), name, names, made)
            if turned is not None:
                made[target] = torch.from_numpy(turned)
        except Exception as error:  # noqa: BLE001 - a count of heads that does not divide the rows, for one
            path = tensors.checkpoint.path
            raise MalformedError(f"{path}: {name}: transformers cannot rearrange it: {error}", "shape") from error
    whole = made[target]
    # llama.cpp's tools drop dimensions of one, or keep them: transformers' rules expect one of both.
    without_ones = [[n for n in shape if n != 1] for shape in (whole.shape, wanted)]
    return whole.reshape(wanted) if without_ones[0] == without_ones[1] else whole


class _Processor:
    """What transformers does to names and values of an architecture.

    ``llama`` is Mixtral as well: its queries and keys are turned as those of Llama, its experts stacked as those of Qwen.
    """

    def __init__(self, machinery: Any, architecture: str, config: Any) -> None:
        settings = config.to_dict()
        kinds = [machinery.TENSOR_PROCESSORS.get(architecture, machinery.TensorProcessor)]
        if config.model_type == "mixtral":
            kinds.append(machinery.Qwen2MoeTensorProcessor)
        self._steps = [kind(config=settings) for kind in kinds]

    def preprocess_name(self, hf_name: str) -> str:
        for step in self._steps:
            hf_name = step.preprocess_name(hf_name)
        return hf_name

    def perform_fallback_tensor_mapping(self, names: dict[str, str], suffix: str, qual_name: str, hf_name: str) -> None:
        for step in self._steps:
            step.perform_fallback_tensor_mapping(names, suffix, qual_name, hf_name)

    def process(self, values: Any, name: str, names: dict[str, str], made: dict[str, Any]) -> Any:
        """The values as transformers has them; ``None`` where they went into ``made``, by the name of the weight."""
        for step in self._steps:
            done = step.process(values, name, tensor_key_mapping=names, parsed_parameters={"tensors": made})
            if done.name is None:
                return None
            values = done.weights
        return values


def _skeleton(checkpoint: Checkpoint, build: Any, config: Any) -> Any:
    """The model without memory behind it."""
    try:
        with torch.device("meta"):
            skeleton = build(config)
    except Exception as error:  # noqa: BLE001 - a configuration can make transformers raise anything
        raise UnsupportedError(f"{checkpoint.path}: transformers cannot build the model: {error}", "transformers") from error
    _check_rotation(checkpoint, skeleton)
    return skeleton


def _check_rotation(checkpoint: Checkpoint, skeleton: Any) -> None:
    """That heads rotate as far as the metadata says: a part of them in some models, which not all of transformers' classes do."""
    found = Found(checkpoint, architecture_of(checkpoint))
    n_rotated = found.number("rope.dimension_count", 0)
    for name, buffer in skeleton.named_buffers():
        if n_rotated and name.endswith("inv_freq") and 2 * buffer.numel() != n_rotated:
            raise found.refuse("rope.dimension_count", f"{n_rotated}, where the model rotates {2 * buffer.numel()} of each head")
