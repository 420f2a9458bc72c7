"""A remedy that names a file of ours is of no use to whoever has another model: each has one for him too."""

from __future__ import annotations

import re

import pytest

from groundup.verify import checks  # noqa: F401  (registers them)
from groundup.verify.adapter import Adapter
from groundup.verify.check import REGISTRY, Check
from groundup.verify.explain import OWN_FILES, as_markdown, as_text, remedies, remedy
from groundup.verify.healthy import subject
from groundup.verify.run import run_checks

OUTSIDE = {"model", "tokenizer", "checkpoint", "dataset"}
ABROAD = [one for one in REGISTRY.values() if OUTSIDE & set(one.ways())]
OURS = re.compile(r"\b\w+/\w+\.py|\b(?:model|tune|train)/|batch\.documents|Transformer\.forward|Loss\.|model\.tie\(\)")


@pytest.mark.parametrize("one", ABROAD, ids=lambda one: one.id)
def test_an_outsider_is_not_sent_to_our_files(one: Check) -> None:
    """Every check of a model, tokenizer, folder or file of rows."""
    for kind in sorted(OUTSIDE):
        assert not OURS.search(remedy(one, kind)), f"{one.id}: write what to do into verify/remedies.yaml"
    assert remedy(one, "recipe") == one.remedy


def test_every_remedy_is_of_a_check_and_holds_anywhere() -> None:
    """An entry under a name that no check has is never read; a fix that only users of groundup can follow."""
    assert set(remedies()) <= set(REGISTRY)
    assert [one.id for one in REGISTRY.values() if OURS.search(one.remedy) and one.id not in remedies()] == []
    for id, text in remedies().items():
        assert text.endswith(".") and not OWN_FILES.search(text) and len(text) > 40, id


def test_the_remedy_of_a_failed_check_follows_the_target() -> None:
    """The report, the table and assert_verified all print Result.remedy."""
    model = subject().build_model()
    (ours,) = run_checks(subject(), only=["causality"])
    (theirs,) = run_checks(Adapter(model, logits=lambda tokens: model.logits(model(tokens))), only=["causality"])
    assert ours.remedy == REGISTRY["causality"].remedy and "model/attention.py" in ours.remedy
    assert theirs.remedy == remedies()["causality"]


def test_explaining_a_check_tells_both() -> None:
    """--explain and docs/silent-bugs.md are read by both."""
    one = REGISTRY["causality"]
    for text in (as_text(one), as_markdown(one)):
        assert "must hold wherever no mask" in text and "Print the mask that reaches" in text
