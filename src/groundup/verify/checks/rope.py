"""Are queries and keys rotated by the angles of their places, in the right dimensions, stretched as published?"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

from groundup.model import position
from groundup.verify import draw, rig
from groundup.verify.check import Measurement, NotApplicable, check
from groundup.verify.checks.position import needs
from groundup.verify.reference import Reference, rates
from groundup.verify.subject import Subject

FAR = 1024  # places of a table compared one by one; beyond, as many again up to the last


@check(
    "rope-depends-on-distance",
    "invariance",
    "model",
    bug="Queries and keys are not both rotated (or not alike): scores depend on where a text stands.",
    remedy="Rotate q and k by the same table, before k goes into the cache; see model/attention.py.",
    reference="pytorch/torchtitan pull 3772; ml-explore/mlx-lm pull 1698",
)
def rope_depends_on_distance(subject: Subject) -> Measurement:
    """Largest change of the logits when every position is shifted by 40, the tokens being the same.

    Scores are functions of distance, so only rounding may show: that of the arithmetic (`rig.tolerance`), and that
    of the angles, which are off by up to eps / 2 times the largest position, in each of q and k, in each layer.
    The dynamic form turns slower in longer texts: there the shift stays below its original context.
    """
    needs(subject, "rope")
    config, length, shift = subject.micro, 20, 40
    if config.rope_scaling is not None and config.rope_scaling.kind == "dynamic":
        shift = config.rope_scaling.original_context - length
    model = subject.build_model()
    tokens = rig.random_tokens(subject, 2, length, seed=20)
    near = rig.logits_of(model, tokens)
    far = rig.logits_of(model, tokens, positions=(torch.arange(length) + shift)[None])
    scale = rig.largest(near)
    angles = rig.EPS * (length + shift) * config.qk_dim**0.5 * config.n_layers * scale
    return Measurement(rig.largest(far - near), rig.tolerance(config, scale) + angles)


@check(
    "rope-table-precise",
    "identity",
    "model",
    bug="Angles kept in bf16 or fp16: past a few hundred positions they are noise, and long contexts stop working.",
    remedy="Keep the table in fp32 (model/position.py); cast what is rotated, not the angles.",
    reference="huggingface/transformers pull 29285; huggingface/candle pull 3520; sgl-project/sglang-jax issue 1472",
)
def rope_table_precise(subject: Subject) -> Measurement:
    """Largest error of cos and sin in the built model's tables, against fp64, at the recipe's own context, base and
    stretching (whose formula is written once more in verify/reference.py).

    An angle p w is a product of two fp32 roundings (of w, through a power, and of the product): relative error at
    most about 4 eps with p up to the context; cos and sin have slope at most 1 and round once more. All of it times
    what YaRN multiplies them by.
    """
    needs(subject, "rope")
    config = subject.config or subject.micro
    changes: dict[str, Any] = {name: getattr(config, name) for name in ("context", "rope_base", "rope_local_base")}
    changes |= {"rope_scaling": config.rope_scaling, "latent": config.latent, "rope_fraction": config.rope_fraction}
    changes |= {} if config.latent else {"head_dim": config.head_dim}
    model = subject.build_model(awake=False, **changes)
    places = torch.cat([torch.arange(min(FAR, config.context)), torch.linspace(0, config.context - 1, FAR).long()])
    tables = [(model.angles, config.rope_base, config.rope_scaling)]
    if config.rope_local_base is not None:
        tables.append((model.local_angles, config.rope_local_base, None))
    worst, largest = 0.0, 1.0
    for table, base, scaling in tables:
        turned, factor = rates(config.rope_dim, base, scaling, 0)
        angle = torch.outer(places.double(), turned).repeat(1, 2)
        worst = max(worst, rig.largest(table[:, places].double() - torch.stack([angle.cos(), angle.sin()]) * factor))
        largest = max(largest, factor)
    return Measurement(worst, largest * rig.EPS * (4 * config.context + 1), f"context {config.context}")


@check(
    "rotation-keeps-length",
    "identity",
    "model",
    bug="The rotation mixes up its halves: it stretches vectors, or pairs dimensions that turn at different rates.",
    remedy="Half-split layout: dimension i turns with i + rope_dim / 2 (model/position.py).",
    reference="labscommunity/cascadia pull 69; jzhang38/TinyLlama issue 24; karpathy/llama2.c pull 286",
)
def rotation_keeps_length(subject: Subject) -> Measurement:
    """Largest relative change of |x| under `rotate`, and of the score q k when both are shifted by 11 places.

    4 products and 2 sums a number: 8 roundings, plus the angles' own, at most eps / 2 times the position.
    """
    needs(subject, "rope")
    config, length, shift = subject.micro, 40, 11
    table = position.rope_table(length + shift, *position.rope_rates(config.rope_dim, config.rope_base))
    cos, sin = table.unsqueeze(-2).unsqueeze(1)
    generator = draw.generator(22)
    x = torch.randn(1, length, 3, max(config.head_dim, config.rope_dim), generator=generator)
    near = position.rotate(x, cos[:, :length], sin[:, :length])
    far = position.rotate(x, cos[:, shift:], sin[:, shift:])
    stretched = rig.largest(near.norm(dim=-1) / x.norm(dim=-1) - 1)
    size = float(x.square().sum(-1).max())
    scores = [torch.einsum("bthd,bshd->bhts", y, y) for y in (near, far)]
    moved = rig.largest(scores[0] - scores[1]) / size
    return Measurement(max(stretched, moved), rig.EPS * (8 + 2 * (length + shift)))


@check(
    "rope-scaling-is-the-published-one",
    "identity",
    "model",
    bug="A stretched RoPE interpolates the wrong planes: short texts are garbled, long ones not reached.",
    remedy="See the formula of the recipe's kind in model/position.py: which planes are slow, and where the ramp lies.",
    reference="turboderp-org/exllamav3 issue 259; vllm-project/vllm issue 48621; sgl-project/sglang pull 33558",
)
def rope_scaling_is_the_published_one(subject: Subject) -> Measurement:
    """Largest relative error of a plane's rate, and of YaRN's factor, against the published formula in fp64: at the
    recipe's shape, the micro shape and one of published size (128 dimensions, base 500,000, 8,192 tokens), for texts
    below, at and far past the original context.

    A power in fp32 is off by eps times the logarithm of what comes out, ln(base) at most (stretched: of the larger
    base); a ramp between planes multiplies the rounding of L / wavelength by at most high_freq_factor: all below 64.
    """
    config = subject.micro
    if config.rope_scaling is None:
        raise NotApplicable("RoPE is not stretched")
    real = subject.config or config
    scaling = real.rope_scaling or config.rope_scaling
    shapes = [
        (config.rope_dim, config.rope_base, config.rope_scaling),
        (real.rope_dim, real.rope_base, scaling),
        (128, 500000.0, replace(scaling, original_context=8192)),
    ]
    worst, where = 0.0, ""
    for dim, base, one in shapes:
        for length in (1, one.original_context, 2 * one.original_context + 1, 9 * one.original_context):
            found, factor = position.rope_rates(dim, base, one, length)
            expected, wanted = rates(dim, base, one, length)
            off = max(rig.largest(found.double() / expected - 1), abs(factor / wanted - 1))
            if off > worst:
                worst, where = off, f"{one.kind}: {dim} dimensions, {length} tokens"
    return Measurement(worst, 64 * rig.EPS, where)


@check(
    "each-layer-turns-by-its-own-angles",
    "identity",
    "model",
    bug="A layer is rotated by another's angles: the local base in global layers, rotation where there should be none.",
    remedy="See angles_of_layers in model/transformer.py: rope_pattern, rope_local_base, and the document's length.",
    reference="vllm-project/vllm pull 29111; ollama/ollama pull 13452; lablup/mlxcel issue 1340",
)
def each_layer_turns_by_its_own_angles(subject: Subject) -> Measurement:
    """Largest error of cos and sin that reach a layer's attention, against fp64, for a plain and a packed row of 48;
    1 is added for a layer that is rotated and should not be, or the reverse, or in other dimensions.

    With the dynamic form, texts are past its original context, and each document has its own length: the base grows
    by factor^(d / (d - 2)), whose rounding is part of the rate's. Bound as in rope-table-precise.
    """
    needs(subject, "rope")
    model, length = subject.build_model(), 48
    tokens, reference = rig.random_tokens(subject, 2, length, seed=60), Reference(model)
    worst, note = 0.0, ""
    packed = rig.packed_row(length // 4, length - length // 4)
    for given in ({"positions": torch.arange(length).expand(2, -1)}, packed):
        for layer, call in enumerate(rig.calls(model, "attention", tokens, **given)):
            expected, found = reference.angles(layer, given.get("documents"), given["positions"]), call.inputs[1]
            if expected is None or found is None:
                off = float((expected is None) != (found is None))
            else:
                angle, factor = expected
                both = torch.stack([angle.cos(), angle.sin()])[..., None, :].repeat(1, 1, 1, 1, 2) * factor
                same = found.shape[-1] == both.shape[-1]
                off = rig.largest(found.double() - both) if same else 1.0
            if off > worst:
                worst, note = off, f"layer {layer}"
    return Measurement(worst, 2 * rig.EPS * (4 * length + 1), note)


@check(
    "partial-rotary-leaves-the-rest",
    "locality",
    "model",
    bug="The last dimensions of a head are rotated, not the first (or all are): no published model's weights fit.",
    remedy="rotate() takes the first rope_dim dimensions, in two halves, and passes the rest on (model/position.py).",
    reference="ml-explore/mlx-lm pull 1698; labscommunity/cascadia pull 69; huggingface/transformers pull 48652",
)
def partial_rotary_leaves_the_rest(subject: Subject) -> Measurement:
    """Largest difference of a rotated head to fp64, the pairs being (i, i + rope_dim / 2); infinite if one of the
    other dimensions changes in any bit. Through the function that attention itself calls. Rounding as in
    rotation-keeps-length."""
    from groundup.model import attention

    config = subject.micro
    if config.position != "rope" or config.latent is not None or config.rope_fraction == 1:
        raise NotApplicable("no head is rotated in part")
    model, length, dim = subject.build_model(), 24, round(config.head_dim * config.rope_fraction)
    x = torch.randn(1, length, 2, config.head_dim, generator=draw.generator(61))
    cos, sin = model.angles[:, :length].unsqueeze(-2).unsqueeze(1)
    turned = attention.rotate(x, cos, sin)
    turns, factor = rates(dim, config.rope_base, config.rope_scaling, length)
    angle = torch.outer(torch.arange(length).double(), turns)[:, None]
    a, b, half = x[..., : dim // 2].double(), x[..., dim // 2 : dim].double(), dim // 2
    expected = torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], dim=-1) * factor
    if not torch.equal(turned[..., dim:], x[..., dim:]):
        return Measurement(math.inf, 0.0, f"dimensions beyond the first {dim} change")
    size = float(x.abs().max()) * factor
    worst = rig.largest(turned[..., : 2 * half] - expected)
    return Measurement(worst, size * rig.EPS * (8 + 8 * length), f"{dim} of {config.head_dim} dimensions")
