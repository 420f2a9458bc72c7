"""Which conversations, pairs and problems only validate: split by what is asked, so that no prompt is on both sides."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from groundup.tune.formats import Messages, Pair, Problem

HELD_OUT = 0.02  # share of conversations, pairs and problems that only validate
MOST_HELD_OUT = 256
LARGEST_PROMPT = 0.25  # of the items; a prompt with more of them is not held out whole

_SHAPES = str.maketrans({**dict.fromkeys("\u2018\u2019`\u00b4", "'"), **dict.fromkeys("\u201c\u201d\u00ab\u00bb", '"'),
                         **dict.fromkeys("\u200b\u2060\ufeff\u00ad", ""), "\u2026": ".", "\u00a0": " "})  # fmt: skip
_SOFT = (
    (re.compile(r"(?<=[^\W\d_]{2})[-\u2013\u2014](?=[^\W\d_]{2})"), " "),  # well-known
    (re.compile(r"(?<=[^\W\d_]{2})[!.,;:?\"']+(?=\s|$)"), " "),  # behind a word
    (re.compile(r"(?<=[\w)\]}])[.,;:?]+(?=\s|$)"), " "),  # behind a number too, where 5! and 5\" are something else
    (re.compile(r"(?<!\S)[\"'\u00bf\u00a1]+(?=\w)"), " "),  # before a word
)

T = TypeVar("T")


def folded(text: str) -> str:
    """Text without what differs between copies of it: white space and case."""
    return " ".join(text.split()).casefold()


def alike(text: str) -> str:
    """Text as prompts are compared: without punctuation behind and before words either.

    What stands by itself, between digits, or belongs to a sum or to code is kept: "What does ? mean", 1.5, -3, 5!, C++.
    """
    text = unicodedata.normalize("NFC", text).casefold().translate(_SHAPES)
    text = " ".join(text.split())
    for pattern, instead in _SOFT:
        text = pattern.sub(instead, text)
    end = text.rstrip(" .?!")
    factorial = end[-1:].isdigit() and text[len(end) : len(end) + 1] == "!"
    return " ".join(end.split()) + ("!" if factorial else "")


def prompt_of(item: Messages | Pair | Problem) -> str:
    """What is asked, as one text that is equal for equal prompts.

    The whole prompt of a pair or a problem; of a conversation, what the system and the user say before the first
    answer, since each of its answers is scored: two that open alike share a scored answer's prompt.
    """
    if isinstance(item, Pair | Problem):
        return _joined(item.prompt)
    first = next((n for n, message in enumerate(item) if message["role"] == "user"), len(item))
    return _joined([m for m in item[: first + 1] if m["role"] in ("system", "user")])


def _joined(messages: Iterable[dict[str, str]]) -> str:
    return json.dumps([[m["role"], alike(m["content"])] for m in messages])


def hold_out(items: Sequence[T], prompt: Callable[[Any], str] | None = None) -> tuple[list[T], list[T]]:
    """(held out, rest), each in the order of `items`: prompts in the order of their hashes, each with all of its items,
    until 2% of the items (256 at most, at least one) are held out. A prompt that would exceed that is passed over.

    Where no prompt is so rare, the rarest is held out, if it is not a quarter of everything; else (nearly every item
    asks the same) the items are split by all they hold, and the prompt stands on both sides.
    """
    most = min(round(HELD_OUT * len(items)), MOST_HELD_OUT) or 1
    ask: Callable[[Any], str] = prompt or prompt_of
    for key in (ask, repr):
        keys = [key(item) for item in items]
        groups = sorted(Counter(keys).items(), key=lambda group: _hash(group[0]))
        rarest, size = min(groups, key=lambda group: group[1], default=("", 0))
        if len(groups) > 1 and (key is repr or size <= max(most, LARGEST_PROMPT * len(items))):
            chosen = _filled(groups, most) or {rarest}
            held = [item for item, its in zip(items, keys, strict=True) if its in chosen]
            return held, [item for item, its in zip(items, keys, strict=True) if its not in chosen]
    return list(items), list(items)  # one item alone validates and trains: better than refusing a smoke test


def _filled(groups: Sequence[tuple[str, int]], most: int) -> set[str]:
    chosen, room = set(), most
    for key, size in groups:
        if size <= room:
            chosen.add(key)
            room -= size
    return chosen


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()
