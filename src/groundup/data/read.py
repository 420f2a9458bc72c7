"""From sources to documents, one at a time: files, folders, globs, Hugging Face datasets, builtin corpora."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from groundup.data import builtin, files
from groundup.errors import UserError, missing_extra
from groundup.errors import problems as raise_problems
from groundup.recipe.schema import Rows, Source

LONG_TEXT = 100_000  # characters; a longer .txt or .md file is split, see `pieces`
PIECE = 20_000
_BLANK_LINES = re.compile(r"\n\s*\n")


@dataclass(frozen=True)
class Document:
    """One text. `id` is the same on every machine; `source` is what the recipe called it."""

    text: str
    id: str
    source: str
    meta: dict[str, Any] = field(default_factory=dict)


def read_sources(
    sources: list[Source],
    seed: int,
    base: Path | str = ".",
    on_warning: Callable[[str], None] | None = None,
    counts: Counter[str] | None = None,
) -> Iterator[Document]:
    """Documents of all sources, in order. Texts of white space alone are skipped, and told to `on_warning`.

    seed: for generated corpora. base: the recipe's folder, where relative paths are looked for second.
    counts: when given, counts["empty"] grows by the texts skipped.
    Errors: UserError at once (not at the first document) listing every path that is missing; while reading,
    for broken content, naming the file and the line or byte.
    """
    wrong: list[str] = []
    readers: list[tuple[Source, Iterator[Document]]] = []
    for source in sources:
        if source.path is not None:
            found, problems = files.find(source.path, Path(base), files.TEXT)
            wrong += problems
            readers.append((source, _from_files(found, source)))
        elif source.builtin is not None:
            readers.append((source, _from_builtin(source, seed)))
        else:
            readers.append((source, _from_dataset(source, Path(base))))
    raise_problems("data sources", wrong)
    return _limited(readers, on_warning, counts if counts is not None else Counter())


def _limited(
    readers: list[tuple[Source, Iterator[Document]]],
    on_warning: Callable[[str], None] | None,
    counts: Counter[str],
) -> Iterator[Document]:
    for source, documents in readers:
        empty = given = 0
        for document in documents:
            if not document.text.strip():
                empty += 1
                counts["empty"] += 1
                continue
            yield document
            given += 1
            if given == source.max_documents:
                break
        if empty and on_warning:
            on_warning(f"{name_of(source)}: {empty:,} empty documents skipped")


def name_of(source: Rows) -> str:
    """What the recipe calls a source: its path, dataset id, or builtin:name."""
    return source.path or source.dataset or f"builtin:{source.builtin}"


def _from_builtin(source: Source, seed: int) -> Iterator[Document]:
    for name, text, meta in builtin.documents(str(source.builtin), seed, source.max_documents):
        yield Document(text, name, name_of(source), meta)


# ---- files ----


def _from_files(found: list[tuple[str, Path]], source: Source) -> Iterator[Document]:
    for name, path in found:
        if files.kind(path) in (".txt", ".md"):
            yield from _from_text(name, path, source)
        else:
            for number, row in files.rows(path, [source.text_field]):
                text = _text_of(row, source, partial("{}:{}".format, path, number))
                yield Document(text, f"{name}:{number}", name_of(source))


def _from_text(name: str, path: Path, source: Source) -> Iterator[Document]:
    parts = pieces(files.characters(path))
    first = next(parts, "")
    second = next(parts, None)
    if second is None:
        yield Document(first, name, name_of(source))
        return
    yield Document(first, f"{name}#1", name_of(source))
    yield Document(second, f"{name}#2", name_of(source))
    for number, text in enumerate(parts, start=3):
        yield Document(text, f"{name}#{number}", name_of(source))


def pieces(stream: Iterator[str]) -> Iterator[str]:
    """A text of up to 100,000 characters whole; a longer one in pieces that, joined, are the very text.

    A book as one document could not be split into train and validation. Cuts stand behind blank lines, about
    20,000 characters apart; where there is no blank line, behind a line's end, a space, or anywhere. They
    depend on the text alone, not on how the stream hands it over (compressed or not).
    """
    buffer = ""
    long = ended = False
    while True:
        while len(buffer) <= LONG_TEXT and not ended:
            chunk = next(stream, None)
            ended = chunk is None
            buffer += chunk or ""
        long = long or len(buffer) > LONG_TEXT
        cut = _cut(buffer) if long else 0
        yield buffer[: cut or None]
        buffer = buffer[cut:] if cut else ""
        if not buffer and ended:
            return


def _cut(text: str) -> int:
    """Where to cut the front piece off; 0 = do not. Looks at the first LONG_TEXT characters alone."""
    blank = _BLANK_LINES.search(text, PIECE, LONG_TEXT)
    if blank:
        return blank.end()
    if len(text) <= LONG_TEXT:
        return 0
    return text.rfind("\n", PIECE, LONG_TEXT) + 1 or text.rfind(" ", PIECE, LONG_TEXT) + 1 or LONG_TEXT


def _text_of(row: dict[str, Any], source: Source, place: Callable[[], str]) -> str:
    """The row's text; null counts as empty."""
    if source.text_field not in row:
        raise UserError(
            f'{place()}: no field "{source.text_field}" (text_field); the fields are: {", ".join(map(str, row))}'
        )
    text = row[source.text_field]
    if text is not None and not isinstance(text, str):
        raise UserError(
            f'{place()}: the field "{source.text_field}" is a {type(text).__name__}, text is needed; '
            f"the fields are: {', '.join(map(str, row))}"
        )
    return text or ""


# ---- Hugging Face datasets ----


def _from_dataset(source: Source, base: Path) -> Iterator[Document]:
    for number, row in dataset_rows(source, base):
        text = _text_of(row, source, partial("{}[{}] row {}".format, source.dataset, source.split, number))
        yield Document(text, f"{source.dataset}/{source.split}:{number}", name_of(source))


def dataset_rows(source: Rows, base: Path | str = ".") -> Iterator[tuple[int, dict[str, Any]]]:
    """(row number from 1, row) of a Hugging Face dataset: an id on the hub, or a local folder of data files.

    Rows are streamed: nothing is copied into a cache, and max_documents saves the rest of the download.
    """
    try:
        import datasets
    except ImportError:
        raise missing_extra("hf", "datasets") from None
    name = str(source.dataset)
    local = next((p for p in (Path.cwd() / name, Path(base) / name) if p.is_dir()), None)
    try:
        if local and ((local / "state.json").exists() or (local / "dataset_dict.json").exists()):
            saved = datasets.load_from_disk(str(local))  # what save_to_disk wrote
            data: Any = saved[source.split] if isinstance(saved, datasets.DatasetDict) else saved
        else:
            data = datasets.load_dataset(str(local or name), source.config, split=source.split, streaming=True)
        for number, row in enumerate(data, start=1):
            yield number, dict(row)
    except (UserError, GeneratorExit):
        raise
    except Exception as error:  # the library and the network below it raise dozens of kinds
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f'dataset "{name}" (config {source.config}, split {source.split}): {said}. Check the id, config and '
            "split; an id needs the network, a local folder of .jsonl or .parquet files does not"
        ) from error


# ---- rows for post-training ----


def read_rows(source: Rows, base: Path | str = ".") -> Iterator[dict[str, Any]]:
    """Rows of a .jsonl, .json (list), .parquet or .csv file, folder or glob, or of a dataset, as they are."""
    return (row for _, row in placed_rows(source, base))


def placed_rows(source: Rows, base: Path | str = ".") -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, row): `read_rows` with where each row stands ("file.jsonl:12"), for messages about it."""
    if source.builtin is not None:
        raise UserError(f"builtin:{source.builtin} is made, not read: it has no rows on disk")
    if source.dataset is not None:
        placed = ((f"{source.dataset}:{n}", row) for n, row in dataset_rows(source, base))
    else:
        found, wrong = files.find(str(source.path), Path(base), files.ROWS)
        raise_problems("sources", wrong)
        placed = ((f"{path}:{n}", row) for _, path in found for n, row in files.rows(path))
    for number, item in enumerate(placed, start=1):
        yield item
        if number == source.max_documents:
            return
