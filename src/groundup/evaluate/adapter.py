"""groundup's models as lm-evaluation-harness sees them: text in, log-likelihoods or text out.

The file needs lm-eval; import it where it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

from groundup.errors import UserError, missing_extra
from groundup.evaluate.likelihood import Pair, score_pairs, windows
from groundup.infer.engine import Engine
from groundup.infer.sample import SamplingParams, row_seed
from groundup.tokenizer.tokenizer import BOS

try:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import TemplateLM
except ImportError as error:
    raise missing_extra("eval", "lm-eval") from error

MAX_GEN_TOKS = 256  # lm-eval's own default
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


class ChatPrompt(str):
    """What the template renders, as text for lm-eval's eyes and as the ids that the model gets.

    TRAP: the text cannot be encoded back. Whoever writes "<|end|>" in a question must not end a turn, so a
    plain string that looks rendered is refused, and ids travel with the string.
    """

    ids: list[int]

    def __new__(cls, text: str, ids: list[int]) -> ChatPrompt:
        prompt = super().__new__(cls, text)
        prompt.ids = ids
        return prompt


class GroundupLM(TemplateLM):
    """An Engine behind lm-eval's interface (0.4.9 to 0.4.13).

    on_progress(done, total) is called as the requests of one call are answered. `truncated` counts log-likelihood
    contexts that were cut on the left to fit the model.
    """

    def __init__(
        self,
        engine: Engine,
        seed: int = 0,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        super().__init__()
        self.engine = engine
        self.model, self.text_tokenizer = engine.model, engine.tokenizer
        self.seed = seed
        self.on_progress = on_progress
        self.truncated = 0

    # ---- text -> ids ----

    @property
    def eot_token_id(self) -> int:
        return self.text_tokenizer.eos

    @property
    def prefix_token_id(self) -> int:
        """What stands before an empty context: BOS, as before every training document (EOS where there is none)."""
        return self.text_tokenizer.start

    @property
    def max_length(self) -> int:
        return self.model.config.context

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Ids of a text, after exactly one BOS where the tokenizer puts one, unless add_special_tokens is False."""
        if isinstance(string, ChatPrompt):
            return list(string.ids)
        if self.text_tokenizer.prefix and string.startswith(BOS):
            raise ValueError("a rendered chat prompt lost its ids: as text it would not be the same prompt")
        ids = self.text_tokenizer.encode(string)
        return ids if add_special_tokens is False else [*self.text_tokenizer.prefix, *ids]

    def tok_decode(self, tokens: Sequence[int]) -> str:
        return self.text_tokenizer.decode(tokens)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> ChatPrompt:
        """The prompt of a conversation: exactly the ids that chat and serve use."""
        if not add_generation_prompt:
            raise ValueError("groundup's template cannot leave an assistant's turn open (gen_prefix)")
        ids = self.engine.chat_prompt(chat_history)
        return ChatPrompt(self.text_tokenizer.decode(ids, skip_specials=False), ids)

    @property
    def tokenizer_name(self) -> str:
        return f"groundup-{self.text_tokenizer.hash[:12]}-{self.text_tokenizer.template_hash[:12]}"

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return self.text_tokenizer.chat_template if chat_template else None

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Ids of the context and of the continuation, as they are when read as one text.

        The continuation begins with the first token that holds any of its bytes. Encoding the two apart
        gives tokens that the model never saw side by side; cutting the joint ids at the length of the
        context's own (the harness' rule) gives an empty continuation, and a free win, when the two merge.
        """
        if isinstance(context, ChatPrompt):  # content follows <|assistant|> and never merges with it
            return list(context.ids), self.text_tokenizer.encode(continuation)
        if context == "":
            return [self.prefix_token_id], self.tok_encode(continuation, add_special_tokens=False)
        stem = context.rstrip()  # spaces belong to the word they stand before
        whole = self.tok_encode(context + continuation)
        sizes = [len(self.text_tokenizer.token_bytes(i)) for i in whole]
        put_first = max(0, sum(sizes) - len((context + continuation).encode()))  # SentencePiece's space before a text
        limit = len(stem.encode()) + put_first
        ends = accumulate(sizes)
        split = sum(end <= limit for end in ends)
        return whole[:split] or [self.prefix_token_id], whole[split:]

    # ---- log-likelihoods ----

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log p(continuation | context) in nats, whether greedy decoding would have written it) for each."""
        pairs = [request.args for request in requests]
        return self._loglikelihood_tokens([((c, t), *self._encode_pair(c, t)) for c, t in pairs])

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        pairs = [self._fit(texts, context, continuation) for texts, context, continuation in requests]
        return [(one.logprob, one.is_greedy) for one in score_pairs(self.model, pairs, self.on_progress)]

    def _fit(self, texts: tuple[str, str], context: list[int], continuation: list[int]) -> Pair:
        """A pair that fits the model: a long context loses its beginning, but keeps its BOS."""
        if not continuation:
            raise ValueError(f"nothing to score in {texts[1]!r} after {texts[0][-40:]!r}")
        room = self.max_length + 1 - len(continuation)
        if room < 1 or (len(context) > room and isinstance(texts[0], ChatPrompt)):
            raise UserError(
                f"{len(context)} tokens and a continuation of {len(continuation)} do not fit the model's context of "
                f"{self.max_length}: shorten the question that ends {texts[0][-40:]!r}, or raise model.context"
            )
        if len(context) > room:
            self.truncated += 1
            context = context[:1] + context[len(context) - room + 1 :]
        return context, continuation

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """log p(text), nats, of texts of any length, each token scored once (see likelihood.windows)."""
        start = [] if self.text_tokenizer.prefix else [self.prefix_token_id]  # the first token is scored too
        texts = [windows([*start, *self.tok_encode(request.args[0])], self.max_length) for request in requests]
        scored = iter(score_pairs(self.model, [pair for text in texts for pair in text], self.on_progress))
        return [sum((next(scored).logprob for _ in text), 0.0) for text in texts]

    # ---- generation ----

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The text generated after each prompt, up to a stop string, <|end|> or <|end_of_text|>.

        Errors: UserError when a prompt leaves no room for an answer, or when the logits are not finite (the
        argmax of NaN is a token like any other, and would score 0; the engine refuses it).
        """
        prompts = [self.tok_encode(request.args[0]) for request in requests]
        if full := [i for i, prompt in enumerate(prompts) if len(prompt) >= self.max_length]:
            raise UserError(
                f"{len(full)} of {len(prompts)} prompts leave no room for an answer in the model's context of "
                f"{self.max_length} tokens (the first has {len(prompts[full[0]])}, and ends "
                f"{requests[full[0]].args[0][-60:]!r}): shorten them, or raise model.context"
            )
        params = [self.sampling(r.args[1], len(p), i) for i, (r, p) in enumerate(zip(requests, prompts, strict=True))]
        done = 0

        def finished(_: int, __: object) -> None:
            nonlocal done
            done += 1
            if self.on_progress is not None:
                self.on_progress(done, len(prompts))

        return [completion.text for completion in self.engine.generate(prompts, params, on_finish=finished)]

    def sampling(self, kwargs: dict[str, Any], n_prompt: int, index: int) -> SamplingParams:
        """lm-eval's generation_kwargs as ours. Temperature 0 is greedy, and so is do_sample: false; do_sample: true
        without a temperature draws at 1. A key that nothing here reads is an error, not a default."""
        given = dict(kwargs)
        lengths = [int(given.pop(name)) for name in _LENGTHS if name in given]
        until = given.pop("until", None) or []
        do_sample = given.pop("do_sample", None)
        temperature = float(given.pop("temperature", 1.0 if do_sample else 0.0))
        if do_sample is False:
            temperature = 0.0
        top_k, top_p = int(given.pop("top_k", 0)), float(given.pop("top_p", 1.0))
        if given:
            raise ValueError(f"generation_kwargs that nothing reads: {', '.join(sorted(given))}")
        return SamplingParams(
            max_new_tokens=min(lengths[0] if lengths else MAX_GEN_TOKS, self.max_length - n_prompt),
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=row_seed(self.seed, index),
            stop=(until,) if isinstance(until, str) else tuple(until),
            stop_ids=(self.text_tokenizer.end, self.text_tokenizer.eos),
        )
