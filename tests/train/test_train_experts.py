"""Experts and muP in the loop: what is balanced, what each optimizer sees, and at which rate."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from groundup.model.batch import Batch
from groundup.model.config import ModelConfig
from groundup.model.init import init_weights
from groundup.model.transformer import Transformer
from groundup.recipe.schema import TrainSection
from groundup.train.objective import Loss, language_modelling, with_router_loss
from groundup.train.optim import Muon, Optimizers, orthogonalise, roles, seams_of

EXPERTS = {"n_experts": 4, "top_k": 2, "d_expert": 12}


def model_of(**changes: Any) -> Transformer:
    values: dict[str, Any] = {"moe": EXPERTS, "n_kv_heads": 2, **changes}
    shape = {"vocab_size": 50, "d_model": 16, "n_layers": 2, "n_heads": 2, "head_dim": 8, "d_ff": 24, "context": 16}
    return init_weights(Transformer(ModelConfig(**{**shape, **values})), 0)


def batch_of(rows: int, seed: int = 0) -> Batch:
    ids = torch.randint(50, (rows, 13), generator=torch.Generator().manual_seed(seed))
    places = torch.arange(12).expand(rows, -1)
    return Batch(ids[:, :-1], ids[:, 1:], torch.zeros(rows, 12, dtype=torch.int32), places)


def section(**changes: Any) -> TrainSection:
    values = {"steps": 4, "learning_rate": 0.01, "muon_learning_rate": 0.02, "precision": "fp32", "compile": False}
    return TrainSection(**{**values, **changes})


def test_the_router_loss_enters_the_sum_times_the_tokens() -> None:
    """Bug: a mean added to a sum, so that balance counts a thousandth of what the recipe says."""
    model, batch = model_of(), batch_of(3)
    plain = language_modelling(model, batch)
    router = model.router_loss()
    assert router is not None
    whole = with_router_loss(model, language_modelling(model, batch))
    assert float((whole.total - plain.total).detach()) == pytest.approx(float(router.detach()) * 36, rel=1e-4)
    assert float(whole.metrics["router_loss"]) == pytest.approx(float(router.detach()) * 36, rel=1e-4)
    dense = Loss(torch.zeros(()), 3)
    assert with_router_loss(model_of(moe=None), dense) is dense


def test_muon_sees_each_experts_matrices_apart() -> None:
    """Bug: a stack of experts orthogonalised as one tall matrix: experts then push each other away."""
    model = model_of()
    stack = model.blocks[0].mlp.gate_up
    assert seams_of(model)[stack] == (12, 12)
    stack.grad = torch.randn(stack.shape, generator=torch.Generator().manual_seed(1))
    before = stack.detach().clone()
    Muon([stack], lr=0.5, seams=seams_of(model)).step()
    gradient = stack.grad * (1 - 0.95) * 0.95 + stack.grad * 0.05  # Nesterov's first step is a multiple of it
    for e in range(4):
        for part, old, new in zip(gradient[e].split(12), before[e].split(12), stack[e].split(12), strict=True):
            expected = old - 0.5 * orthogonalise(part[None])[0].float()  # 12 x 16: no factor for tall ones
            assert torch.allclose(new, expected, atol=2e-2)
            values = torch.linalg.svdvals((old - new.detach()) / 0.5)
            assert float(values.min()) > 0.5 and float(values.max()) < 1.4


def test_routers_are_adams_even_under_muon() -> None:
    """Bug: a router orthogonalised: every expert is then pushed as hard as every other, whatever it was sent."""
    found = {kind: [name for name, _ in members] for kind, members in roles(model_of()).items()}
    assert found["router"] == ["blocks.0.mlp.router.weight", "blocks.1.mlp.router.weight"]
    assert {"blocks.0.mlp.gate_up", "blocks.1.mlp.down"} <= set(found["matrix"])
    assert sum(map(len, found.values())) == len(list(model_of().parameters()))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_experts_train(optimizer: str) -> None:
    """Bug: a stack of experts that no optimizer holds, or whose update has another shape."""
    model, batch = model_of(), batch_of(4)
    optimizers = Optimizers(model, section(optimizer=optimizer))
    losses = []
    for _ in range(12):
        loss = with_router_loss(model, language_modelling(model, batch))
        (loss.total / loss.weight).backward()
        optimizers.step(1.0)
        optimizers.zero_grad()
        model.end_step(True)
        losses.append(float(loss.total.detach()) / loss.weight)
    assert losses[-1] < 0.8 * losses[0]


def test_under_mup_adam_moves_the_matrices_less_the_wider_they_are() -> None:
    """Bug: the width's share applied to nothing, or to embeddings and vectors as well."""
    model = model_of(moe=None, init="mup", mup_width=4)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizers = Optimizers(model, section(optimizer="adamw", weight_decay=0.0))
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizers.step(0.5)
    moved = {name: float((p.detach() - before[name]).abs().mean()) for name, p in model.named_parameters()}
    for name, change in moved.items():
        matrix = name.startswith("blocks.") and "norm" not in name
        assert change == pytest.approx(0.005 * (0.25 if matrix else 1.0), rel=1e-3), name
