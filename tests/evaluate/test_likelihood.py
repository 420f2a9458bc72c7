"""Log-probabilities of given tokens, and the windows of a long text."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from groundup.errors import UserError
from groundup.evaluate import likelihood
from groundup.evaluate.likelihood import score_pairs, windows
from groundup.model.transformer import Transformer
from groundup.tokenizer.tokenizer import Tokenizer


def test_scores_are_those_of_a_token_by_token_pass(
    model: Transformer,
    tokenizer: Tokenizer,
    by_hand: Callable[..., list[float]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Catches targets shifted twice or not at all, padding that leaks, pairs returned in another order."""
    monkeypatch.setattr(likelihood, "LOGITS", 40 * tokenizer.vocab_size)  # several passes
    texts = ["The cat", "The baker lives in Mill Lane and keeps a grey cat.", "four", "the dog sat on"]
    rows = [[tokenizer.bos, *tokenizer.encode(text)] for text in texts]
    firsts = [2, 5, 1, 1]
    model.train()  # dropout must be off all the same, and the mode stay
    told: list[tuple[int, int]] = []
    pairs = [(row[:first], row[first:]) for row, first in zip(rows, firsts, strict=True)]
    found = score_pairs(model, pairs, lambda done, total: told.append((done, total)))
    for one, row, first in zip(found, rows, firsts, strict=True):
        assert one.logprob == pytest.approx(sum(by_hand(model, row, first)), abs=1e-4)
    assert model.training
    assert len(told) > 1 and told[-1] == (4, 4)


def test_greedy_says_what_the_argmax_is(model: Transformer, tokenizer: Tokenizer) -> None:
    """Catches an is_greedy read at the neighbouring place."""
    prompt = [tokenizer.bos, *tokenizer.encode("The cat")]
    ids = list(prompt)
    model.eval()
    with torch.no_grad():
        for _ in range(5):
            ids.append(int(model.logits(model(torch.tensor([ids])))[0, -1].argmax()))
    answer = ids[len(prompt) :]
    wrong = [*answer[:2], (answer[2] + 1) % tokenizer.vocab_size, *answer[3:]]
    assert [one.is_greedy for one in score_pairs(model, [(prompt, answer), (prompt, wrong)])] == [True, False]


def test_weights_that_are_not_finite_raise(model: Transformer, tokenizer: Tokenizer) -> None:
    """Catches NaN that argmax takes for the best choice: a diverged model must not get a score."""
    model.blocks[0].mlp.down.weight.data[0, 0] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        score_pairs(model, [([tokenizer.bos], tokenizer.encode("cat"))])


@pytest.mark.parametrize("length", [2, 3, 8, 9, 10, 16, 17, 18, 23, 65])
def test_windows_score_every_token_once_with_all_the_context_there_is(length: int) -> None:
    """Catches tokens lost or counted twice at the edges of windows."""
    pairs = windows(list(range(length)), context=8)
    assert [token for _, scored in pairs for token in scored] == list(range(1, length))
    assert all(context[-1] + 1 == scored[0] and len(context) + len(scored) <= 9 for context, scored in pairs)
    assert sum(map(len, pairs[-1])) == min(length, 9)  # the last one is moved back, not short


def test_a_pair_with_nothing_to_score_is_refused(model: Transformer) -> None:
    """Catches the empty continuation, whose log-probability of 0 beats every other choice."""
    for pair in ([1, 2], []), ([], [1]):
        with pytest.raises(ValueError, match="nothing to score"):
            score_pairs(model, [pair])


def test_a_pair_longer_than_the_context_is_refused(model: Transformer) -> None:
    """Catches a context cut in silence: whoever scores decides what may be left out, and says so."""
    with pytest.raises(ValueError, match="do not fit"):
        score_pairs(model, [([0] * 60, [0] * 6)])
