"""Faults of routing, of what keeps the load even, and of how that reaches the step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from groundup.model.linear import PackedLinear
from groundup.model.moe import ExpertMLP
from groundup.model.transformer import Transformer
from groundup.train import loop, optim
from groundup.train.objective import Loss
from groundup.tune import dpo
from groundup.verify.fault import fault, swapped

SIZES = {"n_experts": 5, "top_k": 2, "d_expert": 24}
LOSS = {"moe": {**SIZES, "balance": "loss"}}
BIAS = {"moe": {**SIZES, "balance": "bias", "score": "sigmoid"}}
_route, _run, _end = ExpertMLP.route, ExpertMLP.run_experts, ExpertMLP.end_step


@fault("bias-enters-the-weights", "loss-free-bias-steers-alone", "experts-equal-dense-sum", model=BIAS)
def bias_enters_the_weights() -> Iterator[None]:
    """The loss-free bias is part of the chosen experts' weights."""

    def wrong(self: ExpertMLP, rows: Tensor) -> tuple[Tensor, Tensor]:
        chosen, _ = _route(self, rows)
        scores = torch.sigmoid(self.router(rows)) + self.balance_bias
        weights = scores.gather(-1, chosen)
        return chosen, weights / weights.sum(-1, keepdim=True) * self.moe.scale

    with swapped(ExpertMLP, route=wrong):
        yield


@fault("bias-moves-the-wrong-way", "loss-free-bias-steers-alone", model=BIAS)
def bias_moves_the_wrong_way() -> Iterator[None]:
    """Crowded experts are made more attractive."""

    def wrong(self: ExpertMLP, applied: bool) -> float:
        before = self.balance_bias.clone()
        worst = _end(self, applied)
        self.balance_bias.copy_(2 * before - self.balance_bias)
        return worst

    with swapped(ExpertMLP, end_step=wrong):
        yield


@fault("bias-moves-in-a-refused-step", "loss-free-bias-steers-alone", "nonfinite-step-changes-nothing", model=BIAS)
def bias_moves_in_a_refused_step() -> Iterator[None]:
    """A step that is not finite changes no weight, and moves the bias."""
    with swapped(ExpertMLP, end_step=lambda self, applied: _end(self, True)):
        yield


@fault("load-of-refused-steps-kept", "loss-free-bias-steers-alone", model=BIAS)
def load_of_refused_steps_kept() -> Iterator[None]:
    """What experts took in a refused step is counted in the next."""

    def wrong(self: ExpertMLP, applied: bool) -> float:
        load = self.load.clone()
        worst = _end(self, applied)
        self.load.copy_(torch.zeros_like(load) if applied else load)
        return worst

    with swapped(ExpertMLP, end_step=wrong):
        yield


@fault("weights-not-normalised", "experts-equal-dense-sum", model=LOSS)
def weights_not_normalised() -> Iterator[None]:
    """normalise is read from the recipe, and the chosen experts' weights do not sum to 1."""

    def wrong(self: ExpertMLP, rows: Tensor) -> tuple[Tensor, Tensor]:
        chosen, _ = _route(self, rows)
        return chosen, torch.softmax(self.router(rows), dim=-1).gather(-1, chosen) * self.moe.scale

    with swapped(ExpertMLP, route=wrong):
        yield


@fault("weights-of-the-other-expert", "experts-equal-dense-sum", "forward-is-its-definition", model=LOSS)
def weights_of_the_other_expert() -> Iterator[None]:
    """Experts are sorted by number, their weights stay in order of size."""

    def wrong(self: ExpertMLP, rows: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        return _run(self, rows, chosen.sort(-1)[0], weights)

    with swapped(ExpertMLP, run_experts=wrong):
        yield


@fault("results-left-in-sorted-order", "experts-follow-their-tokens", "experts-equal-dense-sum", model=LOSS)
def results_left_in_sorted_order() -> Iterator[None]:
    """What experts give is not put back into the order of the tokens."""

    def wrong(self: ExpertMLP, rows: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        n, k = chosen.shape
        order = chosen.flatten().argsort(stable=True)
        counts = torch.bincount(chosen.flatten(), minlength=self.moe.n_experts).tolist()
        copies = rows[:, None].expand(-1, k, -1).reshape(n * k, -1)[order]
        y = torch.cat([self.expert(*share) for share in self.shares(copies, counts) if len(share[0])])
        return (y.view(n, k, -1) * weights[..., None]).sum(1)

    with swapped(ExpertMLP, run_experts=wrong):
        yield


@fault("crowded-expert-drops-tokens", "every-token-gets-its-experts", model=LOSS)
def crowded_expert_drops_tokens() -> Iterator[None]:
    """An expert takes at most twice its even share of a batch; further tokens get nothing from it."""

    def wrong(self: ExpertMLP, rows: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        most = max(1, 2 * chosen.numel() // self.moe.n_experts)
        place = torch.zeros_like(chosen)
        for e in range(self.moe.n_experts):
            place = torch.where(chosen == e, (chosen == e).flatten().cumsum(0).view_as(chosen), place)
        return _run(self, rows, chosen, weights * (place <= most))

    with swapped(ExpertMLP, run_experts=wrong):
        yield


@fault("second-best-passed-over", "every-token-gets-its-experts", model=LOSS)
def second_best_passed_over() -> Iterator[None]:
    """The best expert and the third best are taken."""

    def wrong(self: ExpertMLP, rows: Tensor) -> tuple[Tensor, Tensor]:
        scores = torch.softmax(self.router(rows), dim=-1)
        chosen = scores.topk(self.moe.top_k + 1, dim=-1).indices[:, [0, *range(2, self.moe.top_k + 1)]]
        weights = scores.gather(-1, chosen)
        return chosen, weights / weights.sum(-1, keepdim=True)

    with swapped(ExpertMLP, route=wrong):
        yield


@fault("balance-loss-out-of-the-graph", "balance-loss-is-its-formula", model=LOSS)
def balance_loss_out_of_the_graph() -> Iterator[None]:
    """The balance loss is logged and has no gradient."""
    right = ExpertMLP.observe

    def wrong(self: ExpertMLP, logits: Tensor, scores: Tensor, chosen: Tensor) -> None:
        right(self, logits, scores.detach() + 0 * scores, chosen)

    with swapped(ExpertMLP, observe=wrong):
        yield


@fault("balance-loss-not-times-experts", "balance-loss-is-its-formula", model=LOSS)
def balance_loss_not_times_experts() -> Iterator[None]:
    """Without the factor E the loss of an even router is 1 / E: the weight means another thing for each model."""
    right = ExpertMLP.observe

    def wrong(self: ExpertMLP, logits: Tensor, scores: Tensor, chosen: Tensor) -> None:
        right(self, logits, scores, chosen)
        assert self.pending is not None
        self.pending = self.pending / self.moe.n_experts

    with swapped(ExpertMLP, observe=wrong):
        yield


@fault("router-loss-once-a-micro-batch", "router-loss-counted-once", model=LOSS)
def router_loss_once_a_micro_batch() -> Iterator[None]:
    """The router's mean is added to the sum over tokens, not times their number: it counts next to nothing."""

    def wrong(model: Transformer, loss: Loss) -> Loss:
        router = model.router_loss()
        return loss if router is None else Loss(loss.total + router, loss.weight, loss.metrics)

    with swapped(loop, with_router_loss=wrong):
        yield


@fault("router-loss-forgotten", "router-loss-counted-once", model=LOSS)
def router_loss_forgotten() -> Iterator[None]:
    """The loop trains on the objective alone."""
    with swapped(loop, with_router_loss=lambda model, loss: loss):
        yield


@fault("muon-forgets-experts-seams", "muon-respects-seams", model=LOSS, pretrain={"optimizer": "muon"})
def muon_forgets_experts_seams() -> Iterator[None]:
    """Muon takes an expert's gate and up for one matrix."""

    def wrong(model: Transformer) -> Any:
        return {m.weight: m.sizes for m in model.modules() if isinstance(m, PackedLinear)}

    with swapped(optim, seams_of=wrong):
        yield


@fault("padding-is-balanced", "padding-is-not-balanced", model=LOSS)
def padding_is_balanced() -> Iterator[None]:
    """Every place of a row is sent to experts and counted, padding too."""
    with swapped(Transformer, mark_padding=lambda self, documents: None):
        yield


@fault("padding-is-a-document", "padding-is-not-balanced", model=LOSS)
def padding_is_a_document() -> Iterator[None]:
    """In rows of pairs alone, padding is a document like others: unseen and unscored, and balanced."""
    right = dpo.rows_to_batch

    def wrong(rows: Any, pad: int) -> Any:
        batch = right(rows, pad)
        batch.documents = batch.documents.abs()
        return batch

    with swapped(dpo, rows_to_batch=wrong):
        yield
