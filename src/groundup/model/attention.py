"""Causal self-attention: any number of key/value heads (GQA, arXiv 2305.13245), windows, QK-norm, caps and sinks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groundup.model.config import ModelConfig
from groundup.model.flex import flex, separate
from groundup.model.linear import Linear, PackedLinear
from groundup.model.native import attention as native
from groundup.model.norm import make_norm
from groundup.model.position import rotate

if TYPE_CHECKING:
    from groundup.model.flex import Mask

KERNELS: set[str] = set()  # what computed attention where gradients were wanted, since a training run began


class Cache(Protocol):
    """What decoding keeps between steps; `infer.cache.KVCache` is the implementation. Slot index = position."""

    def slots(self, positions: Tensor) -> int:
        """Number of slots S that queries at these positions (B or 1, T) can see."""
        ...

    def update(self, layer: int, k: Tensor, v: Tensor, positions: Tensor, slots: int) -> tuple[Tensor, Tensor]:
        """Write k, v (B, T, KV, hd) at `positions` (B or 1, T); return the first S slots, (B, KV, S, hd) each."""
        ...


def attention_mask(documents: Tensor | None, positions: Tensor, cache: Cache | None, window: int = 0) -> Tensor | None:
    """Who may see whom: (B or 1, 1, T, S) bool, True = visible; None means plain causal.

    Packed documents: the same document and not later. Restarting positions alone would not separate them.
    On CUDA rows of one document each need no mask, so None; in blocks see `model.flex`.
    Cache: slot s holds position s, so a query at position p sees slots <= p. What lies beyond (padding of a
    ragged batch, or an earlier, longer request) is invisible.
    window: a query at p sees p - window + 1 to p; 0 = all.
    """
    if cache is not None:
        slots = torch.arange(cache.slots(positions), device=positions.device)
        back = positions[:, :, None] - slots[None, None, :]
        seen = back >= 0
        return (seen & (back < window) if window else seen)[:, None]
    t = positions.shape[1]
    if documents is not None and documents.is_cuda and not separate(documents):
        documents = None  # flash attention takes causal rows, and no mask of any kind
    if documents is None and not 0 < window < t:
        return None
    causal = torch.ones(t, t, dtype=torch.bool, device=positions.device).tril()
    if window:
        causal = causal.triu(1 - window)  # places in the row: in one document they are as far apart as positions
    if documents is None:
        return causal[None, None]
    return ((documents[:, :, None] == documents[:, None, :]) & causal)[:, None]


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Mask,
    scale: float,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    cached: bool = True,
) -> Tensor:
    """q (B, H, T, d), k (B, KV, S, d), v (B, KV, S, dv) -> (B, T, H, dv).

    mask: bool or numbers to add, (B or 1, H or 1, T, S); in blocks, which FlexAttention takes; None = causal.
    sinks (H,): scores without a value.
    cached: False = the keys are those of the queries' own rows, which a kernel of our own may serve.
    """
    if mask is not None and not isinstance(mask, Tensor):
        _note("flex")
        return flex(q, k, v, mask, scale, softcap).transpose(1, 2)
    if not cached and not softcap and sinks is None and native.serves(q, k, v, mask):
        _note("native")
        return native.attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask, scale)[0]
    b, h, t, _ = q.shape
    kv = k.shape[1]
    group = h // kv
    if sinks is not None:
        sinks = sinks[:, None]
    if group > 1 and t == 1:
        # One new token: the queries that share a head stand as rows of one matmul, and nothing is repeated.
        q = q.reshape(b, kv, group, -1)
        if mask is not None and mask.shape[1] > 1:
            mask = mask.reshape(mask.shape[0], kv, group, -1)
        if sinks is not None:
            sinks = sinks.view(kv, group)
    elif group > 1:
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.type_as(q)
    if softcap or sinks is not None:
        _note("explicit")
        y = explicit_attention(q, k, v, mask, scale, softcap, sinks)
    else:
        _note("torch sdpa, causal" if mask is None else "torch sdpa, masked")
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None and t > 1, scale=scale)
    return y.reshape(b, 1, h, -1) if t == 1 else y.transpose(1, 2)


def _note(kernel: str) -> None:
    if torch.is_grad_enabled():
        _remember(kernel)


@torch.compiler.assume_constant_result
def _remember(kernel: str) -> bool:
    """In what is compiled this runs once, when it is traced: which kernel is then fixed."""
    KERNELS.add(kernel)
    return True


def explicit_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, softcap: float, sinks: Tensor | None
) -> Tensor:
    """What no fused kernel computes: tanh-capped scores (Gemma 2, arXiv 2408.00118) and attention sinks (gpt-oss).

    A sink is one more score in the softmax whose value is 0: a head may then attend to nothing.
    sinks (H, 1), or (KV, group) where queries of a group are rows.
    """
    scores = (q @ k.mT).float() * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    t, s = scores.shape[-2:]
    if mask is None and t > 1:
        mask = torch.ones(t, s, dtype=torch.bool, device=q.device).tril()
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, -torch.inf)
    elif mask is not None:
        scores = scores + mask
    if sinks is None:
        return torch.softmax(scores, dim=-1).type_as(v) @ v
    sink = sinks.float()[None, :, :, None].expand(*scores.shape[:3], 1)
    return torch.softmax(torch.cat([scores, sink], dim=-1), dim=-1)[..., :-1].type_as(v) @ v


class Attention(nn.Module):
    """Multi-head, grouped-query or multi-query attention, by the number of key/value heads."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        h, kv, hd = config.n_heads, config.n_kv_heads, config.head_dim
        self.qkv = PackedLinear(config.d_model, (h * hd, kv * hd, kv * hd), bias="qkv" in config.bias)
        self.out = Linear(h * hd, config.d_model, bias="out" in config.bias)
        # "full" normalises all heads of a token together, before they are told apart (OLMo 2)
        sizes = {"head": (hd, hd), "full": (h * hd, kv * hd)}.get(config.qk_norm)
        self.q_norm = make_norm(config, sizes[0]) if sizes else None
        self.k_norm = make_norm(config, sizes[1]) if sizes else None
        self.sinks = nn.Parameter(torch.zeros(h)) if config.sinks else None
        self.scale = (config.score_dim or hd) ** -0.5

    def forward(self, x: Tensor, angles: Tensor | None, mask: Mask, positions: Tensor, cache: Cache | None) -> Tensor:
        """x (B, T, D); angles (2, B or 1, T, 1, rope_dim) or None; mask as in `attend`."""
        b, t, _ = x.shape
        q, k, v = self.project(x, angles)
        if cache is not None and mask is not None:
            k, v = cache.update(self.layer, k, v, positions, mask.shape[-1])
        else:
            k, v = k.transpose(1, 2), v.transpose(1, 2)
        q, k, v = q.transpose(1, 2), k.type_as(q), v.type_as(q)
        y = attend(q, k, v, mask, self.scale, self.config.attention_softcap, self.sinks, cached=cache is not None)
        return self.out(y.reshape(b, t, -1))

    def project(self, x: Tensor, angles: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, T, D) -> queries (B, T, H, hd), keys and values (B, T, KV, hd), normalised and rotated."""
        b, t, _ = x.shape
        q, k, v = self.qkv(x).split(self.qkv.sizes, dim=-1)
        if self.config.qk_norm == "full":
            q, k = self.q_norm(q), self.k_norm(k)  # type: ignore[misc]
        q, k, v = (part.view(b, t, -1, self.config.head_dim) for part in (q, k, v))
        if self.config.qk_norm == "head":
            q, k = self.q_norm(q), self.k_norm(k)  # type: ignore[misc]
        if angles is not None:
            q, k = rotate(q, angles[0], angles[1]), rotate(k, angles[0], angles[1])
        return q, k, v
