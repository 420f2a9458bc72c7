"""Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from groundup.errors import UserError
from groundup.infer.engine import Engine
from groundup.infer.sample import SamplingParams
from groundup.model.batch import IGNORE, Batch
from groundup.model.loss import token_logprobs
from groundup.model.transformer import Transformer
from groundup.tokenizer.chat import Rendered, render_many
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.train.objective import Loss
from groundup.train.precision import autocast
from groundup.tune.formats import Pair, Problem
from groundup.tune.rewards import reward


def dpo_loss(
    chosen: Tensor, rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, beta: float
) -> tuple[Tensor, Tensor]:
    """-log sigmoid(beta h), h = (chosen - reference chosen) - (rejected - reference rejected): equation 7.

    Arguments: (pairs,) log-probabilities of whole answers, nats. Returns (losses, beta h), both (pairs,).
    """
    margin = beta * ((chosen - reference_chosen) - (rejected - reference_rejected))
    return -F.logsigmoid(margin), margin


class DpoObjective:
    """Rows of a batch are pairs, interleaved: chosen, rejected, chosen, rejected, ..."""

    def __init__(self, reference: Transformer, beta: float) -> None:
        self.reference = copy.deepcopy(reference).eval().requires_grad_(False)
        self.beta = beta

    def __call__(self, model: Transformer, batch: Batch) -> Loss:
        model.eval()  # dropout in the policy alone would move the margin off 0 before anything is learnt
        with torch.no_grad():
            reference = answer_logprobs(self.reference, batch)
        policy = answer_logprobs(model, batch)
        losses, margin = dpo_loss(policy[0::2], policy[1::2], reference[0::2], reference[1::2], self.beta)
        metrics: dict[str, Tensor | float] = {
            "accuracy": (margin > 0).float().sum(),  # a tie is not a win
            "margin": margin.detach().sum(),
            "chosen_logprob": policy[0::2].detach().sum(),
        }
        return Loss(losses.sum(), len(losses), metrics)


def answer_logprobs(model: Transformer, batch: Batch) -> Tensor:
    """(rows,) summed log-probability of each row's scored tokens."""
    hidden = model(batch.tokens, documents=batch.documents, positions=batch.positions)
    return token_logprobs(model, hidden, batch.targets).sum(dim=1)


class PairBatches:
    """A batch source over rendered pairs, in an order that depends on (seed, epoch) alone."""

    def __init__(
        self,
        pairs: Sequence[tuple[Rendered, Rendered]],
        context: int,
        batch_size: int,
        micro_batch_size: int,
        pad: int,
        seed: int,
    ) -> None:
        self.pairs = [p for p in pairs if max(len(p[0].ids), len(p[1].ids)) - 1 <= context and p[0].ids != p[1].ids]
        self.left_out = len(pairs) - len(self.pairs)
        if not self.pairs:
            raise UserError(
                f"none of the {len(pairs)} pairs can be trained on: longer than the context of {context}, or equal"
            )
        self.batch_size, self.micro_batch_size, self.pad, self.seed = batch_size, micro_batch_size, pad, seed

    def micro_batches(self, step: int) -> list[Batch]:
        chosen = draw(len(self.pairs), step, self.batch_size, self.seed)
        # Pairs of like length go together: less padding, and the sum over the step is the same.
        chosen.sort(key=lambda i: (len(self.pairs[i][0].ids) + len(self.pairs[i][1].ids), i))
        size = self.micro_batch_size
        parts = [chosen[i : i + size] for i in range(0, len(chosen), size)]
        return [rows_to_batch([r for i in part for r in self.pairs[i]], self.pad) for part in parts]


def draw(n: int, step: int, batch_size: int, seed: int) -> list[int]:
    """Indices of step `step` out of n things: a permutation an epoch, a pure function of (seed, step)."""
    out = []
    orders: dict[int, np.ndarray] = {}
    for index in range(step * batch_size, (step + 1) * batch_size):
        epoch, place = divmod(index, n)
        if epoch not in orders:
            orders[epoch] = np.random.default_rng([seed, epoch]).permutation(n)
        out.append(int(orders[epoch][place]))
    return out


def rows_to_batch(rows: Sequence[Rendered], pad: int) -> Batch:
    """One conversation a row, padded on the right with unscored places that only see themselves."""
    width = max(len(r.ids) for r in rows) - 1
    tokens = np.full((len(rows), width), pad, np.int64)
    targets, documents = np.full_like(tokens, IGNORE), np.full(tokens.shape, -1, np.int32)
    positions = np.tile(np.arange(width), (len(rows), 1))
    for r, row in enumerate(rows):
        n = len(row.ids) - 1
        tokens[r, :n] = row.ids[:-1]
        targets[r, :n] = np.where(row.mask[1:], row.ids[1:], IGNORE)
        documents[r, :n] = 0
    made = [torch.from_numpy(array) for array in (tokens, targets, documents, positions)]
    return Batch(made[0], made[1], made[2], made[3])


def render_pairs(tokenizer: Tokenizer, pairs: Sequence[Pair]) -> list[tuple[Rendered, Rendered]]:
    """Both sides of every pair as (chosen, rejected); only the last answer is scored."""

    def last_only(pair: Pair, answer: str) -> list[dict[str, str]]:
        return [*pair.prompt, {"role": "assistant", "content": answer}]

    both = render_many(tokenizer, [last_only(p, a) for p in pairs for a in (p.chosen, p.rejected)])
    prompts = render_many(tokenizer, [p.prompt for p in pairs], add_generation_prompt=True)
    out = []
    for i, prompt in enumerate(prompts):
        n = len(prompt.ids)
        chosen, rejected = (Rendered(r.ids, [False] * n + r.mask[n:]) for r in both[2 * i : 2 * i + 2])
        out.append((chosen, rejected))
    return out


def sample_pairs(
    model: Transformer,
    tokenizer: Tokenizer,
    problems: Sequence[Problem],
    samples: int,
    seed: int,
    max_new_tokens: int = 64,
    precision: str = "fp32",
) -> tuple[list[Pair], dict[str, Any]]:
    """Pairs from the model's own answers: for each problem that it gets right sometimes, one right over one wrong.

    precision: that of the training, so that the answers are those of the policy that is trained.
    """
    engine = Engine(model, tokenizer)
    prompts = [engine.chat_prompt(p.prompt) for p in problems for _ in range(samples)]
    params = [
        SamplingParams(
            max_new_tokens=max_new_tokens, seed=seed * 1_000_003 + i, stop_ids=(tokenizer.end, tokenizer.eos)
        )
        for i in range(len(prompts))
    ]
    with autocast(engine.device.type, precision):
        answers = [c.text for c in engine.generate(prompts, params)]
    pairs = []
    right = 0
    for i, problem in enumerate(problems):
        own = answers[i * samples : (i + 1) * samples]
        good = [a for a in own if reward(problem, a) > 0]
        bad = [a for a in own if reward(problem, a) == 0]
        right += len(good)
        if good and bad:
            pairs.append(Pair(problem.prompt, good[0], bad[0]))
    return pairs, {"sampled": len(answers), "right": right, "pairs": len(pairs)}
