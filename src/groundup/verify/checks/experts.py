"""Are tokens sent to the experts that the router chose, all of them, weighted as it said, and is the load kept even?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from groundup.model.config import MixtureOfExperts
from groundup.model.moe import ExpertMLP
from groundup.model.transformer import Transformer
from groundup.verify import draw, rig
from groundup.verify.check import Measurement, NotApplicable, check, violations
from groundup.verify.reference import Reference
from groundup.verify.subject import Subject


def layers_of(model: Transformer) -> Iterator[tuple[int, ExpertMLP]]:
    for layer, block in enumerate(model.blocks):
        if isinstance(block.mlp, ExpertMLP):
            yield layer, block.mlp


def _needs(subject: Subject) -> MixtureOfExperts:
    if subject.micro.moe is None:
        raise NotApplicable("no layer has experts")
    return subject.micro.moe


def rows_for(subject: Subject, seed: int, n: int = 64) -> Tensor:
    """(n, D): what a norm gives to a feed-forward."""
    return torch.randn(n, subject.micro.d_model, generator=draw.generator(seed))


@check(
    "experts-equal-dense-sum",
    "identity",
    "model",
    bug="A token's experts are weighted in another order than they were chosen, or not as the recipe says.",
    remedy="See route and run_experts in model/moe.py: the weight goes with its expert through sorting and back.",
    reference="jingyaogong/minimind issue 858; databricks/megablocks pull 87",
)
def experts_equal_dense_sum(subject: Subject) -> Measurement:
    """Largest difference between the routed output and the sum over all experts, each run on every token, times the
    router's weight (0 for those not among the best top_k), plus the shared experts; in fp64, layer by layer.

    A weight is off by its logit's rounding, a sum of d terms of which the largest logit bounds the size, hence
    tolerance times (1 + that logit).
    """
    _needs(subject)
    model, x = subject.build_model(), rows_for(subject, 80)
    reference, worst = Reference(model), 0.0
    for layer, experts in layers_of(model):
        with torch.no_grad():
            found = experts(x[None])[0]
        expected = reference.mlp(layer, x.double())
        logit = rig.largest(F.linear(x, experts.router.weight.detach()))
        limit = rig.tolerance(subject.micro, rig.largest(expected)) * (1 + logit)
        worst = max(worst, rig.largest(found - expected) / limit)
    return Measurement(worst, 1.0, f"{len(list(layers_of(model)))} layers")


@check(
    "every-token-gets-its-experts",
    "identity",
    "model",
    bug="Tokens are dropped where many want one expert, or get fewer than top_k: quality falls with the load's skew.",
    remedy="No expert has a limit; top_k different ones a token, the best by the router (route in model/moe.py).",
    reference=(
        "NVIDIA-NeMo/Megatron-Bridge issue 4635; deepseek-ai/DeepSeek-V2 issues 48, 5; Gale et al. 2022, "
        "arXiv 2211.15841"
    ),
)
def every_token_gets_its_experts(subject: Subject) -> Measurement:
    """Tokens whose experts are not exactly the top_k best by the fp64 router, each once; and tokens whose output
    changes beyond rounding when 200 copies of them want the same experts."""
    moe, found, looked = _needs(subject), [], 0
    model, x = subject.build_model(), rows_for(subject, 81)
    reference = Reference(model)
    for layer, experts in layers_of(model):
        with torch.no_grad():
            chosen, _ = experts.route(x)
            alone, crowd = experts(x[:1][None])[0], experts(x[:1].expand(200, -1)[None])[0]
        best = reference.routing(layer, x.double()) > 0
        for n, row in enumerate(chosen.tolist()):
            looked += 1
            if len(row) != moe.top_k or sorted(set(row)) != best[n].nonzero()[:, 0].tolist():
                found.append(f"layer {layer}, token {n}: experts {row}, best {best[n].nonzero()[:, 0].tolist()}")
        bound = rig.tolerance(subject.micro, rig.largest(alone))
        found += [f"layer {layer}: copy {n}" for n in ((crowd - alone).abs().amax(-1) > bound).nonzero()[:, 0].tolist()]
        looked += 200
    return violations(found, looked)


@check(
    "experts-follow-their-tokens",
    "invariance",
    "model",
    bug="Outputs come back in the order in which they were sorted by expert: one token gets another's result.",
    remedy="Undo the sort (order.argsort()) before weights are applied (run_experts in model/moe.py).",
    reference="NVIDIA/TransformerEngine issue 2908; NVIDIA/Megatron-LM pull 5231; tile-ai/TileOPs issue 590",
)
def experts_follow_their_tokens(subject: Subject) -> Measurement:
    """Largest difference, over all layers, between the outputs of permuted tokens and the permuted outputs.

    Each token's experts see the same numbers, among others: rounding only.
    """
    _needs(subject)
    model, x, worst, scale = subject.build_model(), rows_for(subject, 82), 0.0, 0.0
    order = torch.randperm(len(x), generator=draw.generator(82))
    for _, experts in layers_of(model):
        with torch.no_grad():
            straight, mixed = experts(x[None])[0], experts(x[order][None])[0]
        worst, scale = max(worst, rig.largest(mixed - straight[order])), max(scale, rig.largest(straight))
    return Measurement(worst, rig.tolerance(subject.micro, scale))


# ---- what keeps the load even ----


def router_losses(reference: Reference, layer: int, x: Tensor, chosen: Tensor, weight: Tensor) -> Tensor:
    """Balance and z loss of one layer, fp64: Switch equation 4 (for top_k choices), ST-MoE equation 5."""
    moe = reference.config.moe
    assert moe is not None
    logits = x @ weight.T
    total = torch.zeros((), dtype=torch.float64)
    if moe.balance == "loss":
        scores = torch.softmax(logits, -1) if moe.score == "softmax" else torch.sigmoid(logits)
        probability = (scores / scores.sum(-1, keepdim=True)).mean(0)
        share = torch.stack([(chosen == e).double().mean() for e in range(moe.n_experts)])
        total = total + moe.balance_weight * moe.n_experts * (share * probability).sum()
    return total + moe.z_weight * logits.exp().sum(-1).log().square().mean()


def loud(moe: MixtureOfExperts) -> MixtureOfExperts:
    """The same losses, each with a weight of 0.1: a thousandth could go missing within the rounding, 0 could too."""
    weight = 0.1 if moe.balance == "loss" else moe.balance_weight
    return replace(moe, balance_weight=weight, z_weight=0.1 if moe.z_weight else 0.0)


@check(
    "balance-loss-is-its-formula",
    "identity",
    "model",
    bug="The balance loss is of another size, or its gradient stops before the router: all tokens go to a few experts.",
    remedy="See observe in model/moe.py: E sum f P times balance_weight, f a count, P with its gradient.",
    reference="huggingface/transformers issues 28093, 28255, 31464",
)
def balance_loss_is_its_formula(subject: Subject) -> Measurement:
    """Largest relative difference of Transformer.router_loss, and of its gradient at the last router, to fp64; and of
    the balance loss of a perfectly even router to balance_weight, the value of E * E * (1 / E)^2. Weights as in `loud`.

    Even by construction: E tokens, token i made of the directions of experts i .. i + top_k - 1, so that shifting
    tokens shifts experts. Rounding: gradients pass twice.
    """
    moe = _needs(subject)
    if moe.balance != "loss" and not moe.z_weight:
        raise NotApplicable("the router has no loss")
    if moe.top_k == moe.n_experts and not moe.z_weight:
        raise NotApplicable("every token uses every expert: there is nothing to balance")
    model = subject.build_model(moe=loud(moe))
    reference = Reference(model)
    tokens = rig.random_tokens(subject, 4, 24, seed=83)
    inputs: dict[int, Tensor] = {}
    for layer, experts in layers_of(model):
        experts.register_forward_pre_hook(lambda _, given, layer=layer: inputs.update({layer: given[0].detach()}))  # type: ignore[misc]
    model(tokens)
    total = model.router_loss()
    if total is None or model.router_loss() is not None:
        return Measurement(math.inf, 0.0, "no router loss" if total is None else "read twice, counted twice")
    expected, worst = torch.zeros((), dtype=torch.float64), 0.0
    wanted: dict[int, Tensor] = {}
    for layer, experts in layers_of(model):
        x = inputs[layer].flatten(0, 1).double()
        weight = experts.router.weight.detach().double().requires_grad_()
        chosen = reference.routing(layer, x).topk(moe.top_k).indices
        one = router_losses(reference, layer, x, chosen, weight)
        wanted[layer] = torch.autograd.grad(one, weight)[0]
        expected = expected + one.detach()
    # the layers' own routers alone: what lies below is in the model's graph and not in this one
    routers = [experts.router.weight for _, experts in layers_of(model)]
    last = max(wanted)
    gradient = torch.autograd.grad(total, routers, allow_unused=True)[-1]
    if gradient is None or not bool(gradient.any()):
        return Measurement(math.inf, 0.0, "no gradient reaches the router")
    worst = max(abs(float(total.detach() / expected) - 1), rig.apart(gradient, wanted[last]))
    if moe.balance == "loss":
        worst = max(worst, abs(_even(subject, moe) - 1))
    return Measurement(worst, 2 * rig.tolerance(subject.micro, 1.0), f"router loss {float(expected):.4g}")


def _even(subject: Subject, moe: MixtureOfExperts) -> float:
    """The balance loss of a router that spreads tokens evenly, over its weight."""
    even = replace(moe, balance_weight=1.0, z_weight=0.0)
    _, experts = next(layers_of(subject.build_model(moe=even)))
    n = moe.n_experts
    with torch.no_grad():
        experts.router.weight.copy_(2 * torch.eye(n, subject.micro.d_model))
    x = torch.zeros(n, subject.micro.d_model)
    for token in range(n):
        for k in range(moe.top_k):
            x[token, (token + k) % n] = 1.0
    experts.route(x)
    assert experts.pending is not None
    return float(experts.pending.detach())


@check(
    "router-loss-counted-once",
    "invariance",
    "train",
    bug="The experts' losses are added once a micro-batch, or not at all: their weight hangs on the accumulation.",
    remedy="Times Loss.weight, where the loop sums (with_router_loss in train/objective.py), for every objective.",
    reference="InternLM/xtuner pull 1101; modelscope/ms-swift pull 10116; jingyaogong/minimind issue 140",
)
def router_loss_counted_once(subject: Subject) -> Measurement:
    """Relative difference, of the logged loss to cross-entropy plus router loss (both as means), for one batch, and for
    the same batch twice and three times over in one step: means of equal parts are the mean. Of the gradient too.

    Weights as in `loud`.
    """
    moe = _needs(subject)
    if moe.balance != "loss" and not moe.z_weight:
        raise NotApplicable("the router has no loss")
    model = subject.build_model(dropout=0.0, moe=loud(moe))
    batch = rig.random_batch(subject, rows=4, length=24, seed=84, scored=0.8)
    plain = subject.objective(model, batch)
    router = model.router_loss()
    assert router is not None
    expected = (float(plain.total.detach())) / plain.weight + float(router.detach())
    (plain.total / plain.weight + router).backward()
    wanted = torch.cat([p.grad.flatten() for _, p in sorted(model.named_parameters()) if p.grad is not None])
    model.zero_grad(set_to_none=True)
    model.end_step(False)
    worst = 0.0
    for times in (1, 2, 3):
        gradient, logged = rig.recorded_gradient(subject, model, [batch] * times)
        worst = max(worst, abs(logged / expected - 1), rig.apart(gradient, wanted))
    share = float(router.detach()) / expected
    return Measurement(worst, 2 * rig.tolerance(subject.micro, 1.0), f"the router loss is {share:.2%} of the loss")


@check(
    "loss-free-bias-steers-alone",
    "identity",
    "train",
    bug="The bias that balances experts enters their weights, moves the wrong way, or moves in a refused step.",
    remedy="Added for the choice alone; + rate where the load is below the mean (route, end_step in model/moe.py).",
    reference="gfyddha/FlyLoRA issue 1; yhlleo/EfficientMoE issue 3; arXiv 2408.15664",
)
def loss_free_bias_steers_alone(subject: Subject) -> Measurement:
    """Numbers that are wrong, out of: each bias after a real step of two micro-batches, which must have moved by
    bias_rate * sign(mean load - load), loads counted from the layers' inputs in fp64; after two refused ones, not at
    all; and the weights of the chosen, which must be those of the same experts without any bias."""
    moe = _needs(subject)
    if moe.balance != "bias":
        raise NotApplicable(f"experts are balanced by {moe.balance}")
    model, found, looked = subject.build_model(dropout=0.0), [], 0
    parts = [rig.random_batch(subject, rows=2, length=24, seed=85 + n) for n in range(2)]
    before = {layer: experts.balance_bias.clone() for layer, experts in layers_of(model)}
    loads, reference = _loads(model, parts), Reference(model)
    for kind in ("loss", "gradient"):  # of other and more tokens, whose load would drown that of the next step
        others = [rig.random_batch(subject, rows=12, length=32, seed=88)]
        rig.one_step(subject, model, others, rig.Recorder(model), rig.poisoned(subject, kind))
    for layer, experts in layers_of(model):
        looked += moe.n_experts
        wrong = (experts.balance_bias != before[layer]).nonzero()[:, 0].tolist()
        found += [f"layer {layer}, expert {e}: moved by a refused step" for e in wrong]
    rig.one_step(subject, model, parts, rig.Recorder(model))
    x = rows_for(subject, 86)
    for layer, experts in layers_of(model):
        looked += 2 * moe.n_experts
        expected = before[layer] + moe.bias_rate * torch.sign(loads[layer].mean() - loads[layer])
        wrong = ((experts.balance_bias - expected).abs() > rig.EPS).nonzero()[:, 0].tolist()
        found += [f"layer {layer}, expert {e}: {float(experts.balance_bias[e] - before[layer][e]):+.4g}" for e in wrong]
        with torch.no_grad():
            chosen, weights = experts.route(x)
        scores = reference.scores(layer, x.double()).gather(-1, chosen)
        fair = (scores / scores.sum(-1, keepdim=True) if moe.normalise else scores) * moe.scale
        off = (weights - fair).abs().amax(-1) > rig.tolerance(subject.micro, rig.largest(fair))
        found += [f"layer {layer}: the bias is in the weights of token {n}" for n in off.nonzero()[:, 0].tolist()]
    return violations(found, looked)


def _loads(model: Transformer, parts: list[rig.Batch]) -> dict[int, Tensor]:
    """Tokens that each expert of each layer is sent, all micro-batches together, from the fp64 router."""
    reference = Reference(model)
    loads: dict[int, Tensor] = {}
    for batch in parts:
        given = {"documents": batch.documents, "positions": batch.positions}
        for layer, call in enumerate(rig.calls(model, "mlp", batch.tokens, **given)):
            if isinstance(model.blocks[layer].mlp, ExpertMLP):
                sent = (reference.routing(layer, call.inputs[0].double()) > 0).flatten(0, 1).sum(0).double()
                loads[layer] = loads[layer] + sent if layer in loads else sent
    return loads
