"""A batch of texts as arrays: where its words and lines stand, measured once for all rules that need it.

Two kinds of word are counted. A *written word* is what white space leaves between it ("don't," is one): the rules of
quality count those. A *normalised word* is a run of letters and digits in lower case ("don", "t"), as in
`groundup.data.words`: repeated n-grams are counted in those. In scripts that write no spaces (Han, kana, Thai, Lao,
Khmer, Burmese) each letter is a word of either kind, and the marks and punctuation after it belong to it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache, cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from groundup.data.words import NO_SPACES

# Of a longer text (in characters) the beginning is measured, and more are never measured at once: memory is bounded.
LONGEST = 2_000_000
MOST_TEXTS = 10_000
SPACE, LETTER, WORD, UNSPACED, LATIN, MARK, STOP, LOWER = (1 << bit for bit in range(8))
# WORD: letter, digit or _. UNSPACED: of a script without spaces; MARK: a mark of one. STOP: may end a sentence.
STOPS = ".!?…。！？．｡؟۔।॥։።፧។៖။៕᠃‼⁇⁈⁉‽"
CLOSING = "'\"’”»›」』）)]】"  # may stand behind it
_UNSPACED_PUNCTUATION = "\u3000-\u303f\ufe30-\ufe4f\uff00-\uff65"
_BMP = 1 << 16
_NEWLINE = 10

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
T = TypeVar("T", np.int64, np.uint64)


_TESTS = ((SPACE, str.isspace), (LETTER, str.isalpha), (WORD, str.isalnum), (LOWER, str.islower))


def _kind(character: str) -> int:
    """What a character beyond the basic plane is; there are no marks of scripts without spaces there."""
    unspaced = UNSPACED * bool(re.match(f"[{NO_SPACES}]", character))
    return unspaced + sum(bit * test(character) for bit, test in _TESTS)


@cache
def _kinds() -> NDArray[np.uint8]:
    """(65536,) what each character of the basic plane is."""
    characters = "".join(map(chr, range(_BMP)))
    out = np.zeros(_BMP, np.uint8)
    for bit, test in _TESTS:
        out |= np.fromiter(map(test, characters), np.uint8, _BMP) * np.uint8(bit)
    out[ord("_")] |= WORD
    for found in re.finditer(f"[{NO_SPACES}{_UNSPACED_PUNCTUATION}]+", characters):
        out[found.start() : found.end()] |= UNSPACED
        for place in range(found.start(), found.end()):
            if unicodedata.category(characters[place])[0] == "M":
                out[place] |= MARK
    latin = np.r_[ord("A") : ord("Z") + 1, ord("a") : ord("z") + 1, 0xC0:0x250, 0x1E00:0x1F00]
    out[latin] |= LATIN
    out[[ord(c) for c in STOPS]] |= STOP
    return out


def _mixed(codes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """(n,) codes -> (n,) 64 well-mixed bits each (the finisher of splitmix64)."""
    x = (codes + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@cache
def _lower_bits() -> NDArray[np.uint64]:
    """(65536,) 64 random-looking bits for the lower case of each character."""
    lower = [ord(low) if len(low := chr(code).lower()) == 1 else code for code in range(_BMP)]
    return _mixed(np.array(lower, np.uint64))


@cache
def _powers() -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """(place,) powers of an odd number and their inverses modulo 2^64, one for each place of a batch."""
    out = np.full((2, 1 << 16), 0xD6E8FEB86659FD93, np.uint64)
    out[1] = pow(0xD6E8FEB86659FD93, -1, 1 << 64)
    out[:, 0] = 1
    out = np.cumprod(out, axis=1, dtype=np.uint64)
    while out.shape[1] < LONGEST + MOST_TEXTS:
        step = out[:, -1:] * out[:, 1:2]
        out = np.concatenate([out, out * step], axis=1)
    return out[0], out[1]


class Measured:
    """Texts of a batch side by side. Every array "of documents" has one entry a text, in order."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts
        short = [text if len(text) <= LONGEST else text[:LONGEST] for text in texts]
        # each text ends in a line end, so that no word and no line goes over into the next
        joined = "".join(f"{text}\n" for text in short)
        self.codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32)
        self.begins = np.zeros(len(texts) + 1, np.int64)
        np.cumsum([len(text) + 1 for text in short], out=self.begins[1:])
        self.kinds = _kinds().take(self.codes, mode="clip")
        self._beyond = np.flatnonzero(self.codes >= _BMP)
        for place in self._beyond:
            self.kinds[place] = _kind(chr(self.codes[place]))
        self.unspaced_places = np.flatnonzero((self.kinds & UNSPACED) != 0)  # few or none in most texts

    # ---- written words ----

    @cached_property
    def _bounds(self) -> tuple[Ints, Ints]:
        return self._segments((self.kinds & SPACE) == 0)

    def _segments(self, inside: NDArray[np.bool_]) -> tuple[Ints, Ints]:
        """(begins, ends) of the runs of `inside`, cut before each letter of a script without spaces."""
        before = np.empty_like(inside)
        before[0] = False
        before[1:] = inside[:-1]
        if not len(places := self.unspaced_places):
            edges = np.flatnonzero(inside != before)  # a begin, an end, ...: the last text's line end closes its word
            return edges[0::2].copy(), edges[1::2].copy()
        begin = inside & ~before
        # a letter stands alone, and what is no part of such a script begins anew behind one
        letters = places[(self.kinds[places] & LETTER) != 0]
        begin[letters] = inside[letters]
        behind = places + 1  # there is always one: the line end behind the last text
        behind = behind[(self.kinds[behind] & (UNSPACED | WORD)) == WORD]
        begin[behind] = inside[behind]
        edges = np.flatnonzero(begin | (before & ~inside))
        is_begin = begin[edges]
        return edges[is_begin], edges[1:][is_begin[:-1]]

    @property
    def word_begins(self) -> Ints:
        return self._bounds[0]

    @property
    def word_ends(self) -> Ints:
        return self._bounds[1]

    @cached_property
    def _word_splits(self) -> Ints:
        return np.searchsorted(self.word_begins, self.begins)

    @cached_property
    def words(self) -> Ints:
        """(documents,) written words; of a text that was cut for measuring, those of the whole text."""
        out = np.diff(self._word_splits)
        for i, text in enumerate(self.texts):
            if len(text) > LONGEST:
                out[i] = _count_words(text)
        return out

    @cached_property
    def mean_word(self) -> Floats:
        """(documents,) characters of a written word; 0 without words."""
        return _ratio(self._sum(self.word_ends - self.word_begins), np.diff(self._word_splits))

    @cached_property
    def alphabetic(self) -> Floats:
        """(documents,) share of written words with a letter; 0 without words."""
        letters = running((self.kinds & LETTER) != 0, np.int64)
        has = letters.take(self.word_ends) > letters.take(self.word_begins)
        return _ratio(self._sum(has), np.diff(self._word_splits))

    def _sum(self, of_words: NDArray[np.generic]) -> Ints:
        return _sums(of_words, self._word_splits)

    @cached_property
    def unspaced(self) -> NDArray[np.bool_]:
        """(documents,) is half of its letters in scripts without spaces, or more?"""
        return self.letters_a_word > 1

    @cached_property
    def letters_a_word(self) -> Ints:
        """(documents,) letters that make about a word where each is counted as one: 2 of Han and kana, 4 of Thai,
        Lao, Khmer and Burmese; 1 where words have spaces between them."""
        out = np.ones(len(self.texts), np.int64)
        alone = self.unspaced_places[(self.kinds[self.unspaced_places] & LETTER) != 0]
        splits = np.searchsorted(alone, self.begins)
        for i in np.flatnonzero(np.diff(splits)):
            letters = np.count_nonzero(self.kinds[self.begins[i] : self.begins[i + 1]] & LETTER)
            some = self.codes[alone[splits[i] : splits[i + 1]]]
            if 2 * len(some) >= letters:
                out[i] = 4 if 2 * np.count_nonzero(some < 0x2000) >= len(some) else 2
        return out

    def latin(self, i: int) -> bool:
        """Is half of the letters of document i Latin, or more? Without letters: yes."""
        kinds = self.kinds[self.begins[i] : self.begins[i + 1]]
        return 2 * int(np.count_nonzero(kinds & LATIN)) >= int(np.count_nonzero(kinds & LETTER))

    # ---- lines ----

    @cached_property
    def lines(self) -> Lines:
        return Lines(self)

    # ---- normalised words ----

    @cached_property
    def _normalised(self) -> tuple[NDArray[np.uint64], Ints, Ints]:
        inside = (self.kinds & (WORD | MARK)) != 0
        begins, ends = self._segments(inside)
        if not len(begins):
            return np.zeros(0, np.uint64), begins, np.zeros(len(self.begins), np.int64)
        bits = _lower_bits().take(self.codes, mode="clip")
        if len(self._beyond):
            bits[self._beyond] = _mixed(self.codes[self._beyond].astype(np.uint64))
        # a polynomial over the word's characters: summed with the powers of their places in the batch, then moved
        # to the power 0 by the inverse of the first, so that equal words are equal wherever they stand
        powers, inverses = _powers()
        bits *= powers[: len(bits)]
        sums = running(bits, np.uint64)
        hashes = (sums.take(ends) - sums.take(begins)) * inverses.take(begins)
        return hashes, ends - begins, np.searchsorted(begins, self.begins)

    @property
    def hashes(self) -> NDArray[np.uint64]:
        """(normalised words,) equal words, equal numbers."""
        return self._normalised[0]

    @property
    def lengths(self) -> Ints:
        """(normalised words,) characters."""
        return self._normalised[1]

    @property
    def splits(self) -> Ints:
        """(documents + 1,) where each document's normalised words begin."""
        return self._normalised[2]


class Lines:
    """The lines of a batch that hold more than white space; lengths and ends are those of the stripped line."""

    def __init__(self, of: Measured) -> None:
        ends = np.flatnonzero(of.codes == _NEWLINE)
        begins = np.empty_like(ends)
        begins[0], begins[1:] = 0, ends[:-1] + 1
        first = np.searchsorted(of.word_begins, begins)
        behind = np.searchsorted(of.word_begins, ends)
        some = behind > first
        self.begins, self.ends = begins[some], ends[some]  # of the line as it stands
        self.first_word, self.behind_word = first[some], behind[some]
        self.words = self.behind_word - self.first_word
        head, tail = of.word_begins[self.first_word], of.word_ends[self.behind_word - 1]
        self.lengths = tail - head
        self.first = of.codes[head]
        self.last = of.codes[tail - 1]
        self._third_last = of.codes[np.maximum(tail - 3, head)]
        self._second_last = of.codes[np.maximum(tail - 2, head)]
        self.splits = np.searchsorted(self.begins, of.begins)

    @cached_property
    def counts(self) -> Ints:
        """(documents,) lines."""
        return np.diff(self.splits)

    @cached_property
    def end_in_ellipsis(self) -> NDArray[np.bool_]:
        """(lines,) ends in ... or its one character."""
        dot = ord(".")
        three = (self.last == dot) & (self._second_last == dot) & (self._third_last == dot) & (self.lengths >= 3)
        return three | (self.last == ord("…"))

    def share(self, which: NDArray[np.bool_]) -> Floats:
        """(documents,) share of its lines for which it holds; 0 without lines."""
        return _ratio(_sums(which, self.splits), self.counts)


def member(codes: NDArray[np.uint32], characters: str) -> NDArray[np.bool_]:
    """(n,) which of the codes are one of the characters."""
    return np.isin(codes, np.array([ord(c) for c in characters], np.uint32))


def _sums(values: NDArray[np.generic], splits: Ints) -> Ints:
    return np.diff(running(values, np.int64)[splits])


def running(values: NDArray[np.generic], kind: type[T]) -> NDArray[T]:
    """(n + 1,) the sum of the first i: of any run, a difference of two (which `reduceat` takes twice as long for)."""
    out = np.zeros(len(values) + 1, kind)
    np.cumsum(values, out=out[1:])
    return out


def _ratio(above: Ints, below: Ints) -> Floats:
    return above / np.maximum(below, 1)


_SPACED_OR_ALONE = re.compile(rf"[{NO_SPACES}]|[^\s{NO_SPACES}]+")


def _count_words(text: str) -> int:
    """Written words of a text of any length, in constant memory (marks of Thai count a little differently)."""
    return sum(1 for _ in _SPACED_OR_ALONE.finditer(text))


_last: list[Measured] = []


def measured(texts: Sequence[str]) -> tuple[Measured, list[int]]:
    """The texts measured, and the row of each. One rule after another asks for the same texts: the last are kept."""
    if _last:
        rows = {id(text): i for i, text in enumerate(_last[0].texts)}  # alive, so their ids are theirs
        if all(id(text) in rows for text in texts):
            return _last[0], [rows[id(text)] for text in texts]
    _last[:] = [Measured(list(texts))]
    return _last[0], list(range(len(texts)))


def groups(lengths: Sequence[int]) -> Iterator[slice]:
    """Cuts of a batch that can be measured at once: texts of together LONGEST characters at most, or one text."""
    begin = total = 0
    for i, length in enumerate(lengths):
        if i > begin and (total + length > LONGEST or i - begin >= MOST_TEXTS):
            yield slice(begin, i)
            begin, total = i, 0
        total += length
    if begin < len(lengths):
        yield slice(begin, len(lengths))
