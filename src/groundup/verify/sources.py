"""A recipe's tuning data under inspection: the rows of its sft, dpo and grpo sections, as those stages read them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from groundup.recipe.schema import Recipe
from groundup.verify.rows import rows_of
from groundup.verify.run import Result, run_checks

STAGES = ("sft", "dpo", "grpo")


def check_sources(
    recipe: Recipe,
    base: Path,
    only: Iterable[str] | None = None,
    families: Iterable[str] | None = None,
    stages: Iterable[str] | None = None,
    on_check: Callable[[int, int, Result], None] | None = None,
) -> list[Result]:
    """The dataset checks on each section's local files, one after the other; its name stands before each note.

    What a section makes itself (builtin: town) or fetches is not looked at. Errors: UserError for files that are not
    there, or rows of no known format.
    """
    found = []
    for name in STAGES:
        section = getattr(recipe, name)
        rows = rows_of(section.sources, base) if section is not None else None
        if rows is not None:
            asked = run_checks(rows, only, families, stages, on_check=on_check)
            found += [replace(r, note=f"{name}: {r.note}", skipped=r.skipped and f"{name}: {r.skipped}") for r in asked]
    return found
