r"""Encoding of byte-level BPE through tiktoken: the ids of Hugging Face's tokenizers, several times as fast.

The two libraries could differ in two places, and both are closed:

Merging. tokenizers merges the pairs on its list, tiktoken any two tokens whose bytes together are a token. Let a token
be sound when its own bytes, encoded alone by the list of pairs, come back as that one token. If all are, ids are equal
for every text. For as long as no merge has crossed the borders of a piece of text, the merges inside it are those that
the piece would see alone, in the same order. So when tiktoken joins two tokens into t, the bytes of t have come to
those two tokens as they do alone, and alone the list joins them. `prove` checks every token, once a tokenizer.
(Tokens that are not sound, as some words of Llama 3, do no harm when the list holds every way to join them.)

Cutting. Only published splits are used (`splits.SPLITS`), on which both regex engines agree for every character: the
tests go through all of Unicode. Characters that have no meaning yet in Python's Unicode tables, and may get one in one
library before the other, are left to tokenizers, with all that is not plain text.

Texts are joined with a mark between them (a control character; texts that hold one go to tokenizers), so a call has
work for milliseconds, outside of Python's lock, and threads scale. A second mark makes the split's look-ahead needless.
"""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as Backend
from tokenizers import models

from groundup.recipe.splits import SPLITS, known, line_ends_cut, marked
from groundup.tokenizer.tokenizer import byte_level_bytes, byte_stand_in

Ids = NDArray[np.uint32]
Flat = tuple[Ids, NDArray[np.int64]]

END, BREAK = "\x1e", "\x1f"  # after each text; before the last space of a run
CHUNK = 256 * 1024  # characters in one call
_NO_SPECIAL = "\x1f\x1e\x1f\x1e"  # tiktoken is slow without a special token; no joined text holds this one
_FAR_SPACES = "\x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"
_SPACES = "\t\n\x0b\x0c\r " + _FAR_SPACES  # what \s is, in both libraries
_RUNS = ("  ", "\n ", "\n\n", " \n", *"\t\x0b\x0c\r")  # text without these needs no break; nor ...
_RUNS_WITH_LINE_ENDS = ("  ", "\n ", *"\t\x0b\x0c\r")  # ... without these, where line ends are taken first
_SPACE, _LINE_END = 1, 2


def available_threads() -> int:
    """Threads that encoding takes where it is not told: RAYON_NUM_THREADS, else the cores this process may use.

    TOKENIZERS_PARALLELISM=false means one, as it does for the tokenizers library.
    """
    if os.environ.get("TOKENIZERS_PARALLELISM", "").lower() in ("off", "false", "f", "no", "n", "0"):
        return 1
    asked = os.environ.get("RAYON_NUM_THREADS", "")
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def break_spaces(points: NDArray[Any], line_ends: bool, end: str = END) -> NDArray[np.int64]:
    r"""Where `\s+(?!\S)` would leave the last space of a run to what follows: (breaks,) indices of those spaces.

    points: (N,) code points of text, or bytes of text whose white space is all ASCII. line_ends: the split takes line
    ends first, so a run that ends in one has no break. end: what stands behind a text.
    """
    if points.dtype == np.uint8:  # few bytes are worth a second look
        near = np.flatnonzero((points[1:-1] <= 32) & (points[:-2] <= 32)) + 1
        before, here, after = (_spaces(256)[points[near + step]] for step in (-1, 0, 1))
    else:
        kinds = _spaces(0x110000).take(points, mode="clip")
        near = np.flatnonzero((kinds[1:-1] & kinds[:-2] & _SPACE) != 0) + 1
        before, here, after = kinds[near - 1], kinds[near], kinds[near + 1]
    last = (before & here & ~after & _SPACE) != 0
    if line_ends:
        last &= (here & _LINE_END) == 0
    at = near[last]
    return at[points[at + 1] != ord(end)]


def with_breaks(text: str, line_ends: bool, mark: str = BREAK, end: str = END) -> str:
    """`text` with `mark` before each space that `break_spaces` finds."""
    if text.isascii() or not any(space in text for space in _FAR_SPACES):
        if not any(run in text for run in (_RUNS_WITH_LINE_ENDS if line_ends else _RUNS)):
            return text
        points: NDArray[Any] = np.frombuffer(text.encode(), np.uint8)
        form = "utf-8"
    else:
        points, form = code_points(text), "utf-32-le"
    at = break_spaces(points, line_ends, end)
    return np.insert(points, at, ord(mark)).tobytes().decode(form) if len(at) else text


def code_points(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le"), np.dtype("<u4"))


@cache
def _spaces(size: int) -> NDArray[np.uint8]:
    """(size,) whether a code point is white space, and a line end; by size 256, of bytes in UTF-8."""
    table = np.zeros(size, np.uint8)
    table[[ord(c) for c in _SPACES if size > 256 or c.isascii()]] = _SPACE
    table[[10, 13]] |= _LINE_END
    return table


@cache
def _odd() -> NDArray[np.bool_]:
    """(0x110000,) code points that have no meaning yet, so that libraries may come to differ on them."""
    table = np.zeros(0x110000, np.bool_)
    planes = (*range(0x40000), *range(0xE0000, 0xF0000))
    table[[point for point in planes if unicodedata.category(chr(point)) == "Cn"]] = True
    table[0x40000:0xE0000] = True
    return table


@dataclass(frozen=True, slots=True)
class Recipe:
    """A tokenizer.json as tiktoken takes it. ranks: token bytes -> rank; ids: (ranks,) rank -> id, None: equal."""

    regex: str
    ranks: dict[bytes, int]
    ids: Ids | None
    nfc: bool
    added: tuple[str, ...]  # text that becomes a token of its own, though it is not special


class Fast:
    """A byte-level BPE in tiktoken. `slow` encodes the texts that tokenizers has to (lists of ids)."""

    def __init__(self, recipe: Recipe, slow: Callable[[Sequence[str]], list[list[int]]]) -> None:
        self.recipe, self.slow = recipe, slow
        self.line_ends = line_ends_cut(recipe.regex)
        self.end, self.mark = recipe.ranks[END.encode()], recipe.ranks[BREAK.encode()]
        self.added = re.compile("|".join(map(re.escape, recipe.added))) if recipe.added else None

    @cached_property
    def encoding(self) -> Any:
        import tiktoken

        return tiktoken.Encoding(
            "groundup",
            pat_str=marked(self.recipe.regex, END + BREAK),
            mergeable_ranks=self.recipe.ranks,
            special_tokens={_NO_SPECIAL: 2**32 - 2},
        )

    def encode(self, texts: Sequence[str], threads: int | None = None) -> Flat:
        """(ids (N,) of all texts, one after the other; lengths (texts,)). Raises TypeError, UnicodeEncodeError."""
        threads = available_threads() if threads is None else max(1, threads)
        chunks = list(_chunks(texts, CHUNK))
        self.encoding  # built once, before threads ask for it  # noqa: B018
        if threads == 1 or len(chunks) < 2:
            found = [self._chunk(chunk) for chunk in chunks]
        else:
            with ThreadPoolExecutor(min(threads, len(chunks))) as pool:
                found = list(pool.map(self._chunk, chunks))
        if not found:
            return np.empty(0, np.uint32), np.empty(0, np.int64)
        return np.concatenate([ids for ids, _ in found]), np.concatenate([lengths for _, lengths in found])

    def _chunk(self, texts: Sequence[str]) -> Flat:
        joined = END.join(texts) + END
        if self._is_plain(joined, len(texts)):
            return self._plain(joined)
        plain = [self._is_plain(text + END, 1) for text in texts]
        quick = [text for text, fits in zip(texts, plain, strict=True) if fits]
        ids, lengths = self._plain(END.join(quick) + END) if quick else (np.empty(0, np.uint32), np.empty(0, np.int64))
        fast = iter(np.split(ids, np.cumsum(lengths)[:-1]))
        slow = iter(self.slow([text for text, fits in zip(texts, plain, strict=True) if not fits]))
        parts = [next(fast) if fits else np.array(next(slow), np.uint32) for fits in plain]
        return np.concatenate(parts), np.array([len(part) for part in parts], np.int64)

    def _is_plain(self, joined: str, n_texts: int) -> bool:
        """Whether tiktoken gives the same ids: no mark inside, nothing added, no odd character, normal form."""
        if BREAK in joined or joined.count(END) != n_texts or (self.added and self.added.search(joined)):
            return False
        if joined.isascii():
            return True
        if self.recipe.nfc and not unicodedata.is_normalized("NFC", joined):
            return False
        return not _odd().take(code_points(joined), mode="clip").any()

    def _plain(self, joined: str) -> Flat:
        text = with_breaks(joined, self.line_ends)
        found: Ids = self.encoding.encode_to_numpy(text, disallowed_special=())
        if len(text) != len(joined):
            found = found[found != self.mark]
        ends = np.flatnonzero(found == self.end)
        ids = np.delete(found, ends)
        lengths = np.diff(ends, prepend=-1) - 1
        return ids if self.recipe.ids is None else self.recipe.ids[ids], lengths.astype(np.int64)


def _chunks(texts: Sequence[str], size: int) -> Iterator[list[str]]:
    chunk: list[str] = []
    held = 0
    for text in texts:
        chunk.append(text)
        held += len(text) + 1
        if held >= size:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk


def fast_of(
    tokenizer_json: str, slow: Callable[[Sequence[str]], list[list[int]]], special: Sequence[int]
) -> Fast | None:
    """The same tokenizer in tiktoken, or None where the ids could differ. special: ids that text may never become."""
    recipe = prove(json.loads(tokenizer_json), frozenset(special))
    return None if recipe is None else Fast(recipe, slow)


def prove(content: dict[str, Any], special: frozenset[int]) -> Recipe | None:
    """Check that tiktoken's rule for merges gives what the list of pairs gives; None where that is not shown."""
    regex, nfc = _cuts(content.get("pre_tokenizer")), _normal_form(content.get("normalizer"))
    model = content["model"]
    if regex is None or nfc is None or model.get("type") != "BPE" or model.get("byte_fallback"):
        return None
    if any(model.get(key) for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix")):
        return None
    ranked = _ranks(model)
    if ranked is None or not _sound(model, ranked[0]):
        return None
    tokens, ids = ranked
    added = content.get("added_tokens", [])
    left = set(model["vocab"]) - tokens.keys() - {token["content"] for token in added}
    reached = {model["vocab"][token] for token in tokens}
    if (model.get("ignore_merges") and left) or reached & special:
        return None
    ranks = {byte_level_bytes(token): rank for token, rank in tokens.items()}
    plain = tuple(token["content"] for token in added if not token["special"])
    return Recipe(regex, ranks, ids, nfc, plain)


def _cuts(part: dict[str, Any] | None) -> str | None:
    """The published split that a pre-tokenizer cuts by, before it spells bytes; None when it does anything else."""
    if part is None:
        return None
    steps = part["pretokenizers"] if part["type"] == "Sequence" else [part]
    if not steps or steps[-1]["type"] != "ByteLevel" or steps[-1].get("add_prefix_space"):
        return None
    by_regex = steps[-1].get("use_regex", True)
    if len(steps) == 1:
        return SPLITS["gpt2"] if by_regex else None
    cut = steps[0]
    if len(steps) > 2 or by_regex or cut["type"] != "Split" or cut.get("invert") or cut["behavior"] != "Isolated":
        return None
    regex = cut["pattern"].get("Regex")
    return regex if isinstance(regex, str) and known(regex) else None


def _normal_form(part: dict[str, Any] | None) -> bool | None:
    """False: text stays as it is. True: NFC. None: something else."""
    steps = [] if part is None else part["normalizers"] if part["type"] == "Sequence" else [part]
    kinds = [step["type"] for step in steps]
    return {(): False, ("NFC",): True}.get(tuple(kinds))


def _ranks(model: dict[str, Any]) -> tuple[dict[str, int], Ids | None] | None:
    """(token -> rank, rank -> id or None where equal) in the order of the list; None when it has no such order."""
    vocab: dict[str, int] = model["vocab"]
    tokens = [byte_stand_in(byte) for byte in range(256)]
    pairs = _pairs(model)
    joined = dict.fromkeys(left + right for left, right in pairs)
    if not all(token in vocab for token in (*tokens, *joined)) or joined.keys() & set(tokens):
        return None
    order = {token: n for n, token in enumerate(joined)}
    listed = np.array([order[left + right] for left, right in pairs], np.int64)
    if (np.diff(listed) < 0).any():
        return None
    tokens += joined
    ids = np.array([vocab[token] for token in tokens], np.int64)
    if (np.diff(ids[256:]) > 0).all():
        return dict(zip(tokens, ids.tolist(), strict=True)), None
    return {token: n for n, token in enumerate(tokens)}, ids.astype(np.uint32)


def _pairs(model: dict[str, Any]) -> list[tuple[str, str]]:
    return [tuple(pair.split(" ", 1)) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]  # type: ignore[misc]


def _sound(model: dict[str, Any], tokens: dict[str, int]) -> bool:
    """Whether every token, spelled alone, is merged into itself; or all its ways to be joined are on the list."""
    pairs = _pairs(model)
    alone = Backend(models.BPE(vocab=model["vocab"], merges=pairs))
    names = list(tokens)
    found = alone.encode_batch_fast(names, add_special_tokens=False)
    odd = [name for name, one in zip(names, found, strict=True) if one.ids != [model["vocab"][name]]]
    if odd and not model.get("ignore_merges"):
        return False  # tiktoken would take the whole word, tokenizers not
    listed = set(pairs)
    for name in odd:
        ways = [(name[:n], name[n:]) for n in range(1, len(name)) if name[:n] in tokens and name[n:] in tokens]
        if not listed.issuperset(ways) or {left for left, _ in ways} & {right for _, right in ways}:
            return False
    return True
