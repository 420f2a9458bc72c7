"""Commands that write about a run: card, report."""

from __future__ import annotations

from pathlib import Path

import typer

from groundup.cli.app import RUNS, JsonOpt, RunArg, RunsOpt, app, print_json
from groundup.runs import existing


@app.command(epilog="Example: `groundup card runs/town`")
def card(run: RunArg, runs: RunsOpt = RUNS, as_json: JsonOpt = False) -> None:
    """Write the model card from the run's records."""
    from groundup.release.card import write_card

    folder = existing(run, runs)
    path = write_card(folder, folder / "card")
    _written_again(folder, "card")
    print_json({"card": str(path)}) if as_json else typer.echo(f"wrote {path}")


@app.command(epilog="Example: `groundup report runs/town`")
def report(run: RunArg, runs: RunsOpt = RUNS, as_json: JsonOpt = False) -> None:
    """Write the run's report: one self-contained HTML page. --json prints its figures."""
    from groundup.report.collect import report_json
    from groundup.report.page import write_report

    folder = existing(run, runs)
    if as_json:
        print_json(report_json(folder))
        return
    typer.echo(f"wrote {write_report(folder, folder / 'report' / 'index.html')}")
    _written_again(folder, "report")


def _written_again(folder: Path, stage: str) -> None:
    """Let the stage's record name the files as they are now, or the next run would take them for damaged."""
    from groundup.record.rundir import RunDir

    run = RunDir(folder)
    record = run.record(stage)
    if record is not None:
        run.write_stage(record.model_copy(update={"finished": ""}))
