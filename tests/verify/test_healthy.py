"""Every healthy arrangement passes every check that applies: a verifier that cries wolf is switched off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from groundup.recipe.load import PRESETS, load_recipe
from groundup.verify.check import REGISTRY
from groundup.verify.healthy import ARRANGEMENTS, VARIANTS
from groundup.verify.run import run_checks
from groundup.verify.subject import Subject

# Of the variants, those that between them have every part; `full` runs everything on all of them.
COVERING = (
    "sandwich, caps, windows (gemma 2)",
    "experts, loss-free, sigmoid, shared (deepseek 3)",
    "experts, plain",
    "latent, low-rank queries, windows, sinks",
    "dynamic scaling",
    "alibi with cap and sinks",
)
LANGUAGE = {"tokenizer", "data"}  # stages that do not look at the model
MODEL_FREE = {"samples-follow-the-distribution", "rewards-judge-rightly", "stop-strings-cut-cleanly"}


def assert_passes(results: list[Any]) -> None:
    failed = [f"{r.id}: measured {r.measured} {r.direction} {r.bound}; {r.note}" for r in results if r.failed]
    assert not failed, failed


def checks_of(*stages: str) -> list[str]:
    """Ids of what looks at the model, of these stages or all."""
    found = [c for c in REGISTRY.values() if c.stage not in LANGUAGE and c.id not in MODEL_FREE]
    return [c.id for c in found if not stages or c.stage in stages]


@pytest.mark.parametrize("name", ARRANGEMENTS)
def test_arrangement_passes(name: str, subject: Callable[..., Subject]) -> None:
    """A bound that only fits one arrangement would stop healthy runs of the others."""
    assert_passes(run_checks(subject(**ARRANGEMENTS[name]), only=checks_of()))


@pytest.mark.parametrize("name", VARIANTS)
def test_variant_passes_the_models_checks(name: str, subject: Callable[..., Subject]) -> None:
    """Every choice that a recipe has, through every check of the model."""
    assert_passes(run_checks(subject(model=VARIANTS[name]), only=checks_of("model")))


@pytest.mark.parametrize("name", COVERING)
def test_variant_trains_and_decodes_soundly(name: str, subject: Callable[..., Subject]) -> None:
    """The same, through steps, resumption, sampling and tuning."""
    assert_passes(run_checks(subject(model=VARIANTS[name]), only=checks_of("train", "chat", "infer", "tune")))


@pytest.mark.full
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("name", VARIANTS)
def test_variant_passes_everything(name: str, optimizer: str, subject: Callable[..., Subject]) -> None:
    """Every variant, every check that looks at the model, both optimizers."""
    assert_passes(run_checks(subject(model=VARIANTS[name], pretrain={"optimizer": optimizer}), only=checks_of()))


@pytest.mark.full
def test_presets_pass_the_models_checks() -> None:
    """The recipes that are shipped; those whose micro models are alike, once."""
    alike: dict[str, Subject] = {}
    for path in sorted(PRESETS.glob("*.yaml")):
        one = Subject(load_recipe(path))
        assert one.micro.problems() == [], path.stem
        alike.setdefault(repr(one.micro), one)
    assert len(alike) > 10
    for one in alike.values():
        results = run_checks(one, only=checks_of("model"))
        failed = [
            f"{one.recipe.name}: {r.id} {r.measured} {r.direction} {r.bound}; {r.note}" for r in results if r.failed
        ]
        assert not failed, failed


def test_every_check_applies_somewhere(subject: Callable[..., Subject]) -> None:
    """A check that raises NotApplicable for every recipe would never be noticed."""
    base = {r.id for r in run_checks(subject(), only=checks_of("model")) if r.skipped is None}
    found = set(base)
    for name in VARIANTS:
        left = [i for i in checks_of("model") if i not in found]
        found |= (
            {r.id for r in run_checks(subject(model=VARIANTS[name]), only=left) if r.skipped is None} if left else set()
        )
    assert set(checks_of("model")) - found == {"zero-out-starts-as-identity"}  # no variant; an arrangement above
    assert len(base) > 20


@pytest.mark.parametrize("kind", ["bpe", "char"])
@pytest.mark.parametrize("split", ["qwen2", "llama3"])
def test_tokenizer_and_data_pass(kind: str, split: str, subject: Callable[..., Subject]) -> None:
    """The same for both tokenizers, through shards, loader, template and packing."""
    one = subject(
        tokenizer={"kind": kind, "split": split},
        data={"deduplicate": split == "qwen2"},
    )
    ids = [c.id for c in REGISTRY.values() if c.stage in LANGUAGE | {"chat", "infer"}]
    assert_passes(run_checks(one, only=ids))


def test_result_does_not_depend_on_company(subject: Callable[..., Subject]) -> None:
    """A check that uses the global random state would pass or fail by what ran before it."""
    ids = ["init-loss", "overfit-one-batch", "sampler-logprobs-equal-trainer"]
    together = {r.id: r.measured for r in run_checks(subject(), only=ids)}
    assert together == {i: run_checks(subject(), only=[i])[0].measured for i in ids}
