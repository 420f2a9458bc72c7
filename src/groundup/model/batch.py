"""What a forward pass eats: rows of token ids, and for each place which document it belongs to."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

IGNORE = -100  # a target that is not scored; torch's cross_entropy ignores the same number


@dataclass
class Batch:
    """B rows of T places.

    tokens     (B, T) int64   input ids
    targets    (B, T) int64   the id to predict AT each place (already shifted), -100 = not scored
    documents  (B, T) int32   which document of the row a token belongs to; attention never crosses. Negative: padding
    positions  (B, T) int64   place inside the document
    extra      tensors that an objective needs besides (rewards, reference log-probs), rows first
    """

    tokens: Tensor
    targets: Tensor
    documents: Tensor
    positions: Tensor
    extra: dict[str, Tensor] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return self.tokens.shape[0]

    @property
    def scored(self) -> int:
        """Number of places with a target."""
        return int((self.targets != IGNORE).sum())

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device (a copy only where it has to move)."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        return Batch(
            move(self.tokens),
            move(self.targets),
            move(self.documents),
            move(self.positions),
            {name: move(tensor) for name, tensor in self.extra.items()},
        )
