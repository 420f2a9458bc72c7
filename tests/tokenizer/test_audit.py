from __future__ import annotations

import json

import pytest

from groundup.errors import UserError
from groundup.tokenizer.audit import ADVERSARIAL, audit
from groundup.tokenizer.tokenizer import SPECIALS, Tokenizer


def test_healthy_tokenizer(tokenizer: Tokenizer, texts: list[str]) -> None:
    """Bug: an audit that accuses a sound tokenizer."""
    found = audit(tokenizer, texts)
    assert (found["round_trip_failures"], found["failed"], found["special_injection"]) == (0, [], 0)
    assert found["specials_single_id"] is True
    json.dumps(found)


def test_numbers_are_measured(char: Tokenizer) -> None:
    """Bug: bytes counted as characters, byte tokens not counted as parts, specials counted as unused."""
    found = audit(char, ["e e", "日"])  # e, space, e, and three bytes of a character outside the vocabulary
    assert (found["documents"], found["bytes"], found["tokens"]) == (2, 6, 6)
    assert found["bytes_per_token"] == 1.0 and found["fertility"] == 2.0
    assert found["split_character_share"] == 0.5
    assert found["unused_share"] == pytest.approx(1 - 5 / (char.vocab_size - 6))
    assert found["vocab_size"] == char.vocab_size


def test_longest_tokens(bpe: Tokenizer) -> None:
    """Bug: the longest by characters of the stand-in alphabet, or special tokens listed."""
    longest = audit(bpe, ["x"])["longest_tokens"]
    assert len(longest) == 10 and not set(longest) & set(SPECIALS)
    assert len(longest[0].encode()) == max(len(bpe.token_bytes(i)) for i in range(bpe.vocab_size))


@pytest.mark.parametrize(
    "normalizer",
    [
        {"type": "Lowercase"},
        {"type": "NFC"},
        {"type": "NFKC"},
        {"type": "Strip", "strip_left": True, "strip_right": True},
    ],
    ids=lambda n: n["type"],
)
def test_planted_normaliser_is_caught(bpe: Tokenizer, normalizer: dict[str, object]) -> None:
    """Bug planted: text is normalised before encoding. The adversarial texts alone must show it."""
    found = audit(Tokenizer(json.dumps({**json.loads(bpe.json), "normalizer": normalizer})), ["plain text"])
    assert found["round_trip_failures"] > 0 and found["failed"]


def test_planted_prefix_space_is_caught(bpe: Tokenizer) -> None:
    """Bug planted: GPT-2's add_prefix_space."""
    stored = json.loads(bpe.json)
    stored["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = True
    assert audit(Tokenizer(json.dumps(stored)), ["plain text"])["round_trip_failures"] > 0


def test_planted_injection_is_caught(tokenizer: Tokenizer) -> None:
    """Bug planted: the backend lets text become special tokens."""
    open_to_all = Tokenizer(tokenizer.json)
    open_to_all.backend.encode_special_tokens = False
    found = audit(open_to_all, ["plain text"])
    in_texts = sum(text.count(special) for text in ADVERSARIAL for special in SPECIALS)
    assert found["special_injection"] == in_texts > 0


def test_planted_split_special_is_caught(bpe: Tokenizer) -> None:
    """Bug planted: a special that only matches as a whole word falls apart where it touches a content."""
    stored = json.loads(bpe.json)
    stored["added_tokens"][5]["single_word"] = True
    assert audit(Tokenizer(json.dumps(stored)), ["plain text"])["specials_single_id"] is False


def test_nothing_to_measure(bpe: Tokenizer) -> None:
    """Bug: 0/0, or a perfect score on no text."""
    for nothing in ([], [""]):
        with pytest.raises(UserError, match="no text"):
            audit(bpe, nothing)
