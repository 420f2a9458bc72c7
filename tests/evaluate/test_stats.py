"""Intervals and tests against values known from elsewhere."""

from __future__ import annotations

import numpy as np
import pytest

from groundup.evaluate.stats import bootstrap_mean, bootstrap_ratio, intervals_apart, mcnemar, wilson


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [
        (45, 50, 0.7864, 0.9565),
        (5, 50, 0.0435, 0.2136),  # the mirror image of 45 of 50
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, table I, method 3
        (15, 148, 0.0624, 0.1605),  # the same table
    ],
)
def test_wilson_gives_published_values(k: int, n: int, low: float, high: float) -> None:
    """Catches the normal approximation, whose interval is empty at 0 and n and leaves [0, 1] beside them."""
    found = wilson(k, n)
    assert found.value == k / n
    assert (found.low, found.high) == pytest.approx((low, high), abs=6e-5)


@pytest.mark.parametrize(("k", "n"), [(0, 0), (3, 2), (-1, 5), (float("nan"), 5)])
def test_wilson_refuses_what_is_no_count(k: float, n: int) -> None:
    """Catches a score without questions being shown as 0 with an interval."""
    with pytest.raises(ValueError, match="wilson needs"):
        wilson(k, n)


def test_wilson_covers_what_it_says() -> None:
    """Catches a one-sided z, or a variance off by a factor: 95% of intervals must hold the true share."""
    rng = np.random.default_rng(0)
    for share in (0.2, 0.5, 0.8):
        intervals = [wilson(int(k), 100) for k in rng.binomial(100, share, 4000)]
        covered = np.mean([i.low <= share <= i.high for i in intervals])
        assert 0.93 <= covered <= 0.97


def test_bootstrap_of_a_mean_is_as_wide_as_theory_says() -> None:
    """Catches units drawn without replacement (no width) or sums not divided."""
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    found = bootstrap_mean(values, seed=2)
    half = 1.96 * values.std() / 20
    assert found.value == pytest.approx(values.mean())
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.1)
    assert found == bootstrap_mean(values, seed=2) != bootstrap_mean(values, seed=3)


def test_bootstrap_of_a_ratio_keeps_cost_and_size_together() -> None:
    """Catches numerators and denominators drawn apart: a constant rate of 2 must have no spread at all."""
    size = np.array([1.0, 10.0, 100.0, 7.0])
    assert bootstrap_ratio(2 * size, size) == pytest.approx((2, 2, 2))


def test_bootstrap_refuses_nan() -> None:
    """Catches NaN in one document passing as a NaN interval that JSON shows as null."""
    with pytest.raises(ValueError, match="finite"):
        bootstrap_mean([1.0, float("nan")])


def test_intervals_apart_is_symmetric_and_strict() -> None:
    """Catches touching intervals reported as a difference."""
    assert intervals_apart((0.1, 0.2), (0.3, 0.4)) and intervals_apart((0.3, 0.4), (0.1, 0.2))
    assert not intervals_apart((0.1, 0.3), (0.3, 0.4))
    assert not intervals_apart((0.1, 0.9), (0.3, 0.4))


def test_mcnemar_is_the_exact_binomial_test() -> None:
    """Catches a chi-squared approximation, and questions answered alike being counted."""
    before = [0] * 9 + [1] * 1 + [1] * 500
    after = [1] * 9 + [0] * 1 + [1] * 500
    found = mcnemar(before, after)
    assert (found.gained, found.lost) == (9, 1)
    assert found.p == pytest.approx(22 / 1024)  # 2 * (C(10,0) + C(10,1)) / 2^10
    assert mcnemar([0, 1], [0, 1]).p == 1.0  # nothing changed
    assert mcnemar([0] * 3000, [1] * 3000).p == 0.0  # does not overflow
    with pytest.raises(ValueError, match="pairs"):
        mcnemar([0], [0, 1])
