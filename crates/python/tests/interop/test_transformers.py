"""transformers: every whole model among the fixtures as a dense model, to the last bit; and vLLM's interface.

    python -m unittest test_transformers

Needs torch and transformers. vLLM is not needed: its loader is tested against a stand-in, which the test describes.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import subprocess
import sys
import tempfile
import types
import unittest
import unittest.mock
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support import ROOT, Fixture, fixtures, staged

sys.path.insert(0, str(ROOT / "interop"))

import safequant

try:
    import torch
    import transformers
except ImportError:
    print("SKIPPED: test_transformers needs torch and transformers", file=sys.stderr)
    raise unittest.SkipTest("torch and transformers are not installed") from None

import check_runtimes
import safetensors.torch

import safequant.transformers
import safequant.vllm
from safequant.torch import StateDict, state_dict
from safequant.transformers import from_packed, from_quantized

#: Whole models among the fixtures.
MANY = 80

#: What the tools' own loaders are asked for, by ``quant_method``: dense weights instead of packed ones.
DENSE = {
    "compressed-tensors": lambda: transformers.CompressedTensorsConfig(run_compressed=False),
    "fp8": lambda: transformers.FineGrainedFP8Config(dequantize=True),
    "mxfp4": lambda: transformers.Mxfp4Config(dequantize=True),
}

#: Where the tool's own load gives other numbers than the tool's own reference.
OTHERWISE = {
    "llm-compressor/ct-old-w3-pack": "compressed-tensors reads its old packing of 3 bits as if it were the new one",
    "transformers/fgfp8-ue8m0": "transformers applies a scale that was never set to weights which are BF16",
}

#: Fixtures whose expected weights are not those of the file to the last bit: interop's check_dequant.py says why.
NEARLY = {"llm-compressor/ct-old-marlin24"}


def setUpModule() -> None:
    logging.disable(logging.CRITICAL)
    transformers.utils.logging.disable_progress_bar()


def tearDownModule() -> None:
    logging.disable(logging.NOTSET)


def whole_models() -> Iterator[Fixture]:
    return (fixture for fixture in fixtures() if check_runtimes.is_whole(fixture.folder))


@contextmanager
def opened(fixture: Fixture) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as scratch:
        yield staged(fixture, Path(scratch, "in"))


def named(name: str) -> Fixture:
    return next(fixture for fixture in fixtures() if fixture.name == name)


def logits(model: Any) -> torch.Tensor:
    vocabulary = model.config.vocab_size
    with torch.no_grad():
        found: torch.Tensor = model(torch.tensor([[1, 5 % vocabulary, 9 % vocabulary, 2, 7 % vocabulary, 3]])).logits
    return found


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal to the last bit; a NaN equals a NaN (two fixtures have a row of them)."""
    return a.dtype == b.dtype and bool(torch.allclose(a, b, rtol=0, atol=0, equal_nan=True))


def dense_tensors(fixture: Fixture, place: Path, scratch: Path) -> dict[str, torch.Tensor]:
    """The dense checkpoint: what the tool expects, and what ``dequantize`` writes where the fixture keeps digests alone."""
    safequant.dequantize(place, scratch / "dense")
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted((scratch / "dense").glob("*.safetensors")):
        tensors |= safetensors.torch.load_file(path)
    expected = fixture.folder / "expected.safetensors"
    tolerant = any("tolerance" in module for module in fixture.facts.get("modules", {}).values())
    if expected.exists() and fixture.name not in NEARLY and not tolerant:
        tensors |= safetensors.torch.load_file(expected)
    # Where a runtime multiplies the inputs by factors, a dense model has them in its weight.
    for name in [name for name in tensors if name.endswith(".weight_effective")]:
        tensors[name.removesuffix("_effective")] = tensors.pop(name)
    return tensors


def as_transformers_has_it(fixture: Fixture, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Stacks of experts as a dense checkpoint for transformers holds them."""
    made: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if ".switch_mlp." in name:
            made |= {name.replace(".switch_mlp.", f".experts.{i}."): matrix.clone() for i, matrix in enumerate(tensor)}
        elif fixture.name == "composed/gpt-oss-mxfp4" and tensor.dim() == 3:
            made[name] = tensor.transpose(1, 2).contiguous()
        else:
            made[name] = tensor
    return made


def reference(fixture: Fixture, place: Path, scratch: Path) -> Any:
    """The dense model, by transformers' own way from files."""
    folder = scratch / "reference"
    folder.mkdir()
    tensors = as_transformers_has_it(fixture, dense_tensors(fixture, place, scratch))
    safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((fixture.folder / "config.json").read_text())
    config = {key: value for key, value in config.items() if not key.startswith(("quantization", "compression"))}
    (folder / "config.json").write_text(json.dumps(config))
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto")


def loaded(place: Path, config: Any) -> torch.Tensor:
    """The logits of transformers' own load; a model that some weights did not reach is not loaded."""
    load = transformers.AutoModelForCausalLM.from_pretrained
    model, told = load(place, quantization_config=config, dtype="auto", output_loading_info=True)
    # Scales of activations and of the cache have no place in a dense model.
    beside = ("input_scale", "input_global_scale", "k_scale", "v_scale")
    left = {kind: kept for kind, names in told.items() if (kept := [n for n in map(str, names) if not n.endswith(beside)])}
    if left:
        raise ValueError(f"weights are left over or missing: {left}")
    return logits(model)


class FromQuantized(unittest.TestCase):
    def test_every_whole_model_has_the_logits_of_the_dense_one(self) -> None:
        visited = 0
        for fixture in whole_models():
            with self.subTest(fixture=fixture.name), opened(fixture) as place:
                model = from_quantized(place)
                wanted = reference(fixture, place, place.parent)
                self.assertEqual(type(model), type(wanted))
                self.assertFalse(hasattr(model.config, "quantization_config"))
                self.assertEqual([str(p) for p in place.parent.iterdir() if p.name not in ("in", "dense", "reference")], [])
                ours, theirs = logits(model), logits(wanted)
                self.assertTrue(same(ours, theirs), (ours - theirs).abs().max())
                parameters = dict(wanted.named_parameters())
                for name, parameter in model.named_parameters():
                    self.assertTrue(same(parameter, parameters[name]), name)
                visited += 1
        self.assertGreaterEqual(visited, MANY)

    def test_the_tools_own_load_gives_the_same_logits(self) -> None:
        equal, unable = [], {}
        for fixture in whole_models():
            if not fixture.name.startswith(tuple(check_runtimes.PRODUCERS)):
                continue
            method = json.loads((fixture.folder / "config.json").read_text()).get("quantization_config", {}).get("quant_method")
            if method not in DENSE:
                continue
            with self.subTest(fixture=fixture.name), opened(fixture) as place:
                try:
                    found = loaded(place, DENSE[method]())
                except Exception as error:  # noqa: BLE001 - whatever it raises, it does not load
                    unable[fixture.name] = f"{type(error).__name__}: {str(error)[:100]}"
                    continue
                is_same = same(logits(from_quantized(place)), found)
                self.assertEqual(is_same, fixture.name not in OTHERWISE)
                if is_same:
                    equal.append(fixture.name)
        print(f"{len(equal)} models as their tool loads them, {len(unable)} that it does not: {unable}", file=sys.stderr)
        self.assertGreaterEqual(len(equal), 18)


    def test_the_dtype_and_the_device_are_the_callers(self) -> None:
        with opened(named("llm-compressor/ct-fp8")) as place:
            model = from_quantized(place, dtype=torch.float32, device="cpu", attn_implementation="eager")
            self.assertEqual({parameter.dtype for parameter in model.parameters()}, {torch.float32})
            self.assertEqual(model.config._attn_implementation, "eager")
            weights = state_dict(place)
            for name, parameter in model.named_parameters():
                self.assertTrue(torch.equal(parameter, weights[name].float()), name)

    def test_what_does_not_go_together_is_named(self) -> None:
        with opened(named("llm-compressor/ct-fp8")) as place:
            edit(place / "config.json", {"num_hidden_layers": 2})
            with self.assertRaises(safequant.UnsupportedError) as caught:
                from_quantized(place)
            self.assertIn("missing from the checkpoint: model.layers.1.", str(caught.exception))
            edit(place / "config.json", {"num_hidden_layers": 1, "intermediate_size": 256})
            with self.assertRaises(safequant.UnsupportedError) as caught:
                from_quantized(place)
            self.assertIn("mlp.down_proj.weight ([128, 192] for [128, 256])", str(caught.exception))
            edit(place / "config.json", {"intermediate_size": 192, "architectures": ["NoSuchModel"]})
            with self.assertRaises(safequant.UnsupportedError) as caught:
                from_quantized(place)
            self.assertIn("NoSuchModel", str(caught.exception))
            edit(place / "config.json", {"model_type": "no-such-type"})
            with self.assertRaises(safequant.UnsupportedError) as caught:
                from_quantized(place)
            self.assertIn("no-such-type", str(caught.exception))
        self.assertNotIn("HF_DEACTIVATE_ASYNC_LOAD", os.environ)


    def test_what_the_engine_said_is_what_is_raised(self) -> None:
        def broken(weights: StateDict, name: str) -> torch.Tensor:
            raise safequant.MalformedError(f"{name}: no reader accepts this", "test")

        with opened(named("llm-compressor/ct-fp8")) as place, unittest.mock.patch.object(StateDict, "__getitem__", broken):
            with self.assertRaises(safequant.MalformedError) as caught:
                from_quantized(place)
            self.assertIn("no reader accepts this", str(caught.exception))

    def test_a_hostile_configuration_is_an_error_of_ours(self) -> None:
        changes: list[dict[str, Any]] = [
            {"hidden_size": "large"},
            {"num_attention_heads": 0},
            {"num_hidden_layers": -1},
            {"rope_parameters": 7},
            {"architectures": "LlamaForCausalLM"},
            {"architectures": [7]},
            {"model_type": ["llama"]},
            {"dtype": "nothing"},
        ]
        for change in changes:
            with self.subTest(change=change), opened(named("llm-compressor/ct-fp8")) as place:
                edit(place / "config.json", change)
                with self.assertRaises(safequant.SafequantError) as caught:
                    from_quantized(place)
                self.assertIn(str(place), str(caught.exception))


class FromPacked(unittest.TestCase):
    def test_weights_stay_packed_where_transformers_knows_how(self) -> None:
        with opened(named("llm-compressor/ct-fp8")) as place:
            model = from_packed(place)
            packed = [name for name, p in model.named_parameters() if p.dtype == torch.float8_e4m3fn]
            self.assertEqual(len(packed), 7)

    def test_otherwise_the_reasons_are_given(self) -> None:
        with opened(named("mlx/mlx-3bit-g64")) as place, self.assertRaises(safequant.UnsupportedError) as caught:
            from_packed(place)
        self.assertIn("from_quantized", str(caught.exception))


class Vllm(unittest.TestCase):
    """vLLM cannot be installed here. What stands in for it is its interface as of v0.31.0: ``BaseModelLoader(load_config)`` with
    ``download_model`` and ``load_weights``, the decorator ``register_model_loader``, and models whose ``load_weights`` takes pairs
    and gives the names of the parameters that it filled. A real engine has not run with the loader."""

    class Base:
        def __init__(self, load_config: Any) -> None:
            self.load_config = load_config

    class Model(torch.nn.Module):
        """Takes what vLLM's models take, without their fusing."""

        def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
            super().__init__()
            self.names = {name.replace(".", "-"): name for name in shapes}
            for key, name in self.names.items():
                self.register_parameter(key, torch.nn.Parameter(torch.zeros(shapes[name], dtype=torch.bfloat16)))

        def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, torch.nn.Parameter]]:
            return ((self.names[key], parameter) for key, parameter in super().named_parameters(*args, **kwargs))

        def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
            parameters, filled = dict(self.named_parameters()), set()
            for name, tensor in weights:
                parameters[name].data.copy_(tensor)
                filled.add(name)
            return filled

    def test_the_iterator_gives_names_and_tensors_one_by_one(self) -> None:
        with opened(named("gptqmodel/gptq-w4g128-sym")) as place:
            weights = state_dict(place)
            given = safequant.vllm.weights_iterator(place)
            self.assertEqual([(n, bool(torch.equal(t, weights[n]))) for n, t in given], [(n, True) for n in weights.keys()])
            packed = dict(safequant.vllm.weights_iterator(place, packed=True))
            self.assertEqual(set(packed), set(safequant.open(place).tensors))

    def test_the_loader_fills_a_model(self) -> None:
        loader = safequant.vllm.make_loader(self.Base)(load_config=None)
        with opened(named("llm-compressor/ct-fp8")) as place:
            weights = state_dict(place)
            config = Asked(str(place), torch.bfloat16)
            loader.download_model(config)
            model = self.Model({name: weights.describe(name)[1] for name in weights.keys()})
            loader.load_weights(model, config)
            for name, parameter in model.named_parameters():
                self.assertTrue(torch.equal(parameter, weights[name]), name)
            larger = self.Model({"more.weight": (2, 2)} | {name: weights.describe(name)[1] for name in weights.keys()})
            with self.assertRaises(safequant.UnsupportedError) as caught:
                loader.load_weights(larger, config)
            self.assertIn("more.weight", str(caught.exception))
        with self.assertRaises(safequant.UnsupportedError):
            loader.download_model(Asked("somebody/some-model", torch.bfloat16))

    @unittest.skipIf(importlib.util.find_spec("vllm"), "vLLM is installed: its own registry is not replaced")
    def test_it_is_registered_under_a_name(self) -> None:
        known: dict[str, type] = {}

        def register_model_loader(name: str) -> Any:
            return lambda loader: known.setdefault(name, loader)

        module = types.ModuleType("vllm.model_executor.model_loader")
        module.BaseModelLoader = self.Base  # type: ignore[attr-defined]
        module.register_model_loader = register_model_loader  # type: ignore[attr-defined]
        names = ["vllm", "vllm.model_executor", module.__name__]
        with unittest.mock.patch.dict(sys.modules, {name: module for name in names}):
            loader = safequant.vllm.register("packed-or-not")
        self.assertEqual(known, {"packed-or-not": loader})
        self.assertTrue(issubclass(loader, self.Base))

    def test_a_dense_model_is_asked_for(self) -> None:
        config = transformers.LlamaConfig(quantization_config={"quant_method": "gptq", "bits": 4})
        self.assertIsNone(getattr(safequant.vllm.dense_overrides(config), "quantization_config", None))


class Asked:
    """What the loader reads of vLLM's ``ModelConfig``."""

    def __init__(self, model: str, dtype: torch.dtype) -> None:
        self.model, self.dtype = model, dtype


class Examples(unittest.TestCase):
    def test_they_run(self) -> None:
        runs = {
            "load_state_dict.py": ["--rank", "1", "--world", "2", "--dtype", "float16"],
            "from_quantized.py": ["--tokens", "1,2", "--new", "2"],
            "vllm_loader.py": [],
        }
        found = sorted(path.name for path in (ROOT / "examples" / "python").glob("*.py"))
        self.assertEqual([name for name in found if name in runs], sorted(runs))
        with opened(named("composed/deepseek-moe")) as place:
            for name, arguments in runs.items():
                command = [sys.executable, str(ROOT / "examples" / "python" / name), str(place), *arguments]
                done = subprocess.run(command, capture_output=True, text=True, timeout=300)
                self.assertEqual(done.returncode, 0, done.stderr[-1000:])
                self.assertTrue(done.stdout, name)


def edit(path: Path, changes: dict[str, Any]) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


if __name__ == "__main__":
    unittest.main()
