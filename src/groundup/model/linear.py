"""Several projections of one input as one matrix."""

from __future__ import annotations

from torch import nn


class PackedLinear(nn.Linear):
    """Several projections of one input in one matmul. `sizes` keeps their seams, for export, Muon and LoRA."""

    def __init__(self, d_in: int, sizes: tuple[int, ...], bias: bool) -> None:
        super().__init__(d_in, sum(sizes), bias=bias)
        self.sizes = sizes
