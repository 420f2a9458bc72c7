"""What the tests of the whole product share: one finished micro run, made once however many workers there are."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two processes of two threads each slow each other down many times over


@pytest.fixture(scope="session")
def micro_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of tests/micro.yaml through every stage. Read it; to change it, take `micro_copy`."""
    from command import MICRO, groundup

    base = tmp_path_factory.getbasetemp()
    shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    with open(shared / "micro.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        runs = shared / "micro-runs"
        if not (runs / "done").exists():
            result = groundup("run", MICRO, "--runs", runs)
            assert result.code == 0, result.err
            (runs / "done").touch()
    return runs / "micro"


@pytest.fixture
def micro_copy(micro_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished micro run that a test may break."""
    return Path(shutil.copytree(micro_run, tmp_path / "runs" / "micro"))
