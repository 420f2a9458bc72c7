"""Initial weights. Whatever the scheme, what writes into the residual stream is scaled down with the depth.

gpt2    N(0, std^2), std 0.02; residual outputs divided by sqrt(2 layers)  (Radford et al. 2019, section 2.3)
depth   the same, but by sqrt(2 (layer + 1)): layers further up write less  (cf. OLMo, arXiv 2402.00838)
xavier  N(0, 2 / (fan_in + fan_out))  (Glorot & Bengio 2010); residual outputs as in gpt2
he      N(0, 2 / fan_in)  (He et al. 2015, arXiv 1502.01852); residual outputs as in gpt2
mup     as gpt2 with std^2 divided by width / mup_width in the blocks' matrices; logits are divided by that too, and
        `train/optim.py` divides the matrices' Adam rate by it (Yang et al. 2022, arXiv 2203.03466, table 8). Rates
        tuned at mup_width then serve every width. Keep head_dim: it is the number of heads that should grow.
Embeddings are N(0, std^2) in all of them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from groundup.model.config import ModelConfig
from groundup.model.linear import PackedLinear
from groundup.model.moe import ExpertMLP
from groundup.model.norm import Norm
from groundup.model.transformer import Transformer

RESIDUAL = (".out", ".down")  # names of the projections that write into the residual stream


@torch.no_grad()
def init_weights(model: Transformer, seed: int) -> Transformer:
    """Fill every parameter and buffer, from `seed` alone; works on a model that came from the meta device.

    With gpt2 the logits start with variance about d_model * 0.02^2, so the first loss is close to ln(vocabulary).
    """
    model.tie()  # to_empty() gives a tied head a storage of its own, which nothing would fill
    config = model.config
    generator = torch.Generator(device="cpu").manual_seed(seed)

    def draw(weight: Tensor, std: float) -> None:
        weight.copy_(torch.randn(weight.shape, generator=generator) * std)

    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            draw(module.weight, config.init_std)
        elif isinstance(module, nn.Linear):
            if module is not model.head:
                sizes = module.sizes if isinstance(module, PackedLinear) else (module.out_features,)
                noise = torch.randn(module.weight.shape, generator=generator)
                for piece, part in zip(module.weight.split(sizes), noise.split(sizes), strict=True):
                    piece.copy_(part * matrix_std(config, name, piece))
            elif not config.tied:
                draw(module.weight, config.init_std)
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, ExpertMLP):
            for inner, stack in module.named_parameters(recurse=False):
                for expert in stack:
                    for piece in expert.chunk(2) if inner == "gate_up" else [expert]:
                        draw(piece, matrix_std(config, f"{name}.{inner}", piece))
            if config.moe is not None and config.moe.balance == "bias":
                module.balance_bias.zero_()
        elif isinstance(module, Norm):
            if module.weight is not None:
                module.weight.fill_(0.0 if module.offset else 1.0)
            if module.bias is not None:
                module.bias.zero_()
        elif getattr(module, "sinks", None) is not None:
            module.sinks.zero_()  # type: ignore[union-attr,operator]
    model.reset_buffers()
    return model


def matrix_std(config: ModelConfig, name: str, weight: Tensor) -> float:
    """Standard deviation of one matrix (out, in) inside the blocks, by its place and the config's scheme."""
    fan_out, fan_in = weight.shape
    std = {
        "xavier": math.sqrt(2 / (fan_in + fan_out)),
        "he": math.sqrt(2 / fan_in),
        "mup": config.init_std * math.sqrt(config.mup_width / config.d_model),
    }.get(config.init, config.init_std)
    if not name.endswith(RESIDUAL):
        return std
    if config.zero_out:
        return 0.0
    layer = int(name.split(".")[1])
    return std / math.sqrt(2 * (layer + 1 if config.init == "depth" else config.n_layers))
