"""Which tensor of ours is made of which of theirs. One table serves both ways, so that they are each other's inverse.

Our rotary layout is Llama's (half-split), so no row is permuted anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch

from groundup.model.config import ModelConfig
from groundup.model.transformer import Transformer

T = TypeVar("T")
Names = dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Piece:
    """A tensor of theirs and its place in ours: `ours[at]`, or the transpose of that, is theirs."""

    name: str
    shape: tuple[int, ...]  # of theirs
    at: tuple[int | slice, ...] = ()
    transposed: bool = False


class Entry(NamedTuple):
    """A tensor of ours, and those of theirs that fill it."""

    shape: tuple[int, ...]
    pieces: list[Piece]


LLAMA_TOP = {"embed": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
GPT2_TOP = {
    "embed": "transformer.wte",
    "position_embed": "transformer.wpe",
    "norm": "transformer.ln_f",
    "head": "lm_head",
}

# Our module in a block -> theirs; several: ours holds them one above the other.
LLAMA: Names = {
    "norm1": ("input_layernorm",),
    "norm2": ("post_attention_layernorm",),
    "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.out": ("self_attn.o_proj",),
    "attention.q_norm": ("self_attn.q_norm",),
    "attention.k_norm": ("self_attn.k_norm",),
    "mlp.gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down": ("mlp.down_proj",),
}
GPT2: Names = {
    "norm1": ("ln_1",),
    "norm2": ("ln_2",),
    "attention.qkv": ("attn.c_attn",),
    "attention.out": ("attn.c_proj",),
    "mlp.up": ("mlp.c_fc",),
    "mlp.down": ("mlp.c_proj",),
}
GEMMA = LLAMA | {
    "norm1_out": ("post_attention_layernorm",),  # TRAP: the name that Llama has for the norm before the feed-forward
    "norm2": ("pre_feedforward_layernorm",),
    "norm2_out": ("post_feedforward_layernorm",),
}
BLOCKS: dict[str, Names] = {
    "gpt2": GPT2,
    "phi3": LLAMA | {"attention.qkv": ("self_attn.qkv_proj",), "mlp.gate_up": ("mlp.gate_up_proj",)},
    "olmo2": LLAMA | {"norm1_out": ("post_attention_layernorm",), "norm2_out": ("post_feedforward_layernorm",)},
    "gemma2": GEMMA,
    "gemma3_text": GEMMA,
    "mixtral": LLAMA | {"mlp.router": ("block_sparse_moe.gate",)},
    "qwen3_moe": LLAMA | {"mlp.router": ("mlp.gate",)},
}
# A stack of ours -> the matrices of expert {e}, one above the other.
EXPERTS: dict[str, Names] = {
    "mixtral": {
        "mlp.gate_up": ("block_sparse_moe.experts.{e}.w1", "block_sparse_moe.experts.{e}.w3"),
        "mlp.down": ("block_sparse_moe.experts.{e}.w2",),
    },
    "qwen3_moe": {
        "mlp.gate_up": ("mlp.experts.{e}.gate_proj", "mlp.experts.{e}.up_proj"),
        "mlp.down": ("mlp.experts.{e}.down_proj",),
    },
}
# The stacks that transformers 5 holds in memory, in case a file was written from there.
STACKED = {
    "mlp.gate_up": "mlp.experts.gate_up_proj",
    "mlp.down": "mlp.experts.down_proj",
    "mlp.router": "mlp.gate.weight",
}


def our_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor in our file of this model. Nothing is allocated."""
    with torch.device("meta"):
        state = Transformer(config).state_dict()
    if config.tied:
        state.pop("head.weight")
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def layout(config: ModelConfig, model_type: str, stacked: bool = False) -> dict[str, Entry]:
    """For each tensor of ours the tensors of theirs that fill it. stacked: experts as one tensor a layer."""
    shapes = our_shapes(config)
    return {name: Entry(shape, _pieces(name, shape, config, model_type, stacked)) for name, shape in shapes.items()}


def _pieces(name: str, shape: tuple[int, ...], config: ModelConfig, model_type: str, stacked: bool) -> list[Piece]:
    top, blocks = (GPT2_TOP, "transformer.h") if model_type == "gpt2" else (LLAMA_TOP, "model.layers")
    if not name.startswith("blocks."):
        module, _, kind = name.rpartition(".")
        return [Piece(f"{_known(top, module, name)}.{kind}", shape)]
    _, layer, inside = name.split(".", 2)
    before = f"{blocks}.{layer}"
    if stacked and (inside in STACKED or inside.removesuffix(".weight") in STACKED):
        return [Piece(f"{before}.{STACKED[inside.removesuffix('.weight')]}", shape)]
    if len(shape) == 3:
        return _expert_pieces(before, _known(EXPERTS.get(model_type, {}), inside, name), shape)
    module, _, kind = inside.rpartition(".")
    theirs = _known(BLOCKS.get(model_type, LLAMA), module, name)
    if model_type == "gpt2" and len(shape) == 2:  # TRAP: its Conv1D keeps weights as (in, out)
        return [Piece(f"{before}.{theirs[0]}.{kind}", shape[::-1], (), transposed=True)]
    heads = (config.n_heads, config.n_kv_heads, config.n_kv_heads)
    rows = [n * config.head_dim for n in heads] if len(theirs) == 3 else [shape[0] // len(theirs)] * len(theirs)
    out, first = [], 0
    for one, n in zip(theirs, rows, strict=True):
        at = (slice(first, first + n),) if len(theirs) > 1 else ()
        out.append(Piece(f"{before}.{one}.{kind}", (n, *shape[1:]), at))
        first += n
    return out


def _expert_pieces(before: str, theirs: tuple[str, ...], shape: tuple[int, ...]) -> list[Piece]:
    n = shape[1] // len(theirs)
    return [
        Piece(f"{before}.{one.format(e=e)}.weight", (n, shape[2]), (e, slice(part * n, (part + 1) * n)))
        for e in range(shape[0])
        for part, one in enumerate(theirs)
    ]


def _known(table: Mapping[str, T], module: str, name: str) -> T:
    if module not in table:  # a new module: must not be dropped in silence
        raise KeyError(f"there is no Hugging Face name for {name}")
    return table[module]
