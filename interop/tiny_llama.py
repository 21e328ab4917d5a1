"""Tiny seeded Llama checkpoints, written by transformers."""

import json
import shutil
import tempfile
from pathlib import Path

import torch
import transformers

#: A tokenizer of 64 words: GPTQModel does not load a model without one.
TOKENIZER = Path(__file__).resolve().parent.parent / "fixtures/gptqmodel/gptq-w4g128-sym"

#: What is made: dtype, and dimensions. `even` tiles into 128 x 128 blocks and 128-groups, `odd` does not tile into blocks.
MODELS = {
    "even-bf16": {"dtype": torch.bfloat16, "hidden": 256, "inter": 384, "heads": 4, "kv": 2},
    "even-f32": {"dtype": torch.float32, "hidden": 256, "inter": 384, "heads": 4, "kv": 2},
    "odd-bf16": {"dtype": torch.bfloat16, "hidden": 192, "inter": 344, "heads": 6, "kv": 2},
}
VOCABULARY = 64


def fill(model, seed):
    """Heavy-tailed weights: rows of different scale, outlier columns, exact zeros, one row of one sign."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim < 2:
                parameter.copy_(1 + 0.1 * noise)
                continue
            noise = noise.reshape(-1, noise.shape[-1])  # stacks of experts
            weight = 0.03 * noise * torch.exp(0.6 * torch.randn((noise.shape[0], 1), generator=generator))
            columns = torch.randperm(noise.shape[1], generator=generator)[: max(1, noise.shape[1] // 50)]
            weight[:, columns] *= 6
            weight[torch.rand(weight.shape, generator=generator) < 0.01] = 0
            weight[noise.shape[0] // 3, :128] = 0
            weight[noise.shape[0] // 2] = weight[noise.shape[0] // 2].abs() + 1e-3
            parameter.copy_(weight.reshape(parameter.shape))


def make(name, place, seed=20261):
    """Writes one of `MODELS` and gives back its folder."""
    told = MODELS[name]
    config = transformers.LlamaConfig(
        hidden_size=told["hidden"], intermediate_size=told["inter"], num_hidden_layers=2, num_attention_heads=told["heads"],
        num_key_value_heads=told["kv"], vocab_size=VOCABULARY, max_position_embeddings=256, tie_word_embeddings=False,
        bos_token_id=1, eos_token_id=2, pad_token_id=3)
    torch.manual_seed(seed)
    model = transformers.LlamaForCausalLM(config).to(told["dtype"])
    fill(model, seed)
    model.save_pretrained(place)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / file, place)
    return place


#: Sizes that whole blocks of 256 fit, by key of config.json; only keys that are there are changed.
LARGER = {"hidden_size": 256, "intermediate_size": 512, "moe_intermediate_size": 256, "head_dim": 64, "num_attention_heads": 4,
          "num_key_value_heads": 2}


def scaled_up(folder, place, seed=20261):
    """Writes a fixture's model with larger weights, its tokenizer and all else beside them as they are."""
    config = json.loads((folder / "config.json").read_text())
    config.update({key: value for key, value in LARGER.items() if config.get(key) is not None})
    place.mkdir()
    for path in folder.iterdir():
        if path.name not in ("config.json", "fixture.json", "model.safetensors") and not path.name.startswith("expected"):
            shutil.copy(path, place)
    (place / "config.json").write_text(json.dumps(config))
    dtype = getattr(torch, config.get("torch_dtype") or config["dtype"])
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(place)).to(dtype)
    fill(model, seed)
    with tempfile.TemporaryDirectory() as scratch:
        model.save_pretrained(scratch)
        shutil.copy(Path(scratch, "model.safetensors"), place)
    return place
