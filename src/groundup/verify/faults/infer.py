"""Faults of sampling and decoding."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from groundup.infer import engine, sample
from groundup.infer.decode import Decoder
from groundup.infer.sample import Sampler, SamplingParams
from groundup.infer.text import TextStream
from groundup.verify.fault import fault, swapped

_sample = Sampler.__call__


@fault("sampler-reports-another-temperature", "sampler-logprobs-equal-trainer")
def sampler_reports_another_temperature() -> Iterator[None]:
    """Tokens are drawn at the temperature asked for, and their log-probabilities given at 1."""

    def wrong(self: Sampler, logits: Tensor, steps: Tensor, n_vocab: int) -> tuple[Tensor, Tensor]:
        ids, _ = _sample(self, logits, steps, n_vocab)
        return ids, logits.log_softmax(-1).gather(1, ids[:, None])[:, 0]

    with swapped(Sampler, __call__=wrong):
        yield


@fault("zero-temperature-is-the-default", "greedy-is-argmax")
def zero_temperature_is_the_default() -> Iterator[None]:
    """`temperature or 1.0`: greedy decoding samples."""
    right = SamplingParams.__post_init__

    def wrong(self: SamplingParams) -> None:
        object.__setattr__(self, "temperature", self.temperature or 1.0)
        right(self)

    with swapped(SamplingParams, __post_init__=wrong):
        yield


@fault("top-k-keeps-one-more", "samples-follow-the-distribution")
def top_k_keeps_one_more() -> Iterator[None]:
    """top_k = 3 keeps four tokens."""
    right = sample.threshold
    with swapped(sample, threshold=lambda logits, k, p: right(logits, torch.where(k > 0, k + 1, k), p)):
        yield


@fault("temperature-applied-twice", "samples-follow-the-distribution")
def temperature_applied_twice() -> Iterator[None]:
    """Logits are divided by the temperature in two places."""

    def wrong(self: Sampler, logits: Tensor, steps: Tensor, n_vocab: int) -> tuple[Tensor, Tensor]:
        return _sample(self, logits / self.temperature, steps, n_vocab)

    with swapped(Sampler, __call__=wrong):
        yield


@fault("draws-depend-on-company", "batched-equals-alone")
def draws_depend_on_company() -> Iterator[None]:
    """A row's random numbers follow its place in the batch."""
    right = sample.uniform
    with swapped(sample, uniform=lambda keys, steps: right(keys + torch.arange(len(keys)), steps)):
        yield


@fault("late-rows-start-at-zero", "batched-equals-alone")
def late_rows_start_at_zero() -> Iterator[None]:
    """A row that joins while others are half way begins one place too early."""
    right = Decoder.add

    def wrong(self: Decoder, requests: Any) -> None:
        late = len(self.rows)
        right(self, requests)
        if late:
            self.positions = torch.cat([self.positions[:late], self.positions[late:] - 1])

    with swapped(Decoder, add=wrong):
        yield


@fault("stops-searched-token-by-token", "stop-strings-cut-cleanly")
def stops_searched_token_by_token() -> Iterator[None]:
    """Nothing is held back: a stop string over two tokens is shown half and never found."""
    with swapped(TextStream, _may_begin_a_stop=lambda self: 0):
        yield


@fault("decoding-with-dropout", "decoding-leaves-no-trace")
def decoding_with_dropout() -> Iterator[None]:
    """The engine decodes in whatever mode the model is in."""

    @contextmanager
    def wrong(model: Any) -> Iterator[None]:
        yield

    with swapped(engine, evaluating=wrong):
        yield


@fault("eval-mode-left-on", "decoding-leaves-no-trace")
def eval_mode_left_on() -> Iterator[None]:
    """The engine switches dropout off and never on again: after the first sample the run trains without it."""

    @contextmanager
    def wrong(model: Any) -> Iterator[None]:
        model.eval()
        yield

    with swapped(engine, evaluating=wrong):
        yield
