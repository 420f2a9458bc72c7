"""A conversation to token ids and a mask, from the one Jinja template that transformers renders too.

The template never sees what people wrote. It is rendered with a placeholder for each content, the result is
cut at the placeholders, and only the template's own pieces may hold special tokens; contents are encoded as
plain text. So no user can forge a turn, and training, chat, serving and export give the same ids.

Templates that others wrote do more than groundup's own; turns.py renders them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jinja2

from groundup.errors import UserError, did_you_mean, problems
from groundup.tokenizer import turns
from groundup.tokenizer.foreign import ForeignTokenizer
from groundup.tokenizer.template import compiled
from groundup.tokenizer.tokenizer import BOS, CHAT_TEMPLATE, EOS, SPECIALS, Tokenizer, text_problem

__all__ = ["CHAT_TEMPLATE", "ROLES", "Message", "Rendered", "check_messages", "render", "render_many"]

ROLES = ("system", "user", "assistant")
Message = Mapping[str, Any]  # {"role": one of ROLES, "content": str}

_SPECIAL = re.compile("(" + "|".join(re.escape(s) for s in SPECIALS) + ")")
_PLACEHOLDER = re.compile("\x00content-([0-9]+)\x00")  # no template holds NUL, and contents never enter


@dataclass(frozen=True, slots=True)
class Rendered:
    """`ids` (T,) and `mask` (T,): True on what the assistant must produce, its content and what ends its turn."""

    ids: list[int]
    mask: list[bool]


def render(tokenizer: Tokenizer, messages: Sequence[Message], add_generation_prompt: bool = False) -> Rendered:
    """Ids of one conversation: BOS (<|role|> content <|end|>)* and, to be continued, <|assistant|>.

    render(first k messages) is a prefix of render(all): a cache can be kept from turn to turn. Both are said of
    groundup's own template; under another's the ids are those of transformers.
    Raises UserError naming every bad message.
    """
    problems("conversation", check_messages(messages))
    if isinstance(tokenizer, ForeignTokenizer):
        return Rendered(*turns.render(tokenizer, messages, add_generation_prompt))
    contents = [tokenizer.encode(message["content"]) for message in messages]
    return _assemble(tokenizer, messages, contents, add_generation_prompt)


def render_many(
    tokenizer: Tokenizer, conversations: Sequence[Sequence[Message]], add_generation_prompt: bool = False
) -> list[Rendered]:
    """`render` for many conversations; the contents are encoded in one batch."""
    found = [f"conversation {n}, {p}" for n, c in enumerate(conversations) for p in check_messages(c)]
    problems("conversations", found[:20] + ([f"... and {len(found) - 20} more"] if len(found) > 20 else []))
    if isinstance(tokenizer, ForeignTokenizer):
        return [Rendered(*turns.render(tokenizer, c, add_generation_prompt)) for c in conversations]
    contents = iter(tokenizer.encode_batch([m["content"] for c in conversations for m in c]))
    return [_assemble(tokenizer, c, [next(contents) for _ in c], add_generation_prompt) for c in conversations]


def check_messages(messages: Any) -> list[str]:
    """What is wrong with a conversation, a line each; empty when it can be rendered."""
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        return [f"expected a list of messages, got {type(messages).__name__}"]
    if not messages:
        return ["there are no messages"]
    found = []
    for n, message in enumerate(messages):
        if not isinstance(message, Mapping):
            found.append(f'message {n}: expected {{"role", "content"}}, got {type(message).__name__}')
            continue
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            found.append(f"message {n}: unknown role {role!r}{did_you_mean(str(role), ROLES)}")
        if problem := text_problem(content):
            found.append(f"message {n}: content: {problem}")
    return found


def _assemble(
    tokenizer: Tokenizer, messages: Sequence[Message], contents: list[list[int]], add_generation_prompt: bool
) -> Rendered:
    roles = tuple(message["role"] for message in messages)
    ids: list[int] = []
    mask: list[bool] = []
    previous: int | None = None  # the message whose content was the piece before this one
    for piece in _pieces(tokenizer.chat_template, roles, add_generation_prompt):
        if isinstance(piece, int):
            ids += contents[piece]
            mask += [roles[piece] == "assistant"] * len(contents[piece])
            previous = piece
            continue
        piece_ids = _encode_template_text(tokenizer, piece)
        answered = previous is not None and roles[previous] == "assistant"
        # The terminator is trained, or the model never stops; what the template writes around it is not.
        closing = piece_ids.index(tokenizer.end) + 1 if answered and tokenizer.end in piece_ids else 0
        ids += piece_ids
        mask += [True] * closing + [False] * (len(piece_ids) - closing)
        previous = None
    return Rendered(ids, mask)


def _encode_template_text(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of text the template wrote; here, and only here, a special's name becomes its id."""
    ids: list[int] = []
    for part in _SPECIAL.split(text):
        if part in tokenizer.special_ids:
            ids.append(tokenizer.special_ids[part])
        elif part:
            ids += tokenizer.encode(part)
    return ids


@lru_cache(maxsize=4096)
def _pieces(template: str, roles: tuple[str, ...], add_generation_prompt: bool) -> tuple[str | int, ...]:
    """The rendered template cut at the contents: its own text as str, a content as the index of its message.

    Only the roles and the number of messages can change it, so a whole corpus renders a handful of these.
    """
    messages = [{"role": role, "content": f"\x00content-{n}\x00"} for n, role in enumerate(roles)]
    try:
        text = compiled(template).render(
            messages=messages,
            add_generation_prompt=add_generation_prompt,
            bos_token=BOS,
            eos_token=EOS,
            pad_token=EOS,
            tools=None,
            documents=None,
        )
    except jinja2.TemplateError as error:
        raise UserError(f"chat template: {error}") from error
    parts = _PLACEHOLDER.split(text)  # text, index, text, index, ..., text
    found = [int(index) for index in parts[1::2]]
    if found != list(range(len(roles))):
        raise UserError(
            f"chat template: it writes the contents of messages {found}, but there are {len(roles)} messages "
            f"({', '.join(roles)}): each must appear once, unchanged and in order"
        )
    pieces: list[str | int] = []
    for n, part in enumerate(parts):
        if n % 2:
            pieces.append(int(part))
        elif part:
            pieces.append(part)
    return tuple(pieces)
