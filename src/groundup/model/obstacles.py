"""Everything that keeps a shape from being built, each with the remedy. Nothing here needs torch.

First each value by itself (`values.py`), then what must agree. A rule is asked only when the fields it reads are sound
by themselves, so that one wrong number gives one message, and several give all of theirs at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from groundup.model.config import MixtureOfExperts, ModelConfig, RopeScaling
from groundup.model.values import PATTERNS, wrong_values


def config_problems(config: ModelConfig) -> list[str]:
    """What is wrong with a shape, in the order of its fields; empty when the model can be built."""
    wrong = dict(wrong_values(config))
    found = list(wrong.values())
    for reads, rule in RULES:
        if not any(name == bad or bad.startswith(f"{name}.") for name in reads for bad in wrong):
            found += rule(config)
    return found


def check_heads(d_model: int, n_heads: int) -> list[str]:
    """d_model must be divisible by n_heads when head_dim follows from them; names the nearest pairs that are."""
    if d_model % n_heads == 0:
        return []
    heads = sorted(_divisors(d_model), key=lambda n: abs(n - n_heads))[:2]
    low = d_model // n_heads * n_heads
    widths = [w for w in (low, low + n_heads) if w > 0]
    pairs = [f"{d_model}/{n}" for n in heads] + [f"{w}/{n_heads}" for w in widths]
    return [f"d_model {d_model} is not divisible by n_heads {n_heads}; nearest valid pairs: {', '.join(pairs)}"]


def _kv_heads(c: ModelConfig) -> Iterator[str]:
    if c.latent:
        if c.n_kv_heads != c.n_heads:
            yield (
                f"n_kv_heads is {c.n_kv_heads}, but latent attention has no kv heads of its own: "
                f"set it to n_heads ({c.n_heads})"
            )
    elif c.n_heads % c.n_kv_heads:
        near = " or ".join(map(str, _nearest(_divisors(c.n_heads), c.n_kv_heads)))
        yield f"n_heads {c.n_heads} is not divisible by n_kv_heads {c.n_kv_heads} (nearest n_kv_heads: {near})"


def _latent(c: ModelConfig) -> Iterator[str]:
    """What latent attention (arXiv 2405.04434) has no place for."""
    if c.latent is None:
        return
    if c.position != "rope":
        yield f"latent has a rotated part, so position must be rope (got {c.position})"
    if c.latent.rope_dim % 2:
        yield f"latent.rope_dim must be even (got {c.latent.rope_dim}; nearest: {_evens(c.latent.rope_dim)})"
    if c.rope_fraction != 1:
        yield "rope_fraction is not read with latent: leave it at 1; latent.rope_dim says how much is rotated"
    if c.head_dim not in (c.qk_dim, c.d_model // c.n_heads):
        yield (
            f"head_dim {c.head_dim} is not read with latent: leave it at auto, or set it to "
            f"nope_dim + rope_dim ({c.qk_dim})"
        )
    if c.qk_norm != "none":
        yield f"qk_norm: {c.qk_norm} has no place in latent attention, which normalises its bottlenecks: set it to none"
    if "qkv" in c.bias:
        yield "bias: qkv has no place in latent attention: take qkv out of the list"


def _rope(c: ModelConfig) -> Iterator[str]:
    if c.position != "rope":
        given = {
            "rope_scaling": c.rope_scaling is not None,
            "rope_local_base": c.rope_local_base is not None,
            "rope_pattern": c.rope_pattern != "R",
            "rope_fraction": c.rope_fraction != 1,
        }
        for name in (name for name, here in given.items() if here):
            yield f"{name} is read with position: rope alone (position is {c.position}): leave it out"
        return
    if "R" not in c.rope_pattern[: c.n_layers]:
        yield f'rope_pattern "{c.rope_pattern}" rotates no layer: say position: none instead'
    if c.latent is None and (c.rope_dim < 2 or c.rope_dim % 2):
        if c.rope_fraction == 1:
            yield f"rope turns pairs, so head_dim must be even (got {c.head_dim}; nearest: {_evens(c.head_dim)})"
        else:
            fits = [n for n in _even_numbers(c.rope_dim) if n <= c.head_dim]
            near = " or ".join(f"{math.ceil(1e4 * n / c.head_dim) / 1e4:g}" for n in fits)  # up: int() rounds down
            yield (
                f"rope turns pairs, but rope_fraction {c.rope_fraction} of head_dim {c.head_dim} is {c.rope_dim} "
                + (f"(nearest rope_fraction: {near})" if near else "(head_dim must be at least 2)")
            )


def _rope_scaling(c: ModelConfig) -> Iterator[str]:
    s = c.rope_scaling
    if s is None or c.position != "rope":
        return
    if s.original_context > c.context:
        yield (
            f"rope_scaling.original_context {s.original_context} is longer than context {c.context}: nothing is "
            f"stretched; raise context, or leave rope_scaling out"
        )
    if s.kind in ("ntk", "dynamic") and c.rope_dim == 2:  # its exponent is dim / (dim - 2)
        yield f"rope_scaling.kind: {s.kind} needs at least 4 rotated dimensions (got 2): use linear, or wider heads"
    if s.kind == "yarn" and s.beta_fast <= s.beta_slow:
        yield f"rope_scaling.beta_fast {s.beta_fast} must be above beta_slow {s.beta_slow} (published: 32 and 1)"
    if s.kind == "llama3" and s.low_freq_factor >= s.high_freq_factor:
        yield (
            f"rope_scaling.low_freq_factor {s.low_freq_factor} must be below high_freq_factor {s.high_freq_factor} "
            "(published: 1 and 4)"
        )
    reads = {"yarn": ("beta_fast", "beta_slow", "attention_factor"), "llama3": ("low_freq_factor", "high_freq_factor")}
    for kind, names in reads.items():
        for name in names:
            if s.kind != kind and getattr(s, name) != RopeScaling.__dataclass_fields__[name].default:
                yield f"rope_scaling.{name} is read by kind: {kind} alone (kind is {s.kind}): leave it out"


def _other_positions(c: ModelConfig) -> Iterator[str]:
    if c.position == "sinusoidal" and c.d_model % 2:
        yield f"position: sinusoidal is made of pairs, so d_model must be even (got {c.d_model})"
    if c.position == "t5" and c.relative_distance <= c.relative_buckets // 2:
        yield (
            f"relative_distance {c.relative_distance} must be above half of relative_buckets {c.relative_buckets}: "
            f"that half holds one distance each; use at least {c.relative_buckets // 2 + 1}"
        )


def _window(c: ModelConfig) -> Iterator[str]:
    if c.window == 0:
        if c.window_pattern != "L":
            yield f'window_pattern "{c.window_pattern}" is read with a window alone: set window, or leave it out'
        if c.rope_local_base is not None:
            yield "rope_local_base is for windowed layers and there are none: set window, or leave it out"
        return
    if c.window > c.context:
        yield f"window {c.window} is longer than context {c.context} and hides nothing: set it to 0, or raise context"
    if "L" not in c.window_pattern[: c.n_layers]:
        yield f'window_pattern "{c.window_pattern}" makes no layer local: put an L into it, or set window to 0'


def _pattern_lengths(c: ModelConfig) -> Iterator[str]:
    for name in PATTERNS:
        pattern = getattr(c, name)
        if len(pattern) > c.n_layers:
            yield (
                f'{name} "{pattern}" has {len(pattern)} letters for {c.n_layers} layers: '
                f'cut it to "{pattern[: c.n_layers]}", or add layers'
            )


def _norms(c: ModelConfig) -> Iterator[str]:
    if c.norm_offset and not c.norm_weight:
        yield "norm_offset multiplies by 1 + weight, but norm_weight is false: drop one of the two"
    if "norm" in c.bias and c.norm != "layernorm":
        yield f"bias: norm goes with norm: layernorm (norm is {c.norm}, which has none): take it out of the list"
    elif "norm" in c.bias and not c.norm_weight:
        yield "bias: norm with norm_weight: false: norms without parameters have no bias; take it out of the list"


def _experts(c: ModelConfig) -> Iterator[str]:
    moe = c.moe
    if moe is None:
        return
    if moe.n_experts == 1:
        yield "moe.n_experts is 1, and one expert is a plain feed-forward: leave moe out, or set it to 2 or more"
    if moe.top_k > moe.n_experts:
        yield f"moe.top_k {moe.top_k} is more than moe.n_experts {moe.n_experts}: set it to at most {moe.n_experts}"
    if moe.top_k == 1 and moe.normalise:
        yield (
            "moe.top_k is 1 and moe.normalise is true: the one weight is always 1, so the router learns nothing from "
            "the text; set moe.normalise to false, or top_k to 2"
        )
    if not any(c.has_experts(layer) for layer in range(c.n_layers)):
        yield (
            f"moe: no layer has experts: first_dense {moe.first_dense} and every {moe.every} leave none of "
            f"{c.n_layers} layers; first_dense + every may be at most {c.n_layers}"
        )
    elif all(c.has_experts(layer) for layer in range(c.n_layers)) and not moe.n_shared and {"up", "down"} & {*c.bias}:
        yield "bias: up and down have no place: every layer has experts, which have none; take them out of the list"
    for name, kind in (("balance_weight", "loss"), ("bias_rate", "bias")):
        default = MixtureOfExperts.__dataclass_fields__[name].default
        if moe.balance != kind and getattr(moe, name) not in (0, default):
            yield f"moe.{name} is read with moe.balance: {kind} alone (balance is {moe.balance}): leave it out"


def _init(c: ModelConfig) -> Iterator[str]:
    if c.init == "mup" and c.mup_width == 0:
        yield "init: mup needs mup_width, the width at which the learning rate was tuned (for example 256)"
    if c.init != "mup" and c.mup_width:
        yield f"mup_width is read with init: mup alone (init is {c.init}): leave it out, or set init to mup"
    if c.init in ("xavier", "he") and c.init_std != ModelConfig.__dataclass_fields__["init_std"].default:
        yield f"init_std is not read with init: {c.init}, which takes it from the widths: leave it out"


Rule = Callable[[ModelConfig], Iterator[str]]
# (the fields a rule reads, the rule)
RULES: tuple[tuple[tuple[str, ...], Rule], ...] = (
    (("n_heads", "n_kv_heads", "latent"), _kv_heads),
    (("d_model", "n_heads", "head_dim", "latent", "position", "rope_fraction", "qk_norm", "bias"), _latent),
    (("position", "rope_scaling", "rope_pattern", "rope_fraction", "head_dim", "n_layers", "latent"), _rope),
    (("rope_scaling", "context", "position", "head_dim", "rope_fraction", "latent"), _rope_scaling),
    (("position", "d_model", "relative_buckets", "relative_distance"), _other_positions),
    (("window", "window_pattern", "rope_local_base", "context", "n_layers"), _window),
    (("rope_pattern", "window_pattern", "n_layers"), _pattern_lengths),
    (("norm", "norm_weight", "norm_offset", "bias"), _norms),
    (("moe", "n_layers", "bias"), _experts),
    (("init", "mup_width", "init_std"), _init),
)


def _divisors(n: int) -> list[int]:
    return [k for k in range(1, n + 1) if n % k == 0]


def _nearest(values: list[int], to: int) -> list[int]:
    """The next value below `to` and the next above, as far as there are any."""
    return [v for v in values if v < to][-1:] + [v for v in values if v > to][:1]


def _even_numbers(n: int) -> list[int]:
    """The even numbers around an odd one, from 2 on."""
    return [v for v in (n - 1, n + 1) if v >= 2] or [2]


def _evens(n: int) -> str:
    return " or ".join(map(str, _even_numbers(n)))
