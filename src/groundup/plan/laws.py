"""Published scaling laws: what a budget is best spent on, what over-training costs, what repeated data is worth.

N parameters, D training tokens, C training FLOPs, L loss in nats a token. C = 6 N D (Kaplan et al. 2020, arXiv
2001.08361, section 2.1). The constants were fitted on other data and other tokenizers than yours: compare choices
with them, and fit your own with `groundup ladder` before you trust a loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from groundup.errors import UserError, did_you_mean

FLOPS = 6.0  # training FLOPs a parameter and token: 2 forward, 4 backward
SERVING = 2.0  # inference FLOPs a parameter and token


@dataclass(frozen=True)
class Law:
    """L(N, D) = E + A / N^alpha + B / D^beta (Hoffmann et al. 2022, arXiv 2203.15556, equation 2)."""

    name: str
    E: float
    A: float
    B: float
    alpha: float
    beta: float
    source: str

    def loss(self, parameters: float, tokens: float) -> float:
        return self.E + self.A * parameters**-self.alpha + self.B * tokens**-self.beta

    def optimal(self, flops: float) -> tuple[float, float]:
        """(N, D) of the lowest loss with 6 N D = flops (arXiv 2203.15556, equation 4).

        N = G (C/6)^a, D = (C/6)^b / G with G = (alpha A / (beta B))^(1 / (alpha + beta)), a = beta / (alpha + beta).
        """
        g = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        work = flops / FLOPS
        parameters = g * work ** (self.beta / (self.alpha + self.beta))
        return parameters, work / parameters

    def matching_parameters(self, tokens: float) -> float:
        """The N for which `tokens` are compute-optimal: where both terms fall equally fast along 6 N D = C."""
        return (self.alpha * self.A / (self.beta * self.B)) ** (1 / self.alpha) * tokens ** (self.beta / self.alpha)

    def tokens_for(self, loss: float, parameters: float) -> float:
        """Tokens that bring `parameters` to `loss`; infinite where no amount does."""
        rest = loss - self.E - self.A * parameters**-self.alpha
        return (self.B / rest) ** (1 / self.beta) if rest > 0 else math.inf

    def smallest(self, loss: float) -> float:
        """Parameters below which no amount of data reaches `loss`; infinite at or below E."""
        return (self.A / (loss - self.E)) ** (1 / self.alpha) if loss > self.E else math.inf


HOFFMANN = Law(
    "hoffmann", 1.69, 406.4, 410.7, 0.34, 0.28,
    "Hoffmann et al. 2022, arXiv 2203.15556, equation 10; rounded there, which shifts the optimum to smaller models",
)  # fmt: skip
BESIROGLU = Law(
    "besiroglu", 1.8172, 482.01, 2085.43, 0.3478, 0.3658,
    "Besiroglu et al. 2024, arXiv 2404.10102, table 1: refitted to the points of Hoffmann et al.'s figure 4",
)  # fmt: skip
# Fitted to runs of one epoch, the base of the data-constrained law below.
MUENNIGHOFF = Law(
    "muennighoff", math.exp(0.6254804), math.exp(6.255414), math.exp(7.3049974), 0.3526596, 0.3526596,
    "Muennighoff et al. 2023, arXiv 2305.16264, appendix A (alpha = beta by choice)",
)  # fmt: skip
LAWS = {law.name: law for law in (HOFFMANN, BESIROGLU, MUENNIGHOFF)}


def law_named(name: str) -> Law:
    """A published fit by name. Errors: UserError with the nearest name."""
    if name not in LAWS:
        raise UserError(f'no scaling law "{name}"{did_you_mean(name, LAWS)}')
    return LAWS[name]


# ---- over-training, for cheaper inference ----


@dataclass(frozen=True)
class Lifetime:
    """A model and what it costs over its life, FLOPs."""

    parameters: float
    tokens: float
    training: float
    inference: float

    @property
    def total(self) -> float:
        return self.training + self.inference

    @property
    def tokens_per_parameter(self) -> float:
        return self.tokens / self.parameters


def lifetime(law: Law, loss: float, parameters: float, inference_tokens: float) -> Lifetime:
    """What a model of this size costs when it is trained to `loss` and then reads and writes `inference_tokens`."""
    tokens = law.tokens_for(loss, parameters)
    return Lifetime(parameters, tokens, FLOPS * parameters * tokens, SERVING * parameters * inference_tokens)


def lifetime_optimal(law: Law, loss: float, inference_tokens: float) -> Lifetime:
    """The size of the lowest 6 N D + 2 N T at equal loss (Sardana et al. 2024, arXiv 2401.00448, equation 2).

    Without inference (T = 0) this is `optimal`; the more is served, the smaller and the longer trained.
    Errors: UserError where the loss is below what the law can reach.
    """
    if loss <= law.E:
        raise UserError(f"no model reaches a loss of {loss:.4g}: the law of {law.name} ends at {law.E:.4g}")
    low = math.log(law.smallest(loss))
    # One valley: towards the smallest size D grows without bound, past the valley N grows and D hardly falls.
    best = _minimise(lambda x: lifetime(law, loss, math.exp(x), inference_tokens).total, low, low + 40.0)
    return lifetime(law, loss, math.exp(best), inference_tokens)


@dataclass(frozen=True)
class Smaller:
    """A model several times smaller, trained to the loss of a larger one."""

    parameters: float
    tokens: float
    training: float  # its training FLOPs, as a multiple of the larger model's
    inference: float  # FLOPs a served token, as a share of the larger model's
    break_even: float  # served tokens from which on the smaller model is the cheaper one


def smaller(law: Law, parameters: float, tokens: float, times: float) -> Smaller:
    """How much more training compute, and how much less inference, a model `times` smaller needs at equal loss.

    Break-even from 6 N' D' + 2 N' T = 6 N D + 2 N T. Infinite tokens: no data makes up for so small a model.
    """
    less = parameters / times
    needed = law.tokens_for(law.loss(parameters, tokens), less)
    training = less * needed / (parameters * tokens)
    extra = FLOPS * parameters * tokens * (training - 1)
    served = extra / (SERVING * (parameters - less)) if times != 1 else 0.0
    return Smaller(less, needed, training, 1 / times, max(0.0, served))


# ---- too little data: several epochs ----

R_DATA = 15.387756  # arXiv 2305.16264, appendix A: repetitions after which more of the same data is worth little
R_PARAMETERS = 5.309743  # the same for parameters past what the unique data calls for
STRAY = 0.005  # epochs: whole steps pass an epoch's end by a little, and that is no further epoch
FREE_EPOCHS = 4  # up to here repeated data is nearly as good as new (arXiv 2305.16264, section 6)


def effective_data(unique: float, tokens: float) -> float:
    """D' = U + U R* (1 - exp(-R / R*)), R = D / U - 1: what `tokens` seen of `unique` ones are worth (equation 5)."""
    return _effective(unique, tokens, R_DATA)


def effective_parameters(parameters: float, unique: float, law: Law = MUENNIGHOFF) -> float:
    """N', likewise from the N that is compute-optimal for the unique data (equation 6)."""
    return _effective(law.matching_parameters(unique), parameters, R_PARAMETERS)


def constrained_loss(parameters: float, tokens: float, unique: float, law: Law = MUENNIGHOFF) -> float:
    """L(N', D'): the loss when `tokens` are drawn from `unique` ones (arXiv 2305.16264, equation 4).

    Of more unique tokens than are seen, those that are seen count.
    """
    unique = min(unique, tokens)
    return law.loss(effective_parameters(parameters, unique, law), effective_data(unique, tokens))


@dataclass(frozen=True)
class Repetition:
    """What it means to train on `tokens` when there are only `unique` ones."""

    epochs: float
    effective: float  # D', tokens
    worth: float  # D' / D: 1 = all as good as new
    last_epoch: float  # value of the last epoch's tokens, as a share of new ones
    penalty: float  # nats a token that new data would have saved


def repetition(parameters: float, tokens: float, unique: float, law: Law = MUENNIGHOFF) -> Repetition:
    """Epochs, effective tokens and the loss they cost."""
    effective, epochs = effective_data(unique, tokens), tokens / unique
    # New data would also make more of the parameters count: both terms of the law change.
    penalty = constrained_loss(parameters, tokens, unique, law) - constrained_loss(parameters, tokens, tokens, law)
    return Repetition(epochs, effective, effective / tokens, epoch_value(math.ceil(epochs - STRAY)), penalty)


def epoch_value(epoch: int) -> float:
    """What the tokens of the k-th epoch are worth beside new ones: 1 for the first, the mean slope of D' after it."""
    if epoch <= 1:
        return 1.0
    return R_DATA * (math.exp(-(epoch - 2) / R_DATA) - math.exp(-(epoch - 1) / R_DATA))


def _effective(unique: float, seen: float, decay: float) -> float:
    if seen <= unique:
        return seen
    return unique + unique * decay * (1 - math.exp(-(seen / unique - 1) / decay))


def _minimise(cost: Callable[[float], float], low: float, high: float) -> float:
    """Where a function with one valley is lowest: golden section, to 1e-10 of the interval."""
    ratio = (math.sqrt(5) - 1) / 2
    a, b = high - ratio * (high - low), low + ratio * (high - low)
    at_a, at_b = cost(a), cost(b)
    while high - low > 1e-10 * max(1.0, abs(high)):
        if at_a < at_b:
            high, b, at_b = b, a, at_a
            a = high - ratio * (high - low)
            at_a = cost(a)
        else:
            low, a, at_a = a, b, at_b
            b = low + ratio * (high - low)
            at_b = cost(b)
    return (low + high) / 2
