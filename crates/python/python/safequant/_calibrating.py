"""How a model is worked off block by block (specs/calibration.md, clauses 19 to 23)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from ._layers import Layer, Layers, Stack, Sums, find_blocks, find_layers, namer, selector
from .errors import UsageError
from .statistics import Detail, ModuleStatistics, Statistics, StatisticsWriter

#: Spellings of dtypes in safetensors, for digests.
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class Options:
    """The options of ``safequant.calibrate``, checked."""

    modules: Sequence[str] | Callable[[str], bool] | None
    hessian: Detail
    dtype: torch.dtype
    device: torch.device | None
    blocks: str | None
    sequential: bool
    on_block: Callable[[str, torch.nn.Module, Mapping[str, ModuleStatistics]], None] | None
    path: str | None
    metadata: Mapping[str, str]
    progress: Callable[[str, int, int], None] | None


class _BlockDone(BaseException):
    """Ends a pass of the model behind the block that is worked on. No ``Exception``, so that no model's code catches it."""


@dataclass
class _Parked:
    """A tensor between two blocks, on the CPU, and where it came from."""

    tensor: torch.Tensor
    device: torch.device


def _map(value: Any, of: type, change: Callable[[Any], Any]) -> Any:
    """A structure with everything that is an ``of`` changed."""
    if isinstance(value, of):
        return change(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_map(item, of, change) for item in value))
    if isinstance(value, tuple | list):
        return type(value)(_map(item, of, change) for item in value)
    if isinstance(value, dict):
        return type(value)({key: _map(item, of, change) for key, item in value.items()})
    return value


def _park(value: Any) -> Any:
    return _map(value, torch.Tensor, lambda tensor: _Parked(tensor.detach().to("cpu"), tensor.device))


def _unpark(value: Any) -> Any:
    return _map(value, _Parked, lambda parked: parked.tensor.to(parked.device))


class Calibrator:
    """One run."""

    def __init__(self, model: torch.nn.Module, batches: Iterable[Any], options: Options) -> None:
        self.model = model
        self.options = options
        self.batches = [_arguments(batch) for batch in batches]
        self.masks = [_mask(batch) for _, batch in self.batches]
        if not self.batches:
            raise UsageError("batches: expected at least one")
        self.blocks = find_blocks(model, options.blocks)
        if options.on_block is not None and not self.blocks:
            raise UsageError("on_block: the model has no list of blocks; name one with `blocks`")
        self.parts = self._find_parts()
        #: What the last block put out, for each batch.
        self.carried: list[Any] = [None] * len(self.batches)
        self.kept: dict[str, ModuleStatistics] = {}
        #: Tokens of each batch, as far as they are known.
        self.tokens = [_n_tokens(batch) for _, batch in self.batches]
        self.steps_done = 0

    def _find_parts(self) -> list[tuple[str, torch.nn.Module, Layers]]:
        """Blocks with their layers, then the rest of the model with what is wanted of it."""
        options, naming = self.options, namer(self.model)
        wanted = selector(options.modules)

        def new(width: int) -> Sums:
            return Sums(width, options.hessian, options.dtype)

        parts = [(name, block, find_layers(self.model, name, block, wanted, naming, new)) for name, block in self.blocks]
        inside = {id(module) for _, block in self.blocks for module in block.modules()}
        rest = Layers([], [])
        if options.modules is not None or not self.blocks:
            rest = find_layers(self.model, "", self.model, wanted, naming, new)
            rest.linear = [(module, layer) for module, layer in rest.linear if id(module) not in inside]
            rest.stacks = [stack for stack in rest.stacks if id(stack.owner) not in inside]
        parts.append(("", self.model, rest))
        if not any(layer for _, _, layers in parts for layer in layers):
            raise UsageError(f"modules: expected linear layers, found none for {options.modules!r}")
        return parts

    def run(self) -> Statistics:
        """Does it."""
        metadata = self._metadata()
        with ExitStack() as stack:
            writer = self._writer(stack, metadata)
            stack.enter_context(_quiet(self.model))
            if self.options.device is not None:
                own = (_tensors(module, recurse=False) for module in _outside(self.model, self.blocks))
                stack.enter_context(_placed([tensor for tensors in own for tensor in tensors], self.options.device))
            for index, (name, block, layers) in enumerate(self.parts):
                self._part(index, name, block, layers, writer)
            metadata["tokens"] = str(sum(self.tokens))
            if writer is not None:
                writer.commit(metadata)
        if self.options.path is not None:
            return Statistics.load(self.options.path)
        return Statistics(self.kept, {"format": "safequant-calibration", "format_version": "1", **metadata})

    def _writer(self, stack: ExitStack, metadata: Mapping[str, str]) -> StatisticsWriter | None:
        if self.options.path is None:
            return None
        widths = {name: layer.width for _, _, layers in self.parts for layer in layers for name in layer.names}
        writer = StatisticsWriter(self.options.path, widths, self.options.hessian, metadata=metadata)
        return stack.enter_context(writer)

    def _part(self, index: int, name: str, block: torch.nn.Module, layers: Layers, writer: StatisticsWriter | None) -> None:
        """Observes one block, or at last what lies outside of them; then moves the states on."""
        is_rest = index == len(self.blocks)
        if is_rest and not any(True for _ in layers):
            return
        with ExitStack() as stack:
            if self.options.device is not None and not is_rest:
                stack.enter_context(_placed(_tensors(block), self.options.device))
            put_out = [self._pass(index, name, at, layers) for at in range(len(self.batches))]
            if index == 0 and not is_rest:
                self._probe(put_out[0])
            found = _finish(layers, writer)
            if writer is None:
                self.kept.update(found)
            if is_rest:
                return
            if self.options.on_block is not None:
                self.options.on_block(name, block, found)
            if self.options.sequential:
                put_out = [self._pass(index, name, at, None) for at in range(len(self.batches))]
            self.carried = put_out

    def _pass(self, index: int, name: str, at: int, layers: Layers | None) -> Any:
        """Runs one batch through block ``index``, with the blocks before it standing still; what it puts out, parked."""
        positional, keywords = self.batches[at]
        order: list[int] = []
        end: list[Any] = []
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            for number, (_, block) in enumerate(self.blocks):
                if number < index:
                    stack.enter_context(_standing(block, number, order, self.carried[at]))
                else:
                    stack.enter_context(_noted(block, number, order))
            observer = None
            if layers is not None:
                observer = stack.enter_context(Observer(layers, self.masks[at]))
            if index < len(self.blocks):
                stack.enter_context(_ending(self.blocks[index][1], end))
            self._call(positional, keywords)
        self._check_order(order, min(index + 1, len(self.blocks)))
        if observer is not None:
            observer.check()
            if self.tokens[at] == 0:
                self.tokens[at] = observer.most_rows
            self._tell(name)
        return end[0] if end else None

    def _check_order(self, order: list[int], n_blocks: int) -> None:
        if order != list(range(n_blocks)):
            found = ", ".join(map(str, order[: n_blocks + 1])) or "none"
            raise UsageError(
                f"expected the blocks {self.blocks[0][0]} and so on to run once each, in the order of their list, found: {found}; "
                "name others with `blocks`, or run the model as a whole (blocks='')"
            )

    def _probe(self, put_out: Any) -> None:
        """That a whole pass runs each block once: with all of them standing still, and without the head's product."""
        order: list[int] = []
        positional, keywords = self.batches[0]
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            for number, (_, block) in enumerate(self.blocks):
                stack.enter_context(_standing(block, number, order, put_out))
            find: Any = getattr(self.model, "get_output_embeddings", None)
            head = None if find is None else find()
            if isinstance(head, torch.nn.Module):
                stack.enter_context(_stopping(head))
            self._call(positional, keywords)
        self._check_order(order, len(self.blocks))

    def _call(self, positional: tuple[Any, ...], keywords: Mapping[str, Any]) -> None:
        """Runs the model until it ends, or is ended."""
        device = self._input_device()
        arguments = _map((positional, dict(keywords)), torch.Tensor, lambda tensor: tensor.to(device))
        with suppress(_BlockDone):
            self.model(*arguments[0], **arguments[1])

    def _tell(self, name: str) -> None:
        self.steps_done += 1
        if self.options.progress is not None:
            n_parts = len(self.blocks) + int(any(True for _ in self.parts[-1][2]))
            self.options.progress(name or "model", self.steps_done, n_parts * len(self.batches))

    def _input_device(self) -> torch.device:
        if self.options.device is not None:
            return self.options.device
        first = next(self.model.parameters(), None)
        return torch.device("cpu") if first is None or first.is_meta else first.device

    def _metadata(self) -> dict[str, str]:
        """Clause 8, as far as it is known beforehand."""
        options = self.options
        found = {
            "hessian": options.hessian,
            "accumulation": _DTYPES[options.dtype],
            "sequential": "true" if options.sequential else "false",
            "batches": str(len(self.batches)),
            "tokens": "0",
            "model": type(self.model).__name__,
            "text_digest": self._text_digest(),
            "created_by": f"safequant.calibrate, torch {torch.__version__}",
            **options.metadata,
        }
        if "model_digest" not in found:
            digest = _model_digest(self.model)
            if digest is not None:
                found["model_digest"] = digest
        return found

    def _text_digest(self) -> str:
        digest = hashlib.sha256()
        for positional, keywords in self.batches:
            named = {f"{at:04}": value for at, value in enumerate(positional)} | dict(keywords)
            for name in sorted(named):
                if isinstance(named[name], torch.Tensor):
                    _digest(digest, name, named[name])
        return f"sha256:{digest.hexdigest()}"


def _finish(layers: Layers, writer: StatisticsWriter | None) -> dict[str, ModuleStatistics]:
    """The statistics of all layers. Those that saw the same inputs (queries, keys and values) get one object, and share in the
    file."""
    groups: dict[object, list[tuple[list[str], ModuleStatistics]]] = {}
    for layer in layers:
        statistics = layer.sums.statistics(layer.names[0])
        alike = groups.setdefault(_fingerprint(statistics), [])
        twin = next((names for names, other in alike if _are_equal(other, statistics)), None)
        if twin is None:
            alike.append((list(layer.names), statistics))
        else:
            twin.extend(layer.names)
    found: dict[str, ModuleStatistics] = {}
    for names, statistics in (entry for alike in groups.values() for entry in alike):
        if writer is not None:
            writer.write(names, statistics)
        found.update(dict.fromkeys(names, statistics))
    return {name: found[name] for layer in layers for name in layer.names}


def _fingerprint(statistics: ModuleStatistics) -> object:
    vectors = (statistics.hessian_diagonal, statistics.mean_abs_input, statistics.mean_input)
    digest = hashlib.sha256()
    for vector in vectors:
        if vector is not None:
            digest.update(vector.tobytes())
    return statistics.token_count, statistics.in_features, digest.digest()


def _are_equal(a: ModuleStatistics, b: ModuleStatistics) -> bool:
    """Of two with one fingerprint."""
    return a.hessian is None or b.hessian is None or bool((a.hessian == b.hessian).all())


def _arguments(batch: Any) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """What the model is called with."""
    if isinstance(batch, Mapping):
        return (), dict(batch)
    if isinstance(batch, tuple | list):
        return tuple(batch), {}
    return (batch,), {}


def _mask(keywords: Mapping[str, Any]) -> torch.Tensor | None:
    """Which tokens are counted, ``[batch, tokens]`` on the CPU; ``None`` if all are."""
    mask = keywords.get("attention_mask")
    if not isinstance(mask, torch.Tensor) or mask.dim() != 2:
        return None
    counted = mask.detach().cpu() != 0
    return None if bool(counted.all()) else counted


def _n_tokens(keywords: Mapping[str, Any]) -> int:
    """Tokens of a batch that are counted; 0 if its arguments do not say."""
    mask = _mask(keywords)
    if mask is not None:
        return int(mask.sum())
    ids = keywords.get("input_ids")
    return ids.numel() if isinstance(ids, torch.Tensor) else 0


def _digest(digest: Any, name: str, tensor: torch.Tensor) -> None:
    dtype = _DTYPES.get(tensor.dtype, str(tensor.dtype))
    shape = "x".join(map(str, tensor.shape))
    digest.update(f"{name}\0{dtype}\0{shape}\0".encode())
    plain = tensor.detach().to("cpu").contiguous()
    digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)


def _model_digest(model: torch.nn.Module) -> str | None:
    """Clause 10; ``None`` where weights are elsewhere (on the meta device)."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            return None
        _digest(digest, name, parameter)
    return f"sha256:{digest.hexdigest()}"


# What surrounds a pass.


@contextmanager
def _quiet(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode, no caches, experts one after the other, sums in full precision; all as it was afterwards."""
    training = [module for module in model.modules() if module.training]
    configs = _configs(model)
    caches = [(config, config.use_cache) for config in configs if hasattr(config, "use_cache")]
    experts = [(config, config._experts_implementation) for config in configs if hasattr(config, "_experts_implementation")]
    precision = torch.get_float32_matmul_precision()
    try:
        model.eval()
        torch.set_float32_matmul_precision("highest")
        for config, _ in caches:
            config.use_cache = False
        for config, found in experts:
            # Only where each expert is a call of its own can its inputs be seen.
            if found is not None:
                config._experts_implementation = "eager"
        yield
    finally:
        for config, cache in caches:
            config.use_cache = cache
        for config, found in experts:
            if found is not None:
                config._experts_implementation = found
        torch.set_float32_matmul_precision(precision)
        for module in training:
            module.training = True


def _configs(model: torch.nn.Module) -> list[Any]:
    found: dict[int, Any] = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None and not isinstance(config, dict):
            found[id(config)] = config
    return list(found.values())


@contextmanager
def _standing(block: torch.nn.Module, number: int, order: list[int], put_out: Any) -> Iterator[None]:
    """A block that answers with what is given, whatever it is called with, and is noted in the order."""
    before = block.__dict__.get("forward")

    def stand(*_arguments: Any, **_keywords: Any) -> Any:
        order.append(number)
        return _unpark(put_out)

    block.__dict__["forward"] = stand
    try:
        yield
    finally:
        if before is None:
            del block.__dict__["forward"]
        else:
            block.__dict__["forward"] = before


@contextmanager
def _noted(block: torch.nn.Module, number: int, order: list[int]) -> Iterator[None]:
    """A block that is noted in the order when it begins."""
    handle = block.register_forward_pre_hook(lambda _module, _arguments: order.append(number))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _ending(block: torch.nn.Module, end: list[Any]) -> Iterator[None]:
    """Ends the pass behind a block; the list gets what it put out, parked."""

    def stop(_module: torch.nn.Module, _arguments: Any, put_out: Any) -> None:
        end.append(_park(put_out))
        raise _BlockDone

    handle = block.register_forward_hook(stop)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _stopping(module: torch.nn.Module) -> Iterator[None]:
    """Ends the pass before a module."""

    def stop(_module: torch.nn.Module, _arguments: Any) -> None:
        raise _BlockDone

    handle = module.register_forward_pre_hook(stop)
    try:
        yield
    finally:
        handle.remove()


def _outside(model: torch.nn.Module, blocks: Sequence[tuple[str, torch.nn.Module]]) -> list[torch.nn.Module]:
    """Every module that lies in no block, taken by itself."""
    inside = {id(module) for _, block in blocks for module in block.modules()}
    return [module for module in model.modules() if id(module) not in inside]


def _tensors(module: torch.nn.Module, *, recurse: bool = True) -> list[torch.Tensor]:
    return [*module.parameters(recurse=recurse), *module.buffers(recurse=recurse)]


@contextmanager
def _placed(tensors: Sequence[torch.Tensor], device: torch.device) -> Iterator[None]:
    """Parameters and buffers on a device, and back where they were."""
    before = {id(tensor): (tensor, tensor.device) for tensor in tensors}
    for tensor, _ in before.values():
        tensor.data = tensor.data.to(device)
    try:
        yield
    finally:
        for tensor, place in before.values():
            tensor.data = tensor.data.to(place)


class Observer(TorchFunctionMode):
    """Adds what layers see while it is entered to their sums.

    Linear layers are hooked. The matrices of a stack are known by the memory that they are views of: whatever class
    multiplies by them, its products pass here.
    """

    def __init__(self, layers: Layers, mask: torch.Tensor | None) -> None:
        super().__init__()
        self.layers = layers
        self.mask = mask
        #: The largest number of rows that one layer saw at a time.
        self.most_rows = 0
        self._handles: list[Any] = []
        self._stacks: dict[int, list[Stack]] = {}
        #: The arguments of the last call of a stack's owner, and what its stacks have seen since.
        self._routed: dict[int, tuple[Any, ...]] = {}
        self._seen: set[int] = set()
        #: Owner and number of experts whose order of tokens was compared with the states, in the last call of the owner.
        self._ordered: set[tuple[int, int]] = set()

    def __enter__(self) -> Observer:
        for module, layer in self.layers.linear:
            self._handles.append(module.register_forward_pre_hook(self._hook(layer), with_kwargs=True))
        for owner in {id(stack.owner): stack.owner for stack in self.layers.stacks}.values():
            self._handles.append(owner.register_forward_pre_hook(self._route, with_kwargs=True))
        for stack in self.layers.stacks:
            memory = stack.parameter.untyped_storage().data_ptr()
            self._stacks.setdefault(memory, []).append(stack)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for handle in self._handles:
            handle.remove()

    def check(self) -> None:
        """That the products of every stack whose owner ran were seen.

        Raises:
            UsageError: An owner multiplies in a way that is not followed.
        """
        for stack in self.layers.stacks:
            if id(stack.owner) in self._routed and id(stack) not in self._seen:
                name = type(stack.owner).__name__
                raise UsageError(f"{stack.members[0].names[0]}: how {name} multiplies by {stack.attribute} is not followed")

    def _hook(self, layer: Layer) -> Callable[..., None]:
        def observe(_module: torch.nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            inputs = arguments[0] if arguments else next(iter(keywords.values()))
            layer.sums.add(self._rows(layer, inputs))

        return observe

    def _rows(self, layer: Layer, inputs: torch.Tensor) -> torch.Tensor:
        """Inputs of a layer, ``[..., K]``, as counted rows."""
        rows = inputs.detach().reshape(-1, layer.width)
        self.most_rows = max(self.most_rows, rows.shape[0])
        if self.mask is None:
            return rows
        n_batch, n_tokens = self.mask.shape
        shape = tuple(inputs.shape[:-1])
        if shape not in ((n_batch, n_tokens), (n_batch * n_tokens,), (1, n_batch * n_tokens)):
            raise UsageError(
                f"{layer.names[0]}: inputs of shape {list(inputs.shape)} do not tell which rows are padding of a batch of "
                f"{n_batch} x {n_tokens}; give batches without padding"
            )
        return rows[self.mask.reshape(-1).to(rows.device)]

    def _route(self, module: torch.nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        given = (*arguments, *keywords.values())
        self._routed[id(module)] = tuple(value for value in given if isinstance(value, torch.Tensor))
        self._ordered = {(owner, number) for owner, number in self._ordered if owner != id(module)}

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._stacks and func in _PRODUCTS:
            inputs, weight = _operands(args, kwargs)
            if isinstance(weight, torch.Tensor) and weight.dim() == 2 and isinstance(inputs, torch.Tensor):
                self._product(inputs, weight, transposed=_PRODUCTS[func])
        return func(*args, **kwargs)

    def _product(self, inputs: torch.Tensor, weight: torch.Tensor, transposed: bool) -> None:
        for stack in self._stacks.get(weight.untyped_storage().data_ptr(), ()):
            parameter = stack.parameter
            offset = int(weight.storage_offset()) - int(parameter.storage_offset())
            number, rest = divmod(offset, parameter.stride(0))
            if rest != 0 or not 0 <= number < parameter.shape[0] or weight.numel() != parameter[0].numel():
                continue
            layer = stack.members[number]
            if inputs.shape[-1] != layer.width or stack.transposed != transposed:
                raise UsageError(f"{layer.names[0]}: expected {layer.width} input features, found {inputs.shape[-1]}")
            self._seen.add(id(stack))
            layer.sums.add(self._routed_rows(stack, number, layer, inputs))

    def _routed_rows(self, stack: Stack, number: int, layer: Layer, inputs: torch.Tensor) -> torch.Tensor:
        """Inputs of an expert as counted rows."""
        rows = inputs.detach().reshape(-1, layer.width)
        if self.mask is None:
            return rows
        owner = id(stack.owner)
        tensors = self._routed.get(owner, ())
        states = next((t for t in tensors if t.is_floating_point()), None)
        choice = next((t for t in tensors if not t.is_floating_point() and t.dim() == 2), None)
        if states is not None and choice is not None and choice.shape[0] == self.mask.numel():
            # The order in which transformers' experts take their tokens: by rank of the choice, then by token. It shows in
            # the first product, whose rows are states.
            tokens = torch.where((choice == number).T)[1]
            states = states.reshape(-1, states.shape[-1])
            if len(tokens) == len(rows):
                if states.shape[-1] == layer.width and torch.equal(states[tokens], rows):
                    self._ordered.add((owner, number))
                if (owner, number) in self._ordered:
                    return rows[self.mask.reshape(-1).to(rows.device)[tokens]]
        raise UsageError(
            f"{layer.names[0]}: {type(stack.owner).__name__} does not tell which rows are padding; give batches without padding"
        )


def _operands(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
    """Inputs and weight of a product, by place or by name."""
    inputs = args[0] if args else kwargs.get("input")
    weight = args[1] if len(args) > 1 else kwargs.get("weight", kwargs.get("other", kwargs.get("mat2")))
    return inputs, weight


#: Products, and whether their second operand is ``[in_features, out_features]``.
_PRODUCTS: dict[Any, bool] = {
    torch.nn.functional.linear: False,
    torch.matmul: True,
    torch.Tensor.matmul: True,
    torch.Tensor.__matmul__: True,
    torch.mm: True,
    torch.Tensor.mm: True,
}
