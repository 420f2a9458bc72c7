"""Counting what is wrong with rows, and telling which; and what chance would do."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from groundup.verify.check import Measurement, NotApplicable
from groundup.verify.layouts import Kind
from groundup.verify.rows import Row, Rows

SHOWN, NAMED = 10, 50  # findings told in full; places named
CHANCE = 1e-6

Found = tuple[str, str]  # (where, what)


def flawed(
    found: Sequence[Found], of: int, what: str = "rows", said: str = "", every: Sequence[Found] = ()
) -> Measurement:
    """A count that must be 0, with its places; nothing looked at fails. said: the beginning of the note.

    The note stays short; `Measurement.found` has all: `every` where it tells more than `found` does.
    """
    if of == 0:
        return Measurement(math.nan, 0.0, "nothing was looked at")
    if not found:
        return Measurement(0.0, 0.0, f"{of:,} {what} looked at")
    told = [f"{where}: {why}" if why else where for where, why in found[:SHOWN]]
    if len(found) > SHOWN:
        places = [where for where, _ in found[SHOWN:NAMED]]
        cut = f", and {len(found) - NAMED:,} not named" if len(found) > NAMED else ""
        told.append(f"{len(found) - SHOWN:,} more: {', '.join(places)}{cut}")
    note = f"{said or f'{len(found):,} of {of:,} {what}'}. " + "; ".join(told)
    return Measurement(float(len(found)), 0.0, note, found=tuple(every or found))


def holding(rows: Rows, *kinds: Kind) -> list[Row]:
    """The rows, where they are of a kind that the check is about."""
    if rows.holds not in kinds:
        raise NotApplicable(f"{rows.name} holds {rows.holds}; this is about {' and '.join(kinds)}")
    return rows.rows


def short(text: str) -> str:
    """A printable beginning of `text`."""
    return repr(text if len(text) <= 40 else text[:37] + "...")


def together(rows: Iterable[Row], key: Callable[[Row], str]) -> list[list[Row]]:
    """Groups of rows with one key, in the order of their first; examples of one row (a tree's) count once."""
    groups: dict[str, dict[str, Row]] = defaultdict(dict)
    for row in rows:
        groups[key(row)].setdefault(row.where, row)
    return [list(group.values()) for group in groups.values() if len(group) > 1]


def places(group: Sequence[Row], most: int = 6) -> str:
    """rows 21, 168 and 4 more."""
    numbers = [row.where for row in group[:most]]
    first, _, _ = numbers[0].rpartition(" ")
    if all(where.rpartition(" ")[0] == first for where in numbers):
        numbers = [f"{first}s {numbers[0].rpartition(' ')[2]}", *(where.rpartition(" ")[2] for where in numbers[1:])]
    return ", ".join(numbers) + (f" and {len(group) - most} more" if len(group) > most else "")


def groups_flawed(groups: Sequence[Sequence[Row]], of: int, tell: Callable[[Sequence[Row]], str]) -> Measurement:
    """A count of groups of rows, each with what `tell` says of it."""
    rows = sum(len(group) for group in groups)
    told = [(group, tell(group)) for group in groups]
    found = [(places(group), why) for group, why in told]
    every = [(places(group, len(group)), why) for group, why in told]
    said = f"{len(groups):,} group{'s' * (len(groups) != 1)}, {rows:,} of {of:,} rows"
    return flawed(found, of, said=said, every=every)


def per_row(rows: Iterable[Row], wrong: Callable[[Row], str]) -> list[Found]:
    """[(where, what is wrong)] of the rows for which `wrong` says something; a row that shows twice counts once."""
    found: dict[str, str] = {}
    for row in rows:
        if row.where not in found and (said := wrong(row)):
            found[row.where] = said
    return list(found.items())


def distinct(rows: Sequence[Row]) -> int:
    return len({row.where for row in rows})


# ---- chance ----


def log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def tail(k: int, n: int, marked: int, drawn: int) -> float:
    """P(at least k of `drawn` are marked), drawn without replacement from n of which `marked` are."""
    every = log_choose(n, drawn)
    most = min(marked, drawn)
    terms = (log_choose(marked, i) + log_choose(n - marked, drawn - i) - every for i in range(k, most + 1)
             if drawn - i <= n - marked)  # fmt: skip
    return min(1.0, math.fsum(map(math.exp, terms)))


def lower(k: int, n: int, chance: float) -> float:
    """Lower end of the Clopper-Pearson interval: the p at which k or more of n have this chance."""
    if k == 0:
        return 0.0
    choose = [log_choose(n, i) for i in range(k, n + 1)]
    low, high = 0.0, k / n
    for _ in range(50):
        p = (low + high) / 2
        at, off = math.log(p), math.log1p(-p)
        tail = math.fsum(math.exp(c + i * at + (n - i) * off) for i, c in enumerate(choose, start=k))
        low, high = (p, high) if tail < chance else (low, p)
    return (low + high) / 2
