"""One row as published, in any of the usual layouts -> what is asked and what is answered. Refuses as little as it can:
what is wrong with the content is the checks' to say.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from groundup.tune.formats import Messages, Pair, Problem

Kind = Literal["conversations", "pairs", "problems", "choices", "labels", "texts"]
KNOWN = (
    "conversations (messages; conversations, from and value; instruction, input and output; prompt and completion; "
    "### Human: ... ### Assistant:; trees of replies), preference pairs (chosen and rejected), problems (question or "
    "prompt, and answer), multiple choice (question, choices and the right one), labelled text (text and label), text"
)
ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),  # OpenAI's later name for it
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "bot", "model", "chatgpt"), "assistant"),
    **dict.fromkeys(("function_call", "tool_call"), "call"),  # the assistant's, answered by a tool
    **dict.fromkeys(("tool", "function", "observation", "ipython"), "tool"),
}
ASKS = ("prompt", "question", "query", "goal", "ctx", "question stem")
ANSWERS = ("completion", "response", "output", "answer", "target", "best answer", "canonical_solution", "code")
TEXTS = ("text", "sentence", "content", "prompt")
LABELS = ("label", "category", "labels", "class", "sentiment", "intent")
GOLDS = ("gold", "label", "answer", "answer key", "answerkey")
_HH = re.compile(r"\n\n(Human|Assistant):(.*?)(?=\n\n(?:Human|Assistant):|\Z)", re.S)
_MARKED = re.compile(r"### (Human|Assistant):(.*?)(?=### (?:Human|Assistant):|\Z)", re.S)
_LETTERED = re.compile(r"\(([A-Z])\) *(.*?) *(?=\([A-Z]\)|\Z)", re.S)


@dataclass(frozen=True)
class Example:
    """What one row teaches.

    messages: a whole conversation; of a pair, a problem or a choice, the prompt.  answer: the chosen one, the right
    one, or the label; None where the row names none of its choices.  rejected, other_prompt: a pair's; the latter only
    where the rejected answer stands behind another conversation than the chosen.  text: what is labelled or pretrained
    on.  roles: whether the row names roles itself.
    """

    kind: Kind
    messages: Messages
    answer: str | None = ""
    rejected: str = ""
    other_prompt: Messages | None = None
    choices: tuple[str, ...] = ()
    text: str = ""
    roles: bool = False

    def trained_on(self) -> Messages | Pair | Problem:
        """As the tuning stages would hold it."""
        if self.kind == "pairs":
            return Pair(self.messages, self.answer or "", self.rejected)
        return self.messages if self.kind == "conversations" else Problem(self.messages, self.answer or "", "number")


def read(row: Mapping[str, Any]) -> list[Example]:
    """The examples of one row (several where it holds a tree of replies). Errors: ValueError: why it fits no layout."""
    fields = {str(name).strip().lower(): value for name, value in row.items()}
    if "chosen" in fields and "rejected" in fields:
        return [_pair(fields)]
    for name in ("messages", "conversations"):
        if name in fields:
            return [Example("conversations", _messages(fields[name]), roles=True)]
    if isinstance(fields.get("prompt"), Mapping) and "replies" in fields["prompt"]:
        return [Example("conversations", path, roles=True) for path in _tree(fields["prompt"], [])]
    if "instruction" in fields:
        return _instructed(fields)
    if (choice := _choice(fields)) is not None:
        return [choice]
    if isinstance(fields.get("text"), str) and "### Human:" in fields["text"]:
        return [Example("conversations", _transcript(fields["text"], _MARKED, "### Human:"), roles=True)]
    return [_asked_or_labelled(fields)]


def _asked_or_labelled(fields: Mapping[str, Any]) -> Example:
    ask, answer = _first(fields, ASKS), _first(fields, ANSWERS)
    if answer is not None and (ask is not None or "text" in fields):
        name = ask or "text"
        prompt = _messages(fields[name]) if isinstance(fields[name], list) else _user(_text(fields, name))
        if answer in ("completion", "response", "output", "target"):
            said = [*prompt, {"role": "assistant", "content": _text(fields, answer)}]
            return Example("conversations", said, roles=isinstance(fields[name], list))
        return Example("problems", prompt, _scalar(fields, answer))
    text, label = _first(fields, TEXTS), _first(fields, LABELS)
    if text is not None and label is not None:
        return Example("labels", [], _scalar(fields, label), text=_text(fields, text))
    if "text" in fields:
        return Example("texts", [], text=_text(fields, "text"))
    raise ValueError(f"no layout has the fields {', '.join(fields) or '(none)'}")


# ---- conversations ----


def _instructed(fields: Mapping[str, Any]) -> list[Example]:
    """Alpaca's and Self-Instruct's rows."""
    if isinstance(fields.get("instances"), list):
        return [made for one in fields["instances"] for made in _instructed({**fields, **one, "instances": None})]
    answer = _first(fields, ("output", "response", "completion", "answer"))
    if answer is None:
        raise ValueError(f"an instruction without output or response (fields: {', '.join(fields)})")
    system = [{"role": "system", "content": _text(fields, "system")}] if fields.get("system") else []
    said = [*system, *_user(_instruction(fields)), {"role": "assistant", "content": _text(fields, answer)}]
    return [Example("conversations", said)]


def _instruction(fields: Mapping[str, Any]) -> str:
    extra = _text(fields, "input") if fields.get("input") else ""
    return _text(fields, "instruction") + (f"\n\n{extra}" if extra else "")


def _messages(given: Any) -> Messages:
    if not isinstance(given, Sequence) or isinstance(given, str) or not given:
        raise ValueError(f"expected a list of messages, got {type(given).__name__ if given else 'nothing'}")
    return [_message(one) for one in given]


def _message(given: Any) -> dict[str, str]:
    if not isinstance(given, Mapping):
        raise ValueError(f"expected a message, got {type(given).__name__}")
    name = given.get("role", given.get("from"))
    role = ROLES.get(str(name).lower())
    if role is None:
        raise ValueError(f"unknown role {name!r}")
    content = given.get("content", given.get("value"))
    if given.get("tool_calls"):
        return {"role": "call", "content": str(given["tool_calls"])}
    if isinstance(content, list):  # parts, as of messages with pictures
        content = "".join(part.get("text", "") for part in content if isinstance(part, Mapping))
    if not isinstance(content, str):
        raise ValueError(f"the content of a message is {type(content).__name__}, not text")
    return {"role": role, "content": content}


def _transcript(text: str, turns: re.Pattern[str], start: str) -> Messages:
    """Turns written into one text, whatever their order."""
    if not text.lstrip().startswith(start.lstrip()):
        raise ValueError(f"the text does not begin with {start.strip()}")
    roles = {"Human": "user", "Assistant": "assistant"}
    return [{"role": roles[who], "content": said.strip()} for who, said in turns.findall(text)]


def _tree(node: Mapping[str, Any], above: Messages) -> list[Messages]:
    """Every path from the root to an answer that nothing follows, as one conversation (Open Assistant's trees)."""
    here = [*above, _message({"role": node.get("role"), "content": node.get("text")})]
    below = [path for reply in node.get("replies") or [] for path in _tree(reply, here)]
    return below or ([here] if here[-1]["role"] == "assistant" else [here[:-1]] if len(here) > 2 else [])


# ---- pairs ----


def _pair(fields: Mapping[str, Any]) -> Example:
    before, good = _side(fields["chosen"], "chosen")
    other, bad = _side(fields["rejected"], "rejected")
    ask = _first(fields, ("messages", "conversations", *ASKS))
    named = True
    if before:
        prompt = before
    elif ask is not None and isinstance(fields[ask], list):
        prompt = _messages(fields[ask])
    elif "instruction" in fields or ask is not None:
        prompt, named = _user(_instruction(fields) if "instruction" in fields else _text(fields, str(ask))), False
    else:
        raise ValueError(f"chosen and rejected, and nothing they answer (fields: {', '.join(fields)})")
    return Example("pairs", prompt, good, bad, other if other != before else None, roles=named)


def _side(given: Any, name: str) -> tuple[Messages, str]:
    """(what stands before, the answer) of chosen or rejected: text, a transcript, a message or messages."""
    if isinstance(given, str) and given.startswith("\n\nHuman:"):
        given = _transcript(given, _HH, "Human:")
    elif isinstance(given, Mapping):
        given = [_message(given)]
    elif isinstance(given, list):
        given = _messages(given)
    elif isinstance(given, str):
        return [], given
    if not given or given[-1]["role"] != "assistant":
        raise ValueError(f"{name} is no text and no conversation that ends with an answer")
    return given[:-1], given[-1]["content"]


# ---- multiple choice ----


def _choice(fields: Mapping[str, Any]) -> Example | None:
    ask, gold = _first(fields, ASKS), _first(fields, GOLDS)
    choices = _choices(fields)
    if ask is None or gold is None or not choices:
        return None
    names = _names(fields)
    right = choices[names.index(str(fields[gold]))] if str(fields[gold]) in names else fields[gold]
    before = f"{_text(fields, 'context')}\n\n" if isinstance(fields.get("context"), str) else ""
    return multiple_choice(before + _text(fields, ask), choices, right)


def multiple_choice(ask: str, choices: Sequence[str], gold: Any) -> Example:
    """gold: an index from 0, a letter from A, or one of the choices; else the right one is None."""
    at = int(gold) if str(gold).isdigit() else "ABCDEFGHIJ".find(str(gold)) if len(str(gold)) == 1 else -1
    right = str(gold) if gold in choices else choices[at] if 0 <= at < len(choices) else None
    return Example("choices", _user(ask), right, choices=tuple(choices))


def _choices(fields: Mapping[str, Any]) -> list[str]:
    for name in ("choices", "endings", "options"):
        given = fields.get(name)
        given = given.get("text") if isinstance(given, Mapping) else given
        if isinstance(given, str):
            given = [text for _, text in _LETTERED.findall(given)]
        if isinstance(given, list) and all(isinstance(one, str) for one in given):
            return list(given)
    return [str(fields[f"ans{n}"]) for n in range(10) if f"ans{n}" in fields]


def _names(fields: Mapping[str, Any]) -> list[str]:
    """What the choices are called, where the row says so: ["A", "B"], or ["1", "2"] counted from one (ARC)."""
    given = next((fields[name] for name in ("choices", "endings", "options") if name in fields), None)
    names = given.get("label") if isinstance(given, Mapping) else None
    return [str(name) for name in names] if isinstance(names, list) and len(names) == len(_choices(fields)) else []


# ---- fields ----


def _user(content: str) -> Messages:
    return [{"role": "user", "content": content}]


def _first(fields: Mapping[str, Any], names: Sequence[str]) -> str | None:
    return next((name for name in names if name in fields), None)


def _text(fields: Mapping[str, Any], name: str) -> str:
    if not isinstance(fields[name], str):
        raise ValueError(f"{name} is {type(fields[name]).__name__}, not text")
    return str(fields[name])


def _scalar(fields: Mapping[str, Any], name: str) -> str:
    if not isinstance(fields[name], str | int | float):
        raise ValueError(f"{name} is {type(fields[name]).__name__}, not text or a number")
    return str(fields[name])
