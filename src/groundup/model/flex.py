"""Attention of packed rows on CUDA by FlexAttention (arXiv 2412.05496): who sees whom in blocks, no mask of T x T.

A dense mask of documents takes B x T x T bytes and keeps flash attention away. Here a block of 128 x 128 places is
left out, computed whole, or computed under the rule; which of the three is read off the smallest and largest document
number of its queries and keys. Made once for a pass and shared by all layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from groundup.model.moe import ExpertMLP

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

    from groundup.model.attention import Cache
    from groundup.model.transformer import Transformer

    Mask = Tensor | BlockMask | None  # bool or numbers to add, (B or 1, H or 1, T, S); in blocks; None = causal

BLOCK = 128  # places; what the kernels are tuned for
NARROWEST = 16  # head: the kernel multiplies tiles of no less
Rule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # (row, head, query, key) -> visible


@dataclass(frozen=True)
class Facts:
    """What the choice of a mask depends on."""

    device: str  # cpu | cuda
    dtype: torch.dtype  # of queries, keys and values
    compiled: bool  # the blocks of this pass; uncompiled, FlexAttention keeps all scores in memory
    separate: bool  # some row holds two documents or more; on a CPU: the batch says which document a place is of
    windowed: bool  # the window is narrower than the row
    cached: bool = False
    bias: bool = False  # ALiBi, T5: numbers to add to the scores
    softcap: bool = False
    sinks: bool = False
    narrowest: int = 64  # width of the narrowest head


def mask_kind(facts: Facts) -> Literal["causal", "blocks", "dense"]:
    """causal: no mask at all, which flash attention takes. blocks: FlexAttention. dense: bool or numbers, (B, 1, T, T).

    On a CPU nothing is ever in blocks: FlexAttention cannot train there, and the kernel of our own reads dense masks.
    """
    if facts.cached or facts.bias:
        return "dense"
    plain = not facts.separate and not facts.windowed
    half = facts.dtype in (torch.bfloat16, torch.float16)
    served = facts.device == "cuda" and facts.compiled and half and not facts.sinks and facts.narrowest >= NARROWEST
    if served and (facts.softcap or not plain):
        return "blocks"
    return "causal" if plain else "dense"


def separate(documents: Tensor) -> bool:
    """Whether some row of documents (B, T) holds two or more; padding counts as one. Waits for the device."""
    return bool((documents != documents[:, :1]).any())


def block_mask(documents: Tensor | None, length: int, window: int, device: torch.device) -> BlockMask:
    """Causal attention within documents (B, T), of the `window` last places (0 = all), for rows of `length` = T.

    Right for any numbering: a block may be computed in vain (documents 0 2 0 and 1 1 1 overlap by their ends), never
    be left out. A block is whole only below the diagonal, within one document and one window. O(B (T / 128)^2).
    """
    from torch.nn.attention.flex_attention import BlockMask

    count = -(-length // BLOCK)
    rows = torch.zeros(1, length, dtype=torch.int32, device=device) if documents is None else documents
    parts = torch.nn.functional.pad(rows, (0, count * BLOCK - length)).unflatten(1, (count, BLOCK))
    if length % BLOCK:  # what stands in for the places beyond the end must not widen the last block's range
        parts[:, -1, length % BLOCK :] = rows[:, -1:]
    low, high = parts.amin(2), parts.amax(2)
    i = torch.arange(count, device=device)
    apart = i[:, None] - i[None, :]  # blocks from key to query
    some = (low[:, :, None] <= high[:, None, :]) & (low[:, None, :] <= high[:, :, None]) & (apart >= 0)
    one = (low == high)[:, :, None] & (low == high)[:, None, :] & (low[:, :, None] == low[:, None, :])
    whole = one & (apart > 0)
    if window:
        some = some & (BLOCK * (apart - 1) + 1 < window)  # the nearest pair of the block
        whole = whole & (BLOCK * (apart + 1) - 1 < window)  # its furthest
    if length % BLOCK:
        whole[:, -1] = False  # as create_block_mask: the end of the row is checked place by place
    part, full = _ordered(some & ~whole), _ordered(some & whole)
    rule = visible(documents, window)
    return BlockMask.from_kv_blocks(*part, *full, BLOCK_SIZE=BLOCK, mask_mod=rule, seq_lengths=(length, length))


def visible(documents: Tensor | None, window: int) -> Rule:
    """The rule that holds within a block, place by place; the same as `attention_mask`'s."""

    def rule(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = query >= key
        if window:
            seen = seen & (query - key < window)
        if documents is not None:
            seen = seen & (documents[row, query] == documents[row, key])
        return seen

    return rule


def _ordered(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """(B, n, n) bool -> (how many of a row of blocks, (B, 1, n); their indices first, (B, 1, n, n)), int32."""
    indices = blocks.int().argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32)[:, None], indices.int()[:, None]


def flex(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, scale: float, softcap: float = 0.0) -> Tensor:
    """q (B, H, T, d), k (B, KV, T, d), v (B, KV, T, dv) -> (B, H, T, dv). To be called in what is compiled."""
    from torch.nn.attention.flex_attention import flex_attention

    def capped(score: Tensor, row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    grouped = q.shape[1] != k.shape[1]
    modify = capped if softcap else None
    return flex_attention(q, k, v, score_mod=modify, block_mask=mask, scale=scale, enable_gqa=grouped)  # type: ignore[return-value]


class BlockMasks:
    """Takes the place of a model's `mask` once its blocks are compiled: block masks wherever they serve."""

    def __init__(self, model: Transformer) -> None:
        self.model = model
        # Experts that are computed again run uncompiled, and all around them (train/recompute.py wraps `forward`).
        self.compiled = not any("forward" in vars(b) and isinstance(b.mlp, ExpertMLP) for b in model.blocks)

    def __call__(self, documents: Tensor | None, positions: Tensor, cache: Cache | None, local: bool) -> Mask:
        """As `Transformer.mask`."""
        length, window = positions.shape[1], self.model.config.window if local else 0
        # A copy of a compiled model is not compiled; the part of one that a step is timed by may have no block at all.
        built = any(block._compiled_call_impl is not None for block in self.model.blocks)
        compiled = self.compiled and built and compiling()
        facts = facts_of(self.model, documents, length, window, cache is not None, compiled)
        kind = mask_kind(facts)
        if kind == "blocks":
            return block_mask(documents, length, window, positions.device)
        given = None if kind == "causal" else documents
        return type(self.model).mask(self.model, given, positions, cache, local)


def facts_of(
    model: Transformer, documents: Tensor | None, length: int, window: int, cached: bool, compiled: bool
) -> Facts:
    """Of one pass of a model over rows of `length`, in layers of that window."""
    c, weight = model.config, model.embed.weight
    device = weight.device.type
    half = torch.is_autocast_enabled(device)
    return Facts(
        device=device,
        dtype=torch.get_autocast_dtype(device) if half else weight.dtype,
        compiled=compiled,
        separate=not cached and documents is not None and (device == "cpu" or separate(documents)),
        windowed=0 < window < length,
        cached=cached,
        bias=c.position in ("alibi", "t5"),
        softcap=bool(c.attention_softcap),
        sinks=c.sinks,
        narrowest=min(c.qk_dim, c.v_dim),
    )


def compiling() -> bool:
    """Whether what is compiled runs compiled here: not under `torch.compiler.set_stance("force_eager")`."""
    return _probe()()


@cache
def _probe() -> Callable[[], bool]:
    """The stance cannot be asked for, but a compiled function sees it. Made at first use: the compiler loads slowly."""
    return torch.compile(torch.compiler.is_compiling, backend="eager")  # type: ignore[no-any-return]
