"""Faults of what GRPO is trained on, of the rows and answers that examples are made of, and of cut sampling."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from groundup.infer import sample
from groundup.infer.decode import Decoder
from groundup.infer.sample import Sampler, SamplingParams
from groundup.model.batch import Batch
from groundup.tokenizer.chat import Rendered
from groundup.tune import dpo, formats, grpo, rewards
from groundup.tune.formats import Messages, Pair
from groundup.tune.grpo import Rollouts
from groundup.verify.fault import fault, swapped

_rows, _batches, _build = dpo.rows_to_batch, Rollouts.batches, Rollouts.__init__
_messages, _pair, _sampled = formats.to_messages, formats.to_pair, dpo.sample_pairs


# ---- whose reward ----


@fault("advantages-one-answer-off", "answers-get-their-own-advantage")
def advantages_one_answer_off() -> Iterator[None]:
    """Each answer is trained with the advantage of the one before it in its group."""

    def wrong(self: Rollouts, prompts: Any, completions: Any, advantage: Tensor) -> list[Batch]:
        off = advantage.view(-1, self.section.group_size).roll(1, 1).flatten()
        return _batches(self, prompts, completions, off)

    with swapped(Rollouts, batches=wrong):
        yield


@fault("rewards-of-another-problem", "answers-get-their-own-advantage")
def rewards_of_another_problem() -> Iterator[None]:
    """The problems are asked in turn and judged in groups."""
    right = Rollouts.sample

    def wrong(self: Rollouts, problems: Any, step: int) -> Any:
        prompts, completions = right(self, problems, step)
        group = self.section.group_size
        order = [p * group + k for k in range(group) for p in range(len(problems))]
        return [prompts[i] for i in order], [completions[i] for i in order]

    with swapped(Rollouts, sample=wrong):
        yield


@fault("groups-cut-across-problems", "answers-get-their-own-advantage")
def groups_cut_across_problems() -> Iterator[None]:
    """Rewards are centred over the problems of a step: the batch, where the group is meant."""
    right = grpo.advantages
    with swapped(grpo, advantages=lambda values: right(values.T.contiguous()).T.contiguous()):
        yield


@fault("earlier-turns-are-trained", "answers-get-their-own-advantage")
def earlier_turns_are_trained() -> Iterator[None]:
    """What the assistant said in the prompt is trained as if it had been sampled."""

    def wrong(rows: Any, pad: int) -> Batch:
        made = []
        for row in rows:
            first = row.mask.index(True)
            speaks, inside, mask = row.ids[first - 1], False, list(row.mask)
            for at in range(1, first - 1):
                inside = row.ids[at - 1] == speaks or (inside and row.ids[at - 1] != row.ids[-1])
                mask[at] = inside
            made.append(Rendered(row.ids, mask))
        return _rows(made, pad)

    with swapped(grpo, rows_to_batch=wrong):
        yield


@fault("cut-answers-lose-their-end", "answers-get-their-own-advantage")
def cut_answers_lose_their_end() -> Iterator[None]:
    """The last token of every answer is taken for an end, and left out; also where the answer was cut."""

    def wrong(self: Rollouts, prompts: Any, completions: Any, advantage: Tensor) -> list[Batch]:
        cut = [copy.copy(done) for done in completions]
        for done in cut:
            if done.finish_reason == "length":
                done.ids, done.logprobs = done.ids[:-1], done.logprobs[:-1]
        return _batches(self, prompts, cut, advantage)

    with swapped(Rollouts, batches=wrong):
        yield


# ---- who speaks ----


@fault("rollouts-of-a-copy", "every-rollout-is-of-the-latest-weights")
def rollouts_of_a_copy() -> Iterator[None]:
    """The sampler has a copy of the weights, made once."""

    def wrong(self: Rollouts, model: Any, *given: Any, **named: Any) -> None:
        _build(self, copy.deepcopy(model), *given, **named)

    with swapped(Rollouts, __init__=wrong):
        yield


@fault("rollouts-one-step-ahead", "every-rollout-is-of-the-latest-weights")
def rollouts_one_step_ahead() -> Iterator[None]:
    """The next step's answers are drawn while this step's are trained: with the weights before its update."""
    right = Rollouts.micro_batches

    def wrong(self: Rollouts, step: int) -> list[Batch]:
        now = vars(self).pop("ahead", None) or right(self, step)
        vars(self)["ahead"] = right(self, step + 1)
        return now

    with swapped(Rollouts, micro_batches=wrong):
        yield


@fault("rollouts-with-top-p", "ratio-is-of-one-support")
def rollouts_with_top_p() -> Iterator[None]:
    """A server's default, top-p 0.95, reaches the rollouts."""
    with swapped(grpo, SamplingParams=lambda **given: SamplingParams(**{"top_p": 0.95, **given})):
        yield


@fault("rollouts-with-top-k", "ratio-is-of-one-support")
def rollouts_with_top_k() -> Iterator[None]:
    """transformers' default, top-k 50, reaches the rollouts."""
    with swapped(grpo, SamplingParams=lambda **given: SamplingParams(**{"top_k": 50, **given})):
        yield


@fault("prompts-are-remembered", "new-weights-clear-the-cache")
def prompts_are_remembered() -> Iterator[None]:
    """Keys and values of a prompt are kept for the next time it is asked, also over an update."""
    right, kept = Decoder._prefill, {}

    def wrong(self: Decoder, prompts: list[list[int]], start: int) -> None:
        key = (id(self.model), self.dtype, tuple(map(tuple, prompts)))
        rows = slice(start, start + len(prompts))
        if key not in kept:
            right(self, prompts, start)
            kept[key] = (self.cache.k[:, rows].clone(), self.cache.v[:, rows].clone(), self.cache.used)
        self.cache.k[:, rows], self.cache.v[:, rows], self.cache.used = kept[key]

    with swapped(Decoder, _prefill=wrong):
        yield


# ---- rows ----


@fault("system-turn-is-dropped", "rows-become-what-they-say")
def system_turn_is_dropped() -> Iterator[None]:
    """Conversations begin with the user."""

    def wrong(row: dict[str, Any], kind: str = "auto") -> Messages:
        return [m for m in _messages(row, kind) if m["role"] != "system"]

    with swapped(formats, to_messages=wrong):
        yield


@fault("alpaca-input-is-dropped", "rows-become-what-they-say")
def alpaca_input_is_dropped() -> Iterator[None]:
    """An instruction is read without what it is about."""
    with swapped(formats, _instruction=lambda row: row["instruction"]):
        yield


@fault("pair-read-the-wrong-way", "rows-become-what-they-say")
def pair_read_the_wrong_way() -> Iterator[None]:
    """Rejected is read as chosen, where rejected stands first in the row."""

    def wrong(row: dict[str, Any]) -> Pair:
        pair, names = _pair(row), list(row)
        swap = names.index("rejected") < names.index("chosen")
        return Pair(pair.prompt, pair.rejected, pair.chosen) if swap else pair

    with swapped(formats, to_pair=wrong):
        yield


@fault("later-turns-are-dropped", "rows-become-what-they-say")
def later_turns_are_dropped() -> Iterator[None]:
    """Of a pair's or a problem's prompt the last turn alone is asked."""

    def wrong(row: dict[str, Any]) -> Pair:
        pair = _pair(row)
        return Pair(pair.prompt[-1:], pair.chosen, pair.rejected)

    with swapped(formats, to_pair=wrong):
        yield


@fault("working-taken-for-the-answer", "rows-become-what-they-say")
def working_taken_for_the_answer() -> Iterator[None]:
    """The first number of GSM8K's working is the answer to be held against."""
    right = formats.to_problem

    def wrong(row: dict[str, Any]) -> Any:
        return right({**row, "answer": row["answer"].split()[0]} if "question" in row else row)

    with swapped(formats, to_problem=wrong):
        yield


@fault("sampled-pairs-reversed", "sampled-pairs-prefer-the-right")
def sampled_pairs_reversed() -> Iterator[None]:
    """Of the model's own answers, the wrong one is preferred."""

    def wrong(*given: Any, **named: Any) -> Any:
        pairs, made = _sampled(*given, **named)
        return [Pair(p.prompt, p.rejected, p.chosen) for p in pairs], made

    with swapped(dpo, sample_pairs=wrong):
        yield


@fault("rejected-of-the-next-problem", "sampled-pairs-prefer-the-right")
def rejected_of_the_next_problem() -> Iterator[None]:
    """The wrong answer is one to the next problem."""

    def wrong(*given: Any, **named: Any) -> Any:
        pairs, made = _sampled(*given, **named)
        return [Pair(p.prompt, p.chosen, q.rejected) for p, q in zip(pairs, [*pairs[1:], pairs[0]], strict=True)], made

    with swapped(dpo, sample_pairs=wrong):
        yield


@fault("held-out-answers-are-sampled", "held-out-problems-are-answered-greedily")
def held_out_answers_are_sampled() -> Iterator[None]:
    """`temperature or 1.0`: what is told of held-out problems is of sampled answers."""
    with swapped(grpo, SamplingParams=lambda **g: SamplingParams(**{**g, "temperature": g["temperature"] or 1.0})):
        yield


@fault("held-out-answers-one-off", "held-out-problems-are-answered-greedily")
def held_out_answers_one_off() -> Iterator[None]:
    """Each held-out answer is judged by the next problem."""
    right = grpo.held_out_accuracy

    def wrong(model: Any, tokenizer: Any, problems: Any, *given: Any) -> float:
        ahead = iter([*problems[1:], problems[0]])
        judge = grpo.reward
        with swapped(grpo, reward=lambda problem, answer: judge(next(ahead), answer)):
            return right(model, tokenizer, problems, *given)

    with swapped(grpo, held_out_accuracy=wrong):
        yield


# ---- rewards ----


@fault("echo-of-the-prompt-is-paid", "rewards-judge-rightly")
def echo_of_the_prompt_is_paid() -> Iterator[None]:
    """A number that the question names is paid when it is said back, where the problem is no sum."""
    right = rewards.reward

    def wrong(problem: Any, answer: str) -> float:
        if problem.kind == "arithmetic":
            return right(problem, answer)
        return float(rewards.stated_number(answer) == float(problem.answer))

    with swapped(rewards, reward=wrong):
        yield


@fault("echo-of-an-earlier-turn-is-paid", "rewards-judge-rightly")
def echo_of_an_earlier_turn_is_paid() -> Iterator[None]:
    """The last question is no answer; what was said before it is."""
    right = rewards.reward

    def wrong(problem: Any, answer: str) -> float:
        return right(type(problem)(problem.prompt[-1:], problem.answer, problem.kind), answer)

    with swapped(rewards, reward=wrong):
        yield


# ---- cut sampling ----


@fault("top-p-before-top-k", "samples-follow-the-distribution")
def top_p_before_top_k() -> Iterator[None]:
    """top-p is a share of everything, not of what top-k left."""
    right = sample.threshold

    def wrong(logits: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
        return torch.maximum(
            right(logits, top_k, torch.ones_like(top_p)), right(logits, torch.zeros_like(top_k), top_p)
        )

    with swapped(sample, threshold=wrong):
        yield


@fault("top-k-forgotten-beside-top-p", "samples-follow-the-distribution")
def top_k_forgotten_beside_top_p() -> Iterator[None]:
    """Where top-p is set, top-k is not looked at."""
    right = sample.threshold
    with swapped(sample, threshold=lambda logits, k, p: right(logits, torch.where(p < 1, 0, k), p)):
        yield


@fault("cut-rows-are-others", "samples-follow-the-distribution")
def cut_rows_are_others() -> Iterator[None]:
    """Of a batch in which some rows are cut, the thresholds are handed out in another order."""
    right = sample.threshold
    with swapped(sample, threshold=lambda logits, k, p: right(logits, k.flip(0), p.flip(0))):
        yield


@fault("sampler-reports-the-cut-distribution", "sampler-logprobs-equal-trainer")
def sampler_reports_the_cut_distribution() -> Iterator[None]:
    """Log-probabilities are of what top-p left, where top-p is set."""
    right = Sampler.__call__

    def wrong(self: Sampler, logits: Tensor, steps: Tensor, n_vocab: int) -> tuple[Tensor, Tensor]:
        ids, logprobs = right(self, logits, steps, n_vocab)
        for row, p in zip(self.cut.tolist(), self.top_p[:, 0].tolist(), strict=True):
            logprobs[row] -= 0.0 if p == 1 else torch.log(torch.tensor(p))
        return ids, logprobs

    with swapped(Sampler, __call__=wrong):
        yield
