"""The live checks at work: looks at a training stage's vital signs, keeps what it saw, stops the run when one fails."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

from groundup.errors import CheckFailed
from groundup.record.files import read_json, write_json
from groundup.train.vitals import Vitals
from groundup.verify import describe
from groundup.verify.check import Face
from groundup.verify.run import report, run_checks

FILE = "live.json"


@dataclass(frozen=True)
class Running:
    """A training stage as a target."""

    vitals: Vitals
    kind = "training stage"

    def face(self, name: Face) -> Any | None:
        return self.vitals if name == "vitals" else None


class Watch:
    """Give it to the loop as `Job.watch`. folder: of the stage; its live.json holds every look, by step.

    allow: ids that may fail; they are warned of, and stand in live.json for the card to tell.  key: of the stage; looks
    at a run with another one are forgotten.
    """

    def __init__(self, folder: Path, allow: Collection[str], warn: Callable[[str], None], key: str = "") -> None:
        self.path, self.allow, self.warn, self.key = folder / FILE, set(allow), warn, key

    def __call__(self, vitals: Vitals) -> None:
        found = report(run_checks(Running(vitals), stages=["live"]))
        looks = self._looks() if vitals.step > 1 else {}
        looks[str(vitals.step)] = {**found, "numbers": vitals.numbers()}
        write_json(self.path, {"key": self.key, "looks": looks})
        judge(found, self.allow, f"{vitals.stage}, step {vitals.step}", self.warn)

    def resume(self, stage: str) -> None:
        """Before a stage goes on: what stopped it stops it again, unless it is allowed now. Errors: CheckFailed."""
        for step, found in list(self._looks().items())[-1:]:
            judge(found, self.allow, f"{stage}, step {step}", self.warn)

    def _looks(self) -> dict[str, Any]:
        found = read_json(self.path) if self.path.exists() else {}
        return dict(found["looks"]) if found.get("key") == self.key else {}


def judge(found: dict[str, Any], allow: Collection[str], where: str, warn: Callable[[str], None]) -> list[str]:
    """Warn of failed checks that are allowed and give their ids. Errors: CheckFailed that describes all the others."""
    failed = [c for c in found["checks"] if not c["passed"]]
    for one in failed:
        if one["id"] in allow:
            warn(f"{where}: let through by verify.allow: {_brief(one)}")
    lines = [f"  - {describe(c)}" for c in failed if c["id"] not in allow]
    if lines:
        raise CheckFailed(
            f"{where}: {len(lines)} checks failed\n"
            + "\n".join(lines)
            + "\nWhat was saved is kept. To go on all the same: groundup run ... --allow ID (the card will say so)"
        )
    return [c["id"] for c in failed]


def _brief(check: dict[str, Any]) -> str:
    """A failed check that was allowed, in a line: whoever allowed it knows it; the report holds all of its note."""
    note = shorten(check["note"], 120, placeholder=" ...")
    return f"{check['id']}: measured {check['measured']}, bound {check['direction']} {check['bound']} ({note})"
