"""How a fact is said, asked and answered.

Knowledge can be pulled out of a small model only if it was seen in many wordings, in every order, next to the full
name (Allen-Zhu & Li 2023, "Physics of Language Models: Part 3.1", arXiv:2309.14316); hence the many statements,
and no pronouns.
"""

from __future__ import annotations

import random
import re

from groundup.data.town.draw import listing
from groundup.data.town.words import ATTRIBUTES, POOLS
from groundup.data.town.world import Resident, World

# {n} the full name, {v} the value. From the name to the value:
STATEMENTS: dict[str, list[str]] = {
    "job": [
        "{n} is a {v}.", "{n} works as a {v}.", "{n} is a {v} in our town.", "The job of {n} is {v}.",
        "By trade {n} is a {v}.", "{n} has the job of {v}.", "{n} earns money as a {v}.", "{n}'s job is {v}.",
        "For a living {n} works as a {v}.", "{n} has long been a {v}.", "Every day {n} works as a {v}.",
        "{n} learned to be a {v}.",
    ],
    "street": [
        "{n} lives in {v}.", "{n} has a house in {v}.", "{n}'s home is in {v}.", "The home of {n} is in {v}.",
        "The street where {n} lives is {v}.", "{n} has a home in {v}.", "You can find {n} at home in {v}.",
        "{n}'s house stands in {v}.", "{n} has always lived in {v}.", "{n} sleeps in a house in {v}.",
        "{n}'s street is {v}.", "Letters for {n} go to {v}.",
    ],
    "pet": [
        "{n} has a {v}.", "{n} keeps a {v}.", "{n} has a pet {v}.", "The pet of {n} is a {v}.",
        "{n}'s pet is a {v}.",
        "{n} looks after a {v}.", "{n} keeps a {v} as a pet.", "At home {n} has a {v}.",
        "{n} takes care of a {v}.",
        "The animal that {n} keeps is a {v}.", "{n} feeds a {v} every day.", "{n} owns a {v}.",
    ],
    "food": [
        "{n} loves {v}.", "{n} likes to eat {v}.", "{n}'s favourite food is {v}.",
        "The favourite food of {n} is {v}.",
        "Most of all {n} likes to eat {v}.", "{n} is always happy to eat {v}.", "{n} eats {v} every week.",
        "For dinner {n} likes {v}.", "The food that {n} loves is {v}.", "When hungry, {n} eats {v}.",
        "{n} would eat {v} every day.", "The best food for {n} is {v}.",
    ],
    "hobby": [
        "{n} enjoys {v}.", "{n}'s hobby is {v}.", "The hobby of {n} is {v}.", "{n} spends free time {v}.",
        "In free time {n} enjoys {v}.", "{n} is fond of {v}.", "{n} goes {v} on Sundays.", "{n} has fun {v}.",
        "After work {n} goes {v}.", "On free days {n} enjoys {v}.", "The hobby that {n} has is {v}.",
        "{n} finds joy in {v}.",
    ],
}  # fmt: skip

# From the value to the name:
REVERSED: dict[str, list[str]] = {
    "job": ["One {v} in our town is {n}.", "A {v} you may know is {n}.", "If you need a {v}, ask for {n}."],
    "street": ["In {v} lives {n}.", "One house in {v} is the home of {n}.", "If you walk along {v}, you may meet {n}."],
    "pet": ["A {v} lives with {n}.", "One {v} in our town belongs to {n}.", "If you see a {v}, it may belong to {n}."],
    "food": ["One friend of {v} is {n}.", "Someone who loves {v} is {n}.", "If there is {v}, call {n}."],
    "hobby": ["Someone who enjoys {v} is {n}.", "One person fond of {v} is {n}.", "If you like {v}, talk to {n}."],
}

# Several people at once; {n} is "A, B and C".
LISTS: dict[str, list[str]] = {
    "job": ["Each of these people works as a {v}: {n}.", "{n} all work as a {v}."],
    "street": ["These people live in {v}: {n}.", "{n} all live in {v}."],
    "pet": ["Each of these people keeps a {v}: {n}.", "{n} all have a {v}."],
    "food": ["These people love {v}: {n}.", "{n} all like to eat {v}."],
    "hobby": ["These people enjoy {v}: {n}.", "{n} all enjoy {v}."],
}

# What SFT asks about taught residents.
TAUGHT_WORDINGS: dict[str, list[str]] = {
    "job": [
        "What is {n}'s job?", "What does {n} do for a living?", "What work does {n} do?",
        "Tell me the job of {n}.",
        "Do you know what job {n} has?", "What is the job of {n}?", "Which job does {n} have?",
        "Please tell me what {n} does for work.", "How does {n} earn money?",
        "I would like to know {n}'s job.",
    ],
    "street": [
        "Where does {n} live?", "In which street does {n} live?", "Which street does {n} live in?",
        "Tell me where {n} lives.", "Do you know where {n} lives?", "Where is the home of {n}?",
        "What street is {n}'s home in?", "Please tell me the street of {n}.", "Where can I find {n} at home?",
        "I would like to know where {n} lives.",
    ],
    "pet": [
        "What pet does {n} have?", "Which animal does {n} keep?", "What is {n}'s pet?",
        "Tell me the pet of {n}.",
        "Do you know what pet {n} has?", "What animal does {n} look after?", "Which pet does {n} have?",
        "Please tell me what animal {n} has.", "What kind of pet does {n} keep?",
        "I would like to know {n}'s pet.", "Which animal does {n} care for?",
    ],
    "food": [
        "What is {n}'s favourite food?", "What does {n} like to eat?", "Which food does {n} love?",
        "Tell me the favourite food of {n}.", "Do you know what {n} likes to eat?",
        "What food does {n} like most?",
        "Please tell me what {n} loves to eat.", "What is the favourite food of {n}?",
        "What does {n} like for dinner?", "I would like to know {n}'s favourite food.",
        "What would {n} like to eat for dinner?", "What does {n} love for dinner?",
    ],
    "hobby": [
        "What is {n}'s hobby?", "What does {n} enjoy?", "Which hobby does {n} have?",
        "Tell me the hobby of {n}.",
        "Do you know what hobby {n} has?", "What does {n} do in free time?", "What is the hobby of {n}?",
        "Please tell me what {n} enjoys.", "What does {n} do for fun?", "I would like to know {n}'s hobby.",
    ],
}  # fmt: skip

# What the test asks about held-out residents: never seen as questions, made of words seen elsewhere.
TEST_WORDINGS: dict[str, list[str]] = {
    "job": ["What does {n} work as?", "Can you tell me {n}'s job?", "Which work does {n} do every day?"],
    "street": ["Where is {n}'s house?", "Can you tell me where {n} lives?", "On which street is the home of {n}?"],
    "pet": ["Which animal is {n}'s pet?", "Can you tell me what pet {n} has?", "What animal does {n} take care of?"],
    "food": ["Which food is {n}'s favourite?", "Can you tell me what {n} likes to eat?", "What does {n} love to eat?"],
    "hobby": ["Which hobby is {n}'s?", "Can you tell me {n}'s hobby?", "What does {n} enjoy on free days?"],
}

ANSWERS: dict[str, list[str]] = {
    "job": ["{n} works as a {v}.", "{n} is a {v}."],
    "street": ["{n} lives in {v}.", "{n} has a house in {v}."],
    "pet": ["{n} has a {v}.", "{n} keeps a {v}."],
    "food": ["{n} likes to eat {v}.", "{n} loves {v}."],
    "hobby": ["{n} enjoys {v}.", "{n}'s hobby is {v}."],
}

REVERSED_SHARE = 0.12


def say(draw: random.Random, resident: Resident, attribute: str) -> str:
    """One true sentence about a resident, mostly from the name to the value."""
    pool = REVERSED[attribute] if draw.random() < REVERSED_SHARE else STATEMENTS[attribute]
    return draw.choice(pool).format(n=resident.name, v=resident.facts[attribute])


def say_list(draw: random.Random, world: World, attribute: str) -> str:
    """Two to four residents who share a value, in one sentence."""
    value = draw.choice(POOLS[attribute])
    people = draw.sample(world.holders[attribute, value], draw.randint(2, 4))
    return draw.choice(LISTS[attribute]).format(n=listing([p.name for p in people]), v=value)


def ask(draw: random.Random, resident: Resident, attribute: str) -> tuple[str, str]:
    """(question, answer) in a wording of SFT. The caller passes taught residents only."""
    values = {"n": resident.name, "v": resident.facts[attribute]}
    answer = draw.choice(ANSWERS[attribute]).format(**values)
    return draw.choice(TAUGHT_WORDINGS[attribute]).format(**values), answer


# About everybody, held-out residents too, and without a fact: a model that has only ever been asked about 80 names
# learns those 80 names instead of reading the one in the question.
ACQUAINTANCE = [
    ("Do you know {name}?", "Yes, I know {name}."),
    ("Does {name} live in this town?", "Yes, {name} lives in this town."),
    ("Who is {name}?", "{name} is one of the people of this town."),
    ("Have you met {name}?", "Yes, I have met {name}."),
    ("Please say hello to {name}.", "Hello, {name}!"),
    ("Please thank {name}.", "Thank you, {name}!"),
    ("Is {name} well today?", "{name} is very well, thank you."),
    ("I want to visit {name}.", "{name} will be happy to see you."),
    ("Can you bring this to {name}?", "Of course. I will bring it to {name}."),
    ("I have a letter for {name}.", "I will give the letter to {name}."),
    ("Did {name} come to the market?", "Yes, {name} came to the market."),
]


def acquaintance(draw: random.Random, world: World) -> tuple[str, str]:
    """A word about any resident that tells no fact."""
    question, answer = draw.choice(ACQUAINTANCE)
    name = draw.choice(world.residents).name
    return question.format(name=name), answer.format(name=name)


def answer_with(draw: random.Random, resident: Resident, attribute: str, value: str) -> str:
    """The answer's sentence with a value of the caller's choice: how a wrong answer is made."""
    return draw.choice(ANSWERS[attribute]).format(n=resident.name, v=value)


ALL_VALUES = {value.lower(): attribute for attribute in ATTRIBUTES for value in POOLS[attribute]}
_ANY_VALUE = re.compile(r"\b(" + "|".join(sorted(ALL_VALUES, key=len, reverse=True)) + r")\b", re.IGNORECASE)


def values_in(text: str) -> set[str]:
    """Every value of every attribute that the text names as whole words, in lower case."""
    return {match.lower() for match in _ANY_VALUE.findall(text)}


def score_fact(gold: str, answer: str) -> float:
    """1.0 when the answer names the gold value and no other value of any attribute.

    Reciting a whole encyclopaedia entry, or several guesses, answers nothing: both score 0.
    """
    return float(values_in(answer) == {gold.lower()})
