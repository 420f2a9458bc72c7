"""Finding a run, and the models in it, by what a person types."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from groundup.errors import UserError, did_you_mean

if TYPE_CHECKING:  # heavy rooms are imported inside the functions, so that --help is quick
    from groundup.infer.engine import Engine
    from groundup.pipeline import Pipeline


def run_folder(run: str, runs: Path) -> Path | None:
    """The run folder meant by a path or by a name below `runs`; None when there is none."""
    for folder in (Path(run), runs / run):
        if (folder / "recipe.resolved.yaml").is_file():
            return folder
    return None


def existing(run: str, runs: Path) -> Path:
    """`run_folder`, or a UserError with the nearest name there is."""
    folder = run_folder(run, runs)
    if folder is None:
        names = [p.parent.name for p in runs.glob("*/recipe.resolved.yaml")]
        raise UserError(f"no run at {run}{did_you_mean(Path(run).stem, names)}; `groundup run RECIPE` makes one")
    return folder


def open_run(run: str, runs: Path) -> Pipeline:
    """The pipeline of an existing run, for reading."""
    from groundup.pipeline import Pipeline

    return Pipeline.of_run(existing(run, runs))


def pick(pipeline: Pipeline, stage: str | None) -> tuple[str, Path]:
    """(display name, model folder) of the asked model, or of the last one made."""
    from groundup.stages.base import made_models

    run = pipeline.ctx.run
    made = made_models(run)
    name = {"pretrain": "base"}.get(stage or "", stage) or list(made)[-1]
    if name not in made:
        raise UserError(f"{run.path} has no {name} model{did_you_mean(name, made)}")
    damage = run.problems(made[name].name, "size")
    if damage:
        raise UserError(f"the {name} model is damaged: {'; '.join(damage)}. `groundup run` makes it again")
    stale = [row for row in pipeline.status() if row["name"] == made[name].name and row["status"] == "stale"]
    if stale:
        pipeline.ctx.reporter.warn(f"the {name} model was made with other settings: {stale[0]['why']}")
    return name, made[name] / "model"


def load_engine(pipeline: Pipeline, stage: str | None) -> tuple[str, Engine]:
    """(display name, engine) of the asked model; refuses one made with another tokenizer or chat template."""
    from groundup.infer.engine import Engine
    from groundup.stages.base import checked_model

    name, folder = pick(pipeline, stage)
    tokenizer = pipeline.ctx.tokenizer()
    device = pipeline.ctx.device
    return name, Engine(checked_model(folder, tokenizer).to(device), tokenizer, device=device)
