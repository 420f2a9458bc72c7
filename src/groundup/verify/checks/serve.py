"""Does the server say what the model says, to each as if he were alone?"""

from __future__ import annotations

import asyncio
import json
import queue
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from groundup.infer.engine import Engine
from groundup.infer.sample import SamplingParams
from groundup.serve import batcher as batching
from groundup.serve import generate as serving
from groundup.serve.batcher import Batcher, Delta, Done, Event, Job
from groundup.serve.generate import Generation, ServedModel
from groundup.serve.protocol import ApiError, ChatRequest, CompletionRequest, Sampling, Wording
from groundup.verify import draw
from groundup.verify.check import Measurement, check, violations
from groundup.verify.corpus import CONVERSATIONS
from groundup.verify.subject import Subject

ASKED = ["Where is the river?", "12 + 305", "Say \u65e5\u672c.", "a"]
WAIT = 60.0  # seconds until a batcher that says nothing is taken for dead


def finished(work: Coroutine[Any, Any, Any]) -> Any:
    """What a coroutine gives, on an event loop of its own: the caller may stand in one (a notebook does)."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


class Wanted:
    """Stands where the batcher stands, and keeps the jobs it would have decoded."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []

    def submit(self, jobs: Sequence[Job]) -> bool:
        self.jobs.extend(jobs)
        return True


def served(subject: Subject, **more: Any) -> ServedModel:
    """The micro model as the server offers it."""
    engine = subject.engine(subject.chat_model())
    return ServedModel("made", engine, more.pop("context", engine.context), **more)


def jobs_of(model: ServedModel, body: Sampling) -> list[Job]:
    """What is decoded for a request."""
    wanted = Wanted()
    model.batcher, kept = wanted, model.batcher  # type: ignore[assignment]
    try:
        finished(_started(model, body))
    finally:
        model.batcher = kept
    return wanted.jobs


async def _started(model: ServedModel, body: Sampling) -> None:
    _generation(model, body).start()


def _generation(model: ServedModel, body: Sampling) -> Generation:
    if isinstance(body, ChatRequest):
        return Generation(model, serving.chat_prompts(model, body), body)
    assert isinstance(body, CompletionRequest)
    return Generation(model, serving.completion_prompts(model, body), body)


def asking(text: str = ASKED[0], **fields: Any) -> ChatRequest:
    return ChatRequest(model="made", messages=[{"role": "user", "content": text}], **fields)  # type: ignore[list-item]


@check(
    "server-renders-as-training",
    "invariance",
    "infer",
    bug="The server's prompt, or what it stops at, is not what training had: it answers worse, or runs on.",
    remedy="Ids from tokenizer/chat.py, stop at the end of turn and of text, text after one BOS (serve/generate.py).",
    reference="hiyouga/LlamaFactory issues 5232, 7238; vllm-project/vllm issue 4180",
)
def server_renders_as_training(subject: Subject) -> Measurement:
    """Requests whose job's ids are not those that training gives the same messages (contents in one or in parts;
    `developer` is `system`), or whose stop ids are not the end of turn and of text; texts to be continued that are not
    encoded as a training document begins, and stop before the end of text."""
    model, tokenizer, found, looked = served(subject), subject.tokenizer, [], 0
    for n, messages in enumerate(CONVERSATIONS):
        for k, message in enumerate(messages):
            if message["role"] != "user":
                continue
            looked += 1
            given: list[Any] = [
                {"role": "developer" if m["role"] == "system" else m["role"], "content": m["content"]}
                for m in messages[: k + 1]
            ]
            text = message["content"]
            given[-1]["content"] = [{"type": "text", "text": part} for part in (text[:3], text[3:])]
            job = jobs_of(model, ChatRequest(model="made", messages=given))[0]
            if job.prompt != subject.render(messages[: k + 1], True).ids:
                found.append(f"conversation {n}, message {k}: {tokenizer.decode(job.prompt, False)[-40:]!r}")
            if set(job.params.stop_ids) != {tokenizer.end, tokenizer.eos}:
                found.append(f"conversation {n}: it stops at {job.params.stop_ids}")
    for text in ASKED:
        job = jobs_of(model, CompletionRequest(model="made", prompt=text))[0]
        looked += 1
        if job.prompt != [*tokenizer.prefix, *tokenizer.encode(text)] or tokenizer.eos not in job.params.stop_ids:
            found.append(f"{text!r}: {job.prompt[:3]}..., it stops at {job.params.stop_ids}")
    return violations(found, looked)


@check(
    "request-is-obeyed",
    "sensitivity",
    "infer",
    bug="A field of a request does nothing, or 0 is taken for not given: greedy requests sample, limits are passed.",
    remedy="`is None`, never `or`; refuse what is not done (serve/generate.py, serve/protocol.py).",
    reference="opendatahub-io/vllm-tgis-adapter pull 182; ethz-spylab/agentdojo pull 141; paiml/aprender issue 3754",
)
def request_is_obeyed(subject: Subject) -> Measurement:
    """Fields whose job is not decoded as they say (temperature 0 and none, limits by both names and by the room left,
    top-k, top-p, stop strings, seeds, several answers), fields that nothing does and that are not refused, and a prompt
    that leaves no room and is not refused."""
    model, found = served(subject, context=128), []
    room = 128 - len(jobs_of(model, asking())[0].prompt)
    expected: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({}, {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_new_tokens": room, "stop": ()}),
        ({"temperature": 0}, {"temperature": 0.0}),
        ({"temperature": 0.3, "top_p": 0.5, "top_k": 7}, {"temperature": 0.3, "top_p": 0.5, "top_k": 7}),
        ({"temperature": 1.9, "top_p": 0.02, "top_k": 300}, {"temperature": 1.9, "top_p": 0.02, "top_k": 300}),
        ({"temperature": 1e-4, "top_p": 1.0}, {"temperature": 1e-4, "top_p": 1.0}),
        ({"max_tokens": 1}, {"max_new_tokens": 1}),
        ({"max_tokens": 5}, {"max_new_tokens": 5}),
        ({"max_completion_tokens": 6}, {"max_new_tokens": 6}),
        ({"max_completion_tokens": 6, "max_tokens": 9}, {"max_new_tokens": 6}),
        ({"max_tokens": 10**6}, {"max_new_tokens": room}),
        ({"stop": "x"}, {"stop": ("x",)}),
        ({"stop": ["x", "yz"]}, {"stop": ("x", "yz")}),
        ({"stop": ["\n", " end", "a", "b", "c"]}, {"stop": ("\n", " end", "a", "b", "c")}),
    ]
    for given, wanted in expected:
        params = jobs_of(model, asking(**given))[0].params
        found += [f"{given}: {k} is {getattr(params, k)!r}" for k, v in wanted.items() if getattr(params, k) != v]

    def seeds(**fields: Any) -> list[int]:
        return [job.params.seed for job in jobs_of(model, asking(**fields))]

    if seeds(seed=0) != seeds(seed=0) or seeds(seed=0, n=3) != seeds(seed=0, n=3):
        found.append("one seed draws twice unlike")
    if seeds(seed=0) == seeds(seed=1) or seeds() == seeds():
        found.append("other seeds, or none, draw alike")
    if len({*seeds(seed=1), *seeds(seed=2**31 + 1), *seeds(seed=2**32 + 1), *seeds(seed=-1)}) != 4:
        found.append("large or negative seeds draw like small ones")
    if len(set(seeds(seed=0, n=3))) != 3:
        found.append("three answers, and not three seeds")
    undone: dict[str, Any] = {"logprobs": True, "logit_bias": {"1": 5}, "presence_penalty": 0.5, "tools": [{}]}
    undone |= {"frequency_penalty": -0.5, "top_logprobs": 3, "response_format": {"type": "json_object"}}
    undone |= {"functions": [{"name": "f"}], "best_of": 2, "echo": True, "suffix": "x"}
    calls: dict[str, Callable[[], Any]] = {
        f"{name} is dropped": partial(asking, **{name: value}) for name, value in undone.items()
    }
    calls["logprobs 0 is dropped"] = lambda: CompletionRequest(model="made", prompt="a", logprobs=0)  # type: ignore[call-arg]
    calls["a prompt with no room is taken"] = lambda: jobs_of(model, asking("river " * 200))
    found += [what for what, call in calls.items() if not _refused(call)]
    return violations(found, len(expected) + 4 + len(calls))


def _refused(call: Callable[[], Any]) -> bool:
    try:
        call()
    except (ApiError, ValueError):
        return True
    return False


# ---- decoding ----


def requests(subject: Subject) -> list[ChatRequest]:
    """Four that have nothing in common: greedy, sampled, a short one, a hot one."""
    kinds: list[dict[str, Any]] = [
        {"temperature": 0, "max_tokens": 18},
        {"temperature": 1.0, "max_tokens": 24},
        {"max_tokens": 3},
        {"temperature": 1.7, "max_tokens": 12, "top_k": 50},
    ]
    return [
        asking(text, seed=draw.shifted(n) % 2**31, **kind)
        for n, (text, kind) in enumerate(zip(ASKED, kinds, strict=True))
    ]


def alone(model: ServedModel, body: Sampling) -> Any:
    """The completion that the engine makes of a request's job."""
    job = jobs_of(model, body)[0]
    return model.engine.generate([job.prompt], [job.params])[0]


def both_ways(
    model: ServedModel, bodies: Sequence[ChatRequest | CompletionRequest]
) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """(the whole answer, the chunks of the streamed one) to each body; the batcher is closed afterwards."""

    async def both() -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
        return [(await _whole(model, body), await _streamed(model, body)) for body in bodies]

    try:
        return finished(both())
    finally:
        model.batcher.close()


async def _whole(model: ServedModel, body: Sampling) -> dict[str, Any]:
    async def stays() -> Any:
        await asyncio.sleep(WAIT)
        return {"type": "http.disconnect"}

    generation = _generation(model, body)
    generation.start()
    made = await asyncio.wait_for(generation.whole(Wording(isinstance(body, ChatRequest), "made"), stays), WAIT)
    assert made is not None
    return made


async def _streamed(model: ServedModel, body: Sampling) -> list[dict[str, Any]]:
    generation = _generation(model, body)
    generation.start()
    events = generation.events(Wording(isinstance(body, ChatRequest), "made", counted=True))
    lines = [line async for line in events]
    if lines[-1] != "data: [DONE]\n\n":
        raise RuntimeError(f"the stream ends with {lines[-1]!r}")
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


@check(
    "served-together-equals-alone",
    "invariance",
    "infer",
    bug="An answer depends on who else asks, tokens are miscounted, a limit or the greedy choice is lost.",
    remedy="Each job has its own seed, limits and stops, and its own events (serve/batcher.py, serve/generate.py).",
    reference="kekzl/imp issue 1314; jundot/omlx issue 3476; vllm-project/vllm issue 11658",
)
def served_together_equals_alone(subject: Subject) -> Measurement:
    """Of four unlike requests at once, two of them waiting for a free row: those whose text, reason to end, or counted
    tokens are not what the engine makes of the same ids and settings alone.

    Draws are hashes of seed and step, so rounding moves one only within about 1e-5 of an edge; the seeds are fixed.
    """
    model = served(subject, max_batch=2)
    bodies = requests(subject)

    async def together() -> list[dict[str, Any]]:
        return await asyncio.gather(*(_whole(model, body) for body in bodies))

    try:
        answers = finished(together())
    finally:
        model.batcher.close()
    found = []
    for body, answer in zip(bodies, answers, strict=True):
        expected, choice = alone(model, body), answer["choices"][0]
        n = len(jobs_of(model, body)[0].prompt)
        used = {"prompt_tokens": n, "completion_tokens": len(expected.ids), "total_tokens": n + len(expected.ids)}
        if (choice["message"]["content"], choice["finish_reason"]) != (expected.text, expected.finish_reason):
            found.append(f"{choice['message']['content'][:20]!r}, alone {expected.text[:20]!r}")
        if answer["usage"] != used or len(expected.ids) > (body.limit or 0):
            found.append(f"usage {answer['usage']}, it was {used}")
    return violations(found, 2 * len(bodies))


@check(
    "stream-equals-whole",
    "invariance",
    "infer",
    bug="A streamed answer is not the answer: its end is lost, a stop string shows, a character is cut in two.",
    remedy="Send what TextStream holds back when a row ends; count once (serve/generate.py, infer/text.py).",
    reference="ai-dynamo/dynamo issue 12630; sgl-project/sglang issue 31598; ggml-org/llama.cpp pull 9867",
)
def stream_equals_whole(subject: Subject) -> Measurement:
    """Requests (four, and two with a stop string taken from the middle of their own answer) whose pieces, joined, are
    not the whole answer, whose reason or usage differs, or where a piece holds half a character of a whole answer
    without one."""
    model = served(subject)
    bodies: list[ChatRequest] = []
    for body in requests(subject):
        bodies.append(body)
        said = alone(model, body).text
        if len(bodies) < 4 and len(said) > 6:
            middle = said[len(said) // 2 : len(said) // 2 + 2]
            bodies.append(body.model_copy(update={"stop": [middle]}))
    pairs = both_ways(model, bodies)
    found = []
    for body, (whole, chunks) in zip(bodies, pairs, strict=True):
        last, pieces = chunks[-1], [c["choices"][0] for c in chunks[:-1]]
        text = "".join(piece["delta"].get("content", "") for piece in pieces)
        answer = whole["choices"][0]
        if text != answer["message"]["content"]:
            found.append(f"streamed {text[:20]!r}, whole {answer['message']['content'][:20]!r}")
        if pieces[-1]["finish_reason"] != answer["finish_reason"] or any(p["finish_reason"] for p in pieces[:-1]):
            found.append(f"it ends with {pieces[-1]['finish_reason']}, whole with {answer['finish_reason']}")
        if last["usage"] != whole["usage"]:
            found.append(f"usage {last['usage']}, whole {whole['usage']}")
        for stop in body.stops:
            if stop in text or answer["finish_reason"] != "stop":
                found.append(f"{stop!r} does not stop {text[:20]!r}")
    return violations(found, 3 * len(bodies))


@check(
    "cancelled-request-frees-its-row",
    "locality",
    "infer",
    bug="A client that left is decoded for to the end, its keys and values stay, or its neighbour's answer changes.",
    remedy="The listener returns False, dead rows leave the cache (serve/batcher.py, infer/decode.py).",
    reference="ROCm/ATOM pull 1562; ai-dynamo/dynamo pull 7489; vllm-project/vllm issue 50425",
)
def cancelled_request_frees_its_row(subject: Subject) -> Measurement:
    """Of three requests, one leaves at its first piece and one has left before it joined. Counted are: steps for the
    first after it left, rows of the second that were ever decoded, rows that the cache still holds for either, jobs
    said to be running at the end, and 1 if the third's answer is not what it is alone. A stream that is closed must
    free its row too."""
    engine = subject.engine(subject.chat_model())
    batcher, found = Batcher(engine, "verify", max_batch=4), []
    steps: list[tuple[int, int]] = []  # (rows alive, rows of the cache) after each

    class Watched(batching.Decoder):
        def step(self) -> Any:
            done = super().step()
            steps.append((self.n_alive, self.cache.batch))
            return done

    said: queue.Queue[Event] = queue.Queue()
    long = SamplingParams(40, 1.3, seed=draw.shifted(3))
    left_at: list[int] = []

    def leave(event: Event) -> None:
        left_at.append(len(steps))  # its first piece is sent within the step
        leaver.cancel()

    leaver = Job(_prompt(engine, ASKED[0]), long, leave)
    gone = Job(_prompt(engine, ASKED[1]), long, lambda event: None)
    stays = Job(_prompt(engine, ASKED[2]), SamplingParams(30, 1.0, seed=draw.shifted(4)), said.put)
    gone.cancel()
    right, batching.Decoder = batching.Decoder, Watched  # type: ignore[misc]
    try:
        batcher.submit([leaver, gone, stays])
        end = _end(said)
    finally:
        batching.Decoder = right  # type: ignore[misc]
        batcher.close()
    if not left_at:
        found.append("the request that leaves was sent nothing")
    after = steps[left_at[0] :] if left_at else []
    found += [f"{alive} rows are decoded, 1 is wanted" for alive, _ in after[:-1] if alive != 1]
    found += [f"{rows} rows in the cache for {alive}" for alive, rows in after[:-1] if rows > alive]
    if steps[0][1] > 2:
        found.append(f"{steps[0][1]} rows were begun, one of them for nobody")
    if batcher.decoding:
        found.append(f"{batcher.decoding} are said to be decoded at the end")
    expected = engine.generate([stays.prompt], [stays.params])[0]
    if not isinstance(end, Done) or (end.text, end.tokens) != (expected.text, len(expected.ids)):
        found.append(f"the neighbour hears {end}")
    return violations(found + _stream_closed(engine), len(steps) + 3)


def _prompt(engine: Engine, text: str) -> list[int]:
    return engine.chat_prompt([{"role": "user", "content": text}])


def _end(events: queue.Queue[Event]) -> Event:
    while isinstance(event := events.get(timeout=WAIT), Delta):
        pass
    return event


def _stream_closed(engine: Engine) -> list[str]:
    """What is wrong after a stream was closed half way."""
    make, decoder = engine._decoder, engine._decoder()
    engine._decoder = lambda: decoder  # type: ignore[method-assign]
    stream = engine.stream(_prompt(engine, ASKED[0]), SamplingParams(40, 1.0, seed=draw.shifted(5)))
    next(stream)
    stream.close()
    engine._decoder = make  # type: ignore[method-assign]
    found = (
        [] if stream.completion is not None and stream.completion.finish_reason == "cancelled" else ["no end is said"]
    )
    if decoder.n_alive or decoder.cache.batch:
        found.append(f"a closed stream leaves {decoder.n_alive} rows and {decoder.cache.batch} in the cache")
    return found
