"""From what somebody types to a target: somebody's own module, a Hugging Face folder, a file or a folder of rows.

Recipes and runs are opened by the command, which knows where they lie. What is of another kind is refused here, with
what to give in its place: the reader of recipes would find fault with it as YAML.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from groundup.data import files
from groundup.errors import UserError
from groundup.recipe.load import PRESETS
from groundup.verify.adapter import Adapter
from groundup.verify.target import Target

if TYPE_CHECKING:
    from groundup.verify.rows import Rows

ROWS = (".json", ".jsonl", ".csv", ".parquet", ".tsv")
PLAIN = (".txt", ".md")
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
OF_A_FOLDER = (  # files of a Hugging Face folder that say nothing alone
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "model.safetensors.index.json"),
    *("merges.txt", "vocab.txt"),
)
MAKES = "a function that returns an Adapter, a torch module, a tokenizer, or a pair of module and tokenizer"
_FACTORY = re.compile(r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
_SOURCE = re.compile(r"^(?P<file>.+\.py)(:(?P<name>\w+))?$")


def open_target(given: str) -> Target | None:
    """The target that `given` names, or None where it may be a recipe.

    Errors: UserError for a factory that cannot be imported or gives something else, a folder that cannot be read, and
    a file that is of another kind (Python source, plain text, GGUF, one of a checkpoint's files): what to give instead.
    """
    path = Path(given)
    if not path.name:
        raise UserError(
            f'verify: "{given}" names nothing to look at; give a recipe, a run, a folder, a file or a factory'
        )
    _refuse_source(given)
    if _FACTORY.match(given) and not path.exists():
        return from_factory(given)
    from groundup.verify import folders

    _refuse_part(path)
    _refuse_kind(path)

    if folders.is_folder(path) or (path.is_file() and ".model" in path.name):
        from groundup.verify.outside import open_checkpoint

        return open_checkpoint(path)
    if path.suffix in ROWS or path.with_suffix("").suffix in ROWS:
        if not path.is_file():
            raise UserError(f"{path}: there is no such file")
        from groundup.verify.rows import open_rows

        return open_rows(path)
    if path.is_dir() and not (path / "recipe.resolved.yaml").is_file() and not _is_preset(given):
        return open_rows_folder(path)
    return None


def _is_preset(given: str) -> bool:
    """A preset's name goes before a folder of that name, as `find_recipe` has it."""
    return os.sep not in given and (PRESETS / f"{given}.yaml").is_file()


# ---- what is of another kind ----


def _refuse_source(given: str) -> None:
    """`mygpt.py`, `mygpt.py:target`: what is meant is the module's name. Errors: UserError that gives it."""
    found = _SOURCE.match(given)
    if not found or not Path(found["file"]).is_file():
        return
    source, name = Path(found["file"]), found["name"] or "target"
    inside = source.resolve().is_relative_to(Path.cwd().resolve())
    at = source.resolve().relative_to(Path.cwd().resolve()) if inside else Path(source.name)
    module = ".".join(at.with_suffix("").parts)
    first = "" if inside else f"go to {source.resolve().parent} and "
    if not _FACTORY.match(f"{module}:{name}"):
        module, first = re.sub(r"[^\w.]", "_", module), f"rename it so that Python can import it, and {first}"
    raise UserError(f"{given} is a Python file; {first}give {module}:{name} ({MAKES})")


def _refuse_part(path: Path) -> None:
    """One file out of a checkpoint's folder. Errors: UserError that names the folder."""
    from groundup.verify import folders

    if not path.is_file() or (path.name not in OF_A_FOLDER and path.suffix not in (".safetensors", *PICKLES)):
        return
    if folders.is_folder(path.parent):
        folder = path.parent if path.parent.name else path.parent.resolve()  # "." is refused
        raise UserError(f"{path} is one file of a Hugging Face folder; give the folder {folder}")
    if path.suffix == ".safetensors":
        raise UserError(
            f"{path} holds weights and does not say of which architecture; give a folder that holds config.json too, "
            f"or package.module:target ({MAKES})"
        )
    if path.suffix in PICKLES:
        raise UserError(
            f"{path} is not opened: it may be a pickle, which can run any code; give package.module:target, a function "
            "that loads it and returns the module"
        )


def _refuse_kind(path: Path) -> None:
    """Errors: UserError for plain text and GGUF, which no check looks at here; for a file that is not there."""
    if not path.exists() and files.kind(path) in (".py", ".gguf", ".safetensors", *PLAIN, *PICKLES):
        raise UserError(f"{path}: there is no such file")
    if not path.is_file():
        return
    if files.kind(path) in PLAIN:
        raise UserError(
            f"{path}: plain text is not verified; rows are ({' '.join(ROWS)}, also .gz .zst). Text to pretrain on goes "
            "into a recipe, and the recipe's run is verified"
        )
    if path.suffix.lower() == ".gguf":
        raise UserError(
            f"{path}: a GGUF file is looked at by `groundup export` when it is written (docs/gguf.md), not here; give "
            "the run or the Hugging Face folder that it was made of"
        )


# ---- folders of rows ----


def open_rows_folder(folder: Path) -> Rows:
    """The files of rows that lie directly in a folder, as one target.

    Files called test, validation, dev, ... (`rows.SIBLINGS`) beside others are the other sides of the split.
    Errors: UserError for a folder without such files, and for files that cannot be read or hold rows of several kinds.
    """
    from groundup.verify.rows import SIBLINGS

    found = sorted(p for p in folder.iterdir() if p.is_file() and p.name[0] != "." and files.kind(p) in ROWS)
    if not found:
        raise UserError(
            f"{folder} holds no run (recipe.resolved.yaml), no model or tokenizer (config.json, tokenizer.json) and no "
            f"rows ({' '.join(ROWS)})"
        )
    aside = [p for p in found if re.split(r"[-_.]", p.name)[0].lower() in SIBLINGS]
    main = [p for p in found if p not in aside] or found
    rows = _joined(folder, main)
    for path in aside if main != found else []:
        rows.beside[path.name] = _joined(folder, [path], rows.holds)
    return rows


def _joined(folder: Path, paths: list[Path], holds: str = "") -> Rows:
    """Files as one, each row with its file's name before its place. holds: the kind they must be of, if it is known."""
    from groundup.verify.rows import Rows, open_rows

    try:
        each = [open_rows(path) for path in paths]
    except UserError as error:
        raise UserError(f"{error}; it lies in {folder}: take it out, or give one file of rows") from error
    if len({one.holds for one in each} | ({holds} if holds else set())) > 1:
        kinds = ", ".join(f"{path.name}: {one.holds}" for path, one in zip(paths, each, strict=True))
        raise UserError(
            f"{folder} holds rows of several kinds ({kinds}{f'; others: {holds}' if holds else ''}): give one file"
        )
    rows = [replace(row, where=f"{one.name} {row.where}") for one in each for row in one.rows]
    refused = [(f"{one.name} {where}", why) for one in each for where, why in one.refused]
    return Rows(folder.name, rows, refused, files=paths)


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

    if isinstance(made, type):
        raise UserError(
            f"{name} is a class; call it in a function: def target(): return {made.__name__}(...), and give that"
        )
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
