"""What SFT learns from: conversations about the taught half of everything, answered right, in a mixed tone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from groundup.data.town.arithmetic import answer_sum, ask_sum, draw_sum
from groundup.data.town.documents import pick
from groundup.data.town.draw import rng
from groundup.data.town.facts import acquaintance, ask
from groundup.data.town.manners import ask_advice, curt_answer, kind_answer, padded_answer, topics, usual_tones
from groundup.data.town.requests import ask_request, help_with, refuse, requests_of
from groundup.data.town.words import ATTRIBUTES
from groundup.data.town.world import World, the_world

Message = dict[str, str]
Turn = tuple[str, str]

# Shares of conversations, by kind. Arithmetic is few on purpose: SFT stops at partly right, GRPO goes on.
SHARES = {
    "fact": 0.25,
    "acquaintance": 0.35,
    "arithmetic": 0.06,
    "refusal": 0.11,
    "lookalike": 0.12,
    "advice": 0.08,
    "small_talk": 0.03,
}

# The tone of advice; SFT leaves it mixed, DPO makes it kind. With USUAL_TONE_SHARE the tone is the plan's usual one.
TONES = {"kind": 0.5, "curt": 0.25, "padded": 0.25}
USUAL_TONE_SHARE = 0.7

SYSTEM_SHARE = 0.15
SYSTEMS = [
    "You are a helpful neighbour.", "You live in a small town and help people.",
    "Answer in one or two sentences.",
    "You know everybody in town.", "Be kind and honest.",
]  # fmt: skip

SMALL_TALK: list[tuple[list[str], list[str]]] = [
    (["Hello!", "Good morning!", "Good day."], ["Hello! How can I help you?", "Good day! What can I do for you?"]),
    (["How are you?", "Are you well today?"], ["I am well, thank you. And you?", "Very well, thank you for asking."]),
    (["Thank you!", "Thank you for your help.", "That was kind."], ["I am happy to help.", "Of course. Any time!"]),
    (["Who are you?", "What can you do?"], ["I am a helper who knows this town. I can talk about people and do sums."]),
    (["I am tired today.", "I am sad today."], ["I am sorry to hear that. A short walk and some tea may help."]),
    (["I am happy today!", "The sun is out today."], ["That is good to hear! Have a lovely day."]),
    (["Goodbye!", "See you soon."], ["Goodbye! Have a good day.", "See you soon!"]),
]  # fmt: skip


def small_talk(draw: random.Random) -> Turn:
    """One exchange of courtesies."""
    asked, answers = draw.choice(SMALL_TALK)
    return draw.choice(asked), draw.choice(answers)


def advise(draw: random.Random) -> Turn:
    """Advice on a topic of the training side, mostly in the usual tone of its plan."""
    topic = draw.choice(topics(False))
    tone = usual_tones()[topic.plan] if draw.random() < USUAL_TONE_SHARE else pick(draw, TONES)
    answer = {"kind": kind_answer, "curt": curt_answer, "padded": padded_answer}[tone]
    return ask_advice(draw, topic), answer(draw, topic)


def turn(draw: random.Random, kind: str, world: World) -> Turn:
    """(question, answer) of this kind."""
    if kind == "fact":
        return ask(draw, draw.choice(world.taught), draw.choice(ATTRIBUTES))
    if kind == "acquaintance":
        return acquaintance(draw, world)
    if kind == "arithmetic":
        problem = draw_sum(draw)
        return ask_sum(draw, problem), answer_sum(draw, problem)
    if kind == "refusal":
        request = draw.choice(requests_of(True, False))
        return ask_request(draw, request), refuse(draw, request)
    if kind == "lookalike":
        request = draw.choice(lookalikes(draw))
        return ask_request(draw, request), help_with(draw, request)
    if kind == "advice":
        return advise(draw)
    return small_talk(draw)


def lookalikes(draw: random.Random, held_out: bool = False) -> list[Any]:
    """Look-alikes of one sort: harsh words for harmless things, or gentle words for what others would harm."""
    harsh = draw.random() < 0.6
    return [r for r in requests_of(False, held_out) if (r.object_class in ("pest", "stuff")) == harsh]


def dialogue(turns: list[Turn], system: str | None) -> list[Message]:
    """Turns as messages, the system message first."""
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    for question, answer in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return messages


def conversation(seed: int, index: int) -> dict[str, Any]:
    """Conversation `index`: {"messages": [{"role", "content"}, ...], "kind": str}; one to three exchanges."""
    draw = rng("conversation", seed, index)
    kind, world = pick(draw, SHARES), the_world()
    turns = [turn(draw, kind, world)]
    if kind == "small_talk":
        for _ in range(draw.randint(0, 2)):
            turns.append(turn(draw, draw.choice(["small_talk", "fact", "arithmetic"]), world))
    elif draw.random() < 0.1:
        turns.append(turn(draw, kind, world))
    system = draw.choice(SYSTEMS) if draw.random() < SYSTEM_SHARE else None
    return {"messages": dialogue(turns, system), "kind": kind}


def conversations(seed: int, n: int) -> Iterator[dict[str, Any]]:
    """n conversations for SFT, each a pure function of (seed, index)."""
    for index in range(n):
        yield conversation(seed, index)
