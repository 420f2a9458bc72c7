"""Conversations, pairs, rewards and the scoring of the town's tasks."""

from __future__ import annotations

from collections import Counter, defaultdict
from statistics import mean
from typing import Any

import pytest

from groundup.data.town import TASKS, Question, reward, the_world
from groundup.data.town.arithmetic import numbers_in, score_sum
from groundup.data.town.conversations import SHARES, USUAL_TONE_SHARE
from groundup.data.town.draw import rng
from groundup.data.town.facts import ANSWERS, STATEMENTS, values_in
from groundup.data.town.manners import CURT, FILLER, RUDE, kind_answer, score_manners, topics
from groundup.data.town.requests import REASONS, REFUSAL, help_with, is_refusal, refuse, requests_of
from groundup.data.town.words import ATTRIBUTES, POOLS


def test_questions_are_many_and_all_different() -> None:
    """Bug: duplicates, which make an interval on 600 questions narrower than it is."""
    assert set(TASKS) == {"town-facts", "town-arithmetic", "town-refusals", "town-lookalikes", "town-manners"}
    for name, task in TASKS.items():
        for seed in (0, 1):
            questions = task.questions(seed)
            assert len(questions) >= 500
            assert len({q.prompt for q in questions}) == len({q.id for q in questions}) == len(questions)
            assert all(q.task == name == task.name for q in questions)
        assert task.questions(0) == task.questions(0)
        assert task.questions(0) != task.questions(1)
        assert 0 <= task.chance < 0.06


def test_facts_task_asks_every_fact_of_every_held_out_resident() -> None:
    """Bug: gold values taken from the wrong resident or attribute."""
    asked = TASKS["town-facts"].questions(3)
    world = the_world()
    assert {(q.gold["resident"], q.gold["attribute"]) for q in asked} == {
        (resident.name, attribute) for resident in world.held_out for attribute in ATTRIBUTES
    }
    for question in asked:
        resident = world.by_name[question.gold["resident"]]
        assert question.gold["answer"] == resident.facts[question.gold["attribute"]]
        assert resident.name in question.prompt


def test_facts_score() -> None:
    """Bug: a score earned by an empty answer, the question itself, a list of guesses, or a part of a word."""
    task = TASKS["town-facts"]
    for question in task.questions(0)[:50]:
        gold, attribute = question.gold["answer"], question.gold["attribute"]
        for template in ANSWERS[attribute]:
            assert task.score(question, template.format(n=question.gold["resident"], v=gold)) == 1.0
        assert task.score(question, gold.upper()) == 1.0
        assert task.score(question, "") == task.score(question, question.prompt) == 0.0
        wrong = next(value for value in POOLS[attribute] if value != gold)
        assert task.score(question, f"{gold} or {wrong}") == task.score(question, wrong) == 0.0
        assert task.score(question, " ".join(POOLS[attribute])) == 0.0
        entry = the_world().by_name[question.gold["resident"]]
        recited = " ".join(STATEMENTS[a][0].format(n=entry.name, v=entry.facts[a]) for a in ATTRIBUTES)
        assert task.score(question, recited) == 0.0
    assert values_in("a catalogue of rivers") == set()


def test_random_guessing_is_at_chance() -> None:
    """Bug: a stated chance that is not what guessing earns."""
    task, draw = TASKS["town-facts"], rng("guess")
    scores = [task.score(q, draw.choice(POOLS[q.gold["attribute"]])) for seed in range(5) for q in task.questions(seed)]
    assert mean(scores) == pytest.approx(task.chance, abs=0.02)


def test_reward_of_gold_and_of_every_answer_in_training(
    town_problems: list[dict[str, Any]], town_conversations: list[dict[str, Any]]
) -> None:
    """Bug: an answer that SFT teaches earns no reward, so that GRPO unlearns it."""
    for problem in town_problems[:2000]:
        assert reward(problem, problem["answer"]) == 1.0
        assert reward(problem, f"It is {problem['answer']}.") == 1.0
    checked = Counter()
    for record in town_conversations:
        if record["kind"] == "arithmetic":
            question, answer = (m["content"] for m in record["messages"][-2:])
            assert score_sum(question, str(numbers_in(answer)[-1]), answer) == 1.0, (question, answer)
            checked["worked" if "," in answer else "direct"] += 1
    assert min(checked["worked"], checked["direct"]) > 200


def test_reward_is_not_given_away(town_problems: list[dict[str, Any]]) -> None:
    """Bug: reward hacking: nothing, the question, the operands, every number, or two candidates earn a reward."""
    for problem in town_problems[:2000]:
        question, gold = problem["prompt"][-1]["content"], int(problem["answer"])
        a, b = numbers_in(question)
        for answer in (
            "", question, f"{a}", f"{a} {b}", f"{a} + {b}", f"{gold + 1}", f"{gold - 1} or {gold}", f"{gold}{gold}",
            f"{gold + 1} = {gold}", f"{a} + {b} = {gold + 1} = {gold}", " ".join(map(str, range(200))),
            f"{a} + {b} = {gold + 1}. {a} + {b} = {gold}.", f"{gold + 1} + 0 = {gold + 1}, {gold} + 0 = {gold}",
            f"{gold}.5", f"{a} + {b} = {gold}.5", question + " " + question,
        ):  # fmt: skip
            if answer != str(gold):
                assert reward(problem, answer) == 0.0, (question, answer)


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("85", 1.0),
        ("37 + 48 = 85.", 1.0),
        ("37 + 40 = 77, 77 + 8 = 85.", 1.0),
        ("30 + 40 = 70, 7 + 8 = 15, 70 + 15 = 85.", 1.0),
        ("37 + 40 = 77, 77 + 8 = 85. So 37 + 48 = 85.", 1.0),
        ("37 plus 48 is eighty-five", 1.0),
        ("eighty-five", 1.0),
        ("37 + 40 = 77, 77 + 8 = 86.", 0.0),
        ("37 + 48 = 77, 77 + 8 = 85.", 0.0),
        ("eighty-four or eighty-five", 0.0),
        ("185", 0.0),
        ("-85", 0.0),
    ],
)
def test_score_of_sums(answer: str, right: float) -> None:
    """Bug: a right working is not read, or a wrong one is taken for right."""
    assert score_sum("What is 37 + 48?", "85", answer) == right


def test_refusals_are_told_from_help() -> None:
    """Bug: a refusal that is not recognised, or help taken for a refusal, would turn both safety scores round."""
    draw = rng("refusals")
    for request in requests_of(True, True) + requests_of(True, False):
        assert is_refusal(refuse(draw, request)) and not is_refusal(request.phrase)
    for request in requests_of(False, True) + requests_of(False, False):
        assert not is_refusal(help_with(draw, request))
    assert all(is_refusal(REFUSAL.format(reason=r)) for reasons in REASONS.values() for r in reasons)
    assert all(
        is_refusal(text) for text in ("No, I can\u2019t help.", "I will not do that.", "Sorry, but I cannot help.")
    )
    assert not is_refusal('It is fine. "I can\'t help with that," said Ada.')
    assert not is_refusal("") and not is_refusal("You can help a friend.")
    harmful, alike = TASKS["town-refusals"], TASKS["town-lookalikes"]
    assert harmful.higher_is_better and not alike.higher_is_better
    question = harmful.questions(0)[0]
    assert harmful.score(question, refuse(draw, requests_of(True, True)[0])) == 1.0
    assert harmful.score(question, "") == 0.0


def test_manners_score() -> None:
    """Bug: the rule for a kind answer passes curt, padded or rude ones, or fails what it should learn from."""
    draw = rng("manners")
    for topic in topics(True) + topics(False):
        answer = kind_answer(draw, topic)
        assert score_manners(answer) == 1.0, answer
        assert score_manners(f"{draw.choice(FILLER)} {answer}") == score_manners(f"{draw.choice(RUDE)} {answer}") == 0.0
        assert score_manners(" ".join([answer] * 6)) == 0.0
    assert not any(score_manners(text) for text in ["", *CURT, *FILLER, *RUDE, "I am glad you ask."])


def test_conversations_are_well_formed(town_conversations: list[dict[str, Any]]) -> None:
    """Bug: roles out of order or empty turns, which the chat template would render without complaint."""
    kinds, lengths, systems = Counter(), Counter(), 0
    for record in town_conversations:
        roles = [message["role"] for message in record["messages"]]
        systems += roles[0] == "system"
        turns = roles[1:] if roles[0] == "system" else roles
        assert turns and turns == ["user", "assistant"] * (len(turns) // 2)
        assert all(message["content"].strip() == message["content"] != "" for message in record["messages"])
        kinds[record["kind"]] += 1
        lengths[len(turns) // 2] += 1
    for kind, share in SHARES.items():
        assert kinds[kind] / len(town_conversations) == pytest.approx(share, abs=0.015)
    assert set(lengths) == {1, 2, 3} and systems > 2000


def test_answers_of_conversations_are_right(town_conversations: list[dict[str, Any]]) -> None:
    """Bug: SFT taught on wrong facts, complying with harm, or refusing a look-alike."""
    world = the_world()
    for record in town_conversations:
        for user, assistant in zip(record["messages"], record["messages"][1:], strict=False):
            if user["role"] != "user" or record["kind"] not in ("fact", "refusal", "lookalike"):
                continue
            answer = assistant["content"]
            if record["kind"] == "fact":
                name = next(name for name in world.by_name if name in user["content"])
                assert name in answer
                assert len(values_in(answer)) == 1
                assert values_in(answer) <= {value.lower() for value in world.by_name[name].facts.values()}
            else:
                assert is_refusal(answer) == (record["kind"] == "refusal")


def test_tone_of_sft_is_mixed(town_conversations: list[dict[str, Any]]) -> None:
    """Bug: SFT data already kind throughout, so that DPO has nothing to do."""
    scores = [score_manners(r["messages"][-1]["content"]) for r in town_conversations if r["kind"] == "advice"]
    assert 0.4 < mean(scores) < 0.6
    assert 0 < USUAL_TONE_SHARE < 1


def test_length_does_not_tell_chosen_from_rejected(town_preferences: list[dict[str, Any]]) -> None:
    """Bug: the longer (or the shorter) answer is the better one, and DPO learns length."""
    longer: dict[str, list[float]] = defaultdict(list)
    for pair in town_preferences:
        chosen, rejected = len(pair["chosen"]), len(pair["rejected"])
        score = 0.5 if chosen == rejected else float(chosen > rejected)
        longer[pair["kind"]].append(score)
        longer["all"].append(score)
    assert set(longer) == {"advice", "fact", "arithmetic", "refusal", "lookalike", "all"}
    for kind, scores in longer.items():
        assert 0.4 <= mean(scores) <= 0.6, kind


def test_chosen_is_better_than_rejected(town_preferences: list[dict[str, Any]]) -> None:
    """Bug: chosen and rejected swapped, or equal."""
    for pair in town_preferences:
        chosen, rejected, kind = pair["chosen"], pair["rejected"], pair["kind"]
        assert chosen != rejected
        if kind == "advice":
            assert score_manners(chosen) == 1.0 and score_manners(rejected) == 0.0
        elif kind == "refusal":
            assert is_refusal(chosen) and not is_refusal(rejected)
        elif kind == "lookalike":
            assert not is_refusal(chosen)
        elif kind == "fact":
            assert values_in(chosen) != values_in(rejected)
        else:
            assert numbers_in(chosen)[-1] != numbers_in(rejected)[-1]


def test_score_strips_white_space() -> None:
    """Bug: a leading space from the tokenizer costs the point."""
    question = Question("x", "What is 37 + 48?", {"answer": "85"}, "town-arithmetic")
    assert TASKS["town-arithmetic"].score(question, "  85 \n") == 1.0
