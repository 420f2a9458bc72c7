"""Run the checks on a target, cheapest first; a list of results, a report as a dict, a table for people."""

from __future__ import annotations

import difflib
import math
import time
import traceback
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from groundup.errors import did_you_mean, nearest, problems
from groundup.verify import (
    checks,  # noqa: F401  (importing it registers every check)
    draw,
    explain,
)
from groundup.verify.check import FAMILIES, REGISTRY, STAGES, Check, Face, Measurement, NotApplicable
from groundup.verify.costs import cost
from groundup.verify.target import Target

if TYPE_CHECKING:
    from rich.console import Group


@dataclass(frozen=True)
class Result:
    """What one check found.

    skipped: why it did not apply, or None; a skipped check has neither passed nor failed.
    measured, bound: None when the check was skipped or broke off with an error (then `note` holds it).
    found: every (place, what is wrong there), where the check counts places.
    """

    id: str
    family: str
    stage: str
    passed: bool
    measured: float | None
    bound: float | None
    direction: str
    bug: str
    remedy: str
    reference: str
    note: str
    seconds: float
    skipped: str | None = None
    found: tuple[tuple[str, str], ...] = ()

    @property
    def failed(self) -> bool:
        return not self.passed and self.skipped is None


def select(
    only: Iterable[str] | None = None, families: Iterable[str] | None = None, stages: Iterable[str] | None = None
) -> list[Check]:
    """The checks asked for, in the order of definition. UserError for an id, family or stage that does not exist."""
    only, families, stages = list(only or []), list(families or []), list(stages or [])
    found = [f'there is no check "{name}"{_nearest(name)}' for name in only if name not in REGISTRY]
    for kind, asked, known in (("family", families, FAMILIES), ("stage", stages, STAGES)):
        found += [f'there is no {kind} "{name}"{did_you_mean(name, known)}' for name in asked if name not in known]
    problems("verify", found)
    return [
        c
        for c in REGISTRY.values()
        if (not only or c.id in only) and (not families or c.family in families) and (not stages or c.stage in stages)
    ]


def _nearest(name: str) -> str:
    """The one check that is meant, or a few of like names or with the word in them: all would fill the screen."""
    see = "; see groundup verify --list"
    if (near := nearest(name, REGISTRY)) != "":
        return near + see
    holding = [id for id in REGISTRY if len(name) > 2 and name.casefold() in id]
    few = (holding or difflib.get_close_matches(name.casefold(), REGISTRY, n=3, cutoff=0.3))[:3]
    return (f" (nearest: {', '.join(few)})" if few else "") + see


def faces(one: Check, target: Target) -> list[Face]:
    """The faces of the target that this check looks at; a recipe's own way, where there is one, stands for all."""
    found = [face for face in one.ways() if target.face(face) is not None]
    return found[:1] if found[:1] == ["recipe"] else found


def applicable(
    target: Target,
    only: Iterable[str] | None = None,
    families: Iterable[str] | None = None,
    stages: Iterable[str] | None = None,
) -> list[Check]:
    """What `run_checks` will run: of the checks asked for, those that look at a face that the target has.

    A check named in `only` is kept whatever it looks at: it will be reported as skipped, with the reason.
    """
    only = list(only or [])
    return [c for c in select(only, families, stages) if c.id in only or faces(c, target)]


def run_checks(
    target: Target,
    only: Iterable[str] | None = None,
    families: Iterable[str] | None = None,
    stages: Iterable[str] | None = None,
    seed: int = 0,
    on_check: Callable[[int, int, Result], None] | None = None,
) -> list[Result]:
    """Run the selected checks (all that apply when nothing is selected); on_check(done, total, result) after each.

    The cheapest are run first; the results are in the order of definition. Each check starts from its own seed, so its
    result does not depend on which others ran; `seed` gives all of them other weights and other tokens. torch's random
    state and number of threads are put back afterwards. A check that raises has failed, with the error as its note.
    """
    chosen = applicable(target, only, families, stages)
    if target.kind == "model" and (model := target.face("model")) is not None:
        model.answers()
    results = {}
    with torch.random.fork_rng(devices=[]), _one_thread(), draw.shift(seed):
        for done, one in enumerate(sorted(chosen, key=lambda c: cost(c.id)), 1):
            # The CPU's alone: torch.manual_seed would move the generators of a GPU that is training.
            torch.random.default_generator.manual_seed(draw.shifted(zlib.crc32(one.id.encode())))
            results[one.id] = _run(one, target)
            if on_check is not None:
                on_check(done, len(chosen), results[one.id])
    return [results[one.id] for one in chosen]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Matmuls of 32 x 32 spend their time waiting for each other on more than one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _run(one: Check, target: Target) -> Result:
    begun = time.perf_counter()
    passed, measured, bound, direction, skipped = False, None, None, "<=", None
    found: tuple[tuple[str, str], ...] = ()
    try:
        measurement = _measured(one, target)
        passed, note, direction = measurement.passed, measurement.note, measurement.direction
        measured, bound = _plain(measurement.value), _plain(measurement.bound)
        found = measurement.found
    except NotApplicable as reason:
        skipped = note = str(reason)
    except (Exception, SystemExit) as error:  # a model that exits has not passed
        where = traceback.extract_tb(error.__traceback__)[-1]
        note = f"{type(error).__name__}: {error} ({where.filename.rpartition('/')[2]}:{where.lineno})"
    return Result(
        one.id,
        one.family,
        one.stage,
        passed,
        measured,
        bound,
        direction,
        one.bug,
        explain.remedy(one, target.kind),
        one.reference,
        note,
        round(time.perf_counter() - begun, 3),
        skipped,
        found,
    )


def _measured(one: Check, target: Target) -> Measurement:
    """Over all faces: the first measurement that does not keep its bound, or else the first. NotApplicable if none."""
    reasons, kept = [], None
    for face in faces(one, target):
        try:
            measurement = one.ways()[face](target.face(face))
        except NotApplicable as reason:
            reasons.append(str(reason))
            continue
        if not measurement.passed:
            return measurement
        kept = kept or measurement
    if kept is None:
        kind = f"it looks at a {' or a '.join(one.ways())}; this is a {target.kind}"
        raise NotApplicable("; ".join(reasons) or kind)
    return kept


def _plain(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None  # JSON has no NaN


def report(results: Sequence[Result]) -> dict[str, Any]:
    """{"checks": [{id, family, passed, measured, bound, ...}], "failed": int, "skipped": [{id, stage, reason}]}.

    A check that failed on rows has "found" too, all of them: [{"where", "what"}]; "note" names the first few.
    """
    keys = (
        "id",
        "family",
        "stage",
        "passed",
        "measured",
        "bound",
        "direction",
        "bug",
        "remedy",
        "reference",
        "note",
        "seconds",
    )
    return {
        "checks": [{key: getattr(r, key) for key in keys} | _places(r) for r in results if r.skipped is None],
        "failed": sum(r.failed for r in results),
        "skipped": [{"id": r.id, "stage": r.stage, "reason": r.skipped} for r in results if r.skipped is not None],
    }


def _places(result: Result) -> dict[str, Any]:
    found = [{"where": where, "what": what} for where, what in result.found]
    return {"found": found} if found and result.failed else {}


def table(found: dict[str, Any] | Sequence[Result]) -> Group:
    """Checks, one a line; then what failed, with the bug, the numbers and the remedy in full; then what was skipped.

    found: a report, or results, of which it makes one.
    """
    found = found if isinstance(found, dict) else report(found)
    from rich.console import Group
    from rich.markup import escape
    from rich.padding import Padding
    from rich.text import Text

    width = max((len(one["id"]) for one in found["checks"]), default=0)
    parts: list[Any] = []
    for one in found["checks"]:  # a line each, cut at the terminal's edge: an id cut short cannot be asked for
        numbers = f"{_short(one['measured']):>9} {one['direction']} {_short(one['bound']):<9}"
        mark = ("ok   ", "green") if one["passed"] else ("FAIL ", "bold red")
        note = (one["note"], "dim") if one["passed"] else ("see below", "red")
        line = Text.assemble(mark, f"{one['id']:<{width}} {numbers} ", note, no_wrap=True, overflow="ellipsis")
        parts.append(line)
    for one in found["checks"]:
        if not one["passed"]:
            words = [f"[bold red]{one['id']}[/]  {escape(one['bug'])}", escape(one["note"]), escape(one["remedy"])]
            parts.append(Padding("\n".join(words), (1, 0, 0, 0)))
    if found["skipped"]:
        parts.append(Padding(Text("\n".join(_skips(found["skipped"])), style="dim"), (1 if parts else 0, 0, 0, 0)))
    return Group(*parts)


def _skips(skipped: list[dict[str, Any]]) -> list[str]:
    """A line for each reason, with the ids; what an adapter lacks is one reason, whatever each check needs it for."""
    reasons: dict[str, list[dict[str, Any]]] = {}
    for one in skipped:
        lacks = one["reason"].startswith("the adapter has no ")
        reasons.setdefault(one["reason"].partition(":")[0] if lacks else one["reason"], []).append(one)
    alone = [f"skip  {ones[0]['id']}: {ones[0]['reason']}" for ones in reasons.values() if len(ones) == 1]
    many = [
        f"skip  {len(ones)} checks, {reason}: {', '.join(one['id'] for one in ones)}"
        for reason, ones in reasons.items()
        if len(ones) > 1
    ]
    return many + alone


def show(found: dict[str, Any]) -> None:
    """Print a report: the table, and one line that counts."""
    from rich.console import Console

    console = Console(highlight=False)
    console.print(table(found))
    passed = sum(one["passed"] for one in found["checks"])
    console.print(f"{passed} passed, {found['failed']} failed, {len(found['skipped'])} do not apply")


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
