"""Faults of DPO's and GRPO's objectives that show away from the start, or in another precision than fp32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from groundup.model.batch import IGNORE, Batch
from groundup.model.transformer import Transformer
from groundup.tune import dpo, grpo
from groundup.tune.dpo import DpoObjective, PairBatches
from groundup.tune.grpo import GrpoObjective
from groundup.verify.fault import fault, swapped

_answer, _surrogate = dpo.answer_logprobs, grpo.clipped_surrogate
_build, _build_pairs, _build_grpo = DpoObjective.__init__, PairBatches.__init__, GrpoObjective.__init__


# ---- precision ----


@fault("rollouts-sampled-in-fp32", "grpo-starts-on-policy")
def rollouts_sampled_in_fp32() -> Iterator[None]:
    """Rollouts are sampled in fp32 and trained in bf16."""
    with swapped(grpo, autocast=lambda device, precision: nullcontext()):
        yield


@fault("rollouts-sampled-in-bf16", "grpo-starts-on-policy")
def rollouts_sampled_in_bf16() -> Iterator[None]:
    """Rollouts are sampled in bf16 and trained in fp32, as where a server has a precision of its own."""
    with swapped(grpo, autocast=lambda device, precision: torch.autocast(device, torch.bfloat16)):
        yield


@fault("reference-scored-in-fp32", "dpo-starts-at-ln-2")
def reference_scored_in_fp32() -> Iterator[None]:
    """The reference is scored outside of autocast, the policy inside."""

    def wrong(model: Transformer, batch: Batch) -> Tensor:
        with torch.autocast("cpu", enabled=torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")):
            return _answer(model, batch)

    with swapped(dpo, answer_logprobs=wrong):
        yield


# ---- DPO ----


@fault("dpo-of-mean-logprobs", "dpo-is-its-formula")
def dpo_of_mean_logprobs() -> Iterator[None]:
    """Log-probabilities are averaged over the answer: beta means something else for each length."""
    with swapped(dpo, answer_logprobs=lambda model, batch: _answer(model, batch) / (batch.targets != IGNORE).sum(1)):
        yield


@fault("dpo-beta-ignored", "dpo-is-its-formula")
def dpo_beta_ignored() -> Iterator[None]:
    """The objective keeps its default beta, whatever it is given."""
    with swapped(DpoObjective, __init__=lambda self, reference, beta: _build(self, reference, 0.1)):
        yield


@fault("dpo-beta-twice", "dpo-is-its-formula")
def dpo_beta_twice() -> Iterator[None]:
    """The margin, which holds beta, is multiplied by it once more in the loss."""

    def wrong(*given: Any) -> tuple[Tensor, Tensor]:
        margin = _right_loss(*given)[1]
        return -torch.nn.functional.logsigmoid(given[-1] * margin), margin

    _right_loss = dpo.dpo_loss
    with swapped(dpo, dpo_loss=wrong):
        yield


@fault("sides-sorted-apart", "pairs-stay-together")
def sides_sorted_apart() -> Iterator[None]:
    """Chosen and rejected are sorted by length for packing, each for itself."""

    def wrong(self: PairBatches, pairs: Any, *given: Any, **named: Any) -> None:
        sides = [sorted(side, key=lambda r: len(r.ids)) for side in zip(*pairs, strict=True)]
        _build_pairs(self, list(zip(*sides, strict=True)), *given, **named)

    with swapped(PairBatches, __init__=wrong):
        yield


@fault("last-pair-of-a-piece-is-halved", "pairs-stay-together")
def last_pair_of_a_piece_is_halved() -> Iterator[None]:
    """In pieces of one pair, the rejected side is that of the step's first."""
    right = PairBatches.micro_batches

    def wrong(self: PairBatches, step: int) -> list[Batch]:
        parts = right(self, step)
        for part in parts[1:]:
            if part.rows == 2:
                bad = self.pairs[dpo.draw(len(self.pairs), step, self.batch_size, self.seed)[0]][1]
                good = next(
                    p[0] for p in self.pairs if p[0].ids[:-1] == part.tokens[0][part.documents[0] >= 0].tolist()
                )
                parts[-1] = dpo.rows_to_batch([good, bad], self.pad)
        return parts

    with swapped(PairBatches, micro_batches=wrong):
        yield


# ---- GRPO ----


@fault("surrogate-without-clip", "surrogate-is-its-formula")
def surrogate_without_clip() -> Iterator[None]:
    """The clip is read and never used."""
    with swapped(grpo, clipped_surrogate=lambda logprobs, old, gain, clip: _surrogate(logprobs, old, gain, 1e9)):
        yield


@fault("clip-is-the-papers", "surrogate-is-its-formula")
def clip_is_the_papers() -> Iterator[None]:
    """The clip is 0.2, whatever the recipe says."""
    with swapped(grpo, clipped_surrogate=lambda logprobs, old, gain, clip: _surrogate(logprobs, old, gain, 0.2)):
        yield


@fault("clip-before-the-product", "surrogate-is-its-formula")
def clip_before_the_product() -> Iterator[None]:
    """The minimum is taken of the ratios, not of their products: on the wrong side where the advantage is negative."""

    def wrong(logprobs: Tensor, old: Tensor, gain: Tensor, clip: float) -> tuple[Tensor, Tensor]:
        ratio = torch.exp(logprobs - old)
        clipped = ratio.clamp(1 - clip, 1 + clip)
        return -torch.minimum(ratio, clipped) * gain, (ratio > clipped).float()

    with swapped(grpo, clipped_surrogate=wrong):
        yield


@fault("clip-above-alone", "surrogate-is-its-formula")
def clip_above_alone() -> Iterator[None]:
    """A ratio is clipped from above and never from below: bad answers are pushed down without end."""

    def wrong(logprobs: Tensor, old: Tensor, gain: Tensor, clip: float) -> tuple[Tensor, Tensor]:
        ratio = torch.exp(logprobs - old)
        clipped = ratio.clamp(max=1 + clip)
        return -torch.minimum(ratio * gain, clipped * gain), (ratio * gain > clipped * gain).float()

    with swapped(grpo, clipped_surrogate=wrong):
        yield


@fault("old-is-the-policys-own", "surrogate-is-its-formula")
def old_is_the_policys_own() -> Iterator[None]:
    """The sampler's log-probabilities are not used: the ratio is always 1, and nothing is ever clipped."""
    with swapped(
        grpo, clipped_surrogate=lambda logprobs, old, gain, clip: _surrogate(logprobs, logprobs.detach(), gain, clip)
    ):
        yield


@fault("short-answers-have-no-gradient", "surrogate-is-its-formula")
def short_answers_have_no_gradient() -> Iterator[None]:
    """Answers of fewer than four tokens are scored and pull on nothing."""
    right = grpo.token_logprobs

    def wrong(model: Transformer, hidden: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
        values = right(model, hidden, targets, temperature)
        short = (targets != IGNORE).sum(1, keepdim=True) < 4
        return torch.where(short, values.detach(), values)

    with swapped(grpo, token_logprobs=wrong):
        yield


@fault("kl-of-the-wrong-sign", "kl-is-its-formula")
def kl_of_the_wrong_sign() -> Iterator[None]:
    """The KL is subtracted: the policy is paid for leaving the start."""
    right = grpo.k3
    with swapped(grpo, k3=lambda logprobs, reference: -right(logprobs, reference)):
        yield


@fault("kl-the-other-way-round", "kl-is-its-formula")
def kl_the_other_way_round() -> Iterator[None]:
    """Policy and reference change places in the estimator, which stays above 0."""
    right = grpo.k3
    with swapped(grpo, k3=lambda logprobs, reference: right(reference, logprobs)):
        yield


@fault("kl-is-a-squared-difference", "kl-is-its-formula")
def kl_is_a_squared_difference() -> Iterator[None]:
    """Half the squared difference of the log-probabilities stands for the KL."""
    with swapped(grpo, k3=lambda logprobs, reference: 0.5 * (logprobs - reference) ** 2):
        yield


@fault("kl-without-gradient", "kl-is-its-formula")
def kl_without_gradient() -> Iterator[None]:
    """The KL is in the loss that is logged, and holds nothing."""
    right = grpo.k3
    with swapped(grpo, k3=lambda logprobs, reference: right(logprobs, reference).detach()):
        yield


@fault("kl-weight-ignored", "kl-is-its-formula")
def kl_weight_ignored() -> Iterator[None]:
    """Any weight above 0 is taken for 0.05."""

    def wrong(self: GrpoObjective, reference: Transformer, section: Any) -> None:
        _build_grpo(self, reference, section.model_copy(update={"kl_beta": min(section.kl_beta, 0.05)}))

    with swapped(GrpoObjective, __init__=wrong):
        yield


@fault("kl-to-the-policy-itself", "kl-is-its-formula")
def kl_to_the_policy_itself() -> Iterator[None]:
    """The start is not copied: it moves with the policy, and the KL to it stays 0."""

    def wrong(self: GrpoObjective, reference: Transformer, section: Any) -> None:
        self.reference, self.section = reference, section

    with swapped(GrpoObjective, __init__=wrong):
        yield
