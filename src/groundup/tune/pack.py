"""Conversations packed into rows of the context's length, without leakage and without cutting an answer."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import numpy as np
import torch

from groundup.errors import UserError
from groundup.model.batch import IGNORE, Batch
from groundup.tokenizer.chat import Rendered


class PackedChats:
    """A batch source over rendered conversations.

    Best-fit decreasing packing once; then rows are drawn in an order that depends on (seed, epoch) alone. A
    conversation is never split over rows, and one too long for the context is left out and counted: cutting it
    would take its end-of-turn away, and a model that never saw one never stops.
    """

    def __init__(
        self, chats: Sequence[Rendered], context: int, batch_size: int, micro_batch_size: int, pad: int, seed: int
    ) -> None:
        fits = [c for c in chats if len(c.ids) - 1 <= context and any(c.mask[1:])]
        self.too_long = sum(len(c.ids) - 1 > context for c in chats)
        self.unscored = len(chats) - len(fits) - self.too_long
        if not fits:
            longest = min((len(c.ids) for c in chats), default=0)
            raise UserError(
                f"none of the {len(chats)} conversations can be trained on: {self.too_long} are longer than the "
                f"context of {context} tokens (the shortest has {longest}), {self.unscored} hold no answer: "
                "raise model.context"
            )
        self.chats, self.context, self.pad, self.seed = fits, context, pad, seed
        self.batch_size, self.micro_batch_size = batch_size, micro_batch_size
        self.rows = pack([len(c.ids) - 1 for c in fits], context)
        self.padding = 1 - sum(len(c.ids) - 1 for c in fits) / (len(self.rows) * context)
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0))

    def micro_batches(self, step: int) -> list[Batch]:
        drawn = [self._row(step * self.batch_size + k) for k in range(self.batch_size)]
        size = self.micro_batch_size
        return [self.batch(drawn[i : i + size]) for i in range(0, len(drawn), size)]

    def _row(self, index: int) -> list[int]:
        epoch, place = divmod(index, len(self.rows))
        if self._order[0] != epoch:
            self._order = epoch, np.random.default_rng([self.seed, epoch]).permutation(len(self.rows))
        return self.rows[self._order[1][place]]

    def batch(self, rows: Sequence[Sequence[int]]) -> Batch:
        """Rows of conversation indices -> one Batch (len(rows), context)."""
        shape = (len(rows), self.context)
        tokens, targets = np.full(shape, self.pad, np.int64), np.full(shape, IGNORE, np.int64)
        documents, positions = np.zeros(shape, np.int32), np.zeros(shape, np.int64)
        for r, row in enumerate(rows):
            at = 0
            for number, index in enumerate(row):
                chat = self.chats[index]
                n = len(chat.ids) - 1
                tokens[r, at : at + n] = chat.ids[:-1]
                targets[r, at : at + n] = np.where(chat.mask[1:], chat.ids[1:], IGNORE)
                documents[r, at : at + n] = number
                positions[r, at : at + n] = np.arange(n)
                at += n
            documents[r, at:] = -1  # padding: nobody attends to it
            positions[r, at:] = np.arange(self.context - at)
        made = [torch.from_numpy(array) for array in (tokens, targets, documents, positions)]
        return Batch(made[0], made[1], made[2], made[3])


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing: indices of `lengths` into rows that hold at most `capacity` each."""
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free places, row), sorted
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        at = bisect.bisect_left(room, (lengths[index], -1))
        if at == len(room):
            rows.append([index])
            free, row = capacity - lengths[index], len(rows) - 1
        else:
            free, row = room.pop(at)
            rows[row].append(index)
            free -= lengths[index]
        if free > 0:
            bisect.insort(room, (free, row))
    return rows
