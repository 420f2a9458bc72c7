"""Activation checkpointing: what a block computes again in the backward pass instead of keeping it.

Applied from outside, block by block, before compilation: the model knows nothing of it, and the names of its
parameters stay. Chen et al. 2016 (arXiv 1604.06174); selective: Korthikanti et al. 2022 (arXiv 2205.05198, section 5).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from groundup.model.block import Block
from groundup.model.moe import ExpertMLP
from groundup.model.transformer import Transformer

# What selective keeps: products of matrices and fused attention, nearly all of a block's time. Norms, rotations,
# activations and casts are computed again.
KEPT = {
    "aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_scaled_mm",
    "aten::_scaled_dot_product_flash_attention", "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_efficient_attention", "aten::_scaled_dot_product_cudnn_attention",
    "aten::_scaled_dot_product_fused_attention_overrideable", "groundup::attention", "groundup::linear",
    "flex_attention",
}  # fmt: skip

Contexts = tuple[AbstractContextManager[Any], AbstractContextManager[Any]]  # of the forward pass, and of the second


def recompute_blocks(model: Transformer, mode: str) -> None:
    """mode: none; block: each block keeps its input alone; selective: and what its matrix products and attention gave.

    Losses and gradients are those of `none`, bit for bit where the kernels are deterministic (dropout draws the same
    numbers again). To be called before `compile_blocks`; a second call replaces the first.
    """
    for block in model.blocks:
        assert isinstance(block, Block)
        vars(block).pop("forward", None)  # of an earlier call
        if mode != "none":
            block.forward = Recomputed(block, mode)  # type: ignore[assignment]


class Recomputed:
    """A block's forward pass, of which little is kept."""

    def __init__(self, block: Block, mode: str) -> None:
        self.plain: Callable[..., Tensor] = block.forward
        self.mode, self.mlp = mode, block.mlp

    def __call__(self, *given: Any) -> Tensor:
        if not torch.is_grad_enabled():  # validation, sampling, a reference model
            return self.plain(*given)
        if isinstance(self.mlp, ExpertMLP):
            return self.around_experts(*given)
        if self.mode == "selective":
            return checkpoint(self.plain, *given, use_reentrant=False, context_fn=selective)  # type: ignore[no-any-return]
        return checkpoint(self.plain, *given, use_reentrant=False)  # type: ignore[no-any-return]

    @torch.compiler.disable  # where a token goes cannot be compiled, nor what is around it
    def around_experts(self, *given: Any) -> Tensor:
        return checkpoint(self.plain, *given, use_reentrant=False, context_fn=self.contexts)  # type: ignore[no-any-return]

    def contexts(self) -> Contexts:
        """Experts count tokens and leave a loss behind on each pass: the second pass must do neither."""
        assert isinstance(self.mlp, ExpertMLP)
        first, second = selective() if self.mode == "selective" else (nullcontext(), nullcontext())
        return first, _again(self.mlp, self.mlp.real, second)


def selective() -> Contexts:
    return create_selective_checkpoint_contexts(_policy)  # type: ignore[no-any-return]


def _policy(_: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op.name().split(".")[0] in KEPT else CheckpointPolicy.PREFER_RECOMPUTE


@contextmanager
def _again(experts: ExpertMLP, real: Tensor | None, inner: AbstractContextManager[Any]) -> Iterator[None]:
    """The second pass sees the padding that the first one saw, and leaves loads and losses as they are now."""
    load, pending, now = experts.load.clone(), experts.pending, experts.real
    experts.real = real
    try:
        with inner:
            yield
    finally:
        experts.load.copy_(load)
        experts.pending, experts.real = pending, now
