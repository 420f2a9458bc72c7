"""Cross-entropy as a SUM and a count: the loop divides once, over every micro-batch and rank."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from groundup.model.transformer import Transformer

IGNORE = -100


def cross_entropy_sum(model: Transformer, hidden: Tensor, targets: Tensor) -> tuple[Tensor, int]:
    """hidden (B, T, D), targets (B, T) with -100 = not scored -> (sum of negative log-likelihoods in nats, n).

    The logits are computed for scored positions only, and the mask of the sum is the mask of the count.
    """
    scored = targets != IGNORE
    n = int(scored.sum())
    if n < targets.numel():
        hidden, targets = hidden[scored], targets[scored]
    logits = model.logits(hidden.reshape(-1, hidden.shape[-1]))
    return F.cross_entropy(logits, targets.reshape(-1), reduction="sum"), n


def token_logprobs(model: Transformer, hidden: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """log p(target) at each position, (B, T) fp32; 0 where the target is -100."""
    scored = targets != IGNORE
    logits = model.logits(hidden[scored]) / temperature
    values = -F.cross_entropy(logits, targets[scored], reduction="none")
    return torch.zeros(targets.shape, dtype=values.dtype, device=values.device).masked_scatter(scored, values)
