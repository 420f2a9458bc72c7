"""Every planted bug is caught by the check that says it would; every check catches at least one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from groundup.verify import faults  # noqa: F401  (registers them)
from groundup.verify.check import REGISTRY
from groundup.verify.fault import FAULTS
from groundup.verify.run import run_checks
from groundup.verify.selftest import plant
from groundup.verify.subject import Subject

NOT_PROVEN = {
    "real-tokenizer-is-exact",  # looks at prepared data; proven in test_subject.py
}


@pytest.mark.parametrize("name", FAULTS)
def test_planted_fault_is_caught(name: str) -> None:
    """A check that lets its own bug through protects nobody. The check must FAIL: neither skip, pass nor break off."""
    found = plant(FAULTS[name])
    assert not found.missed, f"{found.bug} was not noticed by {found.missed}"
    assert found.caught or found.skipped


def test_faults_are_taken_out_again(subject: Callable[..., Subject]) -> None:
    """A fault that stays in after its `with` would make every later check fail for nothing, or hide behind another."""
    for fault in FAULTS.values():
        with fault.plant():
            pass
    quick = ["causality", "packed-equals-alone", "round-trip", "turns-are-framed", "document-ends", "greedy-is-argmax"]
    assert not [r.id for r in run_checks(subject(), only=quick) if not r.passed]


def test_every_check_is_proven() -> None:
    """A check without a planted bug may be one that cannot fail."""
    proven = {check for fault in FAULTS.values() for check in fault.caught_by}
    assert proven <= set(REGISTRY)
    assert set(REGISTRY) - proven == NOT_PROVEN
