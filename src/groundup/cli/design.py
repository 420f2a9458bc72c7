"""The command that chooses an architecture: design."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from groundup.cli.app import JsonOpt, app, print_json

if TYPE_CHECKING:
    from groundup.plan.design import Design

_SHAPE = "Shape, where you want to give it"
Dimension = Annotated[int | None, typer.Option(metavar="N", rich_help_panel=_SHAPE)]


@app.command(
    epilog="Examples: `groundup design --params 1B` · `groundup design --budget-flops 1e21 --out mine.yaml` · "
    "`groundup design --params 1B --layers 32 --width 4096 --heads 32`"
)
def design(
    params: Annotated[str | None, typer.Option(metavar="SIZE", help="parameters to aim at: 124M, 1B, 1T")] = None,
    context: Annotated[int | None, typer.Option(metavar="N", help="longest sequence, tokens")] = None,
    vocab: Annotated[int | None, typer.Option(metavar="N", help="tokens in the vocabulary")] = None,
    attention: Annotated[str, typer.Option(help="auto, mha, gqa or mqa")] = "auto",
    budget_flops: Annotated[
        str | None, typer.Option(metavar="FLOPS", help="training budget; without --params it chooses the size too")
    ] = None,
    tokens: Annotated[str | None, typer.Option(metavar="N", help="training tokens, such as 20B")] = None,
    moe: Annotated[bool, typer.Option("--moe", help="mixture of experts; --params then counts all of them")] = False,
    layers: Dimension = None,
    width: Dimension = None,
    heads: Dimension = None,
    kv_heads: Dimension = None,
    head_dim: Dimension = None,
    d_ff: Dimension = None,
    tied: Annotated[
        bool | None, typer.Option("--tied/--untied", help="output head on the embedding", rich_help_panel=_SHAPE)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.yaml", help="write the recipe there, the specification beside it (.md)")
    ] = None,
    as_json: JsonOpt = False,
) -> None:
    """Choose a full architecture for a size or a budget, with the reason for each component.

    A free search lands within 3% of the size. A shape given by hand that passes it by more than 20% is reduced,
    layers first, then width.
    """
    from groundup.errors import problems
    from groundup.plan.ask import Ask, ask_problems, read_size
    from groundup.plan.design import design as designed
    from groundup.plan.shapes import Given
    from groundup.plan.spec import to_json

    sizes: dict[str, float | None] = {}
    found = []
    for name, text in (("--params", params), ("--budget-flops", budget_flops), ("--tokens", tokens)):
        sizes[name] = read_size(text) if text is not None else None
        if text is not None and sizes[name] is None:
            found.append(f'{name} "{text}" is no size: write 124M, 1.5B, 1T or 1e21')
            sizes[name] = 1e9  # stands in, so that whatever else is wrong is said too
    ask = Ask(
        params=_whole(sizes["--params"]),
        context=context,
        vocab=vocab,
        attention=attention,
        budget=sizes["--budget-flops"],
        tokens=_whole(sizes["--tokens"]),
        moe=moe,
        given=Given(width, layers, heads, kv_heads, head_dim, d_ff, tied),
    )
    if out is not None and out.suffix not in (".yaml", ".yml"):
        found.append(f"--out {out}: a recipe's name ends in .yaml")
    problems("design", found + (ask_problems(ask) if found else []))
    chosen = designed(ask)
    if out is not None:
        _write(chosen, out)
    if as_json:
        files = {"files": [str(out), str(out.with_suffix(".md"))]} if out else {}
        print_json(to_json(chosen) | files)
        return
    _show(chosen)
    if out is not None:
        typer.echo(f"wrote {out} and {out.with_suffix('.md')}; next: groundup plan {out}")


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


def _write(chosen: Design, out: Path) -> None:
    import shlex
    import sys

    from groundup.errors import UserError
    from groundup.plan.spec import markdown, recipe_text
    from groundup.record.files import atomic_write

    command = "groundup " + shlex.join(sys.argv[1:])
    try:
        atomic_write(out, recipe_text(chosen, command))
        atomic_write(out.with_suffix(".md"), markdown(chosen, command))
    except (OSError, UserError) as error:
        said = f"{error.strerror}: choose another place" if isinstance(error, OSError) else str(error)
        raise UserError(f"--out {out}: {said}") from error


def _show(chosen: Design) -> None:
    """The specification on a terminal."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from groundup.plan.growth import grow
    from groundup.plan.reasons import reasons
    from groundup.plan.spec import PARTS, compute_lines, limit_lines, scaling_rows, short

    console = Console(highlight=False)
    counted = chosen.parameters
    total = counted["total"]

    def table(title: str, head: list[str], rows: list[list[Any]]) -> None:
        drawn = Table(*head, title=title, title_style="bold")
        drawn.columns[0].no_wrap = True
        for row in rows:
            drawn.add_row(*(escape(str(cell)) for cell in row))
        console.print(drawn)

    for change in chosen.changes:
        console.print(f"changed: {escape(change)}", style="yellow")
    why = [[r.component, r.value, f"{r.reason} ({r.source})"] for r in reasons(chosen)]
    off = total / chosen.target - 1
    table(f"{short(total)} parameters, {off:+.2%} of the size: why each component", ["component", "choice", "why"], why)
    rows = [[part, f"{counted[part]:,}", f"{counted[part] / total:.1%}"] for part in PARTS]
    rows += [["total", f"{total:,}", "100.0%"]]
    if counted["active"] != total:
        rows += [["used by a token", f"{counted['active']:,}", f"{counted['active'] / total:.1%}"]]
    table("parameters", ["part", "parameters", "share"], rows)
    for line in compute_lines(chosen):
        console.print(escape(line))
    grown = grow(chosen)
    head, *rest = scaling_rows(chosen, grown)
    table("scaling notes", head, rest)
    for g in grown:
        console.print(f"[bold]at {g.factor} x:[/bold] " + escape("; ".join(g.changes)))
    console.print("[bold]what breaks first:[/bold] " + escape("; ".join(limit_lines(chosen))))
