"""The guard at work: a small model on tiny Shakespeare, clean, and with trouble planted, with the guard and without.

    GROUNDUP_DATA=... python bench/guard.py [--out runs/guard] [--only clean-1,rate-on] [--picture PNG]

$GROUNDUP_DATA/text/tinyshakespeare/input.txt: characters, the last tenth held out. A run takes a minute or two; what
was run before (a result file in --out) is not run again, and what was stopped goes on. clean-1 goes first: the runs
with trouble begin with its first steps. Prints a table and draws the loss curves of the runs that are there.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from groundup.console import Reporter
from groundup.errors import UserError
from groundup.model.batch import Batch
from groundup.model.config import ModelConfig
from groundup.model.init import init_weights
from groundup.model.transformer import Transformer
from groundup.recipe.schema import PretrainSection
from groundup.train import loop
from groundup.train.guard import FILE
from groundup.train.loop import Job, train
from groundup.train.objective import Loss, language_modelling

STEPS, ROWS, CONTEXT, WHEN = 400, 8, 128, 240
SHARED = 200  # steps that all runs of seed 1 have in common: taken from clean-1's checkpoint, exact to the bit
GARBAGE = range(WHEN, WHEN + 15)  # steps whose rows are random characters
EXPLODED = range(WHEN, WHEN + 5)  # steps at a hundred times the learning rate
NANS = (240, 241, 242, 280, 320)  # steps whose loss is NaN
HURT = (WHEN,)  # steps before which one weight turns into NaN: a memory fault
RUNS: dict[str, dict[str, Any]] = {
    "clean-1": {"seed": 1},
    "clean-2": {"seed": 2},
    "clean-3": {"seed": 3},
    "garbage-off": {"garbage": GARBAGE, "guard": False},
    "garbage-on": {"garbage": GARBAGE},
    "rate-off": {"exploded": EXPLODED, "guard": False},
    "rate-on": {"exploded": EXPLODED},
    "nan-on": {"nans": NANS},
    "weights-off": {"hurt": HURT, "guard": False},
    "weights-on": {"hurt": HURT},
}


class Characters:
    """Windows of the text at places drawn from (seed, step); at `garbage` steps, random characters."""

    pure = True

    def __init__(self, ids: torch.Tensor, seed: int, garbage: range) -> None:
        self.ids, self.seed, self.garbage, self.vocabulary = ids, seed, garbage, int(ids.max()) + 1

    def micro_batches(self, step: int) -> list[Batch]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        starts = torch.randint(len(self.ids) - CONTEXT - 1, (ROWS, 1), generator=generator)
        rows = self.ids[starts + torch.arange(CONTEXT + 1)]
        if step in self.garbage:
            rows = torch.randint(self.vocabulary, rows.shape, generator=generator)
        return [batch(rows)]


def batch(rows: torch.Tensor) -> Batch:
    count, places = len(rows), torch.arange(CONTEXT)
    documents = torch.zeros(count, CONTEXT, dtype=torch.int32)
    return Batch(rows[:, :-1].contiguous(), rows[:, 1:].contiguous(), documents, places.expand(count, CONTEXT))


def held_out(model: Transformer, ids: torch.Tensor) -> dict[str, float]:
    """Nats a character over the first 256 windows of the held-out text."""
    rows = torch.stack([ids[n * CONTEXT : (n + 1) * CONTEXT + 1] for n in range(256)])
    with torch.no_grad():
        losses = [language_modelling(model, batch(part)) for part in rows.split(64)]
    return {"validation_loss": sum(float(one.total) for one in losses) / sum(one.weight for one in losses)}


@contextmanager
def nan_at(steps: Sequence[int]) -> Iterator[None]:
    """The loss of these steps is NaN, and its gradient."""
    right = loop._one_step

    def wrong(job: Job, optimizers: Any, step: int, *more: Any) -> dict[str, Any]:
        objective = job.objective

        def poisoned(model: Transformer, given: Batch) -> Loss:
            loss = objective(model, given)
            return Loss(loss.total * math.nan, loss.weight)

        job.objective = poisoned if step in steps else objective
        try:
            return right(job, optimizers, step, *more)
        finally:
            job.objective = objective

    loop._one_step = wrong
    try:
        yield
    finally:
        loop._one_step = right


@contextmanager
def weight_lost_at(steps: Sequence[int]) -> Iterator[None]:
    """One weight is NaN when these steps begin."""
    right = loop._one_step

    def wrong(job: Job, optimizers: Any, step: int, *more: Any) -> dict[str, Any]:
        if step in steps:
            with torch.no_grad():
                next(job.model.blocks.parameters()).view(-1)[0] = math.nan
        return right(job, optimizers, step, *more)

    loop._one_step = wrong
    try:
        yield
    finally:
        loop._one_step = right


@contextmanager
def rate_times_100(at: range) -> Iterator[None]:
    right: Callable[..., float] = loop.rate_at
    loop.rate_at = lambda step, *more: right(step, *more) * (100 if step in at else 1)
    try:
        yield
    finally:
        loop.rate_at = right


@contextmanager
def every_loss(path: Path) -> Iterator[None]:
    """Every step that is computed as a line of `path`, those that are undone among them (metrics.jsonl has none)."""
    right = loop._one_step

    def noting(job: Job, optimizers: Any, step: int, *more: Any) -> dict[str, Any]:
        row = right(job, optimizers, step, *more)
        with open(path, "a") as file:  # a run that is stopped goes on in the same file
            file.write(json.dumps([step + 1, row["loss"] if math.isfinite(row["loss"]) else None]) + "\n")
        return row

    loop._one_step = noting
    try:
        yield
    finally:
        loop._one_step = right


def run(
    name: str,
    out: Path,
    train_ids: torch.Tensor,
    check_ids: torch.Tensor,
    seed: int = 1,
    garbage: range = range(0),
    exploded: range = range(0),
    nans: Sequence[int] = (),
    hurt: Sequence[int] = (),
    guard: bool = True,
) -> dict[str, Any]:
    """One training run; writes OUT/NAME.json."""
    vocabulary = int(train_ids.max()) + 1
    config = ModelConfig(vocabulary, 144, 4, 4, 4, 36, 384, CONTEXT)
    model = init_weights(Transformer(config), seed)
    section = PretrainSection(
        steps=STEPS, batch_size=ROWS, micro_batch_size=ROWS, learning_rate=3e-3, muon_learning_rate=1e-2,
        precision="fp32", compile=False, save_every=50, validate_every=STEPS, log_every=1, prefetch=1,
        guard={"enabled": guard},
    )  # fmt: skip
    warnings: list[str] = []
    job = Job(
        "pretrain", "key", model, language_modelling, Characters(train_ids, seed, garbage), section, out / name, seed,
        Reporter(quiet=True), validate=lambda: held_out(model, check_ids), on_warning=warnings.append,
    )  # fmt: skip
    losses, events = out / name / "losses.jsonl", out / name / FILE
    if not losses.exists():
        losses.parent.mkdir(parents=True)
        losses.touch()
    if not name.startswith("clean") and not losses.stat().st_size:
        first = (out / "clean-1" / "losses.jsonl").read_text().splitlines(keepends=True)[:SHARED]
        losses.write_text("".join(first))
        at = f"checkpoints/step-{SHARED:07d}"
        shutil.copytree(out / "clean-1" / at, out / name / at, dirs_exist_ok=True)
    metrics: dict[str, Any] = {}
    with rate_times_100(exploded), nan_at(nans), weight_lost_at(hurt), every_loss(losses):
        try:
            metrics = train(job)
        except UserError as error:
            warnings.append(f"exit 2: {error}")
    found = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": metrics.get("train_seconds", 0),
        "events": [json.loads(line) for line in events.read_text().splitlines()] if events.exists() else [],
        "losses": [json.loads(line) for line in losses.read_text().splitlines()],
        "warnings": warnings,
        **{k: metrics.get(k, 0) for k in ("validation_loss", "skipped_steps", "rollbacks", "passed_over_steps")},
    }
    (out / f"{name}.json").write_text(json.dumps(found))
    return found


def table(found: dict[str, dict[str, Any]]) -> str:
    """Against clean-1, with which the others share seed and first steps; the other clean runs say what chance does."""
    clean = found.get("clean-1", {}).get("validation_loss")
    lines = [
        "| run | held-out loss | against clean-1 | rollbacks | passed over | skipped | steps computed | s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, one in found.items():
        loss = one["validation_loss"]  # 0: it stopped before its end
        against = f"{loss / clean - 1:+.1%}" if clean and loss and name != "clean-1" else ""
        numbers = [one["rollbacks"], one["passed_over_steps"], one["skipped_steps"], len(one["losses"]), one["seconds"]]
        numbers = numbers if loss else ["", "", "", len(one["losses"]), ""]
        lines.append(
            f"| {name} | {f'{loss:.4f}' if loss else 'stopped'} | {against} | {' | '.join(map(str, numbers))} |"
        )
    return "\n".join(lines)


def draw(found: dict[str, dict[str, Any]], path: Path) -> None:
    """A column for each kind of trouble: above all of the loss, below what is usual, closer."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    planted: dict[str, tuple[str, Sequence[int]]] = {
        "garbage": (f"random text for {len(GARBAGE)} steps", GARBAGE),
        "rate": (f"rate x 100 for {len(EXPLODED)} steps", EXPLODED),
        "nan": (f"NaN at {len(NANS)} steps", NANS),
        "weights": ("a weight turns NaN", HURT),
    }
    kinds = [kind for kind in planted if f"{kind}-on" in found]
    figure, axes = plt.subplots(
        2, len(kinds), figsize=(3.7 * len(kinds), 6.4), sharex=True, sharey="row", squeeze=False
    )
    for column, kind in enumerate(kinds):
        title, where = planted[kind]
        for axis in axes[:, column]:
            for n in where:
                axis.axvspan(
                    n + 0.5, n + 1.5, color="#f5b7b1", lw=0, label="trouble planted" if n == where[0] else None
                )
            for name, label, colour in (
                (f"{kind}-off", "without guard", "#c0392b"),
                ("clean-1", "clean", "#909497"),
                (f"{kind}-on", "with guard", "#1f618d"),
            ):
                if name in found:
                    kept, undone = ways(found[name]["losses"])
                    axis.plot(*kept, label=label, color=colour, lw=0.9)
                    for one in undone:
                        axis.plot(*one, color="#d68910", lw=1.8, label="undone" if one is undone[0] else None)
        for n, event in enumerate(found[f"{kind}-on"]["events"]):
            height, axis = 0.8 - 0.16 * n, axes[0][column]
            axis.annotate(
                "", (event["back_to"], height), (event["seen"], height), xycoords=("data", "axes fraction"),
                arrowprops={"arrowstyle": "->", "color": "#1f618d", "lw": 1.2},
            )  # fmt: skip
            said, where_to = f"back to {event['back_to']}", (event["back_to"], height + 0.04)
            axis.text(*where_to, said, transform=axis.get_xaxis_transform(), size=8, color="#1f618d")
        if not found.get(f"{kind}-off", {"validation_loss": 1})["validation_loss"]:
            last = max(step for step, _ in found[f"{kind}-off"]["losses"])
            axes[0][column].plot([last], [2.4], "x", color="#c0392b")
            axes[0][column].text(
                last + 4, 2.4, "without guard: ends here, exit 2", size=8, color="#c0392b", va="center"
            )
        axes[0][column].set(title=title, ylim=(1.2, 8.5), xlim=(WHEN - 50, STEPS))
        axes[1][column].set(xlabel="step", ylim=(1.4, 2.4))
    for axis, label in zip(axes[:, 0], ("training loss, nats a character", "the same, closer"), strict=True):
        axis.set_ylabel(label)
    labels: dict[str, Any] = {}
    for axis in axes[0]:
        labels |= {label: line for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(labels.values(), labels.keys(), loc="lower center", ncol=len(labels), frameon=False)
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


Curve = tuple[Sequence[int], Sequence[float]]


def ways(losses: list[tuple[int, float | None]]) -> tuple[Curve, list[Curve]]:
    """(steps and losses that the weights went through, those that came to nothing, a curve a rollback)."""
    kept: dict[int, float] = {}
    undone: list[Curve] = []
    for step, loss in losses:
        if kept and step <= max(kept):  # gone back
            undone.append(tuple(zip(*((n, kept.pop(n)) for n in list(kept) if n >= step), strict=True)))
        kept[step] = math.nan if loss is None else loss
    steps = range(min(kept), max(kept) + 1)
    # What is done again before the spike is the same to the bit: that came to something.
    gone = [[(n, v) for n, v in zip(*one, strict=True) if kept.get(n) != v] for one in undone]
    return (steps, [kept.get(n, math.nan) for n in steps]), [tuple(zip(*one, strict=True)) for one in gone if one]


def main() -> None:
    torch.set_num_threads(1)  # two threads beside another process wait for each other most of the time
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/guard"))
    parser.add_argument("--only", default=",".join(RUNS), help="names of runs, with commas")
    parser.add_argument("--picture", type=Path, default=Path("docs/images/guard.png"))
    given = parser.parse_args()
    path = Path(os.environ.get("GROUNDUP_DATA", "data")) / "text" / "tinyshakespeare" / "input.txt"
    text = path.read_text()
    known = {c: n for n, c in enumerate(sorted(set(text)))}
    ids = torch.tensor([known[c] for c in text])
    cut = len(ids) * 9 // 10
    given.out.mkdir(parents=True, exist_ok=True)
    for name in given.only.split(","):
        if not (given.out / f"{name}.json").exists():
            run(name, given.out, ids[:cut], ids[cut:], **RUNS[name])
    results = {n: given.out / f"{n}.json" for n in RUNS}
    found = {name: json.loads(file.read_text()) for name, file in results.items() if file.exists()}
    print(f"{next(iter(found.values()))['parameters']:,} parameters, {STEPS} steps of {ROWS} x {CONTEXT} characters\n")
    print(table(found))
    for name, one in found.items():
        for line in one["warnings"]:
            print(f"{name}: {line}")
    if any(name.endswith("-on") for name in found):
        draw(found, given.picture)
        print(f"wrote {given.picture}")


if __name__ == "__main__":
    main()
