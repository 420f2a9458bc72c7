"""GRPO: identities at the start, exact bookkeeping, and that it learns."""

import pytest
import torch

from groundup.infer.engine import Completion
from groundup.model.batch import IGNORE
from groundup.model.loss import token_logprobs
from groundup.recipe.schema import ChatSource, GrpoSection
from groundup.train.precision import autocast
from groundup.tune import grpo
from groundup.tune.formats import Problem
from groundup.tune.grpo import GrpoObjective, Rollouts, advantages, clipped_surrogate, k3

PROBLEMS = [Problem([{"role": "user", "content": f"say {n}"}], "1", "number") for n in range(4)]


def section(**values):
    given = {"steps": 4, "batch_size": 2, "group_size": 4, "max_new_tokens": 8, "micro_batch_size": 8, "clip": 0.2}
    return GrpoSection(sources=[ChatSource(builtin="town")], **(given | values))


def vowels(problem, answer, least=3):
    return float(sum(answer.count(v) for v in "aeiou") >= least)


def test_advantages_sum_to_zero_and_equal_groups_give_none():
    """Bug: advantages over the whole batch instead of the group, or 0/0 in a group of equals."""
    made = advantages(torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 1.0]]))
    assert torch.allclose(made.sum(dim=1), torch.zeros(3), atol=1e-5)
    assert made[1].abs().max() == 0 and made[0, 0] > 0 > made[0, 1]


def test_surrogate_clips_the_right_side():
    """Bug: clip on the side where the ratio should be free (values by hand)."""
    ratio = torch.tensor([1.5, 1.5, 0.5, 0.5])
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0])
    loss, clipped = clipped_surrogate(ratio.log(), torch.zeros(4), advantage, 0.2)
    assert torch.allclose(loss, torch.tensor([-1.2, 1.5, -0.5, 0.8]))
    assert clipped.tolist() == [1, 0, 0, 1]


def test_k3_is_zero_at_equality_and_never_negative():
    """Bug: the naive estimator, negative half of the time, rewards drifting away."""
    p = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    q = p + 0.1 * torch.randn(1000, generator=torch.Generator().manual_seed(1))
    assert k3(p, p).abs().max() == 0 and k3(p, q).min() >= 0


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_starts_with_ratio_one(model, tokenizer, monkeypatch, temperature):
    """Bug: sampler and trainer disagree: another temperature, a shifted position, padding scored."""
    monkeypatch.setattr(grpo, "reward", vowels)
    s = section(temperature=temperature)
    source = Rollouts(model, tokenizer, PROBLEMS, s, seed=1)
    batches = source.micro_batches(0)
    assert batches, "no group with signal: the test would prove nothing"
    for batch in batches:
        loss = GrpoObjective(model, s)(model, batch)
        assert float(loss.metrics["sampler_gap"]) / loss.weight < 1e-4
        assert float(loss.metrics["kl"]) == pytest.approx(0.0, abs=1e-4)
        assert float(loss.metrics["clip_share"]) == 0
        assert loss.weight == int((batch.targets != IGNORE).sum())


def rounding(model, batches, precision):
    """Mean distances, from the trainer in fp32, of the trainer's log-probabilities in a precision and the sampler's."""
    ours, theirs = [], []
    for batch in batches:
        scored = batch.targets != IGNORE
        found = {}
        for name in ("fp32", precision):
            with torch.no_grad(), autocast("cpu", name):
                hidden = model(batch.tokens, documents=batch.documents, positions=batch.positions)
                found[name] = token_logprobs(model, hidden, batch.targets)[scored]
        ours.append(found[precision] - found["fp32"])
        theirs.append(batch.extra["sampler_logprobs"][scored] - found["fp32"])
    return (float(torch.cat(one).abs().mean()) for one in (ours, theirs))


def test_sampler_rounds_as_the_trainer_does(model, tokenizer, monkeypatch):
    """Bug: rollouts sampled in fp32 and trained in bf16: two policies, at every step of every run in bf16."""
    monkeypatch.setattr(grpo, "reward", vowels)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    source = Rollouts(model, tokenizer, PROBLEMS, section(precision="bf16"), seed=1)
    trainer, sampler = rounding(model.eval(), source.micro_batches(0), "bf16")
    assert 0.25 * trainer < sampler < 4 * trainer


def test_rollouts_are_a_pure_function_of_step_and_weights(model, tokenizer, monkeypatch):
    """Bug: a resumed run draws other answers than the run that was never stopped."""
    monkeypatch.setattr(grpo, "reward", vowels)
    first = Rollouts(model, tokenizer, PROBLEMS, section(), seed=1)
    first.micro_batches(0)
    a = first.micro_batches(3)
    torch.rand(5)
    b = Rollouts(model, tokenizer, PROBLEMS, section(), seed=1).micro_batches(3)
    assert all(torch.equal(x.tokens, y.tokens) for x, y in zip(a, b, strict=True)) and len(a) == len(b)
    c = first.micro_batches(4)
    assert not (len(a) == len(c) and all(torch.equal(x.tokens, y.tokens) for x, y in zip(a, c, strict=True)))


def test_groups_without_signal_are_left_out(model, tokenizer, monkeypatch):
    """Bug: tokens of groups that teach nothing count in the denominator and shrink every step."""
    monkeypatch.setattr(grpo, "reward", lambda problem, answer: 1.0)
    source = Rollouts(model, tokenizer, PROBLEMS, section(), seed=1)
    assert source.micro_batches(0) == []
    assert source.statistics["zero_std_groups"] == 1.0 and source.statistics["reward"] == 1.0


def test_scored_are_the_answers_tokens_with_their_log_probs(model, tokenizer):
    """Bug: log-probs written one place off."""
    source = Rollouts(model, tokenizer, PROBLEMS, section(), seed=1)
    prompt = [0, 2, 9, 5, 3]
    done = [Completion([20, 21, 5], "x", "stop", [-0.1, -0.2, -0.3], 5), Completion([22], "y", "length", [-0.4], 5)]
    batch = source.batches([prompt, prompt], done, torch.tensor([1.0, -1.0]))[0]
    for row, n in ((0, 1), (1, 3)):  # shortest first
        scored = batch.targets[row] != IGNORE
        assert int(scored.sum()) == n and int(scored.nonzero()[0]) == len(prompt) - 1
    assert batch.extra["sampler_logprobs"][1][4:7].tolist() == pytest.approx([-0.1, -0.2, -0.3])
    assert batch.extra["advantages"].tolist() == [-1.0, 1.0]


def test_reward_rises(model, tokenizer, monkeypatch):
    """Bug: a sign error anywhere: the policy would run from what is rewarded."""
    monkeypatch.setattr(grpo, "reward", lambda problem, answer: vowels(problem, answer, least=6))
    s = section(batch_size=4, group_size=16, max_new_tokens=8, micro_batch_size=64)
    source, objective = Rollouts(model, tokenizer, PROBLEMS, s, seed=1), GrpoObjective(model, s)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    rewards = []
    for step in range(40):
        for batch in source.micro_batches(step):
            loss = objective(model, batch)
            (loss.total / loss.weight).backward()
            optimizer.step()
            optimizer.zero_grad()
        rewards.append(source.statistics["reward"])
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.3
