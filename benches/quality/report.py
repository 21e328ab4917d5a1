"""The table, the page and the plot of what was measured."""

from __future__ import annotations

import datetime
import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import chart
import results
from formats import FORMATS, Format
from results import Result

#: Two errors closer than this mean nothing: settings of peers and of the engine's defaults differ by as much from text to text.
NOTHING = 0.02
#: What set the aims: a prototype whose figures were measured on another text (peers' figures on this one are up to 2 % higher).
PROTOTYPE = "the prototype"
#: How peers are called in the table.
TITLES = {
    "safequant": "safequant",
    "bnb": "bitsandbytes",
    "ggml": "ggml",
    "gptq_model": "GPTQModel",
    "hqq_core": "HQQ",
    "llm_compressor": "llm-compressor",
    "mlx_core": "MLX",
    "quanto": "optimum-quanto",
    "qwantize_fp4": "qwantize",
    "torch_ao": "torchao",
    "auto_round_rtn": "AutoRound",
}
#: Ours with statistics: the highest effort that ran. Fixed here, so that nothing is chosen by evaluation text.
EFFORTS = ("auto, effort max", "auto, effort high", "auto, effort default")


@dataclass(frozen=True)
class Row:
    """What the table says of a format; ``None`` where nothing ran."""

    form: Format
    peer_free: Result | None
    ours_free: Result | None
    peer_diagonal: Result | None
    ours_diagonal: Result | None
    peer: Result | None
    ours_high: Result | None
    ours: Result | None


def row_of(form: Format, found: Sequence[Result]) -> Row:
    """Picks the best peers; ours are fixed by name."""
    here = [result for result in found if result.format == form.name]
    ours = {result.variant: result for result in here if result.tool == "safequant"}
    peers = [result for result in here if result.tool != "safequant" and result.counts]
    best: Callable[[list[Result]], Result | None] = lambda given: min(given, key=lambda r: r.figures.evaluation, default=None)
    free = [peer for peer in peers if peer.statistics == "none"]
    diagonal = [peer for peer in peers if peer.statistics == "diagonal"]
    informed = [peer for peer in peers if peer.statistics != "none"]
    ours_best = next((ours[name] for name in EFFORTS if name in ours), None)
    return Row(
        form,
        best(free),
        ours.get("mse") or ours.get("rtn"),
        best(diagonal),
        ours.get("auto, diagonal"),
        best(informed),
        ours.get("auto, effort high"),
        ours_best,
    )


def rows_of(found: Sequence[Result]) -> list[Row]:
    """A row for each format that anything ran on."""
    named = {result.format for result in found}
    return [row_of(form, found) for form in FORMATS if form.name in named]


def percent(value: float) -> str:
    """As many digits as tell formats apart that differ by some percent."""
    return f"{value:.5f}" if value < 0.01 else f"{value:.4f}" if value < 5 else f"{value:.3f}"


def cell(result: Result | None) -> str:
    """An error or nothing."""
    return "" if result is None else percent(result.figures.evaluation)


def who(result: Result | None, bits: float | None = None) -> str:
    """Tool and variant, with the bits where they differ from ours."""
    if result is None:
        return ""
    size = f" ({result.bits:.3f} bits)" if bits is not None and abs(result.bits - bits) > 0.02 else ""
    title = TITLES[result.tool]
    return title + ("" if result.variant == title else f", {result.variant}") + size


def change(ours: float | None, other: float | None) -> str:
    """Ours against another; what means nothing is marked."""
    if ours is None or other is None or other == 0:
        return ""
    ratio = ours / other - 1
    says = f"{100 * ratio:+.0f} %" if abs(ratio) >= 0.1 else f"{100 * ratio:+.1f} %"
    if abs(ratio) < NOTHING:
        return f"≈ ({says})"
    return says if ratio < 0 else f"**{says}**"


def error_of(result: Result | None) -> float | None:
    """Its error on evaluation text."""
    return None if result is None else result.figures.evaluation


def bits_of(row: Row) -> float | None:
    """Bits per weight: of our file, else of the peer's arrays."""
    given = [r for r in (row.ours, row.ours_free, row.peer_free, row.peer) if r is not None]
    return given[0].bits if given else None


def main_table(rows: Sequence[Row]) -> list[str]:
    """Output error by format."""
    lines = [
        "| format | bits/weight | best data-free peer | % | ours, data-free % | change | best peer with statistics | % | ours, diagonal % | ours, effort high % | ours, effort max % | change | change against the best of both |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        bits = bits_of(row)
        maximal = row.ours if row.ours is not None and row.ours.variant == EFFORTS[0] else None
        any_peer = min((e for e in (error_of(row.peer_free), error_of(row.peer)) if e is not None), default=None)
        cells = [
            row.form.name,
            "" if bits is None else f"{bits:.3f}",
            who(row.peer_free, bits),
            cell(row.peer_free),
            cell(row.ours_free) + (" (rtn)" if row.ours_free is not None and row.ours_free.variant == "rtn" else ""),
            change(error_of(row.ours_free), error_of(row.peer_free)),
            who(row.peer, bits),
            cell(row.peer),
            cell(row.ours_diagonal),
            cell(row.ours_high),
            cell(maximal),
            change(error_of(row.ours), error_of(row.peer)),
            change(error_of(row.ours), any_peer),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def cosine_table(rows: Sequence[Row]) -> list[str]:
    """Sentence embeddings by format, 1 - cosine in thousandths."""
    lines = [
        "| format | best data-free peer | 1 - cosine | ours, data-free | best peer with statistics | 1 - cosine | ours with statistics | change |",
        "|---|---|---|---|---|---|---|---|",
    ]
    shown: Callable[[float | None], str] = lambda lost: "" if lost is None else f"{lost:.5f}"
    for row in rows:
        ours, theirs = lost(row.ours), lost(row.peer if row.peer is not None else row.peer_free)
        is_noise = ours is not None and theirs is not None and abs(ours - theirs) < 0.0003
        says = "≈ (below 0.0003)" if is_noise else change(ours, theirs)
        cells = [row.form.name, who(row.peer_free), shown(lost(row.peer_free)), shown(lost(row.ours_free)), who(row.peer), shown(lost(row.peer)), shown(lost(row.ours)), says]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def lost(result: Result | None) -> float | None:
    """1 - cosine."""
    return None if result is None or result.figures.cosine is None else 1 - result.figures.cosine


@dataclass(frozen=True)
class Comparison:
    """Ours beside somebody's, of one kind."""

    format: str
    kind: str
    ours: float | None
    theirs: float
    name: str

    def words(self) -> str:
        """One sentence of a list."""
        if self.ours is None:
            return f"- {self.format}, {self.kind}: ours is missing, {self.name} has {percent(self.theirs)} %."
        more = 100 * (self.ours / self.theirs - 1)
        return f"- {self.format}, {self.kind}: ours has {percent(self.ours)} %, {self.name} {percent(self.theirs)} % ({more:+.1f} %)."


def comparisons(row: Row) -> list[Comparison]:
    """All that can be said of a format."""
    pairs = [
        ("data-free", row.ours_free, error_of(row.peer_free), who(row.peer_free)),
        ("diagonal", row.ours_diagonal, error_of(row.peer_diagonal), who(row.peer_diagonal)),
        ("with statistics", row.ours, error_of(row.peer), who(row.peer)),
        ("data-free", row.ours_free, row.form.bar[0], PROTOTYPE),
        ("with statistics", row.ours, row.form.bar[1], PROTOTYPE),
    ]
    return [Comparison(row.form.name, kind, error_of(ours), theirs, name) for kind, ours, theirs, name in pairs if theirs is not None]


def findings(rows: Sequence[Row]) -> list[str]:
    """Where ours is not below: against peers, against the prototype, and where the difference means nothing; and what is not written."""
    everything = [comparison for row in rows if row.form.engine for comparison in comparisons(row)]
    unwritten = [row for row in rows if not row.form.engine]
    missing = [c for c in everything if c.ours is None and c.name != PROTOTYPE]
    above = [c for c in everything if c.ours is not None and c.ours > c.theirs * (1 + NOTHING)]
    near = [c for c in everything if c.ours is not None and abs(c.ours / c.theirs - 1) <= NOTHING]
    alike: Callable[[list[Comparison]], str] = lambda given: ", ".join(f"{c.format} {c.kind}" for c in given) or "none"
    return [
        "Above a peer or the prototype by more than 2 %:",
        "",
        *([c.words() for c in above] or ["- Nowhere."]),
        "",
        "Missing beside a peer:",
        "",
        *([c.words() for c in missing] or ["- Nothing."]),
        "",
        f"Formats that the engine does not write, and peers do: {', '.join(row.form.name for row in unwritten) or 'none'}. Their rows have no figure of ours.",
        "",
        f"Within 2 % of the best peer, which means nothing: {alike([c for c in near if c.name != PROTOTYPE])}.",
        f"Within 2 % of the prototype: {alike([c for c in near if c.name == PROTOTYPE])}.",
    ]


def all_results(found: Sequence[Result]) -> list[str]:
    """Everything that ran."""
    lines = ["| format | tool | bits/weight | statistics | output error % | on calibration % | SQNR dB | cosine | CPU s |", "|---|---|---|---|---|---|---|---|---|"]
    order = {form.name: at for at, form in enumerate(FORMATS)}
    for r in sorted(found, key=lambda r: (order[r.format], r.figures.evaluation)):
        name = who(r) + ("" if r.counts else " (stores g_idx: no bar)") + (f" [{r.note}]" if r.note and r.note != "auto" else "")
        figures = f"{percent(r.figures.evaluation)} | {percent(r.figures.calibration)} | {r.figures.sqnr:.2f} | {shown_cosine(r)} | {r.seconds:.0f}"
        lines.append(f"| {r.format} | {name} | {r.bits:.3f} | {r.statistics} | {figures} |")
    return lines


def gaps(found: Sequence[Result]) -> list[str]:
    """Variants of peers that have a figure in some formats of a family and none in others of it, where the tool has other figures.

    A variant with one format is one that is named after it, as ggml's are.
    """
    family = {form.name: form.family for form in FORMATS}
    formats: dict[tuple[str, str], set[str]] = {}
    for result in found:
        if result.tool != "safequant":
            formats.setdefault((result.tool, result.variant), set()).add(result.format)
    lines = []
    for (tool, variant), ran in sorted(formats.items()):
        families = {family[name] for name in ran}
        others = {name for (other, _), names in formats.items() if other == tool for name in names}
        without = [form.name for form in FORMATS if form.name in others - ran and form.family in families]
        if len(ran) > 1 and without:
            lines.append(f"- {TITLES[tool]}, {variant}: {', '.join(without)}.")
    return lines


def shown_cosine(result: Result) -> str:
    """Empty where it was not measured."""
    return "" if result.figures.cosine is None else f"{result.figures.cosine:.5f}"


def machine() -> str:
    """Processor and operating system."""
    try:
        with open("/proc/cpuinfo") as lines:
            facts = [line.split(":", 1) for line in lines if ":" in line]
        found = {key.strip(): value.strip() for key, value in facts}
        name = f"{found.get('model name', platform.machine())}, family {found.get('cpu family', '?')}, model {found.get('model', '?')}"
    except OSError:
        name = platform.machine()
    return f"{name}, {platform.system()}, Python {platform.python_version()}"


def page(work: Path, found: Sequence[Result], picture: str) -> str:
    """``docs/quality.md``."""
    about = json.loads((work / "prepared.json").read_text())
    rows = rows_of(found)
    versions = sorted({r.version for r in found if r.tool != "safequant" and r.version != "unknown"})
    date = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")
    binaries = sorted({r.version for r in found if r.tool == "safequant"})
    lines = [
        "# Quality",
        "",
        "Written by `benches/quality/quality.py report`; do not edit. What is left of a model at the same bits: the engine beside the tools that",
        "people use, on the same weights and the same statistics.",
        "",
        f"Measured on {date}: {machine()}; one thread. Engine: {', '.join(f'`{b}`' for b in binaries)} (digest of the binary). Peers: {', '.join(versions)}, ggml of llama.cpp.",
        "",
        f"![Output error against bits per weight]({picture})",
        "",
        "## How it is measured",
        "",
        f"- Model: {about['model']}; its 36 encoder linears (10.6 million weights), as a checkpoint with names that every convention knows.",
        f"- Calibration: {about['sentences']['calibration']} sentences, {about['tokens']['calibration']} tokens (docstrings of Python's standard library, topics of its manual, licenses).",
        f"  Evaluation: {about['sentences']['evaluation']} other sentences, {about['tokens']['evaluation']} tokens, of other documents; a third are manual pages, a kind that calibration lacks.",
        f"  Digests: calibration `{about['digests']['calibration'][:23]}`, evaluation `{about['digests']['evaluation'][:23]}`. The texts are what the machine has, so another machine gets other digests and slightly other figures.",
        "- `H = X^T X / n` of each layer in the unquantized model (`safequant.calibrate`). Output error: `tr((W-Q) H (W-Q)^T) / tr(W H W^T)` with `H` of the evaluation text, in percent, mean over the layers: a ratio of squares.",
        "- No quantizer is given the evaluation statistics. Peers are the best of their variants on the evaluation text; ours are fixed: method `mse` data-free, method `auto` at the effort that the column names.",
        "- `diagonal`: only the mean squares of the inputs are known, as in llama.cpp's importance matrix. `with statistics`: anything up to the whole `H`.",
        "- Bits per weight: bytes of all tensors that are stored (of ours: of the file), divided by the weights. Types of 256 weights join two rows where a row has 384 weights; `H` is then block-diagonal.",
        "- Scales of integers are BF16 in the engine's files here (compressed-tensors, the model's dtype), F16 in GPTQModel's and AutoRound's. At 8 bits that alone is worth 3 % without statistics.",
        "- The best effort that ran counts as ours with statistics: `max`, else `high`; the table says which ran. Peers run with the settings with which they are best; what is left out: AutoRound's tuning (`benches/quality/peers/auto_round_rtn.py` says why), AWQ, torchao's GPTQ (natural order, minimum and maximum), and runs on a quantized prefix. Variants that did not run everywhere are listed at the end.",
        "- **Differences below 2 % mean nothing** and are marked ≈: the choice of the text changes as much. Changes in bold are to our disadvantage. Layouts that store `g_idx` are listed below and are no bar.",
        "",
        "## Output error",
        "",
        *main_table(rows),
        "",
        "The prototype is what set the engine's aims; its figures are of another text, on which peers have up to 2 % less than here.",
        "",
        *findings(rows),
        "",
        "## End to end",
        "",
        "Sentence embeddings with all 36 layers replaced, against those of the original weights: 160 evaluation sentences, 1 - mean cosine. Differences below 0.0003 are not to be read.",
        "",
        *cosine_table(rows),
        "",
        "## All results",
        "",
        *all_results(found),
        "",
        "Without a figure, though the variant has one in like formats: it was not run there, or the tool does not offer it there.",
        "",
        *(gaps(found) or ["- None."]),
        "",
    ]
    return "\n".join(lines)


def write(work: Path, markdown: Path | None, svg: Path | None) -> int:
    """Prints the table, and writes the page and the plot where that is asked for; an exit status."""
    found = results.everything(work)
    if not found:
        print(f"{work}: no results; run `ours` and `peers` first")
        return 1
    rows = rows_of(found)
    print("\n".join([*main_table(rows), "", *findings(rows), "", *cosine_table(rows)]))
    if markdown is not None:
        markdown.write_text(page(work, found, svg.name if svg else "quality.svg"))
    if svg is not None:
        svg.write_text(chart.draw(found, TITLES))
    return 0
