"""From a size, or a budget, to a full architecture: every dimension, what was changed on the way, tokens and FLOPs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from groundup.errors import UserError, problems
from groundup.model.config import ModelConfig
from groundup.model.count import count
from groundup.model.flops import train_flops_per_token
from groundup.plan.ask import Ask, ask_problems, rough_size, target_of
from groundup.plan.laws import BESIROGLU
from groundup.plan.reduce import TOO_LARGE, reduced
from groundup.plan.shapes import WITHIN, context_length, ff_multiple, ff_width, fit, rope_base, vocab_size


@dataclass(frozen=True)
class Design:
    """An architecture and what it comes to."""

    ask: Ask
    target: int  # parameters that were aimed at
    config: ModelConfig
    tokens: int
    changes: tuple[str, ...]  # what was given and is not as it was given

    @property
    def parameters(self) -> dict[str, int]:
        return count(self.config)

    @property
    def flops(self) -> float:
        return train_flops_per_token(self.config) * self.tokens


def optimal_tokens(params: int) -> int:
    """Tokens for which `params` are compute-optimal (about 20 a parameter; the refit of arXiv 2404.10102)."""
    law = BESIROGLU
    return round((params / law.matching_parameters(1.0)) ** (law.alpha / law.beta))


def design(ask: Ask) -> Design:
    """The architecture for what is asked, its parameters within 3% where the search is free.

    A shape given whole (layers and width) is kept as it is up to 20% above the size, and reduced beyond.
    Errors: one UserError with everything that is impossible, each with its remedy.
    """
    problems("design", ask_problems(ask))
    target, given = target_of(ask), ask.given
    vocab = ask.vocab or vocab_size(target or rough_size(given))
    context = ask.context or context_length(target or rough_size(given))
    kept: dict[str, Any] = {
        "vocab_size": vocab,
        "context": context,
        "rope_base": rope_base(context),
        "mlp": "swiglu",
        "qk_norm": "head",
    }
    changes: list[str] = []
    if given.layers and given.width:
        config = _as_given(ask, kept, target or rough_size(given))
        target = target or count(config)["total"]
        config = reduced(config, target, ask, changes)
    else:
        assert target is not None
        config = _searched(ask, kept, target, changes)
        if ask.budget and ask.tokens:
            for _ in range(3):  # 6 N D is not quite what training takes
                target = round(target * ask.budget / (train_flops_per_token(config) * ask.tokens))
                config = _searched(ask, kept, target, changes)
    problems("design", config.problems())
    per_token = train_flops_per_token(config)
    tokens = ask.tokens or (round(ask.budget / per_token) if ask.budget else optimal_tokens(count(config)["active"]))
    problems("design", _too_few(tokens, config, ask))
    return Design(ask, target, config, tokens, tuple(changes))


def _too_few(tokens: int, config: ModelConfig, ask: Ask) -> list[str]:
    """A run shorter than one sequence is no run."""
    if tokens >= config.context:
        return []
    cause = "--tokens" if ask.tokens else f"--budget-flops {ask.budget:.3g}" if ask.budget else "this size"
    return [f"{cause}: {tokens:,} tokens are less than one sequence of --context {config.context:,}: raise one"
            " or lower the other"]  # fmt: skip


def _searched(ask: Ask, kept: dict[str, Any], target: int, changes: list[str]) -> ModelConfig:
    """The nearest shape within 3%. A width or a depth that leaves only larger ones is given up, and that is said."""
    given = ask.given
    try:
        config = fit(target, kept, given, ask.attention, ask.moe)
        if count(config)["total"] > TOO_LARGE * target and (given.layers or given.width):
            held = "width" if given.width else "layers"
            smallest = count(config)["total"]
            config = fit(target, kept, replace(given, width=None, layers=None), ask.attention, ask.moe)
            now = config.d_model if given.width else config.n_layers
            changes.append(
                f"the smallest shape with --{held} {getattr(given, held)} has {smallest:,} parameters for "
                f"{target:,} asked: {held} {getattr(given, held)} -> {now}"
            )
    except ValueError:
        raise UserError(f"design: {_no_shape(ask)}") from None
    problems("design", _missed(config, target, ask))
    return config


def _no_shape(ask: Ask) -> str:
    given = ask.given
    names = ("width", "layers", "heads", "kv_heads", "head_dim")
    parts = [f"--{name.replace('_', '-')} {getattr(given, name)}" for name in names if getattr(given, name)]
    if ask.attention != "auto":
        parts.append(f"--attention {ask.attention}")
    return f"no width goes with {' and '.join(parts) or 'this size'} at this size: leave one of them open"


def _missed(config: ModelConfig, target: int, ask: Ask) -> list[str]:
    """The search promises 3%. Where nothing is within it, say what stands in the way."""
    counted = count(config)
    if abs(counted["total"] / target - 1) <= WITHIN:
        return []
    table = counted["embedding"] + counted["head"]
    nearest = f"nothing within 3% of {target:,} parameters; the nearest shape has {counted['total']:,}"
    if table > 0.5 * target:
        fits = max(512, round(0.3 * target / config.d_model / 128) * 128)
        lower = f"lower --vocab to about {fits:,}, or " if fits < config.vocab_size else ""
        return [
            f"{nearest}, {table:,} of them for the {config.vocab_size:,} tokens of the vocabulary: "
            f"{lower}raise --params to {1000 * round(3.5e-3 * table):,}"
        ]
    given = ask.given
    held = [name for name in ("width", "layers", "heads", "head_dim", "d_ff") if getattr(given, name)]
    advice = f"leave --{held[0].replace('_', '-')} open, or " if held else ""
    return [f"{nearest}: {advice}ask for --params {counted['total']}"]


def _as_given(ask: Ask, kept: dict[str, Any], size: int) -> ModelConfig:
    """The shape with the rules' values for what was left open, however large it is."""
    width = ask.given.width or 1
    fixed = replace(ask.given, d_ff=ask.given.d_ff or ff_width(width, kept["mlp"], ff_multiple(width)))
    try:
        return fit(size, kept, ask.given if ask.moe else fixed, ask.attention, ask.moe)
    except ValueError:
        raise UserError(f"design: {_no_shape(ask)}") from None
