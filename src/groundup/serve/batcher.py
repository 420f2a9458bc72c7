"""Requests are decoded together: one thread a model, and one forward pass a token for all of its rows.

A batch of eight costs little more than a batch of one (decoding is bound by reading the weights). A request joins
between two tokens of the others and leaves when it is done, so none waits for another's end; and it draws with its
own seed, so it says the same alone and in company.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from groundup.infer.decode import Completion, Decoder, Request
from groundup.infer.engine import Engine, evaluating
from groundup.infer.sample import SamplingParams

MAX_WAITING = 256  # jobs; past this the server says "busy" instead of letting the queue grow


@dataclass(frozen=True)
class Delta:
    """New text: whole characters, and never part of a stop string."""

    text: str


@dataclass(frozen=True)
class Done:
    """The end: all of the text, how many tokens it took, and "stop" or "length"."""

    text: str
    tokens: int
    finish: str


@dataclass(frozen=True)
class Failed:
    reason: str


Event = Delta | Done | Failed


class Job:
    """One answer to decode. `send` receives its events, on the batcher's thread."""

    def __init__(self, prompt: list[int], params: SamplingParams, send: Callable[[Event], None]) -> None:
        self.prompt = prompt
        self.params = params
        self._send = send
        self._cancelled = threading.Event()

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Decoding stops with the next token, and the row's part of the cache is freed."""
        self._cancelled.set()

    def send(self, event: Event) -> None:
        """Hand over an event; a receiver that is gone (its event loop closed) cancels the job."""
        if self.cancelled:
            return
        try:
            self._send(event)
        except RuntimeError:
            self.cancel()

    def heard(self, text: str) -> bool:
        """The decoder's listener: pass new text on; False ends the row."""
        if text:
            self.send(Delta(text))
        return not self.cancelled

    def finished(self, completion: Completion) -> None:
        self.send(Done(completion.text, len(completion.ids), completion.finish_reason))


class Batcher:
    """A queue of jobs and the thread that decodes them, at most `max_batch` at once. The thread starts with the
    first job and rests when there is none; no memory is held for a cache meanwhile."""

    def __init__(self, engine: Engine, name: str, max_batch: int = 16) -> None:
        self._engine = engine
        self._name = name
        self._max_batch = max_batch
        self._queue: queue.Queue[Job | None] = queue.Queue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._closed = False
        self._running: dict[int, Job] = {}  # by the decoder's key

    @property
    def decoding(self) -> int:
        """Jobs being decoded now."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Jobs that have not joined yet."""
        return self._queue.qsize()

    def submit(self, jobs: Sequence[Job]) -> bool:
        """Queue jobs; False, and none queued, when too many wait or the server is stopping."""
        with self._lock:
            if self._closed or self.waiting + len(jobs) > MAX_WAITING:
                return False
            for job in jobs:
                self._queue.put(job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=f"decode-{self._name}", daemon=True)
                self._thread.start()
        return True

    def close(self) -> None:
        """Cancel what is being decoded, fail what waits, and end the thread."""
        with self._lock:
            self._closed = True
            self._queue.put(None)
        if self._thread is not None:
            self._thread.join(timeout=10)

    def _run(self) -> None:
        while not self._closed and (first := self._queue.get()) is not None:
            try:
                self._decode(first)
            except Exception as error:  # one bad batch must not end the thread: later requests would hang
                self._fail(self._running.values(), f"{type(error).__name__}: {error}")
            self._running = {}
        self._fail(self._next(MAX_WAITING), "the server is stopping")

    def _fail(self, jobs: Iterable[Job], reason: str) -> None:
        for job in jobs:
            job.send(Failed(reason))

    def _decode(self, first: Job) -> None:
        """Decode until nobody is left; whoever comes in the meantime joins."""
        engine = self._engine
        decoder = Decoder(engine.model, engine.tokenizer, engine.device, engine.model.embed.weight.dtype)
        coming = [first, *self._next(self._max_batch - 1)]
        keys = itertools.count()
        with evaluating(engine.model):
            while coming or decoder.n_alive:
                joining = {next(keys): job for job in coming if not job.cancelled}
                self._running |= joining
                decoder.add([Request(k, job.prompt, job.params, job.heard) for k, job in joining.items()])
                for key, completion in decoder.step() if decoder.n_alive else []:
                    self._running.pop(key).finished(completion)
                if self._closed:
                    return self._fail(self._running.values(), "the server is stopping")
                coming = self._next(self._max_batch - decoder.n_alive)

    def _next(self, room: int) -> list[Job]:
        """Jobs that wait, at most `room`."""
        jobs: list[Job] = []
        while len(jobs) < room:
            try:
                job = self._queue.get_nowait()
            except queue.Empty:
                break
            if job is not None:  # None says close, and _closed says it too
                jobs.append(job)
        return jobs
