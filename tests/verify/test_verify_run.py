"""The runner: what is asked for is run, what breaks is a failure, what does not apply is skipped, never passed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import pytest
import torch
from rich.console import Console

from groundup.errors import UserError
from groundup.verify import check as checking
from groundup.verify import faults  # noqa: F401  (registers them)
from groundup.verify.check import FAMILIES, REGISTRY, Check, Measurement, NotApplicable, violations
from groundup.verify.fault import swapped
from groundup.verify.run import report, run_checks, show, table
from groundup.verify.subject import Subject


def with_check(run: Callable[[Subject], Measurement]) -> Check:
    return Check("odd-one", "identity", "model", "a bug", "a remedy", "", run)


def planted(monkeypatch: pytest.MonkeyPatch, run: Callable[[Subject], Measurement]) -> None:
    monkeypatch.setitem(REGISTRY, "odd-one", with_check(run))


def test_nan_and_infinity_never_pass() -> None:
    """NaN <= bound is False, but `not value > bound` is True: a check written that way passes on NaN."""
    assert not Measurement(math.nan, 1.0).passed
    assert not Measurement(math.nan, 1.0, direction=">=").passed
    assert not Measurement(1.0, math.nan).passed
    assert not Measurement(math.inf, 1.0).passed
    assert Measurement(1.0, 1.0).passed
    assert Measurement(1.0, 1.0, direction=">=").passed
    assert not Measurement(0.9, 1.0, direction=">=").passed


def test_counting_nothing_does_not_pass() -> None:
    """A loop over nothing finds nothing wrong."""
    assert not violations([], 0).passed
    assert violations([], 3).passed
    assert violations(["a", "b"], 3).value == 2


def test_unknown_check_names_the_nearest(subject: Callable[..., Subject]) -> None:
    """A misspelt id in verify.only must not mean 'no checks, all passed'."""
    with pytest.raises(UserError, match='did you mean "causality"'):
        run_checks(subject(), only=["causalty"])
    with pytest.raises(UserError, match="locality"):
        run_checks(subject(), families=["localty"])


def test_error_is_a_failure(subject: Callable[..., Subject], monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that breaks off has not passed, and the others still run."""

    def broken(_: Subject) -> Measurement:
        raise ZeroDivisionError("no luck")

    planted(monkeypatch, broken)
    results = run_checks(subject(), only=["odd-one", "round-trip"])
    assert [r.id for r in results if r.failed] == ["odd-one"]
    assert "ZeroDivisionError: no luck" in results[-1].note
    assert len(results) == 2


def test_skipped_is_neither_passed_nor_failed(subject: Callable[..., Subject], monkeypatch: pytest.MonkeyPatch) -> None:
    """'Does not apply' counted as a pass would let a check vanish unnoticed."""

    def absent(_: Subject) -> Measurement:
        raise NotApplicable("there is none")

    planted(monkeypatch, absent)
    results = run_checks(subject(), only=["odd-one"])
    assert not results[0].passed and not results[0].failed
    assert report(results) == {
        "checks": [],
        "failed": 0,
        "skipped": [{"id": "odd-one", "stage": "model", "reason": "there is none"}],
    }


def test_report_is_json_and_counts(subject: Callable[..., Subject], monkeypatch: pytest.MonkeyPatch) -> None:
    """json.dumps writes NaN, which no JSON reader takes; a report that miscounts lets a run start."""
    planted(monkeypatch, lambda _: Measurement(math.nan, 0.0, "odd"))
    found = report(run_checks(subject(), only=["odd-one", "round-trip"]))
    assert json.loads(json.dumps(found, allow_nan=False))["failed"] == 1
    assert {"id", "family", "passed", "measured", "bound", "remedy"} <= set(found["checks"][0])


def test_table_shows_bug_and_remedy_of_failures(
    subject: Callable[..., Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bare FAIL tells nobody what to do."""
    planted(monkeypatch, lambda _: Measurement(2.0, 1.0, "[odd] note"))
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    results = run_checks(subject(), only=["odd-one", "round-trip", "real-tokenizer-is-exact"])
    console.print(table(report(results)))
    text = console.export_text()
    console.print(table(results))
    assert console.export_text() == text  # results, or the report that is made of them
    assert "FAIL" in text and "a remedy" in text and "[odd] note" in text and "ok" in text and "skip" in text


def test_show_counts(subject: Callable[..., Subject], capsys: pytest.CaptureFixture[str]) -> None:
    """The last line is what most people read; what was skipped must not be among what passed."""
    show(report(run_checks(subject(), only=["round-trip", "real-tokenizer-is-exact"])))
    assert "1 passed, 0 failed, 1 do not apply" in capsys.readouterr().out


def test_progress_and_random_state(subject: Callable[..., Subject]) -> None:
    """Verification before training must leave the run as it found it."""
    seen: list[tuple[int, int, str]] = []
    before = torch.get_rng_state()
    run_checks(
        subject(),
        families=["sensitivity"],
        only=["positions-matter", "every-parameter-moves"],
        on_check=lambda done, total, result: seen.append((done, total, result.id)),
    )
    assert [(done, total) for done, total, _ in seen] == [(1, 2), (2, 2)]
    assert torch.equal(torch.get_rng_state(), before)


def test_registration_refuses_what_says_nothing() -> None:
    """Two checks of one name, or one without a reason for its bound."""

    def documented(_: Subject) -> Measurement:
        """How."""
        return Measurement(0.0, 0.0)

    with swapped(checking, REGISTRY={}):
        register = checking.check("a-b", "identity", "model", bug="x", remedy="y")
        register(documented)
        with pytest.raises(ValueError, match="two checks"):
            register(documented)
        with pytest.raises(ValueError, match="docstring"):
            checking.check("c", "identity", "model", bug="x", remedy="y")(lambda _: Measurement(0.0, 0.0))
        with pytest.raises(ValueError, match="kebab"):
            checking.check("Not_Kebab", "identity", "model", bug="x", remedy="y")(documented)


def test_every_check_says_what_it_is_for() -> None:
    """The table is read by somebody whose run has just been stopped."""
    assert len(REGISTRY) >= 25
    for one in REGISTRY.values():
        assert one.bug.endswith(".") and one.remedy.endswith(".") and one.family in FAMILIES, one.id
