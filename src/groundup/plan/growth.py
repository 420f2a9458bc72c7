"""Scaling notes: the same question asked for 2 and 10 times the parameters, what changes, and what breaks first."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from groundup.errors import UserError
from groundup.model.config import ModelConfig
from groundup.plan.ask import LARGEST, Ask
from groundup.plan.design import Design, design
from groundup.plan.reasons import cache_bytes
from groundup.plan.shapes import Given, shared_batch
from groundup.plan.transfer import MOST_RATE, Suggestion, transfer

FACTORS = (2, 10)
# Weights, gradients and Adam's two moments: 4 + 4 + 8 in fp32, 2 + 2 + 12 in mixed precision (arXiv 1910.02054, 3.1)
STATE_BYTES = 16
DEVICE_BYTES = 80e9  # the usual data-centre accelerator
STATE_SHARE = 0.6  # of a device for those states; the rest is for activations and logits
NODE = 8  # devices that share a fast link
DEVICE_FLOPS = 0.4 * 989e12  # one H100 in bf16 at an MFU of 40%
SHARING = 64  # devices that a batch is rounded for
LONGEST_DAYS = 90.0  # of one training run
UNIQUE_TOKENS = 15e12  # the largest open corpus of web text (FineWeb, arXiv 2406.17557)


@dataclass(frozen=True)
class Grown:
    """The design at a multiple of its size."""

    factor: int
    design: Design
    hyper: Suggestion
    changes: tuple[str, ...]


def hyperparameters(d: Design) -> Suggestion:
    """Batch and learning rate for a design, by the rule that `plan` uses for rates."""
    n = d.parameters
    seen = n["active"] - n["embedding"] * (not d.config.tied)  # a tied table is the head
    found = transfer("olmo-ladder", seen, d.tokens, d.config.context)
    rows = shared_batch(found.batch_size, SHARING)
    return replace(
        found, batch_size=rows, batch_tokens=rows * d.config.context, learning_rate=min(found.learning_rate, MOST_RATE)
    )


def states(d: Design) -> float:
    """Bytes of weights, gradients and optimizer state."""
    return float(STATE_BYTES * d.parameters["total"])


def devices(state_bytes: float) -> int:
    """The fewest devices of 80 GB that hold these states, split evenly (FSDP)."""
    return math.ceil(state_bytes / (STATE_SHARE * DEVICE_BYTES))


def memory_class(n: int) -> str:
    """Where training states that fill `n` devices of 80 GB live."""
    if n == 1:
        return "one 80 GB device"
    if n <= NODE:
        return f"{n} 80 GB devices of one node, FSDP"
    return f"{math.ceil(n / NODE)} nodes of 8, FSDP and tensor parallel within a node"


def grow(d: Design) -> list[Grown]:
    """2 and 10 times the parameters by the same search, as far as it goes (2T)."""
    found = []
    for factor in FACTORS:
        if d.parameters["total"] * factor > LARGEST:
            continue
        given = Given(head_dim=d.ask.given.head_dim, tied=d.ask.given.tied)  # the rest was for this size
        size = factor * d.parameters["total"]
        tokens = factor * d.tokens if d.ask.tokens or d.ask.budget else None  # as many a parameter as were asked for
        ask = Ask(size, d.ask.context, d.ask.vocab, d.ask.attention, None, tokens, d.ask.moe, given)
        try:
            larger = design(ask)
        except UserError:  # a head width that goes with this size alone
            larger = design(replace(ask, given=Given()))
        found.append(Grown(factor, larger, hyperparameters(larger), tuple(_changes(d, larger))))
    return found


def _changes(a: Design, b: Design) -> list[str]:
    """What is different in kind or in consequence, in words; the dimensions themselves stand in the table."""
    old, new = a.config, b.config
    out = []
    for name, was, now in (
        ("attention", _kind(old), _kind(new)),
        ("output head", _tied(old), _tied(new)),
        ("vocabulary", f"{old.vocab_size:,}", f"{new.vocab_size:,}"),
        ("context", f"{old.context:,}", f"{new.context:,}"),
        ("rope base", f"{old.rope_base:,.0f}", f"{new.rope_base:,.0f}"),
        ("training states", memory_class(devices(states(a))), memory_class(devices(states(b)))),
    ):
        if was != now:
            out.append(f"{name}: {was} -> {now}")
    out.append(f"the cache takes {cache_bytes(new) / cache_bytes(old):.2g} times the bytes a token")
    out.append(f"training takes {b.flops / a.flops:.3g} times the FLOPs and {b.tokens / a.tokens:.2g} times the tokens")
    one, two = hyperparameters(a), hyperparameters(b)
    out.append(
        f"batch {two.batch_tokens / one.batch_tokens:.2g} times as many tokens, learning rate "
        f"{two.learning_rate / one.learning_rate:.2f} times as high (OLMo's ladder)"
    )
    return out


def _kind(c: ModelConfig) -> str:
    return "MHA" if c.n_kv_heads == c.n_heads else "MQA" if c.n_kv_heads == 1 else "GQA"


def _tied(c: ModelConfig) -> str:
    return "tied" if c.tied else "untied"


def breaks_first(d: Design) -> list[tuple[float, str]]:
    """(factor, limit) in the order they are met as the model grows, tokens in proportion, FLOPs squared.

    A factor of 1: it is so already. All limits that stand within 10 times the size, or else the first one beyond.
    """
    state, tokens, flops = states(d), float(d.tokens), d.flops

    def days(f: float) -> float:
        return flops * f * f / (devices(state * f) * DEVICE_FLOPS) / 86400

    limits: tuple[tuple[str, Callable[[float], bool]], ...] = (
        ("weights, gradients and optimizer state leave one device of 80 GB: FSDP", lambda f: devices(state * f) > 1),
        ("they leave a node of 8: tensor parallel inside, FSDP across", lambda f: devices(state * f) > NODE),
        (
            f"training takes over {LONGEST_DAYS:.0f} days on the fewest devices that hold it: take more",
            lambda f: days(f) > LONGEST_DAYS,
        ),
        (
            f"the tokens pass {UNIQUE_TOKENS / 1e12:.0f}T, the largest open corpus: text is repeated",
            lambda f: tokens * f > UNIQUE_TOKENS,
        ),
    )
    steps = [10 ** (i / 40) for i in range(400)]
    # a run of a few tokens meets some limit never
    met = sorted((f, text) for text, over in limits if (f := next((f for f in steps if over(f)), None)) is not None)
    return [item for item in met if item[0] <= max(FACTORS)] or met[:1]
