"""From what somebody types to a target: somebody's own module, a Hugging Face folder, a file of rows.

Recipes and runs are opened by the command, which knows where they lie.
"""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

from groundup.errors import UserError
from groundup.verify.adapter import Adapter
from groundup.verify.target import Target

ROWS = (".json", ".jsonl", ".csv", ".parquet", ".tsv")
_FACTORY = re.compile(r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")


def open_target(given: str) -> Target | None:
    """The target that `given` names, or None where it is neither a factory, a checkpoint nor a file of rows.

    Errors: UserError for a factory that cannot be imported or gives something else, a folder that cannot be read.
    """
    path = Path(given)
    if not path.name:
        raise UserError(
            f'verify: "{given}" names nothing to look at; give a recipe, a run, a folder, a file or a factory'
        )
    if _FACTORY.match(given) and not path.exists():
        return from_factory(given)
    from groundup.verify import folders

    if folders.is_folder(path) or (path.is_file() and ".model" in path.name):
        from groundup.verify.outside import open_checkpoint

        return open_checkpoint(path)
    if path.suffix in ROWS or path.with_suffix("").suffix in ROWS:
        if not path.is_file():
            raise UserError(f"{path}: there is no such file")
        from groundup.verify.rows import open_rows

        return open_rows(path)
    return None


def open_or_recipe(given: str) -> Target:
    """The same, and a recipe's file or name. Errors: UserError for what is none of them."""
    found = open_target(given)
    if found is not None:
        return found
    from groundup.recipe.load import load_recipe
    from groundup.verify.subject import Subject

    return Subject(load_recipe(given))


def from_factory(given: str) -> Target:
    """What `package.module:factory` gives: a Target, an Adapter, a module, or (module, tokenizer)."""
    module_name, _, name = given.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as `python -m` does: people's own files lie where they stand
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise UserError(
            f"{given}: {module_name} cannot be imported ({type(error).__name__}: {error}); it is looked for here "
            f"({Path.cwd()}) and among the installed packages"
        ) from error
    if not hasattr(module, name):
        raise UserError(f'{given}: {module_name} has no "{name}"')
    made = getattr(module, name)
    try:
        made = made() if callable(made) and not hasattr(made, "parameters") else made
    except (Exception, SystemExit) as error:
        raise UserError(f"{given}: {name}() broke off ({type(error).__name__}: {error})") from error
    return as_target(made, given)


def as_target(made: Any, name: str = "the target") -> Target:
    """Whatever somebody has, as something the checks can look at. Errors: UserError for what is neither."""
    from torch import nn

    if callable(getattr(made, "face", None)):
        return made
    module, tokenizer = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if isinstance(module, Adapter):
        return module
    if isinstance(module, nn.Module):
        from groundup.verify.hf import of_transformers

        if hasattr(module, "config") and hasattr(module, "generation_config"):
            return of_transformers(module, tokenizer)
        return Adapter(module, logits=lambda tokens: _logits(module(tokens)), tokenizer=tokenizer)
    if callable(getattr(made, "encode", None)) and callable(getattr(made, "decode", None)):
        from groundup.verify.outside import OutsideTokenizer

        return OutsideTokenizer.of(made)
    raise UserError(
        f"{name} is a {type(module).__name__}; give a groundup.verify.Adapter, a torch.nn.Module that maps tokens "
        "(B, T) to logits (B, T, V), or a pair of it and its tokenizer (docs/verify.md)"
    )


def _logits(given: Any) -> Any:
    """Logits out of what a forward pass gave: they themselves, first of a tuple, or `.logits`."""
    if isinstance(given, tuple):
        return given[0]
    return getattr(given, "logits", given)
