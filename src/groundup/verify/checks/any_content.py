"""Anybody's chat template, from outside: does all that is said come through, whole, whoever says it and whenever?"""

from __future__ import annotations

import datetime
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from groundup.verify import traces
from groundup.verify.check import Measurement, NotApplicable, check, violations
from groundup.verify.checks.any_tokenizer import conversations_of, rendered, sentinel, sentinels, with_note
from groundup.verify.outside import OutsideTokenizer, Refused

# What a template may do to a content by its length: a cut at any length up to the last is seen there.
LENGTHS = (101, 700, 2_100, 9_000, 70_000)
LAID_OUT = {
    "an empty line": "one\n\ntwo",
    "empty lines": "one\n\n\n\ntwo",
    "indented lines": "def f(x):\n    if x:\n\treturn 1\n\n    return 0",
    "spaces at the ends of lines": "one  \ntwo \n three",
    "spaces in a row": "a  b   c\t\td",
    "a carriage return": "one\r\ntwo",
    "signs and capitals": "Ab CD & <EF> \"gh\" 'ij' \\n {{ x }} {% y %} \u201ck\u201d\u2014l\u2026\u00a0m",
    "no spaces": "n0sp4ce" * 60,
    "other scripts": "\u65e5\u672c\u8a9e\u3001\u4e2d\u6587 \u0939\u093f\u0928\u094d\u0926\u0940 e\u0301 \u200d",
}
TURNS = 120  # messages of a long talk


@check(
    "contents-come-through-whole",
    "identity",
    "tokenizer",
    bug="The template cuts long contents, drops old turns or a long system prompt, or runs lines together: no error.",
    remedy="Write each content as it is: no slices of messages or contents, no replace, split or trim of lines.",
    reference=(
        "bigscience-workshop/promptsource pull 293; huggingface/transformers issue 34462; "
        "chujiezheng/chat_templates issue 14"
    ),
    looks_at="tokenizer",
)
def contents_come_through_whole(tokenizer: OutsideTokenizer) -> Measurement:
    """Contents that are not in the rendered text once and character for character: of system, user, assistant, tool, at
    the first, middle and last place; of 100 to 70,000 characters, with no two lines alike; with empty lines, indented
    lines, spaces and tabs in a row, capitals, HTML's and Jinja's signs. Also the messages of talks of 120 turns, with
    and without system, whole and as a prompt.

    Each content begins and ends with a word of its own, so that trimming its ends changes nothing. Exact: a template
    that shortens what is said shortens it in training and in serving alike, and nothing else will show it. A limit past
    70,000 characters or 120 messages is not seen; a template that refuses is loud.
    """
    cases = {f"{n:,} characters": _long(n) for n in LENGTHS} | LAID_OUT
    roles = ("system", "user", "assistant", "user", "assistant", "user", "assistant")
    talks = [roles, roles[1:], roles[:2], roles[1:-1]]
    talks += [("user", "assistant", "tool", "assistant")] if _speaks_of_tools(tokenizer) else []
    found, looked = [], 0
    for what, text in cases.items():
        for talk in talks:
            said = [{"role": r, "content": f"{sentinel(k)} {text} {sentinel(k)}"} for k, r in enumerate(talk)]
            whole = rendered(tokenizer, said, talk[-1] == "user")
            if whole is None:
                continue
            looked += len(said)
            found += [f"{what}, {m['role']}, message {k}: {_lost(m['content'], whole)}" for k, m in enumerate(said)
                      if whole.count(m["content"]) != 1]  # fmt: skip
    for first, last in ((["system"], []), ([], []), (["system"], ["user"]), ([], ["user"])):
        said = sentinels([{"role": role} for role in (*first, *("user", "assistant") * (TURNS // 2), *last)])
        if (whole := rendered(tokenizer, said, bool(last))) is not None:
            looked += len(said)
            gone = [k for k, m in enumerate(said) if whole.count(m["content"]) != 1]
            told = f"{len(gone)} of {len(said)} messages, from {gone[:1]} on to {gone[-1:]}, are not there"
            found += [told.replace("[", "").replace("]", "")] if gone else []
    if not looked:
        raise NotApplicable("the template refuses every conversation, or there is none")
    return violations(list(dict.fromkeys(found)), looked)


def _speaks_of_tools(tokenizer: OutsideTokenizer) -> bool:
    return re.search(r"\btools\b|tool_call|['\"]tool['\"]", tokenizer.template or "") is not None


def _long(characters: int) -> str:
    """Text of so many characters, in lines of 50 of which no two are alike."""
    lines = (f"{n:06d} the river runs past the mill and the bridge" for n in range(characters // 50 + 1))
    return "\n".join(lines)[:characters]


def _lost(content: str, whole: str) -> str:
    """How much of a content's beginning is in the text, in words."""
    if whole.count(content) > 1:
        return "there more than once"
    low, high = 0, len(content)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if content[:middle] in whole else (low, middle - 1)
    return f"whole up to character {low:,} of {len(content):,}"


@check(
    "tool-calls-are-rendered",
    "sensitivity",
    "tokenizer",
    bug="The template lists tools and drops the calls: the model sees answers of tools that nobody called.",
    remedy="Write message.tool_calls (name and arguments of each) in the assistant's turn, or raise_exception.",
    reference="ggml-org/llama.cpp issue 27588; ml-explore/mlx-swift-lm pull 409; vllm-project/vllm pull 30648",
    looks_at="tokenizer",
)
def tool_calls_are_rendered(tokenizer: OutsideTokenizer) -> Measurement:
    """Names, argument names and argument values of calls, and the tools' answers, that are not in the text: one call in
    a turn and two, followed by their answers, as the last message and before another answer. Arguments as an object or
    as JSON text (OpenAI's form), beside no content or an empty one: whichever is written best. Exact: all of them are
    words that nothing else writes. Templates that speak of tools alone; one that refuses several calls (Llama 3.1) is
    loud.
    """
    if not _speaks_of_tools(tokenizer):
        raise NotApplicable("the template speaks of no tools" if tokenizer.template else "there is no chat template")
    found, looked = [], 0
    for calls in (1, 2):
        for closed in (False, True):
            lost = _calls_lost(tokenizer, calls, closed)
            if lost is not None:
                looked += 4 * calls + closed
                where = f"{calls} call{'s' * (calls > 1)}, {'answered' if closed else 'at the end'}"
                found += [f"{where}: {what} is not there" for what in lost]
    if not looked:
        raise NotApplicable("the template refuses calls of tools")
    return violations(found, looked)


def _calls_lost(tokenizer: OutsideTokenizer, calls: int, closed: bool) -> list[str] | None:
    """What of a talk with calls is not in its text, in the form of which most is; None where all are refused."""
    best: list[str] | None = None
    for form in (lambda one: one, json.dumps):  # an object, JSON text
        for content in (None, ""):
            words, said = _talk_with_calls(calls, closed, form, content)
            try:
                text = tokenizer.render(said, not closed)
            except Refused:
                continue
            lost = [what for what, word in words.items() if word not in text]
            best = lost if best is None or len(lost) < len(best) else best
    return best


def _talk_with_calls(
    calls: int, closed: bool, form: Callable[[Any], Any], content: str | None
) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """({what: word that has to be there}, a talk with calls of tools and their answers)."""
    words: dict[str, str] = {}
    made, told = [], []
    for n in range(calls):
        name, key, value, back = (sentinel(100 * (n + 1) + k) for k in range(4))
        words |= {f"name {n}": name, f"argument {n}": key, f"value {n}": value, f"tool's answer {n}": back}
        identity = f"call{n:05d}"  # nine letters and digits, as Mistral wants them
        made.append({"id": identity, "type": "function", "function": {"name": name, "arguments": form({key: value})}})
        told.append({"role": "tool", "name": name, "tool_call_id": identity, "content": back})
    said: list[dict[str, Any]] = [{"role": "user", "content": sentinel(1)}]
    said += [{"role": "assistant", "content": content, "tool_calls": made}, *told]
    if closed:
        words["answer"] = sentinel(2)
        said += [{"role": "assistant", "content": sentinel(2)}, {"role": "user", "content": sentinel(3)}]
    return words, said


# ---- the clock ----

# Two moments that differ in every part: year, month, day, weekday, hour, minute, half of the day.
MOMENTS = (datetime.datetime(2001, 2, 3, 4, 5, 6), datetime.datetime(2036, 11, 27, 17, 48, 59))


@check(
    "template-adds-no-date",
    "invariance",
    "tokenizer",
    bug="The template writes today's date: rows rendered on the day of training, and each later prompt, differ.",
    remedy="Pass a fixed date while training, or vary it there; take strftime_now out where no date is wanted.",
    reference=(
        "unslothai/unsloth issue 881; sgl-project/sglang issue 3296; huggingface/text-generation-inference issue 2987"
    ),
    looks_at="tokenizer",
)
def template_adds_no_date(tokenizer: OutsideTokenizer) -> Measurement:
    """Conversations, with a system message and without, whose ids or text are others at another time, of the whole and
    of a prompt: rendered at two moments that differ in year, month, day, weekday, hour and minute, by setting what
    datetime and time tell. Exact. A system prompt that is put in at all times alike is told in the note."""
    told = conversations_of(tokenizer)
    if not tokenizer.template and tokenizer.library:
        raise NotApplicable("there is no chat template")
    found, looked = [], 0
    for n, messages in enumerate(told):
        for prompt in (False, True):
            shown = []
            for moment in MOMENTS:
                with clock(moment, tokenizer.given):
                    shown.append((rendered(tokenizer, messages, prompt), tokenizer.render_ids(messages, prompt)))
            looked += 1
            if shown[0] != shown[1]:
                found.append(f"conversation {n}: {_parting(*(text or '' for text, _ in shown))}")
    return with_note(violations(found, looked), _put_in(tokenizer))


def _parting(one: str, other: str) -> str:
    """Where two texts part, in words."""
    at = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), 0)
    return f"{one[max(0, at - 20) : at + 12]!r}, and later {other[at : at + 12]!r}" if one != other else "other ids"


def _put_in(tokenizer: OutsideTokenizer) -> str:
    """What the template says before a first question that no system message precedes, if those are words."""
    text = rendered(tokenizer, sentinels([{"role": "user"}]), True) or ""
    before = text.partition(sentinel(0))[0]
    return f"{before[:60]!r} is put before every talk" if len(traces.words(before)) > 6 else ""


@contextmanager
def clock(at: datetime.datetime, given: Any = None) -> Iterator[None]:
    """Inside, it is `at` for templates: for datetime, date and time, in the standard library's modules, transformers,
    groundup's templates, and the package that `given` is from. Put back afterwards."""
    roots = {"datetime", "transformers", "groundup", type(given).__module__.partition(".")[0]}
    modules = [m for name, m in list(sys.modules.items()) if m is not None and name.partition(".")[0] in roots]
    real = {"datetime": datetime.datetime, "date": datetime.date}
    there = [
        (vars(m), name, vars(m)[name])
        for m in modules
        for name, kind in real.items()
        if hasattr(m, "__dict__") and vars(m).get(name) is kind
    ]
    before = {name: getattr(time, name) for name in ("time", "localtime", "gmtime", "strftime", "ctime")}
    wrong = {"datetime": _moved(real["datetime"], at), "date": _moved(real["date"], at)}
    try:
        for space, name, _ in there:
            space[name] = wrong[name]
        vars(time).update(_stopped(before, at.timestamp()))
        yield
    finally:
        vars(time).update(before)
        for space, name, kind in there:
            space[name] = kind


def _moved(kind: Any, at: datetime.datetime) -> Any:
    """datetime or date as it is, but for what it takes for now."""

    class Like(type):
        def __instancecheck__(cls, one: Any) -> bool:  # those made outside are of this kind too
            return isinstance(one, kind)

    def now(cls: Any, tz: Any = None) -> Any:
        return at.replace(tzinfo=tz)

    timed = kind.__name__ == "datetime"
    named = {"today": classmethod(lambda cls: at if timed else at.date())}
    if timed:
        named |= {"now": classmethod(now), "utcnow": classmethod(lambda cls: at)}
    return Like(kind.__name__, (kind,), named)


def _stopped(real: dict[str, Callable[..., Any]], stamp: float) -> dict[str, Callable[..., Any]]:
    """The functions of the module time, for which it is always `stamp`."""
    return {
        "time": lambda: stamp,
        "localtime": lambda seconds=None: real["localtime"](stamp if seconds is None else seconds),
        "gmtime": lambda seconds=None: real["gmtime"](stamp if seconds is None else seconds),
        "strftime": lambda form, at=None: real["strftime"](form, real["localtime"](stamp) if at is None else at),
        "ctime": lambda seconds=None: real["ctime"](stamp if seconds is None else seconds),
    }
