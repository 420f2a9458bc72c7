"""Configs both ways: config.json of Hugging Face, and `ModelConfig`.

No field is lost by an oversight: what an architecture cannot express is found by writing its config.json and reading
that back (`hf_obstacles`), so a field that no part handles comes back with its default and is named.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from groundup.errors import UserError, did_you_mean, problems
from groundup.model.config import BIASES, ModelConfig
from groundup.model.interchange.families import FAMILIES, Family
from groundup.model.interchange.keys import Keys
from groundup.model.interchange.rope import rope_base

# is_causal: transformers' masks obey it in every family; embedders made of language models set it to false.
NEVER: dict[str, tuple[Any, ...]] = {"is_causal": (None, True)}

# From a config.json to our config.


def config_from_hf(content: Mapping[str, Any], where: str = "config.json") -> ModelConfig:
    """The config that computes what transformers computes with this config.json.

    Keys that transformers itself does not read there are not read here. Raises UserError with everything that cannot
    be expressed.
    """
    fields_, found = _read(family_of(content, where), dict(content))
    problems(where, found)
    config = ModelConfig(**fields_)
    problems(where, config.problems())
    return config


def read_config(path: Path) -> dict[str, Any]:
    """A config.json as it lies on the disk. Raises UserError when it is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}): fetch it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a JSON object: fetch it again")
    return content


def family_of(content: Mapping[str, Any], where: str = "config.json") -> Family:
    """The family a config.json names: by its first architecture, or else by its model_type."""
    if not isinstance(content, Mapping):
        raise UserError(f"{where} is not a JSON object: fetch it again")
    named, kind = content.get("architectures") or [], content.get("model_type")
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise UserError(f"{where}: architectures must be a list of names (got {named!r})")
    kinds = {family.model_type: family for family in FAMILIES.values()}
    if not named:
        if isinstance(kind, str) and kind in kinds:
            return kinds[kind]
        raise UserError(f"{where}: model_type {kind!r} is not one of {', '.join(kinds)}")
    if named[0] not in FAMILIES:
        if isinstance(content.get("text_config"), dict):
            raise UserError(
                f"{where}: {named[0]} reads more than text, and its language model (text_config) is not taken out of "
                "it here: import a checkpoint of the language model alone"
            )
        raise UserError(f"{where}: {named[0]} is not read here{did_you_mean(named[0], FAMILIES)}")
    family = FAMILIES[named[0]]
    if kind not in (None, family.model_type):  # transformers goes by model_type, other readers by the architecture
        raise UserError(
            f"{where}: architectures says {named[0]}, whose model_type is {family.model_type}, but model_type says "
            f"{kind!r}: readers would build different models; correct the one that is wrong"
        )
    return family


def _read(family: Family, content: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """(fields of ModelConfig, or none of them, and everything that cannot be expressed)."""
    keys, fields_ = Keys(content, family.defaults), dict(family.fixed)
    if (quantised := content.get("quantization_config")) is not None:
        keys.found.append(
            f"quantization_config {quantised}: quantised weights are not read, take the checkpoint before that"
        )
    for key, values in (NEVER | family.only).items():
        if content.get(key) not in values:
            keys.found.append(f"{key} {content[key]!r} cannot be expressed")
    try:
        for part in family.parts:
            fields_ |= part.read(keys, fields_)
    except (TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        keys.found.append(f"a value is of the wrong kind ({error})")
        return {}, keys.found
    if not fields_.get("window"):
        fields_.pop("rope_local_base", None)  # no layer reads it
    return fields_, keys.found


# From our config to config.json.


def hf_config(config: ModelConfig, architecture: str | None = None) -> dict[str, Any]:
    """config.json without token ids and dtype, for transformers 4.51 to 5. architecture: None = the nearest."""
    family = FAMILIES[known(architecture) if architecture else architecture_of(config)]
    out: dict[str, Any] = {"architectures": [family.architecture], "model_type": family.model_type}
    for part in family.parts:
        out |= part.write(config)
    return out


def architecture_of(config: ModelConfig) -> str:
    """The architecture that computes exactly this config; one without obstacles, or else the nearest."""
    return min(FAMILIES, key=lambda name: _compared(config, name)[1])


def hf_obstacles(config: ModelConfig, architecture: str | None = None) -> list[str]:
    """The fields that keep an architecture (None = the nearest) from computing this config; empty when it can.

    Nothing is built: this can be asked while planning. Fields that matter in training alone (dropout, first weights,
    the router's losses) are no obstacle.
    """
    return _compared(config, known(architecture) if architecture else architecture_of(config))[0]


def _compared(config: ModelConfig, name: str) -> tuple[list[str], int]:
    """(obstacles, how far the architecture is from the config)."""
    read, found = _read(FAMILIES[name], hf_config(config, name))
    ours = computed(config)
    if not read:
        return found, len(ours)
    theirs = computed(ModelConfig(**read))
    different = [key for key, value in ours.items() if key in theirs and value != theirs[key]]
    found += [f"{key} is {_word(ours[key])}, {name} has {_word(theirs[key])}" for key in different]
    return found, len(found) + len(ours.keys() - theirs.keys())  # those count that follow from a field that differs


def known(architecture: str) -> str:
    if architecture not in FAMILIES:
        raise UserError(f'unknown architecture "{architecture}"{did_you_mean(architecture, FAMILIES)}')
    return architecture


# Fields that change how a model is trained and nothing of what it answers.
TRAINING = ("dropout", "init", "init_std", "zero_out", "mup_width")
TRAINING_MOE = ("balance", "balance_weight", "bias_rate", "z_weight")


def computed(config: ModelConfig) -> dict[str, Any]:
    """What a config computes, as field -> value, the same for two configs that give the same answers.

    Fields that the other fields leave without effect are absent.
    """
    c = config
    layers = range(c.n_layers)
    out = {f.name: getattr(c, f.name) for f in fields(c) if f.name not in TRAINING}
    out["bias"] = tuple(name for name in BIASES if name in c.bias)
    if c.latent is None or c.score_dim is not None:
        out["score_dim"] = float(c.score_dim or c.qk_dim)
    out["logit_scale"] = c.output_scale
    out["latent"] = None if c.latent is None else "on"
    out["moe"] = None if c.moe is None else "on"
    out["rope_scaling"] = None if c.rope_scaling is None or c.rope_scaling.kind == "ntk" else c.rope_scaling.kind
    if c.position == "rope":
        out["rope_base"] = rope_base(c)
        out["rope_pattern"] = "".join("R" if c.is_rotated(layer) else "N" for layer in layers)
        if c.rope_local_base is None and c.rope_scaling is None:
            out["rope_local_base"] = float(c.rope_base)
        out |= _scaling(c)
        if out["rope_scaling"] == "dynamic":
            _drop(out, "context")  # stretched as far as a text needs
    else:
        _drop(out, "rope_base", "rope_local_base", "rope_fraction", "rope_pattern", "rope_scaling")
    if c.position != "t5":
        _drop(out, "relative_buckets", "relative_distance")
    if c.window:
        out["window_pattern"] = "".join("L" if c.is_local(layer) else "G" for layer in layers)
    else:
        _drop(out, "window_pattern", "rope_local_base")
    if c.latent is not None:
        out |= {f"latent.{key}": value for key, value in asdict(c.latent).items()}
        _drop(out, "head_dim", "n_kv_heads")
    if c.moe is not None:
        out |= {f"moe.{key}": value for key, value in asdict(c.moe).items() if key not in TRAINING_MOE}
        _drop(out, "moe.first_dense", "moe.every")
        out["moe's layers"] = ", ".join(str(layer) for layer in layers if c.has_experts(layer))
        out["moe.balance"] = "bias" if c.moe.balance == "bias" else "no bias"
        if all(c.has_experts(layer) for layer in layers):
            _drop(out, "d_ff")
    return out


def _scaling(c: ModelConfig) -> dict[str, Any]:
    s = c.rope_scaling
    if s is None or s.kind == "ntk":
        return {}
    out = {f"rope_scaling.{key}": value for key, value in asdict(s).items() if key != "kind"}
    if s.kind == "linear":
        _drop(out, "rope_scaling.original_context")
    return out


def _drop(values: dict[str, Any], *names: str) -> None:
    for name in names:
        values.pop(name, None)


def _word(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(value) or "none"
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
