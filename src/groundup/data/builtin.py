"""Corpora on every machine: the generated town, and the text of the running Python's standard library."""

from __future__ import annotations

import sys
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from groundup.errors import UserError

TOWN_DOCUMENTS = 100_000  # the town could go on; so many when the recipe does not say
_SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idlelib", "__pycache__"}
_TOPICS = "pydoc_data/topics.py"

Named = tuple[str, str, dict[str, Any]]  # id, text, meta


def documents(name: str, seed: int, max_documents: int | None) -> Iterator[Named]:
    """(id, text, meta) of a builtin corpus; `seed` and `max_documents` decide what is generated."""
    if name == "python":
        return python_documents()
    return town_documents(seed, max_documents or TOWN_DOCUMENTS)


def town_documents(seed: int, n: int) -> Iterator[Named]:
    from groundup.data import town

    for name, kind, text in town.documents(seed, n):
        yield f"town/{name}", text, {"kind": kind}


def python_documents() -> Iterator[Named]:
    """The standard library: one document a module, then one a topic of Python's help(), sorted by path.

    Tests and IDLE are left out. The text differs from one Python version to the next; ids carry the version.
    """
    root = Path(sysconfig.get_path("stdlib"))
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    paths = sorted(p for p in root.rglob("*.py") if not _SKIPPED & set(p.relative_to(root).parts))
    if not paths:
        raise UserError(
            f"builtin:python: no .py files below {root} (this Python has its library in another form); "
            "use another source, or a Python from python.org or your system"
        )
    for path in paths:
        relative = path.relative_to(root).as_posix()
        if relative == _TOPICS:  # its text is the documentation itself, given below without the quoting
            continue
        try:
            with tokenize.open(path) as file:  # heeds the module's coding line
                text = file.read()
        except (SyntaxError, UnicodeDecodeError, OSError):  # deliberately odd files of lib2to3 and the like
            continue
        yield f"{version}/{relative}", text, {"path": relative}
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions cut it out
        return
    for topic in sorted(topics):
        yield f"{version}/help/{topic}", topics[topic], {"path": _TOPICS, "topic": topic}
