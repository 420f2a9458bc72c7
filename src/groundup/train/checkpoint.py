"""Checkpoints: a folder that appears whole, with checksums inside. The newest that verifies is resumed from."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from groundup.record.files import atomic_folder, clean_stale, sha256_file

FORMAT = 1


@dataclass
class Checkpoint:
    """Everything a run needs to go on as if it had never stopped."""

    step: int  # optimizer steps done
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    source: dict[str, Tensor]  # what the batch source keeps (a GRPO rollout in use); usually empty
    rng: Tensor  # torch's CPU generator, (n,) uint8
    state: dict[str, Any]  # stage key, tokenizer and template hashes, guard history, seconds spent


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write folder/step-0000123 atomically, then drop all but the newest `keep`.

    A later one in the folder was passed over when the run went on from before it; it would push out each new one.
    """
    path = folder / f"step-{checkpoint.step:07d}"
    with atomic_folder(path) as new:
        save_file({k: v.contiguous() for k, v in checkpoint.model.items()}, new / "model.safetensors")
        save_file({k: v.contiguous() for k, v in checkpoint.optimizer.items()}, new / "optimizer.safetensors")
        save_file(
            {"rng": checkpoint.rng, **{f"source.{k}": v.contiguous() for k, v in checkpoint.source.items()}},
            new / "loop.safetensors",
        )
        state = {"format": FORMAT, "step": checkpoint.step, **checkpoint.state}
        (new / "state.json").write_text(json.dumps(state, indent=2))
        sums = {f.name: sha256_file(f) for f in sorted(new.iterdir())}
        (new / "checksums.json").write_text(json.dumps(sums, indent=2))
    for old in checkpoints(folder):
        if old.name > path.name:
            shutil.rmtree(old)
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return path


def unsound(checkpoint: Checkpoint) -> str | None:
    """The name of a tensor in which some number is not finite, or None. Nobody could go on from such a checkpoint."""
    tensors = [*checkpoint.model.items(), *checkpoint.optimizer.items()]
    return next((name for name, t in tensors if t.is_floating_point() and not bool(t.isfinite().all())), None)


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders, oldest first."""
    return sorted(p for p in folder.glob("step-*") if p.is_dir())


def defect(path: Path) -> str | None:
    """Why a checkpoint cannot be trusted, or None."""
    try:
        sums = json.loads((path / "checksums.json").read_text())
        for name, expected in sums.items():
            if sha256_file(path / name) != expected:
                return f"{name} does not match its checksum"
        if json.loads((path / "state.json").read_text())["format"] != FORMAT:
            return "it was written by another version"
    except (OSError, ValueError, KeyError) as e:
        return f"{type(e).__name__}: {e}"
    return None


def newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that verifies and is finite, and a line for each newer one that was passed over."""
    passed: list[str] = []
    for path in checkpoints(folder):
        clean_stale(path)
    for path in reversed(checkpoints(folder)):
        reason = defect(path)
        if reason is None:
            try:
                found = load_checkpoint(path)
                name = unsound(found)
                if name is None:
                    return found, passed
                reason = f"{name} holds numbers that are not finite"
            except (OSError, SafetensorError) as e:
                reason = str(e)
        passed.append(f"passed over {path.name}: {reason}")
    return None, passed


def load_checkpoint(path: Path) -> Checkpoint:
    loop = load_file(path / "loop.safetensors")
    state = json.loads((path / "state.json").read_text())
    return Checkpoint(
        step=state.pop("step"),
        model=load_file(path / "model.safetensors"),
        optimizer=load_file(path / "optimizer.safetensors"),
        rng=loop.pop("rng").to(torch.uint8),
        source={k.removeprefix("source."): v for k, v in loop.items()},
        state=state,
    )
