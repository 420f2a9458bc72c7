"""Do the variants that the recipe asks for do what their names say? Positions, QK-norm, grouped queries."""

from __future__ import annotations

from typing import Any

import torch

from groundup.model import position
from groundup.model.attention import PackedLinear
from groundup.model.transformer import Transformer
from groundup.verify import rig
from groundup.verify.check import Measurement, NotApplicable, check
from groundup.verify.subject import Subject


@check(
    "rope-depends-on-distance",
    "invariance",
    "model",
    bug="Queries and keys are not both rotated (or not alike): scores depend on where a text stands.",
    remedy="Rotate q and k by the same table, before k goes into the cache; see model/attention.py.",
    reference="Su et al. 2021, arXiv 2104.09864, equation 16",
)
def rope_depends_on_distance(subject: Subject) -> Measurement:
    """Largest change of the logits when every position is shifted by 40, the tokens being the same.

    Scores are functions of distance, so only rounding may show: that of the arithmetic (`rig.tolerance`), and that
    of the angles, which are off by up to eps / 2 times the largest position, in each of q and k, in each layer.
    """
    if subject.micro.position != "rope":
        raise NotApplicable(f"position is {subject.micro.position}")
    model, length, shift = subject.build_model(), 20, 40
    tokens = rig.random_tokens(subject, 2, length, seed=20)
    near = rig.logits_of(model, tokens)
    far = rig.logits_of(model, tokens, positions=(torch.arange(length) + shift)[None])
    scale = rig.largest(near)
    angles = rig.EPS * (length + shift) * subject.micro.head_dim**0.5 * subject.micro.n_layers * scale
    return Measurement(rig.largest(far - near), rig.tolerance(subject.micro, scale) + angles)


@check(
    "positions-matter",
    "sensitivity",
    "model",
    bug="The position encoding is computed and never applied: the model sees a bag of words and still learns a little.",
    remedy="See how Transformer.forward hands angles (or position embeddings) on, and `rotate`.",
)
def positions_matter(subject: Subject) -> Measurement:
    """Smallest change at any later position when distances between tokens are doubled; must be above rounding.

    The angles of neighbours change by a whole radian, so the effect of a working encoding is of order 1, far above
    the tolerance of rounding that is the bound here.
    """
    model, length = subject.build_model(), 20
    tokens = rig.random_tokens(subject, 2, length, seed=21)
    plain = rig.logits_of(model, tokens)
    doubled = rig.logits_of(model, tokens, positions=(2 * torch.arange(length))[None])
    smallest = float((plain - doubled)[:, 1:].abs().amax(-1).min())
    return Measurement(smallest, 10 * rig.tolerance(subject.micro, rig.largest(plain)), direction=">=")


@check(
    "rope-table-precise",
    "identity",
    "model",
    bug="Angles kept in bf16 or fp16: past a few hundred positions they are noise, and long contexts stop working.",
    remedy="Keep the table in fp32 (model/position.py); cast what is rotated, not the angles.",
    reference="Su et al. 2021, arXiv 2104.09864, equation 15",
)
def rope_table_precise(subject: Subject) -> Measurement:
    """Largest error of cos and sin in the built model's table, against fp64, at the recipe's own context and base.

    An angle p w is a product of two fp32 roundings (of w, through a power, and of the product): relative error at
    most about 4 eps with p up to the context; cos and sin have slope at most 1 and round once more.
    """
    if subject.micro.position != "rope":
        raise NotApplicable(f"position is {subject.micro.position}")
    config = subject.config or subject.micro
    changes: dict[str, Any] = {"context": config.context, "head_dim": config.head_dim, "rope_base": config.rope_base}
    model = subject.build_model(awake=False, **changes)
    rate = config.rope_base ** (-torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim)
    angle = torch.outer(torch.arange(config.context, dtype=torch.float64), rate).repeat(1, 2)
    exact = torch.stack([angle.cos(), angle.sin()])
    return Measurement(
        rig.largest(model.angles.double() - exact),
        rig.EPS * (4 * config.context + 1),
        f"context {config.context}",
    )


@check(
    "rotation-keeps-length",
    "identity",
    "model",
    bug="The rotation mixes up its halves: it stretches vectors, or pairs dimensions that turn at different rates.",
    remedy="Half-split layout: dimension i turns with i + head_dim / 2 (model/position.py).",
    reference="Su et al. 2021, arXiv 2104.09864: the rotation is orthogonal",
)
def rotation_keeps_length(subject: Subject) -> Measurement:
    """Largest relative change of |x| under `rotate`, and of the score q k when both are shifted by 11 places.

    4 products and 2 sums a number: 8 roundings, plus the angles' own, at most eps / 2 times the position.
    """
    if subject.micro.position != "rope":
        raise NotApplicable(f"position is {subject.micro.position}")
    head_dim, length, shift = subject.micro.head_dim, 40, 11
    cos, sin = position.rope_table(length + shift, head_dim, subject.micro.rope_base).unsqueeze(-2).unsqueeze(1)
    generator = torch.Generator().manual_seed(22)
    x = torch.randn(1, length, 3, head_dim, generator=generator)
    near = position.rotate(x, cos[:, :length], sin[:, :length])
    far = position.rotate(x, cos[:, shift:], sin[:, shift:])
    stretched = rig.largest(near.norm(dim=-1) / x.norm(dim=-1) - 1)
    size = float(x.square().sum(-1).max())
    scores = [torch.einsum("bthd,bshd->bhts", y, y) for y in (near, far)]
    moved = rig.largest(scores[0] - scores[1]) / size
    return Measurement(max(stretched, moved), rig.EPS * (8 + 2 * (length + shift)))


def projections(model: Transformer) -> list[PackedLinear]:
    """The packed projection of queries, keys and values of each layer."""
    return [m for name, m in model.named_modules() if isinstance(m, PackedLinear) and name.endswith(".qkv")]


@check(
    "qk-norm-in-every-layer",
    "sensitivity",
    "model",
    bug="QK-norm is missing in a layer (or there though switched off): logits of attention can grow without limit.",
    remedy="See model/attention.py: both q and k are normalised, per head, before the rotation.",
    reference="Henry et al. 2020, arXiv 2010.04245; Qwen3 technical report, arXiv 2505.09388",
)
def qk_norm_in_every_layer(subject: Subject) -> Measurement:
    """Largest change of the logits when one layer's query (then key) weights are multiplied by 4, over all layers.

    With QK-norm nothing may change but rounding, and norm_eps beside the mean square m of a head: relative
    norm_eps / (2 m), taken at m = 0.05, the smallest a head of 8 has here. Without QK-norm, the smallest change
    must be above that bound: the switch does something.
    """
    tokens = rig.random_tokens(subject, 2, 16, seed=23)
    plain = rig.logits_of(subject.build_model(), tokens)
    bound = rig.tolerance(subject.micro, rig.largest(plain)) + subject.micro.norm_eps / 0.1 * rig.largest(plain)
    changes = []
    for layer in range(subject.micro.n_layers):
        for part in (0, 1):
            model = subject.build_model()
            qkv = projections(model)[layer]
            with torch.no_grad():
                for tensor in (qkv.weight, qkv.bias):
                    if tensor is not None:
                        tensor.split(qkv.sizes)[part].mul_(4)
            changes.append(rig.largest(rig.logits_of(model, tokens) - plain))
    if subject.micro.qk_norm:
        return Measurement(max(changes), bound, f"{len(changes)} projections")
    return Measurement(min(changes), bound, "qk_norm is off: queries and keys must matter in size", ">=")


@check(
    "grouped-queries-share-in-order",
    "invariance",
    "model",
    bug="Query head h reads the keys of the wrong group: harmless alone, garbage once exported or tensor-parallel.",
    remedy="Key/value head h // group serves query head h: repeat_interleave, not repeat.",
    reference="Ainslie et al. 2023, arXiv 2305.13245",
)
def grouped_queries_share_in_order(subject: Subject) -> Measurement:
    """Largest difference to a multi-head model whose key and value heads are copies, head h of h // group.

    The two compute the same function; rounding only.
    """
    config = subject.micro
    group = config.n_heads // config.n_kv_heads
    if group == 1:
        raise NotApplicable("as many key/value heads as query heads")
    model, wide = subject.build_model(), subject.build_model(n_kv_heads=config.n_heads)
    own = model.state_dict()
    state = {name: value for name, value in own.items() if ".qkv." not in name}
    for name in own.keys() - state.keys():
        q, k, v = own[name].split(projections(model)[0].sizes)
        copies = [
            torch.cat([part.split(config.head_dim)[h // group] for h in range(config.n_heads)]) for part in (k, v)
        ]
        state[name] = torch.cat([q, *copies])
    wide.load_state_dict(state)
    tokens = rig.random_tokens(subject, 2, 16, seed=24)
    expected = rig.logits_of(wide, tokens)
    difference = rig.largest(rig.logits_of(model, tokens) - expected)
    return Measurement(difference, rig.tolerance(config, rig.largest(expected)), f"{group} query heads a group")
