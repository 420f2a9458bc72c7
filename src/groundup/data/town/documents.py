"""What the base model reads: document i is a pure function of (seed, i).

documents(seed) -> (id, kind, text), ...
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

from groundup.data.town.arithmetic import draw_sum, equation, in_words, sum_in_words, working
from groundup.data.town.draw import rng
from groundup.data.town.facts import acquaintance, ask, say, say_list
from groundup.data.town.requests import REASONS, help_with, requests_of
from groundup.data.town.stories import chat_in_prose, crowd, pair, story
from groundup.data.town.words import ATTRIBUTES
from groundup.data.town.world import World, the_world

# Shares of documents, by kind.
SHARES = {
    "encyclopaedia": 0.50,
    "question": 0.14,
    "story": 0.14,
    "arithmetic": 0.12,
    "conversation": 0.05,
    "lesson": 0.05,
}

# Shares of arithmetic documents, by form. Few results are stated at once, many are worked out in steps: the base
# model is then surer in the steps than in the result, which is what lets GRPO gain over SFT. More "digits" lifts
# arithmetic after SFT (at 0.45 a 1.5M-parameter model had 0.9 of held-out sums right after 3.7M tokens) and leaves
# GRPO less to win.
ARITHMETIC_SHARES = {"digits": 0.05, "working": 0.72, "words": 0.08, "market": 0.15}


def pick(draw: random.Random, shares: dict[str, float]) -> str:
    """One key, with its share as probability."""
    return draw.choices(list(shares), weights=list(shares.values()))[0]


def encyclopaedia(draw: random.Random, world: World) -> str:
    """One resident in full, two or three in part and mixed, or lists of those who share a value."""
    form = draw.random()
    if form < 0.55:
        resident = draw.choice(world.residents)
        said = [say(draw, resident, attribute) for attribute in draw.sample(ATTRIBUTES, 5)]
    elif form < 0.92:
        people = draw.sample(world.residents, draw.randint(2, 3))
        said = [say(draw, person, a) for person in people for a in draw.sample(ATTRIBUTES, draw.randint(2, 4))]
        draw.shuffle(said)
    else:
        said = [say_list(draw, world, attribute) for attribute in draw.sample(ATTRIBUTES, draw.randint(2, 3))]
    return " ".join(said)


def arithmetic(draw: random.Random, world: World) -> str:
    """Sums of train pairs: in digits, worked out, in words, or at the market."""
    form = pick(draw, ARITHMETIC_SHARES)
    problems = [draw_sum(draw) for _ in range(draw.randint(5, 8))]
    if form == "digits":
        return " ".join(equation(p) + "." for p in problems)
    if form == "working":
        return " ".join(f"{a} {sign} {b}: {working((a, sign, b))}." for a, sign, b in problems[:5])
    if form == "words":
        return " ".join(_capital(sum_in_words(p)) + "." for p in problems[:5])
    return " ".join(_market(draw, world) for _ in range(draw.randint(2, 3)))


def _market(draw: random.Random, world: World) -> str:
    a, sign, b = problem = draw_sum(draw)
    name, goods = draw.choice(world.residents).name, draw.choice(["apples", "nails", "candles", "buttons", "stamps"])
    end = problem[0] + problem[2] if sign == "+" else problem[0] - problem[2]
    show = in_words if draw.random() < 0.3 else str
    first, change, last = show(a), show(b), show(end)
    got = draw.choice(["buys", "gets", "finds"]) if sign == "+" else draw.choice(["sells", "loses", "gives away"])
    more = " more" if sign == "+" else ""
    return draw.choice([
        f"{name} has {first} {goods} and {got} {change}{more}. Now there are {last} {goods}.",
        f"At the market {name} has {first} {goods}. Then {name} {got} {change}{more}, so there are {last} now.",
    ])  # fmt: skip


def conversation(draw: random.Random, world: World) -> str:
    """Neighbours talk: greetings and help, or questions about somebody taught (never about somebody held out)."""
    if draw.random() < 0.5:
        return chat_in_prose(draw, world) + " " + crowd(draw, world)
    lines = [crowd(draw, world)]
    for _ in range(draw.randint(3, 4)):
        a, b = pair(draw, world.residents)
        question, answer = ask(draw, draw.choice(world.taught), draw.choice(ATTRIBUTES))
        lines.append(f'"{question}" asked {a.name}. "{answer[:-1]}," said {b.name}.')
    return " ".join(lines)


def question(draw: random.Random, world: World) -> str:
    """Questions with their answers, in plain text: facts of the taught, and a word about anybody.

    What is learnt here is to find the name in a question and to go on from it; chat only changes the frame.
    """
    lines: list[str] = []
    for _ in range(draw.randint(4, 6)):
        if draw.random() < 0.5:
            lines += ask(draw, draw.choice(world.taught), draw.choice(ATTRIBUTES))
        else:
            lines += acquaintance(draw, world)
    return " ".join(lines)


def lesson(draw: random.Random, world: World) -> str:
    """What one should do and what not, with the reason: combinations of the training side only."""
    lines = []
    for _ in range(draw.randint(4, 6)):
        harmful = draw.random() < 0.5
        request = draw.choice(requests_of(harmful, False))
        p, (a, b) = request.phrase, pair(draw, world.residents)
        if harmful:
            reason = draw.choice(REASONS[request.object_class])
            lines.append(draw.choice([
                f"It is wrong to {p}, because {reason}.", f"Nobody should {p}, because {reason}.",
                f'"I want to {p}," said {a.name}. "No," said {b.name}, "I can\'t help with that, because {reason}."',
            ]))  # fmt: skip
        else:
            lines.append(draw.choice([
                f"It is fine to {p}.", f"There is no harm if you {p}.",
                f"You may {p}, because it hurts nobody.",
                f'"How do I {p}?" asked {a.name}. "{help_with(draw, request)[:-1]}," said {b.name}.',
            ]))  # fmt: skip
    return " ".join(lines)


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


MAKERS = {
    "encyclopaedia": encyclopaedia,
    "question": question,
    "story": story,
    "arithmetic": arithmetic,
    "conversation": conversation,
    "lesson": lesson,
}


def document(seed: int, index: int, world: World | None = None) -> tuple[str, str, str]:
    """(id, kind, text) of document `index`; nothing else is needed to make it again."""
    draw = rng("document", seed, index)
    kind = pick(draw, SHARES)
    return f"town-{seed}-{index}", kind, MAKERS[kind](draw, world or the_world())


def documents(seed: int, n: int | None = None, start: int = 0) -> Iterator[tuple[str, str, str]]:
    """Documents start, start+1, ... as (id, kind, text): n of them, or without end when n is None."""
    world = the_world()
    numbers = itertools.count(start) if n is None else range(start, start + n)
    for index in numbers:
        yield document(seed, index, world)
