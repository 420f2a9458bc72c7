"""Bits per byte: how many bits the model needs for a byte of held-out text. Tokenizers cannot flatter it."""

from __future__ import annotations

import lzma
from collections.abc import Callable
from math import log
from typing import Any, Protocol

import numpy as np
import zstandard
from numpy.typing import NDArray

from groundup.errors import UserError
from groundup.evaluate.likelihood import Pair, score_pairs, windows
from groundup.evaluate.stats import bootstrap_ratio
from groundup.model.transformer import Transformer
from groundup.tokenizer.tokenizer import Tokenizer

FEW = 20  # with fewer documents, the windows they were scored in are drawn again instead


class Documents(Protocol):
    """A Shard, or a Span of one: tokens (N,), bounds (documents,) int64 starts."""

    @property
    def tokens(self) -> NDArray[Any]: ...

    @property
    def bounds(self) -> NDArray[np.int64]: ...


def bits_per_byte(
    model: Transformer,
    tokenizer: Tokenizer,
    documents: Documents,
    max_bytes: int,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Score about `max_bytes` of text, in documents drawn by `seed` (the last one is cut to fit).

    Returns value, low, high (95%), n documents, bytes, tokens scored, unit of the bootstrap.

    Numerator: the cost in nats of every token after BOS, <|end_of_text|> included (knowing where a text ends
    is part of compressing it), over ln 2. Denominator: the bytes the text tokens stand for, also those that
    are part of a character; special tokens have none. Each document is scored alone, in windows of the
    model's context. The interval is a bootstrap over documents: tokens of one text are not independent.
    """
    sizes = token_sizes(tokenizer)
    texts = _draw(documents, sizes, max_bytes, seed)
    pairs: list[Pair] = []
    owner: list[int] = []
    for i, ids in enumerate(texts):
        cut = windows(ids.tolist(), model.config.context)
        pairs += cut
        owner += [i] * len(cut)
    text_bytes = np.array([sizes[list(scored)].sum() for _, scored in pairs], dtype=np.float64)
    if text_bytes.sum() == 0:
        raise UserError("the validation text holds no text to score: add some to data.sources")
    nats = np.array([-one.logprob for one in score_pairs(model, pairs, on_progress)])
    unit = "document" if len(texts) >= FEW else "window"
    cost_of, size_of = nats / log(2), text_bytes
    if unit == "document":
        cost_of = np.bincount(owner, cost_of, len(texts)).astype(np.float64)
        size_of = np.bincount(owner, size_of, len(texts)).astype(np.float64)
    interval = bootstrap_ratio(cost_of, size_of, seed)
    return {
        **interval._asdict(),
        "n": len(texts),
        "bytes": int(text_bytes.sum()),
        "tokens": sum(len(scored) for _, scored in pairs),
        "unit": unit,
        "higher_is_better": False,
    }


def compressors(tokenizer: Tokenizer, documents: Documents, max_bytes: int, seed: int = 0) -> dict[str, float]:
    """Bits per byte of general compressors on the very text that `bits_per_byte` scores, as one piece.

    They start knowing nothing, a trained model does not: read it as a scale, not as a contest.
    """
    texts = _draw(documents, token_sizes(tokenizer), max_bytes, seed)
    raw = b"".join(tokenizer.decode_bytes(ids.tolist()) for ids in texts)
    made = {
        "xz": lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME),
        "zstd-19": zstandard.ZstdCompressor(level=19).compress(raw),
    }
    return {name: 8 * len(packed) / max(len(raw), 1) for name, packed in made.items()}


def token_sizes(tokenizer: Tokenizer) -> NDArray[np.int64]:
    """Bytes of text that each id stands for, (vocab_size,); 0 for a special token."""
    return np.array([len(tokenizer.token_bytes(i)) for i in range(tokenizer.vocab_size)], dtype=np.int64)


def _draw(documents: Documents, sizes: NDArray[np.int64], max_bytes: int, seed: int) -> list[NDArray[np.int64]]:
    """Token ids of documents in an order drawn by `seed`, until they hold max_bytes of text.

    Drawn, not read from the front: a shard is in the order of its sources, and the front may be one of them.
    """
    ends = np.append(documents.bounds[1:], len(documents.tokens))
    texts, left = [], max_bytes
    for i in np.random.default_rng(seed).permutation(len(documents.bounds)):
        ids = np.asarray(documents.tokens[documents.bounds[i] : ends[i]]).astype(np.int64)
        held = np.cumsum(sizes[ids])
        full = held.size > 0 and held[-1] >= left
        if full:
            ids = ids[: int(np.searchsorted(held, left, side="right"))]
        if len(ids) > 1:
            texts.append(ids)
            left -= int(held[len(ids) - 1])
        if full:
            break
    return texts
