"""The live checks at work: looks at a training stage's vital signs, keeps what it saw, stops the run when one fails."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
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

    allow: ids that may fail; they are warned of, and stand in live.json for the card to tell.
    """

    def __init__(self, folder: Path, allow: Collection[str], warn: Callable[[str], None]) -> None:
        self.path, self.allow, self.warn = folder / FILE, set(allow), warn

    def __call__(self, vitals: Vitals) -> None:
        found = report(run_checks(Running(vitals), stages=["live"]))
        looks = read_json(self.path)["looks"] if self.path.exists() and vitals.step > 1 else {}
        write_json(self.path, {"looks": {**looks, str(vitals.step): {**found, "numbers": vitals.numbers()}}})
        judge(found, self.allow, f"{vitals.stage}, step {vitals.step}", self.warn)


def judge(found: dict[str, Any], allow: Collection[str], where: str, warn: Callable[[str], None]) -> list[str]:
    """Warn of failed checks that are allowed and give their ids. Errors: CheckFailed that describes all the others."""
    failed = [c for c in found["checks"] if not c["passed"]]
    for one in failed:
        if one["id"] in allow:
            warn(f"{where}: let through by verify.allow: {describe(one)}")
    lines = [f"  - {describe(c)}" for c in failed if c["id"] not in allow]
    if lines:
        raise CheckFailed(
            f"{where}: {len(lines)} checks failed\n"
            + "\n".join(lines)
            + "\nWhat was saved is kept. To go on all the same: groundup run ... --allow ID (the card will say so)"
        )
    return [c["id"] for c in failed]
