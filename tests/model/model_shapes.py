"""Small models in the arrangements that matter."""

from __future__ import annotations

from typing import Any

import torch

from groundup.model.config import ModelConfig
from groundup.model.init import init_weights
from groundup.model.transformer import Transformer
from groundup.verify import healthy


def _as_config(section: dict[str, Any]) -> dict[str, Any]:
    """What a recipe's section says, as ModelConfig holds it."""
    return {**section, "bias": tuple(section["bias"])} if "bias" in section else section


GPT2 = _as_config(healthy.GPT2)
VARIANTS = {name: _as_config(section) for name, section in healthy.VARIANTS.items()}
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
