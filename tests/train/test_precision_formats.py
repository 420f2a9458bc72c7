"""fp16's loss scale, and what is refused of number formats."""

import json
import math

import pytest
import torch
from optimizer_runs import CONFIG, make_job, same, weights

from groundup.errors import UserError
from groundup.model.init import init_weights
from groundup.model.transformer import Transformer
from groundup.plan.host import Host
from groundup.plan.resolve import resolve
from groundup.recipe.schema import Recipe
from groundup.train import precision
from groundup.train.loop import train
from groundup.train.objective import Loss, language_modelling
from groundup.train.optim import Optimizers
from groundup.train.scaler import FIRST, FLOOR, GROWTH, Scaler


def rows(folder):
    return [r for r in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if "loss" in r]


def test_the_scale_falls_at_once_and_rises_slowly():
    """Bug: a scale that only falls; an overflow at the floor that is nobody's fault, for ever."""
    scaler = Scaler()
    assert scaler.update(False) and scaler.scale == FIRST / 2
    for _ in range(GROWTH - 1):
        scaler.update(True)
    assert scaler.scale == FIRST / 2
    scaler.update(True)
    assert scaler.scale == FIRST
    scaler.scale = 2 * FLOOR
    assert scaler.update(False) and scaler.scale == FLOOR
    assert not scaler.update(False) and scaler.scale == FLOOR
    other = Scaler()
    other.load_tensors(scaler.tensors())
    assert (other.scale, other.good) == (scaler.scale, scaler.good)


def overflowing(times):
    """An objective whose gradient overflows fp16's range at scales above FIRST / 2**times, and is itself finite."""
    limit = FIRST / 2**times

    class Overflow(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return torch.where(gradient > limit, torch.full_like(gradient, math.inf), gradient)

    def objective(model, batch):
        loss = language_modelling(model, batch)
        return Loss(Overflow.apply(loss.total), loss.weight)

    return objective


def test_an_overflow_halves_the_scale_and_is_no_bad_step(tmp_path):
    """Bug: the first steps of every fp16 run, whose scale is too large, end it as "not finite"; or the weights take
    the infinite gradient."""
    metrics = train(make_job(tmp_path, objective=overflowing(3), precision="fp16", steps=6, max_bad_steps=1))
    found = rows(tmp_path)
    assert [r["overflow"] for r in found] == [1, 1, 1, 0, 0, 0] and metrics["skipped_steps"] == 0
    assert [r["loss_scale"] for r in found] == [FIRST / 2, FIRST / 4, *[FIRST / 8] * 4]


def test_an_overflow_at_the_floor_is_a_bad_step(tmp_path):
    """Bug: a diverged fp16 run halves its scale for ever and reports success."""
    with pytest.raises(UserError, match="not finite"):
        train(make_job(tmp_path, objective=overflowing(40), precision="fp16", steps=40, max_bad_steps=3))


def test_the_scale_is_divided_out_again(tmp_path):
    """Bug: the gradient norm (and so the clip) is that of the scaled loss. A power of two changes no bit of fp32."""

    def trained(name, **changed):
        job = make_job(tmp_path / name, steps=3, **changed)
        job.section = job.section.model_copy(update={"precision": changed.get("precision", "fp32")})
        return job

    scaled, plain = trained("scaled", precision="fp16"), trained("plain")
    known, given = precision.HALF, {**precision.HALF}
    given.pop("fp16")  # products in fp32, the loss scaled all the same
    precision.HALF = given
    try:
        train(scaled)
    finally:
        precision.HALF = known
    train(plain)
    assert same(weights(scaled), weights(plain))
    assert [r["grad_norm"] for r in rows(tmp_path / "scaled")] == [r["grad_norm"] for r in rows(tmp_path / "plain")]


def test_fp16_multiplies_in_fp16():
    """Bug: precision fp16 is bf16, or nothing at all."""
    for name, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16), ("float8", torch.bfloat16)):
        with precision.autocast("cpu", name):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
    with precision.autocast("cpu", "fp32"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def recipe(**pretrain):
    shape = {"d_model": 64, "n_layers": 2, "n_heads": 2, "context": 64, "d_ff": 64}
    return Recipe.model_validate(
        {"name": "x", "model": shape, "data": {"sources": [{"builtin": "town"}]}, "pretrain": pretrain}
    )


def test_float8_is_refused_where_it_cannot_run():
    """Bug: hours of data work before the first step says that there is no CUDA."""
    host = Host("cpu", 2, 8 << 30, fast_bf16=True, compiler=False)
    with pytest.raises(UserError, match="float8 is for CUDA"):
        resolve(recipe(precision="float8"), host)
    with pytest.raises(UserError, match="float8 is for CUDA"):
        precision.use_float8(Transformer(CONFIG), "cpu")


def test_float8_takes_the_blocks_linear_layers_alone():
    """Bug: the head, a router, or a layer that float8 products cannot take is converted too."""
    model = Transformer(CONFIG)
    found = {name for name, module in model.named_modules() if precision.suits_float8(module, name)}
    assert found == {name for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)} - {"head"}
    assert not precision.suits_float8(torch.nn.Linear(24, 16), "blocks.0.mlp.up")
    assert not precision.suits_float8(torch.nn.Linear(32, 16), "blocks.0.mlp.router")


def test_float8_layers_keep_their_seams(monkeypatch):
    """Bug: torchao's layers are other objects without the seams of packed projections: attention cannot split its
    heads, and Muon of a rollback takes q, k and v for one matrix."""
    import sys
    import types

    class Float8Linear(torch.nn.Linear):
        pass

    def convert(model, module_filter_fn, config):
        assert config["pad_inner_dim"]  # else a batch whose tokens are no multiple of 16 has no backward pass
        for name, module in list(model.named_modules()):
            if module_filter_fn(module, name):
                other = Float8Linear(1, 1, bias=False)
                other.weight = module.weight
                model.set_submodule(name, other)
        return model

    package = types.ModuleType("torchao.float8")
    package.convert_to_float8_training = convert
    package.Float8LinearConfig = dict
    monkeypatch.setitem(sys.modules, "torchao", types.ModuleType("torchao"))
    monkeypatch.setitem(sys.modules, "torchao.float8", package)
    model = init_weights(Transformer(CONFIG), 0)
    before = make_optimizers(model).all[0][1].seams
    precision.use_float8(model, "cuda")
    assert isinstance(model.get_submodule("blocks.0.attention.qkv"), Float8Linear)
    assert make_optimizers(model).all[0][1].seams == before and before
    assert model(torch.zeros(1, 4, dtype=torch.long)).shape == (1, 4, 32)


def make_optimizers(model):
    from groundup.recipe.schema import PretrainSection

    return Optimizers(model, PretrainSection(steps=1, learning_rate=1e-3, muon_learning_rate=1e-2))


@pytest.mark.parametrize(
    "optimizer, times", [("adamw", 1.0), ("soap", 1.0), ("muon", 1.0), ("lion", 0.2), ("adafactor", 0.3)]
)
def test_automatic_rates_follow_the_optimizer(optimizer, times):
    """Bug: Lion gets AdamW's rate, several times too large for its updates."""
    host = Host("cpu", 2, 8 << 30, fast_bf16=False, compiler=False)
    found, notes = resolve(recipe(optimizer=optimizer), host)
    usual, _ = resolve(recipe(optimizer="adamw"), host)
    assert found.pretrain.learning_rate == pytest.approx(times * usual.pretrain.learning_rate, rel=0.05)
    note = next(n for n in notes if n.key == "pretrain.learning_rate")
    assert ("2302.06675" in note.source) == (optimizer == "lion")
