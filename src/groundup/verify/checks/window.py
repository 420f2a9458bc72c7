"""Do windowed layers see their window, exactly, and the others everything?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from groundup.infer.cache import KVCache
from groundup.model.config import ModelConfig
from groundup.verify import rig
from groundup.verify.check import Measurement, NotApplicable, check, violations
from groundup.verify.checks.attention import PACKED, settings
from groundup.verify.reference import Reference, visible
from groundup.verify.subject import Subject


def _windowed(subject: Subject) -> ModelConfig:
    if not subject.micro.window:
        raise NotApplicable("no layer has a window")
    return subject.micro


@check(
    "window-is-exact",
    "locality",
    "model",
    bug="A window is one token too wide or too narrow: another model than was trained, or than others serve.",
    remedy="A query at p sees keys p - window + 1 to p, itself included (attention_mask in model/attention.py).",
    reference="huggingface/transformers issues 39408, 29623; ml-explore/mlx-lm pull 390",
)
def window_is_exact(subject: Subject) -> Measurement:
    """Places at which a one-layer model sees, in any bit, a token that it must not, or not one that it must.

    In one layer nothing is passed on, so changing the token at j may move the logits at j .. j + window - 1 and
    nowhere else: in a plain row, in each document of a packed one, and when decoding with a cache.
    """
    window = _windowed(subject).window
    alone: dict[str, Any] = {"n_layers": 1, "window_pattern": "L", "rope_pattern": "R", "moe": None}
    model, length = subject.build_model(**alone), sum(PACKED)
    tokens = rig.random_tokens(subject, 2, length, seed=52)

    def decoded(ids: Tensor, **given: Any) -> Tensor:
        cache = KVCache(model.config, 2, length)
        steps = [torch.arange(8), *torch.arange(8, length)[:, None]]  # a prompt of 8, then one by one
        return torch.cat([rig.logits_of(model, ids[:, s], positions=s.expand(2, -1), cache=cache) for s in steps], 1)

    def plain(ids: Tensor, **given: Any) -> Tensor:
        return rig.logits_of(model, ids, **given)

    found, looked = [], 0
    for name, compute, given in (
        *((name, plain, given) for name, given in settings(length)),
        ("cached", decoded, {}),
    ):
        seen, before = visible(length, given.get("documents"), window)[0, 0], compute(tokens, **given)
        for j in (0, 3, PACKED[0] - 1, PACKED[0], 14):
            changed = tokens.clone()
            changed[:, j] = (tokens[:, j] + 1) % subject.micro.vocab_size
            moved = (compute(changed, **given) != before).any(-1).any(0)
            wrong = (moved != seen[:, j]).nonzero()[:, 0].tolist()
            found += [f"{name}: place {p} {'sees' if moved[p] else 'is blind to'} token {j}" for p in wrong]
            looked += length
    return violations(found, looked)


@check(
    "window-pattern-by-layer",
    "locality",
    "model",
    bug="The wrong layers are windowed: the model forgets what its global layers should have carried.",
    remedy="Letter l % len(window_pattern) is that of layer l, from the bottom (is_local in model/config.py).",
    reference="huggingface/transformers issue 35896; vllm-project/vllm pull 17772; Lightning-AI/litgpt pull 1995",
)
def window_pattern_by_layer(subject: Subject) -> Measurement:
    """(layer, place) whose attention moves, in any bit, though it must not, or does not though it must, when what
    that one layer's attention is given at a place is changed: local layers look `window` back, global ones to the
    document's beginning. Plain and packed."""
    config = _windowed(subject)
    model, reference = subject.build_model(), Reference(subject.build_model())
    tokens = rig.random_tokens(subject, 2, sum(PACKED), seed=53)
    found, looked = [], 0
    for name, given in settings():
        for layer, call in enumerate(rig.calls(model, "attention", tokens, **given)):
            x, *rest = call.inputs
            seen = visible(x.shape[1], given.get("documents"), reference.window(layer))[0, 0]
            for j in (0, PACKED[0]):
                changed = x.clone()
                changed[:, j] += 1 + torch.arange(config.d_model)
                with torch.no_grad():
                    moved = (
                        (model.get_submodule(f"blocks.{layer}.attention")(changed, *rest) != call.output).any(-1).any(0)
                    )
                wrong = (moved != seen[:, j]).nonzero()[:, 0].tolist()
                found += [f"{name}: layer {layer} at {p} {'sees' if moved[p] else 'is blind to'} {j}" for p in wrong]
                looked += len(moved)
    pattern = "".join("L" if reference.window(layer) else "G" for layer in range(config.n_layers))
    return violations(found, looked) if found else Measurement(0.0, 0.0, f"{looked} places, layers {pattern}")
