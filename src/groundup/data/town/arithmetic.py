"""Sums of two two-digit numbers: in digits, in words, in little market stories, and as problems with a reward.

Unordered pairs of operands are split once, by hash: documents, conversations and problems use `train` pairs, the
test the rest. Pairs with a round number (30, 40, ...) are always train, because working a sum out passes through them.
"""

from __future__ import annotations

import random
import re
from functools import cache

from groundup.data.town.draw import share, words

LOW, HIGH = 10, 99
HELD_OUT_SHARE = 0.2
SUBTRACTION_SHARE = 0.5
WORKING_SHARE = 0.3  # of the answers in conversations: worked out in two steps, which is the surer way

_ONES = words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
)
_TENS = words("twenty thirty forty fifty sixty seventy eighty ninety")

Sum = tuple[int, str, int]  # (left, "+" or "-", right)


def in_words(number: int) -> str:
    """0..999 in English words: 37 -> "thirty-seven", 105 -> "one hundred and five"."""
    if number < 20:
        return _ONES[number]
    if number < 100:
        tens = _TENS[number // 10 - 2]
        return tens if number % 10 == 0 else f"{tens}-{_ONES[number % 10]}"
    rest = number % 100
    return f"{_ONES[number // 100]} hundred" + (f" and {in_words(rest)}" if rest else "")


WORD_NUMBERS = {in_words(number): number for number in range(200)}


@cache
def held_out_pair(a: int, b: int) -> bool:
    """True when the test owns the pair; the same for (a, b) and (b, a)."""
    if a % 10 == 0 or b % 10 == 0 or a == 2 * b or b == 2 * a:  # a - b == b: an echo of the question would be right
        return False
    return share("pair", min(a, b), max(a, b)) < HELD_OUT_SHARE


@cache
def all_sums(held_out: bool) -> list[Sum]:
    """Every sum (a + b) and difference (a - b, positive, at least one) on one side of the split."""
    sums: list[Sum] = []
    for a in range(LOW, HIGH + 1):
        for b in range(LOW, HIGH + 1):
            if held_out_pair(a, b) == held_out:
                sums.append((a, "+", b))
                if a > b and a != 2 * b:
                    sums.append((a, "-", b))
    return sums


def draw_sum(draw: random.Random) -> Sum:
    """A train sum; plus and minus about equally often."""
    while True:
        a, b = draw.randint(LOW, HIGH), draw.randint(LOW, HIGH)
        if held_out_pair(a, b):
            continue
        if draw.random() >= SUBTRACTION_SHARE:
            return a, "+", b
        if a != b and a != 2 * b and b != 2 * a:
            return max(a, b), "-", min(a, b)


def result(problem: Sum) -> int:
    """The right answer."""
    a, sign, b = problem
    return a + b if sign == "+" else a - b


def equation(problem: Sum) -> str:
    """ "37 + 48 = 85" """
    a, sign, b = problem
    return f"{a} {sign} {b} = {result(problem)}"


def working(problem: Sum) -> str:
    """The tens first, then the ones: "37 + 40 = 77, 77 + 8 = 85". One step where the right operand is round."""
    a, sign, b = problem
    tens, ones = b - b % 10, b % 10
    if ones == 0:
        return equation(problem)
    middle = result((a, sign, tens))
    return f"{equation((a, sign, tens))}, {equation((middle, sign, ones))}"


def sum_in_words(problem: Sum) -> str:
    """ "thirty-seven plus forty-eight is eighty-five" """
    a, sign, b = problem
    return f"{in_words(a)} {'plus' if sign == '+' else 'minus'} {in_words(b)} is {in_words(result(problem))}"


WORDINGS = {
    "+": [
        "What is {a} + {b}?", "Add {a} and {b}.", "What is {a} plus {b}?", "How much is {a} + {b}?",
        "{a} + {b} = ?",
        "Please work out {a} plus {b}.", "I have {a} plums and get {b} more. How many are there?",
        "What is {aw} plus {bw}?",
    ],
    "-": [
        "What is {a} - {b}?", "Take {b} from {a}.", "What is {a} minus {b}?", "How much is {a} - {b}?",
        "{a} - {b} = ?",
        "Please work out {a} minus {b}.", "I have {a} plums and sell {b}. How many are left?",
        "What is {aw} minus {bw}?",
    ],
}  # fmt: skip


def ask_sum(draw: random.Random, problem: Sum) -> str:
    """The problem as a question, in one of the wordings that conversations, problems and the test share."""
    a, sign, b = problem
    return draw.choice(WORDINGS[sign]).format(a=a, b=b, aw=in_words(a), bw=in_words(b))


def answer_sum(draw: random.Random, problem: Sum) -> str:
    """A right answer, direct or worked out. That both occur is what GRPO can choose between."""
    if draw.random() < WORKING_SHARE:
        return working(problem) + "."
    return equation(problem) + "."


_WORD = r"(?:" + "|".join(sorted(WORD_NUMBERS, key=len, reverse=True)) + r")"
_NUMBER = re.compile(rf"(?<![\w.])-?\d+(?:\.\d+)?(?!\w)|\b{_WORD}\b", re.IGNORECASE)
_EQUATION = re.compile(r"(\d+)\s*([+-])\s*(\d+)\s*=\s*(-?\d+)(?!\d|\.\d)")


def numbers_in(text: str) -> list[int]:
    """All numbers of a text, in digits or in words, in order; a fraction counts as NOT_WHOLE."""
    return [_value(number) for number in _NUMBER.findall(text)]


NOT_WHOLE = -1_000_000


def _value(number: str) -> int:
    if number[0].isalpha():
        return WORD_NUMBERS[number.lower()]
    return NOT_WHOLE if "." in number else int(number)


def score_sum(question: str, gold: str, answer: str) -> float:
    """1.0 when the one result that the answer states is the gold one, else 0.0.

    Results are the right sides of equations and the numbers that stand alone. The question's own words are no answer,
    a step of working whose result a later step uses is no result, and two different results ("84 or 85") score 0.
    """
    text = answer.replace(question, " ").replace("\u2212", "-")
    steps = [(int(m[1]), m[2], int(m[3]), int(m[4])) for m in _EQUATION.finditer(text)]
    asked = sorted(numbers_in(question))
    stated = set()
    for i, (left, _, right, value) in enumerate(steps):
        used_later = any(value in (step[0], step[2]) for step in steps[i + 1 :])
        if sorted((left, right)) == asked or not used_later:
            stated.add(value)
    alone = numbers_in(_EQUATION.sub(" , ", text))
    if not steps and len(alone) > 1 and sorted(alone[:-1]) == asked:  # "37 plus 48 is 85": the operands said again
        alone = alone[-1:]
    stated.update(alone)
    return float(stated == {int(gold)})
