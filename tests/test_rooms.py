"""The house keeps its plan: a room imports only from rooms below it, and stays small enough to read."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "groundup"


def test_rooms_import_only_from_below() -> None:
    """Bug: a room reaches up or sideways, and can no longer be read, tested or replaced on its own."""
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    done = subprocess.run(
        command, cwd=SOURCE.parents[1], capture_output=True, text=True, timeout=120, check=False, env=os.environ
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr


def test_every_room_is_in_the_contract() -> None:
    """Bug: a new room that no contract holds may import anything."""
    contract = (SOURCE.parents[1] / "pyproject.toml").read_text()
    layers = contract[contract.index("layers = [") : contract.index("]", contract.index("layers = ["))]
    rooms = [path.parent.name for path in SOURCE.glob("*/__init__.py")]
    assert [room for room in rooms if f"groundup.{room}" not in layers] == []


def test_files_stay_small() -> None:
    """Bug: a file grows until it holds two rooms. 400 lines, and a fifth more for one that is all of a kind."""
    long = {path.name: n for path in SOURCE.rglob("*.py") if (n := len(path.read_text().splitlines())) > 480}
    assert long == {}
