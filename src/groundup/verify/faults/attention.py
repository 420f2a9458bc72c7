"""Faults of windows, scores, caps, sinks and latents."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from groundup.model import attention, latent, position, transformer
from groundup.model.attention import Attention
from groundup.model.config import ModelConfig
from groundup.model.latent import LatentAttention
from groundup.verify.fault import fault, swapped

WINDOW = {"window": 6, "window_pattern": "LG"}
LATENT = {
    "latent": {"kv_rank": 12, "nope_dim": 8, "rope_dim": 4, "v_dim": 6},
    "n_kv_heads": 4,
    "qk_norm": "none",
}
_mask, _explicit = attention.attention_mask, attention.explicit_attention


@fault("window-one-too-wide", "window-is-exact", "forward-is-its-definition", model=WINDOW)
def window_one_too_wide() -> Iterator[None]:
    """A query sees window keys besides itself."""

    def wrong(documents: Tensor | None, positions: Tensor, cache: Any, window: int = 0) -> Tensor | None:
        return _mask(documents, positions, cache, window + 1 if window else 0)

    with swapped(transformer, attention_mask=wrong):
        yield


@fault("window-narrower-while-decoding", "window-is-exact", model=WINDOW)
def window_narrower_while_decoding() -> Iterator[None]:
    """With a cache the window is one token shorter than in training."""

    def wrong(documents: Tensor | None, positions: Tensor, cache: Any, window: int = 0) -> Tensor | None:
        return _mask(documents, positions, cache, window - 1 if window and cache is not None else window)

    with swapped(transformer, attention_mask=wrong):
        yield


@fault("window-forgotten-in-packed-rows", "window-is-exact", "window-pattern-by-layer", model=WINDOW)
def window_forgotten_in_packed_rows() -> Iterator[None]:
    """Where rows hold several documents, a window is not applied."""

    def wrong(documents: Tensor | None, positions: Tensor, cache: Any, window: int = 0) -> Tensor | None:
        return _mask(documents, positions, cache, window if documents is None else 0)

    with swapped(transformer, attention_mask=wrong):
        yield


@fault("pattern-shifted-by-a-layer", "window-pattern-by-layer", model=WINDOW)
def pattern_shifted_by_a_layer() -> Iterator[None]:
    """The pattern's letters are counted from 1: global layers get the window, local ones see everything."""

    def wrong(self: ModelConfig, layer: int) -> bool:
        return self.window > 0 and self.window_pattern[(layer + 1) % len(self.window_pattern)] == "L"

    with swapped(ModelConfig, is_local=wrong):
        yield


@fault("scores-divided-by-the-heads-width", "attention-is-its-formula", model={"score_dim": 11.0, "head_dim": 8})
def scores_divided_by_the_heads_width() -> Iterator[None]:
    """score_dim is read from the recipe and not used."""
    build = Attention.__init__

    def wrong(self: Attention, config: ModelConfig, layer: int) -> None:
        build(self, config, layer)
        self.scale = config.head_dim**-0.5

    with swapped(Attention, __init__=wrong):
        yield


@fault("cap-after-the-mask", "score-cap-before-mask", "attention-is-its-formula", model={"attention_softcap": 4.0})
def cap_after_the_mask() -> Iterator[None]:
    """Scores are masked, then capped: tanh(-inf) is -1, so what must not be seen weighs e^-cap."""

    def wrong(
        q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, softcap: float, sinks: Tensor | None
    ) -> Tensor:
        scores = (q @ k.mT).float() * scale
        if mask is None:
            mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        scores = scores.masked_fill(~mask, -torch.inf)
        return torch.softmax(softcap * torch.tanh(scores / softcap), dim=-1) @ v

    with swapped(attention, explicit_attention=wrong):
        yield


@fault("cap-forgotten-with-sinks", "score-cap-before-mask", model={"attention_softcap": 4.0, "sinks": True})
def cap_forgotten_with_sinks() -> Iterator[None]:
    """Where there are sinks, scores are not capped."""

    def wrong(q: Tensor, k: Tensor, v: Tensor, mask: Any, scale: float, softcap: float, sinks: Any) -> Tensor:
        return _explicit(q, k, v, mask, scale, softcap if sinks is None else 0.0, sinks)

    with swapped(attention, explicit_attention=wrong):
        yield


@fault("sink-with-a-value", "sinks-take-and-give-nothing", model={"sinks": True})
def sink_with_a_value() -> Iterator[None]:
    """What a sink takes is given back as the mean of the values."""

    def wrong(q: Tensor, k: Tensor, v: Tensor, mask: Any, scale: float, softcap: float, sinks: Any) -> Tensor:
        y = _explicit(q, k, v, mask, scale, softcap, sinks)
        taken = 1 - _explicit(q, k, torch.ones_like(v), mask, scale, softcap, sinks)
        return y + taken * v.mean(-2, keepdim=True)

    with swapped(attention, explicit_attention=wrong):
        yield


@fault("sinks-left-out", "sinks-take-and-give-nothing", model={"sinks": True})
def sinks_left_out() -> Iterator[None]:
    """The softmax is renormalised without the sink: it takes nothing."""

    def wrong(q: Tensor, k: Tensor, v: Tensor, mask: Any, scale: float, softcap: float, sinks: Any) -> Tensor:
        return _explicit(q, k, v, mask, scale, softcap, None)

    with swapped(attention, explicit_attention=wrong):
        yield


@fault("full-norm-head-by-head", "attention-is-its-formula", "forward-is-its-definition", model={"qk_norm": "full"})
def full_norm_head_by_head() -> Iterator[None]:
    """OLMo 2's norm over all heads divides each head by its own root mean square."""
    build = Attention.__init__

    def wrong(self: Attention, config: ModelConfig, layer: int) -> None:
        build(self, config, layer)
        for norm in (self.q_norm, self.k_norm):
            right = norm.forward  # type: ignore[union-attr]

            def each(x: Tensor, right: Any = right) -> Tensor:
                heads = x.unflatten(-1, (-1, config.head_dim))
                return right((heads / heads.square().mean(-1, keepdim=True).sqrt()).flatten(-2))

            norm.forward = each  # type: ignore[union-attr,assignment]

    with swapped(Attention, __init__=wrong):
        yield


@fault("latent-key-cached-unrotated", "latent-cache-holds-latents", "latent-absorbed-equals-expanded", model=LATENT)
def latent_key_cached_unrotated() -> Iterator[None]:
    """The shared key goes into the cache as it was before its rotation."""
    forward, state = LatentAttention.forward, {"cached": False, "calls": 0}

    def wrong(self: LatentAttention, x: Tensor, angles: Any, mask: Any, positions: Tensor, cache: Any) -> Tensor:
        state.update(cached=cache is not None, calls=0)
        return forward(self, x, angles, mask, positions, cache)

    def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        state["calls"] += 1  # the query comes first
        return x if state["cached"] and state["calls"] == 2 else position.rotate(x, cos, sin)

    with swapped(LatentAttention, forward=wrong), swapped(latent, rotate=rotate):
        yield


@fault("latent-rows-not-by-head", "latent-absorbed-equals-expanded", "cached-decode-equals-forward", model=LATENT)
def latent_rows_not_by_head() -> Iterator[None]:
    """While decoding, kv_up's rows are read as [nope of all heads | v of all heads]."""
    right = LatentAttention.from_cache

    def wrong(self: LatentAttention, *given: Any) -> Tensor:
        h, m = self.config.n_heads, self.latent
        own = self.kv_up.weight.data
        nope, v = own.split((h * m.nope_dim, h * m.v_dim))
        parts = zip(nope.split(m.nope_dim), v.split(m.v_dim), strict=True)
        self.kv_up.weight.data = torch.cat([torch.cat(pair) for pair in parts])
        try:
            return right(self, *given)
        finally:
            self.kv_up.weight.data = own

    with swapped(LatentAttention, from_cache=wrong):
        yield
