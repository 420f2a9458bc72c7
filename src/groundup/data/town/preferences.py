"""Pairs for DPO: right and kind over wrong, rude, curt or padded; refusing harm over helping with it, and never else.

What is chosen is sometimes the longer and sometimes the shorter answer, so that length says nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

from groundup.data.town.arithmetic import Sum, ask_sum, draw_sum, equation, result, working
from groundup.data.town.conversations import lookalikes
from groundup.data.town.documents import pick
from groundup.data.town.draw import rng
from groundup.data.town.facts import answer_with, ask
from groundup.data.town.manners import (
    CURT,
    ask_advice,
    curt_answer,
    kind_answer,
    padded_answer,
    rude_answer,
    topics,
)
from groundup.data.town.requests import Request, ask_request, help_with, refuse, requests_of
from groundup.data.town.words import ATTRIBUTES, POOLS
from groundup.data.town.world import the_world

SHARES = {"advice": 0.50, "fact": 0.08, "arithmetic": 0.04, "refusal": 0.24, "lookalike": 0.14}
BAD_TONES = {"curt": 0.30, "padded": 0.50, "rude": 0.20}

Pair = tuple[str, str, str]  # (question, chosen, rejected)


def _advice(draw: random.Random) -> Pair:
    topic = draw.choice(topics(False))
    bad = {"curt": curt_answer, "padded": padded_answer, "rude": rude_answer}[pick(draw, BAD_TONES)]
    return ask_advice(draw, topic), kind_answer(draw, topic), bad(draw, topic)


def _fact(draw: random.Random) -> Pair:
    resident, attribute = draw.choice(the_world().taught), draw.choice(ATTRIBUTES)
    question, right = ask(draw, resident, attribute)
    others = [value for value in POOLS[attribute] if value != resident.facts[attribute]]
    return question, right, answer_with(draw, resident, attribute, draw.choice(others))


def _wrong_sum(draw: random.Random, problem: Sum) -> str:
    """A wrong result, direct or after a working that slips in its last step; never negative."""
    shown = draw.choice([equation, working])(problem)
    wrong = result(problem) + draw.choice([-10, -2, -1, 1, 2, 10])
    wrong = result(problem) + 1 if wrong < 0 else wrong
    return f"{shown[: shown.rindex('=')]}= {wrong}."


def _arithmetic(draw: random.Random) -> Pair:
    problem = draw_sum(draw)
    right = draw.choice([equation, working])(problem) + "."
    return ask_sum(draw, problem), right, _wrong_sum(draw, problem)


def _would_comply(draw: random.Random, request: Request) -> str:
    """Agreement without instructions: what is to be rejected, and nothing that could be of use."""
    return draw.choice([
        f"Of course, I am happy to help you {request.phrase}, because it is easy and you can do it at any time of day.",
        f"You can {request.phrase} in a few minutes.",
        f"It is best to {request.phrase} slowly and with care. Take your time and start with the easy part today.",
        f"To {request.phrase}, start early in the morning, when it is quiet, and ask a friend to come along with you.",
    ])  # fmt: skip


def _refusal(draw: random.Random) -> Pair:
    request = draw.choice(requests_of(True, False))
    return ask_request(draw, request), refuse(draw, request), _would_comply(draw, request)


def _lookalike(draw: random.Random) -> Pair:
    request = draw.choice(lookalikes(draw))
    harmful = draw.choice(requests_of(True, False))
    bad = refuse(draw, harmful) if draw.random() < 0.62 else draw.choice(CURT)
    return ask_request(draw, request), help_with(draw, request), bad


MAKERS: dict[str, Callable[[random.Random], Pair]] = {
    "advice": _advice,
    "fact": _fact,
    "arithmetic": _arithmetic,
    "refusal": _refusal,
    "lookalike": _lookalike,
}


def preference(seed: int, index: int) -> dict[str, Any]:
    """Pair `index`: {"prompt": messages, "chosen": str, "rejected": str, "kind": str}; the two answers differ."""
    draw = rng("preference", seed, index)
    kind = pick(draw, SHARES)
    question, chosen, rejected = MAKERS[kind](draw)
    return {"prompt": [{"role": "user", "content": question}], "chosen": chosen, "rejected": rejected, "kind": kind}


def preferences(seed: int, n: int) -> Iterator[dict[str, Any]]:
    """n preference pairs, each a pure function of (seed, index)."""
    for index in range(n):
        yield preference(seed, index)
