"""A run's folder: one folder a stage, each with artifacts and, written last, its `stage.json`."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from groundup.errors import UserError
from groundup.record.files import clean_stale, disk_errors, plain, sha256_file, write_json
from groundup.record.stage import Output, StageRecord, now

Check = Literal["size", "hash", "full"]

HASH_LIMIT = 256 << 20  # check="hash" sizes files above this, so that asking "is it done?" stays quick
NOT_OUTPUTS = {"checkpoints", "tensorboard"}  # thinned out, or different at every run, by design
RECORD = "stage.json"

_held: set[int] = set()  # descriptors of the locks this process holds


def _drop_locks_in_child() -> None:
    # A forked worker shares the lock's open file: were it to outlive a killed parent, the run would stay
    # locked. Closing the child's copy leaves the parent's lock alone.
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_drop_locks_in_child)


class RunDir:
    """`runs/<name>/`. Nothing is created before it is needed."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"RunDir({str(self.path)!r})"

    def stage(self, name: str) -> Path:
        """Folder of a stage (not created)."""
        return self.path / name

    def stages(self) -> list[str]:
        """Names of the stages that have left a record, the oldest first."""
        records = self.path.glob(f"*/{RECORD}")
        return [p.parent.name for p in sorted(records, key=lambda p: (p.stat().st_mtime_ns, p.parent.name))]

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run alone; the kernel lets go when this process ends, however it ends.

        Errors: UserError when another process holds it, naming its pid, host and since when.
        """
        path = self.path / ".lock"
        with disk_errors(path):
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        locked = False
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(self._held_by(path)) from None
            locked = True
            _held.add(descriptor)
            holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": now()}
            with disk_errors(path):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, json.dumps(holder).encode(), 0)
            yield
        finally:
            # Forked children never come here with it: their copy was closed and forgotten at the fork.
            if descriptor in _held or not locked:
                _held.discard(descriptor)
                os.close(descriptor)

    def _held_by(self, path: Path) -> str:
        try:
            holder = json.loads(path.read_text())
            age = time.time() - datetime.fromisoformat(holder["since"]).timestamp()
            who = f"process {holder['pid']} on {holder['host']}, since {holder['since']} ({age:,.0f} s ago)"
        except (OSError, ValueError, KeyError):
            who = "another process"
        return (
            f"{self.path} is in use by {who}. Wait until it ends or stop it (it saves first), "
            "or give another folder with --runs"
        )

    def write_stage(self, record: StageRecord, outputs: Iterable[str] | None = None) -> StageRecord:
        """Finish `record` (outputs hashed, times filled in) and write it, last and atomically.

        outputs: paths below the stage's folder; None = every file there, checkpoints and TensorBoard aside.
        """
        folder = self.stage(record.stage)
        names = sorted(outputs) if outputs is not None else list(_files(folder))
        hashed = {
            name: Output(sha256=sha256_file(folder / name), bytes=(folder / name).stat().st_size) for name in names
        }
        finished = record.finished or now()
        seconds = record.seconds
        if not seconds and record.started:
            took = datetime.fromisoformat(finished) - datetime.fromisoformat(record.started)
            seconds = took.total_seconds()
        done = record.model_copy(update={
            "outputs": hashed, "finished": finished, "seconds": seconds, "metrics": plain(record.metrics),
        })  # fmt: skip
        write_json(folder / RECORD, done.model_dump())
        clean_stale(folder / RECORD)
        return done

    def record(self, name: str) -> StageRecord | None:
        """The stage's record as written, its files unchecked; None when there is none that can be read."""
        try:
            return StageRecord.model_validate_json((self.stage(name) / RECORD).read_bytes())
        except (OSError, ValidationError):
            return None

    def read_stage(self, name: str, check: Check = "hash") -> StageRecord | None:
        """The record of a stage that is done and whole; None otherwise (`problems` says why)."""
        return None if self.problems(name, check) else self.record(name)

    def problems(self, name: str, check: Check = "hash") -> list[str]:
        """Why the stage's record cannot be relied on; empty when it can, ["no record"] when it never ended.

        check: "size" looks at sizes alone; "hash" hashes files up to 256 MiB; "full" hashes every file.
        """
        folder = self.stage(name)
        if not (folder / RECORD).exists():
            return ["no record"]
        record = self.record(name)
        if record is None:
            return [f"{folder / RECORD} cannot be read"]
        if record.status != "done":
            return [f"the stage ended as {record.status}"]
        found = []
        for relative, expected in record.outputs.items():
            path = folder / relative
            if not path.is_file():
                found.append(f"{path} is missing")
            elif (size := path.stat().st_size) != expected.bytes:
                found.append(f"{path} has {size:,} bytes, its record says {expected.bytes:,}")
            elif (check == "full" or (check == "hash" and size <= HASH_LIMIT)) and (
                sha256_file(path) != expected.sha256
            ):
                found.append(f"{path} has changed since the stage ended (its SHA-256 differs)")
        return found


def _files(folder: Path) -> Iterator[str]:
    """Relative paths of the files a stage made, sorted."""
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        skipped = relative.parts[0] in NOT_OUTPUTS or any(part.startswith(".") for part in relative.parts)
        if path.is_file() and not skipped and relative.as_posix() != RECORD:
            yield relative.as_posix()
