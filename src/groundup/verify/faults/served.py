"""Faults of serving that a short conversation, a single answer and a single model do not show."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from groundup.serve import generate as serving
from groundup.serve import protocol
from groundup.serve.generate import Generation
from groundup.serve.protocol import ChatRequest, Message, StreamOptions, Wording
from groundup.verify.fault import fault, swapped

KEPT, OWN, NAMED = "server-keeps-the-conversation", "every-choice-is-its-own", "model-named-is-the-model-that-answers"


def _messages(change: Callable[[list[Message]], list[Message]]) -> Any:
    """Every conversation, changed before it is rendered."""
    right = serving.chat_prompts

    def wrong(model: Any, body: ChatRequest) -> list[list[int]]:
        return right(model, body.model_copy(update={"messages": change(list(body.messages))}))

    return swapped(serving, chat_prompts=wrong)


@fault("history-of-twenty-messages", KEPT)
def history_of_twenty_messages() -> Iterator[None]:
    """Only the last twenty messages are handed on: the system turn of a long conversation is the first to go."""
    with _messages(lambda said: said[-20:]):
        yield


@fault("history-keeps-the-system-turn", KEPT)
def history_keeps_the_system_turn() -> Iterator[None]:
    """The first message and the last sixteen are handed on: what stood between is forgotten without a word."""
    with _messages(lambda said: said[:1] + said[-16:] if len(said) > 17 else said):
        yield


@fault("later-system-turns-are-dropped", KEPT)
def later_system_turns_are_dropped() -> Iterator[None]:
    """A system message that is not the first is left out."""
    with _messages(lambda said: [m for n, m in enumerate(said) if n == 0 or m.role not in ("system", "developer")]):
        yield


@fault("system-turns-come-first", KEPT)
def system_turns_come_first() -> Iterator[None]:
    """System messages are sorted to the front: the order of the conversation is another."""
    with _messages(lambda said: sorted(said, key=lambda m: m.role != "system")):
        yield


@fault("what-was-said-twice-is-said-once", KEPT)
def what_was_said_twice_is_said_once() -> Iterator[None]:
    """A retry's duplicates are taken out, and with them what somebody did say twice."""

    def once(said: list[Message]) -> list[Message]:
        seen: set[tuple[str, str]] = set()
        kept = []
        for message in said:
            key = (message.role, str(message.content))
            if key not in seen or not key[1]:
                kept.append(message)
            seen.add(key)
        return kept

    with _messages(once):
        yield


@fault("long-messages-are-cut", KEPT)
def long_messages_are_cut() -> Iterator[None]:
    """A message keeps its first 16,000 characters."""
    right = Message.plain
    with swapped(Message, plain=lambda self: {**(said := right(self)), "content": said["content"][:16_000]}):
        yield


@fault("empty-answers-are-dropped", KEPT)
def empty_answers_are_dropped() -> Iterator[None]:
    """`if message.content`: a turn in which nothing was said is not there, and two questions stand in a row."""
    with _messages(lambda said: [m for m in said if m.content]):
        yield


@fault("parts-are-joined-by-spaces", KEPT)
def parts_are_joined_by_spaces() -> Iterator[None]:
    """The parts of a content are joined by a space."""
    right = Message.plain

    def wrong(self: Message) -> dict[str, str]:
        said = right(self)
        parts = self.content if isinstance(self.content, list) else []
        return {**said, "content": " ".join(p.text for p in parts)} if parts else said

    with swapped(Message, plain=wrong):
        yield


@fault("choices-in-the-order-of-samples", OWN)
def choices_in_the_order_of_samples() -> Iterator[None]:
    """Choice i is taken for sample i // prompts of prompt i % prompts: right for one prompt, and for one answer."""
    right = Generation._sender

    def wrong(self: Generation, choice: int) -> Any:
        n = self.request.n or 1
        prompts = max(1, len(getattr(self.request, "prompt", [""]))) if not isinstance(self.request, ChatRequest) else 1
        return right(self, choice % n * prompts + choice // n)

    with swapped(Generation, _sender=wrong):
        yield


@fault("stream-has-one-index", OWN)
def stream_has_one_index() -> Iterator[None]:
    """Every piece of a stream comes under index 0: three answers are woven into one."""
    right = Wording.delta
    with swapped(Wording, delta=lambda self, index, text: right(self, 0, text)):
        yield


@fault("usage-counts-one-choice", OWN)
def usage_counts_one_choice() -> Iterator[None]:
    """Answers' tokens are counted for one of n."""
    right = Generation._collect

    async def wrong(self: Generation, wording: Wording) -> dict[str, Any]:
        made = await right(self, wording)
        used = made["usage"]
        n = max(1, len(made["choices"]))
        return {**made, "usage": serving.usage(used["prompt_tokens"], used["completion_tokens"] // n)}

    with swapped(Generation, _collect=wrong):
        yield


@fault("prompt-counted-for-each-answer", OWN)
def prompt_counted_for_each_answer() -> Iterator[None]:
    """With n answers the prompt's tokens are counted n times."""
    right = Generation.__init__

    def wrong(self: Generation, model: Any, prompts: list[list[int]], request: Any) -> None:
        right(self, model, prompts, request)
        self._prompt_tokens *= request.n or 1

    with swapped(Generation, __init__=wrong):
        yield


def _params(change: Callable[[Any], dict[str, Any]]) -> Any:
    """Every job is decoded with these settings besides its own."""
    right = Generation._params

    def wrong(self: Generation, n_prompt: int, seed: int) -> Any:
        params = right(self, n_prompt, seed)
        return dataclasses.replace(params, **change(params))

    return swapped(Generation, _params=wrong)


@fault("server-clamps-the-temperature", "request-is-obeyed")
def server_clamps_the_temperature() -> Iterator[None]:
    """Temperatures above 1 are taken for 1."""
    with _params(lambda params: {"temperature": min(params.temperature, 1.0)}):
        yield


@fault("server-keeps-four-stops", "request-is-obeyed")
def server_keeps_four_stops() -> Iterator[None]:
    """Of more than four stop strings the first four count, and nobody is told."""
    with _params(lambda params: {"stop": params.stop[:4]}):
        yield


@fault("seeds-keep-32-bits", "request-is-obeyed")
def seeds_keep_32_bits() -> Iterator[None]:
    """A seed's upper half is dropped: seeds 1 and 2^32 + 1 are one."""
    with _params(lambda params: {"seed": params.seed % 2**32}):
        yield


@fault("server-floors-top-p", "request-is-obeyed")
def server_floors_top_p() -> Iterator[None]:
    """A top_p below 0.1 is raised to it."""
    with _params(lambda params: {"top_p": max(params.top_p, 0.1)}):
        yield


@fault("penalties-of-one-kind-are-refused", "request-is-obeyed")
def penalties_of_one_kind_are_refused() -> Iterator[None]:
    """frequency_penalty is accepted and does nothing; presence_penalty is refused."""
    kept = {name: neutral for name, neutral in protocol._NOT_DONE.items() if name != "frequency_penalty"}
    with swapped(protocol, _NOT_DONE=kept):
        yield


def _app(**attributes: Any) -> Any:
    from groundup.serve import app

    return swapped(app, **attributes)


@fault("first-model-answers-everything", NAMED)
def first_model_answers_everything() -> Iterator[None]:
    """The model's name is read and not used: the first one answers, under the name that was asked for."""
    with _app(_find=lambda models, name: next(iter(models.values()))):
        yield


@fault("stream-options-are-not-read", NAMED)
def stream_options_are_not_read() -> Iterator[None]:
    """include_usage does nothing: whoever counts by it counts nothing."""
    with swapped(
        StreamOptions,
        __getattribute__=lambda self, name: False if name == "include_usage" else object.__getattribute__(self, name),
    ):
        yield


@fault("settings-lost-where-a-stream-begins", NAMED)
def settings_lost_where_a_stream_begins() -> Iterator[None]:
    """A streamed request is decoded with the default temperature."""
    right = Generation._params

    def wrong(self: Generation, n_prompt: int, seed: int) -> Any:
        params = right(self, n_prompt, seed)
        return dataclasses.replace(params, temperature=3.0) if self.request.stream else params

    with swapped(Generation, _params=wrong):
        yield
