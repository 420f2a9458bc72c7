"""Faults of other people's chat templates: what is said is cut, dropped, run together, or dated."""

from __future__ import annotations

from collections.abc import Iterator

from groundup.verify.fault import fault
from groundup.verify.faults.any_tokenizer import TEMPLATE, changed, with_template

SAID = "m['content'] + '<|im_end|>' }}{% endgeneration %}"  # an answer
ASKED = "{{ m['content'] + '<|im_end|>\\n' }}"  # a question, or a system message
LOOP = "{% for m in messages %}"
CALLS = "{% for c in m['tool_calls'] or [] %}"


@fault("template-cuts-at-2000", "contents-come-through-whole", on=changed(ASKED, ASKED.replace("]", "][:2000]", 1)))
def cuts_at_2000() -> Iterator[None]:
    """Questions are cut at 2,000 characters."""
    yield


@fault("template-cuts-late", "contents-come-through-whole", on=changed(SAID, SAID.replace("]", "][:65535]", 1)))
def cuts_late() -> Iterator[None]:
    """Answers are cut at 65,535 characters: only the longest lose their end."""
    yield


@fault("template-truncates-a-word", "contents-come-through-whole", on=changed(
    ASKED, "{{ m['content'] | truncate(8000) + '<|im_end|>\\n' }}"))  # fmt: skip
def truncates_a_word() -> Iterator[None]:
    """Jinja's truncate ends long questions with three dots."""
    yield


@fault("template-keeps-eight-turns", "contents-come-through-whole", on=changed(
    LOOP, "{% for m in messages[-8:] %}"))  # fmt: skip
def keeps_eight_turns() -> Iterator[None]:
    """Of a long talk only the last eight messages are written."""
    yield


@fault("template-forgets-the-middle", "contents-come-through-whole", on=changed(
    LOOP, "{% for m in (messages if messages | length < 65 else messages[:1] + messages[-63:]) %}"))  # fmt: skip
def forgets_the_middle() -> Iterator[None]:
    """Past 64 messages the first and the last 63 are kept."""
    yield


@fault("template-drops-long-system", "contents-come-through-whole", on=changed(
    LOOP, "{% for m in messages if m['role'] != 'system' or m['content'] | length <= 100 %}"))  # fmt: skip
def drops_long_system() -> Iterator[None]:
    """A system message of more than 100 characters is dropped."""
    yield


@fault("template-joins-paragraphs", "contents-come-through-whole", on=changed(
    SAID, SAID.replace("]", "].replace('\\n\\n', '\\n')", 1)))  # fmt: skip
def joins_paragraphs() -> Iterator[None]:
    """Two line ends become one in answers: the model never learns to write paragraphs."""
    yield


@fault("template-strips-lines", "contents-come-through-whole", on=changed(
    SAID, "m['content'].split('\\n') | map('trim') | join('\\n') + '<|im_end|>' }}{% endgeneration %}"))  # fmt: skip
def strips_lines() -> Iterator[None]:
    """Each line of an answer is stripped: code loses its indentation."""
    yield


@fault("template-cuts-the-last-question", "contents-come-through-whole", on=changed(
    ASKED, "{{ (m['content'][:4096] if loop.last else m['content']) + '<|im_end|>\\n' }}"))  # fmt: skip
def cuts_the_last_question() -> Iterator[None]:
    """Only a question that nothing follows is cut, at 4,096 characters: in serving, and not in training."""
    yield


@fault("template-drops-calls", "tool-calls-are-rendered", on=changed(CALLS, "{% for c in [] %}"))
def drops_calls() -> Iterator[None]:
    """Tools are listed, and what is called is never written."""
    yield


@fault("template-writes-the-first-call", "tool-calls-are-rendered", on=changed(
    CALLS, "{% for c in (m['tool_calls'] or [])[:1] %}"))  # fmt: skip
def writes_the_first_call() -> Iterator[None]:
    """Of two calls in a turn only the first is written, and both are answered."""
    yield


@fault(
    "template-calls-without-arguments",
    "tool-calls-are-rendered",
    on=changed("c['function'] | tojson", "c.function.name"),
)
def calls_without_arguments() -> Iterator[None]:
    """Calls are written by their names, without arguments."""
    yield


@fault("template-writes-today", "template-adds-no-date", on=lambda: with_template(
    "{{ 'Today is ' + strftime_now('%d %b %Y') + '.\\n' }}" + TEMPLATE))  # fmt: skip
def writes_today() -> Iterator[None]:
    """The date of the day is put before every conversation (Llama 3.2, Mistral Small)."""
    yield


@fault("template-tells-the-hour", "template-adds-no-date", on=changed(
    ASKED,
    "{{ m['content'] + (' (evening)'"
    " if m['role'] == 'system' and strftime_now('%H') | int > 16 else '') + '<|im_end|>\\n' }}",
))  # fmt: skip
def tells_the_hour() -> Iterator[None]:
    """In the evening the system message says so: rows rendered by day and by night differ."""
    yield


@fault("template-forgets-in-serving", "contents-come-through-whole", on=changed(
    LOOP, "{% for m in (messages[-20:] if add_generation_prompt else messages) %}"))  # fmt: skip
def forgets_in_serving() -> Iterator[None]:
    """Prompts hold the last twenty messages, rows of training all."""
    yield


@fault("template-cuts-what-tools-say", "contents-come-through-whole", on=changed(
    ASKED, "{{ (m['content'][:1000] if m['role'] == 'tool' else m['content']) + '<|im_end|>\\n' }}"))  # fmt: skip
def cuts_what_tools_say() -> Iterator[None]:
    """A tool's answer is cut at 1,000 characters."""
    yield


@fault("template-lowers-answers", "contents-come-through-whole", on=changed(SAID, SAID.replace("]", "] | lower", 1)))
def lowers_answers() -> Iterator[None]:
    """Answers are written in small letters."""
    yield


@fault("template-tools-for-system", "every-role-survives-rendering", on=changed(
    LOOP, "{% for m in messages if not (tools and m['role'] == 'system') %}"))  # fmt: skip
def tools_for_system() -> Iterator[None]:
    """Where tools are listed, the system message gives way to them."""
    yield
