"""Export a run's model for other tools, with all that has to travel along."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from groundup.errors import UserError, did_you_mean
from groundup.model.interchange.hf import export_hf
from groundup.model.storage import load_model, stored_dtype
from groundup.record.files import atomic_folder
from groundup.record.rundir import RunDir
from groundup.release.card import write_card
from groundup.tokenizer.foreign import ForeignTokenizer
from groundup.tokenizer.tokenizer import Tokenizer

FORMATS = ("hf", "gguf")


def export_model(
    run: RunDir, name: str, folder: Path, tokenizer: Tokenizer, to: str, out: Path, quant: str | None = None
) -> dict[str, Any]:
    """Write the model in `folder` to `out` in format `to`.

    hf: a folder with tokenizer, chat template and model card. gguf: one file, its weights as `quant` says.
    """
    if to not in FORMATS:
        raise UserError(f'cannot export to "{to}"{did_you_mean(to, FORMATS)}')
    if to == "gguf":
        return {"stage": name, "out": str(out), **_gguf(run, name, folder, tokenizer, out, quant or "f16")}
    if quant is not None:
        raise UserError("--quant goes with --to gguf; a Hugging Face folder keeps the weights as they are")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not an empty folder; choose another --out")
    if out.is_dir():
        out.rmdir()  # empty: the finished folder takes its place
    told: dict[str, Any] = {}
    if isinstance(tokenizer, ForeignTokenizer):
        told["stop_ids"] = (tokenizer.end, tokenizer.eos)
    if (start := run.record("pretrain")) is not None and "imported_from" in start.metrics:
        told["architecture"] = start.metrics["architecture"]  # as it came, where another computes the same
    with atomic_folder(out) as new:  # whole or not at all: a card that is refused leaves nothing behind
        found = export_hf(load_model(folder, stored_dtype(folder)), run.stage("tokenizer"), new, **told)
        write_card(run.path, new, library="transformers", model=name)
    return {"stage": name, "out": str(out), **found}


def _gguf(run: RunDir, name: str, folder: Path, tokenizer: Tokenizer, out: Path, quant: str) -> dict[str, Any]:
    from groundup.model.interchange.gguf import export_gguf

    if out.suffix != ".gguf":
        raise UserError(f"--out {out}: a GGUF is one file, and its name ends in .gguf")
    if out.exists():
        raise UserError(f"{out} exists; choose another --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    told: dict[str, Any] = {}
    if isinstance(tokenizer, ForeignTokenizer):  # what closes a turn stands in its template, not in a name of ours
        told["tokens"] = {"bos": tokenizer.bos, "eos": tokenizer.eos, "end": tokenizer.end}
    title = f"{run.path.name}-{name}"
    found: dict[str, Any] = export_gguf(
        load_model(folder), run.stage("tokenizer"), out, quant=quant, name=title, **told
    )
    return found
