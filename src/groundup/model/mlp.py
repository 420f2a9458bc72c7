"""Feed-forward: SwiGLU (Shazeer 2020, arXiv 2002.05202) or GELU with the tanh approximation (GPT-2)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from groundup.model.attention import PackedLinear
from groundup.model.config import ModelConfig


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x))"""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_up = PackedLinear(config.d_model, (config.d_ff, config.d_ff), bias=config.bias)
        self.down = nn.Linear(config.d_ff, config.d_model, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).split(self.gate_up.sizes, dim=-1)
        return self.down(F.silu(gate) * up)


class GELU(nn.Module):
    """down(gelu(up(x)))"""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.d_model, config.d_ff, bias=config.bias)
        self.down = nn.Linear(config.d_ff, config.d_model, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))


def make_mlp(config: ModelConfig) -> nn.Module:
    return SwiGLU(config) if config.mlp == "swiglu" else GELU(config)
