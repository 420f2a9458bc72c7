"""Intervals and tests: how far a score can be trusted, and whether two scores differ.

Every function is closed-form or seeded; none of them assumes that scores are normally distributed.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 2000


class Interval(NamedTuple):
    """A value and its 95% interval."""

    value: float
    low: float
    high: float


def wilson(k: float, n: int, z: float = 1.96) -> Interval:
    """Score interval for k successes in n trials (Wilson 1927, JASA 22:209).

    Unlike k/n +- z*stderr it stays inside [0, 1] and does not shrink to nothing at 0 or n successes, where
    small models often are. z = 1.96 is 95% (Brown, Cai & DasGupta 2001 recommend it for any n).
    """
    if n < 1 or not 0 <= k <= n:
        raise ValueError(f"wilson needs 0 <= k <= n and n >= 1 (got k={k}, n={n})")
    p = k / n
    centre = p + z * z / (2 * n)
    spread = z * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # In floating point the end at 0 or n successes can miss 0 or 1 by 1e-17.
    low = 0.0 if k == 0 else (centre - spread) / scale
    high = 1.0 if k == n else (centre + spread) / scale
    return Interval(p, low, high)


def bootstrap_mean(values: ArrayLike, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """Mean of values (n,) and its percentile-bootstrap interval (Efron 1979)."""
    array = np.asarray(values, dtype=np.float64)
    return bootstrap_ratio(array, np.ones_like(array), seed, resamples)


def bootstrap_ratio(
    numerators: ArrayLike, denominators: ArrayLike, seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """sum(numerators) / sum(denominators), both (n,), with units drawn again together, so that a unit's cost never
    parts from its size. Percentile bootstrap, 95%."""
    above, below = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    n = len(above)
    if n == 0 or above.shape != below.shape or above.ndim != 1:
        raise ValueError(f"bootstrap needs two lists of one length (got {above.shape} and {below.shape})")
    if not (np.isfinite(above).all() and np.isfinite(below).all() and below.sum() > 0):
        raise ValueError("bootstrap needs finite values and a denominator above zero")
    drawn = _resample(np.stack([above, below]), seed, resamples)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = drawn[0] / drawn[1]
    ratios = ratios[np.isfinite(ratios)]  # a draw of units that are all empty says nothing
    low, high = np.quantile(ratios, [0.025, 0.975])
    return Interval(float(above.sum() / below.sum()), float(low), float(high))


def _resample(rows: NDArray[np.float64], seed: int, resamples: int) -> NDArray[np.float64]:
    """Sums of each row of (2, n) over `resamples` draws with replacement -> (2, resamples)."""
    n = rows.shape[1]
    generator = np.random.default_rng(seed)
    out = np.empty((len(rows), resamples))
    part = max(1, 2_000_000 // n)  # bounds the memory of the index matrix
    for i in range(0, resamples, part):
        picks = generator.integers(0, n, size=(min(part, resamples - i), n))
        out[:, i : i + len(picks)] = rows[:, picks].sum(axis=2)
    return out


def intervals_apart(a: tuple[float, float], b: tuple[float, float]) -> bool:
    """True when (low, high) of a and b do not touch. Stricter than a test at 5%: apart means different, touching
    does not mean equal (Schenker & Gentleman 2001)."""
    return a[1] < b[0] or b[1] < a[0]


class Paired(NamedTuple):
    """Two models on the same questions: how many only the second got right (gained), only the first (lost)."""

    gained: int
    lost: int
    p: float


def mcnemar(before: Sequence[float], after: Sequence[float]) -> Paired:
    """Exact McNemar test on 0/1 scores of the same questions in the same order (McNemar 1947; exact: Fay 2010).

    Under "no difference" each question that changed is a fair coin; p is two-sided. Questions answered alike
    say nothing and are left out, so it sees differences that two intervals hide.
    """
    if len(before) != len(after):
        raise ValueError(f"McNemar pairs questions: got {len(before)} and {len(after)} scores")
    if any(score not in (0, 1) for score in (*before, *after)):
        raise ValueError("McNemar needs scores of 0 or 1")
    gained = sum(b < a for b, a in zip(before, after, strict=True))
    lost = sum(b > a for b, a in zip(before, after, strict=True))
    n = gained + lost
    tail = sum(comb(n, i) for i in range(min(gained, lost) + 1))
    # Integers until the division: the sum of thousands of coin tosses does not fit a float.
    return Paired(gained, lost, min(1.0, 2 * tail / 2**n))
