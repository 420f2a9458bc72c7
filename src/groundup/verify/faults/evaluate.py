"""Faults of scoring."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from groundup.data.shard import Shard
from groundup.evaluate import bpb, likelihood, questions
from groundup.evaluate import run as evaluation
from groundup.infer import score as scoring
from groundup.infer.score import Score
from groundup.verify.fault import fault, swapped

# lm-eval's own classes are looked up inside: it may not be installed.

# ---- log-likelihoods ----


@fault("shorter-rows-lose-their-last-token", "loglikelihood-is-sum-of-parts")
def shorter_rows_lose_their_last_token() -> Iterator[None]:
    """In a batch of unlike lengths the scored places are counted from the padded end: one off in the shorter rows."""
    right = scoring._score_rows

    def wrong(model: Any, rows: list[list[int]], lengths: list[int]) -> list[Score]:
        longest = max(map(len, rows))
        cut = [len(row) < longest and n > 1 for row, n in zip(rows, lengths, strict=True)]
        rows = [row[:-1] if short else row for row, short in zip(rows, cut, strict=True)]
        return right(model, rows, [n - short for n, short in zip(lengths, cut, strict=True)])

    with swapped(scoring, _score_rows=wrong):
        yield


@fault("only-one-token-of-context", "loglikelihood-is-sum-of-parts")
def only_one_token_of_context() -> Iterator[None]:
    """A continuation is scored after the last token of its context alone."""
    right = scoring.score

    def wrong(model: Any, pairs: Sequence[Any], *rest: Any) -> list[Score]:
        return right(model, [(context[-1:], ids) for context, ids in pairs], *rest)

    with swapped(likelihood, score=wrong):
        yield


@fault("context-and-continuation-encoded-apart", "continuation-is-encoded-in-place")
def context_and_continuation_encoded_apart() -> Iterator[None]:
    """Each of the two is encoded by itself: pieces that never stand side by side in a text."""
    from groundup.evaluate.adapter import GroundupLM

    def wrong(self: GroundupLM, context: str, continuation: str) -> tuple[list[int], list[int]]:
        head = self.tok_encode(context) if context else [self.prefix_token_id]
        return head, self.tok_encode(continuation, add_special_tokens=False)

    with swapped(GroundupLM, _encode_pair=wrong):
        yield


@fault("continuation-cut-at-the-contexts-length", "continuation-is-encoded-in-place")
def continuation_cut_at_the_contexts_length() -> Iterator[None]:
    """The joint ids are cut where the context's own would end: what merged with the context is not scored."""
    from groundup.evaluate.adapter import GroundupLM

    def wrong(self: GroundupLM, context: str, continuation: str) -> tuple[list[int], list[int]]:
        whole = self.tok_encode(context + continuation)
        at = min(len(self.tok_encode(context)), len(whole) - 1)
        return whole[:at], whole[at:]

    with swapped(GroundupLM, _encode_pair=wrong):
        yield


@fault("empty-context-is-end-of-text", "empty-context-uses-bos", "loglikelihood-is-sum-of-parts")
def empty_context_is_end_of_text() -> Iterator[None]:
    """What stands before a text without context is the end of another."""
    from groundup.evaluate.adapter import GroundupLM

    with swapped(GroundupLM, prefix_token_id=property(lambda self: self.text_tokenizer.eos)):
        yield


@fault("rolling-texts-have-two-bos", "empty-context-uses-bos")
def rolling_texts_have_two_bos() -> Iterator[None]:
    """The tokenizer puts a BOS, and so does the rolling score."""
    from groundup.evaluate.adapter import GroundupLM

    right = GroundupLM.loglikelihood_rolling

    def wrong(self: GroundupLM, requests: Any, disable_tqdm: bool = False) -> list[float]:
        encode = self.tok_encode
        self.tok_encode = lambda text, *a, **k: [self.prefix_token_id, *encode(text, *a, **k)]  # type: ignore[method-assign]
        try:
            return right(self, requests, disable_tqdm)
        finally:
            del self.tok_encode  # type: ignore[method-assign]

    with swapped(GroundupLM, loglikelihood_rolling=wrong):
        yield


def _windows(step: int, full: bool) -> Callable[[Sequence[int], int], list[Any]]:
    """Windows whose next begins `step` tokens late; the last one moved back (`full`) or not."""

    def windows(ids: Sequence[int], context: int) -> list[Any]:
        pairs, scored = [], 1
        while scored < len(ids):
            end = min(scored + context, len(ids))
            start = max(0, end - context - 1) if full else scored - 1
            pairs.append((ids[start:scored], ids[scored:end]))
            scored = end + step
        return pairs

    return windows


@fault("windows-skip-a-token", "windows-score-each-token-once")
def windows_skip_a_token() -> Iterator[None]:
    """The token at each window's edge is a context of the next and a target of none."""
    with swapped(likelihood, windows=_windows(1, True)):
        yield


@fault("last-window-without-context", "windows-score-each-token-once")
def last_window_without_context() -> Iterator[None]:
    """The last window is not moved back: a tail of a few tokens is scored after a single one."""
    with swapped(likelihood, windows=_windows(0, False)):
        yield


def _fit(cut: Callable[[list[int], int], list[int]]) -> Any:
    from groundup.evaluate.adapter import GroundupLM

    def fit(self: GroundupLM, texts: Any, context: list[int], continuation: list[int]) -> Any:
        room = self.max_length + 1 - len(continuation)
        if len(context) > room:
            self.truncated += 1
            context = cut(context, room)
        return context, continuation

    return swapped(GroundupLM, _fit=fit)


@fault("long-question-loses-its-end", "long-context-loses-its-beginning")
def long_question_loses_its_end() -> Iterator[None]:
    """What is too long is cut on the right: the question that the choices answer is not there."""
    with _fit(lambda context, room: context[:room]):
        yield


@fault("long-question-loses-its-bos", "long-context-loses-its-beginning")
def long_question_loses_its_bos() -> Iterator[None]:
    """What is too long is cut on the left, BOS and all."""
    with _fit(lambda context, room: context[-room:]):
        yield


@fault("empty-choices-are-read", "nothing-wins-for-free")
def empty_choices_are_read() -> Iterator[None]:
    """A list of choices is any list of texts."""
    with swapped(questions, _are_choices=lambda choices: isinstance(choices, list) and len(choices) >= 2):
        yield


@fault("nan-scores-zero", "nothing-wins-for-free")
def nan_scores_zero() -> Iterator[None]:
    """A score that is not a number becomes 0: the best log-probability there is."""
    right = scoring.score

    def wrong(*given: Any) -> list[Score]:
        return [Score(0.0 if math.isnan(one.logprob) else one.logprob, one.is_greedy) for one in right(*given)]

    with swapped(likelihood, score=wrong):
        yield


# ---- multiple choice ----


def _scores(change: Callable[[Any, float], float]) -> Any:
    """The harness is told `change(pair of ids, log-probability)`."""
    from groundup.evaluate import adapter

    right = adapter.score_pairs

    def wrong(model: Any, pairs: Sequence[Any], *rest: Any) -> list[Score]:
        found = right(model, pairs, *rest)
        return [Score(change(pair, one.logprob), one.is_greedy) for pair, one in zip(pairs, found, strict=True)]

    return swapped(adapter, score_pairs=wrong)


@fault("every-score-is-zero", "random-model-scores-at-chance", "choice-with-the-largest-sum-wins")
def every_score_is_zero() -> Iterator[None]:
    """Every log-likelihood is 0, so the first choice is picked each time."""
    with _scores(lambda pair, value: 0.0):
        yield


@fault("scores-are-rounded", "random-model-scores-at-chance")
def scores_are_rounded() -> Iterator[None]:
    """Scores are kept in so few digits that most questions are ties: the first of the equals wins."""
    with _scores(lambda pair, value: 100.0 * round(value / 100)):
        yield


@fault("sum-is-a-mean", "choice-with-the-largest-sum-wins", "loglikelihood-is-sum-of-parts")
def sum_is_a_mean() -> Iterator[None]:
    """Log-probabilities are averaged over the tokens where a sum is asked for."""
    with _scores(lambda pair, value: value / len(pair[1])):
        yield


@fault("length-counts-the-space", "choice-with-the-largest-sum-wins")
def length_counts_the_space() -> Iterator[None]:
    """acc_norm divides by the choice and the space before it, so that short choices are favoured."""
    from groundup.evaluate import tasks

    right = tasks.build

    def wrong(plan: Any, max_new_tokens: int) -> Any:
        task = right(plan, max_new_tokens)
        if plan.kind == "choice":
            choices = task.doc_to_choice
            task.doc_to_choice = lambda doc, *rest: [" " * 9 + choice for choice in choices(doc)]
            task.config.target_delimiter = ""
        return task

    with swapped(tasks, build=wrong):
        yield


# ---- bits per byte ----


def _sizes(size: Callable[[str], int]) -> Any:
    def sizes(tokenizer: Any) -> Any:
        special = set(tokenizer.all_special_ids)
        return np.array(
            [0 if i in special else size(tokenizer.decode([i])) for i in range(tokenizer.vocab_size)], dtype=np.int64
        )

    return swapped(bpb, token_sizes=sizes)


@fault("bytes-of-decoded-tokens", "bits-per-byte-of-a-uniform-model")
def bytes_of_decoded_tokens() -> Iterator[None]:
    """Bytes are counted on each token's decoded text: a part of a character counts as the three bytes of U+FFFD."""
    with _sizes(lambda text: len(text.encode())):
        yield


@fault("characters-for-bytes", "bits-per-byte-of-a-uniform-model", tokenizer={"kind": "char"})
def characters_for_bytes() -> Iterator[None]:
    """Bits per character are called bits per byte."""
    with _sizes(len):
        yield


@fault("end-of-text-costs-nothing", "bits-per-byte-of-a-uniform-model", "bits-per-byte-is-the-models-cost")
def end_of_text_costs_nothing() -> Iterator[None]:
    """The end of each document is left out: knowing where a text ends is free."""
    right = bpb._draw

    with swapped(bpb, _draw=lambda *given: [ids[:-1] for ids in right(*given)]):
        yield


@fault("nats-are-called-bits", "bits-per-byte-is-the-models-cost")
def nats_are_called_bits() -> Iterator[None]:
    """The natural logarithm is not converted."""
    with swapped(bpb, log=lambda x: 1.0):
        yield


@fault("mean-of-the-documents-rates", "bits-per-byte-is-the-models-cost")
def mean_of_the_documents_rates() -> Iterator[None]:
    """Each document's bits per byte are averaged: short ones weigh as much as long ones."""
    right = bpb.bootstrap_ratio

    def wrong(above: Any, below: Any, *rest: Any) -> Any:
        return right(above / below, np.ones_like(below), *rest)

    with swapped(bpb, bootstrap_ratio=wrong):
        yield


@fault("bits-per-byte-of-train", "held-out-text-is-what-is-scored")
def bits_per_byte_of_train() -> Iterator[None]:
    """The evaluation opens the other shard of the folder."""

    def wrong(path: Path | str, tokenizer_hash: str) -> Shard:
        return Shard(Path(path).with_name("train.bin"), tokenizer_hash)

    with swapped(evaluation, Shard=wrong):
        yield


@fault("documents-drawn-with-putting-back", "held-out-text-is-what-is-scored")
def documents_drawn_with_putting_back() -> Iterator[None]:
    """Documents are drawn with putting back: some are scored twice, others never."""
    right = bpb._draw

    def wrong(*given: Any) -> list[Any]:
        texts = right(*given)
        return [texts[i] for i in np.random.default_rng(0).integers(len(texts), size=len(texts))]

    with swapped(bpb, _draw=wrong):
        yield


# ---- traces ----


@fault("scored-with-dropout", "evaluation-leaves-no-trace")
def scored_with_dropout() -> Iterator[None]:
    """The model is scored in whatever mode it is in."""
    with swapped(likelihood, evaluating=lambda model: nullcontext()):
        yield


@fault("scoring-leaves-eval-mode", "evaluation-leaves-no-trace")
def scoring_leaves_eval_mode() -> Iterator[None]:
    """After the evaluation the run trains without dropout."""

    @contextmanager
    def wrong(model: Any) -> Iterator[None]:
        model.eval()
        yield

    with swapped(likelihood, evaluating=wrong):
        yield


@fault("evaluation-seeds-the-world", "evaluation-leaves-no-trace")
def evaluation_seeds_the_world() -> Iterator[None]:
    """Documents are drawn by numpy's global generator, seeded for the occasion."""
    right = bpb._draw

    def wrong(*given: Any) -> list[Any]:
        np.random.seed(given[-1])
        return right(*given)

    with swapped(bpb, _draw=wrong):
        yield
