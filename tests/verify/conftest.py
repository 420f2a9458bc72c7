"""Subjects for the verifier's own tests: recipes of many arrangements, at micro size."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from groundup.recipe.load import parse_recipe
from groundup.verify.subject import Subject

sys.path.append(str(Path(__file__).parents[1] / "model"))  # model_shapes: one variant for every choice

TOWN = {"sources": [{"builtin": "town"}]}


def make_subject(**sections: dict[str, Any]) -> Subject:
    """A Subject of a recipe with every stage; `sections` are merged into it."""
    tree: dict[str, Any] = {
        "name": "subject",
        "data": dict(TOWN),
        "model": {"n_heads": 4, "n_kv_heads": 2},
        "tokenizer": {"kind": "bpe"},
        "pretrain": {"optimizer": "muon"},
        "sft": dict(TOWN),
        "dpo": dict(TOWN),
        "grpo": dict(TOWN),
    }
    for name, values in sections.items():
        tree[name] = {**tree.get(name, {}), **values}
    return Subject(parse_recipe(tree, "test recipe"))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Matmuls of 32 x 32 are slower on two threads than on one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def subject() -> Callable[..., Subject]:
    return make_subject
