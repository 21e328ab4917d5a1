"""Markdown, JSON and an SVG chart of what was measured."""

import datetime
import importlib.metadata
import json
import platform

LIBRARIES = ["torch", "transformers", "compressed-tensors", "gptqmodel", "bitsandbytes", "mlx", "numpy"]


def machine(field, library):
    """Where and with what it was measured."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    with open("/proc/cpuinfo") as lines:
        facts = dict(line.split(":", 1) for line in lines if ":" in line)
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": f"{facts.get('model name', platform.machine())}, family {facts.get('cpu family', '?')}, model {facts.get('model', '?')}",
        "avx512": "avx512f" in facts.get("flags", "").split(),
        "backend": library.backend().decode(),
        "python": platform.python_version(),
        "ggml": [name for name, _ in field.ggml],
        "versions": versions,
    }


def figures(case):
    """A case as plain data."""
    return {
        "name": case.name,
        "title": case.title,
        "rows": case.rows,
        "columns": case.columns,
        "bytes_in": case.bytes_in,
        "bytes_out": case.bytes_out,
        "peers": [
            {
                "name": peer.name,
                "how": peer.how,
                "rows": peer.rows or case.rows,
                "seconds": peer.seconds,
                "median": peer.median(),
                "weights_per_second": case.weights_per_second(peer),
                "times": case.times(peer),
                "target": peer.target,
                "answer": peer.verdict,
            }
            for peer in case.peers
        ],
    }


def write(folder, where, cases):
    """All three files; after each case, so that a run that is stopped leaves what it had."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "last.json").write_text(json.dumps({"machine": where, "cases": cases}, indent=1) + "\n")
    (folder / "last.md").write_text(markdown(where, cases))
    (folder / "chart.svg").write_text(svg(where, cases))


def markdown(where, cases):
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    lines = [
        "# Side by side with other libraries",
        "",
        "Written by `benches/peers/peers.py`; do not edit.",
        "",
        f"{where['date']}, {where['processor']} ({'AVX-512' if where['avx512'] else 'no AVX-512'}), one thread, safequant's backend {where['backend']}.",
        f"Python {where['python']}, {versions}.",
        "",
        "CPU time, medians of interleaved rounds in one run. *times* says how many times longer a peer takes than safequant per weight; the target is",
        "8 for a library's own path, 2 for C kernels called directly and for the table loop, 5 for quantizing. *answer* compares the peer's",
        "output with safequant's. Peers that take seconds work on a slice of the rows.",
        "",
        "| work | who | rows | ms | G weights/s | times | target | answer |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for case in cases:
        for at, peer in enumerate(case["peers"]):
            target = f"{peer['target']:.0f}" if peer["target"] else ""
            times = f"{peer['times']:.2f}" if not peer["target"] else f"{peer['times']:.1f}"
            short = " (below)" if peer["target"] and peer["times"] < peer["target"] else ""
            lines.append(
                f"| {case['title'] if at == 0 else ''} | {peer['name']}: {peer['how']} | {peer['rows']} | {1e3 * peer['median']:.1f} "
                f"| {peer['weights_per_second'] / 1e9:.3f} | {times}{short} | {target} | {peer['answer'] if at else 'ours'} |"
            )
    return "\n".join(lines) + "\n"


ROW, LEFT, WIDTH, TOP = 17, 250, 760, 62
STYLE = """
    text { font: 12px system-ui, sans-serif; fill: #1f2328 }
    .head { font-weight: 600 } .small { font-size: 11px } .note { fill: #59636e; font-size: 11px }
    .ours { fill: #1a7f37 } .copy { fill: #afb8c1 } .peer { fill: #bf8700 }
    @media (prefers-color-scheme: dark) {
      text { fill: #f0f6fc } .note { fill: #9198a1 } .ours { fill: #3fb950 } .copy { fill: #656c76 } .peer { fill: #d29922 }
    }
"""


def best_peers(case):
    """The fastest peer of each library, fastest first: three of them."""
    peers = [peer for peer in case["peers"] if peer["target"]]
    return sorted(peers, key=lambda peer: -peer["weights_per_second"])[:3]


def svg(where, cases):
    """Bars of weights per second: safequant, the streaming copy, and the three fastest others."""
    groups = []
    for case in cases:
        ours, copy = case["peers"][0], case["peers"][1]
        groups.append((case["title"], [("ours", ours), ("copy", copy)] + [("peer", peer) for peer in best_peers(case)]))
    fastest = max(peer["weights_per_second"] for _, rows in groups for _, peer in rows)
    y, body = TOP, []
    for title, rows in groups:
        body.append(f'<text class="head" x="12" y="{y}">{escape(title)}</text>')
        y += 6
        for kind, peer in rows:
            width = max(1.0, (WIDTH - LEFT - 120) * peer["weights_per_second"] / fastest)
            rate = f"{peer['weights_per_second'] / 1e9:.2f}"
            says = f"{rate} ({peer['times']:.1f}x slower)" if kind == "peer" and peer["times"] >= 1 else rate
            body.append(f'<text class="small" x="{LEFT - 8}" y="{y + 12}" text-anchor="end">{escape(peer["name"])}</text>')
            body.append(f'<rect class="{kind}" x="{LEFT}" y="{y + 2}" width="{width:.1f}" height="{ROW - 5}" rx="2"/>')
            body.append(f'<text class="small" x="{LEFT + width + 6:.1f}" y="{y + 12}">{says}</text>')
            y += ROW
        y += 20
    note = f"{where['date'][:10]}, {where['processor']}, backend {where['backend']}; benches/peers/peers.py"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" width="{WIDTH}" height="{y}" role="img" '
            'aria-label="Weights per second of safequant, a streaming copy and other libraries">',
            f"<style>{STYLE}</style>",
            '<text class="head" x="12" y="20">Billions of weights per second, one thread, '
            f'{cases[0]["rows"]} x {cases[0]["columns"]} (longer is better)</text>',
            f'<text class="note" x="12" y="38">{escape(note)}</text>',
            *body,
            "</svg>\n",
        ]
    )


def escape(text):
    return text.replace("&", "&amp;").replace("<", "&lt;")
