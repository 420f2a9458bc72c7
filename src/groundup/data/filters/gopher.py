"""Gopher's rules (Rae et al. 2021, arXiv 2112.11446, table A1 and appendix A.1.1): quality and repetition.

What is counted, and where it differs from other implementations of the same table, is in docs/filters.md.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from groundup.data.document import Item
from groundup.data.filters.measure import Floats, Ints, Measured, groups, measured, member, running
from groundup.errors import UserError
from groundup.recipe.corpus import GopherQualitySection, GopherRepetitionSection

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
BULLETS = "•‣⁃●○◦▪▫■□–-*"
_STOP_SET = set(STOP_WORDS)
_HEAD = 500
_STOP_WORD = re.compile(rf"\b(?:{'|'.join(STOP_WORDS)})\b", re.IGNORECASE)


def each_group(items: Sequence[Item], judge: Callable[[list[Item], Measured, list[int]], None]) -> None:
    """Hand the items that are still kept to `judge`, measured, in groups that fit in memory."""
    kept = [item for item in items if not item.rule]
    for group in groups([len(item.text) for item in kept]):
        some = kept[group]
        batch, rows = measured([item.text for item in some])
        judge(some, batch, rows)


class GopherQuality:
    """Drops texts that do not look like prose: "gopher.min_words", ..., "gopher.stop_words"."""

    name = "gopher"

    def __init__(self, section: GopherQualitySection) -> None:
        self.section = section
        self.counts: Counter[str] = Counter()

    def __call__(self, items: Sequence[Item]) -> None:
        each_group(items, self._judge)

    def _judge(self, items: list[Item], batch: Measured, rows: list[int]) -> None:
        lines = batch.lines
        bullets = lines.share(member(lines.first, BULLETS))
        ellipses = lines.share(lines.end_in_ellipsis)
        for item, row in zip(items, rows, strict=True):
            found = self._wrong(item, batch, row) or self._wrong_lines(float(bullets[row]), float(ellipses[row]))
            found = found or self._wrong_words(item, batch, row)
            if found:
                item.drop(f"gopher.{found[0]}", found[1])

    def _wrong(self, item: Item, batch: Measured, row: int) -> tuple[str, str] | None:
        limit = self.section
        words = int(batch.words[row])
        if words < limit.min_words:
            return "min_words", f"{words:,} words, at least {limit.min_words:,}"
        if words > limit.max_words:
            return "max_words", f"{words:,} words, at most {limit.max_words:,}"
        mean = float(batch.mean_word[row])
        if not batch.unspaced[row]:  # where each letter is a word, the mean says nothing
            if mean < limit.min_mean_word:
                return "mean_word", f"mean word of {mean:.2f} characters, at least {limit.min_mean_word:g}"
            if mean > limit.max_mean_word:
                return "mean_word", f"mean word of {mean:.2f} characters, at most {limit.max_mean_word:g}"
        ellipses = item.text.count("...") + item.text.count("…")
        for name, count in (("#", item.text.count("#")), ("ellipsis", ellipses)):
            if count > limit.max_symbol_ratio * words:
                share = count / max(words, 1)
                return "symbols", f"{share:.3f} {name} a word, at most {limit.max_symbol_ratio:g}"
        return None

    def _wrong_lines(self, bullets: float, ellipses: float) -> tuple[str, str] | None:
        limit = self.section
        if bullets > limit.max_bullet_lines:
            return "bullet_lines", f"{bullets:.3f} of lines begin with a bullet, at most {limit.max_bullet_lines:g}"
        if ellipses > limit.max_ellipsis_lines:
            return "ellipsis_lines", f"{ellipses:.3f} of lines end in an ellipsis, at most {limit.max_ellipsis_lines:g}"
        return None

    def _wrong_words(self, item: Item, batch: Measured, row: int) -> tuple[str, str] | None:
        limit = self.section
        share = float(batch.alphabetic[row])
        if share < limit.min_alphabetic_words:
            return "alphabetic_words", f"{share:.3f} of words have a letter, at least {limit.min_alphabetic_words:g}"
        if limit.min_stop_words:
            found = _stop_words(item.text, limit.min_stop_words)
            if found < limit.min_stop_words and _may_be_english(item, batch, row):
                return "stop_words", f"{found} different English stop words, at least {limit.min_stop_words}"
        return None


def _stop_words(text: str, enough: int) -> int:
    """How many different stop words stand in the text; it stops counting where it has `enough`."""
    found = set(text[:_HEAD].lower().split()) & _STOP_SET  # nearly always enough, and much faster
    if len(found) >= enough:
        return len(found)
    for match in _STOP_WORD.finditer(text):
        found.add(match.group().lower())
        if len(found) >= enough:
            break
    return len(found)


def _may_be_english(item: Item, batch: Measured, row: int) -> bool:
    """The stop words are English ones. Where a step has found the language, that counts; else the script."""
    language = item.values.get("language")
    return language == "en" if language else batch.latin(row)


class GopherRepetition:
    """Drops texts that repeat themselves: "gopher.duplicate_lines", ..., "gopher.duplicate_10grams"."""

    name = "gopher"

    def __init__(self, section: GopherRepetitionSection) -> None:
        self.section = section
        self.counts: Counter[str] = Counter()
        for key in ("max_top_ngrams", "max_duplicate_ngrams"):
            if any(n < 1 for n in getattr(section, key)):
                raise UserError(f"data.filters.gopher_repetition.{key}: an n-gram has at least 1 word")

    def __call__(self, items: Sequence[Item]) -> None:
        each_group(items, self._judge)

    def _judge(self, items: list[Item], batch: Measured, rows: list[int]) -> None:
        for item in items:
            found = self._wrong_lines(item.text)
            if found:
                item.drop(*found)
        top, repeated = ngram_shares(batch, set(self.section.max_top_ngrams), set(self.section.max_duplicate_ngrams))
        for rule, what, limits, shares in (
            ("top_{}gram", "characters are in the most frequent {}-gram", self.section.max_top_ngrams, top),
            ("duplicate_{}grams", "characters are in repeated {}-grams", self.section.max_duplicate_ngrams, repeated),
        ):
            for n, most in sorted(limits.items()):
                for i in np.flatnonzero(shares[n][rows] > most):
                    if not items[i].rule:
                        share = float(shares[n][rows[i]])
                        items[i].drop(f"gopher.{rule.format(n)}", f"{share:.3f} of {what.format(n)}, at most {most:g}")

    def _wrong_lines(self, text: str) -> tuple[str, str] | None:
        limit = self.section
        for unit, parts, most, most_characters in (
            ("line", text.split("\n"), limit.max_duplicate_lines, limit.max_duplicate_line_characters),
            (
                "paragraph",
                text.split("\n\n"),  # of more line ends in a row, those left over are stripped
                limit.max_duplicate_paragraphs,
                limit.max_duplicate_paragraph_characters,
            ),
        ):
            share, characters = duplicate_shares(parts)
            if share > most:
                return f"gopher.duplicate_{unit}s", f"{share:.3f} of {unit}s were there before, at most {most:g}"
            if characters > most_characters:
                return (
                    f"gopher.duplicate_{unit}_characters",
                    f"{characters:.3f} of characters in {unit}s that were there before, at most {most_characters:g}",
                )
        return None


def duplicate_shares(parts: list[str]) -> tuple[float, float]:
    """(share of parts, share of characters) seen before; parts are compared stripped, blank ones do not count."""
    parts = [stripped for part in parts if (stripped := part.strip())]
    first = set(parts)
    if len(first) == len(parts):
        return 0.0, 0.0
    total = sum(map(len, parts))
    return 1 - len(first) / len(parts), (total - sum(map(len, first))) / total


# ---- n-grams ----

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_FEW = 1 << 14


def ngram_shares(batch: Measured, top: set[int], repeated: set[int]) -> tuple[dict[int, Floats], dict[int, Floats]]:
    """Shares of characters of normalised words, by n, (documents,) each.

    top: in all copies of the most frequent n-gram that occurs twice or more (the longest of equally frequent ones);
    at most 1. repeated: in n-grams that stood in the document before, each character counted once however many
    n-grams lie over it. In scripts without spaces, where each letter counts as a word, an n-gram has 2 n letters
    (Han, kana) or 4 n (Thai and its neighbours): a few letters in a row say nothing.
    """
    texts = len(batch.splits) - 1
    tops, repeats = {n: np.zeros(texts) for n in top}, {n: np.zeros(texts) for n in repeated}
    for scale in np.unique(batch.letters_a_word).tolist():
        grams = _Ngrams(batch, batch.letters_a_word == scale)
        grams.measure({n * scale: tops[n] for n in top}, {n * scale: repeats[n] for n in repeated})
    return tops, repeats


class _Ngrams:
    """The normalised words of some documents of a batch, and what repeats among them."""

    def __init__(self, batch: Measured, which: NDArray[np.bool_]) -> None:
        self.words, self.lengths, self.splits = batch.hashes, batch.lengths, batch.splits
        self.document = np.repeat(np.arange(len(which)), np.diff(self.splits))
        self.running = running(self.lengths, np.int64)
        self.total = np.maximum(np.diff(self.running[self.splits]), 1)
        self.places = np.arange(len(self.words)) if which.all() else np.flatnonzero(which[self.document])

    def measure(self, tops: dict[int, Floats], repeats: dict[int, Floats]) -> None:
        """Adds each document's shares to the arrays, by n."""
        words, document, places = self.words, self.document, self.places
        wanted = sorted({*tops, *repeats})
        grams = words[places] * _MULTIPLIER + document[places].astype(np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F)
        for n in range(1, wanted[-1] + 1) if wanted else ():
            if n > 1:
                inside = places + n <= self.splits[1:][document[places]]
                places = places[inside]
                grams = grams[inside] * _MULTIPLIER + words[places + n - 1]
                grams ^= grams >> np.uint64(29)
            if n < wanted[0]:
                continue
            # only where n - 1 words are repeated can n words be
            places, grams, begins = _repeated(places, grams)
            if not len(places):
                return
            first = np.minimum.reduceat(places, begins)
            counts = np.diff(begins, append=len(places))
            if n in tops:
                tops[n] += self._top(n, first, counts)
            if n in repeats:
                later = places[np.repeat(first, counts) != places]
                covered = np.zeros(len(words), bool)
                for i in range(n):
                    covered[later + i] = True
                repeats[n] += np.diff(running(self.lengths * covered, np.int64)[self.splits]) / self.total

    def _top(self, n: int, first: Ints, counts: Ints) -> Floats:
        characters = self.running[first + n] - self.running[first]
        best = np.zeros(len(self.total), np.int64)
        np.maximum.at(best, self.document[first], (counts << 32) + characters)
        return np.minimum((best >> 32) * (best & 0xFFFFFFFF) / self.total, 1.0)


def _repeated(places: Ints, grams: NDArray[np.uint64]) -> tuple[Ints, NDArray[np.uint64], Ints]:
    """Those that occur twice or more, equal ones side by side, and where each kind begins."""
    if len(places) > _FEW:  # most occur once: a small table finds those out cheaper than sorting does
        buckets = (grams * _MULTIPLIER) >> np.uint64(44)
        some = np.bincount(buckets.view(np.int64), minlength=1 << 20)[buckets] > 1
        places, grams = places[some], grams[some]
    order = np.argsort(grams)
    places, grams = places[order], grams[order]
    new = np.ones(len(grams), bool)
    new[1:] = grams[1:] != grams[:-1]
    begins = np.flatnonzero(new)
    counts = np.diff(begins, append=len(grams))
    twice = np.repeat(counts > 1, counts)
    counts = counts[counts > 1]
    return places[twice], grams[twice], np.cumsum(counts) - counts
