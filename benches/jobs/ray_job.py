#!/usr/bin/env python3
"""A 2.5 GB job over Ray on one machine with two local nodes, one of which is killed in the middle (issue 6, point 5).

    python benches/jobs/ray_job.py FOLDER                   # FOLDER gets a synthetic source of 2.45 GB, or has it as FOLDER/source
    python benches/jobs/ray_job.py FOLDER --scheme W4A16 --shard 200MB --parts 12

Runs, one after the other: the local verb; the same over Ray with both nodes; the same over Ray with the second node killed once
some of the parts are done and one of its workers holds the lock of another. Both results are compared with the local one, file by
file. Needs safequant with its extra `ray`, and Linux. On one machine two nodes with a CPU each share what one process with two
threads has: the times tell what Ray and planning in every part cost, not what a cluster gains.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

import safequant
import safequant.ray

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "crash"))
sys.path.insert(0, str(HERE.parents[1] / "crates" / "python" / "tests" / "interop"))
import synthetic  # noqa: E402
from test_ray import lock_holders, parent, raylet  # noqa: E402

NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 100 * 1024 * 1024}


def equal(a: Path, b: Path) -> int:
    """How many files two folders have, if they have the same files with the same bytes."""
    names = sorted(path.relative_to(a).as_posix() for path in a.rglob("*") if path.is_file())
    others = sorted(path.relative_to(b).as_posix() for path in b.rglob("*") if path.is_file())
    if names != others:
        raise SystemExit(f"other files: {names} {others}")
    for name in names:
        if not filecmp.cmp(a / name, b / name, shallow=False):
            raise SystemExit(f"{name} differs")
    return len(names)


class Run:
    """A job over a fresh cluster of two nodes."""

    def __init__(self, request: safequant.Request, n_parts: int, kill_after: int | None) -> None:
        self.request, self.n_parts, self.kill_after = request, n_parts, kill_after
        self.n_done = 0
        self.killed: list[int] = []
        self.seconds = 0.0
        output = Path(request.output)
        self.parts = output.with_name(f".{output.name}.safequant-partial") / "parts"

    def tell(self, event: safequant.Event) -> None:
        self.n_done += event.kind == "advance"

    def kill(self, cluster: Cluster, node: Any) -> None:
        while self.kill_after is not None:
            if self.n_done >= self.kill_after:
                at_work = [pid for pid in lock_holders(self.parts) if parent(pid) == raylet(node)]
                if at_work:
                    # In the middle of a file, not right at its start.
                    time.sleep(0.3)
                    cluster.remove_node(node, allow_graceful=False)
                    self.killed = at_work
                    return
            time.sleep(0.005)

    def __call__(self) -> safequant.Summary:
        cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
        node = cluster.add_node(**NODE)
        ray.init(address=cluster.address, log_to_driver=False)
        cluster.wait_for_nodes()
        killer = threading.Thread(target=self.kill, args=(cluster, node), daemon=True)
        killer.start()
        started = time.monotonic()
        try:
            summary = safequant.ray.run(self.request, num_parts=self.n_parts, progress=self.tell)
            self.seconds = time.monotonic() - started
            return summary
        finally:
            if self.kill_after is not None:
                killer.join(timeout=60)
            ray.shutdown()
            cluster.shutdown()  # type: ignore[no-untyped-call]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scheme", default="W4A16")
    parser.add_argument("--shard", default="150MB")
    parser.add_argument("--parts", type=int, default=8)
    arguments = parser.parse_args()
    source = arguments.folder / "source"
    if not source.exists():
        synthetic.write(str(source), 2_450_000_000, 1_900_000_000, 2048, 8192)
    size = sum(path.stat().st_size for path in source.iterdir())
    options = {"scheme": arguments.scheme, "max_shard_size": arguments.shard}

    def request(name: str) -> safequant.Request:
        output = arguments.folder / name
        shutil.rmtree(output, ignore_errors=True)
        return safequant.quantize_request(source, output, **options)

    started = time.monotonic()
    local = safequant.run(request("local"))
    print(f"{size / 1e9:.2f} GB to {local.output_bytes / 1e9:.2f} GB, {len(local.files)} files", flush=True)
    print(f"local: {time.monotonic() - started:.1f} s, {os.cpu_count()} CPUs", flush=True)
    for name, kill_after in (("both nodes", None), ("one node killed", 2)):
        run = Run(request("ray"), arguments.parts, kill_after)
        summary = run()
        n_files = equal(arguments.folder / "local", arguments.folder / "ray")
        if kill_after is not None and not run.killed:
            raise SystemExit("the node was not seen at work: nothing was killed in the middle")
        print(
            f"{name}: {run.seconds:.1f} s, {run.n_done} parts, workers killed: {len(run.killed)}, "
            f"modules taken over from killed ones: {summary.resumed_modules}; {n_files} files, all equal",
            flush=True,
        )
    for name in ("local", "ray"):
        shutil.rmtree(arguments.folder / name)


if __name__ == "__main__":
    main()
