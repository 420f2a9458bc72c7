"""Rows as published: what is asked twice in other words' clothes, and what is answered before it is asked."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

from groundup.verify import traces
from groundup.verify.check import Measurement, NotApplicable, check
from groundup.verify.checks.dataset import DIFFERENT, GRAM
from groundup.verify.rows import Row, Rows
from groundup.verify.tally import distinct, flawed, groups_flawed, holding, per_row, short, together

# How a text names an answer. Once in a prompt, and followed by the right one: it gives the answer away.
_NAMED = re.compile(
    r"(?:\b(?:the )?(?:(?:correct|right|final|gold|expected) )?"
    r"(?:answer|solution|result|label|category|class|sentiment|"
    r"ground[ _]truth|target)(?: is\b|\s*[:=])|####|\\boxed\{)",
    re.I,
)
_SUPPOSED = re.compile(r"\b(?:if|whether|when|unless)\b[^.?!\n]*$", re.I)
_FINAL = re.compile(r"####\s*(.+?)\s*$|\\boxed\{([^{}]+)\}")
SHORT = 6  # words of an answer that can stand behind "answer:" as a whole


@check(
    "prompts-are-no-near-copies",
    "identity",
    "data",
    bug="The same question stands there twice with other punctuation: no exact comparison sees it, training does.",
    remedy="Compare prompts without case, white space and punctuation; keep one row of each group.",
    reference=(
        "TelecomsXChangeAPi/OpenTextShield issue 194; sefcom/VarBERT issue 1; Lee et al. 2021, arXiv 2107.06499"
    ),
    looks_at="dataset",
)
def prompts_are_no_near_copies(rows: Rows) -> Measurement:
    """Groups of rows that ask the same in the same words but for case, white space and punctuation, and that an exact
    comparison (`prompts-do-not-repeat`) tells apart. Punctuation is left out where it makes no other question of it
    (`tune.hold_out.alike`): behind and before words, in "well-known"; not in sums, code, numbers, or by itself.
    Prompts under five words are passed over, since people say those twice without copying. Equal words in equal order
    are a copy, so none is the bound. Prompts that differ by a word are not looked at: sets made of patterns ("Where can
    one buy bread in Porto?") are full of them, and are sound."""
    groups = [g for g in together(rows.rows, lambda row: row.likeness or row.asked) if len({r.asked for r in g}) > 1]
    return groups_flawed(groups, distinct(rows.rows), lambda group: short(group[0].said))


@check(
    "train-and-test-share-no-near-copy",
    "locality",
    "data",
    bug="A test prompt stands in train with other punctuation, or within a longer prompt: the test measures memory.",
    remedy="Split and compare by words, without case and punctuation; drop from train what the test holds.",
    reference=(
        "tomhosking/hrq-vae issue 2; bigcode-project/bigcode-dataset pull 29; Brown et al. 2020, arXiv 2005.14165"
    ),
    looks_at="dataset",
)
def train_and_test_share_no_near_copy(rows: Rows) -> Measurement:
    """Rows of the smaller sides whose prompt is one of the largest side's but for case, white space and punctuation
    (as in `prompts-are-no-near-copies`), or stands whole in a longer one, or the other way round, word for word.

    Whole, and of 13 words or more, 10 of them different: text that was not copied from one place hardly ever shares so
    many (Brown et al. 2020, appendix C). A passage that several questions are asked about is not a prompt and does not
    count. Exact copies are `train-and-test-share-no-prompt`'s. None is the bound."""
    if not rows.sides:
        raise NotApplicable(f"{rows.name} is one file without a split, and no stage would split it")
    (first, train), *others = sorted(rows.sides.items(), key=lambda side: -len(side[1]))
    exact, alike = {row.opening for row in train}, {row.likeness: row for row in reversed(train) if row.likeness}
    names = {id(row): name for name, side in others for row in side if row.opening not in exact}
    held = [row for _, side in others for row in side if id(row) in names]
    found = {row.where: f"as {first} {alike[row.likeness].where}" for row in held if row.likeness in alike}
    for row, other in _within(held, train):
        found.setdefault(row.where, f"{names[id(row)]}, in or around {first} {other.where}: {short(row.said)}")
    return flawed(list(found.items()), sum(distinct(side) for _, side in others), f"rows beside {first}")


def _within(held: Sequence[Row], train: Sequence[Row]) -> list[tuple[Row, Row]]:
    """(one of `held`, one of `train`) of which the one's words stand whole in the other's.

    Each long prompt is looked up by its first 13 words, among every 13 words in a row of the other side.
    """
    found: list[tuple[Row, Row]] = []
    for inner, outer, turned in ((held, train, False), (train, held, True)):
        begins: dict[tuple[str, ...], list[tuple[Row, list[str]]]] = defaultdict(list)
        for row in inner:
            every = traces.words(_prompt(row))
            if first := next(traces.spans(" ".join(every[:GRAM]), GRAM, DIFFERENT), None):
                begins[first].append((row, every))
        for row in outer if begins else ():
            every = traces.words(_prompt(row))
            for at in range(len(every) - GRAM + 1):
                for one, its in begins.get(tuple(every[at : at + GRAM]), ()):
                    if every[at : at + len(its)] == its:
                        found.append((row, one) if turned else (one, row))
    return found


def _prompt(row: Row) -> str:
    """What must not be in train: the first question of a conversation, all that the user says of others, or a text."""
    return row.said if row.example.kind == "conversations" or row.holds_text else row.user_says


@check(
    "prompts-do-not-hold-the-answer",
    "identity",
    "tune",
    bug="The right answer stands in the prompt: what is learnt, or measured, is to copy it.",
    remedy="Build prompts from the question's fields alone; look for a hint, a label or a solution that was joined in.",
    reference="ucbepic/DataAgentBench pull 56",
    looks_at="dataset",
)
def prompts_do_not_hold_the_answer(rows: Rows) -> Measurement:
    """Rows whose prompt (of labelled text: the text) names an answer in one place alone ("answer:", "the result is",
    "####", "label:") and goes on with the right one; or, of a problem, holds its whole solution of 13 words or more.

    In one place: worked examples before the question name several. The right one: what stands behind ####, in a box,
    or an answer of six words at most; of conversations and pairs at least five, since "if the answer is yes" is no
    leak. None is the bound: a question does not name its own answer. An answer that stands in a passage which is asked
    about, without being named, is not looked at: that is what reading is."""
    holding(rows, "problems", "choices", "labels", "conversations", "pairs")

    def wrong(row: Row) -> str:
        asked = row.example.text if row.holds_text else "\n".join(m["content"] for m in row.before)
        answer = row.answers[-1][1] if rows.holds == "conversations" and row.answers else row.example.answer or ""
        if rows.holds == "problems" and _copied(answer, asked):
            return f"the solution {short(answer)}"
        named = [one for one in _NAMED.finditer(asked) if not _SUPPOSED.search(asked[: one.start()])]
        said = traces.words(next(filter(None, final.groups())) if (final := _FINAL.search(answer)) else answer)
        long_enough = len(said) >= 5 if rows.holds in ("conversations", "pairs") else 0 < len(said) <= SHORT
        if len(named) != 1 or not long_enough:
            return ""
        behind = traces.words(asked[named[0].end() :])
        return short(asked[named[0].start() :]) if behind[: len(said)] == said else ""

    return flawed(per_row(rows.rows, wrong), distinct(rows.rows))


def _copied(answer: str, asked: str) -> bool:
    """Whether a long answer stands whole in what is asked."""
    said, every = traces.words(answer), traces.words(asked)
    if len(said) < GRAM or len({word for word in said if len(word) > 1}) < DIFFERENT:
        return False
    return any(every[at : at + len(said)] == said for at in range(len(every) - len(said) + 1))
