"""A shape given by hand that is too large for the size asked: layers first, then width, and what was done is said."""

from __future__ import annotations

import math
from dataclasses import replace

from groundup.errors import UserError
from groundup.model.config import ModelConfig
from groundup.model.count import count
from groundup.plan.ask import Ask
from groundup.plan.shapes import WIDTHS, WITHIN, aspect, ff_multiple, fitted, heads_of, kv_heads

TOO_LARGE = 1.2  # a hand-given shape may pass the target by this much; beyond, it is reduced
# A model may be this much wider or deeper for its size than published ones: loss hardly depends on the proportions
# within that range (arXiv 2001.08361, section 3.1).
STRETCH = 3.0


def reduced(config: ModelConfig, target: int, ask: Ask, changes: list[str]) -> ModelConfig:
    """The shape itself, or, more than 20% above the target, a smaller one; `changes` says what was done.

    Layers go down while the model is at most three times as wide for its depth as published ones. Then the width, and
    where a narrower model leaves room, layers come back, up to the number given. Errors: UserError where the
    vocabulary alone is too large.
    """
    total = count(config)["total"]
    if total <= TOO_LARGE * target:
        return config
    was, limit = config, (1 + WITHIN) * target
    times = total / target
    above = f"{times:.3g} times" if times >= 2 else f"{times - 1:.0%} above"
    changes.append(f"the shape as given has {total:,} parameters, {above} the {target:,} asked for: reduced")
    floor = min(config.n_layers, math.ceil(config.d_model / (STRETCH * aspect(config.d_model))))
    config = _layers(config, floor, was.n_layers, limit)
    if config.n_layers < was.n_layers and count(config)["total"] <= limit:
        changes.append(f"layers first: {was.n_layers} -> {config.n_layers}")
        return _filled(config, target, ask, changes)
    while count(config)["total"] > limit:
        narrower = _narrower(config, was, target, ask)
        if narrower is None:
            raise UserError(
                f"design: no shape of these proportions has {target:,} parameters: the {config.vocab_size:,} tokens "
                f"of the vocabulary alone take {config.vocab_size * config.d_model:,} at width {config.d_model}; "
                "lower --vocab, or raise --params"
            )
        deepest = max(1, int(STRETCH * narrower.d_model / aspect(narrower.d_model)))
        config = replace(narrower, n_layers=min(floor, deepest))
    config = _layers(config, config.n_layers, min(was.n_layers, max(config.n_layers, deepest)), limit)
    if config.n_layers < was.n_layers:
        changes.append(f"layers first: {was.n_layers} -> {config.n_layers}")
    changes.append(
        f"then width: {was.d_model} -> {config.d_model}, so heads {was.n_heads} of {was.head_dim} -> "
        f"{config.n_heads} of {config.head_dim}, d_ff {was.d_ff} -> {config.d_ff}"
    )
    return _filled(config, target, ask, changes)


def _layers(config: ModelConfig, low: int, high: int, limit: float) -> ModelConfig:
    """As many layers, from `low` to `high`, as stay below the limit; `low` where even those do not."""
    for n in range(high, low, -1):
        deeper = replace(config, n_layers=n)
        if count(deeper)["total"] <= limit:
            return deeper
    return replace(config, n_layers=low)


def _narrower(c: ModelConfig, was: ModelConfig, target: int, ask: Ask) -> ModelConfig | None:
    """The next smaller width in the same proportions; None below 16. Heads that were given keep their width."""
    g = ask.given
    if g.heads or g.head_dim:
        step = was.d_model // was.n_heads if was.d_model % was.n_heads == 0 else 16
        width = c.d_model - step
        heads, dim = max(1, round(was.n_heads * width / was.d_model)), was.head_dim
    else:
        width = next((w for w in reversed(WIDTHS) if w < c.d_model and heads_of(w, replace(g, width=None))), 0)
        heads, dim = heads_of(width, g) or (0, 0)
    if width < 16 or not heads:
        return None
    kv = kv_heads(heads, target, ask.attention)
    if g.kv_heads or kv is None:
        fits = [k for k in range(1, heads + 1) if heads % k == 0]
        kv = min(fits, key=lambda k: abs(k - heads * was.n_kv_heads / was.n_heads))
    multiple = ff_multiple(width)
    hidden = max(multiple, round(was.d_ff / was.d_model * width / multiple) * multiple)
    moe = was.moe and replace(was.moe, d_expert=max(8, round(was.moe.d_expert / was.d_model * width / 8) * 8))
    hidden = moe.top_k * moe.d_expert if moe else hidden
    return replace(c, d_model=width, n_heads=heads, n_kv_heads=kv, head_dim=dim, d_ff=hidden, moe=moe)


def _filled(config: ModelConfig, target: int, ask: Ask, changes: list[str]) -> ModelConfig:
    """Whole layers and heads leave a gap: the feed-forward, where it was left open, takes it up."""
    if ask.given.d_ff or abs(count(config)["total"] / target - 1) <= WITHIN:
        return config
    better = [c for c in fitted(config, target, ff_multiple(config.d_model)) if c.d_ff != config.d_ff]
    if better:
        changes.append(f"d_ff, which was left open: {config.d_ff} -> {better[0].d_ff}, to meet the size")
        return better[0]
    return config
