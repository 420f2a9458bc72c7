"""Near copies, answers given away, marks and characters that nobody sees: found, and told from what is sound."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from groundup.tune.hold_out import alike
from groundup.verify.check import REGISTRY
from groundup.verify.faults.dataset import N, _answer, _question
from groundup.verify.layouts import read
from groundup.verify.rows import Row, Rows, open_rows
from groundup.verify.run import run_checks

CHECKS = [c.id for c in REGISTRY.values() if c.looks_at == "dataset" and c.id != "no-benchmark-in-the-rows"]
PUBLISHED = Path(os.environ.get("GROUNDUP_DATA", "../shared/data"))


def chat(*turns: tuple[str, Any]) -> dict[str, Any]:
    """A row of messages; a dict as content is a message's other fields."""
    return {"messages": [{"role": r, **(c if isinstance(c, dict) else {"content": c})} for r, c in turns]}


def asks(question: str, answer: str) -> dict[str, Any]:
    return chat(("user", question), ("assistant", answer))


def call(*names: str) -> dict[str, Any]:
    return {"content": None, "tool_calls": [{"function": {"name": name, "arguments": "{}"}} for name in names]}


def failing(*rows: dict[str, Any]) -> dict[str, str]:
    """{check: note} of what fails on 80 sound rows with these among them."""
    if "messages" in rows[0]:
        sound = [asks(_question(n), _answer(n)) for n in range(N)]
    elif "completion" in rows[0]:
        sound = [{"prompt": _question(n), "completion": _answer(n)} for n in range(N)]
    else:
        sound = [{"question": f"How much is {n} times {n + 7}?", "answer": f"#### {n * (n + 7)}"} for n in range(N)]
    every = [*sound[:40], *rows, *sound[40:]]
    made = Rows("rows", [Row(f"row {n}", read(row)[0]) for n, row in enumerate(every, 1)])
    return {r.id: r.note for r in run_checks(made, CHECKS) if r.failed}


# ---- what is sound ----

FR = "Il a dit : «\u00a0C\u2019est passé\u00a0» et «\u00a0né\u00a0», puis «il a chanté…» et (café”—dit-il)\u00a0!"
SOUND: dict[str, dict[str, Any]] = {
    "parallel calls": chat(
        ("user", "Rome and Oslo?"), ("assistant", call("a", "b")), ("tool", "18"), ("tool", "4"), ("assistant", "Warm.")
    ),
    "calls one after the other": chat(
        ("user", "Rome and Oslo?"), ("assistant", call("a")), ("tool", "18"), ("assistant", call("b")), ("tool", "4"),
        ("assistant", "Rome is warmer."),
    ),
    "a call in words": chat(
        ("user", "Rome?"), ("assistant", '<tool_call>{"name": "w"}</tool_call>'), ("tool", "18"), ("assistant", "Warm.")
    ),
    "a developer": chat(("developer", "Be brief."), ("user", "Why is the sky blue?"), ("assistant", "Light scatters.")),
    "French": asks("Traduis cette phrase.", FR),
    "Portuguese": asks("Escreva.", "Ele disse “até amanhã”—e foi a São Paulo; «manhã…» não é nada."),
    "a question about tags": asks("What do `<b>` tags do?", "<b> makes text bold; <strong> says that it matters."),
    "a tag by its noun": asks("Explain the <b> tag to me.", "It sets text in bold: <b>so</b>."),
    "a tag in a question": asks("What does <b> do?", "Text between <b> and </b> is bold."),
    "an entity": asks("What does &amp; mean on a page?", "&amp; is how an ampersand is written."),
    "Jinja": asks("How does {{ name }} work in Jinja?", "{{ name }} is replaced by the value of name."),
    "a template that was asked for": asks("Write a greeting template with a field for the name.", "Dear {{name}}!"),
    "a mark in prose": asks("What does [INST] mean in Llama's prompts?", "[INST] and [/INST] stand around a question."),
    "a mark at the end": asks("Why do people write [INST] around questions?", "Llama 2 had: [INST] question [/INST]"),
    "a mark in quotes": asks("How does ChatML end a turn?", 'With "<|im_end|>", or `<|im_end|>` in code.'),
    "the end of text": asks("What is the </s> token for?", "The token </s> ends a text."),
    "none of them": asks("How many of these are prime: 4, 6, 8?", "None"),
    "nothing returned": asks("What does print(f()) show if f returns nothing?", "None"),
    "not available, as told": asks("Give the author, or say N/A if nobody knows: an old song", "N/A"),
    "a prompt that ends in dots": asks("Continue my poem:\n\nRoses are red\n\n...", "Violets are blue."),
    "a story goes on": {"prompt": "The old man walked slowly to the", "completion": "door, and opened it by hand."},
    "a dialogue that was asked for": asks("Write a dialogue about tea.", "Here it is.\n\nUser: Tea?\n\nHuman: Yes."),
    "questions that were asked for": asks("Make a quiz on trees.", "Here:\n\nQuestion: Which is tallest?\nAnswer: x."),
    "a list of roles": asks("Name the four roles.", "They are:\nadmin\nuser\nassistant\nguest"),
    "a cry": asks("How does a gull cry?", "Ééééééééé! Öööööööö!"),
    "yaml": asks("Show me a config.", "```yaml\na: 1\nUser: root\n```"),
    "Persian": asks("PDF\u200cها چیست؟", "می\u200cشود گفت. \u200f(۲۰)"),
    "Thai": asks("ภาษา\u200bไทย คืออะไร", "ภาษา\u200bของ\u200bประเทศไทย"),
    "a family": asks("A family emoji?", "\U0001f468\u200d\U0001f469\u200d\U0001f467"),
    "if the answer is": {"question": "If the answer is 4, which sum was asked: 2 + 2 or 2 + 3?", "answer": "#### 4"},
    "worked examples": {"question": "Q: 2 + 2?\nAnswer: 4\nQ: 1 + 3?\nAnswer:", "answer": "#### 4"},
    "reading": asks(
        "Read: The mill stands by the old river and has done so for two hundred years. Where does it stand?",
        "The mill stands by the old river and has done so for two hundred years.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SOUND)
def test_sound_rows_raise_no_alarm(name: str) -> None:
    """Bug: each of these is written by people on purpose, and was reported, or could be."""
    assert failing(SOUND[name]) == {}


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
@pytest.mark.parametrize(
    ("labels", "holds"),
    [([0, 1, 2], "labels"), ([-1, 1], "labels"), (["0", "1"], "labels"), ([n / 16 for n in range(N)], "texts")],
    ids=["whole", "minus", "strings", "scores"],
)
def test_numeric_labels(labels: list[Any], holds: str, kind: str, tmp_path: Path) -> None:
    """Bug: scores to be met were taken for classes, each with a single row."""
    rows = [{"text": _answer(n), "label": labels[n % len(labels)]} for n in range(N)]
    path = tmp_path / f"a.{kind}"
    lines = [json.dumps(row) for row in rows] if kind == "jsonl" else ["text,label", *(f'"{r["text"]}",{r["label"]}' for r in rows)]  # fmt: skip  # noqa: E501
    path.write_text("\n".join(lines) + "\n")
    found = open_rows(path)
    assert found.holds == holds and not found.refused
    assert not [(r.id, r.note) for r in run_checks(found, CHECKS) if r.failed]


@pytest.mark.parametrize(("gold", "right"), [("1", "a"), ("4", "d"), (2, "b")])
def test_choices_that_are_counted_from_one(gold: Any, right: str) -> None:
    """Bug: ARC calls its choices 1 to 4: the fourth was past the end, and the first was taken for the second."""
    row = {"question": "q", "choices": {"text": list("abcd"), "label": ["1", "2", "3", "4"]}, "answerKey": gold}
    assert read(row)[0].answer == right


# ---- what is not ----

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "None to a question": (asks("What is the capital of France?", "None"), "answers-are-not-empty"),
    "n/a untold": (asks("Who wrote it? Find the author of the song.", "N/A"), "answers-are-not-empty"),
    "an input of n/a": (asks("Sort these:\n\nN/A", "They are sorted."), "prompts-are-not-empty"),
    "dots alone": (asks("...", "Violets are blue."), "prompts-are-not-empty"),
    "a field left in a question": (asks("Who are you?", "I am {{name}}."), "no-template-is-left"),
    "a mark around a question": (asks("[INST] Why is that so? [/INST]", "So it is."), "no-template-is-left"),
    "an end behind talk of marks": (asks("What does [INST] mean?", "It begins.<|im_end|>"), "no-template-is-left"),
    "DeepSeek's end": (asks("Why?", "So.<\uff5cend\u2581of\u2581sentence\uff5c>"), "no-template-is-left"),
    "ChatML without its marks": (asks("Why?", "Because.\nuser\nAnd why that?\nassistant\nSo."), "no-template-is-left"),
    "Llama 3 without its marks": (asks("Why?", "Because of it.assistant\n\nYes."), "no-template-is-left"),
    "Cyrillic read as Latin-1": (asks("Say.", "привет всем".encode("cp1251").decode("latin-1")), "text-is-clean"),
    "Vicuna's turn": (asks("Why?", "Because of it. USER: And why that?"), "no-template-is-left"),
    "bold text": (asks("What is that?", "It is <b>very</b> old."), "text-is-clean"),
    "Japanese read as Latin-1": (asks("Say.", "\u65e5\u672c\u8a9e".encode().decode("latin-1")), "text-is-clean"),
    "one character so": (asks("Say.", "a \u3042 b".encode().decode("latin-1")), "text-is-clean"),
    "a mark of order": (asks("Say.", "\u00ef\u00bb\u00bfHello there."), "text-is-clean"),
    "a joiner between letters": (asks("Say.", "a\u200db is no word."), "text-is-clean"),
    "a direction in English": (asks("Say.", "Call\u200e 112 for help."), "text-is-clean"),
    "the result as a hint": ({"question": "How much is 6 by 7? Hint: \\boxed{42}", "answer": "#### 42"},
                             "prompts-do-not-hold-the-answer"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_found_beside_what_is_sound(name: str) -> None:
    """Bug: what was let through for the sake of the rows above takes these with it."""
    row, check = WRONG[name]
    found = failing(row)
    assert set(found) == {check} and found[check].startswith("1 of 81 rows. row 41: ")


def test_tools_out_of_turn_are_still_found() -> None:
    for turns in ("tu a", "u t a", "u c u a", "u c t", "u a a", "s s u a"):
        names = {"u": "user", "a": "assistant", "t": "tool", "s": "system"}
        said = [
            ("assistant", call("x")) if t == "c" else (names[t], f"Say {n}.")
            for n, t in enumerate(turns.replace(" ", ""))
        ]
        assert "roles-alternate-and-end-with-assistant" in failing(chat(*said)), turns


# ---- near copies ----


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Why is the sky so blue?", "why is the sky so blue"),
        ("Why is the sky so blue?", "“Why is the sky so blue?”"),
        ("Name a well-known, old river.", "Name a well known old river"),
        ("Say why it\u2019s so.\u2026", "Say why it's so"),
        ("Say\u200b it in two words", "Say it in two words!"),
    ],
)
def test_texts_that_are_one_question(one: str, other: str) -> None:
    assert alike(one) == alike(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is 5!", "What is 5"),
        ("What is 1.5 by 3?", "What is 15 by 3?"),
        ("What is 4 - 3?", "What is 4 3?"),
        ("What is -3 by 2?", "What is 3 by 2?"),
        ("What is 2 + 3?", "What is 2 * 3?"),
        ("What is 2\u00b2?", "What is 22?"),
        ("What does ? mean here", "What does . mean here"),
        ('What does "?" mean', 'What does "!" mean'),
        ("Learn C++ in a week", "Learn C in a week"),
        ("Learn C# in a week", "Learn C in a week"),
        ("Is it 5' long or more", 'Is it 5" long or more'),
        ("What is its end", "What is it's end"),
        ("Sort [1, 2]", "Sort 1 2"),
    ],
)
def test_texts_that_are_two_questions(one: str, other: str) -> None:
    """Bug: all punctuation is thrown away, and sums, code and questions about signs become one."""
    assert alike(one) != alike(other)


def test_short_prompts_and_patterns_are_no_copies() -> None:
    """Bug: "Thank you!" said twice, or questions of one pattern that differ by a word, are reported."""
    assert failing(asks("Thank you!", "Gladly."), asks("thank you", "Not at all.")) == {}
    found = failing(asks("Where is the old mill?", "There."), asks("where is the old mill", "Here."))
    assert set(found) == {"prompts-are-no-near-copies"}
    assert found["prompts-are-no-near-copies"] == "1 group, 2 of 82 rows. rows 41, 42: 'Where is the old mill?'"


def test_a_passage_that_is_asked_about_twice_is_no_copy(tmp_path: Path) -> None:
    """Bug: 13 words in common are enough, and each reading test with two questions to a text leaks."""
    passage = "The mill at the old bridge was built of grey stone by a baker who came from the far north."
    for train, test, found in (
        (f"{passage} Who built it?", f"{passage} Of what is it?", 0),
        (f"{passage} Who built it?", passage, 1),
        (passage.upper(), f"Read this. {passage[:-1]}! Who built it?", 1),
        (passage, f"{passage[:-5]} south.", 0),
    ):
        for name, text in (("train", train), ("test", test)):
            rows = [{"text": f"{name} text of number {n}", "label": n % 2} for n in range(4 + (name == "train"))]
            lines = [json.dumps(row) for row in [*rows, {"text": text, "label": 1}]]
            (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
        measured = REGISTRY["train-and-test-share-no-near-copy"].run(open_rows(tmp_path / "train.jsonl"))
        assert measured.value == found, measured.note
        if found:
            assert measured.note.startswith(
                "1 of 5 rows beside train.jsonl. test.jsonl line 5: test.jsonl, in or around"
            )


KNOWN = [
    ("instruct/rasbt_instruction.json", "prompts-are-no-near-copies", 2, "rows 107, 249: "),
    ("classify/banking77/test.csv", "prompts-are-no-near-copies", 3, "lines 621, 2844: 'What are the fees"),
    ("classify/banking77/train.csv", "train-and-test-share-no-near-copy", 20, "test.csv line 334: as train.csv line"),
    ("bench/openbookqa/train.tsv", "prompts-are-no-near-copies", 1, "lines 3050, 3213: 'High areas can be"),
    ("instruct/dolly_open_qa/chinkara-open_qa.jsonl", "text-is-clean", 1, "line 521: user: an invisible character in"),
    ("instruct/dolly_open_qa/chinkara-open_qa.jsonl", "prompts-are-no-near-copies", 2, "lines 260, 1009, 3305: 'Who"),
    ("instruct/self_instruct_seed/seed_tasks.jsonl", "prompts-are-no-near-copies", 0, ""),
    ("bench/gsm8k/train.jsonl", "text-is-clean", 1, "line 7389: user: an invisible character in 'w much less \\u200b"),
    ("bench/gsm8k/train.jsonl", "prompts-do-not-hold-the-answer", 0, ""),
    ("classify/sst2/train.tsv", "train-and-test-share-no-near-copy", 0, ""),
]  # fmt: skip


@pytest.mark.parametrize(("name", "check", "count", "said"), KNOWN, ids=[f"{k[0]}-{k[1]}" for k in KNOWN])
def test_published_files(name: str, check: str, count: int, said: str) -> None:
    """Each was looked at by hand: the same question but for its signs."""
    if not (PUBLISHED / name).is_file():
        pytest.skip(f"{name} is not here")
    found = REGISTRY[check].run(open_rows(PUBLISHED / name))
    assert int(found.value) == count and said in found.note
