"""Do published rows, and the model's own answers, become the conversations, pairs and problems that they say?"""

from __future__ import annotations

import json
from typing import Any

from groundup.recipe.schema import ChatSource, SftSource
from groundup.tune import dpo, formats, grpo
from groundup.tune.formats import Messages, Pair, Problem
from groundup.verify.check import Measurement, NotApplicable, check, violations
from groundup.verify.checks.rollouts import RIGHT, problems_of, scripted
from groundup.verify.subject import Subject

SYSTEM, USER, AGAIN = "Be brief.", "How many?", "Sure?"


def said(*turns: str) -> Messages:
    """Turns of user and assistant in turn."""
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(turns)]


_SYSTEM = {"role": "system", "content": SYSTEM}
_TALK = [_SYSTEM, *said(USER, "Five.", AGAIN, "Yes.")]
# (format, row, the conversation that it is)
CONVERSATIONS: list[tuple[str, dict[str, Any], Messages]] = [
    ("messages", {"messages": _TALK}, _TALK),
    ("messages", {"messages": said(USER, "Five.")}, said(USER, "Five.")),
    ("alpaca", {"instruction": USER, "input": "", "output": "Five."}, said(USER, "Five.")),
    ("alpaca", {"instruction": USER, "output": "Six.", "input": "Ox, cow"}, said(f"{USER}\n\nOx, cow", "Six.")),
    (
        "alpaca",
        {"instruction": USER, "input": "Ox", "output": "One.", "system": SYSTEM},
        [_SYSTEM, *said(f"{USER}\n\nOx", "One.")],
    ),
    ("prompt_completion", {"prompt": USER, "completion": "Seven."}, said(USER, "Seven.")),
    ("prompt_completion", {"prompt": _TALK[:-1], "completion": "No."}, [*_TALK[:-1], *said("", "No.")[1:]]),
    ("gsm8k", {"question": USER, "answer": "2+2=4\n#### 4"}, said(USER, "2+2=4\n#### 4")),
    (
        "human_assistant",
        {"text": "### Human: How many?### Assistant: Five.### Human: Sure?### Assistant: Yes."},
        said(USER, "Five.", AGAIN, "Yes."),
    ),
]
PAIRS: list[tuple[dict[str, Any], Pair]] = [
    ({"prompt": USER, "chosen": "Five.", "rejected": "Six."}, Pair(said(USER), "Five.", "Six.")),
    ({"rejected": "Nine.", "chosen": "Ten.", "prompt": _TALK[:-1]}, Pair(_TALK[:-1], "Ten.", "Nine.")),
    (
        {"instruction": USER, "input": "Ox, cow", "chosen": "Two.", "rejected": "One.", "output": "One."},
        Pair(said(f"{USER}\n\nOx, cow"), "Two.", "One."),
    ),
    (
        {"prompt": AGAIN, "chosen": said(AGAIN, "Yes."), "rejected": said(AGAIN, "No.")},
        Pair(said(AGAIN), "Yes.", "No."),
    ),
]
PROBLEMS: list[tuple[dict[str, Any], Problem]] = [
    (
        {"question": USER, "answer": "12 of 3 and 1,001 of 4\n#### 1,013"},
        Problem(said(USER), "1013", "gsm8k"),
    ),
    ({"prompt": USER, "answer": "12"}, Problem(said(USER), "12", "number")),
    ({"prompt": _TALK[:-1], "answer": "-7"}, Problem(_TALK[:-1], "-7", "number")),
    ({"prompt": "2 + 3?", "answer": "5", "kind": "arithmetic"}, Problem(said("2 + 3?"), "5", "arithmetic")),
]


@check(
    "rows-become-what-they-say",
    "identity",
    "tune",
    bug="Reading a row loses the system turn or Alpaca's input, swaps a pair's sides, or takes working for an answer.",
    remedy="See to_messages, to_pair and to_problem in tune/formats.py.",
    reference=(
        "ConardLi/easy-dataset issue 549; unslothai/unsloth pull 11053; allenai/open-instruct pull 1892; "
        "haoliuhl/chain-of-hindsight issue 10"
    ),
)
def rows_become_what_they_say(subject: Subject) -> Measurement:
    """Rows of a file, in every layout that is read, that do not become the conversation, pair or problem written beside
    them, word by word and in order; conversations by their keys and by the format named."""
    found, looked = [], 0
    with subject.scratch() as folder:

        def written(name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
            (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            return {"path": name}

        source: Any = written("chats.jsonl", [row for _, row, _ in CONVERSATIONS])
        got: list[Any] = list(formats.conversations([SftSource(**source)], 0, folder))
        wanted: list[Any] = [talk for _, _, talk in CONVERSATIONS]
        for kind in dict.fromkeys(kind for kind, _, _ in CONVERSATIONS):
            source = written(f"{kind}.jsonl", [row for its, row, _ in CONVERSATIONS if its == kind])
            got += formats.conversations([SftSource(**source, format=kind)], 0, folder)
            wanted += [talk for its, _, talk in CONVERSATIONS if its == kind]
        source = written("pairs.jsonl", [row for row, _ in PAIRS])
        got += formats.pairs([ChatSource(**source)], 0, folder)
        wanted += [pair for _, pair in PAIRS]
        source = written("problems.jsonl", [row for row, _ in PROBLEMS])
        got += formats.verifiable([ChatSource(**source)], 0, folder)
        wanted += [problem for _, problem in PROBLEMS]
    looked = len(wanted)
    if len(got) != looked:
        found.append(f"{looked} rows become {len(got)}")
    found += [f"{want} is read as {have}" for have, want in zip(got, wanted, strict=False) if have != want]
    return violations(found, looked)


@check(
    "sampled-pairs-prefer-the-right",
    "identity",
    "tune",
    bug="Of the model's own answers the wrong one is set over the right one, or one to another problem.",
    remedy="One right over one wrong answer to the same problem, none where all agree (sample_pairs in tune/dpo.py).",
    reference="allenai/open-instruct pull 1892; huggingface/trl issue 3098",
)
def sampled_pairs_prefer_the_right(subject: Subject) -> Measurement:
    """Pairs made of a scripted model's answers whose chosen is not a right answer to their prompt or whose rejected is
    not a wrong one; problems answered both ways without a pair, others with one; counts that are not the script's.
    Seven problems, four answers each, no two alike."""
    if subject.recipe.dpo is None:
        raise NotApplicable("the recipe has no dpo section")
    problems, found = problems_of(), []
    with scripted(subject, problems) as script:
        pairs, made = dpo.sample_pairs(subject.chat_model(), subject.tokenizer, problems, 4, 0)
    answers = {
        right: {(n, done.text) for n, k, done in script.said if (k in RIGHT[n]) == right} for right in (True, False)
    }
    expected = [n for n, right in enumerate(RIGHT) if 0 < len(right) < 4]
    for n, pair in zip(expected, pairs, strict=False):
        if pair.prompt != problems[n].prompt:
            found.append(f"problem {n}: another's prompt")
        if (n, pair.chosen) not in answers[True]:
            found.append(f"problem {n}: {pair.chosen!r} is chosen")
        if (n, pair.rejected) not in answers[False]:
            found.append(f"problem {n}: {pair.rejected!r} is rejected")
    counts = {"sampled": 4 * len(problems), "right": sum(map(len, RIGHT)), "pairs": len(expected)}
    if len(pairs) != len(expected) or any(made.get(name) != value for name, value in counts.items()):
        found.append(f"{len(pairs)} pairs, {made}; {counts} in the script")
    return violations(found, 3 * len(expected) + 1)


@check(
    "held-out-problems-are-answered-greedily",
    "identity",
    "tune",
    bug="Accuracy on held-out problems is of sampled answers, or of answers to others: gaming looks like luck.",
    remedy="Temperature 0, one answer a problem, judged by its own problem (held_out_accuracy in tune/grpo.py).",
    reference="huggingface/lighteval issue 559; ethz-spylab/agentdojo pull 141; huggingface/trl issue 3098",
)
def held_out_problems_are_answered_greedily(subject: Subject) -> Measurement:
    """|accuracy - share of seven problems that a scripted model answers rightly|, plus 1 if a problem is not asked
    exactly once, and 1 if any is asked at a temperature, with a cut, or for another length. Ones over seven: exact."""
    if subject.recipe.grpo is None:
        raise NotApplicable("the recipe has no grpo section")
    problems = problems_of()
    with scripted(subject, problems) as script:
        got = grpo.held_out_accuracy(subject.chat_model(), subject.tokenizer, problems, 9)
    share = sum(0 in right for right in RIGHT) / len(RIGHT)
    once = sorted(n for n, _, _ in script.said) == list(range(len(problems)))
    greedy = all((p.temperature, p.top_k, p.top_p, p.max_new_tokens) == (0.0, 0, 1.0, 9) for p in script.params)
    note = f"accuracy {got:.3f}, {'' if once else 'not '}each asked once, {'' if greedy else 'not '}greedily"
    return Measurement(abs(got - share) + (not once) + (not greedy), 1e-12, note)
