"""A recipe's model at a size where a whole training run takes milliseconds, with every parameter awake."""

from __future__ import annotations

import math
from itertools import groupby
from typing import Any

import torch

from groundup.model.config import ModelConfig
from groundup.model.transformer import Transformer
from groundup.plan.resolve import SEARCH_ONLY
from groundup.recipe.schema import ModelSection
from groundup.verify import draw

VOCAB = 97  # a prime: a dimension taken for another one does not fit by accident
CONTEXT = 64
WIDTH = 32
HEAD = 8
MOST_LAYERS = 6  # Gemma 3's pattern, LLLLLG, fits
WINDOW = 6  # of the 16 to 32 tokens that the checks use
CAP = 4.0  # of scores and logits that are of order 1: felt, and far from saturated


def micro_config(section: ModelSection, config: ModelConfig | None) -> ModelConfig:
    """Everything the section says, with its sizes made small.

    Built from the section's own dump: a field added later is carried as it is, unless a size is set for it here.
    What is a ratio in the real shape (heads a group, score_dim to a head, mup_width to the width, ...) stays one.
    """
    given = section.model_dump(exclude=set(SEARCH_ONLY))
    real = {name: _real(name, given, config) for name in ("d_model", "n_heads", "n_kv_heads", "head_dim")}
    patterns = {name: shortened(given[name], MOST_LAYERS) for name in ("window_pattern", "rope_pattern")}
    small: dict[str, Any] = {
        "d_model": WIDTH,
        "head_dim": HEAD,
        "d_ff": 48,
        "context": CONTEXT,
        **_heads(real["n_heads"], real["n_kv_heads"]),
        **patterns,
        "window": max(2, min(given["window"], WINDOW)) if given["window"] else 0,
        "attention_softcap": min(given["attention_softcap"], CAP),
        "logit_softcap": min(given["logit_softcap"], CAP),
        "moe": _moe(given["moe"]),
        "latent": _latent(given["latent"]),
        "rope_scaling": _rope_scaling(given["rope_scaling"], given["context"]),
        "rope_fraction": _rope_fraction(given),
        "score_dim": _score_dim(given, real["head_dim"]),
        "embed_scale": _embed_scale(given["embed_scale"], real["d_model"]),
        "mup_width": _mup_width(given["mup_width"], real["d_model"]),
    }
    if given["position"] == "t5":
        small["relative_buckets"] = min(given["relative_buckets"], 8)
        small["relative_distance"] = max(min(given["relative_distance"], 20), small["relative_buckets"] // 2 + 1)
    moe = small["moe"] or {"first_dense": 0, "every": 1}
    layers = max(2, moe["first_dense"] + moe["every"], *map(len, patterns.values()))
    return ModelConfig(**{**given, **small, "vocab_size": VOCAB, "n_layers": layers})


def _real(name: str, given: dict[str, Any], config: ModelConfig | None) -> int | None:
    """A dimension of the real shape; None while it is at auto."""
    value = getattr(config, name) if config else given[name]
    return value if isinstance(value, int) else None


def _heads(heads: int | None, kv_heads: int | None) -> dict[str, int]:
    """The same ratio of query to key/value heads, 4 at most. At auto, `plan` gives each query head its own."""
    group = min(heads // kv_heads, 4) if heads and kv_heads else 1
    kv = max(1, 4 // group)
    return {"n_heads": group * kv, "n_kv_heads": kv}


def shortened(pattern: str, most: int) -> str:
    """A pattern over layers, its longest runs cut until it has `most` letters: each letter and their order stay."""
    while len(pattern) > most:
        runs = ["".join(letters) for _, letters in groupby(pattern)]
        longest = max(range(len(runs)), key=lambda n: len(runs[n]))
        if len(runs[longest]) == 1:
            return pattern[:most]
        runs[longest] = runs[longest][1:]
        pattern = "".join(runs)
    return pattern


def _moe(moe: dict[str, Any] | None) -> dict[str, Any] | None:
    if moe is None:
        return None
    n = min(moe["n_experts"], 6)
    k = n if moe["top_k"] == moe["n_experts"] else min(moe["top_k"], max(2, n // 2), n - 1)
    small = {"n_experts": n, "top_k": k, "d_expert": 24, "n_shared": min(moe["n_shared"], 2)}
    return {**moe, **small, "first_dense": min(moe["first_dense"], 1), "every": min(moe["every"], 3)}


def _latent(latent: dict[str, Any] | None) -> dict[str, Any] | None:
    """All of unlike width, so that one cannot be taken for another."""
    if latent is None:
        return None
    small = {"kv_rank": 12, "nope_dim": 8, "rope_dim": 4, "v_dim": 6, "q_rank": 10 if latent["q_rank"] else 0}
    return {**latent, **small}


def _rope_scaling(scaling: dict[str, Any] | None, context: int) -> dict[str, Any] | None:
    """The same stretch of the same share of the context.

    The dynamic form computes something else with a cache as soon as it stretches (model/position.py): at this size it
    begins to at half the context, so that what must be exact below can be looked at.
    """
    if scaling is None:
        return None
    share = 0.5 if scaling["kind"] == "dynamic" else scaling["original_context"] / context
    return {**scaling, "original_context": min(max(8, round(CONTEXT * share)), CONTEXT)}


def _rope_fraction(given: dict[str, Any]) -> float:
    """About the same share of a smaller head: an even number of dimensions, not all unless all were."""
    if given["rope_fraction"] == 1:
        return 1.0
    least = 4 if (given["rope_scaling"] or {}).get("kind") in ("ntk", "dynamic") else 2
    return min(max(2 * round(HEAD * given["rope_fraction"] / 2), least), HEAD - 2) / HEAD


def _score_dim(given: dict[str, Any], head_dim: int | None) -> float | None:
    if given["score_dim"] is None:
        return None
    latent = given["latent"]
    wide = latent["nope_dim"] + latent["rope_dim"] if latent else head_dim
    small = 12 if latent else HEAD
    return small * given["score_dim"] / wide if wide else 1.5 * small  # unknown: anything but a head's own width


def _embed_scale(scale: float, d_model: int | None) -> float:
    """sqrt(d_model) stays that (Gemma's is rounded to bf16, hence the 1%)."""
    return WIDTH**0.5 if d_model and math.isclose(scale, d_model**0.5, rel_tol=0.01) else scale


def _mup_width(base: int, d_model: int | None) -> int:
    return max(1, round(WIDTH * (base / d_model if d_model else 0.5))) if base else 0


@torch.no_grad()
def wake(model: Transformer, seed: int) -> Transformer:
    """Redraw every parameter at a size where each one matters, and switch to eval mode.

    Initial weights hide errors: attention is nearly uniform, biases are 0 and norms 1, so leaving one out changes
    nothing. Here matrices (each of a stack, too) are N(0, 1/fan-in), what norms multiply by lies in [0.5, 1.5],
    biases are N(0, 0.1), scores of sinks and of T5's distances N(0, 1): all logits are of order 1. The bias that
    balances experts is N(0, 0.1) too: as large as the differences between their scores.
    """
    generator = draw.generator(seed + 1)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith(("sinks", "relative_bias.weight")):
            parameter.copy_(noise)
        elif parameter.ndim >= 2:
            parameter.copy_(noise / parameter.shape[-1] ** 0.5)
        elif name.endswith("bias"):
            parameter.copy_(0.1 * noise)
        else:
            parameter.copy_(0.5 * noise.clamp(-1, 1) + (0.0 if model.config.norm_offset else 1.0))
    for name, buffer in model.named_buffers():
        if name.endswith("balance_bias"):
            buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator))
    return model.eval()
