"""Quality at equal wall clock: groundup, nanoGPT, litgpt and nanochat on Wikipedia, so many seconds each.

    git clone https://github.com/karpathy/nanoGPT      # and Lightning-AI/litgpt, karpathy/nanochat
    GROUNDUP_DATA=... python bench/wallclock.py --out wall --nanogpt nanoGPT --litgpt litgpt --nanochat nanochat
    python bench/wallclock.py --out wall --only groundup --seeds 3           # what wall has is not run again
    python bench/wallclock.py --out wall --only nanogpt --nanogpt nanoGPT --budget 60 --set rate=4e-3 rows=8

A byte-level BPE of 4,096 ids, trained on the training part; documents of about 1 MB held out. All read the same ids
and have the same number of parameters within 2%, each in the shape and with the settings that were best for it
(docs/speedrun.md). A contestant's clock runs from the start of its process: imports, compilation (the compiler's
cache is warm for all alike), training and, for groundup, the writing of checkpoint and model. The peers' loop stops
when the budget is spent, and their schedules end with it. groundup is `groundup run`: its steps are planned from a
short run just before, with a margin; what it really took is printed, and more than the budget is said to be so. The
same code then scores all. --turns SECONDS: all at once, but only one runs at a time, so that a noisy neighbour hits all
alike; each one's clock counts its own turns.
"""

from __future__ import annotations

import argparse
import json
import math
import mmap
import os
import shutil
import signal
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from wallclock_peers import CONTEXT, MAKERS, SETTINGS

VOCABULARY, HELD_OUT = 4096, 31  # ids; of so many documents one is held out
WARM, PROBED = 3, 400  # steps that fill the compiler's cache; windows that a probe of --steps is scored on
MARGIN = 0.03  # of the budget, kept free when groundup's steps are planned
RECIPE: dict[str, Any] = {
    "name": "wallclock",
    "verify": {"enabled": False},
    "model": {
        "d_model": 192,
        "n_layers": 3,
        "n_heads": 3,
        "d_ff": 768,
        "mlp": "relu2",
        "tied": False,
        "embed_scale": 30.0,
        "context": CONTEXT,
    },
    "tokenizer": {"kind": "bpe", "vocab_size": VOCABULARY},
    "data": {"sources": [{"path": ""}], "validation": 0.002},
    "pretrain": {
        "steps": 100,
        "batch_size": 16,
        "micro_batch_size": 16,
        "learning_rate": 0.008,
        "muon_learning_rate": 0.03,
        "normuon": True,
        "weight_decay": 0.0,
        "schedule": "wsd",
        "decay": 0.5,
        "precision": "bf16",
        "compile": True,
        "log_every": 20,
        "validate_every": 1000000,
        "sample_every": 1000000,
        "save_every": 1000000,
    },
}


# ---- the text ----


def prepare(out: Path) -> None:
    """Texts, tokenizer and ids, once: out/prepared has what groundup's own stages made of the training part."""
    home = out / "prepared"
    if (home / "held.npz").exists():
        return
    home.mkdir(parents=True, exist_ok=True)
    folder = Path(os.environ.get("GROUNDUP_DATA", "data")).resolve() / "text" / "enwiki"
    lines = [line for file in sorted(folder.glob("*.jsonl")) for line in file.read_text().splitlines()]
    if not lines:
        sys.exit(f"no *.jsonl in {folder}: set GROUNDUP_DATA")
    held = [json.loads(line)["text"] for line in lines[HELD_OUT - 1 :: HELD_OUT]]
    (home / "train.jsonl").write_text("".join(f"{line}\n" for i, line in enumerate(lines, 1) if i % HELD_OUT))
    write_recipe(out, home, {})
    called(groundup_run("data"), home)
    from groundup.evaluate.bpb import token_sizes
    from groundup.tokenizer.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(home / "runs" / "wallclock" / "tokenizer")
    ids = [i for text in held for i in (tokenizer.bos, *tokenizer.encode(text), tokenizer.eos)]
    np.savez(home / "held.npz", ids=np.array(ids), sizes=token_sizes(tokenizer), begin=tokenizer.bos)


def training_ids(out: Path) -> NDArray[Any]:
    """(N,) the ids that groundup trains on, end to end."""
    from groundup.data.shard import Shard
    from groundup.tokenizer.tokenizer import Tokenizer

    run = out / "prepared" / "runs" / "wallclock"
    return np.asarray(Shard(run / "data" / "train.bin", Tokenizer.load(run / "tokenizer").hash).tokens)


def batches(ids: NDArray[Any], rows: int, seed: int) -> Iterator[Tensor]:
    """(rows, CONTEXT + 1) ids: windows end to end in an order drawn from the seed, epoch by epoch."""
    generator, order = np.random.default_rng(seed), np.empty(0, dtype=np.int64)
    while True:
        if len(order) < rows:
            order = np.concatenate([order, generator.permutation((len(ids) - 1) // CONTEXT)])
        starts, order = order[:rows] * CONTEXT, order[rows:]
        yield torch.from_numpy(ids[starts[:, None] + np.arange(CONTEXT + 1)].astype(np.int64))


def bits_per_byte(logits: Callable[[Tensor], Tensor], out: Path, windows: int | None = None) -> float:
    """Of the held-out documents, in windows of CONTEXT without what came before. BOS is not scored: it always comes.

    logits: (rows, CONTEXT) ids -> (rows, CONTEXT, VOCABULARY).
    """
    held = np.load(out / "prepared" / "held.npz")
    ids, sizes = torch.from_numpy(held["ids"]), torch.from_numpy(held["sizes"])
    rows = min((len(ids) - 1) // CONTEXT, windows or len(ids))
    tokens, targets = (ids[at : at + rows * CONTEXT].view(rows, CONTEXT) for at in (0, 1))
    wanted = targets.masked_fill(targets == int(held["begin"]), -100)
    nats = 0.0
    with torch.no_grad():
        for some, of in zip(tokens.split(32), wanted.split(32), strict=True):
            nats += float(F.cross_entropy(logits(some).float().flatten(0, 1), of.flatten(), reduction="sum"))
    return nats / math.log(2) / int(sizes[targets].sum())


# ---- clocks and turns ----


class Clock:
    """A process's own time in a file: seconds used before this turn, and when (monotonic, of the machine) it began."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(16))
        with path.open("r+b") as file:
            self.memory = mmap.mmap(file.fileno(), 16)

    def set(self, used: float) -> None:
        self.memory[:] = struct.pack("dd", used, time.monotonic())

    def read(self) -> float:
        used, began = struct.unpack("dd", self.memory[:])
        return float(used + time.monotonic() - began)


class Contestant:
    """A process that runs only in its turns; stopped and continued with everything that it started."""

    def __init__(self, command: Sequence[str], home: Path) -> None:
        self.clock, self.used, self.log = Clock(home / "clock"), 0.0, home / "log.txt"
        self.clock.set(0.0)
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, cwd=home, stdout=log, stderr=log, start_new_session=True)
        self.pause()

    def turn(self, seconds: float) -> bool:
        """Let it run; whether it has ended."""
        self.clock.set(self.used)
        os.killpg(self.process.pid, signal.SIGCONT)
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.pause()
            return False
        self.used = self.clock.read()
        if code:
            sys.exit(f"a contestant ended with exit code {code}:\n{self.log.read_text()[-3000:]}")
        return True

    def pause(self) -> None:
        os.killpg(self.process.pid, signal.SIGSTOP)
        self.used = self.clock.read()

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)


def race(contestants: dict[str, Contestant], seconds: float, ended: Callable[[str, Contestant], None]) -> None:
    """Turns of so many seconds until all have ended; `ended` is called at once, while nobody runs."""
    running = dict(contestants)
    try:
        while running:
            for name, contestant in list(running.items()):
                if contestant.turn(seconds):
                    del running[name]
                    ended(name, contestant)
    finally:
        for contestant in contestants.values():
            contestant.kill()


# ---- the peers ----


def peer(
    name: str, path: str, given: dict[str, Any], out: Path, home: Path, seed: int, budget: float, steps: int | None
) -> None:
    """In a process of its own: trains until its clock says that the budget is spent, then scores itself.

    steps: so many instead, with the schedule over them.
    """
    clock = Clock(home / "clock")
    sys.path.insert(0, path)
    torch.manual_seed(seed)
    contestant = MAKERS[name](given, VOCABULARY)
    data = batches(training_ids(out), given["rows"], seed)
    step, start = 0, 0.0
    while (share := step / steps if steps else clock.read() / budget) < 1:
        contestant.step(next(data), share, step)
        step += 1
        start = start if step > 1 else clock.read()
    seconds = clock.read()
    tokens = step * given["rows"] * CONTEXT
    found = {
        "parameters": sum(p.numel() for p in contestant.model.parameters()),
        "seconds": seconds,
        "first_step": start,
        "steps": step,
        "tokens": tokens,
        "rate": (tokens - given["rows"] * CONTEXT) / max(seconds - start, 1e-9),
    }
    if steps != WARM:
        contestant.model.eval()
        found["bits_per_byte"] = bits_per_byte(contestant.logits, out, PROBED if steps else None)
    (home / "found.json").write_text(json.dumps(found))


# ---- groundup ----


def write_recipe(out: Path, home: Path, given: dict[str, Any], seed: int = 0, steps: int | None = None) -> None:
    recipe = deepcopy(RECIPE)
    recipe["data"]["sources"][0]["path"] = str(out / "prepared" / "train.jsonl")
    for dotted, value in given.items():
        section, _, key = dotted.rpartition(".")
        (recipe[section] if section else recipe)[key] = value
    if steps is not None:
        recipe["pretrain"]["steps"] = steps
    (home / "recipe.yaml").write_text(json.dumps({**recipe, "seed": seed}))  # JSON is YAML


def groundup_run(until: str) -> list[str]:
    return [sys.executable, "-m", "groundup.cli", "run", "recipe.yaml", "--runs", "runs", "--until", until]


def groundup_home(out: Path, home: Path, given: dict[str, Any], seed: int, steps: int) -> None:
    """A folder in which only pretraining is left to do."""
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    shutil.copytree(out / "prepared" / "runs", home / "runs")
    write_recipe(out, home, given, seed, steps)
    called(groundup_run("data"), home)  # another seed holds other documents out of validation, and makes it again
    tokenizers = [folder / "runs" / "wallclock" / "tokenizer" / "tokenizer.json" for folder in (out / "prepared", home)]
    if tokenizers[0].read_bytes() != tokenizers[1].read_bytes():
        sys.exit("the tokenizer is not the one that the peers' ids come from")


def planned_steps(out: Path, home: Path, given: dict[str, Any], seed: int, budget: float) -> int:
    """Steps that fit into the budget less the margin, by the pace of a short run: (first rows, last rows, the rest)."""
    steps, every = 120, 20
    groundup_home(out, home, {**given, "pretrain.log_every": every}, seed, steps)
    begun = time.perf_counter()
    called(groundup_run("pretrain"), home)
    whole = time.perf_counter() - begun
    lines = (home / "runs" / "wallclock" / "pretrain" / "metrics.jsonl").read_text().splitlines()
    at = [row["seconds"] for row in map(json.loads, lines) if "loss" in row]
    pace = statistics.median(b - a for a, b in pairwise(at[1:])) / every
    besides = max(0.0, whole - steps * pace)
    print(f"groundup: {pace * 1000:.1f} ms a step, {besides:.1f} s besides", file=sys.stderr, flush=True)
    return max(steps, int((budget * (1 - MARGIN) - besides) / pace))


def groundup_found(out: Path, home: Path, seconds: float, windows: int | None) -> dict[str, Any]:
    """What a finished run is worth; it attends inside documents in scoring as in training."""
    from groundup.model.storage import load_model

    begin, stage = int(np.load(out / "prepared" / "held.npz")["begin"]), home / "runs" / "wallclock" / "pretrain"
    model = load_model(stage / "model").eval()

    def logits(rows: Tensor) -> Tensor:
        begins = rows == begin
        begins[:, 0] = True
        place = torch.arange(rows.shape[1])
        positions = place - torch.where(begins, place, 0).cummax(1).values
        return model.logits(model(rows, documents=begins.cumsum(1).int() - 1, positions=positions))

    metrics = json.loads((stage / "stage.json").read_text())["metrics"]
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": seconds,
        "first_step": seconds - metrics["train_seconds"],
        "steps": metrics["steps"],
        "tokens": metrics["tokens"],
        "rate": metrics["tokens"] / metrics["train_seconds"],
        "bits_per_byte": bits_per_byte(logits, out, windows),
    }


def called(command: Sequence[str], home: Path) -> None:
    done = subprocess.run(command, cwd=home, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


# ---- all ----


def entrant(given: argparse.Namespace, out: Path, name: str, seed: int, home: Path) -> list[str]:
    """Make ready what is not timed (compiler's cache, steps); the command that is."""
    changes = dict(given.set)
    if name == "groundup":
        steps = given.steps or planned_steps(out, home, changes, seed, given.budget)
        groundup_home(out, home, changes, seed, steps)
        return groundup_run("pretrain")
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    task: dict[str, Any] = {"name": name, "given": {**SETTINGS[name], **changes}, "seed": seed}
    task |= {"path": str(Path(getattr(given, name)).resolve()), "out": str(out), "home": str(home)}

    def command(steps: int | None) -> list[str]:
        what = json.dumps({**task, "budget": given.budget, "steps": steps})
        return [sys.executable, str(Path(__file__).resolve()), "--peer", what]

    if not given.steps:
        race({name: Contestant(command(WARM), home)}, math.inf, lambda name, contestant: None)
    return command(given.steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("wallclock"), help="texts, the compiler's cache, results")
    parser.add_argument("--budget", type=float, default=600.0, help="seconds")
    parser.add_argument("--steps", type=int, help="a probe: so many steps instead, however long they take")
    parser.add_argument("--only", nargs="+", choices=["groundup", *MAKERS], help="left out: all that have a checkout")
    parser.add_argument("--seeds", type=int, default=1, help="of groundup; the peers have one")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--turns", type=float, help="seconds of a turn; left out: one contestant after the other")
    parser.add_argument("--set", nargs="*", default=[], type=pair, metavar="KEY=VALUE", help="of --only's one")
    for name in MAKERS:
        parser.add_argument(f"--{name}", metavar="PATH", help="a checkout")
    parser.add_argument("--peer", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.peer:
        task = given.peer
        return peer(**{**task, "out": Path(task["out"]), "home": Path(task["home"])})
    if given.set and len(given.only or []) != 1:
        sys.exit("--set goes with one name in --only")
    out = given.out.resolve()
    (out / "results").mkdir(parents=True, exist_ok=True)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(out / "cache")
    prepare(out)
    names = given.only or ["groundup", *(name for name in MAKERS if getattr(given, name))]
    if missing := [name for name in names if name != "groundup" and not getattr(given, name)]:
        sys.exit(f"give a checkout of {', '.join(missing)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that no contestant is left behind
    kind = f",{given.steps} steps" if given.steps else f",{given.budget:g}s{',turns' if given.turns else ''}"
    changed = "".join(f",{key}={json.dumps(value)}" for key, value in given.set)
    waiting: dict[str, tuple[str, int]] = {}
    for name in names:
        for seed in range(given.first_seed, given.first_seed + (given.seeds if name == "groundup" else 1)):
            title = f"{name},seed={seed}{changed}{kind}"
            if not (out / "results" / f"{title}.json").exists():
                waiting[title] = (name, seed)
    compete(given, out, waiting)
    print_table(out, kind, given.budget)


def compete(given: argparse.Namespace, out: Path, waiting: dict[str, tuple[str, int]]) -> None:
    def ended(title: str, contestant: Contestant) -> None:
        home = contestant.log.parent
        if waiting[title][0] == "groundup":
            found = groundup_found(out, home, contestant.used, PROBED if given.steps else None)
        else:
            found = json.loads((home / "found.json").read_text())
        (out / "results" / f"{title}.json").write_text(json.dumps(found))
        print(f"{title}: {found['seconds']:.1f} s, {found['bits_per_byte']:.4f}", file=sys.stderr, flush=True)

    homes = {title: out / "homes" / title for title in waiting}
    if given.turns:
        commands = {title: entrant(given, out, *waiting[title], homes[title]) for title in waiting}
        race({title: Contestant(commands[title], homes[title]) for title in waiting}, given.turns, ended)
        return
    for title, home in homes.items():
        race({title: Contestant(entrant(given, out, *waiting[title], home), home)}, math.inf, ended)


def pair(given: str) -> tuple[str, Any]:
    key, _, value = given.partition("=")
    return key, json.loads(value)


def print_table(out: Path, end: str, budget: float) -> None:
    """Everything there is of one kind (the end of a title says which), the best first."""
    files = [file for file in (out / "results").glob("*.json") if file.stem.endswith(end)]
    found = sorted(((json.loads(f.read_text()), f.stem.removesuffix(end)) for f in files), key=by_quality)
    print("| | parameters | seconds | to the first step | steps | tokens | tokens/s | bits per byte |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for row, name in found:
        over = " (over)" if row["seconds"] > budget * 1.005 and "steps" not in end else ""
        print(
            f"| {name} | {row['parameters']:,} | {row['seconds']:.1f}{over} | {row['first_step']:.1f} "
            f"| {row['steps']:,} | {row['tokens']:,} | {row['rate']:,.0f} | {row['bits_per_byte']:.4f} |"
        )
    ours = [row["bits_per_byte"] for row, name in found if name.startswith("groundup")]
    peers = [row["bits_per_byte"] for row, name in found if not name.startswith("groundup")]
    if ours and peers:
        worst, median, best = max(ours) / min(peers), statistics.median(ours) / min(peers), min(peers)
        print(f"\nto the best peer ({best:.4f}): {median - 1:+.1%} in the median, {worst - 1:+.1%} at worst")


def by_quality(one: tuple[dict[str, Any], str]) -> float:
    return float(one[0]["bits_per_byte"])


if __name__ == "__main__":
    main()
