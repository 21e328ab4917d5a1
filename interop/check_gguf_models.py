#!/usr/bin/env python3
"""GGUF models of every architecture that ``from_quantized`` loads, against the models that llama.cpp's converter was given.

usage: check_gguf_models.py LLAMA_CPP_TREE

LLAMA_CPP_TREE is as for check_llama_cpp.py; the interpreter needs safequant, torch, transformers, gguf, safetensors and sentencepiece.

Small models with random weights go through ``convert_hf_to_gguf.py --outtype f32`` and back through
``safequant.transformers.from_quantized``. The logits of a text that is longer than the windows must be those of the model to the last
bit. Where the metadata has no key for a setting they cannot be: DIFFERS says which, and an entry that is equal fails, too.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from check_llama_cpp import ROOT, VOCABULARY, convert, prepare
from safequant._gguf_config import _ARCHITECTURES
from safequant.transformers import from_quantized

#: What all have in common.
SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
EXPERTS: dict[str, Any] = {"moe_intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2}
GEMMA: dict[str, Any] = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 16}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
GEMMA_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}

#: Architecture of llama.cpp and settings, by name.
MODELS: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "Llama 3.1": ("llama", hf.LlamaConfig, {"rope_parameters": LLAMA3 | {"rope_theta": 5e5}}),
    "Llama with YaRN": ("llama", hf.LlamaConfig, {"rope_parameters": YARN | {"rope_theta": 1e4}}),
    "Llama with wide heads and biases": ("llama", hf.LlamaConfig, {"head_dim": 16, "attention_bias": True, "mlp_bias": True}),
    "Llama, tied, a key for each query": ("llama", hf.LlamaConfig, {"num_key_value_heads": 4, "tie_word_embeddings": True}),
    "Mistral": ("llama", hf.MistralConfig, {"sliding_window": None}),
    "Mistral with a window": ("llama", hf.MistralConfig, {"sliding_window": 16}),
    "Mixtral": ("llama", hf.MixtralConfig, {"num_local_experts": 4}),
    "Qwen 2": ("qwen2", hf.Qwen2Config, {"tie_word_embeddings": True}),
    "Qwen 2 with experts": ("qwen2moe", hf.Qwen2MoeConfig, EXPERTS | {"shared_expert_intermediate_size": 40}),
    "Qwen 2 with normalized experts": ("qwen2moe", hf.Qwen2MoeConfig, EXPERTS | {"norm_topk_prob": True}),
    "Qwen 3": ("qwen3", hf.Qwen3Config, {"head_dim": 16}),
    "Qwen 3 with experts": ("qwen3moe", hf.Qwen3MoeConfig, EXPERTS | {"head_dim": 16, "norm_topk_prob": True}),
    "Gemma 2": ("gemma2", hf.Gemma2Config, GEMMA),
    "Gemma 2 with a factor": ("gemma2", hf.Gemma2Config, GEMMA | {"query_pre_attn_scalar": 8}),
    "Gemma 3": ("gemma3", hf.Gemma3TextConfig, GEMMA | {"num_hidden_layers": 7}),
    "Gemma 3 of 4B": ("gemma3", hf.Gemma3TextConfig, GEMMA | {"num_hidden_layers": 7, "rope_parameters": GEMMA_ROPE}),
    "Phi 3": ("phi3", hf.Phi3Config, {"sliding_window": 16}),
    "Phi 4 mini": ("phi3", hf.Phi3Config, {"hidden_size": 64, "sliding_window": 16, "partial_rotary_factor": 0.5}),
    "StarCoder 2": ("starcoder2", hf.Starcoder2Config, {"sliding_window": None}),
}

#: What the metadata has no key for. The model that is loaded is the one that llama.cpp runs.
DIFFERS = {
    "Mistral with a window": "the window",
    "Qwen 2 with normalized experts": "norm_topk_prob",
    "Gemma 2 with a factor": "query_pre_attn_scalar, where it is not the length of a head",
}


def made(config: Any, place: Path) -> Any:
    """A model with random weights, saved with a borrowed vocabulary."""
    torch.manual_seed(20261)
    model = hf.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.copy_(0.3 * torch.randn_like(parameter))
            else:
                parameter.copy_(0.2 * torch.randn_like(parameter) + ("norm" in name))
    model.save_pretrained(place)
    path = place / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"architectures": [type(model).__name__]}))
    shutil.copy(ROOT / "fixtures" / VOCABULARY, place)
    return model


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model((torch.arange(60) * 7 % 61 + 1)[None]).logits
    return found


def main() -> None:
    prepare(Path(sys.argv[1]).resolve())
    logging.disable(logging.CRITICAL)
    hf.utils.logging.disable_progress_bar()
    failed = []
    for name, (architecture, config_class, settings) in MODELS.items():
        with tempfile.TemporaryDirectory() as scratch:
            model = made(config_class(**SIZES | settings), Path(scratch, "model"))
            loaded = from_quantized(convert(Path(scratch, "model"), Path(scratch, "model.gguf")))
        wanted, found = logits(model), logits(loaded)
        is_equal, known = torch.equal(found, wanted), DIFFERS.get(name)
        said = "equal" if is_equal else f"{(found - wanted).abs().max():.3g} off, values up to {wanted.abs().max():.3g}"
        print(f"{architecture:12} {name:36} {type(loaded).__name__:24} {said}{f' ({known})' if known else ''}", flush=True)
        if is_equal == bool(known):
            failed.append(name)
    left_out = _ARCHITECTURES.keys() - {architecture for architecture, _, _ in MODELS.values()}
    if failed or left_out or not DIFFERS.keys() <= MODELS.keys():
        sys.exit(f"not as expected: {failed}; without a model: {sorted(left_out)}")
    print(f"{len(MODELS)} models, {len(MODELS) - len(DIFFERS)} of them equal to the last bit")


if __name__ == "__main__":
    main()
