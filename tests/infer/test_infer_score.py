"""Log-likelihood of a given continuation."""

from __future__ import annotations

import random

import pytest
import torch
from infer_models import build

from groundup.errors import UserError
from groundup.infer.engine import Engine, SamplingParams
from groundup.infer.score import score
from groundup.model.transformer import Transformer
from groundup.tokenizer.tokenizer import Tokenizer


def reference(model: Transformer, context: list[int], continuation: list[int]) -> float:
    with torch.no_grad():
        logprobs = model.logits(model(torch.tensor([context + continuation])))[0].log_softmax(-1)
    return sum(float(logprobs[len(context) - 1 + i, token]) for i, token in enumerate(continuation))


def test_scores_are_the_sum_of_the_tokens_whatever_the_batch(model: Transformer, tokenizer: Tokenizer) -> None:
    """Bug: target shifted by one, context scored too, padding scored, or results left in the sorted order."""
    rng = random.Random(0)
    pairs = [
        (
            [rng.randrange(300) for _ in range(rng.randint(1, 20))],
            [rng.randrange(300) for _ in range(rng.randint(1, 9))],
        )
        for _ in range(25)
    ]
    expected = [reference(model, *pair) for pair in pairs]
    assert [s.logprob for s in Engine(model, tokenizer).score(pairs)] == pytest.approx(expected, abs=1e-3)
    assert [s.logprob for s in score(model, pairs, tokens_per_pass=1)] == pytest.approx(expected, abs=1e-3)


def test_a_row_scores_as_alone_where_the_length_decides(tokenizer: Tokenizer) -> None:
    """Bug: dynamic RoPE takes the longest row of a batch, padding and all, for the length of each."""
    scaling = {"kind": "dynamic", "factor": 4.0, "original_context": 12}
    model = build(tokenizer.vocab_size, rope_scaling=scaling)
    pairs = [(list(range(20, 20 + n)), [7, 8, 9]) for n in (5, 14, 30)]
    alone = [score(model, [pair])[0].logprob for pair in pairs]
    assert [s.logprob for s in score(model, pairs)] == pytest.approx(alone, abs=1e-4)


def test_a_string_is_the_sum_of_its_parts(model: Transformer, tokenizer: Tokenizer) -> None:
    """Bug: the token at the seam of context and continuation counted twice, or not at all."""
    ids = [9, 40, 41, 42, 43, 44]
    whole, first, rest = Engine(model, tokenizer).score([(ids[:1], ids[1:]), (ids[:1], ids[1:3]), (ids[:3], ids[3:])])
    assert whole.logprob == pytest.approx(first.logprob + rest.logprob, abs=1e-4)


def test_is_greedy_means_the_engine_would_say_it(model: Transformer, tokenizer: Tokenizer) -> None:
    """Bug: is_greedy true when only the last token, or any token, is the most likely one."""
    engine = Engine(model, tokenizer)
    said = engine.generate([[7, 8]], SamplingParams(max_new_tokens=6, temperature=0))[0]
    for i in range(6):
        wrong = list(said.ids)
        wrong[i] = (wrong[i] + 1) % 300
        assert not engine.score([([7, 8], wrong)])[0].is_greedy
    scored = engine.score([([7, 8], said.ids)])[0]
    assert scored.is_greedy and scored.logprob == pytest.approx(sum(said.logprobs), abs=1e-4)


def test_a_long_context_loses_its_beginning(model: Transformer, tokenizer: Tokenizer) -> None:
    """Bug: the end of the question, or the answer itself, is what gets cut."""
    engine, n = Engine(model, tokenizer), model.config.context
    context = [i % 300 for i in range(7, 7 + 3 * n)]
    cut = context[-(n + 1 - 4) :]
    assert engine.score([(context, [1, 2, 3, 4])])[0] == engine.score([(cut, [1, 2, 3, 4])])[0]
    full = list(range(n))  # fills the context to the last place: predicted from the last token of its context
    assert engine.score([([5, 6], full)])[0].logprob == pytest.approx(reference_cut(model, 6, full), abs=1e-3)


def reference_cut(model: Transformer, last: int, continuation: list[int]) -> float:
    with torch.no_grad():
        logprobs = model.logits(model(torch.tensor([[last, *continuation[:-1]]])))[0].log_softmax(-1)
    return float(logprobs.gather(1, torch.tensor(continuation)[:, None]).sum())


def test_what_cannot_be_scored_is_told(model: Transformer, tokenizer: Tokenizer) -> None:
    """Bug: an empty context scores the first token by the last place of another row."""
    engine, n = Engine(model, tokenizer), model.config.context
    with pytest.raises(UserError, match=r"pair 0: the context is empty[\s\S]*pair 1: the continuation has"):
        engine.score([([], [1]), ([1], [2] * (n + 1))])
    assert engine.score([([1], [])]) == [(0.0, True)]
