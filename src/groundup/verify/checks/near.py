"""Is held-out text, or a benchmark's, nearly in train? What exact copies are is asked in data.py."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from groundup.data.shard import Shard, ShardSet, write_shard
from groundup.errors import UserError
from groundup.evaluate import questions
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.verify.check import Measurement, NotApplicable, check, violations
from groundup.verify.checks.data import SCAN
from groundup.verify.corpus import MICRO_CORPUS
from groundup.verify.subject import Subject

GRAM = 13  # words in a row that are no accident: GPT-3, arXiv 2005.14165, appendix C; or tokens, of a few bytes each
SHORT = 2.0  # bytes a token: below, tokens are about characters, and four times as many are taken in a row
HELD = 1_000_000  # tokens of the validation shard that are looked for, from the front
LEAST = 26  # different runs that a document must have, or a heading is most of it
COMMON = 100  # documents of train that one run is traced to, the first ones
MOST_PAIRS = 5_000_000  # (run, document of train) that are kept; enough of any but machine-made text
MOST_READ = 2000  # suspect documents of train that are read as text
SECONDS = 3.0  # after which no more of train is read; the note says how much was
_PART = 1 << 21  # tokens hashed at a time
_TABLE = 1 << 24  # slots of the first, coarse look-up

Hashes = NDArray[np.uint64]
Indices = NDArray[np.int64]


def gram_hashes(tokens: NDArray[Any], n: int) -> Hashes:
    """A 64-bit hash of each run of n tokens: (N,) -> (N - n + 1,). Polynomial, by doubling; mixed as in splitmix64."""
    if len(tokens) < n:
        return np.zeros(0, dtype=np.uint64)
    power, size = tokens.astype(np.uint64) + np.uint64(1), 1  # hashes of runs of `size`, a power of two
    found, covered, base = np.zeros(len(tokens), dtype=np.uint64), 0, 0x9E3779B97F4A7C15
    while covered < n:
        shift = np.uint64(pow(base, size, 1 << 64))
        if n & size:
            found = found[: len(power) - covered] * shift + power[covered:]
            covered += size
        if covered < n:
            power = power[:-size] * shift + power[size:]
            size *= 2
    found = found[: len(tokens) - n + 1]
    found = (found ^ (found >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    return found ^ (found >> np.uint64(27))


def parts_of(one: Shard, limit: int) -> Iterator[tuple[NDArray[Any], Indices, int]]:
    """(tokens, where their documents begin in them, the first one's number) of some documents at a time."""
    ends = np.append(one.bounds[1:], len(one.tokens))
    first = 0
    while first < len(ends) and one.bounds[first] < limit:
        last = int(np.searchsorted(ends, one.bounds[first] + _PART, side="left")) + 1
        last = min(last, len(ends))
        start = int(one.bounds[first])
        yield np.asarray(one.tokens[start : int(ends[last - 1])]), one.bounds[first:last] - start, first
        first = last


def grams(tokens: NDArray[Any], bounds: Indices, n: int) -> tuple[Hashes, Indices]:
    """(hash, number of its document) of every run of n tokens that lies in one document."""
    owner = np.zeros(len(tokens), dtype=np.int64)
    owner[bounds[1:]] = 1
    owner = owner.cumsum()
    inside = owner[: max(len(tokens) - n + 1, 0)] == owner[n - 1 :]
    return gram_hashes(tokens, n)[inside], owner[: len(inside)][inside]


class Wanted:
    """Hashes that are looked for, and a coarse table that most others do not pass."""

    def __init__(self, hashes: Hashes) -> None:
        self.keys = np.unique(hashes)
        self._table = np.zeros(_TABLE, dtype=bool)
        self._table[self._slot(self.keys)] = True

    @staticmethod
    def _slot(hashes: Hashes) -> Indices:
        return (hashes & np.uint64(_TABLE - 1)).astype(np.int64)

    def index(self, hashes: Hashes) -> Indices:
        """Each one's place in `keys`, which must hold it."""
        return np.searchsorted(self.keys, hashes)

    def met(self, hashes: Hashes) -> tuple[Indices, Indices]:
        """(places in `hashes` of those that are wanted, their places in `keys`)."""
        at = np.flatnonzero(self._table[self._slot(hashes)])
        found = np.minimum(np.searchsorted(self.keys, hashes[at]), len(self.keys) - 1)
        same = self.keys[found] == hashes[at]
        return at[same], found[same]


@dataclass
class Reading:
    """A shard's 13-grams, some documents at a time, until the time is up. `tokens`: how many were read."""

    one: Shard
    n: int = GRAM
    tokens: int = 0

    def __iter__(self) -> Iterator[tuple[Hashes, Indices]]:
        """(hashes, the number of each one's document)."""
        end = time.monotonic() + SECONDS
        for tokens, bounds, first in parts_of(self.one, SCAN):
            hashes, owner = grams(tokens, bounds, self.n)
            self.tokens += len(tokens)
            yield hashes, owner + first
            if time.monotonic() > end:
                return


@dataclass(frozen=True)
class Near:
    """Held-out documents most of whose 13-grams stand in one document of train."""

    copies: list[tuple[int, int]]  # (held-out document, document of train)
    documents: int  # held-out documents looked for
    share: float  # of their tokens, those of copies
    read: int  # tokens of train


def near_copies(both: ShardSet) -> Near:
    """Two readings of train: which 13-grams of the validation shard it holds at all; then, for documents of which it
    holds most, in which of its own each stands."""
    n = GRAM if both.train.text_bytes >= SHORT * len(both.train.tokens) else 4 * GRAM
    held = [
        (hashes, owner + first)
        for tokens, bounds, first in parts_of(both.validation, HELD)
        for hashes, owner in [grams(tokens, bounds, n)]
    ]
    wanted = Wanted(np.concatenate([hashes for hashes, _ in held]))
    owner = np.concatenate([owner for _, owner in held])
    # each 13-gram once a document, as pairs (document, key)
    pairs = _distinct(owner, wanted.index(np.concatenate([hashes for hashes, _ in held])))
    sizes = np.bincount(pairs[0], minlength=both.validation.n_documents)
    looked = np.flatnonzero(sizes >= LEAST)
    if not len(looked):
        return Near([], 0, 0.0, 0)
    met = np.zeros(len(wanted.keys), dtype=bool)
    reading = Reading(both.train, n)
    for hashes, _ in reading:
        met[wanted.met(hashes)[1]] = True
    shares = np.bincount(pairs[0], met[pairs[1]], len(sizes)) / np.maximum(sizes, 1)
    suspects = looked[shares[looked] > 0.5]
    of_suspects = np.isin(pairs[0], suspects)
    copies = _one_source(Reading(both.train, n), pairs[0][of_suspects], pairs[1][of_suspects], wanted, sizes)
    lengths = np.diff(np.append(both.validation.bounds, len(both.validation.tokens)))
    copied = sum(int(lengths[document]) for document, _ in copies)
    return Near(copies, len(looked), copied / int(lengths[looked].sum()), reading.tokens)


def _distinct(a: Indices, b: Indices) -> tuple[Indices, Indices]:
    """Pairs (a, b), each once, sorted by a."""
    width = int(b.max(initial=0)) + 1
    both = np.unique(a * width + b)
    return both // width, both % width


def _one_source(
    reading: Reading, documents: Indices, keys: Indices, wanted: Wanted, sizes: Indices
) -> list[tuple[int, int]]:
    """Of held-out (document, key) pairs: documents more than half of whose keys stand in one of train, with that."""
    if not len(keys):
        return []
    asked = Wanted(wanted.keys[np.unique(keys)])
    number = np.searchsorted(np.unique(keys), keys)  # of each pair's key, in `asked`
    found: list[tuple[Indices, Indices]] = []
    for hashes, owner in reading:
        at, key = asked.met(hashes)
        found.append((key, owner[at]))
        if sum(len(key) for key, _ in found) > MOST_PAIRS:
            break
    stands, source = _distinct(np.concatenate([k for k, _ in found]), np.concatenate([o for _, o in found]))
    # What stands everywhere counts for the first documents it stands in: copies of one document share these.
    rank = np.arange(len(stands)) - np.searchsorted(stands, stands, side="left")
    stands, source = stands[rank < COMMON], source[rank < COMMON]
    first = np.searchsorted(stands, number, side="left")
    times = np.searchsorted(stands, number, side="right") - first
    place = np.arange(times.sum()) + np.repeat(first - (times.cumsum() - times), times)
    width = reading.one.n_documents
    both, shared = np.unique(np.repeat(documents, times) * width + source[place], return_counts=True)
    best: dict[int, int] = {}
    for pair, count in zip(both.tolist(), shared.tolist(), strict=True):
        document, one = divmod(pair, width)
        if 2 * count > sizes[document]:
            best.setdefault(document, one)
    return sorted(best.items())


# ---- near copies ----


def _document(number: int) -> str:
    """Ninety words in an order of its own."""
    draw_from = random.Random(number)
    words = [word for text in MICRO_CORPUS[:40] for word in text.split() if word.isalpha()]
    return " ".join(draw_from.choice(words) for _ in range(90)) + "."


def _one_word_changed(text: str) -> str:
    words = text.split(" ")
    return " ".join([*words[:45], "otherwise", *words[46:]])


# What is done to a document of train -> whether it is still that document.
PLANTS: dict[str, tuple[Callable[[str], str], bool]] = {
    "one word changed": (_one_word_changed, True),
    "cut in half": (lambda text: text[: len(text) // 2], True),
    "another one after it": (lambda text: text + " " + _document(10_001)[: len(text) // 3], True),
    "in capitals": (str.upper, False),
    "its words in another order": (lambda text: " ".join(sorted(text.split(" "))), False),
    "a quarter of it": (lambda text: text[: len(text) // 4] + " " + _document(10_002), False),
}


def planted(subject: Subject, folder: Path, plants: Sequence[str], documents: int = 40) -> ShardSet:
    """Shards of documents that have nothing in common, and held-out ones that were made of some in train."""
    tokenizer = subject.micro_tokenizer
    texts = [_document(n) for n in range(documents)]
    held = [_document(n) for n in range(1000, 1000 + documents // 4)]
    held += [PLANTS[plant][0](texts[3 * n]) for n, plant in enumerate(plants)]
    for name, part in (("train", texts), ("validation", held)):
        with write_shard(
            folder / f"{name}.bin", vocab_size=tokenizer.vocab_size, tokenizer_hash=tokenizer.hash
        ) as writer:
            for n, text in enumerate(part):
                writer.add([*tokenizer.prefix, *tokenizer.encode(text), tokenizer.eos], str(n), len(text.encode()))
    return ShardSet(folder, tokenizer.hash)


@check(
    "near-copies-are-found",
    "sensitivity",
    "data",
    bug="The search for near copies finds none: a hash that wraps, a window one off, documents run together.",
    remedy="See near_copies and gram_hashes in verify/checks/near.py, and the tokenizer: like text must give like ids.",
    reference="marin-community/marin issue 6852; ChenghaoMou/text-dedup issue 8; datajuicer/data-juicer pull 906",
)
def near_copies_are_found(subject: Subject) -> Measurement:
    """Of planted held-out documents (one word of 90 changed, cut in half, with others after it), those that are not
    traced to the document of train they were made of; and of others (in capitals, its words in another order, a quarter
    of one, unrelated), those that are taken for copies. A changed word takes 13-grams of at most 25 words with it, of
    90: most are left. By design, case counts."""
    with subject.scratch() as folder:
        found = near_copies(planted(subject, folder, list(PLANTS)))
    expected = {10 + n: 3 * n for n, (_, copy) in enumerate(PLANTS.values()) if copy}
    traced, names = dict(found.copies), list(PLANTS)
    wrong = [f"not traced: {names[d - 10]}" for d, source in expected.items() if traced.get(d) != source]
    wrong += [f"taken for a copy: {names[d - 10] if d >= 10 else 'an unrelated one'}" for d in traced.keys() - expected]
    return violations(wrong, found.documents)


@check(
    "validation-holds-no-near-copies",
    "locality",
    "data",
    bug="Held-out text is train text with a word changed: validation measures memory, and deduplication saw nothing.",
    remedy="Deduplicate by near copies (MinHash) before the split, or split by source; the note names some.",
    reference=(
        "ciprian-chelba/1-billion-word-language-modeling-benchmark issue 5; openai/parameter-golf issue 2127; "
        "Lee et al. 2022, arXiv 2107.06499"
    ),
)
def validation_holds_no_near_copies(subject: Subject) -> Measurement:
    """Share of the held-out tokens (the first million) in documents more than half of whose runs of 13 tokens (52 where
    tokens are characters) stand in one document of train (the first 20 million tokens, or what 3 seconds read). The
    run's shards; the micro corpus's where there are none, or where they are of a builtin, whose sentences are alike by
    design.

    The bound is 1 / sqrt(n) of n documents, and 4% at most. Text known by heart costs nothing: a share s of it lowers
    the mean cost by s of itself at most; a mean over n documents that differ as much as they cost is uncertain by
    1 / sqrt(n), so less is within the luck of the draw. Over 4% is what was found in the validation sets of standard
    corpora, and misled those who used them.
    """
    both, name = subject.real_shards, "the run's shards"
    sources = subject.recipe.data.sources if subject.recipe.data else []
    if both is None or any(source.builtin for source in sources):
        both, name = subject.micro_shards, "the micro corpus"
    found = near_copies(both)
    if not found.documents:
        raise NotApplicable("no held-out document is long enough")
    named = ", ".join(
        f"{both.validation.document_id(d)} is nearly {both.train.document_id(s)}" for d, s in found.copies[:3]
    )
    note = f"{name}: {len(found.copies)} of {found.documents:,} documents, {found.read:,} tokens of train; {named}"
    return Measurement(found.share, min(found.documents**-0.5, 0.04), note.rstrip("; "))


# ---- benchmarks ----

_WORD = re.compile(r"[^\W_]+")


def words_of(text: str) -> list[str]:
    """Words without case and punctuation, as GPT-3's search for contamination takes them."""
    return _WORD.findall(text.casefold())


def contaminated(both: ShardSet, tokenizer: Tokenizer, prompts: Sequence[str]) -> tuple[list[int], int]:
    """(questions of which 13 words in a row stand in one document of train, how many have 13 words).

    Documents that hold a long run of a question's ids are read as text and compared by words. The run is as long as the
    shortest of the questions' 13-word pieces, less two tokens for their ends: no shorter one can hold 13 words.
    """
    wanted = {n: words for n, prompt in enumerate(prompts) if len(words := words_of(prompt)) >= GRAM}
    if not wanted:
        return [], 0
    texts = [prompts[n] for n in wanted]
    shortest = min(
        len(tokenizer.encode(text[starts[k] : ends[k + GRAM - 1]]))
        for text in texts
        for starts, ends in [tuple(zip(*(m.span() for m in _WORD.finditer(text)), strict=True))]
        for k in range(len(starts) - GRAM + 1)
    )
    n = max(shortest - 2, 1)
    asked = Wanted(np.concatenate([gram_hashes(np.array(tokenizer.encode(text)), n) for text in texts]))
    suspects: set[int] = set()
    for hashes, owner in Reading(both.train, n):
        suspects |= set(np.unique(owner[asked.met(hashes)[0]]).tolist())
    seen: set[tuple[str, ...]] = set()
    for document in sorted(suspects)[:MOST_READ]:
        words = words_of(tokenizer.decode(both.train.document(document).tolist()))
        seen |= set(zip(*(words[k:] for k in range(GRAM)), strict=False))
    return [k for k, words in wanted.items() if seen & set(zip(*(words[j:] for j in range(GRAM)), strict=False))], len(
        wanted
    )


@check(
    "benchmark-text-not-in-train",
    "locality",
    "data",
    bug="The recipe's own evaluation questions stand in the corpus: the score is of memory.",
    remedy="Take the documents out of data.sources, or the questions out of evaluate.tasks.",
    reference=(
        "marin-community/marin issue 6742; vietai/mTet issue 5; Brown et al. 2020, arXiv 2005.14165, section "
        "4 and appendix C"
    ),
)
def benchmark_text_not_in_train(subject: Subject) -> Measurement:
    """Questions of the recipe's tasks (builtin and local files, those of 13 words or more) of which 13 words in a row,
    without case and punctuation, stand in one document of train (the first 20 million tokens, or what 3 seconds read).

    13 words in a row are GPT-3's mark of contamination; none may be there. Copies that differ in case or punctuation
    everywhere are not found: a run of the question's own ids must be there first.
    """
    if subject.real_shards is None or subject.real_tokenizer is None:
        raise NotApplicable("no prepared data")
    section = subject.recipe.evaluate
    try:
        plans = questions.plan_tasks(section.model_copy(update={"limit": None}), subject.recipe.seed)
    except UserError as reason:
        raise NotApplicable(str(reason)) from reason
    items = [(plan.name, item) for plan in plans for item in plan.items]
    found, looked = contaminated(subject.real_shards, subject.real_tokenizer, [item.prompt for _, item in items])
    if not looked:
        raise NotApplicable(f"no question of evaluate.tasks has {GRAM} words")
    return violations([f"{items[n][0]}: {items[n][1].prompt[:40]!r}" for n in found], looked)
