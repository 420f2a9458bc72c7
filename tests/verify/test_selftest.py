"""The self-test must be able to fail: a bug that is missed, a healthy configuration that is alarmed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from groundup.errors import UserError
from groundup.verify import selftest
from groundup.verify.check import REGISTRY, Check, Measurement
from groundup.verify.fault import FAULTS, Fault


@contextmanager
def nothing() -> Iterator[None]:
    yield


def test_a_missed_bug_is_counted_as_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A self-test that counts what was planted as caught would say so of every verifier."""
    only = Fault("odd-one", "nothing at all is wrong", ("causality", "round-trip"), nothing)
    monkeypatch.setattr(selftest, "FAULTS", {"odd-one": only})
    monkeypatch.setattr(selftest.healthy, "HEALTHY", {})
    found = selftest.self_test()
    assert (found["planted"], found["caught"]) == (1, 0) and not selftest.passed(found)
    assert [m.split(":")[0] for m in found["faults"][0]["missed"]] == ["causality", "round-trip"]
    assert "0 of 1" in selftest.summary(found)


def test_a_check_that_breaks_off_has_not_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error inside a check fails it, and proves nothing about the bound."""

    def broken(_: object) -> Measurement:
        raise ZeroDivisionError

    monkeypatch.setitem(REGISTRY, "odd-one", Check("odd-one", "identity", "model", "a bug", "a remedy", "", broken))
    found = selftest.plant(Fault("odd-fault", "a bug", ("odd-one",), nothing))
    assert not found.caught and "ZeroDivisionError" in found.missed[0]


def test_a_false_alarm_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """An alarm on a healthy configuration, at a further seed too."""
    alarm = Check("odd-one", "identity", "model", "a bug", "a remedy", "", lambda _: Measurement(2.0, 1.0))
    monkeypatch.setattr(selftest, "FAULTS", {})
    monkeypatch.setattr(selftest.healthy, "HEALTHY", {"base": {}})
    monkeypatch.setattr("groundup.verify.run.REGISTRY", {"odd-one": alarm})
    found = selftest.self_test(seeds=2)
    assert (found["false_alarms"], found["seed_false_alarms"]) == (1, 2) and not selftest.passed(found)
    assert [run["seed"] for run in found["runs"]] == [1, 2]


def test_what_cannot_be_planted_here_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing extra is no bug caught, and none missed."""

    def absent() -> None:
        raise UserError("needs transformers")

    found = selftest.plant(Fault("odd-fault", "a bug", ("causality",), nothing, on=absent))  # type: ignore[arg-type]
    assert found.skipped == "needs transformers" and not found.caught


def test_processes_find_what_one_finds() -> None:
    """Bugs planted in a process of their own must be caught there, and come back in order."""
    alone, both = (selftest.self_test(sample=230, jobs=jobs) for jobs in (1, 2))
    assert alone["planted"] == both["planted"] > 2 and alone["caught"] == both["caught"] == alone["planted"]
    assert [f["id"] for f in alone["faults"]] == [f["id"] for f in both["faults"]]
    assert [c["name"] for c in alone["configurations"]] == [c["name"] for c in both["configurations"]]


def test_enough_is_planted_and_enough_is_healthy() -> None:
    """The numbers that the docs promise."""
    assert len(FAULTS) >= 120 and len(selftest.healthy.HEALTHY) >= 40


def test_other_seeds_draw_other_numbers() -> None:
    """200 seeds that all draw the same would prove what one proves."""
    ids = ["cached-decode-equals-forward", "init-loss", "sampler-logprobs-equal-trainer"]
    measured = {
        seed: [r.measured for r in selftest.run_checks(selftest.healthy.subject(), only=ids, seed=seed)]
        for seed in range(4)
    }
    for values in zip(*measured.values(), strict=True):  # rounding comes in steps of 2^-22 or so: two may be equal
        assert len(set(values)) >= 3, measured
