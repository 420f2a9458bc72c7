"""A conversation under a template that others wrote: the ids of transformers, and the mask of what the assistant says.

Other templates put words of their own beside the contents ("<|im_start|>user\\n"), trim them, insert a system prompt or
the date, and drop the reasoning of earlier answers. So the template is run twice: with a placeholder for each content,
which tells its own words from people's, and with the contents themselves. Both must come to the same text, whatever
was trimmed, or the conversation is refused. Special tokens are looked for in the template's own words alone. The text
between two of them is encoded as one, for that is what transformers does and a token may span both.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from groundup.errors import UserError
from groundup.tokenizer.template import run

if TYPE_CHECKING:
    from groundup.tokenizer.foreign import ForeignTokenizer

_PLACEHOLDER = re.compile("\x00(content|reasoning)-([0-9]+)\x00")  # no template holds NUL
_UNDATED = datetime(2000, 1, 1)

# What templates do to a content: nothing in most, `| trim` in Llama 3's, line ends in Qwen 3's.
_CHANGES: tuple[Callable[[str], str], ...] = (
    lambda c: c,
    str.strip,
    str.lstrip,
    str.rstrip,
    lambda c: c.strip("\n"),
    lambda c: c.lstrip("\n"),
    lambda c: c.rstrip("\n"),
)


@dataclass(frozen=True, slots=True)
class Slot:
    """Where the template writes a message: its content, or the reasoning that stands in it before </think>."""

    message: int
    part: str = "content"


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of the conversation. `special`: the id of the special token that `text` names."""

    text: str
    scored: bool
    special: int | None = None


def render(
    tokenizer: ForeignTokenizer, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool
) -> tuple[list[int], list[bool]]:
    """(ids (T,), mask (T,)): True on what the assistant must produce, from the end of the prompt to `tokenizer.end`.

    Raises UserError when the template refuses the conversation, or changes a content in a way that is not known here.
    """
    ids: list[int] = []
    mask: list[bool] = []
    text: list[Piece] = []
    for piece in [*_pieces(tokenizer, messages, add_generation_prompt), None]:
        if piece is not None and piece.special is None:
            text.append(piece)
            continue
        for i, scored in _encode(tokenizer, text, first=not ids):
            ids.append(i)
            mask.append(scored)
        text = []
        if piece is not None and piece.special is not None:
            ids.append(piece.special)
            mask.append(piece.scored)
    return ids, mask


def closing_special(tokenizer: ForeignTokenizer) -> int | None:
    """Id of the first special token that the template writes after an assistant's answer; None where there is none."""
    try:
        words = _words(tokenizer.chat_template, _names(tokenizer), (("user", 0), ("assistant", 0)), False, _UNDATED)
    except UserError:
        return None  # whoever uses the template is told
    found = tokenizer.special_pattern.search(words[-1] if isinstance(words[-1], str) else "")
    return tokenizer.special_ids[found.group()] if found else None


def _encode(tokenizer: ForeignTokenizer, pieces: list[Piece], first: bool) -> list[tuple[int, bool]]:
    """(id, scored) of the text between two special tokens; a token that holds a letter of an answer is scored."""
    if not pieces:
        return []
    encoded = tokenizer.encode_run("".join(piece.text for piece in pieces), first)
    flags = [piece.scored for piece in pieces for _ in piece.text] + [pieces[-1].scored]
    spans = zip(encoded.ids, encoded.offsets, strict=True)
    return [(i, any(flags[begin : max(end, begin + 1)])) for i, (begin, end) in spans]


def _pieces(tokenizer: ForeignTokenizer, messages: Sequence[Mapping[str, Any]], prompt: bool) -> list[Piece]:
    """The conversation cut at people's words and at special tokens, each piece with its mask."""
    template, names, forms = tokenizer.chat_template, _names(tokenizer), _forms(tokenizer.chat_template, messages)
    now = datetime.now().replace(second=0, microsecond=0) if "strftime_now" in template else _UNDATED
    words = _words(template, names, forms, prompt, now)
    said = _said(template, names, words, messages, prompt, now)
    pieces: list[Piece] = []
    turn: int | None = None  # the assistant's message whose turn is open
    for n, word in enumerate(words):
        if isinstance(word, Slot):
            turn = word.message if messages[word.message]["role"] == "assistant" else None
            pieces.append(Piece(said[n], turn is not None))
            continue
        following = words[n + 1] if n + 1 < len(words) else None
        answer = following.message if isinstance(following, Slot) else None
        if answer is not None and answer == turn:  # between reasoning and answer
            pieces += _cut(tokenizer, word, scored=True)
            continue
        # The terminator is trained, or the model never stops; what the template writes after it is not.
        closed = _after_closing(tokenizer, word) if turn is not None else 0
        opened = len(word)
        if answer is not None and messages[answer]["role"] == "assistant":
            # What stands between the prompt that chat ends with and the content, the model has to write itself.
            asked = _asked(template, names, forms[:answer], now)
            opened = max(closed, len(asked)) if asked and word.startswith(asked) else opened
        pieces += _cut(tokenizer, word[:closed], True)
        pieces += _cut(tokenizer, word[closed:opened], False)
        pieces += _cut(tokenizer, word[opened:], True)
        turn = None
    return _stripped(tokenizer, pieces)


def _cut(tokenizer: ForeignTokenizer, text: str, scored: bool) -> list[Piece]:
    """Text the template wrote; here, and only here, a special's name becomes its id."""
    parts = [part for part in tokenizer.special_pattern.split(text) if part]
    return [Piece(part, scored, tokenizer.special_ids.get(part)) for part in parts]


def _after_closing(tokenizer: ForeignTokenizer, text: str) -> int:
    """Characters up to the end of the special that closes a turn; 0 when it is not there."""
    closing = (m for m in tokenizer.special_pattern.finditer(text) if tokenizer.special_ids[m.group()] == tokenizer.end)
    return next((found.end() for found in closing), 0)


def _stripped(tokenizer: ForeignTokenizer, pieces: list[Piece]) -> list[Piece]:
    """Some special tokens swallow the white space beside them, whoever wrote it (Phi-3's <|end|>)."""
    if not tokenizer.strips:
        return pieces
    out = list(pieces)
    for n, piece in enumerate(pieces):
        left, right = tokenizer.strips.get(piece.special, (False, False)) if piece.special is not None else (False,) * 2
        for wanted, step, strip in ((left, -1, str.rstrip), (right, 1, str.lstrip)):
            at = n + step
            while wanted and 0 <= at < len(out) and out[at].special is None:
                out[at] = replace(out[at], text=strip(out[at].text))
                wanted = not out[at].text
                at += step
    return [piece for piece in out if piece.text]


# ---- the template's words and people's ----


def _names(tokenizer: ForeignTokenizer) -> tuple[tuple[str, str], ...]:
    return tuple(tokenizer.names.items())


def _forms(template: str, messages: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, int], ...]:
    """(role, form) of each message. Form 0: one piece; 1: <think>, reasoning, </think>, answer; 2: without <think>.

    Only templates that look for </think> take an answer apart; the role and the form are all that changes their words.
    """
    apart = "</think>" in template
    forms = []
    for message in messages:
        content, role = message["content"], message["role"]
        thinks = apart and role == "assistant" and content.count("</think>") == 1
        forms.append((role, 0 if not thinks else 1 if content.startswith("<think>") else 2))
    return tuple(forms)


def _given(word: Slot, messages: Sequence[Mapping[str, Any]], form: int) -> str:
    """What a person or the model wrote, for this slot."""
    content: str = messages[word.message]["content"]
    if form == 0:
        return content
    reasoning, _, answer = content.partition("</think>")
    return answer if word.part == "content" else reasoning.removeprefix("<think>") if form == 1 else reasoning


@lru_cache(maxsize=4096)
def _words(
    template: str, names: tuple[tuple[str, str], ...], forms: tuple[tuple[str, int], ...], prompt: bool, now: datetime
) -> tuple[str | Slot, ...]:
    """The rendered template cut at its slots. A whole corpus needs a handful of these."""
    written = ("\x00content-{0}\x00", "<think>\x00reasoning-{0}\x00</think>\x00content-{0}\x00",
               "\x00reasoning-{0}\x00</think>\x00content-{0}\x00")  # fmt: skip
    messages = [{"role": role, "content": written[form].format(n)} for n, (role, form) in enumerate(forms)]
    parts = _PLACEHOLDER.split(run(template, messages, prompt, dict(names), now))  # text, part, index, text, ...
    words: list[str | Slot] = []
    for n, text in enumerate(parts[::3]):
        if text:
            words.append(text)
        if 3 * n + 2 < len(parts):
            words.append(Slot(int(parts[3 * n + 2]), parts[3 * n + 1]))
    found = [word.message for word in words if isinstance(word, Slot) and word.part == "content"]
    if found != list(range(len(forms))):
        raise UserError(
            f"chat template: it writes the contents of messages {found}, but there are {len(forms)} messages "
            f"({', '.join(role for role, _ in forms)}): each must appear once, and in order"
        )
    return tuple(words)


def _asked(template: str, names: tuple[tuple[str, str], ...], forms: tuple[tuple[str, int], ...], now: datetime) -> str:
    """What a prompt made of these messages ends with, after the last content; "" where there is no such prompt."""
    try:
        words = _words(template, names, forms, True, now) if forms else ("",)
    except UserError:
        return ""
    return words[-1] if isinstance(words[-1], str) else ""


def _said(
    template: str,
    names: tuple[tuple[str, str], ...],
    words: tuple[str | Slot, ...],
    messages: Sequence[Mapping[str, Any]],
    prompt: bool,
    now: datetime,
) -> dict[int, str]:
    """Index in `words` -> what the template made of the content there, found in the text that it really writes."""
    plain = [{"role": message["role"], "content": message["content"]} for message in messages]
    text = run(template, plain, prompt, dict(names), now)
    forms = _forms(template, messages)
    said: dict[int, str] = {}
    at = 0
    for n, word in enumerate(words):
        if isinstance(word, str):
            if not text.startswith(word, at):
                break
            at += len(word)
            continue
        after = words[n + 1] if n + 1 < len(words) else None
        given = _given(word, messages, forms[word.message][1])
        made = [change(given) for change in _CHANGES]
        whole = [m for m in made if text.startswith(m + (after if isinstance(after, str) else ""), at)]
        if not whole:
            break
        said[n] = whole[0]
        at += len(whole[0])
    else:
        if at == len(text):
            return said
    index = next((w.message for w in words[n:] if isinstance(w, Slot)), len(messages) - 1)
    raise UserError(
        f"chat template: it rewrites message {index} ({messages[index]['content'][:60]!r}) or what stands before it in "
        "a way that cannot be followed, so the answers could not be told from the rest: change that message, or the "
        "template in the tokenizer's folder"
    )
