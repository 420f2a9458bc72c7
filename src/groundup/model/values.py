"""What one value of a shape may be by itself: its type, its choices, its bounds. Nothing here needs torch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from groundup.errors import did_you_mean
from groundup.model.config import BIASES, CHOICES, LatentAttention, MixtureOfExperts, RopeScaling

# field -> (relation, bound). Whole numbers that are not here must be at least 1.
BOUNDS: dict[str, tuple[str, float]] = {
    "norm_eps": (">", 0),
    "rope_base": (">", 1),
    "rope_local_base": (">", 1),
    "rope_fraction": (">", 0),
    "window": (">=", 0),
    "relative_buckets": (">=", 2),
    "score_dim": (">", 0),
    "attention_softcap": (">=", 0),
    "embed_scale": (">", 0),
    "logit_scale": (">", 0),
    "logit_softcap": (">=", 0),
    "dropout": (">=", 0),
    "init_std": (">", 0),
    "mup_width": (">=", 0),
    "rope_scaling.factor": (">=", 1),
    "rope_scaling.beta_fast": (">", 0),
    "rope_scaling.beta_slow": (">", 0),
    "rope_scaling.attention_factor": (">", 0),
    "rope_scaling.low_freq_factor": (">", 0),
    "rope_scaling.high_freq_factor": (">", 0),
    "latent.q_rank": (">=", 0),
    "moe.n_shared": (">=", 0),
    "moe.first_dense": (">=", 0),
    "moe.scale": (">", 0),
    "moe.balance_weight": (">=", 0),
    "moe.bias_rate": (">", 0),
    "moe.z_weight": (">=", 0),
}
PATTERNS = {"rope_pattern": "RN", "window_pattern": "LG"}
_KINDS = {"rope_scaling": RopeScaling, "latent": LatentAttention, "moe": MixtureOfExperts}
_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "bool": ((bool,), "true or false"),
    "str": ((str,), "a word"),
}


def wrong_values(part: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted field, what is wrong with its value) for a config and the parts inside it."""
    for field in fields(part):
        name, value = f"{prefix}{field.name}", getattr(part, field.name)
        kind, optional = str(field.type).removesuffix(" | None"), str(field.type).endswith(" | None")
        if value is None and optional:
            continue
        if name in _KINDS:
            if isinstance(value, _KINDS[name]):
                yield from wrong_values(value, f"{name}.")
            else:
                yield name, f"{name} must be a section with {_names(_KINDS[name])} (got {value!r})"
        elif kind in _TYPES:
            message = _wrong_type(name, kind, value) or _wrong_choice(name, value) or _out_of_bounds(name, kind, value)
            if message:
                yield name, message
        elif not isinstance(value, tuple):  # bias, the only list
            yield name, f"{name} must be a list of some of {', '.join(BIASES)} (got {value!r})"
        else:
            bad = [str(word) for word in value if word not in BIASES]
            if bad:
                yield name, "; ".join(f'{name}: unknown "{word}"{did_you_mean(word, BIASES)}' for word in bad)


def _names(part: type) -> str:
    return ", ".join(part.__dataclass_fields__)  # type: ignore[attr-defined]


def _wrong_type(name: str, kind: str, value: Any) -> str | None:
    types, word = _TYPES[kind]
    if not isinstance(value, types) or (kind in ("int", "float") and isinstance(value, bool)):
        return f"{name} must be {word} (got {value!r})"
    number: Any = value
    if kind == "float" and not math.isfinite(number):
        return f"{name} must be a finite number (got {value})"
    return None


def _wrong_choice(name: str, value: Any) -> str | None:
    if name in CHOICES and value not in CHOICES[name]:
        return f'{name}: unknown "{value}"{did_you_mean(value, CHOICES[name])}'
    letters = PATTERNS.get(name)
    if letters and (not value or set(value) - set(letters)):
        return f'{name} is made of the letters {letters[0]} and {letters[1]} (got "{value}")'
    return None


def _out_of_bounds(name: str, kind: str, value: Any) -> str | None:
    relation, bound = BOUNDS.get(name, (">=", 1) if kind == "int" else ("", 0))
    if relation == ">=" and value < bound:
        return f"{name} must be at least {bound} (got {value})"
    if relation == ">" and value <= bound:
        return f"{name} must be above {bound} (got {value})"
    if name == "rope_fraction" and value > 1:
        return f"{name} must be at most 1 (got {value})"
    if name == "dropout" and value >= 1:
        return f"{name} must be below 1 (got {value})"
    return None
