"""Rows to fine-tune on, as published: what is wrong with them, and in which rows.

Each is handed `Rows`, and counts rows (or groups of rows) that no sound file has: the bound is 0, and the note says how
many of how many and which, 50 places at most. Two are statistics of all rows; their bounds are intervals that chance
leaves once in a million files.
"""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from groundup.data import files
from groundup.errors import UserError
from groundup.verify import traces
from groundup.verify.check import Measurement, NotApplicable, check
from groundup.verify.rows import Row, Rows
from groundup.verify.tally import (
    CHANCE,
    SHOWN,
    distinct,
    flawed,
    groups_flawed,
    holding,
    log_choose,
    per_row,
    short,
    tail,
    together,
)

GRAM = 13  # words in a row that two texts share by copying alone (Brown et al. 2020, appendix C),
DIFFERENT = 10  # of them, so that counting, idioms of code and "to the left ... and to the right ..." are none
AT_ONCE = 20_000  # rows to one pass over the benchmarks: they take thirty times their size in memory

# ---- rows ----


@check(
    "rows-are-readable",
    "identity",
    "data",
    bug="Rows are dropped or misread without a word: broken lines, missing fields, another layout than the rest has.",
    remedy="Mend or drop the rows named; all rows of a file must have one layout (docs/sft.md).",
    reference=(
        "MakazhanAlpamys/Soup issue 548; JH-DSAI/text-detection-baselines issue 35; nyu-mll/jiant-v1-legacy issue 1082"
    ),
    looks_at="dataset",
)
def rows_are_readable(rows: Rows) -> Measurement:
    """Rows that fit no layout, or another than most: each is either refused by a trainer or, worse, read as something
    else. A sound file has none."""
    return flawed(list(rows.refused), distinct(rows.rows) + len(rows.refused))


@check(
    "text-is-clean",
    "identity",
    "data",
    bug="Text was decoded wrongly, cut from a page or damaged: the model learns to write the damage.",
    remedy="Decode once, as UTF-8 (ftfy mends most); unescape HTML; drop control characters and halves.",
    reference="tloen/alpaca-lora pulls 32, 66",
    looks_at="dataset",
)
def text_is_clean(rows: Rows) -> Measurement:
    """Rows with UTF-8 read as Latin-1 ("Ã©") or GBK, U+FFFD, control characters (NUL, C1), half a surrogate pair, what
    nobody sees (a byte-order mark, zero-width characters but where a script needs them, marks of direction without a
    letter that is read from the right), or entities and tags of HTML where neither code nor markup is what the text is
    about and nobody asks about such a tag. None stands in text that people wrote."""

    def wrong(row: Row) -> str:
        markup = traces.about_markup(text for _, text in row.contents)
        found = [(what, f"{where}: {what}") for where, text in row.contents for what in traces.broken(text, markup)]
        if any(what.startswith("HTML") for what, _ in found) and traces.about_marks(row.user_says):
            found = [one for one in found if not one[0].startswith("HTML")]
        return found[0][1] if found else ""

    return flawed(per_row(rows.rows, wrong), distinct(rows.rows))


@check(
    "no-template-is-left",
    "locality",
    "data",
    bug="Marks of a chat template stand inside the contents: the model opens turns where it should talk.",
    remedy="Cut the rows at the marks, or parse them into messages; fill fields like {{name}} before training.",
    reference="huggingface/trl issues 1858, 1541",
    looks_at="dataset",
)
def no_template_is_left(rows: Rows) -> Measurement:
    """Rows whose contents hold a mark like <|im_end|>, </s>, [PAD], [/INST], "### Response:" or an unfilled {{name}}
    outside of code; or an answer that goes on with the next question ("User: ..." on a line of its own) where no
    dialogue was asked for. Templates write these around contents; within one they belong to another template, to a
    failed parse or to a generation that did not stop. Marks that are asked about, or stand in quotes, are what the row
    is about. Rejected answers may run on: that is what is wrong with them."""

    def wrong(row: Row) -> str:
        markup, asked = traces.about_markup(text for _, text in row.contents), row.user_says
        marks = ((where, traces.template(text, markup, asked)) for where, text in row.contents)
        more = ((where, traces.runs_on(text, asked)) for where, text in row.answers if where != "rejected")
        return next((f"{where}: {mark}" for where, mark in (*marks, *more) if mark), "")

    return flawed(per_row(rows.rows, wrong), distinct(rows.rows))


@check(
    "prompts-are-not-empty",
    "identity",
    "tune",
    bug="A prompt is empty, or is what a table writes for nothing: answers are learnt that nothing asked for.",
    remedy="Drop the rows named, or look at how prompt and input were joined.",
    reference="tloen/alpaca-lora pull 32",
    looks_at="dataset",
)
def prompts_are_not_empty(rows: Rows) -> Measurement:
    """Rows in which a user says nothing, or in which what is to be labelled is empty; "<noinput>", "N/A" and the like
    are nothing too, and so they are behind an instruction; "..." there is a place to go on from."""

    def wrong(row: Row) -> str:
        asked = [m["content"] for m in row.messages if m["role"] == "user"]
        asked += [row.example.text] if row.holds_text else []
        if not asked:
            return "no user says anything"
        behind = [part for text in asked if (part := text.rpartition("\n\n")[2].strip()) not in ("", "...", "\u2026")]
        return next((short(text) for text in (*asked, *behind) if traces.is_no_answer(text)), "")

    return flawed(per_row(rows.rows, wrong), distinct(rows.rows))


@check(
    "prompts-do-not-repeat",
    "identity",
    "data",
    bug="A prompt stands in several rows: it is trained on so many times, and a split by rows puts it on both sides.",
    remedy="Keep one row of each group; split by prompt, as groundup does (tune/hold_out.py).",
    reference=(
        "huggingface/datasets issue 4261; embeddings-benchmark/mteb issue 1036; Lee et al. 2021, arXiv 2107.06499"
    ),
    looks_at="dataset",
)
def prompts_do_not_repeat(rows: Rows) -> Measurement:
    """Groups of rows that ask the same: everything before the last answer (of labelled text: the text), equal but for
    white space and case. Copies are exact, so none is the bound; replies of one tree are one row."""
    groups = together(rows.rows, lambda row: row.asked)
    return groups_flawed(groups, distinct(rows.rows), lambda group: short(group[0].said))


@check(
    "train-and-test-share-no-prompt",
    "locality",
    "data",
    bug="Prompts stand in train and test alike: the test measures memory, and looks the better for it.",
    remedy="Split by prompt, not by row (tune/hold_out.py); drop from train what stands in the test.",
    reference="hendrycks/ethics issue 14; huggingface/datasets issue 4261; bazingagin/npc_gzip issue 13",
    looks_at="dataset",
)
def train_and_test_share_no_prompt(rows: Rows) -> Measurement:
    """Rows of the smaller sides whose prompt stands on the largest side too, or on another: what is before the first
    answer, equal but for white space and case. The sides are the files beside train.*, the values of a `split` column,
    or what groundup itself would hold out. A prompt is on one side or it is not: none is the bound."""
    if not rows.sides:
        raise NotApplicable(f"{rows.name} is one file without a split, and no stage would split it")
    sides = sorted(rows.sides.items(), key=lambda side: -len(side[1]))
    seen: dict[str, str] = {}
    found, looked = [], 0
    for n, (name, side) in enumerate(sides):
        shared = {}
        for row in side:
            if n and row.opening in seen:
                shared[row.where] = (
                    f"as {seen[row.opening]}" if name in row.where else f"{name}, as {seen[row.opening]}"
                )
        for row in side:
            seen.setdefault(row.opening, f"{name} {row.where}" if name not in row.where else row.where)
        found += list(shared.items())
        looked += distinct(side) if n else 0
    return flawed(found, looked, f"rows beside {sides[0][0]}")


@check(
    "one-prompt-one-answer",
    "identity",
    "tune",
    bug="The same prompt is answered differently in two rows: the loss cannot fall below their disagreement.",
    remedy="Keep the right one of each group. Answers meant to vary belong in preference data or want a system prompt.",
    reference="TIGER-AI-Lab/EditReward issue 14; Northcutt et al. 2021, arXiv 2103.14749 (label errors)",
    looks_at="dataset",
)
def one_prompt_one_answer(rows: Rows) -> Measurement:
    """Groups of rows that ask the same and answer differently, white space and case apart. Conversations, problems and
    choices; preference data says several things of one prompt by design, and its count is only told."""
    groups = [g for g in together(rows.rows, lambda r: r.asked) if len({row.answered for row in g}) > 1]
    if rows.holds == "pairs":
        raise NotApplicable(f"{len(groups):,} prompts have several pairs, as preference data may")
    holding(rows, "conversations", "problems", "choices")
    return groups_flawed(groups, distinct(rows.rows), lambda group: short(group[0].said))


@check(
    "no-benchmark-in-the-rows",
    "locality",
    "data",
    bug="Text of a benchmark stands in the rows: the score it will give is memory.",
    remedy="Drop the rows named before training, or never report that benchmark.",
    reference=(
        "huggingface/open-r1 pull 416; NVIDIA-NeMo/Skills issue 235; Brown et al. 2020, arXiv 2005.14165, appendix C"
    ),
    looks_at="dataset",
)
def no_benchmark_in_the_rows(rows: Rows) -> Measurement:
    """Rows that share 13 words in a row, 10 of them different, with a file below $GROUNDUP_DATA/bench. The published
    choice: at 13 words, text that was not copied from one place hardly ever meets; the second number leaves out
    counting, idioms of code and phrases that mirror themselves. Not compared with the files that the rows are from."""
    folder = Path(os.environ.get("GROUNDUP_DATA", "")) / "bench"
    if "GROUNDUP_DATA" not in os.environ or not folder.is_dir():
        raise NotApplicable("no benchmark files to compare with: there is no folder $GROUNDUP_DATA/bench")
    others = sorted(p for p in folder.rglob("*") if p.is_file() and p.resolve() not in rows.files)
    if rows.files and all(path.is_relative_to(folder.resolve()) for path in rows.files):
        raise NotApplicable(f"{rows.name} is itself one of the benchmark files")
    found: dict[str, str] = {}
    for first in range(0, len(rows.rows), AT_ONCE):
        grams: dict[tuple[str, ...], list[Row]] = defaultdict(list)
        for row in rows.rows[first : first + AT_ONCE]:
            for _, text in row.contents:
                for gram in traces.spans(text, GRAM, DIFFERENT):
                    grams[gram].append(row)
        for path in others:
            for gram in (gram for text in _strings(path) for gram in traces.spans(text, GRAM) if gram in grams):
                for row in grams[gram]:
                    found.setdefault(row.where, f"{path.relative_to(folder).as_posix()}, {short(' '.join(gram))}")
    ordered = dict.fromkeys((row.where, found[row.where]) for row in rows.rows if row.where in found)
    return flawed(list(ordered), distinct(rows.rows))


def _strings(path: Path) -> Iterator[str]:
    """Every text in a file, whatever its layout."""
    try:
        kind = files.kind(path)
        if kind in (".jsonl", ".json", ".parquet"):
            for _, row in files.rows(path):
                yield from _leaves(row)
        elif kind in (".txt", ".csv", ".tsv", ".md"):
            yield from files.lines(path)
    except UserError:  # not ours to judge: what cannot be read is in no row
        return


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _leaves(one)


# ---- answers ----


@check(
    "answers-are-not-empty",
    "identity",
    "tune",
    bug="Answers are empty, or what a table writes for nothing: the model learns to end its turn at once.",
    remedy="Drop the rows named; an empty field was perhaps never filled.",
    reference="tatsu-lab/stanford_alpaca issue 265; tloen/alpaca-lora pull 32",
    looks_at="dataset",
)
def answers_are_not_empty(rows: Rows) -> Measurement:
    """Rows with an answer (of a pair: either; of labelled text: a label) that is empty, white space, or "N/A", "None",
    "<noinput>" and their like, unless that is what was asked for ("How many are left?" "None."). Each is a row that was
    never filled: none is the bound."""

    def wrong(row: Row) -> str:
        if rows.holds in ("labels", "choices"):
            return (
                "" if (row.example.answer or "").strip() else "no label" if rows.holds == "labels" else "none is right"
            )
        if rows.holds == "texts":
            return "" if row.example.text.strip() else "no text"
        if not row.answers:
            return "nobody answers"
        asked = "\n".join(m["content"] for m in row.messages if m["role"] in ("system", "user"))
        empty = (f"{what} {short(text)}" for what, text in row.answers if traces.is_unanswered(text, asked))
        return next(empty, "")

    return flawed(per_row(rows.rows, wrong), distinct(rows.rows))


@check(
    "answers-do-not-echo-the-prompt",
    "identity",
    "tune",
    bug="The answer begins with the prompt: completions were stored with what they completed.",
    remedy="Cut the prompt off; decode only what was generated.",
    reference="princeton-nlp/SimPO issue 8; om-ai-lab/VLM-R1 issue 126; mlabonne/llm-course issue 2",
    looks_at="dataset",
)
def answers_do_not_echo_the_prompt(rows: Rows) -> Measurement:
    """Rows whose answer (of a pair: the chosen one) begins with all that was asked last, white space, case and
    punctuation apart. Asked is a whole sentence, of five words or more: who answers may quote a part, and a beginning
    without an end is there to be continued."""

    def wrong(row: Row) -> str:
        asked = traces.words(row.last_asked)
        whole = len(asked) >= 5 and row.last_asked.rstrip()[-1] in ".!?:\u3002\uff1f\uff01\"'"
        return short(row.last_asked) if whole and traces.words(row.answered)[: len(asked)] == asked else ""

    return flawed(per_row(holding(rows, "conversations", "pairs"), wrong), distinct(rows.rows))


@check(
    "answers-are-not-cut-at-a-length",
    "locality",
    "tune",
    bug="Answers were cut at a length: the longest stop within a sentence, and the model learns to stop there.",
    remedy="Generate again with room for an end, or drop the answers that stop within a sentence.",
    reference="elizaOS/eliza issue 24835; vllm-project/speculators pull 835; huggingface/trl issue 976",
    looks_at="dataset",
    false_alarm=CHANCE,
)
def answers_are_not_cut_at_a_length(rows: Rows) -> Measurement:
    """Of k answers that stop within a sentence, how many are among the k longest, and the chance of it if stopping had
    nothing to do with length: the hypergeometric tail. A cut at a length hits the longest alone; people who forget a
    full stop forget it anywhere. At least 1e-6 is the bound. Looks at prose of two sentences or more, not at code or
    lists."""
    looked = holding(rows, "conversations", "pairs")
    answers = [
        (row, text) for row in looked for _, text in (row.answers if rows.holds == "pairs" else row.answers[-1:])
    ]
    answers.sort(key=lambda one: -len(one[1]))
    cut = [traces.unfinished(text) for _, text in answers]
    n, k = len(answers), sum(cut)
    if log_choose(n, n // 2) < -math.log(CHANCE):
        raise NotApplicable(f"{n} answers are too few to tell")
    where = [row.where for (row, _), is_cut in zip(answers[:k], cut, strict=False) if is_cut]
    more = f" and {len(where) - SHOWN} more" if len(where) > SHOWN else ""
    named = f", {len(where):,} of them among the {k:,} longest: {', '.join(where[:SHOWN])}{more}" if where else ""
    said = f"{k:,} of {n:,} answers stop within a sentence{named}"
    return Measurement(tail(len(where), n, k, k), CHANCE, said, ">=", tuple((one, "") for one in where))


@check(
    "roles-alternate-and-end-with-assistant",
    "identity",
    "tune",
    bug="Turns are missing or doubled: the model learns to answer itself, or what is scored is the user's.",
    remedy="Join turns of one speaker, drop what follows the last answer; a system message stands first.",
    reference="haoliuhl/chain-of-hindsight issue 10; huggingface/trl issues 2385, 1858",
    looks_at="dataset",
)
def roles_alternate(rows: Rows) -> Measurement:
    """Rows whose roles are not: at most one system message, then user and assistant in turns (the assistant may call a
    tool that answers), up to an assistant; of a pair, up to a user. That is what templates can write."""
    looked = [row for row in holding(rows, "conversations", "pairs") if row.example.roles]
    if not looked:
        raise NotApplicable(f"{rows.name} has fields, not roles: nothing can be out of turn")

    def wrong(row: Row) -> str:
        for messages in (row.messages, row.example.other_prompt):
            if messages is not None and not row.in_turn(messages):
                return " ".join(m["role"] for m in messages[-8:])
        return ""

    return flawed(per_row(looked, wrong), distinct(looked))


from groundup.verify.checks import pairs  # noqa: E402, F401  (registers them behind these)
