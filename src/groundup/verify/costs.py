"""What each check costs, so that the cheapest run first and a broken run is stopped soonest.

costs.json holds seconds measured on two cores by `python -m groundup.verify.costs`; only their order matters.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

FILE = Path(__file__).with_name("costs.json")
UNKNOWN = 0.1  # a check that was never measured comes among the others


@cache
def _costs() -> dict[str, float]:
    return json.loads(FILE.read_text()) if FILE.exists() else {}


def cost(id: str) -> float:
    """Seconds that a check took when it was measured last."""
    return _costs().get(id, UNKNOWN)


def measured(id: str) -> float | None:
    """Those seconds, or None for a check that a recipe is not looked at with."""
    return _costs().get(id)


def measure() -> dict[str, float]:
    """Seconds of each check on the town recipe, in the order of definition."""
    from groundup.recipe.load import load_recipe
    from groundup.verify.run import run_checks
    from groundup.verify.subject import Subject

    return {r.id: round(r.seconds, 2) for r in run_checks(Subject(load_recipe("town")))}


if __name__ == "__main__":
    FILE.write_text(json.dumps(measure(), indent=1) + "\n")
    print(f"{FILE}: {len(json.loads(FILE.read_text()))} checks")
