"""Everything the report says, read from a run's records into one typed structure. Nothing is computed twice.

A stage counts only when its record is there and the hashes of its outputs hold (`RunDir.problems`); any other
stage is listed in `Run.absent` with the reason, and its numbers stay off the page.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from groundup.errors import UserError
from groundup.recipe.load import load_recipe
from groundup.recipe.schema import Recipe
from groundup.record.files import plain, read_json
from groundup.record.metrics import NAME, read
from groundup.record.rundir import RunDir
from groundup.record.stage import StageRecord

MODELS = {"pretrain": "base", "sft": "sft", "dpo": "dpo", "grpo": "grpo"}  # training stage -> name of its model
LABELS = {"base": "Base", "sft": "SFT", "dpo": "DPO", "grpo": "GRPO"}
RESOLVED = "recipe.resolved.yaml"


@dataclass(frozen=True)
class Score:
    """One measured value with its 95% interval [low, high] over n questions; None = not measured (or not finite)."""

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    metric: str = ""
    higher_is_better: bool = True
    description: str = ""
    chance: float | None = None  # score of guessing

    def against(self, other: Score | None) -> str:
        """'better' or 'worse' than `other` where the two intervals lie apart, else ''."""
        if other is None or None in (self.low, self.high, other.low, other.high):
            return ""
        above, below = self.low > other.high, self.high < other.low  # type: ignore[operator]
        if not above and not below:
            return ""
        return "better" if above == self.higher_is_better else "worse"


@dataclass(frozen=True)
class Evaluation:
    """evaluate-X/: scores by task, bits per byte on held-out text, and the rows of samples.jsonl."""

    model: str
    tasks: dict[str, Score]
    bits_per_byte: Score | None
    samples: list[dict[str, Any]]


@dataclass(frozen=True)
class Training:
    """A training stage: the metrics of its record, every row of its log, and its sampled texts (pretrain)."""

    stage: str
    metrics: dict[str, Any]
    rows: list[dict[str, Any]]
    samples: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Absent:
    """A stage that the recipe asks for and whose numbers are not on the page."""

    stage: str
    why: str


@dataclass(frozen=True)
class Run:
    """A whole run. `records` are in the order of the pipeline; report and card are no part of it."""

    recipe: Recipe
    recipe_text: str
    records: dict[str, StageRecord]
    absent: list[Absent]
    not_asked: list[str]
    plan: dict[str, Any]
    verify: dict[str, Any]
    live: dict[str, dict[str, Any]]
    training: dict[str, Training]
    evaluations: dict[str, Evaluation]

    @property
    def name(self) -> str:
        return self.recipe.name

    @property
    def seconds(self) -> float:
        """Wall clock of all stages that ended, summed."""
        return sum(record.seconds for record in self.records.values())

    @property
    def parameters(self) -> dict[str, int]:
        return dict(self.plan.get("parameters") or {})

    @property
    def tokenizer(self) -> dict[str, Any]:
        return self.records["tokenizer"].metrics if "tokenizer" in self.records else {}

    @property
    def data(self) -> dict[str, Any]:
        return self.records["data"].metrics if "data" in self.records else {}

    @property
    def checks(self) -> list[dict[str, Any]]:
        """Rows of the verifier's report; checks that did not apply are not among them."""
        return list(self.verify.get("checks") or [])

    @property
    def models(self) -> list[str]:
        """Names of the models that were evaluated, in the order they were made."""
        return [model for model in MODELS.values() if model in self.evaluations]

    def tasks(self) -> dict[str, dict[str, Score]]:
        """task -> model -> score, in the order the tasks were first recorded."""
        found: dict[str, dict[str, Score]] = {}
        for model in self.models:
            for task, score in self.evaluations[model].tasks.items():
                found.setdefault(task, {})[model] = score
        return found

    def bits_per_byte(self) -> dict[str, Score]:
        """model -> bits per byte on held-out text."""
        return {m: s for m in self.models if (s := self.evaluations[m].bits_per_byte) is not None}

    def compressors(self) -> dict[str, float]:
        """Name of a general compressor -> its bits per byte on the same held-out text."""
        record = self.records.get("evaluate-base")
        found = (record.metrics.get("baseline") if record else None) or {}
        return {k: v for k, v in found.items() if number(v) is not None}

    def warnings(self) -> list[tuple[str, str]]:
        """(stage, warning): what the stages recorded, and what their numbers say by themselves."""
        found = [(stage, text) for stage, record in self.records.items() for text in record.warnings]
        found += [("verify", f"the check {c.get('id')} failed") for c in self.checks if not c.get("passed")]
        for stage, looks in self.live.items():
            ids = dict.fromkeys(c.get("id") for look in looks.values() for c in look["checks"] if not c.get("passed"))
            found += [(stage, f"the live check {id} failed, and was let through") for id in ids]
        for stage, training in self.training.items():
            if skipped := training.metrics.get("skipped_steps"):
                found.append((stage, f"steps that were not finite, and skipped: {skipped}"))
        for key in ("round_trip_failures", "special_injection"):
            if count := self.tokenizer.get(key):
                found.append(("tokenizer", f"{key.replace('_', ' ')}: {count}"))
        for package, seen in self.versions().items():
            if len(seen) > 1:
                found.append(("run", f"stages ran with different versions of {package}: {', '.join(seen)}"))
        return found

    def versions(self) -> dict[str, list[str]]:
        """package -> the versions its stages ran with (one, unless something was upgraded in between)."""
        found: dict[str, list[str]] = {}
        for record in self.records.values():
            for package, version in record.versions.items():
                if version not in found.setdefault(package, []):
                    found[package].append(version)
        return found

    def commits(self) -> list[str]:
        return list(dict.fromkeys(r.git_commit for r in self.records.values() if r.git_commit))

    def hosts(self) -> list[dict[str, Any]]:
        """The machines it ran on, each once."""
        found: list[dict[str, Any]] = []
        for record in self.records.values():
            if record.host and record.host not in found:
                found.append(record.host)
        return found


def number(value: Any) -> float | None:
    """`value` as a finite float; None for anything else (a null that stands for NaN, a string, a bool)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def collect(path: Path | str) -> Run:
    """Read the run at `path`.

    Errors: UserError when there is no run, or when its pretraining has not ended (there is no model to report on).
    """
    run = RunDir(path)
    recipe_file = run.path / RESOLVED
    if not run.path.is_dir():
        raise UserError(f"no run at {path}: `groundup run RECIPE` makes one")
    if not recipe_file.is_file():
        raise UserError(f"{path} is not a run (it has no {RESOLVED}): `groundup run RECIPE` makes one")
    recipe = load_recipe(recipe_file)
    asked, not_asked = _stages(recipe)
    records: dict[str, StageRecord] = {}
    absent: list[Absent] = []
    for stage in asked:
        found, record = run.problems(stage), run.record(stage)
        if record is not None and not found:
            records[stage] = record
        else:
            why = "has not run" if found == ["no record"] else "; ".join(found)
            absent.append(Absent(stage, why.replace(f"{run.path}/", "")))
    if "pretrain" not in records:
        why = next(a.why for a in absent if a.stage == "pretrain")
        raise UserError(
            f"{path}: pretrain {why}, so there is no model to report on yet: "
            f"`groundup run {recipe_file} --runs {run.path.absolute().parent}` goes on"
        )
    return Run(
        recipe=recipe,
        recipe_text=recipe_file.read_text(encoding="utf-8"),
        records=records,
        absent=absent,
        not_asked=not_asked,
        plan=_object(run.stage("plan") / "plan.json") if "plan" in records else {},
        verify=_object(run.stage("verify") / "report.json") if "verify" in records else {},
        live={s: _live(run.stage(s) / "live.json") for s in MODELS if s in records},
        training={s: _training(run.stage(s), records[s]) for s in MODELS if s in records},
        evaluations={m: _evaluation(run.stage(f"evaluate-{m}"), m) for m in LABELS if f"evaluate-{m}" in records},
    )


def report_json(path: Path | str) -> dict[str, Any]:
    """The report as plain JSON values: what the page says, without the curves and the samples."""
    run = collect(path)
    return plain({
        "name": run.name,
        "description": run.recipe.description,
        "imported_from": run.recipe.base,
        "seed": run.recipe.seed,
        "seconds": run.seconds,
        "plan": run.plan,
        "tokenizer": run.tokenizer,
        "data": run.data,
        "verify": run.verify,
        "live": run.live,
        "training": {stage: training.metrics for stage, training in run.training.items()},
        "models": [
            {
                "stage": model,
                "scores": {task: vars(score) for task, score in run.evaluations[model].tasks.items()},
                "bits_per_byte": vars(bits) if (bits := run.evaluations[model].bits_per_byte) else None,
            }
            for model in run.models
        ],
        "compressors": run.compressors(),
        "stages": [
            {"name": s, "seconds": r.seconds, "key": r.key, "finished": r.finished} for s, r in run.records.items()
        ],
        "absent": [vars(absent) for absent in run.absent],
        "not_asked": run.not_asked,
        "warnings": [{"stage": stage, "warning": text} for stage, text in run.warnings()],
        "versions": run.versions(),
        "commits": run.commits(),
        "hosts": run.hosts(),
    })  # fmt: skip


def _stages(recipe: Recipe) -> tuple[list[str], list[str]]:
    """(stages this recipe asks for, optional stages it does not), in the order of the pipeline."""
    corpus = ["data"] if recipe.data else []
    first, checks = (["verify-model"], ["verify"]) if recipe.verify.enabled else ([], [])
    asked = ["plan", *first, "tokenizer", *corpus, *checks, "pretrain", "evaluate-base"]
    not_asked = [] if recipe.verify.enabled else ["verify-model", "verify"]
    for stage in ("sft", "dpo", "grpo"):
        if getattr(recipe, stage) is None:
            not_asked.append(stage)
        else:
            asked += [stage, f"evaluate-{stage}"]
    return asked, not_asked


def _object(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds no JSON object; delete the folder it is in and run the same command again")
    return value


def _live(path: Path) -> dict[str, Any]:
    """Step -> what the live checks found there; {} where the recipe has them off."""
    return _object(path).get("looks") or {} if path.is_file() else {}


def _training(folder: Path, record: StageRecord) -> Training:
    rows = read(folder) if (folder / NAME).is_file() else []
    rows = sorted((r for r in rows if number(r.get("step")) is not None), key=lambda row: row["step"])
    return Training(record.stage, record.metrics, rows, _rows(folder / "samples.jsonl"))


def _evaluation(folder: Path, model: str) -> Evaluation:
    results = _object(folder / "results.json")
    bits = results.get("bits_per_byte")
    return Evaluation(
        model=model,
        tasks={task: _score(score) for task, score in (results.get("tasks") or {}).items()},
        bits_per_byte=_score({"higher_is_better": False, "metric": "bits_per_byte", **bits}) if bits else None,
        samples=_rows(folder / "samples.jsonl"),
    )


def _score(found: dict[str, Any]) -> Score:
    n = number(found.get("n"))
    return Score(
        value=number(found.get("value")),
        low=number(found.get("low")),
        high=number(found.get("high")),
        n=int(n) if n is not None else None,
        metric=str(found.get("metric") or ""),
        higher_is_better=bool(found.get("higher_is_better", True)),
        description=str(found.get("description") or ""),
        chance=number(found.get("chance")),
    )


def _rows(path: Path) -> list[dict[str, Any]]:
    # Not splitlines(): it also cuts at U+2028 and friends, which JSON strings may hold.
    return [json.loads(x) for x in path.read_text("utf-8").split("\n") if x.strip()] if path.is_file() else []
