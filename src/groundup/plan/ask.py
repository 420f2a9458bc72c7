"""What a design is asked for, the size it aims at, and everything that can be wrong with the question."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from groundup.errors import did_you_mean
from groundup.model.obstacles import check_heads
from groundup.plan.laws import BESIROGLU
from groundup.plan.shapes import Given, heads_of
from groundup.plan.shapes import kv_heads as kv_heads_for

ATTENTION = ("auto", "mha", "gqa", "mqa")
SMALLEST, LARGEST = 10_000, 2 * 10**12
LEAST_VOCAB = 262  # 256 bytes and the special tokens (tokenizer/, which a test compares)
MOST_TOKENS, MOST_FLOPS = 10**18, 1e32  # beyond what anybody could train on: a slip of the keyboard
# Far beyond published models; a search among more would not end.
MOST = {"--context": 2**30, "--vocab": 2**30, "--layers": 10_000, "--width": 2**20, "--heads": 2**16,
        "--kv-heads": 2**16, "--head-dim": 2**16, "--d-ff": 2**24, "--tokens": MOST_TOKENS}  # fmt: skip
_UNITS = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


@dataclass(frozen=True)
class Ask:
    """What the user wants. Everything but a size (or a budget, or a whole shape) may be left open."""

    params: int | None = None
    context: int | None = None
    vocab: int | None = None
    attention: str = "auto"
    budget: float | None = None  # training FLOPs
    tokens: int | None = None
    moe: bool = False
    given: Given = field(default_factory=Given)


def read_size(text: str) -> float | None:
    """'1.5B' -> 1.5e9, '1e21' -> 1e21; None for what is no positive number."""
    unit = _UNITS.get(text[-1:].upper(), 1.0)
    try:
        value = float(text[:-1] if text[-1:].upper() in _UNITS else text) * unit
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None


def target_of(ask: Ask) -> int | None:
    """Parameters to aim at: as asked, or compute-optimal for the budget (with the tokens, if they are given too)."""
    if ask.params or not ask.budget:
        return ask.params
    if ask.given.layers and ask.given.width:
        return None  # the shape is given whole: the budget buys tokens
    return round(ask.budget / (6 * ask.tokens) if ask.tokens else BESIROGLU.optimal(ask.budget)[0])


def rough_size(given: Given) -> int:
    """Rough size of a shape given whole, for the rules that go by size: 12 L D^2 (arXiv 2001.08361, table 1)."""
    assert given.layers and given.width
    return 12 * given.layers * given.width**2


def ask_problems(ask: Ask) -> list[str]:
    """Everything wrong with what is asked, before any search."""
    g, found = ask.given, []
    whole = {"--context": ask.context, "--vocab": ask.vocab, "--tokens": ask.tokens, "--layers": g.layers}
    whole |= {"--width": g.width, "--heads": g.heads, "--kv-heads": g.kv_heads, "--head-dim": g.head_dim}
    bad = {name for name, value in (whole | {"--d-ff": g.d_ff}).items() if value is not None and value < 1}
    found += [f"{name} must be at least 1" for name in sorted(bad)]
    high = {name for name, value in (whole | {"--d-ff": g.d_ff}).items() if value is not None and value > MOST[name]}
    found += [f"{name}: at most {MOST[name]:,}" for name in sorted(high)]
    bad |= high
    if ask.vocab is not None and 0 < ask.vocab < LEAST_VOCAB:
        found.append(
            f"--vocab {ask.vocab}: at least {LEAST_VOCAB}, the 256 bytes and {LEAST_VOCAB - 256} special tokens"
        )
    if ask.budget is not None and ask.budget > MOST_FLOPS:
        found.append(f"--budget-flops {ask.budget:.3g}: at most {MOST_FLOPS:.0e}")
        bad.add("--budget-flops")
    if ask.attention not in ATTENTION:
        found.append(f'--attention: unknown "{ask.attention}"{did_you_mean(ask.attention, ATTENTION)}')
    if ask.params is not None and not SMALLEST <= ask.params <= LARGEST:
        found.append(f"--params {ask.params:,}: from {SMALLEST:,} to {LARGEST:,}; write 124M, 1.5B or 1T")
    if ask.params is None and ask.budget is None and not (g.layers and g.width):
        found.append("give --params (such as 1B), or --budget-flops (such as 1e21), or a shape: --layers and --width")
    if ask.budget and ask.tokens and (ask.params or (g.layers and g.width)):
        found.append("--tokens and --budget-flops each follow from the other once the size is given: leave one out")
    target = None if ask.params or bad else target_of(ask)
    if target is not None and not SMALLEST <= target <= LARGEST:
        found.append(f"--budget-flops {ask.budget:.3g} asks for a model of {target:.3g} parameters: give --params too")
    if ask.moe and g.d_ff:
        found.append("--d-ff is the width of a plain feed-forward, and --moe has none: leave one of them out")
    if not bad:
        found += _given_problems(ask)
    return found


def _given_problems(ask: Ask) -> list[str]:
    g, found = ask.given, []
    if g.width and g.heads and not g.head_dim:
        found += [p.replace("d_model", "--width").replace("n_heads", "--heads") for p in check_heads(g.width, g.heads)]
        if not found and g.width // g.heads % 2:
            found.append(
                f"--width {g.width} in --heads {g.heads} makes heads of {g.width // g.heads}, and rope turns pairs: "
                f"heads must be even; nearest valid pairs: {g.width - g.heads}/{g.heads}, {g.width + g.heads}/{g.heads}"
            )
    elif g.width and g.head_dim and not g.heads and g.width % g.head_dim:
        low = g.width // g.head_dim * g.head_dim
        near = " or ".join(str(w) for w in (low, low + g.head_dim) if w)
        found.append(f"--width {g.width} is not divisible by --head-dim {g.head_dim}; nearest widths: {near}")
    elif g.width and not g.heads and not g.head_dim and heads_of(g.width, g) is None:
        low = g.width // 8 * 8
        near = " or ".join(str(w) for w in (low, low + 8) if w)
        found.append(f"--width {g.width} has no even divisor from 8 to 256 for a head; nearest widths: {near}")
    if g.head_dim and g.head_dim % 2:
        near = " or ".join(str(n) for n in (g.head_dim - 1, g.head_dim + 1) if n)
        found.append(f"--head-dim {g.head_dim} is odd, and rope turns pairs; nearest: {near}")
    if g.kv_heads and g.heads and g.heads % g.kv_heads:
        fits = sorted((k for k in range(1, g.heads + 1) if g.heads % k == 0), key=lambda k: abs(k - (g.kv_heads or 0)))
        pairs = ", ".join(f"{g.heads}/{k}" for k in sorted(fits[:2]))
        found.append(f"--heads {g.heads} is not divisible by --kv-heads {g.kv_heads}; nearest valid pairs: {pairs}")
    wrong = {
        "mha": g.kv_heads and g.kv_heads != g.heads,
        "mqa": g.kv_heads and g.kv_heads != 1,
        "gqa": g.kv_heads and (g.kv_heads == 1 or g.kv_heads == g.heads),
    }
    if wrong.get(ask.attention):
        found.append(f"--kv-heads {g.kv_heads} is not --attention {ask.attention}: leave one of them out")
    elif ask.attention == "gqa" and g.heads and not g.kv_heads and kv_heads_for(g.heads, 1, "gqa") is None:
        found.append(f"--attention gqa: {g.heads} heads have no divisor in between; use {g.heads + g.heads % 2 or 4}")
    return found
