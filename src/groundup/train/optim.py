"""AdamW for embeddings, head and vectors; Muon for the matrices inside the blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from groundup.model.config import ModelConfig
from groundup.model.linear import PackedLinear
from groundup.model.moe import ExpertMLP
from groundup.model.transformer import Transformer
from groundup.recipe.schema import TrainSection


def roles(model: Transformer) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """Every trainable parameter in exactly one role: matrix (inside blocks), embedding, vector (norms, biases).

    A router is a role of its own: its rows stand for experts, as a head's do for tokens.
    """
    out: dict[str, list[tuple[str, nn.Parameter]]] = {"matrix": [], "embedding": [], "vector": [], "router": []}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        inside = "matrix" if name.startswith("blocks.") else "embedding"
        kind = "router" if name.endswith("router.weight") else "vector" if parameter.ndim < 2 else inside
        out[kind].append((name, parameter))
    return out


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised (Jordan et al. 2024): every update has singular values near 1.

    Newton-Schulz runs in bf16 on stacks of equal shape, so that a step costs a few large matmuls, not one small
    one a matrix. Packed projections (qkv, gate and up) are orthogonalised piece by piece: they are one matrix
    only in memory, and so are stacked experts. The rate is scaled by sqrt(max(1, rows / columns)).
    """

    def __init__(
        self,
        params: list[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        seams: dict[Tensor, tuple[int, ...]] | None = None,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.seams = seams or {}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(state["momentum"], group["momentum"])  # Nesterov
                sizes = self.seams.get(p, (p.shape[-2],))
                for matrix, change in zip(_matrices(p), _matrices(update), strict=True):
                    for weight, piece in zip(matrix.split(sizes), change.split(sizes), strict=True):
                        by_shape.setdefault((piece.shape[0], piece.shape[1]), []).append((weight, piece))
            for (rows, columns), pieces in by_shape.items():
                updates = orthogonalise(torch.stack([piece for _, piece in pieces]))
                rate = group["lr"] * max(1.0, rows / columns) ** 0.5
                for (weight, _), update in zip(pieces, updates, strict=True):
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    weight.add_(update.to(weight.dtype), alpha=-rate)


def _matrices(x: Tensor) -> Sequence[Tensor]:
    """A matrix, or the matrices of a stack (E, rows, columns), as views."""
    return x.unbind() if x.ndim == 3 else [x]


def seams_of(model: Transformer) -> dict[Tensor, tuple[int, ...]]:
    """Packed weight -> the rows of each matrix in it (of each expert's matrix, in a stack)."""
    seams: dict[Tensor, tuple[int, ...]] = {m.weight: m.sizes for m in model.modules() if isinstance(m, PackedLinear)}
    for m in model.modules():
        if isinstance(m, ExpertMLP) and m.gated:
            seams[m.gate_up] = (m.moe.d_expert, m.moe.d_expert)
    return seams


def orthogonalise(x: Tensor, steps: int = 5) -> Tensor:
    """(n, rows, columns) -> about U V^T of each, by the quintic Newton-Schulz iteration of Muon, in bf16."""
    a, b, c = 3.4445, -4.7750, 2.0315
    y = x.bfloat16()
    tall = y.shape[-2] > y.shape[-1]
    if tall:
        y = y.mT
    y = y / (y.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = y @ y.mT
        y = a * y + (b * gram + c * gram @ gram) @ y
    return y.mT if tall else y


def matrix_share(config: ModelConfig) -> float:
    """Adam's rate of matrices and routers over the section's: mup_width / d_model under muP.

    Yang et al. 2022, arXiv 2203.03466, table 8: hidden weights 1 / fan_in, embeddings, head and vectors 1; a router is
    an output layer without the multiplier that the logits have. Muon's matrices need none of it: their update has
    the same spectral norm at every width.
    """
    return config.mup_width / config.d_model if config.init == "mup" else 1.0


class Optimizers:
    """The optimizers of one stage behind one face. State is kept by full parameter name, never by index."""

    def __init__(self, model: Transformer, section: TrainSection) -> None:
        self.names: dict[Tensor, str] = {p: n for n, p in model.named_parameters()}
        role = roles(model)
        matrices = [p for _, p in role["matrix"]]
        embeddings, vectors = [p for _, p in role["embedding"]], [p for _, p in role["vector"]]
        rate = float(section.learning_rate)
        # Decay on matrices alone: norms and biases must be free to move, and embedding rows that a batch does
        # not touch would only shrink.
        routers, share = [p for _, p in role["router"]], matrix_share(model.config)
        groups: list[dict[str, Any]] = [
            {"params": embeddings + vectors, "weight_decay": 0.0},
            {"params": routers, "weight_decay": 0.0, "share": share},
        ]
        self.all: list[tuple[str, torch.optim.Optimizer, float]] = []
        if section.optimizer == "muon":
            muon_rate = float(section.muon_learning_rate)
            muon = Muon(matrices, muon_rate, weight_decay=section.weight_decay, seams=seams_of(model))
            self.all.append(("muon", muon, muon_rate))
        else:
            # Decay acts at rate x decay: divided by the share, it is as strong at every width (as muP's authors do).
            groups.append({"params": matrices, "weight_decay": section.weight_decay / share, "share": share})
        groups = [g for g in groups if g["params"]]
        adamw = torch.optim.AdamW(groups, lr=rate, betas=section.betas, eps=1e-8, fused=True)
        self.all.append(("adamw", adamw, rate))

    def parameters(self) -> Iterator[nn.Parameter]:
        for _, optimizer, _ in self.all:
            for group in optimizer.param_groups:
                yield from group["params"]

    def step(self, share: float) -> None:
        """One update with every peak rate scaled by `share`."""
        for _, optimizer, peak in self.all:
            for group in optimizer.param_groups:
                group["lr"] = peak * share * group.get("share", 1.0)
            optimizer.step()

    def zero_grad(self) -> None:
        for _, optimizer, _ in self.all:
            optimizer.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """All state as {'adamw/exp_avg/blocks.0...': tensor}."""
        return {
            f"{kind}/{key}/{self.names[p]}": value.detach().clone()
            for kind, optimizer, _ in self.all
            for p, state in optimizer.state.items()
            for key, value in state.items()
        }

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        by_name = {n: p for p, n in self.names.items()}
        kinds = {kind: optimizer for kind, optimizer, _ in self.all}
        for full, value in tensors.items():
            kind, key, name = full.split("/", 2)
            kinds[kind].state[by_name[name]][key] = value.to(by_name[name].device, copy=True)
