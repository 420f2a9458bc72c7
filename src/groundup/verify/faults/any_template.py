"""Faults of other people's chat templates."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tokenizers import processors

from groundup.verify.fault import fault
from groundup.verify.faults.any_tokenizer import BOS, HEAD, TEMPLATE, backend, changed, with_template
from groundup.verify.outside import OutsideTokenizer

# ---- templates ----


def _puts_bos() -> OutsideTokenizer:
    one = backend()
    one.post_processor = processors.TemplateProcessing(f"{BOS} $A", f"{BOS} $A $B", [(BOS, one.token_to_id(BOS))])
    return with_template(inner=one)


@fault("outside-bos-doubled", "bos-is-not-doubled", on=_puts_bos)
def bos_doubled() -> Iterator[None]:
    """The template writes a BOS, and the tokenizer puts one before every text."""
    yield


@fault("outside-bos-each-turn", "turns-are-framed", on=changed("{{ " + HEAD, "{{ bos_token + " + HEAD))
def bos_each_turn() -> Iterator[None]:
    """A BOS before every message, and two before the first."""
    yield


@fault("outside-end-doubled", "turns-are-framed", on=changed("{{ '\\n' }}", "{{ eos_token + '\\n' }}"))
def end_doubled() -> Iterator[None]:
    """An answer is closed by <|im_end|> and by eos, which is <|im_end|> too."""
    yield


@fault(
    "outside-last-answer-open",
    "turns-are-framed",
    on=changed("m['content'] + '<|im_end|>' }}{% endg", "m['content'] + ('' if loop.last else '<|im_end|>') }}{% endg"),
)
def last_answer_open() -> Iterator[None]:
    """The last answer has no end, which is the one that is trained on."""
    yield


@fault(
    "outside-late-system-dropped",
    "every-role-survives-rendering",
    on=changed("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' or m == messages[0] %}"),
)
def late_system_dropped() -> Iterator[None]:
    """A system message is written where it comes first, and dropped later on."""
    yield


@fault(
    "outside-tools-by-name-alone",
    "every-role-survives-rendering",
    on=changed("(tools | tojson)", "(tools | map(attribute='function.name') | list | tojson)"),
)
def tools_by_name_alone() -> Iterator[None]:
    """Tools are listed by their names; what they take and do is lost."""
    yield


@fault(
    "outside-content-escaped",
    "typed-template-stays-text",
    on=changed("{{ m['content'] + '<", "{{ (m['content'] | e) + '<"),
)
def content_escaped() -> Iterator[None]:
    """Contents are escaped as if they were HTML: code is full of &lt;."""
    yield


@fault(
    "outside-users-thoughts-cut",
    "typed-template-stays-text",
    on=changed("{{ m['content'] + '<|im_end|>\\n'", "{{ m['content'].split('</think>')[-1] + '<|im_end|>\\n'"),
)
def users_thoughts_cut() -> Iterator[None]:
    """Reasoning is cut out of every message, what a user quotes included."""
    yield


@fault(
    "outside-template-looks-ahead",
    "render-is-a-prefix",
    on=changed("{{ '\\n' }}", "{{ '\\n' if loop.last else '' }}"),
)
def template_looks_ahead() -> Iterator[None]:
    """A line end after the last answer alone: the next question shifts it."""
    yield


@fault(
    "outside-thoughts-in-the-last-answer-alone",
    "render-is-a-prefix",
    on=changed("{% generation %}", "{% generation %}{{ '<think>\\n\\n</think>\\n\\n' if loop.last else '' }}"),
)
def thoughts_in_the_last_answer_alone() -> Iterator[None]:
    """Empty reasoning is written into the last answer and not into those before (Qwen 3)."""
    yield


@fault(
    "outside-prompt-has-a-line-more",
    "train-ids-equal-serve-ids",
    on=changed("'<|im_start|>assistant\\n'", "'<|im_start|>assistant\\n\\n'"),
)
def prompt_has_a_line_more() -> Iterator[None]:
    """The prompt for an answer ends with two line ends, the training text with one."""
    yield


@fault(
    "outside-prompt-ignored",
    "train-ids-equal-serve-ids",
    on=changed("{% if add_generation_prompt %}", "{% if add_generation_prompt and false %}"),
)
def prompt_ignored() -> Iterator[None]:
    """add_generation_prompt does nothing: the model has to begin its own turn."""
    yield


def _prompt_ends_with_space() -> OutsideTokenizer:
    spaced = TEMPLATE.replace("m['role'] + '\\n'", "m['role'] + ': '").replace("assistant\\n", "assistant: ")
    return with_template(spaced)


@fault("outside-prompt-ends-with-space", "prompt-ids-are-a-prefix", on=_prompt_ends_with_space)
def prompt_ends_with_space() -> Iterator[None]:
    """The prompt ends with a space, which the answer's first token swallows."""
    yield


@fault(
    "outside-end-not-marked",
    "terminator-is-trained",
    on=changed(
        "m['content'] + '<|im_end|>' }}{% endgeneration %}", "m['content'] }}{% endgeneration %}{{ '<|im_end|>' }}"
    ),
)
def end_not_marked() -> Iterator[None]:
    """The block that marks an answer closes before its end: assistant_only_loss never trains it."""
    yield


def _stripping(made: Any) -> Any:
    class Stripping(made):  # type: ignore[misc, valid-type]
        def apply_chat_template(self, conversation: Any, tokenize: bool = True, **more: Any) -> Any:
            if not tokenize:
                return super().apply_chat_template(conversation, tokenize=False, **more)
            text = super().apply_chat_template(conversation, tokenize=False, **{**more, "return_dict": False})
            return self("\n".join(line.strip() for line in text.strip().split("\n")), add_special_tokens=False)

    return Stripping


@fault("outside-ids-of-stripped-text", "ids-are-the-templates-text", on=lambda: with_template(kind=_stripping))
def ids_of_stripped_text() -> Iterator[None]:
    """What the template rendered is stripped before it is tokenized: the prompt's last line end is gone."""
    yield
