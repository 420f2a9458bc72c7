"""The engine: prompts in, completions out. Chat, serving, evaluation and GRPO's rollouts all come through here."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from groundup.errors import problems
from groundup.infer.decode import Completion, Decoder, Request
from groundup.infer.sample import SamplingParams, row_seed
from groundup.infer.score import Score, score
from groundup.model.transformer import Transformer
from groundup.tokenizer.chat import render
from groundup.tokenizer.tokenizer import Tokenizer

__all__ = ["Completion", "Engine", "SamplingParams", "Score", "Stream"]

CACHE_BYTES = 1 << 30  # keys and values of all rows at once, before more rows are let in
MAX_ROWS = 256

OnToken = Callable[[int, str], bool | None]
OnFinish = Callable[[int, Completion], None]


class Engine:
    """Decodes with `model`, whose weights it shares: after a training step it samples from the new ones.

    `device` and `dtype` are the model's when not given; one that is not the model's makes a COPY (later training is
    not seen): the caller's model is never moved or cast. The cache has the model's dtype, or autocast's when called
    under torch.autocast.
    Forward passes run in eval mode and inference mode; each module's mode is put back afterwards. The engine keeps
    no state between calls. No global random number is drawn.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        max_rows: int = MAX_ROWS,
    ) -> None:
        model = getattr(model, "_orig_mod", model)  # torch.compile would recompile for every cache length
        weight = model.embed.weight
        target = torch.empty(0, device=device or weight.device).device  # "cuda" -> "cuda:0"
        if target != weight.device or (dtype is not None and dtype != weight.dtype):
            model = copy.deepcopy(model).to(target, dtype)
            model.tie()
        self.model, self.tokenizer, self.device = model, tokenizer, target
        self.max_rows = max_rows

    @property
    def context(self) -> int:
        """Tokens of prompt and completion together."""
        return self.model.config.context

    def chat_prompt(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Ids of a conversation up to where the assistant speaks; stop at (tokenizer.end, tokenizer.eos)."""
        return render(self.tokenizer, messages, add_generation_prompt=True).ids

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams],
        on_token: OnToken | None = None,
        on_finish: OnFinish | None = None,
    ) -> list[Completion]:
        """Continue every prompt (non-empty lists of ids); completions in the prompts' order.

        One `params` for several prompts: row i draws with row_seed(params.seed, i), so equal prompts differ. A
        list: each row's own, seeds as given. A row's completion is the same in any batch, up to the last bits of
        the matmuls. Any number of prompts: at most `max_rows` are decoded at once, the next join as rows end.

        on_token(row, text) is called once for every token a row draws, with the text that became certain by it,
        perhaps "" (half a character, or what may become a stop string); returning False cancels that row.
        on_finish(row, completion) is called as each row ends, so that none has to wait for the longest.
        Raises UserError naming each prompt that is empty, out of range or leaves no room in the context.
        """
        each = self._params(prompts, params)
        self._check(prompts)
        waiting = deque(
            Request(i, list(prompt), p, on_token and partial(on_token, i))
            for i, (prompt, p) in enumerate(zip(prompts, each, strict=True))
        )
        done: dict[int, Completion] = {}
        with evaluating(self.model):
            decoder = self._decoder()
            room = self._rows_that_fit(waiting)
            while waiting or decoder.n_alive:
                free = room - decoder.n_alive
                if waiting and free * 4 >= room:  # joining copies the cache: not for every row that ends
                    decoder.add([waiting.popleft() for _ in range(min(free, len(waiting)))])
                for key, completion in decoder.step():
                    done[key] = completion
                    if on_finish:
                        on_finish(key, completion)
        return [done[i] for i in range(len(prompts))]

    def stream(self, prompt: Sequence[int], params: SamplingParams) -> Stream:
        """Continue one prompt, piece by piece: an iterator of texts that are never empty.

        `.completion` holds the Completion once it has ended; `.close()` (or dropping the stream) cancels.
        """
        self._check([prompt])
        return Stream(self, Request(0, list(prompt), params))

    def score(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Score]:
        """(log-prob of the continuation in nats, whether it is the greedy one) of (context, continuation) pairs."""
        with evaluating(self.model):
            return score(self.model, pairs)

    def _decoder(self) -> Decoder:
        kind = self.device.type
        auto = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        return Decoder(self.model, self.tokenizer, self.device, auto or self.model.embed.weight.dtype)

    def _rows_that_fit(self, requests: Sequence[Request]) -> int:
        config = self.model.config
        longest = max((min(len(r.prompt) + r.params.max_new_tokens, config.context) for r in requests), default=1)
        size = self.model.embed.weight.element_size()
        heads, k_dim, v_dim = config.cache_shape
        row = config.n_layers * heads * (k_dim + v_dim) * longest * size
        return max(1, min(self.max_rows, CACHE_BYTES // row))

    def _params(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams | Sequence[SamplingParams]
    ) -> list[SamplingParams]:
        if isinstance(params, SamplingParams):
            return [replace(params, seed=row_seed(params.seed, i)) for i in range(len(prompts))]
        if len(params) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts but {len(params)} sampling parameters")
        return list(params)

    def _check(self, prompts: Sequence[Sequence[int]]) -> None:
        vocabulary, found = self.model.config.vocab_size, []
        for i, prompt in enumerate(prompts):
            if not prompt:
                found.append(f"prompt {i} is empty: begin with the tokenizer's <|begin_of_text|>")
            elif len(prompt) >= self.context:
                found.append(
                    f"prompt {i} has {len(prompt)} tokens; the model's context of {self.context} leaves no room to "
                    "answer: shorten it"
                )
            elif not 0 <= min(prompt) <= max(prompt) < vocabulary:
                found.append(f"prompt {i} has a token id outside 0..{vocabulary - 1}: was another tokenizer used?")
        more = [f"... and {len(found) - 10} more"] if len(found) > 10 else []
        problems("prompts", found[:10] + more)


class Stream(Iterator[str]):
    """One completion as it is made. Iterate for the pieces of text; `completion` is None until it has ended."""

    def __init__(self, engine: Engine, request: Request) -> None:
        self.completion: Completion | None = None
        self._request = request
        self._pieces = self._run(engine, request)

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """Stop decoding and free the cache; `completion` then says "cancelled", unless it had ended already."""
        self._pieces.close()
        if self.completion is None:  # it had never begun
            self.completion = Completion([], "", "cancelled", [], len(self._request.prompt))

    def _run(self, engine: Engine, request: Request) -> Generator[str, None, None]:
        new: list[str] = []
        request.listener = new.append
        decoder = engine._decoder()
        try:
            with evaluating(engine.model):
                decoder.add([request])
            while decoder.n_alive:
                # Modes are set for the step alone: a caller between two pieces finds torch and model as they were.
                with evaluating(engine.model):
                    for _, self.completion in decoder.step():
                        pass
                text, new[:] = "".join(new), []
                if text:
                    yield text
        finally:
            self.completion = self.completion or decoder.cancel(request.key)


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Eval mode (no dropout) inside; afterwards each module's own mode, also where they differed."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
        # Older torch keeps the weights that autocast cast in here, without a gradient; a training step in the same
        # autocast region would find them and train nothing.
        torch.clear_autocast_cache()
