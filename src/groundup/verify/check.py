"""What a check is: one silent bug, one number that betrays it, and the bound that number must keep."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from groundup.verify.subject import Subject

Family = Literal["invariance", "locality", "identity", "sensitivity"]
Stage = Literal["model", "tokenizer", "data", "train", "chat", "tune", "infer"]

FAMILIES: tuple[Family, ...] = ("invariance", "locality", "identity", "sensitivity")


class NotApplicable(Exception):
    """Raised by a check that has nothing to look at in this recipe. Reported as skipped, never as passed."""


@dataclass(frozen=True)
class Measurement:
    """A number and the bound it must keep: value <= bound, or value >= bound where `direction` says so.

    A value that is not a number keeps no bound.
    """

    value: float
    bound: float
    note: str = ""
    direction: Literal["<=", ">="] = "<="

    @property
    def passed(self) -> bool:
        if math.isnan(self.value) or math.isnan(self.bound):
            return False
        return self.value <= self.bound if self.direction == "<=" else self.value >= self.bound


@dataclass(frozen=True)
class Check:
    """One check. `run` measures; its docstring says how, and why the bound is where it is.

    bug: what goes wrong, unseen, when this fails.  remedy: where to look first.  reference: paper, equation or
    public report; "" when the reason is plain arithmetic.
    """

    id: str
    family: Family
    stage: Stage
    bug: str
    remedy: str
    reference: str
    run: Callable[[Subject], Measurement]


REGISTRY: dict[str, Check] = {}  # in the order of definition, which is the order in which they run
_ID = re.compile(r"^[a-z0-9]+(-[a-z0-9]+)*$")


def check(
    id: str, family: Family, stage: Stage, *, bug: str, remedy: str, reference: str = ""
) -> Callable[[Callable[[Subject], Measurement]], Callable[[Subject], Measurement]]:
    """Register the decorated function as a check."""

    def register(run: Callable[[Subject], Measurement]) -> Callable[[Subject], Measurement]:
        if not _ID.match(id):
            raise ValueError(f"check id {id!r} is not kebab-case")
        if id in REGISTRY:
            raise ValueError(f"two checks are called {id}")
        if not run.__doc__:
            raise ValueError(f"check {id}: its docstring must say how it measures and why the bound is right")
        REGISTRY[id] = Check(id, family, stage, bug, remedy, reference, run)
        return run

    return register


def violations(found: list[str], of: int) -> Measurement:
    """A check that counts: the number of things that are wrong, out of `of` looked at; none may be.

    Nothing looked at is a failure of the check itself, not a pass.
    """
    if of == 0:
        return Measurement(math.nan, 0.0, "nothing was looked at")
    note = (
        f"{of:,} looked at"
        if not found
        else "; ".join(found[:4]) + (f"; {len(found) - 4} more" if len(found) > 4 else "")
    )
    return Measurement(float(len(found)), 0.0, note)
