"""What the card may say: the records of a finished run, read and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from groundup.errors import UserError, did_you_mean
from groundup.recipe.load import load_recipe
from groundup.recipe.schema import Recipe
from groundup.record.files import read_json
from groundup.record.rundir import RunDir
from groundup.record.stage import StageRecord

STAGES = {"pretrain": "base", "sft": "sft", "dpo": "dpo", "grpo": "grpo"}  # training stage -> name of its model
RESOLVED = "recipe.resolved.yaml"


@dataclass(frozen=True)
class Evidence:
    """Records of the stages that ended and are whole; `results` maps a model's name to its results.json."""

    recipe: Recipe
    records: dict[str, StageRecord]
    plan: dict[str, Any] = field(default_factory=dict)
    verify: dict[str, Any] = field(default_factory=dict)
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    live: dict[str, dict[str, Any]] = field(default_factory=dict)  # training stage -> step -> report of its live checks

    @property
    def trained(self) -> list[str]:
        """The training stages that made the card's model, its own last."""
        return [stage for stage in STAGES if stage in self.records]

    @property
    def model(self) -> str:
        """Name of the model the card is about."""
        return STAGES[self.trained[-1]]

    def metrics(self, stage: str) -> dict[str, Any]:
        return self.records[stage].metrics if stage in self.records else {}

    def tasks(self) -> list[str]:
        """Every task that was evaluated on any of these models, in recorded order."""
        found = [self.results.get(STAGES[stage], {}) for stage in self.trained]
        return list(dict.fromkeys(task for results in found for task in results.get("tasks") or {}))

    def score(self, model: str, task: str) -> dict[str, Any]:
        """The recorded score, {} when it was not measured; task "bits_per_byte" is the one on held-out text."""
        found = self.results.get(model, {})
        score = found.get("bits_per_byte") if task == "bits_per_byte" else (found.get("tasks") or {}).get(task)
        return score or {}


def gather(path: Path | str, model: str | None = None) -> Evidence:
    """Read the run at `path`, for a card about `model` (None: the last one trained).

    Errors: UserError when there is no run or no such model, or when a model up to this one is not trained: the card
    of a half-finished run would describe another model than the recipe's.
    """
    run = RunDir(path)
    recipe_file = run.path / RESOLVED
    if not recipe_file.is_file():
        raise UserError(f"no run at {path} (it has no {RESOLVED}): `groundup run RECIPE` makes one")
    recipe = load_recipe(recipe_file)
    asked = [stage for stage in STAGES if stage == "pretrain" or getattr(recipe, stage) is not None]
    made = [STAGES[stage] for stage in asked]
    if model is not None and model not in made:
        raise UserError(f"{path} has no {model} model{did_you_mean(model, made)}")
    asked = asked[: made.index(model) + 1] if model else asked
    names = [
        "plan",
        *(["verify-model"] if recipe.verify.enabled else []),
        "tokenizer",
        *(["data"] if recipe.data else []),
        *(["verify"] if recipe.verify.enabled else []),
        *asked,
    ]
    names += [f"evaluate-{STAGES[stage]}" for stage in asked]
    found = {name: run.problems(name) for name in names}
    said = {s: "has not run" if found[s] == ["no record"] else "; ".join(found[s]) for s in asked}
    unfinished = [f"{stage}: {why}" for stage, why in said.items() if why]
    if unfinished:
        lines = "\n".join(f"  - {line}" for line in unfinished)
        raise UserError(
            f"{path}: the run is not finished, so there is no model to write a card for\n{lines}\n"
            f"`groundup run {recipe_file} --runs {run.path.absolute().parent}` goes on"
        )
    records = {name: record for name in names if not found[name] and (record := run.record(name)) is not None}
    return Evidence(
        recipe=recipe,
        records=records,
        plan=read_json(run.stage("plan") / "plan.json") if "plan" in records else {},
        verify=read_json(run.stage("verify") / "report.json") if "verify" in records else {},
        results={
            name: read_json(run.stage(f"evaluate-{name}") / "results.json")
            for name in STAGES.values()
            if f"evaluate-{name}" in records
        },
        live={
            stage: read_json(run.stage(stage) / "live.json")["looks"]
            for stage in STAGES
            if stage in records and (run.stage(stage) / "live.json").exists()
        },
    )
