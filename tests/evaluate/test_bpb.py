"""Bits per byte."""

from __future__ import annotations

from collections.abc import Callable
from math import log
from pathlib import Path

import numpy as np
import pytest
import torch

from groundup.data.shard import Shard, Span, write_shard
from groundup.evaluate.bpb import bits_per_byte, token_sizes
from groundup.model.transformer import Transformer
from groundup.tokenizer.tokenizer import Tokenizer


def make_span(tokenizer: Tokenizer, texts: list[str]) -> Span:
    documents = [[tokenizer.bos, *tokenizer.encode(text), tokenizer.eos] for text in texts]
    starts = np.cumsum([0] + [len(d) for d in documents])
    return Span(np.concatenate(documents), starts[:-1], sum(len(t.encode()) for t in texts))


def test_equals_a_value_computed_by_hand(
    model: Transformer, tokenizer: Tokenizer, by_hand: Callable[..., list[float]]
) -> None:
    """Catches nats taken for bits, characters or tokens taken for bytes, EOS left out, BOS scored."""
    texts = ["The cat.", "Un café", "東京 🙂!"]  # 8, 8 and 12 bytes
    nats = 0.0
    for text in texts:
        ids = [tokenizer.bos, *tokenizer.encode(text), tokenizer.eos]
        nats -= sum(by_hand(model, ids, 1))
    found = bits_per_byte(model, tokenizer, make_span(tokenizer, texts), 10_000)
    assert (found["n"], found["bytes"], found["unit"]) == (3, 28, "window")
    assert found["value"] == pytest.approx(nats / log(2) / 28, rel=1e-5)


def test_a_uniform_model_needs_log2_of_the_vocabulary_a_token(
    model: Transformer, tokenizer: Tokenizer, texts: list[str]
) -> None:
    """Catches any loss of tokens in windows: the cost of a uniform model is known without running it."""
    model.embed.weight.data.zero_()
    long = " ".join(texts)  # far beyond the context
    span = make_span(tokenizer, [long, "The cat."])
    found = bits_per_byte(model, tokenizer, span, 1_000_000)
    tokens = len(span.tokens) - 2  # all but the two BOS
    assert found["tokens"] == tokens
    assert found["bytes"] == span.text_bytes
    assert found["value"] == pytest.approx(tokens * np.log2(tokenizer.vocab_size) / span.text_bytes, rel=1e-5)


def test_bytes_are_those_of_the_raw_text(
    model: Transformer, tokenizer: Tokenizer, tmp_path: Path, texts: list[str]
) -> None:
    """Catches tokens that are part of a character counted as U+FFFD (3 bytes) or skipped; reads a real shard."""
    texts = [f"{i}: 🙃🏽 ÿ " + text for i, text in enumerate(texts)]
    with write_shard(tmp_path / "v.bin", vocab_size=tokenizer.vocab_size, tokenizer_hash=tokenizer.hash) as writer:
        for i, text in enumerate(texts):
            writer.add([tokenizer.bos, *tokenizer.encode(text), tokenizer.eos], str(i), len(text.encode()))
    shard = Shard(tmp_path / "v.bin", tokenizer.hash)
    assert any(not _is_utf8(tokenizer.token_bytes(int(i))) for i in shard.tokens)
    found = bits_per_byte(model, tokenizer, shard, 1_000_000)
    assert found["bytes"] == shard.text_bytes == sum(len(t.encode()) for t in texts)
    assert (found["n"], found["unit"]) == (len(texts), "document")
    assert found["low"] < found["value"] < found["high"]
    sizes = token_sizes(tokenizer)
    assert sizes[[tokenizer.bos, tokenizer.eos, tokenizer.end]].sum() == 0


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def test_max_bytes_draws_from_the_whole_text(model: Transformer, tokenizer: Tokenizer) -> None:
    """Catches the limit reading one source only: a shard is in the order of its sources."""
    texts = ["aaaa aaaa"] * 40 + ["東京東京"] * 40
    span = make_span(tokenizer, texts)
    some = bits_per_byte(model, tokenizer, span, 300, seed=1)
    assert 280 <= some["bytes"] <= 300
    whole = bits_per_byte(model, tokenizer, span, 10**6)
    front = bits_per_byte(model, tokenizer, make_span(tokenizer, texts[:40]), 10**6)
    assert abs(some["value"] - whole["value"]) < abs(front["value"] - whole["value"])
    assert some == bits_per_byte(model, tokenizer, span, 300, seed=1)


def test_the_shards_tokens_are_not_touched(model: Transformer, tokenizer: Tokenizer, texts: list[str]) -> None:
    """Catches scoring in place, which would write into the memory-mapped shard or fail on it."""
    span = make_span(tokenizer, texts)
    span.tokens.flags.writeable = False
    before = torch.from_numpy(span.tokens.copy())
    bits_per_byte(model, tokenizer, span, 500)
    assert torch.equal(before, torch.from_numpy(span.tokens.copy()))
