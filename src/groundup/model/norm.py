"""Normalisation: RMSNorm (Zhang & Sennrich 2019, arXiv 1910.07467) and LayerNorm (Ba et al. 2016, 1607.06450)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groundup.model.config import ModelConfig


class Norm(nn.Module):
    """A norm over the last dimension, in fp32. Without a weight it has no parameters.

    `offset` multiplies by 1 + weight (Gemma): weight decay then pulls towards the identity, not towards 0.
    """

    def __init__(self, size: int, eps: float, *, weight: bool = True, offset: bool = False, bias: bool = False) -> None:
        super().__init__()
        self.size, self.eps, self.offset = (size,), eps, offset
        self.weight = nn.Parameter(torch.zeros(size) if offset else torch.ones(size)) if weight else None
        self.bias = nn.Parameter(torch.zeros(size)) if bias else None

    def scale(self) -> Tensor | None:
        """What the normalised numbers are multiplied by, fp32."""
        if self.weight is None:
            return None
        return 1.0 + self.weight.float() if self.offset else self.weight.float()


class RMSNorm(Norm):
    """x / sqrt(mean(x^2) + eps) * weight"""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.size, self.scale(), self.eps).type_as(x)


class LayerNorm(Norm):
    """(x - mean) / sqrt(var + eps) * weight [+ bias]"""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.float()
        return F.layer_norm(x.float(), self.size, self.scale(), bias, self.eps).type_as(x)


def make_norm(config: ModelConfig, size: int | None = None) -> nn.Module:
    """The config's norm over `size` numbers (default: the residual stream)."""
    size = size or config.d_model
    if config.norm == "rmsnorm":
        return RMSNorm(size, config.norm_eps, weight=config.norm_weight, offset=config.norm_offset)
    bias = "norm" in config.bias
    return LayerNorm(size, config.norm_eps, weight=config.norm_weight, offset=config.norm_offset, bias=bias)
