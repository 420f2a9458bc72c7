"""Batch and rate by rule: the published numbers, and a word where they are stretched."""

from __future__ import annotations

import re

import pytest

from groundup.errors import UserError
from groundup.plan.transfer import D12_PARAMETERS, RULES, transfer

MUP = {"d_model": 1024, "mup_width": 256, "learning_rate": 0.004, "batch_size": 64}


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_answers_in_whole_sequences(rule: str) -> None:
    """Bugs: a rule of RULES that nothing answers; batch tokens and sequences that do not fit together."""
    found = transfer(rule, 100e6, 2e9, 1024, **MUP)  # type: ignore[arg-type]
    assert found.rule == rule
    assert found.batch_tokens == found.batch_size * 1024 > 0
    assert 1e-5 < found.learning_rate < 0.1
    assert re.search(r"arXiv \d{4}\.\d{5}", found.source)
    assert found.valid_range


def test_numbers_of_the_papers() -> None:
    """Bug: a mistyped constant, or N and D swapped."""
    olmo = transfer("olmo-ladder", 108e6, 20 * 108e6, 2048)
    assert (olmo.batch_size, olmo.learning_rate) == (160, pytest.approx(0.00235))
    assert transfer("olmo-ladder", 8 * 108e6, 20e9, 2048).batch_size == 640  # 8^(2/3) = 4
    assert transfer("olmo-ladder", 8 * 108e6, 20e9, 2048).learning_rate == pytest.approx(0.00235 / 2)
    deep = transfer("deepseek", 1e8, 1e19 / 6e8, 4096)  # at 1e19 FLOPs
    assert deep.learning_rate == pytest.approx(0.3118 * 1e19**-0.125)
    assert deep.batch_tokens == pytest.approx(0.2920 * 1e19**0.3271, rel=0.01)
    step = transfer("step-law", 1e9, 100e9, 2048)
    assert step.learning_rate == pytest.approx(1.79 * 1e9**-0.713 * 1e11**0.307)
    assert step.batch_tokens == pytest.approx(0.58 * 1e11**0.571, rel=0.01)


def test_nanochat_is_what_was_tuned_at_its_reference() -> None:
    """Bugs: the width's factor is upside down; Muon's rate takes it too."""
    at = transfer("nanochat", D12_PARAMETERS, 12 * D12_PARAMETERS, 2048, d_model=768)
    assert (at.batch_tokens, at.learning_rate, at.muon_learning_rate) == (2**19, 0.008, 0.02)
    wide = transfer("nanochat", D12_PARAMETERS, 12 * D12_PARAMETERS, 2048, d_model=4 * 768)
    assert (wide.learning_rate, wide.muon_learning_rate) == (0.004, 0.02)
    longer = transfer("nanochat", D12_PARAMETERS, 12 * D12_PARAMETERS * 2 ** (1 / 0.383), 2048, d_model=768)
    assert longer.batch_tokens == 2**20
    assert longer.muon_learning_rate == pytest.approx(0.02 * 2**0.5)
    assert "left out" in transfer("nanochat", 1e8, 1e9, 2048).notes[0]


def test_mup_scales_the_matrices_alone() -> None:
    """Bugs: embeddings and vectors are scaled too; a wider model gets the larger rate."""
    found = transfer("mup", 100e6, 2e9, 512, **MUP)  # type: ignore[arg-type]
    assert (found.learning_rate, found.matrix_learning_rate) == (0.004, 0.001)
    assert found.batch_size == 64
    assert "256 / 1024" in found.source
    with pytest.raises(UserError, match=r"needs model\.mup_width, pretrain\.learning_rate"):
        transfer("mup", 100e6, 2e9, 512, d_model=1024, batch_size=64)


@pytest.mark.parametrize(
    ("rule", "parameters", "tokens", "note"),
    [
        ("olmo-ladder", 1e6, 20e6, "1e+06 parameters are below the range"),
        ("olmo-ladder", 7e9, 140e9, "7e+09 parameters are above the range"),
        ("deepseek", 1e6, 20e6, "1.2e+14 FLOPs are below the range"),
        ("step-law", 1e6, 20e6, "by a factor of 60"),
        ("nanochat", 1e6, 20e6, "parameters are below"),
    ],
)
def test_outside_its_range_a_rule_says_so(rule: str, parameters: float, tokens: float, note: str) -> None:
    """Bug: a fit of billions is applied to a million without a word."""
    assert note in " ".join(transfer(rule, parameters, tokens, 256, d_model=128).notes)
    inside = transfer(rule, 100e6, 2e9, 1024, d_model=768)
    assert inside.notes == ()


def test_few_steps_and_unknown_rules() -> None:
    """Bugs: a batch that leaves no steps passes in silence; a KeyError for a typo."""
    assert "only 38 steps" in transfer("olmo-ladder", 108e6, 12.5e6, 2048).notes[0]
    with pytest.raises(UserError, match='did you mean "step-law"'):
        transfer("steplaw", 1e8, 1e9, 1024)
