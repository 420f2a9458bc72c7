"""How many rows are decoded at once follows from what a row's cache really takes."""

from __future__ import annotations

import pytest
from infer_models import CONTEXT, SHAPES, build

from groundup.infer import engine
from groundup.infer.cache import KVCache
from groundup.infer.decode import Request
from groundup.infer.sample import SamplingParams
from groundup.recipe.schema import TokenizerSection
from groundup.tokenizer.train import train_tokenizer


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_are_bounded_by_the_bytes_of_their_caches(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: a row counted without its heads, or a latent cache as if it held all of them: out of memory."""
    tokenizer = train_tokenizer(TokenizerSection(vocab_size=270), ["a few words to learn from"] * 4)
    made = engine.Engine(build(tokenizer.vocab_size, **SHAPES[shape]), tokenizer, max_rows=1000)
    one = KVCache(made.model.config, 1, CONTEXT)
    row = (one.k.numel() + one.v.numel()) * one.k.element_size()
    requests = [Request(n, [1] * 8, SamplingParams(max_new_tokens=CONTEXT)) for n in range(40)]
    for rows in (1, 7, 25):
        monkeypatch.setattr(engine, "CACHE_BYTES", rows * row + row // 2)
        assert made._rows_that_fit(requests) == rows
