"""Rows as people publish them -> conversations, preference pairs, problems."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from groundup.data import town
from groundup.data.read import read_rows
from groundup.errors import UserError, problems
from groundup.recipe.schema import ChatSource, SftSource
from groundup.tokenizer.chat import check_messages

Messages = list[dict[str, str]]

TOWN_EXAMPLES = 20_000  # of the town's endless supply, when max_documents is not given
_TURN = re.compile(r"### Human:(.*?)### Assistant:(.*?)(?=### Human:|\Z)", re.S)


@dataclass(frozen=True)
class Pair:
    """One preference: the same prompt, answered better and worse."""

    prompt: Messages
    chosen: str
    rejected: str


@dataclass(frozen=True)
class Problem:
    """A prompt whose answer a program can judge."""

    prompt: Messages
    answer: str
    kind: str


def conversations(sources: Sequence[SftSource], seed: int, base: Path) -> list[Messages]:
    """All conversations of the sources, in order."""
    return [
        m
        for source in sources
        for m in _read(source, seed, base, town.conversations, partial(to_messages, kind=source.format))
    ]


def pairs(sources: Sequence[ChatSource], seed: int, base: Path) -> list[Pair]:
    """All preference pairs; those whose two answers are equal teach nothing and are refused by the caller's count."""
    return [p for source in sources for p in _read(source, seed, base, town.preferences, to_pair)]


def verifiable(sources: Sequence[ChatSource], seed: int, base: Path) -> list[Problem]:
    """All problems with an answer that can be checked."""
    return [p for source in sources for p in _read(source, seed, base, town.problems, to_problem)]


def _read(
    source: ChatSource,
    seed: int,
    base: Path,
    builtin: Callable[[int, int], Iterator[dict[str, Any]]],
    convert: Callable[[dict[str, Any]], Any],
) -> list[Any]:
    """Convert every row; rows that do not fit are listed, all of them in one error."""
    if source.builtin == "python":
        raise UserError("builtin: python is text to pretrain on; it holds no conversations, pairs or problems")
    if source.builtin == "town":
        rows: Iterator[dict[str, Any]] = builtin(seed, source.max_documents or TOWN_EXAMPLES)
    else:
        rows = read_rows(source, base)
    out, bad = [], []
    where = source.path or source.dataset or "town"
    for n, row in enumerate(rows, 1):
        if source.max_documents is not None and n > source.max_documents:
            break
        try:
            out.append(convert(row))
        except KeyError as e:
            bad.append(f'row {n}: no field "{e.args[0]}" (fields: {", ".join(map(str, row))})')
        except (TypeError, ValueError) as e:
            bad.append(f"row {n}: {e}")
    problems(where, bad[:10] + ([f"... and {len(bad) - 10} more"] if len(bad) > 10 else []))
    if not out:
        raise UserError(f"{where}: no examples in it")
    return out


def detect(row: dict[str, Any]) -> str:
    """The format of a row, from its keys."""
    if "messages" in row:
        return "messages"
    if "instruction" in row:
        return "alpaca"
    if "question" in row and "answer" in row:
        return "gsm8k"
    if "prompt" in row:
        return "prompt_completion"
    if "text" in row and "### Human:" in str(row["text"]):
        return "human_assistant"
    raise ValueError(f"no known format has the keys {', '.join(map(str, row))}; set format, or see docs/sft.md")


def to_messages(row: dict[str, Any], kind: str = "auto") -> Messages:
    """One conversation from a row of any supported format; it must end with what the assistant says."""
    kind = detect(row) if kind == "auto" else kind
    if kind == "messages":
        messages = [{"role": m["role"], "content": _text(m["content"])} for m in row["messages"]]
    elif kind == "alpaca":
        system = [{"role": "system", "content": _text(row["system"])}] if row.get("system") else []
        messages = [*system, *_asked(_instruction(row)), {"role": "assistant", "content": _text(row["output"])}]
    elif kind == "prompt_completion":
        prompt = row["prompt"] if isinstance(row["prompt"], list) else _asked(_text(row["prompt"]))
        messages = [*prompt, {"role": "assistant", "content": _text(row["completion"])}]
    elif kind == "human_assistant":
        turns = _TURN.findall(row["text"])
        if not turns or not row["text"].lstrip().startswith("### Human:"):
            raise ValueError('the text is not "### Human: ... ### Assistant: ..."')
        messages = []
        for human, assistant in turns:
            messages += [*_asked(human.strip()), {"role": "assistant", "content": assistant.strip()}]
    else:
        messages = [*_asked(_text(row["question"])), {"role": "assistant", "content": _text(row["answer"])}]
    if not messages or messages[-1]["role"] != "assistant":
        raise ValueError("the conversation does not end with an answer of the assistant")
    return _checked(messages)


def to_pair(row: dict[str, Any]) -> Pair:
    """A preference pair: `prompt` (text or messages) or Alpaca's instruction and input, with chosen and rejected."""
    if "chosen" not in row or "rejected" not in row:
        raise ValueError(f"a preference row needs chosen and rejected (got {', '.join(map(str, row))})")
    if "instruction" in row:
        prompt = _asked(_instruction(row))
    elif isinstance(row["prompt"], list):
        prompt = [{"role": m["role"], "content": _text(m["content"])} for m in row["prompt"]]
    else:
        prompt = _asked(_text(row["prompt"]))
    return Pair(_checked(prompt), _answer(row["chosen"]), _answer(row["rejected"]))


def to_problem(row: dict[str, Any]) -> Problem:
    """A problem: `prompt` and `answer`, or GSM8K's question and answer (the number after ####)."""
    if "question" in row:
        answer = _text(row["answer"]).rpartition("####")[2].strip().replace(",", "")
        return Problem(_asked(_text(row["question"])), answer, "gsm8k")
    prompt = row["prompt"] if isinstance(row["prompt"], list) else _asked(_text(row["prompt"]))
    answer = _text(row["answer"])
    whole = row.get("kind") == "arithmetic" and re.fullmatch(r"-?\d+", answer)
    return Problem(_checked(prompt), answer, "arithmetic" if whole else "number")


def _checked(messages: Messages) -> Messages:
    if found := check_messages(messages):
        raise ValueError("; ".join(found))
    return messages


def _asked(content: str) -> Messages:
    return [{"role": "user", "content": content}]


def _instruction(row: dict[str, Any]) -> str:
    extra = row.get("input")
    return _text(row["instruction"]) + (f"\n\n{extra}" if extra else "")


def _answer(value: Any) -> str:
    return _text(value[-1]["content"] if isinstance(value, list) else value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected text, got {type(value).__name__}")
    return value
