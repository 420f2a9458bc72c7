"""Commands only: parse, call, print. Exit 0 on success, 1 when a check or gate fails, 2 on a user's error."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from groundup import __version__
from groundup.errors import CheckFailed, Interrupted, UserError
from groundup.runs import existing, load_engine, open_run, pick, run_folder

if TYPE_CHECKING:  # heavy rooms are imported inside the commands, so that --help is quick
    from groundup.pipeline import Pipeline


class Commands(TyperGroup):
    """Ctrl-C and SIGTERM become `Interrupted` here, before Typer makes them a silent exit."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Interrupted("what was finished is kept; run the same command again to go on") from None


app = typer.Typer(
    name="groundup",
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="From raw text to a released language model, with one recipe.\n\nStart: `groundup run town`",
)

RecipeArg = Annotated[
    str, typer.Argument(metavar="RECIPE", help="recipe file, or a preset's name: town, wikipedia, ...")
]
RunArg = Annotated[str, typer.Argument(metavar="RUN", help="run folder, or its name below --runs")]
RunsOpt = Annotated[Path, typer.Option("--runs", help="folder that holds the runs", envvar="GROUNDUP_RUNS")]
SetOpt = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="override a recipe value; may be repeated")
]
JsonOpt = Annotated[bool, typer.Option("--json", help="machine-readable output on stdout")]
StageOpt = Annotated[str | None, typer.Option("--stage", help="base, sft, dpo or grpo; default: the last one made")]
RUNS = Path("runs")


def _print(value: Any) -> None:
    from groundup.record.files import plain

    unicode = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    typer.echo(json.dumps(plain(value), indent=2, ensure_ascii=not unicode, allow_nan=False))


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"groundup {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    pass


@app.command(epilog="Examples: `groundup new mine` · `groundup new big --params 30M --from wikipedia`")
def new(
    name: Annotated[str, typer.Argument(help="name of the recipe; writes NAME.yaml")],
    params: Annotated[str | None, typer.Option(help="size of the model, such as 1M; dimensions become auto")] = None,
    source: Annotated[
        str, typer.Option("--from", help="preset to start from: town, wikipedia, gpt2-124m, ...")
    ] = "town",
) -> None:
    """Write an annotated recipe."""
    from groundup.recipe.new import recipe_text
    from groundup.record.files import atomic_write

    name = name.removesuffix(".yaml")
    text, path = recipe_text(name, source, params), Path.cwd() / f"{name}.yaml"
    if path.exists():
        raise UserError(f"{path} exists; choose another name, or delete it first")
    atomic_write(path, text)
    typer.echo(f"wrote {path}\nnext: groundup plan {path.name}, then groundup run {path.name}")


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
    _print(found) if as_json else show(pipeline.ctx.recipe, found)


@app.command(epilog="Examples: `groundup run town` · `groundup run my.yaml --until pretrain --set pretrain.steps=100`")
def run(
    recipe: RecipeArg,
    runs: RunsOpt = RUNS,
    until: Annotated[str | None, typer.Option(help="stop after this stage")] = None,
    only: Annotated[str | None, typer.Option(help="run this stage alone")] = None,
    overrides: SetOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Run every stage that is not done yet. Killed at any moment, the same command goes on from there."""
    from groundup.console import Reporter
    from groundup.pipeline import Pipeline

    pipeline = Pipeline.open(recipe, runs, overrides, Reporter(quiet=as_json))
    pipeline.run(until, only)
    if as_json:
        _print({"run": str(pipeline.ctx.run.path), "stages": pipeline.status()})
    else:
        _closing(pipeline)


def _closing(pipeline: Pipeline) -> None:
    from rich.console import Console

    from groundup.evaluate.compare import compare as compared
    from groundup.evaluate.compare import table

    path = pipeline.ctx.run.path
    if any(name.startswith("evaluate-") for name in pipeline.done):
        Console().print(table(compared(path)))
        stale = [row["name"] for row in pipeline.status() if row["status"] == "stale"]
        if stale:
            pipeline.ctx.reporter.warn(f"made with other settings, and shown as they are: {', '.join(stale)}")
    if "report" in pipeline.done:
        typer.echo(f"\nreport       {path / 'report' / 'index.html'}\ncard         {path / 'card' / 'README.md'}")
        typer.echo(f"chat here    groundup chat {path}\nin browser   groundup serve {path}")


@app.command(epilog="Example: `groundup status runs/town --json`")
def status(run: RunArg, runs: RunsOpt = RUNS, as_json: JsonOpt = False) -> None:
    """Each stage of a run: state, seconds, key metrics."""
    pipeline = open_run(run, runs)
    rows = pipeline.status()
    if as_json:
        _print({"run": str(pipeline.ctx.run.path), "stages": rows})
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from groundup.console import duration

    out = Table("stage", "status", "time", "metrics")
    for row in rows:
        numbers = [f"{k} {_short(v)}" for k, v in row["metrics"].items() if type(v) in (int, float)][:5]
        took = duration(row["seconds"]) if row["seconds"] is not None else ""
        out.add_row(row["name"], row["status"], took, escape(row["why"]) or ", ".join(numbers))
    Console().print(out)


def _short(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


@app.command(epilog="Examples: `groundup verify town` · `groundup verify runs/town --only causality --json`")
def verify(
    target: Annotated[str, typer.Argument(metavar="RECIPE|RUN", help="recipe file, preset, or run folder")],
    only: Annotated[list[str] | None, typer.Option(help="check id; may be repeated")] = None,
    overrides: SetOpt = None,
    runs: RunsOpt = RUNS,
    as_json: JsonOpt = False,
) -> None:
    """The silent-bug checks. Exit 1 when one fails."""
    from groundup.console import Reporter
    from groundup.pipeline import Pipeline
    from groundup.stages.prepare import subject_of
    from groundup.verify.run import report as reported
    from groundup.verify.run import run_checks, select, show
    from groundup.verify.subject import Subject

    chosen = select(only)
    folder = run_folder(target, runs)
    if folder is not None:
        if overrides:
            raise UserError("--set goes with a recipe; a run is checked as it was made")
        subject = subject_of(open_run(target, runs).ctx)
    else:
        subject = Subject(Pipeline.open(target, runs, overrides, Reporter(quiet=True)).ctx.recipe)
    with Reporter(quiet=as_json).bar("verify", len(chosen), unit="checks") as bar:
        results = run_checks(subject, only, on_check=lambda done, total, result: bar.update(done, result.id))
    found = reported(results)
    _print(found) if as_json else show(found)
    if found["failed"]:
        raise CheckFailed(f"{found['failed']} of {len(found['checks'])} checks failed")


@app.command("eval", epilog="Example: `groundup eval runs/town --stage sft --tasks town-facts`")
def evaluate(
    run: RunArg,
    stage: StageOpt = None,
    tasks: Annotated[
        list[str] | None, typer.Option("--tasks", help="task name; may be repeated; default: the recipe's")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="questions a task, at most")] = None,
    runs: RunsOpt = RUNS,
    as_json: JsonOpt = False,
) -> None:
    """Evaluate a model of a run now. Nothing in the run is changed; results go to stdout."""
    import tempfile

    from groundup.console import Reporter
    from groundup.evaluate.run import evaluate_model
    from groundup.stages.base import checked_model, evaluation

    pipeline = open_run(run, runs)
    name, folder = pick(pipeline, stage)
    section = evaluation(pipeline.ctx.recipe.evaluate, pipeline.ctx.base)
    chosen = list(section.tasks)
    if tasks:
        known = {t if isinstance(t, str) else t.name: t for t in section.tasks}
        chosen = [known.get(t, t) for item in tasks for t in item.split(",")]
    section = section.model_copy(update={"tasks": chosen, "limit": limit or section.limit})
    tokenizer = pipeline.ctx.tokenizer()
    model = checked_model(folder, tokenizer).to(pipeline.ctx.device)
    with tempfile.TemporaryDirectory() as out, Reporter(quiet=as_json).bar(f"evaluate {name}", None) as bar:
        results = evaluate_model(
            model,
            tokenizer,
            section,
            pipeline.ctx.folder("data") / "validation.bin",
            pipeline.ctx.recipe.seed,
            Path(out),
            name,
            on_progress=lambda what, done, total: bar.update(done, f"{what} ({done}/{total})"),
        )
    if as_json:
        _print(results)
        return
    from rich.console import Console

    from groundup.evaluate.compare import table

    Console().print(
        table({"models": [{"stage": name, "scores": results["tasks"], "bits_per_byte": results["bits_per_byte"]}]})
    )


@app.command(epilog="Example: `groundup compare runs/town --json`")
def compare(run: RunArg, runs: RunsOpt = RUNS, as_json: JsonOpt = False) -> None:
    """Base, SFT, DPO and GRPO side by side, with 95% intervals."""
    from rich.console import Console

    from groundup.evaluate.compare import compare as compared
    from groundup.evaluate.compare import table

    pipeline = open_run(run, runs)
    found = compared(pipeline.ctx.run.path)
    current = {row["name"] for row in pipeline.status() if row["status"] == "done"}
    for model in found["models"]:
        model["stale"] = f"evaluate-{model['stage']}" not in current
        if model["stale"]:
            typer.echo(
                f"warning: {model['stage']} is of other settings than the run's recipe: see groundup status", err=True
            )
    _print(found) if as_json else Console().print(table(found))


@app.command(epilog='Example: `groundup sample runs/town --prompt "Once" --temperature 0.7`')
def sample(
    run: RunArg,
    prompt: Annotated[str, typer.Option(help="text to continue, or to answer with --chat")],
    stage: StageOpt = None,
    chat: Annotated[bool, typer.Option("--chat", help="send the prompt as a user's message")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 128,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 = greedy")] = 0.8,
    top_k: Annotated[int, typer.Option(min=0)] = 0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0)] = 1.0,
    seed: int = 0,
    runs: RunsOpt = RUNS,
    as_json: JsonOpt = False,
) -> None:
    """Continue a text, streaming."""
    from groundup.infer.sample import SamplingParams

    name, engine = load_engine(open_run(run, runs), stage)
    tokenizer = engine.tokenizer
    ids = (
        engine.chat_prompt([{"role": "user", "content": prompt}])
        if chat
        else [tokenizer.bos, *tokenizer.encode(prompt)]
    )
    params = SamplingParams(max_new_tokens, temperature, top_k, top_p, seed, stop_ids=(tokenizer.end, tokenizer.eos))
    if as_json:
        done = engine.generate([ids], [params])[0]
        _print(
            {
                "stage": name,
                "prompt": prompt,
                "text": done.text,
                "finish_reason": done.finish_reason,
                "tokens": len(done.ids),
            }
        )
        return
    pieces = engine.stream(ids, params)  # refuses a prompt that is too long: before anything is printed
    if not chat:
        typer.echo(prompt, nl=False)
    for piece in pieces:
        typer.echo(piece, nl=False)
        sys.stdout.flush()
    typer.echo()


@app.command(epilog="Example: `groundup chat runs/town --stage sft`")
def chat(
    run: RunArg,
    stage: StageOpt = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 = greedy")] = 0.7,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 128,
    system: Annotated[str | None, typer.Option(help="system message")] = None,
    runs: RunsOpt = RUNS,
) -> None:
    """Talk in the terminal. An empty line or Ctrl-D ends, Ctrl-C cuts an answer short, /reset forgets what was said."""
    from groundup.console import talk
    from groundup.infer.sample import SamplingParams

    name, engine = load_engine(open_run(run, runs), stage)
    stops = (engine.tokenizer.end, engine.tokenizer.eos)
    room = min(max_new_tokens, engine.context // 4)

    def answer(messages: list[dict[str, str]], turn: int) -> Iterator[str]:
        first = 1 if system else 0
        ids = engine.chat_prompt(messages)
        while len(ids) + room > engine.context and len(messages) > first + 2:
            del messages[first : first + 2]  # the oldest question and its answer make room
            ids = engine.chat_prompt(messages)
        return engine.stream(ids, SamplingParams(max_new_tokens, temperature, seed=turn, stop_ids=stops))

    typer.echo(f"{name} of {run}; an empty line ends, /reset starts over", err=True)
    talk(name, answer, system)


@app.command(epilog="Example: `groundup serve runs/town --port 8080`")
def serve(
    run: RunArg,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 = any free port")] = 8000,
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    runs: RunsOpt = RUNS,
) -> None:
    """An OpenAI-style server and a chat page, for all models of a run."""
    from groundup.serve.run import serve_run

    pipeline = open_run(run, runs)
    serve_run(
        pipeline.ctx.run,
        pipeline.ctx.tokenizer(),
        host,
        port,
        pipeline.ctx.device,
        lambda url: typer.echo(f"chat page {url}\nAPI       {url}/v1   (Ctrl-C ends)", err=True),
    )


@app.command(epilog="Example: `groundup export runs/town --to hf --out town-hf`")
def export(
    run: RunArg,
    out: Annotated[Path, typer.Option(help="folder to write")],
    to: Annotated[str, typer.Option(help="hf: a folder that transformers opens")] = "hf",
    stage: StageOpt = None,
    runs: RunsOpt = RUNS,
    as_json: JsonOpt = False,
) -> None:
    """Write a model for other tools, with its tokenizer, chat template and card."""
    from groundup.release.export import export_model

    pipeline = open_run(run, runs)
    name, folder = pick(pipeline, stage)
    found = export_model(pipeline.ctx.run, name, folder, pipeline.ctx.tokenizer(), to, out)
    _print(found) if as_json else typer.echo(f"wrote {name} to {out} ({found['architecture']})")


@app.command(epilog="Example: `groundup card runs/town`")
def card(run: RunArg, runs: RunsOpt = RUNS, as_json: JsonOpt = False) -> None:
    """Write the model card from the run's records."""
    from groundup.release.card import write_card

    folder = existing(run, runs)
    path = write_card(folder, folder / "card")
    _written_again(folder, "card")
    _print({"card": str(path)}) if as_json else typer.echo(f"wrote {path}")


@app.command(epilog="Example: `groundup report runs/town`")
def report(run: RunArg, runs: RunsOpt = RUNS, as_json: JsonOpt = False) -> None:
    """Write the run's report: one self-contained HTML page. --json prints its figures."""
    from groundup.report.collect import report_json
    from groundup.report.page import write_report

    folder = existing(run, runs)
    if as_json:
        _print(report_json(folder))
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


def main() -> None:
    """Entry point: turns our errors into messages and exit codes."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C; the training loop has a handler of its own
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a letter is no reason to stop
    try:
        app(prog_name="groundup")
    except UserError as e:
        _fail(str(e), 2)
    except CheckFailed as e:
        _fail(str(e), 1)
    except (Interrupted, KeyboardInterrupt) as e:
        _fail(str(e) or "run the same command again to go on", 130, "stopped")
    except BrokenPipeError:  # `groundup ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def _fail(message: str, code: int, kind: str = "error") -> None:
    typer.echo(f"{kind}: {message}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
