"""Better codes for what is quantized already, and biases that make up for the mean input, against NumPy in F64."""

from __future__ import annotations

import json
import tempfile
import unittest
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import safequant

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

MODULE = "model.layers.0.self_attn.q_proj"
OTHER = "model.layers.0.self_attn.o_proj"
N_ROWS, N_COLUMNS, N_TOKENS = 64, 256, 4096


def write_model(folder: Path, tensors: Mapping[str, npt.NDArray[Any]]) -> Path:
    """A checkpoint of Llama's names that holds these tensors in BF16, and nothing else."""
    header: dict[str, Any] = {}
    data = b""
    for name, values in tensors.items():
        content = values.astype(ml_dtypes.bfloat16).tobytes()
        header[name] = {"dtype": "BF16", "shape": list(values.shape), "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header).encode()
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    return folder


def inputs_of(seed: int) -> F64:
    """[N_TOKENS, N_COLUMNS]: features that go together, differ in size, and have means."""
    rng = np.random.default_rng(seed)
    mixing = np.eye(N_COLUMNS) + rng.standard_normal((N_COLUMNS, N_COLUMNS)) / np.sqrt(N_COLUMNS)
    mean = 0.8 * rng.standard_normal(N_COLUMNS)
    inputs: F64 = (rng.standard_normal((N_TOKENS, N_COLUMNS)) @ mixing + mean) * np.exp(0.5 * rng.standard_normal(N_COLUMNS))
    return inputs


def write_statistics(path: Path, inputs: F64) -> Path:
    """What calibration would keep of these inputs, for both modules."""
    hessian: F32 = (inputs.T @ inputs / len(inputs)).astype(np.float32)
    hessian = ((hessian + hessian.T) / 2).astype(np.float32)
    statistics = safequant.ModuleStatistics(
        token_count=len(inputs),
        hessian=hessian,
        hessian_diagonal=hessian.diagonal().copy(),
        mean_abs_input=np.abs(inputs).mean(0).astype(np.float32),
        mean_input=inputs.mean(0).astype(np.float32),
    )
    metadata = {"format": "safequant-calibration", "format_version": "1", "hessian": "full", "accumulation": "F64", "sequential": "false"}
    safequant.Statistics({MODULE: statistics, OTHER: statistics}, metadata).save(path)
    return path


def dense(folder: Path, name: str) -> F64:
    """A tensor of a checkpoint, or the weight that it stands for, rounded as readers round it: to BF16 here."""
    view = safequant.open(folder).dense()
    values: F64 = np.asarray(view[name].read()).astype(np.float64)
    return values


def output_error(model: Path, result: Path, module: str, inputs: F64) -> float:
    """``sum (y - y')^2 / sum (W x)^2`` over all tokens, biases and all."""
    weight, found = dense(model, f"{module}.weight"), dense(result, f"{module}.weight")
    shift: F64 | float = 0.0
    if module == MODULE:
        shift = dense(result, f"{module}.bias") - dense(model, f"{module}.bias")
    lost = inputs @ (weight - found).T - shift
    return float((lost**2).sum() / ((inputs @ weight.T) ** 2).sum())


class RefineTest(unittest.TestCase):
    def setUp(self) -> None:
        place = tempfile.TemporaryDirectory()
        self.addCleanup(place.cleanup)
        self.place = Path(place.name)
        rng = np.random.default_rng(4)
        weights = 0.04 * rng.standard_normal((2, N_ROWS, N_COLUMNS))
        self.model = write_model(
            self.place / "model",
            {f"{MODULE}.weight": weights[0], f"{MODULE}.bias": 0.3 * rng.standard_normal(N_ROWS), f"{OTHER}.weight": weights[1]},
        )
        self.inputs = inputs_of(5)
        self.statistics = write_statistics(self.place / "statistics.safetensors", self.inputs)

    def test_codes_get_better_and_nothing_else_changes(self) -> None:
        n_conventions = 0
        for convention in ("compressed-tensors", "gptq", "awq"):
            with self.subTest(convention=convention):
                start, better = self.place / f"{convention}-rtn", self.place / convention
                scheme = "W4A16_ASYM" if convention == "awq" else "W4A16"
                safequant.quantize(self.model, start, scheme=scheme, convention=convention)
                summary = safequant.refine(start, better, reference=self.model, calibration=self.statistics)
                refined = [m for m in summary.modules if m.action == "refine"]
                self.assertEqual(sorted(m.name for m in refined), [OTHER, MODULE])
                for module in refined:
                    before, after = (output_error(self.model, x, module.name, self.inputs) for x in (start, better))
                    assert module.output_error is not None and module.output_error_before is not None
                    self.assertLess(after, 0.6 * before)
                    self.assertAlmostEqual(module.output_error_before / before, 1, delta=0.02)
                    self.assertAlmostEqual(module.output_error / after, 1, delta=0.02)
                difference = safequant.diff(start, better, levels=["structure", "config"])
                self.assertTrue(difference.equal, difference)
                n_conventions += 1
        self.assertEqual(n_conventions, 3)

    def test_plan_and_refusals(self) -> None:
        start = self.place / "rtn"
        safequant.quantize(self.model, start, scheme="W4A16")
        options: dict[str, Any] = {"reference": self.model, "calibration": self.statistics}
        plan = safequant.plan("refine", start, self.place / "planned", **options)
        self.assertEqual([m.action for m in plan.modules].count("refine"), 2)
        with self.assertRaises(safequant.RefusedError):
            safequant.refine(start, self.place / "x", ignore=["*"], **options)
        with self.assertRaises(safequant.MalformedError):
            safequant.refine(self.model, self.place / "x", **options)

    def test_biases_are_those_of_the_formula(self) -> None:
        for method in ("mse", "gptq", "refine"):
            with self.subTest(method=method):
                kept, corrected = self.place / f"{method}-kept", self.place / f"{method}-corrected"
                options: dict[str, Any] = {"scheme": "W3A16", "method": method, "effort": "high", "calibration": self.statistics}
                safequant.quantize(self.model, kept, **options)
                summary = safequant.quantize(self.model, corrected, bias_correction=True, **options)
                found = {m.name: m.corrected_bias for m in summary.modules if m.action == "quantize"}
                self.assertEqual(found, {MODULE: f"{MODULE}.bias", OTHER: None})
                lost = dense(self.model, f"{MODULE}.weight") - dense(corrected, f"{MODULE}.weight")
                wanted = dense(self.model, f"{MODULE}.bias") + lost @ self.inputs.mean(0)
                bias = dense(corrected, f"{MODULE}.bias")
                # Half a step of BF16, and what statistics in F32 leave.
                np.testing.assert_allclose(bias, wanted, rtol=0.51 / 128, atol=1e-5)
                without, with_it = (output_error(self.model, x, MODULE, self.inputs) for x in (kept, corrected))
                self.assertLess(with_it, without)
                same = [dense(x, f"{OTHER}.weight") for x in (kept, corrected)]
                np.testing.assert_array_equal(same[0], same[1])

    def test_bias_correction_needs_statistics(self) -> None:
        with self.assertRaises(safequant.UsageError):
            safequant.quantize(self.model, self.place / "x", scheme="W4A16", bias_correction=True)
        with self.assertRaises(safequant.UsageError):
            safequant.quantize(
                self.model, self.place / "x", scheme="W4A16", bias_correction=True, method="awq", calibration=self.statistics
            )


if __name__ == "__main__":
    unittest.main()
