"""The fault drill: a real run is killed, starved and damaged in every way we could think of, and must come to the bytes
of a run that nothing happened to, or end with a clear error and nothing lost.

    python tests/faults/drill.py                  # all of it; prints the table of docs/checkpoints.md
    python tests/faults/drill.py --kills 20       # fewer kills
    python tests/faults/drill.py --kills 0        # everything but the random kills

Each fault is a method that returns a row. tests/faults/test_fault_drill.py runs the same methods.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from command import MICRO, Forked

STAGES = ("pretrain", "sft", "dpo", "grpo")
# Micro-model, every stage; each saves often, so that most kills meet a save, and keeps little.
RECIPE = [
    *(
        "verify.enabled=false",
        "evaluate.limit=1",
        "pretrain.save_every=1",
        "pretrain.keep_best=1",
    ),
    *("sft.steps=60", "sft.save_every=1", "dpo.steps=20", "dpo.save_every=1", "grpo.steps=16", "grpo.save_every=1"),
    *(f"{stage}.keep_checkpoints=3" for stage in STAGES),
]


@dataclass
class Row:
    """What came of one kind of fault. survived: went on, or ended with a clear error and nothing lost."""

    fault: str
    tried: int = 0
    survived: int = 0
    equal: bool = False  # the final weights, of every stage that ran, are the unbroken run's
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        equal = "yes" if self.equal else "NO"
        return f"| {self.fault} | {self.tried} | {self.survived} | {equal} | {'; '.join(self.notes)} |"


class Child(Forked):
    """`groundup` in a process of its own, with faults planted in it."""

    def __init__(self, *arguments: object, log: Path, planted: dict[str, Any] | None = None) -> None:
        from command import _forks

        self.log = log
        log.unlink(missing_ok=True)
        self.process = _forks.Process(
            target=_child, args=(list(map(str, arguments)), str(log), os.getcwd(), planted or {})
        )
        self.process.start()

    def kill(self, number: int = signal.SIGKILL) -> int:
        if self.process.is_alive():
            assert self.process.pid is not None
            os.kill(self.process.pid, number)
        return self.wait()


def _child(arguments: list[str], log: str, folder: str, planted: dict[str, Any]) -> None:
    from command import _run

    from groundup.plan import budget

    budget.peak_flops = lambda device, precision: 1e11  # type: ignore[assignment]  # the plan's two seconds of measuring
    budget.matmul_rate = lambda device, precision, shape: 1e11  # type: ignore[assignment]
    if slow := planted.get("slow_disk"):
        sync = os.fsync

        def lame(descriptor: int) -> None:
            time.sleep(slow)
            sync(descriptor)

        os.fsync = lame
    if (left := planted.get("disk_full_after")) is not None:
        from groundup.train import tensorfile

        right, written = tensorfile.HashedFile.write, [0]

        def write(self: Any, data: Any) -> None:
            written[0] += len(data)
            if written[0] > left:
                raise OSError(errno.ENOSPC, "No space left on device")
            right(self, data)

        tensorfile.HashedFile.write = write  # type: ignore[method-assign]
    if jump := planted.get("clock"):
        now, calls = time.time, [0]

        def jumping() -> float:
            calls[0] += 1
            return now() - jump * (calls[0] // 50)  # further back every 50 looks

        time.time = jumping
    _run(arguments, log, folder)


class Drill:
    """Runs of one recipe: what comes before training is made once and copied. steps: of pretraining."""

    def __init__(self, base: Path, until: str = "pretrain", seed: int = 0, steps: int = 120) -> None:
        self.base, self.until, self.steps, self.draw = base, until, steps, random.Random(seed)
        self.last: list[Path] = []
        base.mkdir(parents=True, exist_ok=True)
        self.before = self._prepared()
        self.part: Path | None = None
        whole = self.fresh("unbroken")
        child = self.start(whole)
        assert child.wait() == 0, child.text()
        self.hashes = hashes(whole)
        assert self.hashes, "nothing was trained"

    def arguments(self, folder: Path, until: str) -> list[object]:
        asked = [*RECIPE, f"pretrain.steps={self.steps}"]
        return ["run", MICRO, "--runs", folder.parent, "--until", until, *(x for s in asked for x in ("--set", s))]

    def start(self, folder: Path, **planted: Any) -> Child:
        return Child(*self.arguments(folder, self.until), log=folder.parent / "log", planted=planted)

    def fresh(self, name: str, of: Path | None = None, within: Path | None = None) -> Path:
        """A run's folder of its own, with what `of` has (before any training, by default)."""
        folder = (within or self.base / name) / "micro"
        shutil.copytree(of or self.before, folder)
        return folder

    def _prepared(self) -> Path:
        folder = self.base / "before" / "micro"
        child = Child(*self.arguments(folder, "data"), log=self.base / "log")
        assert child.wait() == 0, child.text()
        return folder

    def interrupted(self) -> Path:
        """A run that was killed in pretraining, with a few checkpoints."""
        if self.part is None:
            self.part = self.fresh("part")
            self.start(self.part, slow_disk=0.002).kill_when(lambda: newest_step(self.part) >= 20)
        return self.part

    def finish(self, row: Row, folder: Path, **planted: Any) -> str:
        """Run to the end; note whether the bytes are right."""
        child = self.start(folder, **planted)
        code = child.wait()
        row.equal = code == 0 and hashes(folder) == self.hashes
        if code != 0:
            row.notes.append(f"ended with {code}: {child.text()[-300:]}")
        elif litter := [p.name for p in folder.rglob(".*.tmp-*")]:
            row.equal = False
            row.notes.append(f"left behind: {litter[:3]}")
        return child.text()

    def rows(self) -> Iterator[Row]:
        """Every fault but the random kills."""
        yield self.killed_while_writing(10)
        yield self.signals()
        yield self.disk_full()
        if (row := self.small_disk()) is not None:
            yield row
        yield self.damaged("flipped bit", flip)
        yield self.damaged("truncated file", truncate)
        yield self.deleted()
        yield self.clock_jumps_back()
        yield self.two_processes()

    # ---- killed ----

    def random_kills(self, kills: int) -> Row:
        """SIGKILL at random moments: while starting, in a step, in a save, between stages."""
        row, folder = Row(f"SIGKILL at a random moment of a run ({self.until})"), self.fresh("kills")
        saving = 0
        while row.tried < kills:
            child = self.start(folder, slow_disk=self.draw.choice([0, 0, 0.002]))
            self._wait_a_while(child, folder)
            saving += any(folder.glob("*/checkpoints/.step-*.tmp-*"))
            code = child.kill()
            if code == 0:
                row.notes.append(f"over after {row.tried} kills")
                break
            row.tried += 1
            if code != -signal.SIGKILL:
                row.notes.append(f"ended with {code}: {child.text()[-200:]}")
                break
            row.survived += 1
        self.finish(row, folder)
        row.notes.append(f"{saving} of them while a checkpoint was being written")
        return row

    def _wait_a_while(self, child: Child, folder: Path) -> None:
        """Until this life is a little further than the last, or for a random time."""
        if self.draw.random() < 0.15:
            time.sleep(self.draw.random())  # starting, mostly
            return
        goal, end = done_steps(folder) + self.draw.randint(1, 2), time.monotonic() + 30
        in_save = self.draw.random() < 0.5
        while child.process.is_alive() and time.monotonic() < end:
            writing = in_save and any(folder.glob("*/checkpoints/.step-*.tmp-*"))
            if done_steps(folder) >= goal and (writing or not in_save):
                break
            time.sleep(0.0005)
        time.sleep(self.draw.random() * 0.005)

    def killed_while_writing(self, kills: int) -> Row:
        """SIGKILL when the thread has begun a checkpoint and not finished it, again and again at the same place."""
        row, folder = Row("SIGKILL while the thread writes a checkpoint"), self.fresh("writing")
        for _ in range(kills):
            have = newest_step(folder)
            child = self.start(folder, slow_disk=0.02)
            child.kill_when(lambda have=have: half_written(folder) > have + 1)  # type: ignore[misc]
            row.tried += 1
            row.survived += newest_step(folder) > have and half_written(folder) > newest_step(folder)
        self.finish(row, folder)
        return row

    def signals(self) -> Row:
        """SIGTERM and SIGINT end the run saved; SIGUSR1 saves and goes on."""
        row, folder = Row("SIGTERM, SIGINT: saved, exit 130; SIGUSR1: saved, goes on"), self.fresh("signals")
        for number in (signal.SIGTERM, signal.SIGINT):
            have = newest_step(folder)
            child = self.start(folder, slow_disk=0.002)
            row.tried += 1
            code = child.kill_when(lambda have=have: newest_step(folder) > have, number)  # type: ignore[misc]
            row.survived += code == 130 and "saved at step" in child.text()
        child = self.start(folder, slow_disk=0.002)
        have = newest_step(folder)
        while newest_step(folder) <= have:
            time.sleep(0.001)
        os.kill(child.process.pid, signal.SIGUSR1)  # type: ignore[arg-type]
        row.tried += 1
        row.survived += child.wait() == 0 and "saving after this step, then going on" in child.text()
        row.equal = hashes(folder) == self.hashes
        return row

    # ---- the disk ----

    def disk_full(self, times: int = 3) -> Row:
        """A write fails with ENOSPC in the middle of a save, each time a little later."""
        row, folder = Row("disk full during a save (ENOSPC from the write)"), self.fresh("full")
        for n in range(times):
            have = newest_step(folder)
            child = self.start(folder, disk_full_after=1_300_000 + 333_333 * n)
            row.tried += 1
            clear = child.wait() == 2 and "the disk is full" in child.text() and "Traceback" not in child.text()
            row.survived += clear and newest_step(folder) > have
        row.notes.append("exit 2, older checkpoints whole")
        self.finish(row, folder)
        return row

    def small_disk(self) -> Row | None:
        """A real file system that fills up while the run saves; None where nothing may be mounted."""
        row = Row("disk full: a real tmpfs")
        with tmpfs(self.base / "tmpfs", "64m") as mounted:
            if mounted is None:
                return None
            folder = self.fresh("", within=mounted)
            child = self.start(folder, slow_disk=0.002)
            row.tried = 1
            while newest_step(folder) < 10 and child.process.is_alive():
                time.sleep(0.001)
            ballast = mounted / "ballast"
            with open(ballast, "wb", buffering=0) as file:
                try:
                    while file.write(b"\0" * 65536):
                        pass
                except OSError as error:
                    assert error.errno == errno.ENOSPC
            code, text = child.wait(), child.text()
            ballast.unlink()
            row.survived = int(code == 2 and ("the disk is full" in text or text == ""))
            self.finish(row, folder)
        return row

    # ---- damage ----

    def damaged(self, what: str, damage: Callable[[Path], None]) -> Row:
        """Each file of the newest checkpoint in turn."""
        part = self.interrupted()
        row, equal = Row(f"{what} in the newest checkpoint, each file in turn"), []
        for n, file in enumerate(sorted(newest_checkpoint(part).iterdir())):
            folder = self.fresh(f"{what.split()[0]}-{n}", of=part)
            broken = newest_checkpoint(folder)
            damage(broken / file.name)
            row.tried += 1
            text = self.finish(row, folder)
            told = f"passed over {broken.name}: " in text and "resuming from step" in text
            row.survived += told
            equal.append(row.equal)
        row.equal = all(equal)
        row.notes.append("passed over, and told why")
        return row

    def deleted(self) -> Row:
        """The newest checkpoint is gone; then all of them."""
        row, equal = Row("newest checkpoint deleted; all of them deleted"), []
        for n, every in enumerate((False, True)):
            folder = self.fresh(f"deleted-{n}", of=self.interrupted())
            for path in checkpoints(folder) if every else [newest_checkpoint(folder)]:
                shutil.rmtree(path)
            row.tried += 1
            text = self.finish(row, folder)
            row.survived += ("resuming from step" in text) is not every
            equal.append(row.equal)
        row.equal = all(equal)
        return row

    # ---- everything else ----

    def clock_jumps_back(self) -> Row:
        """time.time goes back by hours, again and again, and the run is killed in between."""
        row, folder = Row("the clock jumps back by hours, with a kill in between"), self.fresh("clock")
        child = self.start(folder, clock=7200.0, slow_disk=0.002)
        row.tried, row.survived = 1, int(child.kill_when(lambda: newest_step(folder) >= 10) == -signal.SIGKILL)
        text = self.finish(row, folder, clock=86400.0)
        row.survived = int(bool(row.survived) and "resuming from step" in text)
        return row

    def two_processes(self) -> Row:
        """A second process on the same run, while the first trains."""
        row, folder = Row("two processes on one run directory"), self.fresh("two")
        first = self.start(folder, slow_disk=0.002)
        while newest_step(folder) < 5:
            assert first.process.is_alive(), first.text()
            time.sleep(0.001)
        for n in range(2):
            second = Child(*self.arguments(folder, self.until), log=folder.parent / f"log-{n}")
            row.tried += 1
            row.survived += second.wait() == 2 and f"is in use by process {first.process.pid}" in second.text()
        row.notes.append("the second: exit 2, says who holds it")
        row.equal = first.wait() == 0 and hashes(folder) == self.hashes
        return row


def hashes(folder: Path) -> dict[str, str]:
    """Stage -> SHA-256 of the final weights."""
    models = {stage: folder / stage / "model" / "model.safetensors" for stage in STAGES}
    return {stage: hashlib.sha256(p.read_bytes()).hexdigest() for stage, p in models.items() if p.exists()}


def checkpoints(folder: Path, stage: str = "pretrain") -> list[Path]:
    return sorted((folder / stage / "checkpoints").glob("step-*"))


def newest_checkpoint(folder: Path) -> Path:
    return checkpoints(folder)[-1]


def newest_step(folder: Path, stage: str = "pretrain") -> int:
    there = checkpoints(folder, stage)
    return int(there[-1].name.removeprefix("step-")) if there else 0


def half_written(folder: Path) -> int:
    """The step of the checkpoint that is being written; 0 = none. (What is being deleted is of an older step.)"""
    return max(
        (int(p.name.split(".")[1][5:]) for p in (folder / "pretrain" / "checkpoints").glob(".step-*.tmp-*")), default=0
    )


def done_steps(folder: Path) -> int:
    """Steps saved, over all stages."""
    return sum(newest_step(folder, stage) for stage in STAGES)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])


@contextmanager
def tmpfs(folder: Path, size: str) -> Iterator[Path | None]:
    """A small file system in memory, or None where this process may not mount one."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    try:
        yield folder if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--only-kills", action="store_true")
    given = parser.parse_args()
    print("| fault | tried | survived | final weights equal | |\n| --- | --- | --- | --- | --- |", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        if given.kills:
            print(Drill(Path(folder) / "all", "grpo", given.seed).random_kills(given.kills), flush=True)
        drill = None if given.only_kills else Drill(Path(folder) / "one", seed=given.seed)
        for row in [] if drill is None else drill.rows():
            print(row, flush=True)


if __name__ == "__main__":
    import drill as module  # by its own name: the server that forks imports it, and __main__ would be another module

    module.main()
