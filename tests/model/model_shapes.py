"""Small models in the arrangements that matter."""

from __future__ import annotations

from typing import Any

import torch

from groundup.model.config import ModelConfig
from groundup.model.init import init_weights
from groundup.model.transformer import Transformer

GPT2: dict[str, Any] = {
    "norm": "layernorm",
    "position": "learned",
    "mlp": "gelu_tanh",
    "qk_norm": "none",
    "bias": ("qkv", "out", "up", "down", "norm"),
    "n_kv_heads": 4,
}
SHAPES: dict[str, dict[str, Any]] = {
    "qwen3": {},
    "qwen3 untied": {"tied": False},
    "llama": {"qk_norm": "none"},
    "llama untied, biased, wide heads": {
        "qk_norm": "none",
        "tied": False,
        "bias": ("qkv", "out", "up", "down"),
        "head_dim": 16,
    },
    "one kv head": {"n_kv_heads": 1},
    "all kv heads": {"n_kv_heads": 4},
    "gpt2": GPT2,
    "gpt2 untied": {**GPT2, "tied": False},
}
# Not exported anywhere, but the model must compute it all the same.
ODD_SHAPES: dict[str, dict[str, Any]] = {
    "layernorm, rope, swiglu": {"norm": "layernorm", "qk_norm": "none"},
    "rmsnorm, learned, gelu, grouped": {"position": "learned", "mlp": "gelu_tanh"},
    "layernorm without bias": {"norm": "layernorm", "qk_norm": "none", "mlp": "gelu_tanh"},
}


_SCALING = {"factor": 4.0, "original_context": 16}
_EXPERTS = {"n_experts": 5, "top_k": 2, "d_expert": 24}
_LATENT = {"kv_rank": 12, "nope_dim": 8, "rope_dim": 4, "v_dim": 6}
# One for every choice a config has, and the mixtures that published models make of them.
VARIANTS: dict[str, dict[str, Any]] = {
    "post-norm": {"block": "post"},
    "output norm, full qk-norm (olmo 2)": {"block": "output", "qk_norm": "full"},
    "sandwich, caps, windows (gemma 2)": {
        "block": "sandwich",
        "norm_offset": True,
        "mlp": "geglu_tanh",
        "qk_norm": "none",
        "attention_softcap": 5.0,
        "logit_softcap": 3.0,
        "window": 6,
        "window_pattern": "LG",
        "score_dim": 11.0,
        "embed_scale": 32**0.5,
    },
    "local base (gemma 3)": {
        "block": "sandwich",
        "norm_offset": True,
        "mlp": "geglu_tanh",
        "window": 5,
        "window_pattern": "LLG",
        "rope_local_base": 100.0,
        "rope_scaling": {"kind": "linear", "factor": 8.0, "original_context": 8},
    },
    "parallel": {"block": "parallel", "norm": "layernorm", "bias": ("qkv", "out", "up", "down", "norm"), "mlp": "gelu"},
    "parallel, shared norm": {"block": "parallel_shared", "rope_fraction": 0.5, "mlp": "gelu_tanh"},
    "norms without parameters": {"norm": "layernorm", "norm_weight": False},
    "windows everywhere": {"window": 7},
    "linear scaling": {"rope_scaling": {"kind": "linear", **_SCALING}},
    "ntk scaling": {"rope_scaling": {"kind": "ntk", **_SCALING}},
    "dynamic scaling": {"rope_scaling": {"kind": "dynamic", **_SCALING, "original_context": 40}},
    "yarn scaling": {"rope_scaling": {"kind": "yarn", **_SCALING}},
    "llama 3 scaling": {"rope_scaling": {"kind": "llama3", **_SCALING}},
    "partial rotary": {"rope_fraction": 0.5},
    "layers without position": {"rope_pattern": "RRN"},
    "sinusoidal": {"position": "sinusoidal"},
    "alibi": {"position": "alibi"},
    "alibi, six heads": {"position": "alibi", "n_heads": 6, "n_kv_heads": 2},
    "t5": {"position": "t5", "relative_buckets": 8, "relative_distance": 20},
    "no position": {"position": "none"},
    "sinks (gpt-oss)": {"sinks": True, "window": 6, "window_pattern": "LG", "bias": ("qkv", "out")},
    "alibi with cap and sinks": {"position": "alibi", "attention_softcap": 4.0, "sinks": True},
    "biases on queries, keys, values (qwen 2)": {"bias": ("qkv",), "qk_norm": "none"},
    "head with a bias": {"bias": ("head",), "tied": False},
    "geglu": {"mlp": "geglu"},
    "gelu": {"mlp": "gelu"},
    "relu": {"mlp": "relu"},
    "relu squared": {"mlp": "relu2"},
    "experts (mixtral)": {"moe": _EXPERTS, "qk_norm": "none"},
    "experts, plain": {"moe": {**_EXPERTS, "z_weight": 0.001}, "mlp": "relu2"},
    "experts, loss-free, sigmoid, shared (deepseek 3)": {
        "moe": {**_EXPERTS, "balance": "bias", "score": "sigmoid", "n_shared": 2, "first_dense": 1, "scale": 2.5},
    },
    "experts in every other layer": {"moe": {**_EXPERTS, "every": 2, "normalise": False, "balance": "none"}},
    "latent attention": {"latent": _LATENT, "n_kv_heads": 4, "qk_norm": "none"},
    "latent, low-rank queries, windows, sinks": {
        "latent": {**_LATENT, "q_rank": 10},
        "n_kv_heads": 4,
        "qk_norm": "none",
        "window": 6,
        "sinks": True,
    },
    "scaled logits": {"logit_scale": 0.25},
    "mup": {"init": "mup", "mup_width": 16},
}


def config(**changes: Any) -> ModelConfig:
    values: dict[str, Any] = {
        "vocab_size": 300,
        "d_model": 32,
        "n_layers": 3,
        "n_heads": 4,
        "n_kv_heads": 2,
        "head_dim": 8,
        "d_ff": 56,
        "context": 40,
        "rope_base": 500.0,
        "norm_eps": 1e-3,
    }
    return ModelConfig(**{**values, **changes})


def build(seed: int = 0, **changes: Any) -> Transformer:
    """A model with every parameter drawn at random, norms and biases too: a swapped or dropped one must show."""
    model = init_weights(Transformer(config(**changes)), seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
            else:
                parameter *= 5
    return model.eval()


def tokens(rows: int, length: int, seed: int = 0, vocab_size: int = 300) -> torch.Tensor:
    return torch.randint(vocab_size, (rows, length), generator=torch.Generator().manual_seed(seed))
