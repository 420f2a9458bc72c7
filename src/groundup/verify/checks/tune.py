"""Do the objectives of post-training start where the papers say, move the right way, and judge rightly?"""

from __future__ import annotations

import math
from typing import Any

import torch

from groundup.data import town
from groundup.infer.engine import Completion
from groundup.model import loss
from groundup.model.batch import IGNORE, Batch
from groundup.model.transformer import Transformer
from groundup.recipe.schema import TrainSection
from groundup.tokenizer.chat import Message
from groundup.train.precision import autocast
from groundup.tune import dpo, grpo, rewards
from groundup.tune.formats import Pair, Problem
from groundup.verify import rig
from groundup.verify.check import Measurement, NotApplicable, check, violations
from groundup.verify.checks.chat import answers, grpo_section, packed
from groundup.verify.fault import swapped
from groundup.verify.subject import Subject

ASKED: list[Message] = [{"role": "user", "content": "What is 2 + 3?"}]
GREETING: list[Message] = [{"role": "user", "content": "Hi"}]
PAIRS = [
    Pair([dict(m) for m in ASKED], "2 + 3 = 5.", "Six, I think, or seven."),
    Pair(
        [*(dict(m) for m in ASKED), {"role": "assistant", "content": "5"}, {"role": "user", "content": "Sure?"}],
        "Yes.",
        "",
    ),
    Pair([{"role": "user", "content": "<|end|> hello"}], "Hello! How can I help you today?", "No"),
]


# ---- SFT ----


@check(
    "packed-loss-is-the-sum",
    "invariance",
    "tune",
    bug="Packed conversations see each other, or lose scored tokens at the seams: SFT answers from a neighbour's text.",
    remedy="documents and positions in tune/pack.py; one document a conversation, padding apart.",
    reference="MeetKai/functionary issue 265; alex-hh/profam issue 495; hiyouga/LlamaFactory pull 7318",
)
def packed_loss_is_the_sum(subject: Subject) -> Measurement:
    """Relative difference between the loss of packed conversations and the sum of their losses alone in a row; plus 1
    if the counts of scored tokens differ. The same sums in another order: relative rounding."""
    model, source = subject.chat_model(), packed(subject)
    with torch.no_grad():
        together = subject.objective(model, source.batch(source.rows))
        alone = [subject.objective(model, dpo.rows_to_batch([chat], subject.tokenizer.eos)) for chat in source.chats]
    total = sum(float(one.total) for one in alone)
    value = abs(float(together.total) / total - 1) + (together.weight != sum(one.weight for one in alone))
    return Measurement(
        value, rig.tolerance(model.config, 1.0), f"{len(source.chats)} conversations in {len(source.rows)} rows"
    )


# ---- DPO ----


def pair_batch(subject: Subject) -> Batch:
    """The sample pairs as DPO sees them: chosen, rejected, chosen, rejected, ..."""
    if subject.recipe.dpo is None:
        raise NotApplicable("the recipe has no dpo section")
    both = dpo.render_pairs(subject.tokenizer, PAIRS)
    return dpo.rows_to_batch([side for pair in both for side in pair], subject.tokenizer.eos)


def margins(model: Transformer, reference: Transformer, batch: Batch, beta: float = 0.3) -> tuple[float, float, float]:
    """(mean loss, mean margin, accuracy) of the DPO objective."""
    found = dpo.DpoObjective(reference, beta)(model, batch)
    model.router_loss()  # taken, as the loop does: a model that still has one cannot be copied
    metrics = {name: float(torch.as_tensor(value)) / found.weight for name, value in found.metrics.items()}
    return found.total.item() / found.weight, metrics["margin"], metrics["accuracy"]


def logprob_tolerance(model: Transformer, batch: Batch) -> float:
    """Rounding of a row's summed log-probability: errors of n tokens are independent, so sqrt(n) times one's."""
    longest = int((batch.targets != IGNORE).sum(1).max())
    return longest**0.5 * rig.tolerance(model.config, math.log(model.config.vocab_size))


@check(
    "dpo-starts-at-ln-2",
    "identity",
    "tune",
    bug="Policy and reference disagree before the first step: dropout in one of them, another mask, another dtype.",
    remedy="Reference = frozen copy of the policy; both without dropout (tune/dpo.py).",
    reference=(
        "NVIDIA/NeMo-Aligner issue 227; eric-mitchell/direct-preference-optimization issue 34; "
        "huggingface/trl issue 2042"
    ),
)
def dpo_starts_at_ln_2(subject: Subject) -> Measurement:
    """|mean loss - ln 2| + |mean margin| before any step, the policy in training mode as the loop has it; where
    the recipe may train in bf16, also the policy's rounding there over the reference's. The larger share of its bound.

    The margin is beta times a difference of four summed log-probabilities, each off by its rounding; the loss moves
    by half of that. In bf16 both are off from fp32 by errors of one size, however their kernels cut the sums: see
    `coarser`.
    """
    batch, model, beta = pair_batch(subject), subject.chat_model(), 0.3

    def heard(precision: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Summed log-probabilities, of the policy and of the reference, as the loss is handed them."""
        seen: list[torch.Tensor] = []
        right = dpo.dpo_loss

        def listening(*given: Any) -> Any:
            seen.extend(given[:4])
            return right(*given)

        with swapped(dpo, dpo_loss=listening), autocast("cpu", precision):
            margins(model.train(), model, batch, beta)
        return torch.cat(seen[:2]).detach(), torch.cat(seen[2:])

    mean, margin, _ = margins(model.train(), model, batch, beta)
    off = abs(mean - math.log(2)) + abs(margin)
    found = [(f"loss {mean:.6f}", off, 1.5 * beta * 4 * logprob_tolerance(model, batch))]
    if may_be_bf16(subject.recipe.dpo):
        policy, reference = (bf16 - fp32 for bf16, fp32 in zip(*map(heard, ("bf16", "fp32")), strict=True))
        found.append(coarser("the reference", policy, reference))
    return nearest_to_its_bound(*found)


def coarser(what: str, trained: torch.Tensor, other: torch.Tensor) -> tuple[str, float, float]:
    """(what, ratio, bound): how much larger the roundings of what is trained are than those of what it is held against.

    Both are distances of bf16's log-probabilities from fp32's. Computed in one precision they are of one size, a ratio
    near 1, though the sums may be cut in other places; had the other been in fp32, the ratio would be that of the two
    precisions, 2^16. The bound lies halfway in bits.
    """
    ours, theirs = float(trained.abs().mean()), float(other.abs().mean())
    return f"rounding of {ours:.2g} where {what} has {theirs:.2g}", ours / theirs if theirs else math.inf, 2.0**8


def may_be_bf16(section: TrainSection | None) -> bool:
    """Whether the recipe trains in bf16, or may (auto)."""
    return section is not None and section.precision != "fp32"


def nearest_to_its_bound(*measured: tuple[str, float, float]) -> Measurement:
    """Of (what, value, bound), the one that uses most of its bound, as a share of it: 1 is all."""
    shares = [
        (value / bound if math.isfinite(value) and bound > 0 else math.inf, what) for what, value, bound in measured
    ]
    share, what = max(shares)
    return Measurement(share, 1.0, f"{what} is nearest to its bound")


@check(
    "dpo-swapped-pair-flips",
    "sensitivity",
    "tune",
    bug="Chosen and rejected are mixed up, or a tie counts as a win.",
    remedy="Rows are interleaved: chosen, rejected (tune/dpo.py); accuracy counts margin > 0.",
    reference="locuslab/open-unlearning issue 30; hiyouga/LlamaFactory issue 6050; huggingface/trl issue 2385",
)
def dpo_swapped_pair_flips(subject: Subject) -> Measurement:
    """|margin + margin of swapped pairs| + |loss - loss swapped + margin|, for a policy that is not its reference.

    log sigmoid(x) - log sigmoid(-x) = x, so both sums are 0 up to rounding; 1 is added if the margin is 0 anyway, or
    if identical answers count as won.
    """
    model, reference = subject.chat_model(0), subject.chat_model(1)
    batch = pair_batch(subject)
    order = torch.arange(batch.rows).view(-1, 2).flip(1).flatten()
    swapped = Batch(*(getattr(batch, n)[order] for n in ("tokens", "targets", "documents", "positions")))
    mean, margin, _ = margins(model, reference, batch)
    other, flipped, _ = margins(model, reference, swapped)
    same = Batch(*(getattr(batch, n)[[0, 0]] for n in ("tokens", "targets", "documents", "positions")))
    value = abs(margin + flipped) + abs(mean - other + margin) + (margin == 0) + margins(model, reference, same)[2]
    return Measurement(value, 4 * logprob_tolerance(model, batch), f"margin {margin:.3f}, swapped {flipped:.3f}")


@check(
    "dpo-raises-the-chosen",
    "sensitivity",
    "tune",
    bug="Preference pairs are used the wrong way round: the model learns to give the rejected answer.",
    remedy="Follow chosen from formats.to_pair to the even rows of the batch and the sign of the margin.",
    reference="huggingface/trl issue 2578; eric-mitchell/direct-preference-optimization issue 32",
)
def dpo_raises_the_chosen(subject: Subject) -> Measurement:
    """log p(chosen) - log p(rejected) after a small step down the objective's gradient, less that before; must be > 0.

    The rows are found by their decoded answers, not by their place in the batch. The first-order change is the rate
    times the gradient's square, so it is positive for a small enough step of the right sign (so small that no token
    is sent to another expert).
    """
    model, tokenizer = subject.chat_model(dropout=0.0), subject.tokenizer
    batch = pair_batch(subject)
    signs = []
    for row in range(batch.rows):
        answer = tokenizer.decode([i for i in batch.targets[row].tolist() if i != IGNORE])
        signs.append(1.0 if answer in [p.chosen for p in PAIRS] else -1.0)
    weights = torch.tensor(signs)

    def preference() -> float:
        with torch.no_grad():
            return float((dpo.answer_logprobs(model, batch) * weights).sum())

    before = preference()
    dpo.DpoObjective(model, 0.3)(model, batch).total.backward()
    norm = float(torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad, alpha=1e-3 / norm)
    return Measurement(preference() - before, logprob_tolerance(model, batch), f"from {before:.4f}", ">=")


@check(
    "dpo-reference-is-frozen",
    "locality",
    "tune",
    bug="The reference is the policy itself, or moves with it: the margin stays near 0, the tie to it is gone.",
    remedy="DpoObjective must copy the model and take it out of the graph (tune/dpo.py).",
    reference="YiyangZhou/POVID issue 11; hiyouga/LlamaFactory issue 6314; huggingface/trl issue 1104",
)
def dpo_reference_is_frozen(subject: Subject) -> Measurement:
    """Tensors of the reference that change, in any bit, while the policy takes two real steps; reference parameters
    that get a gradient; and 1 if the policy itself did not move."""
    batch, model = pair_batch(subject), subject.chat_model()
    objective = dpo.DpoObjective(model, 0.3)
    before = {name: value.clone() for name, value in objective.reference.state_dict().items()}
    first = model.embed.weight.detach().clone()
    optimizers = rig.real_optimizers(subject, model)
    for _ in range(2):
        rig.one_step(subject, model, [batch], optimizers, objective)
    after = objective.reference.state_dict()
    found = [name for name, value in before.items() if not torch.equal(value, after[name])]
    found += [f"{name} gets a gradient" for name, p in objective.reference.named_parameters() if p.grad is not None]
    if torch.equal(first, model.embed.weight):
        found.append("the policy did not move")
    return violations(found, 2 * len(before) + 1)


@check(
    "pairs-score-the-answer-alone",
    "locality",
    "tune",
    bug="DPO scores the prompt, or earlier answers: their log-probabilities cancel on paper and add noise in practice.",
    remedy="render_pairs must mask everything before the last answer (tune/dpo.py).",
    reference="huggingface/trl issues 1541, 1752; YangRui2015/Generalizable-Reward-Model issue 1",
)
def pairs_score_the_answer_alone(subject: Subject) -> Measurement:
    """Sides of pairs whose scored targets are not the answer's ids and its end, or whose context is not the prompt."""
    tokenizer, found = subject.tokenizer, []
    batch = pair_batch(subject)
    for n, pair in enumerate(PAIRS):
        prompt = subject.render(pair.prompt, True).ids
        for side, answer in enumerate((pair.chosen, pair.rejected)):
            targets, row = batch.targets[2 * n + side], 2 * n + side
            scored = [i for i in targets.tolist() if i != IGNORE]
            if scored != answers(tokenizer, [{"role": "assistant", "content": answer}]):
                found.append(f"pair {n}: scored {tokenizer.decode(scored, False)[:40]!r}")
            if batch.tokens[row, : len(prompt)].tolist() != prompt:
                found.append(f"pair {n}: its context is not the prompt")
    return violations(found, 4 * len(PAIRS))


@check(
    "padding-changes-no-logprob",
    "invariance",
    "tune",
    bug="A short answer's log-probability depends on how long its neighbours in the batch are.",
    remedy="Padding must be unscored and unseen (rows_to_batch in tune/dpo.py).",
    reference="huggingface/transformers issues 35352, 24265; allenai/reward-bench issue 137",
)
def padding_changes_no_logprob(subject: Subject) -> Measurement:
    """Largest difference of a row's summed log-probability between the padded batch and alone."""
    model, batch = subject.chat_model(), pair_batch(subject)
    sides = [side for pair in dpo.render_pairs(subject.tokenizer, PAIRS) for side in pair]
    with torch.no_grad():
        together = dpo.answer_logprobs(model, batch)
        alone = torch.cat([dpo.answer_logprobs(model, dpo.rows_to_batch([side], 0)) for side in sides])
    return Measurement(rig.largest(together - alone), 2 * logprob_tolerance(model, batch))


# ---- GRPO ----


def rollout(
    subject: Subject, precision: str = "fp32"
) -> tuple[Transformer, grpo.GrpoObjective, list[Batch], list[Completion]]:
    """A rollout at temperature 0.7 with made-up advantages, and the objective at the same weights."""
    if subject.recipe.grpo is None:
        raise NotApplicable("the recipe has no grpo section")
    section = grpo_section(subject).model_copy(update={"temperature": 0.7, "kl_beta": 0.0, "precision": precision})
    model = subject.chat_model()
    problems = [Problem([dict(m) for m in asked], "5", "number") for asked in (ASKED, GREETING)]
    rollouts = grpo.Rollouts(model, subject.tokenizer, problems, section, seed=3)
    prompts, completions = rollouts.sample(problems, 0)
    advantage = torch.linspace(-1.0, 1.5, len(prompts))
    return model, grpo.GrpoObjective(model, section), rollouts.batches(prompts, completions, advantage), completions


@check(
    "grpo-starts-on-policy",
    "identity",
    "tune",
    bug="Before any step the ratio is not 1, tokens are clipped or KL is not 0: sampler and trainer are two policies.",
    remedy="Same temperature, weights and precision, no dropout in the policy's forward pass (tune/grpo.py, infer/).",
    reference="huggingface/trl issues 4159, 6789; NovaSky-AI/SkyRL issue 1709; Qi et al. 2025, arXiv 2510.26788",
)
def grpo_starts_on_policy(subject: Subject) -> Measurement:
    """Mean |log p sampler - log p trainer| a token + share clipped + KL to the reference, before any step, the policy
    in training mode as the loop has it; and, where the recipe may train in bf16, the trainer's rounding there over the
    sampler's. The larger share of its bound.

    In fp32 the bound is the rounding of log-probabilities at temperature 0.7, twice. In bf16 decoding with a cache and
    a whole pass round in other places, and differ by half of what either is off from fp32: see `coarser`.
    """
    model, objective, batches, _ = rollout(subject)
    model.train()
    value, weight = 0.0, 0
    for batch in batches:
        got = objective(model, batch)
        value += sum(abs(float(torch.as_tensor(got.metrics[name]))) for name in ("sampler_gap", "clip_share", "kl"))
        weight += got.weight
    bound = 4 * rig.tolerance(model.config, math.log(model.config.vocab_size) + 4) / 0.7
    found = [(f"{weight} tokens, dropout {subject.micro.dropout}", value / weight, bound)]
    if may_be_bf16(subject.recipe.grpo):
        model, _, batches, _ = rollout(subject, "bf16")
        ours, theirs = [], []
        for batch in batches:
            rough, exact = (scored_logprobs(model.eval(), batch, precision) for precision in ("bf16", "fp32"))
            ours.append(rough - exact)
            theirs.append(batch.extra["sampler_logprobs"][batch.targets != IGNORE] - exact)
        found.append(coarser("the sampler", torch.cat(ours), torch.cat(theirs)))
    return nearest_to_its_bound(*found)


def scored_logprobs(model: Transformer, batch: Batch, precision: str) -> torch.Tensor:
    """Log-probabilities at temperature 0.7 of a batch's scored tokens, as the trainer computes them in a precision."""
    with torch.no_grad(), autocast("cpu", precision):
        hidden = model(batch.tokens, documents=batch.documents, positions=batch.positions)
        return loss.token_logprobs(model, hidden, batch.targets, 0.7)[batch.targets != IGNORE]


@check(
    "grpo-gradient-is-the-policys",
    "identity",
    "tune",
    bug="The surrogate has a wrong sign, scores prompt tokens, or leaves out the stop token.",
    remedy="At ratio 1 the gradient is -A grad log p over the tokens that the model wrote (tune/grpo.py).",
    reference="NVIDIA-NeMo/RL pull 2176; bingreeky/MemGen pull 33; huggingface/trl pull 4970",
)
def grpo_gradient_is_the_policys(subject: Subject) -> Measurement:
    """Relative distance between the objective's gradient and that of -sum A log p at temperature 0.7, the scored
    tokens found from the completions alone: all of their ids, the stop id too."""
    model, objective, batches, completions = rollout(subject)
    model.eval()
    for batch in batches:
        objective(model, batch).total.backward()
    got = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad(set_to_none=True)
    total = torch.zeros(())
    group = len(completions) // 2
    asked = [subject.render(one, True).ids for one in (ASKED, GREETING) for _ in range(group)]
    for advantage, prompt, done in zip(torch.linspace(-1.0, 1.5, len(asked)), asked, completions, strict=True):
        row = torch.tensor([[*prompt, *done.ids]])
        targets = row[:, 1:].clone()
        targets[:, : len(prompt) - 1] = IGNORE
        total = total - advantage * loss.token_logprobs(model, model(row[:, :-1]), targets, 0.7).sum()
    total.backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    # exp(log p - old) is 1 up to the gap between sampler and trainer, which is one more rounding here
    return Measurement(rig.apart(got, expected), 8 * rig.tolerance(model.config, 1.0), f"{len(completions)} answers")


@check(
    "advantages-are-centred",
    "identity",
    "tune",
    bug="Advantages are not centred in their own group, or blow up where a group is of one mind.",
    remedy="(r - mean) / (std + eps) along the group's axis (tune/grpo.py).",
    reference="NVIDIA-NeMo/RL issue 1518, pulls 4158, 4161",
)
def advantages_are_centred(subject: Subject) -> Measurement:
    """Largest of |group mean|, |advantage| of groups of one mind, and |mean square - 1| less 1e-3 of the others.

    Rewards 0/1: std is at least sqrt(7)/8 in groups of 8, so a guard of 1e-4 beside it lowers the mean square by
    less than 1e-3. The rest is fp32 rounding of 8 numbers below 3. |A| is also held below sqrt(8 - 1).
    """
    groups = torch.tensor([[1.0] * k + [0.0] * (8 - k) for k in range(9)])
    found = grpo.advantages(groups)
    mixed = found[1:8]
    value = max(
        rig.largest(found.mean(1)),
        rig.largest(found[[0, 8]]),
        rig.largest(mixed.square().mean(1) - 1) - 1e-3,
        rig.largest(found) - 7**0.5,
    )
    value += 0.0 if bool((mixed[:, 0] > 0).all() and (mixed[:, -1] < 0).all()) else 1.0
    return Measurement(value, 8 * 3 * rig.EPS, "9 groups of 8")


@check(
    "rewards-judge-rightly",
    "identity",
    "tune",
    bug="The reward pays for nothing, for echoing the question, or not for the right answer: training chases it there.",
    remedy="See reward() in tune/rewards.py and score_sum in data/town/arithmetic.py.",
    reference="Liuziyu77/Visual-RFT issues 176, 79; huggingface/cookbook issue 335",
)
def rewards_judge_rightly(subject: Subject) -> Measurement:
    """Answers judged wrongly, of 100 generated problems and 9 with a number, whose question names it alone or whose
    earlier turns do. The gold answer must get 1, bare and in a sentence (behind "####" where the kind has it); nothing,
    blanks, an echo of the question, of any turn, of all of them, or of the question twice, a wrong number (behind an
    echo too) and gold beside another result must all get 0."""
    if subject.recipe.grpo is None and (subject.recipe.dpo is None or subject.recipe.dpo.pairs != "sampled"):
        raise NotApplicable("no stage of the recipe uses rewards")
    problems = [Problem([dict(m) for m in p["prompt"]], p["answer"], p["kind"]) for p in town.problems(0, 100)]
    problems += [Problem(prompt, str(n), kind) for n in (18, 1000, -7) for prompt, kind in _numbered(n)]
    found = []
    for problem in problems:
        question, gold = problem.prompt[-1]["content"], problem.answer
        wrong = str(int(gold) + 1)
        cases = {gold: 1.0, f"It is {gold}.": 1.0, "": 0.0, " \n": 0.0, wrong: 0.0, f"It is {wrong}.": 0.0}
        cases |= {f"{gold} or {wrong}": 0.0, question: 0.0, f" {question}\n": 0.0, f"{question} {question}": 0.0}
        cases |= {f"{question} {wrong}": 0.0, " ".join(m["content"] for m in problem.prompt): 0.0}
        cases |= {m["content"]: 0.0 for m in problem.prompt}
        if problem.kind == "gsm8k":
            cases |= {f"{wrong} and more.\n#### {gold}": 1.0, f"{gold} and more.\n#### {wrong}": 0.0}
        found += [
            f"{question!r} {answer!r} gets {got}"
            for answer, right in cases.items()
            if (got := rewards.reward(problem, answer)) != right
        ]
    return violations(found, 12 * len(problems))


def _numbered(n: int) -> list[tuple[list[dict[str, str]], str]]:
    """(prompt, kind) of problems that name their answer: in the question, as a claim, in earlier turns."""
    counted = [{"role": "system", "content": f"There are {n} of them."}, {"role": "user", "content": "Ready?"}]
    answered = [{"role": "assistant", "content": f"I saw {n} there."}, {"role": "user", "content": "How many?"}]
    return [
        ([{"role": "user", "content": f"Say the number {n} once."}], "number"),
        ([{"role": "user", "content": f"They said {n}; is it so? How many?"}], "gsm8k"),
        ([*counted, *answered], "number"),
    ]
