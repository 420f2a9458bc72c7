"""Small random models, and one that says what the test tells it to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from groundup.model.config import ModelConfig
from groundup.model.init import init_weights
from groundup.model.transformer import Transformer

CONTEXT = 48
SHAPES: dict[str, dict[str, Any]] = {
    "qwen3": {},
    "llama": {"qk_norm": "none", "tied": False, "n_kv_heads": 4},
    "gpt2": {
        "norm": "layernorm",
        "position": "learned",
        "mlp": "gelu_tanh",
        "qk_norm": "none",
        "bias": ("qkv", "out", "up", "down", "norm"),
        "n_kv_heads": 4,
        "n_heads": 4,
    },
    "one kv head": {"n_kv_heads": 1},
    "windows and sinks": {"window": 5, "window_pattern": "LG", "sinks": True},
    "alibi": {"position": "alibi"},
    "latent": {
        "n_kv_heads": 4,
        "qk_norm": "none",
        "latent": {"kv_rank": 12, "nope_dim": 8, "rope_dim": 4, "v_dim": 6},
    },
    "experts": {"moe": {"n_experts": 4, "top_k": 2, "d_expert": 24}},
}


def build(vocab_size: int, seed: int = 0, std: float = 6.0, **changes: Any) -> Transformer:
    """A random model whose next-token distribution is far from flat, so that an error shows in the ids."""
    values: dict[str, Any] = {
        "vocab_size": vocab_size,
        "d_model": 32,
        "n_layers": 2,
        "n_heads": 4,
        "n_kv_heads": 2,
        "head_dim": 8,
        "d_ff": 48,
        "context": CONTEXT,
    }
    model = init_weights(Transformer(ModelConfig(**{**values, **changes})), seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter *= std
    return model.eval()


class Scripted(nn.Module):
    """Says `script` after any prompt of `n_prompt` tokens, with certainty, whatever the sampling."""

    def __init__(self, script: list[int], vocab_size: int, n_prompt: int = 1) -> None:
        super().__init__()
        self.config = ModelConfig(vocab_size, 8, 1, 1, 1, 8, 8, context=n_prompt + len(script))
        self.embed = nn.Embedding(vocab_size, 8)
        self.script, self.n_prompt = script, n_prompt

    def forward(self, tokens: Tensor, *, positions: Tensor, cache: Any) -> Tensor:
        return positions[..., None].expand(*tokens.shape, 1).float()

    def logits(self, hidden: Tensor) -> Tensor:
        said = torch.tensor([self.script[int(p) - self.n_prompt + 1] for p in hidden[:, 0]])
        return 1000.0 * nn.functional.one_hot(said, self.config.vocab_size).float()
