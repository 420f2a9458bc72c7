"""Faults of what the tuning stages see at a step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from groundup.tune import dpo, grpo
from groundup.tune.dpo import PairBatches
from groundup.tune.grpo import Rollouts
from groundup.tune.pack import PackedChats
from groundup.verify.fault import fault, swapped

_draw, _row = dpo.draw, PackedChats._row
TOWN: dict[str, Any] = {"sources": [{"builtin": "town"}]}


@fault("sft-same-batch-at-each-step", "each-example-once-an-epoch", sft=TOWN)
def sft_same_batch_at_each_step() -> Iterator[None]:
    """SFT's source does not look at the step."""
    right = PackedChats.micro_batches
    with swapped(PackedChats, micro_batches=lambda self, step: right(self, 0)):
        yield


@fault("dpo-same-batch-at-each-step", "each-example-once-an-epoch", dpo=TOWN)
def dpo_same_batch_at_each_step() -> Iterator[None]:
    """DPO's source does not look at the step."""
    with swapped(dpo, draw=lambda n, step, size, seed: _draw(n, 0, size, seed)):
        yield


@fault("grpo-same-problems-at-each-step", "each-example-once-an-epoch", grpo=TOWN)
def grpo_same_problems_at_each_step() -> Iterator[None]:
    """GRPO asks the same problems at each step."""
    with swapped(grpo, draw=lambda n, step, size, seed: _draw(n, 0, size, seed)):
        yield


@fault("grpo-draws-alike-at-each-step", "each-example-once-an-epoch", grpo=TOWN)
def grpo_draws_alike_at_each_step() -> Iterator[None]:
    """The seeds of GRPO's answers do not follow the step: the same random numbers every time."""
    right = Rollouts.sample
    with swapped(Rollouts, sample=lambda self, problems, step: right(self, problems, 0)):
        yield


@fault("sft-epochs-in-one-order", "each-example-once-an-epoch", sft=TOWN)
def sft_epochs_in_one_order() -> Iterator[None]:
    """SFT shuffles once, and reads in that order for ever."""
    with swapped(PackedChats, _row=lambda self, index: _row(self, index % len(self.rows))):
        yield


def _unshuffled(n: int, step: int, size: int, seed: int) -> list[int]:
    order = _draw(n, 0, n, seed)
    return [order[index % n] for index in range(step * size, (step + 1) * size)]


@fault("dpo-epochs-in-one-order", "each-example-once-an-epoch", dpo=TOWN)
def dpo_epochs_in_one_order() -> Iterator[None]:
    """DPO shuffles once, and reads in that order for ever."""
    with swapped(dpo, draw=_unshuffled):
        yield


@fault("sft-seed-ignored", "each-example-once-an-epoch", sft=TOWN)
def sft_seed_ignored() -> Iterator[None]:
    """SFT's order depends on the epoch alone: every seed sees the same."""
    right = PackedChats.__init__

    def wrong(self: PackedChats, chats: Any, context: int, batch: int, micro: int, pad: int, seed: int) -> None:
        right(self, chats, context, batch, micro, pad, 0)

    with swapped(PackedChats, __init__=wrong):
        yield


@fault("sft-last-micro-batch-dropped", "each-example-once-an-epoch", sft=TOWN)
def sft_last_micro_batch_dropped() -> Iterator[None]:
    """SFT leaves out the micro-batch of a step that is not full."""
    right = PackedChats.micro_batches

    def wrong(self: PackedChats, step: int) -> Any:
        return [part for part in right(self, step) if part.rows == self.micro_batch_size]

    with swapped(PackedChats, micro_batches=wrong):
        yield


@fault("dpo-last-micro-batch-dropped", "each-example-once-an-epoch", dpo=TOWN)
def dpo_last_micro_batch_dropped() -> Iterator[None]:
    """DPO leaves out the micro-batch of a step that is not full."""
    right = PairBatches.micro_batches

    def wrong(self: PairBatches, step: int) -> Any:
        return [part for part in right(self, step) if part.rows == 2 * self.micro_batch_size]

    with swapped(PairBatches, micro_batches=wrong):
        yield


@fault("sft-last-row-lost", "each-example-once-an-epoch", sft=TOWN)
def sft_last_row_lost() -> Iterator[None]:
    """The last row, which is seldom full, is never drawn."""

    def wrong(self: PackedChats, index: int) -> Any:
        found = _row(self, index)
        return self.rows[0] if found is self.rows[-1] else found

    with swapped(PackedChats, _row=wrong):
        yield


@fault("dpo-drawn-with-replacement", "each-example-once-an-epoch", dpo=TOWN)
def dpo_drawn_with_replacement() -> Iterator[None]:
    """Pairs are drawn anew at each step: after an epoch a third of them was never seen."""

    def wrong(n: int, step: int, size: int, seed: int) -> list[int]:
        return [_draw(n, 0, 1, seed + 1000 * (step * size + k))[0] for k in range(size)]

    with swapped(dpo, draw=wrong):
        yield
