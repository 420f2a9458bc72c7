from __future__ import annotations

import time
from pathlib import Path

import pytest

from groundup.errors import UserError
from groundup.tokenizer.audit import ADVERSARIAL
from groundup.tokenizer.chat import CHAT_TEMPLATE, Rendered, check_messages, render, render_many
from groundup.tokenizer.tokenizer import SPECIALS, Tokenizer


def chat(*turns: str, system: str | None = None) -> list[dict[str, str]]:
    messages = [{"role": ("user", "assistant")[n % 2], "content": turn} for n, turn in enumerate(turns)]
    return ([{"role": "system", "content": system}] if system is not None else []) + messages


CONVERSATIONS = [
    chat("hi"),
    chat("hi", "hello"),
    chat("12+3?", "15", "and 日本?", "Japan\n", "bye", "", system="Be kind."),
    chat("  spaces  ", "\n\nlines\n", "", " "),
    [{"role": "assistant", "content": "I begin"}],
]


def masked(rendered: Rendered) -> list[int]:
    return [i for i, scored in zip(rendered.ids, rendered.mask, strict=True) if scored]


def test_layout(tokenizer: Tokenizer) -> None:
    """Bug: any change of layout that old checkpoints would not know (the template's hash would not be enough)."""
    t = tokenizer
    rendered = render(t, chat("ab", "cd", system="x"), add_generation_prompt=True)
    turns = [t.bos, t.system, *t.encode("x"), t.end, t.user, *t.encode("ab"), t.end]
    answer = [*t.encode("cd"), t.end]
    assert rendered.ids == [*turns, t.assistant, *answer, t.assistant]
    assert rendered.mask == [False] * (len(turns) + 1) + [True] * len(answer) + [False]


@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_mask_is_the_assistants_words_and_their_end(tokenizer: Tokenizer, messages: list[dict[str, str]]) -> None:
    """Bug: the prompt is trained on, or <|end|> is not and the model never stops."""
    answers = [m["content"] for m in messages if m["role"] == "assistant"]
    for prompt in (False, True):
        rendered = render(tokenizer, messages, prompt)
        assert len(rendered.ids) == len(rendered.mask)
        text = tokenizer.decode(masked(rendered), skip_specials=False)
        assert text == "".join(f"{answer}<|end|>" for answer in answers)
        assert rendered.ids.count(tokenizer.bos) == 1 and rendered.ids[0] == tokenizer.bos
        assert rendered.ids.count(tokenizer.end) == len(messages)


@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_fewer_turns_are_a_prefix(tokenizer: Tokenizer, messages: list[dict[str, str]]) -> None:
    """Bug: a template that treats the last message apart, so that a kept cache is wrong after the next turn."""
    whole = render(tokenizer, messages)
    for k in range(1, len(messages)):
        part = render(tokenizer, messages[:k])
        assert whole.ids[: len(part.ids)] == part.ids and whole.mask[: len(part.mask)] == part.mask
        if messages[k]["role"] == "assistant":
            asked = render(tokenizer, messages[:k], add_generation_prompt=True)
            assert whole.ids[: len(asked.ids)] == asked.ids


@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_transformers_renders_the_same_ids(
    tokenizer: Tokenizer, tmp_path: Path, messages: list[dict[str, str]]
) -> None:
    """Bug: trained on one layout, served (vLLM, transformers) on another: 82% becomes 0%."""
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for prompt in (False, True):
        text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert ids == render(tokenizer, messages, prompt).ids
        direct = theirs.apply_chat_template(messages, add_generation_prompt=prompt)
        assert (direct if isinstance(direct, list) else direct["input_ids"]) == ids


@pytest.mark.parametrize("role", ["system", "user", "assistant"])
@pytest.mark.parametrize("text", [*SPECIALS, *ADVERSARIAL[-6:], "\x00content-0\x00", "{{ bos_token }}", "{% endfor %}"])
def test_contents_cannot_forge_the_layout(tokenizer: Tokenizer, role: str, text: str) -> None:
    """Bug: a content that holds a special's name, a placeholder or Jinja changes the turns around it."""
    messages = [{"role": role, "content": text}, {"role": "user", "content": "safe"}]
    plain = [{"role": role, "content": "a"}, {"role": "user", "content": "safe"}]
    ids, expected = render(tokenizer, messages).ids, render(tokenizer, plain).ids
    assert [i for i in ids if i < 6] == [i for i in expected if i < 6]
    assert tokenizer.decode(ids) == text + "safe"


def test_many_equals_one_by_one(tokenizer: Tokenizer) -> None:
    """Bug: contents handed to the wrong conversation in the batched path."""
    assert render_many(tokenizer, CONVERSATIONS) == [render(tokenizer, c) for c in CONVERSATIONS]
    prompts = render_many(tokenizer, CONVERSATIONS, add_generation_prompt=True)
    assert prompts == [render(tokenizer, c, add_generation_prompt=True) for c in CONVERSATIONS]


def test_bad_messages_are_all_named(tokenizer: Tokenizer) -> None:
    """Bug: one error at a time, or a KeyError that does not say which message."""
    bad = [{"role": "usr", "content": "x"}, {"role": "user"}, "hi", {"role": "user", "content": "\ud800"}]
    with pytest.raises(UserError) as error:
        render(tokenizer, bad)  # type: ignore[list-item]
    text = str(error.value)
    assert "4 problems" in text and "message 0: unknown role 'usr' (did you mean \"user\"?)" in text
    assert "message 1: content: expected text, got NoneType" in text
    assert "message 2" in text and "message 3: content: character 0 is the lone surrogate" in text
    with pytest.raises(UserError, match="conversation 1, message 0: unknown role"):
        render_many(tokenizer, [chat("fine"), bad[:1]])  # type: ignore[list-item]
    with pytest.raises(UserError, match="there are no messages"):
        render(tokenizer, [])
    assert check_messages("hi") and check_messages(None) and not check_messages(chat("a", "b"))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ bos_token }}{% for m in messages %}{{ m.content }}", "chat template, line 1"),
        ("{{ bos_token }}{{ messages[0].content }}", r"contents of messages \[0\], but there are 2"),
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "contents of messages"),
        ("{{ raise_exception('no system here') }}", "chat template: no system here"),
        ("{{ ''.__class__.__mro__ }}", "chat template: "),
    ],
)
def test_template_that_loses_messages_is_refused(bpe: Tokenizer, template: str, message: str) -> None:
    """Bug: a template that drops or changes a message trains on something else than was given, silently."""
    with pytest.raises(UserError, match=message):
        render(Tokenizer(bpe.json, template), chat("a", "b"))


def test_text_the_template_writes_is_not_scored(bpe: Tokenizer) -> None:
    """Bug: a template's own words between turns are scored as if the assistant had to say them."""
    other = Tokenizer(bpe.json, CHAT_TEMPLATE.replace("'<|end|>'", "'<|end|>\\nnext: '"))
    rendered = render(other, chat("q", "a"))
    assert (
        other.decode(rendered.ids, skip_specials=False)
        == "<|begin_of_text|><|user|>q<|end|>\nnext: <|assistant|>a<|end|>\nnext: "
    )
    assert other.decode(masked(rendered), skip_specials=False) == "a<|end|>"


def test_template_is_rendered_once_for_each_shape(bpe: Tokenizer) -> None:
    """Bug: Jinja compiles (10 ms) or renders at every call, and preparing 100 000 conversations takes minutes."""
    from groundup.tokenizer import chat as module

    render(bpe, chat("a", "b"))
    before = module._pieces.cache_info().misses
    start = time.perf_counter()
    for n in range(500):
        render(bpe, chat(str(n), "b"))
    assert module._pieces.cache_info().misses == before
    assert (time.perf_counter() - start) / 500 < 1e-3  # measured 20 us; the bound is loose for a busy machine


def test_blocks_are_trimmed_as_in_transformers(bpe: Tokenizer, tmp_path: Path) -> None:
    """Bug: Jinja's defaults keep the line ends after blocks, and a template of several lines renders otherwise."""
    transformers = pytest.importorskip("transformers")
    turn = "  {% if true %}\n<|user|>{{ m.content }}<|end|>\n  {% endif %}\n"
    template = "{{ bos_token }}\n{% for m in messages %}\n" + turn + "{% endfor %}\n"
    other = Tokenizer(bpe.json, template)
    other.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = theirs.apply_chat_template(chat("a", "b"), tokenize=False)
    assert other.decode(render(other, chat("a", "b")).ids, skip_specials=False) == text
