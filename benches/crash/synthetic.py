"""Synthetic dense checkpoints in the shape of a Llama, written fast and reproducibly, with the standard library only."""

import json
import os
import random
import struct


def bf16_block(n_elements, seed):
    """Normally distributed BF16 numbers, little-endian."""
    rng = random.Random(seed)
    # The upper half of an F32, truncated: which numbers these are does not matter, that they look like weights does.
    floats = struct.pack("<%df" % n_elements, *(rng.gauss(0.0, 0.02) for _ in range(n_elements)))
    return b"".join(floats[i + 2 : i + 4] for i in range(0, len(floats), 4))


def layer_tensors(layer, hidden, inner):
    at = "model.layers.%d." % layer
    yield at + "self_attn.q_proj.weight", [hidden, hidden]
    yield at + "self_attn.k_proj.weight", [hidden // 4, hidden]
    yield at + "self_attn.v_proj.weight", [hidden // 4, hidden]
    yield at + "self_attn.o_proj.weight", [hidden, hidden]
    yield at + "mlp.gate_proj.weight", [inner, hidden]
    yield at + "mlp.up_proj.weight", [inner, hidden]
    yield at + "mlp.down_proj.weight", [hidden, inner]
    yield at + "input_layernorm.weight", [hidden]
    yield at + "post_attention_layernorm.weight", [hidden]


def size(shape):
    n = 2
    for d in shape:
        n *= d
    return n


def write_shard(path, tensors, block):
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in tensors:
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size(shape)]}
        at += size(shape)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for number, (_, shape) in enumerate(tensors):
            left, shift = size(shape), (number * 4096) % len(block)
            while left > 0:
                # Each tensor begins elsewhere in the block, so that no two are equal.
                piece = block[shift : shift + left]
                out.write(piece)
                left, shift = left - len(piece), 0


def write(directory, total_bytes, shard_bytes, hidden, inner, vocabulary=8192):
    """Writes about `total_bytes` of weights in shards of about `shard_bytes`; gives the exact bytes."""
    os.makedirs(directory)
    tensors = [("model.embed_tokens.weight", [vocabulary, hidden])]
    layer, done = 0, size(tensors[0][1])
    while done < total_bytes:
        new = list(layer_tensors(layer, hidden, inner))
        tensors += new
        done += sum(size(shape) for _, shape in new)
        layer += 1
    tensors.append(("model.norm.weight", [hidden]))
    done += size([hidden])
    shards, held = [[]], 0
    for tensor in tensors:
        if held and held + size(tensor[1]) > shard_bytes:
            shards.append([])
            held = 0
        shards[-1].append(tensor)
        held += size(tensor[1])
    block = bf16_block(1 << 20, 7)
    weight_map = {}
    for i, shard in enumerate(shards):
        name = "model-%05d-of-%05d.safetensors" % (i + 1, len(shards))
        write_shard(os.path.join(directory, name), shard, block)
        weight_map.update({tensor: name for tensor, _ in shard})
    index = {"metadata": {"total_size": done}, "weight_map": weight_map}
    with open(os.path.join(directory, "model.safetensors.index.json"), "w") as out:
        json.dump(index, out, indent=2)
    config = {"architectures": ["LlamaForCausalLM"], "head_dim": 128, "hidden_size": hidden,
              "intermediate_size": inner, "max_position_embeddings": 4096, "model_type": "llama",
              "num_attention_heads": hidden // 128, "num_hidden_layers": layer,
              "num_key_value_heads": hidden // 4 // 128, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
              "tie_word_embeddings": True, "torch_dtype": "bfloat16", "vocab_size": vocabulary}
    with open(os.path.join(directory, "config.json"), "w") as out:
        json.dump(config, out, indent=2)
    with open(os.path.join(directory, "tokenizer.json"), "w") as out:
        # Just enough of one for GGUF, which wants every token.
        vocab = {"t%d" % i: i for i in range(vocabulary)}
        split = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
        json.dump({"added_tokens": [], "pre_tokenizer": split, "decoder": {"type": "ByteLevel"},
                   "model": {"type": "BPE", "vocab": vocab, "merges": ["t 0"]}}, out)
    return done
