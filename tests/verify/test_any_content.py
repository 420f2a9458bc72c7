"""What templates do to contents, calls and dates; tokenizers that refuse what they do not know."""

from __future__ import annotations

import datetime
import time
from typing import Any

import pytest
from hf_folders import TEMPLATES, kinds

from groundup.verify.check import REGISTRY
from groundup.verify.checks import any_content
from groundup.verify.faults.any_content import ASKED
from groundup.verify.faults.any_tokenizer import END, TEMPLATE, Plain, changed, with_template
from groundup.verify.outside import OutsideTokenizer
from groundup.verify.run import Result, run_checks

pytest.importorskip("transformers")

CONTENT = ["contents-come-through-whole", "tool-calls-are-rendered", "template-adds-no-date"]
TOKENIZERS = [one.id for one in REGISTRY.values() if "tokenizer" in one.ways()]


def results(target: OutsideTokenizer, only: list[str]) -> dict[str, Result]:
    return {one.id: one for one in run_checks(target, only)}


def failed(target: OutsideTokenizer, only: list[str] = TOKENIZERS) -> dict[str, str]:
    return {one.id: one.note for one in results(target, only).values() if one.failed}


# ---- templates ----


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name != "dated"])
def test_published_kinds_of_templates_pass(name: str) -> None:
    """Bug: trimmed ends, renamed roles, a system prompt in the first question, or a default one, taken for a loss."""
    made, roles = kinds()["llama3"]
    found = results(with_template(TEMPLATES[name], made, **{"pad_token": None, **roles}), CONTENT)
    assert not [(one.id, one.note) for one in found.values() if one.failed]
    assert found["contents-come-through-whole"].passed and found["template-adds-no-date"].passed
    assert found["tool-calls-are-rendered"].skipped == "the template speaks of no tools"
    told = "is put before every talk" in found["template-adds-no-date"].note
    assert told == (name == "chatml")  # always the same: told, and no finding


def test_what_is_cut_is_told_with_its_place() -> None:
    note = failed(changed(ASKED, ASKED.replace("]", "][:2000]", 1))())["contents-come-through-whole"]
    assert "2,100 characters, system, message 0: whole up to character 2,000 of " in note
    note = failed(changed("{% for m in messages %}", "{% for m in messages[-8:] %}")())["contents-come-through-whole"]
    assert note.startswith("113 of 121 messages, from 0 on to 112, are not there; 112 of 120 messages")


@pytest.mark.parametrize(
    "calls",
    [
        "{% for c in m.tool_calls %}{{ c.function.name }}({{ c.function.arguments | tojson }}){% endfor %}",
        "{% for c in m.tool_calls %}{{ c.function.name + c.function.arguments }}{% endfor %}",  # JSON text alone
        "{% if m.tool_calls | length > 1 %}{{ raise_exception('one call') }}{% endif %}"
        "{{ m.tool_calls[0].function | tojson }}",
    ],
    ids=["object", "text", "one"],
)
def test_templates_write_calls_in_their_own_ways(calls: str) -> None:
    """Bug: the form of the arguments, or a refusal of two calls (Llama 3.1), taken for calls that are lost."""
    own = "{% if m.tool_calls %}" + calls + "{% endif %}"
    loop = "{% for c in m['tool_calls'] or [] %}{{ c['function'] | tojson + '\\n' }}{% endfor %}"
    assert loop in TEMPLATE
    found = results(with_template(TEMPLATE.replace(loop, own)), ["tool-calls-are-rendered"])["tool-calls-are-rendered"]
    assert found.passed, found.note


def test_the_clock_is_set_for_every_way_of_asking_and_put_back() -> None:
    """Bug: a date that is asked for in another way passes; the clock of the whole program is left wrong."""
    real = datetime.datetime, datetime.date, time.time, time.strftime
    with any_content.clock(any_content.MOMENTS[0], object()):
        shown = (
            datetime.datetime.now().year, datetime.datetime.today().month, datetime.date.today().day,
            time.localtime().tm_year, time.strftime("%Y-%m-%d"), time.gmtime().tm_year,
        )  # fmt: skip
        assert isinstance(real[0](1999, 1, 1), datetime.datetime) and isinstance(real[1](1999, 1, 1), datetime.date)
        assert datetime.datetime(1999, 1, 2).strftime("%d") == "02"
    assert shown == (2001, 2, 3, 2001, "2001-02-03", 2001)
    assert (datetime.datetime, datetime.date, time.time, time.strftime) == real
    with pytest.raises(KeyError), any_content.clock(any_content.MOMENTS[1]):
        raise KeyError
    assert (datetime.datetime, datetime.date, time.time, time.strftime) == real


class Dated(Plain):
    """Somebody's own code that writes the date."""

    chat_template = "own"

    def apply_chat_template(self, messages: list[dict[str, Any]], add_generation_prompt: bool = False) -> str:
        said = "".join(f"<|im_start|>{m['role']}\n{m['content']}{END}\n" for m in messages)
        return f"{datetime.date.today():%d %B} " + said + "<|im_start|>assistant\n" * add_generation_prompt


def test_a_date_that_own_code_writes_is_found() -> None:
    assert "03 February" in failed(OutsideTokenizer.of(Dated()), CONTENT)["template-adds-no-date"]


# ---- tokenizers that refuse ----

KNOWN = "\n ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!&',-.:;?$3"


class Characters:
    """As in nanoGPT: one id a character of its text, and a KeyError for any other."""

    def __init__(self, alphabet: str = KNOWN) -> None:
        self.ids = {c: i for i, c in enumerate(sorted(set(alphabet)))}
        self.characters = {i: c for c, i in self.ids.items()}

    def encode(self, text: str) -> list[int]:
        return [self.ids[c] for c in text]

    def decode(self, ids: list[int]) -> str:
        return "".join(self.characters[i] for i in ids)


class Sized(Characters):
    def __len__(self) -> int:
        return len(self.ids)


class Loud(Sized):
    def encode(self, text: str) -> list[int]:
        if unknown := set(text) - set(self.ids):
            raise ValueError(f"no token for {min(unknown)!r}")
        return super().encode(text)


class Guarded:
    """As tiktoken's encode by default: the name of a special token in a text is an error."""

    n_vocab, special_tokens = 257, {"<|endoftext|>": 256}

    def encode(self, text: str) -> list[int]:
        if "<|endoftext|>" in text:
            raise ValueError("disallowed special token")
        return list(text.encode())

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode("utf-8", "replace")


@pytest.mark.parametrize("made", [Characters, Sized, Loud, Guarded])
def test_a_loud_refusal_is_no_finding(made: Any) -> None:
    """Bug: a KeyError or a ValueError for text that it does not know broke the checks off, and they failed."""
    found = results(OutsideTokenizer.of(made()), TOKENIZERS)
    assert not [(one.id, one.note) for one in found.values() if one.failed]
    passed = {one.id for one in found.values() if one.passed}
    assert passed >= {"round-trip", "batch-encodes-alike", "characters-are-covered", "prompt-ids-are-a-prefix"}
    if made is Characters:  # which has no size to be in
        assert found["ids-in-range"].skipped == "it does not tell how many ids it has"
    else:
        assert "ids-in-range" in passed
    if made is not Guarded:
        assert "1,068 are refused with an error" in found["characters-are-covered"].note


def test_what_is_left_is_still_looked_at() -> None:
    """Bug: a tokenizer that refuses a character is excused from everything."""

    class Lossy(Loud):
        def decode(self, ids: list[int]) -> str:
            return super().decode(ids).replace(" .", ".").replace("q", "")

    found = failed(OutsideTokenizer.of(Lossy()))
    assert set(found) == {"round-trip", "characters-are-covered"} and "U+0071" in found["characters-are-covered"]


def test_one_that_refuses_everything_is_skipped_with_its_words() -> None:
    class Closed(Sized):
        def encode(self, text: str) -> list[int]:
            raise KeyError("closed")

    found = results(OutsideTokenizer.of(Closed()), ["round-trip", "characters-are-covered", "ids-in-range"])
    assert all("KeyError: 'closed'" in (one.skipped or "") for one in found.values())
