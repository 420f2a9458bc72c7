"""Faults of template, mask and packing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from groundup.infer.engine import Engine
from groundup.infer.sample import SamplingParams
from groundup.model.batch import IGNORE
from groundup.tokenizer import chat
from groundup.tokenizer.chat import CHAT_TEMPLATE, Rendered
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.tune import dpo, grpo, pack
from groundup.tune.pack import PackedChats
from groundup.verify.fault import fault, swapped

_assemble = chat._assemble


def _assembling(change: Callable[[Tokenizer, Rendered], Rendered]) -> Any:
    """Every rendering changed, in training and serving alike."""

    def wrong(tokenizer: Tokenizer, *given: Any) -> Rendered:
        return change(tokenizer, _assemble(tokenizer, *given))

    return swapped(chat, _assemble=wrong)


@fault("chat-bos-doubled", "turns-are-framed")
def chat_bos_doubled() -> Iterator[None]:
    """The template writes a BOS and the tokenizer puts another before it."""
    with _assembling(lambda tokenizer, r: Rendered([tokenizer.bos, *r.ids], [False, *r.mask])):
        yield


@fault("system-message-dropped", "turns-are-framed")
def system_message_dropped() -> Iterator[None]:
    """The system's message does not survive rendering."""
    right = chat._assemble

    def wrong(tokenizer: Tokenizer, messages: Any, contents: Any, prompt: bool) -> Rendered:
        kept = [n for n, m in enumerate(messages) if m["role"] != "system"]
        return right(tokenizer, [messages[n] for n in kept], [contents[n] for n in kept], prompt)

    with swapped(chat, _assemble=wrong):
        yield


@fault("template-text-lost", "ids-are-the-templates-text")
def template_text_lost() -> Iterator[None]:
    """The template writes a line end after each role, and the ids have none."""
    template = CHAT_TEMPLATE.replace("'|>' + message['content']", "'|>\\n' + message['content']")
    template = template.replace("'<|assistant|>'", "'<|assistant|>\\n'")
    right, build = chat._encode_template_text, Tokenizer.__init__

    def init(self: Tokenizer, tokenizer_json: str, chat_template: str = template) -> None:
        build(self, tokenizer_json, template)

    with (
        swapped(Tokenizer, __init__=init),
        swapped(chat, _encode_template_text=lambda tokenizer, text: right(tokenizer, text.replace("\n", ""))),
    ):
        yield


@fault("template-looks-ahead", "render-is-a-prefix")
def template_looks_ahead() -> Iterator[None]:
    """The last turn is closed by an end of text, which vanishes when another follows."""

    def wrong(tokenizer: Tokenizer, r: Rendered) -> Rendered:
        closed = r.ids[-1] == tokenizer.end
        return Rendered(r.ids + [tokenizer.eos] * closed, r.mask + [False] * closed)

    with _assembling(wrong):
        yield


@fault("served-another-template", "train-ids-equal-serve-ids")
def served_another_template() -> Iterator[None]:
    """The server strips what users write; training did not."""
    right = Engine.chat_prompt

    def wrong(self: Engine, messages: Any) -> list[int]:
        return right(self, [{**m, "content": m["content"].strip()} for m in messages])

    with swapped(Engine, chat_prompt=wrong):
        yield


@fault("prompt-scored", "answers-scored-prompts-not")
def prompt_scored() -> Iterator[None]:
    """SFT is trained on the whole conversation."""
    with _assembling(lambda _, r: Rendered(r.ids, [True] * len(r.ids))):
        yield


@fault("mask-not-shifted", "answers-scored-prompts-not")
def mask_not_shifted() -> Iterator[None]:
    """The mask is laid over the inputs, not over the targets: the first token of an answer is not scored."""

    def wrong(self: PackedChats, *given: Any, **more: Any) -> None:
        _packed(self, *given, **more)
        self.chats = [Rendered(c.ids, [False, *c.mask[:-1]]) for c in self.chats]

    with swapped(PackedChats, __init__=wrong):
        yield


_packed = PackedChats.__init__
_batch = PackedChats.batch


@fault("terminator-masked", "terminator-is-trained")
def terminator_masked() -> Iterator[None]:
    """The end of turn is masked as if it were padding."""
    with _assembling(lambda t, r: Rendered(r.ids, [m and i != t.end for i, m in zip(r.ids, r.mask, strict=True)])):
        yield


@fault("padding-scored", "terminator-is-trained")
def padding_scored() -> Iterator[None]:
    """Padding is a target: most of what the model is taught is to say end of text."""

    def wrong(self: PackedChats, rows: Any) -> Any:
        batch = _batch(self, rows)
        padding = torch.stack([d == d[-1] for d in batch.documents])
        return replace(batch, targets=torch.where(padding & (batch.targets == IGNORE), self.pad, batch.targets))

    with swapped(PackedChats, batch=wrong):
        yield


@fault("terminator-not-a-stop", "terminator-stops")
def terminator_not_a_stop() -> Iterator[None]:
    """Rollouts stop at the end of text alone."""

    def wrong(**given: Any) -> SamplingParams:
        return SamplingParams(**{**given, "stop_ids": given["stop_ids"][1:]})

    with swapped(grpo, SamplingParams=wrong), swapped(dpo, SamplingParams=wrong):
        yield


@fault("packing-loses-a-row", "packing-keeps-every-chat")
def packing_loses_a_row() -> Iterator[None]:
    """The last row, being nearly empty, is dropped."""
    right = pack.pack
    with swapped(pack, pack=lambda lengths, capacity: right(lengths, capacity)[:-1]):
        yield


@fault("long-chats-cut", "packing-keeps-every-chat")
def long_chats_cut() -> Iterator[None]:
    """A conversation too long for the context is cut, and its end of turn with it."""

    def wrong(self: PackedChats, chats: Any, context: int, *more: Any, **named: Any) -> None:
        _packed(self, [Rendered(c.ids[: context + 1], c.mask[: context + 1]) for c in chats], context, *more, **named)

    with swapped(PackedChats, __init__=wrong):
        yield


@fault("packed-chats-see-each-other", "packed-loss-is-the-sum")
def packed_chats_see_each_other() -> Iterator[None]:
    """A packed row is one document: an answer reads the conversation before it."""

    def wrong(self: PackedChats, rows: Any) -> Any:
        batch = _batch(self, rows)
        return replace(batch, documents=torch.zeros_like(batch.documents))

    with swapped(PackedChats, batch=wrong):
        yield
