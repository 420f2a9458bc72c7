"""Faults of rotations and their stretched forms, of position vectors and of biases on the scores."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from groundup.model import attention, position, transformer
from groundup.model.config import ModelConfig, RopeScaling
from groundup.model.transformer import Transformer
from groundup.verify.fault import fault, swapped

_yarn, _llama3 = position._yarn, position._llama3


def _scaling(kind: str) -> dict[str, Any]:
    return {"context": 256, "rope_scaling": {"kind": kind, "factor": 4.0, "original_context": 64}}


@fault("yarn-ramp-swapped", "rope-scaling-is-the-published-one", model=_scaling("yarn"))
def yarn_ramp_swapped() -> Iterator[None]:
    """YaRN stretches the fast planes and leaves the slow ones."""

    def wrong(rates: Tensor, dim: int, base: float, s: RopeScaling, length: int) -> tuple[Tensor, float]:
        right, factor = _yarn(rates, dim, base, s, length)
        return rates + rates / s.factor - right, factor

    with swapped(position, SCALED={**position.SCALED, "yarn": wrong}):
        yield


@fault("yarn-factor-forgotten", "rope-scaling-is-the-published-one", "rope-table-precise", model=_scaling("yarn"))
def yarn_factor_forgotten() -> Iterator[None]:
    """cos and sin are not multiplied by 0.1 ln(factor) + 1."""

    def wrong(rates: Tensor, dim: int, base: float, s: RopeScaling, length: int) -> tuple[Tensor, float]:
        return _yarn(rates, dim, base, s, length)[0], 1.0

    with swapped(position, SCALED={**position.SCALED, "yarn": wrong}):
        yield


@fault("llama3-short-wavelengths-stretched", "rope-scaling-is-the-published-one", model=_scaling("llama3"))
def llama3_short_wavelengths_stretched() -> Iterator[None]:
    """The factor is applied to the short wavelengths, and the long ones are kept."""

    def wrong(rates: Tensor, dim: int, base: float, s: RopeScaling, length: int) -> tuple[Tensor, float]:
        right, factor = _llama3(rates, dim, base, s, length)
        return rates + rates / s.factor - right, factor

    with swapped(position, SCALED={**position.SCALED, "llama3": wrong}):
        yield


@fault("ntk-exponent-forgotten", "rope-scaling-is-the-published-one", model=_scaling("ntk"))
def ntk_exponent_forgotten() -> Iterator[None]:
    """The base is multiplied by the factor itself, not by factor^(d / (d - 2))."""

    def wrong(rates: Tensor, dim: int, base: float, s: RopeScaling, length: int) -> tuple[Tensor, float]:
        return position.rope_rates(dim, base * s.factor)

    with swapped(position, SCALED={**position.SCALED, "ntk": wrong}):
        yield


@fault("dynamic-length-of-the-row", "each-layer-turns-by-its-own-angles", model=_scaling("dynamic"))
def dynamic_length_of_the_row() -> Iterator[None]:
    """A packed document is stretched as its longest neighbour needs."""
    right = position.dynamic_angles
    with swapped(transformer, dynamic_angles=lambda config, documents, positions: right(config, None, positions)):
        yield


@fault(
    "local-base-in-global-layers",
    "each-layer-turns-by-its-own-angles",
    "forward-is-its-definition",
    model={"window": 6, "window_pattern": "LG", "rope_local_base": 100.0},
)
def local_base_in_global_layers() -> Iterator[None]:
    """Gemma 3's two bases are mixed up."""
    right = Transformer.angles_of_layers

    def wrong(self: Transformer, documents: Tensor | None, positions: Tensor) -> Any:
        self.angles, self.local_angles = self.local_angles, self.angles
        try:
            return right(self, documents, positions)
        finally:
            self.angles, self.local_angles = self.local_angles, self.angles

    with swapped(Transformer, angles_of_layers=wrong):
        yield


@fault("unrotated-layer-rotated", "each-layer-turns-by-its-own-angles", model={"rope_pattern": "RN"})
def unrotated_layer_rotated() -> Iterator[None]:
    """rope_pattern is ignored: every layer is rotated."""
    with swapped(ModelConfig, is_rotated=lambda self, layer: self.position == "rope"):
        yield


@fault(
    "last-dimensions-rotated",
    "partial-rotary-leaves-the-rest",
    "attention-is-its-formula",
    model={"rope_fraction": 0.5},
)
def last_dimensions_rotated() -> Iterator[None]:
    """Partial rotary turns the last dimensions of a head, not the first: it trains well, and weights fit nowhere."""

    def wrong(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        rest = x.shape[-1] - cos.shape[-1]
        return torch.cat([x[..., :rest], position.rotate(x[..., rest:], cos, sin)], dim=-1)

    with swapped(attention, rotate=wrong):
        yield


@fault("embeddings-scaled-twice", "stream-starts-with-token-and-place", model={"embed_scale": 5.0})
def embeddings_scaled_twice() -> Iterator[None]:
    """embed_scale is applied once more on the way into the first block."""
    right = Transformer.forward

    def wrong(self: Transformer, tokens: Tensor, **given: Any) -> Tensor:
        handle = self.embed.register_forward_hook(lambda _, __, output: output * self.config.embed_scale)
        try:
            return right(self, tokens, **given)
        finally:
            handle.remove()

    with swapped(Transformer, forward=wrong):
        yield


@fault("sines-before-cosines", "stream-starts-with-token-and-place", model={"position": "sinusoidal"})
def sines_before_cosines() -> Iterator[None]:
    """All sines, then all cosines, where the paper interleaves them."""
    right = position.sinusoids

    def wrong(length: int, dim: int) -> Tensor:
        table = right(length, dim)
        return torch.cat([table[:, ::2], table[:, 1::2]], dim=1)

    with swapped(transformer, sinusoids=wrong):
        yield


@fault("alibi-favours-the-far", "alibi-falls-with-distance", "forward-is-its-definition", model={"position": "alibi"})
def alibi_favours_the_far() -> Iterator[None]:
    """ALiBi's bias is added with the wrong sign."""
    right = position.alibi_slopes
    with swapped(transformer, alibi_slopes=lambda heads: -right(heads)):
        yield


@fault("alibi-takes-the-first-slopes", "alibi-falls-with-distance", model={"position": "alibi"})
def alibi_takes_the_first_slopes() -> Iterator[None]:
    """For head counts that are no power of two, the extra slopes are the first of the finer ones, not every other."""
    right = position.alibi_slopes

    def wrong(heads: int) -> Tensor:
        power = 2 ** (heads.bit_length() - 1)
        return torch.cat([right(power), right(2 * power)[: heads - power]])

    with swapped(position, alibi_slopes=wrong), swapped(transformer, alibi_slopes=wrong):
        yield


@fault("t5-logarithm-rounded", "t5-buckets-follow-the-formula", model={"position": "t5"})
def t5_logarithm_rounded() -> Iterator[None]:
    """At the logarithm's borders a distance falls into the next bucket: rounded where it should be cut."""

    def wrong(distance: Tensor, buckets: int, furthest: int) -> Tensor:
        distance, exact = distance.clamp(min=0), buckets // 2
        ratio = torch.tensor(furthest / exact).log()
        grown = torch.log(distance.float().clamp(min=1) / exact) / ratio * (buckets - exact)
        return torch.where(distance < exact, distance, (exact + grown.round().long()).clamp(max=buckets - 1))

    with swapped(position, relative_buckets=wrong), swapped(transformer, relative_buckets=wrong):
        yield


@fault("t5-distance-from-one", "t5-buckets-follow-the-formula", model={"position": "t5"})
def t5_distance_from_one() -> Iterator[None]:
    """The model counts distances from 1: a token is as far from itself as from its neighbour."""
    right = position.relative_buckets
    with swapped(transformer, relative_buckets=lambda distance, *more: right(distance.clamp(min=1), *more)):
        yield
