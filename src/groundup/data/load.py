"""Batches of packed windows, in an order that depends on (seed, epoch) alone.

Window w of T = context places holds tokens [wT, wT + T) as inputs, and the same range shifted by one as
targets. Documents lie back to back; a row may hold several, and the Batch says which token is whose, so that
attention stays inside a document. The step from one document's end to the next one's beginning is never
scored: no text predicts which document the corpus holds next.

Everything is a pure function of the step: there is no state to save, and step 10,000 costs what step 0 does.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from groundup.errors import UserError
from groundup.errors import problems as raise_problems
from groundup.model.batch import IGNORE, Batch


class Documents(Protocol):
    """What the loader reads: a Shard, or a Span of one. tokens (N,), bounds (documents,) int64 starts."""

    @property
    def tokens(self) -> NDArray[Any]: ...

    @property
    def bounds(self) -> NDArray[np.int64]: ...


def count_windows(n_tokens: int, context: int) -> int:
    """Windows that cover every token that has a next one (the very last token predicts nothing)."""
    return max(0, -(-(n_tokens - 1) // context))


def cut(shard: Documents, windows: NDArray[np.int64], context: int) -> Batch:
    """The given windows as one Batch (B, T). The last window of a shard is padded with unscored places."""
    tokens, bounds, total = shard.tokens, shard.bounds, len(shard.tokens)
    first = windows.astype(np.int64)[:, None] * context
    # One place more than the window: the last target depends on whether the next token begins a document.
    place = first + np.arange(context + 1)
    ids = np.asarray(tokens[np.minimum(place, total - 1)]).astype(np.int64)
    begins = np.zeros(place.shape, dtype=bool)
    low = np.searchsorted(bounds, first[:, 0], side="left")
    high = np.searchsorted(bounds, first[:, 0] + context, side="right")
    for row, (start, a, b) in enumerate(zip(first[:, 0], low, high, strict=True)):
        begins[row, bounds[a:b] - start] = True
    padding = place >= total
    begins |= place == total

    inside = begins[:, :-1].copy()
    inside[:, 0] = True  # a document that began before the window starts anew at its edge
    documents = np.where(padding[:, :-1], -1, np.cumsum(inside, axis=1) - 1)
    column = np.arange(context)
    positions = column - np.maximum.accumulate(np.where(inside, column, 0), axis=1)
    targets = np.where(begins[:, 1:] | padding[:, 1:], IGNORE, ids[:, 1:])
    return Batch(
        tokens=torch.from_numpy(np.ascontiguousarray(ids[:, :-1])),
        targets=torch.from_numpy(targets),
        documents=torch.from_numpy(documents.astype(np.int32)),
        positions=torch.from_numpy(positions),
    )


class PackedBatches:
    """Training batches over a shard.

    Sample k of step s is the (s * batch_size + k)-th of an endless row of epochs, each a permutation of the
    windows drawn from (seed, epoch): every window once an epoch, the last batch of one epoch filled up from
    the next. micro_batch_size and world only cut a step's samples into parts, they never change which samples
    or their order. With world > 1, rank r gets a contiguous part of each step.
    """

    def __init__(
        self,
        shard: Documents,
        context: int,
        batch_size: int,
        micro_batch_size: int | None = None,
        seed: int = 0,
        *,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} of {world}")
        if world > batch_size:
            raise UserError(f"batch_size {batch_size} is smaller than the number of ranks, {world}: raise it")
        self.shard = shard
        self.context = context
        self.batch_size = batch_size
        self.micro_batch_size = micro_batch_size or batch_size
        self.seed = seed
        self.rank, self.world = rank, world
        self.n_windows = count_windows(len(shard.tokens), context)
        if self.n_windows == 0:
            raise UserError(f"the training data has {len(shard.tokens)} tokens: nothing to train on")
        self._orders: dict[int, NDArray[np.int64]] = {}

    @property
    def steps_per_epoch(self) -> float:
        return self.n_windows / self.batch_size

    def epoch(self, step: int) -> float:
        """Epochs begun before `step`, as a fraction: 1.5 = half way through the second."""
        return step * self.batch_size / self.n_windows

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Permutation of the windows in one epoch, from (seed, epoch) alone."""
        if epoch not in self._orders:
            if len(self._orders) >= 2:  # a step can straddle two epochs
                self._orders.pop(min(self._orders))
            seed = self.seed % (1 << 64)  # SeedSequence takes no negative numbers
            # Sorting raw output and not Generator.permutation: numpy may change the latter between versions.
            raw = np.random.PCG64([seed, epoch]).random_raw(self.n_windows)
            self._orders[epoch] = np.argsort(raw, kind="stable")
        return self._orders[epoch]

    def windows(self, step: int) -> NDArray[np.int64]:
        """The windows this rank sees at `step`, in order."""
        first, last = (self.batch_size * r // self.world for r in (self.rank, self.rank + 1))
        sample = step * self.batch_size + np.arange(first, last, dtype=np.int64)
        epochs, places = np.divmod(sample, self.n_windows)
        found = np.empty(len(sample), dtype=np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            found[here] = self.order(int(epoch))[places[here]]
        return found

    def micro_batches(self, step: int) -> list[Batch]:
        """This rank's part of `step` in forward passes of micro_batch_size rows (the last may have fewer)."""
        windows, size = self.windows(step), self.micro_batch_size
        return [cut(self.shard, windows[i : i + size], self.context) for i in range(0, len(windows), size)]

    def ranges(self, step: int) -> list[tuple[int, int]]:
        """Token ranges [start, stop) behind `step`; `Shard.names` turns them into document ids."""
        total = len(self.shard.tokens)
        return [(int(w) * self.context, min((int(w) + 1) * self.context, total)) for w in self.windows(step)]


def validation_batches(shard: Documents, context: int, batch_size: int) -> Iterator[Batch]:
    """Every window once, in the shard's order: each token but the documents' first is scored exactly once."""
    windows = np.arange(count_windows(len(shard.tokens), context), dtype=np.int64)
    for i in range(0, len(windows), batch_size):
        yield cut(shard, windows[i : i + batch_size], context)


def check_enough(shard: Documents, context: int, batch_size: int, where: str = "the training data") -> None:
    """Errors: UserError when one batch is more than the data holds; says what there is and what to change."""
    total = len(shard.tokens)
    found = []
    if total <= context:
        found.append(
            f"it has {total:,} tokens, fewer than one context of {context:,} (and the token after it): "
            f"lower model.context below {max(total, 2):,} or add text"
        )
    if total <= context * batch_size:
        fits = (total - 1) // context
        advice = f"lower batch_size to {fits} or less, or " if fits else ""
        found.append(
            f"it has {total:,} tokens, one batch needs {context * batch_size + 1:,} "
            f"(batch_size {batch_size} x context {context} + 1): {advice}add text to data.sources"
        )
    raise_problems(where, found)
