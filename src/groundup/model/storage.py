"""A model on disk: model.safetensors + config.json. No pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

from groundup.errors import UserError
from groundup.model.config import ModelConfig
from groundup.model.transformer import Transformer
from groundup.record.files import atomic_write


def save_model(folder: Path, model: Transformer, extra: dict[str, Any]) -> None:
    """Write weights (as cast, a tied head once) and config; `extra` carries tokenizer_hash, template_hash, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / "model.safetensors", save(model_tensors(model), metadata={"format": "pt"}))
    config = {"model": model.config.to_dict(), **extra}
    atomic_write(folder / "config.json", json.dumps(config, indent=2))


def model_tensors(model: Transformer) -> dict[str, torch.Tensor]:
    """State dict without the tied duplicate, contiguous, on the CPU."""
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    if model.config.tied:
        state.pop("head.weight")
    return state


def load_model(folder: Path, dtype: torch.dtype = torch.float32) -> Transformer:
    """Read a model folder; every tensor must be there, with its shape, and none may be left over."""
    config, _ = load_config(folder)
    try:
        tensors = load_file(folder / "model.safetensors")
    except (OSError, SafetensorError) as e:
        raise UserError(
            f"{folder}: cannot read model.safetensors ({e}); delete the folder and run the stage again"
        ) from e
    model = Transformer(config)
    load_tensors(model, tensors, str(folder))
    return model.to(dtype)


def stored_dtype(folder: Path) -> torch.dtype:
    """The widest type of a model folder's weights: what an export that loses nothing is written in."""
    names = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        found = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118  not a dict
    return names[found.pop()] if len(found) == 1 and found <= set(names) else torch.float32


def load_tensors(model: Transformer, tensors: dict[str, torch.Tensor], where: str) -> None:
    """Copy tensors into the model in place (a tied head stays one storage)."""
    expected = set(model.state_dict()) - ({"head.weight"} if model.config.tied else set())
    if expected != set(tensors):
        odd = sorted(expected ^ set(tensors))
        raise UserError(f"{where}: weights do not fit the config: {len(odd)} names differ, first {odd[:3]}")
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name in tensors:
                if value.shape != tensors[name].shape:
                    raise UserError(
                        f"{where}: {name} is {tuple(tensors[name].shape)}, config says {tuple(value.shape)}"
                    )
                value.copy_(tensors[name])


def load_config(folder: Path) -> tuple[ModelConfig, dict[str, Any]]:
    """(ModelConfig, everything else that config.json holds)."""
    try:
        content = json.loads((folder / "config.json").read_text())
        model = content.pop("model")
    except (OSError, ValueError, KeyError, AttributeError) as e:
        raise UserError(f"{folder}: no readable config.json ({e}); is this a groundup model folder?") from e
    return ModelConfig.from_dict(model), content
