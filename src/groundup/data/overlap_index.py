"""Builds the index that decontaminate.py looks into: benchmark items -> sorted n-gram hashes on disk."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from groundup.data.arrays import save_array
from groundup.data.benchmarks import BenchmarkItem, LocalTask, benchmark_files, read_benchmarks
from groundup.data.decontaminate import Hashes, Table, grams_of, joined_grams
from groundup.data.unpack import reading
from groundup.data.word_hashes import real_words, word_hashes
from groundup.data.words import ngram_hashes, normal_words
from groundup.recipe.corpus import DecontaminateSection
from groundup.record.files import atomic_folder, read_json, sha256_file, write_json

# An n-gram in more than half of a file's items is their frame ("for which of these two scenarios does the main
# character ..."), not the item; with few items a repetition says nothing.
FRAME_SHARE = 0.5
FRAME_ITEMS = 10
_AT_ONCE = 200  # items
_BUCKETS = 20  # bits
VERSION = 2  # of forms, words and hashes: raise it when any of them changes


class _File:
    """The items of one file, their forms numbered through; before frames are known."""

    def __init__(self, n: int, least: int) -> None:
        self.n, self.least = n, least
        self.rows: list[dict[str, Any]] = []
        self._item_of: list[int] = []  # of each form
        self._base: list[int] = []  # of each form: the question that it goes on from, itself where it does not
        self._grams: list[Hashes] = [np.zeros(0, np.uint64)]
        self._of: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]  # form of each n-gram
        self._short: dict[int, tuple[str, ...]] = {}  # form -> its words
        self._owners: dict[tuple[str, ...], set[int]] = {}  # and the items that have them, equal items once
        self._equal: dict[tuple[str, ...], int] = {}

    def add(self, items: Sequence[BenchmarkItem]) -> None:
        """The n-grams of a question are taken once, not for each form that goes on from it: forms that print an
        answer behind it are most of a benchmark's text."""
        first, texts, pieces = len(self._base), [], []
        for item in items:
            question, forms = len(self._base), [item.question, *item.with_answers]
            for text in forms:
                goes_on = text.startswith(f"{item.question}\n")
                self._base.append(question if goes_on else len(self._base))
                pieces.append(text[len(item.question) + 1 :] if goes_on else text)
            self._item_of += [len(self.rows)] * len(forms)
            self.rows.append({"item": f"{item.benchmark}:{item.number}", "place": item.place, "forms": forms})
            texts += forms
        hashed, real = word_hashes(pieces), real_words(pieces)
        words = np.array([len(piece) for piece in hashed], np.int64)
        places, lengths = _going_on(words, np.array(self._base[first:]) - first, self.n)
        found = joined_grams(np.concatenate(hashed)[places], np.concatenate(real)[places], lengths, self.n)
        self._grams.append(found.grams[found.said])
        self._of.append(found.of[found.said] + first)
        for form in np.flatnonzero(found.words < self.n).tolist():
            self._keep_short(form + first, texts[form])

    def _keep_short(self, form: int, text: str) -> None:
        words, item = tuple(normal_words(text)), self._item_of[form]
        if self.least <= len(words) < self.n and grams_of(word_hashes([text]), real_words([text]), len(words)).said:
            self._short[form] = words
            same = self._equal.setdefault(tuple(self.rows[item]["forms"]), item)
            self._owners.setdefault(words, set()).add(same)

    def whole(self) -> _Whole:
        """What is looked for. A short text that several items have in common names none of them."""
        grams, of, item_of = np.concatenate(self._grams), np.concatenate(self._of), np.array(self._item_of)
        frames = self._frames(grams, item_of[of])
        left = ~np.isin(grams, frames)
        grams, of = grams[left], of[left]
        short = {form: words for form, words in self._short.items() if len(self._owners[words]) == 1}
        looked_for = np.bincount(of, minlength=len(item_of)) > 0
        looked_for |= looked_for[self._base]
        looked_for[list(short)] = True
        beginnings = word_hashes([" ".join(words[: self.least]) for words in short.values()])
        wholes = [np.zeros(0, np.uint64), *(ngram_hashes(hashed, self.least) for hashed in beginnings)]
        ends = np.searchsorted(item_of, np.arange(1, len(self.rows)))
        return _Whole(
            frames,
            (grams, item_of[of]),
            (np.concatenate(wholes), item_of[list(short)]),
            np.split(looked_for, ends),
        )

    def _frames(self, grams: Hashes, items: NDArray[np.int64]) -> Hashes:
        limit = max(FRAME_ITEMS, FRAME_SHARE * len(self.rows))
        buckets = (grams >> np.uint64(64 - _BUCKETS)).view(np.int64)  # cheaper than to sort them all
        some = np.bincount(buckets, minlength=1 << _BUCKETS)[buckets] > limit
        different, counts = np.unique(grams[some], return_counts=True)
        often = different[counts > limit]  # in the forms of one item alone, perhaps
        each = [len(np.unique(items[grams == gram])) for gram in often]
        return often[np.array(each, np.int64) > limit]


def _going_on(
    words: NDArray[np.int64], bases: NDArray[np.int64], n: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each form's own words, where it goes on from a question behind that one's last n - 1: no n-gram twice.

    words: (forms,) words of each piece, which stand in one row; bases: (forms,) the form that each goes on from.
    Returns (places in that row, form behind form; (forms,) how many each has).
    """
    forms = np.arange(len(words))
    ends = np.cumsum(words)
    before = np.where(bases == forms, 0, np.minimum(words[bases], n - 1))
    # two runs a form: the end of its question, and its own
    starts = np.stack([ends[bases] - before, ends - words], 1).ravel()
    lengths = np.stack([before, words], 1).ravel()
    places = np.arange(lengths.sum()) + np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)
    return places, before + words


class _Whole(NamedTuple):
    """A file's part of the index. The pairs are (hashes, item of each in the file)."""

    frames: Hashes
    grams: tuple[Hashes, NDArray[np.int64]]
    wholes: tuple[Hashes, NDArray[np.int64]]
    looked_for: list[NDArray[np.bool_]]  # of each item: its forms


def build(
    section: DecontaminateSection,
    base: Path,
    out: Path,
    tasks: Mapping[str, LocalTask] | None,
    seed: int,
    min_words: int,
) -> dict[str, Any]:
    """Write the index; one file's items are held at a time, and the n-grams of all (about 20 bytes each).

    An index of the same section, files and seed that is there already is taken as it is.

    index.json: ngram, min_overlap, min_words, benchmarks ({benchmark, items, too_short, with_answers_only, frames}).
    too_short: items that nothing can look for. with_answers_only: items whose question alone is too short.
    """
    key = _key(section, base, tasks or {}, seed, min_words)
    if (out / "index.json").exists() and (found := read_json(out / "index.json")).get("key") == key:
        return dict(found)
    n, least = section.ngram, min(min_words, section.ngram)
    grams, wholes, frames = _Column(), _Column(), [np.zeros(0, np.uint64)]
    counts: dict[str, Counter[str]] = {name: Counter() for name in section.benchmarks}
    with atomic_folder(out) as folder:
        starts = [0]
        encoder = json.JSONEncoder(ensure_ascii=False)
        with open(folder / "items.jsonl", "wb") as texts:
            for name, file in _files(read_benchmarks(section.benchmarks, base, section.fields, tasks, seed), n, least):
                found, first = file.whole(), len(starts) - 1
                frames.append(found.frames)
                grams.add(*found.grams, first)
                wholes.add(*found.wholes, first)
                counts[name]["frames"] += len(found.frames)
                for row, looked_for in zip(file.rows, found.looked_for, strict=True):
                    counts[name]["items"] += 1
                    counts[name]["too_short"] += not looked_for.any()
                    counts[name]["with_answers_only"] += bool(looked_for.any()) and not looked_for[0]
                    row["skipped"] = np.flatnonzero(~looked_for).tolist()
                    line = encoder.encode(row).encode("utf-8", "surrogatepass") + b"\n"
                    texts.write(line)
                    starts.append(starts[-1] + len(line))
        save_array(folder / "items.starts.npy", np.array(starts, np.int64))
        save_array(folder / "frames.npy", np.unique(np.concatenate(frames)))
        info = {
            "key": key,
            "ngram": n,
            "min_overlap": section.min_overlap,
            "min_words": least,
            "grams": Table.write(folder, "grams", *grams.whole()),
            "wholes": Table.write(folder, "wholes", *wholes.whole()),
            "benchmarks": [_row(name, counts[name]) for name in counts],
        }
        write_json(folder / "index.json", info)
    return info


def _key(section: DecontaminateSection, base: Path, tasks: Mapping[str, LocalTask], seed: int, min_words: int) -> str:
    """What the index follows from. (A dataset of the Hugging Face hub goes by its name.)"""
    contents = [_content(path) for path in benchmark_files(section.benchmarks, base, tasks)]
    fields = {name: repr(task) for name, task in sorted(tasks.items())}
    what = [VERSION, section.model_dump(mode="json"), contents, fields, seed, min_words]
    return sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def _content(path: Path) -> str:
    with reading(path):
        return sha256_file(path)


def _row(name: str, counts: Counter[str]) -> dict[str, Any]:
    return {"benchmark": name} | {key: counts[key] for key in ("items", "too_short", "with_answers_only", "frames")}


def _files(items: Iterable[BenchmarkItem], n: int, least: int) -> Iterator[tuple[str, _File]]:
    for (name, _), group in groupby(items, key=lambda item: (item.benchmark, item.group)):
        file = _File(n, least)
        while batch := list(islice(group, _AT_ONCE)):
            file.add(batch)
        yield name, file


class _Column:
    """Hashes and their items, grown a file at a time."""

    def __init__(self) -> None:
        self._hashes: list[Hashes] = [np.zeros(0, np.uint64)]
        self._items: list[NDArray[np.uint32]] = [np.zeros(0, np.uint32)]

    def add(self, found: Hashes, items: NDArray[np.int64], first: int) -> None:
        """items: counted from the file's first, which is the index's `first`."""
        self._hashes.append(found)
        self._items.append((items + first).astype(np.uint32))

    def whole(self) -> tuple[Hashes, NDArray[np.uint32]]:
        return np.concatenate(self._hashes), np.concatenate(self._items)
