#!/usr/bin/env python3
"""What the profile of llama.cpp says of the fixtures, against what llama.cpp does with them.

usage: check_llama_cpp.py BINARY LLAMA_CPP_TREE [FIXTURES]

LLAMA_CPP_TREE is a checkout of llama.cpp (or `vendor/llama.cpp` of the sources of llama-cpp-python); the interpreter needs torch,
transformers, safetensors and sentencepiece, and llama-cpp-python if the results are to run.

llama.cpp loads a checkpoint of safetensors by way of its own converter. So every fixture whose tool wrote a whole language model goes
through `convert_hf_to_gguf.py --outtype f32`, and so does what `safequant dequantize --dtype f32` makes of the same fixture (held to
the producers' own values by `check_dequant.py`). The answer of llama.cpp is then one of

- `refuses`: the converter raises, or leaves out a tensor that the dense model has, or gives it another shape;
- `wrong`: every tensor is there, and some values are others;
- `loads`: every tensor is there with the values of the dense model. If llama-cpp-python is installed, llama.cpp also opens the file
  and evaluates a few tokens of it: that it must, and what it computes must be finite.

A GGUF fixture is opened as it is. `safequant audit --runtime llama.cpp` must give the same answer. Exits with 1 where the two
disagree, but for KNOWN, each with its reason; an entry of KNOWN that agrees fails too, so that the list does not outlive its reasons.

The converter runs as it is but for the vocabulary, which is not what is asked about here and which most fixtures do not have: all
models are lent the `tokenizer.model` of a fixture (the converter cuts or pads it to `vocab_size`). Architectures that do not look
for such a file but for a vocabulary as GPT-2 has it (gpt-oss, Qwen 3 with experts) are made to: one function is replaced.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from check_runtimes import is_whole, own_files
from common import tool

ROOT = Path(__file__).resolve().parent.parent
#: The fixture whose vocabulary the others are lent.
VOCABULARY = "llama.cpp/hf-mixtral-spm/tokenizer.model"
#: Files that would be a vocabulary of a model's own.
TOKENIZERS = {"tokenizer.json", "tokenizer.model", "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json", "tekken.json"}
#: Tensors that the converter writes beside a weight in NVFP4.
BESIDE = (".scale", ".input_scale")

#: Where the profile is known to say something else than llama.cpp does.
KNOWN = {
    "gptqmodel/gptq-dynamic": "modules of several widths, which are all read at the one of `bits`: no line of a profile can say so",
    "gptqmodel/gptq-lm_head": "the same: the head is wider than the rest",
    "gptqmodel/gptq-odd-shapes": "some zero point is 0, as the data tells and no header; of asymmetric ones the profile says that llama.cpp stumbles",
    "gptqmodel/gptq-w2g64-asym": "some zero point is 0, as above",
    "gptqmodel/gptq-w4g128-asym": "some zero point is 0, as above",
    "llm-compressor/ct-w8a16-channel": "8 bits per channel load in bytes and not packed in words: no line can say both at once",
    "transformers/fgfp8-moe": "modules of experts whose scales are stacks, by a fault of transformers, which does not read them either",
    "transformers/fgfp8-ue8m0": "scales left beside two weights that were not quantized, of which llama.cpp takes account",
}
#: Whole models that the converter does not know even dense, and so refuses for more than one reason.
NO_MODEL = {
    "mlx/mlx-moe-4bit": "experts are called switch_mlp",
}

Tensors = dict[str, "np.ndarray[tuple[int, ...], np.dtype[np.float32]]"]


def fixtures(root: Path) -> Iterator[tuple[str, Path]]:
    """Whole quantized models, by name: checkpoints with their embeddings, and GGUF files of an architecture."""
    for folder in sorted(path for path in root.glob("*/*") if path.is_dir()):
        is_dense = (folder / "expected.gguf").exists()
        if not is_dense and (is_whole(folder) or (folder / "model.gguf").exists()):
            yield f"{folder.parent.name}/{folder.name}", folder


def stage(folder: Path, place: Path, vocabulary: Path) -> None:
    """The fixture's checkpoint under a borrowed vocabulary."""
    place.mkdir()
    for path in own_files(folder):
        if path.name not in TOKENIZERS:
            shutil.copy(path, place)
    shutil.copy(vocabulary, place)


def verdict(binary: Path, model: Path) -> tuple[str, list[str]]:
    """What the profile says, as one of the three answers, and why."""
    record = json.loads(tool(binary, "audit", model, "--runtime", "llama.cpp", "--format", "json", "--fail-on", "never"))
    runtime = record["runtimes"][0]
    effects = {reason["effect"] for reason in runtime["reasons"]}
    answer = "refuses" if "refuses" in effects else "wrong" if "wrong" in effects else "loads"
    if (answer == "loads") != runtime["loads"]:
        raise RuntimeError(f"{model}: loads is {runtime['loads']}, with reasons that are {sorted(effects)}")
    return answer, [reason["message"] for reason in runtime["reasons"]]


def convert(model: Path, out: Path) -> Path:
    """llama.cpp's converter over a checkpoint. Raises whatever it raises."""
    import convert_hf_to_gguf

    sys.argv = ["convert_hf_to_gguf.py", str(model), "--outfile", str(out), "--outtype", "f32"]
    convert_hf_to_gguf.main()
    return out


def tensors(path: Path) -> Tensors:
    """Every tensor of a GGUF file in F32, as llama.cpp computes with it: a weight in NVFP4 times its scale."""
    import gguf

    found: Tensors = {}
    for tensor in gguf.GGUFReader(path).tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        found[tensor.name] = values.reshape([int(n) for n in reversed(tensor.shape)])
    for name in [name for name in found if name.endswith(".scale")]:
        scale, weight = found[name], name.removesuffix("scale") + "weight"
        # One for a weight, or one for each expert of a stack.
        found[weight] = found[weight] * scale.reshape([-1] + [1] * (found[weight].ndim - 1))
    return found


def compare(theirs: Tensors, dense: Tensors) -> tuple[str, str]:
    """The answer that a conversion amounts to, and what is the matter with it."""
    missing = sorted(dense.keys() - theirs.keys())
    extra = sorted(name for name in theirs.keys() - dense.keys() if not name.endswith(BESIDE))
    if missing or extra:
        return "refuses", f"without {missing[:2]}" if missing else f"with {extra[:2]}"
    differ = []
    for name, values in dense.items():
        own = theirs[name]
        if own.shape != values.shape:
            return "refuses", f"{name}: {list(own.shape)} instead of {list(values.shape)}"
        # The order of factors may differ where there are three of them (NVFP4): a unit in the last place or two.
        if not np.allclose(own, values, rtol=1e-6, atol=0, equal_nan=True):
            differ.append(f"{name}: {np.abs(own - values).max():.3g} off, values up to {np.abs(values).max():.3g}")
    return ("wrong", f"{len(differ)} tensors, {differ[0]}") if differ else ("loads", "")


def attempt(model: Path, out: Path) -> str | None:
    """What keeps the converter from converting a checkpoint."""
    try:
        convert(model, out)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever it raises is its answer
        lines = str(error).splitlines() or [""]
        return f"{type(error).__name__}: {lines[0]}"[:200]
    return None


def does(binary: Path, model: Path, scratch: Path) -> tuple[str, str]:
    """What llama.cpp makes of a staged checkpoint; `neither` if it refuses the dense model, too."""
    dense = scratch / "dense"
    tool(binary, "dequantize", model, "-o", dense, "--dtype", "f32", "--quiet")
    shutil.copy(model / "tokenizer.model", dense)
    as_model(dense)
    refused = attempt(dense, scratch / "dense.gguf")
    fault = attempt(model, scratch / "converted.gguf")
    if refused:
        return "neither", f"dense: {refused}"
    return ("refuses", fault) if fault else compare(tensors(scratch / "converted.gguf"), tensors(scratch / "dense.gguf"))


def run(model: Path) -> str | None:
    """What keeps llama.cpp from loading a GGUF file and evaluating five tokens of it. Its own assertions end the process."""
    import llama_cpp as api

    loaded = api.llama_model_load_from_file(str(model).encode(), api.llama_model_default_params())
    if not loaded:
        return "llama.cpp does not load it"
    parameters = api.llama_context_default_params()
    parameters.n_ctx, parameters.n_threads = 32, 1
    context = api.llama_init_from_model(loaded, parameters)
    tokens = (api.llama_token * 5)(1, 5, 9, 23, 42)
    if not context or api.llama_decode(context, api.llama_batch_get_one(tokens, 5)):
        return "llama.cpp does not evaluate it"
    n_words = api.llama_vocab_n_tokens(api.llama_model_get_vocab(loaded))
    logits = np.ctypeslib.as_array(api.llama_get_logits(context), (n_words or 1,))
    return None if np.isfinite(logits).all() else "the logits are not finite"


def runs(model: Path) -> str | None:
    """`run`, in a process of its own."""
    done = subprocess.run([sys.executable, __file__, "--run", str(model)], capture_output=True, text=True)
    lines = [line for line in done.stderr.splitlines() if "assert" in line.lower()] or done.stderr.strip().splitlines()
    return (lines or [f"status {done.returncode}"])[-1][:300] if done.returncode else None


def as_model(dense: Path) -> None:
    """Makes of a dense copy the model that others load. Some weights expect inputs that are multiplied by a factor per feature: the
    copy with the factors applied takes their place (specs/conventions/modelopt.md). Stacks of gpt-oss, which keep the order that they
    have in MXFP4, are turned to the order of transformers (specs/conventions/mxfp4.md, X4)."""
    from safetensors.torch import load_file, save_file

    path = dense / "model.safetensors"
    stored = load_file(path)
    for name in [name for name in stored if name.endswith("_effective")]:
        stored[name.removesuffix("_effective")] = stored.pop(name)
    for name in [name for name in stored if name.endswith((".experts.down_proj", ".experts.gate_up_proj"))]:
        stored[name] = stored[name].transpose(1, 2).contiguous()
    save_file(stored, path, {"format": "pt"})


def prepare(tree: Path) -> None:
    """Finds the converter, and has every architecture take the borrowed vocabulary."""
    if not (tree / "convert_hf_to_gguf.py").exists() or not (tree / "conversion/base.py").exists():
        sys.exit(f"{tree} is no tree of llama.cpp with convert_hf_to_gguf.py and conversion/ (since b9000 or so)")
    sys.path[:0] = [str(tree), str(tree / "gguf-py")]
    os.environ["TQDM_DISABLE"] = "1"
    from conversion.base import TextModel

    TextModel._set_vocab_gpt2 = TextModel._set_vocab_sentencepiece
    logging.disable(logging.CRITICAL)


def main() -> None:
    if sys.argv[1] == "--run":
        sys.exit(run(Path(sys.argv[2])))
    binary, tree = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    root = Path(sys.argv[3]) if len(sys.argv) > 3 else ROOT / "fixtures"
    prepare(tree)
    has_engine = importlib.util.find_spec("llama_cpp") is not None
    if not has_engine:
        print("NOT CHECKED: whether llama.cpp runs what its converter writes (llama-cpp-python is not installed)")
    failed, n_run = list[str](), 0
    visited, answers = set[str](), set[str]()
    for name, folder in fixtures(root):
        with tempfile.TemporaryDirectory() as place:
            scratch = Path(place)
            model = folder / "model.gguf"
            if model.exists():
                said, reasons = verdict(binary, model)
                did, why = ("loads", "") if tensors(model) else ("refuses", "no tensors")
            else:
                model = scratch / "model"
                stage(folder, model, root / VOCABULARY)
                said, reasons = verdict(binary, model)
                did, why = does(binary, model, scratch)
                model = scratch / "converted.gguf"
            if did == "neither" and name in NO_MODEL:
                did = "refuses"
            fault = None
            if did == "loads" and has_engine:
                fault, n_run = runs(model), n_run + 1
        agrees = said == did and not fault
        visited.add(name)
        answers.add(did)
        why = f"({fault or why})" if fault or why else ""
        told = why if agrees else f"known: {KNOWN[name]} {why}" if name in KNOWN else f"DIFFERS: {reasons[:1]} {why}"
        print(f"{name:50} profile {said:7} llama.cpp {did:7} {told}", flush=True)
        if agrees == (name in KNOWN):
            failed.append(name)
    gone = sorted((KNOWN.keys() | NO_MODEL.keys()) - visited)
    if len(visited) < 75 or not {"loads", "wrong", "refuses"} <= answers or gone:
        sys.exit(f"{len(visited)} fixtures were tried, with the answers {sorted(answers)}; named here, but no fixture: {gone}")
    if failed:
        sys.exit(f"profile and llama.cpp disagree (or agree against KNOWN): {', '.join(failed)}")
    print(f"{len(visited)} fixtures: the profile says what llama.cpp does, but for {len(KNOWN)} known cases; llama.cpp ran {n_run} models")


if __name__ == "__main__":
    main()
