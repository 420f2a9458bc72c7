"""Faults of what is asked, and of what is made of the answers."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Iterator
from typing import Any

from groundup.evaluate import compare, questions, stats
from groundup.evaluate import run as evaluation
from groundup.recipe import schema
from groundup.verify.fault import fault, swapped

# lm-eval's own classes are looked up inside: it may not be installed.


def _task(**more: Any) -> Any:
    """The harness' tasks are made with these settings besides."""
    from groundup.evaluate import tasks

    right = tasks.ConfigurableTask

    def wrong(config: dict[str, Any]) -> Any:
        return right(config={**config, **{key: make(config) for key, make in more.items()}})

    return swapped(tasks, ConfigurableTask=wrong)


@fault("examples-from-the-test-split", "question-is-asked-alone")
def examples_from_the_test_split() -> Iterator[None]:
    """Two examples before each question, taken where there are questions: from the test."""
    with _task(num_fewshot=lambda _: 2, fewshot_split=lambda _: "test"):
        yield


@fault("answer-stands-in-the-question", "question-is-asked-alone")
def answer_stands_in_the_question() -> Iterator[None]:
    """The prompt goes on to the accepted answer."""
    with _task(doc_to_text=lambda _: lambda doc: f"{doc['item'].prompt} {doc['item'].choices[doc['item'].gold]}"):
        yield


@fault("limit-takes-the-first", "equal-seeds-equal-questions")
def limit_takes_the_first() -> Iterator[None]:
    """A limit keeps the front of the file."""

    def wrong(plan: Any, limit: int | None, seed: int) -> Any:
        return dataclasses.replace(plan, items=plan.items[:limit])

    with swapped(questions, _limited=wrong):
        yield


@fault("questions-drawn-without-seed", "equal-seeds-equal-questions")
def questions_drawn_without_seed() -> Iterator[None]:
    """Questions are drawn by a generator that nobody seeded: each model gets its own."""

    def wrong(plan: Any, limit: int | None, seed: int) -> Any:
        picked = random.SystemRandom().sample(range(len(plan.items)), limit or len(plan.items))
        return dataclasses.replace(plan, items=[plan.items[i] for i in sorted(picked)])

    with swapped(questions, _limited=wrong):
        yield


@fault("beginning-of-an-answer-is-right", "scorers-know-right-from-empty")
def beginning_of_an_answer_is_right() -> Iterator[None]:
    """An answer that the accepted one begins with is right: saying nothing always is."""

    def wrong(item: Any, answer: str) -> float:
        return float(any(questions.normalise(gold).startswith(questions.normalise(answer)) for gold in item.gold))

    with swapped(questions, exact_match=wrong):
        yield


@fault("answer-anywhere-is-right", "scorers-know-right-from-empty")
def answer_anywhere_is_right() -> Iterator[None]:
    """An answer that holds the accepted one is right: 13 holds 3."""

    def wrong(item: Any, answer: str) -> float:
        return float(any(questions.normalise(gold) in questions.normalise(answer) for gold in item.gold))

    with swapped(questions, exact_match=wrong):
        yield


def _sampling(change: Callable[[dict[str, Any]], dict[str, Any]], **after: Any) -> Any:
    from groundup.evaluate.adapter import GroundupLM

    right = GroundupLM.sampling

    def wrong(self: GroundupLM, kwargs: dict[str, Any], n_prompt: int, index: int) -> Any:
        params = right(self, change(dict(kwargs)), n_prompt, index)
        return dataclasses.replace(params, **{key: make(self) for key, make in after.items()})

    return swapped(GroundupLM, sampling=wrong)


@fault("harness-stops-at-end-of-text-alone", "harness-settings-are-obeyed")
def harness_stops_at_end_of_text_alone() -> Iterator[None]:
    """Answers of a chat model run on past the end of their turn."""
    with _sampling(lambda kwargs: kwargs, stop_ids=lambda lm: (lm.text_tokenizer.eos,)):
        yield


@fault("harness-drops-unknown-settings", "harness-settings-are-obeyed")
def harness_drops_unknown_settings() -> Iterator[None]:
    """A setting with a slip in its name is dropped."""
    known = ("until", "do_sample", "temperature", "top_k", "top_p", "max_gen_toks", "max_new_tokens", "max_tokens")
    with _sampling(lambda kwargs: {key: value for key, value in kwargs.items() if key in known}):
        yield


@fault("harness-samples-at-zero", "harness-settings-are-obeyed")
def harness_samples_at_zero() -> Iterator[None]:
    """`temperature or 1.0`: greedy decoding is asked for, and sampled."""
    with _sampling(lambda k: {**k, "temperature": k["temperature"] or 1.0} if "temperature" in k else k):
        yield


# ---- statistics and keys ----


@fault("interval-of-wald", "score-below-the-noise-floor-is-marked")
def interval_of_wald() -> Iterator[None]:
    """k/n +- 1.96 standard errors: nothing at all wide where nothing was right."""

    def wrong(k: float, n: int, z: float = 1.96) -> stats.Interval:
        p = k / n
        spread = z * math.sqrt(p * (1 - p) / n)
        return stats.Interval(p, max(p - spread, 0.0), min(p + spread, 1.0))

    with swapped(evaluation, wilson=wrong):
        yield


@fault("interval-of-one-deviation", "score-below-the-noise-floor-is-marked")
def interval_of_one_deviation() -> Iterator[None]:
    """The interval called 95% is one of 68%."""
    right = stats.wilson
    with swapped(evaluation, wilson=lambda k, n: right(k, n, 1.0)):
        yield


@fault("chance-is-marked-below-alone", "score-below-the-noise-floor-is-marked")
def chance_is_marked_below_alone() -> Iterator[None]:
    """A score is marked as chance when it lies under it, not when its interval does not reach beyond."""
    right = compare._cell

    def wrong(score: Any) -> str:
        return right(score if score is None or score["value"] <= score["chance"] else {**score, "chance": None})

    with swapped(compare, _cell=wrong):
        yield


@fault("chance-of-the-first-question", "chance-is-of-the-questions-asked")
def chance_of_the_first_question() -> Iterator[None]:
    """The number of choices is taken from the first question."""
    right = questions._read_source

    def wrong(*given: Any) -> Any:
        plan = right(*given)
        if plan is not None and plan.chance:
            plan = dataclasses.replace(plan, chance=1 / len(plan.items[0].choices))
        return plan

    with swapped(questions, _read_source=wrong):
        yield


@fault("one-sided-paired-test", "paired-test-is-exact")
def one_sided_paired_test() -> Iterator[None]:
    """One tail of the binomial: every difference looks twice as sure."""
    right = stats.mcnemar
    with swapped(stats, mcnemar=lambda a, b: (found := right(a, b))._replace(p=found.p / 2 if found.p < 1 else 1.0)):
        yield


@fault("unread-keys-are-dropped", "unread-key-is-refused")
def unread_keys_are_dropped() -> Iterator[None]:
    """One section of the recipe, a task's, takes any key."""
    section = schema.TaskSource
    section.model_config["extra"] = "ignore"
    section.model_rebuild(force=True)
    try:
        yield
    finally:
        section.model_config["extra"] = "forbid"
        section.model_rebuild(force=True)
