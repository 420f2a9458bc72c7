"""Does the cache of latent attention hold what it should, and is what is decoded from it what was trained?"""

from __future__ import annotations

import math

import torch

from groundup.infer.cache import KVCache
from groundup.verify import rig
from groundup.verify.check import Measurement, NotApplicable, check
from groundup.verify.reference import Reference, visible
from groundup.verify.subject import Subject


@check(
    "latent-cache-holds-latents",
    "identity",
    "model",
    bug="The cache of latents holds something else: a key not yet rotated, a latent not yet normalised, whole heads.",
    remedy="One 'head' of [normalised latent | rotated shared key] a token, no values (model/latent.py).",
    reference="tenstorrent/tt-metal pull 35987; ml-explore/mlx-lm pull 1509; arXiv 2405.04434",
)
def latent_cache_holds_latents(subject: Subject) -> Measurement:
    """Largest difference between the cache after a prompt of 7 and 5 single tokens, and the fp64 latents and rotated
    keys of each layer; infinite if it keeps more numbers a token than kv_rank + rope_dim. Rounding only."""
    latent = subject.micro.latent
    if latent is None:
        raise NotApplicable("attention is not latent")
    model, length = subject.build_model(), 12
    tokens, cache = rig.random_tokens(subject, 2, length, seed=56), KVCache(model.config, 2, length)
    inputs = [call.inputs[0].double() for call in rig.calls(model, "attention", tokens)]
    for s in (torch.arange(7), *torch.arange(7, length)[:, None]):
        rig.logits_of(model, tokens[:, s], positions=s.expand(2, -1), cache=cache)
    if cache.k[0, 0, :, 0].numel() + cache.v[0, 0, :, 0].numel() != latent.kv_rank + latent.rope_dim:
        return Measurement(math.inf, 0.0, f"it keeps {tuple(cache.k.shape)} and {tuple(cache.v.shape)}")
    reference, worst, scale = Reference(model), 0.0, 0.0
    for layer, x in enumerate(inputs):
        expected = torch.cat(reference.latents(layer, x, None, torch.arange(length).expand(2, -1)), dim=-1)
        worst = max(worst, rig.largest(cache.k[layer, :, 0] - expected))
        scale = max(scale, rig.largest(expected))
    return Measurement(worst, rig.tolerance(subject.micro, scale), f"{latent.kv_rank} + {latent.rope_dim} a token")


@check(
    "latent-absorbed-equals-expanded",
    "invariance",
    "model",
    bug="Decoding over latents (projections moved to query and output) is not the attention that was trained.",
    remedy="Rows of kv_up are, head by head, [nope | v]; the query meets the first, the sum the second (from_cache).",
    reference="tenstorrent/tt-metal pull 35987; kekzl/imp pull 803; arXiv 2405.04434",
)
def latent_absorbed_equals_expanded(subject: Subject) -> Measurement:
    """Largest difference, over all layers, between one layer's attention through a cache and without, given the same
    input. The same products, bracketed otherwise: rounding times (1 + scores), as in attention-is-its-formula."""
    if subject.micro.latent is None:
        raise NotApplicable("attention is not latent")
    model, length = subject.build_model(), 16
    positions = torch.arange(length).expand(2, -1)
    tokens = rig.random_tokens(subject, 2, length, seed=57)
    reference, worst = Reference(model), 0.0
    cached = rig.calls(model, "attention", tokens, positions=positions, cache=KVCache(model.config, 2, length))
    for layer, (block, call) in enumerate(zip(model.blocks, cached, strict=True)):
        x, angles = call.inputs[0], call.inputs[1]
        mask = visible(length, None, reference.window(layer))
        with torch.no_grad():
            expanded = block.get_submodule("attention")(x, angles, mask, positions, None)
        q, k, _ = reference.heads(layer, x.double(), None, positions)
        scores = rig.largest(torch.einsum("bqhd,bkhd->bhqk", q, k)) / math.sqrt(model.config.score_dim or q.shape[-1])
        limit = rig.tolerance(model.config, rig.largest(expanded)) * (1 + scores)
        worst = max(worst, rig.largest(call.output - expanded) / limit)
    return Measurement(worst, 1.0, f"{len(cached)} layers")
