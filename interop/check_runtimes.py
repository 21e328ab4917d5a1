#!/usr/bin/env python3
"""What the profile of transformers says of the fixtures, against what transformers does with them.

usage: check_runtimes.py BINARY [FIXTURES]

For every fixture whose tool wrote a whole language model, `safequant audit --runtime transformers` says whether it loads; then
`AutoModelForCausalLM.from_pretrained` is asked, on the CPU. A load counts if nothing was missing, unexpected or of another shape: a
model whose scales were dropped is not loaded. Exits with 1 where profile and runtime disagree, but for KNOWN, each with its reason;
an entry of KNOWN that agrees fails too, so that the list does not outlive its reasons.
"""

import json
import logging
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

#: Producers whose fixtures are whole models, and need nothing but transformers and compressed-tensors.
PRODUCERS = ["llm-compressor", "transformers", "composed"]

#: Where the profile is known to say something else than this machine.
KNOWN = {
    "composed/fbgemm-fp8": "the profile is about a machine with a GPU, which this method asks for",
    "composed/deepseek-odd-dims": "partial blocks: transformers cannot dequantize them on a CPU",
    "transformers/fgfp8-moe": "transformers' own layout of fused scales is dropped by its own loader",
}


def own_files(folder):
    beside = ("fixture.json", "expected", "source", "extra")
    return [path for path in folder.iterdir() if not path.name.startswith(beside)]


def is_whole(folder):
    """A language model with its embeddings: some fixtures are a few matrices under a model's configuration."""
    config = folder / "config.json"
    if not config.exists() or not json.loads(config.read_text()).get("architectures", [""])[0].endswith("ForCausalLM"):
        return False
    names = set()
    for path in own_files(folder):
        if path.suffix == ".safetensors":
            with open(path, "rb") as file:
                names.update(json.loads(file.read(struct.unpack("<Q", file.read(8))[0])))
    return "model.embed_tokens.weight" in names


def verdict(binary, model):
    command = [str(binary), "audit", str(model), "--runtime", "transformers", "--format", "json", "--fail-on", "never"]
    record = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    runtime = record["runtimes"][0]
    return runtime["loads"], [reason["message"] for reason in runtime["reasons"]]


def loads(model):
    """Whether transformers loads it whole, and what it said if not."""
    from transformers import AutoModelForCausalLM

    try:
        _, info = AutoModelForCausalLM.from_pretrained(model, dtype="auto", output_loading_info=True)
    except Exception as error:  # noqa: BLE001 - whatever it raises is its answer
        return False, "%s: %s" % (type(error).__name__, str(error).splitlines()[0] if str(error) else "")
    wrong = {kind: sorted(map(str, info.get(kind) or []))[:2] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")}
    wrong = {kind: names for kind, names in wrong.items() if names}
    return not wrong, str(wrong or "")


def main():
    binary = Path(sys.argv[1]).resolve()
    root = Path(sys.argv[2]) if len(sys.argv) > 2 else ROOT / "fixtures"
    logging.disable(logging.CRITICAL)
    failed, visited, answers = [], 0, set()
    for producer in PRODUCERS:
        for folder in sorted((root / producer).iterdir()):
            if not is_whole(folder):
                continue
            with tempfile.TemporaryDirectory() as place:
                for path in own_files(folder):
                    shutil.copy(path, place)
                said, reasons = verdict(binary, place)
                did, why = loads(place)
            name = "%s/%s" % (producer, folder.name)
            agrees = said == did
            visited, answers = visited + 1, answers | {did}
            print("%-50s profile %-5s transformers %-5s %s" % (name, said, did, "" if agrees else "DIFFERS: %s; %s" % (reasons[:1], why)))
            if agrees == (name in KNOWN):
                failed.append(name)
    if visited < 20 or answers != {True, False}:
        sys.exit("only %d fixtures were tried, with the answers %s" % (visited, answers))
    if failed:
        sys.exit("profile and transformers disagree (or agree against KNOWN): %s" % ", ".join(failed))
    print("%d fixtures: the profile says what transformers does, but for %d known cases" % (visited, len(KNOWN)))


if __name__ == "__main__":
    main()
