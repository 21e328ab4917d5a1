"""What is left of a model: the output error of its layers on held-out inputs, and its sentence embeddings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import prepare
import torch
from results import Figures
from safequant.statistics import Statistics
from safetensors.torch import load_file

#: Evaluation sentences whose embeddings are compared.
EMBEDDED = 160


class Judge:
    """Holds the model and both statistics, and judges weights."""

    def __init__(self, work: Path) -> None:
        """Reads a work folder of ``prepare``."""
        torch.set_num_threads(1)
        self.model = prepare.load(work / "model")
        self.layers = prepare.linears(self.model)
        self.weights = {name: layer.weight.detach().clone() for name, layer in self.layers.items()}
        texts = {"evaluation": work / "evaluation/evaluation.safetensors", "calibration": work / "statistics/plain-full.safetensors"}
        self.hessians = {text: hessians(path) for text, path in texts.items()}
        self.norms = {text: {n: quadratic(self.weights[n], h) for n, h in found.items()} for text, found in self.hessians.items()}
        lines = (work / "text/evaluation.txt").read_text().splitlines()
        chosen = lines[:: max(1, len(lines) // EMBEDDED)][:EMBEDDED]
        self.batches = prepare.batches(work / "model", chosen)
        self.original = self.embeddings()

    def judge(self, weights: Mapping[str, torch.Tensor], embed_below: float = math.inf) -> Figures:
        """Figures of weights by module, in any shape with the right number of elements.

        Args:
            weights: Dequantized.
            embed_below: Embeddings take longest by far; only weights with less error get theirs.

        Raises:
            ValueError: A module is missing, is none of the model's, or has values that are not finite.
        """
        if set(weights) != set(self.weights):
            raise ValueError(f"expected the 36 modules of the model; differs by {sorted(set(weights) ^ set(self.weights))[:4]}")
        given = {name: weight.float().reshape(self.weights[name].shape) for name, weight in weights.items()}
        for name, weight in given.items():
            if not bool(torch.isfinite(weight).all()):
                raise ValueError(f"{name}: values that are not finite")
        errors = {text: self.error(given, text) for text in self.hessians}
        noise = sum(float((given[n] - w).double().square().sum()) for n, w in self.weights.items())
        signal = sum(float(w.double().square().sum()) for w in self.weights.values())
        decibels = 10 * math.log10(signal / max(noise, 1e-300))
        cosine = self.cosine(given) if errors["evaluation"] < embed_below else None
        return Figures(errors["evaluation"], errors["calibration"], decibels, cosine)

    def error(self, given: Mapping[str, torch.Tensor], text: str) -> float:
        """Mean over the layers of ``tr((W - Q) H (W - Q)^T) / tr(W H W^T)``, in percent."""
        of = self.hessians[text]
        ratios = [quadratic(given[name] - weight, of[name]) / self.norms[text][name] for name, weight in self.weights.items()]
        return 100 * sum(ratios) / len(ratios)

    def cosine(self, given: Mapping[str, torch.Tensor]) -> float:
        """Mean cosine of sentence embeddings with those of the original weights."""
        self.put(given)
        try:
            return float((self.embeddings() * self.original).sum(1).double().mean())
        finally:
            self.put(self.weights)

    def put(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Gives the model other weights."""
        with torch.no_grad():
            for name, layer in self.layers.items():
                layer.weight.copy_(weights[name])

    def embeddings(self) -> torch.Tensor:
        """``[sentences, hidden]``, of length 1: the mean over tokens, as the model's own pooling."""
        rows = []
        with torch.no_grad():
            for batch in self.batches:
                states = self.model(**batch).last_hidden_state
                mask = batch["attention_mask"][:, :, None].float()
                rows.append(torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1)))
        return torch.cat(rows)


def hessians(path: Path) -> dict[str, torch.Tensor]:
    """``H`` of each module in F64; modules that share one share it here."""
    made: dict[int, torch.Tensor] = {}
    found = {}
    for name, module in Statistics.load(path).items():
        assert module.hessian is not None, f"{path}: {name}: only the diagonal"
        at = module.hessian.__array_interface__["data"][0]
        if at not in made:
            made[at] = torch.from_numpy(module.hessian.copy()).double()
        found[name] = made[at]
    return found


def quadratic(matrix: torch.Tensor, hessian: torch.Tensor) -> float:
    """``tr(M H M^T)``."""
    wide = matrix.double()
    return float(((wide @ hessian) * wide).sum())


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a dense checkpoint by module, F32."""
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= weights_in(path)
    return found


def weights_in(path: Path) -> dict[str, torch.Tensor]:
    """The weights of one file by module."""
    tensors: dict[str, torch.Tensor] = load_file(path)
    return {name.removesuffix(".weight"): tensor for name, tensor in tensors.items() if name.endswith(".weight")}
