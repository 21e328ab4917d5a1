#!/usr/bin/env python3
"""Seconds of one thread for one layer: the engine beside llm-compressor, in turns on one machine.

    benches/quality/speed.py --engine target/release/safequant --peer-python env/bin/python --size 4096 --rounds 3

`env` has llm-compressor; this script needs NumPy. A layer of `size` x `size` weights in BF16 and the second moment of inputs that hang together
are made once, from a fixed seed. Each round runs, in processes of their own: `safequant quantize --threads 1` as a whole (reading the second
moment, checking, writing and measuring the loss are part of it) by `mse`, `gptq` at efforts fast and default, and `refine`; llm-compressor's MSE
observer and its GPTQ with activation order and groups fixed beforehand, of which the calls alone are timed. What is counted is CPU time, as
machines are shared. Printed are the medians and the ratios of interest.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time

#: What is run of the engine: name, arguments, whether it gets the second moment.
OURS = [
    ("mse", ["--method", "mse"], False),
    ("gptq, effort fast", ["--method", "gptq", "--effort", "fast"], True),
    ("gptq", ["--method", "gptq"], True),
    ("refine", ["--method", "refine"], True),
]


def save(path, tensors, metadata):
    """A safetensors file of (dtype, shape, bytes)."""
    header, at = {"__metadata__": metadata}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for _, _, data in tensors.values():
            out.write(data)


def prepare(folder, size):
    """The layer, its statistics, and both as arrays for the peer."""
    import numpy as np

    rng = np.random.default_rng(20261128)
    weight = (rng.standard_t(5, (size, size)) * 0.02).astype(np.float32)
    bits = ((weight.view(np.uint32) + 0x8000) >> 16).astype(np.uint16)
    weight = (bits.astype(np.uint32) << 16).view(np.float32)
    tokens = 2 * size
    common = rng.standard_normal((tokens, 32)).astype(np.float32)
    inputs = rng.standard_normal((tokens, size)).astype(np.float32) + common @ rng.standard_normal((32, size)).astype(np.float32) * 0.3
    inputs *= np.exp(rng.standard_normal(size) * 0.5).astype(np.float32)
    moment = inputs.T @ inputs / tokens
    moment = ((moment + moment.T) / 2).astype(np.float32)
    module = "model.layers.0.mlp.up_proj"
    os.makedirs(os.path.join(folder, "model"))
    tensors = {f"{module}.weight": ("BF16", weight.shape, bits.tobytes())}
    save(os.path.join(folder, "model", "model.safetensors"), tensors, {"format": "pt"})
    with open(os.path.join(folder, "model", "config.json"), "w") as out:
        json.dump({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, out)
    kept = {
        f"{module}.hessian": ("F32", moment.shape, moment.tobytes()),
        f"{module}.token_count": ("I64", (), struct.pack("<q", tokens)),
    }
    metadata = {"format": "safequant-calibration", "format_version": "1", "hessian": "full", "accumulation": "F32", "sequential": "false"}
    save(os.path.join(folder, "statistics.safetensors"), kept, metadata)
    np.save(os.path.join(folder, "weight.npy"), weight)
    np.save(os.path.join(folder, "moment.npy"), moment)


def ours(folder, engine):
    """CPU seconds of each command."""
    found = {}
    for name, arguments, is_calibrated in OURS:
        out = os.path.join(folder, "out")
        shutil.rmtree(out, ignore_errors=True)
        command = [engine, "quantize", os.path.join(folder, "model"), "-o", out, "--scheme", "W4A16", "--threads", "1", "--quiet", *arguments]
        if is_calibrated:
            command += ["--calibration", os.path.join(folder, "statistics.safetensors")]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found[name] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return found


def peer(folder):
    """CPU seconds of llm-compressor's calls; runs in its environment."""
    import numpy as np
    import torch
    from compressed_tensors.quantization import QuantizationArgs
    from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight
    from llmcompressor.observers import Observer

    torch.set_num_threads(1)
    weight = torch.from_numpy(np.load(os.path.join(folder, "weight.npy")))
    moment = torch.from_numpy(np.load(os.path.join(folder, "moment.npy")))
    args = QuantizationArgs(num_bits=4, type="int", symmetric=True, strategy="group", group_size=128)

    def observe(observer):
        watching = Observer.load_from_registry(observer, base_name="weight", args=args.model_copy(update={"observer": observer}))
        return watching(weight).get_qparams()

    found = {}
    start = time.process_time()
    observe("memoryless_mse")
    found["llm-compressor, MSE observer"] = time.process_time() - start
    qparams = observe("memoryless_minmax")
    ordered = QuantizationArgs.model_validate(args.model_copy(update={"actorder": "static"}).model_dump())
    start = time.process_time()
    quantize_weight(
        weights=weight[None].clone(),
        hessians=2 * moment[None],
        scale=qparams["scale"][None],
        zero_point=qparams["zero_point"][None],
        global_scale=None,
        quant_args=ordered,
    )
    found["llm-compressor, GPTQ"] = time.process_time() - start
    print(json.dumps(found))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", help="the binary; a release build")
    parser.add_argument("--peer-python", help="the Python of an environment with llm-compressor")
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        peer(options.peer)
        return
    if not (options.engine and options.peer_python):
        parser.error("--engine and --peer-python are needed")
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        prepare(folder, options.size)
        for _ in range(options.rounds):
            found = ours(folder, os.path.abspath(options.engine))
            told = subprocess.run([options.peer_python, os.path.abspath(__file__), "--peer", folder], check=True, stdout=subprocess.PIPE)
            rounds.append(found | json.loads(told.stdout.decode().splitlines()[-1]))
            print(json.dumps({name: round(seconds, 2) for name, seconds in rounds[-1].items()}), file=sys.stderr)
    median = {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}
    for name, seconds in median.items():
        print(f"{name:32} {seconds:8.2f} s")
    print(f"GPTQ: llm-compressor / ours      {median['llm-compressor, GPTQ'] / median['gptq']:8.2f}")
    print(f"MSE: llm-compressor / ours       {median['llm-compressor, MSE observer'] / median['mse']:8.2f}")
    print(f"refine / gptq                    {median['refine'] / median['gptq']:8.2f}")


if __name__ == "__main__":
    main()
