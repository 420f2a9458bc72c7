"""Models side by side."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from groundup.errors import UserError
from groundup.evaluate.compare import compare, plain_table, table
from groundup.evaluate.stats import wilson
from groundup.record.files import write_json
from groundup.record.rundir import RunDir


def write_result(run: Path, stage: str, scores: dict[str, list[int]], bits: float | None = None, **more: Any) -> None:
    tasks = {
        task: {
            **wilson(sum(marks), len(marks))._asdict(),
            "n": len(marks),
            "metric": "exact_match",
            "higher_is_better": task != "faults",
            "chance": 0.1,
            "description": "",
            "questions": "same",
            **more,
        }
        for task, marks in scores.items()
    }
    results: dict[str, Any] = {"stage": stage, "seed": 0, "tasks": tasks}
    if bits is not None:
        results["bits_per_byte"] = {
            "value": bits, "low": bits - 0.01, "high": bits + 0.01, "n": 90, "bytes": 9000, "higher_is_better": False,
        }  # fmt: skip
    write_json(run / f"evaluate-{stage}" / "results.json", results)
    outcomes = {task: {"ids": [str(i) for i in range(len(m))], "scores": m} for task, m in scores.items()}
    write_json(run / f"evaluate-{stage}" / "outcomes.json", outcomes)


def marks(right: int, of: int = 200) -> list[int]:
    return [1] * right + [0] * (of - right)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_result(tmp_path, "grpo", {"facts": marks(182), "faults": marks(90)}, 1.20)
    write_result(tmp_path, "pretrain", {"facts": marks(20)}, 1.00)
    write_result(tmp_path, "sft", {"facts": marks(180), "faults": marks(10)}, 1.10)
    return tmp_path


def test_models_stand_in_the_order_they_were_made(run: Path) -> None:
    """Catches alphabetical order (grpo before sft), and `pretrain` shown where the reader knows "base"."""
    found = compare(run)
    assert [model["stage"] for model in found["models"]] == ["base", "sft", "grpo"]
    facts = found["models"][1]["scores"]["facts"]
    assert (facts["value"], facts["n"], facts["higher_is_better"]) == (0.9, 200, True)
    assert facts["low"] < 0.9 < facts["high"]
    assert compare(RunDir(run)) == found


def test_a_change_is_named_only_where_the_intervals_are_apart(run: Path) -> None:
    """Catches 182 against 180 of 200 sold as progress, and more faults shown as better."""
    base, sft, grpo = compare(run)["models"]
    assert "change" not in base["scores"]["facts"]
    change = sft["scores"]["facts"]["change"]
    assert (change["against"], change["apart"], change["better"]) == ("base", True, True)
    assert (change["gained"], change["lost"]) == (160, 0) and change["p"] < 1e-40
    same = grpo["scores"]["facts"]["change"]
    assert not same["apart"] and same["p"] == 0.5
    worse = grpo["scores"]["faults"]["change"]
    assert worse["apart"] and not worse["better"]
    assert "change" not in sft["scores"]["faults"]  # base was not asked
    assert sft["bits_per_byte"]["change"] == {"against": "base", "apart": True, "better": False}


def test_other_questions_are_not_compared(tmp_path: Path) -> None:
    """Catches a pairing of question 1 with another question 1."""
    write_result(tmp_path, "pretrain", {"facts": marks(20)})
    write_result(tmp_path, "sft", {"facts": marks(180)}, questions="other")
    assert "change" not in compare(tmp_path)["models"][1]["scores"]["facts"]


def test_a_run_without_evaluations_says_what_to_do(tmp_path: Path) -> None:
    """Catches an empty table with exit code 0."""
    with pytest.raises(UserError, match="groundup run"):
        compare(tmp_path)


def test_the_plain_table_holds_values_intervals_and_marks(run: Path) -> None:
    """Catches a cut cell, control codes in a log, and marks in the wrong column."""
    text = plain_table(compare(run))
    assert "\x1b" not in text and "…" not in text
    lines = text.splitlines()
    facts = next(line for line in lines if "facts ↑" in line).split("|")
    assert [cell.strip() for cell in facts[2:5]] == ["0.100 ~", "0.900 ▲", "0.910"]
    assert lines[lines.index("|".join(facts)) + 1].split("|")[1].strip() == "n = 200"
    faults = next(line for line in lines if "faults ↓" in line).split("|")
    assert [cell.strip() for cell in faults[2:5]] == ["not run", "0.050", "0.450 ▼"]
    assert any("0.851–0.934" in line for line in lines)
    assert next(line for line in lines if "bits per byte ↓" in line).count("▼") == 2


def test_the_coloured_table_fits_eighty_columns_with_four_models(run: Path) -> None:
    """Catches a table that wraps or cuts its numbers on an ordinary terminal, and a name read as markup."""
    write_result(run, "dpo", {"facts": marks(181), "faults": marks(9), "[b]town-arithm.": marks(3)}, 1.1)
    console = Console(file=StringIO(), width=80, force_terminal=True, color_system="standard")
    console.print(table(compare(run)))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b[32m▲" in text
    plain = Console(file=StringIO(), width=80)
    plain.print(table(compare(run)))
    shown = plain.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in shown and shown.count("–") == 12
    assert "[b]town-arithm. ↑" in shown


def test_one_model_alone_makes_a_table(run: Path) -> None:
    """Catches a table that needs a run's name or a model before: `groundup eval` shows a single model."""
    text = plain_table({"models": compare(run)["models"][:1]})
    assert "Held-out questions" in text and "0.100 ~" in text
    assert "to the left" not in text and "which way is better" in text  # there is no left
    assert "to the left" in plain_table(compare(run))
