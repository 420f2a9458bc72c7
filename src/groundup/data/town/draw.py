"""Randomness of the town: everything is a pure function of the keys it is drawn with.

`random.Random` seeded with a string goes through SHA-512, so it does not depend on PYTHONHASHSEED; `hash()` would.
"""

from __future__ import annotations

import hashlib
import random


def rng(*keys: object) -> random.Random:
    """A generator of its own for these keys; the global one is never touched."""
    return random.Random("|".join(str(key) for key in keys))


def share(*keys: object) -> float:
    """A fixed number in [0, 1) for these keys: the coin that decides which side of a split something is on."""
    digest = hashlib.sha256("|".join(str(key) for key in keys).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def listing(words: list[str]) -> str:
    """["a", "b", "c"] -> "a, b and c"."""
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def words(text: str) -> list[str]:
    """A word list, written as one string."""
    return text.split()
