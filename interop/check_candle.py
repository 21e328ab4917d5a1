#!/usr/bin/env python3
"""Quantized Llamas in candle, by the example of `examples/candle`, against transformers over the dense weights.

usage: check_candle.py BINARY [--example EXECUTABLE] [--fixtures FOLDER]

Every fixture that is a whole Llama, in whatever convention, is continued by 32 tokens, greedily and in F32: by candle, which gets its
weights from the checkpoint through safequant (the example is built with cargo unless EXECUTABLE is given), and by transformers, which
loads what `safequant dequantize --dtype f32` writes (held to the producers' own values by `check_dequant.py`). The tokens must be the
same, and that must mean something: the logits of both may be apart by TOLERANCE, which no wrong weight stays under; the likeliest
token must lead by MARGIN, so that rounding does not choose it. Small random models like to repeat themselves; of each convention of
PROMISED, two models at least must say three different tokens or more.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from check_llama_cpp import as_model
from check_runtimes import is_whole, own_files
from common import tool

ROOT = Path(__file__).resolve().parent.parent
#: Below the smallest vocabulary, and such that the models say more than one thing.
PROMPT = [30, 20, 10, 4, 6, 15, 25, 12]
N_TOKENS = 32
#: How far logits may be apart, as a part of the standard deviation of a step's logits: sums of a few hundred products in F32, in
#: another order. 1.1e-5 was seen.
TOLERANCE = 5e-5
#: How far the likeliest token must be ahead, in the same measure.
MARGIN = 2e-4
#: Conventions that must have been compared, by `quant_method`.
PROMISED = {"gptq", "awq", "fp8", "compressed-tensors"}
#: Whole Llamas that cannot be run.
SKIPPED = {
    "optimum-quanto/quanto-qfloat8": "rows of zeros are NaN: so quanto stores them",
    "torchao/torchao-fp8wo-nan-row": "a row is NaN, on purpose",
}

#: Tokens, each with its logit.
Continued = list[tuple[int, float]]


def build() -> Path:
    """The example, built in release mode."""
    target = Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target/candle")
    command = [os.environ.get("CARGO", "cargo"), "build", "--release", "--quiet", "--manifest-path",
               str(ROOT / "examples/candle/Cargo.toml"), "--target-dir", str(target)]
    subprocess.run(command, check=True)
    return target / "release/safequant-candle"


def convention(model: Path) -> str:
    """Of the settings, or of the one toolchain that writes none."""
    config = json.loads((model / "config.json").read_text())
    method = config.get("quantization_config", {}).get("quant_method")
    return str(method or ("mlx" if "quantization" in config else "quanto"))


def by_candle(example: Path, model: Path) -> Continued:
    """What the example says."""
    command = [str(example), str(model), str(N_TOKENS), *map(str, PROMPT)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{model}: {done.stderr.strip()[:500]}")
    pairs = [line.split() for line in done.stdout.splitlines()]
    return [(int(token), float(logit)) for token, logit in pairs]


def by_transformers(dense: Path) -> tuple[Continued, list[float], list[float]]:
    """What transformers says; by how much each token leads, and the standard deviation of the logits that it is chosen from."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()

    model: Any = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float32)
    with torch.no_grad():
        said = model.generate(torch.tensor([PROMPT]), max_new_tokens=N_TOKENS, do_sample=False, eos_token_id=None,
                              output_logits=True, return_dict_in_generate=True)
    continued, leads, spreads = [], [], []
    for token, logits in zip(said.sequences[0][len(PROMPT):].tolist(), said.logits, strict=True):
        first, second = logits[0].topk(2).values.tolist()
        continued.append((token, float(logits[0][token])))
        leads.append(first - second)
        spreads.append(float(logits[0].std()))
    return continued, leads, spreads


def judge(candle: Continued, reference: Continued, leads: list[float], spreads: list[float]) -> tuple[str, bool, bool]:
    """A sentence on two continuations, whether they fail, and whether they say much."""
    theirs, ours = [token for token, _ in reference], [token for token, _ in candle]
    if len(ours) != N_TOKENS or ours != theirs:
        at = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), len(ours))
        return f"token {at} differs: {ours[at:at + 3]}, transformers {theirs[at:at + 3]}", True, False
    apart = max(abs(a - b) / spread for (_, a), (_, b), spread in zip(candle, reference, spreads, strict=True))
    lead = min(lead / spread for lead, spread in zip(leads, spreads, strict=True))
    sentence = f"{len(set(ours))} different tokens, logits at most {apart:.1e} apart, lead at least {lead:.1e}"
    return sentence, not apart < TOLERANCE or not lead > MARGIN, len(set(ours)) >= 3


def check(binary: Path, example: Path, folder: Path) -> tuple[str, str, bool, bool]:
    """The convention of a fixture, and what `judge` says of it."""
    with tempfile.TemporaryDirectory() as place:
        model, dense = Path(place, "model"), Path(place, "dense")
        model.mkdir()
        for path in own_files(folder):
            shutil.copy(path, model)
        tool(binary, "dequantize", model, "-o", dense, "--dtype", "f32", "--quiet")
        as_model(dense)
        return convention(model), *judge(by_candle(example, model), *by_transformers(dense))


def is_llama(folder: Path) -> bool:
    """A whole quantized Llama. The dense models of `llama.cpp/` are there to be converted."""
    is_dense = (folder / "expected.gguf").exists()
    return not is_dense and is_whole(folder) and json.loads((folder / "config.json").read_text())["model_type"] == "llama"


def main() -> None:
    parser = argparse.ArgumentParser(description="Quantized Llamas in candle, against transformers.")
    parser.add_argument("binary", type=Path)
    parser.add_argument("--example", type=Path, help="the example, built")
    parser.add_argument("--fixtures", type=Path, default=ROOT / "fixtures")
    args = parser.parse_args()
    binary, example = args.binary.resolve(), args.example.resolve() if args.example else build()
    visited, faults, telling = 0, list[str](), Counter[str]()
    for folder in sorted(path for path in args.fixtures.glob("*/*") if path.is_dir() and is_llama(path)):
        name = f"{folder.parent.name}/{folder.name}"
        if name in SKIPPED:
            print(f"skip {name:47} {SKIPPED[name]}")
            continue
        said, sentence, failed, tells = check(binary, example, folder)
        visited += 1
        telling[said] += tells
        print(f"{'FAIL' if failed else 'ok':4} {name:47} {said:18} {sentence}", flush=True)
        faults += [name] if failed else []
    if visited < 60 or min(telling[said] for said in PROMISED) < 2:
        sys.exit(f"{visited} models were compared, and of them say three tokens or more: {dict(telling)}")
    if faults:
        sys.exit(f"candle and transformers disagree, or it could not be told: {', '.join(faults)}")
    print(f"{visited} models of {len(telling)} methods: candle says what transformers says, {N_TOKENS} tokens each")


if __name__ == "__main__":
    main()
