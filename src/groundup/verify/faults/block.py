"""Faults of norms, of their places, of activations and of the head."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from groundup.model import mlp
from groundup.model.block import Parallel, SandwichNorm
from groundup.model.norm import Norm, RMSNorm
from groundup.model.transformer import Transformer
from groundup.verify.fault import fault, swapped


@fault(
    "sandwich-norm-skipped-in-a-layer",
    "block-is-its-arrangement",
    "forward-is-its-definition",
    model={"block": "sandwich"},
)
def sandwich_norm_skipped_in_a_layer() -> Iterator[None]:
    """In the second layer what attention gives is added without its norm."""
    right = SandwichNorm.forward

    def wrong(self: SandwichNorm, x: Tensor, *given: Any) -> Tensor:
        if self.attention.layer != 1:
            return right(self, x, *given)
        x = x + self.attention(self.norm1(x), *given)
        return x + self.norm2_out(self.mlp(self.norm2(x)))

    with swapped(SandwichNorm, forward=wrong):
        yield


@fault("parallel-in-sequence", "block-is-its-arrangement", model={"block": "parallel"})
def parallel_in_sequence() -> Iterator[None]:
    """The feed-forward reads the stream after attention: a pre-norm block under another name."""

    def wrong(self: Parallel, x: Tensor, *given: Any) -> Tensor:
        x = x + self.attention(self.norm1(x), *given)
        return x + self.mlp(self.norm2(x))

    with swapped(Parallel, forward=wrong):
        yield


@fault(
    "norm-offset-missing",
    "norms-are-their-formula",
    "norm-offset-starts-as-identity",
    model={"norm_offset": True},
)
def norm_offset_missing() -> Iterator[None]:
    """Norms multiply by their weight, not by 1 + weight."""
    with swapped(Norm, scale=lambda self: None if self.weight is None else self.weight.float()):
        yield


@fault("rmsnorm-takes-the-mean-off", "norms-are-their-formula", model={"norm": "rmsnorm"})
def rmsnorm_takes_the_mean_off() -> Iterator[None]:
    """RMSNorm subtracts the mean first: LayerNorm without a bias."""
    right = RMSNorm.forward
    with swapped(RMSNorm, forward=lambda self, x: right(self, x - x.mean(-1, keepdim=True))):
        yield


@fault("gelu-exact-for-its-tanh-form", "feed-forward-is-its-formula", model={"mlp": "gelu_tanh"})
def gelu_exact_for_its_tanh_form() -> Iterator[None]:
    """gelu_tanh computes the exact GELU: off by up to 5e-4 from what GPT-2's weights were trained with."""
    with swapped(mlp, ACTIVATIONS={**mlp.ACTIVATIONS, "gelu_tanh": F.gelu}):
        yield


@fault("logits-scaled-twice", "logits-scaled-and-capped-once", model={"logit_scale": 0.5})
def logits_scaled_twice() -> Iterator[None]:
    """logit_scale is applied in the head, and once more behind it."""
    right = Transformer.logits
    with swapped(Transformer, logits=lambda self, hidden: right(self, hidden) * self.config.output_scale):
        yield


@fault("cap-before-the-scale", "logits-scaled-and-capped-once", model={"logit_scale": 0.5, "logit_softcap": 3.0})
def cap_before_the_scale() -> Iterator[None]:
    """Logits are capped first and scaled then: the cap is another one."""

    def wrong(self: Transformer, hidden: Tensor) -> Tensor:
        cap = self.config.logit_softcap
        logits = F.linear(hidden, self.head.weight, self.head.bias).float()
        return self.config.output_scale * (cap * (logits / cap).tanh() if cap else logits)

    with swapped(Transformer, logits=wrong):
        yield
