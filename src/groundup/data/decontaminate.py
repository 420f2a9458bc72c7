"""Documents that hold items of a benchmark: an index of the items' n-grams, and the step that looks into it.

An item is looked for as its question alone and as its question with answers (`benchmarks.forms`), in normalised words:
lower case, no punctuation, any line breaks. A form of n words or more is found by its n-grams, a shorter one of at
least MIN_WORDS when all its words stand in a row. What a hash finds is compared word by word before a document is
dropped. Brown et al. 2020 (arXiv 2005.14165, appendix C) use 13 words and drop what is shorter; we do not.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from groundup.data.arrays import save_array
from groundup.data.benchmarks import LocalTask
from groundup.data.document import Item, hash_words
from groundup.data.word_hashes import real_words, word_hashes
from groundup.data.words import ngram_hashes, normal_words
from groundup.errors import UserError
from groundup.recipe.corpus import DecontaminateSection
from groundup.record.files import read_json

RULE = "contaminated"
MIN_WORDS = 8  # shorter questions ("What is the capital of France?") stand in clean text by chance
_WINDOW = 1 << 15  # words looked up at once: their hashes stay in the cache
_SHOWN = 40  # overlapping words that a detail quotes

Hashes = NDArray[np.uint64]


class Table:
    """Sorted n-gram hashes with the items they stand in, on disk as memory-mapped arrays.

    Two bitmaps answer first, one by the upper bits of a hash and one by the lower: of clean text one n-gram in 16
    passes the first, one in 256 both, and only these are searched for.
    """

    def __init__(self, folder: Path, name: str) -> None:
        arrays = (
            np.load(folder / f"{name}.{part}.npy", mmap_mode="r") for part in ("hashes", "starts", "items", "bits")
        )
        self.hashes, self.starts, self.items, self.bits = (np.asarray(array) for array in arrays)
        self._size = np.uint64((8 * self.bits.shape[1]).bit_length() - 1)

    @staticmethod
    def write(folder: Path, name: str, found: Hashes, items: NDArray[np.uint32]) -> int:
        """found: (k,) hashes; items: (k,) whose, ascending. Returns how many different hashes there are."""
        order = np.argsort(found, kind="stable")  # an n-gram's items stay in their order
        found, items = found[order], items[order]
        new = np.append(True, found[1:] != found[:-1])[: len(found)]
        fresh = new | np.append(True, items[1:] != items[:-1])[: len(found)]
        unique, items = found[new], items[fresh]
        starts = np.append(np.flatnonzero(new[fresh]), len(items))
        size = max(16, (16 * len(unique)).bit_length())
        bits = np.zeros((2, 1 << size >> 3), np.uint8)
        for row, slots in zip(bits, _slots(unique, np.uint64(size)), strict=True):
            np.bitwise_or.at(row, slots >> np.uint64(3), np.uint8(1) << (slots & np.uint64(7)).astype(np.uint8))
        parts: dict[str, NDArray[Any]] = {
            "hashes": unique,
            "starts": starts.astype(np.int64),
            "items": items,
            "bits": bits,
        }
        for part, array in parts.items():
            save_array(folder / f"{name}.{part}.npy", array)
        return len(unique)

    def find(self, grams: Hashes) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """(positions in `grams` that are in the table, their rows there)."""
        at = _set(self.bits[0], _slots(grams, self._size)[0])
        at = at[_set(self.bits[1], _slots(grams[at], self._size)[1])]
        if not len(at) or not len(self.hashes):
            return at[:0], at[:0]
        rows = np.searchsorted(self.hashes, grams[at])
        rows[rows == len(self.hashes)] = 0
        same = self.hashes[rows] == grams[at]
        return at[same], rows[same]

    def owners(self, rows: Iterable[int]) -> NDArray[np.uint32]:
        """The items of these rows, one behind the other."""
        parts = [self.items[self.starts[row] : self.starts[row + 1]] for row in rows]
        return np.concatenate(parts) if parts else np.zeros(0, np.uint32)


def _slots(hashes: Hashes, size: np.uint64) -> tuple[Hashes, Hashes]:
    """The upper and the lower `size` bits."""
    return hashes >> (np.uint64(64) - size), hashes & ((np.uint64(1) << size) - np.uint64(1))


def _set(bits: NDArray[np.uint8], slots: Hashes) -> NDArray[np.intp]:
    """Which of the slots are set."""
    found = bits.take((slots >> np.uint64(3)).view(np.int64))
    found >>= slots.astype(np.uint8) & np.uint8(7)
    found &= np.uint8(1)
    return np.flatnonzero(found.view(bool))


class Form(NamedTuple):
    """A way in which an item is printed: its words, and which of its n-grams are looked for ((0,) when it is short)."""

    kind: str
    words: list[str]
    grams: Hashes
    looked_for: NDArray[np.bool_]


class Entry(NamedTuple):
    """An item as the index keeps it. short: forms that are looked for whole."""

    name: str  # "gsm8k:12"
    place: str
    forms: list[Form]
    short: list[Form]


def telling(real: NDArray[np.bool_], hashed: Hashes, n: int) -> NDArray[np.bool_]:
    """(words - n + 1,) True where an n-gram says something: at least a third of n different words that are no numbers
    and no single letters. "1 2 3 4 5 6 7 8 9 10 11 12 13" stands in tests of code and in any table.

    real: (words,) `real_words`.
    """
    if len(hashed) < n:
        return np.zeros(0, bool)
    # How far back the same word stands; a place counts in the n-grams that begin after that one.
    back = np.full(len(hashed), n, np.min_scalar_type(n))
    for distance in range(n - 1, 0, -1):
        np.copyto(back[distance:], distance, where=hashed[distance:] == hashed[:-distance])
    back[~real] = 0
    count = len(hashed) - n + 1
    different = np.zeros(count, back.dtype)
    for place in range(n):
        different += back[place : place + count] > place
    return different >= max(n // 3, 1)


class Grams(NamedTuple):
    """What is looked for of some texts. words: (texts,) how many; of: (g,) whose n-gram; said: (g,) `telling`."""

    words: NDArray[np.int64]
    grams: Hashes
    of: NDArray[np.int64]
    said: NDArray[np.bool_]


def grams_of(hashed: Sequence[Hashes], real: Sequence[NDArray[np.bool_]], n: int) -> Grams:
    """The n-grams of texts, one text behind the other. hashed, real: `word_hashes` and `real_words` of them."""
    words = np.array([len(each) for each in hashed], np.int64)
    joined = np.concatenate([np.zeros(0, np.uint64), *hashed])
    return joined_grams(joined, np.concatenate([np.zeros(0, bool), *real]), words, n)


def joined_grams(joined: Hashes, real: NDArray[np.bool_], words: NDArray[np.int64], n: int) -> Grams:
    """The same of texts whose words stand in one row already; words: (texts,) how many each has."""
    grams = ngram_hashes(joined, n)
    said = telling(real, joined, n)
    of = np.repeat(np.arange(len(words)), words)[: len(grams)]
    inside = np.arange(len(grams)) + n <= np.cumsum(words)[of]
    return Grams(words, grams[inside], of[inside], said[inside])


class Index:
    """An index folder, opened. Item texts are read when something was found."""

    def __init__(self, folder: Path | str) -> None:
        folder = Path(folder)
        self.info: dict[str, Any] = read_json(folder / "index.json")
        self.n = int(self.info["ngram"])
        self.least = int(self.info["min_words"])
        self.grams, self.wholes = Table(folder, "grams"), Table(folder, "wholes")
        self.frames = np.load(folder / "frames.npy")
        self._starts = np.load(folder / "items.starts.npy", mmap_mode="r")
        self._texts = folder / "items.jsonl"
        self.entry = lru_cache(maxsize=2048)(self._entry)

    def name(self, item: int) -> str:
        return self.row(item)["item"]  # type: ignore[no-any-return]

    def row(self, item: int) -> dict[str, Any]:
        with open(self._texts, "rb") as file:
            file.seek(int(self._starts[item]))
            row: dict[str, Any] = json.loads(file.readline())
        return row

    def _entry(self, item: int) -> Entry:
        row = self.row(item)
        forms, short = [], []
        for i, text in enumerate(row["forms"]):
            _, grams, _, said = grams_of(word_hashes([text]), real_words([text]), self.n)
            kind, looked_for = "with answers" if i else "question", said & ~np.isin(grams, self.frames)
            form = Form(kind, normal_words(text), grams, looked_for)
            if len(grams):
                forms.append(form)
            elif i not in row["skipped"]:
                short.append(form)
        return Entry(row["item"], row["place"], forms, short)


class Decontaminate:
    """The step: documents that hold an item go, as "contaminated".

    values: item ("gsm8k:12", the one with most n-grams found), items (all of them), overlap (share of that one's
    n-grams). The section's min_overlap counts within one form of an item, so that a question alone can reach 1.
    """

    name = "decontaminate"

    def __init__(self, section: DecontaminateSection, index: Path | str) -> None:
        self.section, self.path = section, Path(index)
        self.counts: Counter[str] = Counter()
        self._index: Index | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_index": None}  # memory-mapped arrays would be copied into the pickle

    @property
    def index(self) -> Index:
        if self._index is None:
            index = Index(self.path)
            if index.n != self.section.ngram:
                raise UserError(f"{self.path}: an index of {index.n}-grams, the recipe asks for {self.section.ngram}")
            self._index = index
        return self._index

    def __call__(self, items: Sequence[Item]) -> None:
        live = [item for item in items if not item.rule]
        if not live:
            return
        hash_words(live)  # all at once: three times as fast as one by one
        ends = np.cumsum([len(item.hashes) for item in live])
        words = np.concatenate([item.hashes for item in live])
        hits: dict[int, _Hits] = defaultdict(_Hits)
        for at, row, whole in self._look(words):
            which = int(np.searchsorted(ends, at, side="right"))
            start = at - (int(ends[which - 1]) if which else 0)
            hits[which].add(start, row, whole)
        for which, found in hits.items():
            self._judge(live[which], found)

    def _look(self, words: Hashes) -> Iterable[tuple[int, int, bool]]:
        """(position, row of the table, is it the table of whole short items); may reach over a document's end."""
        index = self.index
        for begin in range(0, len(words), _WINDOW):
            for table, n, whole in ((index.grams, index.n, False), (index.wholes, index.least, True)):
                if len(table.hashes):
                    at, rows = table.find(ngram_hashes(words[begin : begin + _WINDOW + n - 1], n))
                    for position, row in zip(at.tolist(), rows.tolist(), strict=True):
                        yield begin + position, row, whole

    def _judge(self, item: Item, hits: _Hits) -> None:
        """Compare words, weigh, and drop."""
        index, words = self.index, item.words
        found: Counter[int] = Counter()
        for row, positions in hits.grams.items():
            positions[:] = self._same_words(words, row, positions)
            if positions:
                found.update(index.grams.owners([row]).tolist())
        wholes = {i: span for row, ps in hits.wholes.items() for i, span in self._same_whole(words, row, ps)}
        by_grams = [i for i, _ in sorted(found.items(), key=lambda pair: (-pair[1], pair[0]))]
        if self.section.min_overlap > 0:
            present = index.grams.hashes[[row for row, positions in hits.grams.items() if positions]]
            by_grams = [i for i in by_grams if _share(index.entry(i), present)[0] >= self.section.min_overlap]
        candidates = list(dict.fromkeys([*by_grams, *sorted(wholes)]))
        if not candidates:
            return
        entry = index.entry(candidates[0])
        if by_grams:
            share, said, quoted = self._said_of_grams(words, entry, hits)
        else:
            start, end = wholes[candidates[0]]
            share, said, quoted = 1.0, f"all {end - start} words of it", words[start:end]
        more = f"; {len(candidates) - 1:,} more items" if len(candidates) > 1 else ""
        text = " ".join(quoted[:_SHOWN]) + (" ..." if len(quoted) > _SHOWN else "")
        item.drop(RULE, f'{entry.name} ({entry.place}): {said}: "{text}"{more}')
        item.values |= {"item": entry.name, "items": [index.name(i) for i in candidates], "overlap": round(share, 4)}

    def _same_words(self, words: list[str], row: int, positions: list[int]) -> list[int]:
        """The positions where the document's words are those of the item whose hash this row is."""
        index, n = self.index, self.index.n
        owner = index.entry(int(index.grams.items[index.grams.starts[row]]))
        wanted = index.grams.hashes[row]
        for form in owner.forms:
            for at in np.flatnonzero(form.grams == wanted)[:1].tolist():
                return [p for p in positions if words[p : p + n] == form.words[at : at + n]]
        return []

    def _same_whole(self, words: list[str], row: int, positions: list[int]) -> Iterable[tuple[int, tuple[int, int]]]:
        for i in self.index.wholes.owners([row]).tolist():
            for form in self.index.entry(i).short:
                n = len(form.words)
                at = next((p for p in positions if words[p : p + n] == form.words), None)
                if at is not None:
                    yield i, (at, at + n)
                    break

    def _said_of_grams(self, words: list[str], entry: Entry, hits: _Hits) -> tuple[float, str, list[str]]:
        """(share, what was measured, the longest run of overlapping words) of an item that was found by n-grams."""
        rows = [row for row, positions in hits.grams.items() if positions]
        present = self.index.grams.hashes[rows]
        share, kind, of, n_found = _share(entry, present)
        own = np.unique(np.concatenate([form.grams for form in entry.forms]))
        mine = [row for row, inside in zip(rows, np.isin(present, own), strict=True) if inside]
        start, end = _longest(sorted(p for row in mine for p in hits.grams[row]))
        said = f"{n_found} of {of} {self.index.n}-grams ({kind})"
        return share, said, words[start : end + self.index.n]


class _Hits:
    """What was looked up in one document: row of the table -> positions, for n-grams and for whole short items."""

    def __init__(self) -> None:
        self.grams: dict[int, list[int]] = defaultdict(list)
        self.wholes: dict[int, list[int]] = defaultdict(list)

    def add(self, position: int, row: int, whole: bool) -> None:
        (self.wholes if whole else self.grams)[row].append(position)


def _share(entry: Entry, present: Hashes) -> tuple[float, str, int, int]:
    """(share, form, n-grams looked for, of them found) of the form that is found most."""
    best = (0.0, "question", 0, 0)
    for form in entry.forms:
        wanted = np.unique(form.grams[form.looked_for])
        if len(wanted):
            found = int(np.isin(wanted, present).sum())
            best = max(best, (found / len(wanted), form.kind, len(wanted), found), key=lambda row: (row[0], row[3]))
    return best


def _longest(positions: list[int]) -> tuple[int, int]:
    """First and last of the longest run of neighbouring positions."""
    best = start = last = positions[0]
    end = best
    for p in positions[1:]:
        start = start if p <= last + 1 else p
        last = p
        if last - start > end - best:
            best, end = start, last
    return best, end


# ---- report ----


class Report:
    """Counts for `funnel.json`: add each contaminated document's values["items"], then ask for `rows()`."""

    def __init__(self, index: Path | str) -> None:
        self.info: dict[str, Any] = read_json(Path(index) / "index.json")
        self._found: dict[str, set[str]] = defaultdict(set)
        self._documents: Counter[str] = Counter()

    def add(self, items: Iterable[str]) -> None:
        names = set()
        for item in items:
            benchmark, _, number = item.rpartition(":")
            self._found[benchmark].add(number)
            names.add(benchmark)
        self._documents.update(names)

    def rows(self) -> list[dict[str, Any]]:
        """One row a benchmark: items, found, documents (that went because of it), and what could not be looked for."""
        return [
            {
                "benchmark": row["benchmark"],
                "items": row["items"],
                "found": len(self._found[row["benchmark"]]),
                "documents": self._documents[row["benchmark"]],
                "too_short": row["too_short"],
                "with_answers_only": row["with_answers_only"],
                "ngram": self.info["ngram"],
                "min_overlap": self.info["min_overlap"],
            }
            for row in self.info["benchmarks"]
        ]


def build_index(
    section: DecontaminateSection,
    base: Path,
    out: Path | str,
    tasks: Mapping[str, LocalTask] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Write the index folder `out`, atomically; returns its index.json. See `overlap_index.build`."""
    from groundup.data.overlap_index import build

    return build(section, base, Path(out), tasks, seed, MIN_WORDS)
