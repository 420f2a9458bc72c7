"""Ids to text while they come: whole UTF-8 characters only, and never a piece of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from groundup.tokenizer.tokenizer import Tokenizer


class TextStream:
    """Text of one row. What `push` and `finish` return, joined, is `text`.

    Held back are the bytes of a character that is not whole yet, and an end of the text that may still become a
    stop string. The search runs over the held text, not token by token: "A A B" holds "A B" though its second A
    already began a match that failed.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self._parts: list[str] = []
        self.stopped = False  # a stop string was met; nothing comes after

    @property
    def text(self) -> str:
        """All that was returned so far."""
        return "".join(self._parts)

    def push(self, token_id: int) -> str:
        """Take one token (a special one has no text); return the text that is now certain, perhaps ""."""
        return self._feed(self._decoder.decode(self._tokenizer.token_bytes(token_id)))

    def finish(self) -> str:
        """The rest: held text that became no stop string, and U+FFFD for a character cut in two."""
        text = self._feed(self._decoder.decode(b"", final=True))
        if self.stopped:
            return text
        rest, self._held = self._held, ""
        self._parts.append(rest)
        return text + rest

    def _feed(self, new: str) -> str:
        if self.stopped:
            return ""
        self._held += new
        found = [at for at in (self._held.find(stop) for stop in self._stop) if at >= 0]
        if found:
            ready, self._held, self.stopped = self._held[: min(found)], "", True
        else:
            cut = len(self._held) - self._may_begin_a_stop()
            ready, self._held = self._held[:cut], self._held[cut:]
        self._parts.append(ready)
        return ready

    def _may_begin_a_stop(self) -> int:
        """Length of the longest end of the held text that is a beginning of a stop string."""
        longest = min(max((len(stop) - 1 for stop in self._stop), default=0), len(self._held))
        return next(
            (n for n in range(longest, 0, -1) if any(stop.startswith(self._held[-n:]) for stop in self._stop)), 0
        )
