"""Serves a checkpoint of any convention with vLLM, as a dense model: the loader is registered, then vLLM is started.

    python vllm_loader.py model-gptq "The capital of France is"

Needs vLLM. Without it the weights that it would be given are listed instead.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys

from safequant.vllm import dense_overrides, register, weights_iterator


def main() -> None:
    parser = argparse.ArgumentParser(description="Generates with vLLM through safequant's loader.")
    parser.add_argument("path")
    parser.add_argument("prompt", nargs="?", default="Once upon a time")
    options = parser.parse_args()
    if importlib.util.find_spec("vllm") is None:
        print("vLLM is not installed: this is what its model would be given", file=sys.stderr)
        for name, tensor in weights_iterator(options.path):
            print(f"{name:60} {str(tensor.dtype):16} {list(tensor.shape)}")
        return
    from vllm import LLM  # type: ignore[import-not-found,unused-ignore]

    # vLLM's workers are processes: they are to be forked, so that they know the loader too (VLLM_WORKER_MULTIPROCESSING_METHOD),
    # or to register it in a plugin (the entry point "vllm.general_plugins").
    register("safequant")
    model = LLM(model=options.path, load_format="safequant", hf_overrides=dense_overrides)
    for output in model.generate([options.prompt]):
        print(output.outputs[0].text)


if __name__ == "__main__":
    main()
