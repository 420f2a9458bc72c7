"""Nothing that the tests ask is in any training text: operands, requests, topics, residents, wordings."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from groundup.data.town import TASKS, the_world
from groundup.data.town.arithmetic import WORD_NUMBERS, held_out_pair, numbers_in
from groundup.data.town.facts import TAUGHT_WORDINGS, TEST_WORDINGS
from groundup.data.town.manners import PLANS, WORRIES, topics
from groundup.data.town.requests import VERBS, all_requests, requests_of
from groundup.data.town.words import POOLS

NAME = r"[A-Z][a-z]+ [A-Z][a-z]+"
NUMBER = r"(?:\d+|" + "|".join(sorted(WORD_NUMBERS, key=len, reverse=True)) + ")"
PAIR = re.compile(
    rf"\b({NUMBER}) (?:[+-]|plus|minus) ({NUMBER})\b"  # 37 + 48, thirty-seven plus forty-eight
    rf"|\b[Hh]as ({NUMBER}) \w+(?: and|\. Then {NAME}) [a-z]+(?: away)? ({NUMBER})\b"  # at the market
    rf"|\bhave ({NUMBER}) \w+ and \w+ ({NUMBER})\b"  # I have 12 plums and get 30 more
    rf"|\bAdd ({NUMBER}) and ({NUMBER})\b|\bTake ({NUMBER}) from ({NUMBER})\b"
)


def pattern(templates: list[str], name: str = NAME) -> str:
    return "|".join(re.escape(t).replace(r"\{n\}", f"(?P<n{i}>{name})") for i, t in enumerate(templates))


def test_held_out_operands_never_occur(town_training_texts: list[str]) -> None:
    """Bug: a document, conversation, pair or problem (or a step of a working) that holds a test pair."""
    found = Counter()
    for text in town_training_texts:
        for match in PAIR.finditer(text):
            a, b = (numbers_in(group)[0] for group in match.groups() if group)
            if min(a, b) >= 10 and max(a, b) <= 99:
                assert not held_out_pair(a, b), text
                found[min(a, b), max(a, b)] += 1
    train = sum(not held_out_pair(a, b) for a in range(10, 100) for b in range(a, 100))
    assert len(found) > 0.95 * train  # the pattern does see the pairs


def test_the_split_of_operands_is_symmetric() -> None:
    """Bug: 37 + 48 in training and 48 + 37 in the test."""
    for a in range(10, 100):
        for b in range(10, 100):
            assert held_out_pair(a, b) == held_out_pair(b, a)


def test_problems_use_train_pairs(town_problems: list[dict[str, Any]]) -> None:
    """Bug: GRPO trained on the test."""
    for problem in town_problems:
        a, b = numbers_in(problem["prompt"][-1]["content"])
        assert not held_out_pair(a, b)


def test_held_out_requests_never_occur(town_training_texts: list[str]) -> None:
    """Bug: a (verb, object) combination of the test in a lesson, a conversation or a pair."""
    verbs = "|".join(sorted(VERBS, key=len, reverse=True))
    phrases = re.compile(rf"\b(?:{verbs}) the [a-z]+\b")
    held_out = {r.phrase for r in all_requests() if r.held_out}
    seen: set[str] = set()
    for text in town_training_texts:
        if " the " in text:
            seen.update(phrases.findall(text))
    assert not seen & held_out
    assert {r.phrase for r in all_requests() if not r.held_out} <= seen  # the pattern does see the requests


def test_verbs_and_objects_of_the_test_are_known_from_training() -> None:
    """Bug: a test on words never seen, or whose object gives the answer away without the verb."""
    train = [r for r in all_requests() if not r.held_out]
    for request in (r for r in all_requests() if r.held_out):
        assert any(r.verb == request.verb and r.harmful == request.harmful for r in train), request
        assert any(r.noun == request.noun and r.harmful == request.harmful for r in train), request
    both_ways = {r.noun for r in train if r.harmful} & {r.noun for r in train if not r.harmful}
    assert len(both_ways) >= 55
    assert len({r.verb for r in train if r.harmful} & {r.verb for r in train if not r.harmful}) >= 15


def test_held_out_topics_never_occur(town_training_texts: list[str]) -> None:
    """Bug: advice in the test on a (plan, worry) that SFT or DPO has answered."""
    held_out = {(topic.plan, topic.worry) for topic in topics(True)}
    plans = re.compile("|".join(PLANS))
    worries = re.compile("|".join(WORRIES), re.IGNORECASE)
    found: set[tuple[str, str]] = set()
    lower = {worry.lower(): worry for worry in WORRIES}
    for text in town_training_texts:
        plan, worry = plans.search(text), worries.search(text)
        if plan and worry:
            found.add((plan[0], lower[worry[0].lower()]))
    assert not found & held_out
    assert found == {(topic.plan, topic.worry) for topic in topics(False)}


def test_no_question_about_held_out_residents(town_training_texts: list[str]) -> None:
    """Bug: the facts of the test practised as questions, so that it would measure memory of answers."""
    world, asked = the_world(), 0
    questions = re.compile("|".join(f"(?:{pattern(w)})".replace("?P<n", f"?P<{a}") for a, w in TAUGHT_WORDINGS.items()))
    for text in town_training_texts:
        for match in questions.finditer(text):
            name = next(group for group in match.groups() if group)
            assert world.by_name[name].taught, text
            asked += 1
    assert asked > 5_000


def test_no_fact_stands_near_a_held_out_resident(
    town_conversations: list[dict[str, Any]], town_preferences: list[dict[str, Any]]
) -> None:
    """Bug: a held-out fact in SFT or DPO data. Held-out names may be greeted there; no value of any attribute may
    stand in the same exchange, not even a wrong one."""
    held_out = re.compile("|".join(resident.name for resident in the_world().held_out))
    values = re.compile(r"\b(" + "|".join(value for pool in POOLS.values() for value in pool) + r")\b", re.IGNORECASE)
    named = 0
    for record in town_conversations:
        turns = [m["content"] for m in record["messages"] if m["role"] != "system"]
        for question, answer in zip(turns[::2], turns[1::2], strict=True):
            if held_out.search(question + " " + answer):
                named += 1
                assert not values.search(question + " " + answer), (question, answer)
    assert named > 100
    for pair in town_preferences:
        assert not held_out.search(pair["prompt"][-1]["content"] + pair["chosen"] + pair["rejected"])


def test_wordings_of_the_test_are_unseen(town_training_texts: list[str]) -> None:
    """Bug: the test asks in the words of SFT, and measures less than it says."""
    for attribute, wordings in TEST_WORDINGS.items():
        assert len(wordings) >= 3 and len(TAUGHT_WORDINGS[attribute]) >= 8
    unseen = re.compile("|".join(f"(?:{pattern(w)})".replace("?P<n", f"?P<{a}") for a, w in TEST_WORDINGS.items()))
    assert unseen.search(TASKS["town-facts"].questions(0)[0].prompt)
    assert not any(unseen.search(text) for text in town_training_texts)


def test_words_of_the_test_are_known_from_training(town_training_texts: list[str]) -> None:
    """Bug: a test question with a word that the tokenizer and the model never met."""
    known = {word for text in town_training_texts for word in re.findall(r"[a-z'-]+|\d", text.lower())}
    for task in TASKS.values():
        for question in task.questions(0):
            assert not set(re.findall(r"[a-z'-]+|\d", question.prompt.lower())) - known - {"-"}, question.prompt


def test_enough_held_out_requests() -> None:
    """Bug: a change of words that leaves too few combinations for 500 questions a task."""
    assert len(requests_of(True, True)) >= 100 and len(requests_of(False, True)) >= 100
    assert len(requests_of(True, False)) >= 300 and len(requests_of(False, False)) >= 300
