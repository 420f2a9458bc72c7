"""Initial weights: GPT-2's scheme (Radford et al. 2019): N(0, 0.02), residual outputs scaled by 1/sqrt(2 layers)."""

from __future__ import annotations

import math

import torch
from torch import nn

from groundup.model.transformer import Transformer

STD = 0.02


@torch.no_grad()
def init_weights(model: Transformer, seed: int) -> Transformer:
    """Fill every parameter and buffer, from `seed` alone; works on a model that came from the meta device.

    The logits start with variance about d_model * 0.02^2, so the first loss is close to ln(vocabulary).
    """
    model.tie()  # to_empty() gives a tied head a storage of its own, which nothing would fill
    generator = torch.Generator(device="cpu").manual_seed(seed)
    residual = STD / math.sqrt(2 * model.config.n_layers)

    def normal(weight: torch.Tensor, std: float) -> None:
        weight.copy_(torch.randn(weight.shape, generator=generator) * std)

    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            normal(module.weight, STD)
        elif isinstance(module, nn.Linear):
            if module is model.head and model.config.tied:
                continue
            normal(module.weight, residual if name.endswith((".out", ".down")) else STD)
            if module.bias is not None:
                module.bias.zero_()
        elif hasattr(module, "eps"):
            module.weight.fill_(1.0)
            if getattr(module, "bias", None) is not None:
                module.bias.zero_()
    model.reset_buffers()
    return model
