"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1): the cache holds a small vector a token."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from groundup.model.attention import Cache, attend
from groundup.model.config import ModelConfig
from groundup.model.linear import Linear, PackedLinear
from groundup.model.norm import make_norm
from groundup.model.position import rotate

if TYPE_CHECKING:
    from groundup.model.flex import Mask


class LatentAttention(nn.Module):
    """Keys and values of all heads are projections of one latent of `kv_rank` numbers; one rotated key serves all."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        assert config.latent is not None
        self.config, self.layer, self.latent = config, layer, config.latent
        d, h, m = config.d_model, config.n_heads, config.latent
        if m.q_rank:
            self.q_down = Linear(d, m.q_rank, bias=False)
            self.q_norm = make_norm(config, m.q_rank)
            self.q_up = Linear(m.q_rank, h * config.qk_dim, bias=False)
        else:
            self.q = Linear(d, h * config.qk_dim, bias=False)
        self.kv_down = PackedLinear(d, (m.kv_rank, m.rope_dim), bias=False)
        self.kv_norm = make_norm(config, m.kv_rank)
        self.kv_up = Linear(m.kv_rank, h * (m.nope_dim + m.v_dim), bias=False)
        self.out = Linear(h * m.v_dim, d, bias="out" in config.bias)
        self.sinks = nn.Parameter(torch.zeros(h)) if config.sinks else None
        self.scale = (config.score_dim or config.qk_dim) ** -0.5

    def forward(self, x: Tensor, angles: Tensor | None, mask: Mask, positions: Tensor, cache: Cache | None) -> Tensor:
        """x (B, T, D); angles (2, B or 1, T, 1, rope_dim) or None (a layer without position); mask as in `attend`."""
        b, t, _ = x.shape
        h, m = self.config.n_heads, self.latent
        q = self.q_up(self.q_norm(self.q_down(x))) if m.q_rank else self.q(x)
        q, q_rotated = q.view(b, t, h, -1).split((m.nope_dim, m.rope_dim), dim=-1)
        latent, k_rotated = self.kv_down(x).split(self.kv_down.sizes, dim=-1)
        latent, k_rotated = self.kv_norm(latent)[:, :, None], k_rotated[:, :, None]  # one "head"
        if angles is not None:
            q_rotated, k_rotated = (rotate(part, angles[0], angles[1]) for part in (q_rotated, k_rotated))
        if cache is not None and isinstance(mask, Tensor):
            y = self.from_cache(q, q_rotated, torch.cat([latent, k_rotated], dim=-1), mask, positions, cache)
        else:
            k, v = self.kv_up(latent).view(b, t, h, -1).split((m.nope_dim, m.v_dim), dim=-1)
            q, k = torch.cat([q, q_rotated], dim=-1), torch.cat([k, k_rotated.expand(-1, -1, h, -1)], dim=-1)
            y = self.attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask, cached=False)
        return self.out(y.reshape(b, t, -1))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask, cached: bool = True) -> Tensor:
        softcap = self.config.attention_softcap
        return attend(q, k.type_as(q), v.type_as(q), mask, self.scale, softcap, self.sinks, cached=cached)

    def from_cache(
        self, q: Tensor, q_rotated: Tensor, stored: Tensor, mask: Tensor, positions: Tensor, cache: Cache
    ) -> Tensor:
        """Attention over the latents themselves: multi-query attention with one key of kv_rank + rope_dim.

        (W_k c) . q = c . (W_k^T q), so the up-projection moves to the query, and that of the values behind the sum.
        stored (B, T, 1, kv_rank + rope_dim) -> (B, T, H, v_dim)
        """
        h, m = self.config.n_heads, self.latent
        k, _ = cache.update(self.layer, stored, stored[..., :0], positions, mask.shape[-1])
        up_k, up_v = self.kv_up.weight.type_as(q).view(h, -1, m.kv_rank).split((m.nope_dim, m.v_dim), dim=1)
        q = torch.cat([torch.einsum("bthn,hnr->bthr", q, up_k), q_rotated], dim=-1)
        y = self.attend(q.transpose(1, 2), k, k[..., : m.kv_rank], mask)
        return torch.einsum("bthr,hvr->bthv", y, up_v)
