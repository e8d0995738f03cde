"""A Qwen2 with 100,000 random parameters, written byte by byte: what vLLM loads, without a download.

Greedy answers are printable ASCII and never end by themselves: the rows of all other tokens are zero.
"""

from __future__ import annotations

import json
import math
import struct
from random import Random

CONTEXT = 2048
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_HIDDEN, _INNER, _HEADS, _LAYERS = 64, 128, 2, 2
_VOCABULARY = len(_SPECIAL) + 256
_TEMPLATE = (
    "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{'<|im_start|>assistant\\n'}}{% endif %}"
)


def files() -> dict[str, bytes]:
    """Return the files of the model by name, as a repository of the hub has them; always the same."""
    texts = {
        "config.json": _config(),
        "tokenizer.json": _tokenizer(),
        "tokenizer_config.json": _tokenizer_config(),
    }
    found = {name: json.dumps(content).encode() for name, content in texts.items()}
    return {**found, "model.safetensors": _weights()}


def _config() -> dict[str, object]:
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": _VOCABULARY,
        "hidden_size": _HIDDEN,
        "intermediate_size": _INNER,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": 1,
        "max_position_embeddings": CONTEXT,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "eos_token_id": 2,
        "pad_token_id": 0,
    }


def _tokenizer() -> dict[str, object]:
    """One token for each byte, under the names that byte-level BPE gives them; no merges."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "version": "1.0",
        "added_tokens": [
            {
                "id": number,
                "content": text,
                "special": True,
                **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False),
            }
            for number, text in enumerate(_SPECIAL)
        ],
        "pre_tokenizer": {**byte_level, "use_regex": True},
        "decoder": {**byte_level, "use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": {name: number for number, name in enumerate((*_SPECIAL, *_byte_names()))},
            "merges": [],
        },
    }


def _byte_names() -> list[str]:
    """Return GPT-2's printable character for each byte."""
    shifted = iter(range(256, 512))
    return [chr(b if _is_printable(b) else next(shifted)) for b in range(256)]


def _is_printable(byte: int) -> bool:
    return 0x21 <= byte <= 0x7E or 0xA1 <= byte <= 0xAC or byte >= 0xAE


def _tokenizer_config() -> dict[str, object]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": CONTEXT,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "chat_template": _TEMPLATE,
    }


def _weights() -> bytes:
    """Return a safetensors file: the header's length, the header, the tensors in bfloat16."""
    rng = Random(0)
    header: dict[str, object] = {}
    data = bytearray()
    for name, shape in _shapes().items():
        tensor = _tensor(rng, name, shape)
        header[name] = {
            "dtype": "BF16",
            "shape": shape,
            "data_offsets": [len(data), len(data) + len(tensor)],
        }
        data += tensor
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + bytes(data)


def _shapes() -> dict[str, list[int]]:
    head = _HIDDEN // _HEADS
    shapes = {"model.embed_tokens.weight": [_VOCABULARY, _HIDDEN], "model.norm.weight": [_HIDDEN]}
    for layer in range(_LAYERS):
        for name, shape in (
            ("input_layernorm.weight", [_HIDDEN]),
            ("post_attention_layernorm.weight", [_HIDDEN]),
            ("self_attn.q_proj.weight", [_HIDDEN, _HIDDEN]),
            ("self_attn.q_proj.bias", [_HIDDEN]),
            ("self_attn.k_proj.weight", [head, _HIDDEN]),
            ("self_attn.k_proj.bias", [head]),
            ("self_attn.v_proj.weight", [head, _HIDDEN]),
            ("self_attn.v_proj.bias", [head]),
            ("self_attn.o_proj.weight", [_HIDDEN, _HIDDEN]),
            ("mlp.gate_proj.weight", [_INNER, _HIDDEN]),
            ("mlp.up_proj.weight", [_INNER, _HIDDEN]),
            ("mlp.down_proj.weight", [_HIDDEN, _INNER]),
        ):
            shapes[f"model.layers.{layer}.{name}"] = shape
    return shapes


def _tensor(rng: Random, name: str, shape: list[int]) -> bytes:
    if "norm" in name:
        return _bfloat16(1.0) * math.prod(shape)
    if "embed" not in name:
        return b"".join(_bfloat16(rng.gauss(0, 0.1)) for _ in range(math.prod(shape)))
    said = range(len(_SPECIAL) + 0x20, len(_SPECIAL) + 0x7F)
    return b"".join(
        _bfloat16(rng.gauss(0, 0.1) if row in said else 0.0)
        for row in range(shape[0])
        for _ in range(shape[1])
    )


def _bfloat16(value: float) -> bytes:
    return struct.pack("<f", value)[2:]
