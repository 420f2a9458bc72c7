"""`groundup new`: a preset's text under another name, comments and all."""

from __future__ import annotations

import re
from pathlib import Path

from groundup.errors import UserError
from groundup.recipe.load import find_recipe, load_recipe
from groundup.recipe.schema import parse_count
from groundup.record.files import atomic_write

_SHAPE = ("d_model", "n_layers", "n_heads", "n_kv_heads", "head_dim", "d_ff", "params")


def write_recipe(name: str, preset: str, params: str | None, folder: Path) -> Path:
    """Write folder/NAME.yaml from a preset. With `params`, the shape and the training length become auto."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UserError(f'"{name}" is no name for a recipe: letters, digits, dot, dash and underscore')
    name = name.removesuffix(".yaml")
    path = folder / f"{name}.yaml"
    if path.exists():
        raise UserError(f"{path} exists; choose another name, or delete it first")
    text = find_recipe(preset).read_text(encoding="utf-8")
    text = re.sub(r"^name:.*$", f"name: {name}", text, count=1, flags=re.M)
    if params is not None:
        if not isinstance(parse_count(params), int) and not params.isdigit():
            raise UserError(f'--params "{params}" is not a size; write 1M, 124M, 1.5B or a plain number')
        text = _with_size(text, params)
    atomic_write(path, text)
    try:
        load_recipe(path)
    except UserError:
        path.unlink()
        raise
    return path


def _with_size(text: str, params: str) -> str:
    out, section = [], ""
    for line in text.splitlines():
        if line[:1].isalpha():
            section = line.split(":")[0]
        key = line.strip().split(":")[0]
        if section == "model" and key in _SHAPE:
            continue
        if section == "pretrain" and key in ("steps", "learning_rate", "muon_learning_rate", "micro_batch_size"):
            continue
        out.append(line)
        if line.startswith("model:"):
            out.append(f"  params: {params}            # dimensions follow from it: see `groundup plan`")
    return "\n".join(out) + "\n"
