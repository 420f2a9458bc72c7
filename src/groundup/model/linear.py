"""Linear layers: torch's, through a kernel of our own where it is faster; and several of one input as one matrix."""

from __future__ import annotations

from torch import Tensor, nn

from groundup.model.native.matmul import apply_linear


class Linear(nn.Linear):
    """torch's in all but the kernel (`model.native.matmul`). With a bias it is torch that adds it in one pass."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.bias is not None else apply_linear(x, self.weight)


class PackedLinear(Linear):
    """Several projections of one input in one matmul. `sizes` keeps their seams, for export, Muon and LoRA."""

    def __init__(self, d_in: int, sizes: tuple[int, ...], bias: bool) -> None:
        super().__init__(d_in, sum(sizes), bias=bias)
        self.sizes = sizes
