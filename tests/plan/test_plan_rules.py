"""Batch and rates at auto follow the rule that the recipe names."""

from __future__ import annotations

from typing import Any

import pytest

from groundup.plan.host import Host
from groundup.plan.resolve import resolve
from groundup.plan.transfer import MOST_RATE, RULES, fitted_parameters, transfer
from groundup.recipe.load import parse_recipe
from groundup.recipe.schema import PretrainSection

HOST = Host("cpu", 2, 16 << 30, True, True)


def resolved(**pretrain: Any) -> tuple[Any, dict[str, Any]]:
    tree = {
        "name": "x",
        "model": {"params": "124M", "context": 1024},
        "tokenizer": {"vocab_size": 32768},
        "data": {"sources": [{"builtin": "town"}]},
        "pretrain": pretrain,
    }
    recipe, notes = resolve(parse_recipe(tree, "test"), HOST)
    return recipe, {note.key: note for note in notes}


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "mup"])
def test_the_named_rule_decides_and_is_the_source(rule: str) -> None:
    """Bug: a rule that can be named and that nothing reads; a value whose source is another paper."""
    from groundup.plan.resolve import model_config

    recipe, notes = resolved(rule=rule, batch_size="auto", steps=2000)
    config = model_config(recipe)
    batch = recipe.pretrain.batch_size
    advice = transfer(rule, fitted_parameters(config), 2000.0 * batch * 1024, 1024, d_model=config.d_model)
    assert batch == pytest.approx(advice.batch_size, rel=0.02)  # batch and tokens hang on each other: a fixed point
    assert recipe.pretrain.learning_rate == pytest.approx(min(advice.learning_rate, MOST_RATE), rel=0.05)
    assert notes["pretrain.batch_size"].source == advice.source
    assert advice.source in notes["pretrain.learning_rate"].source


def test_rules_differ_and_given_numbers_stay() -> None:
    """Bug: every rule resolves to the first one's values, or overrules what was given."""
    rates = {rule: resolved(rule=rule)[0].pretrain.learning_rate for rule in ("olmo-ladder", "deepseek", "step-law")}
    assert len(set(rates.values())) == 3
    recipe, notes = resolved(rule="deepseek", batch_size=48, learning_rate=1e-4)
    assert (recipe.pretrain.batch_size, recipe.pretrain.learning_rate) == (48, 1e-4)
    assert "pretrain.batch_size" not in notes and "pretrain.learning_rate" not in notes


def test_the_schema_offers_every_rule_but_the_one_that_needs_a_tuned_run() -> None:
    """Bug: a rule in the code that no recipe can name. muP comes with model.init: mup and rates that were given."""
    offered = PretrainSection.model_fields["rule"].annotation.__args__  # type: ignore[union-attr]
    assert set(offered) == set(RULES) - {"mup"}
