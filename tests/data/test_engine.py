"""Who runs the jobs. Each test names the bug it would catch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from groundup.data.engine import ONE_THREAD, Here, Local, engine
from groundup.errors import UserError


def square(job: int) -> tuple[int, int]:
    time.sleep(0.02 * (5 - job % 5))  # the later ones end first
    return job * job, os.getpid()


def threads(job: int) -> dict[str, str | None]:
    return {name: os.environ.get(name) for name in ONE_THREAD}


def dies_once(job: tuple[int, str]) -> int:
    """Job 3 kills its process the first time it is met."""
    number, folder = job
    mark = Path(folder) / "died"
    if number == 3 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def always_dies(job: int) -> int:
    if job == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return job


def refuses(job: int) -> int:
    raise UserError(f"job {job} cannot be done")


def tells_and_waits(folder: str) -> None:
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(60)


def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    """Bug: the build is killed (memory, a lost shell), its workers wait for ever, or write below the next build."""
    code = (
        "import test_engine; from groundup.data.engine import Local; "
        f"Local(2).map(test_engine.tells_and_waits, [{str(tmp_path)!r}] * 2, print)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parent)
    try:
        until = time.monotonic() + 60
        while len(workers := [int(path.name) for path in tmp_path.iterdir()]) < 2 and time.monotonic() < until:
            time.sleep(0.05)
    finally:
        parent.kill()
        parent.wait()
    assert len(workers) == 2
    until = time.monotonic() + 10
    while any(psutil.pid_exists(worker) for worker in workers) and time.monotonic() < until:
        time.sleep(0.05)
    left = [worker for worker in workers if psutil.pid_exists(worker)]
    for worker in left:
        os.kill(worker, signal.SIGKILL)
    assert not left


def test_results_come_in_the_order_of_the_jobs() -> None:
    """Bug: results in the order of finishing: parts of the corpus change places from run to run."""
    told: list[int] = []
    found = Local(3).map(square, list(range(12)), lambda result: told.append(result[0]))
    assert [value for value, _ in found] == [job * job for job in range(12)]
    assert sorted(told) == [job * job for job in range(12)]
    assert len({process for _, process in found}) > 1, "one process did everything"
    assert os.getpid() not in {process for _, process in found}


def test_workers_use_one_thread_each_and_leave_the_parent_alone() -> None:
    """Bug: eight workers with eight threads each; or the caller's own settings are gone afterwards."""
    before = threads(0)
    assert Local(2).map(threads, [0, 1], lambda _: None) == [ONE_THREAD, ONE_THREAD]
    early = Local(2)
    early.start(2)  # they begin here, not in `map`
    assert threads(0) == before
    assert early.map(threads, [0, 1], lambda _: None) == [ONE_THREAD, ONE_THREAD]
    early.close()
    assert threads(0) == before


def test_a_killed_worker_is_replaced(tmp_path: Path) -> None:
    """Bug: the kernel kills one worker (memory), and hours of the others' work are lost, or a part is missing."""
    jobs = [(number, str(tmp_path)) for number in range(8)]
    assert Local(2).map(dies_once, jobs, lambda _: None) == list(range(8))
    assert (tmp_path / "died").exists()


def test_a_job_that_always_kills_its_worker_is_named() -> None:
    """Bug: tried for ever, or the message does not say which part of the corpus it was."""
    with pytest.raises(UserError, match=r"died 3 times at the same part of the corpus \(2\)"):
        Local(2).map(always_dies, list(range(5)), lambda _: None)


def test_an_error_of_a_job_is_the_callers() -> None:
    """Bug: a worker's UserError arrives as a traceback of the pool."""
    with pytest.raises(UserError, match=r"job [01] cannot be done"):
        Local(2).map(refuses, [0, 1, 2], lambda _: None)


def test_one_worker_is_this_process() -> None:
    """Bug: data.workers: 1 starts a process all the same, or 0 means none."""
    assert isinstance(engine("local", 1), Here)
    assert Here().map(square, [3], lambda _: None) == [(9, os.getpid())]
    assert isinstance(found := engine("local", 0), Local) and found.workers == len(os.sched_getaffinity(0))


@pytest.mark.full
def test_ray_runs_the_same_jobs_and_outlives_a_killed_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: on Ray results in another order, a part lost with its worker, or a user's mistake as a Ray traceback."""
    pytest.importorskip("ray", reason="the extra `ray` is not installed").shutdown()  # another test may have begun one
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))  # workers import this file's functions
    ray = engine("ray", 2)
    jobs = [(number, str(tmp_path)) for number in range(6)]
    assert ray.map(dies_once, jobs, lambda _: None) == list(range(6))
    assert (tmp_path / "died").exists()
    with pytest.raises(UserError, match=r"^job \d cannot be done$"):
        ray.map(refuses, [0, 1], lambda _: None)
