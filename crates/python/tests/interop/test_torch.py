"""Tensors of torch: the bits of every fixture, the same memory, a rank's share, a device.

    python -m unittest test_torch

Needs torch. Without a CUDA device the test of one is skipped, and says so.
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
import unittest
import unittest.mock
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support import FIXTURES, ROOT, Fixture, fixtures, staged

sys.path.insert(0, str(ROOT / "interop"))

import numpy as np

import safequant

try:
    import torch
except ImportError:
    print("SKIPPED: test_torch needs torch", file=sys.stderr)
    raise unittest.SkipTest("torch is not installed") from None

import check_dequant
from common import differing, read_file

import safequant.torch
from safequant.torch import as_tensor, numpy_view, state_dict

#: Of how many fixtures the producing tool's dequantized weights are kept; one fewer means that a walk went astray.
MANY = 100

#: safetensors' spelling of what torch calls otherwise.
SPELLING = {
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}


@contextmanager
def opened(fixture: Fixture) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as scratch:
        yield staged(fixture, Path(scratch, "in"))


def told(tensor: torch.Tensor) -> tuple[str, list[int], bytes]:
    """Dtype, shape and bytes, as interop's tools hold tensors."""
    spelling = SPELLING[tensor.dtype]
    return spelling, list(tensor.shape), numpy_view(tensor.contiguous(), spelling).tobytes()


def with_payload(raw: bytes) -> bytes:
    """F32 elements with every NaN being the one that widening an F8_E4M3 NaN in C gives."""
    words = np.frombuffer(raw, "<u4").copy()
    words[np.isnan(words.view("<f4"))] = 0xFFF0_0000
    return words.tobytes()


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return told(a) == told(b)


class EveryFixture(unittest.TestCase):
    def test_has_the_bits_that_its_tool_computed(self) -> None:
        visited = compared = 0
        for fixture in fixtures():
            # Where a reference is not reproduced to the last bit, and by how much, is what interop's check knows.
            signed_zeros = "fake_quantize" in fixture.facts["reference"]
            again = fixture.facts.get("config", {}).get("quantization_format") == "marlin-24"
            stored_file = fixture.folder / "expected.safetensors"
            stored = read_file(stored_file) if stored_file.exists() else {}
            with self.subTest(fixture=fixture.name), opened(fixture) as place:
                weights = state_dict(place)
                dense = safequant.open(place).dense()
                # Expected is the weight as it is stored, while the state dict has the factors of its inputs applied.
                factors = {name for name in fixture.facts["expected"] if f"{name}_effective" in dense or name not in weights}
                got = {name: told(weights[name]) for name in fixture.facts["expected"] if name not in factors}
                got |= {name: told(as_tensor(dense[name].read())) for name in factors}
                for name in factors & set(weights.keys()):
                    self.assertEqual(told(weights[name]), told(as_tensor(dense[f"{name}_effective"].read())), name)
                for name, want in fixture.facts["expected"].items():
                    allowed = check_dequant.tolerance(fixture.facts, name)
                    kind, fault = check_dequant.compare(name, want, stored, got, signed_zeros, allowed)
                    if fault and again and name in stored:
                        # Packed from weights that were quantized once more in F16: 4 in 1000 codes are others.
                        self.assertLessEqual(250 * differing(got[name][0], got[name][2], stored[name][2]), len(got[name][2]) // 2)
                        fault = None
                    self.assertIsNone(fault)
                    compared += kind is not None
            visited += 1
        self.assertGreaterEqual(visited, MANY)
        self.assertGreaterEqual(compared, 5 * MANY)

    def test_has_the_same_bits_through_numpy(self) -> None:
        visited = 0
        for fixture in fixtures():
            with self.subTest(fixture=fixture.name), opened(fixture) as place:
                dense = safequant.open(place).dense()
                for name, tensor in state_dict(place):
                    source = f"{name}_effective" if f"{name}_effective" in dense else name
                    self.assertEqual(told(tensor)[2], dense[source].read().tobytes(), name)
                    visited += 1
        self.assertGreaterEqual(visited, 10 * MANY)

    def test_in_f32_has_the_bits_of_the_reference_in_f32(self) -> None:
        visited = 0
        for fixture in fixtures():
            digests = (fixture.facts.get("expected_f32") or {}).get("sha256") or {}
            signed_zeros = "fake_quantize" in fixture.facts["reference"]
            stored_file = fixture.folder / "expected_f32.safetensors"
            stored = read_file(stored_file) if stored_file.exists() else {}
            if not digests or any(check_dequant.tolerance(fixture.facts, name) is not None for name in digests):
                continue
            with self.subTest(fixture=fixture.name), opened(fixture) as place:
                checkpoint = safequant.open(place)
                quantized = {module.weight for module in checkpoint.modules.values()}
                weights = state_dict(checkpoint, as_dtype=torch.float32)
                for name in digests.keys() & quantized:
                    if f"{name}_effective" in checkpoint.dense():
                        continue
                    want = {"dtype": "F32", "shape": fixture.facts["expected"][name]["shape"], "sha256": digests[name]}
                    spelling, shape, raw = told(weights[name])
                    # NaNs of 8-bit floats are another NaN in the tools that wrote these; no other difference is forgiven.
                    faults = [
                        check_dequant.compare(name, want, stored, {name: (spelling, shape, form)}, signed_zeros, None)[1]
                        for form in (raw, with_payload(raw))
                    ]
                    self.assertIn(None, faults)
                    visited += 1
        self.assertGreaterEqual(visited, 3 * MANY)


class Memory(unittest.TestCase):
    def test_a_tensor_lies_in_the_mapped_file(self) -> None:
        checkpoint = safequant.open(FIXTURES / "all-minilm-l6-v2")
        dtypes = set()
        for array in checkpoint.tensors.values():
            tensor = as_tensor(array)
            self.assertEqual(tensor.data_ptr(), array.address)
            self.assertEqual(tuple(tensor.shape), array.shape)
            dtypes.add(tensor.dtype)
        self.assertGreater(len(checkpoint.tensors), 30)
        self.assertGreaterEqual(len(dtypes), 1)
        # What is not quantized comes from a state dict without a copy as well.
        weights = state_dict(checkpoint)
        for name, tensor in weights:
            self.assertEqual(tensor.data_ptr(), checkpoint.tensors[name].address, name)

    def test_bf16_is_not_copied(self) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch, "x.safetensors")
            write(path, {"s": ("F32", [], b"\0\0\x80?"), "a": ("BF16", [3, 5], bytes(range(30)))})
            array = safequant.open(path).tensors["a"]
            tensor = as_tensor(array)
            self.assertEqual(tensor.data_ptr(), array.address)
            self.assertEqual((tensor.dtype, tuple(tensor.shape)), (torch.bfloat16, (3, 5)))
            tensor[0, 0] = 7
            self.assertEqual(float(array.numpy()[0, 0]), 7.0)
            scalar = as_tensor(safequant.open(path).tensors["s"])
            self.assertEqual((tuple(scalar.shape), scalar.item()), ((), 1.0))

    def test_every_dtype_of_torch_is_given_as_itself(self) -> None:
        found = {}
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch, "x.safetensors")
            known = [name for name in safequant.registries()["dtypes"] if name in safequant.torch._NAMES]
            sizes = {name: safequant.torch.dtype_of(name).itemsize for name in known}
            # Multiples of eight bytes, so that each begins where its elements may.
            write(path, {name: (name, [2, 4], bytes(8 * size)) for name, size in sizes.items()})
            # No convention explains some of them; the stored tensors are there all the same.
            checkpoint = safequant.open(path, strict=False)
            for name in known:
                array = checkpoint.tensors[name]
                tensor = as_tensor(array)
                found[name] = tensor.dtype
                self.assertEqual((tuple(tensor.shape), tensor.data_ptr()), ((2, 4), array.address), name)
                self.assertEqual(numpy_view(tensor, name).ctypes.data, array.address, name)
        self.assertGreaterEqual(len(set(found.values())), 18, found)

    def test_a_tensor_outlives_its_checkpoint(self) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch, "x.safetensors")
            write(path, {"a": ("U8", [4], b"abcd")})
            tensor = as_tensor(safequant.open(path).tensors["a"])
        self.assertEqual(tensor.tolist(), list(b"abcd"))

    def test_a_tensor_is_filled_in_place(self) -> None:
        with opened(next(f for f in fixtures() if f.name == "llm-compressor/ct-fp8")) as place:
            checkpoint = safequant.open(place)
            module = next(iter(checkpoint.modules.values()))
            out = torch.zeros(module.shape, dtype=torch.bfloat16)
            module.dequantize(out=out)
            self.assertTrue(same_bits(out, as_tensor(module.dequantize())))
            for wrong in (out.float(), out.t(), torch.zeros(3, dtype=torch.bfloat16), out.to("meta")):
                with self.assertRaises(safequant.UsageError):
                    module.dequantize(out=wrong)


class Mappings(unittest.TestCase):
    def test_it_is_pairs_and_a_mapping(self) -> None:
        with opened(next(f for f in fixtures() if f.name == "llm-compressor/ct-fp8")) as place:
            weights = state_dict(place)
            whole = dict(weights)
            self.assertEqual(list(whole), [name for name, _ in weights])
            self.assertEqual(len(whole), len(weights))
            self.assertTrue(all(same_bits(tensor, weights[name]) for name, tensor in weights.items()))
            for name, tensor in weights:
                self.assertEqual(weights.describe(name), (tensor.dtype, tuple(tensor.shape)))
            self.assertNotIn("nothing", weights)
            # Nothing but the caller holds a tensor.
            held = [weakref.ref(tensor) for tensor in weights.values()]
            self.assertEqual([ref() for ref in held[:-1]], [None] * (len(weights) - 1))
            for ask in (weights.__getitem__, weights.describe):
                with self.assertRaises(safequant.MissingError):
                    ask("nothing")

    def test_packed_tensors_are_those_of_the_file(self) -> None:
        with opened(next(f for f in fixtures() if f.name == "llm-compressor/ct-fp8")) as place:
            checkpoint = safequant.open(place)
            weights = state_dict(checkpoint, packed=True)
            self.assertEqual(set(weights.keys()), set(checkpoint.tensors))
            for name, tensor in weights:
                self.assertEqual(tensor.data_ptr(), checkpoint.tensors[name].address, name)

    def test_options_that_do_not_go_together_are_refused(self) -> None:
        path: Any = FIXTURES / "all-minilm-l6-v2"
        wrong: list[dict[str, Any]] = [
            {"as_dtype": torch.int8},
            {"packed": True, "as_dtype": torch.float32},
            {"packed": True, "rank": 1, "world": 2},
            {"rank": 2, "world": 2},
            {"rank": -1, "world": 2},
            {"world": 0},
        ]
        for options in wrong:
            with self.subTest(options=options), self.assertRaises(safequant.UsageError):
                state_dict(path, **options)


class Ranks(unittest.TestCase):
    WORLD = 2

    def test_shares_are_the_whole_behind_each_other(self) -> None:
        visited = cut = 0
        refused: dict[str, str] = {}
        for fixture in fixtures():
            with opened(fixture) as place:
                whole = state_dict(place)
                try:
                    ranks = [state_dict(place, rank=rank, world=self.WORLD) for rank in range(self.WORLD)]
                except safequant.UsageError as error:
                    refused[fixture.name] = str(error)
                    continue
                with self.subTest(fixture=fixture.name):
                    for name, tensor in whole:
                        shares = [rank[name] for rank in ranks]
                        described = [rank.describe(name) for rank in ranks]
                        self.assertEqual(described, [(share.dtype, tuple(share.shape)) for share in shares])
                        cut += self.check(name, tensor, shares)
                    visited += 1
        self.assertGreaterEqual(visited, 30, refused)
        self.assertGreaterEqual(cut, 200)
        print(f"shares of {visited} fixtures, {cut} tensors cut; {len(refused)} are refused", file=sys.stderr)

    def check(self, name: str, whole: torch.Tensor, shares: list[torch.Tensor]) -> bool:
        """Whether the tensor was cut; that its shares are the whole."""
        axes = [i for i, n in enumerate(shares[0].shape) if n != whole.shape[i]]
        if not axes:
            self.assertTrue(all(same_bits(share, whole) for share in shares), name)
            return False
        self.assertEqual(len(axes), 1, name)
        axis = axes[0]
        if any(word in name for word in ("gate_up", "qkv", "c_attn")):
            self.check_fused(name, whole, shares, axis)
        else:
            self.assertTrue(same_bits(torch.cat(shares, axis), whole), name)
        kind = {"q_proj": -2, "k_proj": -2, "up_proj": -2, "embed_tokens": -2, "lm_head": -2, "o_proj": -1, "down_proj": -1}
        for word, expected in kind.items():
            if f".{word}.weight" in f".{name}":
                self.assertEqual(axis - whole.dim(), expected, name)
        return True

    def check_fused(self, name: str, whole: torch.Tensor, shares: list[torch.Tensor], axis: int) -> None:
        """Every row of the whole is in one share, in the order of the whole within it."""
        rows = [told(row.contiguous())[2] for row in whole.unbind(axis)]
        held = [[told(row.contiguous())[2] for row in share.unbind(axis)] for share in shares]
        self.assertEqual(sorted(rows), sorted(itertools.chain(*held)), name)

    def test_fused_weights_are_cut_by_their_parts(self) -> None:
        config = {"model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 8, "head_dim": 2}
        rows = np.arange(16 * 8, dtype=np.float32).reshape(16, 8)
        tensors = {
            "model.layers.0.self_attn.qkv_proj.weight": ("F32", [16, 8], rows.tobytes()),
            "model.layers.0.self_attn.qkv_proj.bias": ("F32", [16], rows[:, 0].tobytes()),
            "model.layers.0.self_attn.o_proj.weight": ("F32", [8, 8], rows[:8].tobytes()),
            "model.layers.0.self_attn.o_proj.bias": ("F32", [8], rows[:8, 0].tobytes()),
            "model.layers.0.mlp.gate_up_proj.weight": ("F32", [16, 8], rows.tobytes()),
            "model.layers.0.mlp.down_proj.weight": ("F32", [8, 8], rows[:8].tobytes()),
            "model.layers.0.input_layernorm.weight": ("F32", [8], rows[0].tobytes()),
            "model.embed_tokens.weight": ("F32", [5, 8], rows[:5].tobytes()),
        }
        with tempfile.TemporaryDirectory() as scratch:
            write(Path(scratch, "model.safetensors"), tensors)
            Path(scratch, "config.json").write_text(json.dumps(config))
            second = dict(state_dict(scratch, rank=1, world=2))
            fourth = dict(state_dict(scratch, rank=3, world=4))
            for world in (3, 8):
                with self.assertRaises(safequant.UsageError) as caught:
                    state_dict(scratch, rank=0, world=world)
                self.assertIn("heads", str(caught.exception))
        at = "model.layers.0."
        # 8 rows of queries, 4 of keys, 4 of values; of 4 ranks two hold the same head of keys and values.
        wanted = {
            at + "self_attn.qkv_proj.weight": [4, 5, 6, 7, 10, 11, 14, 15],
            at + "mlp.gate_up_proj.weight": [4, 5, 6, 7, 12, 13, 14, 15],
        }
        for name, kept in wanted.items():
            np.testing.assert_array_equal(second[name].numpy(), rows[kept])
        np.testing.assert_array_equal(fourth[at + "self_attn.qkv_proj.weight"].numpy(), rows[[6, 7, 10, 11, 14, 15]])
        np.testing.assert_array_equal(second[at + "self_attn.qkv_proj.bias"].numpy(), rows[[4, 5, 6, 7, 10, 11, 14, 15], 0])
        np.testing.assert_array_equal(second[at + "self_attn.o_proj.weight"].numpy(), rows[:8, 4:])
        np.testing.assert_array_equal(second[at + "self_attn.o_proj.bias"].numpy(), rows[:8, 0])
        np.testing.assert_array_equal(second[at + "input_layernorm.weight"].numpy(), rows[0])
        # The vocabulary is handed out in equal runs; the last one is shorter.
        np.testing.assert_array_equal(second["model.embed_tokens.weight"].numpy(), rows[3:5])
        self.assertEqual(tuple(fourth["model.embed_tokens.weight"].shape), (0, 8))


class Devices(unittest.TestCase):
    def test_meta_tensors_have_no_bytes(self) -> None:
        weights = state_dict(FIXTURES / "all-minilm-l6-v2", device="meta")
        self.assertTrue(all(tensor.is_meta for tensor in weights.values()))

    def test_staged_rows_are_the_rows(self) -> None:
        """What fills a CUDA device, with a stage that is on the CPU: tiles, runs and columns, but no stream."""

        class Stage(safequant.torch._Plain):
            taken = 0

            def take(self, n_rows: int, width: int, dtype: torch.dtype) -> torch.Tensor:
                Stage.taken += 1
                return super().take(n_rows, width, dtype)

        visited = 0
        for fixture in fixtures():
            if not fixture.name.startswith(("llm-compressor", "composed", "gptqmodel")):
                continue
            small = unittest.mock.patch.object(safequant.torch, "_TILE_BYTES", 5000)
            with self.subTest(fixture=fixture.name), opened(fixture) as place, small:
                for rank, world in ((0, 1), (1, 2)):
                    here, staged_too = state_dict(place, rank=rank, world=world), state_dict(place, rank=rank, world=world)
                    # Not the class that lets rows be decoded where they belong.
                    stage = unittest.mock.Mock(wraps=Stage(), device=torch.device("cpu"))
                    staged_too._source._stage = stage  # type: ignore[union-attr]
                    for name, tensor in here:
                        self.assertTrue(same_bits(tensor, staged_too[name]), name)
                visited += 1
        self.assertGreaterEqual(visited, 40)
        self.assertGreaterEqual(Stage.taken, 1000)

    @unittest.skipUnless(torch.cuda.is_available(), "NO CUDA DEVICE: pinned staging is not tested here")
    def test_a_cuda_device_is_filled_through_pinned_buffers(self) -> None:
        visited = 0
        for fixture in fixtures():
            with self.subTest(fixture=fixture.name), opened(fixture) as place:
                for (name, here), (_, there) in zip(state_dict(place), state_dict(place, device="cuda"), strict=True):
                    self.assertEqual(there.device.type, "cuda")
                    self.assertTrue(same_bits(here, there.cpu()), name)
                visited += 1
        self.assertGreaterEqual(visited, MANY)


def write(path: Path, tensors: dict[str, tuple[str, list[int], bytes]]) -> None:
    """A safetensors file of names, dtypes, shapes and bytes."""
    header, data = {}, b""
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


if __name__ == "__main__":
    unittest.main()
