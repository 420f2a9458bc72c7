"""What can go wrong, said in one message: what, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend (a path, a key, a full disk). The command line prints it and exits 2."""


class CheckFailed(Exception):
    """A check or a gate did not pass. The command line prints it and exits 1."""


class Interrupted(Exception):
    """Ctrl-C or SIGTERM, after the state was saved. The command line says how to go on and exits 130."""


def problems(where: str, found: list[str]) -> None:
    """Raise one UserError that lists everything in `found`; do nothing when it is empty."""
    if not found:
        return
    if len(found) == 1:
        raise UserError(f"{where}: {found[0]}")
    lines = "\n".join(f"  - {problem}" for problem in found)
    raise UserError(f"{where}: {len(found)} problems\n{lines}")


def missing_extra(extra: str, package: str) -> UserError:
    """The error for an optional package that is not installed; names the extra that brings it."""
    return UserError(f'this needs the package "{package}": pip install "groundup[{extra}]"')


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """' (did you mean "x"?)' for the nearest choice, or the list of choices when nothing is near."""
    choices = sorted(choices)
    near = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    if near:
        return f' (did you mean "{near[0]}"?)'
    return f" (one of: {', '.join(choices)})" if choices else ""
