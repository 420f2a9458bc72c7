"""A layer: attention and feed-forward on the residual stream, and where the norms stand around them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from groundup.model.attention import Attention, Cache
from groundup.model.config import ModelConfig
from groundup.model.latent import LatentAttention
from groundup.model.mlp import make_mlp
from groundup.model.moe import ExpertMLP
from groundup.model.norm import make_norm

if TYPE_CHECKING:
    from groundup.model.flex import Mask


class Block(nn.Module):
    """Pre-norm (GPT-2, Llama): x + attention(norm(x)), then x + mlp(norm(x)). Its siblings below differ in forward."""

    norms: tuple[str, ...] = ("norm1", "norm2")
    norm1: nn.Module
    norm1_out: nn.Module
    norm2: nn.Module
    norm2_out: nn.Module

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        for name in self.norms:
            self.add_module(name, make_norm(config))
        self.attention = LatentAttention(config, layer) if config.latent else Attention(config, layer)
        self.mlp = ExpertMLP(config) if config.has_experts(layer) else make_mlp(config, config.d_ff)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, angles: Tensor | None, mask: Mask, positions: Tensor, cache: Cache | None) -> Tensor:
        """x (B, T, D) -> (B, T, D); the rest as in `Attention.forward`."""
        x = x + self.dropout(self.attention(self.norm1(x), angles, mask, positions, cache))
        return x + self.dropout(self.mlp(self.norm2(x)))


class PostNorm(Block):
    """norm(x + f(x)): the first Transformer (Vaswani et al. 2017) and GPT-1. No norm follows the last layer."""

    def forward(self, x: Tensor, angles: Tensor | None, mask: Mask, positions: Tensor, cache: Cache | None) -> Tensor:
        x = self.norm1(x + self.dropout(self.attention(x, angles, mask, positions, cache)))
        return self.norm2(x + self.dropout(self.mlp(x)))


class OutputNorm(Block):
    """x + norm(f(x)): OLMo 2 (arXiv 2501.00656)."""

    norms = ("norm1_out", "norm2_out")

    def forward(self, x: Tensor, angles: Tensor | None, mask: Mask, positions: Tensor, cache: Cache | None) -> Tensor:
        x = x + self.dropout(self.norm1_out(self.attention(x, angles, mask, positions, cache)))
        return x + self.dropout(self.norm2_out(self.mlp(x)))


class SandwichNorm(Block):
    """x + norm(f(norm(x))): Gemma 2 and 3 (arXiv 2408.00118)."""

    norms = ("norm1", "norm1_out", "norm2", "norm2_out")

    def forward(self, x: Tensor, angles: Tensor | None, mask: Mask, positions: Tensor, cache: Cache | None) -> Tensor:
        x = x + self.dropout(self.norm1_out(self.attention(self.norm1(x), angles, mask, positions, cache)))
        return x + self.dropout(self.norm2_out(self.mlp(self.norm2(x))))


class Parallel(Block):
    """x + attention(norm1(x)) + mlp(norm2(x)): GPT-NeoX (arXiv 2204.06745)."""

    def forward(self, x: Tensor, angles: Tensor | None, mask: Mask, positions: Tensor, cache: Cache | None) -> Tensor:
        attention = self.attention(self.norm1(x), angles, mask, positions, cache)
        return x + self.dropout(attention + self.mlp(self.norm2(x)))


class ParallelShared(Block):
    """x + attention(n) + mlp(n) with one n = norm(x): GPT-J, PaLM (arXiv 2204.02311), Phi-2."""

    norms = ("norm1",)

    def forward(self, x: Tensor, angles: Tensor | None, mask: Mask, positions: Tensor, cache: Cache | None) -> Tensor:
        n = self.norm1(x)
        return x + self.dropout(self.attention(n, angles, mask, positions, cache) + self.mlp(n))


BLOCKS: dict[str, type[Block]] = {
    "pre": Block,
    "post": PostNorm,
    "output": OutputNorm,
    "sandwich": SandwichNorm,
    "parallel": Parallel,
    "parallel_shared": ParallelShared,
}
