"""Decoding together, alone and not at all: what batching must not change, and what a client that leaves must."""

from __future__ import annotations

import http.client
import json
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from groundup.infer.engine import Engine
from groundup.infer.sample import SamplingParams
from groundup.serve import batcher as batching
from groundup.serve.app import ServedModel
from groundup.serve.batcher import Batcher, Delta, Done, Event, Failed, Job

pytestmark = pytest.mark.filterwarnings("ignore:Using `httpx`")
LONG = SamplingParams(max_new_tokens=100, temperature=2.0, seed=1)


def until(true: Callable[[], bool], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.005)
    return true()


@pytest.fixture
def batcher(chat_engine: Engine) -> Iterator[Batcher]:
    made = Batcher(chat_engine, "test", max_batch=8)
    yield made
    made.close()


def job_of(engine: Engine, question: str, params: SamplingParams) -> tuple[Job, queue.Queue[Event]]:
    events: queue.Queue[Event] = queue.Queue()
    return Job(engine.chat_prompt([{"role": "user", "content": question}]), params, events.put), events


def finish(events: queue.Queue[Event]) -> tuple[str, Done]:
    """(the streamed text, the end)"""
    text = ""
    while not isinstance(event := events.get(timeout=20), Done):
        assert isinstance(event, Delta), event
        text += event.text
    return text, event


def test_together_is_the_same_as_alone(batcher: Batcher, chat_engine: Engine) -> None:
    """Bug: rows that share a random stream, a cache slot or a stop list: a neighbour changes one's answer."""
    asked = [(f"Tell me {i}" * (1 + i % 3), SamplingParams(24, temperature=0.5 * (i % 4), seed=i)) for i in range(12)]

    def alone(question: str, params: SamplingParams) -> str:
        job, events = job_of(chat_engine, question, params)
        batcher.submit([job])
        return finish(events)[1].text

    single = [alone(*one) for one in asked]
    pairs = [job_of(chat_engine, *one) for one in asked]
    assert batcher.submit([job for job, _ in pairs])
    together = [finish(events) for _, events in pairs]
    assert [end.text for _, end in together] == single
    assert [text for text, _ in together] == single, "what was streamed is not what was said"


def test_requests_share_a_forward_pass_and_late_ones_join(
    batcher: Batcher, chat_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bug: requests decoded one after the other; a late one that waits for the longest of the early ones."""
    rows: list[int] = []
    entered, go = threading.Event(), threading.Event()
    step = batching.Decoder.step

    def counted(self: Any) -> Any:
        entered.set()
        assert go.wait(20)
        rows.append(self.n_alive)
        return step(self)

    monkeypatch.setattr(batching.Decoder, "step", counted)
    first, first_events = job_of(chat_engine, "Tell me", LONG)
    late, late_events = job_of(chat_engine, "Where does Anna live?", SamplingParams(5, temperature=0))
    batcher.submit([first])
    assert entered.wait(20)
    batcher.submit([late])
    go.set()
    assert finish(late_events)[1].tokens == 5
    finish(first_events)
    assert rows[0] == 1 and rows[1:6] == [2] * 5 and set(rows[6:]) == {1}
    assert len(rows) <= 100, "tokens were drawn one request at a time"


def test_no_more_than_max_batch_and_nobody_is_forgotten(batcher: Batcher, chat_engine: Engine, slow: None) -> None:
    """Bug: a batch that outgrows memory, or a request that is lost when the batch is full."""
    pairs = [job_of(chat_engine, f"Tell me {i}", SamplingParams(6, seed=i)) for i in range(20)]
    batcher.submit([job for job, _ in pairs])
    most = 0
    while any(events.empty() or not isinstance(events.queue[-1], Done) for _, events in pairs):
        most = max(most, batcher.decoding)
        time.sleep(0.001)
    assert 1 < most <= 8


def test_a_cancelled_job_leaves_the_batch_and_its_neighbour_stays(
    batcher: Batcher, chat_engine: Engine, slow: None
) -> None:
    """Bug: a client that left is decoded for to the end, or takes its whole batch with it."""
    quits, quit_events = job_of(chat_engine, "Tell me", LONG)
    stays, stay_events = job_of(chat_engine, "Tell me", SamplingParams(40, temperature=2.0, seed=2))
    batcher.submit([quits, stays])
    quit_events.get(timeout=20)
    quits.cancel()
    assert until(lambda: batcher.decoding == 1)
    assert finish(stay_events)[1].tokens == 40
    assert not any(isinstance(event, Done) for event in quit_events.queue)
    assert until(lambda: batcher.decoding == 0)


def test_a_job_cancelled_while_it_waits_never_starts(
    batcher: Batcher, chat_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bug: prompts of clients that left long ago are still read by the model."""
    joined: list[int] = []
    add = batching.Decoder.add
    monkeypatch.setattr(batching.Decoder, "add", lambda self, new: joined.append(len(new)) or add(self, new))
    gone, gone_events = job_of(chat_engine, "Tell me", LONG)
    gone.cancel()
    after, after_events = job_of(chat_engine, "Where does Anna live?", SamplingParams(5, temperature=0))
    batcher.submit([gone, after])
    finish(after_events)
    assert gone_events.empty() and sum(joined) == 1


def test_a_failing_batch_says_so_and_the_next_one_works(
    batcher: Batcher, chat_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bug: the thread dies with an exception, and every later request hangs for ever."""
    with monkeypatch.context() as broken:
        broken.setattr(batching.Decoder, "step", lambda self: 1 / 0)
        job, events = job_of(chat_engine, "Tell me", LONG)
        batcher.submit([job])
        event = events.get(timeout=20)
        assert isinstance(event, Failed) and "ZeroDivisionError" in event.reason
        assert until(lambda: batcher.decoding == 0)
    job, events = job_of(chat_engine, "Where does Anna live?", SamplingParams(5, temperature=0))
    batcher.submit([job])
    assert finish(events)[1].tokens == 5


def test_closing_ends_what_runs_and_what_waits(chat_engine: Engine, slow: None) -> None:
    """Bug: Ctrl-C that waits for the longest answer; clients that never hear."""
    made = Batcher(chat_engine, "closing", max_batch=2)
    pairs = [job_of(chat_engine, "Tell me", LONG) for _ in range(5)]
    made.submit([job for job, _ in pairs])
    assert until(lambda: made.decoding == 2)
    made.close()
    assert made._thread is not None and not made._thread.is_alive()
    assert all(isinstance(list(events.queue)[-1], Failed) for _, events in pairs)
    assert not made.submit([pairs[0][0]])


def test_a_full_queue_is_429(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: a queue without end: under load every client waits until it has given up."""
    monkeypatch.setattr(batching, "MAX_WAITING", 2)
    body = {"model": "sft", "messages": [{"role": "user", "content": "Tell me"}], "n": 3}
    refused = TestClient(app).post("/v1/chat/completions", json=body)
    assert refused.status_code == 429 and refused.json()["error"]["code"] == "busy"


def test_a_decoding_error_reaches_both_kinds_of_client(
    app: FastAPI, monkeypatch: pytest.MonkeyPatch, models: dict[str, ServedModel]
) -> None:
    """Bug: a stream that just stops, which a client takes for a finished answer."""
    monkeypatch.setattr(batching.Decoder, "step", lambda self: 1 / 0)
    client = TestClient(app)
    body = {"model": "sft", "messages": [{"role": "user", "content": "Tell me"}]}
    whole = client.post("/v1/chat/completions", json=body)
    assert whole.status_code == 500 and whole.json()["error"]["type"] == "server_error"
    events = client.post("/v1/chat/completions", json={**body, "stream": True}).text.split("\n\n")
    assert "ZeroDivisionError" in json.loads(events[-3].removeprefix("data: "))["error"]["message"]
    assert events[-2:] == ["data: [DONE]", ""]


@pytest.mark.parametrize("streamed", [True, False])
def test_a_client_that_leaves_is_no_longer_decoded_for(
    app: FastAPI, serving: Any, models: dict[str, ServedModel], slow: None, streamed: bool
) -> None:
    """Bug: a closed tab keeps its row, its cache and a share of every step, up to the last token."""
    decoded = models["sft"].batcher
    with serving(app) as port:
        leaving = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        messages = [{"role": "user", "content": "Tell me"}]
        body = {"model": "sft", "messages": messages, "temperature": 2, "n": 4, "stream": streamed}
        started = time.monotonic()
        leaving.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        assert until(lambda: decoded.decoding > 0)
        if streamed:
            response = leaving.getresponse()
            assert response.read(64)
            response.close()
        leaving.close()
        assert until(lambda: decoded.decoding == 0, 5)
        assert time.monotonic() - started < 100 * 0.01, "it may just have come to its end"


def test_concurrent_requests_over_http_equal_single_ones(app: FastAPI, serving: Any) -> None:
    """Bug: events of two requests crossed on their way from the decoding thread to the event loop."""
    with serving(app) as port:

        def post(seed: int) -> str:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            body = {"model": ("sft", "dpo")[seed % 2], "seed": seed, "temperature": 2.0, "max_tokens": 20}
            body["messages"] = [{"role": "user", "content": f"Tell me {seed}"}]
            connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
            answer = json.loads(connection.getresponse().read())
            connection.close()
            return str(answer["choices"][0]["message"]["content"])

        single = [post(seed) for seed in range(10)]
        found: dict[int, str] = {}
        threads = [threading.Thread(target=lambda s=s: found.__setitem__(s, post(s))) for s in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [found[seed] for seed in range(10)] == single
    assert len(set(single)) > 5
