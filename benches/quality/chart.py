"""Error against bits per weight, one curve for each tool, as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from results import Result

WIDTH, HEIGHT = 880, 620
LEFT, RIGHT, TOP, BOTTOM = 64, 200, 56, 52
BITS = (2.0, 9.0)
PERCENT = (0.0008, 30.0)
#: Bits over which no line is drawn.
GAP = 1.1
STYLE = """
    text { font: 12px system-ui, sans-serif; fill: #1f2328 }
    .head { font-weight: 600; font-size: 14px } .note { fill: #59636e; font-size: 11px }
    .grid { stroke: #d1d9e0; stroke-width: 1 } path { fill: none; stroke-width: 1.5 } .ours { stroke-width: 3 }
    @media (prefers-color-scheme: dark) {
      text { fill: #f0f6fc } .note { fill: #9198a1 } .grid { stroke: #3d444d }
    }
"""
#: Curves: tool, whether statistics were given, color. Ours are drawn last, so that nothing covers them.
CURVES = (
    ("llm_compressor", False, "#d4a72c"),
    ("llm_compressor", True, "#9a6700"),
    ("gptq_model", True, "#bc4c00"),
    ("ggml", False, "#a475f9"),
    ("ggml", True, "#6639ba"),
    ("hqq_core", False, "#4ac26b"),
    ("mlx_core", False, "#57606a"),
    ("quanto", False, "#e85aad"),
    ("bnb", False, "#cf222e"),
    ("torch_ao", False, "#0a7f8f"),
    ("qwantize_fp4", False, "#8c959f"),
    ("auto_round_rtn", False, "#f0883e"),
    ("auto_round_rtn", True, "#b35900"),
    ("safequant", False, "#54aeff"),
    ("safequant", True, "#0969da"),
)


def x_of(bits: float) -> float:
    """Where a number of bits lies."""
    return LEFT + (bits - BITS[0]) / (BITS[1] - BITS[0]) * (WIDTH - LEFT - RIGHT)


def y_of(percent: float) -> float:
    """Where an error lies."""
    low, high = (math.log10(p) for p in PERCENT)
    return TOP + (high - math.log10(percent)) / (high - low) * (HEIGHT - TOP - BOTTOM)


def points_of(found: Sequence[Result], tool: str, is_informed: bool) -> list[tuple[float, float]]:
    """The best of a tool at each number of bits, as far as no smaller file of its own has less error."""
    best: dict[float, float] = {}
    for result in found:
        if result.tool == tool and (result.statistics != "none") == is_informed and result.counts and result.variant != "rtn":
            bits, error = round(result.bits, 2), result.figures.evaluation
            best[bits] = min(error, best.get(bits, math.inf))
    front: list[tuple[float, float]] = []
    for bits, error in sorted(best.items()):
        if not front or error < front[-1][1]:
            front.append((bits, error))
    return front


def path_of(points: Sequence[tuple[float, float]]) -> str:
    """A line through points, broken where formats lie far apart: nothing is known in between."""
    parts = []
    for at, (bits, error) in enumerate(points):
        is_near = at > 0 and bits - points[at - 1][0] <= GAP
        parts.append(f"{'L' if is_near else 'M'}{x_of(bits):.1f} {y_of(error):.1f}")
    return " ".join(parts)


def grid() -> list[str]:
    """Axes with their numbers."""
    parts = []
    for bits in range(int(BITS[0]), int(BITS[1]) + 1):
        x = x_of(bits)
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{bits}</text>')
    for power in range(-3, 2):
        y = y_of(10.0**power)
        parts.append(f'<line class="grid" x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{10.0**power:g} %</text>')
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 12}" text-anchor="middle">bits per weight, as stored</text>')
    return parts


def draw(found: Sequence[Result], titles: Mapping[str, str]) -> str:
    """The whole picture."""
    body, at = grid(), TOP + 8
    drawn = [(tool, informed, color, points_of(found, tool, informed)) for tool, informed, color in CURVES]
    for tool, is_informed, color, points in drawn:
        if not points:
            continue
        name = titles[tool] + (", with statistics" if is_informed else "")
        kind = ' class="ours"' if tool == "safequant" else ""
        body.append(f'<path{kind} d="{path_of(points)}" stroke="{color}"><title>{name}</title></path>')
        for bits, error in points:
            radius = 4 if tool == "safequant" else 3
            about = f"<title>{name}: {error:.4g} % at {bits:.2f} bits</title>"
            body.append(f'<circle cx="{x_of(bits):.1f}" cy="{y_of(error):.1f}" r="{radius}" fill="{color}">{about}</circle>')
    for tool, is_informed, color, points in reversed(drawn):
        if not points:
            continue
        name = titles[tool] + (", statistics" if is_informed else ", data-free")
        body.append(f'<rect x="{WIDTH - RIGHT + 16}" y="{at - 9}" width="14" height="10" fill="{color}"/>')
        body.append(f'<text x="{WIDTH - RIGHT + 36}" y="{at}">{name}</text>')
        at += 20
    label = "Output error of quantized layers against bits per weight, one curve for each tool"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img" aria-label="{label}">',
            f"<style>{STYLE}</style>",
            '<text class="head" x="12" y="20">Output error on held-out text against bits per weight (lower is better)</text>',
            '<text class="note" x="12" y="38">36 layers of all-MiniLM-L6-v2; of each tool the formats in which no smaller one has less error</text>',
            *body,
            "</svg>\n",
        ]
    )
