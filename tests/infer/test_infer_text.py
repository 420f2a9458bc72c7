"""Text while it comes: whole characters, and nothing of a stop string."""

from __future__ import annotations

import random

import pytest

from groundup.infer.text import TextStream
from groundup.tokenizer.tokenizer import Tokenizer


class Bytes:
    """A tokenizer whose tokens are the given byte strings."""

    def __init__(self, tokens: list[bytes]) -> None:
        self.tokens = tokens

    def token_bytes(self, token_id: int) -> bytes:
        return self.tokens[token_id]


def run(tokens: list[bytes], *stop: str) -> tuple[list[str], TextStream]:
    stream = TextStream(Bytes(tokens), stop)  # type: ignore[arg-type]
    pieces = []
    for i in range(len(tokens)):
        pieces.append(stream.push(i))
        if stream.stopped:
            break
    else:
        pieces.append(stream.finish())
    return pieces, stream


def test_a_stop_string_is_found_though_its_beginning_failed_before() -> None:
    """Bug: a matcher that starts over after a mismatch misses "A B" in "A A B"."""
    pieces, stream = run([b"so A", b" A", b" B", b" C"], "A B")
    assert stream.stopped and "".join(pieces) == "so A "


def test_nothing_of_a_stop_string_is_ever_shown() -> None:
    """Bug: a beginning of the stop string streamed before the rest came; or text kept back for ever."""
    rng = random.Random(0)
    for _ in range(3000):
        text = "".join(rng.choice("abé") for _ in range(rng.randint(0, 14)))
        stops = ["".join(rng.choice("abé") for _ in range(rng.randint(1, 4))) for _ in range(rng.randint(0, 3))]
        raw = text.encode()
        cuts = sorted(rng.randint(0, len(raw)) for _ in range(rng.randint(0, 10)))
        tokens = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
        pieces, stream = run(tokens, *stops)
        # The first stop string to be complete ends the text, at its own beginning.
        ends = {text.find(stop) + len(stop): text.find(stop) for stop in sorted(stops, key=len) if stop in text}
        shown = "".join(pieces)
        if not ends:
            assert shown == text and not stream.stopped
            continue
        assert stream.stopped
        assert not any(stop in shown for stop in stops)
        assert text.startswith(shown)
        # within the token in which it was completed, whichever stop string began first wins
        assert shown in {text[:at] for at in ends.values()}
        assert stream.text == shown


def test_the_token_that_completes_a_stop_string_may_go_on() -> None:
    """Bug: only a token that ends exactly with the stop string is recognised."""
    pieces, stream = run([b"yes.\nUs", b"er: and more"], "\nUser:")
    assert stream.stopped and "".join(pieces) == "yes."


def test_held_text_is_given_back_at_the_end() -> None:
    """Bug: a text that ends with a beginning of a stop string loses its end."""
    pieces, stream = run([b"the E", b"N"], "END")
    assert pieces == ["the ", "", "EN"] and not stream.stopped


def test_characters_are_not_cut() -> None:
    """Bug: each byte of an emoji decoded on its own shows as U+FFFD."""
    raw = "né 🙂!".encode()
    pieces, _ = run([bytes([b]) for b in raw])
    assert "".join(pieces) == "né 🙂!"
    assert all("\ufffd" not in piece for piece in pieces)


@pytest.mark.parametrize("raw", [b"\xf0\x9f\x99", b"ok\xff\xfe!", b"\xe6\x97a\x80", b"\xc3\xa9\xc3"])
def test_broken_bytes_are_replaced_as_the_tokenizer_replaces_them(raw: bytes) -> None:
    """Bug: the streamed text differs from the decoded one, or a half character at the end is dropped."""
    pieces, _ = run([bytes([b]) for b in raw])
    assert "".join(pieces) == raw.decode("utf-8", errors="replace")


def test_specials_have_no_text(tokenizer: Tokenizer) -> None:
    """Bug: <|assistant|> shown to the user."""
    stream = TextStream(tokenizer)
    ids = [tokenizer.bos, *tokenizer.encode("the cat"), tokenizer.assistant, *tokenizer.encode("é 🙂"), tokenizer.end]
    assert "".join([*(stream.push(i) for i in ids), stream.finish()]) == "the caté 🙂" == tokenizer.decode(ids)
