"""verify: the silent-bug checks, what they are, and whether they themselves can be trusted."""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from groundup.cli.app import RUNS, JsonOpt, RunsOpt, SetOpt, app, print_json
from groundup.errors import CheckFailed, UserError
from groundup.runs import open_run, run_folder

if TYPE_CHECKING:
    from groundup.console import Reporter
    from groundup.recipe.schema import Recipe
    from groundup.verify.target import Target

HELP = "recipe file, preset, run folder, Hugging Face folder, file or folder of rows, or package.module:factory"
EPILOG = (
    "Examples: `groundup verify town` · `groundup verify runs/town --only causality --json` · "
    "`groundup verify mymodel:target` · `groundup verify --explain causality` · `groundup verify --self-test`"
)


@app.command(epilog=EPILOG)
def verify(
    target: Annotated[str | None, typer.Argument(metavar="TARGET", help=HELP)] = None,
    only: Annotated[list[str] | None, typer.Option(help="check id; may be repeated")] = None,
    family: Annotated[list[str] | None, typer.Option(help="invariance, locality, identity or sensitivity")] = None,
    stage: Annotated[list[str] | None, typer.Option(help="model, tokenizer, data, train, chat, ...")] = None,
    listing: Annotated[bool, typer.Option("--list", help="the checks, and what each is for")] = False,
    explain: Annotated[str | None, typer.Option(metavar="ID", help="all about one check")] = None,
    junit: Annotated[Path | None, typer.Option(metavar="FILE", help="also write JUnit XML")] = None,
    self_test: Annotated[bool, typer.Option("--self-test", help="plant every bug, run every healthy kind")] = False,
    sample: Annotated[int, typer.Option(min=1, help="--self-test: every n-th bug and configuration alone")] = 1,
    seeds: Annotated[int, typer.Option(min=0, help="--self-test: further seeds of the base configuration")] = 0,
    jobs: Annotated[int, typer.Option(min=1, help="--self-test: processes")] = os.cpu_count() or 1,
    overrides: SetOpt = None,
    runs: RunsOpt = RUNS,
    as_json: JsonOpt = False,
) -> None:
    """The silent-bug checks, on anything. Exit 1 when one fails."""
    from groundup.console import Reporter
    from groundup.verify.run import select

    chosen = select(only, family, stage)
    if explain is not None:
        _explain(explain, as_json)
        return
    if listing:
        _list(chosen, as_json)
        return
    reporter = Reporter(quiet=as_json)
    if self_test:
        _self_test(sample, seeds, jobs, reporter, as_json)
        return
    if target is None:
        raise UserError(f"verify: what? Give a TARGET ({HELP}), --list, --explain ID or --self-test")
    with redirect_stdout(sys.stderr) if as_json else nullcontext():  # what a factory or a model prints is no JSON
        opened = _open(target, runs, overrides)
    _verify(opened, Asked(only, family, stage), junit, reporter, as_json)


@dataclass(frozen=True)
class Opened:
    """A target; of a recipe or a run also the recipe and the folder of its relative paths; of a run its folder."""

    target: Target
    recipe: Recipe | None = None
    base: Path = Path()
    run: Path | None = None


@dataclass(frozen=True)
class Asked:
    """Which checks: ids, families, stages; None is all."""

    only: list[str] | None = None
    family: list[str] | None = None
    stage: list[str] | None = None


def _open(given: str, runs: Path, overrides: list[str] | None) -> Opened:
    from groundup.console import Reporter
    from groundup.pipeline import Pipeline
    from groundup.stages.prepare import subject_of
    from groundup.verify.opening import open_target
    from groundup.verify.subject import Subject

    folder = run_folder(given, runs)
    found = None if folder is not None else open_target(given)
    if overrides and (folder is not None or found is not None):
        raise UserError("--set goes with a recipe; a run, a checkpoint, rows or a module are checked as they are")
    if folder is not None:
        ctx = open_run(given, runs).ctx
        return Opened(subject_of(ctx), ctx.recipe, ctx.base, folder)
    if found is not None:
        return Opened(found)
    ctx = Pipeline.open(given, runs, overrides, Reporter(quiet=True)).ctx
    return Opened(Subject(ctx.recipe), ctx.recipe, ctx.base)


def _verify(opened: Opened, asked: Asked, junit: Path | None, reporter: Reporter, as_json: bool) -> None:
    from groundup.verify.run import show

    found = _measured(opened, asked, reporter, as_json)
    if junit is not None:
        _write_junit(junit, found)
    if as_json:
        print_json(found)
    else:
        show(found)
    allowed = set(opened.recipe.verify.allow) if opened.recipe is not None else set()
    failed = [c["id"] for c in found["checks"] if not c["passed"]]
    through = [id for id in failed if id in allowed]
    if through and not as_json:
        typer.echo(f"let through by verify.allow: {', '.join(dict.fromkeys(through))}")
    if not found["checks"]:
        raise CheckFailed(_nothing(opened, asked, found, as_json))
    if len(through) < len(failed):
        if not as_json:
            raise typer.Exit(1)  # the line that counts has said how many
        raise CheckFailed(f"{len(failed) - len(through)} of {len(found['checks'])} checks failed")


def _measured(opened: Opened, asked: Asked, reporter: Reporter, as_json: bool) -> dict[str, Any]:
    """The report of all checks asked for that apply. Errors: UserError where none looks at such a target."""
    from groundup.verify.run import applicable, report, run_checks
    from groundup.verify.sources import check_sources

    target, how = opened.target, (asked.only, asked.family, asked.stage)
    chosen = applicable(target, *how)
    if not chosen and opened.recipe is None:
        raise UserError(f"verify: none of the checks asked for looks at a {target.kind}; see groundup verify --list")
    quiet = redirect_stdout(sys.stderr) if as_json else nullcontext()
    with quiet, reporter.bar("verify", len(chosen), unit="checks") as bar:
        results = run_checks(target, *how, on_check=lambda done, total, result: bar.update(done, result.id))
    if opened.recipe is not None:
        results += check_sources(opened.recipe, opened.base, *how)
    return report(results)


def _write_junit(file: Path, found: dict[str, Any]) -> None:
    from groundup.verify.junit import write_junit

    try:
        write_junit(file, found)
    except OSError as error:
        raise UserError(f"--junit {file}: cannot be written ({error.strerror or error})") from error


def _nothing(opened: Opened, asked: Asked, found: dict[str, Any], as_json: bool) -> str:
    """Why nothing was looked at, and where to look instead."""
    from groundup.verify.run import select

    chosen = select(asked.only, asked.family, asked.stage)
    if chosen and all(one.stage == "live" for one in chosen):
        return f"nothing was looked at: {_where_live(opened.run)}"
    if not found["skipped"]:
        return (
            f"nothing was looked at: none of the checks asked for looks at a {opened.target.kind}; see groundup verify "
            "--list"
        )
    where = 'under "skipped"' if as_json else "above"
    return f"nothing was looked at: every check asked for was skipped (the reasons are {where})"


def _where_live(run: Path | None) -> str:
    """The live checks look at a training stage at work, and leave a file there."""
    held = sorted(run.glob("*/live.json")) if run is not None else []
    if held:
        return f"the live checks ran while the run was trained; their results are in {', '.join(map(str, held))}"
    written = f"{run if run is not None else 'RUN'}/STAGE/live.json"
    return f"the live checks look at a run while `groundup run` trains it, and write {written}"


def _list(chosen: list[Any], as_json: bool) -> None:
    from groundup.verify.explain import as_dict, list_text

    if as_json:
        print_json([as_dict(one) for one in chosen])
        return
    typer.echo(list_text(chosen, shutil.get_terminal_size().columns))
    typer.echo(f"\n{len(chosen)} check{'s' * (len(chosen) != 1)}; groundup verify --explain ID says how one measures")


def _explain(id: str, as_json: bool) -> None:
    from groundup.verify.explain import as_dict, as_text
    from groundup.verify.run import select

    one = select([id])[0]
    print_json(as_dict(one)) if as_json else typer.echo(as_text(one))


def _self_test(sample: int, seeds: int, jobs: int, reporter: Reporter, as_json: bool) -> None:
    from rich.console import Console

    from groundup.verify import selftest

    with reporter.bar("self-test", None, unit="done") as bar:
        found = selftest.self_test(
            sample, seeds, jobs, on_done=lambda done, total, what: bar.update(done, f"of {total}: {what}")
        )
    if as_json:
        print_json(found)
    else:
        Console(highlight=False).print(selftest.table(found))
        typer.echo(selftest.summary(found))
    if not selftest.passed(found):
        raise CheckFailed(f"self-test: {selftest.summary(found)}")
