"""Scaling laws fitted to one's own runs, with intervals, and with a word where the runs cannot tell.

Two forms, both a constant and power laws:

    L(N, D) = E + A / N^alpha + B / D^beta        runs whose sizes and tokens vary apart
    L(C)    = E + K / C^gamma                     runs on one line, such as 20 tokens a parameter throughout

Fitted as Hoffmann et al. 2022 (arXiv 2203.15556, appendix D.3): log L as a log-sum-exp of the terms, Huber loss
(delta 1e-3) on the residuals of log L, from a grid of starts. They used L-BFGS, which stopped short of the minimum
there (Besiroglu et al. 2024, arXiv 2404.10102); here all starts, and all bootstrap samples, take damped
Gauss-Newton steps at once, which reaches the minimum of the same objective in a second.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from groundup.errors import UserError

Array = NDArray[np.float64]

DELTA = 1e-3  # of the Huber loss: residuals of log L beyond it count linearly
EXPONENTS = (0.01, 2.5)  # bounds of alpha, beta, gamma
COEFFICIENTS = tuple(float(a) for a in range(0, 26, 5))  # the paper's grid: logs of A and B,
CONSTANTS = (-1.0, -0.5, 0.0, 0.5, 1.0)  # log of E,
STARTS = (0.1, 0.5, 1.0, 1.5, 2.0)  # exponents (0 there, which is no power law)
KEPT = 50  # starts that are followed to the end, the best after a few steps
BOOTSTRAPS = 500
INTERVAL = (2.5, 97.5)  # percentiles
APART = 0.1  # least spread of log D beside what log N explains: below it, N and D are one variable
NAMES = {"L(N, D)": ("A", "B", "E", "alpha", "beta"), "L(C)": ("K", "E", "gamma")}


@dataclass(frozen=True)
class Point:
    """One finished run."""

    parameters: float
    tokens: float
    loss: float  # nats a token
    flops: float  # of the training
    name: str = ""


@dataclass(frozen=True)
class Prediction:
    """A loss with a 95% interval; the interval is None where the runs are too few to tell."""

    loss: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Fit:
    """A fitted law. `constants` by NAMES[form], `intervals` of 95%, `residual`: typical error in % of the loss."""

    form: str
    constants: dict[str, float]
    intervals: dict[str, tuple[float, float] | None]
    residual: float
    points: int
    warnings: tuple[str, ...]
    theta: Array = field(repr=False)  # (2 k + 1,): logs of k coefficients, log E, k exponents, of the CENTRED variables
    centre: Array = field(repr=False)  # (k,) means of log N and log D, or of log C
    samples: Array | None = field(repr=False)  # (BOOTSTRAPS, 2 k + 1)
    errors: Array = field(repr=False)  # residuals of log L, widened to the spread of a new run

    def predict(self, parameters: float, tokens: float, flops: float) -> Prediction:
        """Loss of a run of this size; its interval holds the fit's uncertainty and the scatter of a single run."""
        x = _variables(self.form, [Point(parameters, tokens, 1.0, flops)]) - self.centre
        loss = float(np.exp(_log_loss(self.theta[None], x))[0, 0])
        if self.samples is None:
            return Prediction(loss)
        drawn = _log_loss(self.samples, x)[:, 0]
        scatter = np.random.default_rng(0).choice(self.errors, size=len(drawn))
        low, high = np.percentile(np.exp(drawn + scatter), INTERVAL)
        return Prediction(loss, min(float(low), loss), max(float(high), loss))

    def to_dict(self) -> dict[str, Any]:
        return {
            "form": self.form,
            "constants": self.constants,
            "intervals": self.intervals,
            "residual_percent": self.residual,
            "points": self.points,
            "warnings": list(self.warnings),
        }


def fit(points: Sequence[Point], seed: int = 0, form: str | None = None) -> Fit:
    """The law behind finished runs; L(N, D) where they identify it, else L(C), and then `warnings` says why.

    form: "L(N, D)" or "L(C)" to insist on one. Errors: UserError with fewer than three runs, or losses that are no
    positive numbers.
    """
    bad = [p.name or "?" for p in points if not (math.isfinite(p.loss) and p.loss > 0)]
    if bad:
        raise UserError(f"no law can be fitted: the loss of {', '.join(bad)} is not a positive number")
    if len(points) < 3:
        raise UserError(f"a law has three constants at least, there are {len(points)} runs to fit: add sizes")
    warnings: list[str] = []
    if form is None:
        doubts = _doubts(points)
        form = "L(C)" if doubts else "L(N, D)"
        warnings += [f"{doubt}: fitted L = E + K / C^gamma, in compute alone" for doubt in doubts]
    x, y = _variables(form, points), np.log([p.loss for p in points])
    centre = x.mean(axis=0)
    x = x - centre
    theta = _solve(_starts(form, centre), x, y[None], steps=15)
    theta = _solve(theta[_objective(theta, x, y[None]).argsort()[:KEPT]], x, y[None])
    best = theta[_objective(theta, x, y[None]).argmin()]
    free = len(points) - len(best)
    residuals = y - _log_loss(best[None], x)[0]
    samples, errors = None, residuals
    if free > 0:
        errors = residuals * widening(len(points), free)
        samples = _bootstrap(best, x, errors, seed)
    else:
        warnings.append(
            f"{len(points)} runs for {len(best)} constants: the curve goes through them all, there is no interval"
        )
    constants, spread = _constants(form, best[None], centre), None
    if samples is not None:
        spread = _constants(form, samples, centre)
    warnings += _at_bounds(form, best, constants, float(np.exp(y).min()))
    return Fit(
        form,
        {name: float(value[0]) for name, value in constants.items()},
        {name: _interval(spread[name]) if spread else None for name in constants},
        float(100 * np.sqrt(np.mean(residuals**2))),
        len(points),
        tuple(warnings),
        best,
        centre,
        samples,
        errors,
    )


def widening(points: int, free: int) -> float:
    """What residuals are multiplied by to stand for the scatter of a new run, with `free` runs more than constants.

    sqrt(points / free), since the curve bent towards the runs it was fitted to; and Student's t over the normal's
    1.96, since so few residuals may be small by chance. Without the second, intervals of eight runs hold three in four.
    """
    t = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78}.get(free, 1.96 + 2.4 / free + 2.8 / free**2)
    return math.sqrt(points / free) * t / 1.96


def _doubts(points: Sequence[Point]) -> list[str]:
    """Why these runs cannot tell the effect of size from that of data."""
    found = []
    n, d = (np.log([getattr(p, key) for p in points]) for key in ("parameters", "tokens"))
    if len(points) < 5:
        found.append(f"{len(points)} runs are too few for the five constants of L(N, D)")
    elif np.ptp(d - n) < APART:
        found.append("tokens a parameter are the same in all runs, so that N and D cannot be told apart")
    elif np.ptp(n) < APART or np.ptp(d) < APART:
        found.append(f"the {'size' if np.ptp(n) < APART else 'number of tokens'} is the same in all runs")
    else:
        slope, intercept = np.polyfit(n, d, 1)
        if np.std(d - slope * n - intercept) < APART:
            found.append("tokens follow from the size in all runs, so that N and D cannot be told apart")
    return found


def _at_bounds(form: str, theta: Array, constants: dict[str, Array], least: float) -> list[str]:
    names = [name for name in NAMES[form] if name in ("alpha", "beta", "gamma")]
    found = [
        f"{name} = {value:.2f} is at the edge of what was searched: these runs do not identify it"
        for name, value in zip(names, theta[len(names) + 1 :], strict=True)
        if not EXPONENTS[0] * 1.01 < value < EXPONENTS[1] * 0.99
    ]
    if not 0.01 * least < constants["E"][0] < 0.99 * least:
        what = "0" if constants["E"][0] < least / 2 else "the lowest loss itself"
        found.append(f"E is near {what}: these runs do not show where the loss ends, do not look far beyond them")
    return found


# ---- the model: log L = log sum_k exp(c_k - g_k x_k) + exp(e) ----


def _variables(form: str, points: Sequence[Point]) -> Array:
    """(points, k): log N and log D, or log C."""
    keys = ("parameters", "tokens") if form == "L(N, D)" else ("flops",)
    return np.log([[getattr(p, key) for key in keys] for p in points]).astype(np.float64)


def _terms(theta: Array, x: Array) -> Array:
    """Logs of the terms, (S, points, k + 1), the constant last. theta (S, 2 k + 1), x (points, k)."""
    k = x.shape[1]
    powers = theta[:, None, :k] - theta[:, None, k + 1 :] * x[None]
    return np.concatenate([powers, np.broadcast_to(theta[:, None, k : k + 1], (*powers.shape[:2], 1))], axis=2)


def _log_loss(theta: Array, x: Array) -> Array:
    """log L, (S, points)."""
    out: Array = np.logaddexp.reduce(_terms(theta, x), axis=2)
    return out


def _objective(theta: Array, x: Array, y: Array) -> Array:
    """Sum of Huber losses of the residuals, (S,)."""
    r = np.abs(_log_loss(theta, x) - y)
    out: Array = np.where(r < DELTA, r**2 / 2, DELTA * (r - DELTA / 2)).sum(axis=1)
    return out


def _solve(theta: Array, x: Array, y: Array, steps: int = 300) -> Array:
    """Minima of the Huber loss from each start (S, 2 k + 1): damped Gauss-Newton steps, reweighted, all at once."""
    k, theta = x.shape[1], theta.copy()
    damping = np.full(len(theta), 1e-2)
    cost = _objective(theta, x, y)
    for _ in range(steps):
        terms = _terms(theta, x)
        logs = np.logaddexp.reduce(terms, axis=2, keepdims=True)
        share = np.exp(terms - logs)  # of each term in L: the derivative of log L by the term's log
        jacobian = np.concatenate([share, -share[:, :, :k] * x[None]], axis=2)
        r = logs[:, :, 0] - y
        weighted = jacobian * np.minimum(1.0, DELTA / np.maximum(np.abs(r), 1e-300))[:, :, None]
        gradient = np.einsum("snp,sn->sp", weighted, r)
        curvature = np.einsum("snp,snq->spq", weighted, jacobian)
        size = np.einsum("spp->sp", curvature)
        # Never singular: a term that has vanished from L still has a diagonal.
        curvature = curvature + np.einsum("sp,pq->spq", damping[:, None] * size + 1e-12, np.eye(theta.shape[1]))
        step = np.linalg.solve(curvature, gradient[:, :, None])[:, :, 0]
        tried = theta - np.clip(step, -2.0, 2.0)
        tried[:, k + 1 :] = np.clip(tried[:, k + 1 :], *EXPONENTS)
        after = _objective(tried, x, y)
        better = after < cost
        gain = np.where(better, (cost - after) / np.maximum(cost, 1e-300), 0.0)
        theta[better], cost = tried[better], np.minimum(cost, after)
        damping = np.clip(np.where(better, damping / 4, damping * 4), 1e-12, 1e8)
        if not (better & (gain > 1e-10)).any() and (damping[~better] > 1e4).all():
            break
    return theta


def _starts(form: str, centre: Array) -> Array:
    """The paper's grid of starts, in the centred variables."""
    k = len(centre)
    grid = itertools.product(*[COEFFICIENTS] * k, CONSTANTS, *[STARTS] * k)
    theta = np.array(list(grid), dtype=np.float64)
    theta[:, :k] -= theta[:, k + 1 :] * centre  # A / N^alpha = A exp(-alpha mean) / exp(alpha (log N - mean))
    return theta


def _constants(form: str, theta: Array, centre: Array) -> dict[str, Array]:
    """Constants by name, as the formulas have them, (S,) each."""
    k = len(centre)
    logs = theta[:, : k + 1].copy()
    logs[:, :k] += theta[:, k + 1 :] * centre
    # exp of a hundred would be no use to anybody, and inf would break JSON
    values = np.concatenate([np.exp(np.clip(logs, -200, 200)), theta[:, k + 1 :]], axis=1)
    return dict(zip(NAMES[form], values.T, strict=True))


def _bootstrap(best: Array, x: Array, errors: Array, seed: int) -> Array:
    """Fits to data redrawn from the law and its residuals, (BOOTSTRAPS, 2 k + 1).

    The residuals are drawn again, not the runs (Efron & Tibshirani 1993, section 9.4): the sizes of a ladder are
    chosen, and of five runs drawn with replacement too few differ to fit anything.
    """
    rng = np.random.default_rng(seed)
    y = _log_loss(best[None], x) + rng.choice(errors, size=(BOOTSTRAPS, len(errors)))
    return _solve(np.repeat(best[None], BOOTSTRAPS, axis=0), x, y, steps=100)


def _interval(values: Array) -> tuple[float, float]:
    low, high = np.percentile(values, INTERVAL)
    return float(low), float(high)
