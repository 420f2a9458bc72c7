"""Files that are whole or not there: written beside their place, synced, then renamed into it.

A process can die between any two lines here (kill -9, power, full disk). What stood at `path` before
stays readable until the very rename that replaces it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from groundup.errors import UserError

_FULL = {errno.ENOSPC, errno.EDQUOT}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_LOW = 1 << 20  # fewer free bytes than this: a writer that died with an error of its own met a full disk


def sync_folder(folder: Path) -> None:
    """fsync a folder, so that a rename inside it outlives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def free_bytes(path: Path) -> int:
    """Bytes free on the disk that holds `path` (or its nearest existing parent)."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk or a forbidden write into a UserError that names `path` and the way out.

    Some writers hide the errno (safetensors and torch raise errors of their own), so the message and the
    free space are looked at too.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        hidden = not isinstance(error, OSError) and "no space left" in str(error).lower()
        starved = isinstance(error, RuntimeError) and free_bytes(path) < _LOW
        if number in _FULL or hidden or starved:
            free = free_bytes(path)
            raise UserError(
                f"the disk is full: could not write {path} ({free:,} bytes free). Nothing that was saved is "
                "lost: free some space, then run the same command again"
            ) from error
        if number in _FORBIDDEN:
            raise UserError(
                f"may not write {path} ({error.strerror if isinstance(error, OSError) else error}): "
                "choose another folder or change its permissions, then run the same command again"
            ) from error
        raise


def make_folder(path: Path) -> None:
    """mkdir with its parents. Errors: UserError where no folder can be; `disk_errors` knows full and forbidden ones."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in _FULL | _FORBIDDEN:
            raise
        raise UserError(f"cannot make the folder {path} ({error.strerror}): choose another place") from error


@contextmanager
def atomic_file(path: Path | str) -> Iterator[IO[bytes]]:
    """A binary file to stream into (seekable); it takes its place only when the block ends well."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    with disk_errors(path):
        make_folder(path.parent)
        try:
            with open(temporary, "w+b") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:  # Ctrl-C too: leave no litter behind
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def atomic_write(path: Path | str, data: bytes | str) -> None:
    """Write `data` (text as UTF-8) to `path`: readers see the old content or the new, never a part."""
    raw = data.encode() if isinstance(data, str) else data
    with atomic_file(path) as file:
        file.write(raw)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def clean_stale(path: Path | str) -> None:
    """Remove what writers of `path` left behind when they were killed; put back a folder moved aside."""
    path = Path(path)
    if not path.parent.is_dir():
        return
    for aside in sorted(path.parent.glob(f".{path.name}.old-*")):
        if not path.exists():
            os.replace(aside, path)  # killed between the two renames of atomic_folder
        else:
            _remove(aside)
    for left in path.parent.glob(f".{path.name}.tmp-*"):
        pid = left.name.rpartition("-")[2]
        if not pid.isdigit() or int(pid) == os.getpid() or not _alive(int(pid)):
            _remove(left)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path | str) -> Iterator[Path]:
    """A fresh folder to write files into; all of it appears at `path` when the block ends well, or nothing.

    An older folder at `path` is replaced. Replacing takes two renames (a folder cannot be renamed over a
    full one); a death between them is mended by the next writer, or by `clean_stale`.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    with disk_errors(path):
        make_folder(path.parent)
        clean_stale(path)
        temporary.mkdir()
        try:
            yield temporary
            for folder, _, names in os.walk(temporary):
                for name in names:
                    with open(Path(folder, name), "rb") as file:
                        os.fsync(file.fileno())
                sync_folder(Path(folder))
            aside = path.with_name(f".{path.name}.old-{os.getpid()}")
            if path.exists():
                os.replace(path, aside)
            os.replace(temporary, path)
            sync_folder(path.parent)
            _remove(aside)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def sha256_file(path: Path | str) -> str:
    """SHA-256 of a file's bytes, hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def plain(value: Any) -> Any:
    """`value` in JSON's own types: scalars of numpy and torch become numbers, NaN and infinities None."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(v) for v in (sorted(value) if isinstance(value, set | frozenset) else value)]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, bool | int | str):
        return value
    if hasattr(value, "tolist"):  # numpy arrays and scalars, torch tensors
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    raise TypeError(f"{type(value).__name__} has no place in JSON")


def write_json(path: Path | str, value: Any) -> None:
    """Write `value` as indented JSON, atomically; NaN and infinities become null (JSON has no NaN)."""
    atomic_write(path, json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path | str) -> Any:
    """The content of a JSON file; UserError when it is missing or broken."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: not valid JSON ({error}); delete the folder it is in and run the same command again"
        ) from error
