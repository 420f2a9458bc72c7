"""Faults of serving."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from groundup.infer import engine
from groundup.infer.decode import Decoder, Request
from groundup.infer.engine import Stream
from groundup.serve import batcher
from groundup.serve import generate as serving
from groundup.serve.batcher import Job
from groundup.serve.generate import Generation
from groundup.serve.protocol import Message, Sampling
from groundup.verify.fault import fault, swapped


def _params(change: Callable[[Generation, Any], dict[str, Any]]) -> Any:
    """Every job is decoded with these settings besides its own."""
    right = Generation._params

    def wrong(self: Generation, n_prompt: int, seed: int) -> Any:
        params = right(self, n_prompt, seed)
        return dataclasses.replace(params, **change(self, params))

    return swapped(Generation, _params=wrong)


@fault("server-strips-what-is-said", "server-renders-as-training")
def server_strips_what_is_said() -> Iterator[None]:
    """The server takes white space off the ends of a message; training did not."""
    right = Message.plain
    with swapped(Message, plain=lambda self: {**(said := right(self)), "content": said["content"].strip()}):
        yield


@fault("server-stops-at-end-of-text-alone", "server-renders-as-training")
def server_stops_at_end_of_text_alone() -> Iterator[None]:
    """The end of turn is not among the stop ids: the model goes on as the user."""
    with _params(lambda self, params: {"stop_ids": (self.model.engine.tokenizer.eos,)}):
        yield


@fault("server-completes-without-bos", "server-renders-as-training")
def server_completes_without_bos() -> Iterator[None]:
    """A text to be continued begins as no training document did."""

    def wrong(model: Any, body: Any) -> list[list[int]]:
        return [model.engine.tokenizer.encode(body.prompt)]

    with swapped(serving, completion_prompts=wrong):
        yield


@fault("server-takes-zero-for-not-given", "request-is-obeyed")
def server_takes_zero_for_not_given() -> Iterator[None]:
    """`temperature or 1.0`: greedy requests sample."""
    with _params(lambda _, params: {"temperature": params.temperature or 1.0}):
        yield


@fault("batch-samples-when-one-does", "served-together-equals-alone")
def batch_samples_when_one_does() -> Iterator[None]:
    """A greedy request is sampled where it is decoded: zero is no temperature to divide by."""
    right = batcher.Request

    def wrong(key: int, prompt: Any, params: Any, listener: Any) -> Request:
        return right(key, prompt, dataclasses.replace(params, temperature=params.temperature or 1.0), listener)

    with swapped(batcher, Request=wrong):
        yield


@fault("server-forgets-max-completion-tokens", "request-is-obeyed")
def server_forgets_max_completion_tokens() -> Iterator[None]:
    """Only the older name of the limit is read."""
    with swapped(Sampling, limit=property(lambda self: self.max_tokens)):
        yield


@fault("answers-of-a-request-are-one", "request-is-obeyed")
def answers_of_a_request_are_one() -> Iterator[None]:
    """Three answers are asked for, and drawn with one seed."""
    with swapped(serving, row_seed=lambda seed, row: seed):
        yield


@fault("batch-decoded-with-one-rows-settings", "served-together-equals-alone")
def batch_decoded_with_one_rows_settings() -> Iterator[None]:
    """All requests of a batch are decoded with the settings of the first."""
    right, first = batcher.Request, []

    def wrong(key: int, prompt: Any, params: Any, listener: Any) -> Request:
        first.append(params)
        return right(key, prompt, dataclasses.replace(first[0], max_new_tokens=params.max_new_tokens), listener)

    with swapped(batcher, Request=wrong):
        yield


@fault("seeds-follow-the-queue", "served-together-equals-alone")
def seeds_follow_the_queue() -> Iterator[None]:
    """A row draws by its number in the batch: the same request, asked again, says something else."""
    right = batcher.Request

    def wrong(key: int, prompt: Any, params: Any, listener: Any) -> Request:
        return right(key, prompt, dataclasses.replace(params, seed=params.seed + key), listener)

    with swapped(batcher, Request=wrong):
        yield


@fault("usage-counts-pieces", "served-together-equals-alone")
def usage_counts_pieces() -> Iterator[None]:
    """The end of turn, or whatever has no text, is not counted."""

    def wrong(self: Job, completion: Any) -> None:
        n = len(completion.ids) - (completion.finish_reason == "length")
        self.send(batcher.Done(completion.text, n, completion.finish_reason))

    with swapped(Job, finished=wrong):
        yield


@fault("stream-loses-its-last-piece", "stream-equals-whole")
def stream_loses_its_last_piece() -> Iterator[None]:
    """A piece is sent when the next one comes, and the last never."""
    right = Job.heard

    def wrong(self: Job, text: str) -> bool:
        held, self.held = getattr(self, "held", ""), text or getattr(self, "held", "")  # type: ignore[attr-defined]
        return right(self, held if text else "")

    with swapped(Job, heard=wrong):
        yield


@fault("stream-counts-pieces", "stream-equals-whole")
def stream_counts_pieces() -> Iterator[None]:
    """A stream's usage counts what it has sent, not what was drawn."""
    right = serving.usage

    def wrong(prompt_tokens: int, made: int) -> dict[str, int]:
        import sys

        streaming = sys._getframe(1).f_code.co_name == "events"
        return right(prompt_tokens, made - 1 if streaming else made)

    with swapped(serving, usage=wrong):
        yield


@fault("nobody-hears-the-client-leave", "cancelled-request-frees-its-row")
def nobody_hears_the_client_leave() -> Iterator[None]:
    """A cancelled job is decoded to its end; only its events are dropped."""
    right = Job.heard
    with swapped(Job, heard=lambda self, text: right(self, text) or True):
        yield


@fault("dead-rows-keep-their-cache", "cancelled-request-frees-its-row")
def dead_rows_keep_their_cache() -> Iterator[None]:
    """Rows that ended stay in the cache until the whole batch has."""

    def wrong(self: Decoder) -> None:
        alive = self.alive.tolist()
        self._listening = [i for i, row in enumerate(self.rows) if alive[i] and row.text is not None]

    with swapped(Decoder, _after_finish=wrong):
        yield


@fault("closed-stream-keeps-its-row", "cancelled-request-frees-its-row")
def closed_stream_keeps_its_row() -> Iterator[None]:
    """Closing a stream says "cancelled" and leaves the row in the decoder."""
    right = Stream._run

    def wrong(self: Stream, given: Any, request: Request) -> Any:
        make = given._decoder

        def deaf() -> Any:
            decoder = make()
            decoder.cancel = lambda key: engine.Completion([], "", "cancelled", [], len(request.prompt))
            return decoder

        given._decoder = deaf
        return right(self, given, request)

    with swapped(Stream, _run=wrong):
        yield
