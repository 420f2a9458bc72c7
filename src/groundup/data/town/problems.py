"""Problems for GRPO, with a reward that only the right result earns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from groundup.data.town.arithmetic import ask_sum, draw_sum, result, score_sum
from groundup.data.town.draw import rng


def problem(seed: int, index: int) -> dict[str, Any]:
    """Problem `index`: {"prompt": messages, "answer": "85", "kind": "arithmetic"}, from the training pairs."""
    draw = rng("problem", seed, index)
    numbers = draw_sum(draw)
    prompt = [{"role": "user", "content": ask_sum(draw, numbers)}]
    return {"prompt": prompt, "answer": str(result(numbers)), "kind": "arithmetic"}


def problems(seed: int, n: int) -> Iterator[dict[str, Any]]:
    """n problems, each a pure function of (seed, index)."""
    for index in range(n):
        yield problem(seed, index)


def reward(problem: dict[str, Any], answer_text: str) -> float:
    """1.0 when the one result stated is right; 0.0 for anything else (see `score_sum`)."""
    return score_sum(problem["prompt"][-1]["content"], problem["answer"], answer_text)
