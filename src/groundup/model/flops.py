"""Floating-point operations of training, counted from the shape."""

from __future__ import annotations

from groundup.model.config import ModelConfig
from groundup.model.count import count


def train_flops_per_token(config: ModelConfig, context: int | None = None) -> float:
    """6 N + 12 L H hd T: forward and backward of one token in a sequence of length T = `context`.

    N counts the matmul weights: all parameters without the input embeddings (a lookup), with the head even when
    tied. The attention term is PaLM's (Chowdhery et al. 2022, arXiv 2204.02311, appendix B), halved nowhere: a
    causal kernel may skip half, a masked one does not, so MFU is comparable across both.
    """
    t = context or config.context
    counted = count(config)
    matmul = counted["attention"] + counted["mlp"] + config.vocab_size * config.d_model
    return 6.0 * matmul + 12.0 * config.n_layers * config.n_heads * config.head_dim * t
