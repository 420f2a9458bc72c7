"""Preference pairs, labelled text and multiple choice as published: do they say anything, and say it once?"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from groundup.verify.check import Measurement, NotApplicable, check
from groundup.verify.rows import Row, Rows
from groundup.verify.tally import CHANCE, distinct, flawed, groups_flawed, holding, lower, per_row, short, together

AGREEMENT = 0.63  # share of pairs on which two people choose alike, at the lower end of what is published


# ---- pairs ----


@check(
    "chosen-differs-from-rejected",
    "sensitivity",
    "tune",
    bug="Chosen and rejected are the same: the loss stays at ln 2 there and pulls on nothing, whatever its weight.",
    remedy="Drop the pairs named.",
    reference="natolambert/rlhf-book issue 503 (pull 504); YangRui2015/Generalizable-Reward-Model issue 1",
    looks_at="dataset",
)
def chosen_differs_from_rejected(rows: Rows) -> Measurement:
    """Pairs whose two answers are equal but for white space and case: what is left says nothing of quality."""

    def wrong(row: Row) -> str:
        (_, good), (_, bad) = row.answers
        return short(good) if " ".join(good.split()).casefold() == " ".join(bad.split()).casefold() else ""

    return flawed(per_row(holding(rows, "pairs"), wrong), distinct(rows.rows), "pairs")


@check(
    "pairs-share-their-prompt",
    "identity",
    "tune",
    bug="Chosen and rejected answer different conversations: what is preferred is the conversation.",
    remedy="Cut both at the last answer; drop the pairs whose beginnings differ.",
    reference="huggingface/trl issues 1858, 1541",
    looks_at="dataset",
)
def pairs_share_their_prompt(rows: Rows) -> Measurement:
    """Pairs in which not the same messages stand before the chosen and before the rejected answer."""

    def wrong(row: Row) -> str:
        other = row.example.other_prompt
        return f"{len(row.messages)} messages before chosen, {len(other)} before rejected" if other is not None else ""

    looked = holding(rows, "pairs")
    if not any(row.example.roles for row in looked):
        raise NotApplicable(f"{rows.name} has one field for both prompts")
    return flawed(per_row(looked, wrong), distinct(looked), "pairs")


@check(
    "pairs-are-not-swapped",
    "sensitivity",
    "tune",
    bug="A pair and its mirror are both there: what one teaches the other takes back.",
    remedy="Keep the right one; look at how the two orders of a judge were merged.",
    reference="lm-sys/FastChat issue 3911; arXiv 2306.05685 (judges favour a position)",
    looks_at="dataset",
)
def pairs_are_not_swapped(rows: Rows) -> Measurement:
    """Pairs of which another has the same prompt, and the chosen answer as rejected and the rejected as chosen, white
    space and case apart: the gradients of the two cancel at the start of DPO. Each mirror is counted once."""
    first: dict[tuple[str, str, str], Row] = {}
    found = []
    for row in holding(rows, "pairs"):
        good, bad = (" ".join(text.split()).casefold() for _, text in row.answers)
        if good != bad and (mirror := first.get((row.asked, bad, good))):
            found.append((row.where, f"the mirror of {mirror.where}"))
        first.setdefault((row.asked, good, bad), row)
    return flawed(found, len(rows.rows), "pairs")


@check(
    "length-gives-nothing-away",
    "sensitivity",
    "tune",
    bug="Whoever always prefers the longer (or the shorter) answer is right: this is what DPO and reward models learn.",
    remedy="Balance the pairs by length, or add pairs in which the shorter is better; watch length while training.",
    reference=(
        "eric-mitchell/direct-preference-optimization issue 35; lm-sys/FastChat issue 3911; Singhal et al. "
        "2023, arXiv 2310.03716"
    ),
    looks_at="dataset",
    false_alarm=CHANCE,
)
def length_gives_nothing_away(rows: Rows) -> Measurement:
    """Lower end of the exact (Clopper-Pearson) interval of the accuracy of a judge that sees lengths alone (characters)
    and in the better of its two directions; pairs of equal length are left out.

    0.5 is no bound: better answers are a little longer in sound data. 0.63 is: two people asked about one pair choose
    alike in 63 to 77% of the published sets. A judge of lengths that agrees with the labels as well as a second person
    would leave nothing that quality is needed to explain, and the cheaper rule is what is learnt. The interval is left
    by chance once in a million files.
    """
    longer = [len(good) > len(bad) for (_, good), (_, bad) in (r.answers for r in holding(rows, "pairs"))
              if len(good) != len(bad)]  # fmt: skip
    n, k = len(longer), max(sum(longer), len(longer) - sum(longer))
    if not n or AGREEMENT**n > CHANCE / 2:
        raise NotApplicable(f"{n} pairs of unequal length are too few to tell")
    which = "longer" if sum(longer) * 2 >= n else "shorter"
    low = lower(k, n, CHANCE / 2)
    said = f"the {which} answer is chosen in {k:,} of {n:,} pairs ({k / n:.1%}); surely in {low:.1%} or more"
    return Measurement(low, AGREEMENT, said)


# ---- labels and choices ----


@check(
    "one-text-one-label",
    "identity",
    "tune",
    bug="The same text has two labels: no classifier can be right about both, and the score has an unknown ceiling.",
    remedy="Look at the groups named and keep one label of each.",
    reference=(
        "sebischair/Medical-Abstracts-TC-Corpus issue 2; acmi-lab/counterfactually-augmented-data issue 9; "
        "Northcutt et al. 2021, arXiv 2103.14749"
    ),
    looks_at="dataset",
)
def one_text_one_label(rows: Rows) -> Measurement:
    """Groups of rows with one text, white space and case apart, and two labels; in the files beside it too."""
    everything = [*holding(rows, "labels"), *(row for other in rows.beside.values() for row in other.rows)]
    groups = [g for g in together(everything, lambda r: r.asked) if len({row.answered for row in g}) > 1]

    def tell(group: Sequence[Row]) -> str:
        return f"{short(group[0].said)} is {' and '.join(sorted({row.example.answer or '' for row in group}))}"

    return groups_flawed(groups, distinct(everything), tell)


@check(
    "labels-are-known",
    "identity",
    "tune",
    bug="One class under two spellings, of a single row, or in the test alone: it is not learnt, or not measured.",
    remedy="Spell each label one way; give each class rows on every side of the split.",
    reference=(
        "facebookresearch/fairseq issue 2062; googlecodelabs/tensorflow-for-poets-2 issue 6; cugbrs/MLRSNet issue 4"
    ),
    looks_at="dataset",
)
def labels_are_known(rows: Rows) -> Measurement:
    """Labels that differ from another by white space or case alone, that stand in one row alone (either trained on
    or tested), or that a side of the split does not have. The share of the largest class is told: always saying it is
    the score to beat."""
    counts = Counter(row.example.answer or "" for row in holding(rows, "labels"))
    folded = defaultdict(list)
    for label in counts:
        folded[" ".join(label.split()).casefold()].append(label)
    found = [
        (f"labels {', '.join(map(repr, spelt))}", "one label, spelt differently")
        for spelt in folded.values()
        if len(spelt) > 1
    ]
    found += [(next(r.where for r in rows.rows if r.example.answer == label), f"the only row labelled {label!r}")
              for label, n in counts.items() if n == 1]  # fmt: skip
    everywhere = {name: {row.example.answer or "" for row in side} for name, side in rows.sides.items()}
    found += [(f"label {label!r}", f"not in {name}") for name, has in everywhere.items()
              for label in sorted(set().union(*everywhere.values()) - has)]  # fmt: skip
    label, most = counts.most_common(1)[0]
    measured = flawed(found, len(counts), "labels")
    told = f"{measured.note}; the largest is {label!r} with {most / counts.total():.1%} of {counts.total():,} rows"
    return Measurement(measured.value, measured.bound, told)


@check(
    "choices-differ-and-one-is-right",
    "identity",
    "tune",
    bug="Two choices are alike, one is empty, or none is the right one: the question is scored by chance, or by NaN.",
    remedy="Mend or drop the questions named.",
    reference="medmcqa/medmcqa issue 5; hendrycks/test issue 29; Sakshi113/MMAU issue 12",
    looks_at="dataset",
)
def choices_differ(rows: Rows) -> Measurement:
    """Questions with two equal choices or an empty one (it costs nothing, so it always wins), fewer than two, or whose
    right answer is none of them."""

    def wrong(row: Row) -> str:
        choices = [" ".join(choice.split()) for choice in row.example.choices]
        if row.example.answer is None:
            return "the right one is none of them"
        twice = [choice for choice, n in Counter(choices).items() if n > 1]
        return f"{short(twice[0])} twice" if twice else "" if all(choices) and len(choices) > 1 else "an empty choice"

    return flawed(per_row(holding(rows, "choices"), wrong), distinct(rows.rows), "questions")
