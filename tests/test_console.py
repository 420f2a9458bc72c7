"""What a person sees while a stage works. Each test names the bug it would catch."""

from __future__ import annotations

import re

import pytest

from groundup import console
from groundup.console import Reporter, duration


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """clock[0] is the time."""
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(console, "PLAIN_EVERY", 0.0)
    return now


def test_the_first_step_is_no_measure_of_the_others(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    """Bug: a step that compiles for a minute makes the bar promise 18 hours for a run of 49 minutes; or one that goes
    on from a checkpoint counts the steps of before."""
    for start in (0, 400):
        with Reporter().bar("pretrain", 1000 + start, start) as bar:
            clock[0] += 66.0
            bar.update(start + 1)
            for step in range(2, 12):
                clock[0] += 3.0
                bar.update(start + step)
        said = capsys.readouterr().err.splitlines()
        assert "ETA" not in said[0]
        assert [re.search(r"ETA (\S+)", line)[1] for line in said[1:]] == [  # type: ignore[index]
            duration(3.0 * (1000 - step)) for step in range(2, 12)
        ]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(4.2, "4.2s"), (95, "1m35s"), (3725, "1h02m"), (172_799, "47h59m"), (172_800, "2d00h"), (23_629_622, "273d11h")],
)
def test_durations(seconds: float, words: str) -> None:
    """Bug: 6563h46m, which nobody reads as 273 days."""
    assert duration(seconds) == words
