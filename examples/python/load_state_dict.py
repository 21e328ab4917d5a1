"""Weights of any checkpoint, one at a time, as a loader takes them; a tensor-parallel rank takes its share.

    python load_state_dict.py model-awq
    python load_state_dict.py model-awq --rank 1 --world 4 --dtype bfloat16
"""

from __future__ import annotations

import argparse

import torch

from safequant.torch import state_dict

DTYPES = {"auto": None, "bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def main() -> None:
    parser = argparse.ArgumentParser(description="Iterates the dense weights of a checkpoint.")
    parser.add_argument("path")
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--world", type=int, default=1)
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="auto")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    weights = state_dict(
        options.path,
        as_dtype=DTYPES[options.dtype],
        rank=options.rank,
        world=options.world,
        device=options.device,
    )
    total = 0
    for name, tensor in weights:
        # A loader copies the tensor into its parameter here; the next turn of the loop lets go of it.
        print(f"{name:60} {str(tensor.dtype):16} {list(tensor.shape)}")
        total += tensor.nbytes
    print(f"{len(weights)} tensors, {total / 1e9:.3f} GB on rank {options.rank} of {options.world}")


if __name__ == "__main__":
    main()
