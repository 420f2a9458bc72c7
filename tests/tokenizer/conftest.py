"""Two small tokenizers, trained once on text that every Python carries."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from groundup.recipe.schema import TokenizerSection
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.tokenizer.train import train_tokenizer

LIBRARY = Path(os.__file__).parent


@pytest.fixture(scope="session")
def texts() -> list[str]:
    names = ["abc.py", "bisect.py", "calendar.py", "copy.py", "csv.py", "heapq.py", "string.py", "textwrap.py"]
    sources = [(LIBRARY / name).read_text(encoding="utf-8") for name in names]
    return [*sources, "Ana Müller wohnt in Köln. 日本語。 " * 3, "12 + 34 = 46; 7 * 8 = 56\n" * 5]


@pytest.fixture(scope="session")
def bpe(texts: list[str]) -> Tokenizer:
    return train_tokenizer(TokenizerSection(kind="bpe", vocab_size=700), texts)


@pytest.fixture(scope="session")
def char(texts: list[str]) -> Tokenizer:
    """Keeps only 40 characters, so that fallback to bytes is met all the time."""
    return train_tokenizer(TokenizerSection(kind="char", vocab_size=302), texts)


@pytest.fixture(params=["bpe", "char"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return request.getfixturevalue(request.param)
