"""Do GRPO's answers come from the policy at hand, and does each get the reward and the advantage that are its own?"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from groundup.infer.engine import Completion, Engine
from groundup.infer.sample import SamplingParams
from groundup.model.batch import IGNORE, Batch
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.train import loop
from groundup.train.precision import autocast
from groundup.tune import grpo
from groundup.tune.formats import Problem
from groundup.verify import draw, rig
from groundup.verify.check import Measurement, NotApplicable, check, violations
from groundup.verify.checks.chat import grpo_section
from groundup.verify.checks.infer import prompts_of
from groundup.verify.fault import swapped
from groundup.verify.subject import Subject

# Which of four answers to each problem are right. Two groups carry no signal.
RIGHT = ((0,), (0, 1, 3), (2, 3), (0, 1, 2, 3), (1,), (), (0, 2))
SAYING = ("{}", "It is {}.", "So: {}", "= {}!")  # no two answers to a problem are alike
CHANCE = 21.0  # nats: a divergence met by chance with e^-21, 8e-10


def problems_of() -> list[Problem]:
    """Seven problems; every other one asked in several turns, in which the assistant has spoken before."""
    made = []
    for n in range(len(RIGHT)):
        asked = {"role": "user", "content": f"Question {'abcdefg'[n]}: how many?"}
        before = [
            {"role": "system", "content": "Count."},
            {"role": "user", "content": "May I ask?"},
            {"role": "assistant", "content": "Yes, ask."},
        ]
        made.append(Problem([*before, asked] if n % 2 else [asked], str(12 + 5 * n), "number"))
    return made


class Scripted:
    """Says to each problem what RIGHT has it say, and keeps what it was asked and what it said."""

    def __init__(self, subject: Subject, problems: Sequence[Problem]) -> None:
        self.tokenizer: Tokenizer = subject.tokenizer
        self.asked = {tuple(subject.render(p.prompt, True).ids): n for n, p in enumerate(problems)}
        self.problems = problems
        self.said: list[tuple[int, int, Completion]] = []  # (problem, which of its answers, answer)
        self.params: list[SamplingParams] = []

    def generate(self, prompts: Sequence[Sequence[int]], params: Any, *_: Any, **__: Any) -> list[Completion]:
        """Stands where Engine.generate stands."""
        times: dict[int, int] = {}
        out = []
        self.params += [params] if isinstance(params, SamplingParams) else params
        for row, prompt in enumerate(prompts):
            n = self.asked[tuple(prompt)]
            k = times[n] = times.get(n, -1) + 1
            number = int(self.problems[n].answer) + (0 if k % 4 in RIGHT[n] else 1 + k)
            text, stopped = SAYING[k % 4].format(number) + "!" * (k // 4), k % 3 != 2
            ids = [*self.tokenizer.encode(text), *[self.tokenizer.end] * stopped]
            logprobs = [-0.01 * (1 + row) - 0.0001 * i for i in range(len(ids))]
            out.append(Completion(ids, text, "stop" if stopped else "length", logprobs, len(prompt)))
            self.said.append((n, k, out[-1]))
        return out


@contextmanager
def scripted(subject: Subject, problems: Sequence[Problem]) -> Iterator[Scripted]:
    """Inside, every engine says what the script says."""
    script = Scripted(subject, problems)
    with swapped(Engine, generate=lambda self, *given, **named: script.generate(*given, **named)):
        yield script


def section_of(subject: Subject, **changes: Any) -> Any:
    """The recipe's GRPO section at micro size, in fp32."""
    if subject.recipe.grpo is None:
        raise NotApplicable("the recipe has no grpo section")
    return grpo_section(subject).model_copy(update={"precision": "fp32", **changes})


def own_advantage(problem: int, answer: int) -> float:
    """(reward - the group's mean) / the group's standard deviation, by hand; 0 in groups of one mind."""
    share = len(RIGHT[problem]) / 4
    spread = math.sqrt(share * (1 - share))
    return ((answer % 4 in RIGHT[problem]) - share) / spread if spread else 0.0


@check(
    "answers-get-their-own-advantage",
    "identity",
    "tune",
    bug="Rewards of another problem, or one answer off, or centred over the batch; tokens trained that nobody sampled.",
    remedy="One order from prompts to answers, rewards, groups and rows (Rollouts in tune/grpo.py).",
    reference=(
        "XU-YIJIE/grpo-flat issue 2; huggingface/trl issues 3098, 3750; NVIDIA-NeMo/RL pull 2176, issue 3058; "
        "NVIDIA-NeMo/Megatron-Bridge pull 5959"
    ),
)
def answers_get_their_own_advantage(subject: Subject) -> Measurement:
    """Answers of a scripted policy that are not trained exactly once, with the ids, log-probabilities and advantage
    that are their own; rows that are no answer of it; steps whose mean reward is not the script's.

    7 problems (every other with an assistant's turn in the prompt), 4 answers to each, of which the script makes known
    ones right, no two alike, some cut at the length; over 7 steps of 3 problems, in pieces of 5 rows: a step over the
    border of two epochs may ask a problem twice. The advantage may be off by the 1e-4 beside a standard deviation of
    sqrt(3)/4 or more: 4e-4 of itself, which is below 2.
    """
    problems = problems_of()
    section = section_of(subject, group_size=4, batch_size=3, micro_batch_size=5)
    source = grpo.Rollouts(subject.chat_model(), subject.tokenizer, problems, section, seed=draw.shifted(2))
    found, looked = [], 0
    with scripted(subject, problems) as script:
        prompts = {n: list(ids) for ids, n in script.asked.items()}
        for step in range(len(problems)):
            script.said.clear()
            batches = source.micro_batches(step)
            waiting = {
                (tuple(prompts[n]), tuple(done.ids)): (own_advantage(n, k), done)
                for n, k, done in script.said
                if own_advantage(n, k)
            }
            looked += len(waiting)
            found += [f"step {step + 1}: {text}" for text in _trained(batches, waiting)]
            found += [f"step {step + 1}: an answer of advantage {a:.2f} is not trained" for a, _ in waiting.values()]
            mean = sum(k % 4 in RIGHT[n] for n, k, _ in script.said) / len(script.said)
            if abs(source.statistics["reward"] - mean) > 1e-6:
                found.append(f"step {step + 1}: mean reward {source.statistics['reward']:.3f}, it is {mean:.3f}")
    return violations(found, looked)


def _trained(batches: Sequence[Batch], waiting: dict[Any, tuple[float, Completion]]) -> Iterator[str]:
    """What is wrong with the rows of these batches; each answer that is met is taken out of `waiting`."""
    for batch in batches:
        for row in range(batch.rows):
            scored = (batch.targets[row] != IGNORE).nonzero()[:, 0]
            first, n = int(scored[0]), len(scored)
            ids = batch.targets[row, scored].tolist()
            key = (tuple(batch.tokens[row, : first + 1].tolist()), tuple(ids))
            if key not in waiting:
                yield f"{n} tokens are trained that are no answer to that prompt, or no longer one"
                continue
            advantage, done = waiting.pop(key)
            if batch.tokens[row, first + 1 : first + n].tolist() != ids[:-1]:
                yield "an answer is not its own context"
            got = float(batch.extra["advantages"][row])
            if not abs(got - advantage) <= 2 * 4e-4:
                yield f"an advantage of {got:.3f} where it is {advantage:.3f}"
            if not torch.equal(batch.extra["sampler_logprobs"][row, scored], torch.tensor(done.logprobs)):
                yield "log-probabilities of another answer, or another place"


@check(
    "every-rollout-is-of-the-latest-weights",
    "identity",
    "tune",
    bug="Answers are drawn with the weights of an earlier step, or of the start: learning is off-policy, unseen.",
    remedy="The engine shares the policy's weights, and a step samples when it begins (Rollouts, train/loop.py).",
    reference="huggingface/trl issues 5312, 2856; NVIDIA-NeMo/RL pull 4018",
)
def every_rollout_is_of_the_latest_weights(subject: Subject) -> Measurement:
    """Largest `sampler_gap` that the loop logs over four steps of GRPO on a micro model: mean |log p sampler - log p
    trainer| of a step's tokens. The rates are such that one step moves them by hundredths; the bound is the rounding of
    log-probabilities at temperature 0.7, twice. Every other length is rewarded, so that nearly all groups have signal.
    """
    section = section_of(
        subject,
        **{"steps": 4, "group_size": 6, "max_new_tokens": 8, "temperature": 0.7, "kl_beta": 0.0, "compile": False},
        **{"learning_rate": 3e-3, "muon_learning_rate": 2e-2, "warmup": 0.0, "schedule": "constant", "log_every": 1},
        **{"validate_every": 10**6, "save_every": 10**6, "weight_decay": 0.0, "grad_clip": 1e3},
    )
    problems = problems_of()[:2]  # the same at every step: what is kept of an earlier answer is met again
    model = subject.chat_model(dropout=0.0)
    source = grpo.Rollouts(model, subject.tokenizer, problems, section, seed=draw.shifted(7))
    with subject.scratch() as folder, swapped(grpo, reward=lambda problem, answer: float(len(answer) % 2)):
        loop.train(rig.make_job(subject, model, source, section, folder, grpo.GrpoObjective(model, section)))
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    gaps = {row["step"]: row["sampler_gap"] for row in rows if "sampler_gap" in row}
    if not [step for step in gaps if step > 1]:
        return Measurement(math.nan, 0.0, "no later step had a group with signal")
    bound = 4 * rig.tolerance(model.config, math.log(model.config.vocab_size) + 4) / 0.7
    return Measurement(max(gaps.values()), bound, ", ".join(f"step {s}: {gap:.2g}" for s, gap in gaps.items()))


@check(
    "ratio-is-of-one-support",
    "identity",
    "tune",
    bug="Answers are drawn with top-k, top-p or another temperature, and trained as if from the whole distribution.",
    remedy="Rollouts are drawn at grpo.temperature alone; a server's defaults must not reach them (Rollouts.sample).",
    reference="huggingface/trl issues 6789, 6945, pull 7269",
    false_alarm=1e-8,
)
def ratio_is_of_one_support(subject: Subject) -> Measurement:
    """Largest divergence n KL(share seen || mass) of the rollouts' first tokens, in nats, over three tails: what lies
    outside the smallest set of tokens that holds 50, 90 and 98% in the trainer's distribution. 2,048 answers of one
    token to four problems, at the recipe's temperature.

    By Chernoff's bound, a share as far off or further is met with chance e^-value on each side: 21 nats are one in
    10^9. A tail that is never drawn costs n times its mass: 41 nats for the last fiftieth. The log-probabilities that
    the sampler reports are of the whole distribution, so the ratio itself does not show a cut.
    """
    section = section_of(subject, group_size=512, max_new_tokens=1, batch_size=4)
    problems, model = problems_of()[:4], subject.chat_model()
    source = grpo.Rollouts(model, subject.tokenizer, problems, section, seed=draw.shifted(13))
    prompts, completions = source.sample(problems, 0)
    drawn: dict[tuple[int, ...], list[int]] = {}
    for asked, done in zip(prompts, completions, strict=True):
        drawn.setdefault(tuple(asked), []).append(done.ids[0])
    worst, note = 0.0, ""
    for share in (0.5, 0.9, 0.98):
        outside, mass, n = 0, 0.0, 0
        for prompt, ids in drawn.items():
            logits = rig.logits_of(model, torch.tensor([prompt]))[0, -1].double() / section.temperature
            probability, order = logits.softmax(-1).sort(descending=True)
            kept = int((probability.cumsum(0) < share).sum()) + 1
            tail = torch.ones(len(logits), dtype=torch.bool)
            tail[order[:kept]] = False
            outside, n = outside + int(tail[torch.tensor(ids)].sum()), n + len(ids)
            mass += len(ids) * float(probability[kept:].sum())
        value = n * _divergence(outside / n, mass / n)
        if value >= worst:
            worst, note = value, f"{outside} of {n:,} draws outside the likeliest {share:.0%}, {mass:.0f} expected"
    return Measurement(worst, CHANCE, note)


def _divergence(share: float, mass: float) -> float:
    """KL between two coins, nats."""
    parts = ((share, mass), (1 - share, 1 - mass))
    return sum(p * math.log(p / q) if q > 0 else math.inf for p, q in parts if p > 0)


@check(
    "new-weights-clear-the-cache",
    "locality",
    "infer",
    bug="After an update the engine still answers from keys and values, or copies, of the weights before.",
    remedy="Keep nothing of a prompt or a weight between calls, or drop it with the weights (infer/engine.py).",
    reference="NVIDIA-NeMo/RL pull 4018; vllm-project/vllm issue 9744; InternLM/lmdeploy issue 4917",
)
def new_weights_clear_the_cache(subject: Subject) -> Measurement:
    """Largest distance between the log-probabilities of an engine that has answered the same prompts with other weights
    and those of a fresh engine on a copy of the new ones; infinite where the texts differ. Three prompts, twice; in
    fp32, and inside of one bf16 region, which keeps cast weights. The same program on the same numbers: equal up to the
    rounding that the experts' order leaves."""
    worst, scale = 0.0, 1.0
    params = [SamplingParams(10, 0.0), SamplingParams(10, 1.0, seed=draw.shifted(3)), SamplingParams(10, 0.0)]
    model = subject.chat_model()
    engine = subject.engine(model)
    for seed, precision in ((21, "fp32"), (22, "bf16")):
        with autocast("cpu", precision):
            engine.generate(prompts_of(subject), params)
            generator = draw.generator(seed)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(
                        0.3 * parameter.std(correction=0) * torch.randn(parameter.shape, generator=generator)
                    )
            again = engine.generate(prompts_of(subject), params)
            torch.clear_autocast_cache()
            fresh = subject.engine(copy.deepcopy(model)).generate(prompts_of(subject), params)
        for old, new in zip(again, fresh, strict=True):
            if old.ids != new.ids:
                return Measurement(math.inf, 0.0, f"{precision}: other answers than a fresh engine's")
            worst = max(worst, rig.largest(torch.tensor(old.logprobs) - torch.tensor(new.logprobs)))
            scale = max(scale, rig.largest(torch.tensor(new.logprobs)))
    return Measurement(worst, 2 * rig.tolerance(model.config, scale + 4), f"{2 * len(params)} answers")
