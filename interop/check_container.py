#!/usr/bin/env python3
"""What we write, opened by Python's own `safetensors` package; index and manifest against the files.

usage: check_container.py BINARY SOURCE

Quantizes SOURCE to a few schemes and back, with shards small enough that there are several.
"""

import hashlib
import json
import sys
import tempfile
from pathlib import Path

import blake3
import safetensors
from common import Failed, read, read_file, tool, weight_files

MANIFEST = "safequant-manifest.json"
INDEX = "model.safetensors.index.json"
#: Options of `quantize`: one per kind of output dtype, with and without shards.
RUNS = [
    ["--scheme", "W4A16"],
    ["--scheme", "W4A16_ASYM", "--convention", "gptq_v2", "--max-shard-size", "1MB"],
    ["--scheme", "W8A8", "--max-shard-size", "1MB"],
    ["--scheme", "FP8_BLOCK", "--convention", "fp8"],
]


def check_files(place):
    """Every file opens in `safetensors`, with the tensors that its header tells; how many tensors there were."""
    count = 0
    for path in weight_files(place):
        told = read_file(path)
        got = dict(safetensors.deserialize(path.read_bytes()))
        assert got.keys() == told.keys(), f"{path.name}: {got.keys() ^ told.keys()}"
        for name, (dtype, shape, raw) in told.items():
            other = got[name]
            assert (other["dtype"], tuple(other["shape"]), bytes(other["data"])) == (dtype, shape, raw), (path.name, name)
        with safetensors.safe_open(path, "np") as opened:
            assert set(opened.keys()) == told.keys(), path.name
        assert path.read_bytes()[8:9] == b"{", f"{path.name}: the header does not begin with a brace"
        assert path.stat().st_mode & 0o044 == 0o044, f"{path.name}: mode {path.stat().st_mode:o}"
        count += len(told)
    assert count, f"{place}: no tensor"
    return count


def check_index(place):
    """The index lists every tensor in the shard that holds it, and the right total; whether there is one."""
    path = Path(place, INDEX)
    files = weight_files(place)
    if not path.exists():
        assert [f.name for f in files] == ["model.safetensors"], files
        return False
    index = json.loads(path.read_text())
    stored = {name: f.name for f in files for name in read_file(f)}
    assert index["weight_map"] == stored, "the index does not say what the shards hold"
    total = sum(len(raw) for _, _, raw in read(place).values())
    assert index["metadata"]["total_size"] == total, (index["metadata"], total)
    return True


def check_manifest(place):
    """Every tensor's BLAKE3 is the one in the manifest, and nothing else is listed."""
    manifest = json.loads(Path(place, MANIFEST).read_text())["tensors"]
    entries = manifest.items() if isinstance(manifest, dict) else ((e["name"], e) for e in manifest)
    listed = {name: entry["blake3"] for name, entry in entries}
    digests = {name: blake3.blake3(raw).hexdigest() for name, (_, _, raw) in read(place).items()}
    assert listed == digests, f"manifest: {sorted(listed.items() ^ digests.items())[:4]}"
    return len(digests)


def check_output(place):
    """All of the above for one output."""
    return check_files(place), check_index(place), check_manifest(place)


def content(place):
    """One digest over all tensors."""
    digest = hashlib.sha256()
    for name, (dtype, shape, raw) in sorted(read(place).items()):
        digest.update(f"{name} {dtype} {shape}".encode() + raw)
    return digest.hexdigest()


def main():
    binary, source = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    sharded = 0
    for options in RUNS:
        with tempfile.TemporaryDirectory() as scratch:
            quantized, again, dense = (Path(scratch, name) for name in ("q", "again", "dense"))
            try:
                tool(binary, "quantize", source, "-o", quantized, *options, "--quiet")
                tool(binary, "quantize", source, "-o", again, *options, "--threads", "1", "--quiet")
                tool(binary, "dequantize", quantized, "-o", dense, "--quiet")
            except Failed as failed:
                print(f"FAIL {' '.join(options)}: {failed}")
                return 1
            tensors, has_index, listed = check_output(quantized)
            check_output(dense)
            assert tensors == listed
            assert content(quantized) == content(again), "another number of threads gives other bytes"
            names = {n for n, (_, shape, _) in read(source).items() if len(shape) == 2}
            assert names <= read(dense).keys(), "a weight is gone after the way back"
            sharded += has_index
            files = len(weight_files(quantized))
            print(f"ok   {' '.join(options)}: {tensors} tensors in {files} files, {listed} digests")
    assert sharded, "no output was sharded"
    print(f"container: {len(RUNS)} outputs opened by safetensors {safetensors.__version__}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
