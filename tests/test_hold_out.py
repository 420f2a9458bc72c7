"""What a tuning stage holds out is never trained on, and neither is what it asks."""

from __future__ import annotations

import pytest

from groundup.data import town
from groundup.tune import hold_out as module
from groundup.tune.formats import Pair, Problem, to_messages, to_pair, to_problem
from groundup.tune.hold_out import MOST_HELD_OUT, hold_out, prompt_of


def chat(question: str, answer: str, system: str = "") -> list[dict[str, str]]:
    first = [{"role": "system", "content": system}] if system else []
    return [*first, {"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def asked(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


def test_copies_land_on_one_side():
    """Bug: once enough are held out, an equal copy of a held one slips into training (36 of 256 did)."""
    items = [f"{n % 9000}" for n in range(20_000)]
    held, rest = hold_out(items, str)
    assert held and not set(held) & set(rest)
    assert len(held) + len(rest) == len(items)
    assert len(held) == MOST_HELD_OUT


def test_few_items_hold_out_a_whole_prompt():
    """Bug: the fallback holds out one copy and trains on the other."""
    assert hold_out(["b", "a", "a"], str) == (["b"], ["a", "a"])
    held, rest = hold_out(["a", "b", "a", "b", "a", "b", "c", "c", "d", "d"], str)  # no prompt is as rare as one item
    assert len(held) == 2 and not set(held) & set(rest)


def test_one_item_alone_does_both():
    """Bug: a smoke test on one row is refused, or trains on nothing."""
    assert hold_out(["a"], str) == (["a"], ["a"])
    assert hold_out([], str) == ([], [])


@pytest.mark.parametrize(
    "make",
    [
        lambda n: chat(f"Question {n % 2000}?", f"Answer {n}."),
        lambda n: Pair(asked(f"Question {n % 2000}?"), f"Answer {n}.", "No."),
        lambda n: Problem(asked(f"Question {n % 2000}?"), str(n), "number"),
    ],
    ids=["conversations", "pairs", "problems"],
)
def test_a_prompt_with_two_answers_is_on_one_side(make):
    """Bug: the split is by the whole item, so a prompt answered twice is both trained on and validated with."""
    items = [make(n) for n in range(4000)]
    held, rest = hold_out(items)
    assert not {prompt_of(i) for i in held} & {prompt_of(i) for i in rest}
    assert len(held) == round(0.02 * len(items)) and len(held) + len(rest) == len(items)


def test_white_space_case_and_punctuation_make_no_other_prompt():
    """Bug: "What is it? " trains and "what is it" validates."""
    assert prompt_of(chat("Well-known\u00a0names, please!", "a")) == prompt_of(chat("well known names please", "b"))
    assert prompt_of(chat("And then ... ?!", "a")) == prompt_of(chat("and then", "b"))
    assert prompt_of(chat("What is 5!?", "a")) != prompt_of(chat("What is 5?", "b"))
    assert prompt_of(chat("What is 3 - 2?", "a")) != prompt_of(chat("What is 3 + 2?", "b"))
    assert prompt_of(chat("What\n is it? ", "a")) == prompt_of(chat("what is it?", "b"))
    assert prompt_of(chat("What is it?", "a", "Be brief.")) != prompt_of(chat("What is it?", "a"))
    assert prompt_of(chat("A B", "")) != prompt_of(chat("AB", ""))


def test_a_conversation_is_told_by_its_opening():
    """Bug: a second exchange makes another prompt of the first, whose answer is scored on both sides."""
    longer = [*chat("Hi", "Hello"), *chat("Who are you?", "A model.")]
    assert prompt_of(longer) == prompt_of(chat("Hi", "Good day"))
    assert prompt_of([{"role": "assistant", "content": "Welcome."}, *chat("Hi", "Hello")]) == prompt_of(chat("Hi", ""))


def test_one_prompt_for_everything_is_still_split():
    """Bug: all items ask the same, all are held out, and training validates on what it trains on (or on half)."""
    items = [chat("Tell a story.", f"Story {n}.") for n in range(500)]
    held, rest = hold_out(items)
    assert len(held) == 10 and len(rest) == 490 and not [i for i in held if i in rest]
    two = [*items, *(chat("Tell a joke.", f"Joke {n}.") for n in range(500))]
    assert len(hold_out(two)[0]) == 20


def test_the_split_is_the_hashes_not_the_order():
    """Bug: the last rows are held out, or the first: a file sorted by subject validates on one subject."""
    items = [chat(f"Question {n}?", "Answer.") for n in range(1000)]
    held = {prompt_of(i) for i in hold_out(items)[0]}
    assert held == {prompt_of(i) for i in hold_out(items[::-1])[0]}
    places = sorted(n for n, i in enumerate(items) if prompt_of(i) in held)
    assert places[0] < 500 <= places[-1]


@pytest.mark.parametrize(
    ("supply", "convert", "n"),
    [(town.conversations, to_messages, 8000), (town.preferences, to_pair, 6000), (town.problems, to_problem, 4000)],
    ids=["conversations", "preferences", "problems"],
)
def test_the_town_shares_no_prompt(supply, convert, n):
    """Bug: of the town's endless supply, prompts that are trained on validate (69 of 250 conversations did)."""
    items = [convert(row) for row in supply(1, n)]
    held, rest = hold_out(items)
    assert not {prompt_of(i) for i in held} & {prompt_of(i) for i in rest}
    assert 0.9 * min(0.02 * n, MOST_HELD_OUT) <= len(held) <= min(0.02 * n, MOST_HELD_OUT)


def test_the_stages_split_by_prompt():
    """Bug: a stage brings its own split, by the whole item."""
    from groundup.stages import training

    assert training.hold_out is module.hold_out
