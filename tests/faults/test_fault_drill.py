"""The fault drill, a method a test: drill.py has the faults, docs/checkpoints.md the table.

A sample runs by default, all of it in `bash test.sh full`."""

from __future__ import annotations

from pathlib import Path

import pytest
from drill import Drill, Row, flip, truncate


@pytest.fixture(scope="module")
def drill(tmp_path_factory: pytest.TempPathFactory) -> Drill:
    """Pretraining of a micro-model, for the sample: a third of the table's steps, each of which is saved."""
    return Drill(tmp_path_factory.mktemp("drill"), steps=40)


@pytest.fixture(scope="module")
def long_drill(tmp_path_factory: pytest.TempPathFactory) -> Drill:
    """Long enough that a run still trains when something else has happened. The unbroken run is made once."""
    return Drill(tmp_path_factory.mktemp("long-drill"))


def held(row: Row, tried: int) -> None:
    print(row)
    assert (row.tried, row.survived, row.equal) == (tried, tried, True), str(row)


def test_a_few_random_kills(drill: Drill) -> None:
    """Bugs: state that no checkpoint holds; a half-written checkpoint taken for whole; litter that stays."""
    held(drill.random_kills(4), 4)


def test_killed_while_the_thread_writes(drill: Drill) -> None:
    """Bug: the older checkpoints are gone before the new one is whole."""
    held(drill.killed_while_writing(2), 2)


def test_the_disk_is_full(drill: Drill) -> None:
    """Bug: the thread's failure is lost, or costs what was saved before."""
    held(drill.disk_full(1), 1)


@pytest.mark.full
def test_a_hundred_random_kills_over_every_stage(tmp_path: Path) -> None:
    """Bug: whatever the few do not meet."""
    held(Drill(tmp_path, until="grpo").random_kills(100), 100)


@pytest.mark.full
def test_signals(long_drill: Drill) -> None:
    """Bug: a signal that comes while the thread writes loses the save it asks for."""
    held(long_drill.signals(), 3)


@pytest.mark.full
def test_a_disk_that_fills_up(long_drill: Drill) -> None:
    """Bug: an errno or a message that only a real full disk gives."""
    if (row := long_drill.small_disk()) is None:
        pytest.skip("this process may not mount a file system")
    held(row, 1)


@pytest.mark.full
def test_flipped_bits(long_drill: Drill) -> None:
    """Bug: a file that no checksum covers."""
    held(long_drill.damaged("flipped bit", flip), 5)


@pytest.mark.full
def test_truncated_files(long_drill: Drill) -> None:
    """Bug: a short file crashes the resume, in place of falling back."""
    held(long_drill.damaged("truncated file", truncate), 5)


@pytest.mark.full
def test_deleted_checkpoints(long_drill: Drill) -> None:
    """Bug: the log keeps the rows of the steps that are done again, or the run starts over for one that is gone."""
    held(long_drill.deleted(), 2)


@pytest.mark.full
def test_a_clock_that_jumps_back(long_drill: Drill) -> None:
    """Bug: the newest checkpoint is chosen by a date; a time that is negative stops or never saves."""
    held(long_drill.clock_jumps_back(), 1)


@pytest.mark.full
def test_two_processes(long_drill: Drill) -> None:
    """Bug: both write the same checkpoints, and both end with a mixture."""
    held(long_drill.two_processes(), 2)
