"""Our questions as tasks of lm-evaluation-harness, and the call that runs one. Needs lm-eval, needs no network.

Tasks are built from Python objects and handed to the evaluator: the harness' own index of tasks is never read (it
takes 20 s), and no dataset is looked up anywhere.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from groundup.errors import missing_extra
from groundup.evaluate.questions import Item, TaskPlan

try:
    import lm_eval.api.task as harness
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.evaluator import evaluate
except ImportError as error:
    raise missing_extra("eval", "lm-eval") from error

from groundup.evaluate.adapter import GroundupLM

# The harness computes no stderr at 0; a mean's is closed form, so that 1 draws nothing.
_STDERR = 1


class _Documents(list[dict[str, Any]]):
    """A split: the part of a datasets.Dataset that the harness touches. Arrow would fill unlike rows with None."""

    features = {"item": None}  # noqa: RUF012


@dataclass(frozen=True)
class Outcome:
    """What became of one question: the answer (generated, or the choice picked) and its score, 0.0 or 1.0."""

    item: Item
    answer: str
    score: float


@dataclass(frozen=True)
class TaskResult:
    """Mean of each metric with the harness' own stderr (None for a single question), and the outcomes."""

    metrics: dict[str, tuple[float, float | None]]
    n: int
    outcomes: list[Outcome]


def build(plan: TaskPlan, max_new_tokens: int) -> ConfigurableTask:
    """The harness' task for a plan.

    Generation: chat format (the prompt is a user's turn), greedy, scored by plan.score. Choice: the choice
    follows the prompt as plain text, " " between them (the cloze form, which small models can do at all); acc takes the
    largest sum of log-probabilities, acc_norm the largest per character.
    """
    documents = _Documents({"item": item} for item in plan.items)
    config: dict[str, Any] = {
        "task": plan.name,
        "custom_dataset": lambda **_: {"test": documents},
        "test_split": "test",
        "doc_to_text": lambda doc: doc["item"].prompt,
        "num_fewshot": 0,
    }
    if plan.kind == "choice":
        config |= {
            "output_type": "multiple_choice",
            "doc_to_choice": lambda doc: list(doc["item"].choices),
            "doc_to_target": lambda doc: doc["item"].gold,
            "metric_list": [_mean("acc", True), _mean("acc_norm", True)],
        }
    else:
        config |= {
            "output_type": "generate_until",
            "doc_to_target": lambda doc: json.dumps(doc["item"].gold, ensure_ascii=False),
            "process_results": partial(_score, plan),
            "metric_list": [_mean(plan.metric, plan.higher_is_better)],
            "generation_kwargs": {"until": [], "max_gen_toks": max_new_tokens, "do_sample": False},
        }
    with quiet():
        task = ConfigurableTask(config=config)
    task.set_fewshot_seed(0)
    return task


def _mean(metric: str, higher_is_better: bool) -> dict[str, Any]:
    return {"metric": metric, "aggregation": "mean", "higher_is_better": higher_is_better}


def _score(plan: TaskPlan, doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """The harness' process_results. Errors: ValueError for a score that is not 0 or 1 (NaN would pass as a mean)."""
    assert plan.score is not None
    score = plan.score(doc["item"], results[0])
    if score not in (0, 1):
        raise ValueError(f"{plan.name}: question {doc['item'].id} scored {score!r}, expected 0 or 1")
    return {plan.metric: float(score)}


def run_task(lm: GroundupLM, plan: TaskPlan, max_new_tokens: int) -> TaskResult:
    """Ask every question of one task. Whatever fails raises: nothing is turned into a score of zero."""
    task = build(plan, max_new_tokens)
    with quiet():
        found = evaluate(
            lm,
            {"tasks": {plan.name: task}, "groups": {}},
            bootstrap_iters=_STDERR,
            apply_chat_template=plan.kind == "generate",
        )
    assert found is not None  # None only on other ranks
    values, n = found["results"][plan.name], found["n-samples"][plan.name]["effective"]
    samples = found["samples"][plan.name]
    if not n == len(samples) == len(plan.items):
        raise RuntimeError(f"{plan.name}: {len(plan.items)} questions, but lm-eval scored {n}")
    names = ["acc", "acc_norm"] if plan.kind == "choice" else [plan.metric]
    metrics = {name: (float(values[f"{name},none"]), _stderr(values[f"{name}_stderr,none"])) for name in names}
    outcomes = [Outcome(s["doc"]["item"], _answer(plan, s), float(s[plan.metric])) for s in samples]
    return TaskResult(metrics, n, outcomes)


def _stderr(value: Any) -> float | None:
    return None if isinstance(value, str) else float(value)  # "N/A" for a single question


def _answer(plan: TaskPlan, sample: dict[str, Any]) -> str:
    if plan.kind == "generate":
        return str(sample["filtered_resps"][0])
    sums = [logprob for logprob, _ in sample["filtered_resps"]]
    return str(sample["doc"]["item"].choices[sums.index(max(sums))])


@contextmanager
def quiet() -> Iterator[None]:
    """lm-eval without its progress bars and below-error messages; both are back afterwards."""
    logger, bar = logging.getLogger("lm_eval"), harness.tqdm
    level = logger.level
    logger.setLevel(logging.ERROR)
    harness.tqdm = partial(bar, disable=True)
    try:
        yield
    finally:
        harness.tqdm = bar
        logger.setLevel(level)
