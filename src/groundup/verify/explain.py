"""All about one check, in words: for `--list`, `--explain` and the docs."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from groundup.verify.check import Check
from groundup.verify.costs import cost

if TYPE_CHECKING:
    from rich.table import Table


def as_dict(one: Check) -> dict[str, Any]:
    """{"id", "family", "stage", "bug", "how": {face: docstring}, "remedy", "reference", "false_alarm", "seconds"}."""
    return {
        "id": one.id,
        "family": one.family,
        "stage": one.stage,
        "bug": one.bug,
        "how": {face: inspect.cleandoc(way.__doc__ or "") for face, way in one.ways().items()},
        "remedy": one.remedy,
        "reference": one.reference,
        "false_alarm": one.false_alarm,
        "seconds": cost(one.id),
    }


def as_text(one: Check) -> str:
    """The same to read."""
    said = as_dict(one)
    lines = [f"{said['id']}   {said['family']}, {said['stage']}", "", said["bug"], ""]
    for face, how in said["how"].items():
        lines += [f"Measured on a {face}:", *("  " + line for line in how.splitlines()), ""]
    lines += [f"Remedy     {said['remedy']}"]
    if said["reference"]:
        lines += [f"Reference  {said['reference']}"]
    chance = f"{said['false_alarm']:.0e} a run" if said["false_alarm"] else "none: the bound is arithmetic"
    lines += [f"False alarm by chance: {chance}", f"Seconds    {said['seconds']:g}"]
    return "\n".join(lines)


def list_table(chosen: list[Check]) -> Table:
    """Checks, one a row."""
    from rich.markup import escape
    from rich.table import Table

    out = Table("check", "family", "stage", "looks at", "the bug", box=None, pad_edge=False)
    out.columns[0].no_wrap = True
    for one in chosen:
        out.add_row(one.id, one.family, one.stage, ", ".join(one.ways()), escape(one.bug))
    return out
