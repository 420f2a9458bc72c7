"""Rows to fine-tune on, as published: opened without refusing any, so that the checks can name what is wrong by row."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from groundup.data import files
from groundup.errors import UserError, problems
from groundup.recipe.schema import ChatSource, SftSource
from groundup.tune import formats, hold_out
from groundup.verify.check import Face
from groundup.verify.layouts import KNOWN, Example, Kind, multiple_choice, read

ENDINGS = (".json", ".jsonl", ".csv", ".tsv", ".parquet")
SIBLINGS = ("test", "validation", "valid", "val", "dev", "eval")  # beside a file called train
TUNED = ("conversations", "pairs", "problems")  # what the tuning stages hold a part out of
# system, user, assistant, call, tool: whole conversations, and those that an answer is to follow. Calls and what tools
# answer may come several at a time; a call can be written into the assistant's own words.
_TURNS = re.compile(r"s?(u(ct*|at+)*a)+")
_BEFORE = re.compile(r"s?(u(ct*|at+)*a)*u(ct*|at+)*")
_FRACTION = re.compile(r"[-+]?\d*\.\d+(?:e[-+]?\d+)?", re.I)
_NUMBER = re.compile(r"[-+]?\d*\.?\d+(?:e[-+]?\d+)?", re.I)
WORDS = 5  # fewer, and two people say the same by chance
Read = tuple[int, "dict[str, Any] | None", str]  # (number from 1, row, or None and why there is none)


@dataclass(frozen=True)
class Row:
    """One example and the place it stands at: "row 12", "line 12" where the file has lines, "test.csv line 12".

    split: what the row's own column says.
    """

    where: str
    example: Example
    split: str = ""

    @cached_property
    def messages(self) -> formats.Messages:
        """All of a conversation; of others, what is asked."""
        return self.example.messages

    @cached_property
    def answers(self) -> list[tuple[str, str]]:
        """[(what it is, text)] of everything that is to be learnt from as an answer."""
        one = self.example
        if one.kind == "conversations":
            return [("answer", m["content"]) for m in one.messages if m["role"] == "assistant"]
        if one.kind == "pairs":
            return [("chosen", one.answer or ""), ("rejected", one.rejected)]
        return [("answer", one.answer or "")] if one.kind == "problems" else []

    @cached_property
    def contents(self) -> list[tuple[str, str]]:
        """[(what it is, text)] of all there is."""
        said = [(m["role"], m["content"]) for m in self.messages]
        said += [("choice", choice) for choice in self.example.choices]
        if self.holds_text:
            said.append(("text", self.example.text))
        return said + (self.answers if self.example.kind != "conversations" else [])

    @cached_property
    def before(self) -> formats.Messages:
        """What stands before the last answer; nothing of a text."""
        one = self.example
        last = max((n for n, m in enumerate(one.messages) if m["role"] == "assistant"), default=len(one.messages))
        return one.messages[:last] if one.kind == "conversations" else one.messages

    @cached_property
    def asked(self) -> str:
        """What the last answer answers, as one text that is equal for equal prompts, white space and case apart."""
        one = self.example
        if self.holds_text:
            return hold_out.folded(one.text)
        return json.dumps([[m["role"], hold_out.folded(m["content"])] for m in self.before] + sorted(one.choices))

    @cached_property
    def likeness(self) -> str:
        """As `asked`, equal for prompts that differ by punctuation too (`hold_out.alike`); "" of under five words."""
        one = self.example
        if self.holds_text:
            said = hold_out.alike(one.text)
            return said if len(said.split()) >= WORDS else ""
        told = [(m["role"], hold_out.alike(m["content"])) for m in self.before]
        enough = sum(len(text.split()) for role, text in told if role == "user") >= WORDS
        return json.dumps([told, sorted(one.choices)]) if enough else ""

    @cached_property
    def user_says(self) -> str:
        """All that the user says, joined; of a text nothing."""
        return "\n".join(m["content"] for m in self.messages if m["role"] == "user")

    @cached_property
    def opening(self) -> str:
        """What its first answer answers: two conversations that open alike have that in common, whatever follows."""
        if self.example.kind != "conversations":
            return self.asked
        said: list[tuple[str, str]] = []
        for message in self.messages:
            if message["role"] in ("system", "user"):
                said.append((message["role"], hold_out.folded(message["content"])))
            if message["role"] == "user":
                break
        return repr(said)

    @property
    def holds_text(self) -> bool:
        """Whether it is a text with a label or without, not something that is asked."""
        return self.example.kind in ("labels", "texts")

    @property
    def said(self) -> str:
        """What a reader knows it by: the first thing the user says, or the text."""
        return next((m["content"] for m in self.messages if m["role"] == "user"), self.example.text)

    def in_turn(self, messages: formats.Messages) -> bool:
        """Whether the speakers of a conversation, or of what stands before a pair's answer, come in their order."""
        turns = "".join(m["role"][0] for m in messages)
        return bool((_BEFORE if self.example.kind == "pairs" else _TURNS).fullmatch(turns))

    @cached_property
    def last_asked(self) -> str:
        """The last thing the user says before the last answer."""
        said = [m["content"] for m in self.messages if m["role"] == "user"]
        return said[-1] if said else ""

    @cached_property
    def answered(self) -> str:
        """The answer, as it is compared: the last one of a conversation."""
        last = self.answers[-1][1] if self.example.kind == "conversations" and self.answers else self.example.answer
        return hold_out.folded(last or "")


class Rows:
    """A file of rows, or a recipe's sources, under inspection; as a target it shows itself.

    name       what it was called
    holds      what its rows are: the kind of most of them
    rows       those that could be read, in order
    refused    [(where, why)] of those that could not
    beside     {name: rows} of the files that lie beside a train file
    files      the files that the rows stand in
    """

    kind = "dataset"

    def __init__(
        self,
        name: str,
        rows: Sequence[Row],
        refused: Sequence[tuple[str, str]] = (),
        beside: dict[str, Rows] | None = None,
        files: Sequence[Path] = (),
    ) -> None:
        if _scores(rows := list(rows)):
            rows = [
                replace(r, example=replace(r.example, kind="texts")) if r.example.kind == "labels" else r for r in rows
            ]
        kinds = Counter(row.example.kind for row in rows)
        self.name, self.files, self.beside = name, {path.resolve() for path in files}, beside or {}
        self.holds: Kind = kinds.most_common(1)[0][0] if kinds else "texts"
        self.rows = [row for row in rows if row.example.kind == self.holds]
        odd = [row for row in rows if row.example.kind != self.holds]
        self.refused = [
            *refused,
            *((row.where, f"holds {row.example.kind} among {self.holds}") for row in odd),
        ]

    def face(self, name: Face) -> Any | None:
        return self if name == "dataset" else None

    @cached_property
    def sides(self) -> dict[str, list[Row]]:
        """{side: rows} of the split: the files beside it, its own column, or what groundup would hold out; else {}."""
        if self.beside:
            return {self.name: self.rows, **{name: other.rows for name, other in self.beside.items()}}
        named = sorted({row.split for row in self.rows if row.split})
        if len(named) > 1:
            return {name: [row for row in self.rows if row.split == name] for name in named}
        if self.holds not in TUNED:
            return {}
        items = [row.example.trained_on() for row in self.rows]
        out = {id(item) for item in hold_out.hold_out(items)[0]}
        both = [("trained on", False), ("held out", True)]
        return {
            name: [row for row, item in zip(self.rows, items, strict=True) if (id(item) in out) == held]
            for name, held in both
        }


def _scores(rows: list[Row]) -> bool:
    """Whether what looks like labels is numbers to be met, some of them fractions: scores, and no classes."""
    labels = [str(row.example.answer).strip() for row in rows if row.example.kind == "labels"]
    return all(map(_NUMBER.fullmatch, labels)) and any(map(_FRACTION.fullmatch, labels))


# ---- opening ----


def open_rows(path: Path | str) -> Rows:
    """The rows of a .json, .jsonl, .csv, .tsv or .parquet file (also .gz, .zst).

    Where it is called train.*, the files test.*, validation.*, dev.* beside it are the other sides of its split.
    Errors: UserError for a file that cannot be read at all, or in which no row fits a layout that is known.
    """
    path = Path(path)
    found = _open(path)
    if path.name.split(".")[0].lower() == "train":
        beside = {p.name: p for p in sorted(path.parent.iterdir()) if p.name.split(".")[0].lower() in SIBLINGS}
        others = {n: _open(p, f"{n} ") for n, p in beside.items() if files.kind(p) in ENDINGS and p.is_file()}
        found.beside = {n: other for n, other in others.items() if other.holds == found.holds}
    return found


def _open(path: Path, prefix: str = "") -> Rows:
    if files.kind(path) not in ENDINGS:
        raise UserError(f'{path}: do not know the ending "{path.suffix}" (known: {" ".join(ENDINGS)}, also .gz .zst)')
    rows, refused = _examples(((f"{prefix}{_unit(path)} {n}", row, why) for n, row, why in _read(path)), None)
    if not rows:
        first = "; ".join(f"{where}: {why}" for where, why in refused[:3])
        said = f"none of its {len(refused):,} rows can be used ({first})" if refused else "no rows in it"
        raise UserError(f"{path}: {said}. Known are {KNOWN}")
    return Rows(path.name, rows, refused, files=[path])


def _examples(
    given: Iterator[tuple[str, dict[str, Any] | None, str]], source: ChatSource | None
) -> tuple[list[Row], list[tuple[str, str]]]:
    rows, refused = [], []
    for where, row, why in given:
        try:
            if row is None:
                raise ValueError(why)
            made = read(row) if source is None else _as_trained_on(row, source)
            split = str(row.get("split") or "")
            rows += [Row(where, example, split) for example in made]
            if not made:
                refused.append((where, "there is no answer in it"))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            refused.append((where, f"no field {error}" if isinstance(error, KeyError) else str(error)))
    return rows, refused


def rows_of(sources: Sequence[ChatSource], base: Path) -> Rows | None:
    """The rows of a recipe's sft, dpo or grpo sources as these stages read them; None where none is a local file.

    A row that the stage would refuse is refused here. Errors: UserError for a path that is not there.
    """
    rows: list[Row] = []
    refused: list[tuple[str, str]] = []
    read: list[Path] = []
    local = [source for source in sources if source.path is not None]
    for source in local:
        found, wrong = files.find(str(source.path), base, files.ROWS)
        problems("sources", wrong)
        several = len(found) > 1 or len(local) > 1
        placed = (
            (f"{name} {_unit(path)} {n}" if several else f"{_unit(path)} {n}", row, why)
            for name, path in found
            for n, row, why in _read(path)
        )
        limited = (one for one, _ in zip(placed, range(source.max_documents or 10**12), strict=False))
        more, bad = _examples(limited, source)
        read += [path for _, path in found]
        rows, refused = [*rows, *more], [*refused, *bad]
    names = ", ".join(str(source.path) for source in local)
    return Rows(names, rows, refused, files=read) if rows or refused else None


def _as_trained_on(row: dict[str, Any], source: ChatSource) -> list[Example]:
    """One row, by the reader of the stage that would train on it."""
    if isinstance(source, SftSource):
        own = any(name in row for name in ("messages", "text")) or isinstance(row.get("prompt"), list)
        return [Example("conversations", formats.to_messages(row, source.format), roles=own)]
    if "chosen" in row:
        pair = formats.to_pair(row)
        return [Example("pairs", pair.prompt, pair.chosen, pair.rejected, roles=isinstance(row.get("prompt"), list))]
    problem = formats.to_problem(row)
    return [Example("problems", problem.prompt, problem.answer)]


# ---- files ----


def _unit(path: Path) -> str:
    """What the numbers of `_read` count."""
    return "row" if files.kind(path) in (".json", ".parquet") else "line"


def _read(path: Path) -> Iterator[Read]:
    """Every row of a file with its number: of the row, or in files of lines of the line it begins on."""
    kind = files.kind(path)
    if kind == ".jsonl":
        for number, line in enumerate(files.lines(path), start=1):
            if line.strip():
                yield _parsed(number, line)
    elif kind == ".json":
        yield from _listed(path)
    elif kind == ".parquet":
        yield from ((number, row, "") for number, row in files.rows(path))
    else:
        yield from _table(path, "\t" if kind == ".tsv" else ",")


def _parsed(number: int, line: str) -> Read:
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        return number, None, f"not valid JSON ({error})"
    return (number, row, "") if isinstance(row, dict) else (number, None, f"a {type(row).__name__}, not an object")


def _listed(path: Path) -> Iterator[Read]:
    try:
        content = json.loads("".join(files.characters(path)))
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(content, list):
        raise UserError(f"{path}: a list of JSON objects is needed at the top, this is a {type(content).__name__}")
    for number, row in enumerate(content, start=1):
        yield (number, row, "") if isinstance(row, dict) else (number, None, f"a {type(row).__name__}, not an object")


def _table(path: Path, delimiter: str) -> Iterator[Read]:
    """Rows of a .csv or .tsv file, whether its first line has names or is a row like the others."""
    records = _records(path, delimiter)
    if not records:
        return
    width = Counter(len(cells) for _, cells in records).most_common(1)[0][0]
    header = [cell.strip() for cell in records[0][1]]
    if _names(header, records[1:]):
        records = records[1:]
        names: list[str] | None = header
    else:
        names = None
    fitting = [cells for _, cells in records if len(cells) == width]
    label = None if names else _label_column(fitting, width)
    for number, cells in records:
        if len(cells) != width:
            yield number, None, f"{len(cells)} fields, where the others have {width}"
        elif names is not None:
            yield number, dict(zip(names, cells, strict=True)), ""
        elif label is not None:
            text = next(cells[n] for n in range(width) if n != label and any(c[n].strip() for c in fitting))
            yield number, {"text": text, "label": cells[label]}, ""
        elif width > 3 and cells[-1].strip() in "ABCDEFGHIJ":
            made = multiple_choice(cells[0], cells[1:-1], cells[-1].strip())
            yield number, {"question": cells[0], "choices": list(made.choices), "answer": cells[-1].strip()}, ""
        else:
            yield number, None, f"no layout has the fields {', '.join(header[:8])}, and no column holds labels"


def _records(path: Path, delimiter: str) -> list[tuple[int, list[str]]]:
    """[(line it begins on, cells)]. In a .tsv a record is a line: where quotes would join lines, they are no quotes."""
    csv.field_size_limit(1 << 30)
    for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_NONE):
        reader = csv.reader(files.lines(path), delimiter=delimiter, quoting=quoting)
        out, before, joined = [], 0, False
        try:
            for cells in reader:
                joined = joined or reader.line_num > before + 1
                if any(cell.strip() for cell in cells):
                    out.append((before + 1, cells))
                before = reader.line_num
        except csv.Error as error:
            raise UserError(f"{path}:{reader.line_num}: not valid CSV ({error})") from error
        if delimiter == "," or not joined:
            break
    return out


def _names(header: Sequence[str], records: Sequence[tuple[int, list[str]]]) -> bool:
    """Whether the first line names the fields: a layout knows them."""
    example = next((cells for _, cells in records if len(cells) == len(header)), None)
    if example is None or len(set(header)) < len(header):
        return False
    try:
        return bool(read(dict(zip(header, example, strict=True))))
    except (ValueError, TypeError, KeyError):
        return False


def _label_column(rows: Sequence[list[str]], width: int) -> int | None:
    """Of two columns that hold anything, the one with the fewer different values, where they come again and again."""
    used = [n for n in range(width) if any(cells[n].strip() for cells in rows)]
    if len(used) != 2:
        return None
    different, column = min((len({cells[n] for cells in rows}), n) for n in used)
    return column if different <= max(2, len(rows) // 4) else None
