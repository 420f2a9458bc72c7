"""Where the checks' random numbers come from: their own fixed seeds, all of which another run can shift.

A check is a pure function of its target, so that it says the same tomorrow. Whether it would also hold for other
weights and other tokens is what `run_checks(seed=n)` asks: the self-test runs 200 of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_SHIFT: ContextVar[int] = ContextVar("shift", default=0)


def shifted(seed: int) -> int:
    """A check's own seed, moved by the run's."""
    return seed + 1_000_003 * _SHIFT.get()


def generator(seed: int) -> torch.Generator:
    """A generator that starts at a check's own seed, moved by the run's."""
    return torch.Generator().manual_seed(shifted(seed))


@contextmanager
def shift(seed: int) -> Iterator[None]:
    """All draws inside are others, as chosen by `seed`; 0 changes nothing."""
    token = _SHIFT.set(seed)
    try:
        yield
    finally:
        _SHIFT.reset(token)
