"""Faults of rows, planted in files: a small sound file is written with one flaw in it, mostly in a single row."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from groundup.recipe.schema import SftSource
from groundup.tune import hold_out
from groundup.verify.fault import fault, swapped
from groundup.verify.rows import Rows, open_rows, rows_of

N = 80  # rows of a sound file
PLACES = ("Bergen", "Cádiz", "Łódź", "Nîmes", "Porto", "Graz", "Turku", "Split")
GOODS = ("bread", "tea", "wool", "salt", "paper", "honey", "rope", "glass", "soap", "lamps")

Flaw = Callable[[list[dict[str, Any]]], None]


def flaw(rows: list[dict[str, Any]]) -> None:
    """What is done to sound rows; a fault swaps this."""


def damage(text: str) -> str:
    """What is done to the text of the file; a fault swaps this."""
    return text


def planted(wrong: Flaw) -> AbstractContextManager[None]:
    """`wrong` is done to every file written inside."""
    return swapped(sys.modules[__name__], flaw=wrong)


# ---- sound rows ----


def _question(n: int) -> str:
    return f"Where can one buy {GOODS[n % 10]} in {PLACES[n // 10]}?"


def _answer(n: int) -> str:
    """One to six sentences, of another length for every n."""
    more = (
        "It opens at eight.",
        f"Ask there for {GOODS[(n + 3) % 10]} as well.",
        "On Sundays it is closed.",
        "The way is short, along the river and past the mill.",
        "Bring a bag.",
    )
    first = f"At the market of {PLACES[n // 10]}, behind the {n + 2}nd lamp, there is a stall with {GOODS[n % 10]}."
    return " ".join([first, *more[: n % 6]])


def _worse(n: int) -> str:
    """As often longer than the answer as shorter."""
    return f"I do not care about {GOODS[n % 10]}." + " Go away and look for it yourself, as all of us have to." * (
        9 * (n % 2)
    )


def _write(name: str, rows: list[dict[str, Any]], names: bool = True) -> str:
    """The text of a file, by its ending; `names` False: a table without a first line of names."""
    if name.endswith(".json"):
        return json.dumps(rows)
    if name.endswith(".jsonl"):
        return "".join(json.dumps(row) + "\n" for row in rows)
    out = io.StringIO()
    table = csv.writer(out, delimiter="\t" if name.endswith(".tsv") else ",", lineterminator="\n")
    table.writerows([*([list(rows[0])] if names else []), *(list(row.values()) for row in rows)])
    return out.getvalue()


def _opened(name: str, rows: list[dict[str, Any]], names: bool = True, **beside: list[dict[str, Any]]) -> Rows:
    """The rows, with the flaw in, written and opened again."""
    flaw(rows)
    with tempfile.TemporaryDirectory(prefix="groundup-verify-") as folder:
        for other, its in beside.items():
            Path(folder, f"{other}{Path(name).suffix}").write_text(_write(name, its, names))
        path = Path(folder, name)
        path.write_text(damage(_write(name, rows, names)), encoding="utf-8", errors="surrogatepass")
        return open_rows(path)


def instructions() -> Rows:
    return _opened("alpaca.json", [{"instruction": _question(n), "input": "", "output": _answer(n)} for n in range(N)])


def chats() -> Rows:
    """Messages; every third row is a longer conversation, every fifth has a system message."""
    rows = []
    for n in range(N):
        said = [("system", "You know every market.")] if n % 5 == 0 else []
        said += [("user", _question(n)), ("assistant", _answer(n))]
        said += [("user", "And what does it cost there?"), ("assistant", f"{n + 3} crowns.")] if n % 3 == 0 else []
        messages = [{"role": role, "content": content} for role, content in said]
        rows.append({"messages": messages, "split": "test" if n % 10 == 9 else "train"})
    return _opened("chats.jsonl", rows)


def problems() -> Rows:
    rows = [{"question": f"How much is {n} times {n + 7}?", "answer": f"It is.\n#### {n * (n + 7)}"} for n in range(N)]
    return _opened("problems.jsonl", rows)


def pairs() -> Rows:
    rows = [{"prompt": _question(n), "chosen": _answer(n), "rejected": _worse(n)} for n in range(N)]
    return _opened("pairs.jsonl", rows)


def transcripts() -> Rows:
    """Pairs as Anthropic publishes them: two whole conversations."""
    rows = []
    for n in range(N):
        before = (
            f"\n\nHuman: Hello, this is visitor {n}.\n\nAssistant: Welcome!\n\nHuman: {_question(n)}\n\nAssistant: "
        )
        rows.append({"chosen": before + _answer(n), "rejected": before + _worse(n)})
    return _opened("transcripts.jsonl", rows)


def labels() -> Rows:
    """A table of two columns, without names."""
    rows = [{"label": ("ask", "tell")[n % 2], "text": _question(n) if n % 2 == 0 else _answer(n)} for n in range(N)]
    return _opened("labels.tsv", rows, names=False)


def labelled_split() -> Rows:
    """train.csv with test.csv beside it; the flaw is done to train.csv."""
    rows = [{"text": _question(n), "category": GOODS[n % 10]} for n in range(N)]
    return _opened("train.csv", rows[:60], test=rows[60:])


def choices() -> Rows:
    rows = [
        {"question": f"What is {n} plus 2?", "choices": [f"{n + k}" for k in (1, 2, 3)], "answer": 1} for n in range(N)
    ]
    return _opened("choices.json", rows)


def asked_twice() -> Rows:
    """A recipe's source in which every prompt has two answers."""
    rows = [{"instruction": _question(n % N), "input": "", "output": f"{_answer(n % N)} {n}."} for n in range(2 * N)]
    with tempfile.TemporaryDirectory(prefix="groundup-verify-") as folder:
        Path(folder, "twice.json").write_text(json.dumps(rows))
        found = rows_of([SftSource(path="twice.json")], Path(folder))
    assert found is not None
    return found


SOUND: tuple[Callable[[], Rows], ...] = (
    instructions,
    chats,
    problems,
    pairs,
    transcripts,
    labels,
    labelled_split,
    choices,
)


# ---- faults ----


@fault("row-without-its-answer", "rows-are-readable", on=instructions)
def row_without_its_answer() -> Iterator[None]:
    """One row in the middle has no output."""
    with planted(lambda rows: rows[40].pop("output")):
        yield


@fault("last-line-cut-off", "rows-are-readable", on=chats)
def last_line_cut_off() -> Iterator[None]:
    """The file was cut within its last line, as by a full disk."""
    with swapped(sys.modules[__name__], damage=lambda text: text[:-30]):
        yield


@fault("pair-among-conversations", "rows-are-readable", on=instructions)
def pair_among_conversations() -> Iterator[None]:
    """One row is a preference pair: a trainer of conversations learns its output, or breaks off after hours."""
    with planted(lambda rows: rows[7].update(chosen="Yes.", rejected="No.")):
        yield


@fault("accent-decoded-twice", "text-is-clean", on=instructions)
def accent_decoded_twice() -> Iterator[None]:
    """One row went through Latin-1 once too often: CÃ¡diz."""

    def wrong(rows: list[dict[str, Any]]) -> None:
        rows[13]["output"] = rows[13]["output"].encode().decode("cp1252")

    with planted(wrong):
        yield


@fault("backslash-read-as-form-feed", "text-is-clean", on=problems)
def backslash_read_as_form_feed() -> Iterator[None]:
    r"""A \frac of LaTeX was unescaped: a form feed, and "rac", in the last row."""
    with planted(lambda rows: rows[-1].update(question=rows[-1]["question"] + " Write it as \frac{a}{b}.")):
        yield


@fault("entity-left-in-labelled-text", "text-is-clean", on=labels)
def entity_left_in_labelled_text() -> Iterator[None]:
    """One text was cut from a page, and its ampersand was not unescaped."""
    with planted(lambda rows: rows[33].update(text="Bread &amp; butter are sold here.")):
        yield


@fault("end-of-turn-kept", "no-template-is-left", on=chats)
def end_of_turn_kept() -> Iterator[None]:
    """The last answer still has the end of turn of the model that wrote it."""

    def wrong(rows: list[dict[str, Any]]) -> None:
        rows[-1]["messages"][-1]["content"] += "<|im_end|>"

    with planted(wrong):
        yield


@fault("next-turn-kept", "no-template-is-left", on=pairs)
def next_turn_kept() -> Iterator[None]:
    """A chosen answer goes on with a turn of the user, which the model made up."""
    with planted(lambda rows: rows[41].update(chosen="At the market.\n\nHuman: Thanks!\n\nAssistant: My pleasure.")):
        yield


@fault("input-says-noinput", "prompts-are-not-empty", on=instructions)
def input_says_noinput() -> Iterator[None]:
    """The empty input of one row is written out, and the model is asked about <noinput>."""
    with planted(lambda rows: rows[20].update(input="<noinput>")):
        yield


@fault("prompt-again-in-capitals", "prompts-do-not-repeat", on=instructions)
def prompt_again_in_capitals() -> Iterator[None]:
    """The last row asks what the fourth asks, in capitals and with a line break: no exact comparison sees it."""
    with planted(lambda rows: rows[-1].update(instruction=rows[3]["instruction"].upper().replace(" ", "\n ", 1))):
        yield


@fault("test-text-in-train", "train-and-test-share-no-prompt", on=labelled_split)
def test_text_in_train() -> Iterator[None]:
    """The last row of train.csv is one of test.csv, but for a space at its end."""
    with planted(lambda rows: rows[-1].update(text=_question(65) + " ")):
        yield


@fault("opening-on-both-sides", "train-and-test-share-no-prompt", on=chats)
def opening_on_both_sides() -> Iterator[None]:
    """A longer conversation of the test opens as one of train does: its first answer was trained on."""

    def wrong(rows: list[dict[str, Any]]) -> None:
        rows[39]["messages"][0]["content"] = rows[41]["messages"][0]["content"]

    with planted(wrong):
        yield


@fault("split-by-whole-rows", "train-and-test-share-no-prompt", on=asked_twice)
def split_by_whole_rows() -> Iterator[None]:
    """What is held out is chosen by prompt and answer: of a prompt with two answers one trains and one validates."""
    with swapped(hold_out, prompt_of=repr):
        yield


@fault("problem-with-two-results", "one-prompt-one-answer", on=problems)
def problem_with_two_results() -> Iterator[None]:
    """The same problem stands there with a second result."""
    with planted(lambda rows: rows[50].update(question=rows[12]["question"], answer="So.\n#### 229")):
        yield


@fault("answer-of-white-space", "answers-are-not-empty", on=chats)
def answer_of_white_space() -> Iterator[None]:
    """The first answer of one longer conversation is a line break and a space that does not break."""

    def wrong(rows: list[dict[str, Any]]) -> None:
        rows[6]["messages"][1]["content"] = "\n\u00a0"

    with planted(wrong):
        yield


@fault("rejected-says-na", "answers-are-not-empty", on=pairs)
def rejected_says_na() -> Iterator[None]:
    """One rejected answer is what a table wrote for nothing: it is beaten without being looked at."""
    with planted(lambda rows: rows[-1].update(rejected=" N/A ")):
        yield


@fault("prompt-kept-in-the-answer", "answers-do-not-echo-the-prompt", on=pairs)
def prompt_kept_in_the_answer() -> Iterator[None]:
    """One chosen answer was decoded with its prompt."""
    with planted(lambda rows: rows[30].update(chosen=f"{rows[30]['prompt']}\n{rows[30]['chosen']}")):
        yield


@fault("answers-cut-at-a-length", "answers-are-not-cut-at-a-length", on=instructions)
def answers_cut_at_a_length() -> Iterator[None]:
    """Answers were generated with too small a limit: those of more than 183 characters stop within a sentence."""

    def wrong(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            row["output"] = row["output"][:183]

    with planted(wrong):
        yield


@fault("user-speaks-twice", "roles-alternate-and-end-with-assistant", on=chats)
def user_speaks_twice() -> Iterator[None]:
    """An answer in the middle of one conversation is missing."""
    with planted(lambda rows: rows[36]["messages"].pop(1)):
        yield


@fault("conversation-ends-with-the-user", "roles-alternate-and-end-with-assistant", on=chats)
def conversation_ends_with_the_user() -> Iterator[None]:
    """The last conversation thanks and ends."""
    with planted(lambda rows: rows[-1]["messages"].append({"role": "user", "content": "Thanks!"})):
        yield


@fault("chosen-equals-rejected", "chosen-differs-from-rejected", on=pairs)
def chosen_equals_rejected() -> Iterator[None]:
    """One pair says the same twice, but for a space and a capital."""
    with planted(lambda rows: rows[40].update(rejected=" " + rows[40]["chosen"].upper())):
        yield


@fault("rejected-cut-a-turn-later", "pairs-share-their-prompt", on=transcripts)
def rejected_cut_a_turn_later() -> Iterator[None]:
    """One rejected conversation goes on for an exchange: it is not the answer that is compared."""
    with planted(lambda rows: rows[22].update(rejected=rows[22]["chosen"] + "\n\nHuman: Sure?\n\nAssistant: No.")):
        yield


@fault("pair-and-its-mirror", "pairs-are-not-swapped", on=pairs)
def pair_and_its_mirror() -> Iterator[None]:
    """The last pair is an earlier one the other way round."""
    with planted(lambda rows: rows[-1].update(rows[8], chosen=rows[8]["rejected"] + " ", rejected=rows[8]["chosen"])):
        yield


@fault("longer-is-better", "length-gives-nothing-away", on=pairs)
def longer_is_better() -> Iterator[None]:
    """In nine pairs of ten the longer answer is the chosen one."""

    def wrong(rows: list[dict[str, Any]]) -> None:
        for n, row in enumerate(rows):
            longer = sorted((row["chosen"], row["rejected"]), key=len, reverse=n % 10 > 0)
            row.update(chosen=longer[0], rejected=longer[1])

    with planted(wrong):
        yield


@fault("shorter-is-better", "length-gives-nothing-away", on=transcripts)
def shorter_is_better() -> Iterator[None]:
    """The shorter answer is always the chosen one: a judge of lengths is as right the other way round."""

    def wrong(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            row["chosen"], row["rejected"] = sorted((row["chosen"], row["rejected"]), key=len)

    with planted(wrong):
        yield


@fault("text-with-two-labels", "one-text-one-label", on=labels)
def text_with_two_labels() -> Iterator[None]:
    """One text stands there a second time, in small letters and with the other label."""
    with planted(lambda rows: rows[-1].update(text=rows[10]["text"].lower(), label="tell")):
        yield


@fault("label-with-a-space", "labels-are-known", on=labels)
def label_with_a_space() -> Iterator[None]:
    """A few rows have the label with a space behind it: a third class."""

    def wrong(rows: list[dict[str, Any]]) -> None:
        for row in rows[20:23]:
            row["label"] += " "

    with planted(wrong):
        yield


@fault("class-in-the-test-alone", "labels-are-known", on=labelled_split)
def class_in_the_test_alone() -> Iterator[None]:
    """No row of one class is in train.csv."""

    def wrong(rows: list[dict[str, Any]]) -> None:
        rows[:] = [row for row in rows if row["category"] != "soap"]

    with planted(wrong):
        yield


@fault("choice-twice", "choices-differ-and-one-is-right", on=choices)
def choice_twice() -> Iterator[None]:
    """Two choices of one question are alike: who says the one cannot say the other."""
    with planted(lambda rows: rows[44].update(choices=["45", "46 ", "46"])):
        yield


@fault("answers-counted-from-one", "choices-differ-and-one-is-right", on=choices)
def answers_counted_from_one() -> Iterator[None]:
    """The last question counts its choices from one: its right answer is past the end."""
    with planted(lambda rows: rows[-1].update(answer=3)):
        yield


@fault("benchmark-question-in-a-row", "no-benchmark-in-the-rows", on=instructions)
def benchmark_question_in_a_row() -> Iterator[None]:
    """One instruction holds a question of a benchmark, in other case and punctuation."""
    question = "Natalia baked 48 loaves in April, and then she baked half as many loaves in May; how many altogether?"
    before = os.environ.get("GROUNDUP_DATA")
    with tempfile.TemporaryDirectory(prefix="groundup-verify-") as folder:
        Path(folder, "bench").mkdir()
        Path(folder, "bench", "sums.jsonl").write_text(json.dumps({"question": question, "answer": "#### 72"}) + "\n")
        os.environ["GROUNDUP_DATA"] = folder
        try:
            with planted(lambda rows: rows[66].update(input=question.upper().replace(",", " -"))):
                yield
        finally:
            os.environ.pop("GROUNDUP_DATA")
            os.environ.update({"GROUNDUP_DATA": before} if before is not None else {})
