"""The rows being decoded, as tensors: one forward pass and one draw a step for all of them.

Rows join at any step (`add`) and leave when done; each has its own length, limit, seed and stop conditions, so
what a row says does not depend on its company. Python works per row only where someone listens or a stop string
must be searched, and when a row ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from groundup.infer.cache import KVCache
from groundup.infer.sample import Sampler, SamplingParams
from groundup.infer.text import TextStream
from groundup.model.transformer import Transformer
from groundup.tokenizer.tokenizer import Tokenizer

PREFILL_TOKENS = 16384  # places, padding included, in one prefill pass

Listener = Callable[[str], bool | None]  # gets the new text of each token, perhaps ""; False cancels the row


@dataclass
class Completion:
    """What one row said.

    ids            the tokens drawn, the stop id included when one was drawn
    text           their text, without special tokens, the stop id and the matched stop string
    finish_reason  "stop" (a stop id or string), "length" (max_new_tokens, or the context is full), "cancelled"
    logprobs       log-prob in nats of each of `ids` (see Sampler: at the row's temperature, before top-k and top-p)
    n_prompt       tokens in the prompt
    """

    ids: list[int]
    text: str
    finish_reason: str
    logprobs: list[float]
    n_prompt: int


@dataclass
class Request:
    """One prompt to be continued. `key` is the caller's name for it."""

    key: int
    prompt: list[int]
    params: SamplingParams
    listener: Listener | None = None
    text: TextStream | None = field(default=None, repr=False)


class Decoder:
    """A changing batch. Prompts must be checked before (`Engine` does): not empty, in range, fitting the context."""

    def __init__(self, model: Transformer, tokenizer: Tokenizer, device: torch.device, dtype: torch.dtype) -> None:
        self.model, self.tokenizer, self.device, self.dtype = model, tokenizer, device, dtype
        self.rows: list[Request] = []  # in the order of the tensors' rows, dead ones included
        self.n_alive = 0
        self.n_vocab = min(tokenizer.vocab_size, model.config.vocab_size)
        self.cache = KVCache(model.config, 0, 0, dtype, device)
        self.alive = torch.zeros(0, dtype=torch.bool, device=device)
        self.tokens = self._long([])  # the id that goes in next, at
        self.positions = self._long([])  # this place
        self.steps = self._long([])  # tokens drawn
        self.limits = self._long([])  # tokens that may be drawn
        self.stop_ids = self._long([[]])  # padded with -1, which is no id
        self.ids = self._long([]).view(0, 0)
        self.logprobs = torch.zeros(0, 0, device=device)

    @torch.inference_mode()
    def add(self, requests: Sequence[Request]) -> None:
        """Let rows join. Their prompts go through the model now, but for the last token: the next `step` feeds it."""
        if not requests:
            return
        self._compact()
        context = self.model.config.context
        limits = [min(r.params.max_new_tokens, context - len(r.prompt)) for r in requests]
        start = len(self.rows)
        for request in requests:
            if request.listener or request.params.stop:
                request.text = TextStream(self.tokenizer, request.params.stop)
        self.rows += requests
        # the last token drawn is never fed, so it needs no slot
        self.cache.grow(len(requests), max(len(r.prompt) + n - 1 for r, n in zip(requests, limits, strict=True)))
        self._prefill([r.prompt[:-1] for r in requests], start)

        stops = [r.params.stop_ids for r in self.rows]
        width = max(map(len, stops))
        self.stop_ids = self._long([[*s, *[-1] * (width - len(s))] for s in stops]).view(len(stops), width)
        self.tokens = torch.cat([self.tokens, self._long([r.prompt[-1] for r in requests])])
        self.positions = torch.cat([self.positions, self._long([len(r.prompt) - 1 for r in requests])])
        self.steps = torch.cat([self.steps, self._long([0] * len(requests))])
        self.limits = torch.cat([self.limits, self._long(limits)])
        self.alive = torch.cat([self.alive, torch.ones(len(requests), dtype=torch.bool, device=self.device)])
        columns = max(*limits, self.ids.shape[1] - 1) + 1  # one spare: a dead row's draw has to land somewhere
        self.ids = _enlarge(self.ids, len(self.rows), columns)
        self.logprobs = _enlarge(self.logprobs, len(self.rows), columns)
        self.n_alive += len(requests)
        self._rows_changed()

    def _prefill(self, prompts: list[list[int]], start: int) -> None:
        """Fill the cache rows from `start` on; equal prompts (a GRPO group) go through the model once."""
        places: dict[tuple[int, ...], list[int]] = {}
        for row, prompt in enumerate(prompts):
            places.setdefault(tuple(prompt), []).append(start + row)
        unique = sorted((p for p in places if p), key=len)
        while unique:
            width = len(unique[-1])  # longest first: a memory that is too small shows at once
            chunk = [unique.pop() for _ in range(min(len(unique), max(1, PREFILL_TOKENS // width)))]
            cache = KVCache(self.model.config, len(chunk), width, self.dtype, self.device)
            padded = self._long([[*p, *[0] * (width - len(p))] for p in chunk])
            places_in_row = torch.arange(width, device=self.device)[None]
            # Padding is no part of the text: dynamic RoPE would else take the longest row's length for each.
            documents = -(places_in_row >= self._long([len(p) for p in chunk])[:, None]).long()
            self.model(padded, documents=documents, positions=places_in_row, cache=cache)
            for source, known in enumerate(chunk):
                self.cache.fill(places[known], cache, source)

    @torch.inference_mode()
    def step(self) -> list[tuple[int, Completion]]:
        """Draw one token for every row; return the rows that ended with it."""
        hidden = self.model(self.tokens[:, None], positions=self.positions[:, None], cache=self.cache)
        self.tokens, logprobs = self.sampler(self.model.logits(hidden[:, 0]), self.steps, self.n_vocab)
        self.ids[self._index, self.steps] = self.tokens
        self.logprobs[self._index, self.steps] = logprobs
        self.steps += self.alive
        stopped = (self.tokens[:, None] == self.stop_ids).any(1)
        ended = self.alive & (stopped | (self.steps >= self.limits))
        reasons = self._listen(stopped, ended) if self._listening else {}
        if reasons:
            ended[self._long(list(reasons))] = True
        self.alive &= ~ended
        self.positions += self.alive  # a row that is done stays where it is, inside its cache
        if not bool(ended.any()):
            return []
        stops = stopped.tolist()
        finished = [
            self._finish(i, reasons.get(i) or ("stop" if stops[i] else "length"))
            for i in ended.nonzero()[:, 0].tolist()
        ]
        self._after_finish()
        return finished

    @torch.inference_mode()
    def cancel(self, key: int) -> Completion | None:
        """End a row now and free its part of the cache; None when no such row is being decoded."""
        alive = self.alive.tolist()
        for i, row in enumerate(self.rows):
            if alive[i] and row.key == key:
                self.alive[i] = False
                completion = self._finish(i, "cancelled")[1]
                self._compact()
                return completion
        return None

    def _listen(self, stopped: Tensor, ended: Tensor) -> dict[int, str]:
        """Text of the rows that someone listens to; returns the rows that end for a reason found here."""
        reasons = {}
        tokens, stops, ends = self.tokens.tolist(), stopped.tolist(), ended.tolist()
        for i in self._listening:
            row = self.rows[i]
            assert row.text is not None
            new = "" if stops[i] else row.text.push(tokens[i])
            if row.text.stopped:
                reasons[i] = "stop"
            elif ends[i]:
                new += row.text.finish()
                if row.text.stopped:
                    reasons[i] = "stop"
            if row.listener and row.listener(new) is False and not ends[i] and i not in reasons:
                reasons[i] = "cancelled"
        return reasons

    def _finish(self, i: int, reason: str) -> tuple[int, Completion]:
        row, n = self.rows[i], int(self.steps[i])
        ids = self.ids[i, :n].tolist()
        text = row.text.text if row.text else self.tokenizer.decode(ids[:-1] if reason == "stop" else ids)
        self.n_alive -= 1
        return row.key, Completion(ids, text, reason, self.logprobs[i, :n].tolist(), len(row.prompt))

    def _after_finish(self) -> None:
        if (len(self.rows) - self.n_alive) * 4 >= len(self.rows):
            self._compact()
        else:
            self._listening = [i for i, a in enumerate(self.alive.tolist()) if a and self.rows[i].text is not None]

    def _compact(self) -> None:
        """Drop the rows that are done, from the cache and from every tensor."""
        if self.n_alive == len(self.rows):
            return
        index = self.alive.nonzero()[:, 0]
        self.rows = [self.rows[i] for i in index.tolist()]
        self.cache.keep(index)
        for name in ("alive", "tokens", "positions", "steps", "limits", "stop_ids", "ids", "logprobs"):
            setattr(self, name, getattr(self, name)[index])
        self._rows_changed()

    def _rows_changed(self) -> None:
        self.sampler = Sampler([r.params for r in self.rows], self.device)
        self._index = torch.arange(len(self.rows), device=self.device)
        self._listening = [i for i, r in enumerate(self.rows) if r.text is not None]

    def _long(self, values: Sequence[object]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.device)


def _enlarge(tensor: Tensor, rows: int, columns: int) -> Tensor:
    """The same values in the upper left corner of a larger tensor of zeros."""
    larger = tensor.new_zeros(rows, columns)
    larger[: tensor.shape[0], : tensor.shape[1]] = tensor
    return larger
