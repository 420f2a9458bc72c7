"""Feed-forward layers: gated (Shazeer 2020, arXiv 2002.05202) or plain, with the activation chosen by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from groundup.model.config import ModelConfig
from groundup.model.linear import Linear, PackedLinear


def relu_squared(x: Tensor) -> Tensor:
    """So et al. 2021, Primer, arXiv 2109.08668."""
    return F.relu(x).square()


gelu_tanh = partial(F.gelu, approximate="tanh")  # GPT-2's and Gemma's; off from the exact one by up to 5e-4

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "swiglu": F.silu,
    "geglu": F.gelu,
    "geglu_tanh": gelu_tanh,
    "gelu": F.gelu,
    "gelu_tanh": gelu_tanh,
    "relu": F.relu,
    "relu2": relu_squared,
}


class GatedMLP(nn.Module):
    """down(activation(gate(x)) * up(x))"""

    def __init__(self, config: ModelConfig, hidden: int) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.mlp]
        self.gate_up = PackedLinear(config.d_model, (hidden, hidden), bias="up" in config.bias)
        self.down = Linear(hidden, config.d_model, bias="down" in config.bias)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).split(self.gate_up.sizes, dim=-1)
        return self.down(self.activation(gate) * up)


class PlainMLP(nn.Module):
    """down(activation(up(x)))"""

    def __init__(self, config: ModelConfig, hidden: int) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.mlp]
        self.up = Linear(config.d_model, hidden, bias="up" in config.bias)
        self.down = Linear(hidden, config.d_model, bias="down" in config.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))


def make_mlp(config: ModelConfig, hidden: int) -> nn.Module:
    return GatedMLP(config, hidden) if config.gated else PlainMLP(config, hidden)
