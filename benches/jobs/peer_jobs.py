#!/usr/bin/env python3
"""One whole job of another library, for whole_jobs.py; runs in an environment that has that library.

    peer_jobs.py model_free_ptq SRC DST FP8_DYNAMIC     # llm-compressor
    peer_jobs.py mlx SRC DST 4 64                       # mlx_lm.convert -q, without its tokenizer: bits, group size
"""

import pathlib
import sys


def model_free_ptq(source, to, scheme):
    from llmcompressor import model_free_ptq as quantize

    quantize(model_stub=source, save_directory=to, scheme=scheme, ignore=["lm_head", "re:.*embed_tokens.*"],
             max_workers=2, device="cpu")


def mlx(source, to, bits, group_size):
    from mlx_lm import utils

    model, config = utils.load_model(pathlib.Path(source), lazy=True)
    model, config = utils.quantize_model(model, config, int(group_size), int(bits), mode="affine")
    folder = pathlib.Path(to)
    folder.mkdir()
    utils.save_model(folder, model, donate_model=True)
    utils.save_config(config, folder / "config.json")


if __name__ == "__main__":
    {"model_free_ptq": model_free_ptq, "mlx": mlx}[sys.argv[1]](*sys.argv[2:])
