"""Faults of the tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from groundup.tokenizer.tokenizer import Tokenizer
from groundup.verify.fault import fault, swapped

_build, _encode, _encode_batch = Tokenizer.__init__, Tokenizer.encode, Tokenizer.encode_batch


@fault("line-ends-normalised", "round-trip")
def line_ends_normalised() -> Iterator[None]:
    """CRLF becomes LF on the way in."""
    with swapped(Tokenizer, encode=lambda self, text: _encode(self, text.replace("\r\n", "\n"))):
        yield


@fault("text-stripped", "round-trip", "batch-encodes-alike")
def text_stripped() -> Iterator[None]:
    """White space around a text is dropped, when it is encoded alone."""
    with swapped(Tokenizer, encode=lambda self, text: _encode(self, text.strip())):
        yield


@fault("text-becomes-special", "text-cannot-forge-specials", "turns-are-framed")
def text_becomes_special() -> Iterator[None]:
    """The library's default: <|end|> in a user's text is the end of his turn."""

    def wrong(self: Tokenizer, *given: Any, **more: Any) -> None:
        _build(self, *given, **more)
        self.backend.encode_special_tokens = False

    with swapped(Tokenizer, __init__=wrong):
        yield


@fault("pickling-forgets-the-guard", "text-cannot-forge-specials")
def pickling_forgets_the_guard() -> Iterator[None]:
    """A tokenizer that went to a worker process lets text become special there."""

    def rebuilt(json: str, template: str) -> Tokenizer:
        one = Tokenizer(json, template)
        one.backend.encode_special_tokens = False
        return one

    global _rebuilt
    _rebuilt = rebuilt
    with swapped(Tokenizer, __reduce__=lambda self: (_rebuild, (self.json, self.chat_template))):
        yield


_rebuilt: Any = None


def _rebuild(json: str, template: str) -> Tokenizer:
    return _rebuilt(json, template)


@fault("batches-get-a-bos", "batch-encodes-alike")
def batches_get_a_bos() -> Iterator[None]:
    """encode_batch puts a BOS before each text."""
    with swapped(Tokenizer, encode_batch=lambda self, texts: [[self.bos, *ids] for ids in _encode_batch(self, texts)]):
        yield


@fault("characters-counted-as-bytes", "token-bytes-add-up")
def characters_counted_as_bytes() -> Iterator[None]:
    """A token's bytes are taken from its decoded text: a part of a character becomes a three-byte U+FFFD."""
    with swapped(Tokenizer, token_bytes=lambda self, i: self.decode([i]).encode()):
        yield


@fault("specials-share-an-id", "ids-in-range")
def specials_share_an_id() -> Iterator[None]:
    """End of turn and end of text are one id, as where padding was set to EOS."""

    def wrong(self: Tokenizer, *given: Any, **more: Any) -> None:
        _build(self, *given, **more)
        self.end = self.special_ids["<|end|>"] = self.eos

    with swapped(Tokenizer, __init__=wrong):
        yield
