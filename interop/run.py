#!/usr/bin/env python3
"""What safequant writes, read by the field's own libraries.

usage: run.py BINARY [--all] [--only SUBSTRING] [--gptqmodel PYTHON] [--mlx PYTHON] [--bitsandbytes PYTHON]
       [--hqq PYTHON] [--quanto PYTHON] [--torchao PYTHON] [--modelopt PYTHON] [--comfyui PYTHON] [--gguf PYTHON]

Quantizes tiny Llamas to every scheme of every convention that the tool can write (docs/conventions.md, generated from the
registries) and compares what the other reader makes of it with what `safequant dequantize` does, bit for bit. Prints one row
per comparison; 1 if a row fails or if a promised comparison was not made. `--all` adds readers that are too heavy for every
run, in environments of their own (each option is the path of an interpreter): GPTQModel; those of HEAVY, which read what every
fixture is converted to and what the tiny Llamas are quantized to (some of them also quantize the tiny Llamas themselves, and must
write what we write); gguf-py with llama.cpp, which reads small models with tokenizers in every GGUF scheme; llama.cpp's own converter,
by which the profile of llama.cpp is judged (`check_llama_cpp.py`; LLAMA_CPP_TREE in the environment names a checkout); and candle, by
way of our example (`check_candle.py`, built with cargo).
"""

import argparse
import collections
import json
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import check_container
import check_dequant
import readers
import tiny_llama
import torch
from common import Failed, tool

ROOT = Path(__file__).resolve().parent.parent
#: The reader that judges a convention's tensors.
READERS = {
    "compressed-tensors": readers.compressed_tensors,
    "gptq": readers.gptq,
    "gptq_v2": readers.gptq,
    "awq": readers.awq,
    "awq_gemv": readers.awq,
    "awq_gemv_fast": readers.awq,
    "fp8": readers.fp8,
}
#: Conventions whose library reads conversions in an environment of its own: `read_<convention>.py`.
HEAVY = ["mlx", "bitsandbytes", "hqq", "quanto", "torchao", "modelopt", "comfyui"]
#: Those whose library also quantizes the same source once more: model, scheme, group size.
QUANTIZES = {
    "hqq": [("even-bf16", s, None) for s in ("W2A16_ASYM", "W3A16_ASYM", "W4A16_ASYM", "W5A16_ASYM", "W6A16_ASYM", "W8A16_ASYM")]
    + [("even-f32", "W4A16_ASYM", 64), ("odd-bf16", "W3A16_ASYM", 8)],
    "quanto": [("even-bf16", s, None) for s in ("W4A16_ASYM", "W2A16_ASYM", "W8A16", "FP8_DYNAMIC")]
    + [("even-f32", "W4A16_ASYM", None), ("odd-bf16", "W8A16", None), ("odd-bf16", "W4A16_ASYM", None)],
    "torchao": [("even-bf16", s, None) for s in ("W4A16", "W4A16_ASYM", "W3A16", "W2A16", "W8A16", "W8A8", "FP8", "FP8_DYNAMIC", "NVFP4A16",
                                                 "MXFP4", "MXFP8")]
    + [("even-bf16", "W8A16", -1), ("even-f32", "W8A16", -1), ("odd-bf16", "W8A16", -1), ("even-f32", "W4A16_ASYM", 32)],
    "modelopt": [("even-bf16", s, None) for s in ("FP8_DYNAMIC", "FP8_BLOCK", "NVFP4A16", "MXFP8", "W4A16", "W8A16")]
    + [("odd-bf16", "W8A16", None)],
}
#: Methods beside `rtn`, and whether they take statistics; the last one only where offsets are floats, of which the others know nothing.
METHODS = {"mse": True, "refine": True, "hqq": False}
HALF_QUADRATIC = ["hqq", "quanto", "mlx"]
#: Small models that are quantized by them in every GGUF scheme: a Llama, and one with experts.
SEARCHED_GGUF = ["hf-llama3-bpe", "hf-qwen3-moe"]
#: What the audit may note of them all the same: scales of either sign, where the levels have one more on one side, and scales that
#: are small for their dtype. Nothing that is a warning.
NOTES = ["SC012", "SC013"]
#: What transformers must load and run (issue 2): scheme and convention.
GENERATES = [("FP8_BLOCK", "fp8"), ("FP8_BLOCK", "compressed-tensors"), ("W4A16", "compressed-tensors")]
#: Schemes that issue 2 promises; each must have been compared in at least one convention.
PROMISED = ["W4A16", "W4A16_ASYM", "W8A16", "W3A16", "W2A16", "W8A8", "FP8", "FP8_DYNAMIC", "FP8_BLOCK"]


class Table:
    """Rows of results, printed as they come."""

    def __init__(self):
        self.failed = 0
        self.rows = []

    def row(self, model, scheme, convention, reader, verdict, failed=False):
        self.failed += failed
        self.rows.append((model, scheme, convention, reader, verdict))
        mark = "FAIL" if failed else "skip" if verdict.startswith("NOT CHECKED") else "ok"
        print(f"{mark:4} {model:10} {scheme:12} {convention:19} {reader:22} {verdict}", flush=True)


def writable():
    """`(convention, scheme)` for everything the tool can write, from the generated page."""
    page = (ROOT / "docs/conventions.md").read_text()
    rows = re.findall(r"^\| `([^`]+)` \| yes \| yes \| (.*?) \| .* \|$", page, re.MULTILINE)
    return [(convention, scheme) for convention, cell in rows for scheme in re.findall(r"`([^`]+)`", cell)]


def compare(theirs, ours, finite=True):
    """A sentence on the comparison of two sets of weights, and whether they differ; `finite`: whether all values must be."""
    missing = sorted(set(theirs) - set(ours))
    if missing or not theirs:
        return f"not in our output: {missing[:2]}" if missing else "the reader found nothing", True
    for name, tensor in theirs.items():
        own = ours[name]
        if tensor.shape != own.shape or tensor.dtype != own.dtype:
            return f"{name}: {tensor.dtype} {list(tensor.shape)}, ours {own.dtype} {list(own.shape)}", True
        both_nan = tensor.isnan() & own.isnan()
        if not bool((both_nan | (tensor == own)).all()):
            count = int((~both_nan & (tensor != own)).sum())
            worst = float((tensor.float() - own.float()).abs().max())
            return f"{name}: {count} of {own.numel()} differ, at most by {worst:.3g}", True
        if finite and not torch.isfinite(own.float()).all():
            return f"{name}: not finite", True
    return f"{len(theirs)} weights equal, bit for bit", False


def tokens_of(model):
    """What the model says after a fixed prompt, with its logits."""
    prompt = torch.tensor([[1, 5, 9, 23, 42]])
    with torch.no_grad():
        logits = model(prompt).logits
        return model.generate(prompt, max_new_tokens=12, do_sample=False, eos_token_id=None)[0].tolist(), logits


def check_generation(quantized, dense):
    """transformers loads both, has equal weights, and says the same."""
    model, reference = readers.transformers_quantized(quantized), readers.transformers_model(dense)
    theirs, ours = dict(model.named_parameters()), dict(reference.named_parameters())
    sentence, failed = compare({n: p.data for n, p in theirs.items()}, {n: p.data for n, p in ours.items()})
    if failed:
        return sentence, True
    said, logits = tokens_of(model)
    if not torch.isfinite(logits).all():
        return "logits are not finite", True
    if said != tokens_of(reference)[0]:
        return f"other tokens than the dense model: {said}", True
    return f"{sentence}; generates {said[5:9]}... as the dense model", False


def one(table, binary, scratch, name, source, scheme, convention, args):
    """Everything about one output."""
    quantized, dense = scratch / "quantized", scratch / "dense"
    options = ["--scheme", scheme, "--convention", convention, "--quiet"]
    try:
        tool(binary, "quantize", source, "-o", quantized, *options)
    except Failed as failed:
        # A tool may refuse what a convention cannot hold (status 4), and the odd model is there to find such things.
        expected = failed.status == 4 and (name.startswith("odd") or convention == "gptq")
        table.row(name, scheme, convention, "quantize", f"refused: {failed}", not expected)
        return False
    tool(binary, "dequantize", quantized, "-o", dense, "--dtype", "auto", "--quiet")
    tensors, _, _ = check_container.check_output(quantized)
    check_container.check_output(dense)
    ours = readers.load(dense)
    sentence, failed = compare(READERS[convention](quantized), ours)
    table.row(name, scheme, convention, READERS[convention].__name__, f"{sentence}; {tensors} tensors open", failed)
    if (scheme, convention) in GENERATES and name.startswith("even"):
        sentence, wrong = check_generation(quantized, dense)
        table.row(name, scheme, convention, "transformers", sentence, wrong)
    if args.all and (convention.startswith("gptq") or convention == "awq") and args.gptqmodel:
        sentence, wrong = heavy_gptq(args.gptqmodel, quantized, dense)
        table.row(name, scheme, convention, "gptqmodel", sentence, wrong)
    return not failed


def calibrated(source, place):
    """Statistics of what the linear layers of a model see of some random tokens."""
    import safequant

    model, generator = readers.transformers_model(source), torch.Generator().manual_seed(5)
    batches = [{"input_ids": torch.randint(4, model.config.vocab_size, (4, 64), generator=generator)} for _ in range(8)]
    safequant.calibrate(model, batches, path=place)
    return place


def by_methods(table, binary, name, source, statistics, scheme, convention, then):
    """What every method makes of a model: the audit of it, held against that of `rtn`, and `then(quantized, dense)`, which gives a
    sentence and whether it is a fault.

    A row for each method; how many there were.
    """
    done = 0
    suffix = ".gguf" if convention == "gguf" else ""
    options = ["--scheme", scheme, "--convention", convention, "--quiet", "--method"]
    with tempfile.TemporaryDirectory() as scratch:
        plain = Path(scratch, f"plain{suffix}")
        try:
            tool(binary, "quantize", source, "-o", plain, *options, "rtn")
            old = findings(binary, plain)
        except Failed as failed:
            # A search leaves out the zero points that a convention cannot hold; rounding to nearest has no choice.
            if failed.status != 4:
                raise
            old = findings(binary, source)
    for method, is_informed in METHODS.items():
        if method == "hqq" and not (convention in HALF_QUADRATIC and scheme.endswith("_ASYM")):
            continue
        with tempfile.TemporaryDirectory() as scratch:
            quantized, dense = Path(scratch, f"quantized{suffix}"), Path(scratch, "dense")
            # How hard a method tries is no matter of the format.
            more = ["--calibration", statistics, "--effort", "fast"] if is_informed else []
            try:
                tool(binary, "quantize", source, "-o", quantized, *options, method, *more)
            except Failed as failed:
                table.row(name, scheme, convention, method, f"refused: {failed}", True)
                continue
            sentence, failed = then(quantized, dense)
            new = findings(binary, quantized) - old
            table.row(name, scheme, convention, method, f"{sentence}; audit: {sorted(new) or 'nothing new'}", failed or bool(new))
            done += 1
    return done


def findings(binary, place):
    """How often each rule found something at full depth, by rule and severity, but for NOTES."""
    record = json.loads(tool(binary, "audit", place, "--depth", "full", "--format", "json", "--fail-on", "never"))
    found = collections.Counter((finding["rule"], finding["severity"]) for finding in record["findings"])
    return collections.Counter({(rule, severity): n for (rule, severity), n in found.items() if severity != "note" or rule not in NOTES})


def check_methods(table, binary, pairs, folder):
    """The methods that search, in these pairs of convention and scheme, read by whatever reader is at hand."""
    name = "even-bf16"
    statistics = calibrated(Path(folder, name), Path(folder, "statistics.safetensors"))

    def read(convention):
        def then(quantized, dense):
            if convention not in READERS:
                return "not read here", False
            tool(binary, "dequantize", quantized, "-o", dense, "--dtype", "auto", "--quiet")
            return compare(READERS[convention](quantized), readers.load(dense))

        return then

    done = 0
    for convention, scheme in pairs:
        try:
            done += by_methods(table, binary, name, Path(folder, name), statistics, scheme, convention, read(convention))
        except Exception as error:  # a reader's own failure is a result, too
            table.row(name, scheme, convention, "-", f"{type(error).__name__}: {str(error)[:200]}", True)
    table.row(name, "all", "all", "methods", f"{done} outputs of {', '.join(METHODS)} in {len(pairs)} pairs", done < 2 * len(pairs))


def heavy_gptq(python, quantized, dense):
    """GPTQModel loads the checkpoint and dequantizes it, in its own environment."""
    done = subprocess.run([python, ROOT / "interop/read_gptqmodel.py", quantized, dense], capture_output=True, text=True)
    lines = (done.stdout if done.returncode == 0 else done.stdout + done.stderr).strip().splitlines() or ["no message"]
    return lines[-1][:300], done.returncode != 0


def check_conversions(table, binary, convention, python):
    """Every fixture converted to a convention and read by its own library."""
    compared = refused = 0
    for path in sorted((ROOT / "fixtures").rglob("fixture.json")):
        with tempfile.TemporaryDirectory() as scratch:
            source, target, dense = Path(scratch, "in"), Path(scratch, "target"), Path(scratch, "dense")
            check_dequant.stage(path.parent, source)
            source = check_dequant.opened(source)
            try:
                tool(binary, "convert", source, "-o", target, "--to", convention, "--quiet")
            except Failed:
                # What codes cannot be carried over to (4), and fixtures that are no checkpoints (2).
                refused += 1
                continue
            try:
                tool(binary, "dequantize", target, "-o", dense, "--dtype", "auto", "--quiet")
            except Failed as failed:
                # quanto stores no shapes: sizes that fit no model are not told (specs/conventions/quanto.md, Q17).
                table.row("converted", path.parent.name, convention, "dequantize", f"not read back: {failed}"[:300], convention != "quanto")
                continue
            sentence, failed = heavy(python, convention, target, dense)
            table.row("converted", path.parent.name, convention, convention, sentence, failed)
            compared += 1
    verdict = f"{compared} fixtures converted and read, {refused} refused"
    table.row("converted", "all", convention, convention, verdict, not compared)


def heavy(python, convention, *places):
    """The last line of a library's own script, and whether it failed."""
    done = subprocess.run([python, ROOT / f"interop/read_{convention}.py", *places], capture_output=True, text=True)
    lines = (done.stdout if done.returncode == 0 else done.stdout + done.stderr).strip().splitlines() or ["no message"]
    return lines[-1][:300], done.returncode != 0


def read_by(binary, python, convention):
    """A library's own script over an output, as `by_methods` takes it."""

    def then(quantized, dense):
        tool(binary, "dequantize", quantized, "-o", dense, "--dtype", "auto", "--quiet")
        return heavy(python, convention, quantized, dense)

    return then


def check_quantized(table, binary, convention, python):
    """What we quantize, read by the convention's own library, which for some also quantizes the same weights: the same tensors."""
    every = [(name, scheme, None) for name in tiny_llama.MODELS for writes, scheme in writable() if writes == convention]
    for name, scheme, group in QUANTIZES.get(convention, every):
        with tempfile.TemporaryDirectory() as scratch:
            source, quantized, dense = tiny_llama.make(name, Path(scratch, name)), Path(scratch, "quantized"), Path(scratch, "dense")
            options = ["--scheme", scheme, "--convention", convention, "--quiet"] + (["--group-size", str(group)] if group else [])
            try:
                tool(binary, "quantize", source, "-o", quantized, *options)
            except Failed as failed:
                expected = failed.status == 4 and name.startswith("odd")
                table.row(name, scheme, convention, "quantize", f"refused: {failed}", not expected)
                continue
            tool(binary, "dequantize", quantized, "-o", dense, "--dtype", "auto", "--quiet")
            check_container.check_output(quantized)
            again = [source] if convention in QUANTIZES else []
            table.row(name, scheme, convention, convention, *heavy(python, convention, quantized, dense, *again))
            if name == "even-bf16" and not group:
                statistics = calibrated(source, Path(scratch, "statistics.safetensors"))
                by_methods(table, binary, name, source, statistics, scheme, convention, read_by(binary, python, convention))


def check_gguf(table, binary, only, python):
    """Models with real tokenizers quantized to every scheme of GGUF: gguf-py reads the values, llama.cpp runs the model."""
    schemes = [scheme for convention, scheme in writable() if convention == "gguf"]
    compared = 0
    for folder in sorted((ROOT / "fixtures/llama.cpp").glob("hf-*")):
        with tempfile.TemporaryDirectory() as scratch:
            source = tiny_llama.scaled_up(folder, Path(scratch, "source"))
            is_searched = folder.name in SEARCHED_GGUF
            statistics = calibrated(source, Path(scratch, "statistics.safetensors")) if is_searched else None
            for scheme in schemes:
                if only not in f"{scheme}/gguf":
                    continue
                quantized, dense = Path(scratch, f"{scheme}.gguf"), Path(scratch, f"{scheme}-dense")
                try:
                    tool(binary, "quantize", source, "-o", quantized, "--scheme", scheme, "--convention", "gguf", "--quiet")
                    tool(binary, "dequantize", quantized, "-o", dense, "--dtype", "auto", "--quiet")
                except Failed as failed:
                    table.row(folder.name, scheme, "gguf", "quantize", f"refused: {failed}", True)
                    continue
                sentence, wrong = heavy(python, "gguf", quantized, dense)
                table.row(folder.name, scheme, "gguf", "gguf-py", sentence, wrong)
                compared += not wrong
                if is_searched:
                    compared += by_methods(table, binary, folder.name, source, statistics, scheme, "gguf", read_by(binary, python, "gguf"))
    table.row("-", "all", "gguf", "gguf-py", f"{compared} models read, {len(schemes)} schemes", not compared)


def check_by_script(table, runtime, script, python, *args):
    """One of the scripts that print a line per fixture and end with a verdict; all of it is shown if it fails."""
    done = subprocess.run([python, ROOT / "interop" / script, *args], capture_output=True, text=True)
    lines = (done.stdout + done.stderr).strip().splitlines() or ["no message"]
    for line in lines[:-1] if done.returncode else [line for line in lines if line.startswith("NOT CHECKED")]:
        print(f"     {line}")
    table.row("fixture", "all", "all", runtime, lines[-1][:300], done.returncode != 0)


def check_by_llama_cpp(table, binary, python):
    """The profile of llama.cpp against its converter, if there is a checkout."""
    tree = os.environ.get("LLAMA_CPP_TREE")
    if tree:
        check_by_script(table, "llama.cpp", "check_llama_cpp.py", python, binary, tree)
    else:
        table.row("fixture", "all", "all", "llama.cpp", "NOT CHECKED: LLAMA_CPP_TREE does not name a checkout of llama.cpp")


def check_by_candle(table, binary):
    """Whole Llamas in candle, if there is a cargo to build the example with."""
    if os.environ.get("CARGO") or shutil.which("cargo"):
        check_by_script(table, "candle", "check_candle.py", sys.executable, binary)
    else:
        table.row("fixture", "all", "all", "candle", "NOT CHECKED: there is no cargo")


def check_fixtures(table, binary):
    """The repository's own fixtures, as `cargo xtask test` does."""
    for path in sorted((ROOT / "fixtures").rglob("fixture.json")):
        result = check_dequant.check(binary, path.parent)
        if result is not None:
            counts, faults = result
            verdict = "; ".join(faults[:2]) or f"{sum(counts.values())} tensors as the producer computes them"
            table.row("fixture", path.parent.name, path.parent.parent.name, "producer", verdict, bool(faults))


def check_taken_over(table, binary, scratch):
    """Every fixture that compressed-tensors can hold, converted to it: their decompressed weights against our dequantization."""
    refused = 0
    for path in sorted((ROOT / "fixtures").rglob("fixture.json")):
        if json.loads(path.read_text()).get("finding"):
            continue  # wrong on purpose
        place = Path(scratch, path.parent.parent.name + "-" + path.parent.name)
        place.mkdir()
        check_dequant.stage(path.parent, place / "in")
        source, converted, dense = check_dequant.opened(place / "in"), place / "out", place / "dense"
        try:
            tool(binary, "convert", source, "-o", converted, "--to", "compressed-tensors", "--quiet")
        except Failed:
            refused += 1
            continue
        config = readers.quantization_config(converted)
        if config.get("version") != "0.19.0":
            continue  # act-order and sparse layouts, which this version of the library does not read any more
        tool(binary, "dequantize", converted, "-o", dense, "--dtype", "auto", "--quiet")
        try:
            sentence, failed = compare(readers.compressed_tensors(converted), readers.load(dense), finite=False)
        except Exception as error:  # a reader's own failure is a result, too
            sentence, failed = f"{type(error).__name__}: {str(error)[:200]}", True
        table.row("converted", path.parent.name, "compressed-tensors", "compressed_tensors", sentence, failed)
    print(f"     converted  {refused} fixtures are refused by compressed-tensors")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("binary", type=Path)
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--only", default="", help="part of SCHEME/CONVENTION, or of runtime/RUNTIME")
    parser.add_argument("--gptqmodel", type=Path, help="interpreter of an environment with GPTQModel")
    for convention in HEAVY:
        parser.add_argument(f"--{convention}", type=Path, help=f"interpreter of an environment with {convention}'s library")
    parser.add_argument("--gguf", type=Path, help="interpreter of an environment with gguf, and llama-cpp-python if it is to run")
    args = parser.parse_args()
    args.binary = args.binary.resolve()
    started = time.monotonic()
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("torch", "transformers", "compressed-tensors", "safetensors"))
    print(f"{tool(args.binary, '--version').strip()}; {versions}; Python {sys.version.split()[0]}")
    table = Table()
    pairs = [(c, s) for c, s in writable() if args.only in f"{s}/{c}" and c in READERS]
    compared = set()
    with tempfile.TemporaryDirectory() as folder:
        for name in tiny_llama.MODELS:
            source = tiny_llama.make(name, Path(folder, name))
            for convention, scheme in pairs:
                with tempfile.TemporaryDirectory(dir=folder) as scratch:
                    try:
                        if one(table, args.binary, Path(scratch), name, source, scheme, convention, args):
                            compared.add(scheme)
                    except Exception as error:  # a reader's own failure is a result, too
                        table.row(name, scheme, convention, "-", f"{type(error).__name__}: {str(error)[:200]}", True)
                        if args.only:
                            traceback.print_exc()
        # Those without a reader here are audited alone, with `--all`.
        searched = [(c, s) for c, s in writable() if c != "gguf" and args.only in f"{s}/{c}" and (c in READERS or args.all)]
        if searched:
            check_methods(table, args.binary, searched, folder)
    for convention in HEAVY:
        python = getattr(args, convention)
        if python and args.only in f"quantize/{convention}":
            check_quantized(table, args.binary, convention, python)
        if python and args.only in f"convert/{convention}":
            check_conversions(table, args.binary, convention, python)
    if args.gguf and not args.only.startswith("runtime/"):
        check_gguf(table, args.binary, args.only, args.gguf)
    if args.gguf and args.only in "runtime/llama.cpp":
        check_by_llama_cpp(table, args.binary, args.gguf)
    if args.all and args.only in "runtime/candle":
        check_by_candle(table, args.binary)
    if not args.only:
        check_fixtures(table, args.binary)
        with tempfile.TemporaryDirectory() as folder:
            check_taken_over(table, args.binary, folder)
        for scheme in PROMISED:
            if scheme not in compared:
                table.row("-", scheme, "-", "-", "promised, and compared with no reader", True)
    skipped = [row for row in table.rows if row[-1].startswith("NOT CHECKED")]
    for row in skipped:
        print(f"{row[-2]}: {row[-1]}")
    print(f"interop: {len(table.rows) - len(skipped)} comparisons, {table.failed} failed, {len(pairs)} pairs of scheme and convention, "
          f"{time.monotonic() - started:.0f} s")
    return 1 if table.failed or not table.rows else 0


if __name__ == "__main__":
    sys.exit(main())
