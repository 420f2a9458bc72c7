"""Published scaling laws: closed forms against a search, and the figures the papers themselves state."""

from __future__ import annotations

import math

import numpy as np
import pytest

from groundup.errors import UserError
from groundup.plan import laws
from groundup.plan.laws import BESIROGLU, HOFFMANN, LAWS, MUENNIGHOFF, Law


def lowest_on_the_isoflop(law: Law, flops: float) -> tuple[float, float]:
    """(N, D) by looking: a dense grid of sizes along 6 N D = C."""
    sizes = np.exp(np.linspace(math.log(1e3), math.log(1e14), 400_001))
    tokens = flops / 6 / sizes
    losses = law.E + law.A * sizes**-law.alpha + law.B * tokens**-law.beta
    best = int(losses.argmin())
    return float(sizes[best]), float(tokens[best])


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
@pytest.mark.parametrize("flops", [1e15, 1e19, 5.76e23])
def test_closed_form_is_the_minimum(law: Law, flops: float) -> None:
    """Bug: alpha and beta, or A and B, change places in the closed form."""
    n, d = law.optimal(flops)
    assert 6 * n * d == pytest.approx(flops)
    assert (n, d) == pytest.approx(lowest_on_the_isoflop(law, flops), rel=1e-3)


def test_what_the_papers_say_of_their_fits() -> None:
    """Bug: a mistyped constant. Exponents of N and D are those of the papers' tables."""
    assert BESIROGLU.beta / (BESIROGLU.alpha + BESIROGLU.beta) == pytest.approx(0.5126, abs=2e-4)  # 2404.10102
    assert HOFFMANN.beta / (HOFFMANN.alpha + HOFFMANN.beta) == pytest.approx(0.46, abs=0.01)  # 2203.15556, table 2
    n, d = BESIROGLU.optimal(5.76e23)  # Gopher's budget: about 20 tokens a parameter, as the other approaches say
    assert 15 < d / n < 30
    n, d = HOFFMANN.optimal(5.76e23)  # the rounded constants ask for far more: the bias 2404.10102 describes
    assert d / n > 50
    law = MUENNIGHOFF
    assert pytest.approx((521, 1488, 1.87), rel=2e-3) == (law.A, law.B, law.E)
    assert HOFFMANN.loss(70e9, 1.4e12) == pytest.approx(1.937, abs=2e-3)  # Chinchilla's own size and tokens


def test_tokens_for_inverts_the_loss() -> None:
    """Bug: a loss out of reach gives a number (a negative root), not infinity."""
    assert BESIROGLU.tokens_for(BESIROGLU.loss(7e9, 2e12), 7e9) == pytest.approx(2e12, rel=1e-9)
    least = BESIROGLU.smallest(2.2)
    assert math.isinf(BESIROGLU.tokens_for(2.2, 0.99 * least))
    assert BESIROGLU.tokens_for(2.2, 1.01 * least) < math.inf
    assert math.isinf(BESIROGLU.smallest(1.8))


def test_without_inference_the_lifetime_optimum_is_chinchillas() -> None:
    """Bug: the training term is not 6 N D, or the search stops at the edge of its interval."""
    n, d = BESIROGLU.optimal(1e22)
    found = laws.lifetime_optimal(BESIROGLU, BESIROGLU.loss(n, d), 0)
    assert (found.parameters, found.tokens) == pytest.approx((n, d), rel=1e-3)
    assert found.inference == 0


def test_serving_more_asks_for_smaller_models() -> None:
    """Bug: the inference term has the wrong sign or factor. The minimum is checked against its neighbours."""
    n, d = BESIROGLU.optimal(1e22)
    loss = BESIROGLU.loss(n, d)
    sizes = []
    for served in (0, 1e11, 1e12, 1e13):
        best = laws.lifetime_optimal(BESIROGLU, loss, served)
        sizes.append(best.parameters)
        assert BESIROGLU.loss(best.parameters, best.tokens) == pytest.approx(loss)
        assert best.inference == pytest.approx(2 * best.parameters * served)
        for other in (0.9, 1.1):
            assert laws.lifetime(BESIROGLU, loss, other * best.parameters, served).total > best.total
    assert sizes == sorted(sizes, reverse=True)
    with pytest.raises(UserError, match=r"no model reaches a loss of 1\.5"):
        laws.lifetime_optimal(BESIROGLU, 1.5, 0)


def test_half_the_size_at_equal_loss() -> None:
    """Bugs: more compute is told as less; the break-even point is off by the factor between 6 and 2."""
    n, d = BESIROGLU.optimal(1e22)
    half = laws.smaller(BESIROGLU, n, d, 2)
    assert half.parameters == n / 2
    assert BESIROGLU.loss(half.parameters, half.tokens) == pytest.approx(BESIROGLU.loss(n, d))
    assert 1 < half.training < 2 and half.inference == 0.5
    both = [
        laws.lifetime(BESIROGLU, BESIROGLU.loss(n, d), size, half.break_even).total for size in (n, half.parameters)
    ]
    assert both[0] == pytest.approx(both[1], rel=1e-6)
    assert math.isinf(laws.smaller(BESIROGLU, n, d, 1000).tokens)
    assert laws.smaller(BESIROGLU, n, d, 1).training == pytest.approx(1)


def test_repeated_data_is_worth_less_and_less() -> None:
    """Bugs: epochs counted from 0; R* of the parameters used for the data."""
    assert laws.effective_data(100, 60) == 60  # less than one epoch: nothing is repeated
    assert laws.effective_data(100, 100) == 100
    assert laws.effective_data(100, 400) == pytest.approx(100 * (1 + 15.387756 * (1 - math.exp(-3 / 15.387756))))
    assert laws.effective_data(1, 1e9) == pytest.approx(1 + 15.387756)
    assert [laws.epoch_value(k) for k in (0, 1)] == [1, 1]
    assert laws.epoch_value(2) == pytest.approx(laws.effective_data(1, 2) - 1)
    assert laws.epoch_value(40) == pytest.approx(laws.effective_data(1, 40) - laws.effective_data(1, 39))
    assert laws.epoch_value(4) > 0.8 and laws.epoch_value(40) < 0.1  # 2305.16264: 4 nearly free, 40 worth nothing


def test_data_constrained_loss() -> None:
    """Bug: a size that the data does not call for counts in full."""
    unique = 1e9
    fitting = MUENNIGHOFF.matching_parameters(unique)
    n, d = MUENNIGHOFF.optimal(6 * fitting * unique)
    assert (n, d) == pytest.approx((fitting, unique))
    assert laws.constrained_loss(fitting, unique, unique) == pytest.approx(MUENNIGHOFF.loss(fitting, unique))
    assert laws.effective_parameters(10 * fitting, unique) == pytest.approx(
        fitting * (1 + 5.309743 * (1 - math.exp(-9 / 5.309743)))
    )
    found = laws.repetition(fitting, 8 * unique, unique)
    assert (found.epochs, found.effective) == (8, laws.effective_data(unique, 8 * unique))
    assert found.worth == pytest.approx(found.effective / 8e9)
    assert found.last_epoch == laws.epoch_value(8)
    assert found.penalty == pytest.approx(MUENNIGHOFF.B * (found.effective**-MUENNIGHOFF.beta - 8e9**-MUENNIGHOFF.beta))
    assert laws.repetition(fitting, 0.5 * unique, unique).penalty == 0


def test_new_data_would_also_use_more_parameters() -> None:
    """Bugs: N' is kept where new data would raise it, so the penalty of a large model is told too small; unique tokens
    that are never seen make a model's parameters count."""
    n, tokens, unique = 8e9, 160e9, 10e9
    new = MUENNIGHOFF.loss(n, tokens)
    assert MUENNIGHOFF.matching_parameters(tokens) > n  # all of them count, were the data new
    repeated = MUENNIGHOFF.loss(laws.effective_parameters(n, unique), laws.effective_data(unique, tokens))
    assert laws.repetition(n, tokens, unique).penalty == pytest.approx(repeated - new)
    assert laws.constrained_loss(n, 1e9, 1e12) == laws.constrained_loss(n, 1e9, 1e9)


def test_an_unknown_law_names_the_nearest() -> None:
    """Bug: a KeyError instead of a message."""
    with pytest.raises(UserError, match='did you mean "besiroglu"'):
        laws.law_named("besirogluu")
