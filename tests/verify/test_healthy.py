"""Every healthy arrangement passes every check that applies: a verifier that cries wolf is switched off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from groundup.verify.check import REGISTRY
from groundup.verify.run import run_checks
from groundup.verify.subject import Subject

# Each differs from the base (RoPE, RMSNorm, SwiGLU, GQA 4/2, QK-norm, tied, Muon, wsd) where it says so.
ARRANGEMENTS: dict[str, dict[str, dict[str, Any]]] = {
    "base": {},
    "llama": {"model": {"qk_norm": False, "tied": False}, "pretrain": {"optimizer": "adamw", "schedule": "cosine"}},
    "gpt2": {
        "model": {
            "norm": "layernorm",
            "position": "learned",
            "mlp": "gelu",
            "qk_norm": False,
            "bias": True,
            "n_kv_heads": 4,
        },
        "pretrain": {"optimizer": "adamw", "schedule": "linear"},
    },
    "multi-query": {
        "model": {"n_kv_heads": 1, "tied": False},
        "pretrain": {"schedule": "constant", "weight_decay": 0.0},
    },
    "learned-positions": {"model": {"position": "learned", "n_kv_heads": 4}, "pretrain": {"precision": "bf16"}},
    "layernorm-bias": {
        "model": {"norm": "layernorm", "qk_norm": False, "bias": True, "mlp": "gelu", "rope_base": 500000.0}
    },
    "dropout": {"model": {"dropout": 0.1}},
}
LANGUAGE = {"tokenizer", "data"}  # stages that do not look at the model


def assert_passes(results: list[Any]) -> None:
    failed = [f"{r.id}: measured {r.measured} {r.direction} {r.bound}; {r.note}" for r in results if r.failed]
    assert not failed, failed


@pytest.mark.parametrize("name", ARRANGEMENTS)
def test_arrangement_passes(name: str, subject: Callable[..., Subject]) -> None:
    """A bound that only fits one arrangement would stop healthy runs of the others."""
    ids = [c.id for c in REGISTRY.values() if c.stage not in LANGUAGE]
    results = run_checks(subject(**ARRANGEMENTS[name]), only=ids)
    assert_passes(results)
    skipped = {r.id for r in results if r.skipped is not None}
    if name == "base":  # a check that is never run passes for ever
        assert not skipped


@pytest.mark.parametrize("kind", ["bpe", "char"])
@pytest.mark.parametrize("split_digits", [True, False])
def test_tokenizer_and_data_pass(kind: str, split_digits: bool, subject: Callable[..., Subject]) -> None:
    """The same for both tokenizers, through shards, loader, template and packing."""
    one = subject(
        tokenizer={"kind": kind, "split_digits": split_digits},
        data={"deduplicate": split_digits},
    )
    ids = [c.id for c in REGISTRY.values() if c.stage in LANGUAGE | {"chat", "infer"}]
    assert_passes(run_checks(one, only=ids))


def test_result_does_not_depend_on_company(subject: Callable[..., Subject]) -> None:
    """A check that uses the global random state would pass or fail by what ran before it."""
    ids = ["init-loss", "overfit-one-batch", "sampler-logprobs-equal-trainer"]
    together = {r.id: r.measured for r in run_checks(subject(), only=ids)}
    assert together == {i: run_checks(subject(), only=[i])[0].measured for i in ids}
