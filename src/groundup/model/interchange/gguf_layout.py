"""What GGUF's architectures compute, and a model's weights and sizes under the names that llama.cpp knows.

Names and keys: the GGUF specification (ggml, docs/gguf.md). What each architecture reads: llama.cpp, src/models/.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from groundup.model.config import ModelConfig, RopeScaling
from groundup.model.position import rope_rates
from groundup.model.storage import model_tensors
from groundup.model.transformer import Transformer


@dataclass(frozen=True)
class Layout:
    """One way to write a model: the architecture that readers look up, and the fields for which it has one value."""

    arch: str
    fixed: dict[str, Any]
    experts: bool = False


PLAIN = {"block": "pre", "latent": None, "sinks": False, "attention_softcap": 0.0, "logit_softcap": 0.0}
LLAMA = PLAIN | {
    "norm": "rmsnorm",
    "position": "rope",
    "mlp": "swiglu",
    "rope_fraction": 1.0,
    "qk_norm": "none",
    "bias": (),
}
QWEN3 = LLAMA | {"qk_norm": "head"}
GPT2 = PLAIN | {"norm": "layernorm", "position": "learned", "mlp": "gelu_tanh", "qk_norm": "none"}
LAYOUTS = {
    "qwen3": Layout("qwen3", QWEN3),
    "qwen2": Layout("qwen2", LLAMA | {"bias": ("qkv",)}),
    "llama": Layout("llama", LLAMA),
    "gpt2": Layout("gpt2", GPT2),
    "qwen3moe": Layout("qwen3moe", QWEN3, experts=True),
    "mixtral": Layout("llama", LLAMA, experts=True),
}


def layout_of(config: ModelConfig) -> str:
    """The layout that computes exactly this config; one without obstacles, or else the nearest."""
    able = [name for name, layout in LAYOUTS.items() if layout.experts == (config.moe is not None)]
    return min(able, key=lambda name: len(_obstacles(config, name)))


def gguf_obstacles(config: ModelConfig) -> list[str]:
    """Every field that keeps the nearest layout from computing this config; empty when it can be written."""
    return _obstacles(config, layout_of(config))


def _obstacles(c: ModelConfig, name: str) -> list[str]:
    layout = LAYOUTS[name]
    found = [
        f"{field} is {_word(getattr(c, field))}, GGUF's {name} has {_word(value)}"
        for field, value in layout.fixed.items()
        if getattr(c, field) != value
    ]
    if c.score_dim not in (None, c.head_dim):
        found.append(f"score_dim is {c.score_dim}, GGUF's {name} divides by the square root of head_dim, {c.head_dim}")
    if "head" in c.bias:
        found.append(f"bias has head, GGUF's {name} has none on the logits")
    if any(c.is_local(layer) for layer in range(c.n_layers)) and (c.window < c.context or c.rope_local_base):
        found.append(f"window is {c.window}, GGUF's {name} sees the whole context: a context of {c.window} would fit")
    if c.position == "rope" and not all(c.is_rotated(layer) for layer in range(c.n_layers)):
        found.append(f"rope_pattern is {c.rope_pattern}, GGUF's {name} rotates every layer")
    if layout.arch in ("gpt2", "qwen2") and c.n_heads * c.head_dim != c.d_model:
        found.append(f"n_heads * head_dim is {c.n_heads * c.head_dim}, GGUF's {name} has d_model, {c.d_model}")
    if name == "gpt2" and c.n_kv_heads != c.n_heads:
        found.append(f"n_kv_heads is {c.n_kv_heads}, GGUF's gpt2 has as many as n_heads, {c.n_heads}")
    return found + _scaling_obstacles(c, name) + _expert_obstacles(c, name)


def _scaling_obstacles(c: ModelConfig, name: str) -> list[str]:
    s = c.rope_scaling
    if s is None:
        return []
    if s.kind == "dynamic":
        return [f"rope_scaling.kind is dynamic, and GGUF's {name} has no base that follows the length of the text"]
    if s.kind == "llama3" and LAYOUTS[name].arch != "llama":
        return [f"rope_scaling.kind is llama3, and GGUF's {name} reads no factors a dimension (llama does)"]
    return [  # GGUF has keys for them, but llama.cpp reads these for other architectures alone
        f"rope_scaling.{field} is {getattr(s, field):g}, GGUF's {name} has {default:g}"
        for field, default in (("beta_fast", 32.0), ("beta_slow", 1.0))
        if s.kind == "yarn" and getattr(s, field) != default
    ]


def _expert_obstacles(c: ModelConfig, name: str) -> list[str]:
    moe = c.moe
    if moe is None:
        return []
    has = {"n_shared": 0, "first_dense": 0, "every": 1, "score": "softmax", "normalise": True, "scale": 1.0}
    found = [
        f"moe.{field} is {_word(getattr(moe, field))}, GGUF's {name} has {_word(value)}"
        for field, value in has.items()
        if getattr(moe, field) != value
    ]
    if moe.balance == "bias":
        found.append(f"moe.balance is bias, and GGUF's {name} has no bias on the choice of experts")
    return found


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(value)}]"
    return "set" if hasattr(value, "kv_rank") else str(value)


def hyper_parameters(config: ModelConfig) -> dict[str, Any]:
    """Metadata of the architecture: whole numbers are written as uint32, others as float32."""
    name = layout_of(config)
    rope = config.position == "rope"
    values: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "context_length": config.context,
        "embedding_length": config.d_model,
        "block_count": config.n_layers,
        "feed_forward_length": config.moe.d_expert if config.moe else config.d_ff,
        "attention.head_count": config.n_heads,
        "attention.head_count_kv": config.n_kv_heads,
        # TRAP: without these two, readers take d_model / n_heads
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        f"attention.layer_norm{'_rms' if config.norm == 'rmsnorm' else ''}_epsilon": float(config.norm_eps),
    }
    if config.moe:
        values["expert_count"], values["expert_used_count"] = config.moe.n_experts, config.moe.top_k
        if name == "qwen3moe":
            values["expert_feed_forward_length"] = config.moe.d_expert
    if rope:
        values["rope.dimension_count"] = config.head_dim
        values |= _rope_base_and_scaling(config)
    return {f"{LAYOUTS[name].arch}.{key}": value for key, value in values.items()}


def _rope_base_and_scaling(config: ModelConfig) -> dict[str, Any]:
    s, dim = config.rope_scaling, config.head_dim
    base = {"rope.freq_base": float(config.rope_base)}
    if s is None or s.kind == "llama3":  # llama3: the tensor rope_freqs
        return base
    if s.kind == "ntk":  # it is a larger base and nothing else (model/position.py)
        return {"rope.freq_base": float(config.rope_base * s.factor ** (dim / (dim - 2)))}
    scaled = base | {
        "rope.scaling.type": s.kind,
        "rope.scaling.factor": float(s.factor),
        "rope.scaling.original_context_length": s.original_context,
    }
    if s.kind == "yarn" and s.attention_factor is not None:  # llama.cpp multiplies the factor it computes by this
        usual = rope_rates(dim, config.rope_base, RopeScaling("yarn", s.factor, s.original_context))[1]
        scaled["rope.scaling.attn_factor"] = float(s.attention_factor / usual)
    return scaled


TOP = {
    "embed.weight": "token_embd.weight",
    "position_embed.weight": "position_embd.weight",
    "norm.weight": "output_norm.weight",
    "norm.bias": "output_norm.bias",
    "head.weight": "output.weight",
}
BLOCK = {
    "norm1.": "attn_norm.",
    "norm2.": "ffn_norm.",
    "attention.out.": "attn_output.",
    "attention.q_norm.": "attn_q_norm.",
    "attention.k_norm.": "attn_k_norm.",
    "mlp.router.": "ffn_gate_inp.",
    "mlp.up.": "ffn_up.",
    "mlp.down.": "ffn_down.",
}


def gguf_tensors(model: Transformer) -> Iterator[tuple[str, Tensor]]:
    """(name, weight) of all that the layout needs, on the CPU; shapes as in torch, (out, in).

    GPT-2's matrices are (out, in) in GGUF as well, unlike in its Hugging Face checkpoint. One tensor exists beside the
    model at a time.
    """
    config, arch = model.config, LAYOUTS[layout_of(model.config)].arch
    written = set()
    for name, tensor in model_tensors(model).items():
        for gguf_name, part in renamed(name, tensor, model, arch):
            written.add(gguf_name)
            yield gguf_name, part
    if config.tied and (config.embed_scale != 1.0 or config.output_scale != 1.0):
        yield "output.weight", model.embed.weight.detach().cpu() * config.output_scale
    for gguf_name, part in _left_out(config, arch):
        if gguf_name not in written:
            yield gguf_name, part
    if config.rope_scaling is not None and config.rope_scaling.kind == "llama3":
        plain, _ = rope_rates(config.head_dim, config.rope_base)
        stretched, _ = rope_rates(config.head_dim, config.rope_base, config.rope_scaling)
        yield "rope_freqs.weight", plain / stretched  # rates are divided by it


def renamed(name: str, tensor: Tensor, model: Transformer, arch: str) -> Iterator[tuple[str, Tensor]]:
    c = model.config
    if "norm" in name and name.endswith(".weight") and c.norm_offset:
        tensor = tensor.float() + 1.0  # GGUF's norms multiply by the weight itself
    if name == "embed.weight" and c.embed_scale != 1.0:
        tensor = tensor * c.embed_scale
    if name == "head.weight" and c.output_scale != 1.0:
        tensor = tensor * c.output_scale
    if not name.startswith("blocks."):
        yield TOP[name], tensor
        return
    _, layer, inside = name.split(".", 2)
    prefix = f"blk.{layer}."
    if inside.startswith("attention.qkv."):
        kind = inside.removeprefix("attention.qkv.")
        if arch == "gpt2":
            yield f"{prefix}attn_qkv.{kind}", tensor
            return
        q, k, v = tensor.split(model.get_submodule(f"blocks.{layer}.attention.qkv").sizes)
        if arch == "llama":
            q, k = interleaved(q, c.n_heads), interleaved(k, c.n_kv_heads)
        yield from ((f"{prefix}attn_{part}.{kind}", rows) for part, rows in (("q", q), ("k", k), ("v", v)))
    elif inside in ("mlp.gate_up", "mlp.gate_up.weight"):  # the first is the experts', stacked (E, 2F, D)
        gate, up = tensor.chunk(2, dim=-2)
        ending = "_exps.weight" if inside == "mlp.gate_up" else ".weight"
        yield from ((f"{prefix}ffn_gate{ending}", gate), (f"{prefix}ffn_up{ending}", up))
    elif inside == "mlp.down":
        yield f"{prefix}ffn_down_exps.weight", tensor
    else:
        begin = next(ours for ours in BLOCK if inside.startswith(ours))
        yield prefix + BLOCK[begin] + inside.removeprefix(begin), tensor


def interleaved(rows: Tensor, n_heads: int) -> Tensor:
    """Rows of q or k, a head's (first half, second half) -> (0, d/2, 1, d/2 + 1, ...).

    TRAP: llama.cpp rotates neighbours (2i, 2i + 1) in the llama architecture, and halves (i, i + d/2) in Qwen's.
    """
    return rows.unflatten(0, (n_heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def _left_out(c: ModelConfig, arch: str) -> Iterator[tuple[str, Tensor]]:
    """What readers need although the model does without: norms' weights of 1, GPT-2's biases of 0."""
    norms = {"output_norm": c.d_model}
    for n in range(c.n_layers):
        norms |= {f"blk.{n}.attn_norm": c.d_model, f"blk.{n}.ffn_norm": c.d_model}
        if c.qk_norm == "head":
            norms |= {f"blk.{n}.attn_q_norm": c.head_dim, f"blk.{n}.attn_k_norm": c.head_dim}
    yield from ((f"{name}.weight", torch.ones(size)) for name, size in norms.items())
    if arch == "gpt2":
        sizes = {"attn_qkv": 3 * c.d_model, "attn_output": c.d_model, "ffn_up": c.d_ff, "ffn_down": c.d_model}
        biases = norms | {f"blk.{n}.{name}": size for n in range(c.n_layers) for name, size in sizes.items()}
        yield from ((f"{name}.bias", torch.zeros(size)) for name, size in biases.items())
