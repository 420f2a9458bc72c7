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
from groundup.model.config import ModelConfig
from groundup.model.transformer import Transformer
from groundup.plan.laws import BESIROGLU
from groundup.train import optim
from groundup.train.optim import Optimizers
from groundup.train.vitals import Probe, Vitals
from groundup.tune import dpo, grpo
from groundup.tune.pack import PackedChats
from groundup.verify import trained
from groundup.verify.fault import fault, swapped

EXPERTS = {"moe": {"n_experts": 5, "top_k": 2, "d_expert": 24}}
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


@fault("every-third-target-lost", "live-tokens-are-scored", on=trained.pretraining)
def every_third_target_lost() -> Iterator[None]:
    """A loader of rows two places longer than it thinks: every third target is not scored, and the loss looks right."""

    def wrong(*given: Any) -> Batch:
        batch = _cut(*given)
        place = torch.arange(batch.targets.numel()).view_as(batch.targets)
        return replace(batch, targets=torch.where(place % 3 == 0, IGNORE, batch.targets))

    with swapped(load, cut=wrong):
        yield


@fault("packed-rows-score-their-first-chat", "live-tokens-are-scored", on=trained.tuning)
def packed_rows_score_their_first_chat() -> Iterator[None]:
    """Of the conversations that share a row only the first is scored: the masks of the others were lost in packing."""
    right = PackedChats.batch

    def wrong(self: PackedChats, rows: Any) -> Batch:
        batch = right(self, rows)
        return replace(batch, targets=torch.where(batch.documents == 0, batch.targets, IGNORE))

    with swapped(PackedChats, batch=wrong):
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


@fault("attention-detached", "live-every-layer-gets-gradient", on=trained.pretraining)
def attention_detached() -> Iterator[None]:
    """The second layer's attention is run without a graph; its feed-forward learns."""
    right = Attention.forward

    def wrong(self: Attention, x: Tensor, *rest: Any) -> Tensor:
        return right(self, x.detach(), *rest).detach() if self.layer == 1 else right(self, x, *rest)

    with swapped(Attention, forward=wrong):
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


@fault("one-expert-never-moves", "live-updates-are-felt", on=partial(trained.pretraining, look=1, model=EXPERTS))
def one_expert_never_moves() -> Iterator[None]:
    """The first expert of every stack is left out of each update; those beside it learn."""

    def wrong(self: Optimizers, share: float) -> None:
        stacks = [(p, p.detach()[0].clone()) for p in self.parameters() if p.ndim == 3]
        _step(self, share)
        with torch.no_grad():
            for parameter, first in stacks:
                parameter[0] = first

    with swapped(Optimizers, step=wrong):
        yield


@fault("one-expert-replaced", "live-updates-are-felt", on=partial(trained.pretraining, look=1, model=EXPERTS))
def one_expert_replaced() -> Iterator[None]:
    """Each step one expert of every stack is drawn anew: among the others its change is a small one."""

    def wrong(self: Optimizers, share: float) -> None:
        _step(self, share)
        with torch.no_grad():
            for parameter in self.parameters():
                if parameter.ndim == 3:
                    parameter[-1] = -parameter[-1].roll(1, 0)

    with swapped(Optimizers, step=wrong):
        yield


@fault(
    "a-step-ruins-a-row", "live-units-are-alive", "live-attention-attends", "live-updates-are-felt",
    "live-logits-are-resolved", on=partial(trained.pretraining, look=1),
)  # fmt: skip
def a_step_ruins_a_row() -> Iterator[None]:
    """An update divides by zero in one row of the first feed-forward: the loss before it was still a number."""
    right = Probe.after

    def wrong(self: Probe, vitals: Vitals, batch: Batch | None) -> Vitals:
        weight = dict(self.model.named_parameters())["blocks.0.mlp.gate_up.weight"].detach()
        before = weight[0].clone()
        weight[0] = torch.nan
        try:
            return right(self, vitals, batch)
        finally:  # or the loop would not save the model: what is looked at here is what stands before that
            weight[0] = before

    with swapped(Probe, after=wrong):
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


@fault("keys-are-all-alike", "live-attention-attends", on=trained.pretraining)
def keys_are_all_alike() -> Iterator[None]:
    """Keys of one layer are averaged over the row: every score is the same, and none is 0."""

    def wrong(self: Attention, x: Tensor, angles: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = _project(self, x, angles)
        return q, (k.mean(1, keepdim=True).expand_as(k) if self.layer == 1 else k), v

    with swapped(Attention, project=wrong):
        yield


FIRST = partial(trained.pretraining, look=0)


@fault("logits-run-away", "live-logits-are-resolved", on=partial(trained.pretraining, precision="bf16"))
def logits_run_away() -> Iterator[None]:
    """The last norm's weights have grown until logits pass 256: in bf16 neighbours are 2 nats apart."""
    with swapped(Transformer, logits=lambda self, hidden: _logits(self, 2000 * hidden)):
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


WIDE = ModelConfig(
    vocab_size=50304, d_model=1024, n_layers=24, n_heads=16, n_kv_heads=16, head_dim=64, d_ff=2816, context=1024
)


@fault(
    "fresh-run-begins-with-old-weights",
    "live-first-loss-is-uniform",
    on=partial(
        trained.told, "pretrain", [{"step": 1, "loss": 3.2, "scored": 524288}], config=WIDE
    ),
)  # fmt: skip
def fresh_run_begins_with_old_weights() -> Iterator[None]:
    """Weights of an earlier run were loaded where new ones were meant: a tied model begins at 3.2 nats."""
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


LONG: dict[str, Any] = {"steps": 110, "batch": 16}


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


@fault(
    "validation-of-another-kind",
    "live-train-and-validation-agree",
    on=partial(
        trained.told, "pretrain",
        [
            {"step": 50 * n, "loss": 4.4 - n / 10, "validation_loss": 2.9 - n / 10, "scored": 65536}
            for n in range(1, 6)
        ],
    ),
)  # fmt: skip
def validation_of_another_kind() -> Iterator[None]:
    """Validation text is boilerplate, 1.4 nats easier than what is trained on: numbers alone."""
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
