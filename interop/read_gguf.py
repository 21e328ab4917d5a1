#!/usr/bin/env python3
"""gguf-py's own dequantization of a GGUF model against a dense checkpoint of the same names, and llama.cpp running the model.

usage: read_gguf.py MODEL DENSE    (a .gguf file, or a folder with one)

Every tensor of the model is compared with the dense one, in F32, bit for bit. If llama-cpp-python is installed, it loads the
model and evaluates a few tokens; a model without a tokenizer or with an architecture of ours alone would fail there.
"""

import importlib.util
import sys
from pathlib import Path

import gguf
import numpy as np
from safetensors import safe_open


def first_part(place):
    """The model's file, or the first of its parts."""
    place = Path(place)
    return sorted(place.glob("*.gguf"))[0] if place.is_dir() else place


def parts(first):
    """All parts of a split model."""
    stem, of, _ = first.name.rpartition("-of-")
    return sorted(first.parent.glob(f"{stem[:-5]}?????{of}*")) if of and stem[-5:].isdigit() else [first]


def theirs(first):
    """Every tensor in F32, by name."""
    for part in parts(first):
        for tensor in gguf.GGUFReader(part).tensors:
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
            yield tensor.name, values.reshape([int(n) for n in reversed(tensor.shape)])


def ours(place):
    """Every tensor of the dense checkpoint in F32, by name."""
    out = {}
    for path in sorted(Path(place).glob("*.safetensors")):
        with safe_open(path, "np") as file:
            out.update({name: file.get_tensor(name).astype(np.float32) for name in file.keys()})
    return out


def compare(first, dense):
    """How many tensors were compared, or a sentence that says what differs."""
    dense, n_compared = ours(dense), 0
    for name, values in theirs(first):
        own = dense.pop(name, None)
        if own is None or own.shape != values.shape:
            return None, f"{name}: {list(values.shape)}, ours {None if own is None else list(own.shape)}"
        differ = own.view(np.uint32) != values.view(np.uint32)
        if differ.any():
            return None, f"{name}: {int(differ.sum())} of {values.size} values differ"
        n_compared += 1
    return n_compared, f"not in the model: {sorted(dense)[:3]}" if dense else None


def run(first):
    """What llama.cpp computes of the model: logits after five tokens and for each of them."""
    import llama_cpp

    model = llama_cpp.Llama(str(first), n_ctx=32, n_threads=1, logits_all=True, verbose=False)
    model.eval([token % model.n_vocab() for token in (1, 5, 9, 23, 42)])
    logits = model.scores[:model.n_tokens]
    if model.n_tokens != 5 or not np.isfinite(logits).all() or not np.ptp(logits, axis=1).all():
        return None, "llama.cpp: the logits are not finite, or all the same"
    text = model.detokenize(model.tokenize(b"the dog"))
    return f"llama.cpp runs it ({model.n_vocab()} logits, reads {text!r})", None


def main():
    first = first_part(sys.argv[1])
    n_compared, fault = compare(first, sys.argv[2])
    sentence = f"{n_compared} tensors equal to gguf-py's, bit for bit"
    if not fault and importlib.util.find_spec("llama_cpp"):
        said, fault = run(first)
        sentence += f"; {said}"
    print(fault or sentence)
    return 0 if n_compared and not fault else 1


if __name__ == "__main__":
    sys.exit(main())
