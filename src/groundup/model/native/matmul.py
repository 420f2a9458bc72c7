"""Products of fp32 matrices through matmul.cpp, for training and scoring on AMD's CPUs with AVX-512.

MKL, which torch multiplies fp32 with, reaches 78 to 85% there of what a core can do, this kernel 88 to 93%
(docs/speed-training.md). On other makers' CPUs MKL is left in its place.
"""

from __future__ import annotations

import ctypes

import torch
import torch.nn.functional as F
from torch import Tensor

from groundup.model.native.build import cpu_vendor, library

ROWS = 256  # of the left matrix: for fewer, packing the right one costs more than is won
UNIT = 16  # columns come in so many


@torch.compiler.assume_constant_result
def available() -> bool:
    """Whether this machine has the kernel and gains by it; the first call may compile it."""
    return cpu_vendor() == "AuthenticAMD" and library("matmul") is not None


def serves(a: Tensor, b: Tensor) -> bool:
    """Whether the kernel computes a (M, K) b (K, N), and with it their gradients' products."""
    return (
        a.device.type == "cpu" == b.device.type
        and a.dtype == b.dtype == torch.float32
        and a.shape[0] >= ROWS
        and a.shape[1] % UNIT == 0
        and b.shape[1] % UNIT == 0
        and min(b.shape) > 0
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._are_functorch_transforms_active()  # torch.func.jvp would give tangents of 0
        and available()
    )


def _numbers(*values: int) -> ctypes.Array[ctypes.c_long]:
    return (ctypes.c_long * len(values))(*values)


def into(out: Tensor, a: Tensor, b: Tensor, add: bool = False) -> Tensor:
    """out (M, N) = a (M, K) b (K, N), or += with `add`. Any strides of a and b; the columns of `out` dense, N % 16 = 0.

    No autograd, and no check: see `serves`.
    """
    kernels = library("matmul")
    assert kernels is not None and out.stride(1) == 1
    kernels.matmul(
        _numbers(a.shape[0], b.shape[1], a.shape[1]),
        _numbers(*a.stride(), *b.stride(), out.stride(0)),
        *(ctypes.c_void_p(x.data_ptr()) for x in (a, b, out)),
        int(add),
        torch.get_num_threads(),
    )
    return out


@torch.library.custom_op("groundup::matmul", mutates_args=())
def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a (M, K) b (K, N) -> (M, N), fp32."""
    return into(a.new_empty(a.shape[0], b.shape[1]), a, b)


@matmul.register_fake
def _(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(a.shape[0], b.shape[1])


@torch.library.custom_op("groundup::linear", mutates_args=())
def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x (M, K), weight (N, K) -> x weight^T (M, N), fp32."""
    return into(x.new_empty(x.shape[0], weight.shape[0]), x, weight.t())


@linear.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


def _keep(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
    # The weight's gradient as grad^T x: the rows of it are dense, so autograd takes it as it is, without a copy.
    x, weight = ctx.saved_tensors
    of_x, of_weight = ctx.needs_input_grad
    return matmul(grad, weight) if of_x else None, matmul(grad.t(), x) if of_weight else None


linear.register_autograd(_backward, setup_context=_keep)


def apply_linear(x: Tensor, weight: Tensor) -> Tensor:
    """F.linear without a bias: x (..., K), weight (N, K) -> (..., N); through the kernel where it serves."""
    rows = x.reshape(-1, x.shape[-1])
    if not serves(rows, weight.t()):
        return F.linear(x, weight)
    return linear(rows, weight).view(*x.shape[:-1], len(weight))


def mm(a: Tensor, b: Tensor, out: Tensor | None = None, add: bool = False) -> Tensor:
    """torch.mm without autograd, into `out` where given (added to it with `add`); by the kernel where it serves."""
    if serves(a, b):
        return into(a.new_empty(a.shape[0], b.shape[1]) if out is None else out, a, b, add)
    if add:
        assert out is not None
        return out.addmm_(a, b)
    return torch.mm(a, b) if out is None else torch.mm(a, b, out=out)
