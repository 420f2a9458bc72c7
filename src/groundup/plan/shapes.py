"""From a number of parameters to a shape: the rules for each dimension, and the search that lands within 3%.

Pure arithmetic on `count`; no torch. Widths are tried on a grid; for each, the depth that the size asks for and a
feed-forward width fitted to it. Among the shapes within 3% the one with the soundest proportions wins.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from groundup.model.config import GATED, MixtureOfExperts, ModelConfig
from groundup.model.count import count

WITHIN = 0.03  # a shape that is searched for may miss the size by this
GROUPED_FROM = 300_000_000  # parameters from which `auto` shares keys and values between heads
TIED_BELOW = 1_000_000_000
TIED_SHARE = 0.08  # share of all parameters from which a second embedding is too dear
VOCAB_CAP = 262_144  # the largest in wide use (Gemma)
WIDTHS = [*range(16, 256, 16), *range(256, 1024, 32), *range(1024, 2048, 64), *range(2048, 8192, 128)]
WIDTHS += [*range(8192, 49153, 256)]


@dataclass(frozen=True)
class Given:
    """What the search may not change. None = free."""

    width: int | None = None
    layers: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    d_ff: int | None = None
    tied: bool | None = None


def vocab_size(params: int) -> int:
    """Compute-optimal vocabulary: a power law through 43K at 3B and 216K at 70B (arXiv 2407.13623), in 128s."""
    slope = math.log(216 / 43) / math.log(70 / 3)
    return int(min(VOCAB_CAP, max(512, round(43_000 * (params / 3e9) ** slope / 128) * 128)))


def context_length(params: int) -> int:
    """Tokens: what published models of the size were first trained on (GPT-2 1,024, Llama 1 2,048, Llama 3 8,192)."""
    steps = ((5e6, 256), (30e6, 512), (500e6, 1024), (4e9, 2048), (30e9, 4096))
    return next((context for below, context in steps if params < below), 8192)


def rope_bound(context: int) -> float:
    """The smallest base that tells so many places apart, as fitted in arXiv 2405.14591 (figure 1)."""
    return 0.0424 * context**1.628


def rope_base(context: int) -> float:
    """The first round base above the bound; never below 10,000."""
    bound = rope_bound(context)
    power = 10.0 ** max(4, math.floor(math.log10(max(bound, 1.0))))
    return next(step * power for step in (1.0, 2.0, 5.0, 10.0) if step * power >= bound)


def head_dim(d_model: int) -> int:
    """Width of a head: 64 to 128 in published models (arXiv 2305.13245); small widths need several all the same."""
    return 16 if d_model < 128 else 32 if d_model < 384 else 64 if d_model < 2048 else 128


def aspect(d_model: int) -> float:
    """Width over depth that published models keep: 32 at width 128, 73 at 768 (GPT-2 64), 112 at 4,096 (Llama 128)."""
    return min(160.0, max(24.0, 16 * math.log2(d_model) - 80))


def levine_depth(params: int) -> int:
    """Depth that is optimal for the size: N = 12 L d^2 on ln d = 5.039 + 0.0555 L (arXiv 2006.12467)."""
    return min(range(1, 400), key=lambda n: abs(12 * n * math.exp(2 * (5.039 + 0.0555 * n)) - params))


def ff_multiple(d_model: int) -> int:
    """What feed-forward widths are multiples of: tiles of the matrix units, finer where the width is small."""
    steps = ((128, 8), (512, 32), (1024, 64), (2048, 128))
    return next((multiple for below, multiple in steps if d_model < below), 256)


def ff_width(d_model: int, mlp: str, multiple: int) -> int:
    """Hidden width with the parameters of a plain 4 d_model layer: 8/3 d_model for gated ones (arXiv 2002.05202)."""
    return math.ceil((8 / 3 if mlp in GATED else 4) * d_model / multiple) * multiple


def kv_heads(n_heads: int, params: int, attention: str) -> int | None:
    """Key/value heads: n_heads (mha), 1 (mqa), or the largest divisor up to 8 and half of n_heads (gqa).

    auto: gqa from 300M parameters on. None where gqa is asked for and no divisor lies between 1 and n_heads.
    """
    if attention == "mqa":
        return 1
    if attention == "mha" or (attention == "auto" and params < GROUPED_FROM):
        return n_heads
    fits = [k for k in range(2, min(8, n_heads // 2) + 1) if n_heads % k == 0]
    return fits[-1] if fits else n_heads if attention == "auto" else None


def experts(d_model: int, params: int) -> MixtureOfExperts:
    """A token uses the width of a plain feed-forward in all: 8 of 64 experts from 1B on (arXiv 2409.02060)."""
    n, k = (64, 8) if params >= 1_000_000_000 else (8, 2)
    multiple = 8 if d_model < 512 else 32
    return MixtureOfExperts(n, k, max(multiple, round(8 * d_model / 3 / k / multiple) * multiple), z_weight=0.001)


def shared_batch(batch: int, devices: int) -> int:
    """The batch nearest to `batch`, sequences, that so many devices share evenly.

    Where that would move it by more than a sixteenth, half as many are to share it, and so on: the others split the
    model. A batch that is no multiple would leave sequences out of each step, or ranks without work.
    """
    ways = devices
    while ways > max(1, batch // 8):
        ways = ways // 2 if ways % 2 == 0 else 1
    return max(1, round(batch / ways)) * ways


def fit(target: int, kept: dict[str, Any], given: Given, attention: str = "auto", moe: bool = False) -> ModelConfig:
    """The shape nearest to `target` parameters in sound proportions; `kept` holds the fields that are no dimension.

    The result misses the target by more than 3% only where no shape on the grid does better: the caller looks.
    Raises ValueError where what is given leaves no shape at all.
    """
    far: tuple[float, ModelConfig] | None = None
    for stretch in (4.0, 8.0):  # proportions that far from the usual ones; odd ones only where nothing else is near
        near: tuple[float, ModelConfig] | None = None
        for width in [given.width] if given.width else WIDTHS:
            for config in _of_width(width, target, kept, given, attention, moe, stretch):
                miss = abs(math.log(count(config)["total"] / target))
                cost = 2 * miss + _unsound(config, target)
                if miss <= math.log(1 + WITHIN) and (near is None or cost < near[0]):
                    near = cost, config
                if far is None or miss < far[0]:
                    far = miss, config
            if far is not None and width * kept["vocab_size"] > 1.5 * target:
                break
        if near is not None:
            return near[1]
    if far is None:
        raise ValueError("no shape")
    return far[1]


def _unsound(c: ModelConfig, target: int) -> float:
    """How far a shape is from good proportions; 0 = none of these is off."""
    hidden = c.moe.top_k * c.moe.d_expert if c.moe else c.d_ff
    off = 0.5 * abs(math.log(c.d_model / c.n_layers / aspect(c.d_model)))
    off += 0.5 * abs(math.log(hidden / c.d_model / (8 / 3 if c.gated else 4)))
    off += 0.02 * sum(bool(c.d_model % multiple) for multiple in (128, 256, 512) if c.d_model >= 4 * multiple)
    off += 0.03 * (c.n_layers % 2)
    if target >= GROUPED_FROM and c.n_kv_heads > 1:
        off += 0.3 * (c.n_kv_heads == c.n_heads) + 0.1 * (c.n_kv_heads < 4)
    return off + 0.05 * (target >= 4_000_000_000 and c.n_heads % 8 > 0)  # eight devices of a node share the heads


def heads_of(width: int, given: Given) -> tuple[int, int] | None:
    """(n_heads, head_dim) for a width, or None where what is given does not go with it."""
    if given.head_dim:
        heads = given.heads or width // given.head_dim
        return (heads, given.head_dim) if given.heads or (heads and width % given.head_dim == 0) else None
    if given.heads:
        dim = width // given.heads
        return (given.heads, dim) if width % given.heads == 0 and dim % 2 == 0 and dim else None
    usual = head_dim(width)
    if width % usual and given.width is None:
        return None
    fits = [d for d in range(8, 257, 2) if width % d == 0]
    if not fits:
        return None
    dim = min(fits, key=lambda d: abs(math.log(d / usual)))
    return width // dim, dim


def _of_width(
    width: int, target: int, kept: dict[str, Any], given: Given, attention: str, moe: bool, stretch: float
) -> Iterator[ModelConfig]:
    """Shapes of one width near the target: depths around the fitting one, the usual and the fitted feed-forward."""
    pair = heads_of(width, given)
    if pair is None:
        return
    kv = given.kv_heads or kv_heads(pair[0], target, attention)
    if kv is None or pair[0] % kv:
        return
    multiple = ff_multiple(width)
    tied = given.tied
    if tied is None:
        tied = target < TIED_BELOW or width * kept["vocab_size"] >= TIED_SHARE * target
    usual = ModelConfig(
        **kept,
        d_model=width,
        n_layers=1,
        n_heads=pair[0],
        n_kv_heads=kv,
        head_dim=pair[1],
        d_ff=given.d_ff or ff_width(width, kept["mlp"], multiple),
        tied=tied,
        moe=experts(width, target) if moe else None,
    )
    if usual.moe:
        usual = replace(usual, d_ff=usual.moe.top_k * usual.moe.d_expert)
    one, two = count(usual)["total"], count(replace(usual, n_layers=2))["total"]
    depth = (target - one) / (two - one) + 1
    free = given.layers is None and given.width is None
    if free and depth > 1 and not 1 / stretch <= width / depth / aspect(width) <= stretch:
        return
    nearest = max(1, round(depth))
    for n in [given.layers] if given.layers else range(max(1, nearest - 2), nearest + 3):
        config = replace(usual, n_layers=n)
        yield config
        if not given.d_ff:
            yield from fitted(config, target, multiple)


def fitted(config: ModelConfig, target: int, multiple: int) -> Iterator[ModelConfig]:
    """The same shape with the feed-forward width that brings it to the target, where that is a sound one."""
    total = count(config)["total"]
    if config.moe:
        each = (3 if config.gated else 2) * config.d_model * config.moe.n_experts * config.n_layers
        step = 8 if config.d_model < 512 else 32
        hidden = round((config.moe.d_expert + (target - total) / each) / step) * step
        if 0.6 <= hidden / config.moe.d_expert <= 1.6:
            moe = replace(config.moe, d_expert=hidden)
            yield replace(config, moe=moe, d_ff=moe.top_k * hidden)
        return
    each = (3 if config.gated else 2) * config.d_model * config.n_layers
    hidden = round((config.d_ff + (target - total) / each) / multiple) * multiple
    if 0.7 <= hidden / config.d_ff <= 1.5:
        yield replace(config, d_ff=hidden)
