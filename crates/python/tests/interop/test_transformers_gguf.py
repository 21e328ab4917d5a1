"""GGUF models as dense models of transformers.

    python -m unittest test_transformers_gguf

Needs torch, transformers and gguf. Every GGUF file of the fixtures is in one of the lists below.
"""

from __future__ import annotations

import logging
import math
import re
import shutil
import struct
import sys
import tempfile
import unittest
import unittest.mock
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import safequant
from support import FIXTURES, Fixture, fixtures

try:
    import gguf  # noqa: F401
    import torch
    import transformers
except ImportError:
    print("SKIPPED: test_transformers_gguf needs torch, transformers and gguf", file=sys.stderr)
    raise unittest.SkipTest("torch, transformers and gguf are not installed") from None

import transformers.modeling_gguf_pytorch_utils as machinery
from safequant.torch import StateDict
from safequant.transformers import from_quantized
from test_transformers import dense_tensors, named, opened, same

#: What llama-quantize wrote; the tool's dequantized weights lie beside it.
QUANTIZED = {"llama.cpp/gguf-model-q4_k_m", "llama.cpp/gguf-model-q5_0"}

#: What llama.cpp's converter wrote (``expected.gguf``), from the dense model that lies beside it.
CONVERTED = {
    "llama.cpp/hf-llama-spm",
    "llama.cpp/hf-llama3-bpe",
    "llama.cpp/hf-mistral-fast",
    "llama.cpp/hf-mixtral-spm",
    "llama.cpp/hf-qwen2",
    "llama.cpp/hf-qwen3-moe",
}

#: Why transformers 5.23 loads another model than the one that was converted, or none. Where no reason stands here its weights and
#: logits are ours: of these block types gguf-py computes the values that the engine does, and those are all that is compared.
OTHERWISE = {
    "llama.cpp/hf-llama3-bpe": "biases of Llama and the divisors of the angles are left out",
    "llama.cpp/hf-mistral-fast": "the linear scaling of the angles is left out",
    "llama.cpp/hf-mixtral-spm": "a mixture of experts is taken for a dense Llama",
    "llama.cpp/hf-qwen2": "YaRN is left out",
    "llama.cpp/hf-qwen3-moe": "the width of experts is left out, so that no weight fits",
}

#: No models: one tensor of each type, and importance matrices.
OTHERS = {"llama.cpp/gguf-zoo/zoo.gguf", "llama.cpp-imatrix/idle.gguf", "llama.cpp-imatrix/mixtral.gguf"}

#: Names of transformers, by those of llama.cpp: a second opinion on Llama, which is not transformers'.
NAMES = {
    r"token_embd": "model.embed_tokens",
    r"output_norm": "model.norm",
    r"output": "lm_head",
    r"blk\.(\d+)\.attn_norm": r"model.layers.\1.input_layernorm",
    r"blk\.(\d+)\.ffn_norm": r"model.layers.\1.post_attention_layernorm",
    r"blk\.(\d+)\.attn_output": r"model.layers.\1.self_attn.o_proj",
    r"blk\.(\d+)\.attn_([qkv])": r"model.layers.\1.self_attn.\2_proj",
    r"blk\.(\d+)\.ffn_(gate|up|down)": r"model.layers.\1.mlp.\2_proj",
}


def setUpModule() -> None:
    logging.disable(logging.CRITICAL)
    transformers.utils.logging.disable_progress_bar()


def tearDownModule() -> None:
    logging.disable(logging.NOTSET)


def logits(model: Any) -> torch.Tensor:
    """So many tokens that scaled angles and windows make a difference."""
    tokens = torch.arange(48) * 7 % (model.config.vocab_size - 1) + 1
    with torch.no_grad():
        found: torch.Tensor = model(tokens[None]).logits
    return found


def dense_llama(fixture: Fixture, place: Path, scratch: Path) -> Any:
    """A Llama with the weights that the tool expects, by a way that shares nothing with ``from_quantized``."""
    facts = fixture.facts["config"]["model"]
    tensors = {}
    for name, tensor in dense_tensors(fixture, place, scratch).items():
        for kind, n_heads in (("attn_q", facts["heads"]), ("attn_k", facts["kv"])):
            if f".{kind}." in name:
                # llama.cpp lets the halves of a head's rows alternate (specs/conventions/gguf.md, W4).
                tensor = tensor.reshape(n_heads, -1, 2, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape)
        stem = name.removesuffix(".weight")
        renamed = [re.sub(pattern, as_named, stem) for pattern, as_named in NAMES.items() if re.fullmatch(pattern, stem)]
        tensors[f"{renamed[0]}.weight"] = tensor.clone()
    is_tied = "lm_head.weight" not in tensors
    tensors.setdefault("lm_head.weight", tensors["model.embed_tokens.weight"])
    config = transformers.LlamaConfig(
        vocab_size=facts["vocab"],
        hidden_size=facts["hidden"],
        intermediate_size=facts["inter"],
        num_hidden_layers=facts["layers"],
        num_attention_heads=facts["heads"],
        num_key_value_heads=facts["kv"],
        max_position_embeddings=256,
        rms_norm_eps=1e-6,
        tie_word_embeddings=is_tied,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    model.load_state_dict(tensors)
    return model


def source(name: str) -> Any:
    """The dense model that was converted."""
    return transformers.AutoModelForCausalLM.from_pretrained(FIXTURES / name, dtype=torch.float32)


def whole_models() -> Iterator[tuple[str, Path]]:
    for name in sorted(QUANTIZED):
        yield name, FIXTURES / name / "model.gguf"
    for name in sorted(CONVERTED):
        yield name, FIXTURES / name / "expected.gguf"


@contextmanager
def changed(path: Path, *changes: tuple[bytes, bytes]) -> Iterator[Path]:
    """A copy of a file in which bytes stand for others of the same length: sizes and offsets stay right."""
    data = path.read_bytes()
    for before, after in changes:
        assert len(before) == len(after) and data.count(before) == 1, before
        data = data.replace(before, after)
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch, "model.gguf")
        copy.write_bytes(data)
        yield copy


def u32(key: str, before: int, after: int) -> tuple[bytes, bytes]:
    """A change of a number of the metadata."""
    return tuple(key.encode() + struct.pack("<II", 4, value) for value in (before, after))  # type: ignore[return-value]


class FromGguf(unittest.TestCase):
    def test_every_file_is_claimed(self) -> None:
        found = {path.relative_to(FIXTURES).as_posix() for path in FIXTURES.rglob("*.gguf")}
        claimed = {path.relative_to(FIXTURES).as_posix() for _, path in whole_models()}
        self.assertEqual(found, claimed | OTHERS)
        for name in sorted(OTHERS):
            with self.subTest(file=name), self.assertRaises(safequant.SafequantError) as caught:
                from_quantized(FIXTURES / name)
            self.assertIn(Path(name).name, str(caught.exception))

    def test_quantized_models_have_the_logits_of_the_dense_one(self) -> None:
        visited = set()
        for fixture in fixtures():
            if fixture.name not in QUANTIZED:
                continue
            with self.subTest(fixture=fixture.name), opened(fixture) as place:
                self.check_equal(from_quantized(place), dense_llama(fixture, place, place.parent))
                visited.add(fixture.name)
        self.assertEqual(visited, QUANTIZED)

    def test_converted_models_have_the_logits_of_what_was_converted(self) -> None:
        for name in sorted(CONVERTED):
            with self.subTest(fixture=name):
                self.check_equal(from_quantized(FIXTURES / name / "expected.gguf"), source(name))

    def check_equal(self, model: Any, wanted: Any) -> None:
        parameters = dict(wanted.named_parameters())
        self.assertEqual(dict(model.named_parameters()).keys(), parameters.keys())
        for name, parameter in model.named_parameters():
            self.assertTrue(same(parameter, parameters[name]), name)
        ours, theirs = logits(model), logits(wanted)
        self.assertTrue(same(ours, theirs), (ours - theirs).abs().max())

    def test_transformers_own_load_is_the_same_where_it_is_right(self) -> None:
        equal = []
        for name, path in whole_models():
            with self.subTest(fixture=name):
                try:
                    with unittest.mock.patch.object(machinery, "tqdm", lambda tensors, **_: tensors):
                        model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
                    is_same = same(logits(model), logits(from_quantized(path)))
                except RuntimeError:
                    is_same = False
                self.assertEqual(is_same, name not in OTHERWISE)
                equal += [name] * is_same
        self.assertEqual(len(equal), 3)

    def test_any_part_of_a_split_model_loads_all_of_it(self) -> None:
        with opened(named("llm-compressor/ct-mxfp4a16")) as place:
            shutil.copy(FIXTURES / "llama.cpp/hf-mixtral-spm/tokenizer.model", place)
            safequant.convert(place, place.parent / "split", to="gguf", max_shard_size="40KB")
            parts = sorted((place.parent / "split").glob("*.gguf"))
            self.assertEqual(len(parts), 3)
            wanted = from_quantized(place, dtype=torch.float32)
            for part in parts:
                self.check_equal(from_quantized(part), wanted)

    def test_dtype_configuration_and_the_rest_are_the_callers(self) -> None:
        path = FIXTURES / "llama.cpp/gguf-model-q5_0/model.gguf"
        exact = dict(from_quantized(path).named_parameters())
        model = from_quantized(path, dtype=torch.bfloat16, device="cpu", attn_implementation="eager")
        self.assertEqual(model.config._attn_implementation, "eager")
        for name, parameter in model.named_parameters():
            self.assertTrue(torch.equal(parameter, exact[name].bfloat16()), name)
        config = from_quantized(path).config
        config.rope_parameters = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
        scaled = from_quantized(path, config=config)
        self.assertFalse(torch.equal(logits(scaled), logits(from_quantized(path))))

    def test_weights_are_decoded_one_at_a_time(self) -> None:
        path, asked = FIXTURES / "llama.cpp/hf-qwen3-moe/expected.gguf", []
        read = StateDict.__getitem__

        def noted(weights: StateDict, name: str) -> torch.Tensor:
            asked.append(name)
            return read(weights, name)

        with unittest.mock.patch.object(StateDict, "__getitem__", noted):
            from_quantized(path)
        self.assertEqual(sorted(asked), sorted(safequant.open(path).tensors))


class Refusals(unittest.TestCase):
    PATH = FIXTURES / "llama.cpp/gguf-model-q5_0/model.gguf"

    def refused(self, path: Path, error: type[Exception], *words: str) -> None:
        with self.assertRaises(error) as caught:
            from_quantized(path)
        for word in (str(path), *words):
            self.assertIn(word, str(caught.exception))

    def test_an_architecture_that_is_unknown_is_named(self) -> None:
        text = b"general.architecture" + struct.pack("<IQ", 8, 5)
        with changed(self.PATH, (text + b"llama", text + b"lloma")) as path:
            self.refused(path, safequant.UnsupportedError, "'lloma'", "qwen3moe")

    def test_a_file_that_ends_too_early_is_malformed(self) -> None:
        data = self.PATH.read_bytes()
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch, "model.gguf")
            for n_bytes in (3, 100, 700, len(data) - 1):
                path.write_bytes(data[:n_bytes])
                self.refused(path, safequant.MalformedError)

    def test_without_the_package_gguf_it_says_what_to_install(self) -> None:
        with unittest.mock.patch.dict(sys.modules, {"gguf": None}):
            self.refused(self.PATH, safequant.UnsupportedError, "pip install gguf")

    def test_what_does_not_go_together_is_named(self) -> None:
        key = "llama.block_count"
        with changed(self.PATH, u32(key, 1, 2)) as path:
            self.refused(path, safequant.UnsupportedError, "missing from the checkpoint: model.layers.1.")
        with changed(self.PATH, u32("llama.feed_forward_length", 192, 256)) as path:
            self.refused(path, safequant.UnsupportedError, "mlp.down_proj.weight from blk.0.ffn_down.weight ([128, 192] for [128, 256])")
        with changed(self.PATH, (b"blk.0.ffn_down.weight", b"blk.0.ffn_dawn.weight")) as path:
            self.refused(path, safequant.UnsupportedError, "unknown to the model: blk.0.ffn_dawn.weight", "layers.0.mlp.down_proj")
        with changed(self.PATH, u32("llama.attention.head_count", 4, 3)) as path:
            self.refused(path, safequant.SafequantError)

    def test_what_no_configuration_has_a_place_for_is_named(self) -> None:
        with changed(self.PATH, (b"llama.vocab_size", b"llama.logit_size")) as path:
            self.refused(path, safequant.UnsupportedError, "llama.logit_size: 64", "config=")
        with changed(self.PATH, u32("llama.rope.dimension_count", 32, 16)) as path:
            self.refused(path, safequant.SafequantError)
        for name, before, after in (("mistral-fast", b"linear", b"linexr"), ("qwen2", b"yarn", b"yorn")):
            kind = b"rope.scaling.type" + struct.pack("<IQ", 8, len(before))
            with changed(FIXTURES / f"llama.cpp/hf-{name}/expected.gguf", (kind + before, kind + after)) as path:
                self.refused(path, safequant.UnsupportedError, f"rope.scaling.type: {after.decode()}")

    def test_divisors_that_are_none_are_malformed(self) -> None:
        path = FIXTURES / "llama.cpp/hf-llama3-bpe/expected.gguf"
        divisors = struct.pack("<4f", *safequant.open(path).tensors["rope_freqs.weight"].numpy().tolist())
        for value in (0.0, -1.0, math.nan, math.inf):
            with changed(path, (divisors, divisors[:12] + struct.pack("<f", value))) as copy:
                self.refused(copy, safequant.MalformedError, "rope_freqs.weight")

    def test_hostile_numbers_are_errors_of_ours(self) -> None:
        values = (0, 3, 1 << 20, 0x7FFFFFFF, 0xFFFFFFFF)
        keys = {
            "llama.block_count": 1,
            "llama.embedding_length": 128,
            "llama.feed_forward_length": 192,
            "llama.attention.head_count": 4,
            "llama.attention.head_count_kv": 1,
            "llama.rope.dimension_count": 32,
            "llama.vocab_size": 64,
        }
        for key, before in keys.items():
            for value in values:
                with self.subTest(key=key, value=value), changed(self.PATH, u32(key, before, value)) as path:
                    self.refused(path, safequant.SafequantError)

    def test_no_changed_byte_of_the_header_is_an_error_of_another_kind(self) -> None:
        data = self.PATH.read_bytes()
        end = data.index(b"blk.0.ffn_up.weight")
        loaded = refused = 0
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch, "model.gguf")
            # A prime, so that all bytes of keys, kinds and values take their turn.
            for at in range(0, end, 11):
                path.write_bytes(data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :])
                try:
                    from_quantized(path)
                    loaded += 1
                except safequant.SafequantError:
                    refused += 1
        self.assertEqual(loaded + refused, len(range(0, end, 11)))
        self.assertGreater(refused, 50)

    def test_what_the_engine_said_is_what_is_raised(self) -> None:
        def broken(weights: StateDict, name: str) -> torch.Tensor:
            raise safequant.MalformedError(f"{name}: no reader accepts this", "test")

        with unittest.mock.patch.object(StateDict, "__getitem__", broken), self.assertRaises(safequant.MalformedError) as caught:
            from_quantized(self.PATH)
        self.assertIn("no reader accepts this", str(caught.exception))


if __name__ == "__main__":
    unittest.main()
