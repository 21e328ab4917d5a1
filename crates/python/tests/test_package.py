"""The package beside NumPy and ml_dtypes alone: what it reads, what it gives, what it holds on to."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safequant
from support import FIXTURES, fixtures, staged

#: A file: what its tool expects lies beside it under other names.
W4 = FIXTURES / "llm-compressor" / "ct-w4a16-g128" / "model.safetensors"
MINILM = FIXTURES / "all-minilm-l6-v2"


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def raw(array: Any) -> bytes:
    return np.ascontiguousarray(np.asarray(array)).view(np.uint8).tobytes()


class EveryFixture(unittest.TestCase):
    def test_decodes_to_the_bytes_that_dequantize_writes(self) -> None:
        n_fixtures = n_tensors = 0
        for fixture in fixtures():
            with self.subTest(fixture.name), scratch() as folder:
                source = staged(fixture, folder / "in")
                written = folder / ("out.safetensors" if source.suffix == ".safetensors" else "out")
                safequant.dequantize(source, written)
                dense = safequant.open(source).dense()
                stored = safequant.open(written).tensors
                for name, tensor in dense.items():
                    whole = tensor.read()
                    self.assertEqual((tensor.dtype, tensor.shape), stored.info(name)[:2], name)
                    self.assertEqual(whole.tobytes(), stored[name].tobytes(), name)
                    n_tensors += 1
            n_fixtures += 1
        self.assertGreater(n_fixtures, 110)
        self.assertGreater(n_tensors, 1300)

    def test_gives_every_part_as_it_lies_in_the_file(self) -> None:
        n_parts = 0
        for fixture in fixtures():
            with self.subTest(fixture.name), scratch() as folder:
                source = staged(fixture, folder / "in")
                mapped, read = safequant.open(source), safequant.open(source, mmap=False)
                for name, module in mapped.modules.items():
                    self.assertEqual(module.name, name)
                    self.assertGreater(module.bits, 0)
                    for part in module.parts:
                        self.assertEqual(part.array.tobytes(), read.tensors[part.name].tobytes())
                        n_parts += 1
        self.assertGreater(n_parts, 2000)


class Arrays(unittest.TestCase):
    def test_views_lie_in_the_mapped_file(self) -> None:
        checkpoint = safequant.open(W4)
        n_views = 0
        for name in checkpoint.tensors:
            array = checkpoint.tensors[name]
            if array.nbytes == 0:
                continue
            self.assertEqual(array.address, checkpoint.tensors[name].address, name)
            self.assertEqual(array.numpy().ctypes.data, array.address, name)
            self.assertIn(".safetensors", mapping_of(array.address), name)
            n_views += 1
        self.assertGreater(n_views, 10)

    def test_writing_into_a_view_leaves_the_file_alone(self) -> None:
        with scratch() as folder:
            copy = folder / "model.safetensors"
            shutil.copy(W4, copy)
            before = copy.read_bytes()
            checkpoint = safequant.open(copy, strict=False)
            name = next(name for name in checkpoint.tensors if checkpoint.tensors[name].nbytes > 0)
            values = checkpoint.tensors[name].numpy()
            values.view(np.uint8).reshape(-1)[:] ^= 0xFF
            self.assertEqual(copy.read_bytes(), before)
            again = safequant.open(copy, mmap=False, strict=False).tensors[name]
            self.assertNotEqual(again.tobytes(), values.tobytes())

    def test_they_outlive_their_checkpoint(self) -> None:
        array = safequant.open(W4)["model.norm.weight"].numpy()
        gc.collect()
        self.assertTrue(np.isfinite(array.astype(np.float32)).all())

    def test_numpy_and_dlpack_see_the_same_memory(self) -> None:
        module = next(iter(safequant.open(W4).modules.values()))
        values = module.dequantize(dtype="F32")
        self.assertEqual(np.from_dlpack(values).ctypes.data, values.address)
        self.assertEqual(np.asarray(values).ctypes.data, values.address)
        self.assertEqual(values.numpy().dtype, np.float32)
        self.assertEqual(module.dequantize(dtype="BF16").numpy().dtype, ml_dtypes.bfloat16)
        self.assertEqual(len(values), module.shape[0])
        self.assertEqual(values.data.nbytes, values.nbytes)
        self.assertEqual(np.frombuffer(values.data, np.uint8).ctypes.data, values.address)
        if sys.version_info >= (3, 12):
            self.assertEqual(memoryview(values).nbytes, values.nbytes)
        with self.assertRaises(BufferError):
            values.__dlpack__(stream=None, dl_device=(2, 0))
        capsules = [values.__dlpack__(max_version=version) for version in (None, (1, 0))]
        del capsules, values
        gc.collect()

    def test_dtypes_are_taken_in_every_spelling(self) -> None:
        module = next(iter(safequant.open(W4).modules.values()))
        for dtype in ("F16", "f16", "float16", np.float16, np.dtype("float16")):
            self.assertEqual(module.rows(0, 1, dtype=dtype).dtype, "F16", dtype)
        for dtype in ("BF16", "bfloat16", ml_dtypes.bfloat16, np.dtype(ml_dtypes.bfloat16)):
            self.assertEqual(module.rows(0, 1, dtype=dtype).dtype, "BF16", dtype)
        self.assertEqual(module.rows(0, 1, dtype=None).dtype, module.dtype)
        for dtype in ("F64", np.int8, object()):
            with self.assertRaises(safequant.UsageError):
                module.dequantize(dtype=dtype)

    def test_out_is_filled_in_place(self) -> None:
        module = next(iter(safequant.open(W4).modules.values()))
        out = np.empty(module.shape, ml_dtypes.bfloat16)
        filled = module.dequantize(dtype="BF16", out=out)
        self.assertEqual(filled.address, out.ctypes.data)
        self.assertEqual(raw(out), raw(module.dequantize(dtype="BF16")))
        rows = np.empty((3, module.shape[1]), np.float32)
        module.rows(2, 5, dtype="F32", out=rows)
        self.assertEqual(raw(rows), raw(module.dequantize(dtype="F32").numpy()[2:5]))

    def test_an_out_that_does_not_fit_is_refused(self) -> None:
        module = next(iter(safequant.open(W4).modules.values()))
        rows, columns = module.shape
        wrong = [
            np.empty((rows, columns), np.float32),
            np.empty((rows, columns + 1), ml_dtypes.bfloat16),
            np.empty((columns, rows), ml_dtypes.bfloat16).T,
            np.empty((rows, 2 * columns), ml_dtypes.bfloat16)[:, ::2],
        ]
        readonly = np.empty((rows, columns), ml_dtypes.bfloat16)
        readonly.flags.writeable = False
        for out in [*wrong, readonly]:
            with self.assertRaises(safequant.UsageError):
                module.dequantize(dtype="BF16", out=out)

    def test_narrow_elements_are_given_as_bytes(self) -> None:
        with scratch() as folder:
            path = folder / "model.safetensors"
            described = {"odd": {"dtype": "F4", "shape": [3, 6], "data_offsets": [0, 9]}}
            text = json.dumps(described).encode()
            path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(range(9)))
            array = safequant.open(path, strict=False).tensors["odd"]
            self.assertEqual((array.stored_dtype, array.dtype, array.shape), ("F4", "U8", (3, 3)))
            self.assertEqual(array.numpy().tolist(), [[0, 1, 2], [3, 4, 5], [6, 7, 8]])

    def test_elements_off_their_multiple_are_copied(self) -> None:
        with scratch() as folder:
            path = folder / "model.safetensors"
            described = {
                "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
                "b": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]},
            }
            text = json.dumps(described).encode()
            path.write_bytes(len(text).to_bytes(8, "little") + text + b"\0" + np.float32([1, 2]).tobytes())
            array = safequant.open(path).tensors["b"]
            self.assertEqual(array.address % 4, 0)
            self.assertNotIn(".safetensors", mapping_of(array.address))
            self.assertEqual(array.numpy().tolist(), [1, 2])


def mapping_of(address: int) -> str:
    """The line of /proc/self/maps that an address is in."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(bound, 16) for bound in line.split()[0].split("-"))
        if start <= address < end:
            return line
    return ""


class Checkpoints(unittest.TestCase):
    def test_a_checkpoint_is_a_mapping_of_modules_and_tensors(self) -> None:
        checkpoint = safequant.open(W4)
        self.assertEqual(checkpoint.conventions, ["compressed-tensors"])
        self.assertEqual(len(list(checkpoint)), len(checkpoint))
        name = next(iter(checkpoint.modules))
        module = checkpoint[name]
        assert isinstance(module, safequant.Module)
        self.assertEqual((module.bits, module.group_size), (4, 128))
        self.assertEqual(module.part("codes").dtype, "I32")
        self.assertIn(name, repr(module))
        self.assertIsInstance(checkpoint["model.norm.weight"], safequant.Array)
        self.assertIn("quantization_config", checkpoint.config)
        for missing in ("nothing", 3):
            with self.assertRaises(KeyError):
                checkpoint[missing]  # type: ignore[index]
        with self.assertRaises(safequant.MissingError):
            module.part("mask")

    def test_metadata_is_a_mapping_of_python_values(self) -> None:
        path = FIXTURES / "llama.cpp" / "hf-llama-spm" / "expected.gguf"
        metadata = safequant.open(path).metadata
        self.assertEqual(next(iter(metadata)), "general.architecture")
        self.assertEqual(len(metadata), 35)
        self.assertEqual(metadata["general.architecture"], "llama")
        self.assertEqual(metadata["llama.block_count"], 2)
        self.assertEqual(metadata["llama.rope.freq_base"], 10000.0)
        self.assertIs(metadata["tokenizer.ggml.add_eos_token"], False)
        self.assertEqual(metadata["tokenizer.ggml.tokens"][:3], ["<unk>", "<s>", "</s>"])
        self.assertEqual({len(values) for values in metadata.values() if isinstance(values, list)}, {70})
        self.assertEqual(metadata.get("llama.expert_count", 0), 0)
        with self.assertRaises(safequant.MissingError):
            metadata["llama.expert_count"]
        with tempfile.TemporaryDirectory() as scratch:
            copy = Path(scratch, "model.gguf")
            copy.write_bytes(path.read_bytes().replace(b"<ctrl>", b"<\xff\xfe\xfd\xfc>"))
            self.assertEqual(safequant.open(copy).metadata["tokenizer.ggml.tokens"][3], b"<\xff\xfe\xfd\xfc>")
        self.assertEqual(dict(safequant.open(path.parent).metadata), {})

    def test_slices_of_all_ranks_are_the_whole(self) -> None:
        module = next(iter(safequant.open(W4).modules.values()))
        shares = [module.slice(rank, 4) for rank in range(4)]
        self.assertEqual(sum(share.shape[0] for share in shares), module.shape[0])
        whole = module.part("codes").numpy()
        joined = np.concatenate([share.part("codes").numpy() for share in shares])
        self.assertEqual(raw(joined), raw(whole))
        self.assertIn(".safetensors", mapping_of(shares[1].part("codes").array.address))
        self.assertEqual(raw(module.codes), raw(whole))
        assert module.scales is not None
        self.assertEqual(module.slice(1, 4, axis=0).shape, shares[1].shape)
        self.assertIsNone(module.zero_points)
        columns = [module.slice(rank, 3, axis="in").part("codes").numpy() for rank in range(3)]
        self.assertEqual(raw(np.concatenate(columns, axis=1)), raw(whole))
        with self.assertRaises(safequant.SafequantError) as refused:
            module.slice(0, 7)
        self.assertIn("7", str(refused.exception))

    def test_ten_thousand_opens_leak_nothing(self) -> None:
        def use() -> None:
            checkpoint = safequant.open(W4)
            module = next(iter(checkpoint.modules.values()))
            module.rows(0, 1).numpy()
            np.from_dlpack(module.part("codes").array)
            module.part("codes").array.__dlpack__()

        for _ in range(200):
            use()
        gc.collect()
        before = (resident(), len(os.listdir("/proc/self/fd")))
        for _ in range(10_000):
            use()
        gc.collect()
        after = (resident(), len(os.listdir("/proc/self/fd")))
        self.assertEqual(after[1], before[1], "file descriptors")
        # A byte in every open would show as 10 kB; an open checkpoint is some 100 kB.
        self.assertLess(after[0] - before[0], 16 << 20, "resident bytes")

    def test_other_threads_run_while_one_decodes(self) -> None:
        with scratch() as folder:
            source = large(folder)
            module = safequant.open(source)["big"]
            assert isinstance(module, safequant.Module)
            counted, stop = [0], threading.Event()

            def count() -> None:
                while not stop.is_set():
                    counted[0] += 1

            counter = threading.Thread(target=count)
            counter.start()
            try:
                advanced = []
                for _ in range(5):
                    before = counted[0]
                    module.dequantize(dtype="F32", threads=1)
                    advanced.append(counted[0] - before)
            finally:
                stop.set()
                counter.join()
            # With the lock held the counter stands still but for the switch at the call: a few thousand steps at most.
            self.assertGreater(max(advanced), 20_000, advanced)

            results: list[bytes] = []
            threads = [
                threading.Thread(target=lambda: results.append(module.dequantize(dtype="F32").tobytes())) for _ in range(2)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            self.assertEqual(len(set(results)), 1)
            self.assertEqual(len(results), 2)


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def large(folder: Path) -> Path:
    """A checkpoint of one 4-bit weight of 64 MB of values."""
    rows, columns = 4096, 4096
    rng = np.random.default_rng(7)
    dense = folder / "dense.safetensors"
    write(dense, {"big.weight": rng.standard_normal((rows, columns), np.float32)})
    out = folder / "big.safetensors"
    safequant.quantize(dense, out, scheme="W4A16", targets=["big"])
    return out


def write(path: Path, tensors: dict[str, np.ndarray[Any, np.dtype[np.float32]]]) -> None:
    """A safetensors file of F32 tensors."""
    header: dict[str, Any] = {}
    at = 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [at, at + tensor.nbytes]}
        at += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(tensor.tobytes() for tensor in tensors.values()))


class Jobs(unittest.TestCase):
    def test_a_plan_is_what_the_run_writes(self) -> None:
        with scratch() as folder:
            request = safequant.quantize_request(MINILM, folder / "out", scheme="W4A16", group_size=64)
            self.assertEqual(pickle.loads(pickle.dumps(request)), request)
            plan = safequant.plan("quantize", MINILM, folder / "out", scheme="W4A16", group_size=64)
            self.assertEqual(plan, safequant.plan(request))
            self.assertFalse((folder / "out").exists())
            events: list[safequant.Event] = []
            summary = safequant.run(request, progress=events.append)
            self.assertEqual(summary.files, plan.files)
            self.assertEqual({name: (folder / "out" / name).stat().st_size for name, _ in plan.files}, dict(plan.files))
            self.assertEqual([m.name for m in summary.modules], [m.name for m in plan.modules])
            kinds = [event.kind for event in events]
            self.assertEqual((kinds.count("start"), kinds.count("commit")), (1, 1))
            done = sum(event.bytes for event in events if event.kind == "advance")
            self.assertEqual(done, next(event.bytes for event in events if event.kind == "start"))
            self.assertGreater(len(summary.worst()), 0)
            self.assertTrue(4 < summary.bits_per_weight < 32)

    def test_a_canceled_job_is_resumed(self) -> None:
        # A shell that runs us in the background has us ignore Ctrl-C.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        self.addCleanup(signal.signal, signal.SIGINT, before)
        for raised in (ValueError("enough"), None):
            with self.subTest(raised=raised), scratch() as folder:
                seen = 0

                def stop(event: safequant.Event, raised: Exception | None = raised) -> None:
                    nonlocal seen
                    seen += event.kind == "module"
                    if seen == 9:
                        seen += 1
                        if raised is not None:
                            raise raised
                        signal.raise_signal(signal.SIGINT)

                expected = KeyboardInterrupt if raised is None else ValueError
                with self.assertRaises(expected):
                    safequant.quantize(MINILM, folder / "out", scheme="W4A16", group_size=64, threads=1, progress=stop)
                self.assertFalse((folder / "out").exists())
                safequant.quantize(MINILM, folder / "out", scheme="W4A16", group_size=64, resume=True)
                safequant.quantize(MINILM, folder / "whole", scheme="W4A16", group_size=64)
                for path in sorted((folder / "whole").iterdir()):
                    self.assertEqual((folder / "out" / path.name).read_bytes(), path.read_bytes(), path.name)

    def test_conversion_there_and_back_is_exact(self) -> None:
        with scratch() as folder:
            there = safequant.convert(W4, folder / "gptq", to="gptq", ignore=[])
            self.assertTrue({module.label for module in there.modules} <= {None, "exact"}, there)
            found = safequant.diff(W4, folder / "gptq", levels=["codes", "values"])
            self.assertEqual(found.totals["codes_flipped"], 0)
            self.assertGreater(found.totals["codes"], 0)
            self.assertFalse(found.differs["codes"])

    def test_words_that_mean_nothing_are_refused(self) -> None:
        wrong: list[dict[str, Any]] = [
            {"scheme": "W99"},
            {"scheme": "W4A16", "convention": "nothing"},
            {"scheme": "W4A16", "method": "nothing"},
            {"scheme": "W4A16", "ignore": ["re:("]},
            {"scheme": "W4A16", "memory": "much"},
            {"scheme": "W4A16", "resume": True, "force": True},
            {"scheme": "W4A16", "division": "f64"},
        ]
        with scratch() as folder:
            for options in wrong:
                with self.subTest(options), self.assertRaises(safequant.UsageError):
                    safequant.quantize(MINILM, folder / "out", **options)
            with self.assertRaises(safequant.UsageError):
                safequant.convert(W4, folder / "out", to="nothing")
            with self.assertRaises(TypeError):
                safequant.quantize(MINILM, folder / "out", scheme="W4A16", bits=4)
            (folder / "taken").mkdir()
            (folder / "taken" / "file").touch()
            with self.assertRaises(safequant.RefusedError):
                safequant.dequantize(W4, folder / "taken")


class Errors(unittest.TestCase):
    def test_a_broken_file_is_an_exception_that_says_so(self) -> None:
        with scratch() as folder:
            path = folder / "model.safetensors"
            whole = W4.read_bytes()
            for cut in (0, 7, 8, 100, len(whole) - 1):
                path.write_bytes(whole[:cut])
                with self.assertRaises(safequant.MalformedError) as raised:
                    safequant.open(path)
                self.assertIn("model.safetensors", str(raised.exception))
                self.assertTrue(raised.exception.code)
                again = pickle.loads(pickle.dumps(raised.exception))
                self.assertEqual((str(again), again.code), (str(raised.exception), raised.exception.code))
            path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
            with self.assertRaises(safequant.MalformedError):
                safequant.open(path)
            with self.assertRaises(safequant.StorageError):
                safequant.open(folder / "nowhere")
            with self.assertRaises(OSError):
                safequant.open(folder / "nowhere", mmap=False)


class Audits(unittest.TestCase):
    def test_a_clean_checkpoint_has_no_error(self) -> None:
        report = safequant.audit(W4, depth="full", runtimes=["vllm"], tp=[1])
        self.assertTrue(report.ok, report.findings)
        self.assertTrue(report.runtimes[0].loads, report.runtimes)
        self.assertEqual(report.record["command"], "audit")
        self.assertTrue(report.html.startswith("<!"))
        self.assertEqual([d["degree"] for d in safequant.tp_plan(W4, [1, 2])["degrees"]], [1, 2])

    def test_a_fault_is_found_and_explained(self) -> None:
        with scratch() as folder:
            (folder / "model.safetensors").write_bytes(W4.read_bytes()[:-5])
            shutil.copy(W4.with_name("config.json"), folder)
            report = safequant.audit(folder)
            self.assertFalse(report.ok)
            worst = report.findings[0]
            self.assertEqual(worst.severity, "error")
            self.assertIn(worst.rule, safequant.explain(worst.rule))
            self.assertIn(worst.rule, report._repr_html_())
        with self.assertRaises(safequant.UsageError):
            safequant.audit(W4, select=["ZZ999"])
        with self.assertRaises(safequant.UsageError):
            safequant.explain("ZZ999")

    def test_hostile_names_stay_text(self) -> None:
        with scratch() as folder:
            name = "<img src=x onerror=alert(1)>"
            write(folder / "model.safetensors", {name: np.zeros((2, 2), np.float32)})
            checkpoint = safequant.open(folder / "model.safetensors")
            report = safequant.audit(folder / "model.safetensors")
            hidden = folder / "<b>"
            hidden.mkdir()
            shutil.copy(folder / "model.safetensors", hidden)
            pages = [checkpoint._repr_html_(), report._repr_html_(), safequant.open(hidden)._repr_html_()]
            for page in pages:
                self.assertNotIn("<img", page)
            self.assertIn("&lt;b&gt;", pages[2])


class Program(unittest.TestCase):
    def test_the_module_is_the_command_line(self) -> None:
        def run(*arguments: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "safequant", *arguments]
            return subprocess.run(command, capture_output=True, text=True, check=False)

        version = run("--version")
        self.assertEqual((version.returncode, version.stdout.split()), (0, ["safequant", safequant.__version__]))
        self.assertIn("compressed-tensors", run("inspect", str(W4)).stdout)
        self.assertEqual(run("inspect", "nowhere").returncode, 3)
        self.assertEqual(run("nothing").returncode, 4)
        started = time.monotonic()
        self.assertEqual(run("audit", str(W4), "--depth", "headers").returncode, 0)
        self.assertLess(time.monotonic() - started, 60)

    def test_registries_are_full(self) -> None:
        there_is = safequant.registries()
        self.assertIn("W4A16", there_is["schemes"])
        self.assertIn("awq", there_is["written_conventions"])
        self.assertGreater(len(there_is["rules"]), 100)
        self.assertTrue(set(there_is["written_conventions"]) <= set(there_is["conventions"]))
        self.assertIn("BF16", there_is["dtypes"])


if __name__ == "__main__":
    unittest.main()
