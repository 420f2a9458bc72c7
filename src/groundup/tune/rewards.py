"""Verifiable rewards: right is 1, wrong is 0, and an empty answer or an echo of the question is wrong."""

from __future__ import annotations

import re

from groundup.data import town
from groundup.tune.formats import Problem

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def reward(problem: Problem, answer: str) -> float:
    """1.0 when `answer` solves `problem`, by the rule of the problem's kind."""
    if problem.kind == "arithmetic":
        return town.reward({"prompt": problem.prompt, "answer": problem.answer, "kind": problem.kind}, answer)
    return float(last_number(answer) == _value(problem.answer))


def last_number(text: str) -> float | None:
    """The number that an answer ends with (GSM8K's convention), or None."""
    stated = text.rpartition("####")[2]
    numbers = _NUMBER.findall(stated)
    return _value(numbers[-1]) if numbers else None


def _value(text: str) -> float:
    return float(text.replace(",", ""))
