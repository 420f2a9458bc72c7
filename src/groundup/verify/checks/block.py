"""Does a layer put its parts together as its name says, and is each part what its formula says?"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from groundup.model.norm import Norm
from groundup.model.transformer import Transformer
from groundup.verify import draw, rig
from groundup.verify.check import Measurement, NotApplicable, check
from groundup.verify.reference import Reference, activation, arrange
from groundup.verify.subject import Subject


@check(
    "forward-is-its-definition",
    "identity",
    "model",
    bug="The model computes something near to the architecture that the recipe names; every loss looks sane.",
    remedy="The checks of attention, position, block and experts narrow it down; then read verify/reference.py.",
    reference="pytorch/torchtitan issue 1448; Cerebras/modelzoo pull 85; NVIDIA-NeMo/Megatron-Bridge pull 4201",
)
def forward_is_its_definition(subject: Subject) -> Measurement:
    """Largest difference between the model's logits and an independent fp64 computation of the recipe's architecture,
    written from the papers (`verify/reference.py`), for a plain row and two packed documents. Rounding only."""
    model, tokens = subject.build_model(), rig.random_tokens(subject, 2, 24, seed=70)
    worst, scale = 0.0, 0.0
    for given in ({}, rig.packed_row(9, 15)):
        expected = Reference(model).logits(tokens, **given)
        worst = max(worst, rig.largest(rig.logits_of(model, tokens, **given) - expected))
        scale = max(scale, rig.largest(expected))
    return Measurement(worst, rig.tolerance(subject.micro, scale))


@check(
    "block-is-its-arrangement",
    "identity",
    "model",
    bug="In some layer a norm is skipped, used twice or stands at another place: training is unstable, exports differ.",
    remedy="Compare the layer's forward in model/block.py with `arrange` in verify/reference.py.",
    reference="NVIDIA-NeMo/Speech issue 11951; NVIDIA-NeMo/Megatron-Bridge pull 4201; mlx-node/mlx-node pull 87",
)
def block_is_its_arrangement(subject: Subject) -> Measurement:
    """Largest difference, over all layers, between a block's output and its own attention, feed-forward and norms put
    together once more by the arrangement's formula. Three sums and the norms' own rounding, of the stream's size."""
    model, kind = subject.build_model(), subject.micro.block
    worst, bound, where = 0.0, math.inf, ""
    for layer, call in enumerate(rig.calls(model, "", rig.random_tokens(subject, 2, 24, seed=71))):
        block, (x, *rest) = model.blocks[layer], call.inputs
        with torch.no_grad():
            expected = arrange(
                kind,
                x,
                lambda name, y, block=block: block.get_submodule(name)(y),  # type: ignore[misc]
                lambda y, block=block, rest=rest: block.attention(y, *rest),  # type: ignore[misc]
                lambda y, block=block: block.mlp(y),  # type: ignore[misc]
            )
        limit = rig.EPS * 8 * rig.largest(expected)
        off = rig.largest(call.output - expected)
        if off / limit > worst:
            worst, where = off / limit, f"layer {layer}"
        bound = min(bound, limit)
    return Measurement(worst, 1.0, where or f"{kind}; 1 is at least {bound:.1e}")


@check(
    "norms-are-their-formula",
    "identity",
    "model",
    bug="A norm multiplies by its weight where it should by 1 + weight, or subtracts a mean it should not.",
    remedy="See model/norm.py: RMSNorm has no mean, norm_offset adds 1, fp32 inside.",
    reference="linkedin/Liger-Kernel issue 74; llmmanorg/llmman pull 151; huggingface/transformers pull 29402",
)
def norms_are_their_formula(subject: Subject) -> Measurement:
    """Largest difference of each norm's output to fp64, for inputs with a mean of 1; and, its weights put back to
    where they start (bias 0), of the root mean square of its output to 1 (LayerNorm: of the standard deviation).

    A mean of k squares is off by eps sqrt(k), relative; the rest are four roundings. norm_eps beside a mean square of
    1 and more lowers the second by norm_eps / 2 at most.
    """
    model, config = subject.build_model(), subject.micro
    reference = Reference(model)
    generator = draw.generator(72)
    worst, where = 0.0, ""
    for name, module in model.named_modules():
        if not isinstance(module, Norm):
            continue
        x = 1 + torch.randn(16, module.size[0], generator=generator)
        with torch.no_grad():
            found, expected = module(x), reference.norm(name, x.double())
            for parameter, start in ((module.weight, float(not config.norm_offset)), (module.bias, 0.0)):
                if parameter is not None:
                    parameter.fill_(start)
            unit = module(x).double()
        limit = rig.EPS * (4 + module.size[0] ** 0.5) * rig.largest(expected)
        off = rig.largest(found - expected) / limit
        variance = float((x.double() - x.mean(-1, keepdim=True)).square().mean(-1).min())
        square = variance if config.norm == "layernorm" else float(x.square().mean(-1).min())
        size = rig.largest(unit.square().mean(-1).sqrt() - 1) / (limit + config.norm_eps / (2 * square))
        if max(off, size) > worst:
            worst, where = max(off, size), name
    return Measurement(worst, 1.0, where)


@check(
    "feed-forward-is-its-formula",
    "identity",
    "model",
    bug="Another activation than the recipe names (GELU's tanh form for the exact one), or gate and up swapped.",
    remedy="See ACTIVATIONS and the order of gate and up in model/mlp.py and model/moe.py.",
    reference="huggingface/candle issue 3745; huggingface/transformers pull 29402; vllm-project/vllm pull 41574",
)
def feed_forward_is_its_formula(subject: Subject) -> Measurement:
    """Largest difference, over all layers (with experts: their outputs added up), between a feed-forward and fp64.

    The two forms of GELU are 5e-4 apart at most, far above rounding. Relu squared doubles an input's relative error.
    """
    model = subject.build_model()
    reference, worst, scale = Reference(model), 0.0, 0.0
    for layer, call in enumerate(rig.calls(model, "mlp", rig.random_tokens(subject, 2, 24, seed=73))):
        expected = reference.mlp(layer, call.inputs[0].double())
        worst, scale = max(worst, rig.largest(call.output - expected)), max(scale, rig.largest(expected))
    apart = rig.largest(activation("gelu", _line()) - activation("gelu_tanh", _line()))
    assert apart > 4e-4  # else this check could not tell them apart
    return Measurement(worst, 2 * rig.tolerance(subject.micro, scale), subject.micro.mlp)


def _line() -> Tensor:
    return torch.linspace(-4, 4, 801, dtype=torch.float64)


@check(
    "logits-scaled-and-capped-once",
    "identity",
    "model",
    bug="Logits are scaled twice, capped before they are scaled, or training and decoding scale them differently.",
    remedy="softcap(output_scale * head(x)), in Transformer.logits and nowhere else.",
    reference=(
        "unslothai/unsloth-zoo pull 593; NVIDIA-NeMo/Megatron-Bridge pull 4645; apple/ml-cross-entropy issue 48"
    ),
)
def logits_scaled_and_capped_once(subject: Subject) -> Measurement:
    """Largest difference between the logits of given hidden states and fp64: head (with its bias), logit_scale (under
    muP, times mup_width / d_model), cap; for hidden states of size 1 and of 50, where a cap is reached. In units of
    rounding. Infinite if a logit is above the cap."""
    config, model = subject.micro, subject.build_model()
    worst = 0.0
    for size in (1.0, 50.0):
        hidden = size * torch.randn(64, config.d_model, generator=draw.generator(74))
        with torch.no_grad():
            found = model.logits(hidden)
        expected = Reference(model).head(hidden.double())
        if config.logit_softcap and rig.largest(found) > config.logit_softcap * (1 + rig.EPS):
            return Measurement(math.inf, 1.0, f"a logit of {rig.largest(found):.3g}")
        # a cap's slope is at most 1: what is off before it is off by no more behind
        before = Reference(subject.build_model(logit_softcap=0.0)).head(hidden.double())
        worst = max(worst, rig.largest(found - expected) / rig.tolerance(config, rig.largest(before)))
    return Measurement(worst, 1.0, f"scale {config.output_scale:g}, cap {config.logit_softcap:g}")


@check(
    "norm-offset-starts-as-identity",
    "identity",
    "model",
    bug="The 1 of 1 + weight is missing (or added to a weight that starts at 1): fresh norms are 0, or double.",
    remedy="With norm_offset, weights start at 0 and scale() adds 1 (model/norm.py, model/init.py).",
    reference="huggingface/transformers pull 40796; kekzl/imp pull 459; utensils/mold pull 1078",
)
def norm_offset_starts_as_identity(subject: Subject) -> Measurement:
    """Largest difference of the logits between a fresh model whose norms have an offset, and the same without offset:
    weights at 0 on the one side and at 1 on the other are the same function. Infinite if a fresh weight is not 0."""
    if not subject.micro.norm_offset:
        raise NotApplicable("norm_offset is off")
    with_offset, without = (_fresh(subject, norm_offset=on) for on in (True, False))
    norms = [m.weight for m in with_offset.modules() if isinstance(m, Norm) and m.weight is not None]
    if any(bool(weight.any()) for weight in norms):
        return Measurement(math.inf, 0.0, "a weight does not start at 0")
    tokens = rig.random_tokens(subject, 2, 16, seed=75)
    expected = rig.logits_of(without, tokens)
    difference = rig.largest(rig.logits_of(with_offset, tokens) - expected)
    return Measurement(difference, rig.tolerance(subject.micro, rig.largest(expected)), f"{len(norms)} norms")


def _fresh(subject: Subject, **changes: Any) -> Transformer:
    return subject.build_model(awake=False, **changes).eval()
