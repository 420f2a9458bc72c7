"""Are the objectives of DPO and GRPO their published formulas away from the start too, where nothing cancels?"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from groundup.infer.engine import Completion
from groundup.model.batch import Batch
from groundup.model.transformer import Transformer
from groundup.recipe.schema import GrpoSection
from groundup.tune import dpo, grpo
from groundup.tune.formats import Problem
from groundup.verify import draw, rig
from groundup.verify.check import Measurement, NotApplicable, check, violations
from groundup.verify.checks.chat import answers, grpo_section
from groundup.verify.checks.tune import PAIRS, logprob_tolerance, nearest_to_its_bound, pair_batch
from groundup.verify.subject import Subject

HEAT = 0.7  # temperature of the rollouts: one that is forgotten somewhere shows
LENGTHS = (1, 2, 3, 5, 7, 12, 4, 9)  # of the answers, in tokens


def logprobs_alone(model: Transformer, prompt: Sequence[int], ids: Sequence[int], temperature: float = 1.0) -> Tensor:
    """(len(ids),) log-probabilities of `ids` after `prompt`, in a row of their own, with a graph."""
    row = torch.tensor([[*prompt, *ids]])
    hidden = model(row[:, :-1])[0, len(prompt) - 1 :]
    model.router_loss()  # taken, as the loop does: a model that still has one cannot be copied
    return (model.logits(hidden) / temperature).log_softmax(-1).gather(1, torch.tensor(list(ids))[:, None])[:, 0]


def flat_gradient(total: Tensor, model: Transformer) -> Tensor:
    """The gradient of `total` as one vector, 0 where a parameter has no part in it; the graph can be used again."""
    parameters = list(model.parameters())
    found = torch.autograd.grad(total, parameters, retain_graph=True, allow_unused=True)
    return torch.cat(
        [torch.zeros(p.numel()) if g is None else g.flatten() for p, g in zip(parameters, found, strict=True)]
    )


# ---- DPO ----


@check(
    "dpo-is-its-formula",
    "identity",
    "tune",
    bug="Mean log-probabilities instead of sums, a beta that is not read or counts twice: DPO at another strength.",
    remedy="Equation 7: beta times the difference of summed log-ratios (dpo_loss and answer_logprobs in tune/dpo.py).",
    reference=(
        "jingyaogong/minimind issue 298; linkedin/Liger-Kernel pull 693; AI-Hypercomputer/maxtext issue 1530; "
        "Rafailov et al. 2023, arXiv 2305.18290"
    ),
)
def dpo_is_its_formula(subject: Subject) -> Measurement:
    """Distances, at two betas, of loss, margin and gradient from -log sigmoid(beta h), h being (chosen - reference
    chosen) - (rejected - reference rejected) of log-probabilities summed over the answer, each computed in a row of its
    own; for a policy that is not its reference. The share of its bound of what is nearest to it.

    A margin over beta is a difference of four sums, each off by its rounding; the loss moves by as much at most. The
    gradient is a sum over answers of log-probabilities' gradients: relative rounding, and that of the margin, by which
    its weight sigmoid(-beta h) is off.
    """
    batch, tokenizer = pair_batch(subject), subject.tokenizer
    policy, reference = subject.chat_model(0, dropout=0.0), subject.chat_model(1, dropout=0.0)
    total = [
        torch.stack([
            logprobs_alone(
                model,
                subject.render(pair.prompt, True).ids,
                answers(tokenizer, [{"role": "assistant", "content": said}]),
            ).sum()
            for pair in PAIRS
            for said in (pair.chosen, pair.rejected)
        ])
        for model in (policy, reference)
    ]  # fmt: skip
    h = total[0] - total[1].detach()
    rounding = 4 * logprob_tolerance(policy, batch)
    measured = []
    for beta in (0.1, 0.5):
        found = dpo.DpoObjective(reference, beta)(policy, batch)
        margin = beta * (h[0::2] - h[1::2])
        expected = torch.log1p(torch.exp(-margin)).sum()
        measured.append(
            (f"loss at beta {beta}", abs(found.total.item() - expected.item()) / len(PAIRS), beta * rounding)
        )
        gap = abs(float(torch.as_tensor(found.metrics["margin"])) - margin.sum().item()) / len(PAIRS)
        measured.append((f"margin at beta {beta}", gap, beta * rounding))
        apart = rig.apart(flat_gradient(found.total, policy), flat_gradient(expected, policy))
        measured.append((f"gradient at beta {beta}", apart, 8 * rig.tolerance(policy.config, 1.0) + beta * rounding))
    return nearest_to_its_bound(*measured)


@check(
    "pairs-stay-together",
    "identity",
    "tune",
    bug="A chosen answer stands beside another pair's rejected one: what is preferred is the easier prompt.",
    remedy="Sort, cut and batch whole pairs, never their sides (PairBatches in tune/dpo.py).",
    reference="huggingface/trl issue 1858; jingyaogong/minimind issue 451",
)
def pairs_stay_together(subject: Subject) -> Measurement:
    """Places of six epochs of DPO's batches where rows 2n and 2n + 1 are not the chosen and the rejected side of one of
    13 given pairs, in this order; and pairs that are not there exactly once an epoch. Batches of 3 pairs in pieces of 2
    straddle the epochs' border; the sides' lengths order the pairs differently."""
    if subject.recipe.dpo is None:
        raise NotApplicable("the recipe has no dpo section")
    given = _pairs_of_all_lengths(subject)
    sides = {tuple(side.ids[:-1]): (n, k) for n, pair in enumerate(given) for k, side in enumerate(pair)}
    source = dpo.PairBatches(given, 512, 3, 2, subject.tokenizer.eos, seed=draw.shifted(5))
    found, seen = [], []
    for step in range(2 * len(given)):  # 6 epochs of 13 pairs, 3 at a time
        for batch in source.micro_batches(step):
            rows = [tuple(t[d >= 0].tolist()) for t, d in zip(batch.tokens, batch.documents, strict=True)]
            places = [sides.get(row) for row in rows]
            for good, bad in zip(places[0::2], places[1::2], strict=True):
                if good is None or bad is None or good[0] != bad[0] or (good[1], bad[1]) != (0, 1):
                    found.append(f"step {step + 1}: {good} stands over {bad}")
            seen += [place[0] for place in places[0::2] if place is not None]
    for n in range(len(given)):
        if seen.count(n) != 6:
            found.append(f"pair {n} is there {seen.count(n)} times in 6 epochs")
    return violations(found, 7 * len(given))


def _pairs_of_all_lengths(subject: Subject) -> list[tuple[dpo.Rendered, dpo.Rendered]]:
    """13 rendered pairs whose chosen sides are ordered by length otherwise than their rejected ones."""
    words = ("a", "the river", "seven", "quiet bread", "north")
    talk = [
        (f"{n} {words[n % 5]}", " ".join([words[n % 5]] * (1 + 5 * n % 13)), " ".join(["no"] * (1 + 8 * n % 13)))
        for n in range(13)
    ]
    sides = [
        tuple(
            subject.render([{"role": "user", "content": asked}, {"role": "assistant", "content": f"{k}{said}"}])
            for k, said in enumerate((good, bad))
        )
        for asked, good, bad in talk
    ]
    return [(good, bad) for good, bad in sides]


# ---- GRPO ----


def answers_of_all_lengths(
    subject: Subject, rate: float = 1.0
) -> tuple[list[list[int]], list[Completion], Tensor, GrpoSection]:
    """Prompts, made-up answers that end in all ways, advantages of both signs, and the section to train them with."""
    if subject.recipe.grpo is None:
        raise NotApplicable("the recipe has no grpo section")
    section = grpo_section(subject).model_copy(update={"temperature": HEAT, "kl_beta": 0.0, "precision": "fp32"})
    tokenizer = subject.tokenizer
    asked = [subject.render([{"role": "user", "content": text}], True).ids for text in ("What is 2 + 3?", "Hi")]
    ids = torch.randint(tokenizer.vocab_size, (len(LENGTHS), max(LENGTHS)), generator=draw.generator(41)).tolist()
    done = []
    for n, length in enumerate(LENGTHS):
        stopped = n % 2 == 0
        said = [*ids[n][: length - stopped], *[tokenizer.end] * stopped]
        done.append(Completion(said, "", "stop" if stopped else "length", [0.0] * length, len(asked[n % 2])))
    advantage = rate * torch.linspace(-1.5, 1.0, len(LENGTHS))
    return [asked[n % 2] for n in range(len(LENGTHS))], done, advantage, section


def as_batches(
    subject: Subject, model: Transformer, prompts: list[list[int]], done: list[Completion], advantage: Tensor,
    section: GrpoSection,
) -> list[Batch]:  # fmt: skip
    """As the rollouts make them of answers, in pieces of 3."""
    problems = [Problem([{"role": "user", "content": "?"}], "5", "number")]
    return grpo.Rollouts(model, subject.tokenizer, problems, section, seed=3).batches(prompts, done, advantage)


@check(
    "surrogate-is-its-formula",
    "identity",
    "tune",
    bug="The clip is not there, or on the wrong side, or some answers have no gradient: unseen while the ratio is 1.",
    remedy="min(rho A, clip(rho) A): the minimum after the product with A (clipped_surrogate in tune/grpo.py).",
    reference=(
        "takuseno/ppo issue 3; huggingface/trl issue 3032; StarsfieldAI/R1-V issue 187; Schulman et al. 2017, "
        "arXiv 1707.06347"
    ),
)
def surrogate_is_its_formula(subject: Subject) -> Measurement:
    """Distances of loss and gradient from PPO's equation 7, and of the count of clipped tokens, for answers of 1 to 12
    tokens that end in all ways, advantages of both signs, and ratios on both sides of the clip: the recipe's, and a
    quarter of it.

    The sampler's log-probabilities are the trainer's less log rho, rho being 1, half the clip away from it on both
    sides, half the lower edge, twice and five times the clip above 1: never at an edge, so the count is exact. A token
    adds -rho A where it is free and its bound otherwise, which has no gradient. Log-probabilities are off by their
    rounding at the temperature, on both sides, and a ratio by as much of itself.
    """
    prompts, done, advantage, section = answers_of_all_lengths(subject)
    model = subject.chat_model(0, dropout=0.0)
    sections = [section.model_copy(update={"clip": clip}) for clip in (section.clip, section.clip / 4)]
    objectives = [grpo.GrpoObjective(model, one) for one in sections]
    rounding = 2 * rig.tolerance(model.config, math.log(model.config.vocab_size) + 4) / HEAT
    measured = []
    for one, objective in zip(sections, objectives, strict=True):
        expected, size, beyond = _surrogate(model, prompts, done, advantage, one.clip)
        parts = [objective(model, b) for b in as_batches(subject, model, prompts, done, advantage, one)]
        total = torch.stack([part.total for part in parts]).sum()
        clipped = sum(float(torch.as_tensor(part.metrics["clip_share"])) for part in parts)
        weight = sum(part.weight for part in parts)
        apart = rig.apart(flat_gradient(total, model), flat_gradient(expected, model))
        measured += [
            (f"loss over {weight} tokens", abs(total.item() - expected.item()) / size, rounding),
            ("gradient", apart, 8 * rig.tolerance(model.config, 1.0) + rounding),
            (f"tokens clipped beside {beyond}", abs(clipped - beyond), 0.5),
            ("tokens weighed", abs(weight - sum(LENGTHS)), 0.5),
        ]
    return nearest_to_its_bound(*measured)


def _surrogate(
    model: Transformer, prompts: list[list[int]], done: list[Completion], advantage: Tensor, clip: float
) -> tuple[Tensor, float, int]:
    """(loss by hand, sum of its sizes, tokens clipped) of answers whose log-probabilities are set to known ratios."""
    low = (1 - clip) / 2 if clip < 1 else 0.05
    ratios = torch.tensor([1.0, 1 + clip / 2, 1 + 2 * clip, 1 - min(clip, 1) / 2, low, 1 + 5 * clip])
    expected, size, beyond, place = torch.zeros(()), 0.0, 0, 0
    for prompt, answer, gain in zip(prompts, done, advantage, strict=True):
        logprobs = logprobs_alone(model, prompt, answer.ids, HEAT)
        rho = ratios[torch.arange(place, place + len(answer.ids)) % len(ratios)]
        place += len(answer.ids)
        old = logprobs.detach() - rho.log()
        answer.logprobs[:] = old.tolist()
        free = rho <= 1 + clip if gain > 0 else rho >= 1 - clip
        edge = 1 + clip if gain > 0 else 1 - clip
        value = -gain * torch.where(free, (logprobs - old).exp(), edge)
        expected, size, beyond = expected + value.sum(), size + value.abs().sum().item(), beyond + int((~free).sum())
    return expected, size, beyond


@check(
    "kl-is-its-formula",
    "identity",
    "tune",
    bug="The KL to the start has the wrong sign, another estimator, or a weight that nobody reads: nothing holds GRPO.",
    remedy="kl_beta times exp(d) - d - 1, d = log reference - log policy (k3 and GrpoObjective in tune/grpo.py).",
    reference=(
        "THUDM/slime issue 397; marin-community/marin issue 1708; one-covenant/grail pull 42; Shao et al. 2024, "
        "arXiv 2402.03300, equation 4"
    ),
)
def kl_is_its_formula(subject: Subject) -> Measurement:
    """Distances, at two weights, of loss, gradient and reported KL from weight x (exp(d) - d - 1), summed over the
    answers' tokens, d being the frozen start's log-probability less the policy's at the rollout's temperature.

    The start is another model, changed after the objective was made: its copy must not follow. Advantages are 1e-3
    beside it, at a ratio of 1. Each d is off by the rounding of two log-probabilities, and the estimator by as much of
    its larger part, exp(d) + |d|, which is its size here too.
    """
    prompts, done, advantage, section = answers_of_all_lengths(subject, rate=1e-3)
    model, start = subject.chat_model(0, dropout=0.0), subject.chat_model(1, dropout=0.0)
    kl, surrogate, size = torch.zeros(()), torch.zeros(()), 0.0
    for prompt, answer, gain in zip(prompts, done, advantage, strict=True):
        logprobs = logprobs_alone(model, prompt, answer.ids, HEAT)
        d = logprobs_alone(start, prompt, answer.ids, HEAT).detach() - logprobs
        answer.logprobs[:] = logprobs.tolist()
        kl = kl + (torch.expm1(d) - d).sum()
        size += (d.exp() + d.abs()).sum().item()
        surrogate = surrogate - gain * (logprobs - logprobs.detach()).exp().sum()
    batches = as_batches(subject, model, prompts, done, advantage, section)
    objectives = {
        weight: grpo.GrpoObjective(start, section.model_copy(update={"kl_beta": weight})) for weight in (0.05, 2.0)
    }
    with torch.no_grad():
        for parameter in start.parameters():
            parameter.mul_(1.5)
    rounding = 4 * rig.tolerance(model.config, math.log(model.config.vocab_size) + 4) / HEAT
    measured = []
    for weight, objective in objectives.items():
        parts = [objective(model, batch) for batch in batches]
        total = torch.stack([part.total for part in parts]).sum()
        reported = sum(float(torch.as_tensor(part.metrics["kl"])) for part in parts)
        expected = surrogate + weight * kl
        gap = abs(total.item() - expected.item()) / (weight * size)
        measured.append((f"loss at weight {weight}", gap, rounding))
        measured.append((f"KL reported at weight {weight}", abs(reported - kl.item()) / size, rounding))
        apart = rig.apart(flat_gradient(total, model), flat_gradient(expected, model))
        measured.append((f"gradient at weight {weight}", apart, 8 * rig.tolerance(model.config, 1.0) + rounding))
    return nearest_to_its_bound(*measured)
