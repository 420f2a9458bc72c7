"""The command that trains a ladder of small models and predicts a larger one: ladder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from groundup.cli.app import RUNS, JsonOpt, RecipeArg, RunsOpt, SetOpt, app, print_json


@app.command(
    epilog="Examples: `groundup ladder wikipedia --sizes 400K,800K,1.6M,3.2M` · "
    "`groundup ladder my.yaml --sizes 1M,2M,4M,8M --tokens-per-parameter 20,10 --predict 100M`"
)
def ladder(
    recipe: RecipeArg,
    sizes: Annotated[
        str, typer.Option(help="parameters (200K,400K,...) or layers x width x heads (2x64x2,3x96x3,...)")
    ],
    tokens_per_parameter: Annotated[
        str | None, typer.Option(help="tokens for each parameter; several: every size with each (20 where none is set)")
    ] = None,
    tokens: Annotated[str | None, typer.Option(help="tokens, the same for every size, such as 5M,10M")] = None,
    isoflop: Annotated[
        str | None, typer.Option(help="budgets in FLOPs, such as 1e13,4e13: every size within each, and parabolas")
    ] = None,
    hold_out: Annotated[
        str, typer.Option(help="size that is predicted and not fitted: largest, none, or one of the sizes")
    ] = "largest",
    predict: Annotated[str | None, typer.Option(help="larger sizes to predict, such as 100M")] = None,
    rule: Annotated[
        str, typer.Option(help="batch and rate of each rung: olmo-ladder, deepseek, step-law, nanochat")
    ] = "olmo-ladder",
    overrides: SetOpt = None,
    runs: RunsOpt = RUNS,
    as_json: JsonOpt = False,
) -> None:
    """Train the recipe at several sizes, fit a scaling law, check it on a size left out, predict a larger one."""
    from groundup.console import Reporter
    from groundup.errors import UserError, problems
    from groundup.ladder import Ladder
    from groundup.plan.ladder import Options, counts, numbers
    from groundup.plan.ladder import sizes as sizes_of
    from groundup.report.ladder import verdict

    wrong: list[str] = []

    def read(reader: Callable[..., Any], text: str | None, *more: str) -> Any:
        """What stands in an option, or nothing, and then `wrong` has what is wrong with it."""
        try:
            return reader(text, *more) if text is not None else ()
        except UserError as error:
            wrong.append(str(error))
            return ()

    ratios = read(numbers, tokens_per_parameter, "--tokens-per-parameter", "20 or 10,40")
    lengths = read(counts, tokens, "--tokens")
    budgets = read(numbers, isoflop, "--isoflop", "1e13")
    found_sizes = read(sizes_of, sizes, "--sizes")
    held_size = read(sizes_of, None if hold_out in ("largest", "none") else hold_out, "--hold-out")
    larger = read(sizes_of, predict, "--predict")
    problems("ladder", wrong)
    if not (ratios or lengths or budgets):
        ratios = (20.0,)
    options = Options(found_sizes, ratios, lengths, budgets, held_size[0].label if held_size else hold_out, rule)
    opened = Ladder.open(recipe, runs, options, overrides, Reporter(quiet=as_json))
    found = opened.run(larger)
    if as_json:
        print_json(found)
        return
    _table(found)
    typer.echo("\n".join(["", *verdict(found), "", f"all of it    {opened.folder}"]))


def _table(found: dict) -> None:  # type: ignore[type-arg]
    from rich.console import Console
    from rich.table import Table

    from groundup.console import duration

    table = Table("rung", "N", "tokens", "FLOPs", "loss", "predicted", "error", "time", title=f"ladder {found['name']}")
    table.columns[0].no_wrap = True
    for r in found["rungs"]:
        table.add_row(
            f"{r['name']} *" if r["held_out"] else r["name"],
            f"{r['parameters']:,}",
            f"{r['tokens']:,}",
            f"{r['flops']:.2e}",
            f"{r['loss']:.4f}",
            f"{r['predicted']['loss']:.4f}",
            f"{r['error_percent']:+.2f}%",
            duration(r["seconds"]),
        )
    table.caption = "* held out: predicted from the others, which were fitted"
    Console().print(table)
