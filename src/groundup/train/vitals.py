"""Vital signs of a run: what a loss curve does not show, measured on the real model at a few steps.

Numbers alone; what they must hold to is said in verify/checks/live.py. Nothing here draws a random number or changes a
weight, so a run that is looked at is bit for bit the run that is not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from groundup.model.attention import Attention
from groundup.model.batch import Batch
from groundup.model.transformer import Transformer

SAMPLE = 4096  # elements of each parameter that are compared before and after the step
ROWS, PLACES = 4, 512  # of a micro-batch: rows that are read once more, and places whose logits are looked at
QUERIES = 64  # of a row, whose attention is looked at


@dataclass
class Vitals:
    """What was seen at one step. Shares and ratios have no unit; entropy is a share of its most; losses are nats.

    scored_share         places of the step's micro-batches with a target, of all that are no padding
    gradient_by_layer    norm of each block's gradient, before the clip, divided as the step divides it
    update_ratio         parameter -> norm of the step's change over the norm of the weights, on a sample of elements
    dead_units           share of the feed-forward's hidden units, by layer, that no token of the sample makes active
    attention_entropy    by layer: mean entropy of a query's attention over the entropy of looking everywhere alike
    attention_score      by layer: largest |score| before the softmax
    logit_max            largest |logit|
    """

    stage: str
    step: int  # steps done
    steps: int
    row: dict[str, Any]  # the step's row of metrics
    facts: dict[str, Any] = field(default_factory=dict)  # what the stage knows besides: see stages/training.py
    history: list[dict[str, Any]] = field(default_factory=list)  # earlier looks: step, row and validation, flat
    scored_share: float = math.nan
    gradient_by_layer: list[float] = field(default_factory=list)
    update_ratio: dict[str, float] = field(default_factory=dict)
    dead_units: list[float] = field(default_factory=list)
    attention_entropy: list[float] = field(default_factory=list)
    attention_score: list[float] = field(default_factory=list)
    logit_max: float = math.nan

    def numbers(self) -> dict[str, float]:
        """A row for the log: the extremes, under names that TensorBoard groups."""
        found: dict[str, float] = {"vitals/scored_share": self.scored_share, "vitals/logit_max": self.logit_max}
        for name, values in (
            ("gradient_by_layer", self.gradient_by_layer),
            ("update_ratio", list(self.update_ratio.values())),
            ("dead_units", self.dead_units),
            ("attention_entropy", self.attention_entropy),
            ("attention_score", self.attention_score),
        ):
            if values:
                found |= {f"vitals/{name}_min": min(values), f"vitals/{name}_max": max(values)}
        return {name: value for name, value in found.items() if math.isfinite(value)}


class Probe:
    """Looks at one step: `before` when the gradients are there and nothing has moved, `after` when the step is done."""

    def __init__(self, model: Transformer) -> None:
        self.model = model
        self.gradients: list[float] = []
        self.samples: dict[str, Tensor] = {}

    def before(self, weight: int) -> None:
        """weight: what the step divides the summed gradients by."""
        for block in self.model.blocks:
            gradients = [p.grad for p in block.parameters() if p.grad is not None]
            self.gradients.append(float(torch.nn.utils.get_total_norm(gradients)) / weight if gradients else 0.0)
        self.samples = {name: _sample(p).clone() for name, p in self.model.named_parameters() if p.requires_grad}

    def after(self, vitals: Vitals, batch: Batch | None) -> Vitals:
        """Fill in what was seen. batch: one of the step's micro-batches, or None where it had none."""
        vitals.gradient_by_layer = self.gradients
        for name, parameter in self.model.named_parameters():
            if name in self.samples and float(self.samples[name].norm()) > 0:
                change = (_sample(parameter) - self.samples[name]).norm() / self.samples[name].norm()
                vitals.update_ratio[name] = float(change)
        if batch is not None:
            _look(self.model, batch, vitals)
        return vitals


def _sample(parameter: nn.Parameter) -> Tensor:
    """Elements spread evenly over a parameter, in fp32."""
    flat = parameter.detach().flatten()
    return flat[:: max(1, len(flat) // SAMPLE)].float()


@torch.no_grad()
def _look(model: Transformer, batch: Batch, vitals: Vitals) -> None:
    """One more forward pass over a few rows, with an eye on hidden units, scores and logits."""
    rows = min(ROWS, batch.rows)
    tokens, documents, positions = batch.tokens[:rows], batch.documents[:rows], batch.positions[:rows]
    was = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.compiler.set_stance("force_eager"), _watched(model, vitals):
            hidden = model(tokens, documents=documents, positions=positions)
        vitals.logit_max = float(model.logits(hidden.flatten(0, 1)[:PLACES]).abs().max())
    finally:
        for module, training in was:
            module.training = training


@contextmanager
def _watched(model: Transformer, vitals: Vitals) -> Iterator[None]:
    hooks = []
    for block in model.blocks:
        down = getattr(block.mlp, "down", None)
        if isinstance(down, nn.Linear):  # experts hold their matrices in stacks: a dead one shows in expert_load
            hooks.append(down.register_forward_pre_hook(lambda _, given: vitals.dead_units.append(_dead(given[0]))))
        if isinstance(block.attention, Attention):
            hooks.append(block.attention.register_forward_pre_hook(lambda m, given: _attention(m, given, vitals)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _dead(hidden: Tensor) -> float:
    """Share of the units (last axis) that stay below 2^-24 of the largest activation for every token."""
    largest = hidden.abs().flatten(0, -2).amax(0)
    return float((largest <= float(largest.max()) * 2.0**-24).float().mean())


def _attention(module: Attention, given: tuple[Any, ...], vitals: Vitals) -> None:
    """Entropy and largest score of the last queries of the first row."""
    x, angles, mask = given[0][:1], given[1], given[2]
    angles = angles[:, :1] if angles is not None else None
    q, k, _ = module.project(x, angles)
    group = q.shape[2] // k.shape[2]
    q, k = q.transpose(1, 2).float(), k.transpose(1, 2).repeat_interleave(group, 1).float()
    t = q.shape[2]
    last = slice(max(0, t - QUERIES), t)
    scores = q[:, :, last] @ k.mT * module.scale
    if module.config.attention_softcap:
        scores = module.config.attention_softcap * torch.tanh(scores / module.config.attention_softcap)
    seen = torch.ones(t, t, dtype=torch.bool, device=q.device).tril()[last]
    if mask is not None and mask.dtype == torch.bool:
        seen = mask[:1, :, last].expand_as(scores)
    elif mask is not None:
        scores = scores + mask[:1, :, last]
        seen = scores > -torch.inf
    seen = seen.expand_as(scores)
    weights = torch.softmax(scores.masked_fill(~seen, -torch.inf), -1)
    entropy = -(weights * weights.clamp_min(1e-30).log()).sum(-1)
    choices = seen.sum(-1)
    several = choices > 1
    if bool(several.any()):
        vitals.attention_entropy.append(float((entropy[several] / choices[several].float().log()).mean()))
    vitals.attention_score.append(float(scores.masked_fill(~seen, 0).abs().max()))
