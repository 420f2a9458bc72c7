"""Subjects for the verifier's own tests: recipes of many arrangements, at micro size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from groundup.verify import healthy
from groundup.verify.subject import Subject


def make_subject(**sections: dict[str, Any]) -> Subject:
    """A Subject of a recipe with every stage; `sections` are merged into it."""
    return healthy.subject(sections)


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
