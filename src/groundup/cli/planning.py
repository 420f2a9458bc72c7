"""The command that counts before anything is built: plan."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from groundup.cli.app import RUNS, JsonOpt, RecipeArg, SetOpt, app, print_json

if TYPE_CHECKING:
    from groundup.plan.host import Host
    from groundup.recipe.schema import Recipe


@app.command(
    epilog="Examples: `groundup plan town` · `groundup plan llama-2-7b --device h100 --devices 64 --price 2.5` · "
    "`groundup plan my.yaml --set pretrain.steps=2000 --out plans/mine`"
)
def plan(
    recipe: RecipeArg,
    device: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="a100, h100, h200, b200, l4, 4090, mi300x, ...; default: this machine"),
    ] = None,
    devices: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="how many; default: the fewest that hold it")
    ] = None,
    price: Annotated[float | None, typer.Option(metavar="USD", min=0, help="of one device for an hour")] = None,
    mfu: Annotated[
        float | None,
        typer.Option(metavar="SHARE", min=0.001, max=1, help="of the peak that training reaches, such as 0.4"),
    ] = None,
    tokens: Annotated[
        str | None, typer.Option(metavar="N", help="training tokens, such as 15T; sets pretrain.steps")
    ] = None,
    unique_tokens: Annotated[
        str | None, typer.Option(metavar="N", help="tokens that the corpus holds: says what repetition costs")
    ] = None,
    measure: Annotated[
        bool,
        typer.Option("--measure", help="time real training steps here, compiled as the recipe says: up to a minute"),
    ] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="write the whole plan there: plan.md, plan.html, plan.json")
    ] = None,
    overrides: SetOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Count before you build: architecture, compute, data, training, evaluation, card; every `auto` with its reason.

    On this machine the time is measured in some seconds; with --device nothing is, and layouts are compared on paper.
    """
    from groundup.plan.budget import Asked
    from groundup.plan.document import planned, write_document
    from groundup.plan.show import show
    from groundup.record.files import plain, write_json

    sizes = _sizes({"--tokens": tokens, "--unique-tokens": unique_tokens})
    asked = Asked(price, mfu, sizes["--unique-tokens"])
    found = _here_or_there(recipe, list(overrides or []), sizes["--tokens"], device, devices, measure, as_json)
    resolved, counted, used = found
    whole = planned(resolved, counted, used, asked)
    if out is not None:
        written = [*write_document(whole, out), out / "plan.json"]
        write_json(out / "plan.json", plain(whole))
    if as_json:
        print_json(whole)
        return
    show(whole)
    if out is not None:
        typer.echo("wrote " + ", ".join(map(str, written)))


def _here_or_there(
    recipe: str,
    overrides: list[str],
    tokens: float | None,
    name: str | None,
    devices: int | None,
    measure: bool,
    quiet: bool,
) -> tuple[Recipe, dict[str, Any], Any]:
    """(resolved recipe, its budget, the device) on this machine, or on devices of the table."""
    from groundup.errors import UserError
    from groundup.plan import devices as table
    from groundup.plan.budget import elsewhere
    from groundup.plan.host import Host, this_host
    from groundup.plan.resolve import resolve
    from groundup.recipe.load import load_recipe

    given = load_recipe(recipe, overrides)
    if name is not None:
        here = this_host()
        if not table.is_here(name, here):
            device = table.find(name)
            if measure:
                raise UserError(f"--measure times this machine, which has no {device.name}: leave one of the two away")
            host = Host("cuda", here.cores, int(device.memory), fast_bf16=True, compiler=True)
            steps = _steps_for(tokens, given, host)
            given = load_recipe(recipe, [*overrides, "device=cuda", *steps])
            vocab = _vocab(given, recipe)
            resolved, notes = resolve(given, host, vocab)
            return resolved, elsewhere(resolved, notes, device, devices), device
    if devices is not None and devices > 1:
        raise UserError("--devices is for --device NAME; groundup trains on one device of this machine")
    return _here(recipe, overrides, tokens, measure, quiet)


def _here(
    recipe: str, overrides: list[str], tokens: float | None, measure: bool, quiet: bool
) -> tuple[Recipe, dict[str, Any], Any]:
    from groundup.console import Reporter
    from groundup.pipeline import Pipeline
    from groundup.plan.devices import here
    from groundup.recipe.load import load_recipe
    from groundup.stages import prepare
    from groundup.stages.timing import timed_budget

    steps = []
    if tokens is not None:
        from groundup.plan.host import this_host

        given = load_recipe(recipe, overrides)
        steps = _steps_for(tokens, given, this_host(given.device))
    ctx = Pipeline.open(recipe, RUNS, [*overrides, *steps], Reporter(quiet=quiet)).ctx
    _need_files(ctx.recipe, ctx.base)
    if ctx.recipe.base is not None:
        found = prepare.planned(ctx.recipe, ctx.host, ctx.notes)
    else:
        found = timed_budget(ctx.recipe, ctx.host, ctx.notes, measure)
    return ctx.recipe, found, here(ctx.host, str(ctx.recipe.pretrain.precision), found["peak_flops"])


def _vocab(recipe: Recipe, path: str) -> int | None:
    """Characters of the corpus where the tokenizer counts them."""
    from groundup.pipeline import resolve_here

    if recipe.tokenizer.kind != "char" or recipe.tokenizer.vocab_size != "auto":
        return None
    local = recipe.model_copy(update={"device": "cpu"})
    return int(resolve_here(local, Path(path).resolve().parent)[0].tokenizer.vocab_size)


def _steps_for(tokens: float | None, recipe: Recipe, host: Host) -> list[str]:
    """The override that makes a recipe train on so many tokens, at the batch it resolves to."""
    from groundup.plan.resolve import resolve

    if tokens is None:
        return []
    vocab = 512 if recipe.tokenizer.kind == "char" else None  # the batch does not follow from it
    batch = int(resolve(recipe, host, vocab)[0].pretrain.batch_size)
    return [f"pretrain.steps={max(1, round(tokens / (batch * recipe.model.context)))}"]


def _sizes(given: dict[str, str | None]) -> dict[str, float | None]:
    from groundup.errors import problems
    from groundup.plan.ask import read_size

    found = {name: None if text is None else read_size(text) for name, text in given.items()}
    wrong = [name for name, text in given.items() if text is not None and not (found[name] or 0) > 0]
    problems(
        "plan", [f'{name} "{given[name]}" is no number of tokens: write 300M, 20B, 15T or 1500000' for name in wrong]
    )
    return found


def _need_files(recipe: Recipe, base: Path) -> None:
    """Every file that the recipe names and that is not there, in one message. Nothing is read: that takes minutes."""
    from groundup.data import files
    from groundup.errors import problems

    missing = []
    for stage, endings in (("data", files.TEXT), ("sft", files.ROWS), ("dpo", files.ROWS), ("grpo", files.ROWS)):
        section = getattr(recipe, stage)
        for source in section.sources if section is not None else []:
            if source.path is not None:
                missing += [f"{stage}: {complaint}" for complaint in files.find(source.path, base, endings)[1]]
    for task in recipe.evaluate.tasks:
        if not isinstance(task, str):
            missing += [f"evaluate, {task.name}: {c}" for c in files.find(task.path, base, (".jsonl",))[1]]
    problems("plan", missing)
