"""Are capped scores capped where they should be, and do sinks only take?"""

from __future__ import annotations

import math

import torch
from torch import nn

from groundup.model.attention import Attention
from groundup.model.latent import LatentAttention
from groundup.model.norm import Norm
from groundup.model.transformer import Transformer
from groundup.verify import rig
from groundup.verify.check import Measurement, NotApplicable, check
from groundup.verify.checks.attention import against_reference, made
from groundup.verify.subject import Subject


@check(
    "score-cap-before-mask",
    "identity",
    "model",
    bug="Scores are capped after the mask: tanh(-inf) is -1, and every token leaks in with a weight of e^-cap.",
    remedy="cap tanh(score / cap) first, -inf after it (explicit_attention in model/attention.py).",
    reference="emmtrix/emx-onnx-cgen pull 731; Dao-AILab/flash-attention pull 1025; arXiv 2408.00118, section 2",
)
def score_cap_before_mask(subject: Subject) -> Measurement:
    """Largest difference between each layer's attention and the fp64 formula, over its rounding, with queries four
    times as large: their scores then reach far past the cap. Infinite if without a cap all were the same."""
    if not subject.micro.attention_softcap:
        raise NotApplicable("scores have no cap")
    models = [subject.build_model(attention_softcap=cap) for cap in (subject.micro.attention_softcap, 0.0)]
    for model in models:
        for layer in range(model.config.n_layers):
            _louder(model.get_submodule(f"blocks.{layer}.attention"), 4.0)
    tokens = rig.random_tokens(subject, 2, 16, seed=54)
    if not rig.differing(subject.micro, *(rig.logits_of(model, tokens) for model in models)).any():
        return Measurement(math.inf, 1.0, "the cap does nothing")
    return against_reference(models[0], seed=54)


@torch.no_grad()
def _louder(attention: nn.Module, factor: float) -> None:
    """Multiply a layer's queries, behind their norm where there is one."""
    if isinstance(attention, LatentAttention):
        (attention.q_up if attention.latent.q_rank else attention.q).weight.mul_(factor)
        return
    assert isinstance(attention, Attention)
    norm = attention.q_norm
    if isinstance(norm, Norm) and norm.weight is not None:
        norm.weight.mul_(factor).add_(factor - 1 if norm.offset else 0.0)
        return
    for rows in made(attention, 0):
        rows.mul_(factor)


@check(
    "sinks-take-and-give-nothing",
    "identity",
    "model",
    bug="A sink has a value, or is left out of the softmax's sum: heads cannot rest, or are all scaled alike.",
    remedy="A sink is one more exp() in the denominator and nothing above it (explicit_attention).",
    reference=(
        "NVIDIA/TransformerEngine issue 2541; vllm-project/vllm-metal pull 550; sgl-project/sgl-kernel-npu pull 216"
    ),
)
def sinks_take_and_give_nothing(subject: Subject) -> Measurement:
    """Largest difference, over rounding, between each layer's attention and the fp64 formula with its sinks, with
    sinks of 4 (most of the attention is gone) and of -4; and to the same model without sinks, with sinks of -40:
    e^-40 is below eps times any other weight."""
    if not subject.micro.sinks:
        raise NotApplicable("attention has no sinks")
    worst = Measurement(0.0, 1.0)
    for level in (None, 4.0, -4.0):
        model = subject.build_model()
        if level is not None:
            _set_sinks(model, level)
        found = against_reference(model, seed=55)
        worst = max(worst, found, key=lambda m: m.value)
    model, bare = subject.build_model(), subject.build_model(sinks=False)
    _set_sinks(model, -40.0)
    bare.load_state_dict({name: value for name, value in model.state_dict().items() if not name.endswith("sinks")})
    tokens = rig.random_tokens(subject, 2, 16, seed=55)
    expected = rig.logits_of(bare, tokens)
    off = rig.largest(rig.logits_of(model, tokens) - expected) / rig.tolerance(subject.micro, rig.largest(expected))
    return max(worst, Measurement(off, 1.0, "against no sinks at all"), key=lambda m: m.value)


@torch.no_grad()
def _set_sinks(model: Transformer, level: float) -> None:
    for name, parameter in model.named_parameters():
        if name.endswith("sinks"):
            parameter.fill_(level)
