"""How places are told apart: rotations (RoPE and its stretched forms), added vectors, and biases on the scores."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from groundup.model.config import ModelConfig, RopeScaling

# Rotary embedding: Su et al. 2021, RoFormer, arXiv 2104.09864, in the half-split layout of Llama.


def rope_rates(dim: int, base: float, scaling: RopeScaling | None = None, length: int = 0) -> tuple[Tensor, float]:
    """(angle a place adds in each of dim/2 planes, fp32; what cos and sin are multiplied by).

    length: of the sequence, which only the dynamic form looks at.
    """
    # fp32 throughout, in the order that transformers computes it: the last bits of a rate count at place 100,000
    rates = 1.0 / base ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    if scaling is None:
        return rates, 1.0
    return SCALED[scaling.kind](rates, dim, base, scaling, length)


def _linear(rates: Tensor, dim: int, base: float, s: RopeScaling, length: int) -> tuple[Tensor, float]:
    """Position interpolation (Chen et al. 2023, arXiv 2306.15595): every place divided by the factor."""
    return rates / s.factor, 1.0


def _ntk(rates: Tensor, dim: int, base: float, s: RopeScaling, length: int) -> tuple[Tensor, float]:
    """NTK-aware: a larger base, such that the slowest plane turns `factor` times slower and the fastest as before."""
    return rope_rates(dim, base * s.factor ** (dim / (dim - 2)))


def _dynamic(rates: Tensor, dim: int, base: float, s: RopeScaling, length: int) -> tuple[Tensor, float]:
    """NTK-aware with the factor that this length needs; nothing changes up to the original context."""
    length = max(length, s.original_context)
    grown = s.factor * length / s.original_context - (s.factor - 1)
    return rope_rates(dim, base * grown ** (dim / (dim - 2)))


def _yarn(rates: Tensor, dim: int, base: float, s: RopeScaling, length: int) -> tuple[Tensor, float]:
    """YaRN (Peng et al. 2023, arXiv 2309.00071, section 3.2): slow planes interpolated, fast ones left, a ramp between.

    A plane makes L / wavelength turns over the original context L; beta_fast and beta_slow are turns.
    """

    def plane(turns: float) -> float:
        return dim * math.log(s.original_context / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = max(math.floor(plane(s.beta_fast)), 0), min(math.ceil(plane(s.beta_slow)), dim - 1)
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / max(high - low, 0.001)).clamp(0, 1)
    factor = s.attention_factor if s.attention_factor is not None else 0.1 * math.log(max(s.factor, 1.0)) + 1.0
    return rates / s.factor * ramp + rates * (1 - ramp), factor


def _llama3(rates: Tensor, dim: int, base: float, s: RopeScaling, length: int) -> tuple[Tensor, float]:
    """Llama 3.1 (Dubey et al. 2024, arXiv 2407.21783): by wavelength - long ones stretched, short ones kept."""
    wavelength = 2 * math.pi / rates
    smooth = (s.original_context / wavelength - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)
    blend = smooth.clamp(0, 1)
    return (1 - blend) * rates / s.factor + blend * rates, 1.0


SCALED = {"linear": _linear, "ntk": _ntk, "dynamic": _dynamic, "yarn": _yarn, "llama3": _llama3}


def rope_table(length: int, rates: Tensor, factor: float = 1.0) -> Tensor:
    """Angles as (2, length, 2 * planes) fp32: cos and sin, each half repeated twice.

    Kept in fp32: bf16 angles past position 256 are off by whole radians' fractions, a bug that stays silent.
    """
    angle = torch.outer(torch.arange(length, dtype=torch.float32, device=rates.device), rates)
    angle = torch.cat([angle, angle], dim=-1)
    return torch.stack([angle.cos(), angle.sin()]) * factor


def dynamic_angles(config: ModelConfig, documents: Tensor | None, positions: Tensor) -> Tensor:
    """Angles (2, B or 1, T, rope_dim) where the base follows the length of each token's own document.

    TRAP: beyond the original context the base changes with the length, so what a prefix computed is no longer what
    the longer text computes: no cache can be exact there. Cached decoding uses the length so far, as transformers does.
    """
    if documents is None:
        lengths = positions.amax(1, keepdim=True).expand_as(positions) + 1
    else:  # the furthest place of each (row, document): a table, not (B, T, T) comparisons
        positions = positions.expand_as(documents)
        numbers, which = documents.unique(return_inverse=True)
        furthest = positions.new_zeros(len(documents), len(numbers)).scatter_reduce(1, which, positions, "amax")
        lengths = furthest.gather(1, which) + 1
    out = torch.zeros(2, *positions.shape, config.rope_dim, device=positions.device)
    for length in lengths.unique().tolist():
        rates, _ = rope_rates(config.rope_dim, config.rope_base, config.rope_scaling, length)
        table = rope_table(length, rates.to(positions.device))
        here = lengths == length
        out[:, here] = table[:, positions[here]]
    return out


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate (B, T, H, head_dim) by (B or 1, T, 1, rope_dim) angles; the scores then depend on distance alone.

    Dimensions beyond rope_dim (partial rotary) pass through.
    """
    dim = cos.shape[-1]
    x, rest = x[..., :dim], x[..., dim:]
    half = dim // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    rotated = (x * cos + turned * sin).type_as(x)
    return torch.cat([rotated, rest], dim=-1) if rest.shape[-1] else rotated


# Vectors added to the embeddings.


def sinusoids(length: int, dim: int) -> Tensor:
    """(length, dim): Vaswani et al. 2017, arXiv 1706.03762, section 3.5: sin and cos interleaved."""
    rate = 10000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    angle = torch.outer(torch.arange(length, dtype=torch.float32), rate)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[:, :dim]


# Biases added to the scores.


def alibi_slopes(n_heads: int) -> Tensor:
    """(H,): Press et al. 2022, ALiBi, arXiv 2108.12409: 2^(-8 h / H) for powers of two.

    Otherwise those of the next smaller power of two, then every other slope of the next larger (as in its code).
    """
    power = 2 ** math.floor(math.log2(n_heads))
    slopes = [2 ** (-8 * (h + 1) / power) for h in range(power)]
    slopes += [2 ** (-8 * (2 * h + 1) / (2 * power)) for h in range(n_heads - power)]
    return torch.tensor(slopes)


def relative_buckets(distance: Tensor, buckets: int, furthest: int) -> Tensor:
    """Bucket of each distance (query place - key place), int64: Raffel et al. 2020, T5, arXiv 1910.10683, causal form.

    The first half of the buckets holds one distance each, the rest grow logarithmically up to `furthest`.
    """
    distance = distance.clamp(min=0)
    exact = buckets // 2
    grown = torch.log(distance.float().clamp(min=1) / exact) / math.log(furthest / exact) * (buckets - exact)
    return torch.where(distance < exact, distance, (exact + grown.long()).clamp(max=buckets - 1))
