"""Which layers of a torch model have statistics, what their weights are called in a checkpoint, and the sums they are made of."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import torch

from .errors import MalformedError, UsageError
from .statistics import Detail, ModuleStatistics

#: Values that are widened at a time, at most: a bound for what a batch takes beside the model.
_CHUNK_VALUES = 1 << 25


class Sums:
    """Sums over the inputs ``x`` of one layer; ``K`` stands for its in_features.

    ``X^T X`` is summed in ``dtype``, where it is wanted in full; the vectors in F64.
    """

    def __init__(self, width: int, detail: Detail, dtype: torch.dtype) -> None:
        self.width = width
        self.detail = detail
        self.dtype = dtype
        self.n = 0
        self.products: torch.Tensor | None = None
        self.vectors: torch.Tensor | None = None

    def add(self, rows: torch.Tensor) -> None:
        """Adds inputs, ``[tokens, K]`` of any dtype."""
        if rows.shape[0] == 0:
            return
        if self.vectors is None:
            self.vectors = torch.zeros(3, self.width, dtype=torch.float64, device=rows.device)
        if self.detail == "full" and self.products is None:
            self.products = torch.zeros(self.width, self.width, dtype=self.dtype, device=rows.device)
        for chunk in torch.split(rows, max(1, _CHUNK_VALUES // self.width)):
            wide = chunk.to(torch.float64)
            self.vectors[0] += wide.square().sum(0)
            self.vectors[1] += wide.abs().sum(0)
            self.vectors[2] += wide.sum(0)
            if self.products is not None:
                values = wide if self.dtype == torch.float64 else chunk.to(self.dtype)
                self.products.addmm_(values.T, values)
        self.n += rows.shape[0]

    def statistics(self, module: str) -> ModuleStatistics:
        """The means, as F32; the sums are gone afterwards."""
        vectors = torch.zeros(3, self.width, dtype=torch.float64) if self.vectors is None else self.vectors
        means = (vectors / max(self.n, 1)).to(torch.float32)
        if not bool(torch.isfinite(means).all()):
            raise MalformedError(f"{module}: expected finite inputs, found others among {self.n} tokens")
        diagonal, mean_abs, mean = means.cpu().numpy()
        matrix = None
        if self.detail == "full":
            products = torch.zeros(self.width, self.width) if self.products is None else self.products
            products = (products + products.T).mul_(0.5 / max(self.n, 1))
            if not bool(torch.isfinite(products).all()):
                raise MalformedError(f"{module}: expected sums in the range of {self.dtype}, found others")
            matrix = products.to(torch.float32).cpu().numpy()
            diagonal = matrix.diagonal()
        self.products = self.vectors = None
        return ModuleStatistics(self.n, matrix, diagonal, mean_abs, mean)


@dataclass
class Layer:
    """One thing that has sums.

    Attributes:
        names: What it is called in a checkpoint; several where weights share their inputs. The first has the tensors.
        width: In_features.
        sums: What was summed so far.
    """

    names: tuple[str, ...]
    width: int
    sums: Sums = field(repr=False)


@dataclass
class Stack:
    """A parameter ``[experts, ...]``, each of whose matrices is a layer.

    Attributes:
        owner: The module that holds it.
        attribute: Under which name.
        transposed: Whether a matrix is ``[in_features, out_features]``.
        members: By number.
    """

    owner: torch.nn.Module
    attribute: str
    transposed: bool
    members: list[Layer]

    @property
    def parameter(self) -> torch.Tensor:
        """What it is now: its data may have moved, or been replaced."""
        found: torch.Tensor = getattr(self.owner, self.attribute)
        return found


@dataclass
class Layers:
    """The layers of a part of a model."""

    linear: list[tuple[torch.nn.Module, Layer]]
    stacks: list[Stack]

    def __iter__(self) -> Iterator[Layer]:
        for _, layer in self.linear:
            yield layer
        for stack in self.stacks:
            yield from stack.members


Namer = Callable[[str, torch.Size], list[str]]
Wanted = Callable[[str], bool]


def namer(model: torch.nn.Module) -> Namer:
    """What a parameter of the model is called where it is saved, and the parts it is saved as.

    transformers holds some weights in other pieces than checkpoints do, and knows the way back; other models are saved as they
    are.
    """

    def as_it_is(name: str, shape: torch.Size) -> list[str]:
        return [name]

    if not hasattr(model, "save_pretrained"):
        return as_it_is
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:
        return as_it_is

    def saved(name: str, shape: torch.Size) -> list[str]:
        # The function is no public one: what it cannot do, or no longer does, is answered with the model's own name.
        try:
            revert: Callable[..., dict[str, torch.Tensor]] = revert_weight_conversion
            found = revert(model, {name: torch.empty(shape, device="meta")})
        except (AttributeError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError):
            return [name]
        keep = [key for key, value in found.items() if value.shape[-1] in shape[1:]]
        return keep if len(keep) == len(found) and keep else [name]

    return saved


def selector(modules: Sequence[str] | Callable[[str], bool] | None) -> Wanted:
    """Whether a module is wanted, by any of its names."""
    if modules is None:
        return lambda name: True
    if callable(modules):
        return modules
    patterns = [modules] if isinstance(modules, str) else list(modules)
    return lambda name: any(fnmatchcase(name, pattern) for pattern in patterns)


def find_layers(
    model: torch.nn.Module, prefix: str, part: torch.nn.Module, wanted: Wanted, naming: Namer, new: Callable[[int], Sums]
) -> Layers:
    """The wanted layers of ``part``, which the model has under the name ``prefix``."""
    found = Layers([], [])
    for inner, module in part.named_modules():
        name = ".".join(filter(None, (prefix, inner)))
        width = _linear_width(module)
        if width is not None:
            shape: torch.Size = getattr(module, "weight").shape  # noqa: B009 - a weight may be no parameter
            names = [_without_suffix(saved) for saved in naming(f"{name}.weight", shape)]
            if wanted(name) or any(map(wanted, names)):
                found.linear.append((module, Layer(tuple(names), width, new(width))))
            continue
        for attribute, parameter in module.named_parameters(recurse=False):
            if _is_stack(name, module, parameter):
                stack = _stack(name, module, attribute, parameter, naming, new)
                if wanted(name) or any(wanted(n) for member in stack.members for n in member.names):
                    found.stacks.append(stack)
    return found


def _without_suffix(name: str) -> str:
    return name.removesuffix(".weight")


def _linear_width(module: torch.nn.Module) -> int | None:
    if isinstance(module, torch.nn.Linear):
        return module.in_features
    # transformers' Conv1D, a linear layer with a weight [in_features, out_features], without importing transformers.
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        return int(module.get_parameter("weight").shape[0])
    return None


def _is_stack(name: str, module: torch.nn.Module, parameter: torch.Tensor) -> bool:
    is_expert = "experts" in name.split(".") or type(module).__name__.endswith("Experts")
    return is_expert and parameter.dim() == 3 and parameter.is_floating_point()


def _stack(
    name: str, module: torch.nn.Module, attribute: str, parameter: torch.Tensor, naming: Namer, new: Callable[[int], Sums]
) -> Stack:
    transposed = bool(getattr(module, "is_transposed", False))
    width = int(parameter.shape[1 if transposed else 2])
    own = f"{name}.{attribute}"
    by_expert: dict[int, list[str]] = {}
    for saved in naming(own, parameter.shape):
        number = re.search(r"\.(\d+)\.[^.]+(?:\.weight)?$", saved)
        if number is not None and saved != own:
            by_expert.setdefault(int(number[1]), []).append(_without_suffix(saved))
    members = []
    for expert in range(parameter.shape[0]):
        names = by_expert.get(expert) or [f"{name}.{expert}.{attribute}"]
        members.append(Layer(tuple(names), width, new(width)))
    return Stack(module, attribute, transposed, members)


def find_blocks(model: torch.nn.Module, name: str | None) -> list[tuple[str, torch.nn.Module]]:
    """Names and modules of the blocks; none for a model that has no list of them, or where ``name`` is empty."""
    if name == "":
        return []
    lists = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.ModuleList | torch.nn.Sequential)}
    if name is not None:
        if name not in lists:
            raise UsageError(f"blocks: expected the name of a list of modules, found {name!r}; there are {', '.join(lists)}")
        return [(f"{name}.{key}", block) for key, block in lists[name].named_children()]
    # Sequences run by themselves and often hold a whole model's parts; a list is what a model's code goes through.
    candidates = {n: m for n, m in lists.items() if isinstance(m, torch.nn.ModuleList) and len(m) > 0}
    if not candidates:
        return []
    best = max(candidates, key=lambda n: sum(p.numel() for p in candidates[n].parameters()))
    return [(f"{best}.{key}", block) for key, block in candidates[best].named_children()]
