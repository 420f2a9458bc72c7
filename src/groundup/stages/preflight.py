"""What would stop a stage hours from now is looked for before the first one begins."""

from __future__ import annotations

from collections.abc import Callable, Collection
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from groundup.errors import UserError, missing_extra
from groundup.recipe.schema import ChatSource, Recipe
from groundup.stages.base import Context, evaluation
from groundup.stages.training import judgeable
from groundup.tune import formats

FIRST_ROWS = 1000  # rows of each local source that are read and converted


def preflight(ctx: Context, stages: Collection[str]) -> None:
    """Raise one UserError with everything that `stages` would trip over: missing packages, names, row formats."""
    recipe = ctx.recipe
    found: list[str] = []

    def attempt(look: Callable[[], Any]) -> None:
        try:
            look()
        except UserError as e:
            found.append(str(e))

    if any(name.startswith("evaluate-") for name in stages):
        attempt(lambda: _tasks(ctx))
    if "verify" in stages and recipe.verify.only:
        attempt(lambda: _checks(recipe))
    if find_spec("datasets") is None and any(s.dataset for s in _sources(recipe, stages)):
        found.append(str(missing_extra("hf", "datasets")))
    for stage, read in (("sft", formats.conversations), ("dpo", _dpo(recipe)), ("grpo", judgeable)):
        section = getattr(recipe, stage)
        for source in section.sources if section is not None and stage in stages else []:
            if source.dataset is None and source.builtin != "town":
                attempt(lambda read=read, source=source, stage=stage: _rows(read, source, stage, ctx.base))  # type: ignore[misc]
    if found:
        raise UserError("\n".join(found))


def _tasks(ctx: Context) -> None:
    from groundup.evaluate.questions import plan_tasks

    section = evaluation(ctx.recipe.evaluate, ctx.base)
    plan_tasks(section, ctx.recipe.seed)
    if section.tasks and find_spec("lm_eval") is None:
        raise missing_extra("eval", "lm-eval")


def _checks(recipe: Recipe) -> None:
    from groundup.verify.run import select

    select(recipe.verify.only)


def _sources(recipe: Recipe, stages: Collection[str]) -> list[Any]:
    sections = [
        recipe.data if "data" in stages else None,
        *(getattr(recipe, s) for s in ("sft", "dpo", "grpo") if s in stages),
    ]
    return [source for section in sections if section is not None for source in section.sources]


def _dpo(recipe: Recipe) -> Callable[..., Any]:
    sampled = recipe.dpo is not None and recipe.dpo.pairs == "sampled"
    return judgeable if sampled else formats.pairs


def _rows(read: Callable[..., Any], source: ChatSource, stage: str, base: Path) -> None:
    rows = min(source.max_documents or FIRST_ROWS, FIRST_ROWS)
    try:
        read([source.model_copy(update={"max_documents": rows})], 0, base)
    except UserError as e:
        raise UserError(f"{stage}: {e}") from e
