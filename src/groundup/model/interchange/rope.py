"""RoPE in a config.json, both ways. transformers 4 has `rope_theta` and `rope_scaling`, transformers 5
`rope_parameters`; both are read, and both are written, so that either finds its own."""

from __future__ import annotations

import math
from typing import Any

from groundup.model.config import ModelConfig
from groundup.model.interchange.keys import Keys

KINDS = ("linear", "dynamic", "yarn", "llama3")


class Rope:
    """One RoPE for all layers. kinds: those of `rope_scaling` that the architecture has; partial: whether it can
    rotate a part of a head alone."""

    def __init__(self, kinds: tuple[str, ...] = KINDS, partial: bool = False) -> None:
        self.kinds, self.partial = kinds, partial

    def read(self, keys: Keys, so_far: dict[str, Any]) -> dict[str, Any]:
        # as in transformers 5: where both stand, rope_scaling counts
        name = "rope_scaling" if keys.get("rope_scaling") else "rope_parameters"
        given = keys.get(name) or {}
        if not isinstance(given, dict) or any(isinstance(value, dict) for value in given.values()):
            keys.found.append(f"{name} must be one object with rope_type (got {given!r})")
            given = {}
        fraction = given.get("partial_rotary_factor", keys.get("partial_rotary_factor"))
        fraction = 1.0 if fraction is None else fraction
        if fraction != 1.0 and not self.partial:
            keys.found.append(f"partial_rotary_factor {fraction}: this architecture rotates whole heads")
            fraction = 1.0
        base = given.get("rope_theta")
        return {
            "rope_base": float(keys.number("rope_theta") if base is None else base),
            "rope_fraction": float(fraction),
            **self.read_scaling(keys, name, given),
        }

    def read_scaling(self, keys: Keys, name: str, given: dict[str, Any]) -> dict[str, Any]:
        """rope_scaling, and the context where the scaling says how long it is."""
        kind = given.get("rope_type", given.get("type", "default"))
        if kind == "default":
            return {}
        if kind not in self.kinds:
            known = ", ".join(self.kinds) or "none"
            keys.found.append(f'{name}: rope_type "{kind}" cannot be expressed (this architecture here: {known})')
            return {}
        found = scaling_from(keys, name, given, kind)
        length = keys.whole("max_position_embeddings")
        original = found["original_context"]
        if length <= original:  # written beside the length it was trained on: the text it is for is longer
            length = int(original * found["factor"])
        return {"rope_scaling": found, "context": length}

    def write(self, config: ModelConfig) -> dict[str, Any]:
        scaling = scaling_to(config, self.kinds)
        partial = {"partial_rotary_factor": config.rope_fraction} if self.partial else {}
        base = rope_base(config)
        out: dict[str, Any] = {
            "rope_theta": base,
            "rope_scaling": scaling,
            "rope_parameters": {"rope_theta": base, **(scaling or {"rope_type": "default"}), **partial},
            **partial,
        }
        return out | trained_length(config, scaling)


class LocalRope(Rope):
    """Gemma 3: one RoPE for layers that see everything, and an unscaled one of its own for those with a window."""

    def read(self, keys: Keys, so_far: dict[str, Any]) -> dict[str, Any]:
        given = keys.get("rope_parameters") or {}
        if not isinstance(given, dict) or (given and not {"full_attention", "sliding_attention"} & set(given)):
            keys.found.append("rope_parameters must hold full_attention and sliding_attention")
            given = {}
        everywhere = {**(given.get("full_attention") or {}), **(keys.get("rope_scaling") or {})}
        if "rope_type" not in everywhere and everywhere.get("type", "default") != "default":
            keys.found.append(
                'rope_scaling has "type", which transformers 4 computes here and 5 passes over: write "rope_type", or '
                "take rope_scaling out"
            )
        local = given.get("sliding_attention") or {}
        if local.get("rope_type", "default") != "default":
            keys.found.append(
                f'rope_parameters.sliding_attention: rope_type "{local["rope_type"]}" cannot be expressed'
            )
        base, local_base = everywhere.get("rope_theta"), local.get("rope_theta")
        return {
            "rope_base": float(keys.number("rope_theta") if base is None else base),
            "rope_local_base": float(keys.number("rope_local_base_freq") if local_base is None else local_base),
            **self.read_scaling(keys, "rope_scaling", everywhere),
        }

    def write(self, config: ModelConfig) -> dict[str, Any]:
        scaling, base = scaling_to(config, self.kinds), rope_base(config)
        local = base if config.rope_local_base is None else config.rope_local_base
        out: dict[str, Any] = {
            "rope_theta": base,
            "rope_local_base_freq": local,
            "rope_scaling": scaling,
            "rope_parameters": {
                "full_attention": {"rope_theta": base, **(scaling or {"rope_type": "default"})},
                "sliding_attention": {"rope_theta": local, "rope_type": "default"},
            },
        }
        return out | trained_length(config, scaling)


def rope_base(config: ModelConfig) -> float:
    """The base; with NTK-aware scaling, which Hugging Face has no name for, the larger base that it is."""
    scaling = config.rope_scaling
    if scaling is None or scaling.kind != "ntk":
        return float(config.rope_base)
    return float(config.rope_base * scaling.factor ** (config.rope_dim / (config.rope_dim - 2)))


def scaling_to(config: ModelConfig, kinds: tuple[str, ...]) -> dict[str, Any] | None:
    """The object that Hugging Face calls rope_scaling, or None."""
    s = config.rope_scaling
    if s is None or s.kind not in kinds:
        return None
    out: dict[str, Any] = {"rope_type": s.kind, "factor": float(s.factor)}
    if s.kind in ("yarn", "llama3"):
        out["original_max_position_embeddings"] = s.original_context
    if s.kind == "yarn":
        out |= {"beta_fast": float(s.beta_fast), "beta_slow": float(s.beta_slow)}
        out |= {} if s.attention_factor is None else {"attention_factor": float(s.attention_factor)}
    if s.kind == "llama3":
        out |= {"low_freq_factor": float(s.low_freq_factor), "high_freq_factor": float(s.high_freq_factor)}
    return out


def trained_length(config: ModelConfig, scaling: dict[str, Any] | None) -> dict[str, Any]:
    """TRAP: with dynamic scaling max_position_embeddings is the length before stretching, not the longest text."""
    assert scaling is None or config.rope_scaling is not None
    dynamic = scaling is not None and scaling["rope_type"] == "dynamic"
    return {"max_position_embeddings": config.rope_scaling.original_context} if dynamic else {}  # type: ignore[union-attr]


def scaling_from(keys: Keys, name: str, given: dict[str, Any], kind: str) -> dict[str, Any]:
    """The fields of `RopeScaling`."""
    inside = keys.inside(name, given)
    longest = keys.whole("max_position_embeddings")
    # transformers lets a length beside the object win over the one inside
    original = keys.get("original_max_position_embeddings") or given.get("original_max_position_embeddings") or longest
    if given.get("original_max_position_embeddings") == 0:
        inside.found.append("original_max_position_embeddings must be at least 1 (got 0)")
    if kind == "yarn" and given.get("factor") is None:
        inside = keys.inside(name, given | {"factor": longest / original})
    factor = inside.number("factor")
    out: dict[str, Any] = {"kind": kind, "factor": factor, "original_context": original}
    if kind == "dynamic":
        out["original_context"] = longest
    elif kind == "linear":  # nothing is computed from it
        out["original_context"] = given.get("original_max_position_embeddings") or max(1, int(longest / factor))
    elif kind == "llama3":
        out |= {key: inside.number(key) for key in ("low_freq_factor", "high_freq_factor")}
    elif kind == "yarn":
        out |= {"beta_fast": given.get("beta_fast") or 32.0, "beta_slow": given.get("beta_slow") or 1.0}
        out["attention_factor"] = _attention_factor(given, factor)
        if given.get("truncate", True) is not True:
            keys.found.append(f"{name}: truncate: false cannot be expressed")
    return out


def _attention_factor(given: dict[str, Any], factor: float) -> float | None:
    """Said outright, or the quotient of DeepSeek's two mscales; None leaves it to YaRN's formula."""
    first, second = given.get("mscale"), given.get("mscale_all_dim")
    if given.get("attention_factor") is not None or not (first and second):
        return given.get("attention_factor")
    grown = math.log(factor) if factor > 1 else 0.0
    return (0.1 * first * grown + 1.0) / (0.1 * second * grown + 1.0)
