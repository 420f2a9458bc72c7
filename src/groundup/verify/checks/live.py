"""A run that is training: is what should be learnt from being learnt from, and does anything die or run away?

Each is handed the `Vitals` of one step (train/vitals.py), taken at the first step, at every validation and at the last.
"""

from __future__ import annotations

import math
from typing import Any

from groundup.model.config import ModelConfig
from groundup.plan.laws import BESIROGLU
from groundup.train.vitals import Vitals
from groundup.verify.check import Measurement, NotApplicable, check, violations

ROUNDINGS = 40  # between a token and its log-probability
YOUNG = 10  # steps after which what began at zero has a norm of its own
FIRST = "the first step alone is looked at"
RESOLVED = 2.0**8  # from here on two bf16 numbers are 2 apart
STRAY = 0.5  # nats: how far one text's loss lies from another's (standard deviation)


def _stage(vitals: Vitals, *names: str) -> None:
    if vitals.stage not in names:
        raise NotApplicable(f"it looks at {' and '.join(names)}")


def _first(vitals: Vitals) -> None:
    if vitals.step != 1:
        raise NotApplicable(FIRST)


def _stepped(vitals: Vitals) -> None:
    if not vitals.row.get("scored") or vitals.row.get("skipped"):
        raise NotApplicable("the step had nothing to learn from, or was refused")


def _looked(vitals: Vitals) -> None:
    """A batch that overflows once is refused by the loop, which counts it: no reason to stop the run here."""
    if vitals.row.get("skipped"):
        raise NotApplicable("the step was not finite, and refused")
    if not vitals.looked:
        raise NotApplicable("the step had no batch to look at")


def _model_loss(row: dict[str, Any]) -> float:
    """The loss without what the experts' router adds to it."""
    return float(row["loss"]) - float(row.get("router_loss", 0.0))


@check(
    "live-tokens-are-scored",
    "sensitivity",
    "live",
    bug="Tokens that should be learnt are not scored (masks too wide, answers lost): the run costs and learns little.",
    remedy="Look at rendered rows with their masks; raise the context, or leave out what does not fit (tune/pack.py).",
    reference="huggingface/trl issue 6668, pulls 6025, 5076",
    looks_at="vitals",
)
def live_tokens_are_scored(vitals: Vitals) -> Measurement:
    """In pretraining: places of the last micro-batch without a target, padding aside. Every token but a document's last
    is followed by one, so there are at most as many as documents; exact.

    In tuning: texts (conversations, answers; two places or more) without a single target. What has none teaches
    nothing, and every stage leaves it out; exact. The share of places that are scored is no measure: a label behind a
    long document is two in thousands, and sound.
    """
    _stepped(vitals)
    if not vitals.documents:
        raise NotApplicable("the step had no batch to look at")
    where = f"{vitals.stage}, step {vitals.step}, {vitals.scored_share:.2%} of all places"
    if vitals.stage == "pretrain":
        return Measurement(vitals.places_unscored, vitals.documents, f"places without a target, of documents; {where}")
    if not vitals.texts:
        raise NotApplicable("no text of the batch has two places")
    return Measurement(vitals.texts_unscored, 0.0, f"texts without a target, of {vitals.texts}; {where}")


@check(
    "live-every-layer-gets-gradient",
    "sensitivity",
    "live",
    bug="A layer of the real model gets no gradient: it stays as it was, and the rest learns around it.",
    remedy="Look for detach, no_grad, requires_grad=False or a branch that is not taken in that layer.",
    reference="jingyaogong/minimind issue 858; Tencent-Hunyuan/UniRL pull 207",
    looks_at="vitals",
)
def live_every_layer_gets_gradient(vitals: Vitals) -> Measurement:
    """Blocks, and attentions and feed-forwards of blocks, whose gradient, all of it, is exactly 0 or not finite; before
    the clip. Not only of whole blocks: the other half of one would hide it."""
    _stepped(vitals)
    found = {f"block {n}": norm for n, norm in enumerate(vitals.gradient_by_layer)} | vitals.gradient_by_part
    wrong = [f"{part}: {norm:g}" for part, norm in found.items() if not (math.isfinite(norm) and norm > 0)]
    return violations(wrong, len(found))


@check(
    "live-updates-are-felt",
    "sensitivity",
    "live",
    bug="An update is lost to rounding or never applied (a parameter in no optimizer), or it replaces the weights.",
    remedy="Look at the parameter's group and rate (train/optim.py); tiny updates need fp32 weights.",
    reference="workofart/ml-by-hand pull 85; meta-pytorch/torchtune issue 2254; NVIDIA-NeMo/Automodel pull 3444",
    looks_at="vitals",
)
def live_updates_are_felt(vitals: Vitals) -> Measurement:
    """Parameters of which a sample of 4,096 elements did not change in any bit although the rate is not 0, and matrices
    that changed by more than their own norm: what was learnt is gone. Experts are asked one by one, those that a token
    was sent to; of embeddings, the rows that have a gradient.

    Not at the first step, and not below a tenth of the peak rate. What starts at zero (zero_out) is asked for its norm
    from the tenth step on: updates of one size in unrelated directions add up to sqrt(9) = 3 of them by then, and to
    more than half of that where a warm-up still makes each larger than the last.
    """
    _stepped(vitals)
    if vitals.step == 1:
        raise NotApplicable("the first step moves from the first weights")
    peak = float(vitals.facts.get("peak_rate", 0.0))
    if not vitals.row["learning_rate"] or vitals.row["learning_rate"] < 0.1 * peak:
        raise NotApplicable("the rate is at its very beginning or end: what it moves may be below a weight's last bit")
    young = vitals.step < YOUNG and getattr(vitals.facts.get("config"), "zero_out", False)
    found = [f"{name} did not move" for name, ratio in vitals.update_ratio.items() if not ratio > 0]
    found += [
        f"{name} moved by {ratio:.2g} times its norm"
        for name, ratio in vitals.update_ratio.items()
        if ratio > 1 and name in vitals.matrices and not (young and _writes(name))
    ]
    return violations(found, len(vitals.update_ratio))


def _writes(name: str) -> bool:
    """Whether it is a projection into the residual stream, which zero_out starts at 0 (also of an expert: down[3])."""
    return name.partition("[")[0].removesuffix(".weight").endswith((".out", ".down"))


@check(
    "live-units-are-alive",
    "sensitivity",
    "live",
    bug="All hidden units of a layer are dead: its feed-forward adds a constant whatever comes in.",
    remedy="Lower the learning rate or lengthen the warm-up; a gated activation dies less than a ReLU.",
    reference="autonomousvision/transfuser issue 146; keras-team/keras issue 7057; Lu et al. 2019, arXiv 1903.06733",
    looks_at="vitals",
)
def live_units_are_alive(vitals: Vitals) -> Measurement:
    """Layers without one hidden unit that some token of the sample makes active (above 2^-24 of the largest), and
    layers with one that is not finite: weights can be ruined by the very step whose loss was still a number."""
    _looked(vitals)
    if not vitals.dead_units:
        raise NotApplicable("no layer has a plain feed-forward")
    found = [f"layer {n}: not finite" for n, share in enumerate(vitals.dead_units) if math.isnan(share)]
    found += [f"layer {n}" for n, share in enumerate(vitals.dead_units) if share >= 1]
    counted = violations(found, len(vitals.dead_units))
    worst = max((share for share in vitals.dead_units if not math.isnan(share)), default=math.nan)
    return Measurement(counted.value, counted.bound, f"{counted.note}; at most {worst:.1%} of a layer are dead")


@check(
    "live-attention-attends",
    "sensitivity",
    "live",
    bug="Attention has collapsed: each query looks at one key whatever it is, or at all alike whatever they are.",
    remedy="QK-norm or a cap of the scores, a lower rate; if all alike: queries or keys are 0 (model/attention.py).",
    reference=(
        "huggingface/transformers issue 45676; Tsinghua-MARS-Lab/OMG pull 8; Zhai et al. 2023, arXiv 2303.06296"
    ),
    looks_at="vitals",
)
def live_attention_attends(vitals: Vitals) -> Measurement:
    """Layers where, for half of all heads and queries, the weights of all keys but one add up to less than 2^-24, and
    layers whose scores are alike for all keys: none of a query's differs from another by 2^-20 of the largest.

    A weight p has p (1 - p) as its slope: from there on fp32, in which softmax is computed in bf16 runs too, has 0 for
    it, and queries and keys learn nothing more. One sharp head among others, or all heads of a small task at 99.99%, is
    sound. Scores that are small but differ are sound first weights; 2^-20 is eight roundings of a dot product's sum.
    """
    _looked(vitals)
    if not vitals.attention_beside:
        raise NotApplicable("no layer has plain attention over more than one key")
    found = [
        f"layer {n}: {w:.2g} beside the first key" for n, w in enumerate(vitals.attention_beside) if not w >= 2.0**-24
    ]
    found += [f"layer {n}: all scores are alike" for n, s in enumerate(vitals.attention_spread) if not s > 2.0**-20]
    return violations(found, len(vitals.attention_beside))


@check(
    "live-logits-are-resolved",
    "identity",
    "live",
    bug="Logits have grown so large that the training precision cannot tell neighbours apart, or are not finite.",
    remedy="A z-loss, a cap, weight decay or a lower rate; see vitals/logit_max in TensorBoard.",
    reference="deepspeedai/DeepSpeed issue 4379; baichuan-inc/Baichuan2 issue 174; google-deepmind/optax issue 1020",
    looks_at="vitals",
)
def live_logits_are_resolved(vitals: Vitals) -> Measurement:
    """Largest |logit| of a run in bf16, whose logits are rounded to it: from 2^8 on neighbours are 2 nats apart, and a
    token cannot be told from one seven times as probable.

    In fp32 that begins at 2^24, which no run reaches that is not lost already: nothing is claimed there but that the
    logits are finite after the step. Attention scores are not asked: they are summed in fp32, and what keys have in
    common (biases of hundreds in published models) moves all of a query's by the same.
    """
    _looked(vitals)
    if math.isnan(vitals.logit_max):
        return Measurement(math.nan, RESOLVED, "logits are not finite after the step")
    if vitals.facts.get("precision") != "bf16":
        raise NotApplicable(
            f"fp32 tells logits apart as long as they are finite; the largest is {vitals.logit_max:.3g}"
        )
    return Measurement(vitals.logit_max, RESOLVED, "largest |logit|, bf16")


@check(
    "live-first-loss-is-uniform",
    "identity",
    "live",
    bug="The real model is sure of something before it has learnt anything: weights too large, or never initialised.",
    remedy="See init-loss; compare the real model's config and first weights with the recipe (model/init.py).",
    reference="jsboige/CoursIA issue 13279; pengzhangzhi/Open-dLLM issue 8",
    looks_at="vitals",
    false_alarm=1e-6,
)
def live_first_loss_is_uniform(vitals: Vitals) -> Measurement:
    """|first loss - (ln V + s^2 / 2)| of the real model, s = output_scale init_std sqrt(d) the size of a logit.

    As `init-loss`, on the real batch: n scored tokens stray by s / sqrt(n) each way, five of those by chance once in a
    million; s^2 for the sample of V logits; what a cap takes off. Text repeats its tokens, so n counts each as often as
    the commonest one would: the bound takes sqrt(V) of n at most.

    A tied head adds to a token's own logit. That raises the loss, up to ln(1 + (e^m - 1) / V) as in `init-loss`, many
    nats in a wide model; it lowers it only where a token follows itself, by ln V at most, and how often that is was
    counted. So weights that are not fresh (a loss below) show at any width.
    """
    _stage(vitals, "pretrain")
    _first(vitals)
    c = vitals.facts["config"]
    assert isinstance(c, ModelConfig)
    if c.init not in ("gpt2", "depth", "mup"):
        raise NotApplicable(f"with init {c.init} the head's size is not init_std")
    s = c.output_scale * c.init_std * c.d_model**0.5
    own = math.log1p(math.expm1(min(s * c.d_model**0.5, 50.0)) / c.vocab_size) if c.tied else 0.0
    capped = s**4 / c.logit_softcap**2 if c.logit_softcap else 0.0
    n = min(float(vitals.row["scored"]), c.vocab_size**0.5)
    expected = math.log(c.vocab_size) + s * s / 2
    rough = 2**-8 * expected if vitals.facts.get("precision") == "bf16" else 0.0
    loss = _model_loss(vitals.row)
    tied = own if loss > expected else vitals.repeats * expected * c.tied
    bound = 5 * s / n**0.5 + s * s + tied + capped + rough
    return Measurement(abs(loss - expected), bound, f"loss {loss:.4f}, expected {expected:.4f}")


@check(
    "live-dpo-starts-at-ln-2",
    "identity",
    "live",
    bug="Policy and reference differ before the first step: dropout, another precision, or another model as reference.",
    remedy="Both in eval mode, of the same weights, on the same batch (tune/dpo.py).",
    reference=(
        "eric-mitchell/direct-preference-optimization issue 34; hiyouga/LlamaFactory pull 10779; "
        "huggingface/trl issue 2042"
    ),
    looks_at="vitals",
)
def live_dpo_starts_at_ln_2(vitals: Vitals) -> Measurement:
    """|first loss - ln 2| of the real run, without what a router adds. The same weights on the same rows give a margin
    of 0; where a compiler cuts one of them otherwise, each log-probability is off by the precision's eps for each of
    some 40 roundings. The margin m of a pair sums a context of them twice, by its square root and times beta; -ln
    sigmoid of it is ln 2 - m / 2 + m^2 / 8, and the first of these falls with the square root of the number of pairs.
    """
    _stage(vitals, "dpo")
    _first(vitals)
    eps = 2.0**-8 if vitals.facts.get("precision") == "bf16" else 2.0**-23
    summed = (2 * (vitals.facts.get("context") or 1024)) ** 0.5
    margin = ROUNDINGS * eps * float(vitals.facts.get("beta") or 0.1) * summed
    bound = max(1e-5, margin / 2 / max(1, vitals.row["scored"]) ** 0.5 + margin**2 / 8)
    return Measurement(abs(_model_loss(vitals.row) - math.log(2)), bound)


@check(
    "live-grpo-starts-on-policy",
    "identity",
    "live",
    bug="The first batch is off-policy: sampler and trainer disagree at the same weights.",
    remedy="Temperature, top-k, precision and stop ids alike on both sides (infer/, tune/grpo.py).",
    reference="huggingface/trl issues 4159, 4772; unslothai/unsloth-zoo pull 593",
    looks_at="vitals",
)
def live_grpo_starts_on_policy(vitals: Vitals) -> Measurement:
    """Mean |log p(sampler) - log p(trainer)| of the first step's tokens: rounding of log-probabilities of order ten, in
    fp32 1e-4; bf16 rounds logits to 2^-8 of the largest."""
    _stage(vitals, "grpo")
    _first(vitals)
    if "sampler_gap" not in vitals.row:
        raise NotApplicable("no answer of the first step carried a signal")
    bound = max(10.0, vitals.logit_max) * 2.0**-8 if vitals.facts.get("precision") == "bf16" else 1e-4
    return Measurement(vitals.row["sampler_gap"], bound, f"kl {vitals.row.get('kl', math.nan):.2g}")


@check(
    "live-loss-beats-unigrams",
    "sensitivity",
    "live",
    bug="After the whole run the model knows no more than how frequent each token is: nothing looks at the context.",
    remedy="Check positions-matter and causality on this config, the learning rate, and that batches differ.",
    reference=(
        "pytorch/examples issue 846; KrishM123/transformer.cpp issue 6; Shannon 1951, Prediction and entropy "
        "of printed English"
    ),
    looks_at="vitals",
)
def live_loss_beats_unigrams(vitals: Vitals) -> Measurement:
    """Validation loss at the last step against that of the training text's token frequencies on the same text, in nats.

    A model that ignores its input can learn those and no more. Asked of runs with at least 100 tokens for each token
    of the vocabulary: each frequency is then known within about 10%.
    """
    _stage(vitals, "pretrain")
    unigrams, tokens = vitals.facts.get("unigram_loss"), vitals.facts.get("tokens", 0)
    if vitals.step != vitals.steps or unigrams is None or not vitals.history:
        raise NotApplicable("the last step alone is looked at")
    if vitals.steps < 100:
        raise NotApplicable(f"{vitals.steps} steps are too few to have learnt more")
    if tokens < 100 * vitals.facts["config"].vocab_size:
        raise NotApplicable(f"{tokens:,} tokens are too few for frequencies of {vitals.facts['config'].vocab_size:,}")
    return Measurement(vitals.history[-1]["validation_loss"], unigrams, "nats a token; unigrams are the bound")


@check(
    "live-loss-follows-the-law",
    "identity",
    "live",
    bug="The loss is half of what such a model on so much text reaches (targets are visible), or half as much again.",
    remedy="Too low: look for a leak (causality, documents-isolated). Too high: rate, batch, data.",
    reference="karpathy/nanoGPT issue 81; ayaka14732/bart-base-jax pull 6; Hoffmann et al. 2022, arXiv 2203.15556",
    looks_at="vitals",
)
def live_loss_follows_the_law(vitals: Vitals) -> Measurement:
    """|ln(validation loss / L(N, D))| at the last step, L being Chinchilla's law as refitted; at most ln 1.5.

    Its text and tokenizer are not yours: published models of other corpora lie within a third of it. Asked inside of
    the law's range alone (from 40M parameters and 400M tokens on), and not of generated text.
    """
    _stage(vitals, "pretrain")
    n, d = vitals.facts.get("parameters", 0), vitals.facts.get("tokens", 0)
    if vitals.step != vitals.steps or not vitals.history or vitals.facts.get("generated"):
        raise NotApplicable("the last step of a run on natural text is looked at")
    if n < 4e7 or d < 4e8:
        raise NotApplicable(f"{n:,} parameters on {d:,} tokens are below the law's range")
    law = BESIROGLU.loss(n, d)
    return Measurement(abs(math.log(vitals.history[-1]["validation_loss"] / law)), math.log(1.5), f"law {law:.3f}")


@check(
    "live-train-and-validation-agree",
    "identity",
    "live",
    bug="Training text is recited and new text is not: too many epochs, or a validation set of another kind.",
    remedy="Fewer epochs or more text; look at what stands in the validation shard.",
    reference="ai-forever/ru-gpts issue 23; Muennighoff et al. 2023, arXiv 2305.16264",
    looks_at="vitals",
)
def live_train_and_validation_agree(vitals: Vitals) -> Measurement:
    """How far validation and training loss lie apart, mean of the last four looks, in nats.

    A rule of thumb, since no arithmetic says how much may be learnt by heart: text that is read for the first time is
    as new to the model as validation text, and the two differ by chance alone; text that is read again is known, and
    sound runs on little text (tens of epochs over a book) end some tenths of a nat apart. One nat is a factor of e in
    perplexity. To it comes what chance can do: texts stray by about half a nat from one another, so a batch of n rows
    by 0.5 / sqrt(n), five times that at most. Where you mean to overfit: verify.allow, or `groundup run --allow`.

    Validation comes after the step and the training loss before it, so a loss that falls between two looks is not apart
    from the earlier validation.
    """
    _stage(vitals, "pretrain")
    seen = [row for row in vitals.history if "validation_loss" in row and "loss" in row and row["step"] > 1]
    if not seen or vitals.history[-1] is not seen[-1]:
        raise NotApplicable("validation was not run at this step")
    before = [None, *(row["validation_loss"] for row in seen)]
    gaps = [_gap(row, earlier) for row, earlier in zip(seen, before, strict=False)][-4:]
    known = [gap for gap in gaps if gap is not None]
    if not known:
        raise NotApplicable("the loss is still falling, and there is no earlier validation to compare it with")
    context = vitals.facts.get("context") or vitals.facts["config"].context
    rows = max(1.0, vitals.row["scored"] / context) * len(known)
    mean = sum(known) / len(known)
    return Measurement(
        abs(mean), 1 + 5 * STRAY / rows**0.5, f"validation - training {mean:+.3f} nats, {len(known)} looks"
    )


def _gap(row: dict[str, Any], earlier: float | None) -> float | None:
    """Validation minus training loss; where that is negative, from the earlier validation. None where there is none."""
    gap = float(row["validation_loss"]) - _model_loss(row)
    if gap >= 0:
        return gap
    return None if earlier is None else min(0.0, max(row["validation_loss"], earlier) - _model_loss(row))


@check(
    "live-reward-agrees-with-held-out",
    "identity",
    "live",
    bug="The reward rises while held-out problems are answered worse: the model has found a way around the judge.",
    remedy="Read the samples; tighten the reward, raise kl_beta, stop earlier.",
    reference="Liuziyu77/Visual-RFT issues 176, 79; Gao et al. 2022, arXiv 2210.10760",
    looks_at="vitals",
    false_alarm=1e-6,
)
def live_reward_agrees_with_held_out(vitals: Vitals) -> Measurement:
    """How far held-out accuracy has fallen from its best while the reward has risen, in standard errors; at most 5.

    Both accuracies are shares of n held-out problems: sqrt(p (1 - p) / n) each; five of the difference's are met by
    chance once in a million. 0 where the reward has not risen since.
    """
    _stage(vitals, "grpo")
    seen = [row for row in vitals.history if "held_out_accuracy" in row and "reward" in row]
    n = vitals.facts.get("held_out", 0)
    if len(seen) < 2 or not n:
        raise NotApplicable("fewer than two validations so far")
    best, last = max(seen[:-1], key=lambda row: row["held_out_accuracy"]), seen[-1]
    if last["reward"] <= best["reward"]:
        return Measurement(0.0, 5.0, "the reward has not risen since")
    p, q = best["held_out_accuracy"], last["held_out_accuracy"]
    error = math.sqrt(max(p * (1 - p) + q * (1 - q), 1 / n) / n)
    return Measurement(max(0.0, (p - q) / error), 5.0, f"held-out {p:.3f} -> {q:.3f}, reward up")
