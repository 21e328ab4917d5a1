"""Jobs over a Ray cluster of two local nodes: the bytes of a local run, also when one of them is killed at work.

    python -m unittest test_ray

Needs Ray (``pip install 'safequant[ray]'``) and Linux: which process holds the lock of a part is read in ``/proc/locks``.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
import tempfile
import threading
import time
import unittest
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

import safequant
from support import FIXTURES, staged, Fixture

try:
    import ray
    from ray.cluster_utils import Cluster
except ImportError:
    print("SKIPPED: test_ray needs Ray (pip install 'safequant[ray]')", file=sys.stderr)
    raise unittest.SkipTest("Ray is not installed") from None

import safequant.ray

NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 100 * 1024 * 1024, "include_dashboard": False}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file under a folder, by name."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def write_dense(folder: Path, layers: int, hidden: int) -> None:
    """A dense checkpoint in the shape of a Llama, in F32, with reproducible weights; ``layers`` files."""
    rng = np.random.default_rng(20261128)
    folder.mkdir()
    weight_map = {}
    for layer in range(layers):
        name = f"model-{layer + 1:05}-of-{layers:05}.safetensors"
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        payload = []
        end = 0
        for module in ("mlp.down_proj", "mlp.gate_proj", "mlp.up_proj", "self_attn.o_proj", "self_attn.q_proj"):
            tensor = f"model.layers.{layer}.{module}.weight"
            data = rng.standard_normal((hidden, hidden), dtype=np.float32).tobytes()
            header[tensor] = {"dtype": "F32", "shape": [hidden, hidden], "data_offsets": [end, end + len(data)]}
            weight_map[tensor] = name
            payload.append(data)
            end += len(data)
        text = json.dumps(header).encode()
        (folder / name).write_bytes(len(text).to_bytes(8, "little") + text + b"".join(payload))
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "torch_dtype": "float32"}\n')


def lock_holders(folder: Path) -> set[int]:
    """Processes that hold a lock on a file in a folder."""
    inodes = {str(path.stat().st_ino) for path in folder.glob("*") if path.exists()}
    holders = set()
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.replace("->", " ").split()
        if fields[1] == "FLOCK" and fields[5].split(":")[2] in inodes:
            holders.add(int(fields[4]))
    return holders


def parent(pid: int) -> int:
    """The parent of a process; 0 if it is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except (OSError, IndexError):
        return 0


def raylet(node: Any) -> int:
    """The process of a node that starts its workers."""
    pid: int = node.all_processes["raylet"][0].process.pid
    return pid


class RayTest(unittest.TestCase):
    """Two nodes with a CPU each, for every test anew: some of them kill one."""

    cluster: Cluster
    second: Any
    folder: Path

    def setUp(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="safequant-ray-"))
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)
        self.cluster = Cluster(initialize_head=True, head_node_args=NODE)
        self.addCleanup(self.cluster.shutdown)
        self.second = self.cluster.add_node(**{key: NODE[key] for key in ("num_cpus", "object_store_memory")})
        ray.init(address=self.cluster.address, log_to_driver=False)
        self.addCleanup(ray.shutdown)
        self.cluster.wait_for_nodes()
        self.assertEqual(ray.cluster_resources()["CPU"], 2.0)  # type: ignore[no-untyped-call]

    def fixture(self, name: str) -> Path:
        return staged(Fixture(name, FIXTURES / name, {}), self.folder / name.rsplit("/", maxsplit=1)[-1])

    def kill_second_at_work(self, parts: Path, killed: list[int]) -> None:
        """Kills the second node as soon as one of its workers holds the lock of a part's file."""
        node = raylet(self.second)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            at_work = [pid for pid in lock_holders(parts) if parent(pid) == node]
            if at_work:
                self.cluster.remove_node(self.second, allow_graceful=False)
                killed.extend(at_work)
                return
            time.sleep(0.002)


class WritingTest(RayTest):
    def test_verbs_give_the_bytes_of_the_local_run(self) -> None:
        """Quantize, convert and dequantize; progress adds up; a Summary equals the local one."""
        dense = self.folder / "dense"
        write_dense(dense, layers=3, hidden=256)
        awq = self.fixture("autoawq/awq-autoawq-gemm-g128")
        verbs: list[tuple[Any, Any, Path, dict[str, Any]]] = [
            (safequant.quantize, safequant.ray.quantize, dense, {"scheme": "W4A16", "max_shard_size": 100_000}),
            (safequant.quantize, safequant.ray.quantize, dense, {"scheme": "FP8", "max_shard_size": 200_000}),
            (safequant.convert, safequant.ray.convert, awq, {"to": "gptq_v2", "max_shard_size": 50_000}),
            (safequant.dequantize, safequant.ray.dequantize, awq, {"max_shard_size": 60_000}),
        ]
        n_parts = []
        for local, distributed, source, options in verbs:
            with self.subTest(options=options):
                expected = local(source, self.folder / "local", **options)
                events: list[safequant.Event] = []
                summary = distributed(source, self.folder / "ray", num_parts=5, progress=events.append, **options)
                self.assertEqual(contents(self.folder / "ray"), contents(self.folder / "local"))
                self.assertEqual(summary.modules, expected.modules)
                self.assertEqual(summary.files, expected.files)
                self.assertEqual(summary.resumed_modules, 0)
                self.assertGreater(summary.peak_buffer_bytes, 0)
                advances = [event.bytes for event in events if event.kind == "advance"]
                [start] = [event for event in events if event.kind == "start"]
                self.assertEqual(sum(advances), start.bytes)
                self.assertEqual(events[-1].kind, "commit")
                n_parts.append(len(advances))
                shutil.rmtree(self.folder / "ray")
                shutil.rmtree(self.folder / "local")
        self.assertEqual(len(n_parts), 4)
        self.assertGreaterEqual(min(n_parts), 3, n_parts)
        left = [path.name for path in self.folder.iterdir() if path.name.startswith(".")]
        self.assertEqual(left, [])

    def test_a_node_that_is_killed_at_work_changes_no_byte(self) -> None:
        source = self.folder / "dense"
        write_dense(source, layers=16, hidden=1024)
        request = safequant.quantize_request(source, self.folder / "ray", scheme="W4A16", max_shard_size="3MB")
        safequant.quantize(source, self.folder / "local", scheme="W4A16", max_shard_size="3MB")
        killed: list[int] = []
        parts = self.folder / ".ray.safequant-partial" / "parts"
        killer = threading.Thread(target=self.kill_second_at_work, args=(parts, killed))
        killer.start()
        # Spread, so that the second node gets parts however fast the first one is.
        summary = safequant.ray.run(request, num_parts=8, ray_options={"scheduling_strategy": "SPREAD"})
        killer.join()
        self.assertNotEqual(killed, [], "the second node was not seen at work")
        self.assertEqual(len(self.cluster.list_all_nodes()), 1)  # type: ignore[no-untyped-call]
        self.assertEqual(contents(self.folder / "ray"), contents(self.folder / "local"))
        self.assertEqual(len(summary.modules), 80)
        self.assertFalse(parts.parent.exists())

    def test_what_is_interrupted_goes_on_here_or_there(self) -> None:
        """What the callback raises (as Ctrl-C would) cancels the tasks, and what is done is kept."""
        source = self.folder / "dense"
        write_dense(source, layers=4, hidden=512)
        options: dict[str, Any] = {"scheme": "W8A16", "max_shard_size": 600_000}
        safequant.quantize(source, self.folder / "local", **options)
        expected = contents(self.folder / "local")

        def interrupt(event: safequant.Event) -> None:
            if event.kind == "advance":
                raise KeyboardInterrupt

        for again in (safequant.quantize, safequant.ray.quantize):
            with self.assertRaises(KeyboardInterrupt):
                safequant.ray.quantize(source, self.folder / "ray", num_parts=6, progress=interrupt, **options)
            self.assertFalse((self.folder / "ray").exists())
            self.assertTrue((self.folder / ".ray.safequant-partial").exists())
            summary = again(source, self.folder / "ray", resume=True, **options)
            self.assertGreater(summary.resumed_modules, 0)
            self.assertEqual(contents(self.folder / "ray"), expected)
            shutil.rmtree(self.folder / "ray")

    def test_errors_are_those_of_the_local_verb(self) -> None:
        source = self.folder / "dense"
        write_dense(source, layers=2, hidden=256)
        # A weight that is no number: met by a part, and the end of the job, as locally.
        shard = source / "model-00002-of-00002.safetensors"
        data = bytearray(shard.read_bytes())
        data[-4:] = np.float32("nan").tobytes()
        shard.write_bytes(data)
        raised = []
        for quantize in (safequant.quantize, safequant.ray.quantize):
            with self.assertRaises(safequant.RefusedError) as caught:
                quantize(source, self.folder / "out", scheme="W8A16", max_shard_size=200_000)
            raised.append((caught.exception.code, str(caught.exception)))
            self.assertEqual(sorted(os.listdir(self.folder)), ["dense"], "nothing is left")
        self.assertEqual(raised[0], raised[1])
        with self.assertRaises(safequant.UsageError):
            safequant.ray.quantize(source, self.folder / "out", scheme="W5A11")
        with self.assertRaises(safequant.SafequantError):
            safequant.ray.quantize(self.folder / "nothing", self.folder / "out", scheme="W8A16")
        (self.folder / "out").mkdir()
        (self.folder / "out" / "file").write_text("mine")
        with self.assertRaises(safequant.RefusedError) as caught:
            safequant.ray.quantize(source, self.folder / "out", scheme="W8A16")
        self.assertEqual(caught.exception.code, "destination_exists")

    def test_an_audit_is_the_local_one(self) -> None:
        source = self.fixture("autoawq/awq-autoawq-gemm-g128")
        expected = safequant.audit(source, runtimes=["vllm"])
        report = safequant.ray.audit(source, runtimes=["vllm"])
        self.assertEqual(report.findings, expected.findings)
        self.assertEqual(report.runtimes, expected.runtimes)
        self.assertEqual(report.record["source"], os.path.abspath(source))


class ImportTest(unittest.TestCase):
    def test_without_ray_the_error_says_what_to_install(self) -> None:
        # None is how Python marks a module that cannot be imported.
        with mock.patch.dict(sys.modules, {"ray": None}):
            module = importlib.import_module("safequant.ray")
            with self.assertRaisesRegex(ImportError, r"safequant\[ray\]"):
                module.audit("nowhere")


if __name__ == "__main__":
    unittest.main()
