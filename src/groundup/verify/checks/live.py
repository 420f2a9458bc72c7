"""A run that is training: is what should be learnt from being learnt from, and does anything die or run away?

Each is handed the `Vitals` of one step (train/vitals.py), taken at the first step, at every validation and at the last.
"""

from __future__ import annotations

import math

from groundup.model.config import ModelConfig
from groundup.plan.laws import BESIROGLU
from groundup.train.vitals import Vitals
from groundup.verify.check import Measurement, NotApplicable, check, violations

LEAST_SCORED = 0.001
ROUNDINGS = 40  # between a token and its log-probability
MATRICES = ("weight", "gate_up", "down", "up")  # experts hold theirs in stacks without a name of their own
FIRST = "the first step alone is looked at"
SPACING = {"bf16": 2.0**8, "fp32": 2.0**24}  # where neighbouring numbers are 1 (fp32) or 2 (bf16, after 256) apart


def _stage(vitals: Vitals, *names: str) -> None:
    if vitals.stage not in names:
        raise NotApplicable(f"it looks at {' and '.join(names)}")


def _first(vitals: Vitals) -> None:
    if vitals.step != 1:
        raise NotApplicable(FIRST)


def _stepped(vitals: Vitals) -> None:
    if not vitals.row.get("scored") or vitals.row.get("skipped"):
        raise NotApplicable("the step had nothing to learn from, or was refused")


@check(
    "live-tokens-are-scored",
    "sensitivity",
    "live",
    bug="Almost nothing of a batch is scored (masks too wide, answers cut off): the run costs much and learns little.",
    remedy="Look at rendered rows with their masks; raise the context, or leave out what does not fit (tune/pack.py).",
    reference="huggingface/trl issue 6668, pulls 6025, 5076",
    looks_at="vitals",
)
def live_tokens_are_scored(vitals: Vitals) -> Measurement:
    """Share of the step's places, padding aside, that have a target; at least one in a thousand.

    In pretraining it is all but the documents' ends; in tuning it is what the answers have of the conversations. Short
    answers to long texts have a hundredth of them; the published case lost 99.8% of its tokens.
    """
    _stepped(vitals)
    return Measurement(vitals.scored_share, LEAST_SCORED, f"{vitals.stage}, step {vitals.step}", ">=")


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
    """Blocks whose gradient, all of it, is exactly 0 or not finite; before the clip."""
    _stepped(vitals)
    wrong = [f"block {n}: {g:g}" for n, g in enumerate(vitals.gradient_by_layer) if not (math.isfinite(g) and g > 0)]
    return violations(wrong, len(vitals.gradient_by_layer))


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
    that changed by more than their own norm: what was learnt is gone. Not at the first step, where projections may
    start at zero (those that did are not asked for their norm), and not below a tenth of the peak rate."""
    _stepped(vitals)
    if vitals.step == 1:
        raise NotApplicable("the first step moves from the first weights")
    peak = float(vitals.facts.get("peak_rate", 0.0))
    if not vitals.row["learning_rate"] or vitals.row["learning_rate"] < 0.1 * peak:
        raise NotApplicable("the rate is at its very beginning or end: what it moves may be below a weight's last bit")
    config = vitals.facts.get("config")
    young = ("attention.out.weight", "mlp.down.weight") if getattr(config, "zero_out", False) else ()
    found = [f"{name} did not move" for name, ratio in vitals.update_ratio.items() if not ratio > 0]
    found += [
        f"{name} moved by {ratio:.2g} times its norm"
        for name, ratio in vitals.update_ratio.items()
        if ratio > 1 and name.endswith(MATRICES) and "norm" not in name and not name.endswith(young)
    ]
    return violations(found, len(vitals.update_ratio))


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
    """Layers without one hidden unit that some token of the sample makes active (above 2^-24 of the largest)."""
    if not vitals.dead_units:
        raise NotApplicable("no layer has a plain feed-forward")
    worst = max(vitals.dead_units)
    found = [f"layer {n}" for n, share in enumerate(vitals.dead_units) if not share < 1]
    counted = violations(found, len(vitals.dead_units))
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
    """Layers whose mean entropy, over that of looking everywhere alike, is below 2^-8, or whose scores are all 0.

    Below: what lies beside the one key is under bf16's resolution for all heads and queries. Small first weights look
    nearly everywhere alike, and are sound; queries or keys that are lost give zeros.
    """
    if not vitals.attention_entropy:
        raise NotApplicable("no layer has plain attention over more than one key")
    found = [f"layer {n}: {e:.2g}" for n, e in enumerate(vitals.attention_entropy) if not e >= 2.0**-8]
    found += [f"layer {n}: all scores are 0" for n, score in enumerate(vitals.attention_score) if not score > 0]
    return violations(found, len(vitals.attention_entropy))


@check(
    "live-logits-are-resolved",
    "identity",
    "live",
    bug="Logits or attention scores have grown so large that the training precision cannot tell neighbours apart.",
    remedy="A z-loss, a cap, QK-norm, weight decay or a lower rate; see vitals/logit_max in TensorBoard.",
    reference="deepspeedai/DeepSpeed issue 4379; baichuan-inc/Baichuan2 issue 174; google-deepmind/optax issue 1020",
    looks_at="vitals",
)
def live_logits_are_resolved(vitals: Vitals) -> Measurement:
    """Largest |logit| and |score|; from 2^8 on two bf16 numbers are 2 nats apart, from 2^24 on two fp32 ones."""
    if math.isnan(vitals.logit_max):
        raise NotApplicable("the step had no batch to look at")
    precision = str(vitals.facts.get("precision", "fp32"))
    seen = [vitals.logit_max, *vitals.attention_score]
    largest = math.nan if any(math.isnan(x) for x in seen) else max(seen)  # max() would pass over NaN
    return Measurement(largest, SPACING.get(precision, 2.0**24), f"logit {vitals.logit_max:.3g}, {precision}")


@check(
    "live-first-loss-is-uniform",
    "identity",
    "live",
    bug="The real model is sure of something before it has learnt anything, or targets stand in what it sees.",
    remedy="See init-loss; compare the real model's config with the recipe, and look at one batch's targets.",
    reference="jsboige/CoursIA issue 13279; pengzhangzhi/Open-dLLM issue 8",
    looks_at="vitals",
    false_alarm=1e-6,
)
def live_first_loss_is_uniform(vitals: Vitals) -> Measurement:
    """|first loss - (ln V + s^2 / 2)| of the real model, s = output_scale init_std sqrt(d) the size of a logit.

    As `init-loss`, on the real batch: n scored tokens stray by s / sqrt(n) each way, five of those by chance once in a
    million; s^2 for the sample of V logits; what a tied head adds to a token's own logit; what a cap takes off. Text
    repeats its tokens, so n counts each as often as the commonest one would: the bound takes sqrt(V) of n at most.
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
    bound = 5 * s / n**0.5 + s * s + own + capped + rough
    loss = vitals.row["loss"] - vitals.row.get("router_loss", 0.0)
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
    """|first loss - ln 2| of the real run. The same weights on the same rows give a margin of 0; where a compiler cuts
    one of them otherwise, each log-probability is off by the precision's eps for each of some 40 roundings, and beta
    times the sum of a context of them by its square root."""
    _stage(vitals, "dpo")
    _first(vitals)
    eps = 2.0**-8 if vitals.facts.get("precision") == "bf16" else 2.0**-23
    summed = (vitals.facts.get("context", 1024) or 1024) ** 0.5
    bound = max(1e-5, ROUNDINGS * eps * float(vitals.facts.get("beta") or 0.1) * summed)
    return Measurement(abs(vitals.row["loss"] - math.log(2)), bound)


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
    """|validation loss - training loss| at the same step, in nats; at most 1, a factor of e in perplexity.

    Single batches of text differ by tenths of a nat from one another.
    """
    _stage(vitals, "pretrain")
    if not vitals.history or "validation_loss" not in vitals.history[-1] or vitals.step == 1:
        raise NotApplicable("validation was not run at this step")
    last = vitals.history[-1]
    return Measurement(abs(last["validation_loss"] - last["loss"] + last.get("router_loss", 0.0)), 1.0, "nats")


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
