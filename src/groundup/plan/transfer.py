"""Batch size and learning rate from size and tokens, by published rules: chosen by name, each with its source.

The rules disagree, by factors at small sizes: each was fitted with its own optimizer, schedule and range of sizes.
`notes` says where a value stands outside the range. N is `fitted_parameters`: without the input embedding, as in the
papers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from groundup.errors import UserError, did_you_mean
from groundup.model.config import ModelConfig
from groundup.model.count import count

RULES = ("olmo-ladder", "deepseek", "step-law", "nanochat", "mup")
MOST_RATE = 0.006  # of AdamW on tied embeddings; below 50M parameters the rules ask for more. Default, not tuned


def fitted_parameters(config: ModelConfig) -> int:
    """The N of the laws: what a token is multiplied with, the blocks and the output head, tied or not.

    The lookup in the input embedding costs nothing and is left out; leaving out the head too bends the curve of small
    models, of which it is a large part (Porian et al. 2024, arXiv 2406.19146, section 3.1).
    """
    counted = count(config)
    return counted["attention"] + counted["mlp"] + config.vocab_size * config.d_model


@dataclass(frozen=True)
class Run:
    """What the rules look at."""

    parameters: float  # without the input embedding
    tokens: float
    context: int
    d_model: int | None = None  # nanochat, mup
    # mup: what was tuned at `mup_width`
    mup_width: int | None = None
    learning_rate: float | None = None
    batch_size: int | None = None


@dataclass(frozen=True)
class Suggestion:
    """One rule's answer. Rates are peaks; `notes` is what a person should know before using them."""

    rule: str
    batch_tokens: int
    batch_size: int  # sequences of the context, at least 1
    learning_rate: float  # of AdamW; for embeddings and vectors where the matrices have their own
    source: str
    valid_range: str
    notes: tuple[str, ...] = ()
    muon_learning_rate: float | None = None  # where the rule has one
    matrix_learning_rate: float | None = None  # mup: what AdamW's matrices get; the optimizer scales them itself


def transfer(
    rule: str,
    parameters: float,
    tokens: float,
    context: int,
    *,
    d_model: int | None = None,
    mup_width: int | None = None,
    learning_rate: float | None = None,
    batch_size: int | None = None,
) -> Suggestion:
    """Batch and peak rate for a run of `parameters` (without the input embedding) on `tokens` tokens.

    rule: one of RULES. d_model: used by nanochat and mup. mup_width, learning_rate, batch_size: what was tuned, for
    mup. Errors: UserError for an unknown rule, or what mup lacks.
    """
    if rule not in _RULES:
        raise UserError(f'no transfer rule "{rule}"{did_you_mean(rule, RULES)}')
    found = _RULES[rule](Run(parameters, tokens, context, d_model, mup_width, learning_rate, batch_size))
    rows = max(1, round(found.batch_tokens / context))
    steps = tokens / (rows * context)
    short = (f"only {steps:,.0f} steps: a smaller batch would take more of them",) if steps < FEWEST_STEPS else ()
    return replace(found, rule=rule, batch_size=rows, batch_tokens=rows * context, notes=found.notes + short)


FEWEST_STEPS = 100  # default, not tuned: below it warm-up and decay leave little in between


def _answer(
    batch_tokens: float, rate: float, source: str, valid: str, notes: list[str], muon: float | None = None
) -> Suggestion:
    return Suggestion("", round(batch_tokens), 0, rate, source, valid, tuple(notes), muon)


def _olmo_ladder(run: Run) -> Suggestion:
    scale = run.parameters / 108e6
    return _answer(
        2048 * 160 * scale ** (2 / 3),
        0.0047 * scale ** (-1 / 3) / 2,
        "OLMo-core's ladder: 2048 x 160 (N / 108M)^(2/3) tokens, 0.0047 (N / 108M)^(-1/3) / 2 for a WSD schedule; "
        "fits of Porian et al. 2024, arXiv 2406.19146",
        "5M to 901M parameters, about 20 tokens a parameter, AdamW",
        _outside("parameters", run.parameters, 5e6, 901e6),
    )


def _deepseek(run: Run) -> Suggestion:
    flops = 6 * run.parameters * run.tokens
    return _answer(
        0.2920 * flops**0.3271,
        0.3118 * flops**-0.1250,
        "DeepSeek LLM, arXiv 2401.02954, equation 1: B = 0.2920 C^0.3271 tokens, rate = 0.3118 C^-0.1250",
        "1e17 to 2e19 FLOPs, near compute-optimal, AdamW, a multi-step schedule",
        _outside("FLOPs", flops, 1e17, 2e19),
    )


def _step_law(run: Run) -> Suggestion:
    return _answer(
        0.58 * run.tokens**0.571,
        1.79 * run.parameters**-0.713 * run.tokens**0.307,
        "Step Law, arXiv 2503.04715, equation 1: B = 0.58 D^0.571 tokens, rate = 1.79 N^-0.713 D^0.307",
        "60M to 1B parameters, up to 100B tokens, AdamW, cosine to a rate of 1e-5 whatever the peak",
        _outside("parameters", run.parameters, 60e6, 1e9) + _outside("tokens", run.tokens, 1e9, 100e9),
    )


# nanochat's reference is its model of depth 12: what was tuned there is carried over.
D12_PARAMETERS = 12 * 12 * 768**2 + 32768 * 768  # matrices in blocks, and the head
D12_TOKENS, D12_BATCH = 12 * D12_PARAMETERS, 2**19
D12_HEAD_RATE, D12_MUON_RATE = 0.008, 0.02


def _nanochat(run: Run) -> Suggestion:
    batch = D12_BATCH * (run.tokens / D12_TOKENS) ** 0.383
    batch = 2.0 ** round(math.log2(batch))
    ratio = math.sqrt(batch / D12_BATCH)
    notes = _outside("parameters", run.parameters, 2e7, 2e9)
    if run.d_model is None:
        notes.append("the width was not given: its factor (768 / d_model)^0.5 is left out")
    width = math.sqrt(768 / run.d_model) if run.d_model else 1.0
    return _answer(
        batch,
        D12_HEAD_RATE * width * ratio,
        "nanochat, scripts/base_train.py: B = 2^19 (D / D_d12)^0.383, a power of two (exponent: arXiv 2505.13738); "
        "rates x sqrt(B / 2^19); AdamW's besides x (768 / d_model)^0.5, here that of its head; Muon 0.02",
        "tuned at 110M parameters (depth 12) and 12 tokens a parameter, used up to about 2B; Muon",
        notes,
        D12_MUON_RATE * ratio,
    )


def _mup(run: Run) -> Suggestion:
    lacking = [
        name
        for name, value in (
            ("model.mup_width", run.mup_width),
            ("model.d_model", run.d_model),
            ("pretrain.learning_rate", run.learning_rate),
            ("pretrain.batch_size", run.batch_size),
        )
        if not value
    ]
    if lacking:
        raise UserError(
            f"mup carries over what was tuned at a small width; it needs {', '.join(lacking)}: tune there first"
        )
    assert run.mup_width and run.d_model and run.learning_rate and run.batch_size
    ratio = run.mup_width / run.d_model
    notes = []
    if run.mup_width < 128:
        notes.append(f"tuned at a width of {run.mup_width}: below 128 the transfer is rough")
    if not 1 / 64 <= ratio <= 1:
        notes.append(f"carried over {1 / ratio:.3g} widths: tried up to 64 (arXiv 2203.03466)")
    notes.append("carries over width alone: batch, steps and depth are to stay as they were tuned")
    found = _answer(
        run.batch_size * run.context,
        run.learning_rate,
        f"muP, arXiv 2203.03466, table 8: matrices x {run.mup_width} / {run.d_model}; embeddings and vectors unchanged",
        "wider models of the same depth, batch and steps; Adam",
        notes,
    )
    return replace(found, matrix_learning_rate=run.learning_rate * ratio)


_RULES: dict[str, Callable[[Run], Suggestion]] = {
    "olmo-ladder": _olmo_ladder,
    "deepseek": _deepseek,
    "step-law": _step_law,
    "nanochat": _nanochat,
    "mup": _mup,
}


def _outside(what: str, value: float, low: float, high: float) -> list[str]:
    if low <= value <= high:
        return []
    side = "below" if value < low else "above"
    factor = low / value if value < low else value / high
    return [f"{value:.3g} {what} are {side} the range the rule was fitted on, by a factor of {factor:.3g}"]
