#!/usr/bin/env python3
"""Our dequantization against what the producing tools computed: every folder with a fixture.json that tells expected values.

usage: check_dequant.py BINARY FIXTURES [--only SUBSTRING]

Copies each checkpoint's own files to a scratch folder, runs `BINARY dequantize COPY -o OUT --dtype auto`, and compares every
tensor that the fixture expects: dtype, shape and bits, where only the sign of a zero and the payload of a NaN are free.
Tensors that the fixture holds by digest alone are compared by digest. Ends with the counts; 1 if anything differs or if
nothing was visited.
"""

import argparse
import hashlib
import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

from common import DTYPE, Failed, canonical, differing, read, read_file, tool, values


def stage(folder, place):
    """Copies what belongs to the checkpoint, not what the fixture tells about it."""
    place.mkdir()
    for path in folder.iterdir():
        told = path.name == "fixture.json" or path.name.startswith(("expected", "source", "extra"))
        if path.is_file() and not told:
            shutil.copy(path, place)


def opened(place):
    """What to open: the folder, or the GGUF file in it."""
    ggufs = sorted(place.glob("*.gguf"))
    return ggufs[0] if ggufs else place


def tolerance(fixture, name):
    """The largest difference that the fixture itself allows, as a part of the largest value: rotated and low-rank weights."""
    module = fixture.get("modules", {}).get(name.removesuffix(".weight"), {})
    return module.get("tolerance", {}).get("expected")


def within(allowed, dtype, raw, wanted):
    """Whether two tensors differ by no more than that."""
    ours, theirs = values(dtype, raw), values(dtype, wanted)
    return bool(np.max(np.abs(ours - theirs)) <= allowed * np.max(np.abs(theirs)))


def compare(name, want, stored, got, signed_zeros, allowed):
    """How the comparison was made (`full`, `digest`, `shape`), or a sentence that says what differs."""
    if name not in got:
        return None, f"{name}: not in the output"
    dtype, shape, raw = got[name]
    wanted = DTYPE.get(want["dtype"], want["dtype"])
    if (dtype, list(shape)) != (wanted, list(want["shape"])):
        return None, f"{name}: {dtype} {list(shape)}, expected {wanted} {want['shape']}"
    if name in stored:
        count = differing(dtype, raw, stored[name][2])
        if count and allowed is not None and within(allowed, dtype, raw, stored[name][2]):
            return "full (within its tolerance)", None
        return "full", f"{name}: {count} elements differ" if count else None
    if "sha256" not in want:
        return "shape", None
    # The digest is over the reference's own bits; a negative zero of ours is no difference.
    forms = (raw, canonical(dtype, raw).tobytes())
    if any(hashlib.sha256(form).hexdigest() == want["sha256"] for form in forms):
        return "digest", None
    # A reference that fake-quantizes the dense weight keeps the sign of what became zero; no reader can know it.
    return ("shape (zeros signed)", None) if signed_zeros else (None, f"{name}: the digest differs")


def check(binary, folder):
    """Counts by kind of comparison, and faults; `None` if the fixture expects nothing."""
    fixture = json.loads((folder / "fixture.json").read_text())
    expected = fixture.get("expected") or {}
    if not expected:
        return None
    signed_zeros = "fake_quantize" in fixture["reference"]
    # marlin-24 is packed from weights that were quantized once more in F16; no reader can know the model in memory.
    again = fixture.get("config", {}).get("quantization_format") == "marlin-24"
    stored = folder / "expected.safetensors"
    stored = read_file(stored) if stored.exists() else {}
    with tempfile.TemporaryDirectory() as scratch:
        source, out = Path(scratch, "in"), Path(scratch, "out")
        stage(folder, source)
        try:
            tool(binary, "dequantize", opened(source), "-o", out, "--dtype", "auto", "--quiet")
        except Failed as failed:
            return {}, [str(failed)]
        got = read(out)
    counts, faults = {}, []
    for name, want in expected.items():
        kind, fault = compare(name, want, stored, got, signed_zeros, tolerance(fixture, name))
        if fault and again and name in stored and 250 * differing(got[name][0], got[name][2], stored[name][2]) <= len(got[name][2]) // 2:
            kind, fault = "full (codes of F16)", None
        if fault:
            faults.append(fault)
        else:
            counts[kind] = counts.get(kind, 0) + 1
    return counts, faults


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("binary", type=Path)
    parser.add_argument("fixtures", type=Path)
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    held = short = tensors = 0
    for path in sorted(args.fixtures.rglob("fixture.json")):
        name = path.parent.relative_to(args.fixtures).as_posix()
        result = check(args.binary.resolve(), path.parent) if args.only in name else None
        if result is None:
            continue
        counts, faults = result
        tensors += sum(counts.values())
        if faults:
            short += 1
            print(f"FAIL {name}: " + "; ".join(faults[:3]) + (f"; {len(faults) - 3} more" if len(faults) > 3 else ""))
        else:
            held += 1
            print(f"ok   {name}: " + ", ".join(f"{n} by {kind}" for kind, n in sorted(counts.items())))
    print(f"dequantize: {held} fixtures hold, {short} do not, {tensors} tensors compared")
    return 0 if held and not short else 1


if __name__ == "__main__":
    sys.exit(main())
