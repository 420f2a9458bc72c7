"""Questions from files: what is accepted, and how broken lines are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from groundup.data.town.tasks import TASKS
from groundup.errors import UserError
from groundup.evaluate.questions import Item, exact_match, normalise, plan_tasks
from groundup.recipe.schema import EvaluateSection, TaskSource


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def section(*tasks: Any, **more: Any) -> EvaluateSection:
    return EvaluateSection(tasks=list(tasks), **more)


def test_a_missing_field_names_its_lines(tmp_path: Path) -> None:
    """Catches a KeyError in the middle of an evaluation, or lines skipped in silence (a smaller n, a better score)."""
    rows = [
        {"prompt": "1+1?", "answer": "2"},
        {"prompt": "2+2?", "anwser": "4"},
        "not json",
        {"question": "3+3?"},
        ["a list"],
        {"prompt": "", "answer": "4"},
        {"prompt": "4+4?", "answer": "..."},
    ]
    path = write(tmp_path / "sums.jsonl", rows)
    with pytest.raises(UserError) as error:
        plan_tasks(section(TaskSource(name="sums", path=path)), seed=0)
    message = str(error.value)
    for line in (2, 3, 4, 5, 6, 7):
        assert f"line {line}: " in message
    assert "line 1: " not in message
    assert "no field 'answer' (did you mean \"anwser\"?)" in message


def test_every_broken_task_is_listed_at_once(tmp_path: Path) -> None:
    """Catches errors given one at a time; a typo gets the nearest name."""
    with pytest.raises(UserError) as error:
        gone = TaskSource(name="gone", path=str(tmp_path / "gone.jsonl"))
        plan_tasks(section("town-fact", "town-facts", "town-facts", gone), 0)
    message = str(error.value)
    assert 'did you mean "town-facts"' in message
    assert "gone.jsonl (No such file or directory)" in message
    assert "'town-facts' is given twice" in message


def test_a_thousand_broken_lines_fit_on_a_screen(tmp_path: Path) -> None:
    """Catches a message as long as the file."""
    path = write(tmp_path / "bad.jsonl", [{"prompt": "?"}] * 1000)
    with pytest.raises(UserError) as error:
        plan_tasks(section(TaskSource(name="bad", path=path)), 0)
    assert len(str(error.value).splitlines()) < 20
    assert "990 more broken lines" in str(error.value)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "?", "choices": ["a"], "answer": 0}, "at least two"),
        ({"prompt": "?", "choices": ["a", " "], "answer": 0}, "at least two"),
        ({"prompt": "?", "choices": ["a", "a"], "answer": 0}, "different"),
        ({"prompt": "?", "choices": ["a", "b"], "answer": 2}, "index"),
        ({"prompt": "?", "choices": ["a", "b"], "answer": -1}, "index"),
        ({"prompt": "?", "choices": ["a", "b"], "answer": "c"}, "one of the choices"),
        ({"prompt": "?", "choices": ["a", "b"], "answer": True}, "one of the choices"),
        ({"prompt": "?", "answer": 0}, "no field 'choices'"),
    ],
)
def test_broken_choices_are_refused(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    """Catches a right answer that no choice is (lm-eval would score 0), and an empty choice (which always wins)."""
    path = write(tmp_path / "choice.jsonl", [row])
    with pytest.raises(UserError, match=said):
        plan_tasks(section(TaskSource(name="c", path=path, choices_field="choices")), 0)


def test_choices_and_their_chance(tmp_path: Path) -> None:
    """Catches an answer given as text taken for an index, and chance taken as 1/4 whatever the choices."""
    rows = [
        {"prompt": "?", "choices": ["1", "0"], "answer": "0", "id": "q"},
        {"prompt": "?", "choices": ["a", "b", "c", "d"], "answer": 3},
    ]
    path = write(tmp_path / "choice.jsonl", rows)
    (plan,) = plan_tasks(section(TaskSource(name="c", path=path, choices_field="choices")), 0)
    assert [(item.id, item.gold) for item in plan.items] == [("q", 1), ("line-2", 3)]
    assert plan.chance == pytest.approx((1 / 2 + 1 / 4) / 2)


@pytest.mark.parametrize(
    ("answer", "gold", "score"),
    [
        ("  Paris. ", "paris", 1),
        ("PARIS\n", "Paris", 1),
        ("New   York!?", "new york", 1),
        ("Straße", "STRASSE", 1),
        ("Paris, France", "Paris", 0),
        ("", "Paris", 0),
        ("not Paris", "Paris", 0),
        ("42", "42.0", 0),
        ("4.2", "42", 0),
    ],
)
def test_exact_match_after_normalisation(answer: str, gold: str, score: int) -> None:
    """Catches a match that is a substring, and one that a full stop or a capital spoils."""
    assert exact_match(Item("q", "?", [gold]), answer) == score


def test_normalise_is_idempotent() -> None:
    """Catches "a. ." keeping its first full stop."""
    for text in ("a. .", " a !", "A.B.", "..."):
        assert normalise(normalise(text)) == normalise(text)
    assert normalise("a. .") == "a"


def test_several_accepted_answers_and_numbers(tmp_path: Path) -> None:
    """Catches a number in the file that no generated text can equal."""
    path = write(tmp_path / "t.jsonl", [{"prompt": "?", "answer": [4, "four"]}, {"prompt": "?", "answer": 7}])
    (plan,) = plan_tasks(section(TaskSource(name="t", path=path)), 0)
    assert plan.score is not None
    assert [plan.score(plan.items[0], a) for a in ("4", "Four.", "five")] == [1, 1, 0]
    assert plan.score(plan.items[1], "7") == 1


def test_chance_is_of_the_questions_that_are_left(tmp_path: Path) -> None:
    """Bug: the chance of the whole file beside the score of a part of it."""
    rows = [
        {"prompt": f"Q{n}", "choices": [str(i) for i in range(2 if n < 20 else 10)], "answer": 0} for n in range(40)
    ]
    path = tmp_path / "mixed.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = TaskSource(name="mixed", path=str(path), choices_field="choices")
    (plan,) = plan_tasks(EvaluateSection(tasks=[task], limit=5), 0)
    assert plan.chance == pytest.approx(sum(1 / len(item.choices) for item in plan.items) / 5)


def test_the_limit_draws_the_same_questions_for_every_stage(tmp_path: Path) -> None:
    """Catches a limit that reads the front of a sorted file, or other questions at each stage."""
    path = write(tmp_path / "t.jsonl", [{"prompt": f"{i}?", "answer": "a" if i < 50 else "b"} for i in range(100)])
    asked = section(TaskSource(name="t", path=path), limit=20)
    (plan,), (again,), (other,) = plan_tasks(asked, 1), plan_tasks(asked, 1), plan_tasks(asked, 2)
    assert plan.items == again.items != other.items
    assert len(plan.items) == 20 and {item.gold[0] for item in plan.items} == {"a", "b"}


def test_town_tasks_score_with_the_towns_own_scorer() -> None:
    """Catches a question scored against another question's gold, and a fault counted as a merit."""
    plans = {plan.name: plan for plan in plan_tasks(section(*TASKS), seed=3)}
    assert all(len(plan.items) >= 500 for plan in plans.values())
    assert not plans["town-lookalikes"].higher_is_better
    for name, task in TASKS.items():
        score = plans[name].score
        assert score is not None
        for item, question in list(zip(plans[name].items, task.questions(3), strict=True))[:40]:
            for answer in (str(question.gold.get("answer", "")), "I cannot help with that.", ""):
                assert score(item, answer) == task.score(question, answer)
