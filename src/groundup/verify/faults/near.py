"""Faults of the corpus: held-out and benchmark text nearly in train."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from groundup.data.shard import write_shard
from groundup.verify import healthy
from groundup.verify.checks import near
from groundup.verify.corpus import MICRO_CORPUS
from groundup.verify.fault import fault, swapped
from groundup.verify.subject import Subject

_kept: list[tempfile.TemporaryDirectory[str]] = []  # shards are mapped: their folders go with the process


def _prepared(fill: Callable[[Subject, Path], Any], **sections: Any) -> Subject:
    """A subject with real shards, made by `fill`, of a corpus from a file."""
    given = healthy.subject(sections)
    data = given.recipe.data
    assert data is not None
    source = data.sources[0].model_copy(update={"builtin": None, "path": "corpus.jsonl"})
    recipe = given.recipe.model_copy(update={"data": data.model_copy(update={"sources": [source]})})
    _kept.append(tempfile.TemporaryDirectory(prefix="groundup-verify-"))
    shards = fill(given, Path(_kept[-1].name))
    return Subject(recipe, tokenizer=given.micro_tokenizer, shards=shards)


def with_copies(*plants: str) -> Callable[[], Subject]:
    """Real shards whose held-out documents hold these plants, beside 25 sound ones."""
    return lambda: _prepared(lambda subject, folder: near.planted(subject, folder, plants, 100))


@fault(
    "validation-is-train-with-a-word-changed",
    "validation-holds-no-near-copies",
    on=with_copies(*["one word changed"] * 3),
)
def validation_is_train_with_a_word_changed() -> Iterator[None]:
    """Of 28 held-out documents 3 stand in train with one word of 90 changed: no exact copy, no duplicate by hash."""
    yield


@fault("validation-is-half-of-train-documents", "validation-holds-no-near-copies", on=with_copies(*["cut in half"] * 4))
def validation_is_half_of_train_documents() -> Iterator[None]:
    """Documents were cut into pieces after the split was drawn: halves of documents of train are held out."""
    yield


@fault(
    "validation-quotes-train",
    "validation-holds-no-near-copies",
    on=with_copies(*["another one after it"] * 2),
)
def validation_quotes_train() -> Iterator[None]:
    """Two held-out documents are documents of train with a paragraph added."""
    yield


def _questions_in_train(subject: Subject, folder: Path) -> Any:
    """The text of one of the recipe's own questions stands inside a document of train."""
    tokenizer = subject.micro_tokenizer
    texts = [near._document(n) for n in range(20)]
    texts[7] += " As was asked: " + _question(3) + " Nobody knew."
    for name, part in (("train", texts), ("validation", MICRO_CORPUS[:10])):
        with write_shard(
            folder / f"{name}.bin", vocab_size=tokenizer.vocab_size, tokenizer_hash=tokenizer.hash
        ) as writer:
            for n, text in enumerate(part):
                writer.add([*tokenizer.prefix, *tokenizer.encode(text), tokenizer.eos], str(n), len(text.encode()))
    return near.ShardSet(folder, tokenizer.hash)


def _question(n: int) -> str:
    return f"which of the bakers near bridge {n} wrote a letter to the quiet keeper of the lantern in winter, and why?"


def _with_questions() -> Subject:

    _kept.append(tempfile.TemporaryDirectory(prefix="groundup-verify-"))
    path = Path(_kept[-1].name) / "questions.jsonl"
    path.write_text("".join(json.dumps({"prompt": _question(n), "answer": "no"}) + "\n" for n in range(6)))
    return _prepared(_questions_in_train, evaluate={"tasks": [{"name": "made", "path": str(path)}]})


@fault("benchmark-question-in-the-corpus", "benchmark-text-not-in-train", on=_with_questions)
def benchmark_question_in_the_corpus() -> Iterator[None]:
    """One question of six stands in one document of train, in the middle of other text."""
    yield


@fault("search-hashes-single-tokens", "near-copies-are-found")
def search_hashes_single_tokens() -> Iterator[None]:
    """The window is one token: every document shares most of its words with some other."""
    right = near.gram_hashes

    def wrong(tokens: Any, n: int) -> Any:
        return right(tokens[: max(len(tokens) - n + 1, 0)], 1)

    with swapped(near, gram_hashes=wrong):
        yield


@fault("search-needs-whole-documents", "near-copies-are-found")
def search_needs_whole_documents() -> Iterator[None]:
    """Each 13-gram is hashed with its place in the document: what comes after a changed length is never met."""
    right = near.grams

    def wrong(tokens: Any, bounds: Any, n: int) -> Any:
        hashes, owner = right(tokens, bounds, n)
        first = np.searchsorted(owner, owner, side="left")
        last = np.searchsorted(owner, owner, side="right")
        return hashes + (last - first).astype(np.uint64), owner

    with swapped(near, grams=wrong):
        yield
