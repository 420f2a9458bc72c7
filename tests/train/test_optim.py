"""Which parameter is updated how."""

import pytest
import torch

from groundup.model.config import ModelConfig
from groundup.model.init import init_weights
from groundup.model.transformer import Transformer
from groundup.recipe.schema import PretrainSection
from groundup.train.optim import Muon, Optimizers, orthogonalise, roles

CONFIG = ModelConfig(64, 32, 2, 2, 2, 16, 64, 16)


def build(**section):
    model = init_weights(Transformer(CONFIG), 0)
    values = {"steps": 10, "learning_rate": 1e-2, "muon_learning_rate": 2e-2, **section}
    return model, Optimizers(model, PretrainSection(**values))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_every_parameter_is_in_exactly_one_group(optimizer):
    """Bug: a parameter missing from the optimizer, or stepped twice (a tied head, listed under both names)."""
    model, optimizers = build(optimizer=optimizer)
    ids = [id(p) for p in optimizers.parameters()]
    assert sorted(ids) == sorted({id(p) for p in model.parameters()})


def test_only_matrices_in_blocks_decay():
    """Bug: norms or embeddings that are decayed towards zero."""
    model, optimizers = build(optimizer="adamw", weight_decay=0.1)
    decayed = {id(p) for _, o, _ in optimizers.all for g in o.param_groups if g["weight_decay"] for p in g["params"]}
    assert decayed == {id(p) for _, p in roles(model)["matrix"]}


def test_orthogonalise_gives_singular_values_near_one():
    """Bug: a Newton-Schulz with a wrong coefficient, or one that mixes matrices of a stack."""
    x = torch.randn(3, 24, 64, generator=torch.Generator().manual_seed(0))
    x[1] *= 1000  # scale must not matter
    for made, given in zip(orthogonalise(x), x, strict=True):
        values = torch.linalg.svdvals(made.float())
        assert values.min() > 0.6 and values.max() < 1.35
        u, _, v = torch.linalg.svd(given, full_matrices=False)
        alignment = (made.float() * (u @ v)).sum() / (made.float().norm() * (u @ v).norm())
        assert alignment > 0.97


def test_muon_treats_packed_projections_piece_by_piece():
    """Bug: qkv orthogonalised as one matrix, so that a large V gradient drowns Q's update."""
    generator = torch.Generator().manual_seed(1)
    packed = torch.nn.Parameter(torch.zeros(48, 16))
    apart = [torch.nn.Parameter(torch.zeros(16, 16)) for _ in range(3)]
    gradient = (
        torch.randn(48, 16, generator=generator) * torch.tensor([1.0, 10.0, 100.0]).repeat_interleave(16)[:, None]
    )
    packed.grad = gradient.clone()
    for p, g in zip(apart, gradient.split(16), strict=True):
        p.grad = g.clone()
    Muon([packed], lr=0.1, seams={packed: (16, 16, 16)}).step()
    Muon(apart, lr=0.1).step()
    assert torch.equal(packed, torch.cat([p.data for p in apart]))


def test_state_goes_by_name_and_comes_back():
    """Bug: optimizer state restored to the wrong parameter, or momentum forgotten at resume."""
    model, optimizers = build(optimizer="muon")

    def step(m, o):
        hidden = m(torch.arange(16)[None])
        m.logits(hidden).square().sum().backward()
        o.step(1.0)
        o.zero_grad()

    step(model, optimizers)
    twin, other = build(optimizer="muon")
    twin.load_state_dict(model.state_dict())
    other.load_tensors(optimizers.tensors())
    step(model, optimizers)
    step(twin, other)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_share_scales_the_peak():
    """Bug: a schedule that multiplies the rate again at each step instead of setting it."""
    _, optimizers = build(optimizer="muon")
    optimizers.step(0.5)
    optimizers.step(0.25)
    assert [g["lr"] for _, o, _ in optimizers.all for g in o.param_groups] == [0.02 * 0.25, 0.01 * 0.25]
