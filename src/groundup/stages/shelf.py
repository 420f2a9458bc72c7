"""What other settings made is set aside, not overwritten: changing a recipe back costs nothing.

A stage's folder belongs to one key, finished or not; the file `.key` in it says which. When the folder is wanted for
another key, it moves to `.previous/done/<stage>` or, begun but not finished, to `.previous/started/<stage>`. One of
each is kept, and taken back when its key is asked for again.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Literal

from groundup.record.files import atomic_write
from groundup.record.rundir import RunDir
from groundup.stages.base import MODEL_STAGES

OWNER = ".key"
PREVIOUS = ".previous"


class Shelf:
    """The set-aside results of one run."""

    def __init__(self, run: RunDir) -> None:
        self.run = run

    def make_room(self, name: str, key: str) -> Literal["done", "started", "aside", ""]:
        """Let the stage's folder be `key`'s own, or absent.

        Returns what was done: "done" or "started" = an earlier result of this key, finished or not, is back in place;
        "aside" = another key's was set aside; "" = nothing was in the way, and nothing fitting on the shelf.
        Stages that are cheap to make again are not kept.
        """
        folder = self.run.stage(name)
        if self._owner(folder) in (key, None) and folder.exists():
            return ""
        if name not in MODEL_STAGES and not name.startswith("evaluate-"):
            return ""
        waiting = self.run.path / f".{name}.back"  # a death between the renames below leaves it here
        kind = self._find(name, key)
        if kind and self._owner(waiting) != key:
            shutil.rmtree(waiting, ignore_errors=True)
            os.replace(self._place(kind, name), waiting)
        aside = folder.exists()
        if aside:
            self._set_aside(name)
        if self._owner(waiting) == key:
            os.replace(waiting, folder)
            return "started" if self.run.record(name) is None else "done"
        return "aside" if aside else ""

    def claim(self, name: str, key: str) -> None:
        """Write whose the folder is, before the stage begins to fill it."""
        atomic_write(self.run.stage(name) / OWNER, key)

    def _find(self, name: str, key: str) -> Literal["done", "started"] | None:
        if self._owner(self._place("done", name)) == key and not RunDir(self._place("done", "")).problems(name):
            return "done"
        return "started" if self._owner(self._place("started", name)) == key else None

    def _set_aside(self, name: str) -> None:
        folder, record = self.run.stage(name), self.run.record(name)
        done = record is not None and record.key == self._owner(folder)
        if done:
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # the finished model is enough
        elif not (folder / "checkpoints").is_dir():
            shutil.rmtree(folder)  # nothing in it to go on from
            return
        place = self._place("done" if done else "started", name)
        shutil.rmtree(place, ignore_errors=True)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(folder, place)

    def _place(self, kind: str, name: str) -> Path:
        return self.run.path / PREVIOUS / kind / name

    def _owner(self, folder: Path) -> str | None:
        """Key that a stage's folder belongs to; None when nothing tells."""
        if (folder / OWNER).exists():
            return (folder / OWNER).read_text()
        record = RunDir(folder.parent).record(folder.name)
        return record.key if record else None
