"""The command that counts before anything is built: plan."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from groundup.cli.app import RUNS, JsonOpt, RecipeArg, SetOpt, app, print_json

if TYPE_CHECKING:
    from groundup.plan.host import Host
    from groundup.recipe.schema import Recipe


MOST_COUNT = 10**12  # steps, or sequences of a batch: beyond it a slip of the keyboard
MOST_LAYERS = 1000  # every layout counts them one by one


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
    devices: Annotated[int | None, typer.Option(metavar="N", help="how many; default: the fewest that hold it")] = None,
    price: Annotated[float | None, typer.Option(metavar="USD", help="of one device for an hour")] = None,
    mfu: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="of the peak that training reaches, such as 0.4"),
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
    from groundup.errors import UserError, problems
    from groundup.plan.ask import read_size
    from groundup.plan.budget import Asked
    from groundup.plan.document import planned, write_document
    from groundup.plan.show import show
    from groundup.record.files import plain, write_json

    overrides = list(overrides or [])
    sizes = {"--tokens": read_size(tokens or ""), "--unique-tokens": read_size(unique_tokens or "")}
    wrong = _wrong_sizes({"--tokens": tokens, "--unique-tokens": unique_tokens}, sizes)
    wrong += _wrong_numbers(devices, price, mfu) + _wrong_device(device, devices, measure)
    problems("plan", wrong + _wrong_recipe(recipe, overrides, alone=not wrong))
    asked = Asked(price, mfu, sizes["--unique-tokens"])
    found = _here_or_there(recipe, overrides, sizes["--tokens"], device, devices, measure, as_json)
    resolved, counted, used = found
    whole = planned(resolved, counted, used, asked)
    if out is not None:
        try:
            written = [*write_document(whole, out), out / "plan.json"]
            write_json(out / "plan.json", plain(whole))
        except (OSError, UserError) as error:
            raise UserError(
                f"--out {out}: {getattr(error, 'strerror', None) or error}: choose another place"
            ) from error
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
    from groundup.plan import devices as table
    from groundup.plan.budget import elsewhere
    from groundup.plan.growth import SHARING
    from groundup.plan.host import Host, this_host
    from groundup.plan.resolve import resolve
    from groundup.recipe.load import load_recipe

    given = load_recipe(recipe, overrides)
    if name is not None:
        here = this_host()
        if not table.is_here(name, here):
            device = table.find(name)
            host = Host("cuda", here.cores, int(device.memory), fast_bf16=True, compiler=True)
            sharing = devices or SHARING
            steps = _steps_for(tokens, given, host, sharing)
            given = load_recipe(recipe, [*overrides, "device=cuda", *steps])
            vocab = _vocab(given, recipe)
            resolved, notes = resolve(given, host, vocab, sharing)
            return resolved, elsewhere(resolved, notes, device, devices), device
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
    from groundup.stages.preflight import need_files

    need_files(ctx.recipe, ctx.base)
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


def _steps_for(tokens: float | None, recipe: Recipe, host: Host, devices: int = 1) -> list[str]:
    """The override that makes a recipe train on so many tokens, at the batch it resolves to.

    Errors: UserError where they are less than one batch.
    """
    from groundup.errors import UserError
    from groundup.plan.resolve import resolve

    if tokens is None:
        return []
    vocab = 512 if recipe.tokenizer.kind == "char" else None  # the batch does not follow from it
    batch = int(resolve(recipe, host, vocab, devices)[0].pretrain.batch_size)
    if tokens < batch * recipe.model.context:
        raise UserError(
            f"plan: --tokens {tokens:,.6g} are less than one batch of {batch:,} x {recipe.model.context:,} = "
            f"{batch * recipe.model.context:,} tokens: ask for more, or --set pretrain.batch_size lower"
        )
    return [f"pretrain.steps={round(tokens / (batch * recipe.model.context))}"]


def _wrong_sizes(given: dict[str, str | None], found: dict[str, float | None]) -> list[str]:
    from groundup.plan.ask import MOST_TOKENS

    wrong = []
    for name, text in given.items():
        value = found[name]
        if text is not None and value is None:
            wrong.append(f'{name} "{text}" is no number of tokens: write 300M, 20B, 15T or 1500000')
        elif value is not None and not 1 <= value <= MOST_TOKENS:
            wrong.append(f"{name} {text}: from 1 to {MOST_TOKENS:.0e} tokens")
    return wrong


def _wrong_numbers(devices: int | None, price: float | None, mfu: float | None) -> list[str]:
    """Options that are no such number; NaN is between no two bounds."""
    bounds: tuple[tuple[str, float | None, float, float], ...] = (
        ("--devices", devices, 1, 2**20),
        ("--price", price, 0, 10**9),
        ("--mfu", mfu, 0.001, 1),
    )
    return [
        f"{name} {value:g}: from {low:,} to {high:,}"
        for name, value, low, high in bounds
        if value is not None and not low <= value <= high
    ]


def _wrong_device(name: str | None, devices: int | None, measure: bool) -> list[str]:
    from groundup.errors import UserError
    from groundup.plan import devices as table
    from groundup.plan.host import this_host

    if name is None or table.is_here(name, this_host()):
        alone = devices is not None and devices > 1
        return ["--devices is for --device NAME; groundup trains on one device of this machine"] if alone else []
    try:
        device = table.find(name)
    except UserError as error:
        return [str(error)]
    return [f"--measure times this machine, which has no {device.name}: leave one of the two away"] if measure else []


def _wrong_recipe(path: str, overrides: list[str], alone: bool) -> list[str]:
    """What is wrong with the recipe, beside what is wrong with the options; `alone`: the recipe speaks for itself."""
    from groundup.errors import UserError
    from groundup.plan.ask import LEAST_VOCAB
    from groundup.recipe.load import load_recipe

    try:
        recipe = load_recipe(path, overrides)
    except UserError as error:
        if alone:
            raise
        return [str(error)]
    wrong, vocab, s = [], recipe.tokenizer.vocab_size, recipe.pretrain
    if recipe.base is None and vocab != "auto" and vocab < LEAST_VOCAB:
        wrong.append(f"tokenizer.vocab_size: {vocab} is too small: at least {LEAST_VOCAB}, bytes and special tokens")
    for key, value in (("steps", s.steps), ("batch_size", s.batch_size)):
        if value != "auto" and value > MOST_COUNT:
            wrong.append(
                f"pretrain.{key}: {float(min(value, 10**300)):.3g} is more than the {MOST_COUNT:,} that make sense"
            )
    if recipe.model.n_layers != "auto" and recipe.model.n_layers > MOST_LAYERS:
        wrong.append(f"model.n_layers: {recipe.model.n_layers:,} is more than the {MOST_LAYERS:,} that can be planned")
    return wrong
