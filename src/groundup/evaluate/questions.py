"""What is asked: builtin tasks and local JSONL files, read and checked before a model is loaded.

Nothing here needs lm-eval; tasks.py turns these into the harness' own tasks.
"""

from __future__ import annotations

import json
import random
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from groundup.data.town.tasks import TASKS, TownTask
from groundup.errors import did_you_mean, problems
from groundup.recipe.schema import EvaluateSection, TaskSource

SHOWN = 10  # broken lines listed of one file


@dataclass(frozen=True)
class Item:
    """One question. `gold`: accepted answers (generation), or the index of the right choice."""

    id: str
    prompt: str
    gold: Any
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class TaskPlan:
    """One task as it will be run. `score(item, answer) -> 0.0 or 1.0` (generation only)."""

    name: str
    kind: Literal["generate", "choice"]
    metric: str
    description: str
    higher_is_better: bool
    chance: float | None
    items: list[Item]
    score: Callable[[Item, str], float] | None = None


def plan_tasks(section: EvaluateSection, seed: int) -> list[TaskPlan]:
    """The section's tasks with their questions, at most `limit` each, the same ones for the same seed.

    Errors: one UserError that lists every unknown task, missing file and broken line.
    """
    found: list[str] = []
    plans: list[TaskPlan] = []
    for task in section.tasks:
        if isinstance(task, TaskSource):
            plan = _read_source(task, found)
        elif task in TASKS:
            plan = _town(TASKS[task], seed)
        else:
            found.append(f"unknown task {task!r}{did_you_mean(task, TASKS)}; a JSONL file needs name and path")
            continue
        if plan is not None:
            plans.append(plan)
    names = [task.name if isinstance(task, TaskSource) else task for task in section.tasks]
    found += [f"task name {name!r} is given twice" for name in sorted({n for n in names if names.count(n) > 1})]
    problems("evaluate.tasks", found)
    return [_limited(plan, section.limit, seed) for plan in plans]


def _limited(plan: TaskPlan, limit: int | None, seed: int) -> TaskPlan:
    """At most `limit` questions, drawn (a file may be sorted by topic) and left in their order."""
    if limit is None or limit >= len(plan.items):
        return plan
    picked = sorted(random.Random(seed).sample(range(len(plan.items)), limit))
    items = [plan.items[i] for i in picked]
    return TaskPlan(
        **{**plan.__dict__, "items": items, "chance": plan.chance if items[0].choices == () else _chance(items)}
    )


def _chance(items: Sequence[Item]) -> float:
    """Score of guessing among the choices of these questions."""
    return sum(1 / len(item.choices) for item in items) / len(items)


def _town(task: TownTask, seed: int) -> TaskPlan:
    questions = {question.id: question for question in task.questions(seed)}
    return TaskPlan(
        name=task.name,
        kind="generate",
        metric=task.metric,
        description=task.description,
        higher_is_better=task.higher_is_better,
        chance=task.chance,
        items=[Item(q.id, q.prompt, q.gold) for q in questions.values()],
        score=lambda item, answer: task.score(questions[item.id], answer),
    )


# ---- local JSONL ----


def normalise(text: str) -> str:
    """An answer as it is compared: case folded, spaces collapsed, punctuation at the end dropped."""
    text = re.sub(r"\s+", " ", text.strip().casefold())
    while text and (text[-1].isspace() or unicodedata.category(text[-1]).startswith("P")):
        text = text[:-1]
    return text


def exact_match(item: Item, answer: str) -> float:
    """1.0 when the answer, normalised, is one of the accepted ones."""
    return float(normalise(answer) in {normalise(gold) for gold in item.gold})


def _read_source(task: TaskSource, found: list[str]) -> TaskPlan | None:
    """The questions of a JSONL file; what is wrong with it goes to `found`."""
    path = Path(task.path)
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        found.append(f"{task.name}: cannot read {path} ({error.strerror})")
        return None
    items: list[Item] = []
    wrong: list[str] = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            item = _read_line(line, number, task)
            if isinstance(item, Item):
                items.append(item)
            else:
                wrong.append(f"{task.name}: {path}, line {number}: {item}")
    if not items and not wrong:
        wrong.append(f"{task.name}: {path} holds no questions")
    more = len(wrong) - SHOWN
    found += wrong[:SHOWN] + ([f"{task.name}: {path}: {more} more broken lines"] if more > 0 else [])
    if wrong:
        return None
    if task.choices_field is None:
        description = f"answers generated to {path.name}, exact match after normalisation"
        return TaskPlan(task.name, "generate", "exact_match", description, True, None, items, exact_match)
    description = f"multiple choice by log-likelihood on {path.name}"
    return TaskPlan(task.name, "choice", "acc", description, True, _chance(items), items)


def _read_line(line: bytes, number: int, task: TaskSource) -> Item | str:
    """One question, or what is wrong with the line."""
    try:
        row = json.loads(line)
    except UnicodeDecodeError:
        return "not UTF-8"
    except json.JSONDecodeError as error:
        return f"not JSON ({error})"
    if not isinstance(row, dict):
        return f"expected an object, got {type(row).__name__}"
    fields = [task.prompt_field, task.answer_field] + ([task.choices_field] if task.choices_field else [])
    if missing := [name for name in fields if name not in row]:
        return "; ".join(f"no field {name!r}{did_you_mean(name, row)}" for name in missing)
    prompt, answer = row[task.prompt_field], row[task.answer_field]
    if not isinstance(prompt, str) or not prompt.strip():
        return f"{task.prompt_field!r} must be text (got {prompt!r})"
    name = str(row.get("id", f"line-{number}"))
    if task.choices_field is None:
        golds = _golds(answer)
        return Item(name, prompt, golds) if golds else f"{task.answer_field!r} must be an answer or a list of them"
    choices = row[task.choices_field]
    if not _are_choices(choices):
        return f"{task.choices_field!r} must be a list of at least two different texts"
    index = choices.index(answer) if answer in choices else answer
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(choices):
        return f"{task.answer_field!r} must be one of the choices or its index, from 0 (got {answer!r})"
    return Item(name, prompt, index, tuple(choices))


def _golds(answer: Any) -> list[str] | None:
    """Accepted answers as texts; None when there is none, or one that an empty answer would match."""
    answers = answer if isinstance(answer, list) else [answer]
    if any(isinstance(a, bool) or not isinstance(a, str | int | float) for a in answers):
        return None
    golds = [str(a) for a in answers]
    return golds if golds and all(normalise(gold) for gold in golds) else None


def _are_choices(choices: Any) -> bool:
    # A choice with nothing in it costs nothing and always wins; two alike cannot be told apart.
    texts = isinstance(choices, list) and all(isinstance(c, str) and c.strip() for c in choices)
    return texts and len(choices) >= 2 and len(set(choices)) == len(choices)
