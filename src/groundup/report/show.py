"""Records -> what a reader sees: numbers with their units, flat lists of facts, answers set side by side."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from groundup.console import duration
from groundup.report.collect import LABELS, Evaluation, Run, Training, number

MISSING = "not measured"
OFF = "none"  # of a setting: it is off, and there was nothing to measure
SAMPLES_PER_TASK = 2
_UNITS = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def value(found: Any, key: str = "") -> str:
    """A recorded value in words; `key` tells bytes and seconds from other numbers. None is "not measured"."""
    if found is None:
        return MISSING
    if isinstance(found, bool):
        return "yes" if found else "no"
    if isinstance(found, list | tuple):
        return ", ".join(value(item) for item in found) or "none"
    if number(found) is None:
        return str(found)
    if key == "seconds" or key.endswith("_seconds"):
        return duration(float(found))
    exact = f"{found:,}" if isinstance(found, int) else _decimal(found)
    is_size = key == "bytes" or key.endswith(("_bytes", "memory"))
    return f"{exact} ({size(found)})" if is_size and found >= 1024 else exact


def _decimal(found: float) -> str:
    if found and (abs(found) >= 1e7 or abs(found) < 1e-3):
        return f"{found:.3g}"
    return f"{found:,.0f}" if abs(found) >= 1000 else f"{found:.4g}"


def cited(source: Any) -> str:
    """A source as a reader looks it up: '1706.03762' is an arXiv number."""
    text = "" if source is None else str(source)
    return f"arXiv {text}" if re.fullmatch(r"\d{4}\.\d{4,5}", text) else text


def size(found: float) -> str:
    """3 << 20 -> '3.0 MiB'."""
    for unit, name in _UNITS:
        if found >= unit:
            return f"{found / unit:.1f} {name}"
    return f"{found:.0f} B"


def compact(found: float) -> str:
    """1234567 -> '1.23M': three digits, for headlines."""
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if abs(found) >= unit:
            return f"{found / unit:.3g}{name}"
    return f"{found:.3g}"


def facts(
    found: dict[str, Any], leave: Iterable[str] = (), prefix: str = "", missing: str = MISSING
) -> list[tuple[str, str]]:
    """(name, value) of every leaf of nested dicts, in their order; keys in `leave` are shown elsewhere.

    missing: what None is called; OFF where `found` holds settings.
    """
    rows: list[tuple[str, str]] = []
    for key, item in found.items():
        if key in leave:
            continue
        name = f"{prefix}{key.replace('_', ' ')}"
        if isinstance(item, dict):
            rows += facts(item, prefix=f"{name}: ", missing=missing)
        elif isinstance(item, list) and item and all(isinstance(row, dict) for row in item):
            rows += [(name, _row(row)) for row in item]
        else:
            rows.append((name, missing if item is None else value(item, key if "bytes_per" not in key else "")))
    return rows


def _row(found: dict[str, Any]) -> str:
    """{"source": "a.txt", "documents": 12} -> 'a.txt, 12 documents'."""
    return ", ".join(value(v) if number(v) is None else f"{value(v)} {k.replace('_', ' ')}" for k, v in found.items())


def side_by_side(run: Run, per_task: int = SAMPLES_PER_TASK) -> list[dict[str, Any]]:
    """The same questions answered by every model: the first `per_task` of each task, in recorded order, not picked.

    Each: {task, prompt, answers: [{model, label, text, mark}]}; mark is "good", "bad" or "" (neither 0 nor 1).
    """
    kept = {m: {(str(r.get("task")), str(r.get("id"))): r for r in run.evaluations[m].samples} for m in run.models}
    kept = {model: rows for model, rows in kept.items() if rows}
    if not kept:
        return []
    first, *others = kept.values()
    shown: dict[str, int] = {}
    out = []
    for key, row in first.items():
        if any(key not in rows for rows in others) or shown.get(key[0], 0) >= per_task:
            continue
        shown[key[0]] = shown.get(key[0], 0) + 1
        answers = [_answer(run.evaluations[m], rows[key]) for m, rows in kept.items()]
        out.append({"task": key[0], "prompt": text_of(row.get("prompt")), "answers": answers})
    return out


def _answer(evaluation: Evaluation, row: dict[str, Any]) -> dict[str, str]:
    task = evaluation.tasks.get(str(row.get("task")))
    score = number(row.get("score"))
    mark = ""
    if score in (0.0, 1.0):
        mark = "good" if (score == 1.0) == (task is None or task.higher_is_better) else "bad"
    text = text_of(row.get("answer"))
    return {"model": evaluation.model, "label": LABELS[evaluation.model], "text": text, "mark": mark}


def text_of(found: Any) -> str:
    """A prompt or an answer as text; a list of messages as its lines."""
    if isinstance(found, list):
        return "\n".join(str(m.get("content", m)) if isinstance(m, dict) else str(m) for m in found)
    return "" if found is None else str(found)


def growth(training: Training, at_most: int = 4) -> list[dict[str, Any]]:
    """Texts sampled while pretraining, by prompt: the first, the last, and up to `at_most` - 2 steps between."""
    steps = sorted({row["step"] for row in training.samples if number(row.get("step")) is not None})
    if len(steps) > at_most:
        steps = [steps[round(i * (len(steps) - 1) / (at_most - 1))] for i in range(at_most)]
    by_prompt: dict[str, dict[float, str]] = {}  # a resumed run may have sampled a step twice: the later one stays
    for row in training.samples:
        if row.get("step") in steps:
            prompt, text = text_of(row.get("prompt")), text_of(row.get("text"))
            by_prompt.setdefault(prompt, {})[row["step"]] = text.removeprefix(prompt)
    return [
        {"prompt": prompt, "moments": [{"step": step, "text": text} for step, text in sorted(moments.items())]}
        for prompt, moments in by_prompt.items()
    ]
