"""IsoFLOP parabolas: where, at equal compute, the loss is lowest (Hoffmann et al. 2022, arXiv 2203.15556, section 3.2).

A parabola in log N is the law's valley near its bottom alone: keep the sizes within a factor of about four of the
minimum on either side, or its asymmetry shifts what is read off.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from groundup.errors import UserError
from groundup.plan.fit import APART, BOOTSTRAPS, INTERVAL, Array, Point, widening


@dataclass(frozen=True)
class Parabola:
    """A quadratic in log N through the runs of one budget."""

    flops: float
    coefficients: tuple[float, float, float]  # L = c0 + c1 x + c2 x^2, x = log N - centre
    centre: float
    parameters: float | None  # at the minimum; None where the runs show none
    interval: tuple[float, float] | None
    loss: float | None
    warnings: tuple[str, ...]

    def at(self, parameters: float) -> float:
        x = math.log(parameters) - self.centre
        return self.coefficients[0] + self.coefficients[1] * x + self.coefficients[2] * x * x

    def to_dict(self) -> dict[str, Any]:
        keys = ("flops", "parameters", "interval", "loss")
        return {**{key: getattr(self, key) for key in keys}, "warnings": list(self.warnings)}


def parabola(points: Sequence[Point], seed: int = 0) -> Parabola:
    """The best size for one budget, from runs that all cost about the same. Errors: UserError with fewer than three."""
    flops = float(np.exp(np.mean(np.log([p.flops for p in points])))) if points else 0.0
    sizes = {round(p.parameters) for p in points}
    if len(sizes) < 3:
        raise UserError(
            f"a parabola needs three sizes at one budget, there are {len(sizes)}: give --isoflop more sizes"
        )
    n, y = np.log([p.parameters for p in points]), np.array([p.loss for p in points])
    centre = float(n.mean())
    x, warnings = n - centre, []
    curve = np.polyfit(x, y, 2)
    best, interval = _lowest(curve), None
    if best is None:
        warnings.append("the loss has no valley in these sizes: it bends the other way")
    elif not x.min() <= best <= x.max():
        side = "smaller" if best < x.min() else "larger"
        warnings.append(f"the lowest loss lies outside these sizes: add {side} ones")
    free = len(points) - 3
    if free > 0 and best is not None:
        errors = (y - np.polyval(curve, x)) * widening(len(points), free)
        rng = np.random.default_rng(seed)
        drawn = [
            _lowest(np.polyfit(x, np.polyval(curve, x) + rng.choice(errors, len(y)), 2)) for _ in range(BOOTSTRAPS)
        ]
        found = [value for value in drawn if value is not None]
        if len(found) > 0.9 * BOOTSTRAPS:
            low, high = np.percentile(found, INTERVAL)
            interval = (math.exp(centre + float(low)), math.exp(centre + float(high)))
    return Parabola(
        flops,
        (float(curve[2]), float(curve[1]), float(curve[0])),
        centre,
        None if best is None else math.exp(centre + best),
        interval,
        None if best is None else float(np.polyval(curve, best)),
        tuple(warnings),
    )


def _lowest(curve: Array) -> float | None:
    """Where c2 x^2 + c1 x + c0 is lowest; None when it has no minimum."""
    return None if curve[0] <= 0 else float(-curve[1] / (2 * curve[0]))


@dataclass(frozen=True)
class Allocation:
    """N_opt = k C^a through the parabolas' minima; D_opt = C / (6 N_opt)."""

    k: float
    a: float
    budgets: int

    def optimal(self, flops: float) -> tuple[float, float]:
        """(N, D) for a budget."""
        parameters = self.k * flops**self.a
        return parameters, flops / (6 * parameters)


def allocation(parabolas: Sequence[Parabola]) -> Allocation | None:
    """The power law through the minima that lie within their runs; None with fewer than two of them."""
    good = [p for p in parabolas if p.parameters is not None and not p.warnings]
    budgets = np.log([p.flops for p in good])
    if len(good) < 2 or np.ptp(budgets) < APART:
        return None
    a, k = np.polyfit(budgets, np.log([p.parameters or math.nan for p in good]), 1)
    return Allocation(float(np.exp(k)), float(a), len(good))
