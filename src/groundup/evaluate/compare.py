"""Models of one run side by side, from what their evaluations left on disk."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from groundup.errors import UserError
from groundup.evaluate import OUTCOMES, RESULTS
from groundup.evaluate.stats import intervals_apart, mcnemar
from groundup.record.files import read_json
from groundup.record.rundir import RunDir

if TYPE_CHECKING:
    from rich.table import Table

ORDER = ["base", "sft", "dpo", "grpo"]
BPB = "bits_per_byte"


def compare(run: RunDir | Path | str) -> dict[str, Any]:
    """{"models": [{"stage", "scores": {task: {value, low, high, n, higher_is_better, ...}}, "bits_per_byte"}]}.

    Models stand in the order they were made. A score holds `chance`, `metric` and `description`; from the
    second model on also `change` against the model before it: `apart` (the intervals do not touch), `better`,
    `gained`, `lost` and McNemar's `p`; no `change` where the two were asked different questions.

    Errors: UserError when the run holds no evaluation.
    """
    folder = run.path if isinstance(run, RunDir) else Path(run)
    found = {path.parent: read_json(path) for path in folder.glob(f"evaluate-*/{RESULTS}")}
    if not found:
        raise UserError(f"{folder}: no evaluation found (evaluate-*/{RESULTS}): `groundup run` evaluates its models")
    models: list[dict[str, Any]] = []
    before: dict[str, Any] | None = None
    for at in sorted(found, key=lambda path: _place(_display(path))):
        results = found[at]
        model = {"stage": _display(at), "scores": dict(results["tasks"]), BPB: results.get(BPB)}
        outcomes = read_json(at / OUTCOMES)
        if before is not None:
            model["scores"] = {
                task: _with_change(task, score, outcomes, before) for task, score in model["scores"].items()
            }
            if model[BPB] and before["model"][BPB]:
                apart = _change(model[BPB], before["model"][BPB], before["model"]["stage"])
                model[BPB] = {**model[BPB], "change": apart}
        models.append(model)
        before = {"model": model, "outcomes": outcomes}
    return {"run": folder.name, "models": models}


def _display(folder: Path) -> str:
    """Name of the model that an evaluate-X folder is about; what `pretrain` made is called base."""
    stage = folder.name.removeprefix("evaluate-")
    return "base" if stage == "pretrain" else stage


def _place(stage: str) -> tuple[int, str]:
    return (ORDER.index(stage) if stage in ORDER else len(ORDER), stage)


def _change(score: dict[str, Any], previous: dict[str, Any], against: str) -> dict[str, Any]:
    rise = score["value"] - previous["value"]
    apart = intervals_apart((score["low"], score["high"]), (previous["low"], previous["high"]))
    return {"against": against, "apart": apart, "better": rise != 0 and (rise > 0) == score["higher_is_better"]}


def _with_change(task: str, score: dict[str, Any], outcomes: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """The score with its change against the model before it, when that was asked the same questions."""
    previous = before["model"]["scores"].get(task)
    if previous is None or previous["questions"] != score["questions"]:
        return score
    pair = mcnemar(before["outcomes"][task]["scores"], outcomes[task]["scores"])
    return {**score, "change": {**_change(score, previous, before["model"]["stage"]), **pair._asdict()}}


# ---- table ----


def table(comparison: dict[str, Any]) -> Table:
    """A rich table: a row a task, a column a model, each cell a value over its 95% interval. It reads `models`, as
    `compare` gives them (one will do), and `run` for the title where there is one.

    ▲ better and ▼ worse than the model to its left, with the two intervals apart; no mark: they touch, or the
    questions differ. ~ chance lies inside the interval. One model alone has no left, and no legend of it.
    """
    from rich.table import Table

    models, name = comparison["models"], comparison.get("run")
    change = "▲ better, ▼ worse than the model to the left (intervals apart)\n" if len(models) > 1 else ""
    view = Table(
        title=f"{name}: held-out questions, 95% intervals" if name else "Held-out questions, 95% intervals",
        caption=f"{change}~ chance lies in the interval   ↑ ↓ which way is better",
        show_lines=True,
    )
    view.add_column("task", style="bold")
    for model in models:
        view.add_column(model["stage"].upper() if model["stage"] != "base" else "base", justify="right", no_wrap=True)
    tasks = list(dict.fromkeys(task for model in models for task in model["scores"]))
    for task in tasks:
        scores = [model["scores"].get(task) for model in models]
        view.add_row(*_row(task, scores))
    if any(model[BPB] for model in models):
        view.add_row(*_row("bits per byte", [model[BPB] for model in models]))
    return view


def _row(name: str, scores: list[dict[str, Any] | None]) -> list[str]:
    from rich.markup import escape

    one = next(score for score in scores if score)
    counts = " / ".join(dict.fromkeys(f"{score['n']:,}" for score in scores if score))
    arrow = "↑" if one["higher_is_better"] else "↓"
    return [f"{escape(name)} {arrow}\n[not bold dim]n = {counts}[/]", *(_cell(score) for score in scores)]


def _cell(score: dict[str, Any] | None) -> str:
    """Value and marks over the interval: 11 characters, so that four models fit 80 columns."""
    if score is None:
        return "[dim]not run[/]"
    change = score.get("change")
    mark = ""
    if change and change["apart"]:
        mark = " [green]▲[/]" if change["better"] else " [red]▼[/]"
    chance = score.get("chance")
    if chance and score["low"] <= chance <= score["high"]:
        mark += " [yellow]~[/]"
    return f"[bold]{score['value']:.3f}[/]{mark}\n[dim]{score['low']:.3f}–{score['high']:.3f}[/]"


def plain_table(comparison: dict[str, Any]) -> str:
    """The same table as text without colour or control codes, for logs and files."""
    from rich.box import ASCII
    from rich.console import Console

    view = table(comparison)
    view.box = ASCII
    console = Console(file=StringIO(), width=40 + 20 * len(comparison["models"]), color_system=None)
    console.print(view)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text
