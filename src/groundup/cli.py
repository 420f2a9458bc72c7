"""Commands only: parse, call, print. Exit 0 on success, 1 when a check or gate fails, 2 on a user's error."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from groundup import __version__
from groundup.errors import CheckFailed, Interrupted, UserError, did_you_mean

if TYPE_CHECKING:  # heavy rooms are imported inside the commands, so that --help is quick
    from groundup.infer.engine import Engine
    from groundup.pipeline import Pipeline

app = typer.Typer(
    name="groundup",
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
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


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
    from groundup.recipe.new import write_recipe

    path = write_recipe(name, source, params, Path.cwd())
    typer.echo(f"wrote {path}\nnext: groundup plan {path.name}, then groundup run {path.name}")


@app.command(epilog="Examples: `groundup plan town` · `groundup plan my.yaml --set model.params=10M --json`")
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
    if "report" in pipeline.done:
        typer.echo(f"\nreport       {path / 'report' / 'index.html'}\ncard         {path / 'card' / 'README.md'}")
        typer.echo(f"chat here    groundup chat {path}\nin browser   groundup serve {path}")


@app.command(epilog="Example: `groundup status runs/town --json`")
def status(run: RunArg, runs: RunsOpt = RUNS, as_json: JsonOpt = False) -> None:
    """Each stage of a run: state, seconds, key metrics."""
    pipeline = _of_run(run, runs)
    rows = pipeline.status()
    if as_json:
        _print({"run": str(pipeline.ctx.run.path), "stages": rows})
        return
    from rich.console import Console
    from rich.table import Table

    from groundup.console import duration

    out = Table("stage", "status", "time", "metrics")
    for row in rows:
        numbers = [f"{k} {v:.4g}" for k, v in row["metrics"].items() if type(v) in (int, float)][:5]
        took = duration(row["seconds"]) if row["seconds"] is not None else ""
        out.add_row(row["name"], row["status"], took, ", ".join(numbers))
    Console().print(out)


@app.command(epilog="Examples: `groundup verify town` · `groundup verify runs/town --only causality --json`")
def verify(
    target: Annotated[str, typer.Argument(metavar="RECIPE|RUN", help="recipe file, preset, or run folder")],
    only: Annotated[list[str] | None, typer.Option(help="check id; may be repeated")] = None,
    overrides: SetOpt = None,
    runs: RunsOpt = RUNS,
    as_json: JsonOpt = False,
) -> None:
    """The silent-bug checks. Exit 1 when one fails."""
    from groundup.verify.run import report, run_checks, show
    from groundup.verify.subject import Subject

    folder = _run_folder(target, runs)
    if folder is not None:
        pipeline = _of_run(target, runs)
        subject = Subject.of_run(pipeline.ctx.recipe, pipeline.ctx.run)
    else:
        from groundup.console import Reporter
        from groundup.pipeline import Pipeline

        pipeline = Pipeline.open(target, runs, overrides, Reporter(quiet=True))
        subject = Subject.of_recipe(pipeline.ctx.recipe)
    found = report(run_checks(subject, only=only))
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
    from groundup.stages.base import checked_model

    pipeline = _of_run(run, runs)
    name, folder = _pick(pipeline, stage)
    section = pipeline.ctx.recipe.evaluate
    chosen = list(section.tasks)
    if tasks:
        known = {t if isinstance(t, str) else t.name: t for t in section.tasks}
        chosen = [known.get(t, t) for item in tasks for t in item.split(",")]
    section = section.model_copy(update={"tasks": chosen, "limit": limit or section.limit})
    tokenizer = pipeline.ctx.tokenizer()
    model = checked_model(folder, tokenizer).to(pipeline.ctx.recipe.device)
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

    found = compared(_existing(run, runs))
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

    name, engine = _engine(_of_run(run, runs), stage)
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
    if not chat:
        typer.echo(prompt, nl=False)
    for piece in engine.stream(ids, params):
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
    """Talk in the terminal. An empty line or Ctrl-D ends, /reset forgets what was said."""
    from groundup.infer.sample import SamplingParams

    name, engine = _engine(_of_run(run, runs), stage)
    tokenizer = engine.tokenizer
    start = [{"role": "system", "content": system}] if system else []
    messages = list(start)
    typer.echo(f"{name} of {run}; an empty line ends, /reset starts over", err=True)
    turn = 0
    while True:
        try:
            text = input("you> ").strip()
        except EOFError:
            break
        if not text:
            break
        if text == "/reset":
            messages = list(start)
            continue
        messages.append({"role": "user", "content": text})
        ids = engine.chat_prompt(messages)
        while len(ids) >= engine.context and len(messages) > len(start) + 1:
            del messages[len(start)]  # the oldest turn makes room
            ids = engine.chat_prompt(messages)
        params = SamplingParams(max_new_tokens, temperature, seed=turn, stop_ids=(tokenizer.end, tokenizer.eos))
        typer.echo(f"{name}> ", nl=False)
        said = ""
        for piece in engine.stream(ids, params):
            said += piece
            typer.echo(piece, nl=False)
            sys.stdout.flush()
        typer.echo()
        messages.append({"role": "assistant", "content": said})
        turn += 1


@app.command(epilog="Example: `groundup serve runs/town --port 8080`")
def serve(
    run: RunArg,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 = any free port")] = 8000,
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    runs: RunsOpt = RUNS,
) -> None:
    """An OpenAI-style server and a chat page, for all models of a run."""
    from groundup.serve.run import serve_run

    pipeline = _of_run(run, runs)
    serve_run(
        pipeline.ctx.run,
        pipeline.ctx.tokenizer(),
        host,
        port,
        pipeline.ctx.recipe.device,
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

    pipeline = _of_run(run, runs)
    name, folder = _pick(pipeline, stage)
    found = export_model(pipeline.ctx.run, name, folder, pipeline.ctx.tokenizer(), to, out)
    _print(found) if as_json else typer.echo(f"wrote {name} to {out} ({found['architecture']})")


@app.command(epilog="Example: `groundup card runs/town`")
def card(run: RunArg, runs: RunsOpt = RUNS, as_json: JsonOpt = False) -> None:
    """Write the model card from the run's records."""
    from groundup.release.card import write_card

    folder = _existing(run, runs)
    path = write_card(folder, folder / "card")
    _print({"card": str(path)}) if as_json else typer.echo(f"wrote {path}")


@app.command(epilog="Example: `groundup report runs/town`")
def report(run: RunArg, runs: RunsOpt = RUNS, as_json: JsonOpt = False) -> None:
    """Write the run's report: one self-contained HTML page. --json prints its figures."""
    from groundup.report.collect import report_json
    from groundup.report.page import write_report

    folder = _existing(run, runs)
    if as_json:
        _print(report_json(folder))
        return
    typer.echo(f"wrote {write_report(folder, folder / 'report' / 'index.html')}")


def _run_folder(run: str, runs: Path) -> Path | None:
    """The run folder meant by a path or by a name below `runs`; None when there is none."""
    for folder in (Path(run), runs / run):
        if (folder / "recipe.resolved.yaml").is_file():
            return folder
    return None


def _existing(run: str, runs: Path) -> Path:
    folder = _run_folder(run, runs)
    if folder is None:
        names = [p.parent.name for p in runs.glob("*/recipe.resolved.yaml")]
        raise UserError(f"no run at {run}{did_you_mean(Path(run).name, names)}; `groundup run RECIPE` makes one")
    return folder


def _of_run(run: str, runs: Path) -> Pipeline:
    from groundup.console import Reporter
    from groundup.pipeline import Pipeline

    folder = _existing(run, runs)
    pipeline = Pipeline.open(folder / "recipe.resolved.yaml", folder.parent, None, Reporter(quiet=True))
    pipeline.ctx.run.path = folder
    return pipeline


def _pick(pipeline: Pipeline, stage: str | None) -> tuple[str, Path]:
    """(display name, model folder) of the asked model, or of the last one made."""
    from groundup.stages.base import made_models

    made = made_models(pipeline.ctx.run)
    name = {"pretrain": "base"}.get(stage or "", stage) or list(made)[-1]
    if name not in made:
        raise UserError(f"{pipeline.ctx.run.path} has no {name} model{did_you_mean(name, made)}")
    return name, made[name]


def _engine(pipeline: Pipeline, stage: str | None) -> tuple[str, Engine]:
    from groundup.infer.engine import Engine
    from groundup.stages.base import checked_model

    name, folder = _pick(pipeline, stage)
    tokenizer = pipeline.ctx.tokenizer()
    device = pipeline.ctx.recipe.device
    return name, Engine(checked_model(folder, tokenizer).to(device), tokenizer, device=device)


def main() -> None:
    """Entry point: turns our errors into messages and exit codes."""
    try:
        app(standalone_mode=True)
    except UserError as e:
        _fail(str(e), 2)
    except CheckFailed as e:
        _fail(str(e), 1)
    except Interrupted as e:
        _fail(str(e), 130, "stopped")
    except KeyboardInterrupt:
        _fail("stopped; what was finished is kept: run the same command again to go on", 130, "stopped")
    except BrokenPipeError:  # `groundup ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def _fail(message: str, code: int, kind: str = "error") -> None:
    typer.echo(f"{kind}: {message}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
