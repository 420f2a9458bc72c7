"""Export a run's model for other tools, with all that has to travel along."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from groundup.errors import UserError, did_you_mean
from groundup.model.interchange.hf import export_hf
from groundup.model.storage import load_model
from groundup.record.files import atomic_folder
from groundup.record.rundir import RunDir
from groundup.release.card import write_card
from groundup.tokenizer.tokenizer import Tokenizer

FORMATS = ("hf",)


def export_model(run: RunDir, name: str, folder: Path, tokenizer: Tokenizer, to: str, out: Path) -> dict[str, Any]:
    """Write the model in `folder` to `out` in format `to`, with tokenizer, chat template and model card."""
    if to not in FORMATS:
        raise UserError(f'cannot export to "{to}"{did_you_mean(to, FORMATS)}')
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not an empty folder; choose another --out")
    if out.is_dir():
        out.rmdir()  # empty: the finished folder takes its place
    with atomic_folder(out) as new:  # whole or not at all: a card that is refused leaves nothing behind
        found = export_hf(load_model(folder), run.stage("tokenizer"), new)
        write_card(run.path, new, library="transformers", model=name)
    return {"stage": name, "out": str(out), **found}
