"""Causal self-attention with grouped queries (GQA, arXiv 2305.13245) and optional QK-norm (Qwen3)."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groundup.model.config import ModelConfig
from groundup.model.norm import RMSNorm
from groundup.model.position import rotate


class Cache(Protocol):
    """What decoding keeps between steps; `infer.cache.KVCache` is the implementation. Slot index = position."""

    def slots(self, positions: Tensor) -> int:
        """Number of slots S that queries at these positions (B or 1, T) can see."""
        ...

    def update(self, layer: int, k: Tensor, v: Tensor, positions: Tensor, slots: int) -> tuple[Tensor, Tensor]:
        """Write k, v (B, T, KV, hd) at `positions` (B or 1, T); return the first S slots, (B, KV, S, hd) each."""
        ...


class PackedLinear(nn.Linear):
    """Several projections of one input in one matmul. `sizes` keeps their seams, for export, Muon and LoRA."""

    def __init__(self, d_in: int, sizes: tuple[int, ...], bias: bool) -> None:
        super().__init__(d_in, sum(sizes), bias=bias)
        self.sizes = sizes


def attention_mask(documents: Tensor | None, positions: Tensor, cache: Cache | None) -> Tensor | None:
    """Who may see whom: (B, 1, T, S) bool, True = visible; None means plain causal.

    Packed documents: the same document and not later. Restarting positions alone would not separate them.
    Cache: slot s holds position s, so a query at position p sees slots <= p. What lies beyond (padding of a
    ragged batch, or an earlier, longer request) is invisible.
    """
    if cache is not None:
        slots = torch.arange(cache.slots(positions), device=positions.device)
        return (slots[None, None, :] <= positions[:, :, None])[:, None]
    if documents is None:
        return None
    t = documents.shape[1]
    causal = torch.ones(t, t, dtype=torch.bool, device=documents.device).tril()
    return ((documents[:, :, None] == documents[:, None, :]) & causal)[:, None]


class Attention(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        h, kv, hd = config.n_heads, config.n_kv_heads, config.head_dim
        self.qkv = PackedLinear(config.d_model, (h * hd, kv * hd, kv * hd), bias=config.bias)
        self.out = nn.Linear(h * hd, config.d_model, bias=config.bias)
        self.q_norm = RMSNorm(hd, config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(hd, config.norm_eps) if config.qk_norm else None

    def forward(
        self, x: Tensor, angles: Tensor | None, mask: Tensor | None, positions: Tensor, cache: Cache | None
    ) -> Tensor:
        """x (B, T, D); angles (2, B or 1, T, 1, hd) or None; mask (B, 1, T, S) bool or None = causal."""
        b, t, _ = x.shape
        hd = self.config.head_dim
        q, k, v = self.qkv(x).split(self.qkv.sizes, dim=-1)
        q, k, v = (part.view(b, t, -1, hd) for part in (q, k, v))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if angles is not None:
            q, k = rotate(q, angles[0], angles[1]), rotate(k, angles[0], angles[1])
        if cache is not None and mask is not None:
            k, v = cache.update(self.layer, k, v, positions, mask.shape[-1])
        else:
            k, v = k.transpose(1, 2), v.transpose(1, 2)
        q, k, v = q.transpose(1, 2), k.type_as(q), v.type_as(q)  # heads first: (B, heads, T or S, hd)
        group = self.config.n_heads // self.config.n_kv_heads
        if group > 1 and t == 1:
            # One new token: the queries that share a head stand as rows of one matmul, and nothing is repeated.
            q = q.reshape(b, self.config.n_kv_heads, group, hd)
        elif group > 1:
            k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None and t > 1)
        if t > 1:
            y = y.transpose(1, 2)
        return self.out(y.reshape(b, t, -1))
