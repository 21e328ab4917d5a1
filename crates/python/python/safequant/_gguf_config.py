"""The configuration of a GGUF model, from its metadata.

Which key is which setting is transformers' own knowledge (``modeling_gguf_pytorch_utils``). What its tables leave out, and a model
needs, is added here; what neither has a place for is refused, because a model without it computes something else. (transformers loads
such files, with logits of its own: a rotation that is scaled, experts of Mixtral and biases of Llama are left out without a word.)
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import transformers

from .checkpoint import Checkpoint
from .errors import MalformedError, UnsupportedError


class _Architecture(NamedTuple):
    """A model of transformers: its type, the table of transformers that its metadata is in, and what that table leaves out."""

    model_type: str
    table: str
    more: dict[str, str] = {}


#: By llama.cpp's name. Others are refused: all of these came out as the models that llama.cpp's converter had been given.
_ARCHITECTURES = {
    "llama": _Architecture("llama", "llama", {"attention.key_length": "head_dim"}),
    "qwen2": _Architecture("qwen2", "qwen2"),
    "qwen2moe": _Architecture(
        "qwen2_moe",
        "qwen2_moe",
        {
            "expert_feed_forward_length": "moe_intermediate_size",
            "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
        },
    ),
    "qwen3": _Architecture("qwen3", "qwen3", {"attention.key_length": "head_dim"}),
    "qwen3moe": _Architecture("qwen3_moe", "qwen3_moe", {"expert_feed_forward_length": "moe_intermediate_size"}),
    "gemma2": _Architecture(
        "gemma2",
        "gemma2",
        {"attn_logit_softcapping": "attn_logit_softcapping", "final_logit_softcapping": "final_logit_softcapping"},
    ),
    "gemma3": _Architecture(
        "gemma3_text",
        "gemma3",
        {"final_logit_softcapping": "final_logit_softcapping", "rope.freq_base_swa": "rope_local_base_freq"},
    ),
    "phi3": _Architecture("phi3", "phi3", {"attention.sliding_window": "sliding_window"}),
    "starcoder2": _Architecture("starcoder2", "starcoder2", {"rope.freq_base": "rope_theta"}),
}

#: Those whose queries are divided by the square root of the length of a head, but for the largest model, which is told by its layers:
#: there of the embedding's share (``src/models/gemma2.cpp``, ``gemma3.cpp``). The metadata has no key for it.
_LARGEST = {"gemma2": 46, "gemma3": 62}

#: What ``llama`` says of a mixture of experts, which is Mixtral then.
_MIXTRAL = {"expert_count": "num_local_experts", "expert_used_count": "num_experts_per_tok"}

#: Keys that no configuration needs, or that are looked at elsewhere in this file.
_ELSEWHERE = ("attention.value_length", "rope.dimension_count", "tensor_data_layout")

#: Without these nothing has a size.
_REQUIRED = ("context_length", "embedding_length", "block_count", "attention.head_count")

#: Parameters of YaRN that the converter passes on from the configuration (``conversion/base.py`` of llama.cpp).
_YARN = {
    "original_context_length": "original_max_position_embeddings",
    "yarn_attn_factor": "attention_factor",
    "yarn_beta_fast": "beta_fast",
    "yarn_beta_slow": "beta_slow",
}

#: Divisors of the angles, one for each pair of a head (Llama 3.1 and later): no weight of a model, but of its configuration.
DIVISORS = "rope_freqs.weight"

#: Heads are far shorter; a configuration holds the divisors as numbers of Python.
_MOST_DIVISORS = 1 << 16

_HINT = "pass config="


def configuration(checkpoint: Checkpoint) -> transformers.PreTrainedConfig:
    """The configuration that the metadata describes, with the class of its language model in ``architectures``.

    Raises:
        UnsupportedError: The architecture is none of those known, or the metadata says what no configuration of it can.
        MalformedError: Metadata is missing or of another kind.
    """
    architecture = architecture_of(checkpoint)
    told = _told(checkpoint, architecture)
    config_class: Any = transformers.CONFIG_MAPPING[told.pop("model_type")]
    try:
        made: transformers.PreTrainedConfig = config_class.from_dict(told)
    except Exception as error:  # noqa: BLE001 - whatever it raises, it cannot read this
        raise MalformedError(f"{checkpoint.path}: transformers cannot read the metadata: {error}", "config") from error
    language_models: Any = transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    made.architectures = [language_models[config_class].__name__]
    return made


def architecture_of(checkpoint: Checkpoint) -> str:
    """llama.cpp's name of the architecture.

    Raises:
        UnsupportedError: It is none of those known.
    """
    found = checkpoint.metadata.get("general.architecture")
    if not isinstance(found, str) or found not in _ARCHITECTURES:
        known = ", ".join(_ARCHITECTURES)
        raise UnsupportedError(
            f"{checkpoint.path}: general.architecture is {found!r}: loaded with transformers are {known}",
            "transformers",
        )
    return found


def machinery_of(checkpoint: Checkpoint) -> Any:
    """transformers' module for GGUF, which versions to come may lack, and with it the package for names.

    Raises:
        UnsupportedError: One of both is missing.
    """
    try:
        import gguf  # noqa: F401
        import transformers.modeling_gguf_pytorch_utils as machinery

        for name in ("GGUF_TO_TRANSFORMERS_MAPPING", "GGUF_CONFIG_DEFAULTS_MAPPING", "TENSOR_PROCESSORS", "get_gguf_hf_weights_map"):
            getattr(machinery, name)
    except ImportError as error:
        text = f"{checkpoint.path}: transformers names the tensors of GGUF files by the package gguf: {error}"
        raise UnsupportedError(text, "transformers", "pip install gguf") from error
    except AttributeError as error:
        text = f"{checkpoint.path}: transformers {transformers.__version__} does not tell how it reads GGUF files: {error}"
        raise UnsupportedError(text, "transformers") from error
    return machinery


def _told(checkpoint: Checkpoint, architecture: str) -> dict[str, Any]:
    """The metadata as a dictionary that configurations are made from."""
    machinery = machinery_of(checkpoint)
    known = _ARCHITECTURES[architecture]
    tables = machinery.GGUF_TO_TRANSFORMERS_MAPPING.get("config", {})
    if known.table not in tables:
        text = f"{checkpoint.path}: transformers {transformers.__version__} has no table for the metadata of {architecture}"
        raise UnsupportedError(text, "transformers", _HINT)
    found = Found(checkpoint, architecture)
    told: dict[str, Any] = {"model_type": known.model_type}
    told |= machinery.GGUF_CONFIG_DEFAULTS_MAPPING.get(known.table, {})
    settings = {suffix: name for suffix, name in {**tables[known.table], **known.more}.items() if isinstance(name, str)}
    if architecture == "llama" and found.number("expert_count", 0):
        told["model_type"] = "mixtral"
        settings |= _MIXTRAL
    for suffix in settings:
        if suffix in _REQUIRED or suffix.endswith("epsilon"):
            found.number(suffix)
    told |= {name: found.number(suffix) for suffix, name in settings.items() if suffix in found}
    found.check_layers()
    found.check_heads()
    told = _implied(found, architecture, told) | told
    told |= _of_tensors(checkpoint, architecture, told)
    told |= _rotation(found)
    for suffix, name in tables.get("tokenizer", {}).items():
        if isinstance(token := checkpoint.metadata.get(f"tokenizer.{suffix}"), int):
            told[name] = token
    found.refuse_others(settings)
    return told


def _implied(found: Found, architecture: str, told: dict[str, Any]) -> dict[str, Any]:
    """What llama.cpp takes where nothing is said; the classes of transformers have other numbers in mind."""
    n_heads, width = told["num_attention_heads"], told["hidden_size"]
    if n_heads <= 0:
        raise found.refuse("attention.head_count", str(n_heads))
    head_dim = told.get("head_dim", width // n_heads)
    made = {"num_key_value_heads": n_heads, "rope_theta": 10000.0}
    if architecture in _LARGEST:
        is_largest = told["num_hidden_layers"] == _LARGEST[architecture]
        made["query_pre_attn_scalar"] = width // n_heads if is_largest else head_dim
    n_rotated = found.number("rope.dimension_count", head_dim)
    if 0 < n_rotated < head_dim:
        made["partial_rotary_factor"] = n_rotated / head_dim
    return made


def _of_tensors(checkpoint: Checkpoint, architecture: str, told: dict[str, Any]) -> dict[str, Any]:
    """What the tensors say, and no key."""
    tensors = checkpoint.tensors
    made: dict[str, Any] = {"tie_word_embeddings": "output.weight" not in tensors}
    if "vocab_size" not in told and "token_embd.weight" in tensors:
        made["vocab_size"] = math.prod(tensors.info("token_embd.weight")[1][:1])
    if architecture == "llama":
        made["attention_bias"] = "blk.0.attn_q.bias" in tensors
        made["mlp_bias"] = "blk.0.ffn_gate.bias" in tensors
    return made


def _rotation(found: Found) -> dict[str, Any]:
    """How the angles of the rotation are scaled, which transformers' tables leave out; and what is refused of it."""
    checkpoint, kind = found.checkpoint, found.text("rope.scaling.type", "none")
    if DIVISORS in checkpoint.tensors:
        if kind != "none":
            raise found.refuse("rope.scaling.type", f"{kind}, beside {DIVISORS}")
        return {"rope_scaling": _divided(found)}
    if kind == "none":
        return {}
    scaling = {"rope_type": kind, "factor": found.number("rope.scaling.factor")}
    if kind == "yarn":
        keys = {f"rope.scaling.{suffix}": name for suffix, name in _YARN.items()}
        scaling |= {name: found.number(suffix) for suffix, name in keys.items() if suffix in found}
    elif kind != "linear":
        raise found.refuse("rope.scaling.type", kind)
    return {"rope_scaling": scaling}


def _divided(found: Found) -> dict[str, Any]:
    """Angles with a divisor for each: what transformers calls LongRoPE, with the same divisors for short and long texts."""
    dtype, shape, _ = found.checkpoint.tensors.info(DIVISORS)
    if dtype != "F32" or len(shape) != 1 or shape[0] > _MOST_DIVISORS:
        raise MalformedError(f"{found.checkpoint.path}: {DIVISORS} is {dtype} {list(shape)}: expected a list of F32", "metadata")
    divisors = [float(value) for value in found.checkpoint.tensors[DIVISORS].numpy()]
    if not all(math.isfinite(value) and value > 0 for value in divisors):
        raise MalformedError(f"{found.checkpoint.path}: {DIVISORS} has a divisor that is none", "metadata")
    return {
        "rope_type": "longrope",
        "short_factor": divisors,
        "long_factor": divisors,
        "factor": 1.0,
        "attention_factor": 1.0,
        "original_max_position_embeddings": found.number("context_length"),
    }


class Found:
    """The metadata of an architecture, by what stands behind its name in the keys."""

    def __init__(self, checkpoint: Checkpoint, architecture: str) -> None:
        self.checkpoint = checkpoint
        self._prefix = f"{architecture}."

    def __contains__(self, suffix: str) -> bool:
        return self._prefix + suffix in self.checkpoint.metadata

    def number(self, suffix: str, default: float | None = None) -> Any:
        """A number, which must be there unless there is a default.

        Raises:
            MalformedError: It is missing, or of another kind.
            UnsupportedError: There is one for each layer.
        """
        return self._value(suffix, (int, float), "a number", default)

    def text(self, suffix: str, default: str) -> Any:
        return self._value(suffix, (str,), "a text", default)

    def _value(self, suffix: str, kinds: tuple[type, ...], words: str, default: Any) -> Any:
        key = self._prefix + suffix
        if key not in self.checkpoint.metadata:
            if default is None:
                raise MalformedError(f"{self.checkpoint.path}: the metadata lacks {key}", "metadata")
            return default
        value = self.checkpoint.metadata[key]
        if isinstance(value, list):
            # One number for each layer, which none of these models has.
            raise self.refuse(suffix, f"a list of {len(value)}")
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise MalformedError(f"{self.checkpoint.path}: {key} is {value!r}: expected {words}", "metadata")
        return value

    def refuse(self, suffix: str, found: str) -> UnsupportedError:
        """The error for a key that transformers has no place for."""
        key = self._prefix + suffix
        return UnsupportedError(f"{self.checkpoint.path}: no configuration of transformers for {key}: {found}", "transformers", _HINT)

    def check_layers(self) -> None:
        """That there can be so many layers: names and modules are made for each of them."""
        n_layers, n_tensors = self.number("block_count"), len(self.checkpoint.tensors)
        if not 0 < n_layers <= n_tensors:
            text = f"{self._prefix}block_count is {n_layers}, of {n_tensors} tensors"
            raise MalformedError(f"{self.checkpoint.path}: {text}", "metadata")

    def check_heads(self) -> None:
        """That values are as long as keys."""
        lengths = {suffix: self.number(suffix, 0) for suffix in ("attention.key_length", "attention.value_length")}
        if len(set(lengths.values())) > 1 and all(lengths.values()):
            raise self.refuse("attention.value_length", f"{lengths['attention.value_length']}, other than keys")

    def refuse_others(self, settings: dict[str, str]) -> None:
        """Refuses what says something and has no place in a configuration."""
        for key in self.checkpoint.metadata:
            suffix = key.removeprefix(self._prefix)
            if not key.startswith(self._prefix) or suffix in settings or suffix in _ELSEWHERE:
                continue
            scaling = suffix.removeprefix("rope.scaling.")
            if scaling != suffix and (scaling in ("type", "factor", "finetuned") or scaling in _YARN):
                continue
            # Nothing, zero or no is what holds without the key as well.
            if value := self.checkpoint.metadata[key]:
                raise self.refuse(suffix, repr(value)[:80])
