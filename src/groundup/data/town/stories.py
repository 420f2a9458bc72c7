"""Little stories in which things happen for a reason and in an order: because, so, before, after, then.

A plot is a row of sentences, each with a few wordings. {a} and {b} are residents (full name first, first name after),
the other slots come from the lists below. No plot touches job, street, pet, food or hobby: facts come from `say` only.
"""

from __future__ import annotations

import random

from groundup.data.town.draw import listing, words
from groundup.data.town.facts import say
from groundup.data.town.words import ATTRIBUTES
from groundup.data.town.world import Resident, World

FACT_SHARE = 0.4  # of the stories open with a true fact about somebody taught

DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
TIMES = ["In the morning", "At noon", "In the afternoon", "In the evening", "Before dinner", "After lunch"]
THINGS = words("key hat basket umbrella letter book ball scarf glove bag cup ticket")
PLACES = ["the market", "the old gate", "the green", "the station", "the harbour", "the hill", "the forest", "the hall"]
SPOTS = ["under a bench", "behind a door", "in a pocket", "on a wall", "in the grass", "under a hat", "next to a tree"]
MOODS = ["sad", "worried", "angry", "afraid"]
GLAD = ["happy", "glad", "proud", "thankful"]
LOADS = ["a heavy box", "two big bags", "a long ladder", "a sack of flour", "a wooden wheel"]
ERRANDS = ["buy salt", "post a letter", "bring back a book", "fetch some water", "get a new rope", "buy two candles"]

Plot = list[list[str]]

PLOTS: list[Plot] = [
    [  # something lost and found
        ["{time} {A} lost a {thing} at {place}.", "On {day} {A} could not see the {thing} any more."],
        ["{a} was {mood}, because the {thing} was old and dear.", "This made {a} {mood}, because it was a gift."],
        ["So {a} went back to {place} and asked {B} for help.", "Then {B} came by, and {a} told the whole story."],
        ["Before it got dark, {b} looked {spot}.", "First {b} looked near {place}, and after that {spot}."],
        ["The {thing} was there! {a} was {glad}.", "There lay the {thing}, so {a} was {glad} again."],
    ],
    [  # rain
        ["{time} {A} and {B} walked to {place}.", "On {day} {A} met {B} on the way to {place}."],
        ["Then it began to rain, because dark clouds had come.", "Soon the wind rose, and then it rained."],
        ["{b} had no umbrella, so {a} shared one.", "{a} had an umbrella, so both of them stayed dry."],
        ["They waited under a roof before they went on.", "They ran fast, so they were there before the storm."],
        ["After the rain came the sun, and {b} thanked {a}.", "After that {b} was {glad}, because {a} had been kind."],
    ],
    [  # an errand
        ["{A} had to {errand} before the shops closed.", "{time} {A} wanted to {errand}."],
        ["But the road was closed, because a tree had fallen.", "But it was late, because {a} had slept too long."],
        ["So {a} asked {B} for the way.", "So {a} took the path along {place}, where {B} stood."],
        ["{b} knew a short way, so they went together.", '"I have to {errand} too," said {b}, and off they went.'],
        ["After that {a} was home before dark.", "In the end {a} was {glad}, because all was done in time."],
    ],
    [  # sharing
        ["{time} {A} sat at {place} with a full basket.", "On {day} {A} came to {place} with two warm rolls."],
        ["{B} had eaten nothing, because the day had been long.", "{B} was hungry, because lunch had been small."],
        ["{a} saw this, so {a} gave half of it to {b}.", "So {a} said, \"Please take some,\" and {b} did."],
        ["Then they talked until the sun went down.", "Then {b} told a story, and {a} laughed."],
        ["After that day they were friends.", "The next {day} it was {b} who brought a basket for {a}."],
    ],
    [  # a heavy load
        ["On {day} {A} carried {load} up to {place}.", "{time} {A} had to bring {load} to {place}."],
        ["It was too heavy, so {a} had to rest.", "After a few steps {a} stopped, because it was so heavy."],
        ["{B} saw {a} and came to help.", "Then {B} came by and took one end."],
        ["Because they were two, it was easy.", "Together they were there before the bell rang."],
        ["\"Thank you,\" said {a}. {b} was {glad}.", "After the work they sat down, and {a} thanked {b}."],
    ],
    [  # late
        ["{A} wanted to meet {B} at {place} on {day}.", "{time} {B} waited for {A} at {place}."],
        ["But {a} came late, because the clock had stopped.", "But {a} was late, because of a lost {thing}."],
        ["{b} was {mood} at first.", "{b} had waited an hour and was {mood}."],
        ["{a} said sorry and told {b} why.", "\"I am sorry,\" said {a}, and told {b} about it."],
        ["So {b} was not {mood} any more, and then they went on.", "Then {b} smiled, because {a} had told the truth."],
    ],
    [  # something broken
        ["{time} {A} let a {thing} of {B} fall into the mud.", "On {day} {A} tore a {thing} that belonged to {B}."],
        ["{a} was {mood}, because it was not meant to happen.", "At first {a} was {mood} and wanted to hide it."],
        ["But then {a} went to {b} and told the truth.", "After a while {a} told {b} all about it."],
        ["{b} was not angry, because {a} had been honest.", "Because {a} was honest, {b} was kind."],
        ["Then they put it right together.", "So they made it new before the evening."],
    ],
    [  # snow
        ["On {day} there was deep snow at {place}.", "It snowed all night before {day}."],
        ["{A} could not open the door, because the snow was high.", "{A} stayed inside, because the path was white."],
        ["So {B} came with a shovel.", "{B} saw this from the window and came over."],
        ["First they made a path, then they made a snowman.", "They worked until noon, and after that they drank tea."],
        ["{a} was {glad}, because {b} had come.", "After this {a} and {b} were tired but {glad}."],
    ],
    [  # a birthday
        ["On {day} {A} had a birthday, but nobody spoke of it.", "{A} thought that all had forgotten the birthday."],
        ["So {a} was {mood} all day.", "{a} was {mood}, because the house was so quiet."],
        ["{time} {B} asked {a} to come to {place}.", "Then {B} said, \"Come with me to {place}.\""],
        ["There stood all the friends with a {thing} as a gift.", "All the friends were there before them and sang."],
        ["{a} laughed, because it had been a secret.", "After the song {a} was {glad} and thanked {b}."],
    ],
    [  # a light in the dark
        ["{time} {A} walked through the fog near {place}.", "On {day} {A} was far from home, and a fog came up."],
        ["{a} lost the way, because the path was hidden.", "Soon {a} was {mood}, because nothing could be seen."],
        ["{B} held a candle in the window, so there was a light.", "At home {B} lit a candle, because {a} was late."],
        ["{a} saw the light and walked towards it.", "After an hour {a} saw it, and so {a} came to the door."],
        ["Then {b} made tea, and {a} was {glad}.", "\"I am so {glad},\" said {a}, and then they drank tea."],
    ],
]  # fmt: skip

ENDINGS = ["", "", " Both slept well that night.", " The whole town heard of it.", " It was a good {day}.",
           " They still talk about it.", " That is how it was."]  # fmt: skip


def fill(draw: random.Random, text: str, names: dict[str, str]) -> str:
    """Put words into the slots of one story; a slot means the same thing throughout."""
    slots = {
        "day": draw.choice(DAYS), "time": draw.choice(TIMES), "thing": draw.choice(THINGS),
        "place": draw.choice(PLACES), "spot": draw.choice(SPOTS), "mood": draw.choice(MOODS),
        "glad": draw.choice(GLAD), "load": draw.choice(LOADS), "errand": draw.choice(ERRANDS),
    }  # fmt: skip
    return text.format(**slots, **names)


def pair(draw: random.Random, people: list[Resident]) -> tuple[Resident, Resident]:
    """Two different residents."""
    a, b = draw.sample(people, 2)
    return a, b


def story(draw: random.Random, world: World) -> str:
    """One story of 40 to 90 words."""
    a, b = pair(draw, world.residents)
    opening = ""
    if draw.random() < FACT_SHARE:
        a, b = pair(draw, world.taught)
        opening = say(draw, a, draw.choice(ATTRIBUTES)) + " "
    names = {"A": a.name, "B": b.name, "a": a.name.split()[0], "b": b.name.split()[0]}
    lines = [draw.choice(choices) for choices in draw.choice(PLOTS)]
    return opening + fill(draw, " ".join(lines) + draw.choice(ENDINGS), names)


def chat_in_prose(draw: random.Random, world: World) -> str:
    """Two or three neighbours greet, ask, thank; some ask about somebody taught."""
    a, b = pair(draw, world.residents)
    day, mood = draw.choice(DAYS), draw.choice(GLAD)
    greet = draw.choice(["Good morning", "Good evening", "Hello", "Good day"])
    lines = [f'"{greet}, {b.name}," said {a.name}. "How are you?"']
    lines.append(draw.choice([
        f'"I am well, thank you," said {b.name}. "I am {mood}, because it is {day}."',
        f'"Very well, thank you, {a.name}," said {b.name}. "It was good to see you on {day}."',
        f'"A little tired," said {b.name}, "because I slept late. And you?" "I am well," said {a.name}.',
    ]))  # fmt: skip
    lines.append(draw.choice([
        f'"Can you help me on {day}?" asked {a.name}. "Of course I can help you," said {b.name}.',
        f'"Thank you for the {draw.choice(THINGS)}," said {a.name}. "That was kind." "I was happy to help," '
        f"said {b.name}.",
        f'"I am sorry that I was late," said {a.name}. "That is all right," said {b.name}, "you are here now."',
        f'"Will you come to {draw.choice(PLACES)} with me?" asked {a.name}. "Yes," said {b.name}, "on {day}."',
    ]))  # fmt: skip
    lines.append(
        draw.choice([f'"Have a good day," said {a.name}.', f'"See you soon," said {b.name}.', "Then they went on."])
    )
    return " ".join(lines)


def crowd(draw: random.Random, world: World) -> str:
    """Who came where: names only."""
    people = [p.name for p in draw.sample(world.residents, draw.randint(3, 5))]
    return f"On {draw.choice(DAYS)} {listing(people)} met at {draw.choice(PLACES)}."
