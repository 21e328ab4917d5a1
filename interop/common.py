"""What the scripts of this folder share: a plain safetensors reader, running the tool, comparing bits."""

import json
import os
import struct
import subprocess
from pathlib import Path

import numpy as np

WIDTH = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
         "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8}
DTYPE = {"float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64"}


def read_file(path):
    """{name: (dtype, shape, bytes)} of one safetensors file, by the format's definition and nothing else."""
    raw = Path(path).read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8:8 + length])
    header.pop("__metadata__", None)
    data = raw[8 + length:]
    return {name: (t["dtype"], tuple(t["shape"]), data[t["data_offsets"][0]:t["data_offsets"][1]])
            for name, t in header.items()}


def weight_files(place):
    """The safetensors files of a checkpoint: of a directory, by name."""
    place = Path(place)
    return [place] if place.is_file() else sorted(place.glob("*.safetensors"))


def read(place):
    """All tensors of a checkpoint."""
    out = {}
    for path in weight_files(place):
        tensors = read_file(path)
        twice = out.keys() & tensors.keys()
        assert not twice, f"{sorted(twice)[0]} lies in two shards"
        out.update(tensors)
    return out


def values(dtype, raw):
    """Floats of a dense tensor, widened to F64."""
    if dtype == "BF16":
        return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return np.frombuffer(raw, {"F16": "<f2", "F32": "<f4", "F64": "<f8"}[dtype]).astype(np.float64)


def canonical(dtype, raw):
    """The same bits with every zero positive and every NaN the same: what may differ between two right answers."""
    words = np.frombuffer(raw, f"<u{WIDTH[dtype]}").copy()
    floats = values(dtype, raw)
    words[floats == 0] = 0
    words[np.isnan(floats)] = np.iinfo(words.dtype).max
    return words


def differing(dtype, left, right):
    """In how many elements two dense tensors differ."""
    return 0 if left == right else int(np.count_nonzero(canonical(dtype, left) != canonical(dtype, right)))


class Failed(Exception):
    """The tool ended with another status than it should."""

    def __init__(self, status, message):
        super().__init__(f"exit {status}: {message}")
        self.status = status


def tool(binary, *args, timeout=900):
    """Runs safequant and gives back its standard output."""
    done = subprocess.run([os.fspath(binary), *map(os.fspath, args)], capture_output=True, text=True, timeout=timeout)
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise Failed(done.returncode, lines[-1][:300])
    return done.stdout
