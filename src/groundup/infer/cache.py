"""Static key/value cache for batched decoding."""

from __future__ import annotations

import torch
from torch import Tensor

from groundup.model.config import ModelConfig


class KVCache:
    """Keys and values of every layer: (layers, B, KV, length, head_dim) each. Slot index = position.

    With latent attention the "keys" are the latents, for one head, and there are no values.

    Rows may be ragged: a short prompt is padded on the right, its padding lands in slots beyond its length, is
    invisible there (slot > position) and is overwritten as the row decodes. So no left padding exists, and a row
    decodes exactly as it would alone.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch: int,
        length: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        heads, k_dim, v_dim = config.cache_shape
        shape = (config.n_layers, batch, heads, length)
        # Zeros, not empty: an invisible slot has weight 0, and 0 * NaN is NaN. The system hands out zero pages
        # only as they are touched, so an unused tail costs no memory on a CPU.
        self.k = torch.zeros(*shape, k_dim, dtype=dtype, device=device)
        self.v = torch.zeros(*shape, v_dim, dtype=dtype, device=device)
        self.used = 0  # slots ever written, in any row
        self._rows = torch.arange(batch, device=device)[:, None]

    @property
    def batch(self) -> int:
        return self.k.shape[1]

    @property
    def length(self) -> int:
        return self.k.shape[3]

    def slots(self, positions: Tensor) -> int:
        """Slots that queries at these positions can see: one past the furthest. ValueError past the end."""
        furthest = int(positions.max()) + 1
        if furthest > self.length:
            raise ValueError(f"position {furthest - 1} is past the cache's {self.length} slots")
        self.used = max(self.used, furthest)
        return furthest

    def update(self, layer: int, k: Tensor, v: Tensor, positions: Tensor, slots: int) -> tuple[Tensor, Tensor]:
        """Write k, v (B, T, KV, hd) at positions (B or 1, T); return the first `slots`, (B, KV, slots, hd)."""
        own_k, own_v = self.k[layer], self.v[layer]
        own_k[self._rows, :, positions] = k.to(own_k.dtype)
        own_v[self._rows, :, positions] = v.to(own_v.dtype)
        return own_k[:, :, :slots], own_v[:, :, :slots]

    def keep(self, rows: Tensor) -> None:
        """Drop rows; `rows` (n,) are the indices that stay, in order."""
        self._rebuild(rows, len(rows), self.length)

    def grow(self, extra: int, length: int) -> None:
        """Append `extra` empty rows, and make room for at least `length` slots."""
        self._rebuild(None, self.batch + extra, max(length, self.length))

    def fill(self, rows: list[int], source: KVCache, row: int) -> None:
        """Copy one row of another cache, a prefilled one, to each of `rows`."""
        s = source.used
        self.k[:, rows, :, :s] = source.k[:, row, None, :, :s]
        self.v[:, rows, :, :s] = source.v[:, row, None, :, :s]
        self.used = max(self.used, s)

    def _rebuild(self, rows: Tensor | None, batch: int, length: int) -> None:
        """New storage with the old rows first; only the slots in use are copied."""
        layers, old, heads = self.k.shape[:3]
        kept = old if rows is None else len(rows)
        for name in ("k", "v"):
            source = getattr(self, name)[:, :, :, : self.used]
            target = source.new_zeros(layers, batch, heads, length, source.shape[-1])
            for layer in range(layers):  # a layer at a time: index_select over all of them would copy twice
                target[layer, :kept, :, : self.used] = source[layer] if rows is None else source[layer][rows]
            setattr(self, name, target)
        self._rows = torch.arange(batch, device=self.k.device)[:, None]
