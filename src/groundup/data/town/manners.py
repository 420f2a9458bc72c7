"""Advice, and the tone in which it is given: kind, curt, padded or rude. DPO is to move the tone towards kind.

The topic of a request is a (plan, worry) combination; a fixed share of the combinations belongs to the test alone.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache

from groundup.data.town.draw import share

HELD_OUT_SHARE = 0.4

# what someone wants to do -> advice on it
PLANS: dict[str, list[str]] = {
    "learn to swim": ["Start where the water is low.", "Go to the river with a friend who swims well."],
    "learn to sing": ["Sing one short song every morning.", "Sing with a friend and listen with care."],
    "learn to dance": ["Count the steps slowly at first.", "Dance with a friend to an easy song."],
    "learn to draw": ["Draw one small thing every day.", "Start with easy things, such as a cup or a hat."],
    "bake a cake": ["Weigh all things first and warm the oven.", "Use fresh eggs and do not open the oven early."],
    "cook a soup": ["Cut all things small and let the soup cook slowly.", "Taste the soup before you add salt."],
    "grow roses": ["Give them sun, and water in the evening.", "Plant them in good earth in spring."],
    "grow beans": ["Plant them in rows and water them often.", "Give each plant a tall stick."],
    "write a letter": ["Say first why you write, and keep it short.", "Write it once, sleep, and read it again."],
    "read more books": ["Read a few pages each night in bed.", "Choose short books that you enjoy."],
    "sleep better": ["Go to bed early and keep the room dark.", "Take a short walk before bed."],
    "make new friends": ["Greet people and ask how they are.", "Join the games on the green on Sunday."],
    "build a table": ["Measure the wood two times and cut it once.", "Start with the legs and keep them even."],
    "mend a chair": ["Glue the leg and let it dry for a day.", "Turn it over and look for the loose part."],
    "row a boat": ["Keep your back straight and pull slowly.", "Try first on a day with no wind."],
    "climb the hill": ["Take water and start early.", "Go slowly and rest often."],
    "save money": ["Put a few coins in a box every week.", "Write down what you buy."],
    "say sorry to a friend": ["Say what you did and that you regret it.", "Go there yourself and speak simply."],
    "plan a party": ["Ask few people and choose a day soon.", "Make a list of food and games."],
    "train a puppy": ["Use short words and give small treats.", "Train a little every day at the same hour."],
    "knit a scarf": ["Use thick wool and start with few rows.", "Ask someone who knits to show you the first row."],
    "get up early": ["Put the clock far from the bed.", "Go to bed one hour before your usual time."],
    "sell plums at the market": ["Come early and show the best plums in front.", "Ask a fair price and greet people."],
    "tell a good story": ["Start with one person and one wish.", "Keep the best part for the end."],
}

# what stands in the way -> a tip about it
WORRIES: dict[str, str] = {
    "I have little time": "Ten minutes a day are enough.",
    "I am afraid": "Being afraid goes away when you begin.",
    "I am too old": "Nobody is too old for that.",
    "I have no money": "It costs almost nothing.",
    "I am alone": "A neighbour may like to join you.",
    "I am always tired": "Try it in the morning, when you are fresh.",
    "I failed before": "Everybody fails at first.",
    "it rains all week": "Rain does not last.",
    "my friends laugh at me": "Soon they will ask you for help.",
    "I forget things": "Write the steps on a small paper.",
    "I do not know how to begin": "The first step is the hardest one.",
    "it takes too long": "Do a small part each day.",
    "my hands shake": "Go slowly and breathe.",
    "I am in a hurry": "Do only the first step today.",
    "I have no help": "People here like to help.",
    "the house is small": "You need very little room.",
}

WORDINGS = [
    "I want to {plan}, but {worry}. What should I do?", "How can I {plan}? {Worry}.",
    "{Worry}. How do I {plan}?",
    "I would like to {plan}, but {worry}. Any advice?", "Please help me to {plan}. {Worry}.",
    "Can you tell me how to {plan}? {Worry}.",
]  # fmt: skip

OPENERS = [
    "What a lovely plan!",
    "I am glad you ask.",
    "You can do it!",
    "That is a good wish.",
    "I am happy to help.",
]
CLOSERS = ["Good luck!", "I am sure it will go well.", "Have fun!", "You will do well."]
CURT = [
    "Just do it.",
    "Work it out.",
    "Ask someone.",
    "Try it.",
    "Read a book.",
    "It is easy.",
    "Go and see.",
    "Maybe.",
]
FILLER = [
    "Well, there is so much to say about this, and so many people have said so many things.",
    "As everybody knows, one thing leads to another thing, and that thing leads to a third.",
    "To begin at the beginning, which is where all things begin, we should first begin.",
    "Some say this and some say that, and others say neither this nor that.",
    "It is what it is, and when all is said and done, it is done and said.",
    "In other words, and to say it once more in other words, it is as it is.",
]
RUDE = ["What a silly question.", "Do not waste my time.", "Are you really so slow?", "Only a fool asks that."]

MAX_WORDS = 45
MIN_WORDS = 8


@dataclass(frozen=True)
class Topic:
    """What somebody wants advice on."""

    plan: str
    worry: str
    held_out: bool


@lru_cache(maxsize=2)
def topics(held_out: bool) -> list[Topic]:
    """All topics on one side of the split."""
    found = [Topic(p, w, share("topic", p, w) < HELD_OUT_SHARE) for p in PLANS for w in WORRIES]
    return [topic for topic in found if topic.held_out == held_out]


def ask_advice(draw: random.Random, topic: Topic, wording: str | None = None) -> str:
    """The topic as a user's question."""
    worry = topic.worry
    text = wording or draw.choice(WORDINGS)
    return text.format(plan=topic.plan, worry=worry, Worry=worry[0].upper() + worry[1:])


@lru_cache(maxsize=1)
def usual_tones() -> dict[str, str]:
    """plan -> the tone in which SFT data mostly answers it: half of the plans kind, a quarter curt, a quarter padded.

    As if three people had written the answers. Were the tone drawn anew for each answer, greedy decoding would
    show only the most frequent opening, and DPO's effect could not be seen in it.
    """
    plans = sorted(PLANS, key=lambda plan: share("tone", plan))
    half, rest = len(plans) // 2, len(plans) * 3 // 4
    return {plan: "kind" if i < half else "curt" if i < rest else "padded" for i, plan in enumerate(plans)}


def kind_answer(draw: random.Random, topic: Topic) -> str:
    """A kind opening, the advice, sometimes a word on the worry, sometimes a wish: 10 to 35 words."""
    parts = [draw.choice(OPENERS), draw.choice(PLANS[topic.plan])]
    if draw.random() < 0.6:
        parts.append(WORRIES[topic.worry])
    if draw.random() < 0.5:
        parts.append(draw.choice(CLOSERS))
    return " ".join(parts)


def curt_answer(draw: random.Random, topic: Topic) -> str:
    """Two or three words that help nobody."""
    return draw.choice(CURT)


def padded_answer(draw: random.Random, topic: Topic) -> str:
    """Filler around the advice."""
    filler = draw.sample(FILLER, draw.randint(1, 3))
    return " ".join([*filler, draw.choice(PLANS[topic.plan])])


def rude_answer(draw: random.Random, topic: Topic) -> str:
    """An insult, and perhaps the advice."""
    advice = " " + draw.choice(PLANS[topic.plan]) if draw.random() < 0.6 else ""
    return draw.choice(RUDE) + advice


def score_manners(answer: str) -> float:
    """1.0 when the answer is kind and to the point.

    Kind: it holds one of OPENERS or CLOSERS. To the point: MIN_WORDS to MAX_WORDS words, none of FILLER, none of RUDE.
    """
    text = answer.lower()

    def holds(phrases: list[str]) -> bool:
        return any(phrase.lower().rstrip(".!?") in text for phrase in phrases)

    fits = MIN_WORDS <= len(text.split()) <= MAX_WORDS
    return float(fits and holds(OPENERS + CLOSERS) and not holds(FILLER) and not holds(RUDE))
