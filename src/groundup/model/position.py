"""Rotary position embedding (RoFormer, Su et al. 2021, arXiv 2104.09864), in the half-split layout of Llama."""

from __future__ import annotations

import torch
from torch import Tensor


def rope_table(context: int, head_dim: int, base: float, device: torch.device | None = None) -> Tensor:
    """Angles as (2, context, head_dim) fp32: cos and sin, each half repeated twice.

    Kept in fp32: bf16 angles past position 256 are off by whole radians' fractions, a bug that stays silent.
    """
    rate = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim)
    angle = torch.outer(torch.arange(context, dtype=torch.float32, device=device), rate)
    angle = torch.cat([angle, angle], dim=-1)
    return torch.stack([angle.cos(), angle.sin()])


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate (B, T, H, head_dim) by (B or 1, T, 1, head_dim) angles; the scores then depend on distance alone."""
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    return (x * cos + turned * sin).type_as(x)
