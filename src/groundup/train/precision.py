"""Number formats and compilation, applied from outside the model."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import nn


def autocast(device: str, precision: str) -> AbstractContextManager[None]:
    """Matmuls in bf16, with fp32 weights, norms, softmax statistics and loss."""
    return torch.autocast(device, torch.bfloat16, enabled=precision == "bf16")


def compile_blocks(model: nn.Module) -> None:
    """Compile each block in place: state-dict names stay clean, and equal blocks share one compilation.

    What was compiled before in this process is forgotten: the compiler takes a size that it has seen change (a
    verifier's micro-model, another stage's batch) for dynamic, and would compute with other kernels than a resumed run.
    """
    torch.compiler.reset()
    for block in model.blocks:  # type: ignore[union-attr]
        block.compile()
