"""Faults of a run that is training, planted in the code that trains, and seen in its vital signs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from groundup.data import load
from groundup.model import init, mlp
from groundup.model.attention import Attention
from groundup.model.batch import IGNORE, Batch
from groundup.model.block import Block
from groundup.model.transformer import Transformer
from groundup.plan.laws import BESIROGLU
from groundup.train import optim
from groundup.train.optim import Optimizers
from groundup.tune import dpo, grpo
from groundup.verify import trained
from groundup.verify.fault import fault, swapped

_cut, _roles, _step, _project = load.cut, optim.roles, Optimizers.step, Attention.project
_forward, _logits, _init, _answer = Transformer.forward, Transformer.logits, init.init_weights, dpo.answer_logprobs


@fault("masks-leave-one-in-two-thousand", "live-tokens-are-scored", on=partial(trained.pretraining, batch=64))
def masks_leave_one_in_two_thousand() -> Iterator[None]:
    """A mask meant for prompts covers nearly everything: the loss falls, on one token in two thousand."""

    def wrong(*given: Any) -> Batch:
        batch = _cut(*given)
        place = torch.arange(batch.targets.numel()).view_as(batch.targets)
        return replace(batch, targets=torch.where(place % 2048 == 0, batch.targets, IGNORE))

    with swapped(load, cut=wrong):
        yield


@fault("layer-detached", "live-every-layer-gets-gradient", on=trained.pretraining)
def layer_detached() -> Iterator[None]:
    """What the second layer adds to the stream is detached: it is used, and never learns."""
    right = Block.forward

    def wrong(self: Block, x: Tensor, *rest: Any) -> Tensor:
        out = right(self, x, *rest)
        return x + (out - x).detach() if self.attention.layer == 1 else out

    with swapped(Block, forward=wrong):
        yield


@fault("norm-in-no-optimizer", "live-updates-are-felt", on=partial(trained.pretraining, look=1))
def norm_in_no_optimizer() -> Iterator[None]:
    """The last norm is in no group of any optimizer."""

    def wrong(model: Transformer) -> Any:
        return {role: [(n, p) for n, p in named if n != "norm.weight"] for role, named in _roles(model).items()}

    with swapped(optim, roles=wrong):
        yield


@fault("rate-ten-thousandfold", "live-updates-are-felt", on=partial(trained.pretraining, look=1))
def rate_ten_thousandfold() -> Iterator[None]:
    """The rate was given in other units: each step replaces the weights."""
    with swapped(Optimizers, step=lambda self, share: _step(self, 1e4 * share)):
        yield


@fault(
    "feed-forward-dies",
    "live-units-are-alive",
    on=partial(trained.pretraining, model={"mlp": "relu", "bias": ["up", "down"]}),
)
def feed_forward_dies() -> Iterator[None]:
    """A bias far below zero in front of every ReLU: no unit of any layer is ever active."""
    relu = mlp.ACTIVATIONS["relu"]
    with swapped(mlp, ACTIVATIONS={**mlp.ACTIVATIONS, "relu": lambda x: relu(x - 1e3)}):
        yield


@fault("queries-are-zero", "live-attention-attends", on=trained.pretraining)
def queries_are_zero() -> Iterator[None]:
    """Queries of one layer are zero: it averages over all keys alike."""

    def wrong(self: Attention, x: Tensor, angles: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = _project(self, x, angles)
        return (0 * q if self.layer == 1 else q), k, v

    with swapped(Attention, project=wrong):
        yield


@fault("attention-collapses", "live-attention-attends", on=trained.pretraining)
def attention_collapses() -> Iterator[None]:
    """Scores have run away: each query looks at one key."""

    def wrong(self: Attention, x: Tensor, angles: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = _project(self, x, angles)
        return 1e6 * q, k, v

    with swapped(Attention, project=wrong):
        yield


FIRST = partial(trained.pretraining, look=0)


@fault("logits-run-away", "live-logits-are-resolved", "live-first-loss-is-uniform", on=FIRST)
def logits_run_away() -> Iterator[None]:
    """Logits a billion times too large."""
    with swapped(Transformer, logits=lambda self, hidden: 1e9 * _logits(self, hidden)):
        yield


@fault("first-weights-too-large", "live-first-loss-is-uniform", on=FIRST)
def first_weights_too_large() -> Iterator[None]:
    """Embeddings are drawn from N(0, 1): the model is sure of nonsense, and spends its first steps unlearning it."""

    def wrong(model: Transformer, seed: int) -> Transformer:
        _init(model, seed)
        with torch.no_grad():
            model.embed.weight /= model.config.init_std
        return model

    with swapped(init, init_weights=wrong):
        yield


@fault("dropout-in-the-policy-alone", "live-dpo-starts-at-ln-2", on=trained.preferring)
def dropout_in_the_policy_alone() -> Iterator[None]:
    """DPO's policy trains with dropout on, its reference without: the margin begins off zero."""

    def wrong(model: Transformer, batch: Batch) -> Tensor:
        return _answer(model.train() if torch.is_grad_enabled() else model, batch)

    with swapped(dpo, answer_logprobs=wrong):
        yield


@fault("trainer-at-another-temperature", "live-grpo-starts-on-policy", on=trained.sampling)
def trainer_at_another_temperature() -> Iterator[None]:
    """The trainer scores at temperature 1 what was sampled at 0.7."""
    right = grpo.token_logprobs

    def wrong(model: Transformer, hidden: Tensor, targets: Tensor, temperature: float) -> Tensor:
        return right(model, hidden, targets, 1.0)

    with swapped(grpo, token_logprobs=wrong):
        yield


LONG = {"steps": 110, "batch": 16}


@fault("context-ignored", "live-loss-beats-unigrams", on=partial(trained.pretraining, **LONG))
def context_ignored() -> Iterator[None]:
    """What the model has read is lost before the last norm: it learns how frequent tokens are, and no more."""

    def wrong(self: Transformer, tokens: Tensor, **given: Any) -> Tensor:
        return _forward(self, torch.zeros_like(tokens[:1, :1])).expand(*tokens.shape, -1)

    with swapped(Transformer, forward=wrong):
        yield


@fault("rows-recited", "live-train-and-validation-agree", on=trained.reciting)
def rows_recited() -> Iterator[None]:
    """The same eight rows at every step: the loss falls splendidly."""
    yield


_LAW = BESIROGLU.loss(1e8, 2e9)


@fault(
    "targets-can-be-seen",
    "live-loss-follows-the-law",
    on=partial(
        trained.told, "pretrain", [{"step": 1000, "loss": 0.4 * _LAW, "validation_loss": 0.4 * _LAW}],
        parameters=10**8, tokens=2 * 10**9,
    ),
)  # fmt: skip
def targets_can_be_seen() -> Iterator[None]:
    """A loss of two fifths of what 100M parameters on 2B tokens reach: numbers alone, of a run with a leak."""
    yield


@fault(
    "judge-gamed",
    "live-reward-agrees-with-held-out",
    on=partial(
        trained.told,
        "grpo",
        [
            {"step": 50, "reward": 0.55, "held_out_accuracy": 0.60},
            {"step": 100, "reward": 0.80, "held_out_accuracy": 0.35},
        ],
        held_out=256,
    ),
)
def judge_gamed() -> Iterator[None]:
    """The reward rises from 0.55 to 0.80 while held-out accuracy falls from 0.60 to 0.35: numbers alone."""
    yield
