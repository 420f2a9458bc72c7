"""Log-likelihood of given continuations: what multiple-choice evaluation and perplexity rest on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from groundup.errors import problems
from groundup.model.transformer import Transformer

SCORE_TOKENS = 8192  # places, padding included, in one pass


class Score(NamedTuple):
    """Sum of the continuation's token log-probs in nats, and whether greedy decoding would have said it."""

    logprob: float
    is_greedy: bool


@torch.inference_mode()
def score(
    model: Transformer,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    tokens_per_pass: int = SCORE_TOKENS,
) -> list[Score]:
    """Score (context ids, continuation ids) pairs, in their order; the model must be in eval mode.

    A context that is too long loses its beginning. An empty continuation scores (0, True). Raises UserError for
    an empty context (give <|begin_of_text|>: the first token must be predicted from something) and for a
    continuation longer than the model's context.

    Rows are sorted by length and padded on the right, where causality keeps padding out of every score; dynamic RoPE,
    which scales a row by its length, is told what is padding.
    """
    context = model.config.context
    found = [f"pair {i}: the context is empty: begin with <|begin_of_text|>" for i, (c, _) in enumerate(pairs) if not c]
    found += [
        f"pair {i}: the continuation has {len(t)} tokens, the model's context is {context}"
        for i, (_, t) in enumerate(pairs)
        if len(t) > context
    ]
    problems("score", found[:10])
    # Inputs are all but the last token; the last `context` inputs are what the model can hold.
    rows = [[*c, *t][-(context + 1) :] for c, t in pairs]
    order = sorted((i for i, (_, t) in enumerate(pairs) if t), key=lambda i: -len(rows[i]))
    scores = [Score(0.0, True)] * len(pairs)
    while order:
        n = max(1, tokens_per_pass // len(rows[order[0]]))
        chunk, order = order[:n], order[n:]
        passed = _score_rows(model, [rows[i] for i in chunk], [len(pairs[i][1]) for i in chunk])
        for i, one in zip(chunk, passed, strict=True):
            scores[i] = one
    return scores


def _score_rows(model: Transformer, rows: list[list[int]], lengths: list[int]) -> list[Score]:
    """rows: whole sequences; lengths: how many of each one's last tokens are scored."""
    device = model.embed.weight.device
    width = max(map(len, rows)) - 1
    tokens = torch.zeros(len(rows), width, dtype=torch.int64)
    scored = torch.zeros(len(rows), width, dtype=torch.bool)
    for r, (row, n) in enumerate(zip(rows, lengths, strict=True)):
        tokens[r, : len(row) - 1] = torch.tensor(row[:-1])
        scored[r, len(row) - 1 - n : len(row) - 1] = True
    targets = torch.tensor([token for row, n in zip(rows, lengths, strict=True) for token in row[-n:]], device=device)
    hidden = model(tokens.to(device), documents=_padding(model, rows, width))[
        scored.to(device)
    ]  # laid out as `targets`
    logits = model.logits(hidden)
    logprobs = logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(-1)
    greedy = logits.argmax(-1) == targets
    return [
        Score(float(p.double().sum()), bool(g.all()))
        for p, g in zip(logprobs.split(lengths), greedy.split(lengths), strict=True)
    ]


def _padding(model: Transformer, rows: list[list[int]], width: int) -> torch.Tensor | None:
    """(B, T): -1 for padding, 0 for text; None where nobody asks, since a mask costs the causal kernel."""
    scaling = model.config.rope_scaling
    if scaling is None or scaling.kind != "dynamic":
        return None
    inputs = torch.tensor([len(row) - 1 for row in rows])[:, None]
    return -(torch.arange(width)[None] >= inputs).long().to(model.embed.weight.device)
