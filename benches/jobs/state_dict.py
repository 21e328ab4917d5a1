#!/usr/bin/env python3
"""Iterating the dense weights of an FP8 checkpoint: safequant.torch.state_dict beside load_file and the reference in torch.

    benches/jobs/state_dict.py --python env/bin/python --gigabytes 8 --rounds 3

`env` has the package as a release build, torch and safetensors. Every round runs, in processes of their own: `state_dict` from
first to last tensor; `safetensors.torch.load_file` of one shard after the other with the dequantization of DeepSeek's reference
(`inference/kernel.py`, `weight_dequant`: codes and scales in F32, multiplied, cast to BF16) in torch, tensor by tensor; and, to see
what reading alone costs, `load_file` without it. Both use all cores. What both made is compared by a checksum over rows. Anonymous
memory is RssAnon, polled every 5 ms from outside, and given with what it was when all was imported: a torch built for CUDA takes
hundreds of megabytes before anything is done. Times are from the first look at the checkpoint on, imports left out. The page
cache is warm. Exit status 1 if iterating takes more than `--limit-mb` of anonymous memory beside the imports, or if the checksums
differ.
"""

import argparse
import json
import os
import random
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import zlib

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "crash"))
import synthetic  # noqa: E402

BLOCK = 128
CONFIG = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK]}


# --- The checkpoint -----------------------------------------------------------------------------------------------------------


def entries(layer):
    """Names, dtypes and shapes of a layer: matrices in FP8 with a scale for each block, norms in BF16."""
    for name, shape in synthetic.layer_tensors(layer, 4096, 14336):
        if len(shape) == 1:
            yield name, "BF16", shape
        else:
            yield name, "F8_E4M3", shape
            yield name + "_scale_inv", "F32", [-(-n // BLOCK) for n in shape]


def size(dtype, shape):
    n = {"BF16": 2, "F8_E4M3": 1, "F32": 4}[dtype]
    for d in shape:
        n *= d
    return n


def write(directory, total):
    """Writes about `total` bytes in shards of about 2 GB."""
    os.makedirs(directory)
    rng = random.Random(7)
    codes = bytes(rng.choice([b for b in range(256) if b & 0x7F != 0x7F]) for _ in range(1 << 20))
    scales = struct.pack("<4096f", *(rng.uniform(1e-3, 2e-3) for _ in range(4096)))
    fill = {"F8_E4M3": codes, "F32": scales, "BF16": synthetic.bf16_block(1 << 18, 7)}
    shards, layer, done = [[("model.embed_tokens.weight", "BF16", [32768, 4096])]], 0, 0
    while done < total:
        tensors = list(entries(layer))
        shards[-1] += tensors
        done += sum(size(dtype, shape) for _, dtype, shape in tensors)
        layer += 1
        if sum(size(dtype, shape) for _, dtype, shape in shards[-1]) > 2 * 10**9:
            shards.append([])
    shards[-1].append(("model.norm.weight", "BF16", [4096]))
    weight_map = {}
    for i, shard in enumerate(shards):
        name = "model-%05d-of-%05d.safetensors" % (i + 1, len(shards))
        write_shard(os.path.join(directory, name), shard, fill)
        weight_map.update({tensor: name for tensor, _, _ in shard})
    with open(os.path.join(directory, "model.safetensors.index.json"), "w") as out:
        json.dump({"metadata": {}, "weight_map": weight_map}, out)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
              "num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": layer, "vocab_size": 32768,
              "tie_word_embeddings": True, "torch_dtype": "bfloat16", "quantization_config": CONFIG}
    with open(os.path.join(directory, "config.json"), "w") as out:
        json.dump(config, out, indent=2)


def write_shard(path, tensors, fill):
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, dtype, shape in tensors:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size(dtype, shape)]}
        at += size(dtype, shape)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for number, (_, dtype, shape) in enumerate(tensors):
            block = fill[dtype]
            left, shift = size(dtype, shape), (number * 4096) % len(block)
            while left > 0:
                piece = block[shift : shift + left]
                out.write(piece)
                left, shift = left - len(piece), 0


# --- What is measured, each in a process of its own ---------------------------------------------------------------------------


def ours(source):
    from safequant.torch import state_dict

    def run(check):
        for name, tensor in state_dict(source):
            check(name, tensor)

    return run


def reference(source):
    import safetensors.torch
    import torch

    def dense(codes, scales):
        rows, columns = codes.shape
        # All sizes here are multiples of the block.
        tiles = codes.to(torch.float32).view(rows // BLOCK, BLOCK, columns // BLOCK, BLOCK)
        return (tiles * scales[:, None, :, None]).view(rows, columns).to(torch.bfloat16)

    def run(check):
        for path in shards(source):
            tensors = safetensors.torch.load_file(path)
            for name in tensors:
                if name.endswith("_scale_inv"):
                    continue
                scales = tensors.get(name + "_scale_inv")
                check(name, tensors[name] if scales is None else dense(tensors[name], scales))

    return run


def load_file(source):
    import safetensors.torch

    def run(check):
        for path in shards(source):
            for name, tensor in safetensors.torch.load_file(path).items():
                check(name, tensor)

    return run


WAYS = {"state_dict": ours, "load_file and reference": reference, "load_file": load_file}


def shards(source):
    return sorted(os.path.join(source, name) for name in os.listdir(source) if name.endswith(".safetensors"))


def child(way, source):
    """Tells when everything is imported, goes on when asked, and ends with seconds and a checksum."""
    run = WAYS[way](source)
    import torch

    sums = {}

    def check(name, tensor):
        # The last row touches what was computed last; equal sums of all tensors in both ways say that they made the same.
        row = tensor[-1] if tensor.dim() > 1 else tensor
        sums[name] = zlib.crc32(row.contiguous().view(torch.uint8).numpy().tobytes())

    print("ready", flush=True)
    sys.stdin.readline()
    started, cpu = time.monotonic(), time.process_time()
    run(check)
    seconds, cpu = time.monotonic() - started, time.process_time() - cpu
    total = zlib.crc32(json.dumps(sorted(sums.items())).encode())
    print(json.dumps({"seconds": seconds, "cpu": cpu, "tensors": len(sums), "checksum": total}), flush=True)


def anonymous_mb(pid):
    try:
        with open("/proc/%d/status" % pid) as status:
            for line in status:
                if line.startswith("RssAnon:"):
                    return int(line.split()[1]) * 1024 / 1e6
    except OSError:
        pass
    return 0.0


def measure(python, way, source):
    command = [python, os.path.abspath(__file__), "--child", way, "--source", source]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    if process.stdout.readline().strip() != "ready":
        sys.exit("%s did not start" % way)
    before = peak = anonymous_mb(process.pid)
    process.stdin.write("go\n")
    process.stdin.flush()
    while process.poll() is None:
        peak = max(peak, anonymous_mb(process.pid))
        time.sleep(0.005)
    if process.returncode != 0:
        sys.exit("%s ended with %d" % (way, process.returncode))
    return dict(json.loads(process.stdout.read()), before=before, peak=peak)


def warm(source):
    for path in shards(source):
        with open(path, "rb", buffering=0) as file:
            while file.read(16 << 20):
                pass


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default=sys.executable, help="an interpreter with safequant, torch and safetensors")
    parser.add_argument("--gigabytes", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit-mb", type=float, default=400.0)
    parser.add_argument("--source", help="a checkpoint of this script's to use, or a folder to create and keep")
    parser.add_argument("--folder", help="where to work (default: the system's temporary folder)")
    parser.add_argument("--child", choices=list(WAYS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.source)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        source = options.source or os.path.join(folder, "source")
        if not os.path.exists(source):
            write(source, int(options.gigabytes * 1e9))
        read = sum(os.path.getsize(path) for path in shards(source)) / 1e9
        rounds = {way: [] for way in WAYS}
        for _ in range(options.rounds):
            for way in WAYS:
                warm(source)
                rounds[way].append(measure(options.python, way, source))
    table(read, rounds)
    same = {run["checksum"] for way in list(WAYS)[:2] for run in rounds[way]}
    if len(same) != 1:
        sys.exit("the two ways made different weights")
    if max(run["peak"] - run["before"] for run in rounds["state_dict"]) > options.limit_mb:
        sys.exit("iterating takes more than %.0f MB" % options.limit_mb)


def table(read, rounds):
    print("| %.1f GB of FP8 in blocks of 128 x 128, page cache warm | s | times ours | CPU, s | anonymous at the peak, MB |"
          " of which imports |" % read)
    print("| --- |" + " ---: |" * 5)
    for way, runs in rounds.items():
        ratios = [run["seconds"] / mine["seconds"] for run, mine in zip(runs, rounds["state_dict"])]
        cells = [way, "%.2f" % statistics.median(run["seconds"] for run in runs), "%.1f" % statistics.median(ratios),
                 "%.1f" % statistics.median(run["cpu"] for run in runs), "%.0f" % max(run["peak"] for run in runs),
                 "%.0f" % max(run["before"] for run in runs)]
        print("| " + " | ".join(cells) + " |")
    print("%d tensors, %d rounds, %d cores" % (rounds["state_dict"][0]["tensors"], len(rounds["state_dict"]), os.cpu_count()))


if __name__ == "__main__":
    main()
