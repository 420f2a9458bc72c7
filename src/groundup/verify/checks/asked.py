"""Are the questions the same for everybody, asked alone, and what do their scores say?"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from groundup.data.town.tasks import TASKS
from groundup.errors import UserError
from groundup.evaluate import compare, questions, stats
from groundup.evaluate import run as evaluation
from groundup.evaluate.questions import Item, TaskPlan
from groundup.recipe.load import parse_recipe
from groundup.recipe.schema import EvaluateSection, Recipe, TaskSource
from groundup.verify import draw
from groundup.verify.check import Measurement, check, violations
from groundup.verify.checks.evaluate import harness
from groundup.verify.subject import Subject

CHANCE, Z = 0.25, 1.96


@contextmanager
def local_task(subject: Subject, rows: Sequence[dict[str, Any]], **fields: Any) -> Iterator[TaskSource]:
    """A task of these questions, on the disk."""
    with subject.scratch() as folder:
        path = Path(folder) / "questions.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        yield TaskSource(name="made", path=str(path), **fields)


ROWS = [{"prompt": f"How many stones lie under bridge {n}?", "answer": f"{n} stones"} for n in range(40)]


@check(
    "question-is-asked-alone",
    "locality",
    "evaluate",
    bug="A question comes with others as examples, itself among them, or with its answer: it is read off.",
    remedy="num_fewshot stays 0: given no other split, the harness takes examples from the test's (evaluate/tasks.py).",
    reference="EleutherAI/lm-evaluation-harness issue 4145; sbintuitions/flexeval pull 293",
)
def question_is_asked_alone(subject: Subject) -> Measurement:
    """Requests to the model, of a task of each kind, whose text is not the question's own prompt (a user's turn for
    generation, as training renders it; plain text before each choice), or that are not one for each answer."""
    lm, found = harness(subject), []
    from groundup.evaluate.tasks import run_task

    heard: list[tuple[Any, Any]] = []

    def listen(requests: Sequence[Any], disable_tqdm: bool = False) -> list[Any]:
        heard.extend(request.args for request in requests)
        return [(-1.0, False) if request.request_type == "loglikelihood" else "?" for request in requests]

    lm.loglikelihood = lm.generate_until = listen  # type: ignore[method-assign,assignment]
    items = [Item(str(n), row["prompt"], n % 2, ("stones", f"{n} of them")) for n, row in enumerate(ROWS[:6])]
    run_task(lm, TaskPlan("choices", "choice", "acc", "", True, 0.5, items), 8)
    expected = [(item.prompt, " " + choice) for item in items for choice in item.choices]
    found += [f"{text[-40:]!r}: {asked[-20:]!r}" for text, asked in heard if (text, asked) not in expected]
    if len(heard) != len(expected):
        found.append(f"{len(heard)} continuations are scored of {len(expected)} choices")
    heard.clear()
    plan = TaskPlan("said", "generate", "exact_match", "", True, None, items, lambda item, answer: 0.0)
    run_task(lm, plan, 8)
    prompts = {item.prompt: subject.render([{"role": "user", "content": item.prompt}], True).ids for item in items}
    found += [f"{text[-60:]!r}" for text, _ in heard if lm.tok_encode(text) not in prompts.values()]
    if len(heard) != len(items):
        found.append(f"{len(heard)} answers are asked for to {len(items)} questions")
    return violations(found, len(expected) + len(items))


@check(
    "equal-seeds-equal-questions",
    "invariance",
    "evaluate",
    bug="Two models are asked different questions, or all of them the front of a file that is sorted by topic.",
    remedy="Draw the questions from a generator of the recipe's seed alone (evaluate/questions.py).",
    reference=(
        "sgl-project/sgl-eval pull 31; EleutherAI/lm-evaluation-harness issue 2598; stanford-crfm/helm issue 220"
    ),
)
def equal_seeds_equal_questions(subject: Subject) -> Measurement:
    """Tasks (each builtin, a local file) whose 12 questions differ between two plans of one seed, do not differ between
    two seeds, hold one twice, or stand in another order than in the file; or are the file's first."""
    seed, found = draw.shifted(7), []
    with local_task(subject, ROWS) as local:
        section = EvaluateSection(tasks=[*TASKS, local], limit=12)
        first, again = questions.plan_tasks(section, seed), questions.plan_tasks(section, seed)
        other = questions.plan_tasks(section, seed + 1)
    for a, b, c in zip(first, again, other, strict=True):
        prompts = [item.prompt for item in a.items]
        if [(i.id, i.prompt, i.gold) for i in a.items] != [(i.id, i.prompt, i.gold) for i in b.items]:
            found.append(f"{a.name}: other questions for the same seed")
        if len({i.id for i in a.items}) != 12 or len(a.items) != 12:
            found.append(f"{a.name}: {len(a.items)} questions, {len({i.id for i in a.items})} different")
        if prompts == [item.prompt for item in c.items]:
            found.append(f"{a.name}: the same questions for another seed")
    asked = [int(item.id.removeprefix("line-")) for item in first[-1].items]
    if asked == list(range(1, 13)):
        found.append("the file's first questions are taken, whatever comes after")
    if asked != sorted(asked):
        found.append("questions lose their order")
    return violations(found, 3 * len(first) + 2)


@check(
    "scorers-know-right-from-empty",
    "identity",
    "evaluate",
    bug="An empty answer, the question said back, or any answer at all counts as right; or the right one does not.",
    remedy="See the scorers in data/town/ and exact_match in evaluate/questions.py.",
    reference="Liuziyu77/Visual-RFT issue 176; huggingface/cookbook issue 335; NVIDIA-NeMo/RL pull 3058",
)
def scorers_know_right_from_empty(subject: Subject) -> Measurement:
    """Of 40 questions a task, those whose accepted answer does not score 1, or where one of these does not score 0:
    nothing, white space, the question itself, a number that ends with the accepted one, the accepted answer to another
    question (where that is a different one). Accepted answers that only differ in case, spaces or a full stop are the
    same. A file that accepts nothing is refused."""
    found, looked = [], 0
    with local_task(subject, ROWS) as local:
        plans = questions.plan_tasks(EvaluateSection(tasks=[*TASKS, local], limit=40), 0)
    for plan in plans:
        assert plan.score is not None
        gold = {item.id: _accepted(item) for item in plan.items}
        for n, item in enumerate(plan.items):
            wrong = ["", " \n", item.prompt]
            other = gold[plan.items[n - 1].id]
            if other is not None and _bare(other) != _bare(gold[item.id] or ""):
                wrong.append(other)
            right = gold[item.id]
            if right is not None and right[0].isdigit():
                wrong += [f"1{right}"]  # which ends with it
            if right is not None:
                found += [
                    f"{plan.name}: {said!r} is not accepted"
                    for said in (right, f" {right.upper()}. \n")
                    if plan.score(item, said) != 1
                ]
            found += [f"{plan.name}: {said[:30]!r} is accepted" for said in wrong if plan.score(item, said) != 0]
            looked += 1
    nothing: tuple[Any, ...] = ("", [], ".")
    for answer in nothing:
        try:
            with local_task(subject, [{"prompt": "?", "answer": answer}]) as local:
                questions.plan_tasks(EvaluateSection(tasks=[local]), 0)
            found.append(f"a question is read whose accepted answer is {answer!r}")
        except UserError:
            pass
    return violations(found, looked + 3)


def _accepted(item: Item) -> str | None:
    """An accepted answer, where the question has one in so many words."""
    if isinstance(item.gold, dict):
        answer = item.gold.get("answer")
        return answer if isinstance(answer, str) else None
    return str(item.gold[0])


def _bare(text: str) -> str:
    return " ".join(text.lower().replace(".", " ").split())


@check(
    "harness-settings-are-obeyed",
    "sensitivity",
    "evaluate",
    bug="What a task asks of generation is not done: a stop string, a length, greedy decoding; or it is dropped.",
    remedy="Every key of generation_kwargs is read or refused (GroundupLM.sampling in evaluate/adapter.py).",
    reference=(
        "EleutherAI/lm-evaluation-harness pull 2797; huggingface/lighteval issue 559; modelscope/evalscope issue 1525"
    ),
)
def harness_settings_are_obeyed(subject: Subject) -> Measurement:
    """generation_kwargs that do not become what they say: temperature 0 and do_sample false greedy, do_sample true a
    temperature of 1, until the stop strings, the lengths by each of their names and never past the context, the end of
    turn and of text as stop ids, a seed of its own for each question; and unknown keys that are not refused."""
    lm, tokenizer = harness(subject), subject.tokenizer
    found = []
    asked: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"temperature": 0}, {"temperature": 0.0}),
        ({"temperature": 0.0, "do_sample": True}, {"temperature": 0.0}),
        ({"do_sample": False, "temperature": 0.7}, {"temperature": 0.0}),
        ({"do_sample": True}, {"temperature": 1.0}),
        (
            {"do_sample": True, "temperature": 0.7, "top_k": 5, "top_p": 0.5},
            {"temperature": 0.7, "top_k": 5, "top_p": 0.5},
        ),
        ({}, {"temperature": 0.0, "max_new_tokens": 256, "stop": ()}),
        ({"until": "\n\n"}, {"stop": ("\n\n",)}),
        ({"until": ["A", "B"]}, {"stop": ("A", "B")}),
        *(({name: 7}, {"max_new_tokens": 7}) for name in ("max_gen_toks", "max_new_tokens", "max_tokens")),
        ({"max_gen_toks": 10**6}, {"max_new_tokens": lm.max_length - 10}),
    ]
    for given, expected in asked:
        params = lm.sampling(given, 10, 0)
        found += [
            f"{given}: {name} is {getattr(params, name)!r}"
            for name, value in expected.items()
            if getattr(params, name) != value
        ]
        if not {tokenizer.end, tokenizer.eos} <= set(params.stop_ids):
            found.append(f"{given}: it stops at {params.stop_ids}")
    if lm.sampling({}, 10, 0).seed == lm.sampling({}, 10, 1).seed:
        found.append("two questions draw the same")
    for unknown in ({"num_beams": 4}, {"temprature": 0.5}):
        try:
            lm.sampling(unknown, 10, 0)
            found.append(f"{unknown} is dropped in silence")
        except ValueError:
            pass
    return violations(found, len(asked) + 3)


# ---- what a score says ----


@check(
    "score-below-the-noise-floor-is-marked",
    "identity",
    "evaluate",
    bug="A score that chance alone would reach stands in the table as an achievement, or its interval is too narrow.",
    remedy="Wilson's interval in results.json, and the mark where it holds chance (evaluate/stats.py, compare.py).",
    reference="tensorgi/TPA issue 12; Wilson 1927, JASA 22:209",
)
def score_below_the_noise_floor_is_marked(subject: Subject) -> Measurement:
    """Numbers of right answers, of 12, 100 and 600 at a chance of 1/4, for which the table does not mark the score
    exactly where chance is not rejected: |k/n - c| <= 1.96 sqrt(c (1 - c) / n). The interval's ends must solve that
    equation for c (to 1e-9), hold the value, and reach 0 and 1 at none and all.

    All k up to 1/2 are looked at for 12 and 100; for 600 those within three deviations.
    """
    found, looked = [], 0
    for n in (12, 100, 600):
        spread = math.sqrt(CHANCE * (1 - CHANCE) / n)
        counts = range(n // 2 + 1) if n < 600 else range(int(n * (CHANCE - 3 * spread)), int(n * (CHANCE + 3 * spread)))
        for k in counts:
            looked += 1
            entry = _entry(k, n)
            low, high = entry["low"], entry["high"]
            off = max(
                (abs(abs(k / n - p) - Z * math.sqrt(p * (1 - p) / n)) for p in (low, high) if 0 < p < 1), default=1
            )
            if off > 1e-9 or not low <= k / n <= high or (k == 0 and low != 0) or (k == n and high != 1):
                found.append(f"{k} of {n}: {low:.4f} to {high:.4f}")
            said = (
                "~"
                in compare.plain_table(
                    {"models": [{"stage": "base", "scores": {"made": entry}, compare.BPB: None}]}
                ).split("n =")[0]
            )
            if said != (abs(k / n - CHANCE) <= Z * spread):
                found.append(f"{k} of {n}: {'marked' if said else 'not marked'} as chance")
    return violations(found, looked)


def _entry(k: int, n: int) -> dict[str, Any]:
    """The score of k right answers of n as results.json has it."""
    items = [Item(str(i), "?", 0, ("a", "b", "c", "d")) for i in range(n)]
    plan = TaskPlan("made", "choice", "acc", "made", True, CHANCE, items)
    return evaluation._summary(plan, SimpleNamespace(metrics={"acc": (k / n, None)}, n=n, outcomes=[]), 0)


@check(
    "chance-is-of-the-questions-asked",
    "identity",
    "evaluate",
    bug="The chance that a score is held against is that of other questions: four choices assumed where there are two.",
    remedy="Mean of 1 / choices over the questions (evaluate/questions.py).",
    reference="tensorgi/TPA issue 12",
)
def chance_is_of_the_questions_asked(subject: Subject) -> Measurement:
    """|chance given - mean of 1 / number of choices| of a file with 2, 3, 5 and 4 choices, in floating point; none may
    be given where answers are generated."""
    sizes = (2, 3, 5, 4, 2)
    rows = [{"prompt": "Which?", "choices": [f"{n}" for n in range(size)], "answer": size - 1} for size in sizes]
    with local_task(subject, rows, choices_field="choices") as local:
        chance = questions.plan_tasks(EvaluateSection(tasks=[local]), 0)[0].chance
    with local_task(subject, ROWS) as local:
        if questions.plan_tasks(EvaluateSection(tasks=[local]), 0)[0].chance is not None:
            return Measurement(math.inf, 0.0, "generated answers are given a chance")
    expected = sum(1 / size for size in sizes) / len(sizes)
    return Measurement(abs((chance or 0.0) - expected), 1e-12, f"{chance}")


@check(
    "paired-test-is-exact",
    "identity",
    "evaluate",
    bug="Two models are called different, or alike, by a test that counts a side, or the unchanged questions.",
    remedy="Exact McNemar, two-sided, on the questions that changed (evaluate/stats.py).",
    reference="EleutherAI/lm-evaluation-harness issue 3831, pull 3868; McNemar 1947; Fay 2010",
)
def paired_test_is_exact(subject: Subject) -> Measurement:
    """Largest |p - p by counting|: of all 2^n outcomes of n fair coins, the share with at least as uneven a split, for
    every split of up to 12 changed questions beside 5 unchanged; infinite where gained and lost are mixed up."""
    worst = 0.0
    for gained in range(13):
        for lost in range(13 - gained):
            before, after = [0] * gained + [1] * lost + [1, 0, 0, 1, 1], [1] * gained + [0] * lost + [1, 0, 0, 1, 1]
            found = stats.mcnemar(before, after)
            n = gained + lost
            as_uneven = sum(math.comb(n, k) for k in range(n + 1) if abs(2 * k - n) >= abs(gained - lost))
            if (found.gained, found.lost) != (gained, lost):
                return Measurement(math.inf, 0.0, f"{gained} gained and {lost} lost: {found}")
            worst = max(worst, abs(found.p - as_uneven / 2**n))
    return Measurement(worst, 1e-12)


# ---- keys ----


@check(
    "unread-key-is-refused",
    "sensitivity",
    "evaluate",
    bug="A hyper-parameter that nothing reads, as with a slip in its name, is dropped: the run is not what was asked.",
    remedy="extra='forbid' on every section of the recipe (recipe/schema.py); refuse what is not read.",
    reference="unslothai/unsloth pulls 10452, 9944; foundation-model-stack/fms-hf-tuning issue 420",
)
def unread_key_is_refused(subject: Subject) -> Measurement:
    """Sections of the recipe, and what stands in them (sources, experts, scaling, tasks), that accept a key that does
    not exist; and slips in a file that are not refused."""
    found, looked = [], 0
    for section in _sections(Recipe, {}):
        looked += 1
        try:
            section.model_validate({"no_such_key": 1})
            found.append(section.__name__)
        except ValidationError as error:  # of what is missing, too
            if not any(e["type"] == "extra_forbidden" and e["loc"] == ("no_such_key",) for e in error.errors()):
                found.append(section.__name__)
    tree = {"name": "made", "data": {"sources": [{"builtin": "town"}]}}
    for key in ("pretrain", "model"):
        looked += 1
        try:
            parse_recipe({**tree, key: {"learning_rat": 1e-3}}, "a recipe")
            found.append(f"{key}.learning_rat, from a file")
        except UserError:
            pass
    return violations(found, looked)


def _sections(section: type[BaseModel], found: dict[str, type[BaseModel]]) -> list[type[BaseModel]]:
    """A section and all that can stand in it, each once."""
    if section.__name__ not in found:
        found[section.__name__] = section
        for field in section.model_fields.values():
            for inner in _models(field.annotation):
                _sections(inner, found)
    return list(found.values())


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [inner for argument in get_args(annotation) for inner in _models(argument)]
