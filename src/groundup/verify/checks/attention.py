"""Does attention look where the recipe says, at the keys it says, and weigh them as the formula does?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from groundup.model.attention import Attention
from groundup.model.latent import LatentAttention
from groundup.model.linear import PackedLinear
from groundup.model.transformer import Transformer
from groundup.verify import draw, rig
from groundup.verify.check import Measurement, NotApplicable, check
from groundup.verify.reference import Reference
from groundup.verify.subject import Subject

PACKED = (9, 15)  # tokens of the two documents in a packed row


def settings(length: int = sum(PACKED)) -> Iterator[tuple[str, dict[str, Any]]]:
    """A plain row, and one of two documents."""
    yield "plain", {"positions": torch.arange(length).expand(2, -1)}
    yield "packed", rig.packed_row(*PACKED)


def against_reference(model: Transformer, seed: int) -> Measurement:
    """Largest difference between each layer's attention and the fp64 formula, given the same inputs.

    A score of size s is off by its rounding times s, and a softmax weight by as much of itself: tolerance times
    (1 + s), s the largest score before a cap.
    """
    reference, config = Reference(model), model.config
    tokens = torch.randint(config.vocab_size, (2, sum(PACKED)), generator=draw.generator(seed))
    worst, bound = 0.0, math.inf
    for _, given in settings():
        for layer, call in enumerate(rig.calls(model, "attention", tokens, **given)):
            documents, positions = given.get("documents"), given["positions"]
            x = call.inputs[0].double()
            expected = reference.attention(layer, x, documents, positions)
            q, k, _ = reference.heads(layer, x, documents, positions)
            scores = rig.largest(torch.einsum("bqhd,bkhd->bhqk", q, k)) / math.sqrt(config.score_dim or q.shape[-1])
            limit = rig.tolerance(config, rig.largest(expected)) * (1 + scores)
            worst, bound = max(worst, rig.largest(call.output - expected) / limit), min(bound, limit)
    return Measurement(worst, 1.0, f"{config.n_layers} layers, plain and packed; 1 is at least {bound:.1e}")


@check(
    "attention-is-its-formula",
    "identity",
    "model",
    bug="Attention computes something near to what its name says: another scale, norm, head or dimension.",
    remedy="Compare model/attention.py (latent.py) with Reference.attention in verify/reference.py, line by line.",
    reference="mlc-ai/mlc-llm pull 3426; antonellof/ferrox issue 40; ollama/ollama pull 13893",
)
def attention_is_its_formula(subject: Subject) -> Measurement:
    """Largest difference between each layer's attention and an independent fp64 computation, over its rounding.

    With everything in it that the recipe chooses: groups, QK-norm, rotation, scale, cap, bias, window, sinks, biases.
    """
    return against_reference(subject.build_model(), seed=51)


def projections(model: Transformer) -> list[PackedLinear]:
    """The packed projection of queries, keys and values of each layer."""
    return [m for name, m in model.named_modules() if isinstance(m, PackedLinear) and name.endswith(".qkv")]


@check(
    "qk-norm-in-every-layer",
    "sensitivity",
    "model",
    bug="QK-norm is missing in a layer (or there though switched off): logits of attention can grow without limit.",
    remedy="See model/attention.py: q and k are normalised before the rotation; in latent.py, the bottlenecks are.",
    reference="EleutherAI/gpt-neox pull 1367; unslothai/unsloth pull 2427; lablup/mlxcel issue 316",
)
def qk_norm_in_every_layer(subject: Subject) -> Measurement:
    """Largest change of the logits when one layer's query (then key) weights are multiplied by 4, over all layers.

    With QK-norm nothing may change but rounding (norm_eps is taken down to 1e-12, beside which the smallest mean square
    here is large). The same for the bottlenecks of latent attention. Without QK-norm, the smallest change must be above
    rounding: the switch does something.
    """
    config, tokens, changes = subject.micro, rig.random_tokens(subject, 2, 16, seed=23), []
    plain = rig.logits_of(subject.build_model(norm_eps=1e-12), tokens)
    bound = rig.tolerance(config, rig.largest(plain))
    for layer in range(config.n_layers):
        for part in (0, 1):
            model = subject.build_model(norm_eps=1e-12)
            attention = model.get_submodule(f"blocks.{layer}.attention")
            if config.latent is not None and part == 0 and not config.latent.q_rank:
                continue
            with torch.no_grad():
                for rows in made(attention, part):
                    rows.mul_(4)
            changes.append(rig.largest(rig.logits_of(model, tokens) - plain))
    if config.qk_norm != "none" or config.latent is not None:
        return Measurement(max(changes), bound, f"{len(changes)} projections")
    return Measurement(min(changes), bound, "qk_norm is off: queries and keys must matter in size", ">=")


def made(attention: nn.Module, part: int) -> list[Tensor]:
    """The rows (and biases) that make queries (0) or keys (1): of latent attention, their bottlenecks."""
    if isinstance(attention, LatentAttention):
        return [attention.kv_down.weight.split(attention.kv_down.sizes)[0] if part else attention.q_down.weight]
    assert isinstance(attention, Attention)
    qkv = attention.qkv
    return [t.split(qkv.sizes)[part] for t in (qkv.weight, qkv.bias) if t is not None]


@check(
    "grouped-queries-share-in-order",
    "invariance",
    "model",
    bug="Query head h reads the keys of the wrong group: harmless alone, garbage once exported or tensor-parallel.",
    remedy="Key/value head h // group serves query head h: repeat_interleave, not repeat.",
    reference="onnx/onnx pull 7274; apple/axlearn pull 842",
)
def grouped_queries_share_in_order(subject: Subject) -> Measurement:
    """Largest difference to a multi-head model whose key and value heads are copies, head h of h // group.

    The two compute the same function (a norm over all keys has the same mean square over copies); rounding only.
    """
    config = subject.micro
    group = config.n_heads // config.n_kv_heads
    if group == 1:
        raise NotApplicable("as many key/value heads as query heads")
    model, wide = subject.build_model(), subject.build_model(n_kv_heads=config.n_heads)

    def copied(part: Tensor) -> Tensor:
        return torch.cat([part.split(config.head_dim)[h // group] for h in range(config.n_heads)])

    state = model.state_dict()
    for name, value in state.items():
        if ".qkv." in name:
            q, k, v = value.split(projections(model)[0].sizes)
            state[name] = torch.cat([q, copied(k), copied(v)])
        elif ".k_norm." in name and config.qk_norm == "full":
            state[name] = copied(value)
    wide.load_state_dict(state)
    tokens = rig.random_tokens(subject, 2, 16, seed=24)
    expected = rig.logits_of(wide, tokens)
    difference = rig.largest(rig.logits_of(model, tokens) - expected)
    return Measurement(difference, rig.tolerance(config, rig.largest(expected)), f"{group} query heads a group")
