"""Import from Hugging Face: a folder of theirs becomes a model folder of ours, tensor by tensor."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from groundup.errors import UserError, problems
from groundup.model.interchange.configs import config_from_hf, family_of, read_config
from groundup.model.interchange.names import Entry, Piece, layout
from groundup.model.interchange.tensors import NAMES, Checkpoint, Spec, adapter_problems, write_tensors
from groundup.record.files import atomic_file, write_json

# What some files carry besides, and nothing reads: tables of angles, GPT-2's causal masks.
EXTRAS = re.compile(r"(^|\.)(rotary_emb\.inv_freq|attn\.bias|attn\.masked_bias)$")
UNTIED = " (where the embedding is meant to be the head too, config.json needs tie_word_embeddings: true)"
SHOWN = 10  # of a kind of problem


def import_hf(
    folder: str | Path, out: str | Path, dtype: torch.dtype | None = None, extra: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Read a folder of transformers, write a model folder that `load_model` opens; return what was written.

    dtype: None keeps each tensor's own. extra: what config.json is to carry besides (`tokenizer_hash`, ...).
    One tensor of the new file is in memory at a time; of the old files one is mapped, page by page as it is read.
    Returns {"architecture", "parameters", "dtype", "bytes", "ignored": [names]}. Raises UserError with everything that
    config.json says and cannot be expressed, or with every tensor that is missing, left over or of another shape.
    """
    folder, out = Path(folder), Path(out)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give the one that holds config.json and *.safetensors")
    if out.resolve() == folder.resolve():
        raise UserError(f"{out} is the folder that is read: the model would be written over it; choose another")
    problems(str(folder), adapter_problems(folder))
    where = str(folder / "config.json")
    content = read_config(folder / "config.json")
    config, family = config_from_hf(content, where), family_of(content, where)
    checkpoint = Checkpoint(folder)
    stacked = any(name.endswith("experts.gate_up_proj") for name in checkpoint.files)
    plan, ignored = _matched(checkpoint, layout(config, family.model_type, stacked), config.tied)
    specs = {name: _spec(checkpoint, entry, dtype) for name, entry in plan.items()}
    with atomic_file(out / "model.safetensors") as file:
        write_tensors(file, specs, lambda name: _assembled(checkpoint, plan[name].pieces, specs[name]))
    write_json(out / "config.json", {"model": config.to_dict(), **(extra or {})})
    return {
        "architecture": family.architecture,
        "parameters": sum(torch.Size(spec.shape).numel() for spec in specs.values()),
        "dtype": ", ".join(sorted({str(spec.dtype).removeprefix("torch.") for spec in specs.values()})),
        "bytes": (out / "model.safetensors").stat().st_size,
        "ignored": ignored,
    }


def _matched(checkpoint: Checkpoint, plan: dict[str, Entry], tied: bool) -> tuple[dict[str, Entry], list[str]]:
    """(the plan under the names that stand in the files, names in the files that nothing reads)."""
    there = set(checkpoint.files)
    head = {"lm_head.weight"} & there
    base = re.compile(r"^(model|transformer)\.")
    if not any(base.match(name) for name in there):  # saved from the model without its head, as gpt2 on the Hub is
        plan = {ours: _renamed(entry, lambda name: base.sub("", name)) for ours, entry in plan.items()}
    if tied and head and plan["embed.weight"].pieces[0].name not in there:
        # a matrix held twice is saved once, and safetensors' save_model keeps the first of its names in the alphabet
        plan["embed.weight"] = _renamed(plan["embed.weight"], lambda _: "lm_head.weight")
    wanted = {piece.name: piece for entry in plan.values() for piece in entry.pieces}
    extras = {name for name in there - set(wanted) if EXTRAS.search(name)}
    if tied and head and not head & set(wanted):
        extras |= head
    missing, unexpected = sorted(set(wanted) - there), sorted(there - set(wanted) - extras)
    both = [(name, checkpoint.specs[name], wanted[name].shape) for name in sorted(there & set(wanted))]
    shapes = [f"{name} is {spec.shape}, config.json says {shape}" for name, spec, shape in both if spec.shape != shape]
    kinds = [
        f"{name} is {spec.dtype}: quantised weights are not read" for name, spec, _ in both if spec.dtype not in NAMES
    ]
    found = _some([f"{name} is missing{UNTIED if name == 'lm_head.weight' else ''}" for name in missing])
    found += _some([f"{name} has no place in this architecture" for name in unexpected])
    found += _some(shapes) + _some(kinds)
    if not found and tied and "lm_head.weight" in extras:
        embedding = plan["embed.weight"].pieces[0].name
        if not torch.equal(checkpoint.read("lm_head.weight"), checkpoint.read(embedding)):
            found = [
                f"lm_head.weight differs from {embedding}, though tie_word_embeddings is true: set it to false in "
                "config.json to keep both, or take lm_head.weight out of the files"
            ]
    problems(str(checkpoint.folder), found)
    return plan, sorted(extras)


def _renamed(entry: Entry, new: Callable[[str], str]) -> Entry:
    return Entry(entry.shape, [replace(piece, name=new(piece.name)) for piece in entry.pieces])


def _some(found: list[str]) -> list[str]:
    more = [f"... and {len(found) - SHOWN} more like it"] if len(found) > SHOWN else []
    return found[:SHOWN] + more


def _spec(checkpoint: Checkpoint, entry: Entry, dtype: torch.dtype | None) -> Spec:
    """Shape of a tensor of ours, and its dtype: the widest of its pieces'."""
    kinds = (checkpoint.specs[piece.name].dtype for piece in entry.pieces)
    return Spec(dtype or reduce(torch.promote_types, kinds), entry.shape)


def _assembled(checkpoint: Checkpoint, pieces: list[Piece], spec: Spec) -> Tensor:
    tensor = torch.empty(spec.shape, dtype=spec.dtype)
    for piece in pieces:
        theirs = checkpoint.read(piece.name)
        tensor[piece.at].copy_(theirs.T if piece.transposed else theirs)
    return tensor
