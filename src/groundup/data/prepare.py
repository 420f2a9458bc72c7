"""From documents to shards: exact dedup, split by document hash, encode, write. Memory stays bounded.

(A 16-byte hash of every document is kept while it runs: about 100 MB a million documents.)
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from groundup.data.read import Document, name_of, read_sources
from groundup.data.shard import ShardWriter, write_shard
from groundup.errors import UserError
from groundup.recipe.schema import DataSection

SINGLE = (
    "the corpus is a single document, so nothing can be held out: add text to data.sources "
    "(plain text is split at blank lines only past 100,000 characters; .jsonl holds a document a line)"
)
_BATCH_DOCUMENTS = 512
_BATCH_CHARACTERS = 1 << 21


class Encoder(Protocol):
    """What prepare needs of a tokenizer."""

    prefix: list[int]
    eos: int
    vocab_size: int

    @property
    def hash(self) -> str: ...

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]: ...


def place(text: str) -> tuple[bytes, float]:
    """(16-byte hash of the text, where that lies in [0, 1)). The second decides train or validation.

    It depends on the text alone: a document stays on its side whatever is read before it, whatever the seed,
    and a copy can never be on the other side.
    """
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return digest, int.from_bytes(digest[:6], "big") / (1 << 48)


def prepare_data(
    section: DataSection,
    tokenizer: Encoder,
    out: Path | str,
    seed: int,
    base: Path | str = ".",
    on_progress: Callable[[int, int], None] | None = None,
    on_warning: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Read, deduplicate, split and encode the sources into out/train.bin and out/validation.bin.

    Each document becomes [bos] + its ids + [eos]. The files appear at the very end, whole.
    on_progress(documents, tokens) is called after each batch. Where one side of the split would be empty (little text),
    the document next to the border goes there, with a warning: all is read a second time then.

    Returns metrics: documents, duplicates, empty, train_documents, validation_documents, bytes (raw UTF-8 text),
    tokens, train_tokens, validation_tokens, bytes_per_token (bos and eos not counted), and sources (one
    {source, documents, bytes} each).
    Errors: UserError when the sources hold no text, or a single document.
    """
    try:
        return _prepare(section, tokenizer, Path(out), seed, base, section.validation, on_progress, on_warning)
    except _EmptySide as found:
        if on_warning:
            on_warning(str(found))
        return _prepare(section, tokenizer, Path(out), seed, base, found.border, on_progress, None)


class _EmptySide(Exception):
    """No document lies on one side of the split; `border` is a share that puts one there."""

    def __init__(self, message: str, border: float) -> None:
        super().__init__(message)
        self.border = border


def _prepare(
    section: DataSection,
    tokenizer: Encoder,
    out: Path,
    seed: int,
    base: Path | str,
    border: float,
    on_progress: Callable[[int, int], None] | None,
    on_warning: Callable[[str], None] | None,
) -> dict[str, Any]:
    """`prepare_data` with the documents below `border` held out. Raises _EmptySide, and then leaves no file."""
    counts: Counter[str] = Counter()
    kept: Counter[str] = Counter()
    raw: Counter[str] = Counter()
    seen: set[bytes] = set()
    lowest, highest = 1.0, 0.0  # places met

    def wanted() -> Iterator[tuple[Document, bool]]:
        nonlocal lowest, highest
        for document in read_sources(section.sources, seed, base, on_warning, counts):
            digest, where = place(document.text)
            if section.deduplicate:
                if digest in seen:
                    counts["duplicates"] += 1
                    continue
                seen.add(digest)
            lowest, highest = min(lowest, where), max(highest, where)
            yield document, where < border

    vocab_size, made_with = tokenizer.vocab_size, tokenizer.hash
    with (
        write_shard(out / "train.bin", vocab_size=vocab_size, tokenizer_hash=made_with) as train,
        write_shard(out / "validation.bin", vocab_size=vocab_size, tokenizer_hash=made_with) as validation,
    ):
        for batch in _batches(wanted()):
            encoded = tokenizer.encode_batch([document.text for document, _ in batch])
            for (document, held_out), ids in zip(batch, encoded, strict=True):
                size = len(document.text.encode())
                writer = validation if held_out else train
                writer.add([*tokenizer.prefix, *ids, tokenizer.eos], document.id, size)
                kept[document.source] += 1
                raw[document.source] += size
            if on_progress:
                on_progress(sum(kept.values()), train.n_tokens + validation.n_tokens)
        _check_sides(section, train, validation, (lowest, highest), counts)

    documents = train.n_documents + validation.n_documents
    tokens = train.n_tokens + validation.n_tokens
    total = sum(raw.values())
    return {
        "documents": documents,
        "duplicates": counts["duplicates"],
        "empty": counts["empty"],
        "train_documents": train.n_documents,
        "validation_documents": validation.n_documents,
        "bytes": total,
        "tokens": tokens,
        "train_tokens": train.n_tokens,
        "validation_tokens": validation.n_tokens,
        "bytes_per_token": round(total / max(tokens - 2 * documents, 1), 4),
        "sources": [{"source": name, "documents": kept[name], "bytes": raw[name]} for name in kept],
    }


def _batches(documents: Iterator[tuple[Document, bool]]) -> Iterator[list[tuple[Document, bool]]]:
    """Enough documents at once to keep the tokenizer's threads busy, not so many that memory suffers."""
    batch: list[tuple[Document, bool]] = []
    characters = 0
    for item in documents:
        batch.append(item)
        characters += len(item[0].text)
        if len(batch) >= _BATCH_DOCUMENTS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _check_sides(
    section: DataSection,
    train: ShardWriter,
    validation: ShardWriter,
    places: tuple[float, float],
    counts: Counter[str],
) -> None:
    """places: the lowest and the highest one met."""
    lowest, highest = places
    documents = train.n_documents + validation.n_documents
    if documents == 0:
        names = ", ".join(name_of(source) for source in section.sources)
        raise UserError(
            f"the corpus is empty: {names} gave no text ({counts['empty']:,} empty documents). "
            "Check data.sources and text_field"
        )
    if lowest == highest:
        raise UserError(SINGLE)
    share = f"the held-out share of {section.validation:g} (data.validation)"
    if validation.n_documents == 0:
        raise _EmptySide(
            f"none of the {documents:,} documents falls into {share}: the one nearest to it is held out. Figures on so "
            "little text are rough: raise data.validation, or add documents",
            math.nextafter(lowest, 1.0),
        )
    if train.n_documents == 0:
        raise _EmptySide(
            f"all {documents:,} documents fall into {share}: the one nearest to its border is trained on alone. Lower "
            "data.validation, or add documents",
            highest,
        )
