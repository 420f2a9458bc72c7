"""Do the scores say what they seem to say?"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch

from groundup.errors import UserError
from groundup.evaluate import likelihood, questions
from groundup.evaluate.likelihood import Pair
from groundup.evaluate.questions import Item, TaskPlan
from groundup.infer.sample import SamplingParams
from groundup.infer.score import Score
from groundup.model.transformer import Transformer
from groundup.recipe.schema import EvaluateSection, TaskSource
from groundup.verify import draw, rig
from groundup.verify.check import Measurement, NotApplicable, check, violations
from groundup.verify.checks.infer import trainer_logprobs
from groundup.verify.corpus import MICRO_CORPUS
from groundup.verify.subject import Subject

if TYPE_CHECKING:
    from groundup.evaluate.adapter import GroundupLM

SPOKEN = ["the river and the stone", "Seven early lanterns, 305 letters.", "bread e\u0301 \u65e5\u672c \U0001f468 12"]


def harness(subject: Subject, model: Transformer | None = None) -> GroundupLM:
    """The model as lm-evaluation-harness is handed it. NotApplicable where that is not installed."""
    try:
        from groundup.evaluate.adapter import GroundupLM
    except UserError as missing:
        raise NotApplicable(str(missing)) from missing
    return GroundupLM(subject.engine(subject.chat_model() if model is None else model))


def loglikelihoods(lm: GroundupLM, pairs: Sequence[tuple[str, str]]) -> list[float]:
    """log p(continuation | context) in nats, as the harness is told it."""
    from lm_eval.api.instance import Instance

    requests = [Instance("loglikelihood", {}, pair, n) for n, pair in enumerate(pairs)]  # type: ignore[arg-type]
    return [value for value, _ in lm.loglikelihood(requests)]


@contextmanager
def overheard(lm: GroundupLM) -> Iterator[list[Pair]]:
    """The pairs of ids that the model is asked to score inside; it is not asked, every score is 0."""
    from groundup.evaluate import adapter

    heard: list[Pair] = []

    def listen(_: Any, pairs: Sequence[Pair], *__: Any) -> list[Score]:
        heard.extend(pairs)
        return [Score(0.0, True)] * len(pairs)

    right, adapter.score_pairs = adapter.score_pairs, listen  # type: ignore[assignment]
    try:
        yield heard
    finally:
        adapter.score_pairs = right


def log_prob(model: Transformer, context: Sequence[int], ids: Sequence[int]) -> float:
    """The same by the trainer: one forward pass of one row."""
    return float(trainer_logprobs(model, context, ids, 1.0).double().sum())


def cuts(text: str) -> list[tuple[str, str]]:
    """A text in two, at each place; spaces belong to the word behind them, as in the cloze form."""
    return [(text[:at], text[at:]) for at in range(1, len(text)) if not text[at - 1].isspace()]


def rounding(model: Transformer, tokens: int, scale: float) -> float:
    """What the sums of `tokens` log-probabilities may differ by: each rounds like the logits, its log-sum as often."""
    return 2 * tokens * rig.tolerance(model.config, scale + 4)


@check(
    "loglikelihood-is-sum-of-parts",
    "identity",
    "evaluate",
    bug="A continuation's score begins a token early or late, or its context is another: every multiple choice is off.",
    remedy="Score exactly the continuation's tokens, each after all before it (evaluate/adapter.py, infer/score.py).",
    reference="ai-twinkle/Eval issue 137; ml-explore/mlx-lm pull 1902; EleutherAI/lm-evaluation-harness issue 337",
)
def loglikelihood_is_sum_of_parts(subject: Subject) -> Measurement:
    """Largest |log p(text) - log p(a) - log p(b | a)| over each cut of a text into a and b that no token spans, and
    |log p(text) - the trainer's|, one row and one forward pass.

    All are one chain rule, so they differ by rounding alone: sums of as many log-probabilities as the text has tokens.
    Where the tokenizer puts no BOS before a text, log p(b | a) has none either, and is compared with the trainer's.
    """
    lm, tokenizer = harness(subject), subject.tokenizer
    worst, scale, longest, looked = 0.0, 0.0, 0, 0
    for text in SPOKEN:
        ids = tokenizer.encode(text)
        parts = [(a, b) for a, b in cuts(text) if tokenizer.encode(a) + tokenizer.encode(b) == ids]
        looked += len(parts)
        whole, *rest = loglikelihoods(lm, [("", text), *(("", a) for a, _ in parts), *parts])
        heads, tails = rest[: len(parts)], rest[len(parts) :]
        by_trainer = log_prob(lm.model, [tokenizer.start], ids)
        if not tokenizer.prefix:
            heads = [whole - log_prob(lm.model, tokenizer.encode(a), tokenizer.encode(b)) for a, b in parts]
        gaps = [whole - by_trainer, *(whole - a - b for a, b in zip(heads, tails, strict=True))]
        worst, scale = max(worst, rig.largest(torch.tensor(gaps))), max(scale, abs(by_trainer) / len(ids))
        longest = max(longest, len(ids))
    if not looked:
        return violations([], 0)
    return Measurement(worst, rounding(lm.model, longest, scale), f"{looked} cuts of {len(SPOKEN)} texts")


@check(
    "continuation-is-encoded-in-place",
    "identity",
    "evaluate",
    bug="Context and continuation are encoded apart, or cut at the context's length: tokens that no text has, or none.",
    remedy="Encode the two as one text and cut before the first token that holds a byte of the continuation.",
    reference="EleutherAI/lm-evaluation-harness issues 1053, 1297, pull 4055",
)
def continuation_is_encoded_in_place(subject: Subject) -> Measurement:
    """Cuts of a text (at each place, inside words too) for which the ids handed to the model are not those of the whole
    text, or where the scored ones do not begin with the first token that holds a byte of the continuation.

    So " cat" after "the" is what it is in "the cat", and a continuation that merges with its context is not empty.
    """
    lm, tokenizer = harness(subject), subject.tokenizer
    pairs = [(text[:at], text[at:]) for text in SPOKEN for at in range(1, len(text))]
    with overheard(lm) as heard:
        loglikelihoods(lm, pairs)
    found = []
    for (context, continuation), (before, scored) in zip(pairs, heard, strict=True):
        whole = [*tokenizer.prefix, *tokenizer.encode(context + continuation)]
        if [*before, *scored] not in (whole, [tokenizer.start, *whole]):
            found.append(f"{context[-8:]!r} + {continuation[:8]!r}: {tokenizer.decode(scored)!r} is scored")
            continue
        put_first = len(tokenizer.decode_bytes(whole)) - len((context + continuation).encode())
        limit = len(context.rstrip().encode()) + put_first
        first = len(tokenizer.decode_bytes(before))
        if not first <= limit < first + len(tokenizer.token_bytes(scored[0])):
            found.append(f"{context[-8:]!r} + {continuation[:8]!r}: scored from {tokenizer.decode(scored)!r} on")
    return violations(found, len(pairs))


@check(
    "empty-context-uses-bos",
    "identity",
    "evaluate",
    bug="A text without context is scored from nothing, from padding or from its own second token.",
    remedy="Where the context is empty, what begins every training document stands there (prefix_token_id).",
    reference="EleutherAI/lm-evaluation-harness pulls 1465, 2049; tenstorrent/tt-metal issue 48444",
)
def empty_context_uses_bos(subject: Subject) -> Measurement:
    """Texts whose ids, as handed to the model with an empty context, are not [BOS] and then all of theirs, scored;
    with a context: texts that begin without BOS (where the tokenizer puts one), or with two. By rolling alike."""
    from lm_eval.api.instance import Instance

    lm, tokenizer, found = harness(subject), subject.tokenizer, []
    with overheard(lm) as heard:
        loglikelihoods(lm, [("", text) for text in SPOKEN])
        lm.loglikelihood_rolling(
            [Instance("loglikelihood_rolling", {}, (text,), n) for n, text in enumerate(SPOKEN)]  # type: ignore[arg-type]
        )
        loglikelihoods(lm, [(text, " so") for text in SPOKEN])
    for n, (before, scored) in enumerate(heard[: 2 * len(SPOKEN)]):
        text = SPOKEN[n % len(SPOKEN)]
        if (list(before), list(scored)) != ([tokenizer.start], tokenizer.encode(text)):
            found.append(f"{text[:12]!r}: {list(before)} and then {tokenizer.decode(scored)[:12]!r}")
    for before, _ in heard[2 * len(SPOKEN) :]:
        begins = list(before[: len(tokenizer.prefix) + 1])
        if begins[:-1] != tokenizer.prefix or (tokenizer.prefix and begins[-1] in tokenizer.prefix):
            found.append(f"a context begins with {begins}")
    return violations(found, len(heard))


@check(
    "windows-score-each-token-once",
    "identity",
    "evaluate",
    bug="A long text is scored in windows that overlap or leave tokens out, or whose last one has no context.",
    remedy="See windows() in evaluate/likelihood.py: each token after the first exactly once, the last window full.",
    reference="huggingface/transformers issues 30975, 34138; EleutherAI/lm-evaluation-harness issue 339",
)
def windows_score_each_token_once(subject: Subject) -> Measurement:
    """Lengths (2 to three contexts and 2, contexts of 5 and 16) whose windows do not score tokens 1, 2, ... once each
    and in order, do not fit the model, or leave a token with less context than it could have: the last window must be
    as long as fits."""
    found, looked = [], 0
    for context in (5, 16):
        for n in range(2, 3 * context + 3):
            made = likelihood.windows(range(n), context)
            looked += 1
            if [i for _, scored in made for i in scored] != list(range(1, n)):
                found.append(f"{n} tokens in {context}: not each once")
            for before, scored in made:
                row = [*before, *scored]
                if not before or len(row) > context + 1 or row != list(range(row[0], row[0] + len(row))):
                    found.append(f"{n} tokens in {context}: a window of {len(before)} + {len(scored)}")
            if made and len(made[-1][0]) + len(made[-1][1]) != min(n, context + 1):
                found.append(f"{n} tokens in {context}: the last window is short")
    return violations(found, looked)


@check(
    "long-context-loses-its-beginning",
    "locality",
    "evaluate",
    bug="A question that is too long is cut at its end, loses its BOS, or the answer is cut: scored without a word.",
    remedy="Keep BOS and the end of the context, all of the continuation; count what was cut (evaluate/adapter.py).",
    reference="ml-explore/mlx-lm pull 1902; EleutherAI/lm-evaluation-harness issue 337",
)
def long_context_loses_its_beginning(subject: Subject) -> Measurement:
    """Of contexts of half of what the model can hold, the longest that fits, the shortest that does not, and twice as
    much: those that do not keep BOS, their end, and all of the continuation, in exactly the room there is; and a count
    of cut contexts that is not right."""
    lm, tokenizer, found = harness(subject), subject.tokenizer, []
    room, tail = lm.max_length + 1, " stone"
    fits = (room - len([*tokenizer.prefix, *tokenizer.encode("a" + tail)])) // len(tokenizer.encode(" a")) + 1
    texts = ["a" + " a" * (n - 1) for n in (room // 4, fits, fits + 1, 2 * room)]
    with overheard(lm) as heard:
        loglikelihoods(lm, [(text, tail) for text in texts])
    too_long = 0
    for text, (before, scored) in zip(texts, heard, strict=True):
        whole = [*tokenizer.prefix, *tokenizer.encode(text + tail)]
        n = len(scored)
        too_long += len(whole) > room
        first = whole[:1] if len(whole) > room else []
        expected = [*first, *whole[len(whole) - min(len(whole), room) + len(first) :]]
        if [*before, *scored] != expected or tokenizer.decode(scored) != tail:
            found.append(f"{len(whole)} tokens: {len(before)} + {n} are given, from {list(before[:2])} on")
    if lm.truncated != too_long:
        found.append(f"{lm.truncated} contexts are said to be cut, {too_long} are")
    return violations(found, len(texts) + 1)


@check(
    "nothing-wins-for-free",
    "sensitivity",
    "evaluate",
    bug="An empty choice costs nothing and wins, a NaN wins or loses by accident, a text scores above its beginning.",
    remedy="Refuse empty choices where they are read and where they are scored, and scores that are not finite.",
    reference=(
        "facebookresearch/lingua issue 28; EvolvingLMMs-Lab/lmms-eval issue 370; "
        "EleutherAI/lm-evaluation-harness pull 4055"
    ),
)
def nothing_wins_for_free(subject: Subject) -> Measurement:
    """Of these, those that are not refused: questions with an empty choice, a blank one, two equal ones; an empty
    continuation, an empty context; logits that are NaN in one row alone, the shortest of many, and in generation.

    And a continuation whose score is not below that of its own beginning: log-probabilities are not positive.
    """
    found, model, tokenizer = [], subject.chat_model(), subject.tokenizer
    sound = ([tokenizer.start], tokenizer.encode(" stone river"))
    refusals: dict[str, Callable[[], Any]] = {
        "an empty choice": lambda: _read(subject, {"choices": ["the stone", ""], "answer": 0}),
        "a blank choice": lambda: _read(subject, {"choices": ["the stone", " \n"], "answer": 0}),
        "two equal choices": lambda: _read(subject, {"choices": ["a", "b", "a"], "answer": 0}),
        "an empty continuation": lambda: likelihood.score_pairs(model, [sound, (sound[1], [])]),
        "an empty context": lambda: likelihood.score_pairs(model, [sound, ([], sound[1])]),
    }
    found += [what for what, call in refusals.items() if not _refused(call)]
    spare = next(i for i in range(tokenizer.vocab_size) if i not in (*sound[0], *sound[1]))
    poisoned = subject.chat_model(tied=False)
    with torch.no_grad():
        poisoned.embed.weight[spare] = math.nan
    if not _refused(lambda: likelihood.score_pairs(poisoned, [sound] * 3 + [([spare], sound[1][:1])])):
        found.append("a NaN among scores")
    if not _refused(lambda: subject.engine(poisoned).generate([[*sound[0], spare]], SamplingParams(2, 0.0))):
        found.append("a NaN in generation")
    long = sound[1] * 3
    scores = likelihood.score_pairs(model, [(sound[0], long[:n]) for n in range(1, len(long) + 1)])
    found += [
        f"{n + 1} tokens score above their first {n}"
        for n, (a, b) in enumerate(pairwise(scores), 1)
        if not b.logprob < a.logprob
    ]
    return violations(found, len(refusals) + 2 + len(long) - 1)


def _refused(call: Callable[[], Any]) -> bool:
    try:
        call()
    except (UserError, ValueError):
        return True
    return False


def _read(subject: Subject, row: dict[str, Any]) -> list[TaskPlan]:
    """The plan of a task with this one multiple-choice question."""
    with subject.scratch() as folder:
        path = folder / "questions.jsonl"
        path.write_text(json.dumps({"prompt": "Which one?", **row}) + "\n")
        source = TaskSource(name="made", path=str(path), choices_field="choices")
        return questions.plan_tasks(EvaluateSection(tasks=[source]), 0)


# ---- multiple choice ----


def made_choices(n: int, seed: int) -> TaskPlan:
    """n questions of four choices of one kind, three words each, of which one was called right by a die."""
    draw_from = random.Random(draw.shifted(seed))
    words = [word for text in MICRO_CORPUS[:40] for word in text.split() if word.isalpha()]
    items: list[Item] = []
    while len(items) < n:
        drawn = [" ".join(draw_from.choices(words, k=3)) for _ in range(4)]
        if len(set(drawn)) == 4:
            prompt = "Of these, " + " ".join(draw_from.choices(words, k=4)) + ":"
            items.append(Item(f"{len(items)}", prompt, draw_from.randrange(4), tuple(drawn)))
    return TaskPlan("made", "choice", "acc", "made", True, 0.25, items)


def edge(n: int, p: float, chance: float) -> int:
    """The least m with P(|K - n p| > m) <= chance for K binomial of n and p, exactly."""
    mass = [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
    return next(m for m in range(n + 1) if math.fsum(w for k, w in enumerate(mass) if abs(k - n * p) > m) <= chance)


@check(
    "random-model-scores-at-chance",
    "identity",
    "evaluate",
    bug="A model that knows nothing scores above chance: the answer leaks, ties go to the right one, one place wins.",
    remedy="See run_task in evaluate/tasks.py: what each choice is scored on, and what becomes of ties.",
    reference="facebookresearch/lingua issue 28; tensorgi/TPA issue 12",
    false_alarm=1e-6,
)
def random_model_scores_at_chance(subject: Subject) -> Measurement:
    """Of a random model's answers to 120 questions with four choices: largest distance from a quarter, of the right
    ones and of those at each of the four places.

    Choices are drawn alike and the right one by a die, so each of the five counts is binomial of 120 and 1/4, whatever
    the model is. Outside the bound lies, exactly, one chance in five million for each: 1e-6 for all.
    """
    lm = harness(subject)
    from groundup.evaluate.tasks import run_task

    plan = made_choices(120, 3)
    found = run_task(lm, plan, 8)
    counts = [sum(outcome.score for outcome in found.outcomes)]
    counts += [sum(o.answer == o.item.choices[place] for o in found.outcomes) for place in range(4)]
    right = found.metrics["acc"][0]
    if abs(right * found.n - counts[0]) > 0.5 or found.n != 120:
        return Measurement(math.inf, 0.0, f"acc is {right}, {counts[0]} of {found.n} are right")
    return Measurement(
        max(abs(count - 30) for count in counts), edge(120, 0.25, 2e-7), f"{counts[0]:.0f} right, picked {counts[1:]}"
    )


@check(
    "choice-with-the-largest-sum-wins",
    "identity",
    "evaluate",
    bug="acc takes a mean where it says a sum, or acc_norm divides by tokens, bytes or the space: other choices win.",
    remedy="acc: the largest sum of log-probabilities; acc_norm: the largest per character of the choice.",
    reference="EleutherAI/lm-evaluation-harness issues 3278, 1396; EvolvingLMMs-Lab/lmms-eval issue 370",
)
def choice_with_the_largest_sum_wins(subject: Subject) -> Measurement:
    """Questions (choices of 1 to 40 characters, of one and of several bytes each, some the beginning of others) whose
    picked choice is not the largest sum by the trainer's log-probabilities; and |questions right - those that are| by
    acc and by acc_norm. Questions that rounding could decide are left out.
    """
    lm, tokenizer = harness(subject), subject.tokenizer
    from groundup.evaluate.tasks import run_task

    draw_from = random.Random(draw.shifted(5))
    pool = [
        "a",
        "the river",
        "the river and the old stone",
        "\u65e5\u672c\u8a9e",
        "12",
        "quiet",
        "\U0001f468",
        "q" * 40,
    ]
    items: list[Item] = []
    sums, per_character = [], []
    for n in range(16):
        choices = tuple(draw_from.sample(pool, 3))
        prompt = f"Of all {n} words:"
        context = [*tokenizer.prefix, *tokenizer.encode(prompt)] or [tokenizer.start]
        ids = [tokenizer.encode(prompt + " " + choice)[len(tokenizer.encode(prompt)) :] for choice in choices]
        made = [log_prob(lm.model, context, one) for one in ids]
        normed = [value / len(choice) for value, choice in zip(made, choices, strict=True)]
        room = rounding(lm.model, max(map(len, ids)), max(-v / len(i) for v, i in zip(made, ids, strict=True)))
        if min(_margin(made), _margin(normed)) <= room:
            continue
        items.append(Item(str(n), prompt, draw_from.randrange(3), choices))
        sums.append(made.index(max(made)))
        per_character.append(normed.index(max(normed)))
    found = run_task(lm, TaskPlan("made", "choice", "acc", "made", True, 1 / 3, items), 8)
    wrong = [
        f"question {o.item.id}: {o.answer[:12]!r}"
        for o, best in zip(found.outcomes, sums, strict=True)
        if o.answer != o.item.choices[best] or o.score != (best == o.item.gold)
    ]
    for metric, picked in (("acc", sums), ("acc_norm", per_character)):
        right = sum(best == item.gold for best, item in zip(picked, items, strict=True))
        if round(found.metrics[metric][0] * found.n) != right:
            wrong.append(f"{metric} is {found.metrics[metric][0]:.3f}, {right} of {len(items)} are right")
    return violations(wrong, len(items) + 2 if items else 0)


def _margin(values: list[float]) -> float:
    first, second = sorted(values, reverse=True)[:2]
    return first - second
