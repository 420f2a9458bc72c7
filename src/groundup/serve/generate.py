"""From a request to prompts, from prompts to decoding jobs, from jobs to a response or a stream of chunks."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from groundup.infer.engine import Engine
from groundup.infer.sample import SamplingParams, row_seed
from groundup.serve.batcher import Batcher, Delta, Done, Event, Failed, Job
from groundup.serve.protocol import (
    MAX_CHOICES,
    ApiError,
    ChatRequest,
    CompletionRequest,
    Sampling,
    Wording,
    sse,
    usage,
)


@dataclass
class ServedModel:
    """One model on offer.

    name: its id in the API.  context: longest prompt plus answer, tokens.  has_template: it was taught the chat
    template (a base model was not: it gets plain completions only).  created: Unix seconds.
    max_batch: requests decoded together at most.
    """

    name: str
    engine: Engine
    context: int
    has_template: bool = True
    created: int = field(default_factory=lambda: int(time.time()))
    max_batch: int = 16

    def __post_init__(self) -> None:
        if self.context > self.engine.context:
            raise ValueError(f"context {self.context} is past the model's own, {self.engine.context}")
        self.batcher = Batcher(self.engine, self.name, self.max_batch)

    def card(self) -> dict[str, Any]:
        """Its row in /v1/models: OpenAI's four fields, and ours."""
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "groundup",
            "context_length": self.context,
            "chat_template": self.has_template,
        }


def chat_prompts(model: ServedModel, body: ChatRequest) -> list[list[int]]:
    """The conversation as token ids, up to where the assistant speaks: the very ids that training used."""
    if not model.has_template:
        raise ApiError(
            400,
            f"the model {model.name!r} was not taught conversations (it has no chat template): "
            "use /v1/completions, which continues a text",
            "model",
            "no_chat_template",
        )
    return [model.engine.chat_prompt([message.plain() for message in body.messages])]


def completion_prompts(model: ServedModel, body: CompletionRequest) -> list[list[int]]:
    """One list of ids a prompt. Text gets the beginning-of-text token that every training document had; ids
    are taken as they are."""
    tokenizer = model.engine.tokenizer
    given = body.prompt
    if isinstance(given, str):
        return [[*tokenizer.prefix, *tokenizer.encode(given)] or [tokenizer.start]]
    if not given or isinstance(given[0], int):
        return [_ids(given, tokenizer.vocab_size) or [tokenizer.start]]
    if len(given) * (body.n or 1) > MAX_CHOICES:
        raise ApiError(400, f"prompts times n is over {MAX_CHOICES}: send several requests", "prompt")
    return [
        ([*tokenizer.prefix, *tokenizer.encode(one)] if isinstance(one, str) else _ids(one, tokenizer.vocab_size))
        or [tokenizer.start]
        for one in given
    ]


def _ids(ids: Any, vocab_size: int) -> list[int]:
    outside = [i for i in ids if not 0 <= i < vocab_size]
    if outside:
        raise ApiError(400, f"prompt: token ids outside 0..{vocab_size - 1}: {outside[:5]}", "prompt")
    return list(ids)


class Generation:
    """The answers one request asked for: len(prompts) * n jobs, choice i being sample i % n of prompt i // n.

    Made and read on the event loop; the jobs run on the batcher's thread and send their events across.
    """

    def __init__(self, model: ServedModel, prompts: list[list[int]], request: Sampling) -> None:
        self.model = model
        self.request = request
        self._prompt_tokens = sum(len(prompt) for prompt in prompts)
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        seed = request.seed if request.seed is not None else secrets.randbits(48)
        n = request.n or 1
        self._jobs = [
            Job(prompt, self._params(len(prompt), row_seed(seed, i)), self._sender(p * n + i))
            for p, prompt in enumerate(prompts)
            for i in range(n)
        ]

    def _params(self, n_prompt: int, seed: int) -> SamplingParams:
        request, tokenizer = self.request, self.model.engine.tokenizer
        chat = isinstance(request, ChatRequest)
        room = self.model.context - n_prompt
        if room < 1:
            raise ApiError(
                400,
                f"the prompt is {n_prompt} tokens, but the context of {self.model.name!r} is "
                f"{self.model.context} tokens, with at least one left for the answer: shorten the "
                + ("conversation" if chat else "prompt"),
                "messages" if chat else "prompt",
                "context_length_exceeded",
            )
        return SamplingParams(
            max_new_tokens=min(request.limit or room, room),
            # `or` would turn 0 (greedy) into the default
            temperature=1.0 if request.temperature is None else request.temperature,
            top_k=request.top_k or 0,
            top_p=1.0 if request.top_p is None else request.top_p,
            seed=seed & (2**63 - 1),  # OpenAI's seed may be negative, a generator's may not
            stop=tuple(request.stops),
            stop_ids=(tokenizer.end, tokenizer.eos) if chat else (tokenizer.eos,),
        )

    def _sender(self, choice: int) -> Callable[[Event], None]:
        def send(event: Event) -> None:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, (choice, event))

        return send

    def start(self) -> None:
        """Queue the jobs; raises ApiError 429 when too many requests wait already."""
        if not self.model.batcher.submit(self._jobs):
            raise ApiError(429, f"too many requests wait for {self.model.name!r}: try again", code="busy")

    def cancel(self) -> None:
        """Stop decoding. Harmless when everything is done."""
        for job in self._jobs:
            job.cancel()

    async def _received(self) -> AsyncIterator[tuple[int, Delta | Done]]:
        """Events until every choice is done; raises ApiError when decoding failed."""
        waiting = len(self._jobs)
        while waiting:
            choice, event = await self._queue.get()
            if isinstance(event, Failed):
                raise ApiError(500, f"decoding failed: {event.reason}")
            waiting -= isinstance(event, Done)
            yield choice, event

    async def events(self, wording: Wording) -> AsyncIterator[str]:
        """Server-sent events: each choice opens, grows and ends; then the usage if asked for; then [DONE]."""
        made = 0
        for choice in range(len(self._jobs)):
            if (opening := wording.first(choice)) is not None:
                yield sse(opening)
        try:
            async for choice, event in self._received():
                if isinstance(event, Delta):
                    yield sse(wording.delta(choice, event.text))
                else:
                    made += event.tokens
                    yield sse(wording.last(choice, event.finish))
            if wording.counted:
                yield sse(wording.used(usage(self._prompt_tokens, made)))
        except ApiError as error:
            yield sse(error.body)  # the status went out long ago: the stream itself must say it
        yield sse("[DONE]")

    async def whole(self, wording: Wording, receive: Callable[[], Awaitable[Any]]) -> dict[str, Any] | None:
        """The body of a response that is not streamed, or None when the client left before it was done."""
        collecting = asyncio.ensure_future(self._collect(wording))
        leaving = asyncio.ensure_future(_disconnect(receive))
        try:
            await asyncio.wait({collecting, leaving}, return_when=asyncio.FIRST_COMPLETED)
            return collecting.result() if collecting.done() else None
        finally:
            self.cancel()
            for task in (collecting, leaving):
                task.cancel()

    async def _collect(self, wording: Wording) -> dict[str, Any]:
        done: dict[int, Done] = {}
        async for choice, event in self._received():
            if isinstance(event, Done):
                done[choice] = event
        choices = [wording.choice(i, done[i].text, done[i].finish) for i in sorted(done)]
        return wording.whole(choices, usage(self._prompt_tokens, sum(d.tokens for d in done.values())))


async def _disconnect(receive: Callable[[], Awaitable[Any]]) -> None:
    """Returns when the client has gone; the body was read before, so nothing else can arrive."""
    while (await receive())["type"] != "http.disconnect":
        pass
