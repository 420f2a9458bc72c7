"""Under muP, does a wider model learn at the same pace? (Otherwise rates tuned on a small one are wrong for it.)"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

from groundup.model.config import ModelConfig
from groundup.model.transformer import Transformer
from groundup.verify import rig
from groundup.verify.check import Measurement, NotApplicable, check
from groundup.verify.subject import Subject

WIDER, STEPS = 4, 4


def width_share(config: ModelConfig) -> float:
    """Adam's rate of a hidden matrix or router over the section's: 1 / width under muP (Yang et al. 2022, table 8)."""
    return config.mup_width / config.d_model if config.init == "mup" else 1.0


def _needs(subject: Subject) -> None:
    if subject.micro.init != "mup":
        raise NotApplicable(f"init is {subject.micro.init}")


def widened(config: ModelConfig, times: int) -> dict[str, Any]:
    """Everything that grows with the width; heads keep their size, experts, buckets and layers their number."""
    wide = {name: times * getattr(config, name) for name in ("d_model", "n_heads", "n_kv_heads", "d_ff")}
    if config.moe is not None:
        wide["moe"] = replace(config.moe, d_expert=times * config.moe.d_expert)
    if config.latent is not None:
        ranks = {"kv_rank": times * config.latent.kv_rank, "q_rank": times * config.latent.q_rank}
        wide["latent"] = replace(config.latent, **ranks)
    return wide


@check(
    "mup-rates-by-width",
    "identity",
    "train",
    bug="muP's rates reach no optimizer, or embeddings and norms as well: a tuned rate is too high for a wide model.",
    remedy="See the groups in train/optim.py: Adam's rate of hidden matrices times mup_width / d_model.",
    reference="EleutherAI/gpt-neox pull 1061; microsoft/mup pull 73; Yang et al. 2022, arXiv 2203.03466, table 8",
)
def mup_rates_by_width(subject: Subject) -> Measurement:
    """Largest relative difference between how far a parameter moves in AdamW's first step, and rate * mup_width /
    d_model for matrices inside blocks, rate for embeddings, head and vectors; at two widths.

    Adam's first step is rate * g / (|g| + 1e-8); gradients of 1 leave 1e-8 and the rounding of a weight of size w at a
    step of size s: eps w / s. Matrices that Muon moves are looked at by mup-learns-alike-at-every-width alone.
    """
    _needs(subject)
    worst, where, bound, rate = 0.0, "", 0.0, 1e-2
    muon = subject.recipe.pretrain.optimizer == "muon"
    for times in (1, WIDER):
        model = subject.build_model(awake=False, **widened(subject.micro, times))
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        optimizers = rig.real_optimizers(subject, model, learning_rate=rate, weight_decay=0.0)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizers.step(1.0)
        for name, parameter in model.named_parameters():
            router = ".router." in name
            matrix = name.startswith("blocks.") and parameter.ndim >= 2 and not router
            if matrix and muon:
                continue
            step = rate * (width_share(model.config) if matrix or router else 1.0)
            off = float((before[name] - parameter.detach()).double().abs().mean() / step - 1)
            bound = max(bound, 1e-6 + rig.EPS * rig.largest(before[name]) / step)
            if abs(off) > worst:
                worst, where = abs(off), f"width {model.config.d_model}: {name}"
    return Measurement(worst, bound, where)


@check(
    "mup-learns-alike-at-every-width",
    "invariance",
    "train",
    bug="Under muP something still grows with the width: the tuned rate does not carry over.",
    remedy="Matrices' variance, Adam's rate and the logits all go with 1 / width (init.py, optim.py, config.py).",
    reference="EleutherAI/gpt-neox issue 956; microsoft/mup issue 71; NVIDIA/Megatron-LM pull 3058",
)
def mup_learns_alike_at_every_width(subject: Subject) -> Measurement:
    """Largest factor by which a size is larger in a model four times as wide: of what each layer's fresh attention and
    feed-forward add to the stream, and of how far 4 real steps move that, the logits, and the routers' logits (root
    mean squares over a batch and 3 seeds).

    Under muP none of them grows with the width. Where one rule is missing something grows as the width, here by 4 (the
    variance: in two matrices, by 2 each): the bound lies in the middle of 1 and 4, at 2. What fades is not looked at:
    in small models the random part of a change does, as the square root of the width.
    """
    _needs(subject)
    small, wide = (_sizes(subject, times) for times in (1, WIDER))
    worst, where = 0.0, ""
    for name, size in small.items():
        factor = wide[name] / size if size else (math.inf if wide[name] else 1.0)
        if factor > worst:
            worst, where = (
                factor,
                f"{name}: {size:.3g} at {subject.micro.d_model}, {wide[name]:.3g} at {WIDER} times that",
            )
    return Measurement(worst, WIDER**0.5, where)


def _sizes(subject: Subject, times: int) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    rates: dict[str, Any] = {"learning_rate": 1e-2, "weight_decay": 0.0}
    for seed in range(3):
        changes = {**widened(subject.micro, times), "dropout": 0.0}
        model = subject.build_model(seed, awake=False, **changes).eval()
        batch = rig.random_batch(subject, rows=8, length=24, seed=90 + seed)
        before = _outputs(model, batch)
        optimizers = rig.real_optimizers(subject, model, **rates)
        for step in range(STEPS):
            rig.one_step(subject, model, [batch], optimizers, step=step, **rates)
        for name, new in _outputs(model.eval(), batch).items():
            found.setdefault(f"change of {name}", []).append(float((new - before[name]).square().mean()))
            if name.startswith(("attention", "mlp")):
                found.setdefault(f"fresh {name}", []).append(float(before[name].square().mean()))
    return {name: (sum(values) / len(values)) ** 0.5 for name, values in found.items()}


@torch.no_grad()
def _outputs(model: Transformer, batch: rig.Batch) -> dict[str, torch.Tensor]:
    """What each layer's attention and feed-forward add, the logits, and those of each router."""
    given = {"documents": batch.documents, "positions": batch.positions}
    out = {"logits": rig.logits_of(model, batch.tokens, **given)}
    for part in ("attention", "mlp"):
        for layer, call in enumerate(rig.calls(model, part, batch.tokens, **given)):
            out[f"{part} {layer}"] = call.output
            router = getattr(model.blocks[layer].mlp, "router", None)
            if part == "mlp" and router is not None:
                out[f"router {layer}"] = router(call.inputs[0])
    return out
