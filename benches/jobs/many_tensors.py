#!/usr/bin/env python3
"""A checkpoint in the shape of a large mixture of experts, of headers and holes: 160 shards, 90,000 tensors, no disk to speak of.

    benches/jobs/many_tensors.py FOLDER
    safequant audit FOLDER --depth headers
    safequant audit FOLDER --depth scales     # zeros are read: every scale is reported

FP8 in blocks of 128 x 128 with their scales, 60 layers of 250 experts, an index, and config.json. The files are sparse: their lengths
are right, their data are holes. Standard library only.
"""

import json
import os
import struct
import sys

LAYERS, EXPERTS, HIDDEN, INNER, SHARDS = 60, 250, 1024, 512, 160


def tensors():
    yield "model.embed_tokens.weight", "BF16", [32768, HIDDEN]
    for layer in range(LAYERS):
        at = "model.layers.%d." % layer
        yield at + "input_layernorm.weight", "BF16", [HIDDEN]
        yield at + "post_attention_layernorm.weight", "BF16", [HIDDEN]
        yield at + "mlp.gate.weight", "BF16", [EXPERTS, HIDDEN]
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            yield from quantized(at + "self_attn." + name, HIDDEN, HIDDEN)
        for expert in range(EXPERTS):
            for name in ("gate_proj", "up_proj", "down_proj"):
                shape = (HIDDEN, INNER) if name == "down_proj" else (INNER, HIDDEN)
                yield from quantized(at + "mlp.experts.%d.%s" % (expert, name), *shape)
    yield "model.norm.weight", "BF16", [HIDDEN]
    yield "lm_head.weight", "BF16", [32768, HIDDEN]


def quantized(module, rows, columns):
    yield module + ".weight", "F8_E4M3", [rows, columns]
    yield module + ".weight_scale_inv", "F32", [-(-rows // 128), -(-columns // 128)]


def size(dtype, shape):
    n = {"F8_E4M3": 1, "BF16": 2, "F32": 4}[dtype]
    for d in shape:
        n *= d
    return n


def main(folder):
    os.makedirs(folder)
    everything = list(tensors())
    per_shard = -(-len(everything) // SHARDS)
    # Companions lie together: an even number, as the first tensor is the only one without a scale that comes alone.
    weight_map, total = {}, 0
    for at in range(SHARDS):
        name = "model-%05d-of-%05d.safetensors" % (at + 1, SHARDS)
        header, end = {"__metadata__": {"format": "pt"}}, 0
        for tensor, dtype, shape in everything[at * per_shard:(at + 1) * per_shard]:
            header[tensor] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size(dtype, shape)]}
            end += size(dtype, shape)
            weight_map[tensor] = name
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(os.path.join(folder, name), "wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            out.truncate(8 + len(text) + end)
        total += end
    config = {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": HIDDEN, "moe_intermediate_size": INNER,
              "num_hidden_layers": LAYERS, "num_experts": EXPERTS, "num_attention_heads": 8, "num_key_value_heads": 8, "vocab_size": 32768,
              "tie_word_embeddings": False, "torch_dtype": "bfloat16",
              "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}}
    for name, value in (("config.json", config), ("model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})):
        with open(os.path.join(folder, name), "w") as out:
            json.dump(value, out)
    print("%d tensors, %.1f GB in %d files" % (len(everything), total / 1e9, SHARDS))


if __name__ == "__main__":
    main(sys.argv[1])
