"""Mixture of experts: a router sends each token to a few feed-forwards. Dropless: no expert has a limit.

Shazeer et al. 2017 (arXiv 1701.06538), Switch (2101.03961), Mixtral (2401.04088), DeepSeekMoE (2401.06066).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groundup.model.config import ModelConfig
from groundup.model.mlp import ACTIVATIONS, make_mlp

TINY = 1e-20  # sigmoid scores may all be 0 in fp32: 0 / 0 would be NaN (DeepSeek-V3's code adds the same)


class ExpertMLP(nn.Module):
    """y = sum over the chosen experts e of weight_e * expert_e(x), plus the shared experts.

    The experts' matrices are stacked, (E, out, in), rows of gate and up packed as in `GatedMLP`.
    """

    balance_bias: Tensor
    load: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.moe is not None
        self.moe, self.activation, self.gated = config.moe, ACTIVATIONS[config.mlp], config.gated
        e, d, f = config.moe.n_experts, config.d_model, config.moe.d_expert
        self.router = nn.Linear(d, e, bias=False)
        if config.gated:
            self.gate_up = nn.Parameter(torch.empty(e, 2 * f, d))
        else:
            self.up = nn.Parameter(torch.empty(e, f, d))
        self.down = nn.Parameter(torch.empty(e, d, f))
        self.shared = make_mlp(config, config.moe.n_shared * f) if config.moe.n_shared else None
        if config.moe.balance == "bias":
            self.register_buffer("balance_bias", torch.zeros(e))
        self.reset_buffers()

    def reset_buffers(self) -> None:
        """What is not stored: tokens each expert took in this optimizer step, and a loss not yet collected."""
        self.register_buffer("load", torch.zeros(self.moe.n_experts, device=self.down.device), persistent=False)
        self.pending: Tensor | None = None
        self.real: Tensor | None = None  # (N,) bool, set for one forward pass: rows that are no padding; None = all

    # Which tokens go where depends on the data: a compiler would build a graph for every split.
    @torch.compiler.disable
    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        rows = x.reshape(-1, x.shape[-1])
        chosen, weights = self.route(rows)
        y = self.run_experts(rows, chosen, weights)
        if self.shared is not None:
            y = y + self.shared(rows)
        return y.view_as(x)

    def route(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """rows (N, D) -> chosen experts (N, k) and their weights (N, k). In fp32: bf16 ties would choose at random."""
        with torch.autocast(rows.device.type, enabled=False):
            logits = F.linear(rows.float(), self.router.weight.float())
        scores = torch.softmax(logits, dim=-1) if self.moe.score == "softmax" else torch.sigmoid(logits)
        # TRAP: the bias decides who is chosen and must not enter the weights (arXiv 2408.15664, equation 3)
        choice = scores + self.balance_bias if self.moe.balance == "bias" else scores
        chosen = choice.topk(self.moe.top_k, dim=-1).indices
        weights = scores.gather(-1, chosen)
        if self.moe.normalise:
            weights = weights / (weights.sum(-1, keepdim=True) + TINY)
        if torch.is_grad_enabled():  # not by training mode: DPO trains in eval mode, where dropout is off
            self.observe(logits, scores, chosen)
        return chosen, weights * self.moe.scale

    def run_experts(self, rows: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Each expert's tokens as one matmul. Copies are sorted and sorted back, so that no two writes meet:
        adding into shared rows would sum in an order that changes from run to run on a GPU."""
        n, k = chosen.shape
        order = chosen.flatten().argsort(stable=True)
        counts = torch.bincount(chosen.flatten(), minlength=self.moe.n_experts).tolist()
        copies = rows[:, None].expand(-1, k, -1).reshape(n * k, -1)[order]
        pieces = [self.expert(part, first, last) for part, first, last in self.shares(copies, counts) if len(part)]
        y = torch.cat(pieces)[order.argsort()].view(n, k, -1)
        return (y * weights[..., None].type_as(y)).sum(1)

    def shares(self, copies: Tensor, counts: list[int]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(tokens, first matrix, last matrix) of each expert. Unbound once: indexing a stack expert by expert would
        make the backward pass allocate a gradient of the whole stack for each of them."""
        first = self.gate_up if self.gated else self.up
        yield from zip(copies.split(counts), first.unbind(), self.down.unbind(), strict=True)

    def expert(self, x: Tensor, first: Tensor, last: Tensor) -> Tensor:
        """x (n, D) -> (n, D)"""
        if self.gated:
            gate, up = F.linear(x, first).chunk(2, dim=-1)
            return F.linear(self.activation(gate) * up, last)
        return F.linear(self.activation(F.linear(x, first)), last)

    def observe(self, logits: Tensor, scores: Tensor, chosen: Tensor) -> None:
        """Count who was chosen, and keep the router's losses for `Transformer.router_loss`.

        Balance (Switch, equation 4): E sum_e f_e P_e, f the share of choices, P the mean probability; 1 when even.
        z (ST-MoE, arXiv 2202.08906, equation 5): mean of logsumexp(logits)^2.
        Padding is left out: it is one token over and over, and all of it goes to the same few experts.
        """
        moe = self.moe
        if self.real is not None:
            logits, scores, chosen = logits[self.real], scores[self.real], chosen[self.real]
            if not len(chosen):
                return
        counts = torch.bincount(chosen.flatten(), minlength=moe.n_experts).to(scores.dtype)
        self.load += counts
        loss = torch.zeros((), device=scores.device)
        if moe.balance == "loss":
            probability = (scores / (scores.sum(-1, keepdim=True) + TINY)).mean(0)
            loss = loss + moe.balance_weight * moe.n_experts * (counts / counts.sum() * probability).sum()
        if moe.z_weight:
            loss = loss + moe.z_weight * torch.logsumexp(logits, dim=-1).square().mean()
        self.pending = loss

    @torch.no_grad()
    def end_step(self, applied: bool) -> float:
        """After an optimizer step: move the loss-free bias (arXiv 2408.15664, algorithm 1) and forget the counts.

        A step that was refused (not finite) moves nothing. Returns the largest load over the mean (1 = even).
        """
        load, mean = self.load, self.load.mean()
        overload = float(load.max() / mean) if mean > 0 else float("nan")
        if applied and self.moe.balance == "bias":
            self.balance_bias += self.moe.bias_rate * torch.sign(mean - load)
        load.zero_()
        self.pending = None
        return overload
