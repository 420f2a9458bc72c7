"""A ladder: small models of one recipe on one's own data, the law fitted to them, and what it predicts.

Below `RUN/ladder`: the tokenizer and the shards, made once; `rungs/<name>/pretrain` and `evaluate-base`, stages as in
any run (a finished rung is passed over, a killed one goes on from its checkpoint); `ladder.json`, `ladder.md`, plots.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from groundup.console import Reporter, duration
from groundup.data.shard import Shard
from groundup.errors import UserError
from groundup.evaluate import RESULTS
from groundup.model.count import count
from groundup.model.flops import train_flops_per_token
from groundup.pipeline import Pipeline, stages_of
from groundup.plan.budget import budget
from groundup.plan.fit import Fit, Point, Prediction, fit
from groundup.plan.isoflop import allocation, parabola
from groundup.plan.ladder import Options, Rung, Size, rungs, shaped
from groundup.plan.laws import FREE_EPOCHS
from groundup.plan.resolve import model_config
from groundup.plan.transfer import fitted_parameters
from groundup.recipe.load import load_recipe
from groundup.recipe.schema import Recipe
from groundup.record.files import read_json, write_json
from groundup.record.rundir import RunDir
from groundup.report import ladder as report
from groundup.stages.base import Context, Stage

FOLDER, RUNGS, FOUND = "ladder", "rungs", "ladder.json"
SHARED = ("plan", "tokenizer", "data")
FAR = 30  # a prediction for more than so many times the compute of the largest rung is told to be a long shot
WHICH_N = "blocks and output head, without the input lookup: what each token is multiplied with"


class RungDir(RunDir):
    """A rung's folder, which reads the tokenizer and the shards of its ladder."""

    def __init__(self, path: Path, ladder: RunDir) -> None:
        super().__init__(path)
        self.ladder = ladder

    def stage(self, name: str) -> Path:
        return self.ladder.stage(name) if name in SHARED else super().stage(name)


@dataclass
class Ladder:
    """A recipe, the ladder's folder, and its rungs, the cheapest first. Opening one writes nothing."""

    base: Pipeline
    recipe: Recipe  # as written, `auto` and all
    options: Options
    rungs: list[Rung]

    @classmethod
    def open(
        cls,
        recipe_path: str | Path,
        runs: str | Path,
        options: Options,
        overrides: list[str] | None = None,
        reporter: Reporter | None = None,
    ) -> Ladder:
        """Errors: UserError with everything that is wrong with the recipe or the options."""
        recipe = load_recipe(recipe_path, overrides)
        base = Pipeline.open(recipe_path, runs, overrides, reporter)
        base.ctx.run = RunDir(base.ctx.run.path / FOLDER)
        base.stages = [stage for stage in base.stages if stage.name in SHARED]
        return cls(base, recipe, options, rungs(recipe, base.ctx.recipe, base.ctx.host, options))

    @property
    def folder(self) -> Path:
        return self.base.ctx.run.path

    def pipeline(self, rung: Rung) -> Pipeline:
        """The two stages of a rung, whose inputs are the ladder's own tokenizer and data."""
        ctx = self.base.ctx
        run = RungDir(self.folder / RUNGS / rung.name, ctx.run)
        mine = Context(rung.recipe, run, ctx.base, ctx.host, ctx.reporter, [])
        stages = [replace(stage, reads=_read_by(stage, ctx)) for stage in self.base.stages]
        stages += [stage for stage in stages_of(rung.recipe) if stage.name in ("pretrain", "evaluate-base")]
        return Pipeline(mine, stages)

    def done(self, rung: Rung) -> bool:
        """Whether this rung was trained and evaluated with these very settings."""
        pipeline = self.pipeline(rung)
        keys = pipeline.keys()
        run = pipeline.ctx.run
        records = {name: run.record(name) for name in ("pretrain", "evaluate-base")}
        return all(r is not None and r.key == keys[n] and not run.problems(n, "size") for n, r in records.items())

    def seconds(self) -> dict[str, float]:
        """Estimated training time of each rung that is not done. Measures each size's matmuls, a second or two."""
        rates: dict[str, float] = {}
        out = {}
        for rung in self.rungs:
            if not self.done(rung):
                if rung.size not in rates:
                    rates[rung.size] = budget(rung.recipe, self.base.ctx.host, [])["seconds"] / rung.tokens
                out[rung.name] = rates[rung.size] * rung.tokens
        return out

    def run(self, predict: tuple[Size, ...] = ()) -> dict[str, Any]:
        """Train what is not trained, fit, predict; write ladder.json and return what is in it."""
        self.base.run()
        say = self.base.ctx.reporter.say
        waiting = self.seconds()
        say(
            f"{len(self.rungs)} rungs, {len(self.rungs) - len(waiting)} done before; "
            f"training the others takes about {duration(sum(waiting.values()))}"
        )
        for i, rung in enumerate(self.rungs, start=1):
            about = f", about {duration(waiting[rung.name])}" if rung.name in waiting else ""
            say(
                f"rung {i} of {len(self.rungs)}: {rung.name}, {rung.config.n_layers} x {rung.config.d_model}, "
                f"{rung.tokens:,} tokens{about}",
                style="bold",
            )
            pipeline = self.pipeline(rung)
            pipeline.run(only="pretrain")
            pipeline.run(only="evaluate-base")
        found, law = self.results(predict)
        write_json(self.folder / FOUND, found)
        report.write(found, lambda n, d, c: law.predict(n, d, c).loss, self.folder)
        return found

    # ---- what came of it ----

    def results(self, predict: tuple[Size, ...] = ()) -> tuple[dict[str, Any], Fit]:
        """(everything measured, fitted and predicted, as plain data; the law of all rungs)."""
        rows = [self._measured(rung) for rung in self.rungs]
        points = {row["name"]: _point(row) for row in rows}
        seed = self.base.ctx.recipe.seed
        checking = fit([points[row["name"]] for row in rows if not row["held_out"]], seed)
        for row in rows:
            said = _predict(checking, points[row["name"]])
            row |= {"predicted": said, "error_percent": 100 * (said["loss"] / row["loss"] - 1)}
        held = [row for row in rows if row["held_out"]]
        every = fit(list(points.values()), seed) if held else checking
        unique = len(Shard(self.folder / "data" / "train.bin", self.base.ctx.tokenizer().hash).tokens)
        warnings = [f"{row['name']}: {note}" for row in rows for note in row.pop("warnings")]
        warnings += _repeats([(row["name"], row["tokens"]) for row in rows], unique)
        warnings += [f"{self.options.rule}, for {self.rungs[0].name}: {note}" for note in self.rungs[0].notes]
        if self.base.ctx.recipe.pretrain.schedule == "constant":
            warnings.append(
                "pretrain.schedule: constant never falls: these losses are above what a cooldown would reach"
            )
        predictions = [self._prediction(size, every, rows, unique) for size in predict]
        recipe = self.base.ctx.recipe
        found = {
            "name": recipe.name,
            "rule": self.options.rule,
            "optimizer": recipe.pretrain.optimizer,
            "context": recipe.model.context,
            "vocab_size": recipe.tokenizer.vocab_size,
            "unique_tokens": unique,
            "parameters_are": WHICH_N,
            "rungs": rows,
            "fit_without_held_out": checking.to_dict() if held else None,
            "largest_error_percent": max((abs(row["error_percent"]) for row in held), default=None),
            "fit": every.to_dict(),
            "predictions": predictions,
            "isoflop": self._isoflop(points, rows),
            "seconds": sum(row["seconds"] for row in rows),
            "warnings": warnings,
        }
        return found, every

    def _measured(self, rung: Rung) -> dict[str, Any]:
        pipeline = self.pipeline(rung)
        run = pipeline.ctx.run
        record = run.record("pretrain")
        scored = read_json(run.stage("evaluate-base") / RESULTS)["bits_per_byte"]
        if record is None or not math.isfinite(scored["value"]):
            raise UserError(f"rung {rung.name} has no loss that could be fitted: look at {run.path}")
        nats = math.log(2) * scored["bytes"] / scored["tokens"]  # a token, for one bit a byte
        counted = count(rung.config)
        section = rung.recipe.pretrain
        return {
            "name": rung.name,
            "size": rung.size,
            "held_out": rung.held_out,
            "budget": rung.budget,
            "parameters": rung.parameters,
            "total": counted["total"],
            "non_embedding": counted["total"] - counted["embedding"] - counted["head"],
            "d_model": rung.config.d_model,
            "n_layers": rung.config.n_layers,
            "tokens": rung.tokens,
            "tokens_per_parameter": rung.tokens / rung.parameters,
            "epochs": record.metrics.get("epochs"),
            "flops": rung.flops,
            "steps": section.steps,
            "batch_size": section.batch_size,
            "learning_rate": section.learning_rate,
            "muon_learning_rate": section.muon_learning_rate if section.optimizer == "muon" else None,
            "loss": scored["value"] * nats,
            "loss_interval": [scored["low"] * nats, scored["high"] * nats],
            "bits_per_byte": scored["value"],
            "scored_bytes": scored["bytes"],
            "seconds": record.metrics["train_seconds"],
            "tokens_per_second": record.metrics.get("tokens_per_second"),
            "warnings": record.warnings,
        }

    def _prediction(self, size: Size, law: Fit, rows: list[dict[str, Any]], unique: int) -> dict[str, Any]:
        """What a larger model would reach, trained as the ladder was: its own tokens a parameter, or 20."""
        ctx = self.base.ctx
        config = model_config(shaped(self.recipe, ctx.recipe, ctx.host, size))
        n = fitted_parameters(config)
        tokens = (self.options.tokens_per_parameter or (20.0,))[0] * n
        flops = train_flops_per_token(config) * tokens
        point = Point(n, tokens, 1.0, flops)
        times = flops / max(row["flops"] for row in rows)
        notes = _repeats([(size.label, tokens)], unique)
        if times > FAR:
            notes.append(f"{times:,.0f} times the compute of the largest rung: a long shot; add larger rungs")
        return {
            "size": size.label,
            "parameters": n,
            "tokens": tokens,
            "flops": flops,
            "times_largest": times,
            **_predict(law, point),
            "notes": notes,
        }

    def _isoflop(self, points: dict[str, Point], rows: list[dict[str, Any]]) -> dict[str, Any] | None:
        if not self.options.isoflop:
            return None
        groups = [[points[r["name"]] for r in rows if r["budget"] == b] for b in sorted(self.options.isoflop)]
        curves = [parabola(group, self.base.ctx.recipe.seed) for group in groups]
        law = allocation(curves)
        return {
            "parabolas": [{**c.to_dict(), "coefficients": c.coefficients, "centre": c.centre} for c in curves],
            "allocation": None if law is None else {"k": law.k, "a": law.a, "budgets": law.budgets},
        }


def _read_by(stage: Stage, ctx: Context) -> Any:
    """What the ladder's own stage reads, whoever asks: a rung's batch size does not make the shards anew."""
    return lambda _: stage.reads(ctx)


def _point(row: dict[str, Any]) -> Point:
    return Point(row["parameters"], row["tokens"], row["loss"], row["flops"], row["name"])


def _predict(law: Fit, point: Point) -> dict[str, Any]:
    said: Prediction = law.predict(point.parameters, point.tokens, point.flops)
    return {"loss": said.loss, "low": said.low, "high": said.high}


def _repeats(runs: list[tuple[str, float]], unique: int) -> list[str]:
    return [
        f"{name} sees each of the {unique:,} tokens {tokens / unique:.1f} times: past {FREE_EPOCHS} epochs repeated "
        "data is worth less than the law counts it (arXiv 2305.16264)"
        for name, tokens in runs
        if tokens > FREE_EPOCHS * unique
    ]
