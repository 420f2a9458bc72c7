"""A small real tokenizer, and shards cut from known documents."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from groundup.data.shard import Shard, write_shard
from groundup.recipe.schema import TokenizerSection
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.tokenizer.train import train_tokenizer

BOS, EOS = 0, 1
MakeShard = Callable[..., Shard]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    text = "The quick brown fox jumps over the lazy dog. 0123456789\nabcdefghijklmnopqrstuvwxyz\n"
    return train_tokenizer(TokenizerSection(kind="char"), [text])


@pytest.fixture
def make_shard(tmp_path: Path) -> MakeShard:
    """make_shard([3, 5]) -> a shard of documents with 3 and 5 inner tokens, no two tokens of the shard alike."""

    def make(lengths: list[int], name: str = "train.bin", vocab_size: int = 60_000) -> Shard:
        path = tmp_path / name
        token = 2
        with write_shard(path, vocab_size=vocab_size, tokenizer_hash="t" * 64) as writer:
            for i, length in enumerate(lengths):
                inner = list(range(token, token + length))
                token += length
                writer.add([BOS, *inner, EOS], f"doc{i}", 10 * length)
        return Shard(path, "t" * 64)

    return make
