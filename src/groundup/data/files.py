"""Finding files of text and reading them, compressed or not; what is broken is named by file and place."""

from __future__ import annotations

import codecs
import csv
import difflib
import glob
import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zstandard

from groundup.errors import UserError
from groundup.errors import problems as raise_problems

COMPRESSED = (".gz", ".zst")
TEXT = (".txt", ".md", ".jsonl", ".parquet")
ROWS = (".jsonl", ".json", ".parquet", ".csv")
_CHUNK = 1 << 20
_MAX_BROKEN = 10
_SURROGATE = re.compile("[\ud800-\udfff]")
_VARIABLE = re.compile(r"\$\{GROUNDUP_DATA\}|\$GROUNDUP_DATA\b")


def data_root() -> str:
    """Folder of real data: $GROUNDUP_DATA, or ../shared/data from where the command runs."""
    return os.environ.get("GROUNDUP_DATA") or "../shared/data"


def kind(path: Path) -> str:
    """Ending that decides how a file is read: ".txt" for both a.txt and a.txt.gz; "" without an ending."""
    name = path.name.lower()
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    return Path(name).suffix


def find(pattern: str, base: Path, endings: tuple[str, ...]) -> tuple[list[tuple[str, Path]], list[str]]:
    """Files behind a path, a folder (searched below) or a glob, sorted: [(name, path)], and what is wrong.

    $GROUNDUP_DATA, other variables and ~ are filled in. A relative path is tried from the current folder, then
    from `base` (the recipe's folder). Names are relative to the folder that holds what was asked for, so that
    they are the same on every machine. In folders, hidden files and other endings are passed over.
    """
    full = os.path.expanduser(os.path.expandvars(_VARIABLE.sub(lambda _: data_root(), pattern)))
    tries = list(dict.fromkeys(Path(os.path.abspath(folder / full)) for folder in (Path.cwd(), base)))
    for path in tries:
        if path.is_file():
            if kind(path) in endings:
                return [(path.name, path)], []
            return [], [f'{path}: do not know the ending "{path.suffix}" (known: {_known(endings)})']
        if path.is_dir():
            hits = sorted(p for p in path.rglob("*") if p.is_file() and not _hidden(p.relative_to(path)))
            found = [(p.relative_to(path.parent).as_posix(), p) for p in hits if kind(p) in endings]
            return found, [] if found else [f"{path}: no {_known(endings)} file in this folder"]
        if glob.has_magic(str(path)):
            root = Path(*path.parts[: next(i for i, part in enumerate(path.parts) if glob.has_magic(part))])
            hits = sorted(Path(p) for p in glob.glob(str(path), recursive=True))
            found = [(p.relative_to(root).as_posix(), p) for p in hits if p.is_file() and kind(p) in endings]
            if found:
                return found, []
    if glob.has_magic(full):
        return [], [f"{pattern}: the pattern matches no {_known(endings)} file (looked from {_places(tries)})"]
    return [], [_missing(pattern, tries)]


def _hidden(relative: Path) -> bool:
    return any(part.startswith(".") for part in relative.parts)


def _known(endings: tuple[str, ...]) -> str:
    return " ".join(endings) + ", also .gz .zst"


def _places(tries: list[Path]) -> str:
    return " and ".join(dict.fromkeys(str(p.parent) for p in tries))


def _missing(pattern: str, tries: list[Path]) -> str:
    """'not found' with the nearest name that exists, at the level where the path leaves the disk."""
    hint = ""
    for path in tries:
        parent = path.parent
        wanted = path.name
        while not parent.is_dir() and parent != parent.parent:
            parent, wanted = parent.parent, parent.name
        try:
            near = difflib.get_close_matches(wanted, os.listdir(parent), n=1, cutoff=0.6)
        except OSError:
            near = []
        if near:
            hint = f' (did you mean "{parent / near[0]}"?)'
            break
    if not hint and _VARIABLE.search(pattern) and not Path(data_root()).is_dir():
        hint = f" (GROUNDUP_DATA is {data_root()}, which is no folder: point it at your data)"
    return f"{pattern}: no such file or folder (looked in {_places(tries)}){hint}"


# ---- bytes, characters, lines ----


def chunks(path: Path) -> Iterator[bytes]:
    """The file's content, decompressed, piece by piece. Errors: UserError when it is cut short or not readable."""
    try:
        with open(path, "rb") as file:
            if path.name.lower().endswith(".zst"):
                yield from _unzstd(file)
            elif path.name.lower().endswith(".gz"):
                with gzip.open(file) as unzipped:
                    while chunk := unzipped.read(_CHUNK):
                        yield chunk
            else:
                while chunk := file.read(_CHUNK):
                    yield chunk
    except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        raise UserError(
            f"{path}: not a whole compressed file ({error}); it was perhaps cut short: fetch or make it again"
        ) from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


def _unzstd(file: Any) -> Iterator[bytes]:
    # zstandard's own stream_reader ends quietly where a frame is cut short, so the frames are walked here.
    decoder = zstandard.ZstdDecompressor().decompressobj()
    fresh = True
    while chunk := file.read(_CHUNK):
        while chunk:
            fresh = False
            if out := decoder.decompress(chunk):
                yield out
            chunk = b""
            if decoder.eof:
                chunk, fresh = decoder.unused_data, True
                decoder = zstandard.ZstdDecompressor().decompressobj()
    if not fresh:
        raise EOFError("the last frame does not end")


def characters(path: Path) -> Iterator[str]:
    """The text, piece by piece; a leading byte order mark is dropped. Errors: UserError at invalid UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    done = 0
    for chunk in chunks(path):
        held = len(decoder.getstate()[0])
        try:
            yield decoder.decode(chunk)
        except UnicodeDecodeError as error:
            raise _not_utf8(path, done - held + error.start, error) from error
        done += len(chunk)
    try:
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise _not_utf8(path, done - len(error.object), error) from error


def _not_utf8(path: Path, offset: int, error: UnicodeDecodeError) -> UserError:
    byte = error.object[error.start]
    where = " of the decompressed text" if path.name.lower().endswith(COMPRESSED) else ""
    return UserError(
        f"{path}: not valid UTF-8 at byte {offset:,}{where} (0x{byte:02x}: {error.reason}). Convert the file, for "
        f"example: iconv -f latin1 -t utf-8 {path.name}, or remove it from the sources"
    )


def lines(path: Path) -> Iterator[str]:
    """Lines with their ends (only \\n ends a line: JSON text may hold U+2028 and its like)."""
    rest: list[str] = []
    for piece in characters(path):
        head, newline, tail = piece.rpartition("\n")
        if newline:
            yield from io.StringIO("".join([*rest, head, newline]), newline="\n")
            rest = []
        rest.append(tail)
    if last := "".join(rest):
        yield last


# ---- rows ----


def rows(path: Path, columns: list[str] | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line or row number from 1, row) of a .jsonl, .json (a list), .parquet or .csv file.

    columns: read these alone where the layout allows it (.parquet). Errors: one UserError that lists up to 10
    broken lines by number.
    """
    if kind(path) == ".parquet":
        return _parquet(path, columns)
    return {".jsonl": _jsonl, ".json": _json, ".csv": _csv}[kind(path)](path)


def _jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    broken: list[str] = []
    for number, line in enumerate(lines(path), start=1):
        if not line.strip():
            continue
        row, wrong = _parse(line)
        if wrong:
            broken.append(f"{path}:{number}: {wrong}")
            if len(broken) == _MAX_BROKEN:
                broken.append(f"... and perhaps more: stopped looking after {_MAX_BROKEN}")
                break
        elif not broken:  # after the first broken line the rest is read for its faults alone
            yield number, row
    raise_problems("broken lines", broken)


def _parse(line: str) -> tuple[dict[str, Any], str]:
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        return {}, f"not valid JSON ({error})"
    if not isinstance(row, dict):
        return {}, f"a JSON object is needed, this is a {type(row).__name__}"
    if "\\ud" in line.lower() and _SURROGATE.search(json.dumps(row, ensure_ascii=False)):
        return {}, "holds half of a UTF-16 surrogate pair (\\ud8xx), which is no character"
    return row, ""


def _json(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        content = json.loads("".join(characters(path)))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not valid JSON ({error.msg})") from error
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise UserError(f"{path}: a list of JSON objects is needed at the top")
    yield from enumerate(content, start=1)


def _csv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(1 << 30)
    reader = csv.DictReader(lines(path), strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise UserError(f"{path}:{reader.line_num}: not as many fields as the first line has names")
            yield reader.line_num, row
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: not valid CSV ({error})") from error


def _parquet(path: Path, columns: list[str] | None) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    compressed = path.name.lower().endswith(COMPRESSED)
    try:
        with pyarrow.parquet.ParquetFile(io.BytesIO(b"".join(chunks(path))) if compressed else path) as file:
            known = [c for c in columns if c in file.schema_arrow.names] if columns else None
            if columns and not known:  # let the caller say which fields there are
                if file.metadata.num_rows:
                    yield 1, dict.fromkeys(file.schema_arrow.names)
                return
            number = 0
            for batch in file.iter_batches(batch_size=1024, columns=known):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except pyarrow.ArrowException as error:
        raise UserError(f"{path}: not a whole Parquet file ({error})") from error
