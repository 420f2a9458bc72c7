"""Cross-entropy from hidden states, chunk by chunk: the logits of a whole batch never exist.

A vocabulary of 50,000 makes logits the largest tensor of a step by far: 8,192 tokens take 1.6 GB in fp32, and autograd
keeps their log-softmax and makes a gradient of the same size. Here a chunk of places is turned into logits, loss and at
once into gradients, in buffers that the next chunk uses again (Liger Kernel, arXiv 2410.10989; Cut Cross-Entropy,
arXiv 2411.09009; here in plain PyTorch). Losses are a SUM and a count: the loop divides once, over every micro-batch
and rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from groundup.model.native.matmul import mm
from groundup.model.transformer import Transformer

IGNORE = -100
# Measured by bench/loss.py (docs/memory.md). A chunk is one product with the head's matrix: the larger, the faster.
# Of it, a slice is turned into softmax at once: the smaller, the more of it is still in the cache.
CHUNK_BYTES = {
    "cpu": 128 << 20,
    "cuda": 1 << 30,
}  # of a chunk's logits, in the precision of the products; cuda not tuned
SLICE_BYTES = {"cpu": 4 << 20, "cuda": 1 << 30}  # of a slice's logits, in fp32
HALF_SCALE = 1024.0  # fp16 holds nothing below 6e-8, and most probabilities of a large vocabulary are smaller


@dataclass(frozen=True)
class Head:
    """What `Transformer.logits` does after the product: logits = cap(scale * product), over the temperature."""

    scale: float = 1.0
    softcap: float = 0.0
    z_loss: float = 0.0  # weight of logsumexp^2 in the loss of a place
    temperature: float = 1.0
    dtype: torch.dtype = torch.float32  # of the products

    @classmethod
    def of(cls, model: Transformer, hidden: Tensor, z_loss: float = 0.0, temperature: float = 1.0) -> Head:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        return cls(model.config.output_scale, model.config.logit_softcap, z_loss, temperature, dtype)


def cross_entropy_sum(model: Transformer, hidden: Tensor, targets: Tensor, z_loss: float = 0.0) -> tuple[Tensor, int]:
    """hidden (B, T, D), targets (B, T) with -100 = not scored -> (sum of negative log-likelihoods in nats, n).

    z_loss: adds that many times logsumexp(logits)^2 for each scored place (PaLM, arXiv 2204.02311, section 5: 1e-4).
    The logits are computed for scored positions only, and the mask of the sum is the mask of the count. Gradients are
    computed with the loss, so they can be had once: no second backward pass through it.
    """
    hidden, targets, n = _scored(hidden, targets)
    if n == 0:
        return 0.0 * (hidden.sum() + model.head.weight.sum()), 0  # a graph, whose gradient is zero
    head = Head.of(model, hidden, z_loss)
    return _Sum.apply(hidden, model.head.weight, model.head.bias, targets, head, torch.is_grad_enabled()), n  # type: ignore[no-any-return]


def token_logprobs(model: Transformer, hidden: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """log p(target) at each position, (B, T) fp32; 0 where the target is -100.

    What each place's gradient is multiplied by is not known yet: the backward pass computes the logits again.
    """
    scored = targets != IGNORE
    rows, asked, n = _scored(hidden, targets)
    out = torch.zeros(targets.shape, dtype=torch.float32, device=hidden.device)
    if n == 0:
        return out + 0.0 * (hidden.sum() + model.head.weight.sum())
    head = Head.of(model, hidden, temperature=temperature)
    return out.masked_scatter(scored, _Logprobs.apply(rows, model.head.weight, model.head.bias, asked, head))


def _scored(hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, int]:
    """The places that are scored, (n, D) and (n,), and n."""
    scored = targets != IGNORE
    n = int(scored.sum())
    if n < targets.numel():
        return hidden[scored], targets[scored], n
    return hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1), n


class _Sum(torch.autograd.Function):
    """(n, D), (V, D), (V,) or None, (n,) -> the summed loss, fp32. Gradients are made on the way forward."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, head: Head, train: bool
    ) -> Tensor:
        wanted = ctx.needs_input_grad[:3] if train else (False, False, False)
        sweep = Sweep(hidden, weight, bias, targets, head, wanted)
        ctx.gradients = sweep.gradients()
        return sweep.losses.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Any, ...]:
        given, ctx.gradients = ctx.gradients, None  # given away: autograd makes the head's its .grad without a copy
        if given is None:
            raise RuntimeError("cross_entropy_sum: its gradients were computed once and are used; compute it again")
        (factor,) = outer
        if factor.device.type != "cpu" or float(factor) != 1.0:  # no pass over the head's gradient for nothing
            for gradient in given:
                if gradient is not None:
                    gradient.mul_(factor)
        return (*given, None, None, None)


class _Logprobs(torch.autograd.Function):
    """(n, D), (V, D), (V,) or None, (n,) -> log-probabilities of the targets (n,), fp32."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, head: Head) -> Tensor:
        ctx.save_for_backward(hidden, weight, bias, targets)
        ctx.head = head
        return -Sweep(hidden, weight, bias, targets, head).losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Any, ...]:
        hidden, weight, bias, targets = ctx.saved_tensors
        sweep = Sweep(hidden, weight, bias, targets, ctx.head, ctx.needs_input_grad[:3], -outer[0].float())
        return (*sweep.gradients(), None, None)


class Sweep:
    """One pass over all places: `losses` (n,) fp32, and the gradients that are wanted of (hidden, weight, bias).

    factors: what the gradient of each place's loss is multiplied by, (n,); None = 1.
    """

    def __init__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, head: Head,
        wanted: tuple[bool, bool, bool] = (False, False, False), factors: Tensor | None = None,
    ) -> None:  # fmt: skip
        self.given, self.head, self.wanted = (hidden, weight, bias), head, wanted
        n, vocab = len(hidden), len(weight)
        self.rows = chunk_rows(n, head.dtype.itemsize * vocab, CHUNK_BYTES.get(hidden.device.type, 1 << 30))
        few = chunk_rows(self.rows, 4 * vocab, SLICE_BYTES.get(hidden.device.type, 1 << 30))
        self.lifted = HALF_SCALE if head.dtype == torch.float16 else 1.0
        self.losses = hidden.new_empty(n, dtype=torch.float32)
        self.of_hidden = torch.empty_like(hidden, memory_format=torch.contiguous_format) if wanted[0] else None
        self.of_weight: Tensor | None = None
        self.of_bias = weight.new_zeros(vocab, dtype=torch.float32) if wanted[2] else None
        low, matrix = hidden.to(head.dtype), weight.to(head.dtype)
        products = low.new_empty(self.rows, vocab)
        slices = hidden.new_empty(2, few, vocab, dtype=torch.float32)
        for start in range(0, n, self.rows):
            part = slice(start, min(start + self.rows, n))
            chunk = mm(low[part], matrix.t(), out=products[: part.stop - start])
            for at in range(0, len(chunk), few):
                here = slice(start + at, min(start + at + few, part.stop))
                piece = chunk[at : at + few]
                factor = None if factors is None else factors[here, None]
                self.losses[here] = self._softmax(piece, targets[here, None], slices[:, : len(piece)], factor)
            self._products(chunk, low[part], matrix, part)

    def _softmax(self, piece: Tensor, targets: Tensor, room: Tensor, factor: Tensor | None) -> Tensor:
        """piece (rows, V): products of the hidden states with the head's matrix, overwritten with their gradient.

        Returns the losses, (rows,). room (2, rows, V) fp32: where it is computed. The row's largest probability is
        1 / sum(exp(logit - largest)), so one pass of softmax gives the log of the sum too.
        """
        head, (logits, p) = self.head, room
        logits.copy_(piece)
        if (bias := self.given[2]) is not None:
            logits.add_(bias.float())
        if head.scale != 1.0:
            logits.mul_(head.scale)
        if head.softcap:
            logits.div_(head.softcap).tanh_().mul_(head.softcap)
        if head.temperature != 1.0:
            logits.div_(head.temperature)
        torch.softmax(logits, -1, out=p)
        largest, log_share = logits.amax(-1, keepdim=True), p.amax(-1, keepdim=True).log_()
        losses = (largest - logits.gather(1, targets)) - log_share  # in this order: exact where the target is likely
        log_sum = largest - log_share
        if any(self.wanted):
            at_target = torch.expm1(-losses)  # p - 1 of the target
            if head.z_loss:
                more = 2 * head.z_loss * log_sum
                at_target += more * torch.exp(-losses)
                p.mul_(1 + more)
            p.scatter_(1, targets, at_target)
            self._through_cap(p, logits)
            if factor is not None:
                p.mul_(factor)
            if self.of_bias is not None:
                self.of_bias += p.sum(0)
            if self.lifted != 1.0:
                p.mul_(self.lifted)
            piece.copy_(p)
        return (losses + head.z_loss * log_sum.square() if head.z_loss else losses)[:, 0]

    def _through_cap(self, gradient: Tensor, logits: Tensor) -> None:
        """From the gradient of the logits to that of the products, in place; `logits` is used up."""
        head = self.head
        if head.softcap:  # d/dx c tanh(x / c) = 1 - tanh(x / c)^2
            gradient.mul_(logits.mul_(head.temperature / head.softcap).square_().neg_().add_(1))
        if head.scale != head.temperature:
            gradient.mul_(head.scale / head.temperature)

    def _products(self, chunk: Tensor, hidden: Tensor, matrix: Tensor, part: slice) -> None:
        """A chunk's share of the gradients of hidden states and matrix."""
        if self.of_hidden is not None:
            if chunk.dtype == self.of_hidden.dtype and self.lifted == 1:
                mm(chunk, matrix, out=self.of_hidden[part])
            else:
                share = torch.mm(chunk, matrix)
                self.of_hidden[part] = share / self.lifted if self.lifted != 1 else share
        if not self.wanted[1]:
            return
        if chunk.dtype == torch.float16:
            share = self._half_product(chunk, hidden)
            self.of_weight = share if self.of_weight is None else self.of_weight.add_(share)
        elif self.of_weight is None:
            self.of_weight = mm(chunk.t(), hidden).float()
        elif chunk.dtype == torch.float32:
            mm(chunk.t(), hidden, out=self.of_weight, add=True)
        else:  # the sum over chunks is fp32: in bf16 a hundred of them would be lost in the rounding of the next
            self.of_weight += torch.mm(chunk.t(), hidden)

    def _half_product(self, chunk: Tensor, hidden: Tensor) -> Tensor:
        """chunk^T hidden in fp32, of fp16 factors: a sum over thousands of places, lifted, goes beyond fp16's 65504.

        No loss scale could save it, which is applied later. So the hidden states are divided, by a power of two, as far
        as the largest sum there can be asks for.
        """
        most = len(chunk) * self.lifted * hidden.abs().amax().float()
        down = torch.exp2(torch.log2(2.0**15 / most).floor()).clamp(max=1.0)
        return torch.mm(chunk.t(), hidden * down).float().div_(down)

    def gradients(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Of hidden (n, D), weight (V, D) and bias (V,), each in its own precision; None where it is not wanted."""
        if self.of_weight is not None and self.lifted != 1.0:
            self.of_weight.div_(self.lifted)
        weight = None if self.of_weight is None else self.of_weight.to(self.given[1].dtype)
        bias = None if self.of_bias is None or self.given[2] is None else self.of_bias.to(self.given[2].dtype)
        return self.of_hidden, weight, bias


def chunk_rows(n: int, row_bytes: int, most: int) -> int:
    """Rows of a chunk: as many as `most` bytes hold, and all chunks but the last alike."""
    pieces = -(-n * row_bytes // max(most, row_bytes))
    return -(-n // pieces)
