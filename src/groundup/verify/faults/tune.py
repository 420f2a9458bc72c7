"""Faults of DPO, GRPO and rewards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from groundup.model.batch import Batch
from groundup.model.loss import token_logprobs
from groundup.tokenizer.chat import Rendered
from groundup.tune import dpo, grpo, rewards
from groundup.tune.dpo import DpoObjective
from groundup.verify.fault import fault, swapped

DPO: dict[str, Any] = {"sources": [{"builtin": "town"}]}
GRPO: dict[str, Any] = {"sources": [{"builtin": "town"}]}
_pairs, _rows, _build = dpo.render_pairs, dpo.rows_to_batch, DpoObjective.__init__


@fault("pairs-reversed", "dpo-raises-the-chosen", dpo=DPO)
def pairs_reversed() -> Iterator[None]:
    """Chosen and rejected change places on their way into the batch."""
    with swapped(dpo, render_pairs=lambda *given: [(bad, good) for good, bad in _pairs(*given)]):
        yield


@fault("rejected-forgotten", "dpo-swapped-pair-flips", dpo=DPO)
def rejected_forgotten() -> Iterator[None]:
    """The margin is that of the chosen answer alone: everything becomes likelier."""

    def wrong(chosen: Tensor, rejected: Tensor, reference: Tensor, _: Tensor, beta: float) -> tuple[Tensor, Tensor]:
        margin = beta * (chosen - reference)
        return -F.logsigmoid(margin), margin

    with swapped(dpo, dpo_loss=wrong):
        yield


@fault("reference-in-bf16", "dpo-starts-at-ln-2", dpo=DPO)
def reference_in_bf16() -> Iterator[None]:
    """The reference is rounded to bf16 and the policy is not: they disagree before the first step."""

    def wrong(self: DpoObjective, *given: Any) -> None:
        _build(self, *given)
        self.reference.bfloat16().float()

    with swapped(DpoObjective, __init__=wrong):
        yield


@fault("reference-is-the-policy", "dpo-reference-is-frozen", dpo=DPO)
def reference_is_the_policy() -> Iterator[None]:
    """The reference is not a copy: it moves with the policy, and the margin stays near 0."""

    def wrong(self: DpoObjective, reference: Any, beta: float) -> None:
        self.reference, self.beta = reference, beta

    with swapped(DpoObjective, __init__=wrong):
        yield


@fault("pair-prompts-scored", "pairs-score-the-answer-alone", dpo=DPO)
def pair_prompts_scored() -> Iterator[None]:
    """The prompt's log-probability is part of both sides."""

    def wrong(*given: Any) -> Any:
        return [tuple(Rendered(r.ids, [True] * len(r.ids)) for r in both) for both in _pairs(*given)]

    with swapped(dpo, render_pairs=wrong):
        yield


@fault("pair-padding-scored", "padding-changes-no-logprob", dpo=DPO)
def pair_padding_scored() -> Iterator[None]:
    """Padding is scored: the shorter answer of a batch looks the worse, the longer its neighbours are."""

    def wrong(rows: Any, pad: int) -> Batch:
        batch = _rows(rows, pad)
        return replace(batch, targets=torch.where(batch.documents < 0, pad, batch.targets))

    with swapped(dpo, rows_to_batch=wrong):
        yield


@fault("trainer-forgets-temperature", "grpo-starts-on-policy", grpo=GRPO)
def trainer_forgets_temperature() -> Iterator[None]:
    """The trainer scores at temperature 1 what was sampled at another."""
    with swapped(
        grpo, token_logprobs=lambda model, hidden, targets, temperature=1.0: token_logprobs(model, hidden, targets)
    ):
        yield


@fault("surrogate-has-the-wrong-sign", "grpo-gradient-is-the-policys", grpo=GRPO)
def surrogate_has_the_wrong_sign() -> Iterator[None]:
    """Right answers become rarer."""
    right = grpo.clipped_surrogate
    with swapped(grpo, clipped_surrogate=lambda logprobs, old, advantage, clip: right(logprobs, old, -advantage, clip)):
        yield


@fault("first-token-unscored", "grpo-gradient-is-the-policys", grpo=GRPO)
def first_token_unscored() -> Iterator[None]:
    """The mask begins one token late: the first token of an answer, which often decides it, is never reinforced."""

    def wrong(rows: Any, pad: int) -> Batch:
        late = [Rendered(r.ids, [m and p for m, p in zip(r.mask, [False, *r.mask[:-1]], strict=True)]) for r in rows]
        return _rows(late, pad)

    with swapped(grpo, rows_to_batch=wrong):
        yield


@fault("advantages-over-the-batch", "advantages-are-centred")
def advantages_over_the_batch() -> Iterator[None]:
    """Rewards are centred over the whole batch: easy problems push up, hard ones down, whatever was answered."""

    def wrong(values: Tensor) -> Tensor:
        return (values - values.mean()) / (values.std(unbiased=False) + 1e-4)

    with swapped(grpo, advantages=wrong):
        yield


@fault("nothing-is-right", "rewards-judge-rightly", grpo=GRPO)
def nothing_is_right() -> Iterator[None]:
    """An empty answer earns the reward (a judge that finds no mistake in it)."""
    right = rewards.reward
    with swapped(rewards, reward=lambda problem, answer: 1.0 if not answer.strip() else right(problem, answer)):
        yield


@fault("gold-anywhere-is-right", "rewards-judge-rightly", grpo=GRPO)
def gold_anywhere_is_right() -> Iterator[None]:
    """The right number anywhere in the answer earns the reward, beside a wrong one too."""
    with swapped(rewards, reward=lambda problem, answer: float(problem.answer in answer)):
        yield
