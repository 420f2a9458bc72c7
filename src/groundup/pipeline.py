"""The stages in order. This file reads as the table of contents of the product."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from groundup.console import Reporter, duration
from groundup.data import files
from groundup.data.read import read_sources
from groundup.errors import UserError, did_you_mean
from groundup.plan.host import this_host
from groundup.plan.resolve import Resolved, resolve
from groundup.recipe.load import dump_recipe, load_recipe
from groundup.recipe.schema import Recipe
from groundup.record.files import atomic_write
from groundup.record.rundir import RunDir
from groundup.record.stage import StageRecord, begin, stage_key
from groundup.stages import outcome, prepare, training
from groundup.stages.base import Context, Stage, sources_read, tasks_read, use_threads

RESOLVED = "recipe.resolved.yaml"


def stages_of(recipe: Recipe) -> list[Stage]:
    """Every stage that this recipe asks for, in order."""
    stages = [
        Stage("plan", lambda c: {"recipe": c.recipe}, (), prepare.plan),
        Stage(
            "tokenizer",
            lambda c: {"tokenizer": c.recipe.tokenizer, "seed": c.recipe.seed, "data": _corpus(c)},
            (),
            prepare.tokenizer,
        ),
        Stage(
            "data",
            lambda c: {
                "data": c.recipe.data,
                "seed": c.recipe.seed,
                "files": _corpus(c),
                "fill": (c.recipe.model.context, c.recipe.pretrain.batch_size),
            },
            ("tokenizer",),
            prepare.data,
        ),
    ]
    if recipe.verify.enabled:
        stages.append(
            Stage(
                "verify",
                lambda c: {"verify": c.recipe.verify, "model": c.recipe.model, "pretrain": c.recipe.pretrain},
                ("tokenizer", "data"),
                prepare.verify,
            )
        )
    stages += [
        Stage(
            "pretrain",
            lambda c: {"model": c.recipe.model, "pretrain": c.recipe.pretrain, **_machine(c)},
            ("tokenizer", "data"),
            training.pretrain,
        ),
        _evaluation("pretrain"),
    ]
    if recipe.sft:
        stages += [
            Stage(
                "sft",
                lambda c: {"sft": c.recipe.sft, "files": _chats(c, "sft"), **_machine(c)},
                ("pretrain",),
                training.sft,
            ),
            _evaluation("sft"),
        ]
    if recipe.dpo:
        stages += [
            Stage(
                "dpo", lambda c: {"dpo": c.recipe.dpo, "files": _chats(c, "dpo"), **_machine(c)}, ("sft",), training.dpo
            ),
            _evaluation("dpo"),
        ]
    if recipe.grpo:
        stages += [
            Stage(
                "grpo",
                lambda c: {"grpo": c.recipe.grpo, "files": _chats(c, "grpo"), **_machine(c)},
                ("dpo" if recipe.dpo else "sft",),
                training.grpo,
            ),
            _evaluation("grpo"),
        ]
    so_far = tuple(stage.name for stage in stages)
    stages += [
        Stage("report", lambda c: {"recipe": c.recipe}, so_far, outcome.report),
        Stage("card", lambda c: {"card": c.recipe.card, "recipe": c.recipe}, so_far, outcome.card),
    ]
    return stages


def _evaluation(stage: str) -> Stage:
    name = "base" if stage == "pretrain" else stage
    reads: Callable[[Context], dict[str, Any]] = lambda c: {  # noqa: E731
        "evaluate": c.recipe.evaluate,
        "tasks": tasks_read(c.recipe.evaluate.tasks),
        "seed": c.recipe.seed,
    }
    return Stage(f"evaluate-{name}", reads, (stage, "data"), outcome.evaluate(stage))


def _machine(ctx: Context) -> dict[str, Any]:
    return {"seed": ctx.recipe.seed, "device": ctx.recipe.device, "threads": ctx.recipe.threads}


def _corpus(ctx: Context) -> list[Any]:
    return sources_read(ctx.recipe.data.sources, ctx.base)


def _chats(ctx: Context, stage: str) -> list[Any]:
    return sources_read(getattr(ctx.recipe, stage).sources, ctx.base, files.ROWS)


@dataclass
class Pipeline:
    """A recipe, its run folder, and what has been done of it."""

    ctx: Context
    stages: list[Stage]
    done: dict[str, StageRecord] = field(default_factory=dict)

    @classmethod
    def open(
        cls,
        recipe_path: str | Path,
        runs: str | Path,
        overrides: list[str] | None = None,
        reporter: Reporter | None = None,
    ) -> Pipeline:
        """Load and resolve a recipe; nothing is written."""
        recipe = load_recipe(recipe_path, overrides)
        base = Path(recipe_path).resolve().parent
        resolved, notes, host = resolve_here(recipe, base)
        reporter = reporter or Reporter()
        ctx = Context(resolved, RunDir(Path(runs) / recipe.name), base, host, reporter, notes)
        use_threads(resolved)
        return cls(ctx, stages_of(resolved))

    def keys(self) -> dict[str, str]:
        """Stage name -> key: the hash of everything that decides its result."""
        found: dict[str, str] = {}
        for stage in self.stages:
            inputs = {name: found[name] for name in stage.inputs}
            found[stage.name] = stage_key(stage.reads(self.ctx), inputs, stage.version)
        return found

    def run(self, until: str | None = None, only: str | None = None) -> None:
        """Run what is not done yet. A stage whose key is unchanged and whose files are whole is skipped."""
        names = [stage.name for stage in self.stages]
        for asked in (until, only):
            if asked is not None and asked not in names:
                raise UserError(f'this recipe has no stage "{asked}"{did_you_mean(asked, names)}')
        keys = self.keys()  # before the lock: a missing file is told of before anything is touched
        ctx = self.ctx
        with ctx.run.lock():
            comments = {note.key: f"auto: {note.reason} ({note.source})" for note in ctx.notes}
            atomic_write(ctx.run.path / RESOLVED, dump_recipe(ctx.recipe, comments))
            for stage in self.stages:
                if only is not None and stage.name != only:
                    continue
                self._one(stage, keys)
                if stage.name == until:
                    break

    def _one(self, stage: Stage, keys: dict[str, str]) -> None:
        ctx, key = self.ctx, keys[stage.name]
        record = ctx.run.record(stage.name)
        if record is not None and record.key == key:
            broken = ctx.run.problems(stage.name)
            if not broken:
                self.done[stage.name] = record
                ctx.reporter.say(
                    f"{stage.name}: done before, nothing to do ({duration(record.seconds)} then)", style="dim"
                )
                return
            ctx.reporter.warn(f"{stage.name}: runs again: {'; '.join(broken)}")
        for name in stage.inputs:
            made = ctx.run.record(name)
            if made is None or made.key != keys[name]:
                raise UserError(
                    f"{stage.name} needs {name}, which has not run with this recipe: leave --only away, or run it first"
                )
        ctx.reporter.say(f"{stage.name} ...", style="bold")
        ctx.warnings = []
        began = time.monotonic()
        fresh = begin(stage.name, key, seed=ctx.seed(stage.name), inputs={n: keys[n] for n in stage.inputs})
        fresh.metrics = stage.run(ctx, key)
        fresh.seconds = round(max(time.monotonic() - began, fresh.metrics.get("train_seconds", 0.0)), 2)
        fresh.warnings = list(ctx.warnings)
        self.done[stage.name] = ctx.run.write_stage(fresh)
        ctx.reporter.say(f"{stage.name}: done in {duration(fresh.seconds)}", style="green")

    def status(self) -> list[dict[str, Any]]:
        """Each stage: name, status (done, stale, broken, started, waiting), seconds, metrics."""
        keys = self.keys()
        rows = []
        for stage in self.stages:
            record = self.ctx.run.record(stage.name)
            if record is None:
                status = "started" if (self.ctx.folder(stage.name) / "checkpoints").is_dir() else "waiting"
            elif record.key != keys[stage.name]:
                status = "stale"
            else:
                status = "broken" if self.ctx.run.problems(stage.name, "size") else "done"
            rows.append(
                {
                    "name": stage.name,
                    "status": status,
                    "seconds": record.seconds if record else None,
                    "metrics": record.metrics if record else {},
                }
            )
        return rows


def resolve_here(recipe: Recipe, base: Path) -> tuple[Recipe, list[Resolved], Any]:
    """Resolve a recipe on this machine; counts the corpus's characters where the tokenizer needs it."""
    host = this_host(recipe.device)
    vocab = None
    if recipe.tokenizer.kind == "char" and recipe.tokenizer.vocab_size == "auto":
        from groundup.tokenizer.train import char_vocab_size

        documents = read_sources(recipe.data.sources, recipe.seed, base, lambda _: None)
        vocab = char_vocab_size(recipe.tokenizer, (document.text for document in documents))
    resolved, notes = resolve(recipe, host, vocab)
    return resolved, notes, host
