"""A small real tokenizer and the models of infer_models."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from infer_models import Scripted, build

from groundup.infer.engine import Engine
from groundup.model.transformer import Transformer
from groundup.recipe.schema import TokenizerSection
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.tokenizer.train import train_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    texts = ["The cat sat on the mat, and the other cat sat there too. " * 20, "é ü 日本語 🙂 👩‍👩‍👧 " * 5]
    return train_tokenizer(TokenizerSection(kind="bpe", vocab_size=300), texts)


@pytest.fixture(scope="session")
def model(tokenizer: Tokenizer) -> Transformer:
    return build(tokenizer.vocab_size)


@pytest.fixture
def says(tokenizer: Tokenizer) -> Callable[..., Engine]:
    """says(pieces) -> Engine that produces each str as the tokens of its bytes, each int as itself."""
    one_byte = {tokenizer.token_bytes(i): i for i in range(tokenizer.vocab_size) if len(tokenizer.token_bytes(i)) == 1}

    def make(*pieces: str | int) -> Engine:
        script: list[int] = []
        for piece in pieces:
            script += [piece] if isinstance(piece, int) else [one_byte[bytes([b])] for b in piece.encode()]
        return Engine(Scripted(script, tokenizer.vocab_size), tokenizer)  # type: ignore[arg-type]

    return make
