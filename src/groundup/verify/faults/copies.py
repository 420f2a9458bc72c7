"""Faults of rows: near copies, answers given away, answers that run on, and marks and characters that nobody sees."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from groundup.verify.fault import fault
from groundup.verify.faults.dataset import chats, instructions, labelled_split, labels, pairs, planted, problems

# ---- near copies ----


@fault("prompt-again-without-its-mark", "prompts-are-no-near-copies", on=instructions)
def prompt_again_without_its_mark() -> Iterator[None]:
    """The last row asks what the fourth asks, without the question mark, in capitals and quotes."""
    with planted(lambda rows: rows[-1].update(instruction=f'"{rows[3]["instruction"].rstrip("?").upper()}"')):
        yield


@fault("conversation-again-with-commas", "prompts-are-no-near-copies", on=chats)
def conversation_again_with_commas() -> Iterator[None]:
    """One conversation asks what another asks, with a comma more and two spaces."""

    def wrong(rows: list[dict[str, Any]]) -> None:
        rows[62]["messages"][0]["content"] = rows[61]["messages"][0]["content"].replace(" in ", ",  in ")

    with planted(wrong):
        yield


@fault("near-copy-in-the-test", "train-and-test-share-no-near-copy", on=labelled_split)
def near_copy_in_the_test() -> Iterator[None]:
    """The last row of train.csv is one of test.csv, without its question mark and in small letters."""
    with planted(lambda rows: rows[-1].update(text=_asked(65))):
        yield


def _asked(n: int) -> str:
    from groundup.verify.faults.dataset import _question

    return _question(n).rstrip("?").lower()


LONG = "Please name the stall behind the old mill at which a visitor of Porto buys warm bread before noon"


@fault("test-prompt-within-a-longer-one", "train-and-test-share-no-near-copy", on=chats)
def test_prompt_within_a_longer_one() -> Iterator[None]:
    """A question of the test stands in train with a sentence before it and another behind."""

    def wrong(rows: list[dict[str, Any]]) -> None:
        rows[39]["messages"][0]["content"] = LONG + "."
        rows[41]["messages"][0]["content"] = f"You know the town well. {LONG.upper()}! Be brief."

    with planted(wrong):
        yield


# ---- answers given away ----


@fault("result-in-the-question", "prompts-do-not-hold-the-answer", on=problems)
def result_in_the_question() -> Iterator[None]:
    """One question was joined with its result, as a hint for whoever made the file."""
    with planted(lambda rows: rows[44].update(question=f"{rows[44]['question']} (The answer is {44 * 51}.)")):
        yield


@fault("solution-in-the-question", "prompts-do-not-hold-the-answer", on=problems)
def solution_in_the_question() -> Iterator[None]:
    """One question holds its whole worked solution, under another heading."""

    def wrong(rows: list[dict[str, Any]]) -> None:
        told = "We take ten times the second number first and then add what remains of the first one, slowly."
        rows[20]["answer"] = f"{told}\n#### 540"
        rows[20]["question"] += f"\n\nThoughts: {told}\n#### 540"

    with planted(wrong):
        yield


@fault("label-in-the-text", "prompts-do-not-hold-the-answer", on=labels)
def label_in_the_text() -> Iterator[None]:
    """The export wrote one text with its label."""
    with planted(lambda rows: rows[31].update(text=f"{rows[31]['text']} Label: {rows[31]['label'].upper()}")):
        yield


@fault("answer-kept-in-the-prompt", "prompts-do-not-hold-the-answer", on=instructions)
def answer_kept_in_the_prompt() -> Iterator[None]:
    """One prompt was stored with the answer that follows it."""
    with planted(lambda rows: rows[50].update(instruction=f"{rows[50]['instruction']}\nAnswer: {rows[50]['output']}")):
        yield


# ---- marks and characters ----


@fault("answer-runs-on", "no-template-is-left", on=instructions)
def answer_runs_on() -> Iterator[None]:
    """One answer goes on with the next turn of a user, which the model that wrote it made up."""
    with planted(
        lambda rows: rows[12].update(output="At the market.\n\nUser: Thanks, and when?\n\nAssistant: At eight.")
    ):
        yield


@fault("question-runs-on-in-a-problem", "no-template-is-left", on=problems)
def question_runs_on() -> Iterator[None]:
    """A few-shot generation did not stop: the solution is followed by another question."""
    with planted(
        lambda rows: rows[-1].update(answer="It is.\n#### 6794\nQuestion: How much is 5 times 9?\nAnswer: 45")
    ):
        yield


@fault("padding-kept-in-the-text", "no-template-is-left", on=instructions)
def padding_kept_in_the_text() -> Iterator[None]:
    """One answer was decoded with its padding."""
    with planted(lambda rows: rows[70].update(output=rows[70]["output"] + "[PAD]" * 5)):
        yield


@fault("end-kept-in-the-middle", "no-template-is-left", on=pairs)
def end_kept_in_the_middle() -> Iterator[None]:
    """One chosen answer holds an end of text, with text behind it."""
    with planted(lambda rows: rows[9].update(chosen="At the market.</s> Ask there.")):
        yield


@fault("unknown-word-in-the-prompt", "no-template-is-left", on=labels)
def unknown_word_in_the_prompt() -> Iterator[None]:
    """One text went through a vocabulary of words: a name became <unk>."""
    with planted(lambda rows: rows[30].update(text="Where can one buy <unk> in Bergen?")):
        yield


@fault("chinese-decoded-wrongly", "text-is-clean", on=chats)
def chinese_decoded_wrongly() -> Iterator[None]:
    """What could not be decoded was written out and read as GBK: the three signs that every Chinese reader knows."""

    def wrong(rows: list[dict[str, Any]]) -> None:
        rows[28]["messages"][-1]["content"] += "\ufffd\ufffd".encode().decode("gbk")

    with planted(wrong):
        yield


@fault("byte-order-mark-in-a-row", "text-is-clean", on=instructions)
def byte_order_mark_in_a_row() -> Iterator[None]:
    """Files were joined: a byte-order mark begins one answer."""
    with planted(lambda rows: rows[33].update(output="\ufeff" + rows[33]["output"])):
        yield


@fault("nothing-seen-between-words", "text-is-clean", on=pairs)
def nothing_seen_between_words() -> Iterator[None]:
    """One prompt was copied from a page with a space of no width in it."""
    with planted(lambda rows: rows[3].update(prompt=rows[3]["prompt"].replace(" in ", " in\u200b "))):
        yield


@fault("marks-of-chatml-lost", "no-template-is-left", on=instructions)
def marks_of_chatml_lost() -> Iterator[None]:
    """An answer ran on and was decoded without its special tokens: of the marks only the roles are left."""
    with planted(lambda rows: rows[5].update(output="At the market.\nuser\nAnd when?\nassistant\nAt eight.")):
        yield


@fault("cyrillic-decoded-wrongly", "text-is-clean", on=labels)
def cyrillic_decoded_wrongly() -> Iterator[None]:
    """Windows-1251 was read as Latin-1."""
    with planted(lambda rows: rows[11].update(text="привет всем".encode("cp1251").decode("latin-1"))):
        yield
