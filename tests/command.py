"""The real command line in three forms: called here, forked off (to be killed), and as a fresh process."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from groundup import cli

TESTS = Path(__file__).parent
MICRO = TESTS / "micro.yaml"

# Imported once by the server that forks: a fork then starts in milliseconds, where a fresh process takes seconds.
_PRELOAD = ["command", "groundup.pipeline", "groundup.evaluate.tasks", "groundup.verify.run", "groundup.report.page"]
_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(_PRELOAD)


@dataclass(frozen=True)
class Result:
    """What a command printed and how it ended."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


def groundup(*arguments: object, stdin: str = "") -> Result:
    """`groundup ARGUMENTS` in this process, exit code and all. An exception that is not ours comes through."""
    out, err = io.StringIO(), io.StringIO()
    before = sys.argv, signal.getsignal(signal.SIGTERM), sys.stdin
    sys.argv, sys.stdin = ["groundup", *map(str, arguments)], io.StringIO(stdin)
    code = 0
    try:
        with redirect_stdout(out), redirect_stderr(err):
            cli.main()
    except SystemExit as e:
        code = int(e.code or 0)
    finally:
        sys.argv, sys.stdin = before[0], before[2]
        signal.signal(signal.SIGTERM, before[1])
    return Result(code, out.getvalue(), err.getvalue())


class Forked:
    """A command in a process of its own, to be watched, interrupted and killed."""

    def __init__(self, *arguments: object, log: Path) -> None:
        self.log = log
        self.process = _forks.Process(target=_run, args=(list(map(str, arguments)), str(log), os.getcwd()))
        self.process.start()

    def kill_when(self, ready: Callable[[], bool], with_signal: int = signal.SIGKILL) -> int:
        """Send the signal as soon as `ready()`; the exit code (negative: died of that signal)."""
        end = time.monotonic() + 60
        while not ready():
            assert self.process.is_alive(), f"it ended by itself first:\n{self.text()}"
            assert time.monotonic() < end, f"it never came that far:\n{self.text()}"
            time.sleep(0.002)
        assert self.process.pid is not None
        os.kill(self.process.pid, with_signal)
        return self.wait()

    def wait(self) -> int:
        self.process.join(90)
        if self.process.is_alive():
            self.process.kill()
            raise AssertionError(f"still running:\n{self.text()}")
        assert self.process.exitcode is not None
        return self.process.exitcode

    def text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""


def _run(arguments: list[str], log: str, folder: str) -> None:
    os.chdir(folder)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
    sys.argv = ["groundup", *arguments]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        cli.main()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
