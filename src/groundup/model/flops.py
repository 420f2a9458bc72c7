"""Floating-point operations of training, counted from the shape."""

from __future__ import annotations

from groundup.model.config import ModelConfig
from groundup.model.count import count


def train_flops_per_token(config: ModelConfig, context: int | None = None) -> float:
    """6 N + 6 L H (d_qk + d_v) S: forward and backward of one token in a sequence of length T = `context`.

    N counts the matmul weights a token uses: all active parameters without the input embeddings (a lookup), with the
    head even when tied. The attention term is PaLM's (Chowdhery et al. 2022, arXiv 2204.02311, appendix B) with S = T,
    or the window in a windowed layer; halved nowhere: a causal kernel may skip half, a masked one does not, so MFU
    is comparable across both.
    """
    t = context or config.context
    counted = count(config)
    idle = counted["total"] - counted["active"]
    matmul = counted["attention"] + counted["mlp"] - idle + config.vocab_size * config.d_model
    seen = sum(min(t, config.window) if config.is_local(layer) else t for layer in range(config.n_layers))
    return 6.0 * matmul + 6.0 * config.n_heads * (config.qk_dim + config.v_dim) * seen
