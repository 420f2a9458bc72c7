"""Are the first weights what the scheme says, matrix by matrix, and does a wider model learn at the same pace?"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from groundup.model import init
from groundup.model.config import ModelConfig
from groundup.model.norm import Norm
from groundup.model.transformer import Transformer
from groundup.verify import rig
from groundup.verify.check import Measurement, NotApplicable, check, violations
from groundup.verify.subject import Subject


def expected_std(config: ModelConfig, layer: int, fan_out: int, fan_in: int, writes: bool) -> float:
    """What model/init.py's docstring promises of one matrix of a block; writes: into the residual stream."""
    match config.init:
        case "xavier":
            variance = 2 / (fan_in + fan_out)
        case "he":
            variance = 2 / fan_in
        case "mup":
            variance = config.init_std**2 * config.mup_width / config.d_model
        case _:
            variance = config.init_std**2
    if writes:
        variance *= 0 if config.zero_out else 1 / (2 * (layer + 1 if config.init == "depth" else config.n_layers))
    return variance**0.5


@check(
    "init-loss",
    "identity",
    "model",
    bug="The untrained model is already sure of something: weights too large, or never initialised.",
    remedy="See model/init.py: the head is N(0, init_std^2), and init_weights called before training.",
    reference="jsboige/CoursIA issue 13279; huggingface/torchMoji issue 11",
)
def init_loss(subject: Subject) -> Measurement:
    """|mean loss at a position - (ln V + s^2 / 2)|, the worst of 16 positions.

    The last norm gives hidden states of mean square 1, so logits are N(0, s^2), s being output_scale init_std sqrt(d),
    and the mean of log sum exp is ln V + s^2 / 2. A target drawn at random has a logit of standard deviation s, so the
    mean over n rows strays by s / sqrt(n); five of those are met by chance once in a million. s^2 covers the sample
    variance of V logits. With a tied head the token's own logit is at most m = output_scale init_std d (the hidden
    state being its own embedding), which adds up to ln(1 + (e^m - 1) / V). A cap c on logits takes off up to
    |x|^3 / (3 c^2) of each: s^4 / c^2 at most on average (E|x|^4 = 3 s^4), since log sum exp and target lose alike.
    """
    config = subject.micro
    model = subject.build_model(awake=False)
    rows, positions = 256, 16
    tokens = rig.random_tokens(subject, rows, positions, seed=1)
    targets = rig.random_tokens(subject, rows, positions, seed=2)
    logits = rig.logits_of(model.eval(), tokens)
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(rows, positions)
    s = config.output_scale * config.init_std * config.d_model**0.5
    own = math.log1p(math.expm1(s * config.d_model**0.5) / config.vocab_size) if config.tied else 0.0
    capped = s**4 / config.logit_softcap**2 if config.logit_softcap else 0.0
    expected = math.log(config.vocab_size) + s * s / 2
    measured = losses.double().mean(0)
    return Measurement(
        float((measured - expected).abs().max()),
        5 * s / rows**0.5 + s * s + own + capped,
        f"loss {float(measured.mean()):.4f}, ln V {math.log(config.vocab_size):.4f}",
    )


@check(
    "residual-stays-level",
    "identity",
    "model",
    bug="Activations grow with depth, so a deep model starts far from where its learning rate was tuned.",
    remedy="Scale the weights that write into the residual stream by 1/sqrt(2 layers); see model/init.py.",
    reference=(
        "huggingface/transformers issue 47458 (pull 47459); karpathy/minGPT issue 134; Radford et al. 2019, "
        "GPT-2, section 2.3"
    ),
)
def residual_stays_level(subject: Subject) -> Measurement:
    """Mean square of what 16 fresh blocks add to the residual stream, over that of the stream before the first.

    Each of 2L branches adds to it at most what `branches` derives from the scheme, its input having mean
    square 1. With outputs scaled by 1/sqrt(2L) the sum over L layers does not depend on L, and with depth's
    1/sqrt(2(l + 1)) it is half the harmonic number of L. The bound allows twice that for the draw. Without the scaling
    it is 2L = 32 times as much.
    """
    if subject.micro.block in ("post", "output", "sandwich"):
        raise NotApplicable(f"with block {subject.micro.block} norms set the size of what is added, not the weights")
    layers = 16
    config = replace(subject.micro, n_layers=layers, dropout=0.0)
    model = init.init_weights(Transformer(config), 0).eval()
    seen: list[torch.Tensor] = []
    hooks = [model.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))]
    hooks.append(model.norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])))
    with torch.no_grad():
        model(rig.random_tokens(subject, 16, 16))
    for hook in hooks:
        hook.remove()
    before = (config.init_std * config.embed_scale) ** 2
    before += {"learned": config.init_std**2, "sinusoidal": 0.5}.get(config.position, 0.0)
    added = sum(branches(config, layer) for layer in range(layers))
    return Measurement(
        float((seen[1] - seen[0]).square().mean() / seen[0].square().mean()), 2 * added / before, f"{layers} blocks"
    )


def branches(config: ModelConfig, layer: int) -> float:
    """Mean square that a fresh layer's two branches add at most, for inputs of mean square 1.

    Attention averages values, which only lowers their mean square; a value is a sum over fan-in of inputs. An
    activation lets through at most its argument a (relu squared: 3 a^2 / 2, half of a Gaussian's fourth moment), a
    gate multiplies two of them. Weighted experts add up to at most scale^2 times one, or top_k of them where sigmoid
    scores are not normalised.
    """
    d, h = config.d_model, config.n_heads

    def variance(fan_out: int, fan_in: int, writes: bool = False) -> float:
        return expected_std(config, layer, fan_out, fan_in, writes) ** 2

    if config.latent is not None:
        rank, rows = config.latent.kv_rank, h * (config.latent.nope_dim + config.latent.v_dim)
        value = rank * variance(rows, rank)  # the latent was normalised
    else:
        value = d * variance(config.n_kv_heads * config.head_dim, d)
    wide = h * config.v_dim
    total = wide * variance(d, wide, True) * value

    def mlp(hidden: int) -> float:
        a = d * variance(hidden, d)
        inner = a * a if config.gated else 1.5 * a * a if config.mlp == "relu2" else a
        return hidden * variance(d, hidden, True) * inner

    if not config.has_experts(layer) or config.moe is None:
        return total + mlp(config.d_ff)
    moe = config.moe
    weights = moe.scale**2 * (1 if moe.normalise or moe.score == "softmax" else moe.top_k)
    return total + weights * mlp(moe.d_expert) + (mlp(moe.n_shared * moe.d_expert) if moe.n_shared else 0.0)


@check(
    "initial-weights-follow-the-scheme",
    "identity",
    "model",
    bug="A matrix starts at another size than the scheme gives it: fans taken of a packed weight, a layer unscaled.",
    remedy="See matrix_std in model/init.py: fans of the piece, not of the packed matrix or of the stack of experts.",
    reference="fastai/fastai pull 2090; huggingface/transformers issue 143; karpathy/llm.c pull 832",
)
def initial_weights_follow_the_scheme(subject: Subject) -> Measurement:
    """Largest deviation of a matrix's root mean square from the scheme's, in standard deviations of the draw.

    n numbers N(0, s^2) have a root mean square within s / sqrt(2 n) of s; five of those are met by chance once in a
    million. Each piece of a packed projection and each expert by itself. Infinite for what must be exact and is not:
    norms at 1 (0 with an offset), biases and sinks at 0, what zero_out starts at 0.
    """
    config, model = subject.micro, subject.build_model(awake=False)
    worst, which, looked = 0.0, "", 0
    for name, matrix in rig.matrices(model):
        inside = name.startswith("blocks.")
        layer = int(name.split(".")[1]) if inside else 0
        writes = name.split("[")[0].removesuffix(".weight").endswith((".out", ".down"))
        s = expected_std(config, layer, matrix.shape[0], matrix.shape[1], writes) if inside else config.init_std
        rms = float(matrix.detach().double().square().mean().sqrt())
        off = abs(rms / s - 1) * (2 * matrix.numel()) ** 0.5 if s else (math.inf if rms else 0.0)
        looked += 1
        if off > worst:
            worst, which = off, f"{name}: {rms:.4g}, scheme {s:.4g}"
    for module in model.modules():
        if isinstance(module, Norm) and module.weight is not None and (module.weight != (not module.offset)).any():
            return Measurement(math.inf, 5.0, "a norm does not start as the identity")
    for name, parameter in model.named_parameters():
        if name.endswith((".bias", "sinks")) and parameter.any():
            return Measurement(math.inf, 5.0, f"{name} does not start at 0")
    return Measurement(worst, 5.0, which or f"{looked} matrices")


@check(
    "zero-out-starts-as-identity",
    "identity",
    "model",
    bug="zero_out reaches attention alone (or the dense layers alone): some blocks write noise at the start.",
    remedy="Every projection that writes into the residual stream: .out and .down, experts' too (model/init.py).",
    reference="yz93/LAVT-RIS issue 15; SWivid/F5-TTS issue 793; Zhang et al. 2019, Fixup, arXiv 1901.09321",
)
def zero_out_starts_as_identity(subject: Subject) -> Measurement:
    """Blocks of a fresh model whose output differs, in any bit, from its input (post-norm: from its two norms' of it).

    x + 0 is x, and a norm of 0 is 0, so there is no rounding.
    """
    if not subject.micro.zero_out:
        raise NotApplicable("zero_out is off")
    model = subject.build_model(awake=False).eval()
    found: list[str] = []

    def compare(block: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        expected = inputs[0]
        if subject.micro.block == "post":
            expected = block.norm2(block.norm1(expected))  # type: ignore[operator]
        if not torch.equal(expected, output):
            found.append(f"block {block.attention.layer}")  # type: ignore[union-attr]

    for block in model.blocks:
        block.register_forward_hook(compare)
    with torch.no_grad():
        model(rig.random_tokens(subject, 2, 16, seed=50))
    return violations(found, len(model.blocks))
