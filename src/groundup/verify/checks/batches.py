"""Do SFT, DPO and GRPO see each of their examples once an epoch, in an order that depends on (seed, epoch) alone?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from groundup.infer.decode import Completion
from groundup.infer.sample import SamplingParams
from groundup.model.batch import Batch
from groundup.train.objective import BatchSource
from groundup.tune import dpo, grpo, pack
from groundup.tune.formats import Pair, Problem
from groundup.verify.check import Measurement, NotApplicable, check, violations
from groundup.verify.checks.chat import grpo_section
from groundup.verify.subject import Subject

EXAMPLES = 7  # a prime: batches of 3 straddle epochs
EPOCHS = 3
WORDS = ("one", "two", "three", "four", "five", "six", "seven")

# (batch size, micro-batch size, seed) -> a batch source
Build = Callable[[int, int, int], BatchSource]


@dataclass
class Seen:
    """A tuning stage's source, and which example a row of its batches is."""

    build: Build
    known: dict[tuple[int, ...], int]  # a row's tokens (of GRPO, its prompt's) -> its example
    rows_each: int = 1  # rows that an example is made of
    length: int | None = None  # tokens of a row that name its example; None = all
    drawn: list[int] = field(default_factory=list)  # seeds that answers were drawn with

    def examples(self, source: BatchSource, step: int) -> list[int]:
        """The examples of a step, in its order, one entry a row; -1 for a row that is none."""
        found = [self._row(batch, row) for batch in source.micro_batches(step) for row in range(batch.rows)]
        return found

    def _row(self, batch: Batch, row: int) -> int:
        ids = batch.tokens[row][batch.documents[row] >= 0].tolist()
        for known, example in self.known.items():
            if tuple(ids[: len(known)]) == known and (self.length is not None or len(ids) == len(known)):
                return example
        return -1


def sft(subject: Subject) -> Seen:
    """Conversations so long that no two share a row."""
    if subject.recipe.sft is None:
        raise NotApplicable("the recipe has no sft section")
    said = [f"{word} " * 8 for word in WORDS]
    chats = [subject.render([{"role": "user", "content": "x"}, {"role": "assistant", "content": s}]) for s in said]
    context = max(len(chat.ids) for chat in chats)
    known = {tuple(chat.ids[:-1]): n for n, chat in enumerate(chats)}

    def build(batch: int, micro: int, seed: int) -> BatchSource:
        return pack.PackedChats(chats, context, batch, micro, subject.tokenizer.eos, seed)

    return Seen(build, known)


def pairs(subject: Subject) -> Seen:
    if subject.recipe.dpo is None:
        raise NotApplicable("the recipe has no dpo section")
    given = [Pair([{"role": "user", "content": "x"}], word, f"not {word}") for word in WORDS]
    both = dpo.render_pairs(subject.tokenizer, given)
    known = {tuple(side.ids[:-1]): n for n, pair in enumerate(both) for side in pair}

    def build(batch: int, micro: int, seed: int) -> BatchSource:
        return dpo.PairBatches(both, 10**6, batch, micro, subject.tokenizer.eos, seed)

    return Seen(build, known, rows_each=2)


def rollouts(subject: Subject) -> Seen:
    """Problems whose answers are made up, the first of each group right and the others wrong: all rows have signal."""
    section = grpo_section(subject)
    if subject.recipe.grpo is None:
        raise NotApplicable("the recipe has no grpo section")
    problems = [Problem([{"role": "user", "content": word}], str(n + 1), "number") for n, word in enumerate(WORDS)]
    model, tokenizer = subject.chat_model(), subject.tokenizer
    prompts = [tuple(subject.render(problem.prompt, True).ids) for problem in problems]
    seen = Seen(lambda *_: pairs(subject).build(1, 1, 0), {ids: n for n, ids in enumerate(prompts)}, section.group_size)
    seen.length = 1

    def generate(asked: Sequence[Sequence[int]], params: Sequence[SamplingParams], *_: Any) -> list[Completion]:
        seen.drawn += [int(one.seed or 0) for one in params]
        out = []
        for n, ids in enumerate(asked):
            example = seen.known.get(tuple(ids), -1)
            text = str(example + 1) if n % section.group_size == 0 else "no"
            drawn = [*tokenizer.encode(text), tokenizer.end]
            out.append(Completion(drawn, text, "stop", [0.0] * len(drawn), len(ids)))
        return out

    def build(batch: int, micro: int, seed: int) -> BatchSource:
        changed = section.model_copy(update={"batch_size": batch, "micro_batch_size": micro})
        source = grpo.Rollouts(model, tokenizer, problems, changed, seed)
        source.engine.generate = generate  # type: ignore[method-assign, assignment]
        return source

    seen.build = build
    return seen


def wrong_with(seen: Seen) -> list[str]:
    """What is wrong with a source's examples."""
    found = []
    source, times = seen.build(3, 2, 5), Counter(dict.fromkeys(range(EXAMPLES), 0))
    walked = []
    for step in range(EXAMPLES):  # 3 epochs, 7 steps
        walked.append(sorted(seen.examples(source, step)))
        if len(walked[-1]) != 3 * seen.rows_each:
            found.append(f"step {step} has {len(walked[-1])} rows, not {3 * seen.rows_each}")
        times.update(walked[-1])
        if max(times.values()) - min(times.values()) > seen.rows_each:
            found.append(
                f"after step {step} some examples were seen {max(times.values()) // seen.rows_each} times, "
                f"some {min(times.values()) // seen.rows_each}"
            )
    if -1 in times:
        found.append("a row is none of the examples")
    if sorted(seen.examples(seen.build(3, 2, 5), 4)) != walked[4]:
        found.append("step 4 depends on the steps before it")
    for micro in (1, 3):
        if sorted(seen.examples(seen.build(3, micro, 5), 1)) != walked[1]:
            found.append(f"micro-batches of {micro} change what is seen")
    first, second = ([order(seen, seed, epoch) for epoch in range(EPOCHS)] for seed in (5, 6))
    if len(set(first)) == 1:
        found.append("every epoch has the same order")
    if first == second:
        found.append("the seed changes nothing")
    return found


def order(seen: Seen, seed: int, epoch: int) -> tuple[int, ...]:
    """The examples of an epoch, in order: batches of one."""
    source = seen.build(1, 1, seed)
    return tuple(seen.examples(source, step)[0] for step in range(epoch * EXAMPLES, (epoch + 1) * EXAMPLES))


@check(
    "each-example-once-an-epoch",
    "identity",
    "tune",
    bug=(
        "SFT, DPO or GRPO sees the same batch at every step, the same order in every epoch, or loses a step's last "
        "rows: the loss falls all the faster, on a part of the data."
    ),
    remedy="A step is a part of a permutation from (seed, epoch): see tune/pack.py, tune/dpo.py, tune/grpo.py.",
    reference=(
        "huggingface/trl issue 2337; NVIDIA/NeMo-Aligner issue 29; Qihoo360/360-LLaMA-Factory issue 46; "
        "goodfire-ai/spd issue 104"
    ),
)
def each_example_once_an_epoch(subject: Subject) -> Measurement:
    """What is wrong over three epochs of 7 examples in batches of 3 (micro-batches of 2), for each tuning stage of the
    recipe: a step with another number of rows, examples seen more than once before all were, a step that depends on
    those before it or on the micro-batch size, epochs in one order, a seed that changes nothing; and seeds with which
    GRPO draws two answers. Exact: that three permutations of 7 are one by chance happens once in 5040^2, and the seeds
    are fixed.
    """
    found, looked = [], 0
    for name, make in (("sft", sft), ("dpo", pairs), ("grpo", rollouts)):
        try:
            seen = make(subject)
        except NotApplicable:
            continue
        looked += 7
        found += [f"{name}: {what}" for what in wrong_with(seen)]
        if name == "grpo":
            source = seen.build(3, 2, 5)
            seen.drawn.clear()
            for step in range(4):
                source.micro_batches(step)
            looked += 1
            if len(set(seen.drawn)) != len(seen.drawn):
                found.append("grpo: two answers are drawn with one seed")
    if not looked:
        raise NotApplicable("the recipe has no tuning stage")
    return violations(found, looked)
