"""The command that counts before anything is built: plan."""

from __future__ import annotations

from groundup.cli.app import RUNS, JsonOpt, RecipeArg, SetOpt, app, print_json


@app.command(epilog="Examples: `groundup plan town` · `groundup plan my.yaml --set pretrain.steps=2000 --json`")
def plan(recipe: RecipeArg, overrides: SetOpt = None, as_json: JsonOpt = False) -> None:
    """Count before you build: parameters, FLOPs, tokens, memory, time, and every `auto` with its reason."""
    from groundup.console import Reporter
    from groundup.pipeline import Pipeline
    from groundup.plan.budget import budget
    from groundup.plan.show import show

    pipeline = Pipeline.open(recipe, RUNS, overrides, Reporter(quiet=as_json))
    pipeline.keys()  # names every file that is missing
    found = budget(pipeline.ctx.recipe, pipeline.ctx.host, pipeline.ctx.notes)
    print_json(found) if as_json else show(pipeline.ctx.recipe, found)
