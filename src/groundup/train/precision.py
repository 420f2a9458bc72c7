"""Number formats and compilation, applied from outside the model."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import nn

from groundup.errors import UserError, missing_extra
from groundup.model.flex import BlockMasks
from groundup.model.linear import PackedLinear
from groundup.model.transformer import Transformer

HALF = {"bf16": torch.bfloat16, "float8": torch.bfloat16, "fp16": torch.float16}  # what autocast multiplies in
FLOAT8_MULTIPLE = 16  # rows and columns of a float8 product come in so many (torch._scaled_mm)


def autocast(device: str, precision: str) -> AbstractContextManager[None]:
    """Matmuls in bf16 or fp16, with fp32 weights, norms, softmax statistics and loss."""
    return torch.autocast(device, HALF.get(precision, torch.bfloat16), enabled=precision in HALF)


def use_float8(model: nn.Module, device: str, emulate: bool = False) -> None:
    """Products of the blocks' linear layers in float8, by torchao's dynamic scaling of whole tensors; in place.

    The parameters stay the same objects, in fp32, under the same names: optimizers and checkpoints see no difference.
    Embedding, head and routers stay in bf16 (Micikevicius et al. 2022, arXiv 2209.05433, keep the ends apart too), and
    so do layers whose sides are no multiples of 16. To be called after the optimizers are made and before compilation,
    without which it is slower than bf16. emulate: torchao rounds to float8 and multiplies in fp32, on any device, for
    tests. Errors: UserError off CUDA, or without torchao. Its speed was never measured (docs/gpu.md).
    """
    if device != "cuda" and not emulate:
        raise UserError("precision float8 is for CUDA (compute capability 8.9 or later): use bf16 here")
    try:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    except ImportError as error:
        raise missing_extra("float8", "torchao") from error
    sizes = {name: module.sizes for name, module in model.named_modules() if isinstance(module, PackedLinear)}
    # The weights' gradient is a product over the tokens, whose number need be no multiple of 16 (pytorch/ao issue 571).
    # Where it is one, the compiler leaves the padding out.
    config = Float8LinearConfig(pad_inner_dim=True, emulate=emulate)
    convert_to_float8_training(model, module_filter_fn=suits_float8, config=config)
    for name, seams in sizes.items():  # the layers are other objects now; attention and Muon ask for their seams
        model.get_submodule(name).sizes = seams  # type: ignore[assignment]


def suits_float8(module: nn.Module, name: str) -> bool:
    """Whether a layer's products run in float8."""
    return (
        isinstance(module, nn.Linear)
        and "blocks." in name
        and not name.endswith("router")
        and module.in_features % FLOAT8_MULTIPLE == 0
        and module.out_features % FLOAT8_MULTIPLE == 0
    )


def compile_blocks(model: nn.Module) -> None:
    """Compile each block in place: state-dict names stay clean, and equal blocks share one compilation.

    On CUDA masks of documents and windows are then given in blocks, which need a compiler (`model.flex`).
    What was compiled before in this process is forgotten: the compiler takes a size that it has seen change (a
    verifier's micro-model, another stage's batch) for dynamic, and would compute with other kernels than a resumed run.
    """
    torch.compiler.reset()
    # Masks in blocks or none, windows or not, with gradients or not, by two models: each has a graph of the same code,
    # and past the limit a block would run uncompiled, FlexAttention with all its scores in memory.
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    for block in model.blocks:  # type: ignore[union-attr]
        block.compile()
    if isinstance(model, Transformer):
        model.mask = BlockMasks(model)  # type: ignore[method-assign, assignment]
