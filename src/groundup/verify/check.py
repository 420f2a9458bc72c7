"""What a check is: one silent bug, one number that betrays it, and the bound that number must keep."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Family = Literal["invariance", "locality", "identity", "sensitivity"]
Stage = Literal["model", "tokenizer", "data", "train", "chat", "tune", "infer", "evaluate", "export", "live"]
# What a check is handed; a target has one or several of them (target.py says which class each is).
Face = Literal["recipe", "model", "tokenizer", "checkpoint", "dataset", "vitals", "export", "gguf"]

FAMILIES: tuple[Family, ...] = get_args(Family)
STAGES: tuple[Stage, ...] = get_args(Stage)
FACES: tuple[Face, ...] = get_args(Face)


class NotApplicable(Exception):
    """Raised by a check that has nothing to look at in this recipe. Reported as skipped, never as passed."""


@dataclass(frozen=True)
class Measurement:
    """A number and the bound it must keep: value <= bound, or value >= bound where `direction` says so.

    A value that is not a number keeps no bound. found: every (place, what is wrong there) of a count of places, of
    which the note names the first few.
    """

    value: float
    bound: float
    note: str = ""
    direction: Literal["<=", ">="] = "<="
    found: tuple[tuple[str, str], ...] = ()

    @property
    def passed(self) -> bool:
        if math.isnan(self.value) or math.isnan(self.bound):
            return False
        return self.value <= self.bound if self.direction == "<=" else self.value >= self.bound


Way = Callable[[Any], Measurement]


@dataclass(frozen=True)
class Check:
    """One check. `run` measures; its docstring says how, and why the bound is where it is.

    bug: what goes wrong, unseen, when this fails.  remedy: where to look first.  reference: paper, equation or
    public report; "" when the reason is plain arithmetic.  looks_at: the face of a target that `run` is handed.
    others: further ways of looking for the same bug, by the face they are handed (see `also`).
    false_alarm: chance that one run fails though nothing is wrong; 0 where the bound is arithmetic, not chance.
    """

    id: str
    family: Family
    stage: Stage
    bug: str
    remedy: str
    reference: str
    run: Way
    looks_at: Face = "recipe"
    others: dict[Face, Way] = field(default_factory=dict)
    false_alarm: float = 0.0

    def ways(self) -> dict[Face, Way]:
        """All ways of looking, the first that a target can be looked at is taken."""
        return {self.looks_at: self.run, **self.others}


REGISTRY: dict[str, Check] = {}  # in the order of definition
_ID = re.compile(r"^[a-z0-9]+(-[a-z0-9]+)*$")


def check(
    id: str,
    family: Family,
    stage: Stage,
    *,
    bug: str,
    remedy: str,
    reference: str = "",
    looks_at: Face = "recipe",
    false_alarm: float = 0.0,
) -> Callable[[Way], Way]:
    """Register the decorated function as a check."""

    def register(run: Way) -> Way:
        if not _ID.match(id):
            raise ValueError(f"check id {id!r} is not kebab-case")
        if id in REGISTRY:
            raise ValueError(f"two checks are called {id}")
        _documented(id, run)
        REGISTRY[id] = Check(id, family, stage, bug, remedy, reference, run, looks_at, {}, false_alarm)
        return run

    return register


def also(id: str, looks_at: Face) -> Callable[[Way], Way]:
    """Register another way of looking for the bug of check `id`, on another face of a target."""

    def register(run: Way) -> Way:
        if looks_at in REGISTRY[id].ways():
            raise ValueError(f"check {id} looks at a {looks_at} already")
        _documented(id, run)
        REGISTRY[id].others[looks_at] = run
        return run

    return register


def _documented(id: str, run: Way) -> None:
    if not run.__doc__:
        raise ValueError(f"check {id}: its docstring must say how it measures and why the bound is right")


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
