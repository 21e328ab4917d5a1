#!/usr/bin/env python3
"""The same work through safequant and everyone else, side by side in one run, on one thread.

    python3 benches/peers/peers.py --out benches/peers

needs Rust, torch, and whichever of requirements.txt's libraries are to be compared; one that is missing is skipped by name.
Writes last.md (the table), last.json (all figures) and chart.svg. `--ggml NAME=FOLDER` names a build of ggml.
"""

import argparse
import os
import sys
from pathlib import Path

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "GPTQMODEL_FLOATX_CPU_THREADS"):
    os.environ[name] = "1"
# Otherwise GPTQModel prefers torch's way for FP8; its own is what is to be compared.
os.environ["GPTQMODEL_FLOATX_CPU_FORCE_NATIVE_FP8"] = "1"
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ["PATH"] = os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]  # ninja, for GPTQModel's extension

import torch  # noqa: E402

import ours  # noqa: E402
import report  # noqa: E402
import timing  # noqa: E402
import work  # noqa: E402


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent, help="where last.md, last.json and chart.svg go")
    parser.add_argument("--target", type=Path, default=Path("target/peers"), help="Cargo's target directory")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--columns", type=int, default=14336)
    parser.add_argument("--only", action="append", default=[], choices=list(work.CASES), help="only this case; may be repeated")
    parser.add_argument("--ggml", action="append", default=[], metavar="NAME=FOLDER", help="a folder with libggml-base.so below it")
    parser.add_argument("--lock", type=Path, help="a file to lock around each case's rounds, where others measure too")
    return parser.parse_args()


def ggml_folders(given):
    """Builds named on the command line, or llama-cpp-python's own."""
    if given:
        return [tuple(text.rsplit("=", 1)) for text in given]
    package = work.load("llama_cpp")
    return [("ggml (llama-cpp-python)", os.path.dirname(package.__file__))] if package else []


def main():
    args = arguments()
    torch.set_num_threads(1)
    library = ours.build(args.target.resolve())
    field = work.Field(library, args.rows, args.columns, ggml_folders(args.ggml))
    cases = []
    for name, make in work.CASES.items():
        if args.only and name not in args.only:
            continue
        print(name, file=sys.stderr, flush=True)
        case = make(field)
        if case is None:
            print(f"{name}: SKIPPED: nobody to compare with", file=sys.stderr)
            continue
        timing.check(case)
        with timing.alone(args.lock):
            timing.measure(case, args.rounds)
        timing.tell(case)
        cases.append(report.figures(case))  # and the arrays go
        torch._dynamo.reset()
        report.write(args.out, report.machine(field, library), cases)
    wrong = [(c["name"], p["name"]) for c in cases for p in c["peers"] if p["target"] and p["times"] < p["target"]]
    print(f"{len(cases)} cases; below the target: {wrong or 'none'}")


if __name__ == "__main__":
    main()
