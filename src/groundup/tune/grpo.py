"""Group relative policy optimisation with verifiable rewards (Shao et al. 2024, arXiv 2402.03300).

The token-level mean and the dropping of groups without signal follow DAPO (Yu et al. 2025, arXiv 2503.14476).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from groundup.infer.engine import Completion, Engine
from groundup.infer.sample import SamplingParams
from groundup.model.batch import IGNORE, Batch
from groundup.model.loss import token_logprobs
from groundup.model.transformer import Transformer
from groundup.recipe.schema import GrpoSection
from groundup.tokenizer.chat import Rendered
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.train.objective import Loss
from groundup.train.precision import autocast
from groundup.tune.dpo import draw, rows_to_batch
from groundup.tune.formats import Problem
from groundup.tune.rewards import reward


def advantages(rewards: Tensor) -> Tensor:
    """(groups, G) rewards -> (r - mean) / (std + 1e-4) within each group; exactly 0 where all are equal."""
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    return centred / (rewards.std(dim=1, keepdim=True, unbiased=False) + 1e-4)


def clipped_surrogate(logprobs: Tensor, old: Tensor, advantage: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """-min(rho A, clip(rho, 1-eps, 1+eps) A) a token (PPO, arXiv 1707.06347, equation 7), and whether it clipped."""
    ratio = torch.exp(logprobs - old)
    clipped = ratio.clamp(1 - clip, 1 + clip)
    loss = -torch.minimum(ratio * advantage, clipped * advantage)
    return loss, (ratio * advantage > clipped * advantage).float()


def k3(logprobs: Tensor, reference: Tensor) -> Tensor:
    """KL(policy || reference) a token, by Schulman's low-variance estimator exp(d) - d - 1, d = reference - policy."""
    d = reference - logprobs
    return torch.exp(d) - d - 1


class GrpoObjective:
    """Surrogate over the tokens that the model wrote, summed; plus kl_beta times the KL to the reference.

    The samples are fresh (one update a rollout), so the old log-probabilities are the policy's own, detached: the
    ratio is 1 up to the sampler's arithmetic, which `sampler_gap` watches. Using the sampler's own numbers as `old`
    keeps the clip honest when the two disagree.
    """

    def __init__(self, reference: Transformer, section: GrpoSection) -> None:
        self.reference = copy.deepcopy(reference).eval().requires_grad_(False)
        self.section = section

    def __call__(self, model: Transformer, batch: Batch) -> Loss:
        model.eval()  # the sampler has no dropout: with it here, the ratio would not start at 1
        scored = batch.targets != IGNORE
        temperature = self.section.temperature
        hidden = model(batch.tokens, documents=batch.documents, positions=batch.positions)
        logprobs = token_logprobs(model, hidden, batch.targets, temperature)[scored]
        old = batch.extra["sampler_logprobs"][scored]
        advantage = batch.extra["advantages"][:, None].expand_as(batch.targets)[scored]
        loss, clipped = clipped_surrogate(logprobs, old, advantage, self.section.clip)
        with torch.no_grad():
            frozen = self.reference(batch.tokens, documents=batch.documents, positions=batch.positions)
            reference = token_logprobs(self.reference, frozen, batch.targets, temperature)[scored]
        kl = k3(logprobs, reference)
        if self.section.kl_beta > 0:
            loss = loss + self.section.kl_beta * kl
        metrics: dict[str, Tensor | float] = {
            "kl": kl.detach().sum(),
            "clip_share": clipped.sum(),
            "entropy": -logprobs.detach().sum(),  # of the sampled tokens: an unbiased estimate of the entropy
            "sampler_gap": (logprobs.detach() - old).abs().sum(),
        }
        return Loss(loss.sum(), int(scored.sum()), metrics)


class Rollouts:
    """A batch source that samples from the model it trains: groups of answers, judged, as batches.

    Everything drawn depends on (seed, step) and on the weights at that step, so a resumed run draws the same.
    Groups whose answers are all right or all wrong carry no signal and are left out of the batch (and counted).
    """

    may_be_empty = True  # a step where every group is of one mind has nothing to teach; that is not an error

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        problems: Sequence[Problem],
        section: GrpoSection,
        seed: int,
        device: str = "cpu",
    ) -> None:
        self.problems, self.section, self.seed, self.tokenizer = problems, section, seed, tokenizer
        self.device = device
        self.engine = Engine(model, tokenizer, device=device)
        self.statistics: dict[str, float] = {}

    def micro_batches(self, step: int) -> list[Batch]:
        chosen = [self.problems[i] for i in draw(len(self.problems), step, self.section.batch_size, self.seed)]
        prompts, completions = self.sample(chosen, step)
        rewards = torch.tensor(
            [reward(chosen[i // self.section.group_size], c.text) for i, c in enumerate(completions)]
        )
        groups = rewards.view(len(chosen), self.section.group_size)
        self.statistics = {
            "reward": float(rewards.mean()),
            "zero_std_groups": float((groups.std(dim=1, unbiased=False) == 0).float().mean()),
            "completion_tokens": sum(len(c.ids) for c in completions) / len(completions),
            "truncated": sum(c.finish_reason == "length" for c in completions) / len(completions),
        }
        return self.batches(prompts, completions, advantages(groups).flatten())

    def sample(self, problems: Sequence[Problem], step: int) -> tuple[list[list[int]], list[Completion]]:
        """group_size answers to each problem, at the section's temperature, without top-k or top-p.

        In the precision that the trainer scores them in: sampler and trainer are one policy, and the ratio is 1.
        """
        group = self.section.group_size
        prompts = [self.engine.chat_prompt(p.prompt) for p in problems for _ in range(group)]
        first = (self.seed * 1_000_003 + step) * len(prompts)
        params = [
            SamplingParams(
                max_new_tokens=self.section.max_new_tokens,
                temperature=self.section.temperature,
                seed=first + i,
                stop_ids=(self.tokenizer.end, self.tokenizer.eos),
            )
            for i in range(len(prompts))
        ]
        with autocast(self.device, str(self.section.precision)):
            return prompts, self.engine.generate(prompts, params)

    def batches(
        self, prompts: Sequence[list[int]], completions: Sequence[Completion], advantage: Tensor
    ) -> list[Batch]:
        """Rows with signal, longest last, in micro-batches; scored are the answer's tokens, its stop token too."""
        with_signal = [i for i in range(len(prompts)) if advantage[i] != 0]
        with_signal.sort(key=lambda i: (len(prompts[i]) + len(completions[i].ids), i))
        size = int(self.section.micro_batch_size)
        out = []
        for start in range(0, len(with_signal), size):
            part = with_signal[start : start + size]
            rows = [
                Rendered(prompts[i] + completions[i].ids, [False] * len(prompts[i]) + [True] * len(completions[i].ids))
                for i in part
            ]
            batch = rows_to_batch(rows, self.tokenizer.eos)
            sampled = torch.zeros(batch.targets.shape)
            for r, i in enumerate(part):
                n = len(prompts[i]) - 1
                sampled[r, n : n + len(completions[i].ids)] = torch.tensor(completions[i].logprobs)
            batch.extra = {"advantages": advantage[part], "sampler_logprobs": sampled}
            out.append(batch)
        return out


def held_out_accuracy(
    model: Transformer, tokenizer: Tokenizer, problems: Sequence[Problem], max_new_tokens: int
) -> float:
    """Share of problems solved greedily; beside the reward, this is what tells learning from gaming."""
    engine = Engine(model, tokenizer, device=str(model.embed.weight.device))
    params = SamplingParams(max_new_tokens=max_new_tokens, temperature=0.0, stop_ids=(tokenizer.end, tokenizer.eos))
    answers = engine.generate([engine.chat_prompt(p.prompt) for p in problems], params)
    return sum(reward(p, a.text) for p, a in zip(problems, answers, strict=True)) / len(problems)
