"""The OpenAI wire format: what a request may hold, what an answer and an error look like.

Source: the OpenAI API reference, chat completions and completions (legacy), with server-sent events.
"""

from __future__ import annotations

import json
import secrets
import time
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

MAX_CHOICES = 16  # answers (n) or prompts that one request may ask for


class ApiError(Exception):
    """An error the client sees, as {"error": {"message", "type", "param", "code"}} with this HTTP status."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        kind = "server_error" if status >= 500 else "invalid_request_error"
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


class StreamOptions(BaseModel):
    include_usage: bool = False


class Sampling(BaseModel):
    """Fields that both endpoints share. Unknown fields are accepted and ignored, as OpenAI clients expect."""

    model_config = ConfigDict(extra="allow")

    model: str
    temperature: Annotated[float, Field(ge=0, le=5)] | None = None  # 0 is greedy, not "default"
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None  # not OpenAI's, but every open server has it
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _refuse_what_would_be_ignored(self) -> Sampling:
        """A field that would change the answer if it were obeyed must not be dropped in silence."""
        extra = self.model_extra or {}
        for field, neutral in _NOT_DONE.items():
            value = extra.get(field)
            # types count: the older `logprobs: 0` asks for something, `logprobs: false` for nothing
            if value is not None and not any(type(value) is type(v) and value == v for v in neutral):
                raise ValueError(f"{field}: this server does not support it")
        return self

    @property
    def stops(self) -> list[str]:
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [stop for stop in given if stop]  # "" would end every answer at once

    @property
    def limit(self) -> int | None:
        """Most tokens to make, or None for as many as fit."""
        return self.max_completion_tokens or self.max_tokens


# field -> values that ask for nothing (clients send these by default)
_NOT_DONE: dict[str, tuple[Any, ...]] = {
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "presence_penalty": (0, 0.0),
    "frequency_penalty": (0, 0.0),
    "tools": ([],),
    "functions": ([],),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "echo": (False,),
    "best_of": (1,),
    "tool_choice": ("none", "auto"),
    # Not OpenAI's, but other open servers have them, and people's requests move from one to the other.
    "min_p": (0, 0.0),
    "typical_p": (1, 1.0),
    "repetition_penalty": (1, 1.0),
    "length_penalty": (1, 1.0),
    "use_beam_search": (False,),
    "min_tokens": (0,),
    "ignore_eos": (False,),
    "stop_token_ids": ([],),
    "prompt_logprobs": (False,),
    "guided_json": ({},),
    "guided_regex": ("",),
    "guided_choice": ([],),
    "guided_grammar": ("",),
    "structured_outputs": ({},),
    "grammar": ("",),
    "json_schema": ({},),
    "repeat_penalty": (1, 1.0),
    "mirostat": (0,),
    "dry_multiplier": (0, 0.0),
    "bad_words": ([],),
    "allowed_token_ids": ([],),
    "logits_processors": ([],),
    "truncate_prompt_tokens": (-1,),
    "n_predict": (-1,),
    "num_predict": (-1,),
    "max_new_tokens": (),
    "chat_template": (),
    "continue_final_message": (False,),
}


class TextPart(BaseModel):
    type: Literal["text"]
    text: str


class Message(BaseModel):
    role: Literal["system", "user", "assistant", "developer"]
    content: str | list[TextPart]
    tool_calls: Annotated[list[Any], Field(max_length=0)] | None = None  # no template here writes one

    def plain(self) -> dict[str, str]:
        """{"role", "content"} as the chat template takes it; "developer" is OpenAI's newer name for system."""
        text = self.content if isinstance(self.content, str) else "".join(p.text for p in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ChatRequest(Sampling):
    messages: Annotated[list[Message], Field(min_length=1)]


class CompletionRequest(Sampling):
    prompt: str | list[str] | list[int] | list[list[int]] = ""


class FeedbackRequest(BaseModel):
    model: str
    messages: Annotated[list[Message], Field(min_length=1)]
    answer: str
    rating: Literal[1, -1]
    comment: Annotated[str, Field(max_length=10_000)] | None = None
    id: int | None = None  # what an earlier call returned for this answer: changes that rating


def sse(payload: dict[str, Any] | str) -> str:
    """One server-sent event."""
    return f"data: {payload if isinstance(payload, str) else json.dumps(payload, ensure_ascii=False)}\n\n"


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


class Wording:
    """How one response is worded: chat or plain completion. One id and one time through a whole stream."""

    def __init__(self, chat: bool, model: str, counted: bool = False) -> None:
        self.chat = chat
        self.counted = counted  # include_usage: every chunk then has the key, null until the last
        self.id = ("chatcmpl-" if chat else "cmpl-") + secrets.token_hex(12)
        self.created = int(time.time())
        self.model = model

    def whole(self, choices: list[dict[str, Any]], used: dict[str, int]) -> dict[str, Any]:
        """The body of a response that is not streamed."""
        kind = "chat.completion" if self.chat else "text_completion"
        return {**self._head(kind), "choices": choices, "usage": used}

    def choice(self, index: int, text: str, finish: str) -> dict[str, Any]:
        body: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        return {"index": index, **body, "logprobs": None, "finish_reason": finish}

    def first(self, index: int) -> dict[str, Any] | None:
        """The chunk that opens a choice: chat says whose turn it is, plain completion has none."""
        return self._chunk(index, {"delta": {"role": "assistant", "content": ""}}, None) if self.chat else None

    def delta(self, index: int, text: str) -> dict[str, Any]:
        return self._chunk(index, {"delta": {"content": text}} if self.chat else {"text": text}, None)

    def last(self, index: int, finish: str) -> dict[str, Any]:
        return self._chunk(index, {"delta": {}} if self.chat else {"text": ""}, finish)

    def used(self, used: dict[str, int]) -> dict[str, Any]:
        """The chunk after the last choice when stream_options.include_usage is set: no choices, the counts."""
        return {**self._head(self._chunk_kind), "choices": [], "usage": used}

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self.chat else "text_completion"

    def _chunk(self, index: int, body: dict[str, Any], finish: str | None) -> dict[str, Any]:
        choice = {"index": index, **body, "logprobs": None, "finish_reason": finish}
        nothing_yet = {"usage": None} if self.counted else {}
        return {**self._head(self._chunk_kind), "choices": [choice], **nothing_yet}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}
