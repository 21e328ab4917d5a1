"""A checkpoint of any convention as a dense model of transformers, and what it says next.

    python from_quantized.py model-gptq --tokens 1,5,9 --new 16
"""

from __future__ import annotations

import argparse

import torch

from safequant.transformers import from_quantized


def main() -> None:
    parser = argparse.ArgumentParser(description="Generates greedily from a quantized checkpoint, loaded dense.")
    parser.add_argument("path")
    parser.add_argument("--tokens", default="1,2,3", help="ids of the prompt's tokens, with commas between")
    parser.add_argument("--new", type=int, default=8, help="how many tokens to generate")
    parser.add_argument("--device")
    options = parser.parse_args()
    model = from_quantized(options.path, device=options.device)
    prompt = torch.tensor([[int(word) for word in options.tokens.split(",")]], device=model.device)
    with torch.no_grad():
        done = model.generate(prompt, max_new_tokens=options.new, do_sample=False)
    print(f"{type(model).__name__} in {model.dtype}: {done[0].tolist()}")


if __name__ == "__main__":
    main()
