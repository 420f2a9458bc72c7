"""Log-probabilities of given texts for multiple choice and bits per byte: what may be scored, and in which windows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from groundup.errors import UserError
from groundup.infer.engine import evaluating
from groundup.infer.score import SCORE_TOKENS, Score, score
from groundup.model.transformer import Transformer

Pair = tuple[Sequence[int], Sequence[int]]  # ids of a context, ids of the continuation that is scored

LOGITS = 1 << 25  # numbers in one pass' logits at most: 128 MB


def score_pairs(
    model: Transformer, pairs: Sequence[Pair], on_done: Callable[[int, int], None] | None = None
) -> list[Score]:
    """log p(continuation | context) in nats and whether it is the greedy one, in order. on_done(pairs done, of all).

    Errors: ValueError for an empty continuation (its log-probability of 0 would beat every other choice) and for
    a pair that does not fit; UserError when a log-probability is NaN or infinite (in a comparison NaN wins
    or loses by accident, and looks like a score).
    """
    limit = model.config.context + 1  # the last token is a target only
    for context, continuation in pairs:
        if not context or not continuation:
            raise ValueError("nothing to score, or nothing to score it by")
        if len(context) + len(continuation) > limit:
            raise ValueError(f"{len(context)} + {len(continuation)} tokens do not fit a context of {limit - 1}")
    places = min(SCORE_TOKENS, max(1, LOGITS // model.config.vocab_size))
    lengths = [len(context) + len(continuation) - 1 for context, continuation in pairs]
    order = sorted(range(len(pairs)), key=lambda i: -lengths[i])
    found: dict[int, Score] = {}
    with evaluating(model):
        while len(found) < len(order):
            size = max(1, places // lengths[order[len(found)]])
            part = order[len(found) : len(found) + size]
            found |= zip(part, score(model, [pairs[i] for i in part], places), strict=True)
            if on_done is not None:
                on_done(len(found), len(order))
    if not all(math.isfinite(one.logprob) for one in found.values()):
        raise UserError("the model's logits are not finite: its weights diverged; use an earlier checkpoint")
    return [found[i] for i in range(len(pairs))]


def windows(ids: Sequence[int], context: int) -> list[Pair]:
    """Cut a text of any length into pairs that fit, each token after the first scored exactly once.

    ids[0] (the BOS) only conditions. Every window but the first is conditioned on the token before it; the last one
    is moved back to be full, so that a short tail keeps its context (the rule of lm-evaluation-harness).
    """
    pairs: list[Pair] = []
    scored = 1
    while scored < len(ids):
        end = min(scored + context, len(ids))
        start = max(0, end - context - 1)
        pairs.append((ids[start:scored], ids[scored:end]))
        scored = end
    return pairs
