"""Verifiable rewards: right is 1, wrong is 0, and an empty answer or an echo of the question is wrong."""

from __future__ import annotations

import re

from groundup.data import town
from groundup.tune.formats import Problem

_NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?")  # the 3 of 5-3 is not -3


def reward(problem: Problem, answer: str) -> float:
    """1.0 when `answer` solves `problem`, by the rule of the problem's kind."""
    if problem.kind == "arithmetic":
        return town.reward({"prompt": problem.prompt, "answer": problem.answer, "kind": problem.kind}, answer)
    for message in problem.prompt:  # what only repeats the question answers nothing
        answer = answer.replace(message["content"], " ")
    return float(stated_number(answer) == _value(problem.answer))


def stated_number(text: str) -> float | None:
    """The one number that an answer states: after #### (GSM8K's convention), else behind its last "=", else the only
    one it names. None when there is none, or several: a list of guesses is no answer."""
    stated = text.rpartition("####")[2] if "####" in text else text.rpartition("=")[2]
    numbers = {_value(found) for found in _NUMBER.findall(stated)}
    return numbers.pop() if len(numbers) == 1 else None


def _value(text: str) -> float:
    return float(text.replace(",", ""))
