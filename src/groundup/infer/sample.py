"""Drawing the next token: temperature, top-k, top-p, for a whole batch with each row's own parameters.

A row's draw depends on its logits, its seed and its step, and on nothing else: the random number is a hash of
(seed, step), not a place in a generator's stream. So a row gives the same text alone or in any batch, and
sampling leaves every global random state untouched (a training run resumes exactly).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from groundup.errors import UserError, problems

_GOLDEN = 0x9E3779B97F4A7C15  # splitmix64's increment, 2^64 / golden ratio


@dataclass(frozen=True)
class SamplingParams:
    """How one row is decoded. Checked when made; raises UserError that names every bad field.

    temperature 0 is greedy (the most likely token), never "the default". top_k 0 and top_p 1 keep everything.
    stop: the text ends before the first of these strings. stop_ids: the row ends with the first of these ids
    (`Completion.ids` keeps it, the text does not show it).
    """

    max_new_tokens: int = 256
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        found = []
        if isinstance(self.stop, str):  # tuple("END") would stop at every E, N and D
            found.append(f"stop must be a list of strings (got the string {self.stop!r})")
        else:
            object.__setattr__(self, "stop", tuple(self.stop))
            found += [
                f"stop: {s!r} is not a string with at least one character"
                for s in self.stop
                if not isinstance(s, str) or not s
            ]
        object.__setattr__(self, "stop_ids", tuple(int(i) for i in self.stop_ids))
        found += [f"stop_ids: {i} is not a token id" for i in self.stop_ids if i < 0]
        if self.max_new_tokens < 1:
            found.append(f"max_new_tokens must be at least 1 (got {self.max_new_tokens})")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            found.append(f"temperature must be 0 (greedy) or more (got {self.temperature})")
        if self.top_k < 0:
            found.append(f"top_k must be 0 (off) or more (got {self.top_k})")
        if not 0 < self.top_p <= 1:
            found.append(f"top_p must be above 0 and at most 1 (got {self.top_p})")
        problems("sampling", found)


def row_seed(seed: int, row: int) -> int:
    """Seed of row `row` when one SamplingParams serves several prompts; row 0 keeps `seed` itself.

    Hashed, not seed + row: seeds 7 and 8 would otherwise share all rows but one.
    """
    return seed if row == 0 else _splitmix(_splitmix(seed) ^ row)


def _splitmix(x: int) -> int:
    """One output of splitmix64 (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators")."""
    x = (x + _GOLDEN) & (2**64 - 1)
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    return x ^ (x >> 31)


def _signed(x: int) -> int:
    """The int64 with the same bits: torch has no unsigned 64-bit arithmetic, but its products wrap alike."""
    x &= 2**64 - 1
    return x - 2**64 if x >= 2**63 else x


def uniform(keys: Tensor, steps: Tensor) -> Tensor:
    """One number in [0, 1) for each (key, step): keys, steps (B,) int64 -> (B,) fp64.

    `keys` are hashed seeds (`Sampler` makes them), so neighbouring seeds are far apart. 52 bits, not 53: with 53
    the largest number times a total may round up to the total itself, and select a token that was cut.
    """
    x = keys + (steps + 1) * _signed(_GOLDEN)
    x = (x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB)
    x = x ^ _shift(x, 31)
    return _shift(x, 12).double() * 2.0**-52


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch's >> copies the sign bit."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


class Sampler:
    """The parameters of B rows as tensors, so that a step costs the same few kernels for any B."""

    def __init__(self, params: Sequence[SamplingParams], device: torch.device | str = "cpu") -> None:
        self.greedy = torch.tensor([p.temperature == 0 for p in params], device=device)
        self.any_greedy = any(p.temperature == 0 for p in params)
        self.all_greedy = all(p.temperature == 0 for p in params)
        temperature = [max(p.temperature, 1e-6) if p.temperature else 1.0 for p in params]
        self.scaled = any(t != 1.0 for t in temperature)
        self.temperature = torch.tensor(temperature, device=device)[:, None]
        self.keys = torch.tensor([_signed(_splitmix(p.seed)) for p in params], device=device)
        cut = [i for i, p in enumerate(params) if p.temperature and (p.top_k or p.top_p < 1)]
        self.cut = torch.tensor(cut, dtype=torch.int64, device=device)
        self.top_k = torch.tensor([params[i].top_k for i in cut], device=device)[:, None]
        self.top_p = torch.tensor([params[i].top_p for i in cut], dtype=torch.float64, device=device)[:, None]

    def __call__(self, logits: Tensor, steps: Tensor, n_vocab: int) -> tuple[Tensor, Tensor]:
        """logits (B, V) fp32, steps (B,) tokens each row has made -> (ids (B,) int64, log-probs (B,) fp32).

        Only ids below `n_vocab` are drawn: a model may have more rows than its tokenizer has tokens.
        The log-prob is that of the drawn id under softmax(logits / temperature) over all V, BEFORE top-k and
        top-p (temperature 1 for a greedy row): what `model.loss.token_logprobs(..., temperature=)` recomputes.
        Raises UserError when a row's logits are not finite.
        """
        if self.scaled:
            logits = logits / self.temperature
        allowed = logits[:, :n_vocab]
        top, best = allowed.max(dim=-1, keepdim=True)
        weights = (allowed - top).exp_()
        if n_vocab == logits.shape[1]:
            log_total = weights.sum(-1, keepdim=True).log_() + top
        else:
            log_total = logits.logsumexp(-1, keepdim=True)
        if not bool(log_total.isfinite().all()):
            raise UserError("the model's logits are not finite: its weights diverged; use an earlier checkpoint")
        ids = best if self.all_greedy else self._draw(allowed, weights, best, steps)
        logprobs = logits.gather(1, ids) - log_total
        return ids[:, 0], logprobs[:, 0]

    def _draw(self, allowed: Tensor, weights: Tensor, best: Tensor, steps: Tensor) -> Tensor:
        """Inverse of the cumulative distribution in id order, at one uniform number a row; (B, 1)."""
        if len(self.cut):
            rows = allowed[self.cut]
            weights[self.cut] *= rows >= threshold(rows, self.top_k, self.top_p)
        # fp64: over a large vocabulary an fp32 running sum misplaces the rare tokens
        cumulative = weights.cumsum(-1, dtype=torch.float64)
        target = uniform(self.keys, steps)[:, None] * cumulative[:, -1:]
        ids = torch.searchsorted(cumulative, target, right=True)  # right: a token of weight 0 is never hit
        return torch.where(self.greedy[:, None], best, ids) if self.any_greedy else ids


def threshold(logits: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """The smallest logit that top-k, then top-p (Holtzman et al. 2020, arXiv 1904.09751) keep: (B, 1).

    logits (B, V); top_k (B, 1), 0 = all; top_p (B, 1), a share of what top-k left. Ties with the threshold are
    kept, so the answer does not depend on how a sort orders equals; the most likely token always stays.
    """
    v = logits.shape[1]
    k = torch.where(top_k > 0, top_k.clamp(max=v), v)
    ordered = logits.topk(int(k.max()), dim=-1).values  # sorted, largest first
    rank = torch.arange(ordered.shape[1], device=logits.device)[None]
    weights = (ordered - ordered[:, :1]).double().exp_() * (rank < k)
    upto = weights.cumsum(-1)
    inside = (rank < k) & (upto - weights < top_p * upto[:, -1:])
    return ordered.gather(1, inside.sum(-1, keepdim=True).clamp_(min=1) - 1)
